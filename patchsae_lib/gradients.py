"""ReLU where few latents are active, as most of a training goes (section 3.1).

Of the five matrix products of a step only the first, z W_enc, has to be dense: it tells which
latents are active. The others are sums over pairs of a token t and a latent l that is active in
it, of which there are a few in a thousand,

    ẑ_t = Σ_l f_tl W_dec,l        ∂f_tl = ∂ẑ_t · W_dec,l
    ∂W_dec,l = Σ_t f_tl ∂ẑ_t      ∂W_enc,l = Σ_t ∂f_tl z_t

and sums of weighted rows are what `embedding_bag` is made for. That suits a CPU, which gathers
rows about as fast as it reads memory; a GPU multiplies the dense matrices sooner.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

ROWS = 1024  # tokens whose (…, d_sae) pre-activations are there at a time


def bags(rows: Tensor, of: Tensor, weight: Tensor, table: Tensor, n: int) -> Tensor:
    """Σ weight · table[rows] over the entries that are `of` each of n bags, (n, width).

    The bag numbers `of` (entries,) are in order; `table` is (…, width).
    """
    first = torch.searchsorted(of, torch.arange(n))
    return F.embedding_bag(rows, table, first, per_sample_weights=weight, mode="sum")


class ActiveLatents(Function):
    """ReLU(z W_enc + b) of z (n, d_vit) as its positive entries: which token and latent, and f."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, W_enc: Tensor, b: Tensor, bfloat16: bool) -> Any:
        """`token`, `latent` and f (entries,), in order of tokens."""
        dtype = torch.bfloat16 if bfloat16 else z.dtype
        weights, bias = W_enc.to(dtype), b.to(dtype)
        found = []
        for start in range(0, len(z), ROWS):
            pre = torch.addmm(bias, z[start : start + ROWS].to(dtype), weights)
            token, latent = pre.gt(0).nonzero(as_tuple=True)
            found.append((token + start, latent, pre[token, latent].to(z.dtype)))
        token, latent, f = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(z, token, latent)
        ctx.mark_non_differentiable(token, latent)
        ctx.d_sae = len(b)
        return token, latent, f

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _token: Tensor, _latent: Tensor, df: Tensor) -> Any:
        """The gradients of W_enc and b; z has none."""
        z, token, latent = ctx.saved_tensors
        latent, order = latent.sort()
        dW = bags(token[order], latent, df[order], z, ctx.d_sae)
        return None, dW.T, df.new_zeros(ctx.d_sae).index_add_(0, latent, df[order]), None


class DecodeActive(Function):
    """Σ f W_dec over the active latents of each of n tokens: ẑ − b_dec, (n, d_vit)."""

    @staticmethod
    def forward(
        ctx: Any, f: Tensor, W_dec: Tensor, token: Tensor, latent: Tensor, n: int
    ) -> Tensor:
        """From what `ActiveLatents` gives."""
        with torch.enable_grad():  # of f: embedding_bag has it
            f = f.detach().requires_grad_()
            out = bags(latent, token, f, W_dec.detach(), n)
        ctx.graph = out, f
        ctx.save_for_backward(token, latent)
        ctx.d_sae = len(W_dec)
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor) -> Any:
        """The gradients of f and W_dec."""
        out, f = ctx.graph
        (df,) = torch.autograd.grad(out, f, dz)
        token, latent = ctx.saved_tensors
        latent, order = latent.sort()
        dW = bags(token[order], latent, f.detach()[order], dz, ctx.d_sae)
        return df, dW, None, None, None

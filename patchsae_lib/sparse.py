"""Sparse latents as (token, latent, value), and every sum over them (paper sections 3.1 and 3.2).

Of d_sae latents a token activates a few in a thousand. With t a token and l a latent that is
active in it, the sums that the paper needs run over these pairs alone:

    ẑ_t − b_dec = Σ_l f_tl W_dec,l       decoding (eq. 1)
    a_il = Σ_t f_tl, t of image i        image-level activation, times the number of tokens
    ∂f_tl = ∂ẑ_t · W_dec,l               gradients; of the five matrix products of a training step
    ∂W_dec,l = Σ_t f_tl ∂ẑ_t             with ReLU only z W_enc has to be dense: it shows which
    ∂W_enc,l = Σ_t ∂f_tl z_t             latents are active

Sums of weighted rows are what `embedding_bag` computes. They suit a CPU, which gathers rows about
as fast as it reads memory; a GPU multiplies the dense matrices sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from patchsae_lib.distributed import batch_size
from patchsae_lib.sae import SAE

SPARSE = 0.02  # share of active latents up to which going through them one by one is faster


@dataclass(frozen=True)
class SparseLatents:
    """The active latents of `shape` = (images, tokens) tokens.

    `token`, `latent` (int64) and `value`, all (entries,), say which latent is active in which
    token, and how strongly. Tokens are numbered through all images and come in ascending order.
    """

    shape: tuple[int, int]
    d_sae: int
    token: Tensor
    latent: Tensor
    value: Tensor

    @classmethod
    def encode(cls, sae: SAE, z: Tensor, n_tokens: int | None = None) -> SparseLatents:
        """Encode residual tokens z (images, tokens, d_vit), the first `n_tokens` of each image.

        `shape` still counts all tokens: those of prompts, which come last, decode to 0.
        """
        return cls.from_dense(sae.encode(z[:, :n_tokens]), z.shape[1])

    @classmethod
    def from_dense(cls, f: Tensor, n_tokens: int | None = None) -> SparseLatents:
        """Take the active latents of f (images, tokens, d_sae), where f > 0.

        `n_tokens` is how many tokens an image has, where f holds only the first of them.
        """
        image, token, latent = f.nonzero(as_tuple=True)
        shape = len(f), n_tokens or f.shape[1]
        value = f[image, token, latent]
        return cls(shape, f.shape[2], image * shape[1] + token, latent, value)

    @property
    def image(self) -> Tensor:
        """The image number of each entry (entries,)."""
        return self.token // self.shape[1]

    def select(self, entries: Tensor) -> SparseLatents:
        """Keep some entries: a mask (entries,) bool, or their numbers in ascending token order."""
        parts = self.token[entries], self.latent[entries], self.value[entries]
        return SparseLatents(self.shape, self.d_sae, *parts)

    def decode(self, W_dec: Tensor) -> Tensor:
        """Σ_l f_tl W_dec,l (images, tokens, d_vit), without b_dec, for W_dec (d_sae, d_vit)."""
        n = self.shape[0] * self.shape[1]
        return sum_rows(self.latent, self.token, self.value, W_dec, n).unflatten(0, self.shape)

    def per_image(self, values: Tensor | None = None) -> Tensor:
        """Sum `values` (entries,), by default the activations, over tokens: (images, d_sae)."""
        values = self.value if values is None else values
        sums = values.new_zeros(self.shape[0] * self.d_sae)
        sums.index_add_(0, self.image * self.d_sae + self.latent, values)
        return sums.view(self.shape[0], self.d_sae)


def is_sparse(f: Tensor) -> bool:
    """Whether so few latents f (images, tokens, d_sae) of the first image are active that sums
    over `SparseLatents` are faster than over f: never on a GPU."""
    return f.device.type == "cpu" and bool(f[:1].count_nonzero() < SPARSE * f[:1].numel())


def image_counts(f: Tensor, cuts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and count latents f (images, tokens, d_sae) over the tokens of each image (eqs. 3-5).

    Returns their sums, and the numbers of tokens (int16) where they are active and where they are
    above `cuts` (d_sae,): (images, d_sae) each, where f is.
    """
    if is_sparse(f):
        entries = SparseLatents.from_dense(f)
        active, above = ((entries.value > cut).short() for cut in (0.0, cuts[entries.latent]))
        return entries.per_image(), entries.per_image(active), entries.per_image(above)
    # torch counts bytes in 16 bits three times as fast as booleans in 64
    active, above = ((f > cut).view(torch.uint8).sum(1, dtype=torch.int16) for cut in (0.0, cuts))
    return f.sum(1), active, above


def sum_rows(rows: Tensor, bag: Tensor, weight: Tensor, table: Tensor, n_bags: int) -> Tensor:
    """Σ weight · table[rows] over the entries of each of `n_bags` bags: (n_bags, width).

    `rows`, `weight` and the ascending `bag` numbers are (entries,); `table` is (…, width).
    """
    first = torch.searchsorted(bag, torch.arange(n_bags, device=bag.device))
    return F.embedding_bag(rows, table, first, per_sample_weights=weight, mode="sum")


class EncodeDecode(Function):
    """f = ReLU(z W_enc + b) and f W_dec through the active latents, with their gradients."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, W_enc: Tensor, b: Tensor, W_dec: Tensor, bfloat16: bool
    ) -> Any:
        """Return `latent` and f (entries,), and f W_dec (n, d_vit), of z (n, d_vit)."""
        dtype = torch.bfloat16 if bfloat16 else z.dtype  # of z W_enc
        weights, bias = W_enc.to(dtype), b.to(dtype)
        entries, n = [], batch_size(z.device, len(b), least=1024)
        for start in range(0, len(z), n):
            pre = torch.addmm(bias, z[start : start + n].to(dtype), weights)
            token, latent = pre.gt(0).nonzero(as_tuple=True)
            entries.append((token + start, latent, pre[token, latent].to(z.dtype)))
        token, latent, f = (torch.cat(parts) for parts in zip(*entries, strict=True))
        with torch.enable_grad():  # embedding_bag has the gradient of f
            leaf = f.detach().requires_grad_()
            decoded = sum_rows(latent, token, leaf, W_dec.detach(), len(z))
        ctx.save_for_backward(z, token, latent)
        ctx.mark_non_differentiable(latent)
        ctx.graph, ctx.d_sae = (leaf, decoded), len(b)
        return latent, f, decoded.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _latent: Tensor, df: Tensor, dz_hat: Tensor) -> Any:
        """Return the gradients of W_enc, b and W_dec; z gets none."""
        (f, decoded), (z, token, latent) = ctx.graph, ctx.saved_tensors
        df = df + torch.autograd.grad(decoded, f, dz_hat)[0]
        latent, order = latent.sort()
        token, f, df = token[order], f.detach()[order], df[order]
        dW_enc = sum_rows(token, latent, df, z, ctx.d_sae).T
        db = df.new_zeros(ctx.d_sae).index_add_(0, latent, df)
        return None, dW_enc, db, sum_rows(token, latent, f, dz_hat, ctx.d_sae), None

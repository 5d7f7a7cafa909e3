"""The sparse autoencoder of residual tokens: activations, losses, measures (paper section 3.1).

    f(z) = act((z − b_dec) W_enc + b_enc)        ẑ = f W_dec + b_dec        (eq. 1)
    loss = mean (ẑ − z)² / ‖z‖₂  +  λ mean ‖f(z)‖₁  [ + ghost term ]        (eq. 2)

Everything but the class is a free function, so that a notebook can swap or reuse it.
NaN and infinity are errors here, never results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchsae_lib.distributed import batch_size

Activation = Callable[[Tensor, int], Tensor]  # of pre-activations and k: latents (…, d_sae) ≥ 0


def relu(pre: Tensor, k: int = 0) -> Tensor:
    """Keep all positive pre-activations; `k` is not used (eq. 1)."""
    return pre.relu()


def topk(pre: Tensor, k: int) -> Tensor:
    """Keep the k largest positive pre-activations of each token.

    >>> topk(torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, 4.0]]), 2)
    tensor([[3., 0., 2.],
            [0., 0., 4.]])
    """
    f, index = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, f)


def batchtopk(pre: Tensor, k: int) -> Tensor:
    """Keep the k · n largest positive pre-activations of all n tokens together.

    Of equal candidates for the last place none is kept. Latents thus depend on the batch: after
    training, `SAE.activate` uses a learnt threshold instead.
    """
    n_kept = k * (pre.numel() // pre.shape[-1])
    flat = pre.detach().flatten()
    if flat.device.type != "cpu":  # which would wait for the numbers of candidates
        return keep_largest(pre, flat, n_kept)
    sample = flat[::61]  # estimates the threshold: only the values above it are searched
    low = sample.topk(min(len(sample), 2 * n_kept // 61 + 16)).values[-1].clamp_min(0)
    candidates = flat[flat > low]
    return keep_largest(pre, candidates if len(candidates) > n_kept else flat[flat > 0], n_kept)


def keep_largest(pre: Tensor, candidates: Tensor, n_kept: int) -> Tensor:
    """Keep what is positive and above the (n_kept + 1)-th largest of the `candidates` (n,)."""
    if len(candidates) <= n_kept:
        return pre.relu()
    largest = candidates.topk(n_kept + 1, sorted=False).values
    return keep_above(pre, largest.min().clamp_min(0))


def keep_above(pre: Tensor, cut: Tensor) -> Tensor:
    """Keep pre-activations (…, d_sae) above `cut`, () or (d_sae,), without waiting for a GPU."""
    if cut.ndim == 0 and cut.device.type == "cpu":  # in a single pass
        return F.threshold(pre, float(cut), 0.0)
    return pre.where(pre > cut, 0.0)


ACTIVATIONS: dict[str, Activation] = {"relu": relu, "topk": topk, "batchtopk": batchtopk}


def reconstruction_loss(z: Tensor, z_hat: Tensor) -> Tensor:
    """mean (ẑ − z)² / ‖z‖₂ over tokens and dimensions of z, ẑ (…, d_vit) (eq. 2, first term).

    The norm is not squared, as in the authors' code: tokens s times as long give s times the loss.
    """
    return ((z_hat - z).pow(2) / z.norm(dim=-1, keepdim=True)).mean()


def nested_loss(sae: SAE, z: Tensor, f: Tensor, z_hat: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The mean `reconstruction_loss` of z (…, d_vit) by all latents f (…, d_sae), which give ẑ,
    and by the first m for each m of `sizes`, which stay general (Matryoshka autoencoders, Bussmann
    et al. 2025, arXiv 2503.17547, eq. 3)."""
    nested: Tensor = sae.b_dec
    losses = [reconstruction_loss(z, z_hat)]
    for first, size in pairwise((0, *sizes)):
        nested = nested + f[..., first:size] @ sae.W_dec[first:size]
        losses.append(reconstruction_loss(z, nested))
    return torch.stack(losses).mean()


def l1_loss(f: Tensor) -> Tensor:
    """mean ‖f‖₁ over the tokens of f (…, d_sae) ≥ 0, without λ (eq. 2, second term)."""
    return f.sum(dim=-1, dtype=torch.promote_types(f.dtype, torch.float32)).mean()


def ghost_loss(z: Tensor, z_hat: Tensor, ghosts: Tensor) -> Tensor:
    """Give latents that never fire a gradient: they learn to predict the residual r = z − ẑ.

        g = exp(pre[dead]) W_dec[dead], the `ghosts`, scaled to ‖g‖ = ‖r‖ / 2
        loss = mean (g − r)² / ‖r‖₂, each element scaled to its share of the reconstruction loss

    z, ẑ, g are (…, d_vit). The scales and r carry no gradient. As in the authors' code, after
    Jermyn & Templeton, "Ghost grads" (2024).
    """
    residual = (z - z_hat).detach()
    norm = residual.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # a perfect token has no residual
    g = ghosts.to(z.dtype)
    g = g * (norm / (2 * g.norm(dim=-1, keepdim=True) + 1e-6)).detach()
    error = (g - residual).pow(2) / norm
    reconstruction = residual.pow(2) / z.norm(dim=-1, keepdim=True)
    return ((reconstruction / (error + 1e-6)).detach() * error).mean()


class SAE(nn.Module):
    """The sparse autoencoder of eq. 1, from residual tokens (…, d_vit) to latents (…, d_sae).

    Parameters `W_enc` (d_vit, d_sae), `b_enc` (d_sae), `W_dec` (d_sae, d_vit), `b_dec` (d_vit),
    Kaiming-uniform with unit-norm decoder rows as in the authors' code, drawn from `seed` alone.
    BatchTopK learns `threshold` () in training and uses it afterwards. The activation `jumprelu`,
    with a `threshold` (d_sae) for each latent, is for SAEs that others trained. Raises
    `ValueError` for an unknown activation, and for a k that is not between 1 and d_sae.

    >>> sae = SAE(d_vit=8, d_sae=32).eval()
    >>> sae.encode(torch.ones(2, 5, 8)).shape, sae(torch.ones(2, 5, 8)).shape
    (torch.Size([2, 5, 32]), torch.Size([2, 5, 8]))
    """

    threshold: Tensor

    def __init__(
        self, d_vit: int, d_sae: int, activation: str = "relu", k: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        if activation not in (*ACTIVATIONS, "jumprelu"):
            raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if activation in ("topk", "batchtopk") and not 1 <= k <= d_sae:
            raise ValueError(f"k = {k} latents a token: {activation} needs 1 to d_sae = {d_sae}")
        self.d_vit, self.d_sae, self.activation, self.k = d_vit, d_sae, activation, k
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = nn.Parameter(torch.empty(d_vit, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_vit))
        self.b_dec = nn.Parameter(torch.zeros(d_vit))
        nn.init.kaiming_uniform_(self.W_enc, generator=generator)
        nn.init.kaiming_uniform_(self.W_dec, generator=generator)
        self.normalise_decoder()
        self.register_buffer("threshold", torch.zeros(d_sae if activation == "jumprelu" else ()))

    def pre_activations(self, z: Tensor) -> Tensor:
        """(z − b_dec) W_enc + b_enc, (…, d_sae), for z (…, d_vit), unchecked."""
        return F.linear(z - self.b_dec.detach(), self.W_enc.T, self.encoder_bias())

    def encoder_bias(self) -> Tensor:
        """b_enc (d_sae), exactly, with b_dec's gradient through the encoder.
        Through z − b_dec a training step would need six matrix products instead of five."""
        return self.b_enc - (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()

    def activate(self, pre: Tensor) -> Tensor:
        """Latents (…, d_sae) ≥ 0 of pre-activations; depends on the batch only while training."""
        if self.activation == "jumprelu" or (self.activation == "batchtopk" and not self.training):
            return keep_above(pre, self.threshold)
        return ACTIVATIONS[self.activation](pre, self.k)

    def encode(self, z: Tensor) -> Tensor:
        """Latents f(z) (…, d_sae) ≥ 0, where the SAE is, of residual tokens z (…, d_vit) (eq. 1).
        Raises `ValueError` for another width and for NaN or infinity in z."""
        if z.shape[-1] != self.d_vit:
            got = f"z {tuple(z.shape)}"
            raise ValueError(f"{got}: this SAE reads tokens (…, {self.d_vit}) of its CLIP")
        z = z.to(self.b_dec)
        require_finite(z, "z")
        return self.activate(self.pre_activations(z))

    def images_at_once(self, n_tokens: int, least: int = 1) -> int:
        """How many images of so many tokens are encoded together."""
        return batch_size(self.W_dec.device, n_tokens * max(self.d_sae, self.d_vit), least)

    def decode(self, f: Tensor) -> Tensor:
        """ẑ = f W_dec + b_dec, (…, d_vit), for latents f (…, d_sae) (eq. 1)."""
        return f.to(self.b_dec) @ self.W_dec + self.b_dec

    def forward(self, z: Tensor) -> Tensor:
        """Return the reconstruction ẑ (…, d_vit) of z (…, d_vit)."""
        return self.decode(self.encode(z))

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Set every decoder row to unit norm, in place."""
        self.W_dec.copy_(F.normalize(self.W_dec, dim=1))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from W_dec's gradient, in place, what would only change its rows' (unit) norm."""
        if self.W_dec.grad is not None:
            parallel = (self.W_dec.grad * self.W_dec).sum(dim=1, keepdim=True)
            self.W_dec.grad.addcmul_(parallel, self.W_dec, value=-1)

    @torch.no_grad()
    def learn_threshold(self, f: Tensor, rate: float = 0.05) -> None:
        """Move `threshold` towards a batch's smallest active latent (a mean of ~20 batches)."""
        smallest = f.where(f > 0, torch.inf).amin().float()
        moved = self.threshold.lerp(smallest, rate).where(self.threshold > 0, smallest)
        self.threshold.copy_(moved.where(smallest < torch.inf, self.threshold))

    @torch.no_grad()
    def cuts(self, tau: float) -> Tensor:
        """The activations (d_sae,) above which what latents write, f ‖W_dec‖₂, is longer than
        `tau`, in the units of z: the same in all autoencoders that differ in scale alone."""
        return tau / self.W_dec.norm(dim=1)

    @torch.no_grad()
    def fold(self, scale: float) -> SAE:
        """Return an SAE for z, given this one trained on z / scale (`scale`: the mean token norm).

        Latents and thresholds stay as trained: f(z) = f_trained(z / scale). ẑ is in the units of
        z, hence decoder rows have norm `scale`.
        """
        sae = copy.deepcopy(self)
        sae.W_enc.div_(scale)
        sae.W_dec.mul_(scale)
        sae.b_dec.mul_(scale)
        return sae


def geometric_median(points: Tensor, max_steps: int = 100) -> Tensor:
    """argmin over y of Σ ‖points_i − y‖₂ for points (n, …) → (…), by Weiszfeld's algorithm."""
    y = points.mean(dim=0)
    for _ in range(max_steps):
        distance = (points - y).flatten(1).norm(dim=1).clamp_min(1e-6)  # y may sit on a point
        weight = (1 / distance) / (1 / distance).sum()
        previous, y = y, torch.tensordot(weight, points, dims=1)
        if (y - previous).norm() <= 1e-7 * y.norm():
            break
    return y


def initial_b_dec(z: Tensor, method: str) -> Tensor:
    """Return a start for b_dec (d_vit): the `geometric_median` or `mean` of z, or `zeros`.

    z is (tokens, d_vit), or (images, tokens, d_vit) for the authors' geometric median, whose
    points are images and which is then averaged over tokens.
    Deviation: the authors' mean keeps the token axis (197 different biases); ours is one (d_vit).
    """
    require_finite(z, "z")
    if method == "geometric_median":
        z = geometric_median(z)
    elif method == "zeros":
        z = torch.zeros_like(z)
    elif method != "mean":
        raise ValueError(f"b_dec_init {method!r} is not geometric_median, mean or zeros")
    return z.reshape(-1, z.shape[-1]).mean(dim=0)


def explained_variance(z: Tensor, z_hat: Tensor) -> Tensor:
    """1 − Σ ‖z − ẑ‖² / Σ ‖z − z̄‖² over tokens (…, d_vit): 1 is perfect, 0 what their mean z̄ gives.
    (), where z is; not finite when all tokens are equal, and for NaN or infinity."""
    z, z_hat = z.reshape(-1, z.shape[-1]), z_hat.reshape(-1, z.shape[-1])
    return 1 - (z - z_hat).pow(2).sum() / (z - z.mean(dim=0)).pow(2).sum()


def l0(f: Tensor) -> float:
    """The mean number of active latents of a token, for f (…, d_sae)."""
    require_finite(f, "f")
    return f.count_nonzero().item() * f.shape[-1] / f.numel()


def require_finite(x: Tensor, name: str) -> None:
    """Raise `ValueError` if x holds NaN or infinity, saying how many and where the first is."""
    if torch.isfinite(x.sum()):  # one quick pass
        return
    if len(bad := (~torch.isfinite(x)).nonzero()):  # else only the sum overflowed
        found = f"{len(bad)} values are NaN or infinite, the first at {tuple(bad[0].tolist())}"
        raise ValueError(f"{name} {tuple(x.shape)}: {found}")


def require_tokens(z: Tensor, name: str) -> None:
    """Raise `ValueError` if a token of z (…, d_vit) is not finite, or 0 (eq. 2 divides by ‖z‖)."""
    parts = z.reshape(-1, z.shape[-1]).split(65_536)  # all tokens in float32 may not fit
    norms = torch.cat([part.float().norm(dim=1) for part in parts])
    bad = ~torch.isfinite(norms) | (norms == 0)
    if bad.any():
        where = " token ".join(map(str, bad.view(z.shape[:-1]).nonzero()[0].tolist()))
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(norms)} tokens hold NaN or infinity or are all 0, "
            f"the first at {'image' if z.ndim == 3 else 'token'} {where}. Collect them again from "
            "sound pictures and weights (float16 overflows above 65504, bfloat16 does not)"
        )

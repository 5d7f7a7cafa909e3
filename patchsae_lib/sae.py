"""The sparse autoencoder of residual tokens: activations, losses, measures (paper section 3.1).

    f(z) = act((z − b_dec) W_enc + b_enc)        ẑ = f W_dec + b_dec        (eq. 1)
    loss = mean (ẑ − z)² / ‖z‖₂  +  λ mean ‖f(z)‖₁  [ + ghost term ]        (eq. 2)

Everything but the class is a free function, so that a notebook can swap or reuse it.
NaN and infinity are errors here, never results.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- activations: pre-activations (…, d_sae) and k → latents (…, d_sae) ≥ 0 ---------------------

Activation = Callable[[Tensor, int], Tensor]


def relu(pre: Tensor, k: int = 0) -> Tensor:
    """max(pre, 0): as many latents as happen to be positive; `k` is not used (eq. 1)."""
    return pre.relu()


def topk(pre: Tensor, k: int) -> Tensor:
    """The k largest positive pre-activations of each token; the others are 0.

    >>> topk(torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, 4.0]]), 2)
    tensor([[3., 0., 2.],
            [0., 0., 4.]])
    """
    f, index = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, index, f)


def batchtopk(pre: Tensor, k: int) -> Tensor:
    """The k · n largest positive pre-activations of all n tokens together; the others are 0.

    Of equal candidates for the last place none is kept. What a token gets depends on the others:
    after training, `SAE.activate` uses a learnt threshold instead.
    """
    n_kept = k * (pre.numel() // pre.shape[-1])
    flat = pre.detach().flatten()
    # A sample tells about where the cut is; above that few are left, among which to look for it.
    sample = flat[::61]
    low = sample.topk(min(len(sample), 2 * n_kept // 61 + 16)).values[-1].clamp_min(0)
    positive = flat[flat > low]
    if len(positive) <= n_kept:
        positive = flat[flat > 0]
    if len(positive) <= n_kept:
        return pre.relu()
    largest_dropped = positive.kthvalue(len(positive) - n_kept).values
    return F.threshold(pre, float(largest_dropped), 0.0)


ACTIVATIONS: dict[str, Activation] = {"relu": relu, "topk": topk, "batchtopk": batchtopk}

# --- losses ------------------------------------------------------------------------------------


def reconstruction_loss(z: Tensor, z_hat: Tensor) -> Tensor:
    """mean (ẑ − z)² / ‖z‖₂ over tokens and dimensions of z, ẑ (…, d_vit) (eq. 2, first term).

    The norm is not squared, as in the authors' code: tokens s times as long give s times the loss.
    """
    return ((z_hat - z).pow(2) / z.norm(dim=-1, keepdim=True)).mean()


def l1_loss(f: Tensor) -> Tensor:
    """mean ‖f‖₁ over the tokens of f (…, d_sae) ≥ 0, without λ (eq. 2, second term)."""
    # no |f|: latents are never negative, and a pass over f is saved
    return f.sum(dim=-1, dtype=torch.promote_types(f.dtype, torch.float32)).mean()


def ghost_loss(z: Tensor, z_hat: Tensor, pre: Tensor, W_dec: Tensor, dead: Tensor) -> Tensor:
    """A gradient for latents that never fire: they learn to predict the residual r = z − ẑ.

        g = exp(pre[dead]) W_dec[dead], scaled to ‖g‖ = ‖r‖ / 2
        loss = mean (g − r)² / ‖r‖₂, each element scaled to its share of the reconstruction loss

    z, ẑ (…, d_vit); pre (…, d_sae); W_dec (d_sae, d_vit); dead (d_sae) bool. The scales and r
    carry no gradient. As in the authors' code, after Jermyn & Templeton, "Ghost grads" (2024).
    """
    residual = (z - z_hat).detach()
    norm = residual.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # a perfect token has no residual
    g = (pre[..., dead].exp() @ W_dec[dead]).to(z.dtype)
    g = g * (norm / (2 * g.norm(dim=-1, keepdim=True) + 1e-6)).detach()
    error = (g - residual).pow(2) / norm
    reconstruction = residual.pow(2) / z.norm(dim=-1, keepdim=True)
    return ((reconstruction / (error + 1e-6)).detach() * error).mean()


# --- the autoencoder ---------------------------------------------------------------------------


class SAE(nn.Module):
    """The sparse autoencoder of eq. 1, from residual tokens (…, d_vit) to latents (…, d_sae).

    Parameters `W_enc` (d_vit, d_sae), `b_enc` (d_sae), `W_dec` (d_sae, d_vit), `b_dec` (d_vit),
    Kaiming-uniform with unit-norm decoder rows as in the authors' code, drawn from `seed` alone.
    `threshold` () is what BatchTopK learns in training and uses afterwards. The activation
    `jumprelu`, a `threshold` (d_sae) of its own for each latent, is for SAEs that others trained.

    >>> sae = SAE(d_vit=8, d_sae=32).eval()
    >>> sae.encode(torch.ones(2, 5, 8)).shape, sae(torch.ones(2, 5, 8)).shape
    (torch.Size([2, 5, 32]), torch.Size([2, 5, 8]))

    Raises `ValueError` for an unknown activation or a k that is not between 1 and d_sae.
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
        self.activation, self.k = activation, k
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = nn.Parameter(torch.empty(d_vit, d_sae))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_vit))
        self.b_dec = nn.Parameter(torch.zeros(d_vit))
        nn.init.kaiming_uniform_(self.W_enc, generator=generator)
        nn.init.kaiming_uniform_(self.W_dec, generator=generator)
        self.normalise_decoder()
        self.register_buffer("threshold", torch.zeros(d_sae if activation == "jumprelu" else ()))

    @property
    def d_vit(self) -> int:
        """The width of a residual token."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """The number of latents."""
        return self.W_dec.shape[0]

    def pre_activations(self, z: Tensor) -> Tensor:
        """(z − b_dec) W_enc + b_enc, (…, d_sae), for z (…, d_vit), unchecked."""
        # b_dec's gradient takes the second path, whose value is b_enc exactly: through the first
        # a training step would need six matrix products instead of five.
        shift = (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()
        return F.linear(z - self.b_dec.detach(), self.W_enc.T, self.b_enc - shift)

    def activate(self, pre: Tensor) -> Tensor:
        """Latents (…, d_sae) ≥ 0 of pre-activations; depends on the batch only while training."""
        if self.activation == "batchtopk" and not self.training:
            return F.threshold(pre, float(self.threshold), 0.0)
        if self.activation == "jumprelu":
            return pre.where(pre > self.threshold, 0.0)
        return ACTIVATIONS[self.activation](pre, self.k)

    def encode(self, z: Tensor) -> Tensor:
        """Latents f(z) (…, d_sae) ≥ 0 of residual tokens z (…, d_vit) (eq. 1).

        Raises `ValueError` for another width and for NaN or infinity in z.
        """
        if z.shape[-1] != self.d_vit:
            raise ValueError(
                f"z {tuple(z.shape)}: this SAE reads tokens (…, {self.d_vit}); it was trained on "
                "another CLIP"
            )
        require_finite(z, "z")
        return self.activate(self.pre_activations(z))

    def decode(self, f: Tensor) -> Tensor:
        """ẑ = f W_dec + b_dec, (…, d_vit), for latents f (…, d_sae) (eq. 1)."""
        return f @ self.W_dec + self.b_dec

    def forward(self, z: Tensor) -> Tensor:
        """The reconstruction ẑ (…, d_vit) of z (…, d_vit)."""
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
        active = f[f > 0]
        if len(active):
            self.threshold.lerp_(active.min().float(), rate if self.threshold > 0 else 1.0)

    @torch.no_grad()
    def fold(self, scale: float) -> SAE:
        """An SAE for z of one that was trained on z / scale (`scale`: the mean token norm).

        Latents stay as trained, f(z) = f_trained(z / scale), and so do thresholds on them; ẑ is
        in the units of z, hence decoder rows have norm `scale`.
        """
        sae = copy.deepcopy(self)
        sae.W_enc.div_(scale)
        sae.W_dec.mul_(scale)
        sae.b_dec.mul_(scale)
        return sae


# --- the start of b_dec ------------------------------------------------------------------------


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
    """Where b_dec (d_vit) starts: `geometric_median`, `mean` or `zeros` of z.

    z (tokens, d_vit), or (images, tokens, d_vit) for the authors' geometric median, whose points
    are images and which is then averaged over tokens.
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


# --- latent masks (section 4.1, on/off top-k) --------------------------------------------------


def _chosen(f: Tensor, latents: Tensor | Sequence[int]) -> Tensor:
    index = torch.as_tensor(latents, dtype=torch.long, device=f.device)
    if ((index < 0) | (index >= f.shape[-1])).any():
        raise ValueError(f"latents must be 0 to {f.shape[-1] - 1}, got {index.tolist()}")
    return torch.zeros(f.shape[-1], dtype=torch.bool, device=f.device).index_fill(0, index, True)


def keep(f: Tensor, latents: Tensor | Sequence[int]) -> Tensor:
    """f (…, d_sae) with all but `latents` (n,) set to 0: "on". `b_dec` is no latent and stays."""
    return f * _chosen(f, latents)


def drop(f: Tensor, latents: Tensor | Sequence[int]) -> Tensor:
    """f (…, d_sae) with `latents` (n,) set to 0: "off". `keep` + `drop` = f."""
    return f * ~_chosen(f, latents)


# --- measures ----------------------------------------------------------------------------------


def require_finite(x: Tensor, what: str) -> None:
    """Raise `ValueError` if x holds NaN or infinity, saying how many and where the first is."""
    if torch.isfinite(x.sum()):  # one quick pass
        return
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):  # else only the sum overflowed
        where = f"the first at {tuple(bad[0].tolist())}"
        raise ValueError(
            f"{what} {tuple(x.shape)}: {len(bad)} values are NaN or infinite, {where}"
        )


def explained_variance(z: Tensor, z_hat: Tensor) -> float:
    """1 − Σ ‖z − ẑ‖² / Σ ‖z − z̄‖² over tokens (…, d_vit): 1 is perfect, 0 what their mean z̄ gives.
    Raises `ValueError` when all tokens are equal, and for NaN or infinity."""
    z, z_hat = z.reshape(-1, z.shape[-1]), z_hat.reshape(-1, z.shape[-1])
    variance = (z - z.mean(dim=0)).pow(2).sum()
    ratio = ((z - z_hat).pow(2).sum() / variance).item()
    if not math.isfinite(ratio):
        raise ValueError(f"explained variance needs different, finite tokens: z {tuple(z.shape)}")
    return 1 - ratio


def explained_variance_uncentred(z: Tensor, z_hat: Tensor) -> float:
    """mean (1 − ‖z − ẑ‖² / ‖z‖²) over tokens (…, d_vit), the authors': a large mean flatters."""
    require_finite(z, "z")
    require_finite(z_hat, "z_hat")
    return (1 - (z - z_hat).pow(2).sum(dim=-1) / z.pow(2).sum(dim=-1)).mean().item()


def l0(f: Tensor) -> float:
    """The mean number of active latents of a token, for f (…, d_sae)."""
    require_finite(f, "f")
    return f.count_nonzero().item() * f.shape[-1] / f.numel()


def dead_fraction(f: Tensor) -> float:
    """The share of latents that no token of f (…, d_sae) activates."""
    require_finite(f, "f")
    return (f.reshape(-1, f.shape[-1]).amax(dim=0) == 0).float().mean().item()

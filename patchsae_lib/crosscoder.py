"""The crosscoder: one dictionary of the same tokens in two models (Lindsey et al. 2024).

It is an autoencoder of tokens side by side, [z₀, z₁] (…, 2 d_vit), with BatchTopK (Minder et al.
2025, arXiv 2504.02922). A latent writes a row d₀ into tokens before and d₁ into tokens after, and
how long these are tells whose concept it is. No autoencoder of either model is needed, and none
of the directions of the two have to agree: a rotation changes nothing.

Deviation: rows have length 1 over both models, √(‖d₀‖² + ‖d₁‖²); theirs ‖d₀‖ + ‖d₁‖ are free, and
BatchTopK chooses by f times that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_lib.diffing import Answer, Change, finds_classes, sparse_latents
from patchsae_lib.profiles import SAEConfig, TrainConfig
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens
from patchsae_lib.training import train

DICTIONARY = SAEConfig("batchtopk", 4, k=32, scale_inputs=True)
TRAINING = TrainConfig(
    batch_tokens=2048, steps=240, lr=1e-3, warmup=30, dead_after=100, precision="auto"
)
EXCLUSIVE = 0.9  # of `shift`: a latent is of the second model alone (Minder et al.)
FALSE = 0.05  # share of false discoveries among the latents that changed


def side_by_side(before: Tensor, after: Tensor) -> Tensor:
    """Put tokens (n, n_tokens, d_vit) of two models into one, (n, n_tokens, 2 d_vit)."""
    return torch.cat([before, after], -1)


def crosscoder(
    before: Tensor,
    after: Tensor,
    config: TrainConfig = TRAINING,
    dictionary: SAEConfig = DICTIONARY,
    device: str | torch.device = "cpu",
) -> SAE:
    """Train a crosscoder on tokens (n, n_tokens, d_vit) of the same pictures in two models."""
    tokens = Tokens.hold(side_by_side(before, after))
    return train(tokens, dictionary, config, device=device, progress=False)[0]


def row_lengths(sae: SAE) -> Tensor:
    """The lengths (2, d_sae) of what latents write into tokens before and after."""
    return torch.stack([half.norm(dim=1) for half in sae.W_dec.detach().cpu().chunk(2, dim=1)])


def shift(sae: SAE) -> Tensor:
    """½ (1 + (‖d₁‖ − ‖d₀‖) / max(‖d₀‖, ‖d₁‖)) of each latent (d_sae,): ½ if it is as strong in
    both models, 1 if it is of the second alone, 0 if of the first; 1 − α/2 if it was α times as
    strong before."""
    first, second = row_lengths(sae)
    return (1 + (second - first) / torch.maximum(first, second)) / 2


def surely_changed(shifts: Tensor, null: Tensor, rate: float = FALSE) -> Tensor:
    """Which of `shifts` (m,) are further from ½ than those of a `null` (k,), a crosscoder of one
    model with itself, so that about a share `rate` of them is false.

    Those beyond the smallest distance t with (1 + #null ≥ t) / k ≤ rate · #shifts ≥ t / m; the 1
    is for the unseen null (as in Barber & Candès 2015, arXiv 1404.5609, eq. 1.9), so that few
    latents are never sure.
    """
    far, by_chance = (shifts - 0.5).abs().double(), (null - 0.5).abs().double().sort().values
    ordered = far.sort().values
    n_beyond = len(far) - torch.searchsorted(ordered, ordered)
    n_false = 1 + len(null) - torch.searchsorted(by_chance, ordered)
    passes = n_false / len(null) <= rate * n_beyond / len(far)
    return far >= ordered[passes].min() if passes.any() else torch.zeros_like(far).bool()


def answer(change: Change, sae: SAE, null: Tensor) -> Answer:
    """What a crosscoder says of a change, with the `null` of `surely_changed`.

    `change` is the share of the latents' energy in those that surely changed, 0 without any. Of
    how much these changed, E f² (‖d₁‖ − ‖d₀‖)², `created` is the share of `EXCLUSIVE` latents and
    `old` the rest; `alpha` is the mean ‖d₀‖ / ‖d₁‖, weighted by it. `auroc`: how well exclusive
    latents tell classes apart.
    """
    f = sparse_latents(sae, side_by_side(change.before, change.kept))
    energy = torch.from_numpy(f.power(2).sum(0)).double()
    lengths, of_latents, active = row_lengths(sae).double(), shift(sae), energy > 0
    is_sure = torch.zeros(sae.d_sae, dtype=torch.bool)
    is_sure[active] = surely_changed(of_latents[active], null)
    if not is_sure.any():
        return Answer({"change": 0.0})
    weight = energy * (lengths[1] - lengths[0]).square() * is_sure
    is_new = is_sure & (of_latents > EXCLUSIVE)
    created = float(weight[is_new].sum() / weight.sum())
    says = {"change": float(energy[is_sure].sum() / energy.sum())}
    says |= {"old": 1 - created, "created": created}
    says["alpha"] = float((weight * lengths[0] / lengths[1].clamp_min(1e-9)).sum() / weight.sum())
    if is_new.any():
        levels = torch.from_numpy(f[:, is_new.numpy()].toarray())
        of_pictures = levels.view(*change.before.shape[:2], -1).mean(1)
        says["auroc"] = finds_classes(of_pictures, change)
    return Answer(says)

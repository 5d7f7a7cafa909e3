"""What an autoencoder costs and keeps: the columns of the paper's Table 2, and more."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.clip import SplitCLIP, accuracy
from patchsae_lib.sae import SAE, reconstruction_loss
from patchsae_lib.tokens import Tokens

BATCH = 8  # images at a time: the latents of more leave the CPU's cache, and take 1.7 × as long


@dataclass(frozen=True)
class Report:
    """Held-out measures of an SAE: five over the tokens that it reads, five of CLIP with every
    token replaced by its reconstruction (`..._original`: without)."""

    mse: float  # the authors' mean (ẑ − z)² / ‖z‖₂
    explained_variance: float  # centred, 1 is perfect
    l0: float  # active latents per token
    l1: float  # mean ‖f‖₁
    dead: float  # share of latents that no token activates
    contrastive: float  # nats
    contrastive_original: float
    accuracy: float  # 0..1
    accuracy_original: float
    recovered: float  # accuracy above chance that is kept


#: headings of the measures in tables
TITLES = {
    "mse": "MSE", "explained_variance": "explained variance", "l0": "L0", "l1": "L1",
    "dead": "dead latents", "contrastive": "loss with SAE", "contrastive_original": "loss without",
    "accuracy": "accuracy with SAE", "accuracy_original": "accuracy without",
    "recovered": "accuracy kept",
}  # fmt: skip


def contrastive_loss(image: Tensor, text: Tensor, scale: float, batch: int = 128) -> float:
    """CLIP's symmetric cross-entropy (nats) of n unit-norm pairs (n, d_embed), in batches of
    `batch`: the loss grows with the size of a batch, so a remainder is unused."""
    batch = min(batch, len(image))
    target = torch.arange(batch, device=image.device)
    losses = []
    for start in range(0, len(image) - batch + 1, batch):
        logits = scale * image[start : start + batch] @ text[start : start + batch].T
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        losses.append(float(loss) / 2)
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures on which SAEs are measured, as seen by `clip`.

    `tokens` (images, 1 + n_patches, d_vit); `labels` (images,); `head` (c, d_embed), the zero-shot
    classifier; `captions` (images, d_embed), the features of one text per picture.
    """

    clip: SplitCLIP
    tokens: Tensor | Tokens
    labels: Tensor
    head: Tensor
    captions: Tensor

    @cached_property
    @torch.no_grad()
    def features(self) -> Tensor:
        """Image features (images, d_embed) of the untouched tokens."""
        batches = self.tokens.split(BATCH)
        return torch.cat([self.clip.features(z.float()).cpu() for z in batches])

    def quality(self, features: Tensor) -> tuple[float, float]:
        """Contrastive loss (nats) and accuracy (0..1) of image features (images, d_embed)."""
        loss = contrastive_loss(features, self.captions.cpu(), self.clip.logit_scale)
        return loss, accuracy(features @ self.head.cpu().T, self.labels.cpu())


@torch.no_grad()
def evaluate_sae(sae: SAE, held_out: HeldOut, cls_only: bool = False) -> Report:
    """Measure `sae` on held-out pictures; with `cls_only`, replace and measure the CLS token
    alone, for an SAE trained on nothing else."""
    clip, n_tokens = held_out.clip, 1 if cls_only else held_out.clip.n_tokens
    sums, features = dict[str, Any](), []
    for part in held_out.tokens.split(BATCH):
        z = part.to(sae.W_dec.device, torch.float32)
        z_hat, more = _token_sums(sae, z[:, :n_tokens])
        sums = {name: sums.get(name, 0) + value for name, value in more.items()}
        features.append(clip.features(torch.cat([z_hat, z[:, n_tokens:]], 1)).cpu())
    loss, kept = held_out.quality(torch.cat(features))
    loss_original, original = held_out.quality(held_out.features)
    chance, n = 1 / len(held_out.head), len(held_out.tokens) * n_tokens
    recovered = (kept - chance) / (original - chance) if original != chance else 0.0
    variance = sums["squares"] - float(sums["z"].pow(2).sum()) / n
    dead = float((sums["active"] == 0).float().mean())
    measures = sums["mse"] / n, 1 - sums["error"] / variance, sums["l0"] / n, sums["l1"] / n, dead
    return Report(*measures, loss, loss_original, kept, original, recovered)


def _token_sums(sae: SAE, z: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Reconstruct z (b, tokens, d_vit), and sum over its tokens what a `Report` needs."""
    f = sae.encode(z)
    z_hat, exact = sae.decode(f), z.double()
    return z_hat, {
        "mse": float(reconstruction_loss(z, z_hat)) * z[..., 0].numel(),
        "error": float((z - z_hat).double().pow(2).sum()),
        "l0": float(f.count_nonzero()),
        "l1": float(f.sum()),
        "z": exact.sum((0, 1)).cpu(),
        "squares": float(exact.pow(2).sum()),
        "active": (f > 0).flatten(0, 1).any(0).long(),
    }

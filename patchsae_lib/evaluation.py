"""What an autoencoder costs and keeps: the columns of the paper's Table 2, and more."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.intervals import Interval, clustered_mean
from patchsae_lib.sae import SAE, reconstruction_loss
from patchsae_lib.sparse import SparseLatents, is_sparse
from patchsae_lib.tokens import Tokens


@dataclass(frozen=True)
class Report:
    """Held-out measures of an SAE: five over the tokens that it reads, five of CLIP with every
    token replaced by its reconstruction (`..._original`: without). By picture: `correct`,
    (labelled images,) bool, and `losses`, (images of whole batches,) in nats."""

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
    correct: Tensor = field(repr=False, compare=False)
    losses: Tensor = field(repr=False, compare=False)

    @property
    def measures(self) -> dict[str, float]:
        """The measures that are numbers, by name."""
        return {name: getattr(self, name) for name in TITLES}


#: headings of the measures in tables
TITLES = {
    "mse": "MSE", "explained_variance": "explained variance", "l0": "L0", "l1": "L1",
    "dead": "dead latents", "contrastive": "loss with SAE", "contrastive_original": "loss without",
    "accuracy": "accuracy with SAE", "accuracy_original": "accuracy without",
    "recovered": "accuracy kept",
}  # fmt: skip


def contrastive_losses(image: Tensor, text: Tensor, scale: float, batch: int = 128) -> Tensor:
    """CLIP's symmetric cross-entropy (nats) of each of n unit-norm pairs (n, d_embed), in batches
    of `batch`: the loss grows with the size of a batch, so a remainder is left out."""
    batch = min(batch, len(image))
    target = torch.arange(batch, device=image.device)
    losses = []
    for start in range(0, len(image) - batch + 1, batch):
        logits = scale * image[start : start + batch] @ text[start : start + batch].T
        by_image, by_text = (
            F.cross_entropy(x, target, reduction="none") for x in (logits, logits.T)
        )
        losses.append((by_image + by_text) / 2)
    return torch.cat(losses)


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures on which SAEs are measured, as seen by `clip`.

    `tokens` (images, 1 + n_patches, d_vit); `labels` (images,), −1 where accuracy leaves it out;
    `head` (c, d_embed), the zero-shot classifier; `captions` (images, d_embed), of one text each.
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
        batches = self.tokens.split(self.clip.at_once)
        return torch.cat([self.clip.features(z).cpu() for z in batches])

    def quality(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return, of image features (images, d_embed), the contrastive loss (nats) of each picture
        of a whole batch, and if the zero-shot prediction is right: (labelled images,) bool."""
        losses = contrastive_losses(features, self.captions.cpu(), self.clip.logit_scale)
        predicted = (features @ self.head.cpu().T).argmax(1)
        return losses, (predicted == self.labels.cpu())[self.labels.cpu() >= 0]

    @cached_property
    def original(self) -> tuple[Tensor, Tensor]:
        """The `quality` of the untouched tokens."""
        return self.quality(self.features)


@torch.no_grad()
def evaluate_sae(sae: SAE, held_out: HeldOut, cls_only: bool = False) -> Report:
    """Measure `sae` on held-out pictures; with `cls_only`, replace and measure the CLS token
    alone, for an SAE trained on nothing else."""
    clip, n_tokens = held_out.clip, 1 if cls_only else held_out.clip.n_tokens
    sums, features = dict[str, Any](), []
    at_once = min(clip.at_once, sae.images_at_once(n_tokens, least=8))
    for part in held_out.tokens.split(at_once):
        z = part.to(sae.W_dec.device, torch.float32)
        z_hat, more = _token_sums(sae, z[:, :n_tokens])
        sums = {name: sums.get(name, 0) + value for name, value in more.items()}
        features.append(clip.features(torch.cat([z_hat, z[:, n_tokens:]], 1)).cpu())
    losses, correct = held_out.quality(torch.cat(features))
    loss, loss_original = (float(x.mean()) for x in (losses, held_out.original[0]))
    kept, original = (float(x.double().mean()) for x in (correct, held_out.original[1]))
    chance, n = 1 / len(held_out.head), len(held_out.tokens) * n_tokens
    recovered = (kept - chance) / (original - chance) if original != chance else 0.0
    variance, dead = sums["squares"] - sums["z"].pow(2).sum() / n, sums["active"] == 0
    mse, l0, l1 = (float(sums[name]) / n for name in ("mse", "l0", "l1"))
    measures = mse, 1 - float(sums["error"] / variance), l0, l1, float(dead.float().mean())
    clip_measures = loss, loss_original, kept, original, recovered
    return Report(*measures, *clip_measures, correct, losses)


def accuracy_kept(correct: Tensor, original: Tensor, chance: float, least: float) -> Interval:
    """Return the share R of the accuracy above chance that is kept, over pictures × seeds.

    `correct` (seeds, images) and `original` (images,) say which pictures are classified rightly
    with an SAE of each seed, and without. The ratio is linearised (the delta method), so that
    each picture is compared with itself: R is the mean of

        R + ((correct − chance) − R (original − chance)) / (accuracy_original − chance)

    `p` is that of R = `least` (0..1).
    """
    with_sae, without = correct.double() - chance, original.double() - chance
    ratio = with_sae.mean() / without.mean()
    beyond = ratio - least + (with_sae - ratio * without) / without.mean()  # (seeds, images)
    seed, image = np.indices(beyond.shape).reshape(2, -1)
    found = clustered_mean(beyond.flatten(), image, seed, over="pictures × seeds")
    return Interval(*(x + least for x in found), over=found.over, p=found.p)


def _token_sums(sae: SAE, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruct z (b, tokens, d_vit), and sum over its tokens what a `Report` needs."""
    f, exact = sae.encode(z), z.double()
    if is_sparse(f):
        latents = SparseLatents.from_dense(f)
        z_hat, values = latents.decode(sae.W_dec) + sae.b_dec, latents.value
        n_active = latents.latent.bincount(minlength=sae.d_sae)
    else:
        z_hat, values, n_active = sae.decode(f), f, (f > 0).flatten(0, 1).sum(0)
    return z_hat, {
        "mse": reconstruction_loss(z, z_hat).double() * z[..., 0].numel(),
        "error": (z - z_hat).double().pow(2).sum(),
        "l0": n_active.sum(),
        "l1": values.sum().double(),
        "z": exact.sum((0, 1)),
        "squares": exact.pow(2).sum(),
        "active": n_active,
    }

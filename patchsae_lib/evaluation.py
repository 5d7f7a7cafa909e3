"""What an autoencoder costs and keeps: the columns of the paper's Table 2, and a few it lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from patchsae_lib.activations import TokenCache
from patchsae_lib.clip import SplitCLIP, accuracy, fastest
from patchsae_lib.sae import SAE, reconstruction_loss

BATCH = 8  # images at a time: the latents of more leave the CPU's cache, and take 1.7 × as long


@dataclass(frozen=True)
class Report:
    """Held-out measures of an SAE. All but the last five are over the tokens it is meant for.

    `mse`: the authors' mean (ẑ − z)² / ‖z‖₂; `explained_variance`: centred, 1 is perfect; `l0`:
    active latents a token; `l1`: mean ‖f‖₁; `dead`: share of latents that no token activates;
    `contrastive` (nats) and `accuracy` (0..1): CLIP's with every token replaced by its
    reconstruction, `..._original` without; `recovered`: accuracy above chance that is kept.
    """

    mse: float
    explained_variance: float
    l0: float
    l1: float
    dead: float
    contrastive: float
    contrastive_original: float
    accuracy: float
    accuracy_original: float
    recovered: float


#: what a reader sees above a column of the measures
TITLES = {
    "mse": "MSE",
    "explained_variance": "explained variance",
    "l0": "L0",
    "l1": "L1",
    "dead": "dead latents",
    "contrastive": "loss with SAE",
    "contrastive_original": "loss without",
    "accuracy": "accuracy with SAE",
    "accuracy_original": "accuracy without",
    "recovered": "accuracy kept",
}


def contrastive_loss(image: Tensor, text: Tensor, scale: float, batch: int = 128) -> float:
    """CLIP's symmetric cross-entropy (nats) of n unit-norm pairs (n, d_embed), in batches.

    Every batch has `batch` pairs (what is left over is not used), since the loss grows with it.
    """
    batch = min(batch, len(image))
    losses = []
    for start in range(0, len(image) - batch + 1, batch):
        logits = scale * image[start : start + batch] @ text[start : start + batch].T
        target = torch.arange(batch, device=logits.device)
        both = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        losses.append(float(both) / 2)
    return sum(losses) / len(losses)


@dataclass(frozen=True)
class HeldOut:
    """What an SAE is measured on: held-out pictures as a CLIP sees them.

    `cache` has their tokens, `labels` (images,) their classes, `text` (c, d_embed) the zero-shot
    head, and `captions` (images, d_embed) one text a picture.
    """

    clip: SplitCLIP
    cache: TokenCache
    labels: Tensor
    text: Tensor
    captions: Tensor

    @cached_property
    @torch.no_grad()
    def features(self) -> Tensor:
        """(images, d_embed): the image features of untouched tokens."""
        with fastest(self.clip) as device:
            parts = (z.to(device, torch.float32) for z in self.cache.tokens.split(BATCH))
            return torch.cat([self.clip.features(z).cpu() for z in parts])


@torch.no_grad()
def evaluate_sae(sae: SAE, held_out: HeldOut, cls_only: bool = False) -> Report:
    """Measure `sae` on held-out pictures.

    `cls_only`: replace and measure the CLS token alone, for an SAE trained on nothing else.
    """
    with fastest(sae, held_out.clip) as device:
        return _evaluate(sae, held_out, cls_only, device)


def _evaluate(sae: SAE, held_out: HeldOut, cls_only: bool, device: torch.device) -> Report:
    clip, cache, text = held_out.clip, held_out.cache, held_out.text
    totals = dict.fromkeys(("mse", "error", "active", "l1"), 0.0)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    n, total, squares = 0, torch.zeros(sae.d_vit, dtype=torch.double, device=device), 0.0
    image = []
    for z in cache.tokens.split(BATCH):
        z = z.to(device, torch.float32)
        part = z[:, : 1 if cls_only else clip.n_tokens]
        f = sae.encode(part)
        z_hat = sae.decode(f)
        count = part.shape[0] * part.shape[1]
        n += count
        totals["mse"] += float(reconstruction_loss(part, z_hat)) * count
        totals["error"] += float((part - z_hat).double().pow(2).sum())
        totals["active"] += float(f.count_nonzero())
        totals["l1"] += float(f.sum())
        total += part.double().sum((0, 1))
        squares += float(part.double().pow(2).sum())
        fired |= (f > 0).flatten(0, 1).any(0)
        image.append(clip.features(torch.cat([z_hat, z[:, part.shape[1] :]], 1)).cpu())
    variance = squares - float(total.pow(2).sum()) / n
    with_sae, without = torch.cat(image), held_out.features
    acc, acc_original = (accuracy(x @ text.T, held_out.labels) for x in (with_sae, without))
    chance = 1 / len(text)
    return Report(
        mse=totals["mse"] / n,
        explained_variance=1 - totals["error"] / variance,
        l0=totals["active"] / n,
        l1=totals["l1"] / n,
        dead=float((~fired).float().mean()),
        contrastive=contrastive_loss(with_sae, held_out.captions, clip.logit_scale),
        contrastive_original=contrastive_loss(without, held_out.captions, clip.logit_scale),
        accuracy=acc,
        accuracy_original=acc_original,
        recovered=(acc - chance) / (acc_original - chance) if acc_original != chance else 0.0,
    )


def mean_interval(values: npt.ArrayLike) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of Student's t for the mean of two or more values.

    >>> [round(v, 2) for v in mean_interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    x = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def bootstrap_mean(values: npt.ArrayLike, n: int = 2000, seed: int = 0) -> tuple[float, ...]:
    """(mean, low, high): the 95 % percentile interval of the mean over `n` resamples.

    NaN is no value; of no values all three are NaN.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if not len(x):
        return float("nan"), float("nan"), float("nan")
    means = np.random.default_rng(seed).choice(x, (n, len(x))).mean(1)
    return float(x.mean()), *(float(q) for q in np.quantile(means, [0.025, 0.975]))


def as_row(report: Report) -> dict[str, float]:
    """The report as a row of a table."""
    return asdict(report)

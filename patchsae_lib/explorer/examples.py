"""Which pictures and which neighbours of a latent are worth seeing beside its reference images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.distributed import batch_size

SHARES = (0.25, 0.5, 0.75)  # quantiles, counted from the most active picture
N_RANDOM = N_ABSENT = 3
N_NEAREST = 8
BINS = 16


def examples(levels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Choose pictures that represent a latent better than its reference images do.

    `levels` (images, d) are image-level activations, `labels` (images,) the classes (−1: none).
    Returns rows of `levels`, −1 where there are too few pictures:

    - `quantiles` (d, 3): of the pictures that activate the latent, by decreasing activation, those
      at a quarter, a half and three quarters.
    - `random` (d, 3): three of them, drawn at random.
    - `absent` (d, 3): three that do not activate it. The first shares the class of the latent's
      most active picture, if possible: one that a guess must tell apart.
    """
    active = levels > 0
    count, order = active.sum(0), levels.argsort(dim=0, descending=True, stable=True)
    keys = torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))
    rank = (torch.tensor(SHARES)[:, None] * count).long().clamp_max(len(levels) - 1)
    quantiles = order.gather(0, rank).masked_fill(count == 0, -1)
    alike = (labels[:, None] == labels[order[0]]) & (labels >= 0)[:, None]
    first = _highest(keys + alike.float(), ~active, 1)
    is_first = torch.arange(len(levels))[:, None] == first
    further = _highest(keys, ~active & ~is_first, N_ABSENT - 1)
    return {
        "quantiles": quantiles.T,
        "random": _highest(keys, active, N_RANDOM).T,
        "absent": torch.cat([first, further]).T,
    }


def histogram(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Count the pictures of each strength: (d, 16), and return each latent's strongest (d,).

    Bins are equally wide from 0 to the strongest of the image-level activations `levels`
    (images, d). Pictures that do not activate a latent are in none.
    """
    most = levels.amax(0)
    place = (levels / most.clamp_min(1e-12) * BINS).long().clamp_max(BINS - 1)
    counts = torch.zeros(BINS, levels.shape[1], dtype=torch.long)
    return counts.scatter_add_(0, place, (levels > 0).long()).T, most


def _highest(keys: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Return the rows of the k highest `keys` (n, d) among the `allowed` (n, d): (k, d)."""
    best = keys.masked_fill(~allowed, -1).topk(min(k, len(keys)), dim=0)
    rows = best.indices.masked_fill(best.values < 0, -1)
    return F.pad(rows, (0, 0, 0, k - len(rows)), value=-1)


def nearest(W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents whose decoder directions (d, d_vit) are nearest to each latent's own.

    Their numbers and cosines, the nearest first: (d, 8) each, or (d, d − 1) of fewer latents.
    """
    directions = F.normalize(W_dec.float(), dim=1)
    parts = []
    for rows in torch.arange(len(W_dec)).split(batch_size(W_dec.device, len(W_dec))):
        cosine = directions[rows] @ directions.T
        cosine[torch.arange(len(rows)), rows] = -2  # not the latent itself
        parts.append(cosine.topk(min(N_NEAREST, len(W_dec) - 1)))
    return torch.cat([p.indices for p in parts]).cpu(), torch.cat([p.values for p in parts]).cpu()

"""Where a concept is, by the truth and by a latent: patches and scores (paper section 3.3).

The paper shows that latents localise concepts by examples; the embedded world knows what every
patch shows, so here it is a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from patchsae_lib.world import Picture, World

#: a unit may fire on at most this share of the patches, at the threshold chosen for it
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)


def patch_labels(picture: Picture, kind: str, names: Sequence[str], patch: int = 8) -> np.ndarray:
    """(n_patches,) int16: the concept that at least half of a patch shows, -1 for none.

    `names` are the concepts of a `kind` ("class", "part", "colour", "texture", "background",
    "word"; "cls" is the world's word for class).
    """
    number = {name: i for i, name in enumerate(names)}
    of_region = np.array([number.get(getattr(r, kind), -1) for r in picture.regions], np.int16)
    side = picture.ids.shape[0] // patch
    blocks = of_region[picture.ids].reshape(side, patch, side, patch).swapaxes(1, 2)
    blocks = np.sort(blocks.reshape(side * side, patch * patch), axis=1)
    # Of sorted values, one that fills half of them is at the 1st or the 3rd quarter mark.
    half = patch * patch // 2
    out = np.full(len(blocks), -1, np.int16)
    for at in (0, half - 1, half):
        value = blocks[:, at]
        out = np.where((blocks == value[:, None]).sum(1) >= half, value, out)
    return out


def world_labels(world: World, indices: Sequence[int], kind: str, names: Sequence[str]) -> Tensor:
    """(images, n_patches) int64: `patch_labels` of many pictures of the world."""
    rows = [patch_labels(world.picture(int(i)), kind, names) for i in indices]
    return torch.from_numpy(np.stack(rows)).long()


def thresholds(units: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """(len(shares), d): above which each of d units fires on at most that share of (n, d) rows."""
    n = len(units)
    rank = [max(1, round(share * n)) for share in shares]
    top = units.topk(max(rank) + 1, dim=0).values
    return torch.stack([top[r] for r in rank])


def iou_table(units: Tensor, labels: Tensor, n_concepts: int, cut: Tensor) -> Tensor:
    """IoU (n_concepts, d) of `units > cut` with each concept.

    Units (n, d), labels (n,) with -1 for none, cut (d,).
    """
    fires = (units > cut).float()
    truth = torch.zeros(len(labels), n_concepts + 1).scatter_(1, labels[:, None] + 1, 1.0)[:, 1:]
    both = truth.T @ fires
    return both / (truth.sum(0)[:, None] + fires.sum(0)[None] - both).clamp_min(1)


def best_units(
    choose: tuple[Tensor, Tensor],
    score: tuple[Tensor, Tensor],
    names: Sequence[str],
    minimum: int = 50,
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """The unit and threshold that find each concept best, chosen on one half of the pictures.

    `choose` and `score` are (units (n, d), labels (n,)) of different pictures. One row a concept
    with at least `minimum` positive patches in both halves: `concept`, `unit`, `n` (positives
    in the scoring half), `iou` (0..1, on the scoring half), `chosen_iou` (on the choosing one).
    """
    (units, labels), (test_units, test_labels) = choose, score
    cuts = thresholds(units, shares)
    tables = torch.stack([iou_table(units, labels, len(names), cut) for cut in cuts])
    flat = tables.permute(1, 0, 2).flatten(1)  # (n_concepts, shares × d)
    best = flat.argmax(1)
    rows = []
    for i, name in enumerate(names):
        positives = int((test_labels == i).sum())
        if min(positives, int((labels == i).sum())) < minimum:
            continue
        which, unit = divmod(int(best[i]), units.shape[1])
        fires, truth = test_units[:, unit] > cuts[which, unit], test_labels == i
        iou = float((fires & truth).sum() / max(1, int((fires | truth).sum())))
        row = {"concept": name, "unit": unit, "n": positives, "iou": iou}
        rows.append({**row, "chosen_iou": float(flat[i, best[i]])})
    return pd.DataFrame(rows)


def probe_auroc(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], n_concepts: int, ridge: float = 1e-2
) -> Tensor:
    """AUROC (n_concepts,) of a linear probe for the concept of a patch; NaN without positives.

    A ridge regression to one-hot labels of tokens (n, d) and labels (n,): the upper bound of what
    a single direction can tell. `ridge` is relative to the mean variance of a dimension.
    """
    (z, labels), (test_z, test_labels) = train, test
    mean = z.mean(0)
    centred = (z - mean).double()
    truth = torch.zeros(len(z), n_concepts + 1, dtype=torch.double)
    truth = truth.scatter_(1, labels[:, None] + 1, 1.0)[:, 1:]
    gram = centred.T @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, centred.T @ (truth - truth.mean(0)))
    scores = (test_z - mean).double() @ weights
    return torch.stack([auroc(scores[:, i], test_labels == i) for i in range(n_concepts)])


def auroc(score: Tensor, truth: Tensor) -> Tensor:
    """The chance that a positive scores above a negative, ties counting half.

    NaN where there are no positives or no negatives.

    >>> auroc(torch.tensor([0.1, 0.4, 0.3, 0.8]), torch.tensor([False, False, True, True])).item()
    0.75
    """
    _, inverse, counts = score.unique(return_inverse=True, return_counts=True)
    upper = counts.cumsum(0)
    rank = (upper - (counts - 1) / 2)[inverse].double()  # mean rank of ties, from 1
    n_pos = truth.sum()
    n_neg = len(truth) - n_pos
    if n_pos == 0 or n_neg == 0:
        return torch.tensor(float("nan"), dtype=torch.double)
    return (rank[truth].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)

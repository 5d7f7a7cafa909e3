"""Where a concept is, by the truth and by a latent: patches and scores (paper section 3.3).

The paper shows that latents localise concepts by examples; the embedded world knows what every
patch shows, so here it is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from patchsae_lib.world import CLASSES, Picture, World
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS

#: a unit may fire on at most this share of the patches, at the threshold chosen for it
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

#: tokens (…, d_vit) → (…, n) numbers, of which each may or may not stand for a concept
Units = Callable[[Tensor], Tensor]
#: a concept of the world: its kind, as `Region` calls it, and its name
Concept = tuple[str, str]

KINDS = {"cls": CLASSES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS)}
CONCEPTS: tuple[Concept, ...] = tuple((kind, x) for kind, names in KINDS.items() for x in names)


# --- the truth ---------------------------------------------------------------------------------


def patch_truth(picture: Picture, concepts: Sequence[Concept], patch: int = 8) -> np.ndarray:
    """(n_patches, n_concepts) bool: does a concept fill at least half of a patch?"""
    side, n_regions = len(picture.ids) // patch, len(picture.regions)
    regions = np.array([[getattr(r, k) == x for k, x in concepts] for r in picture.regions])
    number = np.arange(side).repeat(patch)
    number = number[:, None] * side + number  # of the patch at each pixel
    counts = np.bincount((number * n_regions + picture.ids).ravel(), minlength=side**2 * n_regions)
    return counts.reshape(-1, n_regions) @ regions.astype(int) * 2 >= patch**2


def world_truth(
    world: World, indices: Iterable[int], concepts: Sequence[Concept] = CONCEPTS
) -> Tensor:
    """(images, n_patches, n_concepts) bool: `patch_truth` of many pictures of the world."""
    rows = [patch_truth(world.picture(int(i)), concepts) for i in indices]
    return torch.from_numpy(np.stack(rows))


# --- scores ------------------------------------------------------------------------------------


def thresholds(units: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """(len(shares), d): above which each of d units fires on at most that share of (n, d) rows."""
    rank = [max(1, round(share * len(units))) for share in shares]
    top = units.T.contiguous().topk(max(rank) + 1).values
    return top[:, rank].T


def iou_table(units: Tensor, truth: Tensor, cut: Tensor) -> Tensor:
    """IoU (c, d) of `units > cut` with each concept: units (n, d), truth (n, c) bool, cut (d,)."""
    fires, truth = (units > cut).float(), truth.float()
    both = truth.T @ fires
    return both / (truth.sum(0)[:, None] + fires.sum(0) - both).clamp_min(1)


def best_units(
    choose: tuple[Tensor, Tensor],
    score: tuple[Tensor, Tensor],
    concepts: Sequence[Concept] = CONCEPTS,
    minimum: int = 50,
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """The unit and threshold that find each concept best, chosen on one half of the pictures.

    `choose` and `score` are (units (n, d), truth (n, c) bool) of different pictures. One row a
    concept with at least `minimum` positive patches in both halves: `kind`, `concept`, `unit`, `n`
    (positives in the scoring half), `iou` (0..1, there), `chosen_iou` (in the other half).
    """
    (units, truth), (test_units, test_truth) = choose, score
    cuts = thresholds(units, shares)
    tables = torch.stack([iou_table(units, truth, cut) for cut in cuts], 1)
    best = tables.flatten(1).max(1)
    positives = test_truth.sum(0)
    enough = torch.minimum(positives, truth.sum(0)) >= minimum
    rows = []
    for i in enough.nonzero().flatten().tolist():
        which, unit = divmod(int(best.indices[i]), units.shape[1])
        iou = iou_table(test_units[:, unit, None], test_truth[:, i, None], cuts[which, unit, None])
        kind, name = concepts[i]
        row = {"kind": kind, "concept": name, "unit": unit, "n": int(positives[i])}
        rows.append({**row, "iou": float(iou), "chosen_iou": float(best.values[i])})
    columns = ["kind", "concept", "unit", "n", "iou", "chosen_iou"]
    return pd.DataFrame(rows, columns=columns)


def baselines(z: Tensor, n: int, seed: int = 0) -> dict[str, Units]:
    """What latents are compared with: raw neurons (±), and `n` random directions from the mean of
    the tokens z (…, d_vit)."""
    d = z.shape[-1]
    directions = torch.randn(d, n, generator=torch.Generator().manual_seed(seed))
    mean = z.reshape(-1, d).mean(0)
    return {
        "raw neurons (±)": lambda z: torch.cat([z, -z], -1),
        "random directions": lambda z: (z - mean) @ directions,
    }


def compare_units(
    sets: Mapping[str, Units], z: Tensor, truth: Tensor, minimum: int = 50
) -> pd.DataFrame:
    """`best_units` of several sets of units, named in a column `units`.

    z (images, patches, d_vit) and truth (images, patches, c): chosen on the pictures at even
    places, scored on those at odd ones.
    """
    halves = slice(0, None, 2), slice(1, None, 2)
    tables = []
    for name, units in sets.items():
        choose, score = ((units(z[h]).flatten(0, 1), truth[h].flatten(0, 1)) for h in halves)
        table = best_units(choose, score, minimum=minimum)
        table.insert(0, "units", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def probe_auroc(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], ridge: float = 1e-2
) -> Tensor:
    """AUROC (c,) of a linear probe for each concept in a patch; NaN without positives.

    A ridge regression from tokens (n, d) to truth (n, c) bool: the upper bound of what a single
    direction can tell. `ridge` is relative to the mean variance of a dimension.
    """
    (z, truth), (test_z, test_truth) = train, test
    mean = z.mean(0)
    centred, target = (z - mean).double(), truth.double()
    gram = centred.T @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, centred.T @ (target - target.mean(0)))
    scores = (test_z - mean).double() @ weights
    return torch.stack([auroc(s, t) for s, t in zip(scores.T, test_truth.T, strict=True)])


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

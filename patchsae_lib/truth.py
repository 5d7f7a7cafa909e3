"""What is in a patch, by the truth, and how well latents and other units find it.

The paper shows that latents localise concepts by examples (section 3.3). The embedded world knows
what every patch shows, so here it is a number, with a floor and a ceiling beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.decomposition import PCA, FastICA
from torch import Tensor

from patchsae_lib.world import CLASSES, Picture, World
from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, PARTS, TEXTURES, WORDS

#: a unit may fire on at most this share of the patches, at the threshold it is chosen with
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

CHUNK = 1024  # rows at a time
GRID = (14, 14)  # rows and columns of patches: the paper's, and the small CLIP's

#: tokens (…, d_vit) → (…, n) numbers, of which each may or may not stand for a concept
Units = Callable[[Tensor], Tensor]
#: a concept of the world: its kind and its name
Concept = tuple[str, str]

#: kind of concept → how a reader calls several
KINDS = {
    "group": "groups", "class": "classes", "part": "parts", "colour": "colours",
    "texture": "textures", "background": "backgrounds", "word": "words",
}  # fmt: skip
NAMES: dict[str, Sequence[str]] = {
    "group": tuple(GROUPS), "class": CLASSES, "part": PARTS, "colour": tuple(COLOURS),
    "texture": TEXTURES[1:], "background": tuple(BACKGROUNDS), "word": WORDS,
}  # fmt: skip
CONCEPTS: tuple[Concept, ...] = tuple((kind, x) for kind in KINDS for x in NAMES[kind])


# --- the truth ---------------------------------------------------------------------------------


def patch_truth(
    picture: Picture, concepts: Sequence[Concept], grid: tuple[int, int] = GRID
) -> np.ndarray:
    """(n_patches, n_concepts) bool: does a concept fill at least half of a patch of the `grid`?

    Grid: (rows, columns). Where they do not divide the picture's sides, patches differ by a pixel.
    """
    (rows, columns), (height, width) = grid, picture.ids.shape
    if rows > height or columns > width:
        raise ValueError(f"{rows} × {columns} patches are more than {height} × {width} pixels")
    n_regions = len(picture.regions)
    fields = [("cls" if kind == "class" else kind, name) for kind, name in concepts]
    regions = np.array([[getattr(r, k) == x for k, x in fields] for r in picture.regions])
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    number = row[:, None] * columns + column  # of the patch at each pixel
    n = rows * columns * n_regions
    counts = np.bincount((number * n_regions + picture.ids).ravel(), minlength=n)
    counts = counts.reshape(-1, n_regions)
    return counts @ regions.astype(int) * 2 >= counts.sum(1, keepdims=True)


def world_truth(
    world: World,
    indices: Iterable[int],
    concepts: Sequence[Concept] = CONCEPTS,
    grid: tuple[int, int] = GRID,
) -> Tensor:
    """(images, n_patches, n_concepts) bool: `patch_truth` of many pictures of the world."""
    rows = [patch_truth(world.picture(int(i)), concepts, grid) for i in indices]
    return torch.from_numpy(np.stack(rows))


# --- scores ------------------------------------------------------------------------------------


def thresholds(units: Tensor, shares: Sequence[float] = SHARES) -> Tensor:
    """(len(shares), d): above which each of d units fires on at most that share of (n, d) rows."""
    rank = [max(1, round(share * len(units))) for share in shares]
    top = units.T.contiguous().topk(max(rank) + 1).values
    return top[:, rank].T


def iou_tables(units: Tensor, truth: Tensor, cuts: Tensor) -> Tensor:
    """IoU (s, c, d) of `units > cut` with each concept, for each of s cuts.

    Units (n, d), truth (n, c) bool, cuts (s, d).
    """
    both = torch.zeros(len(cuts), truth.shape[1], units.shape[1])
    fired = torch.zeros(len(cuts), units.shape[1])
    # by rows, so that what a cut makes of them stays in the CPU's cache
    for u, t in zip(units.split(CHUNK), truth.float().split(CHUNK), strict=True):
        for i, cut in enumerate(cuts):
            fires = (u > cut).float()
            both[i] += t.T @ fires
            fired[i] += fires.sum(0)
    return both / (truth.sum(0)[:, None] + fired[:, None] - both).clamp_min(1)


def best_threshold(score: Tensor, truth: Tensor) -> float:
    """The one above which a score (n,) has the highest IoU with the truth (n,) bool."""
    value, order = score.sort(descending=True)
    hits = truth[order].cumsum(0)
    iou = hits / (truth.sum() + torch.arange(1, len(score) + 1) - hits)
    last = value[:-1] != value[1:]  # equal scores fire together; above none is no choice
    at = iou[:-1].where(last, -1.0).argmax()
    return float((value[at] + value[at + 1]) / 2)


def rank_scores(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and AUROC, each (c,) in 0..1, of scores (n, c) for truth (n, c) bool.

    What scikit-learn computes for one column, ties included, for all of them at once and in a
    quarter of the time. NaN where a column has no positives (AUROC: or no negatives).
    """
    value, order = scores.T.contiguous().sort(descending=True)
    hits = truth.T.gather(1, order)
    true = hits.cumsum(1)
    row = torch.arange(len(scores)).expand_as(order)
    new = F.pad(value[:, 1:] != value[:, :-1], (1, 1), value=True)
    # equal scores count together: the first and the last row of each row's equals
    first = row.where(new[:, :-1], 0).cummax(1).values
    last = row.where(new[:, 1:], len(scores) - 1).flip(1).cummin(1).values.flip(1)
    above = true.gather(1, last).double()
    false_above = last + 1 - above
    false_before = first - (true - hits.long()).gather(1, first)
    positives, negatives = true[:, -1], len(scores) - true[:, -1]
    precision = (hits * above / (last + 1)).sum(1) / positives
    beaten = negatives[:, None] - (false_above + false_before) / 2
    return precision, (hits * beaten).sum(1) / (positives * negatives)


def concept_scores(
    choose: tuple[Tensor, Tensor],
    score: tuple[Tensor, Tensor],
    concepts: Sequence[Concept] = CONCEPTS,
    minimum: int = 50,
) -> pd.DataFrame:
    """How well one score a concept finds it in patches.

    `choose` and `score` are (scores (n, c), truth (n, c) bool) of different pictures: thresholds
    come from the first, measures from the second. One row a concept with at least `minimum`
    positive patches in both: `kind`, `concept`, `n` (positives), and 0..1 `iou`, `f1` (at the
    threshold with the best IoU), `ap` (average precision) and `auroc`.
    """
    (before, known), (scores, truth) = choose, score
    rows = []
    precision, auroc = rank_scores(scores, truth)
    for i in enough(known, truth, minimum):
        fires = scores[:, i] > best_threshold(before[:, i], known[:, i])
        both, either = int((fires & truth[:, i]).sum()), int((fires | truth[:, i]).sum())
        rows.append(
            {
                "kind": concepts[i][0],
                "concept": concepts[i][1],
                "n": int(truth[:, i].sum()),
                "iou": both / max(1, either),
                "f1": 2 * both / max(1, both + either),
                "ap": float(precision[i]),
                "auroc": float(auroc[i]),
            }
        )
    columns = ["kind", "concept", "n", "iou", "f1", "ap", "auroc"]
    return pd.DataFrame(rows, columns=columns)


def enough(known: Tensor, truth: Tensor, minimum: int) -> list[int]:
    """The concepts with at least `minimum` positives in both halves (n, c)."""
    least = torch.minimum(known.sum(0), truth.sum(0))
    return (least >= minimum).nonzero().flatten().tolist()


def baselines(z: Tensor, n: int, seed: int = 0) -> dict[str, Units]:
    """What latents are compared with; what has to be fitted is fitted to tokens z (…, d_vit).

    Raw neurons, principal and independent components (of these at most 256), each with both signs,
    and `n` random directions from the mean token.
    """
    flat = z.reshape(-1, z.shape[-1])
    mean = flat.mean(0)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(z.shape[-1], n, generator=generator)
    some = flat[torch.randperm(len(flat), generator=generator)[:5_000]].numpy()
    pca = torch.from_numpy(PCA().fit(some).components_.T)
    # on the world's tokens it converges within 121 rounds
    k = min(256, *some.shape)
    ica = FastICA(k, whiten="unit-variance", random_state=seed, max_iter=125, tol=0.01).fit(some)
    independent = torch.from_numpy(ica.components_.T.astype(np.float32))

    def signed(x: Tensor) -> Tensor:
        return torch.cat([x, -x], -1)

    return {
        "raw neurons (±)": signed,
        "principal components (±)": lambda z: signed((z - mean) @ pca),
        "independent components (±)": lambda z: signed((z - mean) @ independent),
        "random directions": lambda z: (z - mean) @ directions,
    }


def compare_units(
    sets: Mapping[str, Units | Tensor],
    z: Tensor,
    truth: Tensor,
    concepts: Sequence[Concept] = CONCEPTS,
    minimum: int = 50,
) -> pd.DataFrame:
    """`concept_scores` of the best unit of a concept in several sets of them.

    z (images, patches, d_vit) and truth (images, patches, c); a set of units is a function of
    tokens, or their values (images, patches, n) where they are none. Units are chosen on the
    first half of the pictures and scored on the second. Two more columns: `units`, the name of the
    set, and `unit`, which of them it was.
    """
    truth_a, truth_b = halves(truth)
    kept = enough(truth_a, truth_b, minimum)
    truth_a, truth_b, names = truth_a[:, kept], truth_b[:, kept], [concepts[i] for i in kept]
    tables = []
    for name, units in sets.items():
        # one half at a time: values of all units are large
        parts = iter(halves(units)) if isinstance(units, Tensor) else map(units, halves(z))
        a = next(parts)
        best = iou_tables(a, truth_a, thresholds(a)).amax(0).argmax(1)
        a = a[:, best]
        b = next(parts)[:, best]
        table = concept_scores((a, truth_a), (b, truth_b), names, minimum)
        table.insert(0, "units", name)
        tables.append(table.assign(unit=best.tolist()))
    return pd.concat(tables, ignore_index=True)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the first and of the second half of the pictures (images, patches, …).

    Not of every other picture: where classes take turns, that would part the classes.
    """
    middle = len(x) // 2
    return x[:middle].flatten(0, 1), x[middle:].flatten(0, 1)


def bounds(
    z: Tensor, truth: Tensor, concepts: Sequence[Concept] = CONCEPTS, minimum: int = 50
) -> pd.DataFrame:
    """What frames the scores of units, as `compare_units` gives them, from the same halves.

    From below a position prior: how often each patch of the frame shows the concept. From above a
    supervised linear probe: the best that any direction could do.
    """
    (z_a, z_b), (truth_a, truth_b) = halves(z), halves(truth)
    middle = len(truth) // 2
    prior = truth[:middle].float().mean(0)  # (patches, c)
    scores = {
        "position alone": [prior.repeat(n, 1) for n in (middle, len(truth) - middle)],
        "linear probe (supervised)": list(probe(z_a, truth_a, z_a, z_b)),
    }
    tables = []
    for name, (a, b) in scores.items():
        table = concept_scores((a, truth_a), (b, truth_b), concepts, minimum)
        table.insert(0, "units", name)
        tables.append(table.assign(unit=-1))
    return pd.concat(tables, ignore_index=True)


def best_concepts(
    units: Tensor, truth: Tensor, concepts: Sequence[Concept] = CONCEPTS, minimum: int = 50
) -> pd.DataFrame:
    """What each unit stands for, if for anything: one row a unit.

    Units (images, patches, d) and truth (images, patches, c). The concept and the threshold with
    the highest IoU are chosen on the first half of the pictures; `kind`, `concept`, `iou` (0..1)
    and `z` (`beyond_chance`) are of the second.
    """
    (units_a, units_b), (truth_a, truth_b) = halves(units), halves(truth)
    kept = enough(truth_a, truth_b, minimum)
    if not kept:
        raise ValueError(f"no concept fills {minimum} patches in both halves of the pictures")
    truth_a, truth_b = truth_a[:, kept], truth_b[:, kept]
    cuts = thresholds(units_a)
    tables = iou_tables(units_a, truth_a, cuts)
    best = tables.flatten(0, 1).argmax(0)
    which, concept = best // len(kept), best % len(kept)
    fires, there = units_b > cuts.gather(0, which[None])[0], truth_b[:, concept]
    both = (fires & there).sum(0)
    iou = both / (fires | there).sum(0).clamp_min(1)
    shape = len(units) - len(units) // 2, units.shape[1]
    z = beyond_chance(fires.unflatten(0, shape), there.unflatten(0, shape))
    names = [concepts[kept[i]] for i in concept.tolist()]
    kinds, chosen = zip(*names, strict=True)
    return pd.DataFrame({"kind": kinds, "concept": chosen, "iou": iou, "z": z})


def beyond_chance(fires: Tensor, truth: Tensor) -> Tensor:
    """z-scores (d,) of how much units fire where their concepts are, against shuffled pictures.

    Fires and truth (images, patches, d), one concept a unit. The overlap of the two is compared
    with its exact mean and variance when the truths are dealt to the pictures at random
    (Hoeffding 1951): a place in the frame that both prefer does not count. NaN without variance.
    """
    n = len(fires)
    out = []
    for a, t in zip(fires.unbind(2), truth.unbind(2), strict=True):
        overlap = a.double() @ t.double().T  # (images, images): of each with each
        centred = overlap - overlap.mean(0) - overlap.mean(1, keepdim=True) + overlap.mean()
        deviation = (centred.pow(2).sum() / (n - 1)).sqrt()
        out.append((overlap.trace() - overlap.sum() / n) / deviation)
    return torch.stack(out).nan_to_num(torch.nan, torch.nan, torch.nan)


def discoveries(z_scores: Tensor, rate: float = 0.05) -> Tensor:
    """Which z-scores (d,) stand out, one-sided, at a false discovery `rate`: (d,) bool.

    By Benjamini and Hochberg; NaN counts as a test that found nothing.
    """
    p = stats.norm.sf(z_scores.nan_to_num(-torch.inf).numpy())
    return torch.from_numpy(stats.false_discovery_control(p) <= rate)


def probe(z: Tensor, truth: Tensor, *others: Tensor, ridge: float = 1e-2) -> tuple[Tensor, ...]:
    """Scores (m, c) of a linear probe for each concept, on each of `others` (m, d).

    A ridge regression from tokens z (n, d) to truth (n, c) bool. `ridge` is relative to the mean
    variance of a dimension.
    """
    mean = z.mean(0)
    centred, target = (z - mean).double(), truth.double()
    gram = centred.T @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, centred.T @ (target - target.mean(0)))
    return tuple((other - mean).double() @ weights for other in others)

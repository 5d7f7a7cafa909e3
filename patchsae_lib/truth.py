"""How well latents and other units find concepts in patches, by the truth of the embedded world.

The paper shows by examples that latents localise concepts (section 3.3). The world knows what each
patch shows, so it is a number here, between a floor and a ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA, FastICA
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from patchsae_lib.distributed import batch_size
from patchsae_lib.intervals import interval_table
from patchsae_lib.profiles import Profile
from patchsae_lib.sae import SAE
from patchsae_lib.world.truth import CONCEPTS, KINDS, N_SINGLE, Concept

SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of patches on which a unit fires
MINIMUM = Profile.min_patches  # positives of a concept that is scored, in either half
VALUES = 2**27  # of units in patches that are compared together; 4.8 bytes each are held
RIDGE = 1e-2  # of a linear probe, relative to the mean variance of a dimension

#: tokens (…, d_vit) → values (…, n) of n units, each of which may stand for a concept
Units = Callable[[Tensor], Tensor]
Scored = tuple[Tensor, Tensor]  # scores (n, c) of n patches for c concepts, truth (n, c) bool


def thresholds(units: Tensor) -> Tensor:
    """Find thresholds (len(SHARES), d) above which d units fire on these shares of (n, d) rows."""
    rank = [max(1, round(share * len(units))) for share in SHARES]
    parts = units.split(256, dim=1)  # of which a copy is sorted
    return torch.cat([x.T.contiguous().topk(max(rank) + 1).values[:, rank].T for x in parts], 1)


def iou_tables(units: Tensor, truth: Tensor, cuts: Tensor) -> Tensor:
    """IoU (s, c, d) of `units > cut` (n, d) with concepts (n, c) bool, for cuts (s, d)."""
    hits = units.new_zeros(len(cuts), truth.shape[1], units.shape[1])
    fired = units.new_zeros(len(cuts), units.shape[1])
    truth = truth.to(units.device, units.dtype)
    n = batch_size(units.device, units.shape[1])
    for values, shown in zip(units.split(n), truth.split(n), strict=True):
        for i, cut in enumerate(cuts):
            fires = (values > cut).to(units.dtype)
            hits[i] += shown.T @ fires
            fired[i] += fires.sum(0)
    union = (truth.sum(0)[:, None] + fired[:, None]).sub_(hits)
    return hits.div_(union.clamp_min_(1))


def best_threshold(score: Tensor, truth: Tensor) -> float:
    """Find the threshold above which a score (n,) has the highest IoU with the truth (n,) bool."""
    value, order = score.sort(descending=True)
    hits = truth[order].cumsum(0)
    iou = hits / (truth.sum() + torch.arange(1, len(score) + 1) - hits)
    last = value[:-1] != value[1:]  # equal scores fire together; firing everywhere is excluded
    at = iou[:-1].where(last, -1.0).argmax()
    return float((value[at] + value[at + 1]) / 2)


def rank_scores(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision and AUROC, (c,) each in 0..1, of scores (n, c) for truth (n, c) bool; NaN
    where a column has no positives (AUROC: or no negatives)."""
    columns = list(zip(truth.T.numpy(), scores.double().T.numpy(), strict=True))
    precision = [average_precision_score(t, x) if t.any() else np.nan for t, x in columns]
    auroc = [roc_auc_score(t, x) if t.any() and not t.all() else np.nan for t, x in columns]
    return torch.tensor(precision, dtype=torch.double), torch.tensor(auroc, dtype=torch.double)


def concept_scores(
    choose: Scored, score: Scored, concepts: Sequence[Concept] = CONCEPTS, minimum: int = MINIMUM
) -> pd.DataFrame:
    """Score how well one number per concept finds it in patches.

    Thresholds come from `choose`, measures from `score`, which is of other pictures. One row per
    concept with at least `minimum` positives in both: `kind`, `concept`, `n` (positives), and 0..1
    `iou`, `f1` (at the threshold with the best IoU), `ap` (average precision) and `auroc`.
    """
    (scores_a, truth_a), (scores, truth) = choose, score
    precision, auroc = rank_scores(scores, truth)
    rows = []
    for i in enough(truth_a, truth, minimum):
        fires = scores[:, i] > best_threshold(scores_a[:, i], truth_a[:, i])
        hits, union = int((fires & truth[:, i]).sum()), int((fires | truth[:, i]).sum())
        overlaps = hits / max(1, union), 2 * hits / max(1, hits + union)
        ranked = float(precision[i]), float(auroc[i])
        rows.append((*concepts[i], int(truth[:, i].sum()), *overlaps, *ranked))
    return pd.DataFrame(rows, columns=["kind", "concept", "n", "iou", "f1", "ap", "auroc"])


def enough(truth_a: Tensor, truth_b: Tensor, minimum: int) -> list[int]:
    """List the concepts with at least `minimum` positives in both halves (n, c)."""
    positives = torch.minimum(truth_a.sum(0), truth_b.sum(0))
    return (positives >= minimum).nonzero().flatten().tolist()


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split pictures (images, patches, …) into the patches of the first and of the second half.

    Not into odd and even pictures: where classes take turns, that would separate the classes.
    """
    middle = len(x) // 2
    return x[:middle].flatten(0, 1), x[middle:].flatten(0, 1)


def baselines(z: Tensor, n: int) -> dict[str, Units]:
    """Fit the units that latents are compared with, to tokens z (…, d_vit): raw neurons, principal
    and independent components (of these at most 256), each with both signs, and `n` random
    directions from the mean token."""
    flat = z.reshape(-1, z.shape[-1]).cpu()
    mean = flat.mean(0)
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:5_000]
    sample = flat[chosen].numpy()
    principal = torch.from_numpy(PCA().fit(sample).components_.T)
    ica = FastICA(min(256, *sample.shape), random_state=0, max_iter=500, tol=0.01)
    independent = torch.from_numpy(ica.fit(sample).components_.T.astype(np.float32))
    return {
        "raw neurons (±)": _signed,
        "principal components (±)": lambda z: _signed((z.cpu() - mean) @ principal),
        "independent components (±)": lambda z: _signed((z.cpu() - mean) @ independent),
        "random directions": random_directions(z, n),
    }


def random_directions(z: Tensor, n: int) -> Units:
    """Return `n` random directions from the mean of tokens z (…, d_vit), always the same."""
    mean = z.reshape(-1, z.shape[-1]).cpu().mean(0)
    directions = torch.randn(z.shape[-1], n, generator=torch.Generator().manual_seed(0))
    return lambda x: (x.cpu() - mean) @ directions


def _signed(x: Tensor) -> Tensor:
    return torch.cat([x, -x], -1)


def latents_of(sae: SAE) -> Units:
    """Return the latents of an autoencoder as units; they are computed where it is."""
    return sae.encode


def compare_units(
    sets: Mapping[str, Units | Tensor], z: Tensor, truth: Tensor, minimum: int = MINIMUM
) -> pd.DataFrame:
    """Score the best unit for each single concept, in each set of units, by `concept_scores`.

    z (images, patches, d_vit) and truth (images, patches, c), of which the first `N_SINGLE` of
    `CONCEPTS` are compared. A set is a function of tokens, or
    values (images, patches, n). Units are chosen on the first half of the pictures and scored on
    the second. Further columns: `units`, the name of the set, and `unit`, the number in it.
    Units are computed so many at a time that memory does not grow with their number.
    """
    truth_a, truth_b = halves(truth[..., :N_SINGLE].cpu())
    kept = enough(truth_a, truth_b, minimum)
    truth_a, truth_b, names = truth_a[:, kept], truth_b[:, kept], [CONCEPTS[i] for i in kept]
    tables = []
    for name, units in sets.items():
        values, read = ((lambda x: x), units) if isinstance(units, Tensor) else (units, z)
        a, b = halves(read)
        blocks = torch.arange(values(a[:1]).shape[1]).split(max(1, VALUES // len(a)))
        iou = [_best_iou(_values(values, a, block), truth_a) for block in blocks]
        best = torch.cat(iou, 1).argmax(1)
        chosen = [_values(values, x, best).cpu() for x in (a, b)]
        table = concept_scores((chosen[0], truth_a), (chosen[1], truth_b), names, minimum)
        tables.append(table.assign(units=name, unit=best.tolist()))
    return pd.concat(tables, ignore_index=True)


def _best_iou(units: Tensor, truth: Tensor) -> Tensor:
    """Return the IoU (c, d) of units (n, d) at the best threshold for each concept (n, c)."""
    return iou_tables(units, truth, thresholds(units)).amax(0).cpu()


def _values(units: Units, z: Tensor, chosen: Tensor) -> Tensor:
    """Return the values (n, k) of the units `chosen` (k,) in tokens z (n, d_vit), where they are
    computed: of a batch of tokens at a time."""
    first = units(z[:1])  # all units of it: where they are, and how many
    values, n = first.new_empty(len(z), len(chosen)), batch_size(first.device, first.shape[1])
    for rows, part in zip(values.split(n), z.split(n), strict=True):
        rows.copy_(units(part)[:, chosen])
    return values


def mean_scores(scores: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Average a score over the concepts of each kind, and for each `by`, with its interval. The
    column `concepts` says of how many: "12 classes". Intervals end at 0 and 1, as scores do."""
    n_concepts = scores.groupby(["kind", by])["concept"].transform("size").astype(str)
    named = scores.assign(concepts=n_concepts + " " + scores["kind"].map(KINDS))
    means = interval_table(named, ["concepts", by], value, over="concepts")
    return means.assign(low=means["low"].clip(lower=0), high=means["high"].clip(upper=1))


def bounds(z: Tensor, truth: Tensor, minimum: int = MINIMUM) -> pd.DataFrame:
    """Score what bounds units, like `compare_units` and on its halves: from below a position prior
    (how often each patch shows the concept), from above a supervised linear probe (the best that a
    direction could do)."""
    truth, z = truth[..., :N_SINGLE].cpu(), z.cpu()
    (z_a, z_b), (truth_a, truth_b) = halves(z), halves(truth)
    middle = len(truth) // 2
    prior = truth[:middle].float().mean(0)  # (patches, c)
    priors = prior.repeat(middle, 1), prior.repeat(len(truth) - middle, 1)
    scores = {"position alone": priors, "linear probe (supervised)": probe(z_a, truth_a, z_a, z_b)}
    tables = [
        concept_scores((a, truth_a), (b, truth_b), CONCEPTS[:N_SINGLE], minimum).assign(
            units=name, unit=-1
        )
        for name, (a, b) in scores.items()
    ]
    return pd.concat(tables, ignore_index=True)


def probe(z: Tensor, truth: Tensor, *tested: Tensor) -> tuple[Tensor, ...]:
    """Scores (m, c) of a linear probe for each concept, on each of the `tested` tokens (m, d): a
    ridge regression from tokens z (n, d) to truth (n, c) bool."""
    penalty = RIDGE * len(z) * float(z.double().var(0, correction=0).mean())
    ridge = Ridge(penalty).fit(z.double().numpy(), truth.double().numpy())
    return tuple(torch.from_numpy(ridge.predict(x.double().numpy())) for x in tested)

"""What adaptation changes in the latents, and where its gain comes from (paper section 4.2).

Class-level activations of CLIP and of an adapted model are compared on one autoencoder. Then, not
in the paper, each part of the change is put in separately, and the gain is shared among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from patchsae_lib.ablation import by_score
from patchsae_lib.intervals import resampled_means
from patchsae_lib.latents import DEFAULTS, scan_tokens
from patchsae_lib.maple import AdaptedCLIP
from patchsae_lib.profiles import StatisticsConfig
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents
from patchsae_lib.tokens import Tokens

#: where tokens of a picture are
PLACES = {
    "none": slice(0, 0), "CLS": slice(0, 1), "patches": slice(1, None), "both": slice(0, None),
}  # fmt: skip
GROUPS = ("other", "high", "high to low", "low to high")
READINGS = ("class rank", "class value", "dataset rank", "dataset value")


def improvement(zero_shot: float, adapted: float) -> float:
    """Δ, the share of errors that adaptation removes, from accuracies in 0..1; NaN without errors.

    >>> improvement(0.5, 0.75)
    0.5
    """
    return (adapted - zero_shot) / (1 - zero_shot) if zero_shot < 1 else math.nan


def with_noise(before: Tensor, after: Tensor, seed: int = 0) -> Tensor:
    """Move each token of `before` as far as it is from `after`, both (…, d_vit), in a random
    direction: what a change of this size does that knows nothing."""
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(seed))
    distance = (after.to(before.device) - before).norm(dim=-1, keepdim=True)
    return before + distance * F.normalize(noise, dim=-1).to(before.device)


def levels_by_place(
    sae: SAE,
    z: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    config: StatisticsConfig = DEFAULTS,
) -> dict[str, Tensor]:
    """Count class-level activations of z (n, 1 + n_patches, d_vit) apart for CLS, for patches, and
    for both: (3, classes, d_sae) each, of the even pictures, of the odd ones, and of all.

    All but one of the tokens are patches, but only CLS leaves the last block.
    """
    levels = {}
    for place in ("CLS", "patches"):
        parts = [Tokens.hold(z[i::2, PLACES[place]]) for i in (0, 1)]
        halves = [
            scan_tokens(sae, part, labels[i::2], class_names, config)
            for i, part in enumerate(parts)
        ]
        tables = *halves, halves[0].merge(halves[1])
        levels[place] = torch.stack([table.class_per_image for table in tables])
    return levels | {"both": levels["CLS"] + levels["patches"]}


@torch.no_grad()
def correct_at(
    place: str,
    adapted: AdaptedCLIP,
    head: Tensor,
    before: Tensor | Tokens,
    after: Tensor | Tokens,
    labels: Tensor,
) -> Tensor:
    """Return 1 where `adapted` with `head` (c, d_embed) is right, else 0: (n,), when only the
    tokens of a place (one of `PLACES`) are those of `after` (n, 1 + n_patches + n_prompts, d_vit),
    the prompts' with them, and the others those of `before` (n, 1 + n_patches, d_vit)."""
    right, n = [], adapted.n_tokens
    parts = zip(*(x.split(adapted.at_once) for x in (before, after, labels)), strict=True)
    for z0, z1, y in ([x.to(adapted.device) for x in part] for part in parts):
        states = torch.cat([z0, z1[:, n:]], 1).float()
        states[:, :n][:, PLACES[place]] = z1[:, :n][:, PLACES[place]].float()
        right.append(adapted.classify(states, head).argmax(1) == y)
    return torch.cat(right).double().cpu()


def ranks(levels: Tensor) -> Tensor:
    """Place of each latent, from 0, among those of a class, by activation (classes, d_sae)."""
    return by_score(levels).argsort(dim=1)


def groups(
    before: Tensor, after: Tensor, by: str = "class rank", config: StatisticsConfig = DEFAULTS
) -> Tensor:
    """Assign each latent to one of `GROUPS`, for each class: (classes, d_sae) int64.

    "High" is in the top 50 of both models; "high to low" in the top 50 before and not in the top
    100 after; "low to high" the reverse. `before` and `after` (classes, d_sae) are a
    `LatentTable`'s `class_per_image`; a latent that a class does not activate is never high.
    The paper does not say what the two bounds are bounds of. There are four readings, `by`:

    - `class rank`: a latent's place among those of the class, in each model's own order.
    - `class value`: the 50th and the 100th activation of the class in CLIP, for both models.
    - `dataset rank`: its place by dataset-level activation (the mean over classes), for all.
    - `dataset value`: the mean over classes of the 50th and 100th activation in CLIP.
    """
    if before.shape != after.shape:
        shapes = f"{tuple(before.shape)}, {tuple(after.shape)}"
        raise ValueError(f"activations of different classes or latents: {shapes}")
    if by not in READINGS:
        raise ValueError(f"groups by {by!r}: give one of {', '.join(READINGS)}")
    high, low = _high_and_low(before, before, by, config)
    high_after, low_after = _high_and_low(before, after, by, config)
    stays, falls, rises = high & high_after, high & low_after, low & high_after
    return stays.long() + 2 * falls.long() + 3 * rises.long()


def _high_and_low(
    before: Tensor, levels: Tensor, by: str, config: StatisticsConfig
) -> tuple[Tensor, Tensor]:
    """Which latents are high, and which low, in the model with these `levels` (classes, d_sae)."""
    scope, measure = by.split()
    if measure == "rank":
        place = ranks(levels if scope == "class" else levels.mean(0, keepdim=True))
        high, low = place < config.top, place >= config.bound
    else:
        last = [min(n, before.shape[1]) - 1 for n in (config.top, config.bound)]
        bounds = before.sort(dim=1, descending=True).values[:, last]
        bounds = bounds if scope == "class" else bounds.mean(0, keepdim=True)
        high, low = levels >= bounds[:, :1], levels < bounds[:, 1:]
    return high & (levels > 0), low | (levels == 0)


def group_sizes(group: Tensor) -> dict[str, float]:
    """Average number of latents of a class in each of `GROUPS` but the first (paper Table 1), for
    what `groups` returns: (classes, d_sae)."""
    return {name: (group == i).sum(1).double().mean().item() for i, name in enumerate(GROUPS) if i}


def latents_by_class(
    before: Tensor, after: Tensor, group: Tensor, class_names: Sequence[str]
) -> pd.DataFrame:
    """Tabulate the latents that a class activates in either model, a row per class and latent.

    Columns: `label` and name of the `class`; `latent`; its class-level activation, `before` and
    `after` (classes, d_sae), in `CLIP` and in `MaPLe`; its `rank` in the class, from 0, by the
    larger of these; its `group`, from `groups`.
    """
    highest = torch.maximum(before, after)
    label, latent = (highest > 0).nonzero().unbind(1)
    numbers = {"CLIP": before, "MaPLe": after, "rank": ranks(highest)}
    return pd.DataFrame(
        {"label": label, "class": np.array(class_names)[label], "latent": latent}
        | {name: x[label, latent] for name, x in numbers.items()}
        | {"group": np.array(GROUPS)[group[label, latent]]}
    )


def overlap(first: Tensor, second: Tensor, k: int = DEFAULTS.top) -> Tensor:
    """Share of a class's k strongest latents that are the same in two models: (classes,), from
    class-level activations (classes, d_sae). Inactive latents do not count; NaN if all are."""
    top_first, top_second = ((ranks(x) < k) & (x > 0) for x in (first, second))
    size = torch.maximum(top_first.sum(1), top_second.sum(1))
    return (top_first & top_second).sum(1) / size.where(size > 0, torch.nan)


def chance_overlap(first: Tensor, second: Tensor, k: int = DEFAULTS.top) -> Tensor:
    """Expected `overlap` of random sets of the same sizes, drawn from the latents that are active
    in any class of either model: (classes,)."""
    sizes = [(x > 0).sum(1).clamp_max(k) for x in (first, second)]
    return torch.minimum(*sizes) / ((first > 0) | (second > 0)).any(0).sum()


def overlaps(before: Sequence[Tensor], after: Sequence[Tensor]) -> pd.DataFrame:
    """Tabulate the `overlap` of CLIP and MaPLe beside its ceiling and chance, a row per class.

    `before` and `after` hold class-level activations (classes, d_sae) on two halves of the
    pictures. The ceiling is the overlap of the halves within CLIP: only the pictures differ.
    """
    (first, second), (adapted_first, adapted_second) = before, after
    same = overlap(first, adapted_first) + overlap(second, adapted_second)
    crossed = overlap(first, adapted_second) + overlap(second, adapted_first)
    columns = {
        "CLIP and MaPLe, same pictures": same / 2,
        "CLIP and CLIP, other pictures": overlap(first, second),
        "CLIP and MaPLe, other pictures": crossed / 2,
        "chance": chance_overlap(first, second),
    }
    return pd.DataFrame({name: shares.numpy() for name, shares in columns.items()})


#: what adaptation changes: the text features of the classes; the activations of latents that were
#: active before; latents that were not; what the autoencoder does not reconstruct; and the tokens
#: of the prompts, which the second half of CLIP reads
FACTORS = ("class names", "strengths", "new latents", "error", "prompt tokens")


@dataclass(frozen=True)
class Gain:
    """Whether n pictures are classified correctly with each part of the change put in or not.

    `correct` (2, 2, 2, 2, 2, n) bool: without (0) and with (1) each of `FACTORS`; all without is
    CLIP, all with the adapted model. `only_new` (n,): with the whole change but no latent that was
    active before. `left_out` and `active` (n,): new latents, and all latents, per token after
    adaptation; `mass` (n,): the share of the activation in new ones.
    """

    correct: Tensor
    only_new: Tensor
    left_out: Tensor
    active: Tensor
    mass: Tensor

    def shares(self) -> Tensor:
        """What each factor adds to a picture's correctness: (5, n) Shapley values, which add up to
        the gain."""
        return shapley(self.correct.double())

    def named(self) -> pd.DataFrame:
        """Tabulate correctness (0 or 1), a row per picture and a column per state; where its name
        says nothing of a factor, that is adapted."""
        c = self.correct
        columns = {
            "CLIP": c[0, 0, 0, 0, 0],
            "adapted text only": c[1, 0, 0, 0, 0],
            "adapted pictures only": c[0, 1, 1, 1, 1],
            "adapted": c[1, 1, 1, 1, 1],
            "old latents, new strengths": c[1, 1, 0, 1, 1],
            "old latents, old strengths": c[1, 0, 0, 1, 1],
            "new latents alone": self.only_new,
        }
        return pd.DataFrame({name: x.double().numpy() for name, x in columns.items()})


def shapley(values: Tensor) -> Tensor:
    """Shapley values (k, n) of n games of k players: what a player adds, on average over all
    orders of joining. `values` (2, …, 2, n) are those of coalitions, 1 for players who joined."""
    k, n = values.ndim - 1, values.shape[-1]
    sizes = [sum(joined) for joined in product((0, 1), repeat=k - 1)]  # of coalitions without one
    weight = values.new_tensor([[1 / (k * math.comb(k - 1, size))] for size in sizes])
    marginals = [(values.select(i, 1) - values.select(i, 0)).reshape(-1, n) for i in range(k)]
    return torch.stack([(weight * marginal).sum(0) for marginal in marginals])


@torch.no_grad()
def decompose(
    adapted: AdaptedCLIP, sae: SAE, before: Tensor | Tokens, after: Tensor | Tokens,
    labels: Tensor, heads: tuple[Tensor, Tensor], per: str = "token"
) -> Gain:  # fmt: skip
    """Classify pictures with each part of what adaptation changes put in separately.

    `before` (n, 1 + n_patches, d_vit) and `after` (n, 1 + n_patches + n_prompts, d_vit) are tokens
    of the same pictures in CLIP and in `adapted`; `labels` (n,); `heads` the text features
    (c, d_embed) of either. A latent is old if it was active before, in the same token or, `per`
    "picture", anywhere in the picture. With f and error e before, f′ and e′ after, and S the old
    latents, a token is

        b_dec + W_dec · (f or f′ on S) + W_dec · (0 or f′ off S) + (e or e′)

    which is CLIP's with the first of each, and the adapted model's with the second.
    """
    n = adapted.n_tokens
    if per not in ("token", "picture"):
        raise ValueError(f"old latents per {per!r}: give token or picture")
    if before.shape[1] != n or after.shape[1] != n + adapted.n_prompts:
        raise ValueError(
            f"tokens before {tuple(before.shape)} and after {tuple(after.shape)} are not those of "
            f"CLIP and of this adapted model, which has {n} and {adapted.n_prompts} for prompts"
        )
    at_once, batches = min(adapted.at_once, sae.images_at_once(n, least=8)), []
    for z0, z1, y in zip(*(x.split(at_once) for x in (before, after, labels)), strict=True):
        z0, z1 = (z.to(sae.W_dec.device, torch.float32) for z in (z0, z1))
        states, counts = _states(sae, z0, z1[:, :n], per)
        batches.append([*_correct(adapted, states, z1[:, n:], y, heads), *counts])
    return Gain(*(torch.cat(column, -1).cpu() for column in zip(*batches, strict=True)))


def _states(sae: SAE, z0: Tensor, z1: Tensor, per: str) -> tuple[Tensor, list[Tensor]]:
    """Nine states (9 b, tokens, d_vit) of tokens before and after (b, tokens, d_vit): without and
    with changed strengths, new latents and error, in this order; then new latents alone. Also
    `left_out`, `active` and `mass` of a `Gain`."""
    f0, active = sae.encode(z0), SparseLatents.encode(sae, z1)
    was_active = f0 > 0 if per == "token" else (f0 > 0).any(1, keepdim=True).expand_as(f0)
    is_old = was_active.flatten(0, 1)[active.token, active.latent]
    kept, new = active.select(is_old), active.select(~is_old)
    parts = SparseLatents.from_dense(f0), kept, new
    old_strengths, new_strengths, added = (part.decode(sae.W_dec) for part in parts)
    errors = z0 - old_strengths - sae.b_dec, z1 - new_strengths - added - sae.b_dec
    states = [
        sae.b_dec + old_latents + new_latents + error
        for old_latents in (old_strengths, new_strengths)
        for new_latents in (torch.zeros_like(added), added)
        for error in errors
    ]
    states.append(sae.b_dec + added + errors[1])
    (n_new, mass), (n_active, total) = _count_and_sum(new), _count_and_sum(active)
    counts = [n_new / z0.shape[1], n_active / z0.shape[1], mass / total.clamp_min(1e-9)]
    return torch.cat(states), counts


def _count_and_sum(latents: SparseLatents) -> Tensor:
    """Number of active latents of an image, and the sum of their activations: (2, images)."""
    values = torch.stack([torch.ones_like(latents.value), latents.value])
    sums = values.new_zeros(2, latents.shape[0])
    return sums.index_add_(1, latents.image, values).double()


def _correct(
    adapted: AdaptedCLIP, states: Tensor, prompts: Tensor, labels: Tensor, heads: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`correct` and `only_new` of a `Gain`, from `_states` and tokens of prompts (b, …)."""
    b, labels = len(labels), labels.to(states.device)
    features = (
        adapted.unadapted().features(states[: 8 * b]),
        adapted.features(torch.cat([states, prompts.repeat(9, 1, 1)], 1)),
    )
    heads = [head.to(labels.device) for head in heads]
    right = [[(x @ head.T).argmax(1).view(-1, b) == labels for x in features] for head in heads]
    # of each head and each second half, (8 or 9 states, b)
    correct = torch.stack([torch.stack([x[:8] for x in row], 1) for row in right])
    return correct.view(2, 2, 2, 2, 2, b), right[1][1][8]


def share_out(shares: Tensor) -> pd.DataFrame:
    """Tabulate the mean of `Gain.shares` (5, pictures), a row per factor and one for all.

    `points` is what a factor adds to accuracy (0..1) and `share` that over the gain, each with its
    95 % interval over pictures. Shares are NaN unless the interval of the gain is above 0.
    """
    x = torch.cat([shares, shares.sum(0, keepdim=True)]).numpy()
    resampled = resampled_means(x, 2000, seed=0)  # (6, 2000)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=1)
    table = pd.DataFrame({"points": x.mean(1), "low": low, "high": high}, index=[*FACTORS, "all"])
    share = np.full((3, len(x)), np.nan)
    if low[-1] > 0:
        share[0] = x.mean(1) / x[-1].mean()
        ratios = resampled / np.maximum(resampled[-1], 1e-9)
        share[1:] = np.quantile(ratios, [0.025, 0.975], axis=1)
    table["share"], table["share_low"], table["share_high"] = share
    return table.rename_axis("factor")


def probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> np.ndarray:
    """Which test pictures a logistic regression on image-level latents (pictures, d_sae) gets
    right: (n,) bool. Latents are divided by their standard deviations."""
    regression = LogisticRegression(max_iter=2000, tol=1e-2)
    model = make_pipeline(StandardScaler(with_mean=False), regression)
    model.fit(train.numpy(), train_labels.numpy())
    return model.predict(test.numpy()) == test_labels.numpy()

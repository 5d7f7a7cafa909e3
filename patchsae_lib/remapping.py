"""What adaptation changes in the latents, and where its gain comes from (paper section 4.2).

Class-level activations of CLIP and of an adapted model are compared on one autoencoder. Then, not
in the paper, every part of the change is put in and taken out by itself, and the gain is shared
out among them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from patchsae_lib.ablation import Active, by_score
from patchsae_lib.clip import accelerated
from patchsae_lib.evaluation import BATCH
from patchsae_lib.maple import AdaptedCLIP
from patchsae_lib.sae import SAE

GROUPS = ("other", "high", "high to low", "low to high")
TOP, BOUND = 50, 100


def improvement(zero_shot: float, adapted: float) -> float:
    """Δ, the share of errors that adaptation takes away; accuracies and Δ from 0 to 1.

    NaN where there are none to take away; below 0 where it adds some.

    >>> improvement(0.5, 0.75)
    0.5
    """
    return (adapted - zero_shot) / (1 - zero_shot) if zero_shot < 1 else math.nan


# --- which latents a class has, before and after ------------------------------------------------


def ranks(levels: Tensor) -> Tensor:
    """The place of every latent among those of a class (classes, d_sae), from 0."""
    return by_score(levels).argsort(dim=1)


def groups(before: Tensor, after: Tensor, by: str = "class rank") -> Tensor:
    """Which of `GROUPS` a latent is in, for every class: (classes, d_sae) int64.

    "High" is in the top 50 of both models; "high to low" in the top 50 before and not in the top
    100 after; "low to high" the other way round. `before` and `after` (classes, d_sae) are a
    `LatentTable`'s `class_per_image`; a latent that a class does not activate is never high.

    The paper does not say what the two bounds are bounds of. There are four readings, `by`:

    - `class rank`: a latent's place among those of the class, in each model's own order.
    - `class value`: the 50th and the 100th activation of the class in CLIP, for both models.
    - `dataset rank`: its place by dataset-level activation (the mean over classes), for all.
    - `dataset value`: the mean over classes of the 50th and 100th activation in CLIP.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"activations of different classes or latents: {before.shape}, {after.shape}"
        )
    both = before, after
    if by.endswith("rank"):
        orders = [ranks(x if by.startswith("class") else x.mean(0, keepdim=True)) for x in both]
        high = [(order < TOP) & (x > 0) for order, x in zip(orders, both, strict=True)]
        low = [(order >= BOUND) | (x == 0) for order, x in zip(orders, both, strict=True)]
    elif by in ("class value", "dataset value"):
        ordered = before.sort(dim=1, descending=True).values
        bounds = ordered[:, [min(n, ordered.shape[1]) - 1 for n in (TOP, BOUND)]]
        bounds = bounds.mean(0, keepdim=True) if by.startswith("dataset") else bounds
        high = [(x >= bounds[:, :1]) & (x > 0) for x in both]
        low = [(x < bounds[:, 1:]) | (x == 0) for x in both]
    else:
        raise ValueError(f"groups by {by!r}: give class rank or value, dataset rank or value")
    stays, falls, rises = high[0] & high[1], high[0] & low[1], low[0] & high[1]
    return stays.long() + 2 * falls.long() + 3 * rises.long()


def overlap(one: Tensor, other: Tensor, k: int = TOP) -> Tensor:
    """The share of a class's k strongest latents that are among the other's, too: (classes,).

    Of class-level activations (classes, d_sae). Where fewer than k are active there are fewer;
    NaN where there are none.
    """
    sets = [(ranks(x) < k) & (x > 0) for x in (one, other)]
    most = torch.maximum(*(s.sum(1) for s in sets))
    return (sets[0] & sets[1]).sum(1) / most.where(most > 0, torch.nan)


def chance_overlap(one: Tensor, other: Tensor, k: int = TOP) -> Tensor:
    """What `overlap` would be of sets as large, drawn from the latents that any class activates in
    either: (classes,)."""
    sizes = [(x > 0).sum(1).clamp_max(k) for x in (one, other)]
    return torch.minimum(*sizes) / ((one > 0) | (other > 0)).any(0).sum()


# --- where the gain comes from ------------------------------------------------------------------

#: what adaptation changes, and what of it is put in: the head of the classes; the strengths of
#: latents that were active before; latents that were not; what the autoencoder does not see of
#: the picture; and the prompts' own tokens, which the second half reads.
FACTORS = ("class names", "strengths", "new latents", "error", "prompt tokens")


@dataclass(frozen=True)
class Gain:
    """Pictures (n of them) classified with every part of the change by itself.

    `correct` (2, 2, 2, 2, 2, n) bool: is the class right, without (0) and with (1) each of
    `FACTORS`; all without is CLIP, all with is the adapted model. `only_new` (n,): with all of the
    change but no latent that was active before. `left_out` and `active` (n,): latents a token
    that are new, and all, after adaptation; `mass` (n,): the new ones' share of all activation.
    """

    correct: Tensor
    only_new: Tensor
    left_out: Tensor
    active: Tensor
    mass: Tensor

    def shares(self) -> Tensor:
        """What each factor adds, picture by picture: (5, n), in right answers.

        Shapley values: the change that a factor makes, on average over all orders in which the
        five could be put in. They add up to the gain, of every picture and so of the mean.
        """
        return shapley(self.correct.double())

    def named(self) -> pd.DataFrame:
        """Right or not (0 or 1) for every picture, a column for each of the states of interest.

        Where only latents are named, all else is adapted.
        """
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
    """Shapley values (k, n) of n games of k players: values (2, …, 2, n), 1 for who takes part."""
    k = values.ndim - 1
    games = values.flatten(0, -2)  # (2^k, n), the first player in the highest bit
    coalitions = torch.arange(len(games))
    size = ((coalitions[:, None] >> torch.arange(k)) & 1).sum(1)
    weight = torch.tensor(
        [math.factorial(s) * math.factorial(k - 1 - s) / math.factorial(k) for s in range(k)],
        dtype=games.dtype,
    )
    out = []
    for player in range(k):
        bit = 1 << (k - 1 - player)
        without = coalitions[(coalitions & bit) == 0]
        marginal = games[without | bit] - games[without]
        out.append((weight[size[without]][:, None] * marginal).sum(0))
    return torch.stack(out)


@torch.no_grad()
@accelerated
def decompose(
    adapted: AdaptedCLIP,
    sae: SAE,
    before: Tensor,
    after: Tensor,
    labels: Tensor,
    texts: tuple[Tensor, Tensor],
    per: str = "token",
    batch: int = BATCH,
) -> Gain:
    """Classify pictures with every part of what adaptation changes put in by itself.

    `before` (n, 1 + n_patches, d_vit) and `after` (n, 1 + n_patches + n_prompts, d_vit) are tokens
    of the same pictures in CLIP and in `adapted`; `labels` (n,); `texts` the heads (c, d_embed) of
    both. A latent is old where it was active before: `per` "token", in the same token; "picture",
    anywhere in the same picture.

    With f of before, f′ of after, S the old latents and e what is not reconstructed, a token is

        b_dec + W_dec · (f or f′ on S) + W_dec · (0 or f′ off S) + (e or e′)

    which is that of CLIP with the first of each, and that of the adapted model with the second.
    """
    if per not in ("token", "picture"):
        raise ValueError(f"old latents per {per!r}: give token or picture")
    n = adapted.n_tokens
    if before.shape[1] != n or after.shape[1] != n + adapted.n_prompts:
        raise ValueError(
            f"tokens before {tuple(before.shape)} and after {tuple(after.shape)} are not those of "
            f"CLIP and of this adapted model, which has {n} and {adapted.n_prompts} for prompts"
        )
    clip, device = adapted.unadapted(), sae.W_dec.device
    texts = texts[0].to(device), texts[1].to(device)
    batches: list[list[Tensor]] = []
    for part in zip(*(x.split(batch) for x in (before, after, labels)), strict=True):
        z0, z1, y = (x.to(device) for x in part)
        b, prompts = len(y), z1[:, n:].float()
        states, counts = _states(sae, z0.float(), z1[:, :n].float(), per)
        looks = (
            clip.features(states[: 8 * b]),
            adapted.features(torch.cat([states, prompts.repeat(9, 1, 1)], 1)),
        )
        right = [
            [(x @ text.T).argmax(1).view(-1, b) == y for text in texts] for x in looks
        ]  # of both looks and texts: (8 or 9 states, b)
        cube = torch.stack([torch.stack([look[t][:8] for look in right], 1) for t in (0, 1)])
        batches.append([cube.view(2, 2, 2, 2, 2, b), right[1][1][8], *counts])
    return Gain(*(torch.cat(column, -1).cpu() for column in zip(*batches, strict=True)))


def _states(sae: SAE, z0: Tensor, z1: Tensor, per: str) -> tuple[Tensor, list[Tensor]]:
    """Nine states (9 b, tokens, d_vit) of tokens before and after (b, tokens, d_vit): without and
    with changed strengths, new latents, error, in this order; then new latents alone. And the last
    three fields of a `Gain`."""
    b, n, _ = z0.shape
    f0, present = sae.encode(z0), Active.of(sae, z1)
    old = f0 > 0 if per == "token" else (f0 > 0).any(1, keepdim=True).expand_as(f0)
    is_old = old.flatten(0, 1)[present.row, present.latent]
    kept, new = (present.take(some.nonzero()[:, 0]) for some in (is_old, ~is_old))
    was, strengths, added = (x.decode(sae) for x in (Active.sparse(f0, z0.shape), kept, new))
    errors = z0 - was - sae.b_dec, z1 - strengths - added - sae.b_dec
    states = [
        sae.b_dec + strength + more + error
        for strength in (was, strengths)
        for more in (torch.zeros_like(added), added)
        for error in errors
    ]
    states.append(sae.b_dec + added + errors[1])
    sums = [
        torch.zeros(2, b, device=z0.device)
        .index_add_(1, part.row // n, torch.stack([torch.ones_like(part.value), part.value]))
        .double()
        for part in (new, present)
    ]
    (left_out, mass), (active, whole) = sums
    return torch.cat(states), [left_out / n, active / n, mass / whole.clamp_min(1e-9)]


def share_out(shares: Tensor, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Of `Gain.shares` (5, pictures), a row a factor: `points`, what it adds to accuracy (0..1),
    and `share`, that over the gain, each with its 95 % interval over resamples of pictures.

    Shares are NaN unless the interval of the gain, which is the last row, is above 0.
    """
    x = torch.cat([shares, shares.sum(0, keepdim=True)]).numpy()
    picks = np.random.default_rng(seed).integers(x.shape[1], size=(n, x.shape[1]))
    points = x[:, picks].mean(2)  # (6, n)
    low, high = np.quantile(points, [0.025, 0.975], axis=1)
    table = pd.DataFrame({"points": x.mean(1), "low": low, "high": high}, index=[*FACTORS, "all"])
    share = np.full((3, len(x)), np.nan)
    if low[-1] > 0:
        share[0] = x.mean(1) / x[-1].mean()
        ratios = points / np.maximum(points[-1], 1e-9)
        share[1:] = np.quantile(ratios, [0.025, 0.975], axis=1)
    table["share"], table["share_low"], table["share_high"] = share
    return table.rename_axis("factor")


def probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> np.ndarray:
    """Which of the test pictures a linear classifier gets right: (n,) bool.

    Logistic regression on image-level latents (pictures, d_sae), each divided by its standard
    deviation: what can be told apart with the latents that are there.
    """
    model = make_pipeline(
        StandardScaler(with_mean=False), LogisticRegression(max_iter=2000, tol=1e-2)
    )
    model.fit(train.numpy(), train_labels.numpy())
    return model.predict(test.numpy()) == test_labels.numpy()

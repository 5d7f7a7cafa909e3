"""Planted adaptations: changes of tokens or heads of which one knows what they are.

Each function takes residual tokens z (n, n_tokens, d_vit) and the head (c, d_embed) that is right
for them, and returns a `Plant`: tokens and heads before and after, and what a method that compares
the two has to say. What is planted is made by nobody's autoencoder but the one whose part of z is
given, so that another one can be asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]

#: what a gain can come from: the head; the strength of what was there; what was not there; what an
#: autoencoder does not reconstruct; and tokens of prompts, or another second half
PARTS = ("names", "strengths", "new", "error", "prompts")
ZERO: Range = (-0.01, 0.01)
FULL: Range = (0.99, 1.01)
MOST: Range = (0.8, math.inf)
LITTLE: Range = (-math.inf, 0.1)
NOTHING = dict.fromkeys((*PARTS, "points", "change"), ZERO)


class Turned:
    """A model whose tokens are turned: its second half reads z turn, with an orthogonal `turn`
    (d_vit, d_vit), as `model` reads z. Tokens of prompts, which come last, are not turned. Without
    a turn nothing is adapted."""

    def __init__(self, model: Any, turn: Tensor | None) -> None:
        self.model, self.turn, self.device = model, turn, model.device
        self.n_tokens, self.n_prompts = model.n_tokens, model.n_prompts
        self.at_once = model.at_once

    def features(self, z: Tensor) -> Tensor:
        """Compute image features (b, d_embed) from turned tokens (b, n_tokens + n_prompts, d)."""
        if self.turn is None:
            return self.model.features(z)
        n, z = self.n_tokens, z.to(self.device)
        back = z[:, :n] @ self.turn.to(z).T
        return self.model.features(torch.cat([back, z[:, n:]], 1))

    def unadapted(self) -> Any:
        """Return the model before adaptation."""
        model = self.model
        if self.turn is None:
            return self
        return model.unadapted() if hasattr(model, "unadapted") else model


@dataclass(frozen=True)
class Plant:
    """Tokens (n, n_tokens, d_vit) and heads (c, d_embed) before and after a planted adaptation.

    `required`: for each quantity that a method may state, the range in which it is right.

    - `PARTS`: shares of the gain; `points`: what a part adds to accuracy, without a gain.
    - `change`: how much of the change is beyond noise; `old`, `created`, `unexplained`: the shares
      of the change in what was there, in what was not, and in neither.
    - `alpha`: the factor of what was re-weighted; `auroc`: how well what is called new tells
      classes apart.

    `turn`: how tokens after are turned. `may_abstain`: saying nothing is right, too.
    """

    name: str
    before: Tensor
    after: Tensor
    heads: tuple[Tensor, Tensor]
    required: Mapping[str, Range] = field(default_factory=lambda: dict(NOTHING))
    turn: Tensor | None = None
    may_abstain: bool = False

    def model(self, clip: Any) -> Turned:
        """Return the adapted model, for the CLIP whose tokens were changed."""
        return Turned(clip, self.turn)

    def gain(self, clip: Any, labels: Tensor) -> Tensor:
        """Return by how much each picture's correctness rises (n,): −1, 0 or 1."""
        right, after = [], self.model(clip)
        pairs = zip((after.unadapted(), after), (self.before, self.after), self.heads, strict=True)
        for model, z, head in pairs:
            features = torch.cat([model.features(part).cpu() for part in z.split(after.at_once)])
            right.append(((features @ head.T).argmax(1) == labels).double())
        return right[1] - right[0]

    def grade(self, says: Mapping[str, float]) -> str:
        """Say whether a method that `says` these quantities is "right" or "wrong", or "abstains":
        from all that is required here, or from everything."""
        for sums in (("new", "error"), ("created", "unexplained")):
            if parts := [says[part] for part in sums if part in says]:
                says = {**says, " or ".join(sums): sum(parts)}
        stated = [
            low <= says[name] <= high
            for name, (low, high) in self.required.items()
            if not math.isnan(says.get(name, math.nan))
        ]
        silent = "right" if self.may_abstain else "abstains"
        return ("right" if all(stated) else "wrong") if stated else silent


def near(truth: Mapping[str, float], tolerance: float = 0.1) -> dict[str, Range]:
    """Return what is required of the shares of `PARTS`; those without a truth are 0."""
    shares = {part: truth.get(part, 0.0) for part in PARTS}
    return {part: (x - tolerance, x + tolerance) for part, x in shares.items()}


def renamed(z: Tensor, head: Tensor, n_classes: int | None = None) -> Plant:
    """Plant names: the first `n_classes` classes (None: all) have each other's text features
    before, rolled by one, and their own after. The tokens stay."""
    n = len(head) if n_classes is None else n_classes
    rolled = torch.cat([head[:n].roll(1, 0), head[n:]])
    required = {**NOTHING, "names": FULL, "alpha": FULL}
    return Plant("names", z, z, (rolled, head), required)


def reweighted(z: Tensor, head: Tensor, part: Tensor, alpha: float) -> Plant:
    """Plant strengths: before is z₀ = z − (1 − α) f_R W_R, where `part` f_R W_R, like z, is what
    an autoencoder's latents R write into z; after is z, where each of them is 1 / α as strong."""
    close = (alpha - 0.1, alpha + 0.1)
    required = {"strengths": MOST, "old": MOST, "new": LITTLE, "created": LITTLE, "alpha": close}
    return Plant(f"strengths × {alpha}", z - (1 - alpha) * part, z, (head, head), required)


def created(z: Tensor, head: Tensor, erased: Tensor) -> Plant:
    """Plant a new concept: before are tokens from which it was `erased`, like z; after is z."""
    required = {"new or error": MOST, "created or unexplained": MOST, "auroc": (0.8, 1.0)}
    return Plant("new", erased, z, (head, head), required)


def moved(z: Tensor, head: Tensor, after: Tensor, name: str = "noise") -> Plant:
    """Plant nothing: `after` are tokens, like z, that moved without a change of what they mean, by
    noise or by prompts that could learn nothing, or nothing else."""
    return Plant(name, z, after, (head, head))


def turned(plant: Plant, seed: int = 0) -> Plant:
    """Turn a plant's tokens after by a random orthogonal matrix Q, which the second half turns
    back: z₁ Q, features(z Qᵀ). No function changes, and so no truth; the tolerance of a gain's
    shares is that of a mixture."""
    d = plant.before.shape[-1]
    normal = torch.randn(d, d, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(normal).Q
    name, required = "rotation", plant.required
    if plant.name:
        gained = {part: 1.0 for part in PARTS if required.get(part) == FULL}
        name, required = f"rotation + {plant.name}", near(gained)
    turns = dict(turn=turn, after=plant.after @ turn, may_abstain=True)
    return replace(plant, name=name, required=required, **turns)


def unchanged(z: Tensor, head: Tensor) -> Plant:
    """Plant nothing at all."""
    return Plant("", z, z, (head, head))


def mixed(first: Plant, second: Plant, is_first: Tensor, clip: Any, labels: Tensor) -> Plant:
    """Plant two things in different pictures: the first plant's where `is_first` (n,) bool, else
    the second's. The share of each is that of its pictures in the gain. The heads are those of the
    first; before, they may confuse only classes of its own pictures (`renamed`, `n_classes`)."""
    rows, pairs = is_first[:, None, None], zip((first, second), (is_first, ~is_first), strict=True)
    gains = {p.name.split()[0]: float(p.gain(clip, labels)[of_it].sum()) for p, of_it in pairs}
    total = sum(gains.values()) or 1.0  # without a gain the shares are 0
    required = near({kind: gain / total for kind, gain in gains.items()})
    if "new" in gains:  # which an autoencoder may not know
        low, high = required.pop("new")
        required |= {"new or error": (low, high)}
        del required["error"]
    before = torch.where(rows, first.before, second.before)
    after = torch.where(rows, first.after, second.after)
    return Plant(" + ".join(gains), before, after, first.heads, required)


@dataclass(frozen=True)
class Eraser:
    """x − (x − μ) P, for x (…, d): P (d, d), μ (d,)."""

    projection: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Erase."""
        return x - (x - self.mean) @ self.projection


def leace(x: Tensor, labels: Tensor) -> Eraser:
    """Fit the smallest change of x (n, d) after which no linear function of it tells the labels
    (n,) apart: LEACE, Belrose et al. 2023 (arXiv 2306.03819, theorem 4.3).

        r(x) = x − W⁺ Π W (x − μ),  W = Σ_XX^(−1/2),  Π projects onto the columns of W Σ_XZ

    with Z one-hot: all classes then have the same mean. Double precision inside.
    """
    mean = x.double().mean(0)
    centred, onehot = x.double() - mean, F.one_hot(labels).double()
    covariance = centred.T @ centred / len(x)
    crossed = centred.T @ (onehot - onehot.mean(0)) / len(x)
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(1e-9 * values.max())
    whiten, colour = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    u, sizes, _ = torch.linalg.svd(whiten @ crossed, full_matrices=False)
    u = u[:, sizes > 1e-6 * sizes.max()]
    # of columns: W⁺ u uᵀ W; of rows its transpose
    return Eraser((whiten @ u @ u.T @ colour).to(x), mean.to(x))


def erase(z: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """Erase from tokens z (m, n_tokens, d), apart from CLS and from patches, what tells the
    `labels` (n,) of pictures apart in their `known` tokens (n, n_tokens, d)."""
    places, parts = (slice(0, 1), slice(1, None)), []
    for place in places:
        x = known[:, place]
        eraser = leace(x.flatten(0, 1), labels.repeat_interleave(x.shape[1]))
        parts.append(eraser(z[:, place]))
    return torch.cat(parts, 1)

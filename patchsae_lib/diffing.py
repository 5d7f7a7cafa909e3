"""What did adaptation change? Methods that compare the same pictures in two models.

Every method takes a `Change` and returns an `Answer`: what it says, what it says of a change of
the same size that knows nothing (its null), and why, if it abstains. In the paper is `top_overlap`
alone (section 4.2); `world.planting` has changes whose answer is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, vstack
from scipy.stats import rankdata
from torch import Tensor

from patchsae_lib.intervals import estimate_mean
from patchsae_lib.remapping import levels_by_place, overlap, shapley, with_noise
from patchsae_lib.sae import SAE, explained_variance
from patchsae_lib.sparse import SparseLatents
from patchsae_lib.world.planting import PARTS, Turned

RIDGE = 0.01  # of the diagonal, in `scaling`
SHIFTS = 4  # other pictures with which a latent's factor is compared
BEYOND = 2.0  # a factor is above its null by so many standard deviations
COMPONENTS = 10  # principal components in which classes are looked for


@dataclass(frozen=True)
class Change:
    """The same n pictures in two models, which one autoencoder reads.

    `before` (n, n_tokens, d_vit) and `after` (n, n_tokens + n_prompts, d_vit) are their tokens,
    `labels` (n,), `heads` the text features (c, d_embed) of either. `model.features(z)` makes
    image features (n, d_embed) of tokens after, and `model.unadapted().features(z)` of those
    before: an `AdaptedCLIP`, or the model of a plant.
    """

    sae: SAE
    before: Tensor
    after: Tensor
    labels: Tensor
    heads: tuple[Tensor, Tensor]
    model: Any

    @property
    def kept(self) -> Tensor:
        """Tokens after (n, n_tokens, d_vit), without those of prompts."""
        return self.after[:, : self.before.shape[1]]

    @property
    def prompts(self) -> Tensor:
        """Tokens of prompts (n, n_prompts, d_vit)."""
        return self.after[:, self.before.shape[1] :]

    @property
    def difference(self) -> Tensor:
        """What the change adds to a token (n, n_tokens, d_vit)."""
        return self.kept - self.before

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor]:
        """Numbers of the pictures of either half, to each of which every class gives its half."""
        same = self.labels[:, None] == self.labels
        is_second = same.tril(-1).sum(1) % 2 == 1
        return (~is_second).nonzero()[:, 0], is_second.nonzero()[:, 0]

    @cached_property
    def latents(self) -> tuple[csr_array, csr_array]:
        """Latents f before and f′ after, (n · n_tokens, d_sae) each."""
        return sparse_latents(self.sae, self.before), sparse_latents(self.sae, self.kept)

    @cached_property
    def scaling(self) -> Scaling:
        """The factors of latents on the first half of the pictures."""
        return scaling(self)

    @cached_property
    def noise(self) -> Change:
        """The null: a change that moves each token as far, in a random direction."""
        moved = with_noise(self.before, self.kept, seed=1)
        return replace(self, after=torch.cat([moved, self.prompts], 1))

    @cached_property
    def is_readable(self) -> bool:
        """Whether the autoencoder explains at least half as much variance after as before."""
        fits = [
            explained_variance(z, written(f, self.sae, z) + self.sae.b_dec)
            for z, f in zip((self.before, self.kept), self.latents, strict=True)
        ]
        return bool(fits[1] >= fits[0] / 2)


def sparse_latents(sae: SAE, z: Tensor) -> csr_array:
    """The latents of tokens z (n, n_tokens, d_vit), as a sparse matrix (n · n_tokens, d_sae)."""
    parts = []
    for part in z.split(sae.images_at_once(z.shape[1])):
        f = SparseLatents.encode(sae, part)
        entries = [x.detach().cpu().numpy() for x in (f.value, f.token, f.latent)]
        shape = f.shape[0] * f.shape[1], f.d_sae
        parts.append(csr_array((entries[0], (entries[1], entries[2])), shape=shape))
    return vstack(parts, format="csr")


def written(f: csr_array, sae: SAE, z: Tensor) -> Tensor:
    """What latents f (n · n_tokens, d_sae) write, f W_dec, in the shape of tokens z."""
    return torch.from_numpy(f @ sae.W_dec.detach().cpu().numpy()).view(z.shape)


@dataclass(frozen=True)
class Answer:
    """What a method `says`: shares of `PARTS`, `change` (0..1), `alpha`, `auroc`, as in
    `world.planting.Plant`; nothing if it abstains, and `why`. `null`: what its null says."""

    says: Mapping[str, float] = field(default_factory=dict)
    null: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


UNREADABLE = Answer(why="the autoencoder does not read the tokens after")
UNCHANGED = dict.fromkeys((*PARTS[1:], "change"), 0.0)


# --- the paper's overlap -------------------------------------------------------------------------


def top_overlap(change: Change, k: int = 50) -> Answer:
    """Paper section 4.2: `new` is the share of a class's k strongest latents that are not among
    the k strongest before, mean of CLS and patches, whose overlaps are said, too. Abstains unless
    the overlap is surely larger, over classes, than noise of the same size leaves."""
    shared, null = overlaps(change, k), overlaps(change.noise, k)
    places, of_noise = ({key: float(x.nanmean()) for key, x in t.items()} for t in (shared, null))
    per_class, by_chance = (torch.stack([*x.values()]).mean(0) for x in (shared, null))
    mean = float(per_class.nanmean())
    beyond = estimate_mean((per_class - by_chance).numpy(), over="classes")
    if mean < 1 and not beyond.low > 0:
        return Answer(null=of_noise, why="noise of the same size leaves as much overlap")
    return Answer({"new": 1 - mean, **places}, of_noise)


def overlaps(change: Change, k: int) -> dict[str, Tensor]:
    """The `remapping.overlap` (classes,) of the two models, for CLS and for patches."""
    names, z = [str(c) for c in range(len(change.heads[0]))], (change.before, change.kept)
    first, second = (levels_by_place(change.sae, x, change.labels, names) for x in z)
    places = ("CLS", "patches")
    return {f"overlap, {at}": overlap(first[at][2], second[at][2], k) for at in places}


# --- latent scaling ------------------------------------------------------------------------------


class Scaling(NamedTuple):
    """Factors (d_sae,) of latents: how much of what each writes into tokens after is there
    `before` and `after`; the `spread` of the factor for tokens of other pictures; the `energy`
    that it writes. `explained` (m,): the share of the change that factors explain in each picture
    of the other half."""

    before: Tensor
    after: Tensor
    spread: Tensor
    energy: Tensor
    explained: Tensor

    @property
    def is_new(self) -> Tensor:
        """Which latents (d_sae,) are there after, and before not beyond other pictures' tokens."""
        cut = BEYOND * self.spread
        return (self.after > cut) & (self.before < cut)

    @property
    def weight(self) -> Tensor:
        """The energy (d_sae,) of the change that each latent explains."""
        return (self.after - self.before).square() * self.energy

    @property
    def alpha(self) -> float:
        """The factor before ÷ after of what changed, weighted by the energy of its change; 1 if
        nothing did."""
        total, small = float(self.weight.sum()), self.after.abs() < 1e-6
        ratio = self.before / self.after.masked_fill(small, 1)
        return float((self.weight * ratio).sum()) / total if total > 1e-9 else 1.0


def scaling(change: Change) -> Scaling:
    """Fit one factor for each latent, jointly: latent scaling (Minder et al. 2025, arXiv
    2504.02922, section 3.2) in closed form, with a ridge.

    With f′ the latents of tokens after, d_j the decoder's rows, and x tokens of the same pictures
    (before; after; or of another picture before), all centred over half of the pictures' tokens,

        β = argmin Σ_t ‖x_t − Σ_j β_j f′_tj d_j‖² + ρ Σ_j A_jj β_j² = (A + ρ diag A)⁻¹ b
        A_jk = (Σ_t f′_tj f′_tk) (d_j · d_k),   b_j = d_j · Σ_t f′_tj x_t

    β_before / β_after is 1 for a latent that did not change, α if it was α times as strong, 0 if
    it is new. The change that factors explain is Σ_j (β_after − β_before)_j f′_j d_j.
    """
    (first, second), z0, z1 = change.halves, change.before, change.kept
    f = rows_of(change.latents[1], z1, first).astype("float64")
    is_active = torch.from_numpy(f.sum(0) > 0)
    f, D = f[:, is_active.numpy()], change.sae.W_dec.detach().cpu().double()[is_active]
    mean = torch.from_numpy(f.mean(0))
    A = torch.from_numpy((f.T @ f).toarray()) - f.shape[0] * torch.outer(mean, mean)
    A *= D @ D.T
    energy = A.diagonal().clone()
    A.diagonal().mul_(1 + RIDGE).add_(1e-9 * energy.mean())
    shifts = range(1, 1 + min(SHIFTS, len(first) - 1))
    targets = z0[first], z1[first], *(z0[first.roll(shift)] for shift in shifts)
    b = torch.stack([(centred_sums(f, x) * D).sum(1) for x in targets], 1)
    factors = torch.cholesky_solve(b, torch.linalg.cholesky(A))
    table = b.new_zeros(len(is_active), 1 + len(targets))
    table[is_active] = torch.cat([energy[:, None], factors], 1)
    energy, before, after, *others = table.unbind(1)
    spread = torch.stack(others).square().mean(0).sqrt()
    explained = explained_by(after - before, change, second)
    return Scaling(before, after, spread, energy, explained)


def rows_of(f: csr_array, z: Tensor, pictures: Tensor) -> csr_array:
    """Choose the tokens of some pictures (m,) from f (n · n_tokens, d_sae)."""
    tokens = torch.arange(len(z) * z.shape[1]).view(z.shape[:2])[pictures]
    return f[tokens.flatten().numpy()]


def centred_sums(f: csr_array, x: Tensor) -> Tensor:
    """Σ_t f_tj (x_t − x̄), (d_sae, d_vit), for f (tokens, d_sae) and x (…, d_vit)."""
    flat = x.reshape(-1, x.shape[-1]).double()
    return torch.from_numpy(f.T @ (flat - flat.mean(0)).numpy())


def explained_by(factor: Tensor, change: Change, pictures: Tensor) -> Tensor:
    """The share of the change that Σ_j factor_j f′_j d_j explains in each of the pictures (m,):
    1 − ‖rest‖² / ‖change‖², both centred over all their tokens."""
    f = rows_of(change.latents[1], change.before, pictures)
    difference = change.difference[pictures]
    part = written(f * factor.float().numpy(), change.sae, difference)
    left, whole = (x - x.mean((0, 1)) for x in (difference - part, difference))
    left, whole = (x.square().sum((1, 2)) for x in (left, whole))
    return 1 - left / whole.clamp_min(1e-9)


def scaled(change: Change) -> Answer:
    """Latent `scaling` as an answer. Of the change, and not of the gain, `strengths` is the share
    that factors of latents explain which were there, `new` that of latents which were not, and
    `error` what no factors explain. All are 0 unless factors explain surely more, over pictures,
    than of noise of the same size. `auroc`: how well new latents tell classes apart."""
    if not change.difference.any():
        return Answer({**UNCHANGED, "alpha": 1.0})
    if not change.is_readable:
        return UNREADABLE
    found, noise = change.scaling, change.noise.scaling
    null = {"change": float(noise.explained.mean()), "alpha": noise.alpha}
    beyond = estimate_mean((found.explained - noise.explained).numpy(), over="pictures")
    if not beyond.low > 0:
        return Answer(UNCHANGED, null)
    share = float(found.explained.mean())
    new = share * float(found.weight[found.is_new].sum() / found.weight.sum())
    says = {"strengths": share - new, "new": new, "error": 1 - share, "alpha": found.alpha}
    return Answer(says | new_latents_find(change), null)


def new_latents_find(change: Change) -> dict[str, float]:
    """How well the image-level activations of new latents tell classes apart: `auroc`, if any."""
    f = change.latents[1][:, change.scaling.is_new.numpy()].toarray()
    levels = torch.from_numpy(f).view(*change.before.shape[:2], -1).mean(1)
    return {"auroc": finds_classes(levels, change)} if levels.shape[1] else {}


# --- the causal split ----------------------------------------------------------------------------


def causal_split(change: Change) -> Answer:
    """Shares of the gain, as Shapley values of `PARTS`. A latent is new where `scaling` says so,
    and old in all tokens else. Without a sure gain: points, where they are surely not 0. Its null
    is noise of the same size."""
    if not change.is_readable:
        return UNREADABLE
    says = shares_of(split(change, *by_scaling(change)))
    null = shares_of(split(change.noise, *by_scaling(change.noise)))
    return Answer(says | new_latents_find(change), null)


def token_split(change: Change) -> Answer:
    """The same with a latent new in each token in which it was not active before: that of
    `remapping.decompose`."""
    f0, f1 = change.latents
    old = f1 * (f0 > 0)
    return Answer(shares_of(split(change, (f0, old), (0 * f0, f1 - old))))


def by_scaling(change: Change) -> tuple[Pair, Pair]:
    """Latents before and after that are old, and those that are new, by `scaling`."""
    is_new = change.scaling.is_new.float().numpy()
    f0, f1 = change.latents
    return (f0 * (1 - is_new), f1 * (1 - is_new)), (f0 * is_new, f1 * is_new)


Pair = tuple[csr_array, csr_array]


@torch.no_grad()
def split(change: Change, old: Pair, new: Pair) -> Tensor:
    """What each of `PARTS` adds to a picture's correctness: (5, n) Shapley values.

    `old` and `new` hold latents before and after, (n · n_tokens, d_sae), that add up to all. A
    token is b_dec + (old or old′) W_dec + (new or new′) W_dec + (e or e′), with errors e; read by
    the second half of either model, and classified by either head.
    """
    sae, models = change.sae, (change.model.unadapted(), change.model)
    z = change.before, change.kept
    old_parts, new_parts = ([written(f, sae, z[0]) for f in pair] for pair in (old, new))
    errors = [x - a - b for x, a, b in zip(z, old_parts, new_parts, strict=True)]
    correct = []
    for i, j, k in product((0, 1), repeat=3):
        x = old_parts[i] + new_parts[j] + errors[k]  # b_dec is in e
        states = x, torch.cat([x, change.prompts], 1)
        features = [features_of(*pair) for pair in zip(models, states, strict=True)]
        hits = [[(v @ h.T).argmax(1) == change.labels for v in features] for h in change.heads]
        correct.append(torch.stack([torch.stack(row) for row in hits]))
    cube = torch.stack(correct, 1).view(2, 2, 2, 2, 2, -1)  # heads, old, new, error, models
    return shapley(cube.double())


def features_of(model: Any, z: Tensor) -> Tensor:
    """Image features (n, d_embed) of tokens z, on the CPU, some pictures at a time."""
    return torch.cat([model.features(part).float().cpu() for part in z.split(model.at_once)])


def shares_of(points: Tensor) -> dict[str, float]:
    """Shares of the gain, of what `PARTS` add to pictures (5, n). If the gain is not surely above
    0: the points (0..1) that are surely not 0, and 0 for the others."""
    gain = estimate_mean(points.sum(0).numpy(), over="pictures")
    if gain.low > 0:
        shares = (points.mean(1) / gain.mean).tolist()
    else:
        sure = [estimate_mean(x.numpy(), over="pictures") for x in points]
        shares = [x.mean if x.low > 0 or x.high < 0 else 0.0 for x in sure]
    return dict(zip(PARTS, shares, strict=True))


# --- without an autoencoder ----------------------------------------------------------------------


def components(change: Change) -> Answer:
    """PCA of the differences. `change`: the share of their variance beyond the largest variance
    of noise of the same size in any direction; `auroc`: how well the first ten components tell
    classes apart. What changed it cannot say."""
    difference = change.difference
    if not difference.any():
        return Answer({"change": 0.0})
    values, axes = principal(difference)
    largest = principal(change.noise.difference)[0].max()
    says = {"change": float((values - largest).clamp_min(0).sum() / values.sum())}
    along = difference @ axes[:, -COMPONENTS:].to(difference)
    levels = torch.cat([along.mean(1), along[:, 0]], 1)
    says["auroc"] = finds_classes(torch.cat([levels, -levels], 1), change)
    return Answer(says, {"change": 0.0})


def principal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,), ascending, and principal axes (d, d), of x (…, d)."""
    return torch.linalg.eigh(x.reshape(-1, x.shape[-1]).double().T.cov(correction=0))


def aligned(change: Change) -> Change:
    """Turn tokens after back by the orthogonal Q that takes those before closest to them on the
    first half of the pictures, min ‖z₀ Q − z₁‖ (Procrustes; Schönemann 1966). Any method can be
    asked of the result."""
    rows = change.halves[0]
    before, after = (z[rows].flatten(0, 1).double() for z in (change.before, change.kept))
    u, _, vh = torch.linalg.svd(before.T @ after)
    Q = (u @ vh).to(change.before)
    after = torch.cat([change.kept @ Q.T, change.prompts], 1)
    return replace(change, after=after, model=Turned(change.model, Q.T))


def procrustes(change: Change) -> Answer:
    """`components` of what alignment on the first half (`aligned`) leaves on the second; 0 where
    that is less than a millionth of the tokens' energy."""
    rows, left = change.halves[1], aligned(change)
    part = replace(left, **{k: getattr(left, k)[rows] for k in ("before", "after", "labels")})
    if part.difference.square().sum() < 1e-6 * part.before.square().sum():
        return Answer({"change": 0.0})
    return components(part)


# --- finding classes -----------------------------------------------------------------------------


def finds_classes(levels: Tensor, change: Change) -> float:
    """How well columns of levels (n, m) tell a class from the others: the AUROC (0..1) on the
    second half of the column that is best on the first, mean over the classes in both."""
    n_classes = len(change.heads[0])
    first, second = (auroc(levels[r], change.labels[r], n_classes) for r in change.halves)
    best = first.nan_to_num(-1).argmax(1, keepdim=True)
    return float(second.gather(1, best).nanmean())


def auroc(levels: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """The AUROC (classes, m) of each column of levels (n, m) for each class of labels (n,): the
    Mann-Whitney statistic, ties count half; NaN for a class with no pictures, or with all."""
    ranks = torch.from_numpy(rankdata(levels.numpy(), axis=0)).double()
    is_class = F.one_hot(labels, n_classes).double()
    n_in = is_class.sum(0)[:, None]
    n_out = len(labels) - n_in
    return (is_class.T @ ranks - n_in * (n_in + 1) / 2) / (n_in * n_out)


METHODS = {
    "top-50 overlap": top_overlap, "split by token": token_split, "split by scaling": causal_split,
    "latent scaling": scaled, "PCA of differences": components, "after Procrustes": procrustes,
}  # fmt: skip

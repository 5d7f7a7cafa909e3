"""What did adaptation change? Methods that compare the same pictures in two models.

Every method takes a `Change` and returns an `Answer`: what it says, and why, if it abstains. Its
null is what it says of `Change.noise`. In the paper is `top_overlap` alone (section 4.2);
`world.planting` has changes whose answer is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array, vstack
from scipy.stats import rankdata
from torch import Tensor

from patchsae_lib.intervals import estimate_mean
from patchsae_lib.latents import DEFAULTS
from patchsae_lib.remapping import PLACES, overlap, shapley, with_noise
from patchsae_lib.sae import SAE, explained_variance
from patchsae_lib.sparse import SparseLatents
from patchsae_lib.world.planting import PARTS, Turned

RIDGE = 0.01  # of the diagonal, in `scaling`
BEYOND = 2.0  # standard errors by which a factor must be above 0


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

    def __post_init__(self) -> None:
        """Hold all but the models on the CPU, and tokens in float32."""
        for name in ("before", "after", "labels"):
            x = getattr(self, name).cpu()
            object.__setattr__(self, name, x.float() if x.is_floating_point() else x)
        object.__setattr__(self, "heads", tuple(head.cpu() for head in self.heads))

    @classmethod
    def between(cls, sae: SAE, before: Any, after: Any) -> Change:
        """The change from a `Split` to the `Split` of the same pictures in an adapted model."""
        tokens = before.tokens[:].float(), after.tokens[:].float()
        return cls(sae, *tokens, before.labels, (before.head, after.head), after.clip)

    @cached_property
    def kept(self) -> Tensor:
        """Tokens after (n, n_tokens, d_vit), without those of prompts."""
        n = self.before.shape[1]
        return self.after if self.after.shape[1] == n else self.after[:, :n]

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
        return remembered(self.sae, self.before), remembered(self.sae, self.kept)

    def latents_of(self, pictures: Tensor) -> csr_array:
        """Latents f′ after of some pictures (m,), (m · n_tokens, d_sae)."""
        tokens = torch.arange(self.latents[1].shape[0]).view(len(self.before), -1)
        return self.latents[1][tokens[pictures].flatten().numpy()]

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
    def aligned(self) -> Change:
        """This change with tokens after turned back by the orthogonal Q that takes those before
        closest to them on the first half, min ‖z₀ Q − z₁‖ (Procrustes; Schönemann 1966)."""
        rows, z = self.halves[0], (self.before, self.kept)
        first, second = (x[rows].flatten(0, 1).double() for x in z)
        u, _, vh = torch.linalg.svd(first.T @ second)
        Q = (u @ vh).float()
        after = torch.cat([self.kept @ Q.T, self.prompts], 1)
        return replace(self, after=after, model=Turned(self.model, Q.T))

    @property
    def is_nothing(self) -> bool:
        """Whether tokens change by less than a millionth of their energy."""
        return bool(self.difference.square().sum() < 1e-6 * self.before.square().sum())

    @cached_property
    def is_readable(self) -> bool:
        """Whether the autoencoder explains at least half as much variance after as before."""
        fits, b_dec = [], self.sae.b_dec.cpu()
        for z, f in zip((self.before, self.kept), self.latents, strict=True):
            fits.append(explained_variance(z, written(f, self.sae, z) + b_dec))
        return bool(fits[1] >= fits[0] / 2)


def readable(change: Change) -> Change | None:
    """Return a change that the autoencoder reads: as it is, or `aligned`; None for neither."""
    return change if change.is_readable else change.aligned if change.aligned.is_readable else None


def sparse_latents(sae: SAE, z: Tensor) -> csr_array:
    """The latents of tokens z (n, n_tokens, d_vit), as a sparse matrix (n · n_tokens, d_sae)."""
    parts = []
    for part in z.split(sae.images_at_once(z.shape[1])):
        f = SparseLatents.encode(sae, part)
        entries = [x.detach().cpu().numpy() for x in (f.value, f.token, f.latent)]
        shape = f.shape[0] * f.shape[1], f.d_sae
        parts.append(csr_array((entries[0], (entries[1], entries[2])), shape=shape))
    return vstack(parts, format="csr")


remembered = lru_cache(6)(sparse_latents)  # CLIP's own tokens are in every plant


def written(f: csr_array, sae: SAE, z: Tensor) -> Tensor:
    """What latents f (n · n_tokens, d_sae) write, f W_dec, in the shape of tokens z."""
    return torch.from_numpy(f @ sae.W_dec.detach().cpu().numpy()).view(z.shape)


@dataclass(frozen=True)
class Answer:
    """What a method `says`, of the quantities of `world.planting.Plant`, and `why` not more."""

    says: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


UNREADABLE = Answer(why="the autoencoder does not read the tokens after")


def top_overlap(change: Change, k: int = 50) -> Answer:
    """Paper section 4.2: `new` is the share of a class's k strongest latents that are not among
    the k strongest before, mean of CLS and patches, whose overlaps are said, too. Abstains unless
    the overlap is surely larger, over classes, than noise of the same size leaves."""
    shared, noise = overlaps(change, k), overlaps(change.noise, k)
    per_class, by_noise = (torch.stack([*x.values()]).mean(0) for x in (shared, noise))
    mean = float(per_class.nanmean())
    larger = estimate_mean((per_class - by_noise).numpy(), over="classes")
    if mean < 1 and not larger.low > 0:
        return Answer(why="noise of the same size leaves as much overlap")
    return Answer({"new": 1 - mean} | {place: float(x.nanmean()) for place, x in shared.items()})


def overlaps(change: Change, k: int) -> dict[str, Tensor]:
    """The `remapping.overlap` (classes,) of the two models, for CLS and for patches."""
    first, second = (class_levels(change, f) for f in change.latents)
    return {f"overlap, {at}": overlap(first[at], second[at], k) for at in first}


def class_levels(change: Change, f: csr_array) -> dict[str, Tensor]:
    """Class-level activations (classes, d_sae) of latents f (n · n_tokens, d_sae), for CLS and for
    patches: the number of a class's tokens above τ (eqs. 4-5)."""
    cuts = change.sae.cuts(DEFAULTS.tau).cpu().numpy()
    above = csr_array(((f.data > cuts[f.indices]).astype("float32"), f.indices, f.indptr), f.shape)
    classes = F.one_hot(change.labels, len(change.heads[0])).float()
    tokens, levels = torch.arange(f.shape[0]).view(len(classes), -1), {}
    for at in ("CLS", "patches"):
        rows = tokens[:, PLACES[at]]
        of_tokens = classes.repeat_interleave(rows.shape[1], 0).numpy()
        levels[at] = torch.from_numpy((above[rows.flatten().numpy()].T @ of_tokens).T)
    return levels


class Scaling(NamedTuple):
    """Factors (d_sae,) of latents: how much of what each writes into tokens after is there
    `before` and `after`, with their standard `errors` (2, d_sae); the `energy` that it writes.
    `explained` (m,): the share of the change that factors explain in each picture of the other
    half."""

    before: Tensor
    after: Tensor
    errors: Tensor
    energy: Tensor
    explained: Tensor

    @property
    def is_new(self) -> Tensor:
        """Which latents (d_sae,) are there after, surely, and before not surely: their factor is
        not above what the null, a latent that writes nothing into tokens before, allows."""
        before, after = BEYOND * self.errors
        return (self.after > after) & (self.before < before)

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

    With f′ the latents of tokens after, d_j the decoder's rows, and x the tokens before, or those
    after, all centred over the n tokens of half of the pictures,

        β = argmin Σ_t ‖x_t − Σ_j β_j f′_tj d_j‖² + ρ Σ_j A_jj β_j² = (A + ρ diag A)⁻¹ b
        A_jk = (Σ_t f′_tj f′_tk) (d_j · d_k),   b_j = d_j · Σ_t f′_tj x_t

    and standard errors √(σ² (A + ρ diag A)⁻¹_jj), σ² = Σ_t ‖x_t − Σ_j β_j f′_tj d_j‖² / (n d_vit).

    β_before / β_after is 1 for a latent that did not change, α if it was α times as strong, 0 if
    it is new. The change that factors explain is Σ_j (β_after − β_before)_j f′_j d_j.
    """
    (first, second), z0, z1 = change.halves, change.before, change.kept
    f = change.latents_of(first).astype("float64")
    is_active = torch.from_numpy(f.sum(0) > 0)
    f, D = f[:, is_active.numpy()], change.sae.W_dec.detach().cpu().double()[is_active]
    mean = torch.from_numpy(f.mean(0))
    A = torch.from_numpy((f.T @ f).toarray()) - f.shape[0] * torch.outer(mean, mean)
    A *= D @ D.T
    energy, M = A.diagonal().clone(), A.clone()
    M.diagonal().mul_(1 + RIDGE).add_(1e-9 * energy.mean())
    L = torch.linalg.cholesky(M)
    x = [z[first].reshape(-1, z.shape[-1]).double() for z in (z0, z1)]
    x = [tokens - tokens.mean(0) for tokens in x]
    b = torch.stack([(torch.from_numpy(f.T @ tokens.numpy()) * D).sum(1) for tokens in x])
    beta = torch.cholesky_solve(b.T, L).T
    total = torch.stack([tokens.square().sum() for tokens in x])
    residual = total - 2 * (beta * b).sum(1) + ((beta @ A) * beta).sum(1)
    errors = (residual[:, None] / x[0].numel() * torch.cholesky_inverse(L).diagonal()).sqrt()
    table = b.new_zeros(5, len(is_active))
    table[:, is_active] = torch.cat([beta, errors, energy[None]])
    explained = explained_by(table[1] - table[0], change, second)
    return Scaling(table[0], table[1], table[2:4], table[4], explained)


def explained_by(factor: Tensor, change: Change, pictures: Tensor) -> Tensor:
    """The share of the change that Σ_j factor_j f′_j d_j explains in each of the pictures (m,):
    1 − ‖rest‖² / mean ‖change‖², both centred over all their tokens."""
    f = change.latents_of(pictures)
    difference = change.difference[pictures]
    residual = difference - written(f * factor.float().numpy(), change.sae, difference)
    left, total = ((x - x.mean((0, 1))).square().sum((1, 2)) for x in (residual, difference))
    return 1 - left / total.mean().clamp_min(1e-9)


def scaled(change: Change) -> Answer:
    """Latent `scaling` as an answer. Of the change, and not of the gain, `old` is the share that
    factors of latents explain which were there, `created` that of latents which were not, and
    `unexplained` the rest. The `change` is 0 unless factors explain surely more of it, over
    pictures, than of noise of the same size. `auroc`: how well new latents tell classes apart."""
    read = readable(change)
    if read is None:
        return UNREADABLE
    if read.is_nothing:
        return Answer({"change": 0.0, "alpha": 1.0})
    found = read.scaling
    more = (found.explained - read.noise.scaling.explained).numpy()
    share = float(found.explained.mean())
    if not (estimate_mean(more, over="pictures").low > 0 and share > 0):
        return Answer({"change": 0.0})
    new = share * float(found.weight[found.is_new].sum() / found.weight.sum())
    says = {"change": share, "old": share - new, "created": new, "unexplained": 1 - share}
    levels = read.latents[1][:, found.is_new.numpy()].toarray()
    if levels.shape[1]:
        of_pictures = torch.from_numpy(levels).view(*read.before.shape[:2], -1).mean(1)
        says["auroc"] = finds_classes(of_pictures, read)
    return Answer({**says, "alpha": found.alpha})


def causal_split(change: Change) -> Answer:
    """Shares of a sure gain, as Shapley values of `PARTS`. A latent is new where `scaling` says
    so, and old in all tokens else. Where the autoencoder cannot read the tokens after, it reads
    `aligned` ones, or abstains."""
    read = readable(change)
    return UNREADABLE if read is None else shares_of(split(read, *by_scaling(read)))


def token_split(change: Change) -> Answer:
    """The same with a latent new in each token in which it was not active before, as in
    `remapping.decompose`, and whether or not the autoencoder can read the tokens after."""
    return shares_of(split(change, *by_token(change)))


def by_scaling(change: Change) -> tuple[Tensor, Tensor]:
    """What old latents, by `scaling`, add to tokens (n, n_tokens, d_vit), and what new ones do."""
    is_new, (f0, f1) = change.scaling.is_new.float().numpy(), change.latents
    difference, at = f1 - f0, (change.sae, change.before)
    return written(difference * (1 - is_new), *at), written(difference * is_new, *at)


def by_token(change: Change) -> tuple[Tensor, Tensor]:
    """The same, where latents are new in a token in which they were not active."""
    (f0, f1), at = change.latents, (change.sae, change.before)
    old = f1 * (f0 > 0)
    return written(old - f0, *at), written(f1 - old, *at)


@torch.no_grad()
def split(change: Change, strengths: Tensor, new: Tensor) -> Tensor:
    """What each of `PARTS` adds to a picture's correctness: (5, n) Shapley values.

    A token is z₀, with or without each of what `strengths` and `new` latents add to it, both
    (n, n_tokens, d_vit), and of the rest of the change, the error; it is read by the second half
    of either model, and classified by either head.
    """
    models, correct = (change.model.unadapted(), change.model), []
    parts = strengths, new, change.difference - strengths - new
    for joined in product((0, 1), repeat=3):
        z = sum((part for part, is_in in zip(parts, joined, strict=True) if is_in), change.before)
        features = [features_of(models[0], z)]
        if models[1] is not models[0]:
            features.append(features_of(models[1], torch.cat([z, change.prompts], 1)))
        hits = [[(v @ h.T).argmax(1) == change.labels for v in features] for h in change.heads]
        correct.append(torch.stack([torch.stack([row[0], row[-1]]) for row in hits]))
    cube = torch.stack(correct, 1).view(2, 2, 2, 2, 2, -1)  # heads, three parts, models
    return shapley(cube.double())


def features_of(model: Any, z: Tensor) -> Tensor:
    """Image features (n, d_embed) of tokens z, on the CPU, some pictures at a time."""
    return torch.cat([model.features(part).float().cpu() for part in z.split(model.at_once)])


def shares_of(points: Tensor) -> Answer:
    """Shares of the gain, of what `PARTS` add to pictures (5, n). If the gain is not surely above
    0 there are none: only the largest of the `points` (0..1) that a part surely adds or takes."""
    gain = estimate_mean(points.sum(0).numpy(), over="pictures")
    if gain.low > 0:
        return Answer(dict(zip(PARTS, (points.mean(1) / gain.mean).tolist(), strict=True)))
    sure = [estimate_mean(x.numpy(), over="pictures") for x in points]
    largest = max(abs(x.mean) if x.low > 0 or x.high < 0 else 0.0 for x in sure)
    return Answer({"points": largest}, "no sure gain")


def components(change: Change) -> Answer:
    """PCA of the differences: `change` is how much lies `beyond` noise. What changed it cannot
    say."""
    found = beyond(change.difference, change.noise.difference)
    return Answer({"change": 0.0 if change.is_nothing else found})


def procrustes(change: Change) -> Answer:
    """The same of what `Change.aligned` leaves on the second half of the pictures, and of what it
    leaves of noise: Q is fitted to both on the first half."""
    rows = change.halves[1]
    left, noise = (x.aligned.difference[rows] for x in (change, change.noise))
    return Answer({"change": 0.0 if change.aligned.is_nothing else beyond(left, noise)})


def beyond(difference: Tensor, noise: Tensor) -> float:
    """The share (0..1) of the variance of differences (…, d) that is beyond the largest share that
    a principal component has in noise (…, d)."""
    rows = (x.reshape(-1, x.shape[-1]).double() for x in (difference, noise))
    values, null = (torch.linalg.eigvalsh(x.T.cov(correction=0)) for x in rows)
    return float((values / values.sum() - null.max() / null.sum()).clamp_min(0).sum())


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

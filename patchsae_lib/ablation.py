"""What classification rests on: accuracy with only some latents, and without them (section 4.1).

A ranking orders the latents of every class. "On" k keeps the first k of a picture's class, "off" k
removes them; the decoder's output then replaces every token, and the rest of CLIP classifies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.clip import SplitCLIP, accelerated
from patchsae_lib.evaluation import BATCH, bootstrap_mean
from patchsae_lib.latents import LatentTable
from patchsae_lib.sae import SAE

KS = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)  # the paper's; "all" comes by itself

# --- rankings (classes or 1, d_sae) int64: the latents of a class from first to last; one row does
# --- for all classes


def by_score(scores: Tensor) -> Tensor:
    """Latents by decreasing score (classes, d_sae), of equals the lower number first."""
    return scores.argsort(dim=1, descending=True, stable=True)


def class_level(table: LatentTable) -> Tensor:
    """By class-level activation: in how many tokens of the class a latent is active (eq. 5).

    A class without pictures in the table has the dataset's order.
    """
    counted = table.class_images[:, None] > 0
    return by_score(table.class_above.where(counted, table.n_above.int()))


def dataset_level(table: LatentTable) -> Tensor:
    """By dataset-level activation, the same for all classes: what knows nothing of the class."""
    return by_score(table.n_above[None])


def class_specific(table: LatentTable) -> Tensor:
    """By class-level minus dataset-level activation, each as a share of pictures: what the class
    has and others have not."""
    everywhere = table.n_above / max(1, table.images)
    counted = table.class_images[:, None] > 0
    return by_score((table.class_per_image - everywhere).where(counted, everywhere))


def at_random(d_sae: int, seed: int = 0) -> Tensor:
    """One random order of latents, the same for all classes."""
    return torch.randperm(d_sae, generator=torch.Generator().manual_seed(seed))[None]


def matched(ranking: Tensor, frequency: Tensor, seed: int = 0, width: int = 16) -> Tensor:
    """A ranking with every latent replaced by a random one that is active about as often.

    Latents are sorted by their activated frequency (d_sae,) and trade places with others among
    `width` neighbours or a few more: no one stays, and each row is still an order of all latents.
    """
    generator = torch.Generator().manual_seed(seed)
    substitute = torch.empty_like(ranking[0])
    for group in frequency.argsort(stable=True).tensor_split(max(1, len(frequency) // width)):
        some = group[torch.randperm(len(group), generator=generator)]
        substitute[some] = some.roll(1)
    return substitute[ranking]


def wrong_class(ranking: Tensor) -> Tensor:
    """Each class gets the order of the one half the list away: related classes are neighbours."""
    return ranking.roll(len(ranking) // 2, 0)


# --- the experiment -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Masked:
    """What CLIP sees in pictures when latents are masked.

    `predictions[ranking]` (2, len(ks), n) int64 are predicted classes: on, off. `original`,
    `all_on` and `all_off` (n,) are those of untouched tokens, of the reconstruction from all
    latents, and from none; `labels` (n,) is the truth.
    """

    ks: tuple[int, ...]
    labels: Tensor
    original: Tensor
    all_on: Tensor
    all_off: Tensor
    predictions: Mapping[str, Tensor]

    def accuracy(self) -> pd.DataFrame:
        """One row a ranking, k and mask (`on`, `off`): accuracy with its 95 % interval over
        pictures, 0..1."""
        rows = [
            (name, k, mask, *bootstrap_mean((predicted[m, i] == self.labels).double()))
            for name, predicted in self.predictions.items()
            for m, mask in enumerate(("on", "off"))
            for i, k in enumerate(self.ks)
        ]
        return pd.DataFrame(rows, columns=["ranking", "k", "mask", "accuracy", "low", "high"])

    def shares(self, ranking: str, n_classes: int) -> Tensor:
        """(n_classes, 2, len(ks), n_classes) what the pictures of a class are taken for: the share
        that is given each class, on and off; 0 for a class without pictures."""
        given = F.one_hot(self.predictions[ranking], n_classes).double()  # (2, ks, n, classes)
        of = F.one_hot(self.labels, n_classes).double()
        return torch.einsum("mkpg,pc->cmkg", given, of / of.sum(0).clamp_min(1))

    def reference(self) -> dict[str, float]:
        """Accuracy with untouched tokens, with all latents, and with none, 0..1."""
        names = ("original", "all_on", "all_off")
        return {n: float((getattr(self, n) == self.labels).double().mean()) for n in names}


@accelerated
@torch.no_grad()
def mask_latents(
    clip: SplitCLIP,
    sae: SAE,
    tokens: Tensor,
    labels: Tensor,
    text: Tensor,
    rankings: Mapping[str, Tensor],
    ks: Sequence[int] = KS,
    *,
    classes: Tensor | None = None,
    error: bool = False,
    prompts: bool = False,
    batch: int = BATCH,
    progress: bool = True,
) -> Masked:
    """Classify pictures from their latents, for every ranking and every k, on and off.

    Tokens (n, 1 + n_patches + n_prompts, d_vit) of pictures with `labels` (n,); `text`
    (c, d_embed) is the head. A picture gets the mask of its true class (an oracle, as in the
    paper) or of `classes` (n,). `error` adds what the autoencoder does not reconstruct to every
    masked token. The tokens of an adapted model's prompts are left alone.

    A picture is encoded once and only its active latents are kept; only the blocks after the hook
    run for each mask. Memory grows with `batch`, not with pictures or masks.

    Deviation: nothing is subtracted from reconstructions, where the authors take off a constant
    (−0.105…) that the layer norm undoes; pictures are others than those that were counted; and
    they mask prompt tokens, too, which `prompts` does likewise.

    Raises `ValueError` for rankings that are no orders of this SAE's latents for these classes, a
    k that is not 0 to d_sae, and labels that are no classes.
    """
    ks = _check(sae, labels, text, rankings, ks)
    classes = labels if classes is None else classes
    if int(classes.min()) < 0 or int(classes.max()) >= len(text):
        raise ValueError(f"classes of masks must be 0 to {len(text) - 1}")
    text = text.to(sae.W_dec.device)
    ranks = {name: order.argsort(dim=1).int() for name, order in rankings.items()}
    seen: dict[str, list[Tensor]] = {name: [] for name in ("original", "all on", "all off")}
    masked: dict[str, list[Tensor]] = {name: [] for name in rankings}
    starts = range(0, len(tokens), batch)
    for start in tqdm(starts, "masks", disable=None if progress else True):
        z = tokens[start : start + batch].to(sae.W_dec.device, torch.float32)
        n = z.shape[1] if prompts else clip.n_tokens
        active = Active.of(sae, z, n)
        whole = active.decode(sae)
        base = z - whole  # what is there without latents
        if not error:
            base[:, :n] = sae.b_dec
        for name, x in (("original", z), ("all on", base + whole), ("all off", base)):
            seen[name].append(clip.classify(x, text).argmax(1).cpu())
        mine = classes[start : start + batch]
        for name, rank in ranks.items():
            of_image = rank[mine] if len(rank) > 1 else rank.expand(len(mine), -1)
            logits = masked_logits(clip, sae, active, base, whole, text, of_image, ks)
            masked[name].append(torch.stack([x.argmax(-1).cpu() for x in logits], 1))
    original, all_on, all_off = (torch.cat(parts) for parts in seen.values())
    predictions = {name: torch.cat(parts, 2) for name, parts in masked.items()}
    return Masked(ks, labels, original, all_on, all_off, predictions)


def masked_logits(
    clip: SplitCLIP,
    sae: SAE,
    active: Active,
    base: Tensor,
    whole: Tensor,
    text: Tensor,
    rank: Tensor,
    ks: Sequence[int],
) -> Iterator[Tensor]:
    """Logits (2, b, c), on and off, for one k after another (increasing).

    `active` are the latents of b images, `whole` (b, tokens, d_vit) what they all decode to and
    `base` what is added to those that a mask leaves; `rank` (b, d_sae) is the place of each latent
    in an image's order, from 0.

    What k₁ to k₂ add is decoded once: on(k₂) = on(k₁) + that, off(k) = all − on(k).
    """
    image = active.row // base.shape[1]
    of = rank.to(active.latent.device)[image, active.latent]
    step = torch.bucketize(of, torch.tensor(ks, device=of.device), right=True)
    order = step.argsort(stable=True)  # within a step rows stay in order
    counts = step.bincount(minlength=len(ks) + 1)[: len(ks)].tolist()
    on = torch.zeros_like(base)
    for part in order[: sum(counts)].split(counts):
        on = on + active.take(part).decode(sae)
        both = torch.cat([base + on, base + whole - on])
        yield clip.classify(both, text).unflatten(0, (2, -1))


def latent_effects(
    clip: SplitCLIP, sae: SAE, z: Tensor, labels: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """What each latent, and each token, adds to the logit of the true class: (b, d_sae), (b, t).

    In logits above the mean over classes, to first order: activation times the derivative at the
    reconstruction of z (b, t, d_vit). Removing a latent takes away about as much; the tests and
    notebook 4 say how well that holds. Of a token it is the sum over its latents.
    """
    b, t, _ = z.shape
    n = clip.n_tokens
    active = Active.of(sae, z, n)
    with torch.enable_grad():
        z_hat = torch.cat([active.decode(sae)[:, :n] + sae.b_dec, z[:, n:]], 1).requires_grad_()
        logits = clip.classify(z_hat, text)
        above = logits[torch.arange(b), labels] - logits.mean(1)
        (gradient,) = torch.autograd.grad(above.sum(), z_hat)
    towards = gradient.flatten(0, 1)
    parts = zip(*(x.split(65_536) for x in (active.row, active.latent)), strict=True)
    each = [(sae.W_dec[latent] * towards[row]).sum(1) for row, latent in parts]
    effect = active.value * torch.cat(each)
    of_latents = torch.zeros(b * sae.d_sae, device=z.device)
    of_latents.index_add_(0, active.row // t * sae.d_sae + active.latent, effect)
    of_tokens = torch.zeros(b * t, device=z.device).index_add_(0, active.row, effect)
    return of_latents.view(b, -1), of_tokens.view(b, -1)


@dataclass(frozen=True)
class Active:
    """The latents that are active in tokens of a `shape` (images, tokens, d_vit), and no others.

    `value`, `latent` and `row` (entries,): a latent's activation and which token it is in, of all
    images × tokens; rows are in order. Tokens without any, as those of prompts, decode to 0.
    """

    shape: torch.Size
    row: Tensor
    latent: Tensor
    value: Tensor

    @classmethod
    def of(cls, sae: SAE, z: Tensor, n: int | None = None) -> Active:
        """Those of tokens z (images, tokens, d_vit), in the first `n` of each image."""
        return cls.sparse(sae.encode(z[:, :n]), z.shape)

    @classmethod
    def sparse(cls, f: Tensor, shape: torch.Size) -> Active:
        """Those of latents f (images, tokens or fewer, d_sae)."""
        image, token, latent = f.nonzero(as_tuple=True)
        return cls(shape, image * shape[1] + token, latent, f[image, token, latent])

    def take(self, entries: Tensor) -> Active:
        """Some of the entries; their rows have to be in order."""
        parts = (x[entries] for x in (self.row, self.latent, self.value))
        return Active(self.shape, *parts)

    def decode(self, sae: SAE) -> Tensor:
        """What they add up to (`shape`), without b_dec."""
        tokens = torch.arange(self.shape[0] * self.shape[1], device=self.row.device)
        starts = torch.searchsorted(self.row, tokens)
        bags = F.embedding_bag(
            self.latent, sae.W_dec, starts, mode="sum", per_sample_weights=self.value
        )
        return bags.view(self.shape)


def _check(
    sae: SAE, labels: Tensor, text: Tensor, rankings: Mapping[str, Tensor], ks: Sequence[int]
) -> tuple[int, ...]:
    """The ks in order, each once; `ValueError` for what the experiment cannot be made with."""
    if not ks or min(ks) < 0 or max(ks) > sae.d_sae:
        raise ValueError(f"k must be 0 to d_sae = {sae.d_sae}, got {list(ks)}")
    n_classes = len(text)
    every = torch.arange(sae.d_sae)
    for name, order in rankings.items():
        if order.shape[1] != sae.d_sae or len(order) not in (1, n_classes):
            raise ValueError(
                f"ranking {name!r} {tuple(order.shape)} is of another SAE or of other classes: "
                f"({n_classes} or 1, {sae.d_sae}) expected"
            )
        if not (order.sort(dim=1).values == every).all():
            raise ValueError(f"ranking {name!r}: each row must hold 0 to {sae.d_sae - 1} once")
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise ValueError(f"labels must be 0 to {n_classes - 1}, of one picture or more")
    return tuple(sorted(set(ks)))

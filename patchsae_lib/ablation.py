"""Which latents classification depends on: accuracy with a few latents, and without (section 4.1).

A ranking orders the latents of each class. "On" k keeps the first k of a picture's class, "off" k
removes them; the decoder's output then replaces every token, and the rest of CLIP classifies it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.intervals import estimate_mean
from patchsae_lib.latents import DEFAULTS, LatentTable
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents, sum_rows
from patchsae_lib.tokens import Tokens

NEIGHBOURS = 16  # latents of similar frequency among which `matched` exchanges


def keep(f: Tensor, latents: Tensor | Sequence[int]) -> Tensor:
    """Set all latents of f (…, d_sae) but `latents` (n,) to 0: "on"."""
    return f - drop(f, latents)


def drop(f: Tensor, latents: Tensor | Sequence[int]) -> Tensor:
    """Set `latents` (n,) of f (…, d_sae) to 0: "off"."""
    index = torch.as_tensor(latents, dtype=torch.long, device=f.device)
    if ((index < 0) | (index >= f.shape[-1])).any():
        raise ValueError(f"latents must be 0 to {f.shape[-1] - 1}, got {index.tolist()}")
    return f.index_fill(-1, index, 0.0)


def by_score(scores: Tensor) -> Tensor:
    """Order latents by decreasing score (classes, d_sae), ties by number."""
    return scores.argsort(dim=1, descending=True, stable=True)


def class_level(table: LatentTable) -> Tensor:
    """Order by class-level activation (eq. 5); by dataset-level where a class has no pictures."""
    has_images = table.class_images[:, None] > 0
    return by_score(table.class_above.where(has_images, table.n_above.int()))


def class_specific(table: LatentTable) -> Tensor:
    """Order by class-level minus dataset-level activation, both per picture."""
    dataset = table.n_above / max(1, table.images)
    has_images = table.class_images[:, None] > 0
    return by_score((table.class_per_image - dataset).where(has_images, dataset))


def at_random(d_sae: int, seed: int = 0) -> Tensor:
    """Draw one random order, the same for all classes: a null."""
    return torch.randperm(d_sae, generator=torch.Generator().manual_seed(seed))[None]


def matched(ranking: Tensor, frequency: Tensor, seed: int = 0) -> Tensor:
    """Replace each latent of a ranking by a random one of its `NEIGHBOURS` in the order of
    activated frequency (d_sae,), never by itself."""
    generator = torch.Generator().manual_seed(seed)
    substitute = torch.empty_like(ranking[0])
    n_groups = max(1, len(frequency) // NEIGHBOURS)
    for group in frequency.argsort(stable=True).tensor_split(n_groups):
        shuffled = group[torch.randperm(len(group), generator=generator)]
        substitute[shuffled] = shuffled.roll(1)
    return substitute[ranking]


def rankings(table: LatentTable) -> dict[str, Tensor]:
    """Return every ranking that a table of counts allows, the class-level one first.

    The last four are nulls. "Wrong class" gives class c the ranking of class c + C/2, since
    related classes are neighbours; the dataset-level and the random one serve all classes.
    """
    by_class = class_level(table)
    return {
        "class-level": by_class,
        "class-specific": class_specific(table),
        "dataset-level": by_score(table.n_above[None]),
        "matched in frequency": matched(by_class, table.frequency),
        "wrong class": by_class.roll(len(by_class) // 2, 0),
        "random": at_random(len(table.total)),
    }


@dataclass(frozen=True)
class Masked:
    """Predicted classes of n pictures under masks of their latents.

    `predictions[ranking]` (2, len(ks), n) int64: on and off. `original`, `all_on` and `all_off`
    (n,): from untouched tokens, from the full reconstruction, and from no latent. `labels` (n,).
    """

    ks: tuple[int, ...]
    labels: Tensor
    original: Tensor
    all_on: Tensor
    all_off: Tensor
    predictions: Mapping[str, Tensor]

    def accuracy(self) -> pd.DataFrame:
        """Tabulate accuracy (0..1) and its interval, a row per ranking, k and mask (on, off)."""
        rows = [
            (name, k, mask, *estimate_mean(predicted[m, i] == self.labels, over="pictures"))
            for name, predicted in self.predictions.items()
            for m, mask in enumerate(("on", "off"))
            for i, k in enumerate(self.ks)
        ]
        return pd.DataFrame(rows, columns=["ranking", "k", "mask", "accuracy", "low", "high"])

    def shares(self, ranking: str, n_classes: int) -> Tensor:
        """Shares of a class's pictures (first axis) predicted as each class (last), on and off:
        (n_classes, 2, len(ks), n_classes), 0 for a class without pictures."""
        predicted = F.one_hot(self.predictions[ranking], n_classes).double()  # (2, ks, n, classes)
        actual = F.one_hot(self.labels, n_classes).double()  # (n, classes)
        weights = actual / actual.sum(0).clamp_min(1)
        return torch.einsum("mkpg,pc->cmkg", predicted, weights)

    def reference(self) -> dict[str, float]:
        """Accuracy (0..1) of `original`, `all_on` and `all_off`."""
        names = ("original", "all_on", "all_off")
        return {n: float((getattr(self, n) == self.labels).double().mean()) for n in names}


@torch.no_grad()
def mask_latents(
    clip: SplitCLIP, sae: SAE, tokens: Tensor | Tokens, labels: Tensor, head: Tensor,
    rankings: Mapping[str, Tensor], ks: Sequence[int] = DEFAULTS.ks, *,
    classes: Tensor | None = None, error: bool = False, prompts: bool = False
) -> Masked:  # fmt: skip
    """Classify pictures from masked latents, on and off, for each ranking and each k.

    `tokens` (n, 1 + n_patches + n_prompts, d_vit) are those of pictures with `labels` (n,), and
    `head` (c, d_embed) the text features. A picture gets the mask of its true class, an oracle as
    in the paper, or of `classes` (n,). `error` adds what the autoencoder does not reconstruct.
    Pictures are encoded once; only the blocks after the hook run for each mask.

    Deviation: nothing is subtracted from reconstructions, where the authors subtract a constant
    (−0.105…) that the layer norm undoes; the pictures are not those that were counted; and the
    prompt tokens of an adapted model are masked only with `prompts`, which the authors always do.

    Raises `ValueError` for rankings, ks and labels that do not fit the SAE, head and tokens.
    """
    classes = labels if classes is None else classes
    _check_labels("labels", labels, len(tokens), len(head))
    _check_labels("classes", classes, len(tokens), len(head))
    _check_rankings(rankings, ks, len(head), sae.d_sae)
    ks = tuple(sorted(set(ks)))
    ranks = [order.argsort(dim=1).int().expand(len(head), -1) for order in rankings.values()]
    at_once = min(clip.at_once, sae.images_at_once(tokens.shape[1], least=8))
    parts = zip(tokens.split(at_once), classes.cpu().split(at_once), strict=True)
    head, batches = head.to(clip.device), []
    for z, rows in tqdm(parts, "masks", -(-len(tokens) // at_once), disable=None):
        z = z.to(sae.W_dec.device, torch.float32)
        split = Decomposition.of(sae, z, None if prompts else clip.n_tokens, error)
        states = z, split.base + split.decoded, split.base
        predicted = [clip.classify(state, head).argmax(1) for state in states]
        for rank in ranks:
            logits = masked_logits(clip, split, head, rank[rows.to(rank.device)], ks)
            predicted.append(torch.stack([x.argmax(-1) for x in logits], 1))
        batches.append(predicted)
    original, on, off, *masked = (torch.cat(x, -1).cpu() for x in zip(*batches, strict=True))
    predictions = dict(zip(rankings, masked, strict=True))
    return Masked(ks, labels.cpu(), original, on, off, predictions)


def _check_labels(name: str, labels: Tensor, n_images: int, n_classes: int) -> None:
    n = len(labels)
    if n != n_images or not n or int(labels.min()) < 0 or int(labels.max()) >= n_classes:
        raise ValueError(f"{name} must be 0 to {n_classes - 1}, one for each of {n_images} images")


def _check_rankings(
    rankings: Mapping[str, Tensor], ks: Sequence[int], n_classes: int, d_sae: int
) -> None:
    if not ks or min(ks) < 0 or max(ks) > d_sae:
        raise ValueError(f"k must be 0 to d_sae = {d_sae}, got {list(ks)}")
    for name, order in rankings.items():
        if order.shape not in ((1, d_sae), (n_classes, d_sae)):
            raise ValueError(
                f"ranking {name!r} {tuple(order.shape)} is of another SAE or of other classes: "
                f"({n_classes} or 1, {d_sae}) expected"
            )
        if not (order.sort(dim=1).values == torch.arange(d_sae, device=order.device)).all():
            raise ValueError(f"ranking {name!r}: each row must hold 0 to {d_sae - 1} once")


@dataclass(frozen=True)
class Decomposition:
    """Residual tokens z (b, tokens, d_vit) as `base` + Σ f W_dec over their active `latents`.

    `decoded` is that sum. `base` is left when all latents are masked: b_dec, plus what the
    autoencoder does not reconstruct if `error`. After the first `n_tokens` it is the token itself.
    """

    latents: SparseLatents
    W_dec: Tensor
    base: Tensor
    decoded: Tensor

    @classmethod
    def of(cls, sae: SAE, z: Tensor, n_tokens: int | None = None, error: bool = False) -> Self:
        """Decompose residual tokens z (b, tokens, d_vit) where the autoencoder is."""
        z = z.to(sae.W_dec.device, torch.float32)
        latents = SparseLatents.encode(sae, z, n_tokens)
        decoded = latents.decode(sae.W_dec)
        base = z - decoded
        if not error:
            base[:, :n_tokens] = sae.b_dec
        return cls(latents, sae.W_dec, base, decoded)


def masked_logits(
    clip: SplitCLIP, split: Decomposition, head: Tensor, rank: Tensor, ks: Sequence[int]
) -> Iterator[Tensor]:
    """Yield logits (2, b, c), on and off, for each k of `ks` (increasing).

    `rank` (b, d_sae) is the place of each latent, from 0, in the order of each image. The latents
    between two k's are decoded once: on(k₂) = on(k₁) + their sum, and off(k) = all − on(k).
    """
    latents, device, n = split.latents, split.base.device, split.base[..., 0].numel()
    place = rank.to(device)[latents.image, latents.latent]
    step = torch.bucketize(place, torch.tensor(ks, device=device), right=True)
    order = step.argsort(stable=True)  # within a step, tokens stay in ascending order
    entries, bag = latents.select(order), (step * n + latents.token)[order]
    # those of no step come last, in bags that nothing reads: a GPU need not count them first
    bags = sum_rows(entries.latent, bag, entries.value, split.W_dec, (len(ks) + 1) * n)
    on = torch.zeros_like(split.base)
    for between in bags.view(-1, *split.base.shape)[: len(ks)]:
        on = on + between
        masked = torch.cat([split.base + on, split.base + split.decoded - on])
        yield clip.classify(masked, head).unflatten(0, (2, -1))


def latent_effects(
    clip: SplitCLIP, sae: SAE, z: Tensor, labels: Tensor, head: Tensor
) -> tuple[Tensor, Tensor]:
    """Estimate what each latent and each token adds to the true class's logit: (b, d_sae), (b, t).

    In logits above the mean over classes, to first order: activation times the derivative at the
    reconstruction of z (b, t, d_vit). The effect of a token is the sum over its latents.
    """
    split = Decomposition.of(sae, z, clip.n_tokens)
    gradient, latents = _gradient(clip, split.base + split.decoded, labels, head), split.latents
    entries = zip(latents.token.split(65_536), latents.latent.split(65_536), strict=True)
    slopes = [(sae.W_dec[latent] * gradient[token]).sum(1) for token, latent in entries]
    effect = latents.value * torch.cat(slopes)
    of_tokens = effect.new_zeros(len(gradient)).index_add_(0, latents.token, effect)
    return latents.per_image(effect).cpu(), of_tokens.view(len(z), -1).cpu()


@torch.enable_grad()
def _gradient(clip: SplitCLIP, z: Tensor, labels: Tensor, head: Tensor) -> Tensor:
    """Derivative (b · tokens, d_vit) of each image's true logit, above the mean, in its tokens."""
    z = z.detach().requires_grad_()
    margin = _above_mean(clip.classify(z, head), labels)
    return torch.autograd.grad(margin.sum(), z)[0].flatten(0, 1)


def _above_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what logits (b, c) are at the labels (b,), above their mean over classes: (b,)."""
    return logits.gather(1, labels.to(logits.device)[:, None])[:, 0] - logits.mean(1)


@torch.no_grad()
def removal_effects(
    clip: SplitCLIP, sae: SAE, z: Tensor, labels: Tensor, head: Tensor, latents: Tensor
) -> Tensor:
    """Measure what removing one of `latents` (b,) takes from each true class's logit (b,), above
    the mean over classes, as `latent_effects` estimates it."""
    split = Decomposition.of(sae, z, clip.n_tokens)
    removed_first = torch.ones(len(z), sae.d_sae, dtype=torch.int)
    removed_first.scatter_(1, latents.cpu()[:, None], 0)
    (_, all_on), (_, without) = masked_logits(clip, split, head, removed_first, (0, 1))
    return _above_mean((all_on - without).cpu(), labels)

"""Pictures as a CLIP sees them: the splits of a data set, and a task before and after adaptation.

A `Split` has pictures, labels, class names, the zero-shot head and the residual tokens; a `Task`
has a split of base and one of novel classes, in CLIP and, `adapted`, in an adapted model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae_lib import artefacts
from patchsae_lib.artefacts import config_hash, weights_hash
from patchsae_lib.clip import SplitCLIP, Template
from patchsae_lib.evaluation import HeldOut
from patchsae_lib.pictures import Pictures, ReadOnce, Subset, spoken
from patchsae_lib.pictures.naming import in_the_world, name_of, require_readable, title_of
from patchsae_lib.pictures.shots import base_classes, few_shot
from patchsae_lib.pictures.sources import captions_of, labels_of, template_of
from patchsae_lib.tokens import Tokens, collect, collect_shards
from patchsae_lib.tuning import Adapted
from patchsae_lib.world.truth import CONCEPTS, PatchTruth, sparse_truth

COUNTED = 64  # pictures of a task, at most, that latents are counted on before and after


@dataclass(eq=False)
class Split:
    """Pictures as one CLIP sees them; row i of `tokens` and `labels` is picture i.

    `labels` (n,) are indices into `class_names` (−1: none), and `templates` the prompts of their
    zero-shot head. `keep`: where tokens are kept, and all that decides them (None: in memory).
    """

    clip: SplitCLIP
    pictures: Pictures
    labels: Tensor
    class_names: tuple[str, ...]
    templates: Sequence[Template]
    keep: tuple[Path, Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def tokens(self) -> Tokens:
        """Residual tokens (n, n_tokens, d_vit), collected once; `ValueError` if a picture cannot
        be read."""
        if self.keep is None:
            return collect(self.clip, self.pictures)
        with artefacts.exclusive(self.keep[0]):
            tokens = collect_shards(self.clip, self.pictures, *self.keep)
        advice = f"Mend them, delete {self.keep[0]}, and start again"
        require_readable(tokens.skipped, len(self), advice, allowed=0)
        return tokens

    @cached_property
    def head(self) -> Tensor:
        """The zero-shot head (c, d_embed): text features of the class names."""
        return self.clip.text_features(spoken(self.class_names), self.templates)

    @cached_property
    def held_out(self) -> HeldOut:
        """The pictures as `evaluate_sae` needs them, with one caption each."""
        captions = self.clip.text_features(captions_of(self.pictures), ("{}",))
        return HeldOut(self.clip, self.tokens, self.labels, self.head, captions)

    @property
    def label_names(self) -> list[str]:
        """The class name of each picture; "" where it has none."""
        return [self.class_names[i] if i >= 0 else "" for i in self.labels.tolist()]

    @property
    def is_world(self) -> bool:
        """Whether the pictures are of the embedded world, so that `truth` is known."""
        return in_the_world(self.pictures)[0] is not None

    @cached_property
    def shown(self) -> PatchTruth:
        """What each patch shows, sparse, of `world.truth.CONCEPTS`; rendered once where tokens are
        kept. `ValueError` for pictures that are not of the embedded world."""
        world, rows = in_the_world(self.pictures)
        if world is None:
            raise ValueError("only pictures of the embedded world have a truth for each patch")
        if self.keep is None:
            return sparse_truth(world, rows, grid=self.clip.grid)
        folder, made_by = self.keep
        path = folder / "truth.safetensors"
        identity = {"pictures": made_by["pictures"], "grid": self.clip.grid, "concepts": CONCEPTS}
        tensors = artefacts.made_once(
            path, identity, lambda: vars(sparse_truth(world, rows, grid=self.clip.grid))
        )
        return PatchTruth(**tensors)

    @property
    def truth(self) -> Tensor:
        """`shown`, dense: (n, n_patches, n_concepts) bool."""
        return self.shown.dense()

    def readable(self) -> Split:
        """Collect the tokens, and choose the pictures that can be read."""
        assert self.keep is not None
        with artefacts.exclusive(self.keep[0]):
            tokens = collect_shards(self.clip, self.pictures, *self.keep)
        if not tokens.skipped:
            return self
        part = self.select(tokens.indices)
        part.keep, part.tokens = self.keep, replace(tokens, indices=torch.arange(len(tokens)))
        return part

    def select(self, rows: Tensor | Sequence[int]) -> Split:
        """Choose pictures, in the order given, with the tokens and the head that exist already."""
        rows = torch.as_tensor(rows)
        pictures = Subset(self.pictures, rows.tolist())
        part = replace(self, pictures=pictures, labels=self.labels[rows], keep=None)
        if "tokens" in self.__dict__:
            part.tokens = replace(self.tokens.select(rows), indices=torch.arange(len(rows)))
        if "head" in self.__dict__:
            part.head = self.head
        return part

    def of_classes(self, start: int, stop: int, most: int | None = None) -> Split:
        """Choose the first `most` pictures (None: all) of the classes `start` to `stop` − 1, which
        are then numbered from 0."""
        is_chosen = (self.labels >= start) & (self.labels < stop)
        part = self.select(is_chosen.nonzero()[:most, 0])
        part.labels, part.class_names = part.labels - start, self.class_names[start:stop]
        part.head = self.head[start:stop]
        return part

    def first_of_each_class(self, n: int) -> Split:
        """Choose the first n pictures of each class, in order."""
        classes = self.labels.unique().tolist()
        first = [(self.labels == c).nonzero()[:n, 0] for c in classes if c >= 0]
        return self.select(torch.cat(first).sort().values)

    def seen_by(self, clip: SplitCLIP, head: Tensor) -> Split:
        """Return the same pictures as another model sees them."""
        split = replace(self, clip=clip, keep=None)
        split.head = head
        return split

    @torch.no_grad()
    def features(self) -> Tensor:
        """Return the image features (n, d_embed) of the pictures, on the CPU."""
        parts = self.tokens.split(self.clip.at_once)
        return torch.cat([self.clip.features(z).float().cpu() for z in parts])

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """Return the zero-shot prediction of each picture (n,)."""
        parts, head = self.tokens.split(self.clip.at_once), self.head.to(self.clip.device)
        logits = (self.clip.classify(z, head) for z in parts)
        return torch.cat([part.argmax(1).cpu() for part in logits])

    def correct(self) -> Tensor:
        """Return, of the pictures with a label, 1 where the prediction is the label, else 0."""
        return (self.predictions() == self.labels)[self.labels >= 0].double()


class Task:
    """A downstream task in CLIP: `base` and `novel` are splits of its test pictures.

    `learnt` are the few-shot training pictures of the base classes, of few-shot seed 0, and
    `counted` those on which latents are counted. `adapted(seed, kind)` is the same task in a model
    that was adapted with that few-shot seed: what `learn(seed, kind, class_names)` returns.
    """

    def __init__(
        self,
        clip: SplitCLIP,
        spec: str,
        train: Pictures,
        test: Pictures,
        shots: int,
        learn: Callable[[int, str, Sequence[str]], Adapted],
    ) -> None:
        self.clip, self.title, self.name = clip, title_of(spec), name_of(spec)
        self._learn, test = learn, ReadOnce(test)
        self.class_names, templates = test.class_names, [template_of(test)]
        n_classes, n_base = len(self.class_names), base_classes(len(self.class_names))
        tested = Split(self.clip, test, labels_of(test), self.class_names, templates)
        self.base = tested.of_classes(0, n_base)
        # a third of the novel pictures, but as many as there are classes at least
        most = max(n_classes - n_base, int((tested.labels >= n_base).sum()) // 3)
        self.novel = tested.of_classes(n_base, n_classes, most)
        labels = labels_of(train)
        chosen = few_shot(labels, n_base, shots, 0)
        learnt = ReadOnce(Subset(train, chosen.tolist()))
        self.learnt = replace(self.base, pictures=learnt, labels=labels[chosen])
        self.adapted = lru_cache(maxsize=None)(self._adapted)

    @cached_property
    def counted(self) -> Split:
        """Up to about 64 of `learnt`, as many of each class, on which latents are counted."""
        number = torch.cat([torch.arange(k) for k in self.learnt.labels.bincount()])
        is_counted = number < max(2, COUNTED // len(self.base.class_names))
        _ = self.learnt.tokens  # once, for both
        return self.learnt.select(is_counted.nonzero()[:, 0])

    def _adapted(self, seed: int = 0, kind: str = "") -> AdaptedTask:
        names, n_base = self.class_names, len(self.base.class_names)
        if kind == "swapped":  # each base class answers to the name of the next one
            names = (*names[1:n_base], names[0], *names[n_base:])
        return AdaptedTask(self, self._learn(seed, kind, names))


class AdaptedTask:
    """A `Task` in an adapted model, `clip`: the same splits as that model sees them."""

    def __init__(self, task: Task, clip: Adapted) -> None:
        n_base = len(task.base.class_names)
        self.clip, self.title = clip, task.title
        self.base = task.base.seen_by(clip, clip.text[:n_base])
        if task.base.keep is not None:
            made_by = {**task.base.keep[1], "prompts": weights_hash(clip.changes)}
            self.base.keep = task.base.keep[0].with_name(config_hash(made_by)), made_by
        self.novel = task.novel.seen_by(clip, clip.text[n_base:])
        if not clip.changes:  # the pictures' tokens stay as they are
            for own, part in ((self.base, task.base), (self.novel, task.novel)):
                if len(part):
                    own.tokens = part.tokens
        self._task = task

    @cached_property
    def counted(self) -> Split:
        """As `Task.counted`."""
        return self._task.counted.seen_by(self.clip, self.base.head)

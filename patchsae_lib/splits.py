"""Pictures as a CLIP sees them: the splits of a data set, and a task before and after adaptation.

A `Split` has pictures, labels, class names, the zero-shot head and the residual tokens; a `Task`
has a split of base and one of novel classes, in CLIP and, `adapted`, in an adapted model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchsae_lib.clip import SplitCLIP, Template
from patchsae_lib.evaluation import BATCH, HeldOut
from patchsae_lib.maple import AdaptedCLIP, adapt, base_classes, few_shot
from patchsae_lib.pictures import (
    Pictures,
    ReadOnce,
    Subset,
    captions_of,
    labels_of,
    template_of,
    world_of,
)
from patchsae_lib.tokens import Tokens, collect, collect_shards
from patchsae_lib.world import TASKS
from patchsae_lib.world.truth import world_truth

if TYPE_CHECKING:
    from patchsae_lib.study import Study

COUNTED = 64  # pictures of a task, at most, that latents are counted on before and after


@dataclass(eq=False)
class Split:
    """Pictures as one CLIP sees them.

    `labels` (n,) are indices into `class_names` (−1: none); `templates` make the zero-shot head of
    them. `keep`: the folder and identity under which the tokens are kept (None: in memory).
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
        """Residual tokens (n, n_tokens, d_vit): collected once, read in batches."""
        if self.keep is None:
            return collect(self.clip, self.pictures)
        return collect_shards(self.clip, self.pictures, *self.keep)

    @cached_property
    def head(self) -> Tensor:
        """The zero-shot head: text features (c, d_embed) of the class names."""
        return self.clip.text_features(self.class_names, self.templates)

    @cached_property
    def held_out(self) -> HeldOut:
        """What an autoencoder is measured on, with one caption a picture."""
        captions = self.clip.text_features(captions_of(self.pictures), ("{}",))
        return HeldOut(self.clip, self.tokens, self.labels, self.head, captions)

    @cached_property
    def truth(self) -> Tensor:
        """(n, n_patches, n_concepts) bool: what each patch of the world's pictures shows."""
        world = world_of(self.pictures)
        if world is None:
            raise ValueError("only pictures of the embedded world have a truth for each patch")
        return world_truth(world, range(len(world)), grid=self.clip.grid)

    def select(self, rows: Tensor | Sequence[int]) -> Split:
        """Some of the pictures, in the order given, with the tokens that are there already."""
        rows = torch.as_tensor(rows)
        pictures = Subset(self.pictures, rows.tolist())
        part = replace(self, pictures=pictures, labels=self.labels[rows], keep=None)
        for name in {"tokens", "head"} & self.__dict__.keys():
            value = getattr(self, name)
            setattr(part, name, value.select(rows) if name == "tokens" else value)
        return part

    def of_classes(self, start: int, stop: int, most: int | None = None) -> Split:
        """The first `most` pictures (None: all) of the classes from `start` to `stop`, which are
        then counted from 0."""
        chosen = ((self.labels >= start) & (self.labels < stop)).nonzero()[:most, 0]
        part, names = self.select(chosen), self.class_names[start:stop]
        part.labels, part.class_names, part.head = (
            part.labels - start,
            names,
            self.head[start:stop],
        )
        return part

    def first_of_each_class(self, n: int) -> Split:
        """The first n pictures of each class, in order."""
        classes = self.labels.unique().tolist()
        first = [(self.labels == c).nonzero()[:n, 0] for c in classes if c >= 0]
        return self.select(torch.cat(first).sort().values)

    def seen_by(self, clip: SplitCLIP, head: Tensor) -> Split:
        """The same pictures as another model sees them."""
        split = replace(self, clip=clip, keep=None)
        split.head = head
        return split

    @torch.no_grad()
    def predictions(self) -> Tensor:
        """(n,) the zero-shot prediction of each picture."""
        logits = (self.clip.classify(z.float(), self.head) for z in self.tokens.split(BATCH))
        return torch.cat([part.argmax(1).cpu() for part in logits])

    def correct(self) -> Tensor:
        """(n,) 1 where the prediction is the label, else 0."""
        return (self.predictions() == self.labels).double()


class Task:
    """A downstream task in one model: the splits `base` and `novel` of its test pictures, and
    `counted`, training pictures of base classes on which latents are counted.

    `learnt` are all the few-shot pictures that prompts are learnt from; `adapted(seed)` is the
    same task in the model that was adapted with that few-shot seed.
    """

    def __init__(self, study: Study, spec: str, n_test: int) -> None:
        self.study, self.spec, self.title = study, spec, title_of(spec)
        self.name = Path(spec.partition(":")[2] or spec).name  # in one word, as in file names
        train, self.clip = study.training_pictures(spec), study.clip
        test = ReadOnce(study.open_pictures(spec, "test", n_test))
        self.class_names, templates = test.class_names, [template_of(test)]
        n_classes, n_base = len(self.class_names), base_classes(len(self.class_names))
        whole = Split(self.clip, test, labels_of(test), self.class_names, templates)
        self.base = whole.of_classes(0, n_base)
        # a third of the novel pictures, but one of each class at least
        n_novel = int((whole.labels >= n_base).sum())
        most = max(n_classes - n_base, n_novel // 3)
        self.novel = whole.of_classes(n_base, n_classes, most)
        labels = labels_of(train)
        chosen = few_shot(labels, n_base, study.profile.prompts.shots, 0)
        learnt = ReadOnce(Subset(train, chosen.tolist()))
        self.learnt = replace(self.base, pictures=learnt, labels=labels[chosen])
        self.adapted = lru_cache(maxsize=None)(self._adapted)

    @cached_property
    def counted(self) -> Split:
        """Those of `learnt` that latents are counted on: at most about 64, of all classes."""
        number = torch.cat([torch.arange(k) for k in self.learnt.labels.bincount()])
        is_counted = number < max(2, COUNTED // len(self.base.class_names))
        _ = self.learnt.tokens  # once, for both
        return self.learnt.select(is_counted.nonzero()[:, 0])

    def _adapted(self, seed: int = 0, control: str = "") -> AdaptedTask:
        names, n_base = self.class_names, len(self.base.class_names)
        if control == "swapped":  # each base class answers to the name of the next one
            names = (*names[1:n_base], names[0], *names[n_base:])
        prompts = self.study.prompts(self.spec, seed, control)
        return AdaptedTask(self, adapt(self.clip, prompts, names))


class AdaptedTask:
    """A `Task` in an adapted model, `clip`: the same splits as that model sees them."""

    def __init__(self, task: Task, clip: AdaptedCLIP) -> None:
        n_base = len(task.base.class_names)
        self.clip, self.title = clip, task.title
        self.base = task.base.seen_by(clip, clip.text[:n_base])
        self.novel = task.novel.seen_by(clip, clip.text[n_base:])
        self.counted = task.counted.seen_by(clip, clip.text[:n_base])


def title_of(spec: str) -> str:
    """What a reader calls the pictures of a spec.

    >>> title_of("world:land"), title_of("folder:/my/photos")
    ('Land cover from above', 'photos')
    """
    kind, _, name = spec.partition(":")
    return TASKS[name].title if kind == "world" and name else Path(name or spec).name

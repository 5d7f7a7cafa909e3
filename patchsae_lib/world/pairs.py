"""Pairs of scenes that differ in background or style, for the covariate shifts of Fig. 4."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from patchsae_lib.world import World
from patchsae_lib.world.scene import CLASSES, Mix, Scene, pick, sample
from patchsae_lib.world.vocabulary import STYLES

PHOTO = Mix(styles=(1.0, 0.0, 0.0, 0.0), assorted=0.0, counted=0.0, word=0.0)


class Scenes(World):
    """Pictures of the given scenes, each labelled with the class of its first thing."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__("objects", "given", len(scenes))
        self.scenes = tuple(scenes)

    def scene(self, index: int) -> Scene:
        """Return what a picture contains, before it is drawn."""
        return self.scenes[range(self.n)[index]]

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`."""
        return CLASSES.index(self.scene(index).things[0].cls)


def pair(change: str, number: int, cls: str = "", same_class: bool = True) -> tuple[Scene, Scene]:
    """Return pair `number` of two scenes with a single object each, of one class or of two.

    `change="background"`: two photos with different backgrounds. `change="style"`: a photo and a
    picture in another style. Colour, texture, size and place are random in both scenes.
    Raises `ValueError` for any other `change`.
    """
    if change not in ("background", "style"):
        raise ValueError(f"no change {change!r}: give background or style")
    rng = random.Random(f"pair/{change}/{number}/{cls}/{same_class}")
    cls = cls or CLASSES[number % len(CLASSES)]
    first = sample(rng, PHOTO, cls)
    second_class = cls if same_class else pick(rng, [c for c in CLASSES if c != cls])
    second = sample(rng, PHOTO, second_class)
    if change == "style":
        return first, replace(second, style=STYLES[1 + number % (len(STYLES) - 1)])
    while second.background == first.background:
        second = sample(rng, PHOTO, second_class)
    return first, second


def pairs(change: str, numbers: Iterable[int], cls: str = "", same_class: bool = True) -> Scenes:
    """Return the pictures of several pairs, the two of a `pair` one after the other."""
    given = [pair(change, number, cls, same_class) for number in numbers]
    return Scenes([scene for two in given for scene in two])


def pairs_of_each_kind(n: int) -> dict[str, Scenes]:
    """Return n pairs of one class and, as a control, of two; each in both changes, by name."""
    return {
        f"{classes}, other {change}": pairs(change, range(n), same_class=classes == "one class")
        for classes in ("one class", "two classes")
        for change in ("background", "style")
    }


def same_traits(scenes: World, world: World) -> dict[str, Tensor]:
    """Return whether the first thing's class, the background and the style of pictures are the
    same: by trait, (scenes, pictures of the world) bool."""
    a, b = (np.array([_traits(x.scene(i)) for i in range(len(x))]) for x in (scenes, world))
    same = torch.from_numpy(a[:, None] == b)
    return dict(zip(("class", "background", "style"), same.unbind(2), strict=True))


def _traits(scene: Scene) -> tuple[str, str, str]:
    return scene.things[0].cls, scene.background, scene.style

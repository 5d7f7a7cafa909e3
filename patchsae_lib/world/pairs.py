"""Pairs of pictures that differ in their surroundings: for the covariate shifts of Fig. 4."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from patchsae_lib.world import World
from patchsae_lib.world.scene import CLASSES, Mix, Scene, pick, sample
from patchsae_lib.world.vocabulary import STYLES

PHOTO = Mix(styles=(1.0, 0.0, 0.0, 0.0), several=0.0, counted=0.0, word=0.0)


class Scenes(World):
    """Pictures of given scenes of objects, labelled with the class of their first one."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__("objects", "given", len(scenes))
        self.scenes = tuple(scenes)

    def scene(self, index: int) -> Scene:
        """What is in the picture."""
        return self.scenes[range(self.n)[index]]

    def label(self, index: int) -> int:
        """The class, as an index into `class_names`."""
        return CLASSES.index(self.scene(index).things[0].cls)


def pair(change: str, number: int, cls: str = "", same_class: bool = True) -> tuple[Scene, Scene]:
    """Two single objects of one class (or of two): pair `number` of a `change`.

    `background`: both are photos before different backgrounds. `style`: the second is in another
    style than photo. All else (colour, texture, size, place) is left to chance.
    Raises `ValueError` for another change.
    """
    if change not in ("background", "style"):
        raise ValueError(f"no change {change!r}: give background or style")
    rng = random.Random(f"pair/{change}/{number}/{cls}/{same_class}")
    cls = cls or CLASSES[number % len(CLASSES)]
    first = sample(rng, PHOTO, cls)
    other = cls if same_class else pick(rng, [c for c in CLASSES if c != cls])
    second = sample(rng, PHOTO, other)
    if change == "style":
        return first, replace(second, style=STYLES[1 + number % (len(STYLES) - 1)])
    while second.background == first.background:
        second = sample(rng, PHOTO, other)
    return first, second

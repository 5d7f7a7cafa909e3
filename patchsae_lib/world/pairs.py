"""Pairs of scenes that differ in background or style, for the covariate shifts of Fig. 4, and
exact counterfactuals: a scene drawn twice with a single thing changed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.world import World
from patchsae_lib.world.scene import CLASSES, Mix, Scene, Thing, pick, sample
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, WORDS

PHOTO = Mix(styles=(1.0, 0.0, 0.0, 0.0), assorted=0.0, counted=0.0, word=0.0)
SIGNED = replace(PHOTO, word=1.0)
#: what a counterfactual changes
CHANGES = ("colour", "style", "background", "word", "class", "position")
CHANGED_CLASSES = tuple(c for c in CLASSES if c != "flower")  # its colour is that of its species


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


def pairs_of_each_kind(numbers: Sequence[int]) -> dict[str, Scenes]:
    """Return pairs of one class and, as a control, of two; each in both changes, by name. Pairs of
    one number have the same first class."""
    return {
        f"{classes}, other {change}": pairs(change, numbers, same_class=classes == "one class")
        for classes in ("one class", "two classes")
        for change in ("background", "style")
    }


def counterfactual(change: str, number: int, cls: str = "") -> tuple[Scene, Scene]:
    """Return scene `number`, a photo of one object and a sign, and what it would be with one thing
    changed: one of `CHANGES`.

    The first scene is the same for every change. All that the renderer varies is the same in both
    scenes: details of the background, shades, light, noise. Another word has as many letters; an
    object moves by a patch or more; a sketch and a silhouette do not show colours and textures.
    Raises `ValueError` for any other `change`, and for flowers.
    """
    if change not in CHANGES:
        raise ValueError(f"no change {change!r}: give {', '.join(CHANGES)}")
    cls = cls or CHANGED_CLASSES[number % len(CHANGED_CLASSES)]
    if cls not in CHANGED_CLASSES:
        raise ValueError(f"no counterfactuals of class {cls!r}: its colour is that of its species")
    rng = random.Random(f"counterfactual/{number}/{cls}")
    scene = replace(sample(rng, SIGNED, cls), layered=True)
    return scene, _changed(scene, change, rng)


def _changed(scene: Scene, change: str, rng: random.Random) -> Scene:
    thing = scene.things[0]
    if change == "style":
        return replace(scene, style=_another(rng, STYLES, scene.style))
    if change == "background":
        return replace(scene, background=_another(rng, tuple(BACKGROUNDS), scene.background))
    if change == "word":  # on the same sign
        words = [w for w in WORDS if len(w) == len(scene.word)]
        return replace(scene, word=_another(rng, words, scene.word))
    if change == "colour":
        thing = replace(thing, colour=_another(rng, tuple(COLOURS), thing.colour))
    elif change == "class":
        thing = replace(thing, cls=_another(rng, CHANGED_CLASSES, thing.cls))
    else:
        thing = _moved(thing, rng)
    return replace(scene, things=(thing,))


def _another(rng: random.Random, options: Sequence[str], value: str) -> str:
    return pick(rng, [x for x in options if x != value])


def _moved(thing: Thing, rng: random.Random, least: float = 8.0) -> Thing:
    """Move a thing by `least` pixels or more, a patch, to where it fits into the picture."""
    slack = 56 - thing.size
    while True:
        x, y = 56 + rng.uniform(-slack, slack), 57 + rng.uniform(-slack, slack) * 0.8
        if (x - thing.x) ** 2 + (y - thing.y) ** 2 >= least**2:
            return replace(thing, x=x, y=y)


def counterfactuals(numbers: Sequence[int]) -> dict[str, Scenes]:
    """Return the pictures of scenes as they are, by the name "unchanged", and with each of
    `CHANGES`, by its name."""
    scenes = {"unchanged": [counterfactual("colour", n)[0] for n in numbers]}
    scenes |= {change: [counterfactual(change, n)[1] for n in numbers] for change in CHANGES}
    return {name: Scenes(x) for name, x in scenes.items()}


def changed_patches(first: World, second: World, grid: tuple[int, int]) -> Tensor:
    """Return which patches, of a grid (rows, columns), differ between pictures of equal number by
    any pixel: (pictures, n_patches) bool."""
    a, b = (x.batch(range(len(x))) for x in (first, second))
    return F.adaptive_max_pool2d((a != b).any(1).float(), grid).flatten(1).bool()


def same_traits(scenes: World, world: World) -> dict[str, Tensor]:
    """Return whether the first thing's class, the background and the style of pictures are the
    same: by trait, (scenes, pictures of the world) bool."""
    a, b = (np.array([_traits(x.scene(i)) for i in range(len(x))]) for x in (scenes, world))
    same = torch.from_numpy(a[:, None] == b)
    return dict(zip(("class", "background", "style"), same.unbind(2), strict=True))


def _traits(scene: Scene) -> tuple[str, str, str]:
    return scene.things[0].cls, scene.background, scene.style

"""Downstream tasks, from no domain shift to a strong one, and their vocabulary.

The classes of a task come in two halves, as in section 4.2 of the paper: an adapted model is
trained on the `base` classes and first meets the `novel` ones at test time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from patchsae_lib.world.scene import (
    CLASSES,
    SPECIES,
    Mix,
    Scene,
    one_thing,
    pick,
    places,
    repeated,
    sample,
)
from patchsae_lib.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_STYLE,
    NUMBERS,
    PARTS,
    STYLES,
    TEXTURES,
    WORDS,
    plural,
)

SINGLE = Mix(assorted=0.0, counted=0.0)
PHOTO = (1.0, 0.0, 0.0, 0.0)
#: Pretraining shows four of the ten (`TEXTURES`), on objects only, never filling the picture. The
#: remaining six are new: two in the base half and four in the novel half.
PATTERNS = (
    "striped", "grid", "dotted", "scaly", "checkered",
    "zigzag", "woven", "brick", "banded", "starry",
)  # fmt: skip
LAND = ("forest", "river", "sea", "crops", "city", "orchard", "road", "pasture")
COUNTS = NUMBERS[:6]


@dataclass(frozen=True)
class Task:
    """A labelled stream of scenes: `make(rng, label)` samples a scene of class `classes[label]`.

    `templates` turn a class name into a prompt; `shift` is the distance from pretraining.
    """

    name: str
    title: str
    shift: str  # none | mild | medium | strong
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    make: Callable[[random.Random, int], Scene]

    @property
    def base(self) -> tuple[str, ...]:
        """Return the classes that an adapted model is trained on."""
        return self.classes[: (len(self.classes) + 1) // 2]

    @property
    def novel(self) -> tuple[str, ...]:
        """Return the classes that an adapted model first meets at test time."""
        return self.classes[len(self.base) :]


def _world(rng: random.Random, label: int) -> Scene:
    return sample(rng, Mix(), CLASSES[label])


def _in_style(style: str) -> Callable[[random.Random, int], Scene]:
    def make(rng: random.Random, label: int) -> Scene:
        return replace(sample(rng, SINGLE, CLASSES[label]), style=style, word="")

    return make


def _with_effect(effect: str) -> Callable[[random.Random, int], Scene]:
    photo = _in_style("photo")
    return lambda rng, label: replace(photo(rng, label), effect=effect)


def _styles(rng: random.Random, label: int) -> Scene:
    return sample(rng, replace(SINGLE, styles=(1.0,) * len(STYLES), word=0.0), CLASSES[label])


def _photo(rng: random.Random, cls: str = "") -> Scene:
    return sample(rng, replace(SINGLE, styles=PHOTO, word=0.0), cls)


def _colours(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng, pick(rng, [c for c in CLASSES if c != "flower"]))
    coloured = replace(scene.things[0], colour=tuple(COLOURS)[label], texture="plain")
    return replace(scene, things=(coloured,))


def _scenes(rng: random.Random, label: int) -> Scene:
    return replace(_photo(rng), background=tuple(BACKGROUNDS)[label])


def _words(rng: random.Random, label: int) -> Scene:
    return replace(_photo(rng), word=WORDS[label])


def _counting(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng)
    model = scene.things[0]
    spots = places(rng, label + 1) if label else [(model.x, model.y, model.size)]
    return replace(scene, things=tuple(repeated(rng, model, spots)))


def _textures(rng: random.Random, label: int) -> Scene:
    tint = pick(rng, tuple(COLOURS))
    return Scene("photo", "", pattern=PATTERNS[label], tint=tint, key=rng.getrandbits(48))


def _flowers(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng, "flower")
    f = SPECIES[label]
    bloom = replace(one_thing(rng, "flower"), flower=f, colour=f.colour, texture="plain")
    return replace(scene, things=(bloom,))


def _land(rng: random.Random, label: int) -> Scene:
    return Scene("photo", "", land=LAND[label], key=rng.getrandbits(48))


STYLE_TEMPLATES = tuple(f"a {style} of a {{}}" for style in STYLES)
A_PHOTO = ("a photo of a {}",)

#: order of `SPECIES` in which half of the names in each half of the classes are new to the model
FLOWER_ORDER = (0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15)

TASKS: dict[str, Task] = {
    t.name: t
    for t in (
        Task("world", "Everything, in all styles", "none", CLASSES, STYLE_TEMPLATES, _world),
        Task("styles", "Objects, in all styles", "none", CLASSES, STYLE_TEMPLATES, _styles),
        Task("objects", "Objects", "none", CLASSES, A_PHOTO, _in_style("photo")),
        Task("colours", "Colours", "none", tuple(COLOURS), ("a photo of a {} thing",), _colours),
        Task(
            "scenes", "Backgrounds", "none", tuple(BACKGROUNDS.values()),
            ("a photo of a thing {}",), _scenes,
        ),
        Task(
            "words", "Written words", "mild", tuple(f"word {w}" for w in WORDS),
            ("a photo of a thing with the {}",), _words,
        ),
        Task("sketches", "Sketches", "mild", CLASSES, ("a sketch of a {}",), _in_style("sketch")),
        Task("grey", "Grey photographs", "medium", CLASSES, A_PHOTO, _with_effect("grey")),
        Task(
            "counting", "Counting", "medium",
            ("one thing", *(f"{n} things" for n in COUNTS[1:])), ("a photo of {}",), _counting,
        ),
        Task(
            "textures", "Textures", "medium", PATTERNS, ("a photo of a {} thing",), _textures
        ),
        Task(
            "flowers", "Flower species", "medium",
            tuple(SPECIES[i].name for i in FLOWER_ORDER), ("a photo of a {} flower",),
            lambda rng, label: _flowers(rng, FLOWER_ORDER[label]),
        ),
        Task("negatives", "Negatives", "strong", CLASSES, A_PHOTO, _with_effect("negative")),
        Task(
            "blueprints", "Blueprints", "strong", CLASSES, A_PHOTO, _in_style(HELD_OUT_STYLE)
        ),
        Task("land", "Land cover from above", "strong", LAND, ("a photo of a {}",), _land),
    )
}  # fmt: skip
#: the tasks but those that are like the pictures CLIP and the autoencoder were trained on
DOWNSTREAM = {name: task for name, task in TASKS.items() if name not in ("world", "styles")}


def all_words() -> tuple[str, ...]:
    """Return the small CLIP's vocabulary: all words of captions, names and templates, sorted.

    Adding or removing a word changes the ids of all words after it, so needs another CLIP.
    """
    phrases = [
        *STYLES, HELD_OUT_STYLE, *COLOURS, *TEXTURES, *PATTERNS, *BACKGROUNDS, *NUMBERS, *WORDS,
        *CLASSES, *map(plural, CLASSES), *LAND, *(s.name for s in SPECIES),
        *BACKGROUNDS.values(), "round long pointed heart petals centre",
        "a of and with the word thing things flower", *PARTS, "on at left right top bottom",
        "drawing picture aerial view from above",  # in no caption: for the reader's own templates
    ]  # fmt: skip
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))

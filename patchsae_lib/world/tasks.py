"""Downstream tasks, from no shift of domain to a strong one, and the words they need.

Each has its classes in two halves, as in the paper's section 4.2: `base` (the first half, which
an adapted model is trained on) and `novel` (the rest).
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
    sample,
    thing,
)
from patchsae_lib.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_STYLE,
    NUMBERS,
    STYLES,
    TEXTURES,
    WORDS,
    plural,
)

SINGLE = Mix(several=0.0, counted=0.0)
PHOTO = (1.0, 0.0, 0.0, 0.0)
#: Six of the ten are new (two among the base half, four among the novel half). Pretraining shows
#: the other four (`TEXTURES`) on objects only, never filling the picture.
PATTERNS = (
    "striped", "grid", "dotted", "scaly", "checkered",
    "zigzag", "woven", "brick", "banded", "starry",
)  # fmt: skip
LAND = ("forest", "river", "sea", "crops", "city", "orchard", "road", "pasture")
COUNTS = NUMBERS[:6]


@dataclass(frozen=True)
class Task:
    """A labelled stream of scenes: `make(rng, label)` draws one of class `classes[label]`.

    `templates` turn a class name into a prompt; `shift` says how far it is from pretraining.
    """

    name: str
    title: str
    shift: str  # none | mild | medium | strong
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    make: Callable[[random.Random, int], Scene]

    @property
    def base(self) -> tuple[str, ...]:
        """The classes that an adapted model is trained on."""
        return self.classes[: (len(self.classes) + 1) // 2]

    @property
    def novel(self) -> tuple[str, ...]:
        """The classes it sees at the test only."""
        return self.classes[len(self.base) :]


def _world(rng: random.Random, label: int) -> Scene:
    return sample(rng, Mix(), CLASSES[label])


def _in_style(style: str) -> Callable[[random.Random, int], Scene]:
    def make(rng: random.Random, label: int) -> Scene:
        return replace(sample(rng, SINGLE, CLASSES[label]), style=style, word="")

    return make


def _styles(rng: random.Random, label: int) -> Scene:
    return sample(rng, replace(SINGLE, styles=(1.0,) * len(STYLES), word=0.0), CLASSES[label])


def _photo(rng: random.Random, cls: str = "") -> Scene:
    return sample(rng, replace(SINGLE, styles=PHOTO, word=0.0), cls)


def _colours(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng, pick(rng, [c for c in CLASSES if c != "flower"]))
    only = replace(scene.things[0], colour=tuple(COLOURS)[label], texture="plain")
    return replace(scene, things=(only,))


def _scenes(rng: random.Random, label: int) -> Scene:
    return replace(_photo(rng), background=tuple(BACKGROUNDS)[label])


def _words(rng: random.Random, label: int) -> Scene:
    return replace(_photo(rng), word=WORDS[label])


def _counting(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng)
    model = scene.things[0]
    spots = places(rng, label + 1) if label else [(model.x, model.y, model.size)]
    things = [thing(rng, model.cls, *spot) for spot in spots]
    same = [
        replace(t, colour=model.colour, texture=model.texture, flower=model.flower) for t in things
    ]
    return replace(scene, things=tuple(same))


def _textures(rng: random.Random, label: int) -> Scene:
    tint = pick(rng, tuple(COLOURS))
    return Scene("photo", "", pattern=PATTERNS[label], tint=tint, key=rng.getrandbits(48))


def _flowers(rng: random.Random, label: int) -> Scene:
    scene = _photo(rng, "flower")
    f = SPECIES[label]
    one = replace(one_thing(rng, "flower"), flower=f, colour=f.colour, texture="plain")
    return replace(scene, things=(one,))


def _land(rng: random.Random, label: int) -> Scene:
    return Scene("photo", "", land=LAND[label], key=rng.getrandbits(48))


STYLE_TEMPLATES = tuple(f"a {style} of a {{}}" for style in STYLES)
A_PHOTO = ("a photo of a {}",)

#: half of the names in each half of the classes are new to the model
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
        Task(
            "blueprints", "Blueprints", "strong", CLASSES, A_PHOTO, _in_style(HELD_OUT_STYLE)
        ),
        Task("land", "Land cover from above", "strong", LAND, ("a photo of a {}",), _land),
    )
}  # fmt: skip


def all_words() -> tuple[str, ...]:
    """Every word of captions, class names and templates, sorted: the small CLIP's vocabulary.

    A word more or less is another CLIP: the ids of all words after it move.
    """
    sources = [
        *STYLES, HELD_OUT_STYLE, *COLOURS, *TEXTURES, *PATTERNS, *BACKGROUNDS, *NUMBERS, *WORDS,
        *CLASSES, *map(plural, CLASSES), *LAND, *(s.name for s in SPECIES),
        *BACKGROUNDS.values(), "round long pointed heart petals centre",
        "a of and with the word thing things flower",
        "drawing picture aerial view from above",  # never said: for templates of the reader's own
    ]  # fmt: skip
    return tuple(sorted({w for s in sources for w in s.split()}))

"""What a picture contains, before it is drawn, and how a caption describes it.

All randomness comes from the generator that is passed in. Pictures depend on the order of its
draws: adding, removing or moving one makes another world.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    NUMBERS,
    STYLES,
    TEXTURES,
    WORDS,
    plural,
)

CLASSES: tuple[str, ...] = tuple(c for group in GROUPS.values() for c in group)
GROUP_OF: dict[str, str] = {c: g for g, classes in GROUPS.items() for c in classes}

Spot: TypeAlias = tuple[float, float, float]  # x, y and size of a thing


@dataclass(frozen=True)
class Flower:
    """What can be counted and named on a flower; `name` is empty if it belongs to no species."""

    petals: int
    shape: str  # round | long | pointed | heart
    colour: str
    centre: str
    name: str = ""


#: Species of the `flowers` task. The first eight names occur in pretraining captions, rarely; the
#: remaining eight never do.
SPECIES: tuple[Flower, ...] = (
    Flower(4, "round", "red", "black", "poppy"),
    Flower(9, "long", "white", "yellow", "daisy"),
    Flower(5, "heart", "purple", "yellow", "violet"),
    Flower(5, "round", "yellow", "yellow", "buttercup"),
    Flower(3, "pointed", "blue", "yellow", "iris"),
    Flower(6, "pointed", "orange", "brown", "lily"),
    Flower(9, "long", "purple", "orange", "aster"),
    Flower(8, "heart", "pink", "yellow", "cosmos"),
    Flower(5, "round", "pink", "white", "phlox"),
    Flower(8, "pointed", "red", "yellow", "zinnia"),
    Flower(9, "pointed", "orange", "red", "dahlia"),
    Flower(5, "pointed", "blue", "white", "gentian"),
    Flower(6, "heart", "yellow", "red", "freesia"),
    Flower(4, "long", "blue", "purple", "clematis"),
    Flower(3, "round", "white", "green", "trillium"),
    Flower(4, "heart", "white", "pink", "dogwood"),
)
RARE_NAMES = 8


@dataclass(frozen=True)
class Thing:
    """An object: position and size in pixels of the 112×112 picture, angle in degrees."""

    cls: str
    colour: str
    texture: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    flip: bool = False
    variant: int = 0
    flower: Flower | None = None


@dataclass(frozen=True)
class Scene:
    """All that the renderer needs. A `pattern` or `land` fills the frame; there are no things."""

    style: str
    background: str
    things: tuple[Thing, ...] = ()
    word: str = ""
    pattern: str = ""
    land: str = ""
    tint: str = ""  # colour of a `pattern`
    key: int = 0  # seeds what the renderer varies: background details, noise, light
    effect: str = ""  # how the finished picture is changed: one of `render.EFFECTS`
    layered: bool = False  # each layer has a generator: changing one leaves the others as they are

    @property
    def shows_colour(self) -> bool:
        """Say whether the picture shows the colours and textures of things."""
        return self.style in ("photo", "painting") and not self.effect


@dataclass(frozen=True)
class Mix:
    """The probabilities of kinds of scene, and of what captions mention."""

    styles: tuple[float, ...] = (0.55, 0.15, 0.15, 0.15)  # weights of vocabulary.STYLES
    assorted: float = 0.3  # things of several classes
    counted: float = 0.1  # several things of one class
    word: float = 0.2
    mention_colour: float = 0.6
    mention_texture: float = 0.8
    mention_background: float = 0.5
    mention_word: float = 0.9
    mention_place: float = 0.0  # where each of two things is


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """Return one of the options. (Python may change the draws behind `rng.choice`.)"""
    return options[int(rng.random() * len(options))]


def random_flower(rng: random.Random, colour: str) -> Flower:
    """Return one of the known species or, as often, a flower of no species and this colour."""
    if rng.random() < 0.5:
        return SPECIES[int(rng.random() * RARE_NAMES)]
    shape = pick(rng, ("round", "long", "pointed", "heart"))
    return Flower(3 + int(rng.random() * 7), shape, colour, pick(rng, tuple(COLOURS)))


def thing(rng: random.Random, cls: str, x: float, y: float, size: float) -> Thing:
    """Return an object of a class at a given place, with all its other properties random."""
    colour = pick(rng, tuple(COLOURS))
    flower = random_flower(rng, colour) if cls == "flower" else None
    plain = flower is not None or rng.random() < 0.4
    return Thing(
        cls,
        flower.colour if flower else colour,
        "plain" if plain else pick(rng, TEXTURES[1:]),
        *(x, y, size),
        angle=rng.uniform(-16, 16),
        flip=rng.random() < 0.5,
        variant=int(rng.random() * 24),
        flower=flower,
    )


def one_thing(rng: random.Random, cls: str) -> Thing:
    """Return a large object near the middle that fits into the picture."""
    size = rng.uniform(30, 47)
    slack = 56 - size
    x, y = 56 + rng.uniform(-slack, slack), 57 + rng.uniform(-slack, slack) * 0.8
    return thing(rng, cls, x, y, size)


def repeated(rng: random.Random, model: Thing, spots: Iterable[Spot]) -> list[Thing]:
    """Return things at `spots` that share class, colour, texture and flower with `model`."""
    things = [thing(rng, model.cls, *spot) for spot in spots]
    return [
        replace(t, colour=model.colour, texture=model.texture, flower=model.flower) for t in things
    ]


def places(rng: random.Random, n: int) -> list[Spot]:
    """Return `n` spots that hardly overlap: jittered cells of a grid."""
    columns, rows = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2)}.get(n, (3, 2 if n < 7 else 3))
    if n == 2 and rng.random() < 0.3:
        columns, rows = 1, 2
    width, height = 112 / columns, 112 / rows
    biggest = 33.0 if n == 2 else min(width, height) / 2
    cells = [(c, r) for r in range(rows) for c in range(columns)]
    rng.shuffle(cells)
    spots = []
    for c, r in cells[:n]:
        size = biggest * rng.uniform(0.72, 0.98)
        x = (c + 0.5) * width + rng.uniform(-1, 1) * max(0.0, width / 2 - size)
        y = (r + 0.5) * height + rng.uniform(-1, 1) * max(0.0, height / 2 - size)
        spots.append((x, y, size))
    return spots


def sample(rng: random.Random, mix: Mix = Mix(), cls: str = "") -> Scene:
    """Return a random scene of the world; `cls` fixes the class of its first thing."""
    style = rng.choices(STYLES, mix.styles)[0]
    things = random_things(rng, mix, cls or pick(rng, CLASSES))
    word = pick(rng, WORDS) if rng.random() < mix.word else ""
    background = pick(rng, tuple(BACKGROUNDS))
    return Scene(style, background, tuple(things), word=word, key=rng.getrandbits(48))


def random_things(rng: random.Random, mix: Mix, cls: str) -> list[Thing]:
    """Return the things of a scene: of several classes, several of one class, or a single one."""
    sort = rng.random()
    if sort < mix.assorted:
        n = 2 + int(rng.random() * 3)
        classes = [cls, *rng.sample([c for c in CLASSES if c != cls], n - 1)]
        spots = places(rng, n)
        return [thing(rng, c, *spot) for c, spot in zip(classes, spots, strict=True)]
    if sort < mix.assorted + mix.counted:
        first, *further = places(rng, 2 + int(rng.random() * 5))
        model = thing(rng, cls, *first)
        return [model, *repeated(rng, model, further)]
    return [one_thing(rng, cls)]


# --- captions -----------------------------------------------------------------------------------


def describe(
    t: Thing, rng: random.Random, mix: Mix, coloured: bool, number: str = "a", alone: bool = True
) -> str:
    """Return the noun phrase for one thing, or for `number` things.

    Only a flower that is `alone` in the picture is described petal by petal, to keep captions
    under 30 words.
    """
    noun = t.cls if number == "a" else plural(t.cls)
    petals: list[str] = []
    if t.flower is not None and number == "a":
        # species differ in their colours: a daisy and an aster look alike in a sketch
        if t.flower.name and coloured and rng.random() < 0.5:
            noun = t.flower.name
            if rng.random() < 0.5:
                return f"a {noun} flower"
        petals = describe_petals(t.flower, rng, coloured) if alone else []
    words = [number]
    if coloured and rng.random() < mix.mention_colour:
        words.append(t.colour)
    if coloured and t.texture != "plain" and rng.random() < mix.mention_texture:
        words.append(t.texture)
    return " ".join([*words, noun, *petals])


def describe_petals(flower: Flower, rng: random.Random, coloured: bool) -> list[str]:
    """Return what a caption adds about the petals of a flower and its centre, often nothing."""
    if rng.random() >= 0.5:
        return []
    petals = ["with", NUMBERS[flower.petals - 1], flower.shape, "petals"]
    if coloured and rng.random() < 0.5:
        return [*petals, "and", "a", flower.centre, "centre"]
    return petals


def caption(scene: Scene, rng: random.Random, mix: Mix = Mix()) -> str:
    """Return a caption that mentions only what can be seen in the style of the scene."""
    parts = [f"a {scene.style} of {describe_things(scene, rng, mix)}"]
    if rng.random() < mix.mention_background:
        parts.append(BACKGROUNDS[scene.background])
    if scene.word and rng.random() < mix.mention_word:
        parts.append(f"with the word {scene.word}")
    return " ".join(parts)


def describe_things(scene: Scene, rng: random.Random, mix: Mix) -> str:
    """Return the noun phrases for all things of a scene, or their number if they are alike."""
    things, coloured = list(scene.things), scene.shows_colour
    if len(things) > 1 and all(t.cls == things[0].cls for t in things):
        number = NUMBERS[len(things) - 1]
        if rng.random() < 0.25:
            return f"{number} things"
        return describe(things[0], rng, mix, coloured, number)
    rng.shuffle(things)
    alone = len(things) == 1
    placed = len(things) == 2 and mix.mention_place and rng.random() < mix.mention_place
    spots = places_of(*things) if placed else [""] * len(things)
    nouns = (describe(t, rng, mix, coloured, alone=alone) for t in things)
    return " and ".join(noun + spot for noun, spot in zip(nouns, spots, strict=True))


def places_of(a: Thing, b: Thing) -> tuple[str, str]:
    """Return where each of two things is, seen from the other."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        left, right = " on the left", " on the right"
        return (left, right) if a.x < b.x else (right, left)
    return (" at the top", " at the bottom") if a.y < b.y else (" at the bottom", " at the top")

"""What is in a picture, before it is drawn, and what a caption says of it.

All chance comes from the generator that is handed in. Its numbers are drawn in a fixed order, on
which every picture depends: a draw added, removed or moved makes another world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Flower:
    """What can be counted and named on a flower; `name` is empty where it is of no species."""

    petals: int
    shape: str  # round | long | pointed | heart
    colour: str
    centre: str
    name: str = ""


#: Species of the `flowers` task. The first eight names turn up in pretraining captions, rarely;
#: the other eight never do.
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
    """One object: position and size in pixels of the 112×112 picture, angle in degrees."""

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
    """Everything the renderer needs. `pattern` and `land` fill the frame and have no things."""

    style: str
    background: str
    things: tuple[Thing, ...] = ()
    word: str = ""
    pattern: str = ""
    land: str = ""
    tint: str = ""  # colour of a `pattern`
    key: int = 0  # seeds what the renderer varies: background details, noise, light

    @property
    def shows_colour(self) -> bool:
        """Whether colours and textures of things can be seen in this style."""
        return self.style in ("photo", "painting")


@dataclass(frozen=True)
class Mix:
    """How often scenes are of which sort, and what captions mention."""

    styles: tuple[float, ...] = (0.55, 0.15, 0.15, 0.15)  # weights of vocabulary.STYLES
    several: float = 0.3  # several different things
    counted: float = 0.1  # several things of one class
    word: float = 0.2
    mention_colour: float = 0.6
    mention_texture: float = 0.8
    mention_background: float = 0.5
    mention_word: float = 0.9


def pick(rng: random.Random, options: tuple[str, ...] | list[str]) -> str:
    """One of the options; not `rng.choice`, whose numbers Python may draw in another way."""
    return options[int(rng.random() * len(options))]


def thing(rng: random.Random, cls: str, x: float, y: float, size: float) -> Thing:
    """One object of a class with everything else left to chance."""
    flower = None
    colour = pick(rng, tuple(COLOURS))
    if cls == "flower":
        if rng.random() < 0.5:
            flower = SPECIES[int(rng.random() * RARE_NAMES)]
        else:
            shape = pick(rng, ("round", "long", "pointed", "heart"))
            flower = Flower(3 + int(rng.random() * 7), shape, colour, pick(rng, tuple(COLOURS)))
        colour = flower.colour
    plain = flower is not None or rng.random() < 0.4
    texture = "plain" if plain else pick(rng, TEXTURES[1:])
    return Thing(
        cls,
        colour,
        texture,
        x,
        y,
        size,
        angle=rng.uniform(-16, 16),
        flip=rng.random() < 0.5,
        variant=int(rng.random() * 24),
        flower=flower,
    )


def one_thing(rng: random.Random, cls: str) -> Thing:
    """A large object that fits into the picture, near its middle."""
    size = rng.uniform(30, 47)
    slack = 56 - size
    x, y = 56 + rng.uniform(-slack, slack), 57 + rng.uniform(-slack, slack) * 0.8
    return thing(rng, cls, x, y, size)


def places(rng: random.Random, n: int) -> list[tuple[float, float, float]]:
    """`n` places (x, y, size) that hardly overlap: cells of a grid, shaken."""
    columns, rows = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2)}.get(n, (3, 2 if n < 7 else 3))
    if n == 2 and rng.random() < 0.3:
        columns, rows = 1, 2
    width, height = 112 / columns, 112 / rows
    biggest = min(width, height) / 2
    if n == 2:
        biggest = 33.0
    cells = [(c, r) for r in range(rows) for c in range(columns)]
    rng.shuffle(cells)
    out = []
    for c, r in cells[:n]:
        size = biggest * rng.uniform(0.72, 0.98)
        x = (c + 0.5) * width + rng.uniform(-1, 1) * max(0.0, width / 2 - size)
        y = (r + 0.5) * height + rng.uniform(-1, 1) * max(0.0, height / 2 - size)
        out.append((x, y, size))
    return out


def sample(rng: random.Random, mix: Mix = Mix(), cls: str = "") -> Scene:
    """A scene of the world; `cls` fixes the class of its first thing."""
    style = rng.choices(STYLES, mix.styles)[0]
    cls = cls or pick(rng, CLASSES)
    sort = rng.random()
    if sort < mix.several:
        n = 2 + int(rng.random() * 3)
        others = rng.sample([c for c in CLASSES if c != cls], n - 1)
        things = [
            thing(rng, c, *place) for c, place in zip([cls, *others], places(rng, n), strict=True)
        ]
    elif sort < mix.several + mix.counted:
        n = 2 + int(rng.random() * 5)
        first, *rest = places(rng, n)
        model = thing(rng, cls, *first)
        things = [model] + [
            replace(thing(rng, cls, *p), colour=model.colour, texture=model.texture,
                    flower=model.flower)
            for p in rest
        ]  # fmt: skip
    else:
        things = [one_thing(rng, cls)]
    word = pick(rng, WORDS) if rng.random() < mix.word else ""
    return Scene(
        style,
        pick(rng, tuple(BACKGROUNDS)),
        tuple(things),
        word=word,
        key=rng.getrandbits(48),
    )


def describe(
    t: Thing, rng: random.Random, mix: Mix, coloured: bool, number: str = "a", alone: bool = True
) -> str:
    """The noun phrase for one thing (or for `number` of them); only what is `alone` in the
    picture is described petal by petal, so that a caption stays under 30 words."""
    noun = t.cls if number == "a" else plural(t.cls)
    words = [number]
    after: list[str] = []
    if t.flower is not None:
        f = t.flower
        # a species is told by its colours: a daisy and an aster are one in a sketch
        if f.name and coloured and number == "a" and rng.random() < 0.5:
            noun = f.name
            if rng.random() < 0.5:
                return f"a {f.name} flower"
        if alone and number == "a" and rng.random() < 0.5:
            after = ["with", NUMBERS[f.petals - 1], f.shape, "petals"]
            if coloured and rng.random() < 0.5:
                after += ["and", "a", f.centre, "centre"]
    if coloured and rng.random() < mix.mention_colour:
        words.append(t.colour)
    if coloured and t.texture != "plain" and rng.random() < mix.mention_texture:
        words.append(t.texture)
    return " ".join([*words, noun, *after])


def caption(scene: Scene, rng: random.Random, mix: Mix = Mix()) -> str:
    """What somebody would write under the picture: only what can be seen in its style."""
    things, coloured = scene.things, scene.shows_colour
    if len(things) > 1 and all(t.cls == things[0].cls for t in things):
        number = NUMBERS[len(things) - 1]
        if rng.random() < 0.25:
            said = f"{number} things"
        else:
            said = describe(things[0], rng, mix, coloured, number)
    else:
        order = list(things)
        rng.shuffle(order)
        alone = len(order) == 1
        phrases = [describe(t, rng, mix, coloured, alone=alone) for t in order]
        said = " and ".join(phrases)
    parts = [f"a {scene.style} of {said}"]
    if rng.random() < mix.mention_background:
        parts.append(BACKGROUNDS[scene.background])
    if scene.word and rng.random() < mix.mention_word:
        parts.append(f"with the word {scene.word}")
    return " ".join(parts)

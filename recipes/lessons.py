"""What the small CLIP is shown: pools of pictures, rendered once, and lessons drawn from them.

A lesson is a batch whose captions differ in one respect only, since what tells captions apart most
easily is learnt first and hides the rest: colours hide classes, classes hide numbers and words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.world.render import Picture, render
from patchsae_lib.world.scene import (
    CLASSES,
    Mix,
    Scene,
    caption,
    one_thing,
    pick,
    places,
    repeated,
    sample,
)
from patchsae_lib.world.tasks import COUNTS
from patchsae_lib.world.vocabulary import COLOURS, STYLES, TEXTURES, plural

SIZE = 112
#: patterns that fill a picture here; of the ten of the task `textures`, three are never shown
SHOWN_PATTERNS = (*TEXTURES[1:], "grid", "woven", "brick")
SINGLES = Mix(assorted=0.05, counted=0.05, word=0.25, mention_colour=0.5, mention_background=0.25)
SCENES = Mix(assorted=0.7, counted=0.2, word=0.2, mention_place=0.5)
CLASSES_ONLY = replace(
    SINGLES, mention_colour=0.1, mention_texture=0.15, mention_background=0.05,
    mention_word=0.2, styles=(0.35, 0.2, 0.3, 0.15),  # more of what has most to be told apart
)  # fmt: skip
Facts = dict[str, Any]


# --- pools: from an index to a picture, (112, 112, 3) uint8, and what is known of it -----------


def scene_of(pool: str, index: int, seed: int) -> Scene:
    """Return the scene of a picture of a pool, which is always the same.

    A silhouette shows none of the parts that close-ups are named after.
    """
    rng = random.Random(f"{seed}/{pool}/{index}")
    if pool == "patterns":
        tint, pattern = pick(rng, tuple(COLOURS)), SHOWN_PATTERNS[index % len(SHOWN_PATTERNS)]
        return Scene("photo", "", pattern=pattern, tint=tint, key=rng.getrandbits(48))
    if pool == "counted":
        scene = sample(rng, replace(SINGLES, assorted=0, counted=0, word=0))
        n = 1 + index % len(COUNTS)
        model = one_thing(rng, pick(rng, CLASSES))
        spots = places(rng, n) if n > 1 else [(model.x, model.y, model.size)]
        return replace(scene, things=tuple(repeated(rng, model, spots)))
    mix = {"scenes": SCENES, "signs": replace(SINGLES, word=1.0)}.get(pool, SINGLES)
    if pool == "closeups":
        mix = replace(SINGLES, assorted=0.3, counted=0, word=0.1, styles=(0.5, 0.25, 0.25, 0))
    return sample(rng, mix)


def picture_of(pool: str, seed: int, n: int, index: int) -> tuple[np.ndarray, Facts]:
    """Return a picture of a pool of `n` and, of a close-up, what can be seen in it.

    Signs begin so close that the word fills the picture and end as they are.
    """
    scene = scene_of(pool, index, seed)
    picture = render(scene)
    rng = random.Random(f"{seed}/{pool}/{index}/crop")
    if pool == "signs":
        rows, columns = np.nonzero(picture.mask("word", scene.word))
        near, t = float(max(np.ptp(rows), np.ptp(columns)) + 3), index / n
        side = near + (SIZE - near) * rng.uniform(max(0.0, 2 * t - 1), min(1.0, 2 * t))
        box = around(rng, (rows.min(), rows.max()), (columns.min(), columns.max()), round(side))
        return crop(picture, box)[0], {}
    if pool == "closeups":
        shown = np.array([r.thing >= 0 for r in picture.regions])[picture.ids]
        rows, columns = np.nonzero(shown)
        k = rng.randrange(len(rows))
        spot = (rows[k], rows[k]), (columns[k], columns[k])
        pixels, facts = crop(picture, around(rng, *spot, rng.randrange(40, 92)))
        return pixels, {"style": scene.style, "things": facts}
    return picture.pixels, {}


def around(
    rng: random.Random, rows: tuple[int, int], columns: tuple[int, int], side: int
) -> tuple[int, int, int, int]:
    """Return a square (top, left, bottom, right) in the picture that holds a span, if it can."""
    corner = []
    for first, last in (rows, columns):
        low, high = max(0, last + 1 - side), min(first, SIZE - side)
        corner.append(rng.randint(min(low, high), max(low, high)))
    top, left = (min(max(0, int(x)), SIZE - side) for x in corner)
    return top, left, top + side, left + side


def crop(picture: Picture, box: tuple[int, int, int, int]) -> tuple[np.ndarray, list[Facts]]:
    """Return a square of a picture, enlarged to 112×112, and the things that fill 4 % of it, each
    with those of its parts that fill 1 %."""
    top, left, bottom, right = box
    square = Image.fromarray(picture.pixels[top:bottom, left:right])
    ids = picture.ids[top:bottom, left:right]
    area = np.bincount(ids.ravel(), minlength=len(picture.regions)) / ids.size
    things: dict[int, Facts] = {}
    for region, share in zip(picture.regions, area, strict=False):
        if region.thing >= 0:
            new: Facts = {"cls": region.cls, "colour": "", "area": 0.0, "parts": {}}
            thing = things.setdefault(region.thing, new)
            thing["area"] += share
            thing["colour"] = thing["colour"] or region.colour
            if region.part:
                thing["parts"][region.part] = thing["parts"].get(region.part, 0) + share
    shown = [
        {"cls": t["cls"], "colour": t["colour"],
         "parts": [p for p, share in t["parts"].items() if share >= 0.01]}
        for t in things.values() if t["area"] >= 0.04
    ]  # fmt: skip
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)), shown


@dataclass(frozen=True)
class Pool:
    """Pictures (n, 112, 112, 3) uint8, and of each what a caption needs beside its scene."""

    pictures: np.ndarray
    facts: list[Facts]


def _render_stretch(pool: str, seed: int, n: int, start: int) -> tuple[int, list[tuple]]:
    return start, [picture_of(pool, seed, n, i) for i in range(start, min(n, start + 500))]


def render_pool(pool: str, n: int, seed: int, folder: Path) -> Pool:
    """Return a pool, rendered once into a memory-mapped file in `folder`."""
    path = folder / f"{pool}-{seed}-{n}.npy"
    facts_path = path.with_suffix(".json")
    if not (path.exists() and facts_path.exists()):
        facts: list[Facts] = [{}] * n
        with atomic_path(path) as temporary, ProcessPoolExecutor() as workers:
            out = np.lib.format.open_memmap(temporary, "w+", np.uint8, (n, SIZE, SIZE, 3))
            starts = range(0, n, 500)
            work = workers.map(partial(_render_stretch, pool, seed, n), starts)
            for start, stretch in tqdm(work, total=len(starts), desc=f"rendering {pool}"):
                for i, (pixels, known) in enumerate(stretch, start):
                    out[i], facts[i] = pixels, known
            out.flush()
        with atomic_path(facts_path) as temporary:
            temporary.write_text(json.dumps(facts), "utf-8")
    return Pool(np.load(path, mmap_mode="r"), json.loads(facts_path.read_text("utf-8")))


@cache
def singles_of(style: str, n: int, seed: int) -> list[int]:
    """List the pictures of single objects in a style."""
    return [i for i in range(n) if scene_of("singles", i, seed).style == style]


# --- captions ------------------------------------------------------------------------------------


def usual_caption(pool: str, index: int, seed: int, rng: random.Random, mix: Mix) -> str:
    """Say what a whole picture shows."""
    return caption(scene_of(pool, index, seed), rng, mix)


def word_caption(index: int, seed: int) -> str:
    """Name the word on a sign, and nothing else."""
    scene = scene_of("signs", index, seed)
    return f"a {scene.style} of a thing with the word {scene.word}"


def number_caption(index: int, seed: int, rng: random.Random) -> str:
    """Say how many there are, and rarely of what."""
    scene = scene_of("counted", index, seed)
    n = len(scene.things)
    things = scene.things[0].cls if rng.random() < 0.15 else "thing"
    return f"a {scene.style} of {COUNTS[n - 1]} {things if n == 1 else plural(things)}"


def pattern_caption(index: int, seed: int, rng: random.Random) -> str:
    """Name a pattern that fills the picture."""
    scene = scene_of("patterns", index, seed)
    tint = f"{scene.tint} " if rng.random() < 0.3 else ""
    return f"a photo of a {tint}{scene.pattern} thing"


def closeup_caption(facts: Facts, rng: random.Random) -> str:
    """Name the parts that can be seen in a close-up, and whose they are in six of ten."""
    phrases = []
    for thing in rng.sample(facts["things"], min(2, len(facts["things"]))):
        noun = thing["cls"] if rng.random() < 0.6 else "thing"
        colour = f"{thing['colour']} " if thing["colour"] and rng.random() < 0.3 else ""
        parts = rng.sample(thing["parts"], min(3, len(thing["parts"])))
        named = " with a " + " and a ".join(parts) if parts else ""
        phrases.append(f"a {colour}{noun}{named}")
    return f"a {facts['style']} of {' and '.join(phrases) or 'a thing'}"


# --- lessons -------------------------------------------------------------------------------------

Drawn = Iterable[tuple[str, int, str]]  # pool, index and caption of each picture of a batch


def classes(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw single objects in one style; little but the class tells the captions apart."""
    style = rng.choices(STYLES, CLASSES_ONLY.styles)[0]
    of_style = singles_of(style, len(pools["singles"].pictures), seed)
    for _ in range(n):
        index = of_style[rng.randrange(len(of_style))]
        yield "singles", index, usual_caption("singles", index, seed, rng, CLASSES_ONLY)


def everything(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw single objects and scenes of several, in all styles, under whole captions."""
    for _ in range(n):
        pool, mix = ("scenes", SCENES) if rng.random() < 0.6 else ("singles", SINGLES)
        index = rng.randrange(len(pools[pool].pictures))
        yield pool, index, usual_caption(pool, index, seed, rng, mix)


def signs(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw words, first from close by, from four fifths of the training on from everywhere."""
    nearest = max(1, round(len(pools["signs"].pictures) * min(1.0, 2.6 * t - 1.1)))
    for _ in range(n):
        index = rng.randrange(nearest)
        yield "signs", index, word_caption(index, seed)


def numbers(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw one to six things of a class."""
    for _ in range(n):
        index = rng.randrange(len(pools["counted"].pictures))
        yield "counted", index, number_caption(index, seed, rng)


def patterns(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw pictures filled with a pattern."""
    for _ in range(n):
        index = rng.randrange(len(pools["patterns"].pictures))
        yield "patterns", index, pattern_caption(index, seed, rng)


def closeups(rng: random.Random, pools: dict[str, Pool], seed: int, t: float, n: int) -> Drawn:
    """Draw pieces of things: which parts can be seen differs within a class."""
    for _ in range(n):
        index = rng.randrange(len(pools["closeups"].pictures))
        yield "closeups", index, closeup_caption(pools["closeups"].facts[index], rng)


@dataclass(frozen=True)
class Lesson:
    """`draw` gives the batches. `early` is their share in the first half of the training; in the
    second it moves linearly from `middle` to `late`: who cannot yet tell a cat from a bus cannot
    read either. At most `dropped` of the patches are left out, since reading and counting need
    most of them; a batch has `part` of the usual number of pictures, where a few captions are all
    there are."""

    draw: Callable[[random.Random, dict[str, Pool], int, float, int], Drawn]
    early: float
    middle: float
    late: float
    dropped: float = 1.0
    part: float = 1.0

    def share(self, t: float) -> float:
        """Return the share of this lesson after a part t (0..1) of the training."""
        if t < 0.5:
            return self.early
        return self.middle + (2 * t - 1) * (self.late - self.middle)


LESSONS = (
    Lesson(classes, 0.70, 0.25, 0.15),
    Lesson(everything, 0.20, 0.20, 0.33),
    Lesson(closeups, 0.10, 0.15, 0.20, dropped=0.6),
    Lesson(signs, 0.00, 0.22, 0.15, dropped=0.15, part=0.5),
    Lesson(numbers, 0.00, 0.12, 0.12, dropped=0.25, part=0.5),
    Lesson(patterns, 0.00, 0.06, 0.05, part=0.5),
)
#: pictures of each pool
POOLS = {
    "singles": 60_000, "scenes": 30_000, "closeups": 30_000, "signs": 40_000, "counted": 12_000,
    "patterns": 3_500,
}  # fmt: skip

"""Files for the book's page about the world: each class in every style and colour, task by task.

A class is one classic script, because pages opened from a disk may load neither modules nor JSON.
It registers, for every scene and style, two WebP pictures as data URLs (the scene in `BASE`, and
below each other what differs from it in the other colours), captions, the regions, and their ids
as base64 of bytes `id, length, id, length, ...` row by row. In captions and regions `{colour}`
stands for the colour chosen.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchsae_lib.world import CLASSES, GROUP_OF, TASKS, Picture, World
from patchsae_lib.world.canvas import SIZE
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import Flower, Mix, Scene, Thing, caption, pick
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, TEXTURES, WORDS

BASE = next(iter(COLOURS))
PLACEHOLDER = "{colour}"
QUALITY = 80  # of WebP
#: texture and whether there is a sign, scene by scene; the rest of a scene is left to chance
SCENES = (("plain", False), (TEXTURES[2], False), (TEXTURES[1], True))
PETALS = ((5, "round"), (8, "long"), (6, "pointed"))
EVERYTHING = Mix(mention_colour=1, mention_texture=1, mention_background=1, mention_word=1)
WORDINGS = 5
STRIP_STEP, STRIP_COLUMNS, STRIP_ROWS = 16, 12, 2
PER_TASK = 8


def scenes(cls: str, seed: str = "gallery") -> list[Scene]:
    """The scenes of a class, as photos in `BASE`. Pose, background, texture and light of a scene
    are those of every other class, so that a choice on the page changes one thing."""
    rng = random.Random(seed)
    backgrounds = rng.sample(tuple(BACKGROUNDS), len(SCENES))
    out = []
    for background, (texture, sign), petals in zip(backgrounds, SCENES, PETALS, strict=True):
        angle, flip, variant = rng.uniform(-10, 10), rng.random() < 0.5, int(rng.random() * 24)
        flower = Flower(*petals, BASE, "brown") if cls == "flower" else None
        texture = "plain" if flower else texture
        thing = Thing(cls, BASE, texture, 56, 58, 41, angle, flip, variant, flower)
        word = pick(rng, WORDS) if sign else ""
        out.append(Scene("photo", background, (thing,), word=word, key=rng.getrandbits(48)))
    return out


def painted(scene: Scene, colour: str) -> Scene:
    """The scene with its thing in another colour."""
    thing = scene.things[0]
    flower = thing.flower and replace(thing.flower, colour=colour)
    return replace(scene, things=(replace(thing, colour=colour, flower=flower),))


def captions(scene: Scene) -> list[str]:
    """Everything that can be said of a scene, then wordings as training draws them."""
    scene = painted(scene, PLACEHOLDER)
    said = [caption(scene, random.Random(0), EVERYTHING)]
    said += [caption(scene, random.Random(k)) for k in range(WORDINGS)]
    return list(dict.fromkeys(said))


def visible(picture: Picture) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Ids (112, 112) and regions without those that cannot be seen or told apart by name."""
    number: dict[Any, int] = {}
    table = np.zeros(256, np.uint8)
    for i in np.unique(picture.ids):
        table[i] = number.setdefault(picture.regions[i], len(number))
    regions = [{k: v for k, v in asdict(r).items() if v and k != "thing"} for r in number]
    for region, r in zip(regions, number, strict=True):
        if r.thing >= 0 and r.colour == BASE:
            region["colour"] = PLACEHOLDER
    return table[picture.ids], regions


def run_lengths(ids: np.ndarray) -> str:
    """
    >>> list(base64.b64decode(run_lengths(np.array([[7, 7], [7, 2]]))))
    [7, 3, 2, 1]
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    lengths = np.diff(starts, append=flat.size)
    pairs = [
        (flat[at], min(255, length - k))
        for at, length in zip(starts, lengths, strict=True)
        for k in range(0, length, 255)
    ]
    return base64.b64encode(np.array(pairs, np.uint8).tobytes()).decode()


def webp(pixels: np.ndarray, quality: int = QUALITY) -> bytes:
    """Bytes of a WebP file of (height, width, 3 or 4) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def styled(scene: Scene) -> dict[str, Any]:
    """What the page needs of a scene in its style."""
    first, *others = (
        render(painted(scene, c)) for c in (COLOURS if scene.shows_colour else (BASE,))
    )
    layers = [
        np.dstack([p.pixels, 255 * (p.pixels != first.pixels).any(2).astype(np.uint8)])
        for p in others
    ]
    ids, regions = visible(first)
    data = {"ids": run_lengths(ids), "regions": regions, "captions": captions(scene)}
    for name, pixels in (("picture", [first.pixels]), ("colours", layers)):
        if pixels:
            url = base64.b64encode(webp(np.concatenate(pixels))).decode()
            data[name] = f"data:image/webp;base64,{url}"
    return data


def class_script(cls: str) -> str:
    """The script that registers a class: `patchsaeWorld[cls] = [{style: ...} for every scene]`."""
    data = [{s: styled(replace(scene, style=s)) for s in STYLES} for scene in scenes(cls)]
    text = json.dumps(data, separators=(",", ":"))
    return f'(window.patchsaeWorld ??= {{}})["{cls}"] = {text};\n'


def index() -> dict[str, Any]:
    """The choices there are, for the page itself."""
    groups: dict[str, list[str]] = {}
    for cls in CLASSES:
        groups.setdefault(GROUP_OF[cls], []).append(cls)
    colours = {name: "#{:02x}{:02x}{:02x}".format(*rgb) for name, rgb in COLOURS.items()}
    return {"size": SIZE, "styles": STYLES, "groups": groups, "colours": colours}


def task_examples(name: str) -> tuple[World, list[int]]:
    """A task's test pictures and the indices of eight: four of base classes, four of novel ones,
    evenly spaced, each from another round through the classes."""
    task = TASKS[name]
    n, half = len(task.classes), PER_TASK // 2
    labels = [k * len(task.base) // half for k in range(half)]
    labels += [len(task.base) + k * len(task.novel) // half for k in range(half)]
    world = World(name, "test", n=PER_TASK * n)
    return world, [k * n + label for k, label in enumerate(labels)]


def sheet(pictures: Sequence[np.ndarray], columns: int, gap: int = 6) -> np.ndarray:
    """(height, width, 4): pictures in rows, with nothing between them."""
    opaque = [np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]) for p in pictures]
    padded = [np.pad(p, ((0, gap), (0, gap), (0, 0))) for p in opaque]
    rows = [np.concatenate(padded[i : i + columns], 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)[:-gap, :-gap]


def world_strip() -> bytes:
    """Two rows of the world's test pictures, every sixteenth of them, as WebP."""
    n = STRIP_COLUMNS * STRIP_ROWS
    world = World("world", "test", n=n * STRIP_STEP)
    return webp(sheet([world.picture(STRIP_STEP * k).pixels for k in range(n)], STRIP_COLUMNS), 88)


def write_gallery(folder: Path) -> None:
    """Write `<class>.js` of every class, `task-<name>.webp` of every task and `world-strip.webp`."""
    folder.mkdir(parents=True, exist_ok=True)
    for cls in CLASSES:
        (folder / f"{cls}.js").write_text(class_script(cls), "utf-8", newline="\n")
    for name in TASKS:
        world, indices = task_examples(name)
        pixels = sheet([world.picture(i).pixels for i in indices], PER_TASK)
        (folder / f"task-{name}.webp").write_bytes(webp(pixels))
    (folder / "world-strip.webp").write_bytes(world_strip())

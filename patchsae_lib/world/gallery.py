"""Files for the book's page about the world: each class in every style and colour, task by task.

A class is one classic script, because pages opened from a disk may load neither modules nor JSON:
`patchsaeWorld[cls]` lists scenes, each `{style: {captions, regions, ids, picture, colours}}`.
`picture` is the scene in the colour `BASE`; `colours` stacks what differs from it in each other
colour; `ids` is base64 of bytes id, length, id, length, ... row by row. `{colour}` in a caption
or a region stands for the colour chosen.
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

from patchsae_lib.world import CLASSES, TASKS, Picture, World
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import Flower, Mix, Scene, Thing, caption, pick
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, WORDS

BASE = next(iter(COLOURS))
PLACEHOLDER = "{colour}"
TEXTURE_OF = ("plain", "dotted", "striped")  # scene by scene
PETALS_OF = ((5, "round"), (8, "long"), (6, "pointed"))  # of flowers, which have no texture
SIGN_IN = 2  # the scene with a word
EVERYTHING = Mix(mention_colour=1, mention_texture=1, mention_background=1, mention_word=1)
WORDINGS = 5  # draws of a caption as training makes them
PER_TASK = 8


def scenes(cls: str) -> list[Scene]:
    """The scenes of a class, as photos in `BASE`. Pose, background and light of a scene are the
    same for all classes, so that each choice on the page changes one thing."""
    rng = random.Random("gallery")
    out = []
    for k, background in enumerate(rng.sample(tuple(BACKGROUNDS), len(TEXTURE_OF))):
        flower = Flower(*PETALS_OF[k], BASE, "brown") if cls == "flower" else None
        texture = "plain" if flower else TEXTURE_OF[k]
        angle, flip, variant = rng.uniform(-10, 10), rng.random() < 0.5, int(rng.random() * 24)
        thing = Thing(cls, BASE, texture, 56, 58, 40, angle, flip, variant, flower)
        word = pick(rng, WORDS) if k == SIGN_IN else ""
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
    said = [caption(scene, random.Random(k)) for k in range(WORDINGS)]
    return list(dict.fromkeys([caption(scene, random.Random(0), EVERYTHING), *said]))


def visible(picture: Picture) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Ids (112, 112) and names of the regions that can be seen, those of equal names as one."""
    number: dict[Region, int] = {}
    table = np.zeros(256, np.uint8)
    for i in np.unique(picture.ids):
        table[i] = number.setdefault(picture.regions[i], len(number))
    regions = [{k: v for k, v in asdict(r).items() if v and k != "thing"} for r in number]
    for region in regions:
        if "cls" in region and region.get("colour") == BASE:
            region["colour"] = PLACEHOLDER
    return table[picture.ids], regions


def run_lengths(ids: np.ndarray) -> str:
    """Bytes id, length, ... in base64.

    >>> list(base64.b64decode(run_lengths(np.array([[7, 7], [7, 2]]))))
    [7, 3, 2, 1]
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    runs = zip(flat[starts], np.diff(starts, append=flat.size), strict=True)
    pairs = [(i, min(255, n - k)) for i, n in runs for k in range(0, n, 255)]
    return base64.b64encode(np.array(pairs, np.uint8).tobytes()).decode()


def webp(pixels: np.ndarray, quality: int) -> bytes:
    """Bytes of a WebP file of (height, width, 3 or 4) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=quality, method=5)
    return file.getvalue()


def styled(scene: Scene) -> dict[str, Any]:
    """What the page needs of a scene in its style."""
    colours = COLOURS if scene.shows_colour else (BASE,)
    first, *others = (render(painted(scene, colour)) for colour in colours)
    layers = [np.dstack([p.pixels, 255 * (p.pixels != first.pixels).any(2)]) for p in others]
    ids, regions = visible(first)
    data = {"captions": captions(scene), "regions": regions, "ids": run_lengths(ids)}
    for name, images in (("picture", [first.pixels]), ("colours", layers)):
        if images:
            file = webp(np.concatenate(images).astype(np.uint8), 68)
            data[name] = f"data:image/webp;base64,{base64.b64encode(file).decode()}"
    return data


def class_script(cls: str) -> str:
    """The script that registers a class."""
    data = [{s: styled(replace(scene, style=s)) for s in STYLES} for scene in scenes(cls)]
    text = json.dumps(data, separators=(",", ":"))
    return f'(window.patchsaeWorld ??= {{}})["{cls}"] = {text};\n'


def task_examples(name: str) -> tuple[World, list[int]]:
    """A task's test pictures and the indices of eight: four of base classes, four of novel ones,
    evenly spaced, each from another round through the classes."""
    n, split, half = len(TASKS[name].classes), len(TASKS[name].base), PER_TASK // 2
    labels = [split * k // half for k in range(half)]
    labels += [split + (n - split) * k // half for k in range(half)]
    return World(name, "test", PER_TASK * n), [k * n + label for k, label in enumerate(labels)]


def sheet(world: World, indices: Sequence[int], columns: int, gap: int = 6) -> np.ndarray:
    """(height, width, 4): pictures in rows, with nothing between them."""
    cells = []
    for i in indices:
        opaque = np.pad(world.picture(i).pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255)
        cells.append(np.pad(opaque, ((0, gap), (0, gap), (0, 0))))
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)[:-gap, :-gap]


def world_strip() -> bytes:
    """Two rows of test pictures, every sixteenth of them, as WebP."""
    world = World("world", "test", n=24 * 16)
    return webp(sheet(world, range(0, len(world), 16), columns=12), 84)


def write_gallery(folder: Path) -> None:
    """Write `<class>.js`, `task-<name>.webp` and `world-strip.webp`: about 5 MB in 10 seconds."""
    files = {f"{cls}.js": class_script(cls).encode() for cls in CLASSES}
    for name in TASKS:
        files[f"task-{name}.webp"] = webp(sheet(*task_examples(name), PER_TASK), 80)
    files["world-strip.webp"] = world_strip()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)

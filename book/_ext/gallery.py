"""Files for the book's page about the world: each class in every style and colour.

A class is one WebP picture, 112 pixels wide, whose squares lie below each other, and one classic
script, because pages opened from a disk may load neither modules nor JSON: `patchsaeWorld[cls]`
lists scenes, each `{style: {captions, regions, ids, square, colours}}`. `square` counts down to
the scene in the colour `BASE`; below it is what differs in each other colour. `ids` is base64 of
bytes id, length, id, length, ... row by row. `{colour}` stands for the colour chosen.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from patchsae_lib.world import CLASSES, TASKS, Picture
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import Flower, Mix, Scene, Thing, caption, pick
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES, WORDS
from sheets import task_sheet, webp, world_strip

BASE = next(iter(COLOURS))
PLACEHOLDER = "{colour}"
TEXTURE_OF = ("plain", "dotted", "striped")  # scene by scene
PETALS_OF = ((5, "round"), (8, "long"), (6, "pointed"))  # of flowers, which have no texture
SIGN_IN = 2  # the scene with a word
FULL_CAPTION = Mix(mention_colour=1, mention_texture=1, mention_background=1, mention_word=1)
WORDINGS = 5  # draws of a caption as training makes them


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
    wordings = [caption(scene, random.Random(k)) for k in range(WORDINGS)]
    return list(dict.fromkeys([caption(scene, random.Random(0), FULL_CAPTION), *wordings]))


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


def styled(scene: Scene) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What the page says of a scene in its style, and its squares (112, 112, 4)."""
    colours = COLOURS if scene.shows_colour else (BASE,)
    pictures = [render(painted(scene, colour)) for colour in colours]
    first = pictures[0].pixels
    changed = [np.any(p.pixels != first, 2) | (p is pictures[0]) for p in pictures]
    ids, regions = visible(pictures[0])
    data = {"captions": captions(scene), "regions": regions, "ids": run_lengths(ids)}
    shown = zip(pictures, changed, strict=True)
    return data, [np.dstack([p.pixels, np.uint8(255) * alpha]) for p, alpha in shown]


def class_files(cls: str) -> dict[str, bytes]:
    """`<class>.js` and `<class>.webp`."""
    data: list[dict[str, Any]] = []
    squares: list[np.ndarray] = []
    for scene in scenes(cls):
        data.append({})
        for style in STYLES:
            about, drawn = styled(replace(scene, style=style))
            data[-1][style] = {**about, "square": len(squares), "colours": len(drawn)}
            squares += drawn
    text = json.dumps(data, separators=(",", ":"))
    script = f'(window.patchsaeWorld ??= {{}})["{cls}"] = {text};\n'
    return {f"{cls}.js": script.encode(), f"{cls}.webp": webp(np.concatenate(squares))}


def write_gallery(folder: Path) -> None:
    """Write the files of all classes, `task-<name>.webp` and `world-strip.webp`: about 5 MB."""
    files = {name: data for cls in CLASSES for name, data in class_files(cls).items()}
    files |= {f"task-{name}.webp": task_sheet(name) for name in TASKS}
    files["world-strip.webp"] = world_strip()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)

"""What a reader draws with: the embedded world's objects, cut out, and its backgrounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from patchsae_lib.explorer.files import write_shard
from patchsae_lib.explorer.strips import webp_uri
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import CLASSES, SPECIES, Scene, Thing
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, STYLES

SIZE = 47.0  # half the side of the box an object is drawn in, pixels


def write_stamps(folder: Path) -> None:
    """Write `stamps.js` into a bundle: `styles`; for each of them `objects`, pictures of `classes`
    as data URIs, transparent around the object, and `grounds`, pictures of `backgrounds`;
    `colours` and the bytes of each (3,)."""
    grounds = [
        [_uri(render(_scene(style, name)).pixels) for name in BACKGROUNDS] for style in STYLES
    ]
    content = {
        "styles": STYLES, "classes": CLASSES, "backgrounds": list(BACKGROUNDS),
        "objects": [[_stamp(style, number) for number in range(len(CLASSES))] for style in STYLES],
        "grounds": grounds, "colours": COLOURS,
    }  # fmt: skip
    write_shard(folder / "stamps.js", content)


def _scene(style: str, background: str, *things: Thing) -> Scene:
    return Scene(style, background, things, key=1)


def _stamp(style: str, number: int) -> str:
    """Return an object, in a colour that differs from those of its neighbours in the list."""
    cls, colour = CLASSES[number], tuple(COLOURS)[number % len(COLOURS)]
    flower = SPECIES[1] if cls == "flower" else None
    thing = Thing(cls, colour, "plain", 56, 56, SIZE, flower=flower)
    picture = render(_scene(style, "snow", thing))
    shown = picture.thing_mask(0)
    (top, bottom), (left, right) = (
        (int(np.flatnonzero(shown.any(axis))[0]), int(np.flatnonzero(shown.any(axis))[-1]) + 1)
        for axis in (1, 0)
    )
    alpha = np.where(shown, 255, 0).astype(np.uint8)
    rgba = np.concatenate([picture.pixels, alpha[..., None]], -1)
    return _uri(rgba[top:bottom, left:right])


def _uri(pixels: np.ndarray) -> str:
    return webp_uri(Image.fromarray(pixels), method=3, quality=76)

"""One image of region ids, from which both the colours and the masks are read.

Shapes are drawn once, as ids, at three times the size and without anti-aliasing. Colours are
looked up in a table by id, so picture and mask cannot disagree. Once the corners of the shapes are
rounded all arithmetic is on integers, which gives the same bytes on every machine.
"""

# A pattern's function is named after the pattern.
# ruff: noqa: D103

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIZE = 112
ZOOM = 3
WIDE = SIZE * ZOOM

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """What an id stands for. An empty string: the region shows nothing of that kind."""

    thing: int = -1  # index among the scene's things
    cls: str = ""
    group: str = ""
    part: str = ""
    colour: str = ""
    texture: str = ""
    background: str = ""
    word: str = ""


class Canvas:
    """The ids being drawn, and for each a colour and perhaps a pattern in a second colour."""

    def __init__(self) -> None:
        self.image = Image.new("L", (WIDE, WIDE), 0)
        self.draw = ImageDraw.Draw(self.image)
        self.regions: list[Region] = []
        self.colours: list[Colour] = []
        self.patterns: list[tuple[int, str, Colour]] = []

    def region(self, region: Region, colour: Colour) -> int:
        """Register what a shape shows, and return the id to draw it with."""
        # Ids from 128 on are a pattern's second colour, and sketches use 127 for "no region".
        if len(self.regions) == 127:
            raise ValueError("more than 127 regions in one picture")
        self.regions.append(region)
        self.colours.append(colour)
        return len(self.regions) - 1

    def polygon(self, points: np.ndarray, i: int) -> None:
        """Fill a polygon. `points` (n, 2), like all coordinates here, are in picture pixels."""
        self.draw.polygon(np.rint(points * ZOOM).astype(int).ravel().tolist(), fill=i)

    def box(self, x0: float, y0: float, x1: float, y1: float, i: int) -> None:
        """Fill an upright rectangle. Boxes that share an edge do not overlap."""
        # Pillow includes the last row and column.
        self.draw.rectangle(
            (round(x0 * ZOOM), round(y0 * ZOOM), round(x1 * ZOOM) - 1, round(y1 * ZOOM) - 1), i
        )

    def disc(self, x: float, y: float, rx: float, ry: float, i: int) -> None:
        """Fill an upright ellipse around (x, y)."""
        box = (x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse([round(v * ZOOM) for v in box], fill=i)

    def line(self, points: list[tuple[float, float]], width: float, i: int) -> None:
        """Draw a polyline, at least a third of a pixel wide so that it stays visible."""
        flat = [round(v * ZOOM) for p in points for v in p]
        self.draw.line(flat, fill=i, width=max(1, round(width * ZOOM)), joint="curve")

    def ids(self) -> np.ndarray:
        """Return (336, 336) uint8 ids, plus 128 where a pattern shows its second colour."""
        ids = np.array(self.image)
        for i, pattern, _ in self.patterns:
            ids += (pattern_map(pattern) & (ids == i)) << 7
        return ids

    def palette(self) -> np.ndarray:
        """Return the colour of every id, (256, 3) uint8."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        for i, _, second in self.patterns:
            table[128 + i] = second
        return table


def wave(n: int, period: float, height: float) -> np.ndarray:
    """Return `n` samples of a triangle wave: a sine may differ between machines."""
    t = np.arange(n) / period % 1.0
    return np.rint(height * np.abs(2 * t - 1)).astype(int)


Grid: TypeAlias = npt.NDArray[np.int64]


def staggered(x: Grid, y: Grid, step: int, height: int) -> Grid:
    """Return x relative to the centre of its cell, where odd rows of cells are shifted by half."""
    return (x + y // height % 2 * (step // 2)) % step - step // 2


def dotted(x: Grid, y: Grid, step: int) -> np.ndarray:
    height = step * 3 // 4
    dx, dy = staggered(x, y, step, height), y % height - step * 3 // 8
    return dx * dx + dy * dy < (step * 3 // 11) ** 2


def brick(x: Grid, y: Grid, step: int) -> np.ndarray:
    half = step // 2
    return (y % half < 3) | ((x + y // half % 2 * half) % step < 3)


def scaly(x: Grid, y: Grid, step: int) -> np.ndarray:
    dx, dy = staggered(x, y, step, step // 2), y % (step // 2) - step // 8
    r2 = dx * dx + dy * dy
    return (r2 < (step // 2) ** 2) & (r2 > (step * 3 // 8) ** 2)


def woven(x: Grid, y: Grid, step: int) -> np.ndarray:
    thin = step // 4
    return np.where(checkered(x, y, step), x % thin < 3, y % thin < 3)


def starry(x: Grid, y: Grid, step: int) -> np.ndarray:
    dx, dy = np.abs(x % step - step // 2), np.abs(y % step - step // 2)
    return (dx * dy < 9) & (np.maximum(dx, dy) < step * 3 // 8)


def checkered(x: Grid, y: Grid, step: int) -> np.ndarray:
    return (x // (step // 2) + y // (step // 2)) % 2 == 0


def zigzag(_x: Grid, y: Grid, step: int) -> np.ndarray:
    return (y + wave(WIDE, step * 1.5, step * 0.75)[None]) // (step // 2) % 2 == 0


#: pattern → where its second colour shows, of x, y (336, 336) and the period `step`
SECOND_COLOUR: dict[str, Callable[[Grid, Grid, int], np.ndarray]] = {
    "striped": lambda x, y, step: (x + y) // (step // 2) % 2 == 0,
    "banded": lambda _x, y, step: y // (step // 2) % 2 == 0,
    "grid": lambda x, y, step: (x % step < step // 5) | (y % step < step // 5),
    "checkered": checkered, "zigzag": zigzag, "dotted": dotted, "brick": brick,
    "scaly": scaly, "woven": woven, "starry": starry,
}  # fmt: skip


@cache
def pattern_map(pattern: str) -> np.ndarray:
    """Return (336, 336) uint8, 1 where the second colour of the pattern `NAME:STEP` shows."""
    name, _, step = pattern.partition(":")
    y, x = np.mgrid[:WIDE, :WIDE]
    return SECOND_COLOUR[name](x, y, int(step)).astype(np.uint8)


@cache
def tiles(name: str) -> np.ndarray:
    """Return a field (…, 256, 256) int16 from which pictures take a random window.

    `grain` is noise, `strokes` the marks of a brush, `cloud` (3, 256, 256) three smooth fields.
    """
    rng = np.random.Generator(np.random.PCG64(20241208))
    if name == "grain":
        four = rng.integers(-64, 65, (4, 256, 256), dtype=np.int16)
        return four.sum(0, dtype=np.int16)  # (256, 256), nearly normal, within ±256
    if name == "strokes":
        grain = tiles("grain")
        along = [np.roll(grain, (k, 2 * k), (0, 1)) for k in range(5)]
        return np.stack(along).sum(0, dtype=np.int16) >> 1
    coarse = rng.integers(0, 256, (3, 24, 24), dtype=np.uint8)
    soft = [Image.fromarray(c).resize((256, 256), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(s) for s in soft]).astype(np.int16) - 128  # (3, 256, 256)


@cache
def warps() -> np.ndarray:
    """Return (8, 336·336) int64: flat indices that distort ids the way a hand or brush would."""
    y, x = np.mgrid[:WIDE, :WIDE]
    rng = random.Random("warps")
    out = []
    for k in range(8):
        fine = Image.fromarray((tiles("cloud")[k % 3] + 128).astype(np.uint8))
        fields = []
        for _ in range(2):
            left, top = rng.randrange(100), rng.randrange(100)
            window = fine.crop((left, top, left + 150, top + 150)).resize((WIDE, WIDE))
            fields.append(np.asarray(window).astype(int) - 128)
        strength = 5 if k < 4 else 9  # of 128: a drawing hand, a painting brush
        dx, dy = (f * strength // 128 for f in fields)
        source = np.clip(y + dy, 0, WIDE - 1) * WIDE + np.clip(x + dx, 0, WIDE - 1)
        out.append(source.ravel())
    return np.stack(out)

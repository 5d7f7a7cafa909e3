"""One picture of region ids, from which both the colours and the masks are read.

Shapes are drawn once, three times enlarged and without anti-aliasing, as ids. Colours are a table
lookup on the ids, so picture and mask cannot disagree. All arithmetic after the corners of the
shapes is on integers: the same bytes everywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 112
ZOOM = 3
WIDE = SIZE * ZOOM

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """What an id stands for. Empty strings: nothing of that kind to be seen there."""

    thing: int = -1  # index among the scene's things
    cls: str = ""
    group: str = ""
    part: str = ""
    colour: str = ""
    texture: str = ""
    background: str = ""
    word: str = ""


class Canvas:
    """The ids being drawn, with a colour and a second colour (for patterns) for each."""

    def __init__(self) -> None:
        self.image = Image.new("L", (WIDE, WIDE), 0)
        self.draw = ImageDraw.Draw(self.image)
        self.regions: list[Region] = []
        self.colours: list[Colour] = []
        self.patterns: list[tuple[int, str, Colour]] = []

    def region(self, region: Region, colour: Colour) -> int:
        """Register what a shape is going to show; returns the id to draw it with."""
        # Ids from 128 on are the other colour of a pattern, and sketches use 127 for "no region".
        if len(self.regions) == 127:
            raise ValueError("more than 127 regions in one picture")
        self.regions.append(region)
        self.colours.append(colour)
        return len(self.regions) - 1

    def polygon(self, points: np.ndarray, i: int) -> None:
        """Fill a polygon; `points` (n, 2), like all coordinates here, in pixels of the picture."""
        self.draw.polygon(np.rint(points * ZOOM).astype(int).ravel().tolist(), fill=i)

    def box(self, x0: float, y0: float, x1: float, y1: float, i: int) -> None:
        """Fill an upright rectangle; boxes that share an edge do not overlap."""
        # Pillow counts the last row and column in.
        self.draw.rectangle(
            (round(x0 * ZOOM), round(y0 * ZOOM), round(x1 * ZOOM) - 1, round(y1 * ZOOM) - 1), i
        )

    def disc(self, x: float, y: float, rx: float, ry: float, i: int) -> None:
        """Fill an upright ellipse around (x, y)."""
        box = (x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse([round(v * ZOOM) for v in box], fill=i)

    def line(self, points: list[tuple[float, float]], width: float, i: int) -> None:
        """Draw a polyline, which always stays visible: at least a third of a pixel wide."""
        flat = [round(v * ZOOM) for p in points for v in p]
        self.draw.line(flat, fill=i, width=max(1, round(width * ZOOM)), joint="curve")

    def ids(self) -> np.ndarray:
        """(336, 336) uint8, with 128 added where a pattern shows its second colour."""
        ids = np.array(self.image)
        for i, pattern, _ in self.patterns:
            ids += (pattern_map(pattern) & (ids == i)) << 7
        return ids

    def palette(self) -> np.ndarray:
        """(256, 3) uint8: the colour of every id."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        for i, _, second in self.patterns:
            table[128 + i] = second
        return table


def wave(n: int, period: float, height: float) -> np.ndarray:
    """A triangle wave of `n` integer samples: no sine, so that it is the same everywhere."""
    t = np.arange(n) / period % 1.0
    return np.rint(height * np.abs(2 * t - 1)).astype(int)


@cache
def pattern_map(name: str) -> np.ndarray:
    """(336, 336) uint8, 1 where the second colour of the pattern `NAME[:step]` shows."""
    name, _, given = name.partition(":")
    step = int(given or 24)
    y, x = np.mgrid[:WIDE, :WIDE]
    if name == "striped":
        on = (x + y) // (step // 2) % 2 == 0
    elif name == "checkered":
        on = (x // (step // 2) + y // (step // 2)) % 2 == 0
    elif name == "dotted":
        row = y // (step * 3 // 4)
        dx = (x + row % 2 * (step // 2)) % step - step // 2
        dy = y % (step * 3 // 4) - step * 3 // 8
        on = dx * dx + dy * dy < (step * 3 // 11) ** 2
    elif name == "zigzag":
        on = (y + wave(WIDE, step * 1.5, step * 0.75)[None]) // (step // 2) % 2 == 0
    elif name == "grid":
        on = (x % step < step // 5) | (y % step < step // 5)
    elif name == "brick":
        row = y // (step // 2)
        on = (y % (step // 2) < 3) | ((x + row % 2 * (step // 2)) % step < 3)
    elif name == "scaly":
        row = y // (step // 2)
        dx = (x + row % 2 * (step // 2)) % step - step // 2
        r2 = dx * dx + (y % (step // 2) - step // 8) ** 2
        on = (r2 < (step // 2) ** 2) & (r2 > (step * 3 // 8) ** 2)
    elif name == "woven":
        a = (x // (step // 2) + y // (step // 2)) % 2 == 0
        on = np.where(a, x % (step // 4) < 3, y % (step // 4) < 3)
    elif name == "banded":
        on = y // (step // 2) % 2 == 0
    else:  # starry
        cx, cy = x % step - step // 2, y % step - step // 2
        on = np.abs(cx) * np.abs(cy) < 9
        on &= np.maximum(np.abs(cx), np.abs(cy)) < step * 3 // 8
    return on.astype(np.uint8)


@cache
def tiles(name: str) -> np.ndarray:
    """Fields (…, 256, 256) int16 that pictures take a random window of: noise (`grain`), the
    marks of a brush (`strokes`), three soft fields (`cloud`)."""
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
    """(8, 336·336) int64: flat indices that shake a picture of ids like a hand or a brush does."""
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
        strength = 5 if k < 4 else 9  # of 128: a hand that draws; a brush that paints
        dx, dy = (f * strength // 128 for f in fields)
        source = np.clip(y + dy, 0, WIDE - 1) * WIDE + np.clip(x + dx, 0, WIDE - 1)
        out.append(source.ravel())
    return np.stack(out)

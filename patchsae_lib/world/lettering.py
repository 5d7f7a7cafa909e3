"""Signs with words on them, drawn in our own stroke font: no system font is needed."""

from __future__ import annotations

import random

from patchsae_lib.world.canvas import SIZE, Canvas, Region

Stroke = tuple[tuple[float, float], ...]

# Letters in a box of width 2 and height 3, y down.
ARC_R: Stroke = ((0, 0), (1.4, 0), (2, 0.4), (2, 1.1), (1.4, 1.5), (0, 1.5))
LETTERS: dict[str, tuple[Stroke, ...]] = {
    "a": (((0, 3), (1, 0), (2, 3)), ((0.4, 2), (1.6, 2))),
    "b": (((0, 0), (0, 3), (1.5, 3), (2, 2.6), (2, 1.9), (1.5, 1.5), (0, 1.5)),
          ((0, 0), (1.4, 0), (1.8, 0.4), (1.8, 1.1), (1.4, 1.5))),
    "c": (((2, 0.4), (1.5, 0), (0.5, 0), (0, 0.5), (0, 2.5), (0.5, 3), (1.5, 3), (2, 2.6)),),
    "e": (((2, 0), (0, 0), (0, 3), (2, 3)), ((0, 1.5), (1.6, 1.5))),
    "f": (((2, 0), (0, 0), (0, 3)), ((0, 1.5), (1.6, 1.5))),
    "i": (((1, 0), (1, 3)), ((0.4, 0), (1.6, 0)), ((0.4, 3), (1.6, 3))),
    "k": (((0, 0), (0, 3)), ((2, 0), (0, 1.6)), ((0.6, 1.2), (2, 3))),
    "l": (((0, 0), (0, 3), (2, 3)),),
    "m": (((0, 3), (0, 0), (1, 1.6), (2, 0), (2, 3)),),
    "o": (((0.5, 0), (1.5, 0), (2, 0.5), (2, 2.5), (1.5, 3), (0.5, 3), (0, 2.5), (0, 0.5),
           (0.5, 0)),),
    "p": (((0, 3), (0, 0)), ARC_R),
    "s": (((2, 0.4), (1.5, 0), (0.5, 0), (0, 0.4), (0, 1.1), (0.5, 1.5), (1.5, 1.5), (2, 1.9),
           (2, 2.6), (1.5, 3), (0.5, 3), (0, 2.6)),),
    "t": (((0, 0), (2, 0)), ((1, 0), (1, 3))),
    "x": (((0, 0), (2, 3)), ((2, 0), (0, 3))),
    "y": (((0, 0), (1, 1.5), (2, 0)), ((1, 1.5), (1, 3))),
    "z": (((0, 0), (2, 0), (0, 3), (2, 3)),),
}  # fmt: skip


def sign(c: Canvas, word: str, rng: random.Random) -> None:
    """Draw a light plate with the word in dark strokes, near the top or the bottom edge."""
    unit = rng.uniform(3.2, 4.6)
    advance = unit * 2.9
    w, h = advance * len(word) + unit * 0.9, unit * 4.8
    x = rng.uniform(2, SIZE - w - 2)
    y = rng.uniform(2, 12) if rng.random() < 0.5 else rng.uniform(SIZE - h - 12, SIZE - h - 2)
    frame = c.region(Region(part="sign", word=word), (70, 70, 78))
    plate = c.region(Region(part="sign", word=word), (248, 246, 238))
    ink = c.region(Region(part="letter", word=word), (40, 40, 50))
    c.box(x, y, x + w, y + h, frame)
    c.box(x + 1, y + 1, x + w - 1, y + h - 1, plate)
    for k, letter in enumerate(word):
        left, top = x + unit * 0.9 + k * advance, y + unit * 0.9
        for stroke in LETTERS[letter]:
            c.line([(left + u * unit, top + v * unit) for u, v in stroke], unit * 0.62, ink)

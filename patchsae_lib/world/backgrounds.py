"""The twelve backgrounds, and the eight land covers, each of which fills a whole picture.

A painter `f(c, rng, new)` draws on canvas `c`; `new` registers a colour and returns its region id.
"""

# A painter's name already says what it paints.
# ruff: noqa: D103

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from patchsae_lib.world.canvas import SIZE, Canvas, Colour, Region

Painter = Callable[[Canvas, random.Random, "Brush"], None]
Brush = Callable[[Colour], int]


def shade(c: Colour, by: float) -> Colour:
    """Return a colour multiplied by `by` and clipped: darker below 1, lighter above."""
    r, g, b = (min(255, round(v * by)) for v in c)
    return r, g, b


def jitter(c: Colour, rng: random.Random, by: int = 12) -> Colour:
    """Return a colour with a random number from -by to by added to each channel."""
    r, g, b = (max(0, min(255, v + rng.randint(-by, by))) for v in c)
    return r, g, b


def clouds(c: Canvas, rng: random.Random, white: int, n: int, low: float) -> None:
    """Draw `n` clouds of three discs each, centred above y = `low`."""
    for _ in range(n):
        x, y, s = rng.uniform(0, SIZE), rng.uniform(6, low), rng.uniform(5, 9)
        for k in (-1, 0, 1):
            c.disc(x + k * s, y - (k == 0) * s * 0.35, s, s * 0.6, white)


def hills(c: Canvas, rng: random.Random, y: float, i: int, step: int = 37) -> None:
    """Draw a wavy edge near `y` with a hill about every `step` pixels; nothing is filled below."""
    for x in range(-10, SIZE + 20, step):
        c.disc(x + rng.uniform(-8, 8), y + 14, rng.uniform(28, 40), rng.uniform(14, 24), i)


def sky_over(c: Canvas, i: int) -> None:
    """Fill the picture, to be drawn over."""
    c.box(0, 0, SIZE, SIZE, i)


def meadow(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((160, 208, 238)))
    clouds(c, rng, new((240, 246, 250)), 2, 26)
    y = rng.uniform(40, 62)
    hills(c, rng, y - 4, new((120, 182, 98)))
    c.box(0, y + 8, SIZE, SIZE, new((98, 168, 78)))
    blade, bloom = new((74, 142, 62)), new((244, 232, 140))
    for _ in range(26):
        x, v = rng.uniform(0, SIZE), rng.uniform(y + 14, SIZE)
        c.line([(x - 2, v - 5), (x, v), (x + 2, v - 5)], 0.8, blade)
    for _ in range(9):
        c.disc(rng.uniform(0, SIZE), rng.uniform(y + 12, SIZE), 1.2, 1.2, bloom)


def forest(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((176, 206, 206)))
    y = rng.uniform(56, 74)
    for tone, reach in (((96, 140, 112), 50.0), ((52, 104, 72), 36.0)):
        i = new(tone)
        x = rng.uniform(-8, 0)
        while x < SIZE + 8:
            top, half = y - reach * rng.uniform(0.8, 1.2), rng.uniform(7, 11)
            c.polygon(np.array([(x, top), (x + half, y + 4), (x - half, y + 4)]), i)
            x += rng.uniform(8, 14)
    c.box(0, y, SIZE, SIZE, new((70, 92, 52)))
    leaf = new((96, 112, 58))
    for _ in range(26):
        c.disc(rng.uniform(0, SIZE), rng.uniform(y + 4, SIZE), 2.2, 0.9, leaf)


def snow(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((190, 206, 224)))
    y = rng.uniform(48, 66)
    hills(c, rng, y - 6, new((214, 224, 236)), 45)
    c.box(0, y + 8, SIZE, SIZE, new((236, 242, 248)))
    flake = new((252, 253, 255))
    for _ in range(46):
        r = rng.uniform(0.7, 1.7)
        c.disc(rng.uniform(0, SIZE), rng.uniform(0, SIZE), r, r, flake)


def desert(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((250, 206, 150)))
    x, r = rng.uniform(14, 98), rng.uniform(8, 12)
    c.disc(x, rng.uniform(16, 32), r, r, new((252, 236, 176)))
    y = rng.uniform(52, 68)
    hills(c, rng, y - 4, new((226, 170, 106)), 52)
    c.box(0, y + 10, SIZE, SIZE, new((216, 154, 88)))
    ripple = new((196, 132, 70))
    for _ in range(8):
        x, v, w = rng.uniform(-10, 100), rng.uniform(y + 14, SIZE), rng.uniform(14, 30)
        c.line([(x, v), (x + w / 2, v - 2.5), (x + w, v)], 1.2, ripple)


def beach(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((166, 216, 240)))
    clouds(c, rng, new((246, 250, 252)), 1, 18)
    y = rng.uniform(36, 48)
    c.box(0, y, SIZE, SIZE, new((62, 150, 192)))
    shore = y + rng.uniform(14, 20)
    hills(c, rng, shore, new((232, 240, 240)), 26)
    sand = new((238, 216, 166))
    hills(c, rng, shore + 3, sand, 26)
    c.box(0, shore + 14, SIZE, SIZE, sand)
    shell = new((214, 186, 130))
    for _ in range(22):
        c.disc(rng.uniform(0, SIZE), rng.uniform(shore + 12, SIZE), 1.1, 0.8, shell)


def sea(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((184, 218, 236)))
    y = rng.uniform(18, 38)
    c.box(0, y, SIZE, SIZE, new((44, 118, 172)))
    crest, deep = new((108, 172, 208)), new((32, 98, 152))
    v = y + 6
    while v < SIZE + 8:
        x = rng.uniform(-16, 0)
        i = crest if rng.random() < 0.6 else deep
        points = [(x + 7 * k, v + 3 * (k % 2)) for k in range(19)]
        c.line(points, 1.3, i)
        v += rng.uniform(7, 10)


def sky(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((122, 184, 236)))
    clouds(c, rng, new((198, 222, 244)), 3, 108)
    clouds(c, rng, new((248, 250, 252)), 4, 108)


def night(c: Canvas, rng: random.Random, new: Brush) -> None:
    dark = new((30, 34, 74))
    sky_over(c, dark)
    star = new((246, 240, 206))
    for _ in range(34):
        r = rng.uniform(0.5, 1.2)
        c.disc(rng.uniform(0, SIZE), rng.uniform(0, 92), r, r, star)
    x, y, r = rng.uniform(14, 98), rng.uniform(12, 26), rng.uniform(7, 10)
    c.disc(x, y, r, r, star)
    c.disc(x + r * 0.5, y - r * 0.2, r * 0.9, r * 0.9, dark)
    hills(c, rng, rng.uniform(84, 94), new((20, 24, 50)))


def city(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((206, 216, 226)))
    y = rng.uniform(74, 86)
    lit = new((250, 232, 160))
    tones = [new((126, 138, 158)), new((98, 110, 134)), new((158, 148, 150))]
    x = rng.uniform(-12, 0)
    while x < SIZE:
        w, top = rng.uniform(15, 25), rng.uniform(10, y - 26)
        c.box(x, top, x + w, y, tones[int(rng.random() * 3)])
        for wx in range(round(x) + 3, round(x + w) - 3, 5):
            for wy in range(round(top) + 4, round(y) - 4, 8):
                if rng.random() < 0.55:
                    c.box(wx, wy, wx + 2, wy + 4, lit)
        x += w + rng.uniform(0, 2)
    c.box(0, y, SIZE, SIZE, new((132, 132, 136)))
    c.box(0, y, SIZE, y + 4, new((178, 178, 178)))


def road(c: Canvas, rng: random.Random, new: Brush) -> None:
    sky_over(c, new((186, 214, 232)))
    y = rng.uniform(38, 52)
    c.box(0, y, SIZE, SIZE, new((136, 166, 96)))
    mid = rng.uniform(44, 68)
    c.polygon(np.array([(mid - 7, y), (mid + 7, y), (124, SIZE), (-12, SIZE)]), new((96, 98, 104)))
    dash = new((244, 240, 220))
    v, h = y + 3, 4.0
    while v < SIZE:
        w = 0.5 + (v - y) * 0.035
        x = mid + (56 - mid) * (v - y) / (SIZE - y)
        c.box(x - w, v, x + w, v + h, dash)
        v, h = v + 2.1 * h, h * 1.35


def room(c: Canvas, rng: random.Random, new: Brush) -> None:
    tone = ((232, 216, 192), (206, 220, 208), (226, 206, 210))[int(rng.random() * 3)]
    c.box(0, 0, SIZE, SIZE, new(tone))
    y = rng.uniform(74, 86)
    stripe = new(shade(tone, 0.95))
    for x in range(4, SIZE, 14):
        c.box(x, 0, x + 5, y, stripe)
    c.box(0, y, SIZE, SIZE, new((176, 122, 78)))
    c.box(0, y - 3, SIZE, y, new((250, 246, 236)))
    plank = new((150, 100, 62))
    for v in (y + 8, y + 18, y + 30):
        c.box(0, v, SIZE, v + 0.8, plank)
    left = rng.uniform(8, 76)
    frame = new((250, 246, 236))
    c.box(left, 10, left + 26, 36, frame)
    c.box(left + 2, 12, left + 24, 34, new((170, 210, 236)))
    c.box(left + 12, 12, left + 14, 34, frame)


def wall(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((206, 178, 160)))
    tones = [new(jitter((172, 92, 74), rng, 14)) for _ in range(3)]
    shift = rng.randrange(12)
    for row, y in enumerate(range(-shift, SIZE, 9)):
        for x in range(-20 + row % 2 * 9 + shift, SIZE, 18):
            c.box(x + 1, y + 1, x + 18, y + 9, tones[int(rng.random() * 3)])


PAINTERS: dict[str, Painter] = {
    f.__name__: f
    for f in (meadow, forest, snow, desert, beach, sea, sky, night, city, road, room, wall)
}


# -- land cover seen from above: structures found in no other picture ---------------------------


def patches(c: Canvas, rng: random.Random, i: int, n: int, r: float) -> None:
    """Draw `n` roundish spots of radius about `r`, anywhere."""
    for _ in range(n):
        s = r * rng.uniform(0.5, 1.2)
        c.disc(rng.uniform(0, SIZE), rng.uniform(0, SIZE), s, s * rng.uniform(0.7, 1.2), i)


def bend(rng: random.Random, amount: float) -> list[tuple[float, float]]:
    """Return a winding line from above the picture to below it."""
    x = rng.uniform(25, 87)
    points = []
    for v in range(-10, SIZE + 20, 12):
        points.append((x, float(v)))
        x += rng.uniform(-amount, amount)
    return points


def turned(points: list[tuple[float, float]], rng: random.Random) -> list[tuple[float, float]]:
    """Return the line as it is or, with probability a half, running from left to right."""
    return [(y, x) for x, y in points] if rng.random() < 0.5 else points


def land_forest(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((38, 74, 48)))
    for tone in ((30, 62, 40), (50, 92, 56), (60, 104, 62)):
        patches(c, rng, new(tone), 90, 3.6)


def land_sea(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((28, 66, 112)))
    i = new((38, 78, 126))
    for _ in range(30):
        x, y = rng.uniform(0, SIZE), rng.uniform(0, SIZE)
        c.line([(x, y), (x + 9, y + 2)], 1, i)


def land_road(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((126, 136, 90)))
    patches(c, rng, new((140, 146, 98)), 20, 12)
    line = turned(bend(rng, 5), rng)
    c.line(line, 7, new((150, 150, 150)))
    c.line(line, 0.9, new((226, 224, 200)))


def land_city(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((118, 116, 112)))
    tones = [new(t) for t in ((176, 170, 164), (150, 108, 92), (206, 202, 196), (96, 120, 84))]
    for x in range(-2, SIZE, 11):
        for y in range(-3, SIZE, 11):
            w, h = rng.uniform(5, 9), rng.uniform(5, 9)
            c.box(x, y, x + w, y + h, tones[int(rng.random() * 4)])


def land_river(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((92, 120, 74)))
    patches(c, rng, new((104, 132, 80)), 30, 9)
    line = turned(bend(rng, 16), rng)
    c.line(line, 14, new((150, 146, 108)))
    c.line(line, 11, new((46, 94, 128)))


def land_crops(c: Canvas, rng: random.Random, new: Brush) -> None:
    tones = ((168, 158, 84), (112, 142, 70), (190, 172, 112), (140, 118, 80), (88, 124, 62))
    c.box(0, 0, SIZE, SIZE, new(tones[0]))
    y = -rng.uniform(0, 10)
    while y < SIZE:
        h, x = rng.uniform(18, 36), -rng.uniform(0, 10)
        while x < SIZE:
            w = rng.uniform(18, 40)
            c.box(x, y, x + w, y + h, new(jitter(tones[int(rng.random() * 5)], rng)))
            x += w + 1.2
        y += h + 1.2


def land_orchard(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((158, 146, 104)))
    i, step, lean = new((64, 106, 56)), rng.uniform(8, 11), rng.uniform(-0.3, 0.3)
    for row in range(-3, 18):
        for k in range(-3, 18):
            c.disc(k * step + row * lean * 3, row * step + k * lean * 3, 2.6, 2.6, i)


def land_pasture(c: Canvas, rng: random.Random, new: Brush) -> None:
    c.box(0, 0, SIZE, SIZE, new((124, 156, 84)))
    patches(c, rng, new((134, 166, 92)), 26, 15)
    patches(c, rng, new((112, 144, 78)), 16, 10)
    c.line(turned(bend(rng, 2), rng), 1.2, new((90, 108, 64)))


LANDS: dict[str, Painter] = {
    f.__name__.removeprefix("land_"): f
    for f in (
        land_forest, land_river, land_sea, land_crops,
        land_city, land_orchard, land_road, land_pasture,
    )
}  # fmt: skip


def paint(c: Canvas, painter: Painter, rng: random.Random, background: str) -> None:
    """Paint with slightly varied colours; all regions belong to `background`."""
    region = Region(background=background)
    painter(c, rng, lambda colour: c.region(region, jitter(colour, rng, 8)))

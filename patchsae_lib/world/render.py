"""Turns a scene into a picture (112×112×3 bytes) and the ids of what each pixel shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from patchsae_lib.world import objects
from patchsae_lib.world.backgrounds import LANDS, PAINTERS, jitter, paint, shade
from patchsae_lib.world.canvas import (
    SIZE,
    WIDE,
    ZOOM,
    Canvas,
    Colour,
    Region,
    tiles,
    warps,
)
from patchsae_lib.world.lettering import sign
from patchsae_lib.world.scene import GROUP_OF, Scene, Thing
from patchsae_lib.world.shapes import Part
from patchsae_lib.world.vocabulary import COLOURS, ROLES

#: kinds of concept that have masks
KINDS = tuple(f.name for f in fields(Region) if f.name != "thing")


@dataclass(frozen=True)
class Picture:
    """`pixels` (112, 112, 3) uint8; `ids` (112, 112) uint8, an index into `regions`; `style`."""

    pixels: np.ndarray
    ids: np.ndarray
    regions: tuple[Region, ...]
    style: str = ""

    def mask(self, kind: str, name: str) -> np.ndarray:
        """Return where a concept is visible, (112, 112) bool: `mask("part", "wheel")`.

        Raises `ValueError` for an unknown kind.
        """
        if kind not in KINDS:
            raise ValueError(f"no concepts of kind {kind!r}; there are {', '.join(KINDS)}")
        shows = np.array([getattr(r, kind) == name for r in self.regions])
        return shows[self.ids]

    def thing_mask(self, index: int) -> np.ndarray:
        """Return the pixels of thing `index` of the scene, (112, 112) bool."""
        return np.array([r.thing == index for r in self.regions])[self.ids]


def parts_of(t: Thing) -> list[Part]:
    """Return the polygons of a thing in its own coordinates (the box [-1, 1]²)."""
    f = t.flower  # polygons do not depend on its colours, so cache entries are shared
    return _variant(t.cls, t.variant, (f.petals, f.shape) if f else ())


@cache
def _variant(cls: str, variant: int, flower: tuple[int, str] | tuple[()]) -> list[Part]:
    u = random.Random(f"{cls}/{variant}/{flower}").uniform
    if flower:
        return objects.flower(u, petals=flower[0], shape=flower[1])
    return objects.BUILDERS[cls](u)


def second_tone(c: Colour) -> Colour:
    """Return the second colour of a pattern: dark on light, light on dark."""
    if sum(c) > 300:
        return shade(c, 0.5)
    r, g, b = ((v + 2 * 246) // 3 for v in c)
    return r, g, b


def tones_of(t: Thing, rng: random.Random) -> dict[str, Colour]:
    """Return the colour of each role that the parts of a thing can have."""
    own = jitter(COLOURS[t.colour], rng, 14)
    second = shade(own, 0.72) if sum(own) > 240 else shade(own, 1.6)
    tones = {**ROLES, "main": own, "second": second, "tint": shade(own, 1.22)}
    if t.flower:
        tones["yellow"] = jitter(COLOURS[t.flower.centre], rng)
    return tones


def shape_of(t: Thing, rng: random.Random) -> np.ndarray:
    """Return the (2, 2) matrix that turns, scales and slightly distorts the parts of a thing."""
    angle = np.deg2rad(t.angle)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    sx, sy = rng.uniform(0.9, 1.06), rng.uniform(0.9, 1.06)
    shear = rng.uniform(-0.1, 0.1)
    flip = -1.0 if t.flip else 1.0
    turn = np.array([[cos, sin], [-sin, cos]]) * t.size
    return np.array([[flip * sx, 0.0], [shear, sy]]) @ turn


def region_of(t: Thing, index: int, name: str, role: str, visible: bool) -> Region:
    """Return what a part shows; `visible`: this style shows colours and textures."""
    colour = t.colour if visible and role in ("main", "second", "tint") else ""
    if visible and t.flower and name == "centre":
        colour = t.flower.centre
    texture = t.texture if visible and role == "main" and t.texture != "plain" else ""
    return Region(index, t.cls, GROUP_OF[t.cls], name, colour, texture)


def draw_thing(c: Canvas, t: Thing, index: int, rng: random.Random, visible: bool) -> None:
    """Draw a thing; `visible`: this style shows colours and textures."""
    tones, shape = tones_of(t, rng), shape_of(t, rng)
    ids: dict[tuple[str, str], int] = {}
    for name, role, points in parts_of(t):
        if (name, role) not in ids:
            region = region_of(t, index, name, role, visible)
            i = ids[name, role] = c.region(region, tones[role])
            if region.texture:
                step = max(12, round(t.size * 0.55))
                c.patterns.append((i, f"{t.texture}:{step}", second_tone(tones[role])))
        c.polygon(points @ shape + (t.x, t.y), ids[name, role])


def draw_ground(c: Canvas, scene: Scene, rng: random.Random) -> None:
    """Draw what lies behind the things: a land cover, a pattern or a background."""
    if scene.land:
        paint(c, LANDS[scene.land], rng, "")
    elif scene.pattern:
        own = jitter(COLOURS[scene.tint], rng, 20)
        i = c.region(Region(colour=scene.tint, texture=scene.pattern), own)
        step = rng.choice((20, 24, 28, 34, 40))
        c.patterns.append((i, f"{scene.pattern}:{step}", second_tone(own)))
    else:
        paint(c, PAINTERS[scene.background], rng, scene.background)


def render(scene: Scene) -> Picture:
    """Draw a scene. The same scene gives the same bytes on every machine."""
    layer = generators(scene)
    c = Canvas()
    draw_ground(c, scene, layer("ground"))
    first_thing, rng = len(c.regions), layer("things")
    visible = replace(scene, effect="").shows_colour
    for index, t in enumerate(scene.things):
        draw_thing(c, t, index, rng, visible)
    if scene.word:
        sign(c, scene.word, layer("sign"))
    ids, rng = c.ids(), layer("style")
    if scene.style not in ("photo", "silhouette"):  # drawn by hand: ids move, and masks with them
        k = int(rng.random() * 4) + (4 if scene.style == "painting" else 0)
        ids = ids.ravel()[warps()[k]].reshape(WIDE, WIDE)
    if scene.pattern or scene.land:
        ids = turned(ids, rng)
    pixels = STYLE[scene.style](c, ids, first_thing, rng)
    small = ids[ZOOM // 2 :: ZOOM, ZOOM // 2 :: ZOOM] & 127
    if scene.effect:  # which takes the colours away, or exchanges them
        c.regions = [replace(region, colour="") for region in c.regions]
    return Picture(EFFECTS[scene.effect](pixels), small, tuple(c.regions), scene.style)


def grey(pixels: np.ndarray) -> np.ndarray:
    """Take the colours away: luma, as in a photograph in black and white."""
    luma = (pixels.astype(np.int32) @ np.array([299, 587, 114]) + 500) // 1000
    return np.repeat(luma.astype(np.uint8)[..., None], 3, 2)


#: what can be done to a finished picture, by name
EFFECTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda pixels: pixels,
    "grey": grey,
    "negative": lambda pixels: 255 - pixels,
}


def generators(scene: Scene) -> Callable[[str], random.Random]:
    """Return the generator of a layer by its name: one for all, if the scene is not layered."""
    if scene.layered:
        return lambda layer: random.Random(f"{scene.key}/{layer}")
    rng = random.Random(scene.key)
    return lambda _: rng


def turned(ids: np.ndarray, rng: random.Random) -> np.ndarray:
    """Turn and mirror at random: neither patterns nor views from above have an upright."""
    ids = np.rot90(ids, rng.randrange(4))
    return np.ascontiguousarray(ids[::-1] if rng.random() < 0.5 else ids)


def shrink(image: Image.Image) -> np.ndarray:
    """Average blocks of 3×3 pixels, as int16."""
    return np.asarray(image.reduce(ZOOM)).astype(np.int16)


def coloured(c: Canvas, ids: np.ndarray) -> Image.Image:
    """Return the ids in their colours, still three times enlarged."""
    image = Image.fromarray(ids, "P")
    image.putpalette(c.palette().tobytes(), "RGB")
    return image.convert("RGB")


def window(field: np.ndarray, rng: random.Random) -> np.ndarray:
    """Return a random 112×112 window of a 256×256 field."""
    y, x = rng.randrange(256 - SIZE), rng.randrange(256 - SIZE)
    return field[..., y : y + SIZE, x : x + SIZE]


def objectness(ids: np.ndarray, first_thing: int, last: int) -> Image.Image:
    """Return how much of each pixel is covered by things, 0..255."""
    table = np.zeros(256, np.uint8)
    table[first_thing:last] = table[128 + first_thing : 128 + last] = 255
    return Image.fromarray(table[ids]).reduce(ZOOM)


def outlines(ids: np.ndarray, bold: bool = False) -> np.ndarray:
    """Return how much of each pixel is border between regions, int16 in 0..255."""
    edge = np.zeros((WIDE, WIDE), bool)
    edge[:, 1:] = ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    if bold:
        edge[:, :-2] |= edge[:, 2:]
        edge[:-2] |= edge[2:]
    return shrink(Image.fromarray(edge.view(np.uint8) * 255))


def finish(rgb: np.ndarray, grain: int, rng: random.Random) -> np.ndarray:
    """Add the noise of a sensor or of paper (`grain` of 256) and clip to bytes."""
    noise = window(tiles("grain"), rng) * grain >> 8
    return np.clip(rgb + noise[..., None], 0, 255).astype(np.uint8)


def relief(things: Image.Image) -> np.ndarray:
    """Return light from the upper left on rounded bodies: int16, about -90..90, 0 on the flat."""
    soft = np.asarray(things.filter(ImageFilter.BoxBlur(4))).astype(np.int16)
    out = np.zeros((SIZE, SIZE), np.int16)
    out[3:-3, 3:-3] = (soft[6:, 6:] - soft[:-6, :-6]) // 2
    return out


def photo(c: Canvas, ids: np.ndarray, first: int, rng: random.Random) -> np.ndarray:
    """Render with light from the upper left, cast shadows, darker edges and sensor noise."""
    rgb = shrink(coloured(c, ids))
    edges = outlines(ids & 127)
    things = objectness(ids, first, len(c.regions))
    cover = np.asarray(things).astype(np.int16)
    shadow = np.zeros((SIZE, SIZE), np.int16)
    soft = np.asarray(things.filter(ImageFilter.BoxBlur(3))).astype(np.int16)
    shadow[4:, 3:] = soft[:-4, :-3]
    slope = np.arange(SIZE, dtype=np.int16) - SIZE // 2
    tilt = rng.randrange(-40, 41)
    light = 262 + (slope[None] * tilt >> 7) - (slope[:, None] * 36 >> 7)
    light = light + (window(tiles("cloud")[rng.randrange(3)], rng) * 20 >> 7)
    ground = shadow.astype(np.int32) * (255 - cover) >> 8  # no shadow on what casts it
    light = light - (edges * 56 >> 8) - ground * 90 // 255
    light += relief(things) * cover // 255 * 3 // 4
    rgb = rgb.astype(np.int32) * light.astype(np.int32)[..., None] >> 8
    return finish(rgb, 18, rng)


def painting(c: Canvas, ids: np.ndarray, first: int, rng: random.Random) -> np.ndarray:
    """Render with stronger colours under brush marks, without shadows."""
    rgb = shrink(coloured(c, ids))
    mean = rgb.sum(2, dtype=np.int16) // 3
    rgb = mean[..., None] + (rgb - mean[..., None]) * 5 // 4
    strokes = window(tiles("strokes"), rng)
    cloud = window(tiles("cloud")[rng.randrange(3)], rng)
    rgb = rgb + (strokes * 44 >> 8)[..., None] + (cloud * 20 >> 7)[..., None]
    things = objectness(ids, first, len(c.regions))
    rgb = rgb + (relief(things) * 3 // 8)[..., None]
    return finish(rgb, 8, rng)


def drawing(
    c: Canvas, ids: np.ndarray, first: int, rng: random.Random, paper: Colour, ink: Colour
) -> np.ndarray:
    """Draw bold outlines of things, faint ones of the background, and hatched shadows."""
    plain = ids & 127  # a drawing does not show texture, so no lines of a pattern
    things = objectness(plain, first, len(c.regions))
    strong = outlines(np.where(plain >= first, plain, 0), bold=True)
    faint = outlines(np.where(plain < first, plain, 127)) * 9 // 16
    shading = np.asarray(things.filter(ImageFilter.BoxBlur(5))).astype(np.int16)
    y, x = np.mgrid[:SIZE, :SIZE]
    hatch = np.where((x + y) % 4 == 0, 40, 0) * ((shading > 150) & (relief(things) < -8))
    darkness = np.clip(np.maximum(strong, faint) + hatch, 0, 255)[..., None]
    rgb = (np.array(paper) * (255 - darkness) + np.array(ink) * darkness) // 255
    return finish(rgb + (window(tiles("cloud")[0], rng) * 6 >> 7)[..., None], 14, rng)


def sketch(c: Canvas, ids: np.ndarray, first: int, rng: random.Random) -> np.ndarray:
    """Render in pencil on light paper."""
    paper = jitter((244, 240, 230), rng, 7)
    return drawing(c, ids, first, rng, paper, jitter((56, 54, 60), rng))


def blueprint(c: Canvas, ids: np.ndarray, first: int, rng: random.Random) -> np.ndarray:
    """Render in white lines on squared blue paper."""
    paper = np.array(drawing(c, ids, first, rng, jitter((38, 84, 152), rng), (232, 240, 250)))
    y, x = rng.randrange(14), rng.randrange(14)
    paper[y::14] = np.minimum(255, paper[y::14].astype(np.int16) + 16)
    paper[:, x::14] = np.minimum(255, paper[:, x::14].astype(np.int16) + 16)
    return paper


#: silhouettes: colours of the darkest and of the lightest tone of the background
DUSK: tuple[tuple[Colour, Colour], ...] = (
    ((206, 160, 120), (250, 226, 186)),
    ((168, 138, 158), (250, 214, 196)),
    ((146, 166, 184), (228, 236, 238)),
    ((160, 172, 140), (240, 240, 214)),
)


def silhouette(c: Canvas, ids: np.ndarray, first: int, rng: random.Random) -> np.ndarray:
    """Render black things against a background between two tones of evening light."""
    low, high = DUSK[rng.randrange(len(DUSK))]
    palette = c.palette().astype(np.int32)
    tone = palette[:, :1] * 30 // 100 + palette[:, 1:2] * 59 // 100 + palette[:, 2:] * 11 // 100
    table = (np.array(low) * (255 - tone) + np.array(high) * tone) // 255
    for i, region in enumerate(c.regions):
        if region.thing >= 0:
            table[i] = table[128 + i] = (28, 26, 36)
        elif region.word:
            table[i] = (28, 26, 36) if region.part == "sign" else high
    image = Image.fromarray(ids, "P")
    image.putpalette(table.astype(np.uint8).tobytes(), "RGB")
    return finish(shrink(image.convert("RGB")), 10, rng)


STYLE = {f.__name__: f for f in (photo, sketch, painting, silhouette, blueprint)}

"""The 35 object classes of the embedded world, each drawn from named polygon parts."""

# A builder's name already says what it draws.
# ruff: noqa: D103

import math
from collections.abc import Callable
from typing import TypeAlias

from patchsae_lib.world.shapes import (
    Part,
    Point,
    Points,
    arc,
    blob,
    box,
    curve,
    ellipse,
    even,
    fitted,
    mirror,
    poly,
    star,
    stroke,
    turn,
)

Draw: TypeAlias = Callable[[float, float], float]
PI = math.pi


def pair(name: str, role: str, points: Points) -> list[Part]:
    """Return a part and its mirror image."""
    return [Part(name, role, points), Part(name, role, mirror(points))]


def eye(x: float, y: float, r: float) -> list[Part]:
    """Return an eye with its highlight."""
    return [
        Part("eye", "dark", ellipse(x, y, r, r * 1.1)),
        Part("eye", "light", ellipse(x + 0.3 * r, y - 0.35 * r, 0.4 * r, 0.4 * r, n=12)),
    ]


def leg(x: float, y0: float, y1: float, step: float, width: float, role: str = "main") -> Part:
    """Return a leg from the hip at x to a foot at x + step."""
    knee = (x + 0.4 * step, (y0 + y1) / 2)
    return Part("leg", role, stroke([(x, y0), knee, (x + step, y1)], width, width * 0.8))


def wheel(x: float, y: float, r: float) -> list[Part]:
    """Return a tyre and its hub."""
    hub = ellipse(x, y, 0.45 * r, 0.45 * r)
    return [Part("wheel", "dark", ellipse(x, y, r, r)), Part("wheel", "metal", hub)]


# One coordinate pair a line would hide the drawing behind a thousand lines.
# fmt: off

# --- mammals -------------------------------------------------------------------------------------


@fitted
def cat(u: Draw) -> list[Part]:
    w, e, t, h = u(.34, .56), u(.22, .5), u(0, .75), u(-.2, .2)
    tail = curve([(.25, .85), (.75, .85), (.9, .55 - .4 * t), (.72 + .3 * t, .2 - t)])
    ear = poly((-.5, -.55), (-.5 - .1 * e, -.78 - e), (-.08, -.88))
    inner = poly((-.42, -.66), (-.45 - .1 * e, -.72 - .75 * e), (-.19, -.83))
    head = [
        *pair("ear", "main", ear), *pair("ear", "skin", inner),
        Part("head", "main", even((0, -.88), (.4, -.78), (.56, -.45), (.36, -.14), (0, -.06))),
        *eye(-.23, -.5, .115), *eye(.23, -.5, .115),
        Part("nose", "skin", poly((-.1, -.33), (.1, -.33), (0, -.22))),
    ]
    return [
        Part("tail", "second", stroke(tail, .2, .14, cap=True)),
        Part("body", "main", even((.24, -.2), (w, .45), (w + .04, .88), (.2, .97))),
        Part("belly", "tint", even((.2, .02), (.12, .4), (0, .5))),
        *pair("leg", "tint", ellipse(.19, .9, .17, .11)),
        *(p._replace(points=turn(p.points, h, 0, -.2)) for p in head),
    ]


@fitted
def dog(u: Draw) -> list[Part]:
    b, s, e, t, n = u(.22, .34), u(-.2, .2), u(.2, .56), u(-.2, .9), u(-.1, .2)
    y, z = -.42 - n, u(.62, .95)
    return [
        Part("tail", "main", stroke(curve([(-.6, -.02), (-.85, -.2 + .25 * t),
            (-.95 - .1 * t, -.65 + .75 * t)]), .17, .1, cap=True)),
        leg(-.35, .2, z, s, .18, "second"), leg(.42, .2, z, -s, .18, "second"),
        leg(-.55, .1, z, -s, .22), leg(.25, .1, z, s, .2),
        Part("body", "main", blob((-.72, .02), (-.4, -.2), (.2, -.2), (.5, -.2), (.52, .2),
            (.2, b + .12), (-.3, b), (-.68, b))),
        Part("neck", "main", stroke([(.28, .1), (.5, y)], .5, .36)),
        Part("head", "main", ellipse(.52, y, .34, .3)),
        Part("nose", "tint", blob((.66, y - .08), (.98, y - .05), (1.08, y + .1), (.95, y + .23),
            (.66, y + .24))),
        Part("nose", "dark", ellipse(1.05, y, .09, .075)), *eye(.62, y - .09, .085),
        Part("ear", "second", blob((.24, y - .25), (.42, y - .24), (.44, y + .1), (.36, y + e),
            (.2, y + e - .05), (.16, y + .1))),
        Part("neck", "red", stroke([(.22, y + .3), (.44, y + .42), (.62, y + .34)], .1)),
    ]


@fitted
def rabbit(u: Draw) -> list[Part]:
    a, d, q, b = u(-.5, .15), u(.25, .55), u(.75, 1.05), u(.4, .52)
    ears = []
    for role, lean in (("second", a - d), ("main", a)):
        ear = blob((.28, -.5), (.2, -.5 - .6 * q), (.33, -.5 - q), (.46, -.5 - .6 * q), (.42, -.5))
        ears.append(Part("ear", role, turn(ear, lean, .35, -.4)))
    inner = ellipse(.335, -.5 - .52 * q, .065, .32 * q)
    return [
        Part("tail", "light", ellipse(-.74, .5, .2, .19)), *ears,
        Part("ear", "skin", turn(inner, a, .35, -.4)),
        Part("body", "main", blob((-.68, .5), (-.5, .35 - b), (0, .15 - b), (.36, 0), (.42, .5),
            (.25, .83), (-.4, .85))),
        Part("leg", "tint", blob((.2, .7), (.5, .72), (.56, .82), (.5, .88), (.1, .88))),
        Part("leg", "second", ellipse(-.3, .5, .27, .3)),
        Part("leg", "tint", blob((-.5, .76), (-.1, .72), (.04, .82), (-.04, .9), (-.5, .9))),
        Part("head", "main", blob((.05, -.28), (.3, -.56), (.62, -.42), (.8, -.14), (.66, .08),
            (.3, .1))),
        *eye(.47, -.24, .1), Part("nose", "skin", ellipse(.77, -.13, .075, .07)),
    ]


@fitted
def elephant(u: Draw) -> list[Part]:
    e, k, s, t = u(.24, .4), u(0, 1), u(-.08, .1), u(-.1, .25)
    low = [(.72, -.2), (.95, .1), (1, .48), (1.22, .66)]
    high = [(.72, -.1), (1, .02), (1.26, -.28), (1.28, -.78)]
    trunk = [(a + (c - a) * k, b + (d - b) * k) for (a, b), (c, d) in zip(low, high, strict=True)]
    return [
        Part("tail", "second", stroke(curve([(-.8, -.1), (-1, .05), (-1 - t, .4)]), .09, .12,
            cap=True)),
        leg(-.35, .2, .9, s, .26, "second"), leg(.42, .2, .9, -s, .26, "second"),
        leg(-.62, .1, .92, -s, .3), leg(.14, .1, .92, s, .3),
        Part("body", "main", blob((-.88, 0), (-.6, -.48), (-.1, -.55), (.45, -.45), (.6, .1),
            (.2, .45), (-.6, .46))),
        Part("nose", "main", stroke(curve(trunk), .36, .14, cap=True)),
        Part("tusk", "light", stroke(curve([(.74, 0), (.84, .2), (1.04, .24)]), .13, .06,
            cap=True)),
        Part("head", "main", ellipse(.56, -.3, .38, .4)),
        Part("ear", "second", blob((.4, -.55), (.15, -.42 - e), (-.2 - .3 * e, -.5), (-.2, .02),
            (.1, .14 + .4 * e), (.38, -.05))),
        *eye(.68, -.34, .085),
    ]


@fitted
def giraffe(u: Draw) -> list[Part]:
    q, a, s, t = u(.85, 1.3), u(.12, .55), u(-.1, .12), u(-.12, .1)
    x, y = .3 + a, 0 - q
    neck = [(.22, .25), (.32 + .4 * a, -.4 * q), (x, y)]
    spots = [(-.3, .16, .13), (.02, .26, .13), (.24, .08, .11), (.31 + .32 * a, -.36 * q, .09),
        (.3 + .72 * a, -.68 * q, .07)][: int(u(2, 4.99))]
    return [
        Part("tail", "second", stroke(curve([(-.5, .12), (-.66, .3), (-.68 + t, .65)]), .07, .13,
            cap=True)),
        leg(-.28, .3, 1.15, s, .13, "second"), leg(.34, .3, 1.15, -s, .13, "second"),
        leg(-.44, .2, 1.18, -s, .16), leg(.2, .2, 1.18, s, .16),
        Part("body", "main", blob((-.54, .25), (-.42, .02), (0, -.04), (.38, -.1), (.46, .25),
            (.25, .46), (-.35, .46))),
        Part("neck", "main", stroke(curve(neck), .4, .19)),
        *(Part("horn", "second", stroke([(x + .02 + d, y - .05), (x - .03 + d, y - .3)], .07, .1,
            cap=True)) for d in (0, .13)),
        Part("ear", "tint", turn(ellipse(x - .2, y - .04, .14, .06), .4, x, y)),
        Part("head", "main", blob((x - .1, y - .08), (x + .12, y - .17), (x + .4, y + .05),
            (x + .4, y + .18), (x + .12, y + .15))),
        *(Part("spot", "second", ellipse(sx, sy, r, .8 * r, angle=.7, n=7))
            for sx, sy, r in spots),
        Part("eye", "dark", ellipse(x + .11, y - .03, .06, .065)),
    ]


# --- birds ---------------------------------------------------------------------------------------


@fitted
def duck(u: Draw) -> list[Part]:
    n, t, w, s, f = u(0, .25), u(0, .3), u(-.35, .15), u(0, .2), u(0, .16)
    y = -.42 - n
    body = blob((-.95, -.05 - t), (-.6, .05), (-.1, -.02), (.3, -.12), (.62, .1), (.5, .5),
        (.05, .66), (-.5, .55), (-.82, .25))
    wing = blob((-.62, .08), (-.1, .06), (.22, .2), (.1, .42), (-.25, .42))
    return [
        Part("beak", "orange", blob((.6, y - .08), (.85, y - .03), (1.02, y + .02 - f),
            (1.02, y + .1), (.8, y + .19), (.58, y + .16))),
        *(Part("leg", "orange", poly((x - .05, .55), (x + .06, .55), (x + .06, .8), (x + .24, .92),
            (x - .1, .92), (x - .05, .8))) for x in (-.12 - s, .12 + s)),
        Part("neck", "main", stroke([(.28, .15), (.4, y)], .5, .36)), Part("body", "main", body),
        Part("head", "main", ellipse(.42, y, .34, .33)),
        Part("wing", "second", turn(wing, -w, .15, .22)), *eye(.5, y - .08, .09),
    ]


@fitted
def owl(u: Draw) -> list[Part]:
    w, e, r, o = u(.5, .66), u(.15, .34), u(.2, .26), u(0, .3)
    wing = blob((-w + .04, -.2), (-w - .16 - o, .15), (-w - .05 - o, .6), (-w + .2, .5),
        (-w + .24, .1))
    tuft = poly((-w + .02, -.45), (-w + .06, -.75 - e), (-.12, -.76))
    return [
        Part("branch", "wood", stroke([(-.95, .86), (.95, .82)], .14)), *pair("ear", "main", tuft),
        Part("body", "main", even((0, -.82), (w - .08, -.7), (w, -.3), (w, .35), (.3, .8))),
        *pair("wing", "main", wing), Part("belly", "tint", ellipse(0, .38, .3, .3)),
        *pair("wing", "second", stroke(curve([(-w + .2, 0), (-w + .22, .3), (-w + .14, .55)]),
            .07)),
        *pair("eye", "light", ellipse(.25, -.38, r, r)),
        *pair("eye", "dark", ellipse(.22, -.38, .58 * r, .58 * r)),
        *pair("leg", "orange", ellipse(.18, .8, .12, .09)),
        Part("beak", "orange", poly((-.1, -.26), (.1, -.26), (0, -.02))),
    ]


@fitted
def rooster(u: Draw) -> list[Part]:
    q, d, n, s = u(.55, .9), u(.26, .4), u(0, .22), u(.05, .16)
    y = -.52 - n
    tails = []
    for k, role in enumerate(("second", "main", "tint")):
        a = PI * 1.36 - .3 - d * k
        tip = (-.45 + q * math.cos(a) - .12, .02 + q * math.sin(a))
        mid = (-.45 + .7 * q * math.cos(a + .35), .02 + .75 * q * math.sin(a + .35))
        tails.append(Part("tail", role, stroke(curve([(-.35, .12), mid, tip,
            (tip[0] - .12, tip[1] + .2)]), .28, .12, cap=True)))
    return [
        *tails,
        *(Part("leg", "orange", poly((x - .05, .4), (x + .05, .4), (x + .05, .84), (x + .2, .92),
            (x - .14, .92), (x - .05, .84))) for x in (-.05 - s, .1 + s)),
        Part("comb", "red", blob((.25, y - .12), (.22, y - .32), (.34, y - .26), (.42, y - .42),
            (.5, y - .26), (.62, y - .34), (.6, y - .1))),
        Part("beak", "yellow", poly((.6, y - .1), (.9, y + .02), (.6, y + .12))),
        Part("comb", "red", blob((.5, y + .1), (.66, y + .1), (.68, y + .34), (.56, y + .36))),
        Part("body", "main", blob((-.55, 0), (-.15, .02), (.14, -.3), (.2, y), (.62, y), (.6, .05),
            (.4, .42), (0, .55), (-.4, .42))),
        Part("head", "main", ellipse(.42, y, .24, .22)),
        Part("wing", "second", blob((-.45, .08), (0, .05), (.26, .16), (.12, .36), (-.2, .36))),
        *eye(.48, y - .03, .075),
    ]


@fitted
def penguin(u: Draw) -> list[Part]:
    w, a, b, h, tilt = u(.4, .56), u(.1, .75), u(.1, .75), u(-.12, .12), u(-.1, .1)
    flipper = blob((w - .1, -.3), (w + .12, -.1), (w + .16, .35), (w + .06, .46), (w - .06, .3))
    head = [
        Part("head", "main", ellipse(0, -.56, .38, .36)),
        Part("head", "light", even((0, -.66), (.2, -.74), (.29, -.52), (.16, -.34), (0, -.3))),
        *eye(-.15, -.58, .075), *eye(.15, -.58, .075),
        Part("beak", "orange", poly((-.11, -.48), (.11, -.48), (0, -.32))),
    ]
    parts = [
        *pair("leg", "orange", ellipse(.22, .93, .22, .1)),
        Part("wing", "second", turn(flipper, -a, w, -.25)),
        Part("wing", "second", turn(mirror(flipper), b, -w, -.25)),
        Part("body", "main", even((0, -.5), (.34, -.4), (w, .2), (w - .06, .72), (.2, .93))),
        Part("belly", "light", ellipse(0, .45, .58 * w, .38)),
        *(p._replace(points=turn(p.points, h, 0, -.3)) for p in head),
    ]
    return [p._replace(points=turn(p.points, tilt)) for p in parts]


# --- sea animals ---------------------------------------------------------------------------------


@fitted
def fish(u: Draw) -> list[Part]:
    h, t, f, s = u(.36, .62), u(.3, .52), u(.12, .3), u(-.12, .12)
    return [
        Part("fin", "second", blob((-.35, -.7 * h), (-.2, -h - f), (.25, -h - .5 * f),
            (.4, -.7 * h))),
        Part("fin", "second", blob((-.25, .7 * h), (-.15, h + f), (.1, h + .4 * f), (.2, .7 * h))),
        Part("tail", "second", blob((-.52, s), (-.8, -t), (-1, -t - .06), (-.88, s), (-1, t + .06),
            (-.8, t))),
        Part("body", "main", blob((.95, .04), (.65, -.75 * h), (.15, -h), (-.4, -.6 * h), (-.7, s),
            (-.4, .6 * h), (.15, h), (.65, .75 * h))),
        Part("fin", "tint", blob((.2, .02), (-.1, -.06), (-.26, .1), (-.08, .26), (.18, .18))),
        Part("mouth", "red", ellipse(.9, .12, .07, .06)),
        Part("eye", "light", ellipse(.64, -.14, .16, .16)), *eye(.67, -.13, .09),
    ]


@fitted
def whale(u: Draw) -> list[Part]:
    h, t, p, f = u(.42, .56), u(0, .55), u(.2, .5), u(-.5, .5)
    back, ty = .5 - h, -.1 - t
    fin = blob((.1, .42), (.24, .4), (.08, .72), (-.14, .86), (-.1, .62))
    return [
        Part("spout", "glass", stroke(curve([(.45, .1 - h), (.44, -.1 - h), (.3, -.1 - h - p),
            (.02, -.1 - h - .9 * p)]), .08, .13, cap=True)),
        Part("spout", "glass", stroke(curve([(.45, .1 - h), (.46, -.1 - h), (.6, -.1 - h - p),
            (.88, -.1 - h - .9 * p)]), .08, .13, cap=True)),
        Part("tail", "main", blob((-.82, ty + .2), (-1, ty + .05), (-1.2, ty - .2),
            (-.96, ty - .24), (-.82, ty - .08), (-.68, ty - .26), (-.44, ty - .22),
            (-.64, ty + .05))),
        Part("body", "main", blob((.98, .2), (.85, back - .2), (.4, back - .35),
            (-.15, back - .15), (-.5, .2), (-.7, ty), (-.9, ty + .02), (-.9, .3), (-.6, .58),
            (0, .68), (.65, .62))),
        Part("belly", "light", blob((.98, .26), (.6, .4), (0, .48), (-.5, .55), (0, .68),
            (.65, .63))),
        Part("fin", "second", turn(fin, f, .15, .42)), *eye(.66, .18, .085),
    ]


@fitted
def turtle(u: Draw) -> list[Part]:
    h, n, s, t = u(.6, .9), u(0, .35), u(-.15, .15), u(0, .15)
    y = .05 - n
    return [
        Part("tail", "second", poly((-.68, .3), (-.98, .42 - 2 * t), (-.65, .48))),
        leg(-.28, .35, .72, -s, .2, "second"), leg(.26, .35, .72, s, .2, "second"),
        Part("leg", "second", stroke([(-.52, .35), (-.58 + s, .75)], .28, .22, cap=True)),
        Part("leg", "second", stroke([(.5, .35), (.56 - s, .75)], .28, .22, cap=True)),
        Part("neck", "second", stroke([(.5, .36), (.88, y + .05)], .24)),
        Part("head", "second", blob((.72, y), (.86, y - .2), (1.08, y - .14), (1.16, y + .04),
            (1, y + .17), (.8, y + .15))),
        Part("shell", "main", blob((-.82, .4), (-.66, .38 - .7 * h), (-.3, .3 - h), (.2, .3 - h),
            (.58, .38 - .7 * h), (.74, .4), (.4, .5), (-.5, .5))),
        Part("shell", "tint", stroke(curve([(-.82, .4), (-.4, .45), (.3, .45), (.74, .4)]), .1)),
        *(Part("spot", "tint", ellipse(x, .32 - q * h, .13, .11, n=6))
            for x, q in ((-.44, .42), (-.04, .66), (.36, .42))),
        *eye(.98, y - .04, .065),
    ]


@fitted
def crab(u: Draw) -> list[Part]:
    h, a, b, o, e = u(.3, .4), u(-.15, .4), u(-.15, .4), u(.25, .55), u(0, .15)
    parts: list[Part] = []
    for k, (x, y) in enumerate(((.98, .28), (.92, .56), (.66, .76))):
        parts += pair("leg", "second", stroke([(.4 - .08 * k, .25 + .06 * k), (x - .1, y - .18),
            (x, y)], .13, .07))
    gap: list[Point] = [(.82 + .27 * math.cos(t), -.48 + .27 * math.sin(t))
        for t in (-PI / 2 + o + (2 * PI - 2 * o) * k / 16 for k in range(17))]
    claw, arm = poly((.8, -.42), *gap), stroke([(.42, .1), (.75, 0), (.8, -.35)], .15)
    for angle, flip in ((a, False), (b, True)):
        for name, role, shape in (("leg", "second", arm), ("claw", "main", claw)):
            lifted = turn(shape, angle, .5, .1)
            parts.append(Part(name, role, mirror(lifted) if flip else lifted))
    return [
        *parts, *pair("eye", "second", stroke([(.17, .1), (.2, -.3 - e)], .09)),
        Part("body", "main", even((0, .18 - h), (.42, .2 - .9 * h), (.62, .2), (.4, .52),
            (0, .6))),
        *pair("eye", "dark", ellipse(.2, -.34 - e, .11, .11)),
        Part("mouth", "dark", arc(0, .22, .18, .5, PI - .5, .06)),
    ]


# --- vehicles ------------------------------------------------------------------------------------


@fitted
def car(u: Draw) -> list[Part]:
    h, a, b, r = u(.32, .5), u(-.85, -.5), u(.2, .5), u(.19, .26)
    s, g, k = u(.04, .22), u(.04, .22), u(0, 1)
    t, m = -.06 - h, (a + b) / 2 + .05
    dome = blob((a - .1, -.02), (a, -.3), (a + s + .04, t), (b - g - .04, t), (b, -.3),
        (b + .1, -.02))
    edge = poly((a - .1, -.05), (a + s, t), (b - g, t), (b + .1, -.05))
    return [
        Part("roof", "main", edge if k < .5 else dome),
        Part("window", "glass", poly((a + .1, -.06), (a + s + .06, t + .1), (m - .05, t + .1),
            (m - .05, -.06))),
        Part("window", "glass", poly((m + .05, -.06), (m + .05, t + .1), (b - g - .05, t + .1),
            (b - .05, -.06))),
        Part("body", "main", blob((-.96, .1), (-.9, -.08), (-.4, -.1), (.3, -.1), (.84, 0),
            (.98, .16), (.95, .34), (.4, .36), (-.4, .36), (-.93, .34))),
        Part("door", "second", box(m - .04, -.06, m + .03, .32)),
        Part("handle", "metal", box(m + .09, .03, m + .23, .09)),
        Part("lamp", "yellow", ellipse(.88, .12, .08, .09)),
        Part("lamp", "red", box(-.96, .04, -.88, .18)), *wheel(-.52, .36, r), *wheel(.52, .36, r),
    ]


@fitted
def bus(u: Draw) -> list[Part]:
    n, h, r, k = int(u(3, 5.99)), u(.5, .66), u(.18, .24), u(0, 1)
    decks = 2 if k < .35 else 1
    n = min(n, 5 - 2 * (decks - 1))
    w, top = 1.28 / n, .42 - h * (.6 + .75 * decks)
    panes = [(-.88 + j * w, top + .12 + .75 * h * d) for d in range(decks) for j in range(n)]
    low = top + .12 + .75 * h * (decks - 1)
    body = poly((-.97, top + .08), (-.93, top + .02), (-.86, top), (.78, top), (.86, top + .03),
        (.91, top + .12), (.98, .12), (.98, .38), (.95, .44), (.88, .46), (-.9, .46), (-.97, .4))
    return [
        Part("roof", "second", box(-.7 + .4 * k, top - .09, .1 + .4 * k, top + .01)),
        Part("body", "main", body),
        *(Part("window", "glass", box(x, y, x + w - .09, y + .42 * h)) for x, y in panes),
        Part("door", "glass", box(.44, low, .66, .4)),
        Part("window", "glass", poly((.75, low), (.91, low), (.95, low + .46 * h),
            (.75, low + .46 * h))),
        Part("lamp", "yellow", ellipse(.91, .3, .07, .07)), *wheel(-.56, .44, r),
        *wheel(.24, .44, r),
    ]


@fitted
def bicycle(u: Draw) -> list[Part]:
    r, s, h, k = u(.36, .44), u(0, .14), u(0, .16), u(0, 1)
    y, hub, seat, head = .4, (.02, .4), (-.2, -.14), (.4, -.24)
    bars = [
        [(-.55, y), hub],
        [(-.55, y), seat],
        [hub, (-.24, -.24 - s)],
        [hub, head],
        [(-.19, -.1), (.42, -.14 - .08 * k)],
        [(.56, y), (.4, -.1), (.36, -.4 - h)],
    ]
    drop = [(.28, -.4 - h), (.5, -.42 - h), (.6, -.32 - h)]
    flat = [(.22, -.3 - h), (.34, -.42 - h), (.52, -.42 - h)]
    return [
        *(Part("wheel", "dark", arc(x, y, r, a, a + 2 * PI, .08))
            for x, a in ((-.55, -1), (.56, -1.9))),
        *(Part("frame", "main", arc(x, y, r + .07, a, a + 1.7, .1))
            for x, a in ((-.55, PI + .2), (.56, PI + .7))),
        *(Part("frame", "main", stroke(b, .12)) for b in bars),
        Part("wheel", "metal", ellipse(*hub, .12, .12)),
        Part("seat", "dark", blob((-.44, -.32 - s), (-.2, -.3 - s), (-.04, -.26 - s),
            (-.2, -.2 - s), (-.4, -.2 - s))),
        Part("handle", "dark", stroke(drop if k > .5 else flat, .09)),
    ]


@fitted
def boat(u: Draw) -> list[Part]:
    m, h, j, b, f = u(-.15, .15), u(.24, .36), u(.45, .7), u(.5, .75), u(.1, .24)
    return [
        Part("pole", "wood", box(m - .045, -1, m + .045, .45)),
        Part("sail", "main", poly((m + .05, -.92), (m + .16 + .3 * b, -.45), (m + b + .1, .28),
            (m + .05, .28))),
        Part("sail", "tint", poly((m - .05, -.8), (m - .05, .22), (m - j, .26))),
        Part("flag", "red", poly((m + .03, -1.12), (m + .03 + 1.3 * f, -1.05), (m + .03, -.95))),
        Part("body", "main", blob((-.92, .36), (-.4, .42), (.4, .42), (.98, .34), (.78, .42 + h),
            (.6, .46 + 1.4 * h), (-.5, .46 + 1.4 * h), (-.74, .42 + h))),
        Part("body", "wood", stroke(curve([(-.92, .36), (-.4, .43), (.4, .43), (.98, .34)]), .1)),
        *(Part("window", "glass", ellipse(x, .58 + .15 * h, .08, .08)) for x in (-.4, -.02, .36)),
    ]


@fitted
def plane(u: Draw) -> list[Part]:
    w, s, t, r, n = u(.55, .8), u(.15, .4), u(.34, .55), u(.18, .24), u(-.25, .12)
    k = int(u(3, 5.99))
    parts = [
        Part("wing", "second", poly((.3, -.1), (0, -.1), (-.1 - s, -.22 - .55 * w),
            (.04 - s, -.22 - .55 * w))),
        Part("tail", "main", poly((-.55, -.05), (-.78 - .2 * t, -.12 - t), (-1 - .1 * t, -.12 - t),
            (-.96, 0))),
        Part("body", "main", blob((1, .04), (.8, -.9 * r), (.3, -r), (-.5, -r * .85), (-1, -.14),
            (-.98, -.02), (-.4, r), (.4, r), (.85, .7 * r))),
        Part("window", "glass", poly((.62, -.14), (.78, -.14), (.9, -.02), (.66, -.02))),
        *(Part("window", "glass", ellipse(.45 - .19 * j, -.06, .06, .06)) for j in range(k)),
        Part("wing", "second", poly((.32, .06), (-.06, .06), (-.2 - s, .1 + w),
            (-.02 - s, .1 + w))),
        Part("tail", "second", poly((-.64, -.04), (-.84, -.04), (-1.12, .2), (-.98, .2))),
    ]
    return [p._replace(points=turn(p.points, n)) for p in parts]


# --- plants --------------------------------------------------------------------------------------


@fitted
def tree(u: Draw) -> list[Part]:
    n, h, w, t, k = int(u(6, 9.99)), u(.42, .64), u(.6, .8), u(.1, .17), int(u(0, 4.99))
    phase = u(0, PI)
    crown: list[Point] = []
    for j in range(n):
        for r, step in ((.8, 0), (1, .55), (1.05, 1), (1, 1.45)):
            a = phase + (2 * j + step) * PI / n
            crown.append((r * w * math.cos(a), -.35 + r * h * math.sin(a)))
    marks = [("tint", -.5, -.1), ("tint", -.05, -.5), ("second", .55, .1), ("second", .15, .55)]
    fruit = [(.55 * w * math.cos(phase + 2.4 * j), -.35 + .5 * h * math.sin(phase + 2.4 * j))
        for j in range(k)]
    return [
        Part("trunk", "wood", poly((-t, -.3), (t, -.3), (t, .75), (t + .16, .95), (-t - .16, .95),
            (-t, .75))),
        *pair("trunk", "wood", stroke([(0, .5), (.3, .05)], .12, .09)),
        Part("leaf", "main", blob(*crown)),
        *(Part("leaf", role, arc(x * w, -.35 + y * h, .17, PI * (1 - (x > .1)),
            PI * (1.6 - (x > .1)), .08)) for role, x, y in marks),
        *(Part("fruit", "red", ellipse(x, y, .085, .085)) for x, y in fruit),
    ]


@fitted
def pine(u: Draw) -> list[Part]:
    n, w, g, k, t = int(u(3, 5.49)), u(.46, .74), u(.36, .55), u(-.08, .06), u(.09, .15)
    parts = [Part("trunk", "wood", box(-t, .5, t, .98))]
    step = 1.55 / n
    for j in reversed(range(n)):
        y, half = -.82 + step * (j + 1), w * (g + (1 - g) * j / (n - 1))
        hem = [(half, y), (half * .4, y - k), (0, y + .03), (-half * .4, y - k), (-half, y)]
        parts.append(Part("leaf", "main", poly((0, max(y - step - .3, -.98)), *hem)))
        parts.append(Part("leaf", "second", poly(*hem, (0, y - .08 - 1.7 * max(k, 0)))))
    return [*parts, Part("leaf", "tint", poly((0, -.98), (.13, -.72), (0, -.66), (-.13, -.72)))]


@fitted
def cactus(u: Draw) -> list[Part]:
    w, a, b, q, r, f = u(.22, .3), u(-.3, .25), u(-.3, .25), u(.3, .6), u(.3, .6), u(0, 1)
    left = [(0, a + .2), (-.42, a + .2), (-.56, a + .08), (-.58, a - q)]
    right = [(0, b + .1), (.42, b + .1), (.56, b - .02), (.58, b - r)]
    top = (0, -.9) if f > .5 else (.58, b - r - .1)
    return [
        Part("branch", "main", stroke(left, .24, .22, cap=True)),
        Part("branch", "main", stroke(right, .24, .22, cap=True)),
        Part("body", "main", even((0, -.92), (.8 * w, -.78), (w, -.3), (w, .66))),
        *(Part("body", "second", stroke([(x, -.62), (x, .5)], .06)) for x in (-.45 * w, .45 * w)),
        Part("petal", "red", star(top[0], top[1], .2, .1, 6)),
        Part("centre", "yellow", ellipse(top[0], top[1], .07, .07)),
        Part("pot", "orange", poly((-.4, .62), (.4, .62), (.3, 1), (-.3, 1))),
        Part("pot", "wood", box(-.46, .52, .46, .68)),
    ]


@fitted
def mushroom(u: Draw) -> list[Part]:
    w, h, s, v, d = u(.7, .95), u(.7, .95), u(.19, .29), u(.62, .9), u(-.12, .12)
    y = .05
    dots = [(-.45, .3, .13), (.08, .62, .16), (.52, .28, .12), (0, .2, .09)]
    return [
        Part("stem", "skin", blob((-s, y - .1), (s, y - .1), (s * .9 + d, y + .5 * v),
            (s * 1.35 + d, y + .95 * v), (d, y + 1.05 * v), (d - s * 1.35, y + .95 * v),
            (d - s * .9, y + .5 * v))),
        Part("stem", "second", ellipse(.4 * d, y + .36 * v, s * 1.12, .06)),
        Part("cap", "main", even((0, y - h), (.4 * w, y - .93 * h), (.86 * w, y - .55 * h), (w, y),
            (.5 * w, y + .12))),
        Part("cap", "tint", ellipse(0, y + .07, .62 * w, .08)),
        *(Part("spot", "light", ellipse(x * w, y - q * h, r, .85 * r)) for x, q, r in dots),
        Part("leaf", "leaf", poly((d - .55, y + 1.05 * v), (d - .45, y + .7 * v),
            (d - .34, y + .9 * v), (d - .22, y + .66 * v), (d - .1, y + 1.05 * v))),
    ]


def petal_outline(shape: str, petals: int) -> Points:
    """Return one petal along the x axis, narrow enough for all petals to fit around the centre."""
    s = math.sin(PI / petals)
    mid = 1 / (1 + .93 * s)
    r = 1 - mid
    if shape == "long":
        return ellipse(.56, 0, .44, min(.19, .48 * s))
    if shape == "pointed":
        half = [(.1 + .09 * k, min(.3, .55 * s) * math.sin(PI * (k / 10) ** 1.1))
            for k in range(11)]
        return poly(*half, *((x, -y) for x, y in half[9:0:-1]))
    if shape == "heart":
        upper = [(.6 * mid, .55 * r), (mid + .2 * r, .97 * r), (mid + .85 * r, .75 * r),
            (1, .36 * r)]
        return blob((.1, 0), *upper, (mid + .5 * r, 0), *((x, -y) for x, y in upper[::-1]))
    return blob((.1, 0), (.6 * mid, .66 * r), (mid, r), (mid + .75 * r, .66 * r), (1, 0),
        (mid + .75 * r, -.66 * r), (mid, -r), (.6 * mid, -.66 * r))


@fitted
def flower(u: Draw, petals: int = 5, shape: str = "round") -> list[Part]:
    a, b, c, r, y = u(-.2, .2), u(.1, .6), u(.26, .36), u(.6, .7), u(.5, .62)
    spin = u(-.5, .5) * 2 * PI / petals - PI / 2
    outline = petal_outline(shape, petals) * r
    leaf = blob((0, 0), (.22, -.14), (.5, -.06), (.26, .08))
    stem = curve([(0, 0), (a, .5), (0, 1.3)])
    return [
        Part("stem", "leaf", stroke(stem, .1)),
        Part("leaf", "leaf", turn(leaf, -b) + poly((.6 * a, y + .35))),
        Part("leaf", "leaf", turn(mirror(leaf), b) + poly((.5 * a, y + .6))),
        *(Part("petal", "main", turn(outline, spin + 2 * PI * k / petals))
            for k in range(petals)),
        Part("centre", "yellow", ellipse(0, 0, c * r, c * r)),
    ]


# --- fruit ---------------------------------------------------------------------------------------


@fitted
def apple(u: Draw) -> list[Part]:
    w, h, s, q, b = u(.72, .92), u(.75, .86), u(-.15, .2), u(.3, .5), u(-.4, .4)
    half = [(.36, -.68), (.8 * w, -.5), (w, -.08), (.82 * w, .45), (.42, h), (.16, h + .04)]
    leaf = blob((.02, 0), (.16, -.14), (q, -.16), (q + .14, -.08), (q * .7, .06))
    return [
        Part("body", "main", even((0, -.46), *half, (0, h - .07))),
        Part("stem", "wood", stroke(curve([(0, -.42), (.3 * s, -.7), (s, -1)]), .1, .13)),
        Part("leaf", "leaf", turn(leaf, b) + poly((.3 * s, -.66))),
        Part("spot", "tint", ellipse(-.5 * w, -.2, .11, .2, angle=.35)),
        Part("body", "second", stroke(curve([(-.2, -.5), (0, -.4), (.2, -.5)]), .07)),
        Part("body", "second", stroke(curve([(-.1, h - .08), (0, h - .12), (.1, h - .08)]), .06)),
    ]


def one_banana(bend: float, fat: float) -> list[Part]:
    """Return a banana that hangs from the origin."""
    end = (1.2, 1.35)
    line = curve([(0, 0), (.02 + .3 * bend, .4), (.12 + bend, .85), (.62, 1.25), end])
    n = len(line) - 1

    def side(offset: float) -> list[Point]:
        points: list[Point] = []
        for k, (x, y) in enumerate(line):
            (ax, ay), (bx, by) = line[max(k - 1, 0)], line[min(k + 1, n)]
            d = offset * (.06 + fat * math.sin(PI * k / n) ** .7) / math.hypot(bx - ax, by - ay)
            points.append((x - d * (by - ay), y + d * (bx - ax)))
        return points

    return [
        Part("body", "main", poly(*side(-1), *side(1)[::-1])),
        Part("body", "second", poly(*side(1), *side(.55)[::-1])),
        Part("stem", "wood", stroke([(1.14, 1.34), (1.3, 1.33)], .14, .11)),
    ]


@fitted
def banana(u: Draw) -> list[Part]:
    n, bend, fat = int(u(1, 3.99)), u(-.1, .1), u(.17, .23)
    fan, lean = u(.36, .46), u(-.3, .5)
    parts: list[Part] = []
    for k in reversed(range(n)):
        parts += [p._replace(points=turn(p.points, -fan * k)) for p in one_banana(bend, fat)]
    ridge = curve([(.04 + .3 * bend, .36), (.2 + bend, .82), (.62, 1.18), (.95, 1.3)])
    parts += [
        Part("spot", "tint", stroke(ridge, .08)),
        Part("stem", "wood", stroke([(.04, .06), (-.04, -.24)], .16, .2)),
        Part("spot", "wood", ellipse(.22 + bend, .62, .05, .08)),
    ]
    return [p._replace(points=turn(p.points, lean)) for p in parts]


@fitted
def cherry(u: Draw) -> list[Part]:
    r, q, d, x, b = u(.36, .48), u(.36, .48), u(-.16, .16), u(-.2, .25), u(-.5, .3)
    left, right = (-.5, .5 + d), (.5, .5 - d)
    parts: list[Part] = []
    for (cx, cy), size in ((left, r), (right, q)):
        parts.append(Part("stem", "leaf", stroke(curve([(x, -.85),
            (.55 * cx + .45 * x - .06, -.25), (cx, cy - .5 * size)]), .09)))
    for (cx, cy), size in ((left, r), (right, q)):
        half = [(.42, -.88), (.9, -.5), (1, .1), (.68, .74)]
        ring = [(0, -.7), *half, (0, .98), *((-a, c) for a, c in half[::-1])]
        parts.append(Part("fruit", "main", blob(*((cx + size * a, cy + size * c)
            for a, c in ring))))
        parts.append(Part("spot", "tint", ellipse(cx - .42 * size, cy - .25 * size, .07, .12,
            angle=.4)))
    leaf = blob((0, 0), (.24, -.2), (.6, -.16), (.78, .02), (.5, .1), (.2, .1))
    parts.append(Part("leaf", "leaf", turn(leaf, b + .2) + poly((x, -.82))))
    parts.append(Part("stem", "wood", ellipse(x, -.86, .12, .08)))
    return parts


@fitted
def pear(u: Draw) -> list[Part]:
    w, n, t, s, lean = u(.56, .72), u(.2, .3), u(-.75, -.55), u(-.2, .2), u(-.3, .3)
    half = [(.7 * n, t + .02), (n, t + .22), (n + .08, -.12), (.9 * w, .2), (w, .55), (.7 * w, .9),
        (.2, .98)]
    leaf = blob((0, 0), (.16, -.16), (.44, -.16), (.56, -.06), (.3, .06))
    parts = [
        Part("stem", "wood", stroke(curve([(0, t + .1), (.3 * s, t - .15), (s, t - .36)]), .1,
            .12)),
        Part("leaf", "leaf", turn(leaf, -.2) + poly((.2 * s, t - .08))),
        Part("body", "main", even((0, t - .04), *half, (0, .94))),
        Part("spot", "tint", ellipse(-.5 * w, .4, .09, .2, angle=.15)),
        Part("body", "second", stroke(curve([(-.1, .88), (0, .83), (.1, .88)]), .06)),
        Part("spot", "second", ellipse(.3 * w, .5, .05, .05)),
    ]
    return [p._replace(points=turn(p.points, lean)) for p in parts]


# --- furniture -----------------------------------------------------------------------------------


@fitted
def chair(u: Draw) -> list[Part]:
    h, w, lean, n, s = u(.75, 1.05), u(.14, .2), u(0, .2), int(u(1, 3.99)), u(0, .14)
    y, top = .12, .12 - h
    slats = [y - .22 - (h - .35) * (k + .5) / n for k in range(n)]
    tall = (h - .45) / n * (.62 if n == 1 else .32)

    def at(x: float, v: float) -> Point:
        return (x - lean * (y - v) / h, v)

    return [
        *(Part("leg", "second", poly((x, y), (x + .13, y), (x + .13, .78), (x + .02, .78)))
            for x in (-.3, .52)),
        Part("back", "main", poly(at(-.62, y), at(-.62, top), at(-.46, top), at(-.46, y))),
        Part("back", "main", poly(at(.16, y), at(.16, top), at(.32, top), at(.32, y))),
        *(Part("back", "main", poly(at(-.5, v - tall), at(.2, v - tall), at(.2, v + tall),
            at(-.5, v + tall))) for v in slats),
        Part("leg", "main", poly((-.62, y), (-.46, y), (-.47 - s, .98), (-.6 - s, .98))),
        Part("leg", "main", poly((.36, y), (.54, y), (.53 + s, .98), (.4 + s, .98))),
        Part("seat", "main", poly((-.68, y + .08), (-.46, y - .12), (.52, y - .12), (.66, y + .08),
            (.66, y + .08 + w), (-.68, y + .08 + w))),
        Part("seat", "tint", poly((-.6, y + .05), (-.42, y - .09), (.46, y - .09),
            (.56, y + .05))),
    ]


@fitted
def table(u: Draw) -> list[Part]:
    h, d, s, w, k = u(.35, .75), u(.18, .34), u(-.06, .12), u(.12, .18), u(0, 3)
    y = -.15
    item = [
        Part("pot", "glass", blob((.04, y - d + .1), (-.1, y - d - .1), (0, y - d - .24),
            (.16, y - d - .24), (.26, y - d - .1), (.14, y - d + .1))),
        Part("petal", "red", star(.08, y - d - .36, .18, .11, 6)),
    ]
    bowl = [
        Part("fruit", "orange", ellipse(-.22, y - d - .08, .13, .13)),
        Part("fruit", "red", ellipse(.02, y - d - .1, .13, .13)),
        Part("pot", "light", blob((-.44, y - d - .04), (.2, y - d - .04), (.06, y - d + .13),
            (-.3, y - d + .13))),
    ]
    return [
        *pair("leg", "second", box(.55, y, .55 + w, y + .75 * h + .2)),
        Part("leg", "main", poly((.74, y), (.94, y), (.92 + s, y + h + .3),
            (.92 + s - w, y + h + .3))),
        Part("leg", "main", poly((-.94, y), (-.74, y), (w - .92 - s, y + h + .3),
            (-.92 - s, y + h + .3))),
        Part("top", "tint", poly((-.72, y - d), (.72, y - d), (1, y), (-1, y))),
        Part("top", "main", box(-1, y - .02, 1, y + .24)),
        *(item if k < 1 else bowl if k < 2 else []),
    ]


@fitted
def lamp(u: Draw) -> list[Part]:
    a, b, h, q, w = u(.2, .42), u(.55, .8), u(.6, .85), u(.6, 1), u(.32, .48)
    y, f = -.95 + h, u(.45, 1.1)
    return [
        Part("pole", "metal", box(-.055, y - .05, .055, y + q)),
        Part("lamp", "yellow", ellipse(0, y, .17, .15)),
        Part("shade", "main", poly((-a, -.95), (a, -.95), (b, y), (-b, y))),
        Part("shade", "tint", poly((-b, y - .1), (b, y - .1), (b, y), (-b, y))),
        Part("shade", "second", box(-a - .02, -.98, a + .02, -.9)),
        Part("body", "main", even((0, y + .35 * q), (.2 * f, y + .5 * q), (.24 * f, y + .75 * q),
            (.1, y + q))),
        Part("body", "second", poly((-w, y + q + .08), (-.7 * w, y + q - .05),
            (.7 * w, y + q - .05), (w, y + q + .08))),
        Part("handle", "dark", stroke([(b * .6, y - .02), (b * .6, y + .3)], .06)),
        Part("handle", "yellow", ellipse(b * .6, y + .32, .06, .07)),
    ]


@fitted
def bed(u: Draw) -> list[Part]:
    h, f, m, k, g = u(.7, 1.15), u(.22, .5), u(.18, .27), u(-.45, -.15), u(.2, .34)
    y = .36 - m
    return [
        *(Part("leg", "wood", box(x, .4, x + .15, .5 + g)) for x in (-.98, .83)),
        Part("back", "main", blob((-.98, .52), (-1, .45 - h), (-.91, .37 - h), (-.82, .45 - h),
            (-.82, .52))),
        Part("pillow", "light", blob((-.8, y + .02), (-.74, y - .24), (-.44, y - .2),
            (-.36, y - .02), (-.58, y + .05))),
        Part("body", "light", box(-.84, y, .86, .4)),
        Part("blanket", "main", blob((k, y - .05), (.3, y - .1), (.76, y - .06), (.9, y + .08),
            (.9, .46), (.4, .5), (k, .47))),
        Part("blanket", "tint", box(k - .1, y - .05, k + .1, .44)),
        Part("body", "second", box(-.96, .4, .96, .54)),
        Part("back", "main", blob((.82, .56), (.82, .42 - f), (.91, .35 - f), (1, .42 - f),
            (.98, .56))),
    ]


# --- buildings -----------------------------------------------------------------------------------


@fitted
def house(u: Draw) -> list[Part]:
    w, r, k, n = u(.55, .8), u(.38, .48), u(0, 1), int(u(1, 2.99))
    h, x, flat, a = u(.65, .8) + .4 * n - .2, u(-.3, .3), .02 + .23 * (u(0, 1) > .6), .12
    top = .9 - h
    rows = [top + .2 + .52 * j for j in range(n)]
    return [
        Part("roof", "second", box(.5 * w - .02, top - .7 * r - .16, .5 * w + .18, top)),
        Part("wall", "main", box(-w, top - .02, w, .9)),
        Part("roof", "second", poly((-w - .13, top + .05), (x * w - flat, top - r),
            (x * w + flat, top - r), (w + .13, top + .05))),
        Part("window", "glass", ellipse(x * w, top - .38 * r, .11, .11)),
        Part("door", "wood", box(x * .3 - .15, .9 - .44, x * .3 + .15, .9)),
        Part("handle", "yellow", ellipse(x * .3 + .08, .68, .035, .035)),
        *(p for y in rows for p in pair("window", "glass",
            box(.62 * w - a, y, .62 * w + a, y + .26))),
        *(p for y in rows[int(k > .5):] for p in pair("window", "light",
            box(.62 * w - .17, y + .26, .62 * w + .17, y + .33))),
    ]


def battlement(x0: float, x1: float, y0: float, y1: float, teeth: int) -> Points:
    """Return a wall whose upper edge has the given number of teeth."""
    step, line = (x1 - x0) / (2 * teeth - 1), [(x0, y1)]
    for k in range(2 * teeth - 1):
        y = y0 if k % 2 == 0 else y0 + .14
        line += [(x0 + k * step, y), (x0 + (k + 1) * step, y)]
    return poly(*line, (x1, y1))


@fitted
def castle(u: Draw) -> list[Part]:
    w, h, m, k, f = u(.34, .46), u(.9, 1.35), u(0, .3), u(0, 3), u(0, 1)
    top = .9 - h
    flags = [(0, .1 - m - .35)] if f < .4 else [(-.78, top), (.78, top)]
    roofs = [] if k < 1.2 else pair("roof", "second", poly((.78 - .62 * w - .1, top + .08),
        (.78, top - .5), (.78 + .62 * w + .1, top + .08)))
    lift = .46 if roofs and len(flags) == 2 else 0
    return [
        *(Part("pole", "wood", box(x - .03, y - .34 - lift, x + .03, y + .1)) for x, y in flags),
        *(Part("flag", "red", poly((x + .03, y - .34 - lift), (x + .28, y - .25 - lift),
            (x + .03, y - .14 - lift))) for x, y in flags),
        Part("wall", "second", battlement(-.3, .3, .1 - m - .35, .9, 3)),
        Part("wall", "main", battlement(-.8, .8, .2 - m * .3, .9, 6)),
        *pair("wall", "main", battlement(.78 - .62 * w, .78 + .62 * w, top, .92, 3)), *roofs,
        *pair("window", "dark", box(.72, top + .32, .84, top + .52)),
        Part("door", "wood", even((0, .4), (.14, .46), (.21, .6), (.2, .92))),
    ]


@fitted
def windmill(u: Draw) -> list[Part]:
    a, w, q, b, h = u(0, PI / 2), u(.42, .56), u(.85, 1), u(.09, .13), u(.95, 1.3)
    parts = [
        Part("wall", "main", poly((-.28, -.25), (.28, -.25), (w, h), (-w, h))),
        Part("roof", "second", even((0, -.6), (.24, -.46), (.34, -.2))),
        Part("door", "wood", even((0, h - .4), (.13, h - .3), (.13, h))),
        Part("window", "glass", ellipse(0, .3, .11, .12)),
    ]
    for k in range(4):
        for role, shape in (("main", box(.3, 0, q, 2 * b)), ("wood", box(0, -.05, q + .03, .04))):
            parts.append(Part("blade", role, turn(shape, a + k * PI / 2) + poly((0, -.25))))
    parts.append(Part("blade", "metal", ellipse(0, -.25, .1, .1)))
    return parts


@fitted
def tent(u: Draw) -> list[Part]:
    h, d, o, x, f = u(.95, 1.35), u(.35, .85), u(.14, .3), u(-.1, .15), u(0, 1)
    top, left = .75 - h, -.95
    right = left + 1.15
    mid = (left + right) / 2 + x
    knob = ellipse(mid + d, top + .04, .07, .07)
    flag = poly((0, .02), (.03, -.34), (.3, -.24), (.08, -.12)) + poly((mid + d, top))
    return [
        *(Part("pole", "wood", stroke([(mid - .06 * s, top + .1), (mid + .1 * s, top - .16)], .07))
            for s in (-1, 1)),
        Part("flag", "red", flag) if f > .5 else Part("pole", "wood", knob),
        Part("roof", "main", poly((mid, top), (mid + d, top + .06), (right + d, .68),
            (right, .75))),
        Part("roof", "second", poly((right - .1, .63), (right + d - .05, .57), (right + d, .68),
            (right, .75))),
        Part("wall", "main", poly((left, .75), (mid, top), (right, .75))),
        Part("door", "dark", poly((mid - o, .75), (mid, top + .34 * h), (mid + o, .75))),
        Part("door", "tint", poly((mid, top + .3 * h), (mid - o - .2, .75), (mid - o + .06, .75))),
        Part("door", "tint", poly((mid, top + .3 * h), (mid + o + .2, .75), (mid + o - .06, .75))),
        Part("pole", "metal", stroke([(left + .06, .62), (left - .14, .78)], .06)),
        Part("pole", "metal", stroke([(right + d - .02, .56), (right + d + .16, .74)], .06)),
    ]


GROUPS: dict[str, tuple[str, ...]] = {
    "mammal": ("cat", "dog", "rabbit", "elephant", "giraffe"),
    "bird": ("duck", "owl", "rooster", "penguin"),
    "sea": ("fish", "whale", "turtle", "crab"),
    "vehicle": ("car", "bus", "bicycle", "boat", "plane"),
    "plant": ("tree", "pine", "cactus", "mushroom", "flower"),
    "fruit": ("apple", "banana", "cherry", "pear"),
    "furniture": ("chair", "table", "lamp", "bed"),
    "building": ("house", "castle", "windmill", "tent"),
}
BUILDERS: dict[str, Callable[..., list[Part]]] = {
    name: globals()[name] for group in GROUPS.values() for name in group
}

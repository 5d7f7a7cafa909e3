"""Polygon helpers of the embedded world; each returns an (n, 2) array, x right and y down."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float64]
Point: TypeAlias = tuple[float, float]
Args = ParamSpec("Args")

REACH = 0.96


class Part(NamedTuple):
    """A filled simple polygon: the name of the part, and the role that decides its colour."""

    name: str
    role: str
    points: Points


def poly(*points: Point) -> Points:
    """Return the polygon through the given corners."""
    return np.array(points, dtype=np.float64)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return an upright rectangle."""
    return poly((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, n: int = 24) -> Points:
    """Return an ellipse, turned by an angle in radians."""
    ts = [2 * math.pi * k / n for k in range(n)]
    return turn(poly(*((cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in ts)), angle, cx, cy)


def star(cx: float, cy: float, r_out: float, r_in: float, n: int) -> Points:
    """Return a star of n points, the first one pointing up."""
    ts = [math.pi * k / n - math.pi / 2 for k in range(2 * n)]
    rs = [r_in if k % 2 else r_out for k in range(2 * n)]
    rays = zip(rs, ts, strict=True)
    return poly(*((cx + r * math.cos(t), cy + r * math.sin(t)) for r, t in rays))


def arc(cx: float, cy: float, r: float, a0: float, a1: float, width: float) -> Points:
    """Return a thick arc from angle a0 to a1 whose middle line has radius r."""
    ts = [a0 + (a1 - a0) * k / 24 for k in range(25)]
    outer = [(cx + (r + width / 2) * math.cos(t), cy + (r + width / 2) * math.sin(t)) for t in ts]
    inner = [(cx + (r - width / 2) * math.cos(t), cy + (r - width / 2) * math.sin(t)) for t in ts]
    return poly(*outer, *inner[::-1])


def _spline(a: Point, b: Point, c: Point, d: Point, n: int) -> list[Point]:
    """Sample the Catmull-Rom segment from b to c, without c."""

    def at(t: float, k: int) -> float:
        bend = 2 * a[k] - 5 * b[k] + 4 * c[k] - d[k]
        return b[k] + 0.5 * t * (c[k] - a[k] + t * (bend + t * (3 * (b[k] - c[k]) + d[k] - a[k])))

    return [(at(k / n, 0), at(k / n, 1)) for k in range(n)]


def blob(*points: Point) -> Points:
    """Return the closed smooth curve through the given points."""
    n = len(points)
    ends = [[points[(k + j) % n] for j in (-1, 0, 1, 2)] for k in range(n)]
    return poly(*(q for a, b, c, d in ends for q in _spline(a, b, c, d, 6)))


def even(*half: Point) -> Points:
    """Return the left-right symmetric blob whose right half is given from top to bottom."""
    return blob(*half, *((-x, y) for x, y in half[::-1] if x))


def curve(points: Sequence[Point]) -> list[Point]:
    """Return an open smooth curve through the given points, as input for stroke."""
    p = [points[0], *points, points[-1]]
    quads = zip(p, p[1:], p[2:], p[3:], strict=False)
    return [*(q for a, b, c, d in quads for q in _spline(a, b, c, d, 6)), points[-1]]


def stroke(
    points: Sequence[Point], width: float, width_end: float | None = None, cap: bool = False
) -> Points:
    """Return a thick open line as one polygon. It tapers to width_end; cap rounds its end."""
    n = len(points)
    left: list[Point] = []
    right: list[Point] = []
    nx = ny = 0.0
    last = width if width_end is None else width_end
    for k, (x, y) in enumerate(points):
        (ax, ay), (bx, by) = points[max(k - 1, 0)], points[min(k + 1, n - 1)]
        size = math.hypot(bx - ax, by - ay) or 1.0
        half = (width + (last - width) * k / (n - 1)) / 2
        nx, ny = -(by - ay) / size * half, (bx - ax) / size * half
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    end: list[Point] = []
    if cap:
        for t in (math.pi * k / 6 for k in range(1, 6)):
            c, s = math.cos(t), math.sin(t)
            end.append((x + nx * c + ny * s, y + ny * c - nx * s))
    return poly(*left, *end, *right[::-1])


def turn(points: Points, angle: float, cx: float = 0.0, cy: float = 0.0) -> Points:
    """Return the points turned about (cx, cy) by an angle in radians."""
    c, s = math.cos(angle), math.sin(angle)
    x, y = points[:, 0] - cx, points[:, 1] - cy
    return np.stack([cx + c * x - s * y, cy + s * x + c * y], axis=1)


def mirror(points: Points) -> Points:
    """Return the points with left and right swapped about x = 0."""
    return points * np.array([-1.0, 1.0])


def fitted(build: Callable[Args, list[Part]]) -> Callable[Args, list[Part]]:
    """Wrap a builder so that its object is centred and its longer side spans the box [-1, 1]."""

    def wrapped(*args: Args.args, **kwargs: Args.kwargs) -> list[Part]:
        parts = build(*args, **kwargs)
        corners = np.concatenate([p.points for p in parts])
        low, high = corners.min(axis=0), corners.max(axis=0)
        scale = 2 * REACH / float((high - low).max())
        return [p._replace(points=(p.points - (low + high) / 2) * scale) for p in parts]

    wrapped.__name__, wrapped.__doc__ = build.__name__, build.__doc__
    return wrapped

"""The page about the house: a picture of `house.read_house` as SVG, and the same in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from house import FLOORS, LIBRARY, OUTSIDE, Room, implied

GAP, PADDING, LABEL, BETWEEN = 12, 10, 26, 18  # pixels
LETTER, LINE = 6.1, 14  # of the sentences: pixels a character and a line
STYLE = """
.bd-main .bd-content .bd-article-container:has(.house) { max-width: 56rem; }
.house { container-type: inline-size; margin: 1.5rem 0; }
.house svg { display: block; width: 100%; height: auto; }
.house svg.narrow { display: none; max-width: 30rem; }
@container (max-width: 43rem) {
  .house svg.wide { display: none; }
  .house svg.narrow { display: block; }
}
.house .floor { fill: var(--surface); }
.house .room { fill: var(--page); stroke: var(--reported); }
.house .outside .room { stroke-dasharray: 4 3; }
.house text { fill: var(--muted); font-family: var(--pst-font-family-base); font-size: 11px; }
.house .name { fill: var(--ink); font-size: 13px; font-weight: 640; }
.house path { fill: none; stroke: var(--muted); opacity: 0.6; }
.house path.implied { opacity: 0.12; }
.bd-article .house a { text-decoration: none; }
.house a:is(:hover, :focus-visible) .room { stroke: var(--accent); stroke-width: 2; }
.house:has(a:is(:hover, :focus-visible)) path[class] { opacity: 0.06; }
"""
LIT = (
    ".house:has(a.{0}:is(:hover, :focus-visible)) path.{0} "
    "{{ opacity: 1; stroke: var(--accent); stroke-width: 1.5; }}\n"
)


@dataclass(frozen=True)
class Box:
    """Where a room is drawn, in pixels: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        """The horizontal middle."""
        return self.x + self.width / 2


def page(rooms: Mapping[str, Room]) -> str:
    """Return the picture, for wide and narrow pages, and the same in words, as MyST markdown."""
    style = STYLE + "".join(LIT.format(f"room-{name}") for name in rooms)
    pictures = svg(rooms, "wide", 852, 6) + svg(rooms, "narrow", 340, 2)
    picture = f'<style>{style}</style>\n<div class="house">\n{pictures}</div>'
    return f"```{{raw}} html\n{picture}\n```\n\n{in_words(rooms)}"


def in_words(rooms: Mapping[str, Room]) -> str:
    """Return the rooms of each floor, with what they import, as MyST markdown."""
    parts = []
    for number, (title, names) in reversed(list(enumerate(FLOORS))):
        parts.append(f"## Floor {number}: {title.lower()}")
        for room in map(rooms.__getitem__, names):
            term = (
                f"[{{py:mod}}`{room.name} <{LIBRARY}.{room.name}>`]"
                if has_page(room)
                else f"[`{room.name}`]"
            )
            imports = ", ".join(f"`{name}`" for name in rooms if name in room.imports)
            parts.append(
                f"{term}{{#{anchor(room)}}}, {room.lines:,} lines\n"
                f": {room.sentence} Imports {imports or 'no other room'}."
            )
    return "\n\n".join(parts)


def anchor(room: Room) -> str:
    """Return the id of a room's description in words; Sphinx drops outer underscores."""
    return f"room-{room.name.strip('_')}"


def has_page(room: Room) -> bool:
    """Return whether the page about the library has a section on the room."""
    return room.name not in OUTSIDE and not room.name.startswith("_")


def svg(rooms: Mapping[str, Room], kind: str, width: int, columns: int) -> str:
    """Return the picture as an SVG element: floors, lines for imports, and rooms as links."""
    boxes, floors, height = plan(rooms, width, columns)
    lines = [
        f'<path class="room-{room.name} room-{name}{" implied" * implied(room, name, rooms)}" '
        f'd="{curve(boxes[room.name], boxes[name])}"/>'
        for room in rooms.values()
        for name in sorted(room.imports)
    ]
    total = sum(room.lines for room in rooms.values() if room.name not in OUTSIDE)
    described = (
        f"{len(FLOORS)} floors with {len(rooms)} rooms, the ground floor below; the library has "
        f"{total:,} lines. A line leads from a room down to a room that it imports. The text "
        "below the picture says the same in words."
    )
    return "\n".join(
        [
            f'<svg class="{kind}" viewBox="0 0 {width} {height:.0f}" role="group" '
            f'aria-labelledby="house-{kind}-title house-{kind}-desc">',
            f'<title id="house-{kind}-title">The library as a house</title>',
            f'<desc id="house-{kind}-desc">{described}</desc>',
            *floors,
            *lines,
            *(drawn(room, boxes[room.name], rooms) for room in rooms.values()),
            "</svg>\n",
        ]
    )


def plan(
    rooms: Mapping[str, Room], width: int, columns: int
) -> tuple[dict[str, Box], list[str], float]:
    """Return the boxes of the rooms, the floors' rectangles and titles, and the total height."""
    boxes: dict[str, Box] = {}
    floors = []
    room_width = (width - 2 * PADDING - (columns - 1) * GAP) / columns
    y = 0.0
    for number, (title, names) in reversed(list(enumerate(FLOORS))):
        top, y = y, y + LABEL
        for start in range(0, len(names), columns):
            row = names[start : start + columns]
            height = 42 + LINE * max(len(wrapped(rooms[name], room_width)) for name in row)
            left = (width - len(row) * (room_width + GAP) + GAP) / 2
            for i, name in enumerate(row):
                boxes[name] = Box(left + i * (room_width + GAP), y, room_width, height)
            y += height + BETWEEN
        floors.append(
            f'<rect class="floor" y="{top:.0f}" width="{width}" height="{y - top:.0f}" rx="8"/>'
            f'<text x="{PADDING}" y="{top + 17:.0f}">{number} · {escape(title)}</text>'
        )
        y += BETWEEN
    return boxes, floors, y - BETWEEN


def wrapped(room: Room, width: float) -> list[str]:
    """Return a room's sentence in lines that fit its box."""
    text = room.sentence.replace("`", "")
    return textwrap.wrap(text, int((width - 14) / LETTER), max_lines=7, placeholder=" …")


def drawn(room: Room, box: Box, rooms: Mapping[str, Room]) -> str:
    """Return a room as a link to its documentation, with its name, lines and sentence."""
    place = f"api.html#module-{LIBRARY}.{room.name}" if has_page(room) else f"#{anchor(room)}"
    imports = ", ".join(name for name in rooms if name in room.imports) or "no other room"
    label = f"{room.name}, {room.lines:,} lines. {room.sentence} Imports {imports}."
    text = [f'<text class="name" x="{box.x + 7:.1f}" y="{box.y + 18:.1f}">{room.name}</text>']
    for i, line in enumerate([f"{room.lines:,} lines", *wrapped(room, box.width)]):
        y = box.y + 33 + LINE * i
        text.append(f'<text x="{box.x + 7:.1f}" y="{y:.1f}">{escape(line)}</text>')
    outside = " outside" if room.name in OUTSIDE else ""
    return (
        f'<a class="room-{room.name}{outside}" href="{place}" aria-label="{escape(label)}">'
        f'<rect class="room" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="6"/>{"".join(text)}</a>'
    )


def curve(upper: Box, lower: Box) -> str:
    """Return the path of a line from a room to a room it imports, one below or beside it."""
    below = upper.y + upper.height
    if upper.y == lower.y:
        start, bend, end = below, below + BETWEEN, below
    elif upper.y < lower.y:
        start, bend, end = below, (below + lower.y) / 2, lower.y
    else:  # in a lower row of the same floor
        above = lower.y + lower.height
        start, bend, end = upper.y, (upper.y + above) / 2, above
    points = [(upper.middle, bend), (lower.middle, bend), (lower.middle, end)]
    bent = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f"M{upper.middle:.1f} {start:.1f}C{bent}"

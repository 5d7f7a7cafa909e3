"""How the film of an adaptation is drawn: the first and the last frame as SVG, and all as data.

From that `film.js` moves the first frame. Without JavaScript, and on paper, both are shown.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchsae_lib.explorer.film import Film, Frame

FOLDER = Path(__file__).parent
SCALED = "levels", "effects"
WIDTH = 340  # units, pixels on a phone: of a panel
ROW = 30  # of a latent
BAR, EDGE = 102, 7  # the longest bar, the widest edge
LEFT, RIGHT = 148, 254  # where edges start and end
SIDE = 84  # for the names of classes beside the table of answers
CURVE = 96  # the height of the accuracy curve


def film_html(film: Film) -> str:
    """Return the film as a fragment of HTML with its own style and script."""
    data = film_data(film)
    first, last = (
        drawing(film, data, number, heading)
        for number, heading in ((0, "First frame"), (len(film.frames) - 1, "Last frame"))
    )
    style, script = ((FOLDER / name).read_text("utf-8") for name in ("film.css", "film.js"))
    held = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    options = "".join(f"<option>{escape(x)}</option>" for x in ("all classes", *film.class_names))
    n = len(film.frames) - 1
    return (
        f'<style>{style}</style><figure class="film" aria-label="{escape(film.title)}">'
        f'<b class="film-title">{escape(film.title)}</b>'
        '<div class="film-controls" hidden><button type="button" aria-pressed="false">Play'
        f'</button><label class="film-slide">checkpoint <input type="range" min="0" max="{n}" '
        f'value="0"></label><label>pictures of <select>{options}</select></label></div>'
        f'{first}{last}<script type="application/json">{held}</script>'
        f"<script>{script}</script></figure>"
    )


def film_data(film: Film) -> dict[str, Any]:
    """Return what the script needs: for each frame the numbers of all classes, then of each; and
    `bar` and `edge`, pixels a token and a logit, the same in every frame."""
    frames = []
    for frame in film.frames:
        levels, effects = (
            [rounded(x.mean(0)), *map(rounded, x)] for x in (getattr(frame, k) for k in SCALED)
        )
        shown = {"levels": levels, "effects": effects, "answers": rounded(frame.answers)}
        frames.append(shown | {"right": round(frame.accuracy, 4), "words": words(film, frame)})
    largest = [max(float(getattr(f, x).abs().max()) for f in film.frames) for x in SCALED]
    bar, edge = (size / (most or 1) for size, most in zip((BAR, EDGE), largest, strict=True))
    return {"bar": bar, "edge": edge, "frames": frames}


def rounded(values: Any) -> Any:
    """Return a tensor as lists of numbers with two decimals."""
    return [rounded(x) for x in values] if values.ndim else round(float(values), 2)


def when(frame: Frame, film: Film) -> str:
    """Say which state of the training a frame is."""
    if frame.epochs is None:
        return "CLIP itself, without prompts"
    if not frame.epochs:
        return "CLIP with untrained prompts"
    return f"After {frame.epochs:.3g} of {film.frames[-1].epochs:.3g} epochs"


def words(film: Film, frame: Frame) -> str:
    """Say in a sentence or two what a frame shows, over the pictures of all classes."""
    effects = frame.effects.mean(0)
    latent, label = divmod(int(effects.abs().argmax()), effects.shape[1])
    size, names = float(effects[latent, label]), film.class_names
    text = (
        f"{when(frame, film)}: {frame.accuracy:.0%} right. The strongest edge is from latent "
        f"{film.latents[latent]} ({film.names[latent]}) to “{names[label]}” "
        f"({signed(size)} logits). "
    )
    mistakes = frame.answers.clone().fill_diagonal_(0)
    label, answer = divmod(int(mistakes.argmax()), len(names))
    share = float(mistakes[label, answer])
    if not share:
        return f"{text}There is no mistake."
    return f"{text}The commonest mistake: “{names[answer]}” for “{names[label]}” ({share:.0%})."


def signed(value: float) -> str:
    """Return a number with its sign.

    >>> signed(-0.456)
    '−0.46'
    """
    return f"{value:+.2f}".replace("-", "−")


def drawing(film: Film, data: dict[str, Any], number: int, heading: str) -> str:
    """Draw a frame: latents and classes, and beside them answers and accuracy."""
    shown = data["frames"][number]
    kind = "film-frame" if number == 0 else "film-frame film-last"
    return (
        f'<div class="{kind}"><p class="film-words"><span>{heading}. </span>'
        f'<output aria-live="polite">{escape(shown["words"])}</output></p>'
        f'<div class="film-panels">{network(film, data, shown)}'
        f"<div>{table(film, shown)}{curve(film, data, number)}</div></div></div>"
    )


def svg(height: float, label: str, *parts: str) -> str:
    """Return an SVG picture as wide as a panel."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(content)}</text>'


def lines(x: float, y: float, content: str, width: int, anchor: str = "start") -> str:
    """Return text in at most two lines, centred on y."""
    parts = textwrap.wrap(content, width, max_lines=2, placeholder=" …") or [""]
    top = y + 4 - 6.5 * (len(parts) - 1)
    return "".join(text(x, top + 13 * i, part, "", anchor) for i, part in enumerate(parts))


def network(film: Film, data: dict[str, Any], shown: dict[str, Any]) -> str:
    """Draw bars of latents, names of classes, and edges between them."""
    n, c = len(film.latents), len(film.class_names)
    top, height = 22, 22 + ROW * max(n, c) + 4
    at = [top + (height - top - 4) * (j + 0.5) / c for j in range(c)]
    edges, bars = [], []
    for i, (latent, name) in enumerate(zip(film.latents, film.names, strict=True)):
        y = top + ROW * i
        short = textwrap.shorten(f"{latent} {name}", 24, placeholder=" …")
        level = shown["levels"][0][i]
        bars.append(
            f"<g>{text(0, y + 14, short)}{text(LEFT - 6, y + 26, f'{level:.1f}', 'level', 'end')}"
            f'<rect y="{y + 18}" height="7" style="width:{level * data["bar"]:.1f}px"/>'
            f"<title>latent {latent}, {escape(name)}</title></g>"
        )
        for j, effect in enumerate(shown["effects"][0][i]):
            edges.append(edge(y + 21.5, at[j], effect, data["edge"]))
    classes = (lines(RIGHT + 6, at[j], x, 13) for j, x in enumerate(film.class_names))
    heads = text(0, 10, "latent · active tokens", "note")
    most = f"edges: up to {EDGE / data['edge']:.2f} logits"
    heads += text(WIDTH, 10, most, "note", "end")
    label = "Latents, with the tokens in which they are active, and what they add to each class"
    return svg(height, label, heads, *edges, *bars, *classes)


def edge(y0: float, y1: float, effect: float, scale: float) -> str:
    """Return the path from a latent to a class."""
    middle, kind = (LEFT + RIGHT) / 2, "lowers" if effect < 0 else "raises"
    d = f"M{LEFT} {y0:.1f}C{middle:.0f} {y0:.1f} {middle:.0f} {y1:.1f} {RIGHT} {y1:.1f}"
    return f'<path class="{kind}" d="{d}" style="stroke-width:{abs(effect) * scale:.2f}px"/>'


def table(film: Film, shown: dict[str, Any]) -> str:
    """Draw the share of a class's pictures (row) that get each answer (column)."""
    names, c = film.class_names, len(film.class_names)
    wide = (WIDTH - SIDE) / c
    tall, top = min(34.0, wide), 46
    cells = []
    for k, share in enumerate(x for row in shown["answers"] for x in row):
        x, y = SIDE + wide * (k % c), top + tall * (k // c)
        kind = "right" if k % c == k // c else "wrong"
        cells.append(
            f'<rect class="cell {kind}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{wide - 2:.1f}" '
            f'height="{tall - 2:.1f}" style="fill-opacity:{0.45 * share:.3f}"/>'
        )
        number = f"{share:.0%}" if wide >= 34 else ""
        cells.append(text(x + wide / 2, y + tall / 2 + 4, number, "share", "middle"))
    rows = (lines(0, top + tall * (i + 0.5), x, 13) for i, x in enumerate(names))
    heads = text(0, 10, "shown", "note") + text(WIDTH, 10, "answer", "note", "end")
    if wide >= 60:
        heads += "".join(
            lines(SIDE + wide * (j + 0.5), 30, x, 12, "middle") for j, x in enumerate(names)
        )
    label = "Share of the pictures of each class that get each answer"
    return svg(top + tall * c + 6, label, heads, *rows, *cells)


def curve(film: Film, data: dict[str, Any], number: int) -> str:
    """Draw accuracy by checkpoint, with chance, and a marker at a frame."""
    frames, chance = film.frames, 1 / len(film.class_names)
    xs = [SIDE - 40 + (WIDTH - SIDE + 30) * k / (len(frames) - 1) for k in range(len(frames))]
    ys = [20 + (1 - frame["right"]) * CURVE for frame in data["frames"]]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    bottom, level = 20 + CURVE, 20 + (1 - chance) * CURVE
    parts = [text(0, 10, "accuracy", "note")]
    for share in (0, 0.5, 1):
        y = 20 + (1 - share) * CURVE
        parts.append(f'<path class="grid" d="M{xs[0]:.1f} {y}H{xs[-1]:.1f}"/>')
        parts.append(text(xs[0] - 6, y + 4, f"{share:.0%}", "note", "end"))
    parts.append(f'<path class="chance" d="M{xs[0]:.1f} {level:.1f}H{xs[-1]:.1f}"/>')
    parts.append(text(xs[-1], level - 4, "chance", "note", "end"))
    parts.append(text(xs[0], bottom + 16, "CLIP", "note", "middle"))
    parts.extend(epochs(frames, xs, bottom + 16))
    parts.append(f'<polyline points="{points}"/>')
    at = f"transform:translate({xs[number]:.1f}px,{ys[number]:.1f}px)"
    parts.append(f'<circle r="5" style="{at}" data-points="{points}"/>')
    return svg(bottom + 22, "Accuracy by checkpoint; the marker is at this frame", *parts)


def epochs(frames: Sequence[Frame], xs: Sequence[float], y: float) -> list[str]:
    """Return the ticks of the curve: whole epochs, about four of them."""
    last = frames[-1].epochs or 1
    step = max(1, round(last / 4))
    states = [(x, f.epochs) for x, f in zip(xs, frames, strict=True) if f.epochs]
    ticks = [(x, e) for x, e in states if abs(e % step) < 1e-6 and last - e >= 1.5 * step]
    shown = [text(x, y, f"{e:.0f}", "note", "middle") for x, e in ticks]
    return [*shown, text(xs[-1], y, f"{last:.3g} epochs", "note", "end")]

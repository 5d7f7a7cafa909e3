"""How the book draws a plotly figure that a notebook shows with a plain `fig.show()`.

A renderer for myst-nb, found by the entry point group `myst_nb.mime_renderers`. It puts the figure
into the page as data; `book/_static/book.js` draws it when it comes near the screen.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from docutils import nodes

PLOTLY = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450  # plotly's own


class PlotlyRenderer:
    """myst-nb's `MimeRenderPlugin` for plotly figures."""

    # Before text/html, which some of plotly's renderers leave beside it.
    mime_priority_overrides = (("*", PLOTLY, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Turn the output of a cell into a raw HTML node; None for every other type."""
        if inline or data.mime_type != PLOTLY:
            return None
        cell = data.cell_metadata.get("mystnb", {})
        in_cell = cell.get("image", {}).get("alt") or cell.get("figure", {}).get("caption", "")
        label = accessible_label(data.content, in_cell)
        if not label:
            renderer.logger.warning(
                "a plotly figure without words: readers who cannot see it need a title, a caption "
                "(mystnb.figure.caption of the cell) or fig.update_layout(meta={'alt': ...})",
                subtype="plotly",
                line=data.line,
            )
        return [nodes.raw("", figure_html(data.content, label), format="html")]


def accessible_label(figure: Mapping[str, Any], in_cell: str = "") -> str:
    """What the figure shows, in words: `layout.meta["alt"]`, else what the cell's metadata says
    (its image's alt, its figure's caption), else the title.

    >>> accessible_label({"layout": {"title": {"text": "Loss<br>by <i>step</i>"}}})
    'Loss by step'
    """
    meta = figure.get("layout", {}).get("meta")
    described = meta.get("alt", "") if isinstance(meta, Mapping) else ""
    return described or in_cell or " ".join(re.sub(r"<[^>]*>", " ", _title(figure)).split())


def figure_html(figure: Mapping[str, Any], label: str) -> str:
    """The HTML of a figure: its title as text (which wraps, as plotly's would not), its room, and
    its data as JSON."""
    layout = figure.get("layout", {})
    title = re.sub(r"&lt;(/?(?:b|i|sub|sup|br) ?/?)&gt;", r"<\1>", html.escape(_title(figure)))
    caption = f'<div class="plotly-title" aria-hidden="true">{title}</div>' if title else ""
    room = f"height:{int(layout.get('height') or DEFAULT_HEIGHT)}px"
    if layout.get("width"):
        room += f";max-width:{int(layout['width'])}px"
    if panel_share(layout) < 0.7:  # panels side by side: a narrow screen scrolls instead
        room += f";min-width:{min(640, round(240 / panel_share(layout)))}px"
    drawn = {k: v for k, v in layout.items() if k not in ("title", "width", "height")}
    drawn_figure = {"data": figure.get("data", []), "layout": drawn}
    data = json.dumps(drawn_figure, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="plotly-figure" role="group" aria-label="{html.escape(label)}">{caption}'
        f'<script type="application/json">{data}</script>'
        f'<div class="plotly-canvas" style="{room}"></div></div>\n'
    )


def panel_share(layout: Mapping[str, Any]) -> float:
    """The share of the width that the narrowest panel takes; what has no ticks is a margin.

    >>> panel_share({"xaxis": {"domain": [0.0, 0.25]}, "xaxis2": {"showticklabels": False}})
    0.25
    """
    axes = [value for name, value in layout.items() if name.startswith("xaxis")]
    axes = [axis for axis in axes if axis.get("showticklabels", True)]
    domains = [axis.get("domain") or (0, 1) for axis in axes]
    return min((end - start for start, end in domains), default=1.0)


def _title(figure: Mapping[str, Any]) -> str:
    title = figure.get("layout", {}).get("title") or ""
    return title if isinstance(title, str) else title.get("text") or ""

"""How the book draws a plotly figure that a notebook shows with a plain `fig.show()`, an
`Explorer`, and a claim.

Renderers for myst-nb, which `companion` gives to it. They put the figure into the page as data;
`book/_static/book.js` draws it when it comes near the screen.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docutils import nodes

from claims import card, with_family
from patchsae_lib.artefacts import CLAIM
from patchsae_lib.explorer.widget import EXPLORER

PLOTLY = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450  # plotly's own
WITHOUT_SCRIPTS = (
    "<noscript><p>A part of the explorer stands here when JavaScript is on: it computes in the "
    "page, and asks no server.</p></noscript>"
)


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


class ExplorerRenderer:
    """myst-nb's `MimeRenderPlugin` for the explorer; its bundle lies beside the notebooks."""

    mime_priority_overrides = (("*", EXPLORER, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Turn the output of a cell into a raw HTML node; None for every other type."""
        if inline or data.mime_type != EXPLORER:
            return None
        bundle = Path(renderer.renderer.document["source"]).parent / data.content["bundle"]
        if not (bundle / "index.js").is_file():
            renderer.logger.warning(f"no explorer without {bundle}/index.js", line=data.line)
        state = html.escape(json.dumps(data.content, sort_keys=True))
        block = f'<div class="patchsae-explorer" data-state="{state}"></div>\n{WITHOUT_SCRIPTS}\n'
        return [nodes.raw("", block, format="html")]


class ClaimRenderer:
    """myst-nb's `MimeRenderPlugin` for claims, whose records lie beside the notebooks."""

    mime_priority_overrides = (("*", CLAIM, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        """Turn the output of a cell into a raw HTML node, with the p-value adjusted for all claims
        of the run; None for every other type."""
        if inline or data.mime_type != CLAIM:
            return None
        records = Path(renderer.renderer.document["source"]).with_name("claims.json")
        found = {x["id"]: x for x in with_family(json.loads(records.read_text("utf-8")))}
        return [nodes.raw("", card(found[data.content["id"]]), format="html")]


def accessible_label(figure: Mapping[str, Any], in_cell: str = "") -> str:
    """What the figure shows, in words: `layout.meta["alt"]`, else what the cell's metadata says
    (its image's alt, its figure's caption), else the title.

    >>> accessible_label({"layout": {"title": {"text": "Loss<br>by <i>step</i>"}}})
    'Loss by step'
    """
    described = _meta(figure).get("alt", "")
    return described or in_cell or " ".join(re.sub(r"<[^>]*>", " ", _title(figure)).split())


def figure_html(figure: Mapping[str, Any], label: str) -> str:
    """The HTML of a figure: its title as text (which wraps, as plotly's would not), its room, and
    its data as JSON.

    `layout.meta` may have, from `figures.finish`, as `heading` the pixels that the title takes
    above the figure elsewhere.
    """
    layout, meta = dict(figure.get("layout", {})), _meta(figure)
    layout.pop("title", None)
    width, height = layout.pop("width", None), layout.pop("height", None) or DEFAULT_HEIGHT
    if heading := meta.get("heading", 0):
        height -= heading
        layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] - heading}
    room = f"height:{int(height)}px"
    if width:
        room += f";max-width:{int(width)}px"
    if panel_share(layout) < 0.7:  # panels side by side: a narrow screen scrolls instead
        room += f";min-width:{min(640, round(240 / panel_share(layout)))}px"
    title = re.sub(r"&lt;(/?(?:b|i|sub|sup|br) ?/?)&gt;", r"<\1>", html.escape(_title(figure)))
    above = f'<div class="plotly-title" aria-hidden="true">{title}</div>' if title else ""
    drawn_figure = {"data": figure.get("data", []), "layout": layout}
    data = json.dumps(drawn_figure, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<figure class="plotly-figure" aria-label="{html.escape(label)}">{above}'
        f'<script type="application/json">{data}</script>'
        f'<div class="plotly-canvas" style="{room}"></div></figure>\n'
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


def _meta(figure: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = figure.get("layout", {}).get("meta")
    return meta if isinstance(meta, Mapping) else {}

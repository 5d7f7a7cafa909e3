"""Figures in one colour language: plotly express to read in the book, seaborn for print.

Teal is what we measured, orange what it is compared with, grey what the paper reports. Every
figure has a title and a description made from its data. Where a table has columns `low` and
`high`, they are drawn as the interval of what it measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
from plotly.graph_objects import Figure
from plotly.io import templates
from plotly.subplots import make_subplots

TEAL, ORANGE, VIOLET, GREY, INK = "#0f766e", "#c2410c", "#6d28d9", "#9ca3af", "#1f2a37"
COLOURS = (TEAL, ORANGE, VIOLET, "#0369a1", "#be185d", "#4d7c0f", "#6b7280", "#b45309")
#: with the colours, for readers who cannot tell these apart
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "pentagon")
#: low to high, every step readable on white and on black; blue to yellow for the colour-blind
SCALE = ("#5560c9", "#3a82b8", "#2f9e8f", "#86a63a", "#cf9a00")
LOOK = {"color_discrete_sequence": COLOURS, "symbol_sequence": SYMBOLS}
DOTTED = {"dash": "dot", "color": GREY, "width": 1}
# on pointing at a mark: what its colour stands for; where a latent lies
NAME = "<extra>%{fullData.name}</extra>"
PLACE = "<br>frequency 10^%{x:.2f}, mean 10^%{y:.2f}<extra></extra>"
FREQUENCY, MEAN = "log₁₀ activated frequency", "log₁₀ mean activation"
MEASURES = {  # key of a training history → title of its panel
    "reconstruction": "Reconstruction loss", "l0": "Active latents per token (L0)",
    "explained_variance": "Explained variance", "dead": "Dead latents",
}  # fmt: skip
HEADING = 28  # pixels of a title, which the book sets as text above the figure
AXIS = {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False, "ticks": "outside"}
templates["patchsae"] = {"layout": {
    "font": {"family": "Inter, system-ui, sans-serif", "size": 13, "color": INK},
    "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 56, "r": 16, "b": 48}, "xaxis": AXIS, "yaxis": AXIS,
    "legend": {"orientation": "h", "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    "title": {"x": 0, "xanchor": "left", "yref": "container", "y": 1, "yanchor": "top"},
    "title_font_size": 15, "title_pad_t": 8,
    "annotationdefaults": {"font": {"size": 15}},  # titles of panels
}}  # fmt: skip


def finish(figure: Figure, title: str, alt: str, height: int, **layout: object) -> Figure:
    """Give a figure our look, a title, and `height` pixels below it. For readers who cannot see
    the figure, `alt` continues the title."""
    panel_title = 32 / (height - 80) if figure.layout.annotations else 0
    figure.for_each_annotation(lambda note: note.update(text=note.text.removeprefix("panel=")))
    return figure.update_layout(
        template="plotly+patchsae",
        title_text=title,
        legend={"title_text": "", "y": 1 + panel_title},
        margin_t=32 + HEADING,
        height=height + HEADING,
        meta={"alt": f"{title}. {alt}.", "heading": HEADING},
        **layout,
    )


def listed(values: Iterable[tuple[object, float]]) -> str:
    """Names with their values, for `finish`: "a 0.1, b 0.25"."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values)


def _bars(table: pd.DataFrame, axis: str, value: str) -> dict[str, pd.Series]:
    """Arguments of px for error bars from `low` to `high`, where the table has these columns."""
    if "low" not in table:
        return {}
    above, below = table["high"] - table[value], table[value] - table["low"]
    return {f"error_{axis}": above, f"error_{axis}_minus": below}


def _panels(table: pd.DataFrame, panel: str) -> tuple[dict[str, Any], int]:
    """Arguments of px for a panel for each value of a column, and how many rows they make."""
    n_panels = table[panel].nunique()
    columns = min(4, int(np.ceil(n_panels**0.5)))
    spacing = {"facet_col_spacing": 0.16 / columns, "facet_row_spacing": 0.1}
    facets = {"facet_col": panel, "facet_col_wrap": columns, "labels": {panel: "panel"}}
    return facets | spacing, -(-n_panels // columns)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], *, title: str
) -> Figure:
    """Draw training histories: a panel a measure, a line a run (name → history)."""
    runs = {name: pd.DataFrame(list(history)) for name, history in histories.items()}
    table = pd.concat(runs, names=["run"]).reset_index("run").rename(columns=MEASURES)
    table = table.melt(["run", "step"], list(MEASURES.values()), "measure")
    axes: Any = {"x": "step", "y": "value", "by": "run", "panel": "measure"}
    figure = curves(table, title=title, **axes)
    figure.update_traces(mode="lines").update_xaxes(dtick=None)
    figure.update_yaxes(matches=None, showticklabels=True, title=None)
    figure.update_yaxes(type="log", row=2).update_yaxes(tickformat=".0%", range=[0, 1], row=1)
    return figure.update_layout(showlegend=len(histories) > 1)


def _active(table: pd.DataFrame) -> pd.DataFrame:
    """The latents that are ever active, with logarithms of their frequency and mean activation."""
    rows = table[table["frequency"] > 0]  # in float32: half of what a page has to load
    x, y = (np.log10(rows[name]).astype("float32") for name in ("frequency", "mean"))
    return rows.assign(**{FREQUENCY: x, MEAN: y})


def _medians(rows: pd.DataFrame) -> str:
    """Where the points of a scatter lie, for `finish`."""
    medians = listed(rows[["frequency", "mean"]].median().items())
    return f"{len(rows):,} latents, median {medians}"


def scatter_panels(table: pd.DataFrame, *, panel: str, title: str) -> Figure:
    """Draw latents by log10 frequency and log10 mean activation (paper Figs. 3, 8).

    `table` has a row a latent: its number as index, `frequency`, `mean` and its `panel`.
    """
    rows = _active(table)
    figure = px.scatter(
        rows, x=FREQUENCY, y=MEAN, color=panel, hover_name=rows.index, opacity=0.5,
        **_panels(rows, panel)[0], **LOOK,
    )  # fmt: skip
    figure.update_traces(marker_size=4, hovertemplate=f"latent %{{hovertext}}{PLACE}")
    alt = "; ".join(f"{name}: {_medians(part)}" for name, part in rows.groupby(panel, sort=False))
    return finish(figure, title, alt, 400, showlegend=False)


def latent_scatter(table: pd.DataFrame, *, colour: str, label: str, title: str) -> Figure:
    """Draw latents by frequency and mean activation, with the histogram of each (paper Fig. 3).

    `table` has a row a latent: its number as index, `frequency`, `mean`, the column `colour`
    (named `label`; grey where it is NaN) and, to be read on pointing at a latent, `hover`. Silent
    latents are left out. The colours go from the first to the ninety-ninth percentile.
    """
    rows = _active(table).sort_values(colour, key=pd.notna, kind="stable")  # grey ones first
    marginals: Any = dict.fromkeys(("marginal_x", "marginal_y"), "histogram")
    figure = px.scatter(rows, x=FREQUENCY, y=MEAN, hover_name="hover", **marginals)
    low, high = rows[colour].quantile([0.01, 0.99])
    place = {"thickness": 10, "len": 0.5, "x": 0, "xanchor": "left", "y": -0.16, "yanchor": "top"}
    bar = {"title": {"text": label, "side": "top", "font_size": 12}, "orientation": "h", **place}
    shades = {"size": 5, "opacity": 0.75, "colorscale": SCALE, "cmin": low, "cmax": high}
    values = rows[colour].round(4).where(rows[colour].notna(), "rgba(156,163,175,.45)")  # GREY
    # the explorer follows clicks on points whose customdata is a number
    look = {"marker": {"color": values, "colorbar": bar, **shades}, "customdata": rows.index}
    hover = "latent %{customdata}<br>%{hovertext}" + PLACE
    figure.update_traces(look, {"mode": "markers"}, hovertemplate=hover)
    bars = {"nbinsx": 60, "nbinsy": 60, "opacity": 1, "marker_color": GREY}
    figure.update_traces(bars, {"type": "histogram"})
    for i, across, along in ((1, (0, 0.85), (0, 0.83)), (2, (0.865, 1), (0.85, 1))):
        figure.update_xaxes(domain=across, col=i).update_yaxes(domain=along, row=i)
    plain = ({"showgrid": False, "ticks": ""}, {"showticklabels": False})
    figure.update_xaxes(*plain).update_yaxes(*plain)
    alt = f"{_medians(rows)}; {label}, 1st to 99th percentile {low:.2g} to {high:.2g}"
    return finish(figure, title, alt, 560, bargap=0)


def print_scatter(table: pd.DataFrame, *, colour: str, label: str) -> Any:
    """`latent_scatter` for paper: a matplotlib figure, drawn with seaborn."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.colors import LinearSegmentedColormap

    rows = _active(table).sort_values(colour, key=pd.notna, kind="stable")  # grey ones first
    scale = LinearSegmentedColormap.from_list("patchsae", SCALE).with_extremes(bad=f"{GREY}66")
    look = {"s": 6, "c": colour, "cmap": scale, "plotnonfinite": True, "linewidths": 0}
    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        grid = sns.JointGrid(rows, x=FREQUENCY, y=MEAN, height=4.6, ratio=7, space=0.08)
        points = grid.ax_joint.scatter(FREQUENCY, MEAN, data=rows, **look)
        grid.plot_marginals(sns.histplot, color=GREY, bins=50, linewidth=0)
        bar = grid.ax_joint.inset_axes((0.5, 0.17, 0.45, 0.025))
        grid.figure.colorbar(points, cax=bar, label=label, orientation="horizontal")
    plt.close(grid.figure)  # shown once, by the notebook
    return grid.figure


def curves(
    table: pd.DataFrame, *, x: str, y: str, by: str, title: str,
    panel: str | None = None, log_x: bool = False, lines: Mapping[str, float] | None = None
) -> Figure:  # fmt: skip
    """Draw a measure over `x`: a line for each value of `by`, a panel for each of `panel`, and
    dotted `lines` (name → value) across every panel."""
    keys = [panel, by] if panel else [by]
    table = table.astype(dict.fromkeys(keys, str)).reset_index(drop=True)
    facets, rows = _panels(table, panel) if panel else ({}, 1)
    figure = px.line(
        table, x=x, y=y, color=by, symbol=by, markers=True, log_x=log_x, **facets,
        **_bars(table, "y", y), **LOOK,
    )  # fmt: skip
    look = {"line_width": 2, "marker_size": 7, "error_y": {"thickness": 1.5, "width": 0}}
    figure.update_traces(**look, hovertemplate=f"{x} %{{x}}: %{{y:.3f}}{NAME}")
    figure.update_xaxes(dtick=1).update_yaxes(rangemode="tozero")
    for i, (name, value) in enumerate((lines or {}).items()):
        figure.add_hline(value, line=DOTTED)
        side = ("bottom", "top")[i % 2]  # above and below by turns, since two may lie close
        note = {"text": name, "font_size": 11, "showarrow": False, "yanchor": side, "y": value}
        figure.add_annotation(note, x=1, xanchor="right", xref="x domain", row=rows, col=1)
    ends = [0, -1] if panel else slice(None)  # of many lines, only the ends
    parts: Any = table.sort_values(x, kind="stable").set_index(x).groupby(keys, sort=False)[y]
    alt = "; ".join(f"{', '.join(i)}: {listed(part.iloc[ends].items())}" for i, part in parts)
    layout = {"height": 60 + 260 * rows} if panel else {"height": 420, "yaxis_title": None}
    return finish(figure, title, f"{y} over {x}: {alt}", **layout)


def group_panels(
    table: pd.DataFrame, *, x: str, y: str, by: str, panel: str, order: Sequence[str], title: str
) -> Figure:  # fmt: skip
    """Draw latents before and after adaptation (paper Figs. 6, 20): a panel for each value of
    `panel`, a point a row, which says `hover`, a colour for each value of `by`. `order` lists
    these: two of latents that stay, two of latents that change, drawn last and larger. Both axes
    are logarithmic; what is 0 lies on the edge."""
    levels = table[[x, y]].to_numpy()
    edge, top = 0.7 * levels[levels > 0].min(), 1.4 * levels.max()
    lifted = table[[x, y]].clip(lower=edge).astype("float32")  # half of a page's weight
    facets, rows = _panels(table, panel)
    figure = px.scatter(
        table.assign(**lifted), x=x, y=y, color=by, symbol=by, category_orders={by: order},
        log_x=True, log_y=True, range_x=[edge, top], range_y=[edge, top], hover_name="hover",
        color_discrete_sequence=(GREY, *COLOURS), symbol_sequence=("circle", *SYMBOLS), **facets,
    )  # fmt: skip
    for name, size, opacity in zip(order, (4, 4, 8, 8), (0.4, 0.6, 1, 1), strict=False):
        figure.update_traces({"marker": {"size": size, "opacity": opacity}}, {"name": name})
    hover = "%{hovertext}<br>%{x:.3g} before, %{y:.3g} after<extra></extra>"
    ends = {"x0": edge, "y0": edge, "x1": top, "y1": top}
    figure.add_shape(type="line", **ends, line=DOTTED, layer="below", row="all", col="all")
    figure.update_traces(hovertemplate=hover).update_xaxes(nticks=4).update_yaxes(nticks=4)
    parts = table.groupby(panel, sort=False)[by]
    alt = "; ".join(f"{key}: {listed((i, sum(part == i)) for i in order)}" for key, part in parts)
    height = 100 + (280 if rows > 1 else 420) * rows
    return finish(figure, title, alt, height, legend_itemsizing="constant")


def stacked(table: pd.DataFrame, *, title: str, label: str = "") -> Figure:
    """Draw what a sum is made of: a bar for each row, a colour for each column."""
    named = table.rename(index=str)
    figure = px.bar(named, orientation="h", color_discrete_sequence=COLOURS)
    figure.update_traces(hovertemplate=f"%{{y}}: %{{x:+.3f}}{NAME}")
    figure.update_yaxes(autorange="reversed", title=None)
    figure.update_xaxes(title_text=label, zeroline=True, zerolinecolor=GREY)
    alt = "; ".join(f"{name}: {listed(row.items())}" for name, row in named.iterrows())
    return finish(figure, title, alt, 130 + 30 * len(table), bargap=0.3)


def heat_map(
    table: pd.DataFrame, *, title: str, label: str = "", span: tuple[float, float] | None = None
) -> Figure:  # fmt: skip
    """Draw a table of numbers as colours, over `span` (one for figures to be compared) or over the
    values."""
    named = table.rename(index=str, columns=str)
    figure = px.imshow(named, color_continuous_scale=SCALE, aspect="auto", range_color=span)
    figure.update_traces(xgap=1, ygap=1, hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>")
    cells = {f"{i}, {column}": v for column in named for i, v in named[column].items()}
    alt = f"highest: {listed(pd.Series(cells).nlargest(5).items())}"
    bar = {"title": {"text": label, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    axis = {"type": "category", "showgrid": False}
    layout = {"xaxis": axis, "yaxis": axis, "coloraxis_colorbar": bar}
    return finish(figure, title, alt, 130 + 20 * len(table), **layout)


def heat_maps(tables: Mapping[str, pd.DataFrame], *, title: str, label: str = "") -> Figure:
    """Draw shares (0..1) as colours, a panel for each table; pointing at a cell names it."""
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    gaps = {"horizontal_spacing": 0.04, "vertical_spacing": 0.16 / rows}
    figure = make_subplots(rows, columns, subplot_titles=list(tables), **gaps)
    for i, table in enumerate(tables.values()):
        names = {"x": table.columns.astype(str), "y": table.index.astype(str)}
        figure.add_heatmap(z=table, **names, row=i // columns + 1, col=i % columns + 1)
    hover = "%{y}, predicted as %{x}: %{z:.2f}<extra></extra>"
    figure.update_traces(coloraxis="coloraxis", hovertemplate=hover)
    figure.update_xaxes(showticklabels=False, ticks="").update_yaxes(autorange="reversed")
    figure.update_yaxes(showticklabels=False, ticks="")
    bar = {"title": {"text": label, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    axis = {"colorscale": SCALE, "cmin": 0, "cmax": 1, "colorbar": bar}
    diagonal = ((name, float(np.diag(table).mean())) for name, table in tables.items())
    alt = f"mean on the diagonal: {listed(diagonal)}"
    return finish(figure, title, alt, 90 + 220 * rows, coloraxis=axis)


def paired_bars(table: pd.DataFrame, *, x: str, y: str, by: str, panel: str, title: str) -> Figure:
    """Draw values side by side: `x` in groups of `panel`, a bar for each value of `by`."""
    figure = px.bar(table, x=x, y=y, color=by, barmode="group", color_discrete_sequence=COLOURS)
    for name, rows in table.groupby(by, sort=False):
        figure.update_traces({"x": [rows[panel], rows[x]]}, {"name": name})
    figure.update_traces(hovertemplate=f"{x} %{{x}}: %{{y:.4f}}{NAME}").update_xaxes(title=None)
    groups = table.groupby(panel, sort=False)[x].unique().items()
    alt = "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in groups)
    return finish(figure, title, f"{x}, {alt}", 420, bargap=0.3)


def dots(
    table: pd.DataFrame, *, x: str, y: str, title: str,
    by: str | None = None, span: tuple[float, float] | None = None
) -> Figure:  # fmt: skip
    """Draw a measure with its interval: a row for each value of `y`, a colour for each of `by`,
    the first of which is what the figure is about. Intervals are cut at the ends of a `span`."""
    table = table.astype({name: str for name in (y, by) if name}).reset_index(drop=True)
    if span and "low" in table:
        table[["low", "high"]] = table[["low", "high"]].clip(*span)
    bars = _bars(table, "x", x)
    figure = px.scatter(table, x=x, y=y, color=by, symbol=by, orientation="h", **bars, **LOOK)
    look = {"marker_size": 9, "error_x": {"thickness": 2, "width": 0}, "cliponaxis": not span}
    figure.update_traces(**look, hovertemplate=f"%{{y}}: %{{x:.3f}}{NAME}")
    figure.update_yaxes(autorange="reversed", title=None)
    figure.update_xaxes(rangemode="tozero", range=span, title=None)
    parts = table.groupby(by, sort=False) if by else [(x, table)]
    alt = "; ".join(f"{name}: {listed(rows.set_index(y)[x].items())}" for name, rows in parts)
    height = 110 + (17 if by else 42) * len(table)
    return finish(figure, title, alt, height, scattermode="group", scattergap=0.2)

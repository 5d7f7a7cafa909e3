"""Figures in one colour language: plotly to read in the book, seaborn for print.

Teal is what we measured, orange what it is compared with, grey what the paper reports. Every
figure has a title, a caption (what to look for) and, made from its data, words for those who
cannot see it.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image
from plotly.subplots import make_subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEAL, ORANGE, VIOLET, GREY, INK = "#0f766e", "#c2410c", "#6d28d9", "#9ca3af", "#1f2a37"
CYCLE = (TEAL, ORANGE, VIOLET, "#0369a1", "#be185d", "#4d7c0f", "#6b7280", "#b45309")
#: with the colours, for those who do not tell them apart
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "pentagon")
#: low to high, every step readable on white and on black; blue to yellow for the colour-blind
SCALE = ("#5560c9", "#3a82b8", "#2f9e8f", "#86a63a", "#cf9a00")

pio.templates["patchsae"] = go.layout.Template(
    layout={
        "font": {"family": "Inter, system-ui, sans-serif", "size": 13, "color": INK},
        "colorway": CYCLE,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 16, "t": 48, "b": 48},
        "xaxis": {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False, "ticks": "outside"},
        "yaxis": {"gridcolor": "rgba(128,128,128,.18)", "zeroline": False, "ticks": "outside"},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        "title": {"x": 0, "xanchor": "left", "font": {"size": 15}},
        "hoverlabel": {"font": {"size": 12}},
    }
)
TEMPLATE = "plotly+patchsae"


def finish(
    figure: go.Figure, title: str, caption: str, said: str, height: int, **layout: object
) -> go.Figure:
    """Give a figure our look, its words and its `height` (pixels).

    `said` continues the title for readers who cannot see the figure. In JupyterLab the caption is
    the subtitle; the book sets it below.
    """
    caption = " ".join(caption.split())
    lines = textwrap.wrap(caption, 100)
    heading = 28 + 17 * len(lines)  # what the book takes off again
    return figure.update_layout(
        template=TEMPLATE,
        title={
            "text": title,
            "subtitle": {"text": "<br>".join(lines), "font_size": 12},
            **{"yref": "container", "y": 1, "yanchor": "top", "pad_t": 8},
        },
        margin_t=32 + heading,
        height=height + heading,
        meta={"alt": f"{title}. {said}", "caption": caption, "heading": heading},
        **layout,
    )


def listed(values: Iterable[tuple[object, float]]) -> str:
    """Names with their values, for `finish`: "a 0.1, b 0.25"."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values)


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    title: str,
    caption: str = "",
    measures: Mapping[str, str] | None = None,
) -> go.Figure:
    """One panel a measure, one line a run. `measures`: key in the history → title of its panel."""
    measures = measures or {
        "reconstruction": "Reconstruction loss",
        "l0": "Active latents per token (L0)",
        "explained_variance": "Explained variance",
        "dead": "Dead latents",
    }
    figure = make_subplots(2, 2, subplot_titles=list(measures.values()), vertical_spacing=0.16)
    for c, (name, history) in zip(CYCLE, histories.items(), strict=False):
        table = pd.DataFrame(list(history))
        for i, key in enumerate(measures):
            figure.add_scatter(
                x=table["step"],
                y=table[key],
                name=name,
                legendgroup=name,
                showlegend=i == 0 and len(histories) > 1,
                mode="lines",
                line={"color": c, "width": 2},
                row=i // 2 + 1,
                col=i % 2 + 1,
            )
    figure.update_yaxes(type="log", row=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 1], row=2)
    figure.update_xaxes(title_text="step", row=2)
    ends = "; ".join(
        f"{name} ends with " + listed((said, history[-1][key]) for key, said in measures.items())
        for name, history in histories.items()
    )
    return finish(figure, title, caption, f"{ends}.", 520, legend_y=1.08)


def scatter_panels(
    statistics: Mapping[str, pd.DataFrame], title: str, caption: str = ""
) -> go.Figure:
    """Latents by log10 frequency and log10 mean activation (paper Figs. 3, 8), a panel a table."""
    figure = make_subplots(
        1, len(statistics), subplot_titles=list(statistics), shared_yaxes=True, shared_xaxes=True
    )
    for i, (name, table) in enumerate(statistics.items()):
        alive = table[table["frequency"] > 0]
        figure.add_scattergl(
            x=np.log10(alive["frequency"]),
            y=np.log10(alive["mean"]),
            mode="markers",
            marker={"size": 4, "opacity": 0.5, "color": CYCLE[i]},
            text=[f"latent {j}" for j in alive.index],
            hovertemplate="%{text}<br>frequency 10^%{x:.2f}<br>mean 10^%{y:.2f}<extra></extra>",
            name=name,
            row=1,
            col=i + 1,
        )
    figure.update_xaxes(title_text="log₁₀ activated frequency", matches="x")
    figure.update_yaxes(title_text="log₁₀ mean activation", col=1)
    said = "; ".join(f"{name}: {middle(table)}" for name, table in statistics.items())
    return finish(figure, title, caption, f"{said}.", 400, showlegend=False)


def middle(table: pd.DataFrame) -> str:
    """Where the points of a scatter lie, for `finish`."""
    alive = table[table["frequency"] > 0]
    medians = listed((name, alive[name].median()) for name in ("frequency", "mean"))
    return f"{len(alive):,} latents, median {medians}"


def latent_scatter(
    table: pd.DataFrame, colour: str, label: str, title: str, caption: str = ""
) -> go.Figure:
    """Latents by frequency and mean activation with the distribution of each (paper Fig. 3).

    `table` has a row a latent: `frequency`, `mean`, the column `colour` (named `label`; grey where
    it is NaN) and, to be read on pointing at a latent, `hover`. Silent latents are left out. The
    colours go from the first to the ninety-ninth percentile.
    """
    alive = table[table["frequency"] > 0]
    x, y = np.log10(alive["frequency"]), np.log10(alive["mean"])
    known = alive[colour].notna()
    figure = make_subplots(
        2, 2, shared_xaxes=True, shared_yaxes=True, row_heights=[0.16, 0.84],
        column_widths=[0.86, 0.14], horizontal_spacing=0.015, vertical_spacing=0.02,
    )  # fmt: skip
    bar = {
        "title": {"text": label, "side": "top", "font_size": 12},
        "orientation": "h",
        "thickness": 10,
        **{"len": 0.5, "x": 0.0, "xanchor": "left", "y": -0.16, "yanchor": "top"},
    }
    low, high = alive[colour].quantile([0.01, 0.99])
    shades = {"color": alive.loc[known, colour], "colorscale": SCALE, "colorbar": bar}
    shades |= {"cmin": low, "cmax": high}
    for rows, marker in ((~known, {"color": GREY, "opacity": 0.35}), (known, shades)):
        figure.add_scattergl(
            x=x[rows],
            y=y[rows],
            mode="markers",
            marker={"size": 5, "opacity": 0.75, **marker},
            text=[f"latent {i}<br>{h}" for i, h in alive.loc[rows, "hover"].items()],
            customdata=alive.index[rows],
            hovertemplate="%{text}<br>frequency 10^%{x:.2f}, mean 10^%{y:.2f}<extra></extra>",
            row=2,
            col=1,
        )
    plain = {"marker_color": GREY, "hoverinfo": "skip"}
    figure.add_histogram(x=x, nbinsx=60, row=1, col=1, **plain)
    figure.add_histogram(y=y, nbinsy=60, row=2, col=2, **plain)
    figure.update_xaxes(title_text="log₁₀ activated frequency", row=2, col=1)
    figure.update_yaxes(title_text="log₁₀ mean activation", row=2, col=1)
    for place in ({"row": 1, "col": 1}, {"row": 2, "col": 2}):
        figure.update_xaxes(showticklabels=False, showgrid=False, ticks="", **place)
        figure.update_yaxes(showticklabels=False, showgrid=False, ticks="", **place)
    said = f"{middle(table)}; {label} from {low:.2g} to {high:.2g}."
    return finish(figure, title, caption, said, 560, showlegend=False, bargap=0)


def print_scatter(table: pd.DataFrame, colour: str, label: str) -> Figure:
    """`latent_scatter` for paper: a matplotlib figure, drawn with seaborn."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.colors import LinearSegmentedColormap

    alive = table[table["frequency"] > 0]
    shown = pd.DataFrame(
        {
            "log₁₀ activated frequency": np.log10(alive["frequency"]),
            "log₁₀ mean activation": np.log10(alive["mean"]),
            label: alive[colour],
        }
    )
    x, y = list(shown)[:2]
    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        grid = sns.JointGrid(shown, x=x, y=y, height=4.6, ratio=7, space=0.08)
        few = shown[label].isna()
        grid.ax_joint.scatter(shown[x][few], shown[y][few], s=4, c=GREY, alpha=0.4, linewidths=0)
        dots = grid.ax_joint.scatter(
            shown[x][~few], shown[y][~few], s=6, c=shown[label][~few], linewidths=0,
            cmap=LinearSegmentedColormap.from_list("patchsae", SCALE),
        )  # fmt: skip
        grid.plot_marginals(sns.histplot, color=GREY, bins=50, linewidth=0)
        place = grid.ax_joint.inset_axes((0.5, 0.17, 0.45, 0.025))
        grid.figure.colorbar(dots, cax=place, label=label, orientation="horizontal")
    plt.close(grid.figure)  # shown once, by the notebook
    return grid.figure


def curves(
    table: pd.DataFrame,
    x: str,
    y: str,
    low: str,
    high: str,
    by: str,
    title: str,
    caption: str = "",
) -> go.Figure:
    """A measure with its interval over `x`, a line for each value of column `by`."""
    figure = go.Figure()
    for colour, symbol, name in zip(CYCLE, SYMBOLS, table[by].unique(), strict=False):
        rows = table[table[by] == name]
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": symbol, "size": 8},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": rows[high] - rows[y],
                "arrayminus": rows[y] - rows[low],
                "width": 0,
            },
            hovertemplate="%{x}: %{y:.3f}<extra>" + str(name) + "</extra>",
        )
    figure.update_xaxes(title_text=x, dtick=1)
    figure.update_yaxes(rangemode="tozero")
    lines = [
        f"{n}: {listed(zip(t[x], t[y], strict=True))}" for n, t in table.groupby(by, sort=False)
    ]
    return finish(figure, title, caption, f"{y} over {x}: {'; '.join(lines)}.", 420)


def line_panels(
    table: pd.DataFrame,
    panel: str,
    by: str,
    x: str,
    y: str,
    title: str,
    caption: str = "",
    lines: Mapping[str, float] | None = None,
    columns: int = 2,
) -> go.Figure:
    """Small multiples: a panel for each value of column `panel`, a line for each of `by`, over x
    on a logarithmic axis, with the interval `low` to `high` where the table has one.

    `lines`: name → value of dashed lines across every panel.
    """
    names = list(table[panel].unique())
    rows = -(-len(names) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=list(map(str, names)), shared_yaxes=True, shared_xaxes=True,
        horizontal_spacing=0.04, vertical_spacing=0.09 if rows > 1 else 0.0,
    )  # fmt: skip
    named: set[object] = set()  # lines that the legend has
    for i, name in enumerate(names):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        of = table[table[panel] == name]
        for colour, symbol, line in zip(CYCLE, SYMBOLS, table[by].unique(), strict=False):
            part = of[of[by] == line]
            bars = {"type": "data", "symmetric": False, "thickness": 1, "width": 0}
            if "low" in part:
                bars |= {"array": part["high"] - part[y], "arrayminus": part[y] - part["low"]}
            if part.empty:
                continue
            figure.add_scatter(
                x=part[x],
                y=part[y],
                name=line,
                legendgroup=line,
                showlegend=line not in named,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"symbol": symbol, "size": 6},
                error_y=bars,
                hovertemplate=f"{x} %{{x}}: %{{y:.3f}}<extra>{html.escape(str(line))}</extra>",
                **place,
            )
            named.add(line)
        for j, (word, value) in enumerate((lines or {}).items()):
            note = {"annotation_text": word, "annotation_font_size": 11} if i == 0 else {}
            if note:  # above and below by turns, since two may lie close
                note["annotation_position"] = ("top right", "bottom right")[j % 2]
            figure.add_hline(
                value, line={"dash": "dot", "color": GREY, "width": 1}, **note, **place
            )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_xaxes(title_text=x, row=rows)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text=y, col=1)
    lines_ = table.sort_values(x).groupby([panel, by], sort=False)[y]
    ends = lines_.agg(["first", "last"]).reset_index().itertuples(index=False)
    said = "; ".join(f"{p}, {b}: {start:.2g} to {end:.2g}" for p, b, start, end in ends)
    layout = {"legend_y": 1.0 + 0.14 / rows, "legend_yanchor": "bottom"}
    return finish(figure, title, caption, f"{y} over {x}: {said}.", 60 + 260 * rows, **layout)


def group_panels(
    table: pd.DataFrame,
    panel: str,
    x: str,
    y: str,
    groups: Sequence[str],
    title: str,
    caption: str = "",
    columns: int = 4,
) -> go.Figure:
    """Latents before and after adaptation (paper Figs. 6, 20): a panel for each value of column
    `panel`, a point a row, coloured by column `group`, of which `groups` says the order.

    Both axes are logarithmic; what is 0 lies on the edge. `hover` is what a point says.
    """
    names = list(table[panel].unique())
    rows = -(-len(names) // columns)
    columns = min(columns, len(names))
    edge = 0.7 * float(table[[x, y]].where(table[[x, y]] > 0).min().min())
    top = 1.4 * float(table[[x, y]].max().max())
    figure = make_subplots(
        rows, columns, subplot_titles=list(map(str, names)), shared_yaxes=True, shared_xaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.1 if rows > 1 else 0.0,
    )  # fmt: skip
    ends = [math.log10(edge), math.log10(top)]
    drawn = table.assign(  # with four digits, which is what a page has to load
        **{name: [float(f"{max(v, edge):.4g}") for v in table[name]] for name in (x, y)}
    )
    sizes = table.groupby([panel, "group"], sort=False).size()
    # what has changed is drawn last, and larger
    looks = (
        (GREY, "circle", 4, 0.4),
        (TEAL, "circle", 4, 0.6),
        (ORANGE, "diamond", 8, 1.0),
        (VIOLET, "square", 8, 1.0),
    )
    for i, name in enumerate(names):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        figure.add_scatter(
            x=[edge, top], y=[edge, top], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": GREY, "width": 1, "dash": "dot"}, **place,
        )  # fmt: skip
        for (colour, symbol, size, opacity), group in zip(looks, groups, strict=False):
            part = drawn[(drawn[panel] == name) & (drawn["group"] == group)]
            figure.add_scattergl(
                x=part[x],
                y=part[y],
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": size, "opacity": opacity},
                name=group,
                legendgroup=group,
                showlegend=i == 0,
                text=part["hover"],
                hovertemplate="%{text}<br>%{x:.3g} before, %{y:.3g} after<extra></extra>",
                **place,
            )
        figure.update_xaxes(type="log", range=ends, nticks=4, **place)
        figure.update_yaxes(type="log", range=ends, nticks=4, **place)
    figure.update_xaxes(title_text=x, row=rows)
    figure.update_yaxes(title_text=y, col=1)
    said = "; ".join(
        f"{name}: " + listed((g, sizes.get((name, g), 0)) for g in groups) for name in names
    )
    height = 100 + (280 if rows > 1 else 420) * rows
    legend = {"legend_y": 1.0 + 0.12 / rows, "legend_itemsizing": "constant"}
    return finish(figure, title, caption, f"{said}.", height, **legend)


def stacked(table: pd.DataFrame, title: str, caption: str = "", label: str = "") -> go.Figure:
    """What a sum is made of: a bar for each row of the table, a colour for each column; those
    below 0 go to the left."""
    figure = go.Figure()
    for colour, name in zip(CYCLE, table.columns, strict=False):
        figure.add_bar(
            y=list(map(str, table.index)),
            x=table[name],
            name=name,
            orientation="h",
            marker_color=colour,
            hovertemplate="%{y}: %{x:+.3f}<extra>" + html.escape(str(name)) + "</extra>",
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title_text=label, zeroline=True, zerolinecolor=GREY)
    said = "; ".join(f"{name}: {listed(row.items())}" for name, row in table.iterrows())
    height = 130 + 30 * len(table)
    layout = {"barmode": "relative", "bargap": 0.3, "legend_traceorder": "normal"}
    return finish(figure, title, caption, f"{said}.", height, **layout)


def heat_map(
    table: pd.DataFrame,
    title: str,
    caption: str = "",
    label: str = "",
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """A table of numbers as colours: its index downwards, its columns to the right. The colours go
    over `span`, which figures to be compared should share, or else over what there is."""
    x, y = (list(map(str, names)) for names in (table.columns, table.index))
    bar = {"title": {"text": label, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(), x=x, y=y, colorscale=SCALE, colorbar=bar, xgap=1, ygap=1,
            zmin=span and span[0], zmax=span and span[1],
            hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text=table.columns.name, type="category", showgrid=False)
    figure.update_yaxes(title_text=table.index.name, type="category", autorange="reversed")
    figure.update_yaxes(showgrid=False)
    values = table.to_numpy()
    top = [np.unravel_index(i, values.shape) for i in np.argsort(-values, axis=None)[:5]]
    said = "highest: " + listed((f"{y[r]}, {x[c]}", float(values[r, c])) for r, c in top)
    return finish(figure, title, caption, f"{said}.", 130 + 20 * len(table))


def paired_bars(table: pd.DataFrame, title: str, caption: str = "") -> go.Figure:
    """Latents of two pictures side by side: columns `latent`, `which` (of three groups),
    `picture` and `level`."""
    figure = go.Figure()
    for colour, name in zip(CYCLE, table["picture"].unique(), strict=False):
        rows = table[table["picture"] == name]
        figure.add_bar(
            x=[rows["which"], rows["latent"]],
            y=rows["level"],
            name=name,
            marker_color=colour,
            hovertemplate="latent %{x}: %{y:.4f}<extra>" + name + "</extra>",
        )
    figure.update_yaxes(title_text="image-level activation")
    groups = table.groupby("which", sort=False)["latent"].unique()
    said = "; ".join(
        f"{which}: {', '.join(map(str, latents))}" for which, latents in groups.items()
    )
    return finish(figure, title, caption, f"Latents {said}.", 420, bargap=0.3)


class Strips:
    """Rows of pictures with words beside them, as HTML: for reference images and their masks.
    Where the words say "latent 12" they lead to the explorer.

    `rows`: (title, what to know of it, pictures, one description a picture).
    """

    STYLE = "display:flex;flex-wrap:wrap;gap:3px;margin:.2rem 0 1rem"
    IMAGE = 'style="margin:0;padding:0;border-radius:3px"'  # dark-light: as it is on a dark page

    def __init__(
        self,
        rows: Sequence[tuple[str, str, Sequence[Image.Image], Sequence[str]]],
        caption: str = "",
    ) -> None:
        self.rows, self.caption = rows, caption

    def _repr_html_(self) -> str:
        out = []
        for title, note, pictures, said in self.rows:
            images = "".join(
                f'<img class="dark-light" width="82" height="82" loading="lazy" {self.IMAGE} '
                f'src="{webp_uri(picture)}" alt="{html.escape(text)}" title="{html.escape(text)}">'
                for picture, text in zip(pictures, said, strict=True)
            )
            head = f"<b>{linked(html.escape(title))}</b> · {linked(html.escape(note))}"
            out.append(f'<div>{head}<div style="{self.STYLE}">{images}</div></div>')
        words = " ".join(html.escape(self.caption).split())
        below = f"<figcaption>{words}</figcaption>" if words else ""
        return "\n".join(["<figure style='margin:0'>", *out, below, "</figure>"])


def explorer_link(text: str, **state: object) -> str:
    """A link, from the page of a notebook, to the explorer's page in some `state`, as HTML.

    >>> explorer_link("that one", latent=12, task="land").split('"')[1]
    '../explorer.html#latent=12&amp;task=land'
    """
    named = {"class" if name == "label" else name: value for name, value in state.items()}
    address = html.escape(f"../explorer.html#{urlencode(named, quote_via=quote)}")
    return f'<a href="{address}">{html.escape(text)}</a>'


def latent_link(latent: int) -> str:
    """The number of a latent as a link to the explorer: for tables (`Styler.format`)."""
    return explorer_link(str(latent), latent=latent, view="latent")


def linked(text: str) -> str:
    """HTML with every "latent 12" as a link to the explorer."""
    return re.sub(r"\b(latent )(\d+)", lambda m: m[1] + latent_link(int(m[2])), text)


def webp_uri(picture: Image.Image, method: int = 6, quality: int = 82) -> str:
    """A picture as a data URI; `method` from 0 (fast) to 6 (small), `quality` up to 100."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=method)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def dots(
    table: pd.DataFrame,
    x: str,
    y: str,
    low: str,
    high: str,
    title: str,
    by: str = "",
    caption: str = "",
) -> go.Figure:
    """A measure with its interval: a row for each value of column `y`, a colour for each of `by`.

    The first value of `by` is what the figure is about; what it is compared with follows.
    """
    groups = {n: table[table[by] == n] for n in table[by].unique()} if by else {"": table}
    figure = go.Figure()
    for colour, symbol, (name, rows) in zip(CYCLE, SYMBOLS, groups.items(), strict=False):
        figure.add_scatter(
            x=rows[x],
            y=rows[y],
            name=name,
            mode="markers",
            orientation="h",
            marker={"size": 9, "color": colour, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": rows[high] - rows[x],
                "arrayminus": rows[x] - rows[low],
                "color": colour,
                "thickness": 2,
                "width": 0,
            },
            hovertemplate="%{y}: %{x:.3f}<extra>" + name + "</extra>",
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(scattermode="group", scattergap=0.2, legend_traceorder="normal")
    lines = [f"{n or x}: {listed(zip(t[y], t[x], strict=True))}" for n, t in groups.items()]
    height = 110 + (17 if by else 42) * len(table)
    return finish(figure, title, caption, f"{'; '.join(lines)}.", height, showlegend=bool(by))

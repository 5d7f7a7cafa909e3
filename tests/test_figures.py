from typing import Any

import numpy as np
import pandas as pd
import pytest

from patchsae_lib import figures

WORDS: Any = {"title": "Title"}
LATENTS = pd.DataFrame(
    {
        "frequency": [0.1, 0.0, 0.5, 0.01],
        "mean": [0.2, 0.0, 1.0, 0.1],
        "entropy": [0.3, np.nan, 1.2, np.nan],
        "hover": ["a", "b", "c", "d"],
    }
)


def test_every_active_latent_is_a_point_and_silent_ones_are_not() -> None:
    figure = figures.latent_scatter(LATENTS, colour="entropy", label="nats", **WORDS)
    points, *histograms = figure.data
    assert list(points.customdata) == [3, 0, 2]  # the one without a value below the others
    assert np.allclose(points.x, np.log10([0.01, 0.1, 0.5]))
    assert list(points.marker.color[1:]) == [0.3, 1.2]
    assert list(points.hovertext) == ["d", "a", "c"]
    assert [len(h.x if h.x is not None else h.y) for h in histograms] == [3, 3]
    assert (
        "3 latents, median frequency 0.1, mean 0.2; nats, 1st to 99th percentile 0.31 to 1.2"
        in figure.layout.meta["alt"]
    )


def test_the_scatter_for_print_shows_the_same_points() -> None:
    figure = figures.print_scatter(LATENTS, colour="entropy", label="nats")
    (points,) = figure.axes[0].collections
    assert np.allclose(points.get_offsets()[:, 0], np.log10([0.01, 0.1, 0.5]))
    assert figure.axes[0].get_xlabel() == "log₁₀ activated frequency"


def test_tables_of_latents_with_the_same_numbers_have_a_panel_each() -> None:
    table = pd.concat({"one": LATENTS, "two": LATENTS}, names=["sae"]).reset_index("sae")
    figure = figures.scatter_panels(table, panel="sae", **WORDS)
    assert [list(trace.hovertext) for trace in figure.data] == [[0, 2, 3]] * 2
    assert [note.text for note in figure.layout.annotations] == ["one", "two"]
    assert figure.layout.meta["alt"].startswith("Title. one: 3 latents, median frequency 0.1")


def test_training_histories_share_their_panels() -> None:
    history = [dict.fromkeys(("step", *figures.MEASURES), value) for value in (1.0, 0.5)]
    figure = figures.learning_curves({"first": history, "second": history[:1]}, **WORDS)
    assert {trace.name for trace in figure.data} == {"first", "second"}
    assert len(figure.data) == 8
    assert {note.text for note in figure.layout.annotations} == set(figures.MEASURES.values())
    assert figure.layout.showlegend
    assert not figures.learning_curves({"first": history}, **WORDS).layout.showlegend


def test_dots_are_a_trace_for_each_value_of_by_in_order() -> None:
    rows = [
        ("x", "latents", 0.5, 0.4, 0.6),
        ("x", "raw", 0.2, 0.1, 0.3),
        ("y", "latents", 0.7, 0.6, 0.9),
    ]
    table = pd.DataFrame(rows, columns=["what", "units", "iou", "low", "high"], index=[0, 0, 0])
    figure = figures.dots(table, x="iou", y="what", by="units", **WORDS)
    assert [trace.name for trace in figure.data] == ["latents", "raw"]
    assert list(figure.data[0].y) == ["x", "y"]
    assert np.allclose(figure.data[0].error_x.array, [0.1, 0.2])
    assert np.allclose(figure.data[0].error_x.arrayminus, [0.1, 0.1])
    assert len({trace.marker.symbol for trace in figure.data}) == 2
    assert "latents: x 0.5, y 0.7; raw: x 0.2" in figure.layout.meta["alt"]
    (alone,) = figures.dots(table, x="iou", y="what", **WORDS).data
    assert not alone.showlegend


def test_intervals_end_where_the_measure_does() -> None:
    rows = [("x", 0.5, -0.6, 1.6), ("y", 0.75, 0.5, 1.0)]
    table = pd.DataFrame(rows, columns=["kind", "ap", "low", "high"])
    figure = figures.dots(table, x="ap", y="kind", span=(0, 1), **WORDS)
    assert np.allclose(figure.data[0].error_x.array, [0.5, 0.25])
    assert np.allclose(figure.data[0].error_x.arrayminus, [0.5, 0.25])
    assert figure.layout.xaxis.range == (0, 1)
    assert list(table["low"]) == [-0.6, 0.5]  # what was given stays


def test_a_panel_for_each_value_and_a_line_for_each_other() -> None:
    rows = [(m, r, k, k / 10) for r in ("class", "random") for m in ("on", "off") for k in (1, 10)]
    table = pd.DataFrame(rows, columns=["mask", "ranking", "k", "accuracy"])
    table = table.assign(low=0.0, high=1.0)
    names: Any = {"x": "k", "y": "accuracy", "by": "ranking", "panel": "mask"}
    figure = figures.curves(table, **names, log_x=True, lines={"original": 0.9}, **WORDS)
    assert [trace.name for trace in figure.data] == ["class", "class", "random", "random"]
    assert [trace.showlegend for trace in figure.data] == [True, False, True, False]
    assert np.allclose(figure.data[0].error_y.array, [0.9, 0.0])
    assert [note.text for note in figure.layout.annotations] == ["on", "off", "original"]
    assert len(figure.layout.shapes) == 2
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.meta["alt"].startswith("Title. accuracy over k: on, class: 1 0.1, 10 1; ")


def test_lines_need_neither_panels_nor_intervals() -> None:
    table = pd.DataFrame([("a", 2, 0.5), ("a", 3, 0.6), ("b", 2, 0.1)], columns=["kind", "x", "y"])
    figure = figures.curves(table, x="x", y="y", by="kind", **WORDS)
    assert [list(trace.x) for trace in figure.data] == [[2, 3], [2]]
    assert figure.data[0].error_y.array is None
    assert figure.layout.xaxis.title.text == "x"
    assert figure.layout.meta["alt"] == "Title. y over x: a: 2 0.5, 3 0.6; b: 2 0.1."


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (4, 2), (9, 3), (11, 4), (20, 4)])
def test_panels_fill_a_grid(n: int, columns: int) -> None:
    table = pd.DataFrame({"task": range(n), "by": "a", "x": 1.0, "y": 2.0})
    figure = figures.curves(table, x="x", y="y", by="by", panel="task", **WORDS)
    lefts = {axis.domain[0] for axis in figure.select_xaxes()}
    assert len(lefts) == columns


GROUPED = [
    ("one", 4.0, 2.0, "high", "a <b>"),
    ("one", 0.0, 1.0, "low to high", "b"),
    ("two", 2.0, 0.000123456, "high", "c"),
]


def test_what_has_changed_is_drawn_last_and_larger_and_zero_lies_on_the_edge() -> None:
    table = pd.DataFrame(GROUPED, columns=["task", "before", "after", "group", "hover"])
    order = ("other", "high", "high to low", "low to high")
    names = {"x": "before", "y": "after", "by": "group", "panel": "task"}
    figure = figures.group_panels(table, **names, order=order, **WORDS)
    assert [trace.name for trace in figure.data] == ["high", "high", "low to high"]
    assert [trace.marker.size for trace in figure.data] == [4, 4, 8]
    assert [trace.marker.color for trace in figure.data][1:] == [figures.TEAL, figures.VIOLET]
    edge = 0.7 * 0.000123456
    assert np.allclose(figure.data[2].x, edge)
    assert np.allclose(figure.data[1].y, 0.000123456, rtol=1e-4)  # small ones keep their digits
    assert np.allclose(figure.layout.xaxis.range[0], np.log10(edge))
    assert [trace.showlegend for trace in figure.data] == [True, False, True]
    assert "one: other 0, high 1, high to low 0, low to high 1; two:" in figure.layout.meta["alt"]


def test_bars_come_in_pairs_and_groups() -> None:
    rows = [("12", "shared", p, v) for p, v in (("first", 0.5), ("second", 0.25))]
    table = pd.DataFrame(rows, columns=["latent", "pictures", "picture", "level"])
    names = {"x": "latent", "y": "level", "by": "picture", "panel": "pictures"}
    figure = figures.paired_bars(table, **names, **WORDS)
    assert [trace.name for trace in figure.data] == ["first", "second"]
    assert [list(trace.y) for trace in figure.data] == [[0.5], [0.25]]
    assert [list(part) for part in figure.data[0].x] == [["shared"], ["12"]]


def test_stacked_bars_go_to_both_sides() -> None:
    table = pd.DataFrame({"names": [0.4, 0.1], "new": [-0.1, 0.0]}, index=["land", "flowers"])
    figure = figures.stacked(table, label="points", **WORDS)
    assert figure.layout.barmode == "relative"
    assert [trace.name for trace in figure.data] == ["names", "new"]
    assert list(figure.data[1].x) == [-0.1, 0.0]
    assert "land: names 0.4, new -0.1; flowers: names 0.1, new 0" in figure.layout.meta["alt"]


def test_a_table_as_colours() -> None:
    table = pd.DataFrame([[0.5, 0.1], [0.2, 0.9]], index=[1, 10], columns=["cat", "dog"])
    figure = figures.heat_map(table.rename_axis("k"), label="share", **WORDS)
    assert figure.data[0].z.tolist() == [[0.5, 0.1], [0.2, 0.9]]
    assert (list(figure.data[0].y), figure.layout.yaxis.title.text) == (["1", "10"], "k")
    assert "highest: 10, dog 0.9, 1, cat 0.5" in figure.layout.meta["alt"]
    assert figure.layout.coloraxis.cmin is None
    fixed = figures.heat_map(table, span=(0, 1), **WORDS).layout.coloraxis
    assert (fixed.cmin, fixed.cmax) == (0, 1)


def test_tables_as_panels() -> None:
    land = pd.DataFrame([[0.5, 0.1], [0.2, 0.9]], index=["sea", "<b>"], columns=["sea", "<b>"])
    few = pd.DataFrame([[1.0]], index=["rose"], columns=["rose"])
    figure = figures.heat_maps({"land": land, "flowers": few}, label="share", **WORDS)
    assert [panel.z.tolist() for panel in figure.data] == [[[0.5, 0.1], [0.2, 0.9]], [[1.0]]]
    assert [note.text for note in figure.layout.annotations] == ["land", "flowers"]
    assert list(figure.data[0].y) == ["sea", "<b>"]
    assert {panel.coloraxis for panel in figure.data} == {"coloraxis"}  # one scale
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.yaxis2.autorange == "reversed"  # the first class on top, as in a table
    assert "on the diagonal: land 0.7, flowers 1" in figure.layout.meta["alt"]


def test_every_figure_has_its_words() -> None:
    figure = figures.finish(figures.Figure(), "A title", "Said", 300)
    assert figure.layout.title.text == "A title"
    assert figure.layout.meta["alt"] == "A title. Said."
    assert figure.layout.height == 300 + figure.layout.meta["heading"]

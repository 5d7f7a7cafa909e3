import numpy as np
import pandas as pd
from PIL import Image

from patchsae_lib import figures

LATENTS = pd.DataFrame(
    {
        "frequency": [0.1, 0.0, 0.5, 0.01],
        "mean": [0.2, 0.0, 1.0, 0.1],
        "entropy": [0.3, np.nan, 1.2, np.nan],
        "hover": ["a", "b", "c", "d"],
    }
)


def test_every_active_latent_is_a_point_and_silent_ones_are_not() -> None:
    figure = figures.latent_scatter(LATENTS, "entropy", "entropy", "Latents")
    grey, coloured = (trace for trace in figure.data if trace.type == "scattergl")
    assert list(grey.customdata) == [3]
    assert list(coloured.customdata) == [0, 2]
    assert np.allclose(coloured.x, np.log10([0.1, 0.5]))
    assert list(coloured.marker.color) == [0.3, 1.2]
    assert coloured.text[1] == "latent 2<br>c"
    assert figure.layout.title.text == "Latents"
    histograms = [trace for trace in figure.data if trace.type == "histogram"]
    assert [len(h.x if h.x is not None else h.y) for h in histograms] == [3, 3]


def test_the_scatter_for_print_shows_the_same_points() -> None:
    figure = figures.print_scatter(LATENTS, "entropy", "entropy")
    points = [len(c.get_offsets()) for c in figure.axes[0].collections]
    assert points == [1, 2]
    assert figure.axes[0].get_xlabel() == "log₁₀ activated frequency"


def test_dots_are_a_trace_for_each_value_of_by_in_order() -> None:
    rows = [
        ("x", "ours", 0.5, 0.4, 0.6),
        ("x", "raw", 0.2, 0.1, 0.3),
        ("y", "ours", 0.7, 0.6, 0.9),
    ]
    table = pd.DataFrame(rows, columns=["what", "units", "iou", "low", "high"])
    figure = figures.dots(table, "iou", "what", "low", "high", "Title", "units")
    assert [trace.name for trace in figure.data] == ["ours", "raw"]
    assert list(figure.data[0].y) == ["x", "y"]
    assert np.allclose(figure.data[0].error_x.array, [0.1, 0.2])
    assert figure.layout.showlegend
    assert not figures.dots(table, "iou", "what", "low", "high", "Title").layout.showlegend


def test_bars_come_in_pairs() -> None:
    rows = [("12", "shared", p, v) for p, v in (("first", 0.5), ("second", 0.25))]
    table = pd.DataFrame(rows, columns=["latent", "which", "picture", "level"])
    figure = figures.paired_bars(table, "Title")
    assert [trace.name for trace in figure.data] == ["first", "second"]
    assert [list(trace.y) for trace in figure.data] == [[0.5], [0.25]]


def test_words_beside_pictures_are_never_markup() -> None:
    picture = Image.new("RGB", (8, 8), (200, 10, 10))
    html = figures.Strips([("<b>x", "<script>", [picture], ['"><img src=x>'])])._repr_html_()
    assert "<script>" not in html
    assert html.count("<img") == 1
    assert "&lt;script&gt;" in html
    assert 'src="data:image/webp;base64,' in html


def test_a_latent_that_is_named_leads_to_the_explorer() -> None:
    picture = Image.new("RGB", (8, 8))
    rows = [("best: latent 12", "latent 7 (wing), latents 3", [picture], ["x"])]
    html = figures.Strips(rows)._repr_html_()
    assert 'latent <a href="../explorer.html#latent=12&amp;view=latent">12</a>' in html
    assert html.count("<a ") == 2
    link = figures.explorer_link("<i>", task="a b&c", label=2)
    assert link == '<a href="../explorer.html#task=a%20b%26c&amp;class=2">&lt;i&gt;</a>'


def test_a_curve_for_each_kind() -> None:
    rows = [("colours", 2, 0.5, 0.4, 0.6), ("colours", 3, 0.6, 0.5, 0.7), ("parts", 2, 0.1, 0, 1)]
    table = pd.DataFrame(rows, columns=["kind", "block", "iou", "low", "high"])
    figure = figures.curves(table, "block", "iou", "low", "high", "kind", "Title")
    assert [trace.name for trace in figure.data] == ["colours", "parts"]
    assert list(figure.data[0].x) == [2, 3]
    assert figure.layout.xaxis.title.text == "block"


def test_a_panel_for_each_value_and_a_line_for_each_other() -> None:
    rows = [(m, r, k, k / 10) for m in ("on", "off") for r in ("class", "random") for k in (1, 10)]
    table = pd.DataFrame(rows, columns=["mask", "ranking", "k", "accuracy"])
    table = table.assign(low=0.0, high=1.0)
    figure = figures.line_panels(
        table, "mask", "ranking", "k", "accuracy", "Title", "Look.", {"original": 0.9}
    )
    assert [trace.name for trace in figure.data] == ["class", "random"] * 2
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]
    assert [a.text for a in figure.layout.annotations] == ["on", "off", "original"]
    assert len(figure.layout.shapes) == 2
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.meta["alt"].startswith("Title. accuracy over k: on, class: 0.1 to 1; ")


def test_a_table_as_colours() -> None:
    table = pd.DataFrame([[0.5, 0.1], [0.2, 0.9]], index=["1", "10"], columns=["cat", "dog"])
    figure = figures.heat_map(table.rename_axis("k"), "Title", label="share")
    assert figure.data[0].z.tolist() == [[0.5, 0.1], [0.2, 0.9]]
    assert (figure.data[0].y, figure.layout.yaxis.title.text) == (("1", "10"), "k")
    assert "highest: 10, dog 0.9, 1, cat 0.5" in figure.layout.meta["alt"]


def test_every_figure_has_its_words() -> None:
    long = "Look at this. " * 20
    figure = figures.finish(figures.go.Figure(), "A title", long, "Said.", 300)
    assert figure.layout.meta["alt"] == "A title. Said."
    assert figure.layout.meta["caption"] == long.strip()
    lines = figure.layout.title.subtitle.text.split("<br>")
    assert max(map(len, lines)) <= 100
    assert figure.layout.height == 300 + figure.layout.meta["heading"] > 300 + 17 * len(lines)


def test_groups_have_a_trace_each_in_every_panel_and_zero_lies_on_the_edge() -> None:
    rows = [
        ("one", 4.0, 2.0, "high", "a <b>"),
        ("one", 0.0, 1.0, "low to high", "b"),
        ("two", 2.0, 0.5, "high", "c"),
    ]
    table = pd.DataFrame(rows, columns=["task", "before", "after", "group", "hover"])
    groups = ("other", "high", "high to low", "low to high")
    figure = figures.group_panels(table, "task", "before", "after", groups, "Title")
    points = [trace for trace in figure.data if trace.type == "scattergl"]
    assert [trace.name for trace in points] == [*groups, *groups]
    assert [len(trace.x) for trace in points] == [0, 1, 0, 1, 0, 1, 0, 0]
    assert np.allclose(points[3].x, [0.35])  # 0.7 of the smallest activation there is
    assert [trace.showlegend for trace in points] == [True] * 4 + [False] * 4
    assert "one: other 0, high 1, high to low 0, low to high 1; two:" in figure.layout.meta["alt"]


def test_stacked_bars_go_to_both_sides() -> None:
    table = pd.DataFrame({"names": [0.4, 0.1], "new": [-0.1, 0.0]}, index=["land", "flowers"])
    figure = figures.stacked(table, "Title", label="points")
    assert figure.layout.barmode == "relative"
    assert [trace.name for trace in figure.data] == ["names", "new"]
    assert list(figure.data[1].x) == [-0.1, 0.0]
    assert "land: names 0.4, new -0.1; flowers: names 0.1, new 0" in figure.layout.meta["alt"]


def test_heat_maps_that_are_compared_share_a_scale() -> None:
    table = pd.DataFrame({"a": [0.1, 0.2]}, index=["x", "y"])
    free, fixed = figures.heat_map(table, "T"), figures.heat_map(table, "T", span=(0, 1))
    assert (free.data[0].zmin, free.data[0].zmax) == (None, None)
    assert (fixed.data[0].zmin, fixed.data[0].zmax) == (0, 1)


def test_small_activations_keep_their_digits() -> None:
    rows = [("a", 0.000123456, 0.0, "high", ""), ("a", 0.5, 0.25, "high", "")]
    table = pd.DataFrame(rows, columns=["task", "before", "after", "group", "hover"])
    figure = figures.group_panels(table, "task", "before", "after", ("high",), "Title")
    (points,) = (trace for trace in figure.data if trace.type == "scattergl")
    assert np.allclose(points.x, [0.0001235, 0.5])
    assert min(points.y) > 0  # an axis is logarithmic

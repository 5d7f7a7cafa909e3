"""A figure becomes words and data in the page."""

import json
import re
from types import SimpleNamespace
from unittest.mock import MagicMock

import plotly.graph_objects as go
import pytest
from myst_nb.core import render

import companion
from mime import PLOTLY, ExplorerRenderer, PlotlyRenderer, accessible_label, figure_html


def handle(figure: dict, mime: str = PLOTLY, **cell):
    warned: list[str] = []
    logger = SimpleNamespace(warning=lambda text, **_: warned.append(text))
    data = SimpleNamespace(mime_type=mime, content=figure, cell_metadata=cell, line=1)
    return PlotlyRenderer.handle_mime(SimpleNamespace(logger=logger), data, False), warned


def test_the_extension_gives_the_renderers_to_myst_nb(monkeypatch):
    monkeypatch.setattr(render, "load_mime_renders", render.load_mime_renders)
    companion.setup(MagicMock())
    assert render.load_mime_renders() == [PlotlyRenderer, ExplorerRenderer]


def test_the_scoreboard_shows_units_tests_power_and_when_the_rule_was_fixed():
    common = {"where": "§1", "paper": 0.5, "notebook": "", "interval": None, "over": ""}
    common |= {"measured": "0.6", "p": None, "detectable": "", "note": "One."}
    common["claim"] = "it rises"
    first = {"id": "a", "verdict": "partly", "rule": "before"} | common | {"p": 0.02}
    claims = [
        first | {"interval": [0.5, 0.75], "over": "pictures × seeds"},
        common | {"id": "b", "verdict": "not", "rule": "after a look", "p": 0.03},
        common | {"id": "c", "verdict": "not testable here", "detectable": "a rise of 0.1"},
    ]
    profile = {"name": "smoke", "model": {"name": "m"}, "pictures": {"spec": "world"}, "seeds": 2}
    page = companion.scoreboard(claims, profile)
    titles, *rows = page.removesuffix("\n::::").split("* - ")[1:]
    rows = [row.strip().split("\n  - ") for row in rows]
    assert titles.split("\n  - ")[4] == "Rule fixed"
    assert [row[0] for row in rows] == 3 * ["it rises (§1)"]
    assert [row[4] for row in rows] == ["before", "after a look", "not stated"]
    assert [row[2] for row in rows] == [
        "0.6 (0.5 to 0.75 over pictures × seeds; p = 0.02, adjusted 0.04)",
        "0.6 (p = 0.03, adjusted 0.04)",
        "0.6",
    ]
    assert rows[2][5].startswith("One. The data show a rise of 0.1 or more four times in five")
    assert companion.scoreboard([], profile).startswith("**0 claims**: none recorded yet.")


def test_other_types_are_left_to_others():
    assert handle({}, "text/html")[0] is None


@pytest.mark.parametrize(
    ("layout", "cell", "label"),
    [
        ({"title": {"text": "Loss<br><sub>by step</sub>"}}, {}, "Loss by step"),
        ({"title": "Loss"}, {"figure": {"caption": "It falls."}}, "It falls."),
        ({}, {"image": {"alt": "a"}, "figure": {"caption": "c"}}, "a"),
        (
            {"title": "Loss", "meta": {"alt": "The loss falls."}},
            {"image": {"alt": "a"}},
            "The loss",
        ),
    ],
)
def test_the_label_is_what_says_most(layout, cell, label):
    nodes, warned = handle({"layout": layout}, mystnb=cell)
    assert f'aria-label="{label}' in nodes[0].astext()
    assert not warned


def test_a_figure_without_words_is_a_warning():
    assert "meta={'alt': ...}" in handle({"layout": {}})[1][0]


def test_the_data_survives_and_cannot_end_the_script():
    figure = json.loads(go.Figure(go.Bar(x=["</script>"], y=[1])).to_json())
    page = figure_html(figure, 'a "label"')
    data = re.search(r'<script type="application/json">(.*)</script>', page)
    assert page.count("</script>") == 1
    assert json.loads(data[1])["data"] == figure["data"]
    assert 'aria-label="a &quot;label&quot;"' in page


def test_the_title_becomes_text_that_keeps_only_simple_markup():
    page = figure_html({"layout": {"title": {"text": "<b>λ</b> <img src=x>"}}}, "x")
    assert "<b>λ</b> &lt;img src=x&gt;" in page
    assert '"title"' not in page


@pytest.mark.parametrize(
    ("layout", "room"),
    [
        ({}, "height:450px"),
        ({"height": 300.0, "width": 500}, "height:300px;max-width:500px"),
        ({"xaxis": {"domain": [0, 0.4]}, "xaxis2": {"domain": [0.6, 1]}}, "min-width:600px"),
    ],
)
def test_room_is_kept_for_what_is_drawn_later(layout, room):
    assert room in figure_html({"layout": layout}, "x")


def test_no_title_is_no_label():
    assert accessible_label({"layout": {}}) == ""

"""A figure becomes words and data in the page."""

import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import plotly
import plotly.graph_objects as go
import pytest
from myst_nb.core import render

import claims
import companion
from mime import (
    PLOTLY,
    ClaimRenderer,
    ExplorerRenderer,
    PlotlyRenderer,
    accessible_label,
    figure_html,
)
from patchsae_lib import figures
from patchsae_lib.artefacts import CLAIM, ROOT, Claim


def handle(figure: dict, mime: str = PLOTLY, **cell):
    warned: list[str] = []
    logger = SimpleNamespace(warning=lambda text, **_: warned.append(text))
    data = SimpleNamespace(mime_type=mime, content=figure, cell_metadata=cell, line=1)
    return PlotlyRenderer.handle_mime(SimpleNamespace(logger=logger), data, False), warned


def test_the_extension_gives_the_renderers_to_myst_nb(monkeypatch):
    monkeypatch.setattr(render, "load_mime_renders", render.load_mime_renders)
    companion.setup(MagicMock())
    assert render.load_mime_renders() == [PlotlyRenderer, ExplorerRenderer, ClaimRenderer]


COMMON = {"where": "§1", "paper": "5 %", "notebook": "", "interval": None, "over": ""}
COMMON |= {"measured": "6% <b>", "p": None, "detectable": "", "note": "One. Rule: above 0."}
COMMON |= {"claim": "it rises", "rule": "before", "verdict": "not"}
CLAIMS = [
    COMMON | {"id": "a", "verdict": "partly", "p": 0.02, "notebook": "1_training"}
    | {"interval": [0.5, 0.75], "over": "pictures × seeds"},
    COMMON | {"id": "b", "rule": "after a look", "p": 0.03},
    COMMON | {"id": "c", "verdict": "not testable here", "detectable": "a rise of 0.1"},
]  # fmt: skip
PROFILE = {"name": "smoke", "model": {"name": "m"}, "pictures": {"spec": "world"}, "seeds": 2}


def test_the_scoreboard_says_units_tests_power_and_when_the_rule_was_fixed() -> None:
    page = claims.scoreboard(CLAIMS, PROFILE)
    head, *rows = page.split("<tr id=")
    assert "3 claims: 1 partly reproduced, 1 not reproduced, 1 not testable here." in head
    assert all("<b>It rises.</b>" in row and "<p>5\xa0%.</p>" in row for row in rows)
    assert [re.search("<p>(6.*?)</p>", row)[1] for row in rows] == [
        "6\xa0% &lt;b&gt; (0.5 to 0.75 over pictures × seeds; p = 0.02, adjusted 0.04).",
        "6\xa0% &lt;b&gt; (p = 0.03, adjusted 0.04).",
        "6\xa0% &lt;b&gt;.",
    ]
    assert "Above 0. Fixed before a look at the data." in rows[0]
    assert "Above 0. Fixed after a look." in rows[1]
    assert "These data would show a rise of 0.1 or more with a power of 0.8" in rows[2]
    assert 'href="notebooks/1_training.html#claim-a"' in rows[0]
    assert "href" not in rows[1]
    assert "0 claims: none recorded yet" in claims.scoreboard([], PROFILE)


def test_a_question_of_our_own_is_shown_and_not_counted_as_a_claim_of_the_paper() -> None:
    page = claims.scoreboard([*CLAIMS, COMMON | {"id": "d", "own": True}], PROFILE)
    assert page.count("<tr id=") == 4
    assert "3 claims: 1 partly reproduced, 1 not reproduced, 1 not testable here." in page
    assert "Not counted: 1 question of this book." in page
    assert "Not counted" not in claims.scoreboard(CLAIMS, PROFILE)


def test_a_claim_is_shown_as_on_the_scoreboard_where_it_is_decided(tmp_path: Path) -> None:
    (tmp_path / "claims.json").write_text(json.dumps(CLAIMS))
    document = {"source": str(tmp_path / "1_training.ipynb")}
    renderer = SimpleNamespace(renderer=SimpleNamespace(document=document))
    shown = Claim(CLAIMS[0])._repr_mimebundle_()
    (node,) = ClaimRenderer.handle_mime(
        renderer, SimpleNamespace(mime_type=CLAIM, content=shown[CLAIM]), False
    )
    words = {*re.findall(r"<(?:dd|p)>([^<]+)<", node.astext())}
    board = claims.scoreboard(CLAIMS, PROFILE)
    assert all(text in board for text in words)
    assert "adjusted 0.04" in node.astext()  # for all claims, not for this one alone
    assert 'id="claim-a"' in node.astext()
    assert '../scoreboard.html#claim-a"' in node.astext()
    assert "<b>" not in claims.parts(CLAIMS[0] | {"holm": 0.04}).values()
    assert ClaimRenderer.handle_mime(renderer, SimpleNamespace(mime_type=PLOTLY), False) is None


def test_a_receipt_says_from_which_files_a_number_comes() -> None:
    found = {"notebook": "abc123", "profile": "smoke", "seeds": 2}
    found |= {"reads": {"<sae>.safetensors": ["1_training", "def456"]}}
    claim = CLAIMS[0] | {"notebook": "2_statistics", "receipt": found, "holm": 0.04}
    for html, root in ((claims.card(claim), "../"), (claims.row(claim), "")):
        (folded,) = re.findall(r"<details.*?</details>", html)
        lines = re.findall(r"<li>(.*?)</li>", folded)
        assert lines == [
            f'computed by the cell above its <a href="{root}notebooks/2_statistics.html#claim-a">'
            "card</a> in 2_statistics (abc123)",
            "with the profile smoke, 2 seeds",
            "from &lt;sae&gt;.safetensors of 1_training (def456)",
            "its interval is over pictures × seeds",
        ]
    assert claims.receipt(CLAIMS[0]) == ""


@pytest.mark.parametrize(("verdict", "holm", "warns"), [
    ("reproduced", 0.06, True), ("reproduced", 0.3, True), ("reproduced", 0.04, False),
    ("partly", 0.3, False), ("not", 0.3, False), ("reproduced", None, False),
])  # fmt: skip
def test_what_may_be_chance_among_so_many_tests_is_said(verdict, holm, warns) -> None:
    claim = CLAIMS[0] | {"verdict": verdict, "holm": holm, "p": None if holm is None else 0.01}
    assert ("may be chance" in claims.parts(claim)["Here"]) == warns


def test_the_first_page_says_what_was_found_or_that_it_was_not_tested() -> None:
    page = claims.findings([CLAIMS[0] | {"id": "4-topk"}])
    assert page.count('class="claim"') == 3
    assert page.count("This run did not test it.") == 2
    assert page.count("partly reproduced") == page.count("#claim-4-topk") == 1


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


def test_titles_of_panels_do_not_run_into_each_other_on_a_phone(tmp_path: Path, page) -> None:
    names = ["Written words", "Flower species", "Land cover from above"]
    tables = {name: pd.DataFrame(np.eye(3)) for name in names}
    drawn = figures.heat_maps(tables, label="−1 wrong, 0 abstains, 1 right", title="Panels")
    static = tmp_path / "_static"
    (static / "vendor").mkdir(parents=True)
    shutil.copy(ROOT / "book/_static/book.js", static)
    shutil.copy(Path(plotly.__file__).parent / "package_data/plotly.min.js", static / "vendor")
    html = figure_html(json.loads(drawn.to_json()), "panels")
    (tmp_path / "page.html").write_text(
        f'<!doctype html><meta charset="utf-8"><script src="_static/book.js"></script>{html}',
        "utf-8",
    )
    page.set_viewport_size({"width": 375, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    page.locator(".annotation-text").nth(2).wait_for()
    inside = """(selector) => [...document.querySelectorAll(selector)].map((title) => {
        const { left, right, top, bottom } = title.getBoundingClientRect();
        const svg = document.querySelector(".main-svg").getBoundingClientRect();
        return { left, right, fits: top >= svg.top && bottom <= svg.bottom };
    })"""
    titles = page.evaluate(inside, ".annotation-text")
    assert all(one["right"] < two["left"] for one, two in itertools.pairwise(titles))
    (bar,) = page.evaluate(inside, ".infolayer [class*=coloraxistitle], .infolayer .cbtitle text")
    assert bar["fits"]

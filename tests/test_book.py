"""Every page of the book in a real browser, from a file and a server, with the network cut."""

import json
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from claims import FINDINGS, VERDICT_WORDS, counted, number


def names(build: Path) -> list[str]:
    html = build / "html"
    found = (path.relative_to(html) for path in html.rglob("*.html"))
    return sorted(str(path) for path in found if path.parts[0] != "_static")


def drawn(page) -> None:
    """Bring every figure on the screen and wait until it is there."""
    for canvas in page.locator(".plotly-canvas").all():
        canvas.scroll_into_view_if_needed()
        canvas.locator(".main-svg").first.wait_for(state="attached")


def check(page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=3000)
    math = page.locator(".math").count()
    assert page.locator(".math .katex").count() >= math
    assert page.locator(".katex-error").count() == 0


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_every_page_is_whole_wide_and_narrow_light_and_dark(build, server, page, scheme):
    base = f"file://{build}/html" if scheme == "file" else server
    # from a disk only what loads data of its own can differ: the notebooks and the explorer
    chosen = [n for n in names(build) if scheme == "http" or "notebooks" in n or "explorer" in n]
    assert len(chosen) > 7
    for name in chosen:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(f"{base}/{name}")
        if name == "index.html":  # leads on to the first page
            page.wait_for_url("**/intro.html")
        drawn(page)
        check(page, 1280)
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(color_scheme="dark")
        page.locator("html[data-theme=dark]").wait_for(state="attached")
        check(page, 375)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        assert page.trouble == [], name


def test_other_browsers_draw_every_figure(build, server, other_browser):
    other_browser.trouble.clear()
    for name in [n for n in names(build) if n != "index.html"]:  # which leads on
        other_browser.goto(f"{server}/{name}")
        other_browser.evaluate(
            """async () => { for (const canvas of document.querySelectorAll(".plotly-canvas")) {
              canvas.scrollIntoView();
              for (let i = 0; i < 300 && !canvas.querySelector(".main-svg"); i++)
                await new Promise((done) => setTimeout(done, 50));
              if (!canvas.querySelector(".main-svg")) throw new Error("not drawn");
            } }"""
        )
        assert other_browser.evaluate(
            "() => document.documentElement.scrollWidth <= innerWidth"
        ), name
        assert other_browser.trouble == [], name


def test_figures_take_the_colours_of_the_theme_and_the_width_of_the_page(build, page):
    with_figures = [n for n in names(build) if "plotly-canvas" in (build / "html" / n).read_text()]
    assert with_figures
    page.goto(f"file://{build}/html/{with_figures[0]}")
    drawn(page)
    tick = ".plotly-figure .xtick text, .plotly-figure .ytick text"
    colour = f"getComputedStyle(document.querySelector('{tick}')).fill"
    assert page.evaluate(colour) == "rgb(31, 42, 55)"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{colour} == 'rgb(229, 233, 238)'")
    page.set_viewport_size({"width": 375, "height": 900})
    # each follows its box, and the box the page (one with many panels scrolls in it)
    page.wait_for_function(
        """[...document.querySelectorAll('.plotly-canvas')].every(canvas =>
            canvas.parentElement.offsetWidth < 375 &&
            Math.abs(canvas.querySelector('.main-svg').clientWidth - canvas.clientWidth) < 2)"""
    )
    assert page.locator(".plotly-figure:is(:not([aria-label]), [aria-label=''])").count() == 0


def test_plotly_is_loaded_only_where_a_figure_is(build, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{build}/html/glossary.html")
    page.wait_for_load_state("networkidle")
    assert not [url for url in asked if "plotly" in url]


def test_equations_are_numbered_as_in_the_paper(build, page):
    page.goto(f"file://{build}/html/method.html")
    assert page.locator("div.math .eqno").all_text_contents()[:5] == [
        f"({i})#" for i in range(1, 6)
    ]


def test_the_rooms_of_the_house_lead_to_their_sections(build, page):
    html = build / "html"
    house, library = ((html / f"{name}.html").read_text("utf-8") for name in ("house", "api"))
    anchors = set(re.findall(r'href="api.html#([^"]+)"', house))
    assert len(anchors) > 20
    assert [anchor for anchor in anchors if f'id="{anchor}"' not in library] == []
    within = set(re.findall(r'href="#(room-[^"]+)"', house))
    assert within
    assert [anchor for anchor in within if f'id="{anchor}"' not in house] == []
    page.goto(f"file://{html}/house.html")
    for width, kind in ((1280, "wide"), (375, "narrow")):
        page.set_viewport_size({"width": width, "height": 900})
        visible = page.locator(".house svg:visible")
        visible.wait_for()
        assert visible.get_attribute("class") == kind
        assert visible.locator("a").count() > 25


def claims_of(build: Path) -> list[dict[str, str]]:
    return json.loads((build / "notebooks/smoke/claims.json").read_text("utf-8"))


def test_every_claim_is_shown_unfolded_where_it_is_decided(build, page):
    by_page = Counter(claim["notebook"] for claim in claims_of(build))
    assert len(by_page) > 5
    for name, n in by_page.items():
        page.goto(f"file://{build}/html/notebooks/{name}.html")
        assert page.locator(".claim:visible").count() == n
        links = page.locator(".claim > a").evaluate_all("links => links.map(a => a.href)")
        page.goto(links[0])
        assert page.locator("tr:target").count() == 1


def test_a_page_begins_with_what_it_finds_and_every_number_has_a_receipt(build):
    line = re.compile(r'<li><span class="verdict[^>]*>([^<]*)</span> <a href="#claim-([^"]+)"')
    words = {"partly": "partly reproduced", "not": "not reproduced"}
    claims = claims_of(build)
    for name in {claim["notebook"] for claim in claims}:
        html = (build / f"html/notebooks/{name}.html").read_text("utf-8")
        here = [claim for claim in claims if claim["notebook"] == name]
        found = [(words.get(claim["verdict"], claim["verdict"]), claim["id"]) for claim in here]
        assert line.findall(html) == found
        assert html.index('class="decided"') < html.index("cell_input")
        assert all(html.count(f'id="claim-{claim["id"]}"') == 1 for claim in here)
        assert html.count('<details class="receipt">') == len(here)
    board = (build / "html/scoreboard.html").read_text("utf-8")
    assert board.count('<details class="receipt">') == len(claims)


def test_code_is_folded_until_a_reader_opens_it_and_stays_open(server, page):
    page.goto(f"{server}/notebooks/1_training.html")
    code, switch = page.locator("div.cell_input"), page.locator(".btn-code-switch")
    assert code.count() > 10
    assert page.locator("div.cell_input:visible").count() == 0
    assert switch.get_attribute("aria-pressed") == "false"
    switch.click()
    assert page.locator("div.cell_input:visible").count() == code.count()
    page.goto(f"{server}/notebooks/2_statistics.html")
    assert page.locator("div.cell_input:visible").count() > 10
    page.locator(".btn-code-switch").click()
    page.reload()
    assert page.locator("div.cell_input:visible").count() == 0
    assert page.trouble == []


def test_figures_are_followed_by_a_result_in_words(build):
    html = build / "html/notebooks"
    results = [
        found
        for path in html.glob("*.html")
        for found in re.findall(
            r'<p class="result"><strong>Result: </strong>(.+?)</p>', path.read_text("utf-8")
        )
    ]
    assert len(results) > 15
    assert [text for text in results if "nan" in text or text.count(" ") < 3] == []


def test_the_scoreboard_is_filtered_and_whole_without_scripts(build, page, browser):
    claims = claims_of(build)
    verdict = claims[0]["verdict"]
    page.goto(f"file://{build}/html/scoreboard.html")
    rows = page.locator("table.scoreboard tbody tr:visible")
    assert rows.count() == len(claims)
    words = VERDICT_WORDS.get(verdict, verdict)
    page.locator(".filters select").nth(0).select_option(words)
    n = sum(claim["verdict"] == verdict for claim in claims)
    assert rows.count() == n
    assert page.locator(".filters output").inner_text() == f"{n} of {len(claims)} claims"
    page.locator(".filters select").nth(1).select_option(claims[0]["notebook"])
    assert 1 <= rows.count() <= n
    page.set_viewport_size({"width": 375, "height": 800})
    assert (
        page.locator("table.scoreboard tbody").evaluate("x => getComputedStyle(x).display")
        == "block"
    )
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(f"file://{build}/html/scoreboard.html")
    assert plain.locator("table.scoreboard tbody tr:visible").count() == len(claims)
    plain.goto(f"file://{build}/html/explorer.html")
    assert "needs JavaScript" in plain.locator("article").inner_text()
    plain.goto(f"file://{build}/html/notebooks/1_training.html")
    plain.locator("details.above-input summary").first.click()
    assert plain.locator("div.cell_input:visible").count() == 1
    plain.context.close()


def test_the_first_page_says_the_numbers_of_this_run_and_leads_to_its_latents(build, page):
    claims = {claim["id"]: claim for claim in claims_of(build)}
    page.goto(f"file://{build}/html/intro.html")
    cards = page.locator(".findings .claim")
    assert cards.count() == 3
    for name, text in zip(FINDINGS, cards.all_inner_texts(), strict=True):
        assert number(claims[name]["measured"])[1:] in text  # it begins with a capital
        assert VERDICT_WORDS.get(claims[name]["verdict"], claims[name]["verdict"]) in text
    assert counted([*claims.values()]) in page.locator("article").inner_text()
    for link in page.locator(".presets a").all():
        latent = re.search(r"latent=(\d+)", link.get_attribute("href"))[1]
        assert f"latent {latent}" in link.locator("img").get_attribute("alt")
    assert page.locator(".presets a").count() > 0


def test_search_finds_a_latent(server, page):
    page.goto(f"{server}/search.html?q=latent")
    page.locator("#search-results li").first.wait_for()
    assert page.trouble == []


def test_every_link_within_the_book_leads_somewhere(build):
    html = build / "html"
    broken = []
    for name in names(build):
        text = (html / name).read_text("utf-8")
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            target = unquote(urldefrag(link.partition("?")[0])[0])
            if not target or re.match(r"[a-z]+:", target):
                continue
            if not (html / name).parent.joinpath(target).exists():
                broken.append(f"{name}: {link}")
    assert broken == []

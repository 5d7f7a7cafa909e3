"""Every page of the book in a real browser, from a file and a server, with the network cut."""

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest


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
    for name in names(build):
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

"""The gallery of the world: its files against the renderer, and its page in a real browser."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gallery import PLACEHOLDER, class_files, painted, scenes
from patchsae_lib.world import CLASSES, KINDS, TASKS, all_words
from patchsae_lib.world.canvas import SIZE
from patchsae_lib.world.render import render
from patchsae_lib.world.vocabulary import COLOURS, STYLES
from sheets import PER_TASK, task_examples

BOOK = Path(__file__).resolve().parents[1] / "book"
COLOURED = ("photo", "painting")
SOME = [(cls, k, style) for cls in ("cat", "bus", "flower") for k in range(3) for style in STYLES]


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The page about the world, built alone, in a process of its own."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("html")
    shutil.copy(BOOK / "world.md", source / "index.md")
    settings = {
        "extensions": "myst_nb,world_gallery",
        "html_theme": "sphinx_book_theme",
        "html_static_path": BOOK / "_static",
        "html_css_files": "custom.css",
        "myst_enable_extensions": "colon_fence,deflist,dollarmath",
    }
    options = [part for key, value in settings.items() for part in ("-D", f"{key}={value}")]
    command = [sys.executable, "-m", "sphinx", "-q", "-C", *options, str(source), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(BOOK / "_ext")})
    return out


def parsed(script: str) -> list[dict]:
    """The data that a class's script registers."""
    head, _, data = script.partition("] = ")
    assert head.startswith("(window.patchsaeWorld ??= {})[")
    assert data.endswith(";\n")
    return json.loads(data[:-2])


@cache
def files(cls):
    return class_files(cls)


def data_of(cls, k, style):
    return parsed(files(cls)[f"{cls}.js"].decode())[k][style]


def decoded(text):
    """What the page's script does with `ids`."""
    ids, lengths = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 2).T
    return np.repeat(ids, lengths).reshape(SIZE, SIZE)


def test_the_same_bytes_again_and_from_another_process(html):
    for name, data in class_files("flower").items():
        assert data == files("flower")[name]
        assert data == (html / "_static/world" / name).read_bytes()


def test_every_class_has_every_style_and_colour_in_5_megabytes(html):
    folder = html / "_static/world"
    for cls in CLASSES:
        squares = 0
        for scene in parsed((folder / f"{cls}.js").read_text("utf-8")):
            assert tuple(scene) == STYLES
            for style, data in scene.items():
                assert data["square"] == squares
                assert data["colours"] == (len(COLOURS) if style in COLOURED else 1)
                squares += data["colours"]
        assert Image.open(folder / f"{cls}.webp").size == (SIZE, SIZE * squares)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5.1e6


@pytest.mark.parametrize(("cls", "k", "style"), SOME)
def test_ids_decode_to_the_masks_of_the_picture(cls, k, style):
    data, scene = data_of(cls, k, style), replace(scenes(cls)[k], style=style)
    ids = decoded(data["ids"])
    for colour in COLOURS if scene.shows_colour else ["red"]:
        picture = render(painted(scene, colour))
        text = json.dumps(data["regions"]).replace(PLACEHOLDER, colour)
        regions = json.loads(text)
        for kind in KINDS:
            for name in {getattr(r, kind) for r in picture.regions} - {""}:
                shows = np.array([region.get(kind) == name for region in regions])
                assert (shows[ids] == picture.mask(kind, name)).all(), (colour, kind, name)


@pytest.mark.parametrize(("cls", "k", "style"), SOME)
def test_squares_show_the_pictures(cls, k, style):
    data, scene = data_of(cls, k, style), replace(scenes(cls)[k], style=style)
    column = np.asarray(Image.open(io.BytesIO(files(cls)[f"{cls}.webp"])).convert("RGBA"))
    squares = column.reshape(-1, SIZE, SIZE, 4)[data["square"] :].astype(int)
    for j, colour in enumerate(list(COLOURS)[: data["colours"]]):
        shown = np.where(squares[j, ..., 3:] > 0, squares[j, ..., :3], squares[0, ..., :3])
        error = np.abs(shown - render(painted(scene, colour)).pixels).mean()
        assert error < 9, colour  # of 255: what WebP loses


@pytest.mark.parametrize(("cls", "k", "style"), SOME)
def test_captions_name_a_colour_only_where_it_can_be_seen(cls, k, style):
    said = data_of(cls, k, style)["captions"]
    assert len(set(said)) == len(said) > 1
    assert any(PLACEHOLDER in caption for caption in said) == (style in COLOURED)
    words = {word for caption in said for word in caption.replace(PLACEHOLDER, "red").split()}
    assert words <= set(all_words())


def test_a_choice_of_class_changes_the_thing_alone():
    for cat, bus in zip(scenes("cat"), scenes("bus"), strict=True):
        assert replace(cat, things=()) == replace(bus, things=())
        assert replace(cat.things[0], cls="bus") == bus.things[0]


@pytest.mark.parametrize("name", TASKS)
def test_eight_pictures_of_a_task_are_half_base_half_novel(name):
    world, indices = task_examples(name)
    shown = [world.class_names[world.label(i)] for i in indices]
    assert len(set(indices)) == PER_TASK
    assert set(shown[: PER_TASK // 2]) <= set(TASKS[name].base)
    assert set(shown[PER_TASK // 2 :]) <= set(TASKS[name].novel)


def test_the_code_on_the_page_does_what_it_says():
    code = (BOOK / "world.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["picture"].mask("part", "tusk").any()
    assert names["world"].caption(3).startswith(code.partition('# "')[2].partition(" …")[0])


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture
def page(page, html):
    """The page from the disk; anything that goes wrong, or outside, fails the test."""
    page.goto(f"file://{html}/index.html")
    page.locator(".wg-concepts button").first.wait_for()
    yield page
    # The theme says this of every page whose html has no mode yet; it is no fault of the gallery.
    assert [t for t in page.trouble if "Got invalid theme mode" not in t] == []


def pixels(page, which):
    """The bytes of a canvas of the gallery: the picture (0) or the marks on it (1)."""
    return page.locator(".wg-picture canvas").nth(which).screenshot()


def says(page, text):
    page.locator(".wg-caption p", has_text=text).wait_for()


def test_style_colour_class_and_scene_change_picture_and_caption(page):
    says(page, "a photo of a red cat")
    seen = {pixels(page, 0)}
    page.locator(".wg-style label", has_text="painting").click()
    says(page, "a painting of a red cat")
    seen.add(pixels(page, 0))
    page.locator(".wg-colour label[title=blue]").click()
    says(page, "a painting of a blue cat")
    seen.add(pixels(page, 0))
    page.get_by_role("button", name="next class").click()
    says(page, f"a painting of a blue {CLASSES[1]}")
    seen.add(pixels(page, 0))
    page.get_by_role("combobox", name="class").select_option("bus")
    says(page, "a painting of a blue bus")
    seen.add(pixels(page, 0))
    page.locator(".wg-scene label").nth(1).click()
    says(page, "a painting of a blue dotted bus")
    seen.add(pixels(page, 0))
    page.get_by_label("class, by slider").fill(str(len(CLASSES) - 1))
    says(page, f"blue dotted {CLASSES[-1]}")
    seen.add(pixels(page, 0))
    page.get_by_role("button", name="another wording").click()
    page.get_by_text("another wording (2 of").wait_for()
    assert len(seen) == 7


def test_a_style_without_colours_says_why(page):
    page.locator(".wg-style label", has_text="sketch").click()
    says(page, "a sketch of a cat")
    assert page.locator(".wg-colour input").first.is_disabled()
    assert "a sketch shows no colour" in page.locator(".wg-why").inner_text().lower()
    page.locator(".wg-style label", has_text="photo").click()
    says(page, "a photo of a red cat")
    assert page.locator(".wg-colour input").first.is_enabled()


def test_the_place_pointed_at_is_named_with_the_mouse_and_with_the_keys(page):
    picture, here = page.locator(".wg-picture"), page.locator(".wg-here")
    box = picture.bounding_box()
    for k in range(10):  # down the middle, where the thing is
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * (0.2 + 0.06 * k))
        if "class cat" in here.inner_text():
            break
    assert "part " in here.inner_text()
    page.mouse.move(0, 0)
    here.get_by_text("Point at the picture").wait_for()
    page.get_by_role("checkbox").focus()
    picture.focus()
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    assert "background forest" in here.inner_text()
    page.keyboard.press("Escape")
    here.get_by_text("Point at the picture").wait_for()


def test_masks_appear_and_go_in_pixels_and_in_patches(page):
    bare = pixels(page, 1)
    chip = page.locator(".wg-concepts").get_by_role("button", name="head")
    chip.click()
    page.mouse.move(0, 0)
    assert chip.get_attribute("aria-pressed") == "true"
    mask = pixels(page, 1)
    page.get_by_label("14 × 14 patches").check()
    patches = pixels(page, 1)
    chip.click()
    page.mouse.move(0, 0)
    assert chip.get_attribute("aria-pressed") == "false"
    assert len({bare, mask, patches, pixels(page, 1)}) == 4
    page.get_by_label("14 × 14 patches").uncheck()
    assert pixels(page, 1) == bare
    page.get_by_label("14 × 14 patches").check()
    page.locator(".wg-picture").hover()
    assert "patch row " in page.locator(".wg-here").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_telephone(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 720})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=3000)
    for part in page.locator(".wg *:visible").all():
        box = part.bounding_box()
        assert box is None or box["x"] + box["width"] <= 375


def test_only_the_class_shown_and_its_neighbour_are_loaded(page):
    scripts = "[...document.scripts].filter((s) => /world.[a-z]+[.]js$/.test(s.src)).length"
    assert page.evaluate(scripts) == 1
    page.get_by_role("button", name="next class").click()
    says(page, CLASSES[1])
    page.wait_for_function(f"{scripts} === 3")

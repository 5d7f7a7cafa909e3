"""The schematics: what is real in them is computed again here, and their parts in a browser."""

import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch

from companion import fill_page
from patchsae_lib.ablation import drop, keep
from patchsae_lib.pictures.naming import in_the_world
from patchsae_lib.pictures.sources import world_of
from schematics import FIGURES, STATES, K, answers, mask, photo, repaired, world_study

BOOK = Path(__file__).resolve().parents[1] / "book"
FIGURE_OF = {"story": "1", "autoencoder": "2", "masks": "5a", "prompts": "9"}
FIGURE = re.compile("^<figure.*?</figure>$", re.MULTILINE | re.DOTALL)
# what is not inside its picture, and what lies on other text
TROUBLE = """() => [...document.querySelectorAll("svg")].flatMap((svg) => {
  const { width, height } = svg.viewBox.baseVal;
  const texts = [...svg.querySelectorAll("text")]
    .filter((text) => getComputedStyle(text).display !== "none")
    .map((text) => [text.textContent, text.getBBox()]);
  const inside = ({ x, y, width: w, height: h }) =>
    x >= 8 && y >= 0 && x + w <= width - 4 && y + h <= height;
  const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width &&
    a.y + 2 < b.y + b.height - 2 && b.y + 2 < a.y + a.height - 2;
  return texts.flatMap(([words, box], i) => [
    ...(inside(box) ? [] : [`outside: ${words}`]),
    ...texts.slice(0, i).filter(([, b]) => meet(box, b)).map(([s]) => `${words} | ${s}`),
  ]);
})"""


@pytest.fixture(scope="module")
def page_text():
    """The page about the method with its schematics."""
    source = [(BOOK / "method.md").read_text("utf-8")]
    fill_page(SimpleNamespace(srcdir=str(BOOK)), "method", source)
    return source[0]


@pytest.fixture(scope="module")
def figures(page_text):
    """The elements of the four figures, by name."""
    found = FIGURE.findall(page_text)
    return dict(zip(FIGURE_OF, map(ElementTree.fromstring, found), strict=True))


def places(element: ElementTree.Element) -> set[tuple[int, int]]:
    """The (column, row) of all unit squares in an element."""
    paths = " ".join(path.get("d") for path in element.iter("path"))
    return {(int(x), int(y)) for x, y in re.findall(r"M(\d+) (\d+)h1v1h-1z", paths)}


def masks_in(svg: ElementTree.Element) -> list[set[tuple[int, int]]]:
    return [places(g) for g in svg.iter("g") if g.get("class") == "mask"]


def where(values: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for y, x in values.nonzero()}


def encoded(pixels, model=None) -> torch.Tensor:
    """Eq. 1 by hand: latents (tokens, d_sae) of the image tokens of a picture."""
    study = world_study()
    clip, sae = model or study.clip, study.sae
    with torch.no_grad():
        images = clip.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        z = clip.tokens(images)[0, : clip.n_tokens].bfloat16().float()  # rounded, as they are kept
        return ((z - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()


def above(f: torch.Tensor) -> torch.Tensor:
    """Which latents write more than τ into which tokens."""
    study = world_study()
    return f * study.sae.W_dec.norm(dim=1) > study.profile.statistics.tau


def thing_patches(picture) -> torch.Tensor:
    """Which patches (n_patches,) the only thing of a picture fills by half or more."""
    rows, columns = world_study().clip.grid
    thing = torch.from_numpy(picture.thing_mask(0)).float()
    height, width = thing.shape
    patches = thing.view(rows, height // rows, columns, width // columns)
    return (patches.mean((1, 3)) >= 0.5).flatten()


def test_each_schematic_stands_in_the_page_with_its_caption(page_text, figures):
    assert set(FIGURES) == set(FIGURE_OF)
    assert "<!-- schematic" not in page_text
    for name, number in FIGURE_OF.items():
        caption = "".join(figures[name].find("figcaption").itertext())
        assert f"(after Fig. {number} of the paper, redrawn" in caption
    sections = re.split("^## ", page_text, flags=re.MULTILINE)
    homes = [text.partition("\n")[0] for text in sections if "<figure" in text]
    assert homes[1:] == [
        "The autoencoder",
        "Switching latents on and off",
        "What adaptation changes",
    ]


def test_every_panel_is_described_for_those_who_cannot_see_it(figures):
    panels = [svg for figure in figures.values() for svg in figure.iter("svg")]
    assert len(panels) == 8
    for svg in panels:
        title, about = svg.find("title"), svg.find("desc")
        assert svg.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
        assert len(about.text) > 80
    ids = [e.get("id") for f in figures.values() for e in f.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    links = [e.get("href") for f in figures.values() for e in f.iter() if e.get("href")]
    assert all(re.match("data:image/webp|notebooks/", link) for link in links)


def test_a_mask_has_the_patches_of_its_values_in_the_order_of_their_strength():
    values = torch.tensor([[0.0, 1.0, 4.0], [0.0, 0.0, 0.04]])
    g = ElementTree.fromstring(mask(values, 0, 0, 6))
    strength = {place: float(p.get("opacity")) for p in g.iter("path") for place in places(p)}
    assert set(strength) == where(values)
    assert strength[2, 0] > strength[1, 0] > strength[2, 1] > 0
    assert places(ElementTree.fromstring(mask(torch.zeros(2, 2), 0, 0, 6))) == set()


def test_the_masks_are_those_of_the_latents(figures):
    r, p, grid = repaired(), photo(), world_study().clip.grid
    f = encoded(r.pixels)[1:]
    expected = [where((f[:, latent] > 0).view(grid)) for latent in r.latents]
    assert all(expected)
    reading, remapping = figures["story"].iter("svg")
    assert masks_in(reading) == masks_in(remapping) == expected
    f = encoded(p.pixels)[1:]
    _, pyramid = figures["autoencoder"].iter("svg")
    soft, counted = masks_in(pyramid)
    assert soft == where((f[:, p.latent] > 0).view(grid))
    assert counted == where(above(f)[:, p.latent].view(grid))
    assert f"= {p.n_image}" in "".join(pyramid.itertext())


def test_the_photo_is_the_first_and_its_counts_are_sums():
    study, p = world_study(), photo()
    world = world_of(study.test.pictures)
    row = next(i for i in range(len(world)) if world.scene(i).style == "photo")
    assert (p.pixels == world.picture(row).pixels).all()
    assert p.name == world.class_names[world.label(row)]
    train = world_of(study.train.pictures)
    rows = [i for i in range(len(study.train)) if train.label(i) == world.label(row)]
    by_picture = [above(encoded(train.picture(i).pixels)).sum(0) for i in rows]
    counts = torch.stack(by_picture)
    assert p.counts == pytest.approx(counts[: len(p.counts), p.latent].tolist(), abs=1)
    assert p.n_pictures == len(rows)
    # kept tokens are rounded: a patch at the threshold may fall on its other side
    assert p.n_class == pytest.approx(int(counts.sum(0)[p.latent]), rel=0.002)
    first = counts.sum(0).argsort(descending=True, stable=True)[:K]
    f = encoded(p.pixels)
    assert p.n_image == int(above(f)[:, p.latent].sum())
    on_thing = above(f[1:])[thing_patches(world.picture(row))].sum(0)
    assert p.latent == first[on_thing[first[:10]].argmax()]
    assert set(p.active.tolist()) == set((f > 0).any(0).nonzero()[:, 0].tolist())
    assert p.n_of_class == int((f[:, first] > 0).any(0).sum())
    assert torch.isin(p.active[: p.n_of_class], first).all()


def test_the_answers_are_those_of_the_masked_model():
    study, p = world_study(), photo()
    label = study.test.class_names.index(p.name)
    row = next(i for i in range(len(study.test)) if (pixels(i) == p.pixels).all())
    order = torch.randperm(study.sae.d_sae, generator=torch.Generator().manual_seed(1))
    found = answers(study.test.select([row]), order)
    f, none = encoded(p.pixels), torch.zeros(0, dtype=torch.long)
    states = {"all": f, "on": keep(f, order[:K]), "off": drop(f, order[:K]), "none": keep(f, none)}
    assert set(STATES) == set(states)
    for state, latents in states.items():
        with torch.no_grad():
            z = study.sae.decode(latents)[None]
            expected = study.clip.classify(z, study.test.head).softmax(-1)[0]
        torch.testing.assert_close(found[state], expected, atol=1e-4, rtol=1e-3)
    assert p.answers["on"][label] > found["on"][label]  # a random order carries less


def pixels(i: int):
    return world_of(world_study().test.pictures).picture(i).pixels


def test_the_repaired_picture_is_the_first_of_its_kind():
    r, task = repaired(), world_study().tasks["Flower species"]
    adapted = task.adapted(0)
    predicted = [split.predictions() for split in (task.base, adapted.base)]
    wanted = (predicted[0] != task.base.labels) & (predicted[1] == task.base.labels)
    row = int(wanted.nonzero()[0])
    world, (number,) = in_the_world(task.base.select([row]).pictures)
    picture = world.picture(number).pixels
    assert (r.pixels == picture).all()
    names = task.base.class_names
    assert r.names[:2] == [names[task.base.labels[row]], names[predicted[0][row]]]
    assert r.shares[0].argmax() == 1
    assert r.shares[1].argmax() == 0
    thing = thing_patches(world.picture(number))
    on_thing = above(encoded(picture)[1:])[thing].sum(0)
    assert int(on_thing[r.latents].min()) >= int(on_thing.topk(len(r.latents)).values[-1]) - 1
    counts = [above(encoded(picture, m)[1:]).sum(0)[r.latents] for m in (None, adapted.clip)]
    assert [r.before, r.after] == [n.tolist() for n in counts]
    assert r.shape == tuple(adapted.clip.prompts.text.shape[:2])


def test_a_square_stands_for_each_latent_and_the_switch_says_which_are_on(figures):
    p = photo()
    lights = {
        e.get("class"): e.get("d")
        for e in figures["masks"].iter("path")
        if "lights" in e.get("class", "")
    }
    n = {kind.split()[1]: d.count("M") for kind, d in lights.items()}
    assert n == {"of-class": p.n_of_class, "others": len(p.active) - p.n_of_class}
    buttons = list(figures["masks"].iter("input"))
    assert [b.get("value") for b in buttons] == list(STATES)
    assert [b.get("value") for b in buttons if b.get("checked") is not None] == ["on"]
    bars = [e for e in figures["masks"].iter("rect") if "grows" in e.get("class", "")]
    at = world_study().test.class_names.index(p.name)
    shown = dict(re.findall(r"--(\w+): ([\d.]+)", bars[0].get("style")))
    assert {s: float(v) for s, v in shown.items()} == pytest.approx(
        {s: float(x[at]) for s, x in p.answers.items()}, abs=1e-4
    )


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def drawn(page, page_text, tmp_path):
    """The four figures in a page without any script, in the book's colours."""
    figures = "".join(FIGURE.findall(page_text))
    style = (BOOK / "_static" / "custom.css").read_text("utf-8")
    html = f"<html data-theme='light'><style>{style}</style><body class='bd-article'>{figures}"
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'>{html}", "utf-8")
    page.emulate_media(reduced_motion="reduce")
    page.goto(f"file://{tmp_path}/page.html")
    return page


@pytest.mark.parametrize("width", [1200, 640, 375])
def test_text_is_inside_large_enough_and_not_on_other_text(drawn, width):
    drawn.set_viewport_size({"width": width, "height": 900})
    for state in STATES:
        drawn.locator(f".masks [value={state}]").check()
        assert drawn.evaluate(TROUBLE) == []
    assert drawn.evaluate("document.documentElement.scrollWidth <= innerWidth")
    scales = drawn.evaluate(
        "[...document.querySelectorAll('svg')].map((s) => s.clientWidth / s.viewBox.baseVal.width)"
    )
    assert min(scales) * 11.5 >= 11
    assert drawn.trouble == []


def test_the_switch_lights_the_latents_that_are_on(drawn):
    p, figure = photo(), drawn.locator(".masks")
    at = world_study().test.class_names.index(p.name)
    fill = "(e) => getComputedStyle(e).fill"
    empty = figure.locator(".cell.off").evaluate(fill)
    figure.locator("[value=all]").focus()
    drawn.keyboard.press("Space")
    for state in STATES:  # the arrow keys go from one to the next
        assert figure.locator("input:checked").get_attribute("value") == state
        is_lit = [
            figure.locator(f".lights.{k}").evaluate(fill) != empty for k in ("of-class", "others")
        ]
        assert is_lit == [state in ("all", "on"), state in ("all", "off")]
        visible = figure.locator(".state:visible").first
        assert visible.text_content() == f"{p.answers[state][at]:.0%}"
        widths = "(e) => e.getBoundingClientRect().width"
        bar, whole = (
            figure.locator(s).first.evaluate(widths)
            for s in (".bar", "svg + svg .cell[height='14']")
        )
        assert bar / whole == pytest.approx(float(p.answers[state][at]), abs=0.02)
        drawn.keyboard.press("ArrowRight")


def test_a_part_lights_what_it_is_coupled_with(drawn):
    figure = drawn.locator(".prompts")
    lit = """(parts) => parts.filter((part) => getComputedStyle(part).opacity === "1")
        .map((part) => part.classList[1])"""
    parts = figure.locator(".part")
    everything = parts.evaluate_all(lit)
    assert len(everything) == parts.count()
    drawn.mouse.move(0, 0)
    figure.locator("[tabindex]").first.focus()
    drawn.keyboard.press("Tab")
    assert set(parts.evaluate_all(lit)) == {"depth-0"}
    assert "Block 1" in figure.locator(".says .depth-0").inner_text()
    figure.locator("[tabindex].read").hover()  # pointing goes before the focus
    assert parts.evaluate_all(lit) == ["read", "read"]
    visible = [
        s.get_attribute("class") for s in figure.locator(".says span").all() if s.is_visible()
    ]
    assert visible == ["read"]

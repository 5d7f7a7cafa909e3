"""The explorer's data, and the explorer in a real browser: in the book and in JupyterLab."""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from patchsae_lib.explorer import Explorer, describe, write_bundle
from patchsae_lib.explorer.bundle import PER_SHARD, PER_SHEET, contact_sheet, nibbles, read_shard
from patchsae_lib.explorer.widget import EXPLORER

NAMES = ("<script>alert(1)</script>", '"quoted" & <b>bold</b>', "🦉" * 60)


class Plain:
    """Grey pictures, each as bright as its number."""

    class_names = NAMES

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def label(self, index: int) -> int:
        return index % 3

    def batch(self, indices):
        levels = (torch.tensor(indices) % 256).to(torch.uint8)
        return levels[:, None, None, None].expand(-1, 3, 16, 16).contiguous()


def table(d: int) -> pd.DataFrame:
    words = ["owl" if i % 2 else "cat" for i in range(d)]
    return pd.DataFrame({"frequency": np.linspace(0, 1, d), "concept": words})


def decoded(text: str, dtype: str) -> list:
    return np.frombuffer(base64.b64decode(text), dtype).tolist()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    images = torch.tensor([[7, 3], [3, -1], [-1, -1]])
    masks = torch.zeros(3, 2, 2, 2)
    masks[0, 0] = torch.tensor([[0.0, 0.25], [1.0, 4.0]])
    masks[1, 0, 0, 0] = 8.0
    return write_bundle(tmp_path / "b", Plain(200), images, masks, table(3))


def test_a_bundle_holds_what_was_put_in(bundle: Path) -> None:
    index, shard = (read_shard(bundle / f"{name}.js") for name in ("index", "latents-0"))
    assert (index["version"], index["grid"], index["side"], index["k"]) == (1, [2, 2], 16, 2)
    assert decoded(index["labels"], "<i2") == [3 % 3, 7 % 3]  # pictures 3 and 7, now 0 and 1
    assert decoded(index["top"], "<i4") == [1, 0, -1]
    assert decoded(index["columns"]["frequency"], "<f4") == [0, 0.5, 1]
    assert index["columns"]["concept"]["names"] == ["cat", "owl"]
    assert decoded(shard["images"], "<i4") == [1, 0, 0, -1, -1, -1]
    assert decoded(shard["full"], "<f4") == [4, 8, 0]
    packed = np.frombuffer(base64.b64decode(shard["masks"]), np.uint8)
    levels = np.stack([packed & 15, packed >> 4], 1).reshape(3, 2, 4)
    assert levels[0, 0].tolist() == [0, 4, 8, 15]  # 15 √(activation / 4), rounded
    assert levels[1, 0].tolist() == [15, 0, 0, 0]
    assert levels[2].sum() == 0


def test_a_bundle_takes_the_place_of_the_last_one(bundle: Path) -> None:
    (bundle / "latents-9.js").write_text("stale")
    write_bundle(bundle, Plain(9), torch.tensor([[1]]), torch.ones(1, 1, 2, 2), table(1), False)
    assert sorted(f.name for f in bundle.iterdir()) == [
        "index.js",
        "latents-0.js",
        "pictures-0.js",
    ]
    assert decoded(read_shard(bundle / "index.js")["labels"], "<i2") == [-1]


def test_what_is_known_may_be_added_later(bundle: Path) -> None:
    before = read_shard(bundle / "index.js")
    describe(bundle, table(3).assign(iou=0.25))
    after = read_shard(bundle / "index.js")
    assert decoded(after["columns"]["iou"], "<f4") == [0.25] * 3
    assert {k: v for k, v in after.items() if k != "columns"} == {
        k: v for k, v in before.items() if k != "columns"
    }
    with pytest.raises(ValueError, match="4 rows for the 3 latents"):
        describe(bundle, table(4))
    words = pd.DataFrame({"hover": [str(i) for i in range(32_769)]})
    with pytest.raises(ValueError, match="'hover' has 32,769 words, more than 32,768"):
        describe(bundle, words)


def test_files_have_as_much_as_they_say(tmp_path: Path) -> None:
    d = PER_SHARD + 1
    images = torch.arange(d * 4).reshape(d, 4) % (PER_SHEET + 1)
    folder = write_bundle(tmp_path, Plain(400), images, torch.rand(d, 4, 2, 2), table(d))
    assert len(decoded(read_shard(folder / "latents-0.js")["full"], "<f4")) == PER_SHARD
    assert len(decoded(read_shard(folder / "latents-1.js")["full"], "<f4")) == 1
    assert (folder / "pictures-1.js").is_file()


def test_a_sheet_of_pictures() -> None:
    sheet, side = contact_sheet(Plain(40).batch(list(range(40))))
    assert (sheet.size, side) == ((16 * 16, 3 * 16), 16)
    assert sheet.getpixel((5 * 16 + 3, 2 * 16 + 9)) == (37, 37, 37)
    large = torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)
    sheet, side = contact_sheet(large)
    assert (side, sheet.getpixel((100, 100))) == (112, (90, 90, 90))


def test_two_numbers_in_a_byte() -> None:
    values = torch.arange(16.0)
    packed = np.frombuffer(base64.b64decode(nibbles(values)), np.uint8)
    assert np.stack([packed & 15, packed >> 4], 1).ravel().tolist() == list(range(16))


# --- the widget


def test_the_kernel_sends_files_of_the_bundle_and_no_others(bundle: Path) -> None:
    (bundle.parent / "secret.js").write_text("patchsaeShard({});\n")
    (bundle / "pictures-0.js").write_text("patchsaeShard({\n")  # cut short
    explorer, sent = Explorer(bundle, latent=1), []
    explorer.send = sent.append
    for name in ("index", "../secret", "latents-7", "pictures-0"):
        explorer._answer(explorer, {"load": name}, [])
    assert [message["loaded"] for message in sent] == ["index", "latents-7", "pictures-0"]
    assert sent[0]["shard"]["latents"] == 3
    assert sent[1]["shard"] is sent[2]["shard"] is None


def test_a_notebook_keeps_what_the_book_needs(bundle: Path) -> None:
    data, _ = Explorer(bundle, latent=2)._repr_mimebundle_()
    assert data[EXPLORER] == {"bundle": "b", "latent": 2, "masks": True}
    assert "application/vnd.jupyter.widget-view+json" in data
    with pytest.raises(FileNotFoundError, match=r"has no index.js"):
        Explorer(bundle.parent)


# --- in a browser

SPOT = """number => {
    const plot = document.querySelectorAll('.js-plotly-plot')[number];
    const trace = plot._fullData.find(t => t.customdata?.length && t.marker.colorscale);
    const i = trace.y.indexOf(Math.max(...trace.y)), box = plot.getBoundingClientRect();
    const at = (axis, value) => axis._offset + axis.l2p(value);
    return {latent: trace.customdata[i],
            x: box.left + at(plot._fullLayout['xaxis' + trace.xaxis.slice(1)], trace.x[i]),
            y: box.top + at(plot._fullLayout['yaxis' + trace.yaxis.slice(1)], trace.y[i])};
}"""


def colours(page, canvas) -> list[int]:
    """The first row of pixels, one number each."""
    script = "c => [...c.getContext('2d').getImageData(0, 0, c.width, 1).data]"
    return canvas.evaluate(script)


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_a_latent_that_is_clicked_on_shows_its_reference_images(build, server, page, scheme):
    base = f"file://{build}/html" if scheme == "file" else server
    page.goto(f"{base}/notebooks/2_statistics.html")
    explorers = page.locator(".patchsae-explorer")
    assert explorers.count() == 2
    plots = page.locator(".plotly-canvas")
    plots.first.scroll_into_view_if_needed()
    explorers.first.locator("canvas").first.wait_for()
    explorers.first.scroll_into_view_if_needed()
    other = explorers.nth(1).get_attribute("data-state")
    plots.first.locator(".main-svg").first.wait_for(state="attached")
    spot = page.evaluate(SPOT, 0)
    card = page.locator(".patchsae-card")
    assert card.count() == 0
    page.mouse.move(spot["x"], spot["y"])
    card.wait_for(state="visible")
    page.mouse.click(spot["x"], spot["y"])
    number = explorers.first.locator("input[type=number]")
    page.wait_for_function(
        "([e, n]) => e.value == n", arg=[number.element_handle(), spot["latent"]]
    )
    page.mouse.move(5, 5)
    card.wait_for(state="detached")
    explorers.nth(1).scroll_into_view_if_needed()  # the other one is as it was
    explorers.nth(1).locator("figure").first.wait_for()
    assert f'"latent": {explorers.nth(1).locator("input").first.input_value()},' in other
    assert page.trouble == []


def test_numbers_buttons_and_masks(build, page):
    page.goto(f"file://{build}/html/notebooks/2_statistics.html")
    explorer = page.locator(".patchsae-explorer").first
    explorer.scroll_into_view_if_needed()
    explorer.locator("figure canvas").first.wait_for()
    before, said = colours(page, explorer.locator("canvas").first), explorer.locator(".about")
    explorer.get_by_label("masks").uncheck()
    explorer.locator(".legend:empty").wait_for(state="attached")
    assert colours(page, explorer.locator("canvas").first) != before
    text = said.inner_text()
    explorer.get_by_label("the next latent").click()
    page.wait_for_function("([p, old]) => p.innerText != old", arg=[said.element_handle(), text])
    number = explorer.get_by_label("latent", exact=True)
    number.fill("1000000")
    number.press("Enter")
    last = number.get_attribute("max")
    page.wait_for_function("([e, n]) => e.value == n", arg=[number.element_handle(), last])
    assert page.trouble == []


@pytest.fixture
def host(bundle: Path, build: Path) -> Path:
    """A page with an explorer of the small bundle and nothing else."""
    static = bundle.parent / "_static"
    shutil.copytree(build / "html" / "_static" / "explorer", static / "explorer")
    shutil.rmtree(static / "explorer" / "data")
    shutil.move(bundle, static / "explorer" / "data")
    shutil.copy(build / "html" / "_static" / "book.js", static)
    page = bundle.parent / "page.html"
    state = '{"bundle": "b", "latent": 0, "masks": true}'
    page.write_text(
        f"""<!doctype html><meta charset="utf-8"><script src="_static/book.js"></script>
        <div class="patchsae-explorer" data-state='{state}'></div>"""
    )
    return page


def test_names_are_text_and_masks_are_drawn_where_they_are(host, page):
    page.goto(host.as_uri())
    figures = page.locator(".patchsae-explorer figure")
    figures.first.wait_for()
    assert figures.all_inner_texts() == [NAMES[7 % 3], NAMES[0]]
    row = colours(page, figures.first.locator("canvas"))
    assert row[:3] == row[4:7]
    assert row[0] == row[1] == row[2]  # not active: grey
    right = row[4 * 12 : 4 * 12 + 3]
    assert right[0] > right[1] > right[2]  # active: orange
    assert page.trouble == []


def test_a_silent_latent_and_files_that_are_missing_or_cut_short_say_so(host, page):
    data = host.parent / "_static" / "explorer" / "data"
    page.goto(host.as_uri())
    explorer = page.locator(".patchsae-explorer")
    explorer.locator("figure").first.wait_for()
    number = explorer.get_by_label("latent", exact=True)
    number.fill("2")
    number.press("Enter")
    explorer.get_by_text("Never active").wait_for()
    (data / "latents-0.js").unlink()
    page.reload()
    explorer.get_by_text("Latent 0 cannot be shown").wait_for()
    (data / "latents-0.js").write_text('patchsaeShard({"images": "AA')
    page.reload()
    explorer.get_by_text("latents-0.js is not whole").wait_for()
    (data / "index.js").write_text('patchsaeShard({"version": 2});')
    page.reload()
    explorer.get_by_text("its version is 2, 1 can be read").wait_for()


# --- in JupyterLab, with a kernel behind it

FIRST = """
from pathlib import Path
import plotly.graph_objects as go
from patchsae_lib import figures
from patchsae_lib.explorer import Explorer
from patchsae_lib.latents import LatentTable

run = Path({run!r})
frame = LatentTable.load(run / "latents.safetensors").frame().assign(hover="")
figures.latent_scatter(frame, "entropy", "entropy", "Latents", "What to look for.").show()
explorer = Explorer(run / "explorer", latent=3)
explorer
"""


@pytest.fixture
def lab(tmp_path: Path, build: Path):
    """The address of a notebook in a running JupyterLab."""
    run = build.parent / "runs" / "smoke"
    cells = [FIRST.format(run=str(run)), "explorer.latent = 7", "print('now', explorer.latent)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "try.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--allow-root", "--IdentityProvider.token=", "--ServerApp.password="]
    home = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "RUNTIME", "DATA")}
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | home, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(300):
            time.sleep(0.2)
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab", (tmp_path / "log").read_text()):
                break
        urlopen(found[0], timeout=10).close()
        yield f"{found[0]}/tree/try.ipynb"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def test_a_scatter_and_its_explorer_are_linked_to_each_other_and_to_python(lab, page):
    page.goto(lab)
    cell = page.locator(".jp-CodeCell").first
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    explorer = page.locator(".patchsae-explorer")
    explorer.locator("figure canvas").first.wait_for(timeout=60_000)
    number = explorer.get_by_label("latent", exact=True)
    assert number.input_value() == "3"
    plot = page.locator(".js-plotly-plot")
    assert "What to look for." in plot.text_content()
    plot.scroll_into_view_if_needed()
    plot.click(position={"x": 5, "y": 5})  # no latent there
    spot = page.evaluate(SPOT, 0)
    page.mouse.move(spot["x"] - 3, spot["y"])
    page.mouse.move(spot["x"], spot["y"])
    page.locator(".patchsae-card").wait_for(state="visible")
    page.mouse.click(spot["x"], spot["y"])
    wanted = [number.element_handle(), str(spot["latent"])]
    page.wait_for_function("([e, n]) => e.value == n", arg=wanted)
    page.locator(".jp-CodeCell").nth(2).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.get_by_text(f"now {spot['latent']}").wait_for()
    page.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("e => e.value == '7'", arg=number.element_handle())

"""How fast the explorer's page opens over http, and how fast it shows another latent: in the book
that was built last, and with a bundle of random numbers of the paper's size."""

import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from report import against

from patchsae_lib.artefacts import ROOT
from patchsae_lib.explorer import Latents, write_bundle

OPEN = "() => performance.getEntriesByName('patchsae-usable').length"
TURN = """async latents => {
    const field = document.querySelector('.view.latent input[type=number]');
    const status = document.querySelector('.patchsae-explorer [role=status]');
    for (const latent of latents) {
        field.value = latent;
        field.onchange();
        while (!status.textContent.startsWith(`Latent ${latent}.`)) {
            await new Promise(requestAnimationFrame);
        }
    }
}"""
FLAGS = ["--no-sandbox", "--disable-gpu"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Grey:
    """400 grey pictures of ten classes."""

    class_names = tuple(f"class {i}" for i in range(10))

    def __len__(self):
        return 400

    def label(self, index):
        return index % 10

    def batch(self, indices):
        return torch.full((len(indices), 3, 112, 112), 90, dtype=torch.uint8)


def large(folder, d=49_152, k=9):
    """Write a bundle of d latents with random example pictures and masks."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(64, k, 14, 14, generator=generator).half().repeat(d // 64, 1, 1, 1)
    images, near = (torch.randint(n, (d, k), generator=generator) for n in (400, d))
    levels, absent = torch.rand(10, d, generator=generator), torch.full((d, 3), -1)
    counts, most = torch.randint(99, (d, 16), generator=generator), torch.ones(d)
    seen = absent, counts, most, 600, torch.randn(d, 768, generator=generator)
    shown = Latents({"highest": images}, masks, near, torch.rand(d, k), levels, *seen)
    numbers = np.random.default_rng(0).random((d, 4))
    names = ["frequency", "mean", "entropy", "iou"]
    return write_bundle(folder, Grey(), shown, pd.DataFrame(numbers, columns=names))


@pytest.fixture(scope="module", params=["the book's", "49,152 latents, random"])
def address(request, tmp_path_factory):
    html = ROOT / "_build" / "html"
    if not (html / "explorer.html").is_file():
        pytest.skip("no book: make book")
    if request.param != "the book's":
        copy = tmp_path_factory.mktemp("site") / "html"
        html = shutil.copytree(html, copy, ignore=shutil.ignore_patterns("data", "_images"))
        large(html / "_static" / "explorer" / "data")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield request.param, f"http://127.0.0.1:{http.server_port}/explorer.html"
        http.shutdown()


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.skip("no browser: install chromium, or set CHROMIUM to its path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield running
        running.close()


def test_open(benchmark, address, browser):
    way, url = address
    against(benchmark, "explorer: a fresh page until it is usable", way)

    def opened():
        with browser.new_context(viewport={"width": 1440, "height": 1000}) as context:
            page = context.new_page()
            page.goto(url, wait_until="commit")
            page.wait_for_function(OPEN)

    benchmark.pedantic(opened, rounds=5, warmup_rounds=1)


def test_turn(benchmark, address, browser):
    way, url = address
    against(benchmark, "explorer: eight latents, their files loaded", way)
    with browser.new_context(viewport={"width": 1440, "height": 1000}) as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("[data-ready]")
        latents = [8, 7, 6, 5, 4, 3, 2, 1]
        benchmark.pedantic(page.evaluate, (TURN, latents), rounds=5, warmup_rounds=1)

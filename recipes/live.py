"""The live page measured in Chromium: python -m recipes.live [runs/world] [--photographs FOLDER].

Agreement with torch on pictures of every task and on photographs, times, and memory, to
`data/live.md`. Needs a built book, its run, Linux, and the development packages.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from torch import Tensor

from patchsae_lib import Study
from patchsae_lib.artefacts import DATA, ROOT
from patchsae_lib.explorer.files import read_shard
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.pictures import open_pictures
from patchsae_lib.splits import Split

ENGINE = """async ({ engine, wasm, about, weights }) => {
  const start = performance.now();
  window.worker?.terminate();
  window.worker = new Worker(URL.createObjectURL(new Blob([engine], { type: "text/javascript" })));
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data: { number, answer, error } }) =>
    error ? waiting.get(number)[1](new Error(error)) : waiting.get(number)[0](answer);
  window.ask = (does, more) => new Promise((...both) => {
    waiting.set(++last, both);
    worker.postMessage({ number: last, does, ...more });
  });
  await ask("open", { about, wasm });
  for (const [file, codes] of weights.entries()) await ask("weights", { file, codes });
  return performance.now() - start;
}"""
SEE = """async ({ pixels, side, task }) => {
  const data = Uint8ClampedArray.from(atob(pixels), (c) => c.charCodeAt(0));
  const times = [performance.now()], time = () => times.push(performance.now());
  const { id } = await ask("look", { pixels: data, width: side, height: side });
  const seen = await ask("see", { id, task });
  time();
  const factors = [[seen[0].code.latents[0], 0.5]];
  await ask("steer", { id, task, factors });
  time();
  return { times, seen: seen.map(({ code: { starts, latents, values }, said }) => (
    { starts: [...starts], latents: [...latents], values: [...values], said: [...said] })) };
}"""
NEAR = 0.01  # difference of the two largest probabilities that is called a tie


def pixels_of(picture: Tensor) -> str:
    """Return a picture (3, h, w) uint8 as base64 of RGBA."""
    opaque = torch.cat([picture, torch.full_like(picture[:1], 255)])
    return base64.b64encode(opaque.permute(1, 2, 0).contiguous().numpy().tobytes()).decode()


@torch.no_grad()
def compare(page: Page, lens: Lens, task: int, pictures: Tensor) -> Iterator[dict[str, Any]]:
    """Compare page and torch on pictures (n, 3, side, side) uint8: a row a picture and model."""
    for picture in pictures:
        asked = {"pixels": pixels_of(picture), "side": picture.shape[-1], "task": task}
        answer = page.evaluate(SEE, asked)
        start, looked, steered = answer["times"]
        for view, (clip, head) in zip(answer["seen"], lens.models.values(), strict=True):
            z = clip.tokens(clip.preprocess(picture[None]))
            f = lens.sae.encode(z[0, : clip.n_tokens])
            found = torch.zeros_like(f)
            token = np.repeat(np.arange(len(f)), np.diff(view["starts"]))
            found[token, view["latents"]] = torch.tensor(view["values"])
            predicted, wanted = torch.tensor(view["said"]), clip.classify(z, head).softmax(1)[0]
            two = wanted.topk(2).values
            yield {
                "latents": float((found - f).abs().max() / f.max()),
                "probability": float((predicted - wanted).abs().max()),
                "same": bool(predicted.argmax() == wanted.argmax()),
                "tie": float(two[0] - two[1]) < NEAR,
                "see": looked - start, "steer": steered - looked, "models": len(lens.models),
            }  # fmt: skip


def lenses_of(study: Study) -> dict[str, tuple[str, Lens, Split]]:
    """Return for each task of the bundle its name, its lens and its pictures."""
    out = {}
    for title in study.tasks:
        task = study.tasks[title]
        before, after = task.base, task.adapted(0).base
        models = {"CLIP": (before.clip, before.head), "MaPLe": (after.clip, after.head)}
        out[task.name] = title, Lens(study.sae, models), before
    return out


def memory(chromium: Browser, page: Page, photograph: Path) -> Iterator[tuple[str, float]]:
    """Yield what the built explorer holds in MB (Linux's proportional set size of its process): as
    it opens, with the models, and at most while a photograph of 40 megapixels is read."""
    Image.effect_noise((8000, 5000), 60).convert("RGB").save(photograph, quality=85)
    page.goto((ROOT / "_build" / "html" / "explorer.html").as_uri())
    page.locator(".patchsae-explorer[data-ready=true]").wait_for()
    yield "the explorer", held(chromium)
    page.locator(".view.steer .begin").click()
    page.locator(".view.steer .sliders input").first.wait_for()
    yield "with both models", held(chromium)
    pictures = page.locator(".picture-view")
    n = pictures.locator(".thumbs button").count()
    pictures.locator("input[type=file]").set_input_files(photograph)
    end, peak = time.monotonic() + 10, 0.0
    while time.monotonic() < end:
        peak = max(peak, held(chromium))
    pictures.locator(f".thumbs button:nth-child({n + 1})[aria-pressed=true]").wait_for()
    yield f"at most, while a JPEG of {8000 * 5000 / 1e6:.0f} megapixels is read", peak


def held(chromium: Browser) -> float:
    """Return the memory in MB of the largest process that shows a page."""
    processes = chromium.new_browser_cdp_session().send("SystemInfo.getProcessInfo")
    sizes = [0.0]
    for process in processes["processInfo"]:
        with suppress(OSError):  # it has ended
            text = Path(f"/proc/{process['id']}/smaps_rollup").read_text()
            if process["type"] == "renderer":
                sizes.append(int(re.findall(r"Pss:\s+(\d+)", text)[0]) / 1024)
    return max(sizes)


def line(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a row of the table of agreement."""
    latents, probability = (max(row[key] for row in rows) for key in ("latents", "probability"))
    differ = [row for row in rows if not row["same"]]
    ties = sum(row["tie"] for row in differ)
    same = f"{len(rows) - len(differ)} of {len(rows)}"
    same += f" ({ties} of the others are near ties)" if differ else ""
    return f"| {name} | {latents:.1e} | {probability:.1e} | {same} |\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.live", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "world")
    parser.add_argument("--photographs", default="", help="a folder of folders of photographs")
    parser.add_argument("-n", type=int, default=20, help="pictures of a task")
    given = parser.parse_args(argv)
    os.environ["PATCHSAE_RUNS"] = str(given.run.resolve().parent)
    study, bundle = Study(given.run.name), given.run / "explorer"
    index, live = (read_shard(bundle / f"{name}.js") for name in ("index", "live"))
    files = range(index["live"]["files"])
    weights = [read_shard(bundle / f"weights-{n}.js")["codes"] for n in files]
    order = [task["name"] for task in live["about"]["tasks"]]
    table, rows = "", []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = chromium.new_page()
        page.goto("about:blank")
        opening = [page.evaluate(ENGINE, live | {"weights": weights}) for _ in range(5)]
        for name, (title, lens, split) in lenses_of(study).items():
            pictures = split.pictures.batch(range(min(given.n, len(split))))
            of_task = list(compare(page, lens, order.index(name), pictures))
            table += line(f"{title}, {len(pictures)} pictures", of_task)
            rows += of_task
        if given.photographs:
            side = study.clip.visual.image_size[0]
            photographs = open_pictures(f"folder:{given.photographs}", "test", 10, side)
            pictures = photographs.batch(range(min(10, len(photographs))))
            of_photographs = list(compare(page, lens, order.index(name), pictures))
            table += line(f"photographs, {len(pictures)} pictures", of_photographs)
        version = chromium.version
        chromium.close()
        with TemporaryDirectory() as folder:
            fresh = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=flags
            )
            sizes = [*memory(fresh, fresh.new_page(), Path(folder, "photograph.jpg"))]
            fresh.close()
    see, steer = (statistics.median(row[key] for row in rows) for key in ("see", "steer"))
    slowest = max(row["see"] for row in rows), max(row["steer"] for row in rows)
    weigh = f"{index['live']['megabytes']} MB in {len(files)} files"
    opened = f"{statistics.median(opening):.0f} | {max(opening):.0f}"
    where = f"in Chromium {version}, {os.cpu_count()} cores"
    held_table = "".join(f"| {state} | {size:.0f} |\n" for state, size in sizes)
    text = f"""Measured on {date.today():%d %B %Y} {where}, by

    python -m recipes.live

| pictures | latents, largest error / largest value | probabilities, largest error | same answer |
|---|---|---|---|
{table}
| time (ms) | median | longest |
|---|---|---|
| engine and weights, {weigh}, unpacked and laid out | {opened} |
| a picture through both models to latents and classes | {see:.0f} | {slowest[0]:.0f} |
| a slider's answer in both models | {steer:.0f} | {slowest[1]:.0f} |

| memory of the page's process | MB |
|---|---|
{held_table}"""
    (DATA / "live.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""The models in a page compute what torch computes, in a real browser and without a network."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_explorer import latents_of, table
from wasmtime import wat2wasm

from companion import classic_script
from patchsae_lib.artefacts import DATA
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer import Lens, Task, write_bundle, write_tasks
from patchsae_lib.explorer.bundle import strongest_pictures
from patchsae_lib.explorer.files import array_of, base64_of, read_shard, write_shard
from patchsae_lib.explorer.glimpse import write_glimpse
from patchsae_lib.explorer.kernel import Kernel
from patchsae_lib.explorer.live import FOLDER, LARGEST, PER_FILE, unfit, write_live
from patchsae_lib.explorer.steering import Steering
from patchsae_lib.interop import load_sae
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.interop.prompts import load_prompts
from patchsae_lib.maple import adapt
from patchsae_lib.pictures import spoken, square
from patchsae_lib.sae import SAE
from patchsae_lib.world import World
from patchsae_lib.world.truth import CONCEPTS, world_truth
from patchsae_lib.world.truth import spoken as spoken_concept
from recipes.live import ENGINE

ROWS = [0, 5, 9]
LOOK = """async ({ pixels, width, height }) => {
  const data = Uint8ClampedArray.from(atob(pixels), (c) => c.charCodeAt(0));
  const { id, picture } = await ask("look", { pixels: data, width, height });
  return { id, picture: [...picture] };
}"""
SEE = """async (asked) => (await ask("see", asked)).map(({ code, said, decoded }) => ({
  starts: [...code.starts], latents: [...code.latents], values: [...code.values],
  said: [...said], decoded: [...decoded],
}))"""


@pytest.fixture(scope="module")
def clip() -> SplitCLIP:
    return load_small_clip(DATA / "small_clip")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(DATA / "sae.safetensors").eval()


@pytest.fixture(scope="module")
def lenses(clip: SplitCLIP, sae: SAE) -> dict[str, Lens]:
    """CLIP alone, prompts for both encoders, and prompts for pictures only."""
    out = {}
    for task, file in (
        ("objects", ""),
        ("flowers", "flowers-0"),
        ("grey", "grey-picture-0"),
    ):
        world = World(task, "test", 20)
        head = clip.text_features(world.class_names, world.task.templates)
        models = {"CLIP": (clip, head)}
        if file:
            prompts = load_prompts(DATA / "prompts" / f"{file}.safetensors")
            adapted = adapt(clip, prompts, world.class_names)
            models["MaPLe"] = (adapted, adapted.text)
        out[task] = Lens(sae, models, template=world.task.templates[0])
    return out


@pytest.fixture(scope="module")
def bundle(lenses, sae, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "data"
    d, world = sae.d_sae, World("objects", "test", 20)
    shown = latents_of(torch.zeros(d, 1, dtype=torch.long), torch.rand(d, 1, 14, 14))
    shown = replace(shown, levels=torch.zeros(len(world.class_names), d))
    write_bundle(folder, world, shown, table(d))
    tasks = []
    for name, lens in lenses.items():
        pictures = World(name, "test", 20)
        looks = lens.look(pictures.batch(ROWS))
        levels = [torch.zeros(len(pictures.class_names), d) for _ in lens.models]
        about = name, name, pictures.class_names, list(lens.models)
        tasks.append(Task(*about, pictures, ROWS, looks, levels))
    write_tasks(folder, tasks)
    assert write_live(folder, sae, tasks, lenses) == ""
    return folder


@pytest.fixture
def engine(bundle: Path, page):
    """A page that has nothing but the engine: `ask`."""
    return opened(page, bundle)


def opened(page, bundle: Path):
    files = range(read_shard(bundle / "index.js")["live"]["files"])
    weights = [read_shard(bundle / f"weights-{n}.js")["codes"] for n in files]
    page.goto("about:blank")
    page.evaluate(ENGINE, read_shard(bundle / "live.js") | {"weights": weights})
    return page


def look(page, pixels: np.ndarray) -> dict:
    """Show the engine a picture (h, w, 3 or 4)."""
    if pixels.shape[2] == 3:
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1)
    encoded = base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()
    height, width = pixels.shape[:2]
    return page.evaluate(LOOK, {"pixels": encoded, "width": width, "height": height})


def dense(seen: dict, shape: tuple[int, int]) -> torch.Tensor:
    token = np.repeat(np.arange(shape[0]), np.diff(seen["starts"]))
    out = torch.zeros(shape)
    out[token, seen["latents"]] = torch.tensor(seen["values"])
    return out


def expected(lens: Lens, model: str, picture: torch.Tensor, change=lambda f: f) -> tuple:
    """Latents, probabilities, and probabilities of changed latents, by torch."""
    clip, head = lens.models[model]
    with torch.no_grad():
        z = clip.tokens(clip.preprocess(picture[None]))
        f = lens.sae.encode(z[:, : clip.n_tokens])
        z_hat = z.clone()
        z_hat[:, : clip.n_tokens] = lens.sae.decode(change(f.clone()))
        return f[0], clip.classify(z, head).softmax(1)[0], clip.classify(z_hat, head).softmax(1)[0]


def close(values: list, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(values), wanted, atol=1e-4, rtol=1e-3)


def test_the_kernel_is_what_its_source_says() -> None:
    source = (FOLDER / "kernel.wat").read_text("utf-8")
    assert wat2wasm(source) == (FOLDER / "kernel.wasm").read_bytes(), "python -m recipes.kernel"


def test_latents_and_answers_are_those_of_torch(engine, lenses) -> None:
    for number, (task, lens) in enumerate(lenses.items()):
        pictures = World(task, "test", 20).batch(ROWS)
        for picture in pictures:
            found = look(engine, picture.permute(1, 2, 0).numpy())
            assert found["picture"] == picture.permute(1, 2, 0).flatten().tolist()
            seen = engine.evaluate(SEE, {"id": found["id"], "task": number})
            for one, model in zip(seen, lens.models, strict=True):
                f, said, decoded = expected(lens, model, picture)
                error = (dense(one, tuple(f.shape)) - f).abs().max() / f.max()
                assert error < 1e-3
                close(one["said"], said)
                close(one["decoded"], decoded)


def test_in_other_browsers_too(bundle: Path, lenses, other_browser) -> None:
    opened(other_browser, bundle)
    for number, (task, lens) in enumerate(lenses.items()):
        picture = World(task, "test", 20).batch(ROWS[:1])[0]
        found = look(other_browser, picture.permute(1, 2, 0).numpy())
        seen = other_browser.evaluate(SEE, {"id": found["id"], "task": number})
        for one, model in zip(seen, lens.models, strict=True):
            f, said, decoded = expected(lens, model, picture)
            assert (dense(one, tuple(f.shape)) - f).abs().max() / f.max() < 1e-3
            close(one["said"], said)
            close(one["decoded"], decoded)


def test_without_simd_the_same_in_javascript(bundle, engine, lenses) -> None:
    live = read_shard(bundle / "live.js") | {"wasm": "AAAA"}
    files = range(read_shard(bundle / "index.js")["live"]["files"])
    weights = [read_shard(bundle / f"weights-{n}.js")["codes"] for n in files]
    picture = World("flowers", "test", 20).batch([2])[0].permute(1, 2, 0).numpy()
    with_simd = engine.evaluate(SEE, {"id": look(engine, picture)["id"], "task": 1})
    engine.evaluate(ENGINE, live | {"weights": weights})
    plain = engine.evaluate(SEE, {"id": look(engine, picture)["id"], "task": 1})
    for a, b in zip(with_simd, plain, strict=True):
        close(a["said"], torch.tensor(b["said"]))


def test_switching_and_adding_latents_is_decoding_others(engine, lenses) -> None:
    picture = World("flowers", "test", 20).batch([1])[0]
    id_ = look(engine, picture.permute(1, 2, 0).numpy())["id"]
    lens = lenses["flowers"]
    strongest = expected(lens, "CLIP", picture)[0].sum(0).topk(2).indices.tolist()
    factors, added = [[strongest[0], 0], [strongest[1], 2.5]], [[7, 1.5]]
    for patches in (None, [0, 30, 31, 195]):
        rows = torch.zeros(197, dtype=torch.bool)
        rows[[p + 1 for p in patches] if patches else slice(None)] = True

        def change(f: torch.Tensor, rows: torch.Tensor = rows) -> torch.Tensor:
            for latent, factor in factors:
                f[:, rows, latent] *= factor
            rows = rows.clone()
            rows[0] = False  # what is added is added to patches
            f[:, rows, 7] += 1.5
            return f

        asked = {"id": id_, "task": 1, "factors": factors, "added": added, "patches": patches}
        said = engine.evaluate("async (x) => (await ask('steer', x)).map((p) => [...p])", asked)
        for probabilities, model in zip(said, lens.models, strict=True):
            close(probabilities, expected(lens, model, picture, change)[2])


def test_names_of_ones_own_make_a_head(engine, lenses, clip) -> None:
    picture = World("objects", "test", 20).batch([3])[0]
    id_ = look(engine, picture.permute(1, 2, 0).numpy())["id"]
    names = ["cat", "Red car!", "owl in the snow"]
    (one,) = engine.evaluate(SEE, {"id": id_, "task": 0, "names": names})
    head = clip.text_features(names, World("objects", "test", 1).task.templates)
    with torch.no_grad():
        wanted = clip.classify(clip.tokens(clip.preprocess(picture[None])), head).softmax(1)[0]
    close(one["said"], wanted)
    with pytest.raises(Exception, match="does not know the word “zebra”"):
        engine.evaluate(SEE, {"id": id_, "task": 0, "names": ["cat", "zebra"]})


@pytest.mark.parametrize("size", [(112, 112), (40, 200), (222, 111), (7, 5), (1, 1), (500, 700)])
def test_pictures_are_cut_and_scaled_as_by_the_library(engine, size) -> None:
    """Where bicubic overshoots white or black, Pillow's order of passes decides, and it depends on
    the shape: 18 levels at most, in noise."""
    height, width = size
    rng = np.random.default_rng(0)
    pixels = rng.integers(70, 186, (height, width, 3), dtype=np.uint8)
    found = np.array(look(engine, pixels)["picture"]).reshape(112, 112, 3)
    wanted = square(Image.fromarray(pixels), 112).permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).max() <= 1


def test_what_is_transparent_is_white(engine) -> None:
    pixels = np.full((112, 112, 4), (200, 0, 0, 51), np.uint8)
    assert look(engine, pixels)["picture"][:3] == [244, 204, 204]


def test_the_fewest_latents_are_searched_and_compared_with_chance(engine, lenses) -> None:
    picture = World("flowers", "test", 20).batch([0])[0]
    id_ = look(engine, picture.permute(1, 2, 0).numpy())["id"]
    found = engine.evaluate(
        """async (x) => { const a = await ask("fewest", x);
        return { ...a, steps: a.steps.map((s) => ({ off: s.off, said: [...s.said] })) }; }""",
        {"id": id_, "task": 1, "model": 1},
    )
    lens, answer = lenses["flowers"], found["answer"]
    for step in found["steps"]:

        def without(f: torch.Tensor, off: list[int] = step["off"]) -> torch.Tensor:
            f[..., off] = 0
            return f

        close(step["said"], expected(lens, "MaPLe", picture, without)[2])
    levels = [step["said"][answer] for step in found["steps"]]
    assert levels == sorted(levels, reverse=True)
    assert found["random"][1] == 20


def test_why_is_what_falls_when_it_is_taken_away(engine, lenses) -> None:
    picture = World("objects", "test", 20).batch([4])[0]
    id_ = look(engine, picture.permute(1, 2, 0).numpy())["id"]
    asked = {"id": id_, "task": 0, "model": 0, "label": 2}
    script = (
        "async (x) => { const a = await ask('why', x); return {...a, patches: [...a.patches]}; }"
    )
    found = engine.evaluate(script, asked)
    lens = lenses["objects"]
    usual = expected(lens, "CLIP", picture)[2][2]
    assert found["all"] == pytest.approx(float(usual), abs=1e-4)
    latent, fall = found["latents"][0]  # the one that matters most

    def off(f: torch.Tensor) -> torch.Tensor:
        f[..., latent] = 0
        return f

    assert fall == pytest.approx(
        float(usual - expected(lens, "CLIP", picture, off)[2][2]), abs=1e-4
    )

    def blank(f: torch.Tensor) -> torch.Tensor:
        f[:, 101] = 0
        return f

    fall = usual - expected(lens, "CLIP", picture, blank)[2][2]
    assert found["patches"][100] == pytest.approx(float(fall), abs=1e-4)


def test_a_picture_is_remembered_however_long_one_draws(engine) -> None:
    picture = World("objects", "test", 20).batch([3])[0].permute(1, 2, 0).numpy()
    id_ = look(engine, picture)["id"]
    before = engine.evaluate(SEE, {"id": id_, "task": 0})
    drawn = engine.evaluate(
        """async () => {
          const pixels = new Uint8ClampedArray(4 * 112 * 112), ids = [];
          for (let i = 0; i < 70; i++) {
            const given = { pixels, width: 112, height: 112, passing: i > 2 };
            ids.push((await ask("look", given)).id);
          }
          return ids;
        }"""
    )
    for id_again in (id_, drawn[0], drawn[-1]):
        engine.evaluate(SEE, {"id": id_again, "task": 0})
    assert engine.evaluate(SEE, {"id": id_, "task": 0}) == before
    with pytest.raises(Exception, match="was forgotten"):
        engine.evaluate(SEE, {"id": drawn[10], "task": 0})


def test_why_a_page_cannot_compute_is_said(clip, sae, monkeypatch) -> None:
    assert unfit(clip, sae) == ""
    assert "activation topk" in unfit(clip, SAE(192, 64, "topk", k=4))
    assert unfit(clip, SAE(192, 64, "batchtopk", k=4)) == ""
    monkeypatch.setattr("patchsae_lib.explorer.live.LARGEST", LARGEST / 100)
    assert unfit(clip, sae) == "the models have 9 MB, and a page takes 0"


def test_weights_come_in_files_below_a_megabyte(bundle: Path) -> None:
    live, about = (read_shard(bundle / f"{name}.js") for name in ("index", "live"))
    files = sorted(bundle.glob("weights-*.js"))
    assert len(files) == live["live"]["files"] == -(-about["about"]["numbers"] // PER_FILE)
    assert max(file.stat().st_size for file in files) < 1e6
    assert sum(file.stat().st_size for file in files) < 12e6
    spoken_names = [task["names"] for task in about["about"]["tasks"]]
    assert spoken_names[1] == spoken(World("flowers", "test", 1).class_names)


def test_the_kernel_answers_what_the_page_does(engine, lenses) -> None:
    steering = Steering(lenses)
    rng = np.random.default_rng(1)
    pixels = rng.integers(70, 186, (130, 112, 4), dtype=np.uint8)
    in_page = look(engine, pixels)
    about = {"width": 112, "height": 130}
    in_kernel = steering.answer("look", about, [memoryview(pixels.tobytes())])
    picture = np.frombuffer(base64.b64decode(in_kernel["picture"]), np.uint8)
    assert np.abs(picture.astype(int) - in_page["picture"]).max() <= 1

    picture = World("flowers", "test", 20).batch([6])[0].permute(1, 2, 0).numpy()
    opaque = np.concatenate([picture, np.full_like(picture[..., :1], 255)], -1)
    asked = {"id": look(engine, picture)["id"], "task": 1, "model": 1, "label": 2}
    here = steering.answer("look", {"width": 112, "height": 112}, [opaque.tobytes()])
    mine = asked | {"id": here["id"]}
    seen = steering.answer("see", mine, [])
    for a, b in zip(engine.evaluate(SEE, asked), seen, strict=True):
        assert a["starts"] == b["code"]["starts"]
        assert a["latents"] == b["code"]["latents"]
        close(a["values"], torch.tensor(b["code"]["values"]))
        close(a["decoded"], torch.tensor(b["decoded"]))
    latent = seen[0]["code"]["latents"][0]
    change = {
        "factors": [[latent, 3]],
        "added": [[5, 1]],
        "patches": [1, 2],
        "names": ["a", "red"],
    }
    steer = "async (x) => (await ask('steer', x)).map((p) => [...p])"
    for a, b in zip(
        engine.evaluate(steer, asked | change), steering.answer("steer", mine | change, []),
        strict=True,
    ):  # fmt: skip
        close(a, torch.tensor(b))
    fewest = """async (x) => (await ask("fewest", x)).steps.map((s) => s.off)"""
    found = steering.answer("fewest", mine, [])
    assert engine.evaluate(fewest, asked) == [step["off"] for step in found["steps"]]
    why = "async (x) => { const a = await ask('why', x); return [[...a.patches], a.latents]; }"
    patches, latents = engine.evaluate(why, asked)
    found = steering.answer("why", mine, [])
    close(patches, torch.tensor(found["patches"]))
    assert latents[0][0] == found["latents"][0][0]
    with pytest.raises(ValueError, match="was forgotten"):
        steering.answer("see", mine | {"id": 99}, [])


# --- in the explorer -----------------------------------------------------------------------------


def put(bundle: Path, root: Path, places: list[dict]) -> str:
    """A page with explorers of the bundle, opened from the disk."""
    book, static = Path(__file__).parents[1] / "book", root / "_static"
    (static / "explorer").mkdir(parents=True)
    module = (FOLDER / "explorer.mjs").read_text("utf-8")
    (static / "explorer/explorer.js").write_text(classic_script(module), "utf-8")
    shutil.copy(FOLDER / "explorer.css", static / "explorer")
    shutil.copy(book / "_static/book.js", static)
    shutil.copytree(bundle, static / "explorer/data")
    states = [json.dumps({"bundle": "data"} | state) for state in places]
    divs = "".join(f"<div class='patchsae-explorer' data-state='{x}'></div>" for x in states)
    page = root / "page.html"
    page.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>
        <script src="_static/book.js"></script>{divs}</html>"""
    )
    return page.as_uri()


def ready(page, address: str, n: int = 1) -> None:
    page.goto(address)
    page.locator(".patchsae-explorer[data-ready=true]").nth(n - 1).wait_for()


def values(view) -> list[str]:
    return view.locator(".bars.now .value").all_inner_texts()


def test_a_slider_moves_the_answer_and_the_address(bundle, tmp_path, page) -> None:
    address = put(bundle, tmp_path, [{"linked": True}])
    ready(page, f"{address}#latent=3&task=flowers&image=1")
    view = page.locator(".view.steer")
    assert "MB" in view.locator(".begin").inner_text()
    view.locator(".begin").click()
    sliders = view.locator(".sliders input")
    sliders.first.wait_for()
    before = values(view)
    sliders.first.fill("0")
    page.wait_for_function(
        "old => [...document.querySelectorAll('.bars.now .value')].map(x => x.innerText)"
        ".join() != old",
        arg=",".join(before),
    )
    changed = values(view)
    latent = sliders.first.get_attribute("data-latent")
    assert page.url.endswith(f"&switches={latent}%3A0")
    view.get_by_role("button", name="add the chosen latent").click()
    page.wait_for_function("() => location.hash.includes('%2B3%3A1')")
    view.get_by_label("added latent 3").wait_for()
    view.get_by_role("button", name="as it was").click()
    page.wait_for_function("() => !location.hash.includes('switches')")
    assert values(view) == before
    page.goto("about:blank")
    ready(page, f"{address}#latent=3&task=flowers&image=1&switches={latent}%3A0")
    page.wait_for_function(
        "v => [...document.querySelectorAll('.bars.now .value')].map(x => x.innerText)"
        ".join() == v",
        arg=",".join(changed),
    )
    assert page.trouble == []


def test_a_file_a_drawing_and_a_wrong_word(bundle, tmp_path, page) -> None:
    ready(page, f"{put(bundle, tmp_path, [{'linked': True}])}#latent=3&task=flowers")
    pictures = page.locator(".picture-view")
    Image.new("RGB", (60, 40), "red").save(tmp_path / "mine & <b>yours.png")
    pictures.locator("input[type=file]").set_input_files(tmp_path / "mine & <b>yours.png")
    pictures.locator(".thumbs button:nth-child(4)[aria-pressed=true]").wait_for()
    assert pictures.locator(".lists .chips button").count() >= 1
    (tmp_path / "notes.txt").write_text("dear diary")
    pictures.locator("input[type=file]").set_input_files(tmp_path / "notes.txt")
    pictures.get_by_text("notes.txt cannot be read as a picture.").wait_for()

    draw = page.locator(".view.draw")
    draw.locator(".begin").click()
    draw.get_by_text("MaPLe:").wait_for()
    assert pictures.locator(".thumbs button").count() == 5
    draw.get_by_label("object", exact=True).select_option("boat")
    draw.get_by_role("button", name="put it").click()
    canvas = draw.locator("canvas")
    canvas.focus()
    before = canvas.evaluate("c => c.toDataURL()")
    page.keyboard.press("ArrowLeft")
    assert canvas.evaluate("c => c.toDataURL()") != before
    assert "latent=3&" in page.url  # and the arrow is not that of latents
    assert pictures.locator(".thumbs button").count() == 5  # the same drawing, not another one

    steer = page.locator(".view.steer")
    steer.locator(".sliders input").first.wait_for()
    names = steer.get_by_label("names of classes, with commas between")
    names.fill("cat, zebra")
    names.press("Enter")
    steer.get_by_text("CLIP does not know the word “zebra”").wait_for()
    names.fill("boat, owl")
    names.press("Enter")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.bars.now .name')].map(x => x.innerText).sort()"
        ".join() == 'boat,owl'"
    )
    assert [t for t in page.trouble if "notes" not in t] == []


def test_a_large_photograph_is_decoded_small_and_upright(bundle, tmp_path, page) -> None:
    page.add_init_script("""
        window.sizes = [];
        const made = createImageBitmap;
        window.createImageBitmap = async (...given) => {
          const bitmap = await made(...given);
          sizes.push(bitmap.width * bitmap.height);
          return bitmap;
        };""")
    ready(page, f"{put(bundle, tmp_path, [{'linked': True}])}#latent=3&task=flowers")
    photograph, turned = Image.new("RGB", (3000, 2000), "blue"), Image.Exif()
    photograph.paste("red", (0, 0, 1500, 2000))
    turned[0x112] = 6  # the left is the top
    photograph.save(tmp_path / "large.jpg", exif=turned)
    pictures = page.locator(".picture-view")
    pictures.locator("input[type=file]").set_input_files(tmp_path / "large.jpg")
    shown = pictures.locator(".thumbs button:nth-child(4)[aria-pressed=true] canvas")
    shown.wait_for()
    assert 10**6 < max(page.evaluate("sizes")) < 4 * 10**6  # of 6 million
    ends = """c => [0.2, 0.8].map((y) => [...c.getContext("2d").getImageData(
        c.width / 2, c.height * y, 1, 1).data].map((x) => Math.round(x / 255)))"""
    assert shown.evaluate(ends) == [[1, 0, 0, 1], [0, 0, 1, 1]]


def test_the_camera_is_asked_for_by_a_click_and_let_go(bundle, tmp_path, page) -> None:
    page.add_init_script(
        """window.streams = [];
        navigator.mediaDevices.getUserMedia = async () => {
          const canvas = document.createElement("canvas");
          Object.assign(canvas, { width: 64, height: 48 });
          const brush = canvas.getContext("2d");
          setInterval(() => { brush.fillStyle = "red"; brush.fillRect(0, 0, 64, 48); }, 20);
          streams.push(canvas.captureStream());
          return streams.at(-1);
        };"""
    )
    ready(page, f"{put(bundle, tmp_path, [{'linked': True}])}#task=flowers")
    pictures = page.locator(".picture-view")
    assert page.evaluate("streams.length") == 0
    pictures.get_by_role("button", name="camera").click()
    pictures.page.get_by_role("button", name="take it").click()
    pictures.locator(".thumbs button:nth-child(4)[aria-pressed=true]").wait_for()
    live = "streams.flatMap((s) => s.getTracks()).filter((t) => t.readyState === 'live').length"
    assert (page.evaluate("streams.length"), page.evaluate(live)) == (1, 0)
    assert pictures.locator(".lists .chips button").count() >= 1
    assert page.trouble == []


def test_names_and_probabilities_belong_together(bundle, tmp_path, page) -> None:
    address = put(bundle, tmp_path, [{"linked": True}])
    ready(page, f"{address}#latent=3&task=flowers&names=boat%2C%20owl")
    view = page.locator(".view.steer")
    view.locator(".sliders input").first.wait_for()
    shown = "() => [...document.querySelectorAll('.bars.now .name')].map(x => x.innerText)"
    assert sorted(page.evaluate(f"({shown})()")) == ["boat", "owl"]
    names = view.get_by_label("names of classes, with commas between")
    names.fill("cat, zebra")
    names.press("Enter")
    view.get_by_text("does not know the word “zebra”").wait_for()
    before = values(view)
    page.locator(".view.map").click()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="Latent 4", exact=True).wait_for()
    assert sorted(page.evaluate(f"({shown})()")) == ["boat", "owl"]  # still what was computed
    assert values(view) == before
    page.evaluate("location.hash = '#latent=3&task=flowers'")
    flowers = World("flowers", "test", 1).class_names
    page.wait_for_function(f"all => ({shown})().every(name => all.includes(name))", arg=flowers)
    assert names.input_value() == ""
    view.get_by_label("brush patches").check()
    canvas = view.locator("canvas").first
    canvas.focus()
    latents = view.locator(".sliders button").all_inner_texts()
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press(" ")
    page.locator(".unseen", has_text="row 2, column 1, brushed").wait_for(state="attached")
    page.wait_for_function(  # the latents of this patch, and no longer those of the picture
        "old => [...document.querySelectorAll('.sliders button')].map(x => x.innerText)"
        ".join() != old",
        arg=",".join(latents),
    )
    view.get_by_label("brush patches").uncheck()
    page.wait_for_function(
        "old => [...document.querySelectorAll('.sliders button')].map(x => x.innerText)"
        ".join() == old",
        arg=",".join(latents),
    )
    assert page.trouble == []


def test_the_picture_follows_a_latent_that_is_chosen_elsewhere(bundle, tmp_path, page) -> None:
    strongest = array_of(read_shard(bundle / "task-1.js")["strongest"], "<i2")
    first, second = (int(np.flatnonzero(strongest == image)[-1]) for image in (1, 2))
    ready(page, f"{put(bundle, tmp_path, [{'linked': True}])}#latent={first}&task=flowers")
    assert "image" not in page.url  # what an address says is shown
    number = page.get_by_label("latent", exact=True)
    number.fill(str(second))
    number.press("Enter")
    page.wait_for_function("location.hash.endsWith('&image=2')")
    chips = page.locator(".picture-view .chips button.latent")
    latents = [int(text) for text in chips.all_inner_texts()]
    away = next(i for i, latent in enumerate(latents) if strongest[latent] not in (-1, 2))
    chips.nth(away).click()
    page.wait_for_function("n => location.hash.includes(`latent=${n}&`)", arg=latents[away])
    page.wait_for_timeout(300)
    assert page.url.endswith("&image=2")  # with the picture it was found in
    assert page.trouble == []


def test_silent_latents_are_passed_over_and_a_step_is_no_entry_of_the_history(
    bundle, tmp_path, page
) -> None:
    address = put(bundle, tmp_path, [{"linked": True}])
    data = tmp_path / "_static/explorer/data"
    (at,) = [
        n
        for n, column in enumerate(read_shard(data / "index.js")["columns"])
        if column["name"] == "frequency"
    ]
    kind = read_shard(data / "index.js")["columns"][at]["type"]
    frequency = array_of(read_shard(data / f"column-{at}.js")["values"], kind).copy()
    frequency[[4, 5, 0]] = 0
    write_shard(data / f"column-{at}.js", {"values": base64_of(frequency, kind)})
    ready(page, f"{address}#latent=3&task=flowers")
    before = page.evaluate("history.length")
    for key, latent in (("ArrowRight", 6), ("ArrowRight", 7), ("ArrowLeft", 6), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        page.get_by_role("heading", name=f"Latent {latent}", exact=True).wait_for()
        page.wait_for_timeout(450)  # slower than steps that share an entry anyway
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.get_by_role("heading", name="Latent 1", exact=True).wait_for()  # 0 is silent
    assert page.evaluate("history.length") == before
    assert page.trouble == []


def test_a_list_of_latents_is_in_the_address(bundle, tmp_path, page) -> None:
    address = put(bundle, tmp_path, [{"linked": True}])
    ready(page, f"{address}#latent=3&task=flowers&marked=5%2C99999999%2C%3Cb%3E&masks=false")
    found, star = (
        page.locator(".found"),
        page.locator(".view.latent .tools button", has_text="list"),
    )
    found.get_by_text("1 latent on your list").wait_for()
    assert not page.get_by_label("masks", exact=True).is_checked()
    star.click()
    found.get_by_text("2 latents on your list").wait_for()
    assert "marked=5%2C3&masks=false" in page.url
    star.click()
    found.get_by_text("1 latent on your list").wait_for()
    assert page.trouble == []


def test_the_strongest_picture_of_a_latent() -> None:
    def look(*models: list[tuple[int, int]]) -> dict:
        return {
            "models": [
                {
                    "full": 2.0,
                    "latents": base64_of([latent for latent, _ in model], "<u2"),
                    "levels": base64_of([level for _, level in model], "<u1"),
                }
                for model in models
            ]
        }

    looks = [
        look([(0, 255), (1, 10)], [(1, 10)]),
        look([(1, 100), (1, 100)], []),  # two tokens
        look([], [(1, 140), (3, 1)]),
    ]
    assert strongest_pictures(looks, 5).tolist() == [0, 1, -1, 2, -1]


def test_two_explorers_share_one_worker(bundle, tmp_path, page) -> None:
    page.add_init_script(
        """window.workers = 0;
        window.Worker = class extends Worker { constructor(...x) { super(...x); workers++; } };"""
    )
    ready(page, put(bundle, tmp_path, [{"task": "flowers"}, {"task": "grey"}]), 2)
    for n in range(2):
        view = page.locator(".view.steer").nth(n)
        if view.locator(".begin").is_visible():
            view.locator(".begin").click()
        view.locator(".sliders input").first.wait_for()
    assert page.evaluate("workers") == 1
    assert page.trouble == []


def test_the_explorer_steers_and_draws_in_other_browsers(bundle, tmp_path, other_browser) -> None:
    other_browser.trouble.clear()
    address = put(bundle, tmp_path, [{"linked": True}])
    other_browser.goto(f"{address}#latent=3&task=flowers&image=1")
    other_browser.wait("() => document.querySelector('.patchsae-explorer[data-ready=true]')")
    other_browser.evaluate("() => document.querySelector('.view.steer .begin').click()")
    other_browser.wait("() => document.querySelector('.view.steer .sliders input')")
    shown = "[...document.querySelectorAll('.bars.now .value')].map((x) => x.innerText).join()"
    before = other_browser.evaluate(f"() => {shown}")
    other_browser.evaluate("""() => {
      const slider = document.querySelector('.view.steer .sliders input');
      slider.value = 0; slider.dispatchEvent(new Event('input')); }""")
    other_browser.wait(f"(before) => {shown} !== before", before)
    assert "&switches=" in other_browser.evaluate("() => location.hash")
    other_browser.evaluate("() => document.querySelector('.view.draw .begin').click()")
    other_browser.wait(
        "() => document.querySelector('.view.draw .about').innerText.includes('MaPLe:')"
    )
    assert other_browser.trouble == []


def test_a_page_without_models_says_how_to_have_them(bundle, tmp_path, page) -> None:
    without = tmp_path / "large"
    shutil.copytree(bundle, without)
    index = read_shard(without / "index.js")
    write_shard(without / "index.js", index | {"live": {"why": "the models have 600 MB"}})
    ready(page, put(without, tmp_path / "site", [{"task": "flowers"}]))
    assert page.locator(".view.steer").count() == 0
    note = page.locator(".picture-view").get_by_text("the models have 600 MB")
    assert "JupyterLab" in note.inner_text()


def test_weights_that_are_missing_are_a_message(bundle, tmp_path, page) -> None:
    address = put(bundle, tmp_path, [{"task": "flowers"}])
    (tmp_path / "_static/explorer/data/weights-1.js").unlink()
    ready(page, address)
    page.locator(".view.steer .begin").click()
    page.get_by_text("weights-1.js did not load").wait_for()


def test_a_glimpse_shows_the_strongest_latents_of_a_patch(
    bundle, sae, clip, lenses, tmp_path, page
) -> None:
    world = World("objects", "test", 20)
    task = Task("objects", "Objects", world.class_names, ["CLIP"], world, ROWS, [], [])
    folder = tmp_path / "data"
    shutil.copytree(bundle, folder)
    write_glimpse(folder, task, lenses["objects"])
    address = put(folder, tmp_path, [{"views": ["glimpse"]}])
    ready(page, address)
    canvas = page.locator(".glimpse > canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 4.5 / 14, box["y"] + box["height"] * 6.5 / 14)
    patch = 6 * 14 + 4
    with torch.no_grad():  # without names all pictures are as good: the first one is shown
        z = clip.tokens(clip.preprocess(world.batch(ROWS[:1])))
        values, latents = sae.encode(z)[0, 1 + patch].topk(3)
    assert values.min() > 0
    titles = page.locator(".glimpses .strip-title a")
    page.wait_for_function(
        "t => document.querySelector('.glimpses .strip-title a').innerText == t",
        arg=f"latent {latents[0]}",
    )
    assert titles.all_inner_texts() == [f"latent {n}" for n in latents.tolist()]
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    with torch.no_grad():
        first = int(sae.encode(z)[0, patch].argmax())
    page.wait_for_function(
        "t => document.querySelector('.glimpses .strip-title a').innerText == t",
        arg=f"latent {first}",
    )
    assert page.trouble == []


def test_a_glimpse_begins_where_names_are_right(bundle, lenses, tmp_path, monkeypatch) -> None:
    world, rows = World("objects", "test", 20), range(20)
    truth, parts = world_truth(world, rows), [x[0] == "part" for x in CONCEPTS]
    part = int((truth.sum((0, 1)) * torch.tensor(parts)).argmax())  # in no picture's corner
    names = {"name": spoken_concept(CONCEPTS[part]), "found": 1}
    table = pd.DataFrame(names, range(lenses["objects"].sae.d_sae))
    monkeypatch.setattr("patchsae_lib.explorer.glimpse.properties", lambda *_: table)
    task = Task("objects", "Objects", world.class_names, ["CLIP"], world, rows, [], [])
    folder = tmp_path / "data"
    shutil.copytree(bundle, folder)
    write_glimpse(folder, task, lenses["objects"])
    shows = truth[..., part]
    assert not shows[:, 0].any()
    assert shows[shows.sum(1).argmax(), read_shard(folder / "glimpse.js")["begin"]]


IN_JUPYTER = """(module) => {
  const state = { task: "flowers", live: true, views: ["picture", "steer"] }, told = {};
  const text = (view) => btoa(String.fromCharCode(...new Uint8Array(view.buffer)));
  const model = {
    get: (name) => state[name], save_changes() {},
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      (told[`change:${name}`] ?? []).forEach((tell) => tell());
    },
    on: (event, tell) => { (told[event] ??= []).push(tell); },
    off: () => {},
    async send(message, _, buffers = []) {
      const answer = await window.kernel(message, buffers.map(text));
      told["msg:custom"].forEach((tell) => tell(answer));
    },
  };
  const url = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  return import(url).then(({ default: { render } }) => {
    render({ model, el: document.body.appendChild(document.createElement("div")) });
  });
}"""


def test_models_too_large_for_a_page_are_asked_through_the_kernel(
    bundle, lenses, tmp_path, page
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(bundle, folder)
    index = read_shard(folder / "index.js")
    write_shard(folder / "index.js", index | {"live": {"why": "the models have 600 MB"}})
    kernel = Kernel(folder, lenses)
    asked = []

    def answer(message: dict, buffers: list[str]) -> dict:
        asked.append(message.get("does"))
        return kernel.answer(message, [base64.b64decode(x) for x in buffers])

    page.expose_function("kernel", answer)
    page.goto("about:blank")
    page.evaluate(IN_JUPYTER, (FOLDER / "explorer.mjs").read_text("utf-8"))
    view = page.locator(".view.steer")
    view.get_by_role("button", name="ask the kernel").click()
    view.locator(".sliders input").first.wait_for()
    before = values(view)
    view.locator(".sliders input").first.fill("0")
    page.wait_for_function(
        "old => [...document.querySelectorAll('.bars.now .value')].map(x => x.innerText)"
        ".join() != old",
        arg=",".join(before),
    )
    assert {"look", "see", "steer"} <= set(asked)
    assert page.trouble == []

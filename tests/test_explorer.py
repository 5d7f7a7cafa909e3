"""The explorer's data, and the explorer in a real browser: in the book and in JupyterLab."""

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from test_localization import identity
from test_study import LAND

from patchsae_lib.ablation import mask_latents, removal_effects
from patchsae_lib.explorer import (
    Explorer,
    Latents,
    Lens,
    Task,
    describe,
    studies,
    write_bundle,
    write_tasks,
)
from patchsae_lib.explorer.bundle import PER_FILE, PER_SHARD, UNFINISHED
from patchsae_lib.explorer.effects import class_effects, write_effects
from patchsae_lib.explorer.examples import histogram, nearest
from patchsae_lib.explorer.files import codes, nibbles, number_type, read_shard, small, write_shard
from patchsae_lib.explorer.studies import write_latents
from patchsae_lib.explorer.synonyms import WRITTEN, synonyms
from patchsae_lib.explorer.widget import EXPLORER
from patchsae_lib.interop import load_clip
from patchsae_lib.latents import scan_tokens
from patchsae_lib.profiles import load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents
from patchsae_lib.splits import Split
from patchsae_lib.tokens import Tokens
from patchsae_lib.world import World
from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.truth import CONCEPTS, spoken

NAMES = ("<script>alert(1)</script>", '"quoted" & <b>bold</b>', "🦉" * 200)


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
    words = [NAMES[i % 2] for i in range(d)]
    numbers = {"frequency": np.linspace(0.5, 1, d), "mean": np.linspace(1, 2, d)}
    return pd.DataFrame(numbers | {"concept": words, "kind": "class"})


def latents_of(images, masks, **more) -> Latents:
    d = len(images)
    usual = {
        "near": torch.arange(1, d + 1)[:, None] % d,
        "cosine": torch.full((d, 1), 0.5),
        "levels": torch.zeros(3, d),
        "absent": torch.full((d, 3), -1),
        "counts": torch.zeros(d, 16, dtype=torch.long),
        "most": torch.zeros(d),
        "counted": 0,
        "directions": torch.eye(d, 4),
    }
    return Latents({"highest": images}, masks, **(usual | more))


def codes_of(f: torch.Tensor) -> dict:
    """Codes of the latents f (tokens, d) of a picture."""
    return codes(SparseLatents.from_dense(f[None]))


def decoded(text: str, dtype: str) -> list:
    return np.frombuffer(base64.b64decode(text), dtype).tolist()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Three latents, the last one silent, and a task of two pictures in two models."""
    images = torch.tensor([[7, 3], [3, -1], [-1, -1]])
    masks = torch.zeros(3, 2, 2, 2)
    masks[0, 0] = torch.tensor([[0.0, 0.25], [1.0, 4.0]])
    masks[1, 0, 0, 0] = 8.0
    levels = torch.tensor([[0.0, 1, 0], [2.0, 0, 0], [1.0, 0, 0]])
    directions = torch.tensor([[0.6, 0.8], [0.0, -2.0], [1.0, 0.0]])
    counts = torch.zeros(3, 16, dtype=torch.long)
    counts[0, 0], counts[0, 15] = 100, 1
    strong = {"counts": counts, "most": torch.tensor([0.5, 0, 0]), "counted": 200}
    shown = latents_of(images, masks, levels=levels, directions=directions, **strong)
    folder = write_bundle(tmp_path / "b", Plain(200), shown, table(3))
    f = torch.zeros(5, 3)  # CLS and four patches
    f[0, 2], f[1, 0], f[4, 1] = 1.0, 4.0, 2.0
    g = torch.zeros(5, 3)
    g[1, 0], g[2, 0] = 1.0, 1.0
    f_code, g_code = codes_of(f), codes_of(g)
    looks = [
        {"models": [f_code, g_code], "said": [[0.7, 0.3], [0.2, 0.8]]},
        {"models": [g_code, f_code], "said": [[0.1, 0.9], [0.6, 0.4]]},
    ]
    before_after = torch.tensor([[[3.0, 0, 0], [0, 1, 0]], [[1.0, 2, 0], [0, 1, 0]]])
    curves = [torch.full((2, 2, 2, 2), 0.25), torch.full((2, 2, 2, 2), 0.75)]
    seen_by = Plain(9), [3, 4], looks, before_after
    task = Task("t", NAMES[1], NAMES[:2], ("CLIP", "MaPLe"), *seen_by, (1, 2), curves, (3, 30))
    alone = [{"models": [f_code], "said": [[0.5, 0.5, 0.0]]}]
    first = Task("own", "Own", NAMES, ("CLIP",), Plain(9), [5], alone, [levels])
    write_tasks(folder, [first, task])
    effect = torch.tensor([[0.5, -0.1, -0.4], [0.01, 0.02, -0.03], [0, 0, 0]])
    write_effects(folder, effect, torch.tensor([0.45, 0.1, 0]))
    return folder


def test_a_bundle_holds_what_was_put_in(bundle: Path) -> None:
    index, shard = (read_shard(bundle / f"{name}.js") for name in ("index", "latents-0"))
    assert (index["version"], index["grid"], index["side"]) == (3, [2, 2], 16)
    assert index["examples"] == [["highest", 2]]
    assert decoded(index["labels"], "<i2") == [3 % 3, 7 % 3]  # pictures 3 and 7, now 0 and 1
    names = [column["name"] for column in index["columns"]]
    assert names == ["frequency", "mean", "concept", "kind"]
    assert decoded(read_shard(bundle / "column-0.js")["values"], "<f4") == [0.5, 0.75, 1]
    assert index["columns"][2]["names"] == list(NAMES[:2])
    assert decoded(read_shard(bundle / "column-2.js")["values"], "<i2") == [0, 1, 0]
    assert decoded(shard["images"], "<i4") == [1, 0, 0, -1, -1, -1]
    assert decoded(shard["full"], "<f4") == [4, 8, 0]
    assert decoded(shard["nearFirst"], "<i4") == [0, -1, 1]  # of latents 1, 2 and 0
    assert decoded(read_shard(bundle / "first.js")["values"], "<i4") == [1, 0, -1]
    packed = np.frombuffer(base64.b64decode(shard["masks"]), np.uint8)
    levels = np.stack([packed & 15, packed >> 4], 1).reshape(3, 2, 4)
    assert levels[0, 0].tolist() == [0, 4, 8, 15]  # 15 √(activation / 4), rounded
    assert levels[1, 0].tolist() == [15, 0, 0, 0]
    assert levels[2].sum() == 0
    assert decoded(shard["classes"], "<i2") == [1, 2, -1, 0, -1, -1, -1, -1, -1]
    assert decoded(shard["levels"], "<f4")[:4] == [2, 1, 0, 1]
    rows = decoded(read_shard(bundle / "directions-0.js")["decoder"], "<i1")
    assert rows == [95, 127, 0, -127, 127, 0]  # of the largest entry, 127


def test_tasks_hold_pictures_latents_and_classes(bundle: Path) -> None:
    index, task = (read_shard(bundle / f"{name}.js") for name in ("index", "task-1"))
    assert [t["name"] for t in index["tasks"]] == ["own", "t"]
    assert index["tasks"][1]["models"] == ["CLIP", "MaPLe"]
    assert decoded(task["labels"], "<i2") == [0, 1]
    assert np.allclose(decoded(task["said"][1], "<f4"), [0.2, 0.8, 0.6, 0.4])
    first = read_shard(bundle / "codes-1-0.js")["models"][0]
    assert first["full"] == 4
    assert decoded(first["starts"], "<u4") == [0, 1, 2, 2, 2, 3]
    assert decoded(first["latents"], "<u2") == [2, 0, 1]
    assert decoded(first["levels"], "<u1") == [round(255 / 2), 255, round(255 * 0.5**0.5)]
    of = read_shard(bundle / "class-1-0.js")
    assert decoded(of["latents"], "<i4") == [0, 1]  # of two, the third is not active
    assert [decoded(x, "<f4") for x in of["levels"]] == [[3, 0], [1, 2]]
    assert of["ks"] == [1, 2]
    assert set(decoded(of["shares"][1], "<u1")) == {191}
    assert "shares" not in read_shard(bundle / "class-0-0.js")
    write_tasks(bundle, [])
    assert not list(bundle.glob("c*s-*.js"))
    assert read_shard(bundle / "index.js")["tasks"] == []


def test_a_bundle_takes_the_place_of_the_last_one(bundle: Path) -> None:
    (bundle / "latents-9.js").write_text("stale")
    shown = latents_of(torch.tensor([[1]]), torch.ones(1, 1, 2, 2))
    write_bundle(bundle, Plain(9), shown, table(1)[["frequency"]], False)
    kinds = "column-0", "directions-0", "first", "index", "latents-0", "pictures-0"
    assert sorted(f.name for f in bundle.iterdir()) == [f"{kind}.js" for kind in kinds]
    assert decoded(read_shard(bundle / "index.js")["labels"], "<i2") == [-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_only_files_of_a_bundle_are_deleted(bundle: Path, tmp_path: Path) -> None:
    shown = latents_of(torch.tensor([[1]]), torch.ones(1, 1, 2, 2))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "index.js").write_text('patchsaeShard({"albums": 1});\n')
    for name in ("latents-0.js", "column-0.js", "my-notes.js"):
        (photos / name).write_text("dear diary")
        (bundle / f"my-{name}").write_text("dear diary")
    before = contents(photos)
    with pytest.raises(
        ValueError, match=r"photos holds no bundle: index\.js says no version\. Gi"
    ):
        write_bundle(photos, Plain(9), shown, table(1))
    (photos / "index.js").unlink()
    with pytest.raises(ValueError, match=r"photos holds no bundle: index\.js is not there\. Give"):
        write_bundle(photos, Plain(9), shown, table(1))
    for change in (lambda: describe(photos, table(1)), lambda: write_tasks(photos, [])):
        with pytest.raises(ValueError, match=r"photos holds no bundle: index\.js is not there$"):
            change()
    assert contents(photos) == {n: before[n] for n in before if n != "index.js"}
    (bundle / "index.js").write_text('patchsaeShard({"version": 1});\n')  # an earlier one
    with pytest.raises(ValueError, match=r"holds a bundle of version 1, not 3$"):
        write_tasks(bundle, [])
    write_bundle(bundle, Plain(9), shown, table(1))
    assert sum(file.name.startswith("my-") for file in bundle.iterdir()) == 3


def test_a_bundle_that_was_not_finished_may_be_written_again(tmp_path: Path) -> None:
    shown = latents_of(torch.tensor([[1]]), torch.ones(1, 1, 2, 2))

    class Broken(Plain):
        def batch(self, indices):
            raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            write_bundle(tmp_path / "b", Broken(9), shown, table(1))
        assert list(contents(tmp_path / "b")) == [UNFINISHED]
    write_bundle(tmp_path / "b", Plain(9), shown, table(1))
    assert UNFINISHED not in contents(tmp_path / "b")


def test_what_is_known_may_be_added_later(bundle: Path) -> None:
    before = read_shard(bundle / "index.js")
    describe(bundle, table(3)[["mean"]].assign(iou=0.25))
    after = read_shard(bundle / "index.js")
    assert [column["name"] for column in after["columns"]] == ["mean", "iou"]
    assert decoded(read_shard(bundle / "column-1.js")["values"], "<f4") == [0.25] * 3
    assert len(list(bundle.glob("column-*.js"))) == 2
    assert {**after, "columns": 0} == {**before, "columns": 0}
    with pytest.raises(ValueError, match="4 rows for the 3 latents"):
        describe(bundle, table(4))
    wordy = pd.DataFrame({"hover": [str(i) for i in range(32_769)]})
    d = len(wordy)
    shown = latents_of(torch.zeros(d, 1).long(), torch.ones(d, 1, 2, 2))
    write_bundle(bundle, Plain(9), shown, wordy)
    (entry,) = read_shard(bundle / "index.js")["columns"]
    assert entry["type"] == "int32"
    assert decoded(read_shard(bundle / "column-0.js")["values"], "<i4")[-1] == d - 1


def test_files_have_as_much_as_they_say(tmp_path: Path) -> None:
    d = PER_SHARD + 1
    images = torch.arange(d * 4).reshape(d, 4) % (PER_FILE + 1)
    shown = latents_of(images, torch.rand(d, 4, 2, 2))
    folder = write_bundle(tmp_path, Plain(400), shown, table(d))
    assert len(decoded(read_shard(folder / "latents-0.js")["full"], "<f4")) == PER_SHARD
    assert len(decoded(read_shard(folder / "latents-1.js")["full"], "<f4")) == 1
    assert (folder / "pictures-1.js").is_file()


def test_the_truth_of_a_picture_is_with_it(tmp_path: Path) -> None:
    world = World("world", "test", 20)
    shown = latents_of(torch.tensor([[7]]), torch.ones(1, 1, 14, 14))
    columns = pd.DataFrame({"frequency": [1.0]})
    folder = write_bundle(tmp_path, world, shown, columns)
    concepts = read_shard(folder / "index.js")["concepts"]
    (truth,) = read_shard(folder / "pictures-0.js")["truth"]
    number = concepts.index(["class", world.class_names[7]])
    bits = np.unpackbits(np.array(decoded(truth[str(number)], "<u1"), np.uint8), bitorder="little")
    picture = world.picture(7)
    of_class = np.array([r.cls == world.class_names[7] for r in picture.regions])[picture.ids]
    size = picture.ids.shape[0] // 14
    share = of_class.reshape(14, size, 14, size).mean((1, 3))
    assert (bits[:196].reshape(14, 14) == (share >= 0.5)).all()


def test_a_study_writes_a_bundle_of_all_its_latents(tmp_path: Path) -> None:
    sae, clip = SAE(4, 8).requires_grad_(False), SimpleNamespace(grid=(2, 3))
    split = Split(clip, Plain(12), torch.arange(12) % 3, NAMES, ())
    z = torch.randn(12, 7, 4, generator=torch.Generator().manual_seed(0))
    split.tokens = Tokens.hold(z)
    counted = scan_tokens(sae, split.tokens, split.labels, NAMES)
    study = SimpleNamespace(sae=sae, train=split, table=counted, folder=tmp_path)
    bundle = write_latents(study, counted.frame()[["frequency"]])
    assert bundle == tmp_path / "explorer"
    index, first, shard = (read_shard(bundle / f"{x}.js") for x in ("index", "first", "latents-0"))
    assert (index["latents"], index["grid"], len(index["columns"])) == (8, [2, 3], 1)
    assert index["examples"] == [["highest", 9], ["quantiles", 3], ["random", 3]]
    number = split.labels.argsort(stable=True).argsort()  # ordered by class
    assert decoded(first["values"], "<i4") == number[counted.top_images[:, 0]].tolist()
    images = torch.tensor(decoded(shard["images"], "<i4")).view(8, 15)
    f = sae.encode(z)[number.argsort(), 1:].amax(1)  # of the renumbered pictures
    full = torch.stack([f[i[i >= 0], latent].max() for latent, i in enumerate(images)])
    assert decoded(shard["full"], "<f4") == pytest.approx(full.tolist(), rel=1e-3)


def test_pictures_are_made_small() -> None:
    uris, side = small(Plain(40).batch([37, 39]))
    assert (len(uris), side) == (2, 16)
    image = Image.open(io.BytesIO(base64.b64decode(uris[0].partition(",")[2])))
    assert (image.size, image.getpixel((3, 9))) == ((16, 16), (37, 37, 37))
    (uri,), side = small(torch.full((1, 3, 224, 224), 90, dtype=torch.uint8))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (side, image.size, image.getpixel((100, 100))) == (112, (112, 112), (90, 90, 90))


def test_two_numbers_in_a_byte() -> None:
    values = torch.arange(16.0)
    packed = np.frombuffer(base64.b64decode(nibbles(values)), np.uint8)
    assert np.stack([packed & 15, packed >> 4], 1).ravel().tolist() == list(range(16))


def test_a_histogram_counts_active_pictures_by_strength() -> None:
    levels = torch.tensor([[0.0, 1.6], [0.0, 0.05], [0.0, 0.0], [0.0, 0.85]])
    counts, most = histogram(levels)
    assert most.tolist() == pytest.approx([0, 1.6])
    assert counts[0].sum() == 0
    assert counts[1].nonzero()[:, 0].tolist() == [0, 8, 15]  # .05, .85 and 1.6 of 1.6


def test_synonyms_lead_to_names_of_the_world() -> None:
    table, names = synonyms(CONCEPTS), {name for _, name in CONCEPTS}
    assert {name for meant in table.values() for name in meant} <= names
    assert "owl" in table["bird"]
    assert [set(table[group]) for group in GROUPS] == [set(x) for x in GROUPS.values()]
    assert all(set(WRITTEN[word]) <= names for word in WRITTEN)  # none is misspelt
    assert not set(WRITTEN) & {name for kind, name in CONCEPTS if kind != "group"}
    assert synonyms([("class", "owl")]).keys() == {"bird", "animal"}
    assert synonyms([]) == {}


def test_numbers_of_latents_take_the_room_they_need() -> None:
    assert number_type(65_536) == ("uint16", "<u2")
    assert number_type(65_537) == ("uint32", "<u4")
    silent = codes_of(torch.zeros(3, 4))
    assert (silent["full"], decoded(silent["starts"], "<u4")) == (0.0, [0, 0, 0, 0])
    tiny = torch.tensor([[1.0, 1e-9]])
    assert decoded(codes_of(tiny)["levels"], "<u1") == [255, 1]  # active is never 0
    assert decoded(nibbles(torch.tensor([1.0, 2, 3])), "<u1") == [1 + 2 * 16, 3]


# --- what the kernel sees


@pytest.fixture(scope="module")
def lens() -> Lens:
    clip = load_clip(load_profile("smoke").model)
    generator = torch.Generator().manual_seed(0)
    sae = SAE(clip.d_vit, 64)
    for weight in (sae.W_enc, sae.W_dec):
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    world = World("objects", "test", 12)
    text = clip.text_features(world.class_names[:4], ["a {}"])
    pictures = world.batch(range(8))
    return Lens(sae, {"CLIP": (clip, text)}, pictures, torch.arange(8) % 4)


def test_a_lens_sees_what_the_model_does(lens: Lens) -> None:
    clip, text = lens.models["CLIP"]
    look = lens.look(lens.pictures[:2])[1]
    with torch.no_grad():
        z = clip.tokens(clip.preprocess(lens.pictures[1:2]))
        f = lens.sae.encode(z)[0]
        probabilities = clip.classify(z, text).softmax(1)[0]
    assert torch.allclose(torch.tensor(look["said"][0]), probabilities, atol=1e-5)
    (model,) = look["models"]
    starts, latents = decoded(model["starts"], "<u4"), decoded(model["latents"], "<u2")
    for token in (0, 7, 196):
        active = latents[starts[token] : starts[token + 1]]
        assert active == f[token].nonzero()[:, 0].tolist()
    levels = torch.tensor(decoded(model["levels"], "<u1"))
    value = model["full"] * (levels / 255) ** 2
    assert torch.allclose(value, f[f > 0], atol=model["full"] / 255)


def test_latents_that_are_off_are_masked_as_everywhere(lens: Lens) -> None:
    clip, text = lens.models["CLIP"]
    (z,) = lens.tokens(lens.pictures)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    expected = mask_latents(clip, lens.sae, z, lens.labels, text, {"r": order[None]}, [9]).shares(
        "r", 4
    )
    for label in range(4):
        (shares,) = lens.without(label, order[:9].tolist())
        assert np.allclose(shares, expected[label, 1, 0])
    with pytest.raises(ValueError, match="none of the pictures is of this class"):
        lens.without(9, [])


def test_effects_on_classes_are_those_of_removal_and_random_ones_are_noise(lens: Lens) -> None:
    clip, head = lens.models["CLIP"]
    (z,) = lens.tokens(lens.pictures)
    sae = SAE(clip.d_vit, 64)
    sae.load_state_dict(lens.sae.state_dict())
    tokens, references = Tokens.hold(z), torch.arange(128).view(64, 2) % len(z)
    z_hat = sae.decode(sae.encode(z)).detach().requires_grad_()
    logits = clip.classify(z_hat, head)
    (slope,) = torch.autograd.grad((logits[:, 2] - logits.mean(1)).sum(), z_hat)
    planted = (slope * sae.encode(z)[..., 5:6]).sum((0, 1)).detach()  # where it is active
    sae.W_dec.data[5] = planted / planted.norm() * sae.W_dec[5].norm()
    references[7] = -1
    effect, null = class_effects(clip, sae, tokens, references, head)
    assert effect.sum(1).abs().max() < 1e-4  # above the mean over classes
    assert effect[5].argmax() == 2
    assert effect[5, 2] > 2 * null[5]
    assert effect[7].abs().sum() == null[7] == 0
    beyond = effect.abs().amax(1) > null
    assert beyond.sum() - 1 <= 12  # of 62 random rows about three
    alone = references[:, :1].clone()
    one, _ = class_effects(clip, sae, tokens, alone, head)
    for c in range(4):
        labels, latents = torch.full((8,), c), torch.arange(8)
        latents[7] = 15
        removed = removal_effects(clip, sae, z[alone[latents, 0]], labels, head, latents)
        assert torch.allclose(one[latents, c], removed, atol=1e-4)


def test_effects_name_the_classes_that_change_most(tmp_path: Path) -> None:
    shown = latents_of(torch.tensor([[1]]), torch.ones(1, 1, 2, 2))
    folder = write_bundle(tmp_path / "b", Plain(9), shown, table(1))
    assert not read_shard(folder / "index.js")["effects"]
    effect = torch.arange(-6.0, 7)[None]
    write_effects(folder, effect, torch.tensor([0.5]))
    shard = read_shard(folder / "effects-0.js")
    assert decoded(shard["classes"], "<i2") == [12, 11, 10, 9, 8, 0, 1, 2, 3, 4]
    assert decoded(shard["logits"], "<f4") == [6, 5, 4, 3, 2, -6, -5, -4, -3, -2]
    assert read_shard(folder / "index.js")["effects"]
    write_tasks(folder, [])  # what rests on them goes with them
    assert not read_shard(folder / "index.js")["effects"]
    assert not (folder / "effects-0.js").exists()


def picture_with(name: bytes, content: bytes) -> bytes:
    """A PNG with a chunk of its own before its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    png = buffer.getvalue()
    checked = name + content
    chunk = struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
    return png.replace(png[(at := png.index(b"IDAT") - 4) :], chunk + png[at:])


def test_a_file_that_is_no_picture_is_refused_with_its_reason(lens: Lens, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (30, 50), (0, 90, 90, 0)).save(buffer, "JPEG")
    picture = lens.picture(buffer.getvalue(), "wide.jpg")
    assert picture["name"] == "wide.jpg"
    assert len(picture["models"]) == 1
    assert picture["picture"].startswith("data:image/webp")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be read as a picture$"):
        lens.picture(b"dear diary", "notes.txt")
    damaged = picture_with(b"eXIf", b"II*\0")
    with pytest.raises(ValueError, match=r"cut\.png cannot be read as a picture: unpack requires"):
        lens.picture(damaged, "cut.png")
    with pytest.raises(ValueError, match=r"gone\.png cannot be read as a picture: .*No such file"):
        lens.picture(tmp_path / "gone.png", "gone.png")
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(21 * 2**20)
    with pytest.raises(ValueError, match=r"huge\.png has 21 MB, more than 20"):
        lens.picture(huge, huge.name)
    header = b"P5 60000 60000 255\n"  # three thousand million pixels
    with pytest.raises(ValueError, match=r"bomb cannot be read .* pixels"):
        lens.picture(header, "bomb")


# --- the widget


def test_the_kernel_sends_files_of_the_bundle_and_no_others(bundle: Path) -> None:
    (bundle.parent / "secret.js").write_text("patchsaeShard({});\n")
    (bundle / "pictures-0.js").write_text("patchsaeShard({\n")  # cut short
    explorer, sent = Explorer(bundle, latent=1), []
    explorer.send = sent.append
    names = ("index", "../secret", "latents-7", "pictures-0", "codes-0-0")
    for number, name in enumerate(names):
        explorer._answer(explorer, {"load": name, "number": number}, [])
    assert [message["answer"] for message in sent] == list(range(5))
    assert sent[0]["shard"]["latents"] == 3
    assert "is no file of a bundle" in sent[1]["error"]
    assert sent[2]["error"] == "latents-7.js is not there"
    assert sent[3]["error"] == "pictures-0.js is not whole"
    assert len(sent[4]["shard"]["models"]) == 1


def test_the_kernel_looks_at_pictures(bundle: Path, lens: Lens, tmp_path: Path) -> None:
    explorer, sent = Explorer(bundle, {"own": lens}, task="own"), []
    explorer.send = sent.append
    assert explorer.live
    assert not Explorer(bundle).live
    with pytest.raises(ValueError, match="give the explorer lenses, as notebook 6 does"):
        Explorer(bundle).add(tmp_path / "mine.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "mine.png")
    explorer.add(tmp_path / "mine.png")
    assert sent[0]["added"]["picture"]["name"] == "mine.png"
    explorer._answer(explorer, {"pictures": True, "number": 1}, [])
    assert len(sent[1]["pictures"]) == 1
    explorer._answer(explorer, {"task": "own", "label": 1, "without": [3], "number": 2}, [])
    assert sum(sent[2]["shares"][0]) == pytest.approx(1)
    assert sent[2]["n"] == 2
    message = {"task": "no", "picture": "a", "number": 3}
    explorer._answer(explorer, message, [memoryview(b"x")])
    assert sent[3]["error"] == "no model for the task 'no': own"
    message = {"task": "own", "picture": "a", "number": 4}
    explorer._answer(explorer, message, [memoryview(b"x")])
    assert "a cannot be read as a picture" in sent[4]["error"]


def test_a_notebook_keeps_what_the_book_needs(bundle: Path) -> None:
    data, _ = Explorer(bundle, latent=2, views=["latent"])._repr_mimebundle_()
    assert data[EXPLORER] == {
        "bundle": "b", "latent": 2, "task": "", "image": 0, "patch": -1, "model": "", "label": 0,
        "masks": True, "compare": True, "views": ["latent"], "switches": "", "names": "",
        "marked": "", "pinned": -1,
    }  # fmt: skip
    assert "application/vnd.jupyter.widget-view+json" in data
    with pytest.raises(FileNotFoundError, match=r"has no index.js"):
        Explorer(bundle.parent)


# --- in a browser


def accessible(page) -> None:
    """Check that axe finds nothing serious, in the light and in the dark."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    only = {"runOnly": {"type": "tag", "values": tags}}
    for theme in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        result = Axe().run(page, context=".patchsae-explorer", options=only).response
        serious = [v for v in result["violations"] if v["impact"] in ("serious", "critical")]
        assert [(theme, v["id"], v["nodes"][0]["html"][:200]) for v in serious] == []


SPOT = """number => {
    const plot = document.querySelectorAll('.js-plotly-plot')[number];
    const trace = plot._fullData.find(t => t.customdata?.length && t.marker.colorscale);
    const i = trace.y.indexOf(Math.max(...trace.y)), box = plot.getBoundingClientRect();
    const at = (axis, value) => axis._offset + axis.l2p(value);
    return {latent: trace.customdata[i],
            x: box.left + at(plot._fullLayout['xaxis' + trace.xaxis.slice(1)], trace.x[i]),
            y: box.top + at(plot._fullLayout['yaxis' + trace.yaxis.slice(1)], trace.y[i])};
}"""


def colours(canvas) -> list[int]:
    """The pixels of the middle rows, one number each."""
    script = "c => [...c.getContext('2d').getImageData(0, c.height / 2 - 2, c.width, 4).data]"
    return canvas.evaluate(script)


def chosen(page) -> str:
    return page.locator(".view.latent h2, .view.latent h3").first.inner_text()


def opened(page, address: str):
    """The explorer at an address, once it is there."""
    page.goto("about:blank")  # another address of the same page would not load it again
    page.goto(address)
    explorer = page.locator(".patchsae-explorer")
    page.locator(".patchsae-explorer[data-ready]").wait_for()
    return explorer


def test_a_latent_that_is_clicked_on_shows_its_reference_images(build, page):
    page.goto(f"file://{build}/html/notebooks/2_statistics.html")
    explorers = page.locator(".patchsae-explorer")
    assert explorers.count() == 2
    plots = page.locator(".plotly-canvas")
    plots.first.scroll_into_view_if_needed()
    explorers.first.locator("canvas").first.wait_for()
    explorers.first.scroll_into_view_if_needed()
    second = json.loads(explorers.nth(1).get_attribute("data-state"))
    plots.first.locator(".main-svg").first.wait_for(state="attached")
    page.wait_for_function("document.querySelector('.patchsae-explorer').dataset.ready")
    plots.first.scroll_into_view_if_needed()
    spot = page.evaluate(SPOT, 0)
    card = page.locator(".patchsae-card")
    assert card.count() == 0
    page.mouse.move(spot["x"], spot["y"])
    card.wait_for(state="visible")
    page.mouse.click(spot["x"], spot["y"])
    explorers.first.get_by_role("heading", name=f"Latent {spot['latent']}", exact=True).wait_for()
    page.mouse.move(5, 5)
    card.wait_for(state="detached")
    explorers.nth(1).scroll_into_view_if_needed()  # it is as it was
    explorers.nth(1).locator("figure").first.wait_for()
    name = f"Latent {second['latent']}"
    assert explorers.nth(1).get_by_role("heading", name=name, exact=True).count() == 1
    assert page.trouble == []


def test_a_click_on_a_patch_shows_its_latents_and_one_of_them_its_mask(server, page):
    sizes = []
    page.on("response", lambda r: sizes.append(len(r.body())))
    explorer = opened(page, f"{server}/explorer.html")
    assert sum(sizes) < 2e6
    view = explorer.locator(".picture-view")
    canvases, lists = view.locator(".large canvas"), view.locator(".lists")
    assert canvases.count() == 2
    assert "The 20 strongest latents of the whole picture" in lists.inner_text()
    canvases.nth(1).click(position={"x": 40, "y": 70})
    lists.get_by_text("by activation").wait_for()
    assert "of MaPLe, by activation" in lists.inner_text()
    assert "patch=" in page.url
    assert "model=MaPLe" in page.url
    levels = [float(x) for x in lists.locator("tr td:nth-child(4) .value").all_inner_texts()]
    assert levels == sorted(levels, reverse=True)
    before = colours(canvases.first)
    latent = lists.locator("button.latent:not([aria-current])").first
    number = latent.inner_text()
    latent.click()
    explorer.get_by_role("heading", name=f"Latent {number}", exact=True).wait_for()
    page.wait_for_function(f"location.hash.includes('latent={number}')")
    view.get_by_text(f"atent {number}, mean over tokens").wait_for()
    assert colours(canvases.first) != before
    view.get_by_role("button", name="the whole picture").click()
    lists.get_by_text("of the whole picture").wait_for()
    assert page.trouble == []


def test_an_address_names_a_state_and_the_way_back_leads_to_it(build, page):
    base = f"file://{build}/html/explorer.html"
    explorer = opened(page, f"{base}#latent=7&task=land&image=1&patch=20&model=MaPLe&class=1")
    assert chosen(page) == "Latent 7"
    view = explorer.locator(".picture-view")
    assert view.get_by_label("task", exact=True).evaluate("s => s.selectedOptions[0].text") == (
        "Land cover from above"
    )
    assert view.locator(".thumbs [aria-pressed=true]").get_attribute("aria-label")[:10] == (
        "picture 2:"
    )
    assert "row 2, column 7" in view.locator(".lists").inner_text()
    assert "of MaPLe" in view.locator(".lists").inner_text()
    assert explorer.get_by_label("class", exact=True).input_value() == "1"
    page.wait_for_timeout(500)  # steps in quick succession are one entry of the history
    explorer.get_by_label("the next latent").click()
    page.wait_for_function("!location.hash.includes('latent=7')")
    page.wait_for_timeout(500)
    followed, latent = page.url, chosen(page)
    thumbs = view.locator(".thumbs button[aria-pressed=false]")
    thumbs.last.click()
    page.wait_for_function("old => location.href != old", arg=followed)
    assert "patch" not in page.url
    page.go_back()
    page.wait_for_function("old => location.href == old", arg=followed)
    assert chosen(page) == latent
    page.goto("about:blank")
    page.goto(f"{base}#latent=5&view=latent")  # what a link in a page says
    page.locator(".patchsae-explorer[data-ready]").wait_for()
    page.wait_for_function("location.hash.includes('task=')")
    page.go_back()
    assert page.url == "about:blank"  # spelling it out was no step of the reader's
    explorer = opened(page, f"{base}#latent=99999999&task=nosuch&image=77&patch=5000&class=1e9")
    last = int(explorer.get_by_label("latent", exact=True).get_attribute("max"))
    assert chosen(page) == f"Latent {last}"
    assert page.trouble == []


def test_everything_is_at_hand_on_the_keyboard(build, page):
    explorer = opened(page, f"file://{build}/html/explorer.html#latent=5&task=land")
    view, press = explorer.locator(".picture-view"), page.keyboard.press
    press("ArrowRight")
    page.get_by_role("heading", name="Latent 6", exact=True).wait_for()
    explorer.locator(".top .now", has_text="latent 6").wait_for()
    press("ArrowLeft")
    press("ArrowLeft")
    page.get_by_role("heading", name="Latent 4", exact=True).wait_for()
    status = explorer.locator("[role=status]").element_handle()
    page.wait_for_function("e => e.innerText.startsWith('Latent 4')", arg=status)
    view.locator(".thumbs button").first.click()  # it has followed the latent
    view.locator(".thumbs [aria-label^='picture 1:'][aria-pressed=true]").wait_for()
    press("]")
    view.locator(".thumbs [aria-label^='picture 2:'][aria-pressed=true]").wait_for()
    press("[")
    view.locator(".thumbs [aria-label^='picture 1:'][aria-pressed=true]").wait_for()
    press("c")
    view.locator(".large figure:nth-child(2)").wait_for(state="detached")
    press("c")
    view.locator(".large figure:nth-child(2)").wait_for()
    masks = explorer.get_by_label("masks", exact=True)
    press("m")
    page.wait_for_function("e => !e.checked", arg=masks.element_handle())
    press("?")
    assert explorer.get_by_role("dialog").get_by_text("search").is_visible()
    explorer.get_by_label("these keys are on").uncheck()
    press("Escape")
    press("m")
    assert not masks.is_checked()
    explorer.get_by_role("button", name="help").click()
    explorer.get_by_label("these keys are on").check()
    explorer.get_by_role("button", name="close").click()
    press("/")
    page.keyboard.type("12")  # in the field, digits and arrows are its own
    explorer.locator(".found", has_text="1 latent with the number 12").wait_for()
    press("ArrowLeft")
    press("Enter")
    page.get_by_role("heading", name="Latent 12", exact=True).wait_for()
    view.locator(".large canvas").first.click(position={"x": 1, "y": 1})
    view.get_by_text("row 1, column 1").wait_for()
    press("Shift+ArrowDown")  # from where it was clicked
    view.get_by_text("row 2, column 1").wait_for()
    press("Shift+ArrowRight")
    view.get_by_text("row 2, column 2").wait_for()
    assert page.trouble == []


def test_the_map_is_searched_brushed_zoomed_and_saved(build, page, tmp_path):
    explorer = opened(page, f"file://{build}/html/explorer.html#latent=5&task=land")
    view = explorer.locator(".view.map")
    plot = view.locator(".plot canvas")
    search = view.get_by_role("searchbox")
    concept = "no name"
    search.fill(concept)
    found = view.locator(".found")
    found.get_by_text(re.compile(rf"\d+ latents? for “{concept}”")).wait_for()
    first = found.locator("figure").first
    assert concept in first.inner_text()
    number = first.inner_text().partition(":")[0]
    first.get_by_role("button").click()
    explorer.get_by_role("heading", name=f"Latent {number}", exact=True).wait_for()
    found.locator(f"[aria-current][aria-label^='latent {number}:']").wait_for()
    found.get_by_role("button", name="clear").click()
    page.wait_for_function("e => !e.innerText", arg=found.element_handle())
    gallery = view.get_by_label("gallery")
    for kind in gallery.locator("option").all()[2:4]:
        gallery.select_option(kind.get_attribute("value"))
        found.get_by_text(f"named by a {kind.inner_text()}").wait_for()
    found.get_by_role("button", name="clear").click()
    page.wait_for_function("e => !e.innerText", arg=found.element_handle())
    before = plot.evaluate("c => c.toDataURL()")
    view.get_by_role("button", name="zoom in").click()
    assert plot.evaluate("c => c.toDataURL()") != before
    view.get_by_role("button", name="show all").click()
    view.get_by_role("button", name="select").click()
    box = plot.bounding_box()  # a click may have scrolled the page
    page.mouse.move(box["x"] + 70, box["y"] + 12)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 14, box["y"] + box["height"] - 45, steps=4)
    page.mouse.up()
    text = found.locator("p").inner_text()
    count = int(re.match(r"([\d,]+) latents in the box", text)[1].replace(",", ""))
    with page.expect_download() as saving:
        view.get_by_role("button", name="save the table").click()
    saved = pd.read_csv(saving.value.path())
    assert len(saved) == count
    assert {"latent", "frequency", "mean", "entropy", "concept", "iou"} <= set(saved)
    with page.expect_download() as saving:
        view.get_by_role("button", name="as PNG").click()
    with Image.open(saving.value.path()) as image:
        assert image.width > box["width"]
        assert len(image.convert("RGB").getcolors(2**24)) > 20
    with page.expect_download() as saving:
        explorer.locator(".view.latent").get_by_role("button", name="as SVG").click()
    svg = Path(saving.value.path()).read_text("utf-8")
    assert svg.count("<image") > 3
    assert "explorer.html#latent=" in svg
    assert "ICLR 2025" in svg
    assert "label entropy" in svg
    assert page.trouble == []


def test_a_class_before_and_after_with_latents_on_and_off(build, page):
    explorer = opened(page, f"file://{build}/html/explorer.html#latent=5&task=land")
    view = explorer.locator(".class-view")
    answers = view.locator(".answers")
    assert "latents on they are taken for" in answers.inner_text()
    slider = view.get_by_label("how many latents", exact=True)
    slider.focus()
    for _ in range(3):  # it stays where it is and keeps its keys
        page.keyboard.press("ArrowLeft")
    answers.get_by_text("With 1 latent on they are taken for").wait_for()
    assert slider.evaluate("e => e === document.activeElement")
    assert slider.get_attribute("aria-valuetext") == "1 latent"
    assert chosen(page) == "Latent 5"
    view.get_by_label("on or off").select_option("1")
    answers.get_by_text("With 1 latent off they are taken for").wait_for()
    assert re.search(r"\d of 9", answers.inner_text())
    points = view.locator(".plot canvas").get_attribute("aria-label")
    assert re.match(r"Latents of the class before and after adaptation: \d+ points? by", points)
    names = view.get_by_label("class", exact=True).locator("option").all_inner_texts()
    view.get_by_label("class", exact=True).select_option("1")
    page.wait_for_function("location.hash.includes('class=1')")
    view.get_by_text(f"Given their class, of the pictures of {names[1]}").wait_for()
    assert f": {names[1]}." in view.locator(".about").inner_text()
    explorer.locator(".picture-view").get_by_label("task", exact=True).select_option(index=0)
    view.get_by_text("There is no adapted model for these pictures").wait_for()
    assert page.trouble == []


def test_a_guess_is_judged_and_counted(build, page):
    explorer = opened(page, f"file://{build}/html/explorer.html")
    view = explorer.locator(".view.guess")
    assert view.locator("canvas").count() == 0
    view.get_by_role("button", name="start").click()
    view.get_by_text("Which one?").wait_for()
    right = 0
    for n in (1, 2, 3):
        choices = view.locator(".guesses button")
        assert choices.count() == 4
        choices.first.click()
        verdict = view.locator(".about").inner_text()
        assert verdict.startswith(("Right: this is latent", "Wrong: this is latent"))
        assert view.get_by_text("✓ active here").count() == 1
        right += verdict.startswith("Right")
        assert view.get_by_text(f"{right} of {n} right").count() == 1
        choices.nth(1).click()  # only the first answer counts
        assert view.get_by_text(f"{right} of {n} right").count() == 1
        view.get_by_role("button", name="another latent").click()
        view.get_by_text("Which one?").wait_for()
    assert page.trouble == []


MEANINGS = (
    ("class", "owl"), ("class", "fish"), ("colour", "red"), ("sign", "sign"), ("group", "bird"),
    ("class part", "stem of a mushroom"), ("background", "sea"), ("", ""),
)  # fmt: skip


@pytest.fixture
def named(tmp_path: Path, build: Path) -> Path:
    """A page about latents that are named by `MEANINGS`, the last one by nothing."""
    d = len(MEANINGS)
    images, absent = torch.arange(5).repeat(d, 1), torch.tensor([5, 6, 7]).repeat(d, 1)
    masks = torch.ones(d, 5, 2, 2)
    shown = latents_of(images, masks, absent=absent)
    shown.examples.update(highest=images[:, :3], random=images[:, 3:])
    kinds, names = zip(*MEANINGS, strict=True)
    columns = pd.DataFrame({"frequency": 0.5, "mean": 1.0, "kind": kinds, "concept": names})
    columns["name"] = [spoken(c) if c[0] else "no name" for c in MEANINGS]
    columns["iou"], columns["top_class"] = np.linspace(0.8, 0.1, d), "redstart"
    folder = write_bundle(tmp_path / "b", Plain(9), shown, columns)
    known = {"concepts": CONCEPTS, "synonyms": synonyms(CONCEPTS)}
    write_shard(folder / "index.js", read_shard(folder / "index.js") | known)
    return put(folder, build, [{"linked": True, "views": ["map", "latent", "guess"]}])


def test_a_search_knows_synonyms_and_says_why_it_found_a_latent(named, page):
    view = opened(page, named.as_uri()).locator(".view.map")
    search, found = view.get_by_role("searchbox"), view.locator(".found")

    def hits(text: str) -> list[list[str]]:
        search.fill(text)
        found.get_by_text(f"for “{text}”").wait_for()
        return [x.split("\n") for x in found.locator("figcaption").all_inner_texts()]

    assert [(x[0], x[-1]) for x in hits("bird")] == [
        ("4: group bird", "name"), ("0: owl", "group: bird → owl"),
    ]  # fmt: skip
    assert hits("birds")[0][-1] == "group: bird → owl"
    assert [x[-1] for x in hits("crimson")] == ["synonym: crimson → red"]
    assert [x[-1] for x in hits("writing")] == ["synonym: writing → sign"]
    by_red = hits("red")  # first the name, then what it is strongest on
    assert by_red[0][0] == "2: colour red"
    assert [x[-1] for x in by_red] == ["name"] + ["strongest on redstart"] * 7
    assert [x[-1] for x in hits("crimson redstart")] == [
        "synonym: crimson → red, strongest on redstart"
    ]
    hits("crimson")
    search.press("Enter")  # called so by nobody: nothing is chosen unasked
    assert "latent=0" in page.url or "#" not in page.url
    hits("red")
    search.press("Enter")
    page.wait_for_url("**latent=2**")
    assert hits("<b>crimson") == []
    above = view.evaluate("e => e.querySelector('.found').getBoundingClientRect().bottom")
    assert above < view.evaluate("e => e.querySelector('canvas').getBoundingClientRect().bottom")
    caption = found.locator("figcaption").first
    hits("bird")
    assert caption.evaluate("e => e.scrollWidth <= e.clientWidth")  # nothing is cut
    assert page.trouble == []
    accessible(page)


def test_an_address_without_a_latent_keeps_the_one_that_is_shown(named, page):
    explorer = opened(page, f"{named.as_uri()}#latent=3")
    explorer.get_by_role("heading", name="Latent 3", exact=True).wait_for()
    page.evaluate("location.hash = '#view=guess&masks=false'")
    page.wait_for_function("location.hash.includes('latent=3')")
    assert explorer.get_by_role("heading", name="Latent 3", exact=True).count() == 1


def test_a_game_with_levels_offers_names_of_the_right_kinds(named, page):
    view = opened(page, named.as_uri()).locator(".view.guess")
    level = view.get_by_label("guess", exact=True)
    times = Counter(spoken(c) for c in CONCEPTS)  # "lamp" is a class and a part
    kind_of = {spoken(c): c[0] for c in CONCEPTS if times[spoken(c)] == 1}
    group_of = {name: group for group, names in GROUPS.items() for name in names}

    def words(text: str) -> set[str]:
        return set(text.split()) - {"of", "in", "a", "an", "colour", "group", "background"}

    for name, rounds in (("easy", 8), ("medium", 8), ("hard", 6)):
        level.select_option(name)
        assert "is right one time in four" in view.locator("p").first.inner_text()
        right = 0
        for n in range(1, rounds + 1):
            view.locator(".tools.line button").click()
            view.get_by_text("Which one?").wait_for()
            options = view.locator(".guesses button")
            texts = options.all_inner_texts()
            assert len(set(texts)) == 4
            options.nth(1).focus()
            page.keyboard.press("Enter")
            verdict = view.locator(".about").inner_text()
            answer = verdict.split(" ", 5)[-1].partition(", IoU")[0]
            assert spoken(MEANINGS[int(verdict.split()[4])]) == answer
            assert answer in texts
            assert verdict.startswith("Right") == (answer == texts[1])
            right += answer == texts[1]
            assert f"{right} of {n} right; guessing blindly" in view.inner_text()
            kinds = [kind_of[text] for text in texts if text in kind_of]
            assert len(set(kinds)) == (len(kinds) if name == "easy" else 1)
            assert sum(len(words(x)) for x in texts) == len(set.union(*map(words, texts)))
            groups = [{group_of[w] for w in words(x) if w in group_of} for x in texts]
            if name == "hard":
                assert len(set.union(*groups)) == 1
    level.select_option("picture")  # a score of its own
    assert "right; guessing" not in view.inner_text()
    assert view.locator(".guesses button").count() == 0
    level.select_option("hard")
    assert "of 6 right; guessing blindly gives 1.5" in view.inner_text()
    view.get_by_role("button", name="start").click()
    view.get_by_text("Which one?").wait_for()
    assert page.trouble == []
    accessible(page)


def test_no_name_that_is_offered_is_a_group_of_another(named, page):
    kinds, birds = ("colour", "background", "sign"), {"bird", "fish", *GROUPS["bird"]}
    few = [c for c in CONCEPTS if c[0] in kinds or (c[0] in ("group", "class") and c[1] in birds)]
    file = named.parent / "_static" / "explorer" / "data" / "index.js"
    write_shard(file, read_shard(file) | {"concepts": few})
    view = opened(page, named.as_uri()).locator(".view.guess")
    view.get_by_label("guess", exact=True).select_option("easy")
    for _ in range(24):
        view.locator(".tools.line button").click()
        view.get_by_text("Which one?").wait_for()
        texts = view.locator(".guesses button").all_inner_texts()
        assert not ("group bird" in texts and set(GROUPS["bird"]) & set(texts)), texts
    assert page.trouble == []


def test_other_browsers_compare_latents_and_play(named, other_browser):
    other_browser.trouble.clear()
    other_browser.goto(f"{named.as_uri()}#latent=0&pin=2")
    other_browser.wait("() => document.querySelector('.patchsae-explorer').dataset.ready")
    other_browser.wait("() => document.querySelectorAll('.side').length === 2")
    tops = "() => [...document.querySelectorAll('.side')].map(e => e.getBoundingClientRect().top)"
    assert len(set(other_browser.evaluate(tops))) == 1
    rows = "() => [...document.querySelectorAll('.stats')].map(e => e.getBoundingClientRect().top)"
    assert len(set(other_browser.evaluate(rows))) == 1  # rows of both are at one height
    other_browser.evaluate("""() => { const view = document.querySelector('.view.guess');
        const level = view.querySelector('select'); level.value = 'hard'; level.onchange();
        view.querySelector('.tools.line button').click(); }""")
    other_browser.wait("() => document.querySelectorAll('.guesses button').length === 4")
    other_browser.evaluate("() => document.querySelector('.guesses button').click()")
    said = other_browser.evaluate("() => document.querySelector('.guess .about').textContent")
    assert said.startswith(("Right: this is latent", "Wrong: this is latent"))
    assert other_browser.trouble == []


@pytest.mark.parametrize("where", ["explorer.html#latent=5&pin=9&task=land&patch=30", "tour"])
def test_nothing_serious_stands_in_the_way_of_anyone(build, page, where):
    if where == "tour":
        page.goto(f"file://{build}/html/notebooks/6_explorer.html")
        for explorer in page.locator(".patchsae-explorer").all():
            explorer.scroll_into_view_if_needed()
            explorer.locator(".view").first.wait_for()
        page.evaluate("scrollTo(0, 0)")  # a bar that sticks covers what scrolls below it
    else:
        explorer = opened(page, f"file://{build}/html/{where}")
        explorer.get_by_role("button", name="start").click()
        explorer.get_by_text("Which one?").wait_for()
    accessible(page)


def test_nothing_jumps_while_it_opens(build, page):
    page.add_init_script("""window.shift = 0; new PerformanceObserver((list) => {
        for (const e of list.getEntries()) if (!e.hadRecentInput) window.shift += e.value;
    }).observe({ type: 'layout-shift', buffered: true });""")
    for state in ("latent=5&task=land", "latent=5&pin=9&task=land"):
        opened(page, f"file://{build}/html/explorer.html#{state}")
        page.get_by_text("Nearest latents").wait_for()
        page.wait_for_timeout(500)
        assert page.evaluate("shift") < 0.05, state


def test_a_finger_is_enough_on_a_narrow_screen(build, browser):
    context = browser.new_context(
        viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    explorer = opened(page, f"file://{build}/html/explorer.html#latent=5&task=land")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    explorer.get_by_role("button", name="picture", exact=True).tap()
    canvas = explorer.locator(".large canvas").first
    canvas.tap(position={"x": 60, "y": 60})
    explorer.locator(".lists").get_by_text("by activation").wait_for()
    plot = explorer.locator(".view.map .plot canvas")
    spot = plot.evaluate(
        """c => {
        const d = c.getContext('2d'), r = c.getBoundingClientRect(), k = c.width / r.width;
        for (let y = 20; y < r.height - 60; y += 3) for (let x = 80; x < r.width - 20; x += 3)
          if (d.getImageData(x * k, y * k, 1, 1).data[3] > 200) return {x, y};}"""
    )
    before = chosen(page)
    plot.tap(position=spot)
    page.wait_for_function(
        "old => document.querySelector('.view.latent h2').innerText != old", arg=before
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    context.close()


def put(bundle: Path, build: Path, states: list[dict]) -> Path:
    """A page with explorers of a bundle and nothing else."""
    static = bundle.parent / "_static"
    shutil.copytree(
        build / "html" / "_static" / "explorer",
        static / "explorer",
        ignore=shutil.ignore_patterns("data"),
    )
    shutil.move(bundle, static / "explorer" / "data")
    shutil.copy(build / "html" / "_static" / "book.js", static)
    page = bundle.parent / "page.html"
    places = [
        f"<div class='patchsae-explorer' data-state='{json.dumps({'bundle': 'b'} | state)}'></div>"
        for state in states
    ]
    page.write_text(
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorers</title>
        <script src="_static/book.js"></script>{"".join(places)}</html>"""
    )
    return page


@pytest.fixture
def host(bundle: Path, build: Path) -> Path:
    return put(bundle, build, [{"linked": True, "latent": 0, "task": "t"}])


def test_names_are_text_and_masks_are_drawn_where_they_are(host, page):
    explorer = opened(page, host.as_uri())
    figures = explorer.locator(".view.latent .strips figure")
    assert figures.all_inner_texts() == [NAMES[7 % 3], NAMES[0]]
    assert page.evaluate("document.querySelectorAll('.patchsae-explorer script, b b').length") == 0
    row = figures.first.locator("canvas").evaluate(
        "c => [...c.getContext('2d').getImageData(0, 3, c.width, 1).data]"
    )
    assert row[:3] == row[4:7]
    assert row[0] == row[1] == row[2]  # not active: grey, and darker
    right = row[4 * 24 : 4 * 24 + 3]
    assert min(right) > row[0]  # active: nearer to what it is
    assert explorer.locator(".classes .name").all_inner_texts() == [NAMES[1], NAMES[2]]
    assert f"class {NAMES[0]}" in explorer.locator(".view.latent .about").inner_text()
    picture = explorer.locator(".picture-view")
    assert NAMES[0] in picture.locator(".large").inner_text()
    assert NAMES[1] in picture.get_by_label("task", exact=True).inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.trouble == []


def test_an_outline_is_drawn_around_what_is_there_and_nothing_else(host, page):
    data = host.parent / "_static" / "explorer" / "data"
    index, shard = (read_shard(data / f"{name}.js") for name in ("index", "pictures-0"))
    index["concepts"] = [["class", NAMES[0]]]
    shard["truth"] = [{"0": base64.b64encode(bytes([0b0100])).decode()}] * 2  # lower left patch
    for name, content in (("index", index), ("pictures-0", shard)):
        (data / f"{name}.js").write_text(f"patchsaeShard({json.dumps(content)});")
    explorer = opened(page, host.as_uri())
    explorer.get_by_label("masks", exact=True).uncheck()
    canvas = explorer.locator(".view.latent .strips canvas").first
    lines = canvas.evaluate(
        """c => {const d = c.getContext('2d'), n = c.width, at = (x, y) =>
        [...d.getImageData(x, y, 1, 1).data].slice(0, 3).some(v => v > 60 || v < 3);
        return [[0, n / 4], [n - 1, n / 4], [n / 4, 0], [n / 4, n / 2], [n / 2, n * .75],
                [n * .75, n / 2], [n * .75, n - 1]].map(([x, y]) => at(x, y));}"""
    )  # grey 7 but on a line; left, right and top edge, around the patch, right half
    assert lines == [False, False, False, True, True, False, False]
    explorer.get_by_label("outline").uncheck()
    explorer.get_by_text("dashed: where").wait_for(state="detached")
    assert page.trouble == []


def test_a_picture_shows_what_its_codes_say(host, page):
    explorer = opened(page, f"{host.as_uri()}#latent=0&task=t&image=0&patch=0&model=CLIP")
    view = explorer.locator(".picture-view")
    rows = view.locator(".lists tbody tr")
    assert rows.count() == 1  # f: latent 0 has 4, in the other model 1
    assert rows.locator(".value").all_inner_texts() == ["4", "1"]
    assert "says ✓" in view.locator(".large figure").first.inner_text()  # .7 for class 0
    assert "says ✗" in view.locator(".large figure").nth(1).inner_text()
    assert "CLIP 0.8, MaPLe 0.4" in view.inner_text()  # means over five tokens
    left, right = (
        view.locator(".large canvas")
        .nth(m)
        .evaluate("c => [...c.getContext('2d').getImageData(16, 16, 1, 1).data]")
        for m in (0, 1)
    )
    assert left[0] > right[0]  # one scale: darker, where the latent is weaker
    view.get_by_role("button", name="the whole picture").click()
    chips = view.locator(".lists").inner_text()
    assert "in both models' 20 strongest: 1" in chips
    assert "only in CLIP's: 2" in chips
    assert "only in MaPLe's: 0" in chips


def test_a_pinned_latent_stands_beside_the_next_one(host, page):
    data = host.parent / "_static" / "explorer" / "data"
    f = torch.zeros(5, 3)
    f[0], f[1, 0], f[2, :2], f[4, 1] = 1.0, 4.0, 2.0, 2.0  # CLS is no patch
    content = json.dumps({"models": [codes_of(f)]})
    (data / "codes-0-0.js").write_text(f"patchsaeShard({content});")
    explorer = opened(page, f"{host.as_uri()}#latent=0&task=t")
    view = explorer.locator(".view.latent")
    relation, sides = view.locator(".relation"), view.locator(".side")
    assert sides.count() == 1
    assert not relation.is_visible()
    pin = view.get_by_role("button", name="pin", exact=True)
    pin.focus()
    page.keyboard.press("Enter")
    view.get_by_text("This latent is pinned: choose another").wait_for()
    assert pin.get_attribute("aria-pressed") == "true"
    assert pin.evaluate("e => e === document.activeElement")
    page.keyboard.press("ArrowRight")
    sides.nth(1).wait_for()
    assert "latent=1" in page.url
    assert "pin=0" in page.url
    assert pin.get_attribute("aria-pressed") == "false"
    assert "cannot be shown" not in view.inner_text()
    view.get_by_text("by chance 1.").wait_for()  # 2 of 4 patches each
    said = relation.inner_text()
    assert "rows of 1 and 0: -0.80. Of 4 patches in 1 picture (Own)" in said
    assert "active in 2 and 2, both at once in 1" in said
    for side, latent in zip(sides.all(), (1, 0), strict=True):
        assert f"latent {latent}" in side.locator(".side-title").inner_text()
        assert side.locator("figure").count() == (1, 2)[latent == 0]
        numbers = side.locator(".stats").inner_text()
        assert f"{(50, 75)[latent]} %" in numbers
        assert "mean activation" in numbers
        assert f"class {NAMES[latent]}" in side.locator(".about").inner_text()
    left, right = (side.bounding_box() for side in sides.all())
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload()
    sides.nth(1).wait_for()
    page.set_viewport_size({"width": 375, "height": 700})
    upper, lower = (side.bounding_box() for side in sides.all())
    assert lower["y"] >= upper["y"] + upper["height"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sides.nth(1).get_by_role("button", name="unpin").click()
    sides.nth(1).wait_for(state="detached")
    assert "pin=" not in page.url
    page.keyboard.press("p")
    page.wait_for_function("location.hash.includes('pin=1')")
    page.keyboard.press("p")
    page.wait_for_function("!location.hash.includes('pin=')")
    assert not relation.is_visible()
    assert page.trouble == []


def test_a_latent_shows_how_strong_it_is_and_what_it_does_to_classes(host, page):
    explorer = opened(page, f"{host.as_uri()}#latent=0&task=t")
    view = explorer.locator(".view.latent")
    strengths, effects = view.locator(".strengths"), view.locator(".effects")
    assert "Active in 101 of 200 pictures; log counts" in strengths.inner_text()
    low, high = (bar.bounding_box() for bar in strengths.locator("rect").all())
    assert low["x"] < high["x"]
    assert 5 < low["height"] / high["height"] < 12  # 100 and 1, by their logarithms
    text = strengths.locator("svg").get_attribute("aria-label")
    assert text.startswith("Pictures by activation, from 0 to 0.5 in 16 equal bins: 100, 0,")
    assert text.endswith("0, 1")
    crop = strengths.locator("canvas").first
    pixel = "c => [...c.getContext('2d').getImageData(70, 10, 1, 1).data].slice(0, 3)"
    assert max(crop.evaluate(pixel)) < 12  # of picture 7, which is grey 7; its patch is framed
    assert "Grey: up to 0.45" in effects.inner_text()
    assert effects.locator(".name").all_inner_texts() == [NAMES[0], NAMES[2]]
    assert effects.locator(".value").all_inner_texts() == ["+0.5", "−0.4"]
    up, down = effects.locator("li").all()
    assert (up.get_attribute("class"), down.get_attribute("class")) == ("", "noise")
    assert "all is grey" not in effects.inner_text()
    page.keyboard.press("ArrowRight")
    effects.get_by_text("here all is grey").wait_for()
    assert not strengths.inner_text()
    explorer.get_by_label("latent", exact=True).fill("2")
    page.keyboard.press("Enter")
    page.wait_for_function("e => !e.innerText", arg=effects.element_handle())
    assert page.trouble == []


def test_a_share_of_few_pictures_is_shown_as_dots(host, page):
    explorer = opened(page, f"{host.as_uri()}#latent=0&task=t")
    answers = explorer.locator(".answers")
    assert f"of the pictures of {NAMES[0]} (3)" in answers.inner_text()
    assert answers.locator(".track").count() == 0
    cells = answers.locator(".cell")
    assert cells.locator(".value").all_inner_texts() == ["1 of 3", "2 of 3"] * 2
    assert [cell.locator("i").count() for cell in cells.all()] == [3] * 4
    assert [cell.locator("i.hollow").count() for cell in cells.all()] == [2, 1] * 2
    explorer.get_by_label("class", exact=True).select_option("1")
    answers.get_by_text(f"of the pictures of {NAMES[1]} (30)").wait_for()
    assert answers.locator(".dots").count() == 0
    assert answers.locator(".cell .value").all_inner_texts() == ["25 %", "75 %"] * 2
    assert page.trouble == []


def test_two_explorers_do_not_disturb_each_other(bundle, build, page):
    states = [{"latent": 0, "task": "t"}, {"latent": 1, "task": "own"}]
    page.goto(put(bundle, build, states).as_uri())
    page.locator(".patchsae-explorer[data-ready]").nth(1).wait_for()
    first, second = (page.locator(".patchsae-explorer").nth(i) for i in (0, 1))
    assert second.get_by_role("heading", name="Latent 1", exact=True).count() == 1
    first.get_by_label("the next latent").click()
    first.get_by_label("the next latent").click()
    first.get_by_role("heading", name="Latent 2", exact=True).wait_for()
    first.get_by_text("Never active").wait_for()
    assert second.get_by_role("heading", name="Latent 1", exact=True).count() == 1
    second.locator(".thumbs button").first.focus()
    page.keyboard.press("ArrowLeft")
    second.get_by_role("heading", name="Latent 0", exact=True).wait_for()
    assert first.get_by_role("heading", name="Latent 2", exact=True).count() == 1
    assert "#" not in page.url  # neither is the page's own
    assert page.trouble == []


def test_a_file_that_is_missing_cut_short_or_of_another_version_is_reported(host, page):
    data = host.parent / "_static" / "explorer" / "data"
    trouble = page.locator(".patchsae-explorer .trouble:visible").first
    for name, cut in (
        ("index", True), ("index", False), ("latents-0", False), ("pictures-0", True),
        ("task-1", False), ("codes-1-0", True), ("class-1-0", False), ("column-0", True),
    ):  # fmt: skip
        file = data / f"{name}.js"
        text = file.read_text()
        file.write_text(text[: len(text) // 2]) if cut else file.unlink()
        page.goto(host.as_uri())
        trouble.wait_for()
        subject = "The explorer" if name == "index" else "This"
        assert trouble.inner_text().startswith(f"{subject} cannot be shown")
        assert f"{name}.js {'is not whole' if cut else 'did not load'}" in trouble.inner_text()
        file.write_text(text)
    (data / "index.js").write_text('patchsaeShard({"version": 1});')
    page.goto(host.as_uri())
    page.get_by_text("its version is 1, 3 can be read").wait_for()


def test_a_bundle_of_the_papers_size_opens(tmp_path, build, page):
    d, k = 49_152, 9
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(400, (d, k), generator=generator)
    masks = torch.rand(64, k, 14, 14, generator=generator).half().repeat(d // 64, 1, 1, 1)
    numbers = np.random.default_rng(0).random((d, 3))
    columns = pd.DataFrame(numbers, columns=["frequency", "mean", "iou"])
    folder = write_bundle(tmp_path / "b", Plain(400), latents_of(images, masks), columns)
    host = put(folder, build, [{"linked": True}])
    files = []
    page.on("requestfinished", lambda r: files.append(r.url))
    explorer = opened(page, host.as_uri())
    best = int(numbers[:, 2].argmax())
    assert chosen(page) == f"Latent {best}"
    loaded = {u.split("/")[-1] for u in files if "/data/" in u}
    data = host.parent / "_static" / "explorer" / "data"
    assert len(list(data.iterdir())) > 790
    assert sum((data / name).stat().st_size for name in loaded) < 2e6
    explorer.get_by_label("latent", exact=True).fill(str(d - 1))
    explorer.get_by_label("latent", exact=True).press("Enter")
    explorer.get_by_role("heading", name=f"Latent {d - 1}", exact=True).wait_for()
    assert page.trouble == []


# --- in JupyterLab, with a kernel behind it

FIRST = """
from pathlib import Path
import torch
from IPython.display import HTML, display
from patchsae_lib import figures
from patchsae_lib.interop import load_clip
from patchsae_lib.interop import load_sae
from patchsae_lib.explorer import Explorer, Lens, explorer_link
from patchsae_lib.explorer.bundle import read_shard
from patchsae_lib.latents import LatentTable
from patchsae_lib.profiles import load_profile

run = Path({run!r})
frame = LatentTable.load(run / "latents.safetensors").frame().assign(hover="")
titles = dict(label="entropy", title="Latents")
figures.latent_scatter(frame, colour="entropy", **titles).show()
clip, sae = load_clip(load_profile("smoke").model), load_sae(run / "sae.safetensors")
task = read_shard(run / "explorer" / "index.js")["tasks"][1]
head = clip.text_features(task["classes"], ["a {{}}"])
pictures = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
models = dict(CLIP=(clip, head), MaPLe=(clip, head))
lens = Lens(sae, models, pictures, torch.tensor([0, 1]))
explorer = Explorer(run / "explorer", {{task["name"]: lens}}, latent=3, task=task["name"])
patches = []
explorer.observe(lambda change: patches.append(change["new"]), ["patch"])
display(HTML(explorer_link("see nine", latent=9)))
explorer
"""


@pytest.fixture
def lab(tmp_path: Path, build: Path):
    """The address of a notebook in a running JupyterLab."""
    run = build.parent / "runs" / "smoke"
    more = ["explorer.latent = 7", "print('now', explorer.latent, patches)"]
    cells = [FIRST.format(run=str(run)), *more]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, tmp_path / "try.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--allow-root", "--IdentityProvider.token=", "--ServerApp.password="]
    command += ["--KernelManager.shutdown_wait_time=0.5"]  # the kernel has nothing to lose
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


def run_cell(page, number: int) -> None:
    page.locator(".jp-CodeCell").nth(number).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def test_it_is_linked_to_a_scatter_to_python_and_to_the_users_own_pictures(lab, page, tmp_path):
    page.goto(lab)
    page.get_by_text("| Idle").wait_for(timeout=60_000)
    run_cell(page, 0)
    explorer = page.locator(".patchsae-explorer")
    page.locator(".patchsae-explorer[data-ready]").wait_for(timeout=60_000)
    assert chosen(page) == "Latent 3"
    plot = page.locator(".js-plotly-plot")
    plot.scroll_into_view_if_needed()
    plot.click(position={"x": 5, "y": 5})  # no latent there
    spot = page.evaluate(SPOT, 0)
    page.mouse.move(spot["x"] - 3, spot["y"])
    page.mouse.move(spot["x"], spot["y"])
    page.locator(".patchsae-card").wait_for(state="visible")
    page.mouse.click(spot["x"], spot["y"])
    explorer.get_by_role("heading", name=f"Latent {spot['latent']}", exact=True).wait_for()
    view = explorer.locator(".picture-view")
    before = view.locator(".lists").inner_text()
    view.locator(".large canvas").first.click(position={"x": 30, "y": 50})
    view.get_by_text("by activation").wait_for()
    assert view.locator(".lists").inner_text() != before
    run_cell(page, 2)
    page.get_by_text(re.compile(rf"now {spot['latent']} \[\d+\]")).wait_for()
    run_cell(page, 1)
    explorer.get_by_role("heading", name="Latent 7", exact=True).wait_for()
    page.get_by_role("link", name="see nine").click()  # here, and not on a page that is not there
    explorer.get_by_role("heading", name="Latent 9", exact=True).wait_for()

    view.locator(".thumbs button").first.focus()  # the keys are the explorer's, not JupyterLab's
    page.keyboard.press("ArrowRight")
    explorer.get_by_role("heading", name="Latent 10", exact=True).wait_for()
    page.keyboard.press("m")
    page.wait_for_function("e => !e.checked", arg=explorer.get_by_label("masks").element_handle())

    n = view.locator(".thumbs button").count()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "mine & <b>yours.png")
    file = view.locator("input[type=file]")
    file.set_input_files(tmp_path / "mine & <b>yours.png")
    view.locator(f".thumbs button:nth-child({n + 1})[aria-pressed=true]").wait_for()
    assert "mine & <b>yours.png" in view.locator(".thumbs button").last.get_attribute("title")
    view.get_by_text("strongest latents of the whole picture").wait_for()
    assert view.locator(".lists .chips button").count() >= 1
    (tmp_path / "notes.txt").write_text("dear diary")
    file.set_input_files(tmp_path / "notes.txt")
    view.get_by_text("notes.txt cannot be read as a picture.").wait_for()
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(21 * 2**20)
    file.set_input_files(tmp_path / "huge.png")
    view.get_by_text("huge.png has 21 MB, more than 9.").wait_for()

    switch = explorer.locator(".without")
    switch.get_by_role("checkbox").first.uncheck()
    switch.get_by_text("With 1 latent off they are taken for").wait_for()
    assert "1 of 1" in switch.inner_text()  # of the kernel's pictures, not the bundle's
    assert [t for t in page.trouble if "explorer" in t] == []


def test_the_latents_of_a_bundle_are_those_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "write_bundle", lambda *given: given)
    sae = identity(4)
    sae.W_dec.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2])
    z = torch.full((12, 7, 4), -1.0)
    z[torch.arange(12), 1, torch.arange(12) % 4] = torch.arange(1.0, 13)
    split = Split(SimpleNamespace(grid=(2, 3)), World("land", "train", 12), labels, LAND, ())
    split.tokens = Tokens.hold(z)
    table = scan_tokens(sae, split.tokens, labels, LAND)
    study = SimpleNamespace(sae=sae, train=split, table=table, folder=Path("run"))
    folder, pictures, latents, _ = write_latents(study, pd.DataFrame())
    assert (folder, pictures) == (Path("run/explorer"), split.pictures)
    assert all(map(torch.equal, (latents.near, latents.cosine), nearest(sae.W_dec)))
    assert torch.equal(latents.levels, table.class_per_image)
    assert latents.levels.max() < table.class_above.max()  # per picture of a class
    assert latents.examples["highest"][:, :3].T.tolist() == [
        [8, 9, 10, 11],
        [4, 5, 6, 7],
        [0, 1, 2, 3],
    ]
    assert (latents.absent % 4 != torch.arange(4)[:, None]).all()  # a latent is in every fourth
    assert labels[latents.absent[:, 0]].tolist() == labels[[8, 9, 10, 11]].tolist()

"""Each fault changes what it says, and nothing else; without a fault nothing changes."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import torch

from patchsae_lib import remapping, study
from patchsae_lib.artefacts import DATA, ROOT
from patchsae_lib.profiles import load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.world import World
from recipes.faults import FAULTS, PAGES, SHIPPED, put_in, small, statements, table

Z = torch.randn(4, 197, 192, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
CHANGED = {  # what is another with a fault
    "gelu": "gelu tokens features",
    "norm-none": "norm tokens features",
    "norm-imagenet": "norm tokens features",
    "bgr": "pixels train",
    "bgr-half": "pixels train",
    "thumbnails": "pixels train",
    "floats": "pixels train",
    "names": "names",
    "bare-names": "templates",
    "block-early": "block tokens",
    "block-late": "block tokens",
    "cls-dropped": "latents mask",
    "cls-patch": "tokens mask",
    "transposed": "tokens",
    "unscaled": "rows latents mask",
    "decoder": "rows latents",
    "decoder-free": "fresh",
    "test-counted": "train",
    "shuffled": "levels",
    "mask": "mask",
}


@torch.no_grad()
def probes() -> dict[str, Any]:
    """What faults may change, in pictures, models and measurements."""
    clip, sae = study.load_clip(load_profile("world").model, "cpu"), study.load_sae(SHIPPED)
    z, opened = clip.tokens(clip.preprocess(PIXELS)), study.Study(small())
    levels = [remapping.levels_by_place(sae, Z, LABELS, "abcd")["CLS"] for _ in range(2)]
    ranking = torch.arange(sae.d_sae).expand(4, -1)
    ranking = torch.stack([row.roll(700 * i) for i, row in enumerate(ranking)])
    ks = 50, 100, 500
    masked = study.mask_latents(CLIP, sae, SHOWN, LABELS, HEAD, {"own": ranking}, ks)
    world = World("styles", "test", 4)
    return {
        "pixels": world.batch(range(4)).float(),
        "train": opened._open_pictures("world", "train", 4).batch(range(4)).float(),
        "names": world.class_names,
        "templates": [str(x) for x in opened.templates(world)],
        "norm": torch.stack([clip.mean, clip.std]),
        "gelu": type(clip.visual.transformer.resblocks[0].mlp.gelu),
        "block": clip.block,
        "tokens": z,
        "features": clip.features(z),
        "rows": sae.W_dec.norm(dim=1),
        "latents": sae.encode(Z),
        "fresh": SAE(8, 16).W_dec,
        "levels": levels[1] - levels[0],
        "mask": masked.predictions["own"],
    }


def same(first: Any, second: Any) -> bool:
    """Whether two probes agree."""
    if torch.is_tensor(first):
        return first.shape == second.shape and torch.allclose(first, second, atol=1e-5)
    return first == second


CLIP = study.load_clip(load_profile("world").model, "cpu")
PIXELS = World("styles", "test", 2).batch(range(2))
HEAD = CLIP.text_features(World("styles").class_names[:4], ["a photo of a {}"])
SHOWN = CLIP.tokens(CLIP.preprocess(World("styles", "test", 4).batch(range(4)))).detach()
USUAL = probes()


@pytest.mark.parametrize("name", ["none", *FAULTS])
def test_a_fault_changes_what_it_says(name: str) -> None:
    with put_in(name):
        now = probes()
    changed = {name for name, x in USUAL.items() if not same(x, now[name])}
    assert changed == {*CHANGED.get(name, "").split()}


def test_nothing_is_left_of_a_fault() -> None:
    for name in FAULTS:
        with put_in(name):
            pass
    assert all(same(x, y) for x, y in zip(USUAL.values(), probes().values(), strict=True))


def test_other_pictures_are_no_fault() -> None:
    with put_in("null-1"):
        assert not same(USUAL["pixels"], World("styles", "test", 4).batch(range(4)).float())
        assert World("styles").class_names == USUAL["names"]


@pytest.mark.parametrize("page", PAGES)
def test_what_claims_rest_on_is_run(page: str) -> None:
    """Every claim that can have a verdict, and no drawing that nothing needs."""
    code = "\n".join(ast.unparse(x) for x in statements(page))
    text = (ROOT / f"notebooks/{page}.ipynb").read_text("utf-8").replace('\\"', "'")
    claims = {*re.findall(r"study\.claim\('([\w-]+)'", text)} - {"4-oracle", "5-own-sae"}
    assert {*re.findall(r"study\.claim\('([\w-]+)'", code)} == claims
    assert not re.search(r"Explorer\(|Strips\(|highlight\(", code)


def test_the_table_has_every_fault() -> None:
    run = {"claims": {"1-a": {"verdict": "not", "interval": None}}, "raised": {}}
    run |= {"check": ["LOOK here"], "tests": ["test_x"]}
    results = dict.fromkeys(("none", "null-1", "null-2", *FAULTS), run)
    rows = table(results).splitlines()[2:]
    end = "– | LOOK here | test_<wbr>x |"
    assert rows == [f"| {fault.words} | {end}" for fault in FAULTS.values()]
    shipped = (DATA / "faults.md").read_text("utf-8")
    assert all(f"| {fault.words} |" in shipped for fault in FAULTS.values())

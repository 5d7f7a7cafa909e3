"""What a profile needs, said before it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

import build as builder
from patchsae_lib import plan
from patchsae_lib.__main__ import main
from patchsae_lib.interop import load_clip
from patchsae_lib.interop.openclip import WEIGHTS_FILE
from patchsae_lib.plan import Counts
from patchsae_lib.profiles import ModelConfig, PicturesConfig, Profile, load_profile

SMALL = SimpleNamespace(n_blocks=6, n_tokens=197, d_vit=192)


def test_the_work_of_a_profile_counted_by_hand() -> None:
    world = replace(load_profile("world"), tasks=("world:flowers",))
    counts = {"world": Counts(2400, 350, 35), "world:flowers": Counts(100, 140, 16)}
    amounts = plan.work(world, SMALL, counts)
    assert amounts["tokens of the pictures"] == {"first": 2750}
    assert amounts["an autoencoder"] == {"tokens": 250 * 4096}
    others = amounts["27 other trainings (1, 5b)"]
    assert others["first"] == 4 * (1200 + 350)  # three other blocks, and CLIP untrained
    assert others["tokens"] == 4 * 250 * 4096 + (2 * 3 + 17) * 100 * 2048
    shots, base = world.prompts.shots, 8
    steps = world.prompts.epochs * (shots * base // 4)  # of the task that is trained anew
    tuned = 5 * shots * base  # five passes, with every weight
    assert amounts["adaptation, tasks: 1"] == {
        "pictures": 4 * steps + tuned,
        "texts": base * steps,
    }


def test_the_plan_knows_of_every_training_of_notebook_1(build: Path) -> None:
    trained = pd.read_parquet(build.parent / "runs/smoke/table2.parquet")
    smoke, counts = load_profile("smoke"), Counts(175, 70, 35)
    amounts = plan.work(smoke, SMALL, dict.fromkeys(plan.specs(smoke), counts))
    of_5b = 2
    title = f"{len(trained) + of_5b} other trainings (1, 5b)"
    assert title in amounts


def test_what_is_there_and_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    for variable in ("HF_HUB_CACHE", "XDG_CACHE_HOME", "TORCHVISION_DATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        (tmp_path / "own" / part / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "own" / part / name / "x.png")
    profile = replace(
        load_profile("evening"), tasks=(f"folder:{tmp_path}/own", "torchvision:DTD", "world:land")
    )
    weights, hub, own, dtd = plan.needs(profile)
    assert not weights.is_there
    assert weights.source.startswith("huggingface.co/timm/")
    assert weights.size == pytest.approx(598.5e6, rel=1e-3)  # 149.6 million numbers
    assert (hub.is_there, hub.size) == (False, 7.4e9)
    assert hub.source == "huggingface.co/datasets/timm/mini-imagenet"
    assert (own.is_there, own.size) == (True, None)
    assert (dtd.is_there, dtd.source, dtd.size) == (False, "", 6.3e8)
    assert plan.count(profile, own.name) == Counts(2, 2, 2)
    assert plan.count(profile, "torchvision:DTD") == Counts(3760, 140, 47)  # of a task
    assert plan.count(load_profile("trial"), "folder:none") is None
    assert plan.count(replace(profile, pictures=PicturesConfig("hf:a/b")), "hf:a/b") is None
    assert [need.name for need in plan.to_fetch(profile)] == [weights.name, hub.name]
    file = tmp_path / WEIGHTS_FILE
    file.touch()
    model = replace(profile.model, weights=str(file))
    profile = replace(profile, model=model, pictures=PicturesConfig("world"))
    assert plan.needs(profile)[0].is_there
    assert plan.to_fetch(profile) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig("ViT-X"), "no model 'ViT-X'"),
        (
            ModelConfig(pretrained="nonsense"),
            "'nonsense' is neither a .safetensors file nor a tag",
        ),
    ],
)
def test_a_model_that_is_not_known_is_an_error(model: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.needs(Profile("mine", model=model))


def test_pictures_of_another_spec_are_tested_on() -> None:
    world, counts = load_profile("world"), {"world": Counts(2400, 1, 35)}
    amounts = plan.work(world, SMALL, counts | {"world:styles": Counts(1, 350, 35)})
    assert amounts["tokens of the pictures"] == {"first": 2750}


def test_a_file_that_is_missing_is_not_fetched(tmp_path: Path) -> None:
    profile = Profile("mine", ModelConfig(weights=str(tmp_path / "no.safetensors")))
    (line, *_) = plan.needed(plan.needs(profile))
    assert f"MISSING, to be put into {tmp_path}/no.safetensors" in line
    assert plan.to_fetch(profile) == []


def test_a_book_asks_before_it_fetches(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(builder, "make_book", lambda *given, **how: made.append(given) or tmp_path)
    asked = ["--profile", "clip", "-p", "images", f"folder:{tmp_path}"]
    assert builder.main(asked) == 1
    told = capsys.readouterr().err
    assert "598MB  is fetched from huggingface.co" in told
    assert "give YES=1" in told
    assert made == []
    assert builder.main([*asked, "--yes"]) == 0
    assert builder.main(["--profile", "world"]) == 0
    assert [profile for profile, _ in made] == ["clip", "world"]


def test_rates_are_of_this_machine_and_in_order() -> None:
    clip = load_clip(ModelConfig("small", ""))
    rates = plan.rates(load_profile("smoke"), clip, seconds=0)
    assert {*rates} == {*plan.KINDS}
    assert all(0 < x.low <= x.middle <= x.high for x in rates.values())


def test_a_rate_leaves_the_first_round_out(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(plan.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spans = iter([9, 2, 3, 1])

    def run() -> None:
        now[0] += next(spans)

    assert plan.timed(run, 2, 0) == (1, 0.5, 1.5)


def test_a_plan_is_printed(capsys, monkeypatch) -> None:
    monkeypatch.setattr(plan.lines, "__defaults__", (0,))  # seconds of the calibration
    command = ["plan", "--profile", "smoke"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "nothing to fetch" in told
    assert "tokens of CLIP" in told
    assert "in all" in told
    assert main([*command, "-p", "picture", "world"]) == 1
    assert "unknown parameter 'picture'" in capsys.readouterr().err


def test_pictures_that_nobody_counts_end_the_plan(capsys) -> None:
    profile = Profile("none", pictures=PicturesConfig("hf:nobody/nothing"))
    told = "\n".join(plan.lines(profile))
    assert "size not known  is fetched from huggingface.co/datasets/nobody/nothing" in told
    assert "get hf:nobody/nothing first" in told
    assert "time" not in told

"""The scripts in `recipes/`: the small CLIP's training and its card, on a handful of pictures."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.openclip import CONFIG_FILE, WEIGHTS_FILE, load_small_clip
from patchsae_lib.world.vocabulary import COLOURS, STYLES, WORDS
from recipes import results
from recipes import small_clip as module
from recipes.card import patch_probe, wilson, write_card
from recipes.small_clip import PretrainConfig, contrastive_loss, draw_batch, pretrain

TINY = PretrainConfig(singles=100, scenes=20, steps=4, batch=8, warmup=2)


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "evaluate", lambda *_: dict.fromkeys(STYLES, 0.5))


@pytest.fixture(scope="module")
def pools() -> dict:
    sizes = {"singles": TINY.singles, "scenes": TINY.scenes}
    return {pool: list(range(n)) for pool, n in sizes.items()}  # the number stands for the picture


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, monkeypatch) -> None:
    whole = pretrain(TINY, tmp_path / "whole", tmp_path / "work", interval=2)

    def cut(pools: dict, step: int, config: PretrainConfig) -> tuple:
        if step == 3:
            raise KeyboardInterrupt
        return draw_batch(pools, step, config)

    monkeypatch.setattr(module, "draw_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "cut", tmp_path / "work2", interval=2)
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(module, "draw_batch", draw_batch)
    resumed = pretrain(TINY, tmp_path / "cut", tmp_path / "work2", interval=2)
    a, b = (load_file(d / WEIGHTS_FILE) for d in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)
    about = json.loads((resumed / "training.json").read_text())
    assert [row["step"] for row in about["curve"]] == [2, 4]


def test_a_checkpoint_of_another_run_is_kept_aside(tmp_path) -> None:
    first = pretrain(TINY, tmp_path / "first", tmp_path / "work")
    again = pretrain(TINY, tmp_path / "again", tmp_path / "work")  # nothing is left to do
    assert (first / WEIGHTS_FILE).read_bytes() == (again / WEIGHTS_FILE).read_bytes()
    with pytest.warns(UserWarning, match=r"config.lr: 0.001 there.*kept as checkpoint"):
        pretrain(replace(TINY, lr=1e-4), tmp_path / "other", tmp_path / "work")
    assert (tmp_path / "work/checkpoint.safetensors.old").is_file()


def test_a_batch_depends_on_its_step_alone(pools, monkeypatch) -> None:
    monkeypatch.setattr(module.np, "stack", lambda x: torch.tensor(x)[:, None, None, None].numpy())
    first, captions = draw_batch(pools, 1, TINY)
    draw_batch(pools, 0, TINY)
    again, same = draw_batch(pools, 1, TINY)
    assert first.equal(again)
    assert captions == same
    assert captions != draw_batch(pools, 0, TINY)[1]


def captions_of(lesson: dict[str, float]) -> list[str]:
    shares = dict.fromkeys(("share_classes", "share_words", "share_scenes"), 0.0) | lesson
    config = replace(TINY, singles=2000, scenes=400, batch=400, **shares)
    pools = {"singles": torch.zeros(2000, 1, 1, 1).numpy(), "scenes": torch.zeros(400).numpy()}
    return draw_batch(pools, 3, config)[1]


def test_a_lesson_of_classes_has_one_style_and_hardly_names_a_colour() -> None:
    lesson, usual = captions_of({"share_classes": 1.0}), captions_of({})
    assert len({c.split()[1] for c in lesson}) == 1
    assert {c.split()[1] for c in usual} == set(STYLES)
    named = [sum(any(w in COLOURS for w in c.split()) for c in x) for x in (lesson, usual)]
    assert named[0] < named[1] / 2


def test_a_lesson_of_words_names_nothing_else() -> None:
    lesson = captions_of({"share_words": 1.0})
    head, words = {c.rsplit(" ", 1)[0] for c in lesson}, {c.rsplit(" ", 1)[1] for c in lesson}
    assert len(head) == 1
    assert head.pop().endswith(" of a thing with the word")
    assert words == set(WORDS)


def test_the_schedule_moves_from_start_to_end() -> None:
    c = PretrainConfig()
    assert c.at(0) == pytest.approx((c.drop_start, c.lr / c.warmup))
    assert c.at(c.steps) == pytest.approx((c.drop_end, 0), abs=1e-9)


def test_training_can_start_from_weights(tmp_path: Path) -> None:
    first = pretrain(TINY, tmp_path / "first", tmp_path / "work")
    config = replace(TINY, init=str(first), lr=0.0)  # nothing is learnt, so nothing moves
    second = pretrain(config, tmp_path / "second", tmp_path / "work2")
    a, b = (load_file(d / WEIGHTS_FILE) for d in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_pictures_with_the_same_caption_are_all_right_answers() -> None:
    x = torch.eye(3)
    image = text = x[[0, 0, 1]]
    same = torch.tensor([[1, 2], [1, 2], [3, 2]])
    loss = contrastive_loss(image, text, torch.tensor(50.0), same)
    # the two equal pairs cannot be told apart: log 2 each, and 0 for the third
    assert float(loss) == pytest.approx(2 / 3 * math.log(2), rel=1e-4)


def test_the_card_says_what_was_measured(tmp_path: Path) -> None:
    directory = pretrain(TINY, tmp_path / "clip", tmp_path / "work")
    assert patch_probe(load_small_clip(directory), 70, 35).shape == (35,)
    scores = {**dict.fromkeys(STYLES, 0.97), "land": 0.31}
    measured = {"n": 100, "accuracy": scores, "patch_auroc": 0.913}
    write_card(directory, {**measured, "worst_class": "pear", "worst_auroc": 0.8})
    text = (directory / "README.md").read_text()
    low, high = wilson(0.31, 100)
    assert f"| land cover from above | 8 | strong | 0.310 | {low:.3f} – {high:.3f} |" in text
    assert "**0.913**" in text
    assert "- Land cover from above: 0.31 zero-shot." in text
    assert "recipes.small_clip --singles 100 --scenes 20 --steps 4 --batch 8 --warmup 2\n" in text


def test_what_ships_is_small_and_whole() -> None:
    directory = DATA / "small_clip"
    assert (directory / WEIGHTS_FILE).stat().st_size <= 8_000_000
    assert (directory / CONFIG_FILE).is_file()
    assert load_small_clip(directory).n_blocks == 6


def test_the_readme_shows_the_results_that_ship_and_these_are_of_the_claims_file() -> None:
    claims = json.loads(results.RESULTS.read_text("utf-8"))
    readme = results.README.read_text("utf-8")
    assert results.fill(readme, claims) == readme
    known = tomllib.loads((DATA / "paper" / "claims.toml").read_text("utf-8"))
    assert [claim["id"] for claim in claims] == sorted(known)
    for claim in claims:
        about = {key: value for key, value in known[claim["id"]].items() if key != "note"}
        assert {key: claim[key] for key in about} == about


def test_only_the_table_of_the_readme_is_replaced() -> None:
    claim = {"claim": "it rises", "where": "§1", "measured": "2", "over": "", "verdict": "partly"}
    text = results.fill(
        f"before\n\n{results.HEAD}| old | 1 | not |\n\nafter", [claim | {"interval": None}]
    )
    assert text == f"before\n\n{results.HEAD}| it rises (§1) | 2 | partly |\n\nafter"
    with pytest.raises(ValueError, match="no table"):
        results.fill("nothing", [])

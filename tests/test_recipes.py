"""The scripts in `recipes/`: the small CLIP's training and its card, on a handful of pictures."""

import json
import math
import random
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patchsae_lib.artefacts import DATA, weights_hash
from patchsae_lib.interop.openclip import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WordTokenizer,
    create_small_clip,
    load_small_clip,
    small_clip_config,
)
from patchsae_lib.world.tasks import COUNTS, all_words
from patchsae_lib.world.vocabulary import COLOURS, STYLES, WORDS
from recipes import lessons, results
from recipes import small_clip as module
from recipes.card import class_share, patch_probe, patch_scores, wilson, write_card
from recipes.lessons import LESSONS, Pool, render_pool
from recipes.small_clip import (
    Batches,
    PretrainConfig,
    contrastive_loss,
    draw_batch,
    pretrain,
    start_from,
    words_loss,
)

TINY = PretrainConfig(steps=4, batch=8, warmup=2, pools=0.002)
PATCHES = {"class": {"probe": 0.21, "random": 0.04}}


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "evaluate", lambda *_: dict.fromkeys(STYLES, 0.5))


def pools_of(**sizes: int) -> dict[str, Pool]:
    """Pools without pictures."""
    return {name: Pool(np.zeros((n, 1, 1, 3), np.uint8), [{}] * n) for name, n in sizes.items()}


def captions_of(lesson, n: int = 300, t: float = 0.5, **sizes: int) -> list[tuple[int, str]]:
    """Numbers of pictures and captions of a lesson."""
    drawn = lesson(random.Random(0), pools_of(**sizes), 0, t, n)
    return [(index, text) for _, index, text in drawn]


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


def test_a_batch_depends_on_its_step_alone(monkeypatch) -> None:
    pools = pools_of(singles=40, scenes=20)
    monkeypatch.setattr(module, "LESSONS", LESSONS[:2])  # whose captions need no pictures
    first, captions, dropped = draw_batch(pools, 1, TINY)
    draw_batch(pools, 0, TINY)
    again, same, _ = draw_batch(pools, 1, TINY)
    assert first.equal(again)
    assert (captions, dropped) == (same, 1.0)
    assert captions != draw_batch(pools, 0, TINY)[1]


def test_batches_ahead_are_those_of_their_steps(tmp_path: Path) -> None:
    pools = {name: render_pool(name, 12, 0, tmp_path) for name in lessons.POOLS}
    made = Batches(pools, TINY, WordTokenizer(all_words()))
    ahead = [*made.ahead(1, torch.device("cpu"))]
    assert len(ahead) == TINY.steps - 1
    for step, (pictures, ids, dropped) in enumerate(ahead, 1):
        same, captions, share = draw_batch(pools, step, TINY)
        assert pictures.equal(same)
        assert ids.equal(made.tokenizer(captions))
        assert dropped == share


def test_shares_of_lessons_add_up_and_reading_comes_in_the_second_half() -> None:
    for t in (0, 0.3, 0.5, 0.8, 1):
        assert sum(lesson.share(t) for lesson in LESSONS) == pytest.approx(1)
    (signs,) = [lesson for lesson in LESSONS if lesson.draw is lessons.signs]
    assert (signs.share(0.49), signs.share(0.5), signs.share(1)) == (0, 0.22, 0.15)
    assert PretrainConfig(begin=0.5, steps=10).part(5) == 0.75


def test_a_lesson_of_classes_has_one_style_and_hardly_names_a_colour() -> None:
    lesson = [text for _, text in captions_of(lessons.classes, singles=2000)]
    usual = [text for _, text in captions_of(lessons.everything, singles=2000, scenes=400)]
    assert len({text.split()[1] for text in lesson}) == 1
    assert {text.split()[1] for text in usual} == set(STYLES)
    named = [sum(any(w in COLOURS for w in c.split()) for c in x) for x in (lesson, usual)]
    assert named[0] < named[1] / 2


def test_a_lesson_of_signs_names_the_word_and_moves_away_from_it() -> None:
    drawn = captions_of(lessons.signs, signs=1000)
    assert max(index for index, _ in drawn) < 200  # the nearest
    for index, text in drawn:
        assert text.endswith(f"with the word {lessons.scene_of('signs', index, 0).word}")
    assert {text.rsplit(" ", 1)[1] for _, text in drawn} == set(WORDS)
    assert max(index for index, _ in captions_of(lessons.signs, t=1.0, signs=1000)) > 900


def test_a_lesson_of_numbers_counts_the_things() -> None:
    drawn = captions_of(lessons.numbers, counted=60)
    for index, text in drawn:
        n = len(lessons.scene_of("counted", index, 0).things)
        assert f" of {COUNTS[n - 1]} " in text
    assert len({text.split()[3] for _, text in drawn}) == len(COUNTS)


def test_a_close_up_is_named_after_what_fills_it() -> None:
    picture, facts = lessons.picture_of("closeups", 0, 10, 3)
    assert picture.shape == (lessons.SIZE, lessons.SIZE, 3)
    scene = lessons.scene_of("closeups", 3, 0)
    assert {thing["cls"] for thing in facts["things"]} <= {thing.cls for thing in scene.things}
    texts = [lessons.closeup_caption(facts, random.Random(i)) for i in range(20)]
    named = {part for thing in facts["things"] for part in thing["parts"]}
    assert any(part in text for part in named for text in texts)
    away = {"cls": "owl", "colour": "red", "parts": ["beak"]}
    text = lessons.closeup_caption({"style": "photo", "things": [away]}, random.Random(1))
    assert text in {f"a photo of a {c}{noun} with a beak"
                    for c in ("", "red ") for noun in ("owl", "thing")}  # fmt: skip


def test_words_are_compared_with_their_best_patches() -> None:
    x = torch.eye(4)
    patches = torch.stack([x[[0, 1]], x[[2, 2]]])  # (2 pictures, 2 patches, 4)
    words = x[[0, 1, 2]]  # two of the first caption, one of the second
    owner, ids = torch.tensor([0, 0, 1]), torch.tensor([[1], [2]])
    right = words_loss(patches, words, owner, torch.tensor(10.0), ids)
    # fits are [[1, 0], [0, 1]]: cross-entropy of logits 10 and 0
    assert float(right) == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)
    half = words_loss(patches, x[[0, 3, 2]], owner, torch.tensor(10.0), ids)
    rows = (
        math.log(1 + math.exp(-5)) + math.log(1 + math.exp(-10))
    ) / 2  # the logits are 5 and 10
    assert float(half) == pytest.approx(rows, rel=1e-3)


def test_a_caption_without_words_that_patches_show_is_left_out() -> None:
    x = torch.eye(3)
    patches, ids = x[[0, 1, 2]][:, None], torch.tensor([[1], [2], [3]])
    some = words_loss(patches, x[[0, 1]], torch.tensor([0, 1]), torch.tensor(9.0), ids)
    alone = words_loss(patches[:2], x[[0, 1]], torch.tensor([0, 1]), torch.tensor(9.0), ids[:2])
    assert float(some) == pytest.approx(float(alone))


def test_weights_are_taken_over_word_by_word(tmp_path: Path) -> None:
    first = load_small_clip(pretrain(TINY, tmp_path / "first", tmp_path / "work"))
    words = ["zebra", *reversed(first.tokenizer.words[5:])]
    model, tokenizer = create_small_clip(small_clip_config(words)), WordTokenizer(words)
    drawn = model.token_embedding.weight.detach().clone()
    start_from(model, tokenizer, first)
    old, new = first.model.token_embedding.weight, model.token_embedding.weight
    for word in (words[1], words[-1]):
        assert new[tokenizer.ids[word]].equal(old[first.tokenizer.ids[word]])
    assert new[tokenizer.end].equal(old[first.tokenizer.end])
    assert new[tokenizer.ids["zebra"]].equal(drawn[tokenizer.ids["zebra"]])
    assert model.visual.proj.equal(first.model.visual.proj)


def test_the_schedule_moves_from_start_to_end() -> None:
    c = PretrainConfig()
    assert c.at(0) == pytest.approx((c.drop_start, c.lr / c.warmup))
    assert c.at(c.steps) == pytest.approx((c.drop_end, 0), abs=1e-9)


def test_the_second_half_alone_needs_weights_of_the_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"begin = 0.5 needs weights"):
        pretrain(replace(TINY, begin=0.5), tmp_path / "clip", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_training_can_start_from_weights(tmp_path: Path) -> None:
    first = pretrain(TINY, tmp_path / "first", tmp_path / "work")
    config = replace(TINY, lr=0.0)  # nothing is learnt, so nothing moves
    second = pretrain(config, tmp_path / "second", tmp_path / "work2", init=first)
    a, b = (load_file(d / WEIGHTS_FILE) for d in (first, second))
    assert all(torch.equal(a[k], b[k]) for k in a)
    about = json.loads((second / "training.json").read_text())
    assert about["init"] == weights_hash(load_small_clip(first).model)


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
    shares = {"class_share": 0.0714, "class_share_floor": 0.01}
    measured = {"n": 100, "accuracy": scores, "patch_auroc": 0.913, "patches": PATCHES, **shares}
    write_card(directory, {**measured, "worst_class": "pear", "worst_auroc": 0.8})
    text = (directory / "README.md").read_text()
    low, high = wilson(0.31, 100)
    assert f"| land cover from above | 8 | strong | 0.310 | {low:.3f} – {high:.3f} |" in text
    assert "**0.913**" in text
    assert "- Land cover from above: 0.31 zero-shot." in text
    assert "| class | 0.210 | 0.040 |" in text
    assert "**7.1%** (exchanged classes: 1.0%)" in text
    assert "recipes.small_clip --steps 4 --batch 8 --warmup 2 --pools 0.002\n" in text


def test_class_explains_tokens_only_where_classes_are_right(monkeypatch) -> None:
    clip = load_small_clip(DATA / "small_clip")
    share, floor = class_share(clip, 70), class_share(clip, 70, seed=0)
    assert 0 < floor < share < 1
    monkeypatch.setattr("recipes.card.N_DIRECTIONS", 50)
    scores = patch_scores(clip, 70)
    assert scores["colour"]["linear probe (supervised)"] > scores["colour"]["position alone"]


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

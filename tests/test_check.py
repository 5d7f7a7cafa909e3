"""Faults that users have are put in one at a time; the check names each, and no other."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image

from patchsae_lib import Study
from patchsae_lib.__main__ import main
from patchsae_lib.check import Finding, autoencoder, check, compared, zero_shot
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import with_other_gelu
from patchsae_lib.pictures.sources import repeated
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split
from patchsae_lib.world import World

N = 64


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("world")


@pytest.fixture(scope="module")
def part(study: Study) -> Split:
    return study.see(World("styles", "test", N))


def complaints(findings: list[Finding]) -> list[str]:
    return [words for ok, words in findings if not ok]


def of_clip(part: Split, clip: SplitCLIP | None = None, flip: bool = False, **change) -> list[str]:
    pictures = part.pictures.batch(range(N))
    part = replace(part, clip=clip or part.clip, **change)
    return complaints([*zero_shot(part, pictures.flip(1) if flip else pictures)])


def test_nothing_is_wrong_with_what_ships(study: Study, part: Split) -> None:
    assert of_clip(part) == []
    images = study.clip.preprocess(part.pictures.batch(range(N)))
    assert complaints([*autoencoder(study.sae, study.clip, images)]) == []


def test_what_the_paper_reports_is_compared(study: Study, part: Split) -> None:
    pictures = part.pictures.batch(range(N))
    for reported, is_near in ((0.94, True), (0.68, False)):
        findings = [*zero_shot(part, pictures, reported)]
        (told,) = [x for x in findings if x.words.startswith(f"the paper reports {reported:.1%}")]
        assert told.ok is is_near
    images = study.clip.preprocess(pictures[:8])
    for reported, is_near in ((25.0, True), (148.56, False), (5.0, False)):
        told = [*autoencoder(study.sae, study.clip, images, reported)][1]
        assert f"(the paper reports {reported:.1f})" in told.words
        assert told.ok is is_near


def test_pictures_without_a_class_are_left_out(part: Split) -> None:
    labels = part.labels.clone()
    labels[::2] = -1
    assert of_clip(part, labels=labels) == []
    labels[:] = -1
    (told,) = zero_shot(replace(part, labels=labels), part.pictures.batch(range(N)))
    assert told == (True, "pictures without classes: preprocessing and names are not checked")


def test_colours_in_another_order(part: Split) -> None:
    (told,) = of_clip(part, flip=True)
    assert told.startswith("with red and blue exchanged")


def test_another_mean_and_std(study: Study, part: Split) -> None:
    wrong = copy.deepcopy(study.clip)
    wrong.mean.zero_()
    wrong.std.fill_(1)
    told = of_clip(part, wrong)
    assert any(words.startswith("with 0.5 mean and std") for words in told)
    assert not any("GELU" in words or "names" in words for words in told)


def test_names_shifted_by_one(part: Split) -> None:
    told = of_clip(part, class_names=(*part.class_names[1:], part.class_names[0]))
    assert "chance" in told[0]
    assert any("with names 1 back" in words for words in told)
    assert not any("GELU" in words or "std" in words for words in told)


def test_names_in_another_order(part: Split) -> None:
    told = of_clip(part, class_names=tuple(sorted(part.class_names)))
    assert any("with names in another order" in words for words in told)


def test_names_that_fit_are_not_exchanged_by_chance(part: Split) -> None:
    """Also where predictions know nothing of the names, which an assignment would fit."""
    labels = part.labels[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
    told = of_clip(part, labels=labels)
    assert not any("with names" in words for words in told)


@pytest.mark.parametrize("block", [3, 5])
def test_a_block_too_early_or_late(study: Study, part: Split, block: int) -> None:
    images = study.clip.preprocess(part.pictures.batch(range(N)))
    told = complaints([*autoencoder(study.sae, study.clip.at_block(block), images)])
    assert any(words.startswith(f"tokens of block 5, not {block + 1}") for words in told)


def test_the_other_gelu_is_a_copy_with_the_other(study: Study) -> None:
    """It hardly changes the small CLIP's answers, so that no check could notice it there."""
    kinds = [
        {type(m).__name__ for m in clip.model.modules() if "GELU" in type(m).__name__}
        for clip in (study.clip, with_other_gelu(study.clip), with_other_gelu(study.clip))
    ]
    assert kinds[0] != kinds[1] == kinds[2]
    assert all(len(kind) == 1 for kind in kinds)


def test_tokens_of_another_scale(study: Study, part: Split) -> None:
    images = study.clip.preprocess(part.pictures.batch(range(N)))
    unfolded: SAE = study.sae.fold(1 / float(part.tokens[:].float().norm(dim=-1).mean()))
    told = complaints([*autoencoder(unfolded, study.clip, images)])
    assert any(words.startswith("tokens divided by their mean length") for words in told)


@pytest.mark.parametrize(("gained", "lost", "ok"), [(9, 0, True), (10, 0, False), (20, 8, True)])
def test_a_better_way_must_be_sure(gained: int, lost: int, ok: bool) -> None:
    """gained − lost > 3 √(gained + lost): 10 > 9.5, but 9 = 9 and 12 < 15.9."""
    right = torch.tensor([False] * gained + [True] * lost)
    assert compared(right, ~right, "another").ok is ok


@pytest.mark.parametrize(
    ("wrong", "gained", "n_classes", "ok"),
    [
        (48, 21, 35, True),
        (48, 22, 35, False),
        (48, 36, 4, False),
        (48, 34, 4, True),
        (48, 48, 2, True),
    ],
)
def test_some_pictures_read_in_another_way(
    wrong: int, gained: int, n_classes: int, ok: bool
) -> None:
    """gained − share · wrong > 3 √(wrong · share · (1 − share)): 12 + 9 of 48 at a quarter, 24 +
    10.4 at a half; with two classes whoever is wrong is right the other way."""
    right = torch.tensor([False] * wrong + [True] * wrong)
    right_then = torch.tensor([True] * gained + [False] * (2 * wrong - gained))
    assert compared(right, right_then, "another", n_classes).ok is ok


def test_pictures_of_both_splits(study: Study, part: Split) -> None:
    pictures = part.pictures.batch(range(8))
    assert repeated(pictures, World("styles", "train", 100), 100) == (0, 100)
    assert repeated(pictures, part.pictures, 1000) == (8, N)
    found, n = repeated(pictures, part.pictures, 32)
    assert (0 < found < 8, n) == (True, 32)


def test_decoder_rows_of_other_lengths(study: Study, part: Split) -> None:
    images, sae = study.clip.preprocess(part.pictures.batch(range(16))), copy.deepcopy(study.sae)
    scale = torch.linspace(0.5, 2, sae.d_sae)  # the same function
    with torch.no_grad():
        sae.W_dec.mul_(scale[:, None])
        sae.W_enc.div_(scale)
        sae.b_enc.div_(scale)
    (told,) = complaints([*autoencoder(sae, study.clip, images)])
    assert told.startswith("decoder rows differ in length by 35%")


def test_clip_is_not_its_own_judge(monkeypatch, tmp_path) -> None:
    """Pictures without classes have CLIP's predictions for labels: no accuracy can be told."""
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "mine").mkdir()
    for i, picture in enumerate(World("styles", "test", 12).batch(range(12))):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "mine" / f"{i}.png")
    first, *_ = check(Study("world", images=f"folder:{tmp_path}/mine"))
    assert first == (True, "pictures without classes: preprocessing and names are not checked")


def test_the_command(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    profile = tmp_path / "small.toml"
    pictures = '[pictures]\ntest = "world:styles"\nn_train = 70\nn_test = 70\n'
    profile.write_text(f'base = "world"\n{pictures}')
    assert main(["check", "--profile", str(profile)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("ok    zero-shot accuracy")
    assert "LOOK" not in told
    profile.write_text(f'base = "world"\n{pictures}[model]\nblock = 2\n')
    shipped = "data/sae.safetensors"
    assert main(["check", "--profile", str(profile), "-p", "sae", shipped]) == 1
    out, err = capsys.readouterr()
    assert "LOOK" in out
    assert "look wrong" in err

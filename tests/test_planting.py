"""What is planted is what is said to be planted."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchsae_lib.world.planting import (
    PARTS,
    Plant,
    Turned,
    created,
    erase,
    leace,
    mixed,
    moved,
    near,
    renamed,
    reweighted,
    turned,
    unchanged,
)

HEAD = torch.eye(3)


def tokens(n: int = 6, d: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 5, d, generator=torch.Generator().manual_seed(seed))


def test_names_are_rolled_by_one_among_the_first_classes() -> None:
    z = tokens()
    plant = renamed(z, HEAD)
    assert plant.heads[0].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert plant.heads[1] is HEAD
    assert plant.before is plant.after is z
    assert renamed(z, HEAD, 2).heads[0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_a_part_is_there_before_as_alpha_of_it() -> None:
    z, part = tokens(seed=0), tokens(seed=1)
    plant = reweighted(z, HEAD, part, 0.3)
    assert torch.allclose(plant.before, z - 0.7 * part)
    assert plant.after is z
    assert plant.required["alpha"] == pytest.approx((0.2, 0.4))


@given(st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_classes_have_one_mean_after_erasure_and_as_little_as_possible_moves(c, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 8, generator=generator).double() @ torch.randn(8, 8).double()
    labels = torch.arange(200) % c
    x = x + 3 * torch.randn(c, 8, generator=generator).double()[labels]
    eraser = leace(x, labels)
    erased = eraser(x)
    means = torch.stack([erased[labels == k].mean(0) for k in range(c)])
    assert torch.allclose(means, x.mean(0).expand_as(means), atol=1e-6)
    assert torch.allclose(eraser(erased), erased, atol=1e-6)  # nothing is left to erase
    assert torch.linalg.matrix_rank(eraser.projection, rtol=1e-6) == c - 1
    # what is taken away is not correlated with what is left: no linear function has it
    crossed = (x - erased - (x - erased).mean(0)).T @ (erased - erased.mean(0))
    assert crossed.abs().max() < 1e-6 * (x.T @ x).abs().max()


def test_erasure_by_hand() -> None:
    # two classes apart along the first axis, uncorrelated with the second: that axis goes
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    erased = leace(x, torch.tensor([0, 0, 1, 1]))(x)
    assert torch.allclose(erased, torch.tensor([[0.0, 1], [0, -1], [0, 1], [0, -1]]), atol=1e-6)


def test_cls_and_patches_are_erased_apart() -> None:
    known, labels = tokens(40), torch.arange(40) % 2
    known[:, 0, 0] += 5 * labels  # only CLS says the class, in one coordinate,
    known[:, 1:, 1] += 5 * labels[:, None]  # patches in another one
    erased = erase(known, known, labels)
    for place in (slice(0, 1), slice(1, None)):
        x = erased[:, place].flatten(0, 1)
        of_tokens = labels.repeat_interleave(len(x) // 40)
        apart = x[of_tokens == 0].mean(0) - x[of_tokens == 1].mean(0)
        assert apart.abs().max() < 1e-5
    assert created(known, HEAD, erased).before is erased


def toy() -> SimpleNamespace:
    """A model whose features are the CLS token plus the last token."""
    model = SimpleNamespace(device=torch.device("cpu"), n_tokens=5, n_prompts=1, at_once=4)
    model.features = lambda z: z[:, 0] + z[:, -1]
    return model


def test_a_turned_model_reads_turned_tokens_as_before_and_prompts_as_they_are() -> None:
    z, prompt = tokens(), tokens(seed=2)[:, :1]
    plant = turned(unchanged(z, HEAD), seed=3)
    assert torch.allclose(plant.turn @ plant.turn.T, torch.eye(4), atol=1e-6)
    assert not torch.allclose(plant.after, z, atol=0.1)
    model = Turned(toy(), plant.turn)
    found = model.features(torch.cat([plant.after, prompt], 1))
    assert torch.allclose(found, z[:, 0] + prompt[:, 0], atol=1e-5)
    assert (model.n_tokens, model.n_prompts, model.at_once) == (5, 1, 4)
    clip = toy()
    assert Turned(clip, plant.turn).unadapted() is clip
    adapted = SimpleNamespace(**vars(toy()), unadapted=lambda: clip)
    assert Turned(adapted, plant.turn).unadapted() is clip


def test_a_plant_that_is_not_turned_is_read_as_it_is() -> None:
    z = tokens()
    plant = moved(z, HEAD, z + 1)
    read = plant.model(toy()).features(plant.after)
    assert torch.equal(read, toy().features(z + 1))


def test_where_nothing_was_learnt_a_change_beyond_noise_is_wrong() -> None:
    z = torch.zeros(2, 3, 4)
    plant = moved(z, HEAD, z + 1, "second seed")
    assert (plant.name, plant.grade({})) == ("second seed", "abstains")
    assert torch.equal(plant.after, z + 1)
    assert plant.grade({"change": 0.0}) == plant.grade({"points": 0.0}) == "right"
    for says in ({"change": 0.6}, {"points": 0.05}, {"new": 0.3, "overlap, CLS": 0.6}):
        assert plant.grade(says) == "wrong"


def test_a_turned_gain_keeps_its_truth_with_the_tolerance_of_a_mixture() -> None:
    plant = turned(renamed(tokens(), HEAD))
    assert plant.name == "rotation + names"
    assert plant.required == near({"names": 1.0})
    assert turned(unchanged(tokens(), HEAD)).required["names"] == (-0.01, 0.01)


def test_pictures_of_a_mixture_have_the_one_plant_or_the_other() -> None:
    z = torch.zeros(6, 5, 3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    z[torch.arange(6), 0, labels] = 1
    hidden = torch.zeros_like(z)
    hidden[2, 0], hidden[5, 0] = torch.tensor([-2.0, 0, 2]), torch.tensor([0, 0, 0.5])
    clip = toy()
    clip.n_prompts = 0
    clip.features = lambda z: z[:, 0]
    first, second = renamed(z, HEAD, 2), reweighted(z, HEAD, hidden, 0.0)
    assert first.gain(clip, labels).tolist() == [1, 1, 0, 1, 1, 0]
    assert second.gain(clip, labels).tolist() == [0, 0, 1, 0, 0, 0]
    is_first = labels < 2
    plant = mixed(first, second, is_first, clip, labels)
    assert torch.equal(plant.before[is_first], z[is_first])
    assert torch.equal(plant.before[~is_first], (z - hidden)[~is_first])
    assert torch.equal(plant.after, z)
    assert plant.heads is first.heads
    assert plant.name == "names + strengths"
    assert plant.required["names"] == pytest.approx((0.7, 0.9))  # four of five pictures
    assert plant.required["strengths"] == pytest.approx((0.1, 0.3))
    assert plant.required["new"] == pytest.approx((-0.1, 0.1))
    plant = mixed(created(z, HEAD, 0 * z), second, is_first, clip, labels)
    assert {"new", "error"}.isdisjoint(plant.required)
    assert plant.required["new or error"] == pytest.approx(
        (1 / 2 - 0.1 + 1 / 6, 1 / 2 + 0.1 + 1 / 6)
    )


def test_grades_are_by_the_ranges_of_what_is_stated() -> None:
    z = tokens()
    plant = reweighted(z, HEAD, z, 0.3)
    assert plant.grade({"strengths": 0.9, "new": 0.05, "alpha": 0.35}) == "right"
    assert plant.grade({"strengths": 0.9, "new": 0.2}) == "wrong"
    assert plant.grade({"alpha": 0.45}) == "wrong"
    assert plant.grade({"change": 0.5, "alpha": math.nan}) == "abstains"  # not of what is asked
    assert plant.grade({}) == "abstains"
    assert turned(unchanged(z, HEAD)).grade({}) == "right"
    new = created(z, HEAD, z)
    assert new.grade({"new": 0.5, "error": 0.4}) == "right"
    assert new.grade({"new": 0.5}) == "wrong"
    assert new.grade({"new": 0.9, "auroc": 0.7}) == "wrong"
    nothing = Plant("", z, z, (HEAD, HEAD))
    assert nothing.grade(dict.fromkeys(PARTS, 0.0)) == "right"
    assert nothing.grade({"change": 0.02}) == "wrong"

"""Groups and overlaps by hand; a gain that is shared out to the last right answer."""

import copy
import math
from itertools import permutations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_localization import identity

from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.intervals import estimate_mean
from patchsae_lib.maple import Prompts, adapt
from patchsae_lib.profiles import StatisticsConfig
from patchsae_lib.remapping import (
    FACTORS,
    GROUPS,
    PLACES,
    READINGS,
    Gain,
    _correct,
    _states,
    chance_overlap,
    correct_at,
    decompose,
    group_sizes,
    groups,
    improvement,
    latents_by_class,
    levels_by_place,
    overlap,
    overlaps,
    probe,
    ranks,
    shapley,
    share_out,
    with_noise,
)
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens
from patchsae_lib.world import World


def test_improvement_is_the_share_of_errors_taken_away() -> None:
    # Table 1, Flowers102, in per cent of the paper
    assert improvement(0.5632, 0.8807) == pytest.approx(0.7269, abs=1e-4)
    assert improvement(0.9, 0.8) == pytest.approx(-1)
    assert math.isnan(improvement(1.0, 1.0))


N = 4  # pictures that are decomposed


# --- groups -------------------------------------------------------------------------------------


def falling(d: int = 200) -> torch.Tensor:
    """Activations of one class that fall with the number of the latent."""
    return torch.arange(d, 0, -1.0)[None]


@pytest.mark.parametrize("by", READINGS)
def test_the_same_activations_are_high_in_both_or_nothing(by: str) -> None:
    same = groups(falling(), falling(), by)
    assert same.tolist() == [[1] * 50 + [0] * 150]


@pytest.mark.parametrize("by", READINGS)
def test_latents_that_change_places_change_groups(by: str) -> None:
    before = falling()
    after = before.clone()
    after[0, [3, 150]] = before[0, [150, 3]]  # 3 falls out of the hundred, 150 rises to the top
    after[0, [7, 99]] = before[0, [99, 7]]  # the hundredth is not low: neither
    found = groups(before, after, by)[0]
    assert GROUPS[found[3]] == "high to low"
    assert GROUPS[found[150]] == "low to high"
    assert found[7] == found[99] == 0
    assert (found == 1).sum() == 48


def test_the_bounds_of_the_groups_are_the_profiles() -> None:
    before = falling(20)
    after = before.roll(4, 1)  # latents 4, 5 and 6 are the top three
    found = groups(before, after, config=StatisticsConfig(top=3, bound=6))[0].tolist()
    assert found == [2] * 3 + [0] * 3 + [3] + [0] * 13


def test_readings_differ_where_a_class_is_stronger() -> None:
    before = torch.cat([falling(), 10 * falling()])
    after = before * 2
    assert (groups(before, after, "class rank") == 1).sum(1).tolist() == [50, 50]
    by_value = groups(before, after, "class value")
    assert (by_value == 1).sum(1).tolist() == [50, 50]  # all stronger: none is low before
    by_dataset = groups(before, after, "dataset value")
    assert (by_dataset == 1).sum(1).tolist() == [0, 117]  # over (151 + 1510) / 2: 84 … 200
    assert (groups(before, after, "dataset rank") == 1).sum(1).tolist() == [50, 50]


def test_latents_of_the_dataset_are_those_of_the_stronger_class() -> None:
    both_ways = torch.cat([falling(), 10 * falling().flip(1)])
    high = [groups(both_ways, both_ways, by) == 1 for by in ("class rank", "dataset rank")]
    assert [x[0].nonzero()[0].item() for x in high] == [0, 150]
    assert [x[1].nonzero()[0].item() for x in high] == [150, 150]


def test_a_latent_that_is_silent_in_a_class_is_never_high() -> None:
    before = torch.zeros(1, 200)
    after = before.clone()
    after[0, 5] = 1.0
    for by in ("class rank", "dataset rank"):
        found = groups(before, after, by)[0]
        assert GROUPS[found[5]] == "low to high"
        assert (found > 0).sum() == 1


def test_other_readings_and_other_latents_are_errors() -> None:
    with pytest.raises(
        ValueError, match="one of class rank, class value, dataset rank, dataset value"
    ):
        groups(falling(), falling(), "top")
    with pytest.raises(ValueError, match="different classes or latents"):
        groups(falling(), falling(100))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(READINGS))
def test_groups_turn_round_with_the_models_by_rank(seed: int, by: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, 3, 150, generator=generator)
    found, turned = groups(first, second, by), groups(second, first, by)
    if by.endswith("rank"):
        assert torch.equal((found == 1), (turned == 1))
        assert torch.equal((found == 2), (turned == 3))
    order = torch.randperm(150, generator=generator)
    assert torch.equal(groups(first[:, order], second[:, order], by), found[:, order])


def test_ranks_are_places() -> None:
    assert ranks(torch.tensor([[0.1, 0.9, 0.5]])).tolist() == [[2, 0, 1]]


def test_overlaps_by_hand() -> None:
    one = torch.tensor([[5.0, 4, 3, 2, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6])
    other = torch.tensor([[5.0, 4, 0, 0, 3, 2], [0, 1, 0, 0, 0, 0], [0] * 6])
    shared = overlap(one, other, 3)
    assert shared[:2].tolist() == pytest.approx([2 / 3, 0.0])
    assert math.isnan(shared[2])
    chance = chance_overlap(one, other, 3)
    assert chance.tolist() == pytest.approx([3 / 6, 1 / 6, 0])


def test_chance_is_what_random_sets_share() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 400, 60, generator=generator) + 1
    expected = chance_overlap(one, other, 20)
    assert overlap(one, other, 20).mean() == pytest.approx(float(expected.mean()), abs=0.01)


# --- shares of a gain ---------------------------------------------------------------------------


def game(k: int, seed: int, n: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*(2,) * k, n, generator=generator, dtype=torch.double)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_shapley_is_the_mean_over_all_orders(k: int, seed: int) -> None:
    values = game(k, seed)
    wanted = torch.zeros(k, 3, dtype=torch.double)
    orders = list(permutations(range(k)))
    for order in orders:
        at = [0] * k
        for player in order:
            before = values[tuple(at)]
            at[player] = 1
            wanted[player] += (values[tuple(at)] - before) / len(orders)
    assert torch.allclose(shapley(values), wanted)
    assert torch.allclose(shapley(values).sum(0), values[(1,) * k] - values[(0,) * k])


def test_who_changes_nothing_gets_nothing() -> None:
    values = game(3, 0)
    values[:, 1] = values[:, 0]  # the second player makes no difference
    assert shapley(values)[1].abs().max() == 0


def test_a_share_that_is_the_whole_gain() -> None:
    shares = torch.zeros(5, 400, dtype=torch.double)
    shares[0, :100] = 1
    table = share_out(shares)
    assert table.loc["class names", "points"] == table.loc["all", "points"] == 0.25
    assert table.loc["class names", ["share", "share_low", "share_high"]].tolist() == [1, 1, 1]
    assert table.loc["new latents", "points"] == 0
    assert 0.2 < table.loc["all", "low"] < 0.25 < table.loc["all", "high"] < 0.3
    assert list(table.index) == [*FACTORS, "all"]


def test_intervals_are_the_bootstraps_over_pictures() -> None:
    shares = torch.randint(-30, 90, (5, 80), generator=torch.Generator().manual_seed(0)) / 120
    table = share_out(shares.double())
    for factor, row in zip(FACTORS, shares.double(), strict=True):
        found = table.loc[factor, ["points", "low", "high"]].tolist()
        assert found == pytest.approx(estimate_mean(row, over="pictures"))
    picks = np.random.default_rng(0).integers(80, size=(2000, 80))
    ratios = shares[1].numpy()[picks].mean(1) / shares.sum(0).numpy()[picks].mean(1)
    found = table.loc["strengths", ["share_low", "share_high"]].tolist()
    assert found == pytest.approx(np.quantile(ratios, [0.025, 0.975]), rel=1e-5)


def test_a_gain_that_may_be_none_is_not_shared_out() -> None:
    shares = torch.zeros(5, 400, dtype=torch.double)
    shares[0, :3], shares[1, 3:6] = 1, -1
    table = share_out(shares)
    assert table["share"].isna().all()
    assert table.loc["strengths", "points"] == -3 / 400


@pytest.fixture(scope="module")
def changed():
    """The small CLIP with strong prompts, before and after on N pictures, and heads."""
    generator = torch.Generator().manual_seed(0)
    prompts = Prompts(
        torch.randn(2, 2, 128, generator=generator) * 0.05,
        torch.randn(2, 2, 192, generator=generator) * 2,
        "a photo of a {}",
    )
    clip = load_small_clip(DATA / "small_clip", -2)
    world = World("objects", "test", N)
    adapted = adapt(clip, prompts, world.class_names[:N])
    with torch.no_grad():
        x = clip.preprocess(world.batch(range(N)))
        before, after = clip.tokens(x), adapted.tokens(x)
    heads = clip.text_features(world.class_names[:N], ["a photo of a {}"]), adapted.text
    sae = SAE(192, 256).eval().requires_grad_(False).fold(float(before.norm(dim=-1).mean()))
    sae.b_dec.copy_(before.mean((0, 1)))
    sae.b_enc.fill_(-0.1)  # some latents are silent in a picture
    return clip, adapted, sae, before, after, torch.arange(N), heads


@torch.no_grad()
def test_tokens_of_a_place_are_adapted_and_the_others_are_not(changed) -> None:
    _, adapted, _, _, _, _, (_, head) = changed
    n, generator = adapted.n_tokens, torch.Generator().manual_seed(0)
    after = torch.randn(24, n + adapted.n_prompts, 192, generator=generator) * 5
    before = torch.randn(24, n, 192, generator=generator) * 5
    cls, patches, prompts = after[:, :1], after[:, 1:n], after[:, n:]
    states = {
        "none": torch.cat([before, prompts], 1),
        "CLS": torch.cat([cls, before[:, 1:], prompts], 1),
        "patches": torch.cat([before[:, :1], patches, prompts], 1),
        "both": after,
    }
    assert list(states) == list(PLACES)
    answers = {place: adapted.classify(x, head).argmax(1) for place, x in states.items()}
    assert (answers["CLS"] != answers["patches"]).any()  # what the test can tell
    assert (answers["CLS"] != answers["none"]).any()
    for place, states_of_answers in product(PLACES, PLACES):
        labels = answers[states_of_answers]
        right = correct_at(place, adapted, head, before, after, labels)
        assert right.tolist() == (answers[place] == labels).double().tolist()


def test_noise_moves_every_token_as_far_and_nowhere_in_particular() -> None:
    before, change = torch.randn(2, 3, 5, 400, generator=torch.Generator().manual_seed(1))
    after = before + change * torch.arange(5)[:, None]  # the first token stays
    noised = with_noise(before, after)
    distance = (after - before).norm(dim=-1)
    assert torch.allclose((noised - before).norm(dim=-1), distance, rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(noised - before, after - before, dim=-1)[:, 1:]
    assert cosine.abs().max() < 0.2
    assert cosine.std() == pytest.approx(400**-0.5, rel=0.6)
    assert torch.equal(noised, with_noise(before, after))
    assert not torch.equal(noised, with_noise(before, after, seed=1))


def test_levels_of_places_are_those_of_their_tokens() -> None:
    sae, labels = identity(3), torch.tensor([0, 0, 1, 1, 1])
    z = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    levels = levels_by_place(sae, z, labels, ("cat", "dog"), StatisticsConfig(tau=0.1))
    active = (z > 0.1).double()
    for place, count in {"CLS": active[:, 0], "patches": active[:, 1:].sum(1)}.items():
        rows_of = slice(0, None, 2), slice(1, None, 2), slice(None)
        for part, rows in zip(levels[place], rows_of, strict=True):
            for c in (0, 1):
                wanted = count[rows][labels[rows] == c].mean(0)
                assert part[c].tolist() == pytest.approx(wanted.tolist())
    assert torch.equal(levels["both"], levels["CLS"] + levels["patches"])


@pytest.mark.parametrize("per", ["token", "picture"])
@torch.no_grad()
def test_all_without_is_clip_and_all_with_is_the_adapted_model(changed, per: str) -> None:
    clip, adapted, sae, before, after, labels, heads = changed
    gain = decompose(adapted, sae, before, after, labels, heads, per)
    named = gain.named()
    features = clip.features(before), adapted.features(after)
    for column, image, head in (
        ("CLIP", features[0], heads[0]),
        ("adapted text only", features[0], heads[1]),
        ("adapted pictures only", features[1], heads[0]),
        ("adapted", features[1], heads[1]),
    ):
        wanted = (image @ head.T).argmax(1) == labels
        assert named[column].tolist() == wanted.double().tolist(), column
    total = gain.shares().sum(0)
    assert torch.allclose(total, torch.tensor((named["adapted"] - named["CLIP"]).to_numpy()))


def is_old(f0: torch.Tensor, per: str) -> torch.Tensor:
    """Which latents were active before, in the same token or in any of the picture."""
    return f0 > 0 if per == "token" else (f0 > 0).any(1, keepdim=True).expand_as(f0)


@pytest.mark.parametrize("per", ["token", "picture"])
@torch.no_grad()
def test_each_state_is_what_its_formula_says(changed, monkeypatch, per: str) -> None:
    _, adapted, sae, before, after, labels, heads = changed
    after = after.roll(1, 0)  # of another picture, so that much is new
    calls = []
    features = type(adapted).features

    def spy(self, z):
        calls.append(z)
        return features(self, z)

    monkeypatch.setattr(type(adapted), "features", spy)
    decompose(adapted, sae, before, after, labels, heads, per)
    (states,) = calls
    states, tails = states[:, :197].unflatten(0, (9, N)), states[:, 197:].unflatten(0, (9, N))
    assert all(torch.equal(tail, after[:, 197:]) for tail in tails)
    f0, f1 = sae.encode(before), sae.encode(after[:, :197])
    old = is_old(f0, per)
    e0, e1 = before - sae.decode(f0), after[:, :197] - sae.decode(f1)
    wanted = {
        (0, 0, 0): before,
        (1, 1, 1): after[:, :197],
        (1, 0, 1): sae.decode(f1 * old) + e1,  # old latents with new strengths
        (0, 0, 1): sae.decode(f0) + e1,  # and with old strengths
        (0, 1, 0): sae.decode(f0 + f1 * ~old) + e0,
    }
    for (strength, more, error), z in wanted.items():
        assert torch.allclose(states[4 * strength + 2 * more + error], z, atol=1e-3)
    assert torch.allclose(states[8], sae.decode(f1 * ~old) + e1, atol=1e-3)


@torch.no_grad()
def test_every_state_is_classified_by_either_half_and_head(changed) -> None:
    clip, adapted, sae, before, after, _, heads = changed
    after, sae = after.roll(1, 0), copy.deepcopy(sae)
    sae.W_dec.mul_(30)  # so that a picture without its old latents is far from itself
    f0, f1 = sae.encode(before), sae.encode(after[:, :197])
    old, prompts = f0 > 0, after[:, 197:]
    errors = before - sae.decode(f0), after[:, :197] - sae.decode(f1)

    def predicted(f, error, is_prompted, head):
        z = sae.decode(f) + error
        x = adapted.features(torch.cat([z, prompts], 1)) if is_prompted else clip.features(z)
        return (x @ head.T).argmax(1)

    differ = False
    for label in range(N):
        labels = torch.full((N,), label)
        gain = decompose(adapted, sae, before, after, labels, heads)
        for head, strength, new, error, prompted in product((0, 1), repeat=5):
            f = (f0, f1 * old)[strength] + new * f1 * ~old
            wanted = predicted(f, errors[error], prompted, heads[head]) == labels
            found = gain.correct[head, strength, new, error, prompted]
            assert torch.equal(found, wanted), (head, strength, new, error, prompted)
        wanted = predicted(f1 * ~old, errors[1], True, heads[1]) == labels
        assert torch.equal(gain.only_new, wanted)
        differ = differ or not torch.equal(gain.only_new, gain.correct[1, 1, 1, 1, 1])
    assert differ  # not vacuous


@pytest.mark.parametrize("per", ["token", "picture"])
@torch.no_grad()
def test_new_latents_are_counted(changed, per: str) -> None:
    _, adapted, sae, before, after, labels, heads = changed
    after = after.roll(1, 0)  # of another picture, so that much is new
    gain = decompose(adapted, sae, before, after, labels, heads, per)
    f0, f1 = sae.encode(before), sae.encode(after[:, :197])
    new = (f1 > 0) & ~is_old(f0, per)
    assert gain.left_out.tolist() == pytest.approx(new.sum(2).double().mean(1).tolist())
    assert gain.active.tolist() == pytest.approx((f1 > 0).sum(2).double().mean(1).tolist())
    mass = (f1 * new).sum((1, 2)) / f1.sum((1, 2))
    assert gain.mass.tolist() == pytest.approx(mass.tolist(), rel=1e-4)
    assert new.any(2).any(1).all()  # not vacuous


@torch.no_grad()
def test_the_gain_is_that_of_batches_of_tokens_as_they_are_stored(changed, monkeypatch) -> None:
    _, adapted, sae, before, after, labels, heads = changed
    before, after = before.bfloat16(), after.bfloat16()
    held = Tokens.hold(before), Tokens.hold(after)
    at_once = decompose(adapted, sae, before.float(), after.float(), labels, heads)
    monkeypatch.setattr(SAE, "images_at_once", lambda *_, **__: 3)
    batched = decompose(adapted, sae, *held, labels, heads)
    assert torch.equal(batched.correct, at_once.correct)
    assert torch.equal(batched.only_new, at_once.only_new)


@torch.no_grad()
def test_nothing_changes_and_nothing_is_gained(changed) -> None:
    clip, _, sae, before, _, labels, (head, _) = changed
    same = adapt(clip, Prompts(torch.empty(0, 2, 0), torch.empty(0, 2, 0)), ["a photo"])
    gain = decompose(same, sae, before, before, labels, (head, head))
    assert gain.shares().abs().max() == 0
    assert gain.left_out.max() == 0


def test_tokens_of_the_wrong_model_are_errors(changed) -> None:
    _, adapted, sae, before, after, labels, heads = changed
    with pytest.raises(ValueError, match="not those of CLIP and of this adapted model"):
        decompose(adapted, sae, after, before, labels, heads)
    with pytest.raises(ValueError, match="token or picture"):
        decompose(adapted, sae, before, after, labels, heads, per="pixel")


def test_states_have_names(changed) -> None:
    cube = torch.zeros(2, 2, 2, 2, 2, 1, dtype=torch.bool)
    cube[1, 0, 0, 1, 1] = True
    one = torch.zeros(1)
    named = Gain(cube, one.bool(), one, one, one).named()
    assert named.columns[named.iloc[0] == 1].tolist() == ["old latents, old strengths"]


def test_a_probe_tells_apart_what_latents_tell_apart() -> None:
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat(30)
    x = torch.tensor(rng.random((120, 50)), dtype=torch.float32)
    noise = probe(x[:60], labels[:60], x[60:], labels[60:]).mean()
    x[torch.arange(120), labels] += 2
    assert probe(x[:60], labels[:60], x[60:], labels[60:]).mean() > 0.95
    assert noise < 0.5
    x[:, :4] /= 1000  # weak latents count as much
    assert probe(x[:60], labels[:60], x[60:], labels[60:]).mean() > 0.95


def test_sizes_of_groups_are_means_over_classes() -> None:
    group = torch.tensor([[1, 2, 2, 0, 0], [3, 0, 2, 0, 0]])
    assert group_sizes(group) == {"high": 0.5, "high to low": 1.5, "low to high": 0.5}


def test_the_latents_of_a_class_are_those_that_either_model_activates() -> None:
    before = torch.tensor([[3.0, 0, 1, 0], [0, 2, 0, 0]])
    after = torch.tensor([[0.0, 4, 2, 0], [0, 0, 0, 0.5]])
    group = torch.tensor([[2, 3, 1, 0], [0, 2, 0, 3]])
    table = latents_by_class(before, after, group, ("cat", "dog"))
    assert table.to_dict("split")["columns"] == [
        *("label", "class", "latent", "CLIP", "MaPLe", "rank", "group")
    ]
    assert table.to_numpy().tolist() == [
        [0, "cat", 0, 3, 0, 1, "high to low"],
        [0, "cat", 1, 0, 4, 0, "low to high"],
        [0, "cat", 2, 1, 2, 2, "high"],
        [1, "dog", 1, 2, 0, 0, "high to low"],
        [1, "dog", 3, 0, 0.5, 1, "low to high"],
    ]


def active(*latents: int) -> torch.Tensor:
    return torch.zeros(1, 8).index_fill_(1, torch.tensor(latents), 1.0)


def test_overlaps_on_the_same_and_on_other_pictures() -> None:
    before = active(0, 1, 2, 3), active(0, 1, 4, 5)
    after = active(0, 1, 2, 6), active(0, 4, 6, 7)
    assert overlaps(before, after).to_dict("records") == [
        {
            "CLIP and MaPLe, same pictures": pytest.approx((3 / 4 + 2 / 4) / 2),
            "CLIP and CLIP, other pictures": pytest.approx(2 / 4),
            "CLIP and MaPLe, other pictures": pytest.approx((1 / 4 + 2 / 4) / 2),
            "chance": pytest.approx(4 / 6),  # of the six that CLIP activates
        }
    ]


def test_an_overlap_of_unequal_sets_is_a_share_of_the_larger() -> None:
    many, one = torch.tensor([[4.0, 3, 2, 1, 0]]), torch.tensor([[1.0, 0, 0, 0, 0]])
    for pair_of in ((many, one), (one, many)):
        assert overlap(*pair_of, 3).tolist() == pytest.approx([1 / 3])
        assert chance_overlap(*pair_of, 3).tolist() == [1 / 4]  # 3 × 1/4 expected, of 3


def test_a_factor_has_the_gain_of_its_own_axis() -> None:
    names = ("class names", "strengths", "new latents", "error", "prompt tokens")
    for axis, name in enumerate(names):
        cube = torch.zeros(2, 2, 2, 2, 2, 9, dtype=torch.bool)
        cube.select(axis, 1).fill_(True)  # right as soon as this one has changed
        points = share_out(Gain(cube, *torch.zeros(4, 9)).shares())["points"]
        assert points[points > 0.5].index.tolist() == [name, "all"]


def test_every_state_has_its_name() -> None:
    none = torch.zeros(1)
    for name, at in {
        "CLIP": (0, 0, 0, 0, 0),
        "adapted text only": (1, 0, 0, 0, 0),
        "adapted pictures only": (0, 1, 1, 1, 1),
        "adapted": (1, 1, 1, 1, 1),
        "old latents, new strengths": (1, 1, 0, 1, 1),
        "old latents, old strengths": (1, 0, 0, 1, 1),
        "new latents alone": None,
    }.items():
        cube = torch.zeros(2, 2, 2, 2, 2, 1, dtype=torch.bool)
        if at:
            cube[at] = True
        named = Gain(cube, torch.tensor([at is None]), none, none, none).named()
        assert named.columns[named.iloc[0] == 1].tolist() == [name]


def test_right_answers_are_placed_by_head_state_and_second_half() -> None:
    bits = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 0])  # which of two classes a state shows
    states = torch.eye(2)[bits][:, None]  # (9 states of one picture, one token, 2)
    plain = SimpleNamespace(features=lambda z: z[:, 0])
    adapted = SimpleNamespace(features=lambda z: z[:, 0].flip(1), unadapted=lambda: plain)
    heads = torch.eye(2), torch.eye(2).flip(0)
    prompts = torch.zeros(1, 1, 2)
    correct, only_new = _correct(adapted, states, prompts, torch.tensor([0]), heads)
    for head, strength, new, error, prompted in product((0, 1), repeat=5):
        turned = (int(bits[4 * strength + 2 * new + error]) + head + prompted) % 2
        assert bool(correct[head, strength, new, error, prompted]) == (turned == 0)
    assert only_new.tolist() == [True]  # the adapted half and head turn twice


def test_pictures_without_latents_have_no_share_in_new_ones() -> None:
    sae = identity(2)
    z = torch.tensor([[[-1.0, -1]], [[-1.0, 3]]])
    _, (n_new, n_active, mass) = _states(sae, z.new_zeros(2, 1, 2), z, "token")
    assert [x.tolist() for x in (n_new, n_active, mass)] == [[0, 1], [0, 1], [0, 1]]


def test_a_gain_is_shared_out_by_its_means_and_only_above_0() -> None:
    shares = torch.zeros(5, 400, dtype=torch.double)
    shares[0, :2] = 1  # none of the two in some resamples
    table = share_out(shares)
    assert table.loc["all", "low"] == 0
    assert table[["share", "share_low", "share_high"]].isna().all(axis=None)
    shares[0, :97], shares[1, 97:128] = 1, 1
    assert share_out(shares).loc["class names", "share"] == pytest.approx(97 / 128, abs=1e-12)

"""Latents get the name of what their strongest patches show, and noise gets none."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score
from test_localization import identity

from patchsae_lib.names import (
    NO_NAME,
    RANKS,
    RULE,
    Activity,
    Overlap,
    activity,
    average_precision,
    cuts_of,
    halves_of,
    hits_of,
    iou_of,
    mask_shares,
    name_latents,
    permutations_of,
    phi_of,
    significant,
)
from patchsae_lib.tokens import Tokens
from patchsae_lib.world.truth import CONCEPTS, PatchTruth

IMAGES, PATCHES, D = 120, 60, 200
STEM, OWN = CONCEPTS.index(("part", "stem")), CONCEPTS.index(("class part", "stem of a mushroom"))
CLASS, PHOTO = CONCEPTS.index(("class", "mushroom")), CONCEPTS.index(("style", "photo"))
FAST = replace(RULE, permutations=199)


def truth_of(dense: np.ndarray) -> PatchTruth:
    return PatchTruth.of_patches(dense)


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """Mushrooms in a quarter of the pictures; stems in half, of which those are of mushrooms."""
    rng = np.random.default_rng(0)
    shown = np.zeros((IMAGES, PATCHES, len(CONCEPTS)), bool)
    stem = rng.random((IMAGES, PATCHES)) < np.where(rng.random(IMAGES) < 0.5, 0.15, 0)[:, None]
    of_mushroom = rng.random(IMAGES) < 0.5
    shown[..., STEM], shown[..., OWN] = stem, stem & of_mushroom[:, None]
    shown[..., CLASS] = (rng.random((IMAGES, PATCHES)) < 0.3) & of_mushroom[:, None]
    shown[..., CLASS] |= shown[..., OWN]
    shown[..., PHOTO] = (rng.random(IMAGES) < 0.8)[:, None]
    return shown


def noise(seed: int, d: int = D) -> np.ndarray:
    """Latents of noise: active on a tenth of the patches of a third of the pictures."""
    rng = np.random.default_rng(seed)
    active = rng.random((IMAGES, PATCHES, d)) < 0.1 * 3
    active &= rng.random((IMAGES, 1, d)) < 0.33
    return (active * rng.random(active.shape)).astype(np.float32)


def sparse_activity(f: np.ndarray, cls: np.ndarray | None = None) -> Activity:
    cls = np.zeros((len(f), f.shape[2]), np.float32) if cls is None else cls
    return Activity(sparse.csr_array(f.reshape(-1, f.shape[2])), sparse.csr_array(cls))


def test_a_conjunction_gets_its_name_and_noise_gets_none(shown: np.ndarray) -> None:
    f = noise(1, 24)
    rng = np.random.default_rng(2)
    f[..., 0] = shown[..., OWN] * (1 + rng.random((IMAGES, PATCHES)))  # exactly the conjunction
    f[..., 1] = shown[..., STEM] * (1 + rng.random((IMAGES, PATCHES)))
    f[..., 2] = 0  # silent
    f[..., 3] = shown[..., PHOTO] * rng.random((IMAGES, PATCHES))  # of pictures, not of patches
    f[..., 4] = rng.random((IMAGES, PATCHES))  # everywhere: on photos mostly, by chance
    cls = np.zeros((IMAGES, 24), np.float32)
    cls[:, 5] = shown[..., CLASS].any(1) * (1 + rng.random(IMAGES))
    table = name_latents(sparse_activity(f, cls), truth_of(shown), FAST)
    assert table["name"][:5].tolist() == [
        "stem of a mushroom", "stem", NO_NAME, NO_NAME, NO_NAME,
    ]  # fmt: skip
    assert (table["kind"][5], table["name"][5], table["by"][5]) == ("class", "mushroom", "CLS")
    assert table.loc[[0, 1], ["iou", "precision", "ap"]].to_numpy() == pytest.approx(1)
    assert table["by"][:5].tolist() == ["patches", "patches", "", "", ""]
    assert (table["concept"][2], table["testable"][2], table["iou"][2]) == ("", False, 0)
    assert not table["found"][6:].any()
    assert (table["name"][6:] == NO_NAME).all()
    assert table["runners_up"][0].startswith("stem 0.")
    assert table["lies_on"][0] == "of its strongest 50 patches: 100 % mushroom, 100 % stem"
    assert table["lies_on"][2] == "never active"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_truths_of_other_pictures_hardly_a_latent_gets_a_name(shown, seed) -> None:
    """Latents with real structure, of pictures whose truths are dealt at random: the null."""
    rng = np.random.default_rng(seed)
    f = noise(seed)
    own = shown[..., [STEM, OWN, CLASS, PHOTO]][..., rng.integers(4, size=D)]
    f = f + own * rng.random((IMAGES, PATCHES, D), np.float32)  # each about one of them
    cls = (shown[..., [CLASS, PHOTO]].any(1)[:, rng.integers(2, size=D)] + f[:, 0]).astype("f")
    dealt = shown[rng.permutation(IMAGES)]
    without_floor = replace(FAST, floor=-9)  # the test alone has to hold the rate
    for rule in (FAST, without_floor):
        table = name_latents(sparse_activity(f, cls), truth_of(dealt), rule)
        assert table["found"].mean() <= rule.rate
    assert name_latents(sparse_activity(f, cls), truth_of(shown), FAST)["found"].mean() > 0.5


def test_p_values_of_chance_are_uniform(shown: np.ndarray) -> None:
    rng, f = np.random.default_rng(5), noise(3, 150)
    dealt = np.flatnonzero(shown[rng.permutation(IMAGES), :, CLASS].ravel())
    orders = permutations_of(IMAGES, FAST)
    p = [
        Overlap(np.flatnonzero(f[..., i].ravel()), dealt, PATCHES, IMAGES).p(orders)
        for i in range(150)
    ]
    assert np.mean(np.array(p) <= 0.1) < 0.2
    assert 0.35 < np.mean(p) < 0.65


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_hits_are_those_of_dense_latents(seed: int) -> None:
    rng = np.random.default_rng(seed)
    f = (rng.random((400, 5)) * (rng.random((400, 5)) < 0.4)).astype(np.float32)
    truth = rng.random((400, 7)) < 0.2
    columns = sparse.csc_array(f)
    cuts = cuts_of(columns)
    hits, fires = hits_of(columns, sparse.csr_array(truth.astype(np.int32)), cuts)
    dense = f[None] > cuts[:, None]  # (cuts, n, d)
    assert (fires == dense.sum(1).T).all()
    assert (hits == np.einsum("knd,nc->dkc", dense.astype(int), truth.astype(int))).all()
    iou = iou_of(hits, fires, truth.sum(0))
    phi = phi_of(hits, fires, truth.sum(0), 400)
    for d, k, c in itertools.product(range(5), (0, 1, len(RANKS)), range(7)):
        fired, seen = dense[k, :, d], truth[:, c]
        assert iou[d, k, c] == pytest.approx((fired & seen).sum() / (fired | seen).sum())
        assert phi[d, k, c] == pytest.approx(np.corrcoef(fired, seen)[0, 1])


def test_cuts_let_through_as_many_patches_as_asked_for() -> None:
    f = np.zeros((1000, 2), np.float32)
    f[:, 0], f[:30, 1] = np.random.default_rng(0).random(1000) + 1, 1 + np.arange(30)
    cuts = cuts_of(sparse.csc_array(f))
    fires = (f[None] > cuts[:, None]).sum(1)
    assert fires[:6, 0].tolist() == list(RANKS[:6])
    assert fires[6:, 0].tolist() == [1000] * (len(cuts) - 6)  # ranks beyond all patches
    assert fires[:2, 1].tolist() == [25, 30]


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_average_precision_is_that_of_all_patches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.where(rng.random(60) < 0.4, rng.permutation(60) + 1, 0)
    truth = rng.random((2, 60)) < 0.3
    truth[:, 0] = True
    order = np.argsort(-score, kind="stable")[: (score > 0).sum()]
    wanted = [average_precision_score(row, score) for row in truth]
    assert average_precision(order, truth) == pytest.approx(wanted)


def test_the_mean_and_variance_are_those_of_all_permutations() -> None:
    rng = np.random.default_rng(3)
    fires, seen = rng.random((5, 4)) < 0.6, rng.random((5, 4)) < 0.5
    found = Overlap(np.flatnonzero(fires), np.flatnonzero(seen), 4, 5)
    orders = np.array(list(itertools.permutations(range(5))))
    overlaps = np.array([(fires & seen[order]).sum() for order in orders])
    observed = (fires & seen).sum()
    assert found.z() == pytest.approx((observed - overlaps.mean()) / overlaps.std())
    assert found.p(orders) == pytest.approx((1 + (overlaps >= observed).sum()) / 121)


def test_an_overlap_by_position_alone_is_chance() -> None:
    rng = np.random.default_rng(0)
    centre = (np.arange(30) < 10) & (rng.random((60, 1)) < 0.8)
    elsewhere = np.roll(centre, 1, 0)
    found = Overlap(np.flatnonzero(centre), np.flatnonzero(elsewhere), 30, 60)
    assert abs(found.z()) < 3
    everywhere = Overlap(np.arange(1800), np.flatnonzero(centre), 30, 60)
    assert np.isnan(everywhere.z())
    assert everywhere.p(permutations_of(60, FAST)) == 1
    assert (
        Overlap(np.array([], int), np.flatnonzero(centre), 30, 60).p(np.zeros((3, 60), int)) == 1
    )


def test_the_halves_are_apart(shown: np.ndarray) -> None:
    f = noise(1, 3)
    a, b = halves_of(sparse_activity(f), truth_of(shown))
    assert (a.f.toarray() == f[:60].reshape(-1, 3)).all()
    assert (b.truth.toarray() == shown[60:].reshape(-1, len(CONCEPTS))).all()
    f[..., 0] = shown[..., OWN] * (1.0 + np.random.default_rng(0).random((IMAGES, PATCHES)))
    f[60:, :, 0] = noise(2, 1)[60:, :, 0]  # what was found is not there in the other half
    table = name_latents(sparse_activity(f), truth_of(shown), FAST)
    assert table["concept"][0] == "stem of a mushroom"
    assert table["name"][0] == NO_NAME
    assert table["iou"][0] < 0.2


def test_too_rare_concepts_and_latents_are_not_tested(shown: np.ndarray) -> None:
    f, rng = noise(1, 3), np.random.default_rng(0)
    f[..., 0] = 0
    few = np.flatnonzero(shown[..., OWN].any(1))
    for image in (*few[:2], *few[-2:]):
        f[image, :, 0] = shown[image, :, OWN] * (1 + rng.random(PATCHES))
    table = name_latents(sparse_activity(f), truth_of(shown), replace(FAST, minimum=40))
    assert (bool(table["testable"][0]), table["name"][0]) == (False, NO_NAME)
    with pytest.raises(ValueError, match="no concept fills 99999 patches"):
        name_latents(sparse_activity(f), truth_of(shown), replace(FAST, minimum=99_999))


def test_latents_are_taken_apart_into_patches_and_cls() -> None:
    z = torch.randn(11, 5, 4, generator=torch.Generator().manual_seed(0))
    f = activity(identity(4), Tokens.hold(z))
    assert torch.equal(torch.from_numpy(f.cls.toarray()), z[:, 0].relu())
    assert torch.equal(torch.from_numpy(f.patches.toarray()), z[:, 1:].relu().flatten(0, 1))


def test_discoveries_by_hand() -> None:
    p = np.array([0.001, 0.02, 0.03, 0.9])  # of 4 at 5 %: up to .0125, .025, .0375, .05
    assert significant(p).tolist() == [True, True, True, False]


def test_the_floor_is_beyond_chance() -> None:
    assert RULE.reached(0.5, 0.0)
    assert not RULE.reached(0.77, 0.55)
    assert RULE.reached(0.78, 0.55)


def test_weight_of_masks_inside_by_hand() -> None:
    masks = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[2.0, 2.0]], [[1.0, 0.0]]]])
    inside = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [0, 1]]]).bool()
    weight, area = mask_shares(masks, inside)
    assert weight.tolist() == [0.75, 0.5]  # pictures without activity do not count
    assert area.tolist() == [0.5, 0.75]

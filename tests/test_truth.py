import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from test_localization import identity

from patchsae_lib.study import PATCH
from patchsae_lib.truth import (
    RIDGE,
    SHARES,
    baselines,
    best_threshold,
    bounds,
    compare_units,
    concept_scores,
    enough,
    halves,
    iou_tables,
    latents_of,
    mean_scores,
    probe,
    rank_scores,
    thresholds,
)
from patchsae_lib.world import CLASSES, World
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.render import Picture, _variant
from patchsae_lib.world.truth import (
    CONCEPTS,
    N_SINGLE,
    NAMES,
    concepts_of,
    exchange,
    on_object,
    patch_truth,
    sparse_truth,
    spoken,
    world_truth,
)
from patchsae_lib.world.vocabulary import PARTS, TEXTURES


def picture(ids: np.ndarray) -> Picture:
    regions = (Region(), Region(cls="cat", colour="red"), Region(cls="dog", colour="red"))
    return Picture(np.zeros((*ids.shape, 3), np.uint8), ids, regions)


CAT, DOG, RED = ("class", "cat"), ("class", "dog"), ("colour", "red")


def test_a_concept_is_in_a_patch_that_it_fills_half_of() -> None:
    ids = np.zeros((16, 16), np.uint8)
    ids[:4, :8] = 1  # exactly half of the first patch: a cat
    ids[:4, 8:15] = 2  # 28 of 64 pixels of the second: too few
    ids[8:, :] = 2
    truth = patch_truth(picture(ids), (CAT, DOG, RED), (2, 2))
    assert truth[:, 0].tolist() == [True, False, False, False]
    assert truth[:, 1].tolist() == [False, False, True, True]
    assert truth[:, 2].tolist() == [True, False, True, True]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_several_regions_may_make_up_a_concept(seed: int) -> None:
    ids = np.random.default_rng(seed).choice(3, (16, 24), p=[0.4, 0.3, 0.3]).astype(np.uint8)
    ids = np.concatenate([ids, ids[:8]])[:, :24]  # 3 × 3 patches
    truth = patch_truth(picture(ids), (CAT, RED), (3, 3)).reshape(3, 3, 2)
    for row in range(3):
        for column in range(3):
            block = ids[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            assert truth[row, column].tolist() == [
                (block == 1).sum() >= 32,
                (block > 0).sum() >= 32,
            ]


def test_patches_of_any_size() -> None:
    ids = np.zeros((5, 6), np.uint8)
    ids[:2, :3] = 1
    ids[4, 4:] = 2
    truth = patch_truth(picture(ids), (CAT, DOG), (2, 3))  # rows of 3 and 2, columns of 2 pixels
    assert truth.T.tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    world = World("objects", "test", 2)
    for grid in ((7, 7), (16, 16), (24, 24)):  # ViT-B/32, L/14 and L/14 at 336 pixels
        assert world_truth(world, [0], [CAT], grid).shape == (1, grid[0] * grid[1], 1)
    with pytest.raises(ValueError, match="200 × 2 patches are more than 5 × 6 pixels"):
        patch_truth(picture(ids), (CAT,), (200, 2))


def test_truth_of_the_world_agrees_with_its_masks() -> None:
    world = World("objects", "test", 40)
    truth = world_truth(world, [3, 17])
    assert truth.shape == (2, 196, len(CONCEPTS))
    for row, picture in zip(truth, map(world.picture, [3, 17]), strict=True):
        for i, (kind, name) in enumerate(CONCEPTS[:N_SINGLE]):
            mask = picture.mask("cls" if kind == "class" else kind, name)
            share = mask.reshape(14, 8, 14, 8).mean((1, 3)).ravel()
            assert (row[:, i].numpy() == (share >= 0.5)).all()


def test_thresholds_let_through_the_share_that_was_asked_for() -> None:
    units = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    cut = thresholds(units)
    assert (units[None] > cut[:, None]).sum(1).tolist() == [[1000 * share] * 5 for share in SHARES]


def test_iou_by_hand() -> None:
    units = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    truth = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]]).bool()
    tables = iou_tables(units, truth, torch.tensor([[0.0, 0.0], [1.5, 9.0]]))
    assert tables.tolist() == [[[1 / 2, 0], [0, 1 / 2]], [[0, 0], [0, 0]]]
    alone = iou_tables(units[:1], truth[:1], torch.zeros(1, 2))
    assert alone.tolist() == [[[1, 0], [0, 0]]]
    many = iou_tables(units.repeat(700, 1), truth.repeat(700, 1), torch.zeros(1, 2))
    assert torch.equal(many, tables[:1])


def test_a_threshold_with_the_best_overlap() -> None:
    truth = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    assert 0.2 < best_threshold(score, truth) < 0.6  # 3 of 4 beat 2 of 3
    ties = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])  # equal scores fire together
    assert 0 < best_threshold(ties, truth) < 1


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_no_threshold_overlaps_more(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    score, truth = (
        torch.randint(0, 8, (30,), generator=g).float(),
        torch.rand(30, generator=g) < 0.4,
    )
    if not truth.any() or len(score.unique()) < 2:
        return

    def iou(cut: float) -> float:
        fires = score > cut
        return float((fires & truth).sum() / (fires | truth).sum())

    between = score.unique()[:-1]  # one below the lowest lets everything through
    assert iou(best_threshold(score, truth)) == max(iou(float(cut)) for cut in between)


def test_scores_are_those_of_the_other_half() -> None:
    known = torch.arange(600)[:, None] < 60
    truth = torch.arange(600)[:, None] >= 540
    before = known.float()
    row = concept_scores((before, known), (truth.float(), truth), [CAT]).iloc[0]
    assert row[["iou", "f1", "ap", "auroc"]].tolist() == [1, 1, 1, 1]
    row = concept_scores((before, known), (known.float(), truth), [CAT]).iloc[0]
    assert row[["iou", "f1"]].tolist() == [0, 0]
    assert row["auroc"] == pytest.approx(0.5 * (1 - 60 / 540), abs=1e-9)
    half = truth.float() * (torch.arange(600) % 2)[:, None]
    row = concept_scores((before, known), (half, truth), [CAT]).iloc[0]
    assert row[["iou", "f1", "auroc"]].tolist() == pytest.approx([1 / 2, 2 / 3, 0.75])
    assert (row["kind"], row["concept"], row["n"]) == ("class", "cat", 60)


def test_concepts_with_too_few_patches_are_left_out() -> None:
    truth = torch.arange(600)[:, None] < torch.tensor([[49, 550, 50]])
    score = torch.rand(600, 3)
    table = concept_scores((score, truth), (score, truth), [CAT, DOG, RED])
    assert table["concept"].tolist() == ["dog", "red"]
    empty = concept_scores((score, truth), (score, truth), [CAT, DOG, RED], 601)
    assert len(empty) == 0
    assert list(empty) == list(table)


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens in which one direction, the negative of a neuron, stands for a concept."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, 200, 4, generator=g)
    truth = torch.zeros(8, 200, len(CONCEPTS), dtype=torch.bool)
    truth[..., 2] = z[..., 3] < -1
    return z, truth


def test_the_best_unit_is_chosen_on_one_half_and_scored_on_the_other(planted) -> None:
    z, truth = planted
    table = compare_units(baselines(z, 6), z, truth).set_index("units")
    raw, random = table.loc["raw neurons (±)"], table.loc["random directions"]
    assert (raw["concept"], raw["unit"]) == (CONCEPTS[2][1], 7)
    assert raw["n"] == int(truth[4:, :, 2].sum())
    assert raw["iou"] > 0.95 > random["iou"]
    assert len(table) == 4  # a row a set
    values = compare_units({"given": torch.cat([z, -z], -1)}, z, truth).set_index("units")
    assert values.loc["given", "iou"] == raw["iou"]
    lucky = z.clone()
    lucky[4:, :, 3] = 0.0  # what was found is not there in the other half
    gone = compare_units({"neurons": lambda z: torch.cat([z, -z], -1)}, lucky, truth).iloc[0]
    assert (gone["unit"], gone["iou"]) == (7, 0)


def test_directions_start_at_the_mean_token(planted) -> None:
    z = planted[0] + 5
    units = baselines(z, 6)
    for name in set(units) - {"raw neurons (±)"}:
        assert units[name](z).mean((0, 1)).abs().max() < 1e-4
    independent = units["independent components (±)"](z)[..., :4].flatten(0, 1)
    assert torch.allclose(independent.T.cov(), torch.eye(4), atol=1e-2)


def test_a_floor_and_a_ceiling(planted) -> None:
    z, truth = planted
    table = bounds(z, truth).set_index("units")
    assert abs(table.loc["position alone", "auroc"] - 0.5) < 0.1
    assert table.loc["linear probe (supervised)", "auroc"] > 0.99
    placed = truth.clone()
    placed[..., 2] = torch.arange(200) < 30  # always in the same place
    assert bounds(z, placed).set_index("units").loc["position alone", "iou"] == 1


def test_rankings_are_scored_column_by_column() -> None:
    scores = torch.tensor([[4.0, 4], [3, 3], [2, 2], [2, 1]])
    truth = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0]]).bool().T
    precision, auroc = rank_scores(scores, truth)
    assert float(precision[0]) == pytest.approx((1 + 2 / 4) / 2)  # the tie counts in full
    assert float(auroc[0]) == pytest.approx((1 + 1 / 4) / 2)  # and here by half
    assert precision[1].isnan()  # no positives
    assert auroc[1].isnan()
    precision, auroc = rank_scores(scores, ~truth)
    assert float(precision[1]) == 1
    assert auroc[1].isnan()  # no negatives


def test_parts_are_those_that_are_drawn() -> None:
    drawn = {(p.name, cls) for cls in CLASSES for v in range(24) for p in _variant(cls, v, ())}
    assert {part for part, _ in drawn} <= set(PARTS)
    assert {x.partition(" of ")[0] for x in NAMES["class part"]} <= set(PARTS)
    assert len(NAMES["class part"]) == len(drawn)  # every part of every class
    assert tuple(sorted(PARTS)) == PARTS


def test_the_probe_finds_a_direction_and_nothing_where_nothing_is() -> None:
    g = torch.Generator().manual_seed(0)
    z, truth = torch.randn(4000, 8, generator=g), torch.rand(4000, 2, generator=g) < 0.3
    z[truth[:, 0], 3] += 4
    (scores,) = probe(z[:2000], truth[:2000], z[2000:])
    assert roc_auc_score(truth[2000:, 0], scores[:, 0]) > 0.98
    assert abs(roc_auc_score(truth[2000:, 1], scores[:, 1]) - 0.5) < 0.06


def test_the_probe_is_a_ridge_regression_in_units_of_the_variance() -> None:
    g = torch.Generator().manual_seed(0)
    z, truth = torch.randn(300, 6, generator=g) * torch.arange(1, 7), torch.rand(300, 2) < 0.3
    (scores,) = probe(z, truth, z)
    x, y = z.double() - z.double().mean(0), truth.double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(6)
    wanted = x @ torch.linalg.solve(gram, x.T @ (y - y.mean(0))) + y.mean(0)
    assert torch.allclose(scores, wanted, atol=1e-6)


def test_only_classes_are_objects() -> None:
    kinds = [kind for kind, _ in CONCEPTS]
    shown = torch.zeros(1, len(kinds), len(CONCEPTS), dtype=torch.bool)
    shown[0, torch.arange(len(kinds)), torch.arange(len(kinds))] = True  # a concept a patch
    assert on_object(shown).tolist() == [[kind == "class" for kind in kinds]]


def test_a_conjunction_is_where_a_region_shows_both() -> None:
    ids = np.zeros((8, 32), np.uint8)
    ids[:, 8:16], ids[:4, 16:24], ids[4:, 16:24], ids[:, 24:] = 1, 1, 2, 3
    regions = (
        Region(background="wall"),
        Region(cls="owl", part="wing", colour="red"),
        Region(cls="mushroom", part="stem"),
        Region(part="sign", word="stop"),
    )
    seen = Picture(np.zeros((8, 32, 3), np.uint8), ids, regions, "sketch")
    names = [
        ("class part", "wing of an owl"), ("class part", "stem of a mushroom"),
        ("part colour", "red wing"), ("class style", "owl in a sketch"), ("sign", "sign"),
        ("word", "stop"), ("style", "sketch"), ("style", "photo"), ("background", "wall"),
    ]  # fmt: skip
    assert set(names) <= set(CONCEPTS)
    assert patch_truth(seen, names, (1, 4)).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0, 1, 0, 1],
        [1, 0, 1, 1, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0, 1, 0, 0],  # half of each
        [0, 0, 0, 0, 1, 1, 1, 0, 0],
    ]


def test_all_that_pictures_show_has_a_name_but_the_plate_and_the_ink() -> None:
    world = World("world", "test", 120)
    pictures = [world.picture(i) for i in range(120)]
    shown = {c for p in pictures for region in p.regions for c in concepts_of(region, p.style)}
    assert shown - set(CONCEPTS) <= {("part", "sign"), ("part", "letter")}
    assert len(shown) > 400
    assert len(set(CONCEPTS)) == len(CONCEPTS)
    assert [kind for kind, _ in CONCEPTS[N_SINGLE - 1 : N_SINGLE + 1]] == ["word", "sign"]


def test_sparse_truth_is_the_dense_one() -> None:
    world = World("world", "test", 6)
    sparse, rows = sparse_truth(world, [4, 1]), [world.picture(4), world.picture(1)]
    assert sparse.shape.tolist() == [2, 196, len(CONCEPTS)]
    wanted = torch.from_numpy(np.stack([patch_truth(x, CONCEPTS) for x in rows]))
    assert torch.equal(sparse.dense(), wanted)
    assert len(sparse.concept) == wanted.sum()
    turned = sparse.select(torch.tensor([1, 1, 0]))
    assert torch.equal(turned.dense(), wanted[[1, 1, 0]])


def test_concepts_are_said_as_people_say_them() -> None:
    said = [("part", "stem"), ("group", "sea"), ("sign", "sign"), ("style", "sketch")]
    assert [spoken(x) for x in said] == ["stem", "group sea", "sign", "style sketch"]


def test_concepts_are_exchanged_among_their_kind() -> None:
    rng, kinds = np.random.default_rng(0), [kind for kind, _ in CONCEPTS]
    given = [1, 1, *range(len(CONCEPTS))][::-1]
    dealt = exchange(given, rng)
    assert sorted(dealt) == sorted(given)
    assert [kinds[i] for i in dealt] == [kinds[i] for i in given]
    assert sum(a != b for a, b in zip(given, dealt, strict=True)) > len(given) / 2


def test_a_plain_texture_is_no_concept() -> None:
    textures = [name for kind, name in CONCEPTS if kind == "texture"]
    assert sorted(["plain", *textures]) == sorted(TEXTURES)
    assert "plain" not in textures


def test_latents_are_units() -> None:
    z = torch.tensor([[[1.0, -2, 3]]])
    assert latents_of(identity(3))(z).tolist() == [[[1, 0, 3]]]


def test_scores_are_averaged_over_the_concepts_of_a_kind() -> None:
    rows = [
        ("class", "cat", "neurons", 0.5), ("class", "dog", "neurons", 0.25),
        ("part", "ear", "neurons", 1.0), ("class", "cat", "latents", 0.0),
    ]  # fmt: skip
    scores = pd.DataFrame(rows, columns=["kind", "concept", "units", "iou"])
    means = mean_scores(scores, "units", "iou")
    assert means[["concepts", "units", "iou"]].to_numpy().tolist() == [
        ["2 classes", "neurons", 0.375],
        ["1 parts", "neurons", 1.0],
        ["1 classes", "latents", 0.0],
    ]
    assert means.loc[0, ["low", "high"]].tolist() == [0, 1]  # Student's t of two says −1.2 to 2
    assert means.attrs["over"] == "concepts"


def test_thresholds_round_and_let_one_row_through_at_least() -> None:
    fired = (torch.arange(30.0)[:, None] > thresholds(torch.arange(30.0)[:, None])[:, None]).sum(1)
    # of 30 rows 0.06, 0.15, 0.3, 0.6, 1.5, 3 and 6
    assert fired[:, 0].tolist() == [1, 1, 1, 1, 2, 3, 6]


def test_scores_are_ranked_to_the_last_digit() -> None:
    scores = torch.tensor([[1 + 1e-12], [1.0]], dtype=torch.double)
    precision, auroc = rank_scores(scores, torch.tensor([[True], [False]]))
    assert (float(precision), float(auroc)) == (1, 1)


def test_the_threshold_is_that_of_the_half_it_was_chosen_on() -> None:
    truth = torch.arange(8)[:, None] < 2
    chosen = truth * 2.0, truth  # over 1
    row = concept_scores(chosen, (1.5 + truth.float(), truth), [CAT], minimum=1).iloc[0]
    assert row["iou"] == 2 / 8  # all are over 1


def test_both_halves_have_enough_of_a_concept() -> None:
    few, many = torch.arange(4)[:, None] < torch.tensor([[[1, 3, 3]], [[3, 1, 3]]])
    assert enough(few, many, 2) == [2]


def test_an_odd_number_of_pictures_has_halves() -> None:
    assert [x.tolist() for x in halves(torch.arange(5)[:, None])] == [[0, 1], [2, 3, 4]]
    z = torch.randn(5, 200, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(5, 200, len(CONCEPTS), dtype=torch.bool)
    truth[:, :30, 2] = True
    prior = bounds(z, truth).set_index("units").loc["position alone"]
    assert (prior["n"], prior["iou"]) == (90, 1)


def test_principal_components_are_uncorrelated_and_the_widest_first() -> None:
    g = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(3, 3, generator=g)).Q
    z = torch.rand(4, 500, 3, generator=g) * torch.tensor([1.0, 9, 3]) @ turned
    found = baselines(z, 1)["principal components (±)"](z)
    covariance = found[..., :3].flatten(0, 1).T.cov()
    assert torch.allclose(covariance.diagonal(), torch.tensor([81.0, 9, 1]) / 12, rtol=0.1)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert torch.equal(found[..., 3:], -found[..., :3])


def test_the_best_unit_is_the_best_at_one_threshold() -> None:
    truth = torch.zeros(2, 1000, len(CONCEPTS), dtype=torch.bool)
    truth[:, :100, 2] = True
    falling = torch.arange(1000, 0, -1.0)
    falling[90:100] = 0  # better at the other thresholds, and best nowhere
    units = torch.stack([truth[0, :, 2].float(), falling], 1).expand(2, -1, -1)
    row = compare_units({"given": units}, torch.empty(2, 1000, 0), truth).iloc[0]
    assert (row["unit"], row["iou"]) == (0, 1)


def test_the_probe_learns_from_the_first_half_only() -> None:
    z = torch.randn(8, 200, 4, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(8, 200, len(CONCEPTS), dtype=torch.bool)
    truth[:4, :, 2], truth[4:, :, 2] = z[:4, :, 3] < -1, z[4:, :, 1] < -1
    row = bounds(z, truth).set_index("units").loc["linear probe (supervised)"]
    assert abs(row["auroc"] - 0.5) < 0.1


def test_a_probe_scores_a_token_whatever_is_tested_beside_it() -> None:
    g = torch.Generator().manual_seed(0)
    z, truth = torch.randn(50, 3, generator=g), torch.rand(50, 2, generator=g) < 0.3
    all_of_them, one = probe(z, truth, z, z[:1])
    assert torch.allclose(one, all_of_them[:1])


def test_a_patch_may_be_a_pixel_and_pictures_keep_their_order() -> None:
    ids = np.array([[0, 1, 0], [1, 1, 2]], np.uint8)
    assert patch_truth(picture(ids), (CAT,), (2, 3))[:, 0].tolist() == [0, 1, 0, 1, 1, 0]
    world = World("objects", "test", 20)
    assert torch.equal(world_truth(world, [17, 3]), world_truth(world, [3, 17]).flip(0))


HELD = """
import sys, torch
from pathlib import Path
from patchsae_lib import truth
from patchsae_lib.sae import SAE
from patchsae_lib.world.truth import CONCEPTS

n, d = 128, 192
truth.VALUES = int(sys.argv[1])
sae = SAE(d, 4096).eval().requires_grad_(False)

def peak():
    status = Path("/proc/self/status").read_text()  # getrusage counts the parent's, too
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

def score(n):
    tokens = torch.randn(n, 197, d).bfloat16()
    shows = torch.zeros(n, 196, len(CONCEPTS), dtype=torch.bool)
    shows[..., :100].bernoulli_(0.03)
    z, neurons = tokens[:, 1:].float(), torch.rand(n, 196, 4 * d)
    units = {"latents": truth.latents_of(sae), "neurons": neurons}
    truth.compare_units(units, z, shows, minimum=20)
    truth.bounds(z, shows, minimum=20)

score(8)
before = peak()
score(n)
print(peak() - before, n * 196, d)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_what_is_held_of_a_scored_patch_is_what_a_study_counts_with() -> None:
    def held(values: int) -> tuple[int, int, int]:
        command = [sys.executable, "-c", HELD, str(values)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        return tuple(map(int, ran.stdout.split()))

    few = 2**21
    in_turns, patches, d_vit = held(few)
    bound = patches * (PATCH[0] * d_vit + PATCH[1]) + 5 * few
    assert bound / 2 < in_turns < bound
    at_once, *_ = held(2**40)  # the values of all units together are counted with 5 bytes each
    assert at_once - in_turns > 4 * patches / 2 * 4096 * 0.6
    assert at_once < bound + 5 * patches / 2 * 4096

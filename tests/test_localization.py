import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from patchsae_lib.localization import (
    CONCEPTS,
    auroc,
    baselines,
    best_units,
    compare_units,
    iou_table,
    patch_truth,
    probe_auroc,
    thresholds,
    world_truth,
)
from patchsae_lib.world import World
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.render import Picture


def picture(ids: np.ndarray) -> Picture:
    regions = (Region(), Region(cls="cat", colour="red"), Region(cls="dog", colour="red"))
    return Picture(np.zeros((*ids.shape, 3), np.uint8), ids, regions)


CAT, DOG, RED = ("cls", "cat"), ("cls", "dog"), ("colour", "red")


def test_a_concept_is_in_a_patch_that_it_fills_half_of() -> None:
    ids = np.zeros((16, 16), np.uint8)
    ids[:4, :8] = 1  # exactly half of the first patch: a cat
    ids[:4, 8:15] = 2  # 28 of 64 pixels of the second: too few
    ids[8:, :] = 2
    truth = patch_truth(picture(ids), (CAT, DOG, RED))
    assert truth[:, 0].tolist() == [True, False, False, False]
    assert truth[:, 1].tolist() == [False, False, True, True]
    assert truth[:, 2].tolist() == [True, False, True, True]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_several_regions_may_make_up_a_concept(seed: int) -> None:
    ids = np.random.default_rng(seed).choice(3, (16, 24), p=[0.4, 0.3, 0.3]).astype(np.uint8)
    ids = np.concatenate([ids, ids[:8]])[:, :24]  # 3 × 3 patches
    truth = patch_truth(picture(ids), (CAT, RED)).reshape(3, 3, 2)
    for row in range(3):
        for column in range(3):
            block = ids[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            assert truth[row, column].tolist() == [
                (block == 1).sum() >= 32,
                (block > 0).sum() >= 32,
            ]


def test_truth_of_the_world_agrees_with_its_masks() -> None:
    world = World("objects", "test", 40)
    truth = world_truth(world, [3, 17])
    assert truth.shape == (2, 196, len(CONCEPTS))
    for row, index in zip(truth, [3, 17], strict=True):
        for i, (kind, name) in enumerate(CONCEPTS):
            mask = world.picture(index).mask(kind, name)
            share = mask.reshape(14, 8, 14, 8).mean((1, 3)).ravel()
            assert (row[:, i].numpy() == (share >= 0.5)).all()


def test_thresholds_let_through_the_share_that_was_asked_for() -> None:
    units = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    cut = thresholds(units, (0.01, 0.2))
    assert (units[None] > cut[:, None]).sum(1).tolist() == [[10] * 5, [200] * 5]


def test_iou_by_hand() -> None:
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    truth = torch.tensor([[1, 0], [0, 0], [0, 1], [0, 1]]).bool()
    expected = [[1 / 2, 0.0], [0.0, 1 / 2]]
    assert iou_table(units, truth, torch.zeros(2)).tolist() == expected


def test_the_best_unit_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    truth = torch.arange(600)[:, None] < 60
    honest = truth.float()
    lucky = honest.clone()
    honest[0] = 0  # a little worse where it is chosen
    choose = torch.cat([honest, lucky], 1)
    score = torch.cat([truth.float(), torch.zeros(600, 1)], 1)  # luck does not last
    table = best_units((choose, truth), (score, truth), [CAT], shares=(0.1,))
    row = table.iloc[0]
    assert (row["unit"], row["iou"], row["chosen_iou"]) == (1, 0.0, 1.0)
    assert (row["kind"], row["concept"], row["n"]) == ("cls", "cat", 60)


def test_concepts_with_too_few_patches_are_left_out() -> None:
    truth = torch.arange(600)[:, None] < torch.tensor([[49, 550]])
    units = torch.rand(600, 3)
    table = best_units((units, truth), (units, truth), [CAT, DOG])
    assert table["concept"].tolist() == ["dog"]
    assert len(best_units((units, truth), (units, truth), [CAT, DOG], 601)) == 0


def test_sets_of_units_are_compared_on_the_same_halves() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, 200, 4, generator=g)
    truth = torch.zeros(8, 200, len(CONCEPTS), dtype=torch.bool)
    truth[..., 2] = z[..., 3] < -1  # the negative of a neuron
    table = compare_units(baselines(z, 6), z, truth, 50).set_index("units")
    raw, random = table.loc["raw neurons (±)"], table.loc["random directions"]
    assert (raw["concept"], raw["unit"]) == (CONCEPTS[2][1], 7)
    assert raw["n"] == int(truth[1::2, :, 2].sum())
    assert raw["iou"] > 0.7 > random["iou"]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    score, truth = zip(*rows, strict=True)
    ours = auroc(torch.tensor(score).float(), torch.tensor(truth))
    if len(set(truth)) < 2:
        assert ours.isnan()
    else:
        assert float(ours) == pytest.approx(roc_auc_score(truth, score), abs=1e-12)


def test_the_probe_finds_a_direction_and_nothing_where_nothing_is() -> None:
    g = torch.Generator().manual_seed(0)
    z, truth = torch.randn(4000, 8, generator=g), torch.rand(4000, 2, generator=g) < 0.3
    z[truth[:, 0], 3] += 4
    score = probe_auroc((z[:2000], truth[:2000]), (z[2000:], truth[2000:]))
    assert score[0] > 0.98
    assert abs(float(score[1]) - 0.5) < 0.06

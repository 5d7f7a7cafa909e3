import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from patchsae_lib.localization import (
    auroc,
    best_units,
    iou_table,
    patch_labels,
    probe_auroc,
    thresholds,
    world_labels,
)
from patchsae_lib.world import CLASSES, World
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.render import Picture


def picture(ids: np.ndarray) -> Picture:
    regions = (Region(), Region(cls="cat"), Region(cls="dog"))
    return Picture(np.zeros((*ids.shape, 3), np.uint8), ids, regions)


def test_a_patch_shows_what_fills_at_least_half_of_it() -> None:
    ids = np.zeros((16, 16), np.uint8)
    ids[:4, :8] = 1  # exactly half of the first patch: a cat
    ids[:4, 8:15] = 2  # 28 of 64 pixels of the second: too few
    ids[8:, :] = 2
    assert patch_labels(picture(ids), "cls", ("cat", "dog")).tolist() == [0, -1, 1, 1]
    assert patch_labels(picture(ids), "cls", ("dog",)).tolist() == [-1, -1, 0, 0]


def test_of_two_halves_one_is_taken() -> None:
    ids = np.repeat(np.array([[1], [2]], np.uint8), 4, 0).repeat(8, 1)
    assert patch_labels(picture(ids), "cls", ("cat", "dog"))[0] in (0, 1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_patch_labels_are_the_majority(seed: int) -> None:
    ids = np.random.default_rng(seed).choice(3, (16, 16), p=[0.2, 0.5, 0.3]).astype(np.uint8)
    labels = patch_labels(picture(ids), "cls", ("cat", "dog"))
    for k, (i, j) in enumerate((a, b) for a in (0, 8) for b in (0, 8)):
        counts = np.bincount(ids[i : i + 8, j : j + 8].ravel(), minlength=3)
        share = {-1: 64, 0: counts[1], 1: counts[2]}
        assert share[int(labels[k])] >= 32
        assert (labels[k] >= 0) == (max(counts[1], counts[2]) >= 32)


def test_labels_of_the_world_agree_with_its_masks() -> None:
    world = World("objects", "test", 40)
    labels = world_labels(world, [3, 17], "cls", CLASSES)
    for row, index in zip(labels, [3, 17], strict=True):
        mask = world.picture(index).mask("cls", CLASSES[world.label(index)])
        share = mask.reshape(14, 8, 14, 8).mean((1, 3)).ravel()
        assert ((row == world.label(index)).numpy() == (share >= 0.5)).all()


def test_thresholds_let_through_the_share_that_was_asked_for() -> None:
    units = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    cut = thresholds(units, (0.01, 0.2))
    assert (units[None] > cut[:, None]).sum(1).tolist() == [[10] * 5, [200] * 5]


def test_iou_by_hand() -> None:
    units = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    labels = torch.tensor([0, -1, 1, 1])
    expected = [[1 / 2, 0.0], [0.0, 1 / 2]]
    assert iou_table(units, labels, 2, torch.zeros(2)).tolist() == expected


def test_the_best_unit_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    labels = torch.tensor([0] * 60 + [-1] * 540)
    honest = (labels == 0).float()
    lucky = honest.clone()
    honest[0] = 0  # a little worse where it is chosen
    choose = torch.stack([honest, lucky], 1)
    score = torch.stack([(labels == 0).float(), torch.zeros(600)], 1)  # luck does not last
    table = best_units((choose, labels), (score, labels), ["cat"], shares=(0.1,))
    row = table.iloc[0]
    assert (row["unit"], row["iou"], row["chosen_iou"]) == (1, 0.0, 1.0)


def test_concepts_with_too_few_patches_are_left_out() -> None:
    labels = torch.tensor([0] * 49 + [1] * 551)
    units = torch.rand(600, 3)
    table = best_units((units, labels), (units, labels), ["rare", "frequent"])
    assert table["concept"].tolist() == ["frequent"]


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
    z, labels = torch.randn(4000, 8, generator=g), torch.randint(-1, 2, (4000,), generator=g)
    z[labels == 0, 3] += 4
    score = probe_auroc((z[:2000], labels[:2000]), (z[2000:], labels[2000:]), 2)
    assert score[0] > 0.98
    # without class 0, whose tokens it could tell apart, class 1 is chance
    rest = labels[2000:] != 0
    score = probe_auroc((z[:2000], labels[:2000]), (z[2000:][rest], labels[2000:][rest]), 2)
    assert abs(float(score[1]) - 0.5) < 0.06

"""Intervals and tests against scipy, and by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from patchsae_lib import intervals
from patchsae_lib.intervals import (
    bootstrap_mean,
    discoveries,
    interval_table,
    mean_interval,
    rank_correlation,
    resampled_means,
)


def test_the_interval_is_students() -> None:
    x = [1.0, 4.0, 2.5, 3.0]
    low, high = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    assert mean_interval(x, over="seeds") == pytest.approx((np.mean(x), low, high))


def test_the_bootstrap_covers_the_mean_and_ignores_what_is_missing() -> None:
    x = np.random.default_rng(0).normal(5, 1, 200)
    mean, low, high = bootstrap_mean([*x, float("nan")], over="pictures")
    assert mean == pytest.approx(x.mean())
    assert high - low == pytest.approx(2 * 1.96 * x.std() / math.sqrt(200), rel=0.1)
    assert low < mean < high
    assert all(map(math.isnan, bootstrap_mean([float("nan")], over="pictures")))


def test_the_bootstrap_is_the_percentile_one_of_scipy() -> None:
    x = np.random.default_rng(1).exponential(size=300)
    wanted = stats.bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=0)
    _, low, high = bootstrap_mean(x, over="classes", n=4000)
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval), rel=0.02)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(size=(3, 41))
    at_once = resampled_means(x, 100, seed=3)
    picks = np.random.default_rng(3).integers(41, size=(100, 41))
    assert np.allclose(at_once, [row[picks].mean(1) for row in x], rtol=1e-12)
    monkeypatch.setattr(intervals, "RESAMPLES_AT_ONCE", 1000)
    assert np.array_equal(at_once, resampled_means(x, 100, seed=3))


@pytest.mark.parametrize("interval", [bootstrap_mean, mean_interval])
def test_the_unit_of_resampling_is_a_known_one(interval) -> None:
    with pytest.raises(ValueError, match="over 'patches': give one of pictures, classes"):
        interval([1.0, 2.0], over="patches")


def test_a_table_has_an_interval_for_each_group_in_its_order() -> None:
    table = pd.DataFrame(
        {"kind": ["b", "a", "b", "b"], "unit": [1, 1, 1, 2], "ap": [0.1, 0.5, 0.3, 0.9]}
    )
    found = interval_table(table, ["kind", "unit"], "ap", over="concepts")
    assert list(found) == ["kind", "unit", "ap", "low", "high"]
    assert found[["kind", "unit"]].values.tolist() == [["b", 1], ["a", 1], ["b", 2]]
    assert found["ap"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    wanted = bootstrap_mean([0.1, 0.3], over="concepts")
    assert tuple(found.loc[0, ["ap", "low", "high"]]) == wanted
    by_unit = interval_table(table[:3], "unit", "ap", over="seeds", interval=mean_interval)
    assert by_unit["unit"].tolist() == [1]
    wanted = mean_interval([0.1, 0.5, 0.3], over="seeds")
    assert tuple(by_unit.loc[0, ["ap", "low", "high"]]) == wanted


def test_a_rank_correlation_is_spearmans_with_the_interval_of_resampled_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    r, low, high = rank_correlation(x, y, over="tasks")
    assert r == pytest.approx(stats.spearmanr(x, y).statistic)
    width = 2 * 1.96 * math.sqrt((1 + r**2 / 2) / 57) * (1 - r**2)  # Fisher's z, back again
    assert high - low == pytest.approx(width, rel=0.25)
    assert low < r < high
    assert rank_correlation([1, 2, 3], [1, 5, 7], over="tasks") == pytest.approx((1, 1, 1))


def test_discoveries_are_corrected_for_their_number() -> None:
    z = torch.cat([torch.full((5,), 6.0), torch.full((95,), -0.5), torch.tensor([torch.nan])])
    assert discoveries(z).tolist() == [True] * 5 + [False] * 96
    assert discoveries(torch.full((100,), 1.7)).all()  # all of them are
    assert not discoveries(torch.full((100,), 1.6)).any()  # p = 0.055
    assert not discoveries(torch.tensor([1.7] + [0.0] * 99)).any()  # one of 100 is no wonder


def test_a_mean_of_0_is_0() -> None:
    """Thirds leave 1e-17, which would put a gain's interval above 0 by rounding."""
    means = resampled_means(np.array([[0.1, 0.2, -0.3]]), 500, seed=0)
    assert (means == 0).any()
    assert not ((means != 0) & (np.abs(means) < 1e-12)).any()

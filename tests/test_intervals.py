"""Intervals and tests against scipy, and by hand."""

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from patchsae_lib import intervals
from patchsae_lib.intervals import (
    Interval,
    clustered_mean,
    estimate_mean,
    holm,
    interval_table,
    mean_interval,
    p_of_all,
    rank_correlation,
    resampled_means,
    skewed_mean,
    smallest_correlation,
    smallest_effect,
)


def test_the_interval_is_students() -> None:
    x = [1.0, 4.0, 2.5, 3.0]
    low, high = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    assert mean_interval(x, over="seeds") == pytest.approx((np.mean(x), low, high))


def test_the_bootstrap_covers_the_mean_and_ignores_what_is_missing() -> None:
    x = np.random.default_rng(0).normal(5, 1, 200)
    mean, low, high = estimate_mean([*x, float("nan")], over="pictures")
    assert mean == pytest.approx(x.mean())
    assert high - low == pytest.approx(2 * 1.96 * x.std() / math.sqrt(200), rel=0.1)
    assert low < mean < high
    assert all(map(math.isnan, estimate_mean([float("nan")], over="pictures")))


def test_the_bootstrap_is_the_percentile_one_of_scipy() -> None:
    x = np.random.default_rng(1).exponential(size=300)
    wanted = stats.bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=0)
    _, low, high = estimate_mean(x, over="classes", n=4000)
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval), rel=0.02)


def test_the_bootstraps_p_value_counts_the_means_beyond_0() -> None:
    """Of 999 resamples none, or each, is beyond: 2 (1 + 0) / (999 + 1), and at most 1."""
    x = np.arange(60) + 1.0
    for values in (x, -x):
        assert estimate_mean(values, over="pictures", n=999).p == pytest.approx(0.002)
    assert estimate_mean(np.zeros(60), over="pictures", n=999).p == 1
    near = np.random.default_rng(0).normal(0.2, 1, 80)
    means = resampled_means(near, 999, seed=0)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    assert 0 < beyond < 400
    assert estimate_mean(near, over="pictures", n=999).p == pytest.approx((1 + beyond) / 500)


def test_how_many_values_decide_the_method() -> None:
    rng = np.random.default_rng(0)
    for n, method in (
        (2, mean_interval),
        (14, mean_interval),
        (15, skewed_mean),
        (49, skewed_mean),
    ):
        x = rng.exponential(size=n)
        assert tuple(estimate_mean(x, over="classes")) == pytest.approx(
            tuple(method(x, over="classes"))
        )
    x = rng.exponential(size=50)
    bounds = np.quantile(resampled_means(x, 2000, seed=0), [0.025, 0.975])
    assert tuple(estimate_mean(x, over="classes"))[1:] == pytest.approx(tuple(bounds))


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch) -> None:
    x = np.random.default_rng(0).normal(size=(3, 41))
    at_once = resampled_means(x, 100, seed=3)
    picks = np.random.default_rng(3).integers(41, size=(100, 41))
    assert np.allclose(at_once, [row[picks].mean(1) for row in x], rtol=1e-12)
    monkeypatch.setattr(intervals, "RESAMPLES_AT_ONCE", 1000)
    assert np.array_equal(at_once, resampled_means(x, 100, seed=3))


@pytest.mark.parametrize("interval", [estimate_mean, mean_interval, skewed_mean])
def test_the_unit_of_resampling_is_a_known_one(interval) -> None:
    with pytest.raises(ValueError, match="over 'patches': give one of pictures, classes"):
        interval([1.0, 2.0], over="patches")
    with pytest.raises(ValueError, match="'pictures × seeds', two units: use clustered_mean"):
        interval([1.0, 2.0], over="pictures × seeds")


def test_an_interval_is_three_numbers_that_know_their_unit() -> None:
    interval = mean_interval([1.0, 2.0, 3.0], over="seeds")
    mean, *bounds = interval
    assert (mean, tuple(bounds)) == (interval.mean, interval[1:])
    assert len(interval) == 3
    assert interval.over == "seeds"
    assert str(interval) == "2 (-0.484 to 4.48 over seeds)"
    assert pickle.loads(pickle.dumps(interval)).over == "seeds"


DRAWS = {
    "normal": (0.0, lambda rng, n: rng.normal(size=n)),
    "exponential": (1.0, lambda rng, n: rng.exponential(size=n)),
    "bool": (0.1, lambda rng, n: rng.random(n) < 0.1),
    "difference": (0.1, lambda rng, n: (rng.random(n) < 0.15) * 1.0 - (rng.random(n) < 0.05)),
}
COVERAGE = [
    ("normal", (0.95, 0.95, 0.94)),
    ("exponential", (0.90, 0.95, 0.94)),
    ("bool", (0.99, 0.98, 0.97)),
    ("difference", (0.83, 0.92, 0.95)),
]


@pytest.mark.parametrize(("kind", "stated"), COVERAGE)
def test_intervals_cover_as_often_as_stated(kind, stated) -> None:
    """The coverage in the docstring, from 600 samples of each size (standard error .01)."""
    text = " ".join(estimate_mean.__doc__.split())
    assert ", ".join(f"{x:.2f}"[1:] for x in stated) in text
    rng, (mean, draw) = np.random.default_rng(0), DRAWS[kind]
    for n, wanted in zip((9, 35, 140), stated, strict=True):
        found = (estimate_mean(draw(rng, n), over="classes", n=400) for _ in range(600))
        assert np.mean([low <= mean <= high for _, low, high in found]) > wanted - 0.03


def test_the_skewed_interval_is_students_where_nothing_is_skewed() -> None:
    x = np.array([-3.0, -1.0, 0.0, 1.0, 3.0]) + 0.5
    assert skewed_mean(x, over="classes") == pytest.approx(mean_interval(x, over="classes"))
    assert skewed_mean(x, over="classes").p == pytest.approx(stats.ttest_1samp(x, 0).pvalue)
    _, low, high = skewed_mean([0.0, 0.1, 0.1, 0.2, 2.0], over="classes")
    assert high - 0.48 > 2 * (0.48 - low)  # where the long tail is
    for bound in (low, high):  # the test is the interval's
        shifted = skewed_mean(np.array([0.0, 0.1, 0.1, 0.2, 2.0]) - bound, over="classes")
        assert shifted.p == pytest.approx(0.05)
    for few in ([0.5], [0.5, 0.5, 0.5]):  # no spread, no interval
        mean, low, high = skewed_mean(few, over="classes")
        assert mean == 0.5
        assert np.isnan([low, high]).all()


def test_the_skewed_interval_is_halls_by_hand() -> None:
    x = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 8.0])
    mean, error = 2.0, math.sqrt(46 / 5 / 6)
    third = ((x - mean) ** 3).mean() / (46 / 5) ** 1.5  # 204 / 6 over the cube of the deviation
    g = third / math.sqrt(6)
    low, high = (
        mean - error * 3 / g * (np.cbrt(1 + g * (t - g / 6)) - 1) for t in (2.570582, -2.570582)
    )
    assert skewed_mean(x, over="classes") == pytest.approx((mean, low, high), abs=1e-5)


def test_truth_values_have_the_exact_interval() -> None:
    mean, low, high = estimate_mean(np.ones(6, bool), over="pictures")
    assert (mean, low, high) == pytest.approx((1, 0.025 ** (1 / 6), 1))


@pytest.mark.parametrize("interval", [estimate_mean, mean_interval, skewed_mean])
@pytest.mark.parametrize("n", [12, 60])
def test_a_p_value_is_small_where_the_interval_leaves_0_out(interval, n) -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.2, 0.5, 0.9):
        _, low, high = found = interval(rng.exponential(size=n) - 1 + shift, over="classes")
        assert (found.p < 0.05) == (not low <= 0 <= high)
    assert interval(np.arange(n) - (n - 1) / 2, over="classes").p == pytest.approx(1, abs=0.1)


def crossed(rng, n_pictures: int, n_seeds: int, by_seed: float) -> np.ndarray:
    """Values (pictures, seeds) of mean 0 that share a picture's effect and a seed's."""
    picture, seed = rng.normal(size=(n_pictures, 1)), rng.normal(size=n_seeds)
    return picture / 2 + by_seed * seed + rng.normal(size=(n_pictures, n_seeds))


def over_both(x: np.ndarray) -> Interval:
    picture, seed = np.indices(x.shape).reshape(2, -1)
    return clustered_mean(x.ravel(), picture, seed, over="pictures × seeds")


@pytest.mark.parametrize("by_seed", [0.0, 0.3])
def test_pictures_and_seeds_are_covered_and_pictures_alone_are_not_enough(by_seed) -> None:
    rng, both, alone = np.random.default_rng(0), [], []
    for _ in range(400):
        x = crossed(rng, 140, 3, by_seed)
        both.append(over_both(x))
        alone.append(mean_interval(x.mean(1), over="pictures"))
    covers = [np.mean([low <= 0 <= high for _, low, high in found]) for found in (both, alone)]
    assert covers[0] > 0.9
    assert covers[1] < 0.6 if by_seed else covers[1] > 0.92
    assert both[0].over == "pictures × seeds"


def test_two_units_have_the_interval_of_the_pigeonhole_bootstrap() -> None:
    """Pictures and seeds resampled independently of each other: Owen (2007)."""
    rng = np.random.default_rng(0)
    x = crossed(rng, 140, 40, 0.3)
    picks = [[rng.integers(n, size=n) for n in x.shape] for _ in range(1000)]
    resampled = [x[i][:, j].mean() for i, j in picks]
    assert over_both(x)[1:] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.02)


def test_clusters_of_unequal_size_by_hand() -> None:
    values, concept = [1.0, 2.0, 6.0, np.nan, 3.0], list("aabcc")
    found = clustered_mean(values, concept, over="concepts")
    assert found.mean == 3.0  # residuals −2 −1 | 3 | 0
    error = math.sqrt((9 + 9 + 0) / 4**2 * 3 / 2)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) * error)
    single = clustered_mean(values, range(5), over="concepts")
    assert single == pytest.approx(mean_interval([1.0, 2.0, 6.0, 3.0], over="concepts"))
    assert single.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 6.0, 3.0], 0).pvalue)
    with pytest.raises(ValueError, match="1 series of labels for 'pictures × seeds'"):
        clustered_mean(values, concept, over="pictures × seeds")


def test_a_table_has_an_interval_for_each_group_in_its_order() -> None:
    table = pd.DataFrame(
        {"kind": ["b", "a", "b", "b"], "unit": [1, 1, 1, 2], "ap": [0.1, 0.5, 0.3, 0.9]}
    )
    found = interval_table(table, ["kind", "unit"], "ap", over="concepts")
    assert list(found) == ["kind", "unit", "ap", "low", "high"]
    assert found[["kind", "unit"]].values.tolist() == [["b", 1], ["a", 1], ["b", 2]]
    assert found["ap"].tolist() == pytest.approx([0.2, 0.5, 0.9])
    wanted = estimate_mean([0.1, 0.3], over="concepts")
    assert tuple(found.loc[0, ["ap", "low", "high"]]) == wanted
    by_unit = interval_table(table[:3], "unit", "ap", over="seeds", interval=mean_interval)
    assert by_unit["unit"].tolist() == [1]
    wanted = mean_interval([0.1, 0.5, 0.3], over="seeds")
    assert tuple(by_unit.loc[0, ["ap", "low", "high"]]) == wanted
    assert by_unit.attrs["over"] == "seeds"


def test_a_table_of_clusters_that_is_kept_knows_its_units(tmp_path) -> None:
    table = pd.DataFrame({"right": np.arange(12) % 5, "picture": np.arange(12) // 3})
    table = table.assign(task="Objects", seed=np.arange(12) % 3)
    over = dict(over="pictures × seeds", clusters=["picture", "seed"])
    found = interval_table(table, "task", "right", **over)
    wanted = clustered_mean(table["right"], table["picture"], table["seed"], over=over["over"])
    assert tuple(found.loc[0, ["right", "low", "high"]]) == wanted
    found.to_parquet(tmp_path / "table.parquet")
    assert pd.read_parquet(tmp_path / "table.parquet").attrs["over"] == "pictures × seeds"


def test_a_rank_correlation_is_spearmans_with_fishers_interval() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    found = rank_correlation(x, y, over="tasks")
    assert (found.mean, found.p) == pytest.approx(tuple(stats.spearmanr(x, y)))
    assert rank_correlation(torch.tensor(x), torch.tensor(y), over="tasks") == found
    picks = rng.integers(60, size=(2000, 60))
    resampled = [stats.spearmanr(x[i], y[i]).statistic for i in picks[:500]]
    assert found[1:] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.06)
    z, error = np.arctanh(found.mean), math.sqrt((1 + found.mean**2 / 2) / 57)
    by_hand = np.tanh([z - 1.959964 * error, z + 1.959964 * error])
    assert found[1:] == pytest.approx(by_hand, abs=1e-6)
    assert rank_correlation([1, 2, 3, 4], [1, 5, 7, 9], over="tasks") == pytest.approx((1, 1, 1))
    assert np.isnan(rank_correlation([1, 2, 3], [1, 5, 7], over="tasks")[1:]).all()


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_rank_correlation_of_nine_tasks_is_covered(correlation) -> None:
    rng, covers = np.random.default_rng(0), []
    true = 6 / np.pi * np.arcsin(correlation / 2)
    for _ in range(400):
        x, noise = rng.normal(size=(2, 9))
        y = correlation * x + math.sqrt(1 - correlation**2) * noise
        _, low, high = rank_correlation(x, y, over="tasks")
        covers.append(low <= true <= high)
    assert np.mean(covers) > 0.93


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    for n in (3, 9, 35):
        x = rng.normal(size=(4000, n))
        one = (x[0] - x[0].mean()) / x[0].std(ddof=1)
        effect = smallest_effect([*one, np.nan])
        assert (stats.ttest_1samp(x + effect, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
            0.8, abs=0.02
        )
    assert smallest_effect(3 * one) == pytest.approx(3 * effect)


def test_the_smallest_correlation_is_found_four_times_in_five() -> None:
    n, rng = 35, np.random.default_rng(0)
    r = 2 * np.sin(np.pi / 6 * smallest_correlation(n))  # Pearson's, of normal values
    x, noise = rng.normal(size=(2, 600, n))
    y = r * x + math.sqrt(1 - r**2) * noise
    found = [stats.spearmanr(a, b).pvalue < 0.05 for a, b in zip(x, y, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    by_hand = math.tanh((1.959964 + 0.841621) * math.sqrt(1.06 / 6))
    assert smallest_correlation(9) == pytest.approx(by_hand, abs=1e-6)


def test_holms_p_values_by_hand_and_under_bonferronis() -> None:
    p = np.array([0.04, 0.001, 0.03, 0.5])
    assert holm(p) == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert (holm(p) <= 4 * p).all()
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []


def test_a_mean_of_0_is_0() -> None:
    """Thirds leave 1e-17, which would put a gain's interval above 0 by rounding."""
    means = resampled_means(np.array([[0.1, 0.2, -0.3]]), 500, seed=0)
    assert (means == 0).any()
    assert not ((means != 0) & (np.abs(means) < 1e-12)).any()


def test_clusters_are_those_of_one_unit_or_of_two() -> None:
    x, labels = np.arange(4.0), np.arange(4)
    for units, n in (("pictures × seeds × classes", 3), ("pictures × seeds", 1)):
        with pytest.raises(ValueError, match="series of labels"):
            clustered_mean(x, *[labels] * n, over=units)


@pytest.mark.filterwarnings("error")
def test_clusters_without_spread_have_no_interval() -> None:
    labels = [0, 0, 1, 1], [0, 1, 0, 1]
    mean, low, high = clustered_mean(np.ones(4), *labels, over="pictures × seeds")
    assert mean == 1
    assert np.isnan([low, high]).all()


def test_all_are_above_zero_only_as_surely_as_the_least_sure() -> None:
    sure, unsure = (Interval(1, 0, 2, p=p) for p in (0.001, 0.2))
    assert p_of_all([sure, unsure]) == 0.2
    assert p_of_all([sure, Interval(-1, -2, 0, p=0.001)]) == 1  # surely on the wrong side
    assert p_of_all([sure, Interval(0, 0, 0, p=0.001)]) == 1

"""Confidence intervals and tests. `over` names what is resampled: an interval over pictures says
nothing about other classes, and one over seeds nothing about other pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

#: the unit of resampling: what an interval generalises to
Unit = Literal["pictures", "classes", "concepts", "latents", "pairs", "tasks", "seeds"]

RESAMPLES_AT_ONCE = 1 << 22  # values drawn at a time: memory does not grow with their number


class Interval(NamedTuple):
    """An estimate (`mean`, or a correlation) and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def _checked(over: str) -> None:
    if over not in get_args(Unit):
        raise ValueError(f"intervals over {over!r}: give one of {', '.join(get_args(Unit))}")


def resampled_means(x: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the means (…, n) of n resamples of the units of x (…, units)."""
    rng, units = np.random.default_rng(seed), x.shape[-1]
    step = max(1, RESAMPLES_AT_ONCE // x.size)
    means = [
        x[..., rng.integers(units, size=(min(step, n - start), units))].mean(-1)
        for start in range(0, n, step)
    ]
    return np.concatenate(means, -1).round(12)  # a mean of 0 is 0, and not 1e-17 above it


def bootstrap_mean(values: npt.ArrayLike, *, over: Unit, n: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of values (units,) and its percentile bootstrap interval from n resamples.
    NaN counts as a missing value; without any value, all three numbers are NaN."""
    _checked(over)
    x = np.asarray(values, float)
    x = x[~np.isnan(x)]
    if not len(x):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(resampled_means(x, n, seed), [0.025, 0.975])
    return Interval(float(x.mean()), float(low), float(high))


def mean_interval(values: npt.ArrayLike, *, over: Unit) -> Interval:
    """Return the mean of two or more values (units,) and its interval by Student's t.

    >>> [round(v, 2) for v in mean_interval([1.0, 2.0, 3.0], over="seeds")]
    [2.0, -0.48, 4.48]
    """
    _checked(over)
    x = np.asarray(values, float)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def interval_table(
    table: pd.DataFrame,
    by: str | Sequence[str],
    value: str,
    *,
    over: Unit,
    interval: Callable[..., Interval] = bootstrap_mean,
) -> pd.DataFrame:
    """Return the `interval` of the column `value` for each group of rows with equal `by`: a row
    each, in order of first appearance, of `by`, `value` (the mean), `low` and `high`."""
    keys = [by] if isinstance(by, str) else list(by)
    groups = table.groupby(keys, sort=False, observed=True)[value]
    rows = [(*key, *interval(group, over=over)) for key, group in groups]
    return pd.DataFrame(rows, columns=[*keys, value, "low", "high"])


def rank_correlation(
    x: npt.ArrayLike, y: npt.ArrayLike, *, over: Unit, n: int = 200, seed: int = 0
) -> Interval:
    """Return Spearman's correlation of x and y (units,) and its percentile bootstrap interval,
    without the resamples in which x or y is constant, which have no correlation."""
    _checked(over)
    a, b = np.asarray(x), np.asarray(y)
    picks = np.random.default_rng(seed).integers(len(a), size=(n, len(a)))
    varied = [i for i in picks if min(np.ptp(a[i]), np.ptp(b[i])) > 0]
    drawn = [stats.spearmanr(a[i], b[i]).statistic for i in varied] or [np.nan]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(stats.spearmanr(a, b).statistic), float(low), float(high))


def discoveries(z_scores: Tensor, rate: float = 0.05) -> Tensor:
    """Return which z-scores (d,) are significant, one-sided, at a false discovery `rate`: bool, by
    the procedure of Benjamini and Hochberg (1995). NaN counts as p = 1."""
    p = stats.norm.sf(z_scores.nan_to_num(-torch.inf).numpy())
    return torch.from_numpy(stats.false_discovery_control(p) <= rate)

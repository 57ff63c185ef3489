"""Percentile bootstrap intervals, for means and for any statistic of rows.

Source: Efron & Tibshirani 1993, chapter 13. Letters: N rows, V values, R resamples.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unix_jax.errors import MetricError

# Numbers of drawn rows held at a time.
_BLOCK = 2_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic of all rows, and the interval that its resampled values lie in."""

    value: float
    low: float
    high: float


def mean_intervals(
    values: Mapping[str, Any], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """The mean of each column, with its interval.

    Args:
      values: numbers by name, one for each row; all columns are resampled together.
      confidence: share of resampled means inside the interval, between 0 and 1.
      resamples: how often rows are drawn, with replacement.
      seed: of the draws; the same gives the same intervals.

    Raises:
      MetricError: no row, columns of different lengths, a number that is not finite, or an
        argument out of range.
    """
    _check_arguments(confidence, resamples)
    if not values:
        return {}
    columns = [np.asarray(column, np.float64) for column in values.values()]
    for name, column in zip(values, columns, strict=True):
        if column.ndim != 1 or not len(column) or len(column) != len(columns[0]):
            expected = len(columns[0]) if columns[0].ndim == 1 and len(columns[0]) else "1 or more"
            raise MetricError(f"{name}: expected {expected} numbers, found {list(column.shape)}")
        if not np.isfinite(column).all():
            raise MetricError(
                f"{name}: expected finite numbers, found "
                f"{column[~np.isfinite(column)][0]} at {np.argmin(np.isfinite(column))}"
            )
    table = np.stack(columns, axis=1)
    count = len(table)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(columns)))
    size = max(1, _BLOCK // count)
    for start in range(0, resamples, size):
        stop = min(start + size, resamples)
        # How often each row is drawn is all that a mean needs.
        drawn = rng.integers(0, count, (stop - start, count))
        offsets = np.arange(stop - start)[:, None] * count
        times = np.bincount((drawn + offsets).ravel(), minlength=drawn.size)
        means[start:stop] = times.reshape(stop - start, count) @ table / count
    bounds = _bounds(means, confidence)
    centre = table.mean(0)
    return {
        name: Interval(float(centre[i]), float(bounds[0, i]), float(bounds[1, i]))
        for i, name in enumerate(values)
    }


def mean_interval(
    values: Any, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """As `mean_intervals`, of one column."""
    named = mean_intervals(
        {"values": values}, confidence=confidence, resamples=resamples, seed=seed
    )
    return named["values"]


def intervals(
    statistic: Callable[..., Mapping[str, float]],
    *arrays: Any,
    paired: bool = True,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of what `statistic(*arrays)` returns, such as `clinical.clinical_f1`.

    Args:
      statistic: a function of arrays of rows to numbers by name.
      arrays: what it takes; rows are drawn along the first axis.
      paired: whether row i of all arrays belongs together, and is drawn together. False draws
        from each array by itself, as for real and fake features.
      confidence, resamples, seed: as `mean_intervals`.

    Raises:
      MetricError: no array, no row, paired arrays of different lengths, or an argument out of
        range; and what `statistic` raises.
    """
    _check_arguments(confidence, resamples)
    rows = [np.asarray(array) for array in arrays]
    lengths = [len(array) if array.ndim else 0 for array in rows]
    if not rows or not min(lengths) or (paired and len(set(lengths)) > 1):
        raise MetricError(
            f"arrays: expected at least 1 row, {'as many in each' if paired else 'in each'}, "
            f"found {lengths}"
        )
    whole = statistic(*rows)
    rng = np.random.default_rng(seed)
    values = np.empty((resamples, len(whole)))
    for index in range(resamples):
        drawn = rng.integers(0, lengths[0], lengths[0])
        sample = [
            array[drawn if paired else rng.integers(0, n, n)]
            for array, n in zip(rows, lengths, strict=True)
        ]
        found = statistic(*sample)
        values[index] = [found[name] for name in whole]
    bounds = _bounds(values, confidence)
    return {
        name: Interval(float(value), float(bounds[0, i]), float(bounds[1, i]))
        for i, (name, value) in enumerate(whole.items())
    }


def _bounds(values: np.ndarray, confidence: float) -> np.ndarray:
    outside = (1 - confidence) / 2
    return np.quantile(values, [outside, 1 - outside], axis=0)


def _check_arguments(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise MetricError(f"confidence: expected a number between 0 and 1, found {confidence}")
    if resamples < 1:
        raise MetricError(f"resamples: expected at least 1, found {resamples}")

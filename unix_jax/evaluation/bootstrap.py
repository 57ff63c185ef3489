"""Percentile bootstrap intervals by `scipy.stats.bootstrap`, for means and any statistic of rows.

Source: Efron & Tibshirani 1993, chapter 13. Letters: N rows, V values, R resamples.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from unix_jax.errors import MetricError

# Most row indices that are resampled at a time.
_BLOCK = 2_000_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A statistic of all rows, and the interval of its resampled values."""

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
      resamples: number of resamples of rows, with replacement.
      seed: random seed of the resamples.

    Raises:
      MetricError: no row, columns of different lengths, a number that is not finite, or an argument
        out of range.
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
    table = np.stack(columns)

    def means(rows: np.ndarray) -> np.ndarray:
        # How often each row occurs is all that a mean needs.
        offsets = np.arange(len(rows))[:, None] * table.shape[1]
        times = np.bincount((rows + offsets).ravel(), minlength=rows.size)
        return table @ times.reshape(rows.shape).T / table.shape[1]

    centre = table.mean(1)
    low, high = _bounds(means, [table.shape[1]], confidence, resamples, seed)
    return {
        name: Interval(float(centre[i]), float(low[i]), float(high[i]))
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
    """Intervals of the results of `statistic(*arrays)`, such as `clinical.clinical_f1`.

    Args:
      statistic: a function of arrays of rows to numbers by name.
      arrays: its arguments; rows are resampled along the first axis.
      paired: whether row i of all arrays belongs together, and is resampled together. False
        resamples each array independently, as for real and fake features.
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

    def values(*drawn: np.ndarray) -> np.ndarray:
        found = []
        for indices in zip(*drawn, strict=True):
            chosen = indices * len(rows) if paired else indices
            sample = [array[index] for array, index in zip(rows, chosen, strict=True)]
            one = statistic(*sample)
            found.append([one[name] for name in whole])
        return np.array(found).T

    low, high = _bounds(values, lengths[:1] if paired else lengths, confidence, resamples, seed)
    return {
        name: Interval(float(value), float(low[i]), float(high[i]))
        for i, (name, value) in enumerate(whole.items())
    }


def _bounds(
    statistic: Callable[..., np.ndarray],
    lengths: Sequence[int],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The limits [V] of a statistic of row indices, one array [R, N] per sample, to [V, R].

    scipy resamples the indices and not the rows, so that columns, and paired arrays, stay together.
    """

    def of_indices(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(*(rows[:, :n] for rows, n in zip(drawn, lengths, strict=True)))

    indices = [np.arange(length) for length in lengths]
    if max(lengths) == 1:  # scipy requires two rows; a single row is always selected
        fixed = statistic(*(row[None] for row in indices))[:, 0]
        return fixed, fixed
    found = stats.bootstrap(
        # Two of the same index stand for a sample of one row, which is cut out again above.
        [np.zeros(2, int) if len(row) == 1 else row for row in indices],
        of_indices,
        n_resamples=resamples,
        batch=max(1, _BLOCK // sum(lengths)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def _check_arguments(confidence: float, resamples: int) -> None:
    if not 0 < confidence < 1:
        raise MetricError(f"confidence: expected a number between 0 and 1, found {confidence}")
    if resamples < 1:
        raise MetricError(f"resamples: expected at least 1, found {resamples}")

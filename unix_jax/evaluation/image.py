"""Distances between two sets of image features, and the inception score; all in float64.

Sources: Heusel et al., arXiv 1706.08500 (Fréchet distance); Binkowski et al., arXiv 1801.01401
(kernel distance); Salimans et al., arXiv 1606.03498 (inception score); `unix_jax.evaluation.prdc`.
The names of the protocol: FD and KD are these with RAD-DINO features.

Letters: N real rows, M fake rows, D columns, K classes.
"""

from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from unix_jax.errors import MetricError
from unix_jax.evaluation.prdc import prdc
from unix_jax.evaluation.rows import FeatureRows, feature_pair
from unix_jax.evaluation.streaming import Moments, frechet_from_moments

__all__ = ["frechet_distance", "inception_score", "kernel_distance", "prdc"]

Precision = Literal["float64", "float32"]

# Rows of a block of kernel values, which with its squares stays in a CPU's caches; and how many
# such blocks of rows are read at a time.
_ROWS, _BLOCKS = 256, 16


def frechet_distance(real: Any, fake: Any) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets of features.

    Args:
      real, fake: features [N, D] and [M, D]; arrays on disk (`np.memmap`) are read by blocks. For
        features that arrive in blocks: `streaming.Moments`, `streaming.frechet_from_moments`.

    Returns:
      At least 0. Covariances have the denominator N - 1, and may be singular.

    Raises:
      MetricError: not finite numbers of one width, or fewer than two rows.
    """
    first, second = feature_pair(real, fake, at_least=2)
    moments = []
    for rows in (first, second):
        moments.append(Moments())
        for span in rows.spans():
            moments[-1].update(rows.block(*span), rows.name)
    return frechet_from_moments(*moments)


def kernel_distance(
    real: Any,
    fake: Any,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
    precision: Precision = "float64",
) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / D + 1)^3.

    Args:
      real, fake: features [N, D] and [M, D]; arrays on disk (`np.memmap`) are read by blocks, so
        they may be larger than memory (without `subsets`).
      subsets: None for the estimate from all rows. A number: the mean over this number of pairs of
        subsets of `subset_size` rows, drawn without replacement, as libraries often report.
      subset_size: rows per subset, of either set.
      seed: random seed of the subsets.
      precision: of each kernel value; `float32` takes less time, and is what libraries do with
        float32 features. Its error is small compared with the kernel's mean, but not compared with
        a distance near 0. Sums are float64 between blocks.

    Returns:
      About 0 for sets of one distribution; it may be negative.

    Raises:
      MetricError: not finite numbers of one width, fewer than two rows, or than `subset_size`.
    """
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise MetricError(f"precision: expected one of {names}, found {precision!r}")
    dtype = np.dtype(precision)
    first, second = feature_pair(real, fake, at_least=2)
    if subsets is None:
        return _discrepancy(first, second, dtype)
    if subsets < 1:
        raise MetricError(f"subsets: expected at least 1, found {subsets}")
    fewest = min(first.count, second.count)
    if not 2 <= subset_size <= fewest:
        raise MetricError(f"subset_size: expected 2 to {fewest}, found {subset_size}")
    rng = np.random.default_rng(seed)
    whole = [rows.block(0, rows.count) for rows in (first, second)]
    values = []
    for _ in range(subsets):
        left, right = (a[rng.choice(len(a), subset_size, replace=False)] for a in whole)
        values.append(_discrepancy(*feature_pair(left, right), dtype))
    return float(np.mean(values))


def _discrepancy(real: FeatureRows, fake: FeatureRows, dtype: np.dtype) -> float:
    n, m = real.count, fake.count
    within = sum(
        _kernel_sum(rows, None, dtype) / (k * (k - 1)) for rows, k in ((real, n), (fake, m))
    )
    return float(within - 2 * _kernel_sum(real, fake, dtype) / (n * m))


def _kernel_sum(first: FeatureRows, second: FeatureRows | None, dtype: np.dtype) -> float:
    """Sum of the kernel over all pairs of two sets; or over all ordered pairs of one set's rows."""
    total = 0.0
    others = first if second is None else second
    buffers = np.empty((2, _ROWS * _ROWS), dtype)
    for left_edge, right_edge in others.spans(_ROWS * _BLOCKS):
        wide = _with_ones(others.block(left_edge, right_edge), dtype)
        for start, stop in first.spans(_ROWS):
            if second is None and start >= right_edge:
                break  # the kernel is symmetric: these pairs of blocks have been
            left = _with_ones(first.block(start, stop) / first.width, dtype)
            skipped = max(start - left_edge, 0) if second is None else 0
            for begin in range(skipped, len(wide), _ROWS):
                right = wide[begin : begin + _ROWS]
                size = len(left) * len(right)
                values, squares = (buffer[:size].reshape(len(left), -1) for buffer in buffers)
                np.matmul(left, right.T, out=values)
                np.multiply(values, values, out=squares)
                cubes = float(np.dot(values.ravel(), squares.ravel()))
                if second is not None:
                    total += cubes
                elif left_edge + begin == start:
                    total += cubes - float(np.dot(np.diagonal(values), np.diagonal(squares)))
                else:
                    total += 2 * cubes
    return float(total)


def _with_ones(rows: Float[np.ndarray, "n D"], dtype: np.dtype) -> Float[np.ndarray, "n D+1"]:
    """The kernel's constant as an additional column, for a single matrix product."""
    return np.hstack([rows, np.ones((len(rows), 1))]).astype(dtype, copy=False)


def inception_score(probabilities: Float[np.ndarray, "N K"]) -> float:
    """exp of the mean divergence of each row's class probabilities from their mean.

    Args:
      probabilities: each row's sum is 1 (to 1e-3), each number at least 0.

    Returns:
      From 1 to K. Computed over all rows at once; `groups.shard_mean` computes the mean over
        splits.

    Raises:
      MetricError: not such probabilities, or no row.
    """
    rows = FeatureRows(probabilities, "probabilities")
    values = rows.block(0, rows.count)
    sums = values.sum(1)
    if values.min() < 0 or np.abs(sums - 1).max() > 1e-3:
        row = int(np.argmax((values.min(1) < 0) | (np.abs(sums - 1) > 1e-3)))
        raise MetricError(
            f"probabilities: expected rows of numbers from 0 that sum to 1, found in row {row} "
            f"the sum {sums[row]:g} and the least {values[row].min():g}"
        )
    mean = values.mean(0)
    positive = values > 0  # p log p is 0 at 0, and a class that nobody has adds nothing
    ratios = np.divide(values, mean, out=np.ones_like(values), where=positive)
    return float(np.exp((values * np.log(ratios)).sum(1).mean()))

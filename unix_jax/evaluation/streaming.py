"""Moments of features that need not fit in memory: mean and covariance, block by block.

Source: Chan, Golub & LeVeque 1979 for the combination of two sets. Letters: N rows, D columns.
"""

from typing import Any, Self

import numpy as np
from jaxtyping import Float

from unix_jax.errors import MetricError
from unix_jax.evaluation.rows import FeatureRows


class Moments:
    """Mean and covariance of all rows seen so far, in float64; D * D numbers of memory.

    `update` takes rows, `merge` another object's; the order does not matter except for rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: np.ndarray | None = None
        self._scatter: np.ndarray | None = None

    def update(self, features: Any, name: str = "features") -> Self:
        """Adds rows [N, D]; N may be 0.

        Raises:
          MetricError: not finite numbers [rows, columns], or another width than before.
        """
        rows = FeatureRows(features, name, at_least=0)
        for span in rows.spans():
            block = rows.block(*span)
            mean = block.mean(0)
            centred = block - mean
            self._add(len(block), mean, centred.T @ centred, name)
        return self

    def merge(self, other: "Moments") -> Self:
        """Adds the rows that another object has seen.

        Raises:
          MetricError: another width.
        """
        if other._mean is not None and other._scatter is not None:
            self._add(other.count, other._mean, other._scatter, "other")
        return self

    def _add(self, count: int, mean: np.ndarray, scatter: np.ndarray, name: str) -> None:
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        if mean.shape != self._mean.shape:
            raise MetricError(
                f"{name}: expected {len(self._mean)} columns as before, found {len(mean)}"
            )
        total = self.count + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._scatter += scatter + np.outer(shift, shift) * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Float[np.ndarray, " D"]:
        """Raises MetricError before the first row."""
        if self._mean is None:
            raise MetricError("moments: expected at least 1 row, found none")
        return self._mean

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """With the denominator N - 1. Raises MetricError before the second row."""
        if self._scatter is None or self.count < 2:
            raise MetricError(f"moments: expected at least 2 rows, found {self.count}")
        return self._scatter / (self.count - 1)


def frechet_from_moments(real: Moments, fake: Moments) -> float:
    """The squared Fréchet distance of the normal distributions with these moments.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). The last trace is the sum of the square roots
    of the eigenvalues of the symmetric A^T C2 A, where C1 = A A^T: they are those of C1 C2.
    Directions in which a covariance is zero except for rounding are ignored, so constant columns
    and fewer rows than columns are supported.

    Returns:
      At least 0, in the square of the features' unit.

    Raises:
      MetricError: fewer than two rows, or different widths.
    """
    if real.mean.shape != fake.mean.shape:
        raise MetricError(
            f"fake: expected {len(real.mean)} columns as in real, found {len(fake.mean)}"
        )
    first, second = real.covariance, fake.covariance
    values, vectors = np.linalg.eigh(first)
    kept = values > _rounding(values)
    factor = vectors[:, kept] * np.sqrt(values[kept])
    common = np.linalg.eigvalsh(factor.T @ second @ factor)
    common = common[common > _rounding(common)]
    shift = real.mean - fake.mean
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(common).sum()
    return max(float(distance), 0.0)


def _rounding(values: np.ndarray) -> float:
    """Below this an eigenvalue of such a matrix may be rounding."""
    return float(np.max(values, initial=0.0)) * len(values) * np.finfo(np.float64).eps

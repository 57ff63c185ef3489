"""Precision, recall, density and coverage of generated features, computed in blocks of distances.

Source: Naeem et al., arXiv 2002.09797; Kynkäänniemi et al., arXiv 1904.06991.
Letters: N real rows, M fake rows, D columns, k neighbours.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from unix_jax.errors import MetricError
from unix_jax.evaluation.rows import FeatureRows, feature_pair

# Distances held at a time: 512 x 4096 of 8 bytes.
_ROWS, _COLUMNS = 512, 4096
# Rounding of a squared distance, in units of the largest squared norm.
_SLACK = 64 * np.finfo(np.float64).eps


def prdc(real: Any, fake: Any, k: int = 5) -> dict[str, float]:
    """Measures how well fake features cover the real ones and resemble them.

    A row's ball reaches to its k-th nearest other row of its own set, and is open: a distance
    equal to the radius, except for rounding, is outside.

    Args:
      real, fake: features [N, D] and [M, D]; arrays on disk (`np.memmap`) are read by blocks.
      k: the neighbour that determines a ball's radius.

    Returns:
      `precision`: share of fake rows in some real ball. `recall`: share of real rows in some
      fake ball. `density`: real balls that a fake row lies in, on average, over k. `coverage`:
      share of real balls that hold a fake row. All are in [0, 1] except density, which may exceed
        1.

    Raises:
      MetricError: not finite numbers of one width, k below 1, or no more than k rows.
    """
    if k < 1:
        raise MetricError(f"k: expected at least 1, found {k}")
    balls = _Balls(*feature_pair(real, fake, at_least=k + 1), k)
    inside, held = np.zeros(balls.fake.count), np.zeros(balls.real.count, bool)
    recalled = np.zeros(balls.real.count, bool)
    real_radii, fake_radii = balls.radii(balls.real), balls.radii(balls.fake)
    for (start, stop), (left, right), squared in balls.distances(balls.real, balls.fake):
        among_real = squared < real_radii[start:stop, None]
        inside[left:right] += among_real.sum(0)
        held[start:stop] |= among_real.any(1)
        recalled[start:stop] |= (squared < fake_radii[left:right]).any(1)
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / k),
        "coverage": float(held.mean()),
    }


Span = tuple[int, int]


class _Balls:
    """Squared distances between rows of two sets, and the k-th smallest within each."""

    def __init__(self, real: FeatureRows, fake: FeatureRows, k: int):
        self.real, self.fake, self.k = real, fake, k
        # Distances do not change when all rows shift, but their rounding is less near zero.
        self._origin = real.block(0, min(real.count, _COLUMNS)).mean(0)
        self._largest = max(self._largest_norm(rows) for rows in (real, fake))

    def _largest_norm(self, rows: FeatureRows) -> float:
        spans = rows.spans(_COLUMNS)
        return max(float(np.square(self._block(rows, span)).sum(1).max()) for span in spans)

    def _block(self, rows: FeatureRows, span: Span) -> Float[np.ndarray, "n D"]:
        return rows.block(*span) - self._origin

    def distances(self, first: FeatureRows, second: FeatureRows) -> Iterator[tuple[Any, Any, Any]]:
        """(span of first, span of second, squared distances [n, m]) of all pairs of blocks.

        |x|^2 + |y|^2 - 2 x y is one matrix product, of [-2x, |x|^2, 1] and [y, 1, |y|^2]. The
        array of distances is overwritten by the next one.
        """
        for columns in second.spans(_COLUMNS):
            right = self._block(second, columns)
            ones = np.ones((len(right), 1))
            right = np.hstack([right, ones, np.square(right).sum(1, keepdims=True)])
            for rows in first.spans(_ROWS):
                left = self._block(first, rows)
                norms = np.square(left).sum(1, keepdims=True)
                left = np.hstack([-2 * left, norms, np.ones_like(norms)])
                yield rows, columns, left @ right.T

    def radii(self, rows: FeatureRows) -> Float[np.ndarray, " N"]:
        """Squared distance of each row to its k-th nearest other one, minus a rounding bound."""
        nearest = np.full((rows.count, self.k), np.inf)
        for (start, stop), (left, right), squared in self.distances(rows, rows):
            both = np.arange(max(start, left), min(stop, right))
            squared[both - start, both - left] = np.inf  # a row is no neighbour of itself
            if squared.shape[1] > self.k:
                squared = np.partition(squared, self.k - 1, axis=1)[:, : self.k]
            candidates = np.hstack([nearest[start:stop], squared])
            nearest[start:stop] = np.partition(candidates, self.k - 1, axis=1)[:, : self.k]
        return nearest.max(1) - _SLACK * self._largest

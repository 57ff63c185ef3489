"""Nearest-neighbour search among rows that arrive in blocks, and the benchmark's distances.

The benchmark's distances are |a - b| / sqrt(D), the root mean square of the differences. They are
in gray levels from 0 to 255 for pixels, and in the unit of the features for latents. Source:
CheXGenBench, arXiv 2505.10496. Letters: N queries, n rows of a block, D columns.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.errors import MetricError

SEARCH_SIDE, PAIR_SIDE = 64, 512
_QUERIES = 1024

# Distances [N, n] of each query and each row of a block; smaller is nearer.
Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]


def gray_pixels(image: Image.Image, side: int = SEARCH_SIDE) -> Float[np.ndarray, " D"]:
    """The gray levels of an image squashed to `side` x `side`, float32 from 0 to 255."""
    small = image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).ravel()


def pair_image(image: Image.Image) -> Image.Image:
    """The image in the benchmark's comparison: RGB, squashed to 512 x 512 (bicubic, antialias)."""
    return image.convert("RGB").resize((PAIR_SIDE, PAIR_SIDE), Image.Resampling.BICUBIC)


def root_mean_square(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "N n"]:
    """|a - b| / sqrt(D) of all pairs, from products in float64."""
    a, b = (np.asarray(rows, np.float64) for rows in (first, second))
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


@dataclasses.dataclass(eq=False)
class Nearest:
    """The nearest row that has been seen so far, for each query.

    queries: [N, D].
    distances_of: of two sets of rows.
    """

    queries: np.ndarray
    distances_of: Distances = root_mean_square

    def __post_init__(self) -> None:
        count = len(self.queries)
        self.distances = np.full(count, np.inf)
        """Of each query to its nearest row; inf before the first row."""
        self.indices = np.full(count, -1)
        """Of the nearest row of each query; of equal ones the first."""

    def update(self, rows: Float[np.ndarray, "n D"], indices: np.ndarray) -> None:
        """Adds a block of rows with these indices.

        Raises:
          MetricError: another width than the queries'.
        """
        if not len(rows) or not len(self.queries):
            return
        if rows.shape[1:] != self.queries.shape[1:]:
            raise MetricError(
                f"rows: expected {self.queries.shape[1]} columns, found {list(rows.shape)}"
            )
        for start in range(0, len(self.queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            found = self.distances_of(self.queries[part], rows)
            best = found.argmin(1)
            values = found[np.arange(len(found)), best]
            nearer = values < self.distances[part]
            self.distances[part] = np.where(nearer, values, self.distances[part])
            self.indices[part] = np.where(nearer, indices[best], self.indices[part])

"""Validation of metric inputs: arrays of rows, and pairs of texts.

Letters: N rows, D columns."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from unix_jax.errors import MetricError

# Rows read at a time: 24 MB of float64 at 768 columns.
BLOCK_ROWS = 4096
# Cubes of products of larger numbers overflow.
_LARGEST = 1e50


class FeatureRows:
    """Features [N, D], read in blocks of float64 from any dtype.

    The array may be any object with `shape` that returns rows by slices, so a `np.memmap` (for
    example of `np.load(..., mmap_mode="r")`) is never completely in memory.

    Raises:
      MetricError: not a matrix of real numbers, or fewer rows than `at_least`.
    """

    def __init__(self, features: Any, name: str, at_least: int = 1):
        features = _array_like(features, name)
        self.name = name
        self._features = features
        shape = tuple(features.shape)
        if len(shape) != 2 or shape[1] < 1:
            raise MetricError(f"{name}: expected features [rows, columns], found {list(shape)}")
        self.count, self.width = (int(n) for n in shape)
        kind = features.dtype
        # bfloat16 and the like are of kind "V" for numpy, and become float64 all the same.
        if kind.kind not in "fiuV" or kind.names:
            raise MetricError(f"{name}: expected real numbers, found {kind}")
        if self.count < at_least:
            rows = "row" if at_least == 1 else "rows"
            raise MetricError(f"{name}: expected at least {at_least} {rows}, found {self.count}")

    def block(self, start: int, stop: int) -> Float[np.ndarray, "n D"]:
        """Rows `start` to `stop`.

        Raises:
          MetricError: a number is not finite, or too large to compute with; names the first.
        """
        rows = np.ascontiguousarray(np.asarray(self._features[start:stop]), dtype=np.float64)
        # Not-a-number is carried through both, and fails both.
        if rows.size and not (rows.max() <= _LARGEST and rows.min() >= -_LARGEST):
            row, column = np.argwhere(~(np.abs(rows) <= _LARGEST))[0]
            raise MetricError(
                f"{self.name}: expected finite numbers up to {_LARGEST:g}, found "
                f"{rows[row, column]} in row {start + row}, column {column}"
            )
        return rows

    def spans(self, size: int | None = None) -> Iterator[tuple[int, int]]:
        """(start, stop) of consecutive blocks of `size` rows, `BLOCK_ROWS` unless given."""
        size = BLOCK_ROWS if size is None else size
        for start in range(0, self.count, size):
            yield start, min(start + size, self.count)


def _array_like(features: Any, name: str) -> Any:
    """The object itself where numpy knows its type, else its array."""
    if isinstance(getattr(features, "dtype", None), np.dtype) and hasattr(features, "shape"):
        return features
    try:
        return np.asarray(features)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on a device
        reason = " ".join(str(error).split())[:200]
        raise MetricError(f"{name}: expected features [rows, columns]: {reason}") from error


def feature_pair(real: Any, fake: Any, at_least: int = 1) -> tuple[FeatureRows, FeatureRows]:
    """Real and fake features of one width.

    Raises:
      MetricError: as `FeatureRows`, or the widths differ.
    """
    a, b = FeatureRows(real, "real", at_least), FeatureRows(fake, "fake", at_least)
    if a.width != b.width:
        raise MetricError(f"fake: expected {a.width} columns as in real, found {b.width}")
    return a, b


def check_texts(**texts: Any) -> None:
    """Raises MetricError, naming the argument, unless all are strings."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise MetricError(f"{name}: expected a string, found {type(text).__name__}")


def check_reports(**reports: Sequence[Any]) -> None:
    """Raises MetricError unless all are sequences of strings of one length."""
    lengths: dict[str, int] = {}
    for name, texts in reports.items():
        if isinstance(texts, str):
            raise MetricError(f"{name}: expected a sequence of strings, found one string")
        lengths[name] = len(texts)
        for index, text in enumerate(texts):
            check_texts(**{f"{name}[{index}]": text})
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise MetricError(f"reports: expected the same number of each, found {found}")

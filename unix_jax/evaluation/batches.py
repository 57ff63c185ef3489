"""Batches of items for networks."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from unix_jax.errors import MetricError

T = TypeVar("T")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last one may be shorter.

    Raises:
      MetricError: a size below 1.
    """
    if size < 1:
        raise MetricError(f"batch_size: expected at least 1, found {size}")
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

"""Copies a source into ArrayRecord files: threads read and downscale, rows are written in order."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from unix_jax.data.records import Record, RecordSource, with_image_bytes
from unix_jax.data.sources.array_records import shrunk
from unix_jax.errors import DataError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prepared(record: Record, max_side: int | None) -> Record:
    """The record with its images in memory, shrunk to `max_side`.

    Raises:
      DataError: an image cannot be read.
    """
    return with_image_bytes(shrunk(record, max_side))


class PreparedRecords:
    """The records of a source, prepared by threads and in order; iterate once.

    broken: the messages of rows that could not be read, and were skipped.
    report_problems: of the records whose report has no findings and no impression, key and problem.
    """

    def __init__(
        self,
        source: RecordSource,
        max_side: int | None = None,
        workers: int = 1,
        max_broken: float = 0.01,
        on_row: Callable[[], None] = lambda: None,
    ) -> None:
        """Preparation starts with the iteration.

        Args:
          source: what is read.
          max_side: see `shrunk`.
          workers: threads; decoding and shrinking run outside Python's lock.
          max_broken: the fraction of rows from 0 to 1 that may be skipped.
          on_row: called after each row, broken ones included.
        """
        self._source, self._max_side, self._workers = source, max_side, workers
        self._max_broken, self._on_row = max_broken, on_row
        self.broken: list[str] = []
        self.report_problems: list[str] = []

    def __iter__(self) -> Iterator[Record]:
        """Yields the records.

        Raises:
          DataError: more rows than `max_broken` allows are broken.
        """
        for result in _ordered_map(self._read, range(len(self._source)), self._workers):
            if isinstance(result, Record):
                if result.report_problem:
                    self.report_problems.append(f"{result.key}: {result.report_problem}")
                yield result
            else:
                self.broken.append(str(result))
                if len(self.broken) > self._max_broken * len(self._source):
                    raise DataError(
                        f"expected at most {self._max_broken:.2%} of {len(self._source)} rows to "
                        f"be broken, found {len(self.broken)} so far; the last: {result}"
                    )
            self._on_row()

    def _read(self, index: int) -> Record | DataError:
        try:
            return prepared(self._source[index], self._max_side)
        except DataError as error:
            return error


def _ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Iterator[_Result]:
    """`map` by threads that runs ahead of its consumer by a few items only."""
    rest = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead: collections.deque[Future[_Result]] = collections.deque(
            pool.submit(function, item) for item in itertools.islice(rest, 4 * workers)
        )
        try:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
        finally:
            for future in ahead:
                future.cancel()

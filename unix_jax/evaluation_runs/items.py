"""Processing of items in batches, each exactly once, with a journal.

Items in a journal are not processed again. A process's share, and its division into batches, depend
only on the number of items, so that an interrupted run forms the same batches as another.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from unix_jax.data.records import RecordSource
from unix_jax.errors import DataError, ImageError, PromptError, UniXError
from unix_jax.evaluation_runs.evaluation_files import journal_file, read_entries
from unix_jax.storage.journal import Entry, Journal

T = TypeVar("T")
_WAIT_SECONDS = 5.0
# Called with the number of this process's items finished since the last call.
Progress = Callable[[int], None]
# Iterates over items and shows progress; the text is the unit.
Steps = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Share:
    """The items of a process: every `count`-th one, from `index`."""

    index: int = 0
    count: int = 1

    def items(self, total: int) -> range:
        """The indices of this process among `total` items."""
        return range(self.index, total, self.count)


@dataclasses.dataclass(frozen=True)
class Ready(Generic[T]):
    """An item in the form of the model's input."""

    index: int
    key: str
    input: T


# An item's key and the model's input; raises DataError, ImageError or
# PromptError where there is none.
Prepare = Callable[[int], tuple[str, T]]
# What was made of each input, JSON by name. `rows`, at least as many, is a size for the batch to be
# padded to, so that few shapes are compiled.
Compute = Callable[[Sequence[Ready[T]], int], Sequence[dict[str, Any]]]

# Like `Compute`, for any number of inputs and one at a time: yields each item with what was made of
# it, in any order.
Stream = Callable[[Iterator[Ready[T]]], Iterable[tuple[Ready[T], dict[str, Any]]]]


def stream_items(
    out: Path,
    total: int,
    prepare: Prepare[T],
    compute: Stream[T],
    *,
    name: Callable[[int], str] = str,
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Like `run_items`, for a computation that takes inputs when it needs them.

    An item is written to the journal as soon as it is finished. `progress` is called after each.

    Raises:
      UniXError: a journal that cannot be used.
    """
    share = share or Share()
    with Journal(journal_file(out, share.index)) as journal:
        done = read_entries(out)

        def keep(entry: Entry) -> None:
            journal.append([entry])
            progress(1)

        def ready() -> Iterator[Ready[T]]:
            for index in share.items(total):
                if index in done:
                    continue
                try:
                    key, prepared = prepare(index)
                except (DataError, ImageError, PromptError) as error:
                    keep(Entry(index, name(index), "failed", str(error)))
                else:
                    yield Ready(index, key, prepared)

        for item, values in compute(ready()):
            keep(Entry(item.index, item.key, values=values))


def run_items(
    out: Path,
    total: int,
    batch_size: int,
    prepare: Prepare[T],
    compute: Compute[T],
    *,
    name: Callable[[int], str] = str,
    share: Share | None = None,
    progress: Progress = lambda count: None,
) -> None:
    """Processes the items that are not yet in the journals in `out`.

    An item that cannot be read or used is recorded with its error; other exceptions end the run.

    Args:
      out: directory of the journals.
      total: items in the source.
      batch_size: items per batch, at least 1.
      prepare, compute: as above.
      name: the key of an item that could not be prepared.
      share: of this process.
      progress: called after each batch.

    Raises:
      UniXError: a journal that cannot be used.
    """
    if batch_size < 1:
        raise UniXError(f"batch_size: expected at least 1, found {batch_size}")
    share = share or Share()
    with Journal(journal_file(out, share.index)) as journal:
        done = read_entries(out)
        items = share.items(total)
        for start in range(0, len(items), batch_size):
            left = [index for index in items[start : start + batch_size] if index not in done]
            if not left:
                continue
            rows = min(batch_size, len(items))
            journal.append(list(_outcomes(left, rows, prepare, compute, name)))
            progress(len(left))


def _outcomes(
    indices: Sequence[int],
    rows: int,
    prepare: Prepare[T],
    compute: Compute[T],
    name: Callable[[int], str],
) -> Iterator[Entry]:
    ready: list[Ready[T]] = []
    for index in indices:
        try:
            ready.append(Ready(index, *prepare(index)))
        except (DataError, ImageError, PromptError) as error:
            yield Entry(index, name(index), "failed", str(error))
    if ready:
        yield from _computed(ready, rows, compute)


def _computed(ready: Sequence[Ready[T]], rows: int, compute: Compute[T]) -> Iterator[Entry]:
    try:
        values = compute(ready, rows)
    # Faults of an input. Others, such as a checkpoint without an autoencoder, end the run.
    except (DataError, ImageError, PromptError) as error:
        if len(ready) == 1:
            yield Entry(ready[0].index, ready[0].key, "failed", str(error))
            return
        # One of them is the cause; the others must not suffer for it.
        for item in ready:
            yield from _computed([item], rows, compute)
        return
    for item, value in zip(ready, values, strict=True):
        yield Entry(item.index, item.key, values=value)


def unseen(items: Sequence[Any], unit: str) -> Iterable[Any]:
    """`Steps` without a display of progress."""
    return items


def padded(items: Sequence[Any], rows: int) -> list[Any]:
    """The items, padded to `rows` with the last one."""
    return [*items, *[items[-1]] * (rows - len(items))]


def wait_for_all(out: Path, total: int) -> None:
    """Waits until the journals of all processes together contain every item."""
    while len(read_entries(out)) < total:
        time.sleep(_WAIT_SECONDS)


def key_of(source: RecordSource, index: int) -> str:
    """A record's key, or its index if it cannot be read."""
    try:
        return source[index].key
    except UniXError:
        return str(index)

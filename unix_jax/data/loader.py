"""The data loader: planned rows, decoded by threads, as batches with a resumable state.

`Loader` is a grain `IterDataset`; its iterators have grain's `get_state` and `set_state`. A state
belongs to the last returned batch, independent of prefetching, and is valid for any number of
processes.
"""

import atexit
import collections
import dataclasses
import logging
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.broken import check_broken, is_logged
from unix_jax.data.collate import LoadedSample, collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.packing import PlannedRow, Planner, SourceCount
from unix_jax.data.samples import SampleSource, TrainingSample
from unix_jax.data.slots import slots_of
from unix_jax.errors import ConfigError, UniXError
from unix_jax.extras import needed
from unix_jax.storage.paths import names_bucket

with needed("grain", "Training", "unix-jax[train]"):
    import grain
    from grain.experimental import ThreadPrefetchDatasetIterator

READERS = 64
"""Objects of buckets that are read at the same time."""
_MOST_STEPS = 32

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class BatchInfo:
    """Contents of a batch; fields except `keys` and `broken` cover the rows of all processes.

    keys: of the samples in each of this process's rows.
    step: of the plan, from 1. epoch: taken from the stream so far, with fraction.
    samples, und_tokens, gen_tokens: of this batch as planned.
    padding_fraction: share of this batch's und and gen positions without a token.
    skipped: samples skipped so far, by reason (see `Skip`).
    first_skipped: the first of them that this loader met, by reason: its key and why.
    broken: images and rows of this process that turned out broken so far; they are padding.
    image_warnings: images of this process so far that show almost nothing (`gray_levels`), counted
      each time they are read; training uses them.
    digest: checksum of all rows so far; equal on all processes, or their sources differ.
    sources: counts of each part of a mixture so far; () for one source.
    """

    keys: tuple[tuple[str, ...], ...]
    step: int
    epoch: float
    samples: int
    und_tokens: int
    gen_tokens: int
    padding_fraction: float
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    broken: int
    image_warnings: int
    digest: int
    sources: tuple[SourceCount, ...] = ()


class Loader(grain.IterDataset[tuple[TrainingBatch, BatchInfo]]):
    """Batches of this process's rows: `for batch, info in loader`.

    A batch has the `rows` of the global step. By default process p has the p-th of
    `process_count` equal shares. With `data.epochs` the iterator ends, after rows that may be
    empty.
    """

    def __init__(
        self,
        samples: SampleSource,
        config: UniXConfig,
        data: DataConfig,
        process_index: int | None = None,
        process_count: int | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Args:
          samples: see `record_samples`.
          config: the model's sizes.
          data: the size of a row, and the order.
          process_index, process_count: of this process; JAX's unless given.
          rows: indices of this process's rows in the global step, as its devices hold them.

        Raises:
          ConfigError: rows that the processes cannot share, or a VAE size or slots that do not fit.
          DataError: no samples.
        """
        super().__init__()
        self.samples, self.config, self.data = samples, config, data
        self.process_index = jax.process_index() if process_index is None else process_index
        self.process_count = jax.process_count() if process_count is None else process_count
        if rows is None and data.rows % self.process_count:
            raise ConfigError(
                f"data.rows: expected a multiple of {self.process_count} processes, "
                f"found {data.rows}"
            )
        share = data.rows // self.process_count
        first = self.process_index * share
        self.rows = tuple(range(first, first + share) if rows is None else rows)
        data.gen_tokens(config)
        Planner(samples, data, slots_of(config, data))

    def __iter__(self) -> grain.DatasetIterator[tuple[TrainingBatch, BatchInfo]]:
        iterator = _Prefetched(_LoaderIterator(self), self.data.prefetch)
        atexit.register(_close, weakref.ref(iterator))
        return iterator


class _Prefetched(ThreadPrefetchDatasetIterator[tuple[TrainingBatch, BatchInfo]]):
    """An iterator that is closed exactly once, at exit at the latest.

    Grain's own iterator is closed whenever it is deleted; during the shutdown of the interpreter
    that prints a traceback.
    """

    def close(self) -> None:
        if not self._closed:
            super().close()


def _close(reference: "weakref.ref[_Prefetched]") -> None:
    iterator = reference()
    if iterator is not None:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Broken:
    """A sample that could not be built or decoded."""

    error: str


@dataclasses.dataclass(frozen=True)
class _Step:
    """A planned step whose samples are being loaded.

    state: of the planner after it. info: without what is known when the samples are there.
    """

    rows: "list[list[Future[LoadedSample | _Broken]]]"
    state: dict[str, Any]
    info: BatchInfo


class _LoaderIterator(grain.DatasetIterator[tuple[TrainingBatch, BatchInfo]]):
    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self._loader = loader
        slots = slots_of(loader.config, loader.data)
        self._planner = Planner(loader.samples, loader.data, slots)
        self._pool = ThreadPoolExecutor(loader.data.threads, thread_name_prefix="unix-data")
        # Requests to a bucket mostly wait, so many are under way while few threads decode.
        self._readers = (
            ThreadPoolExecutor(READERS, thread_name_prefix="unix-read")
            if names_bucket(loader.data.source)
            else None
        )
        self._steps: collections.deque[_Step] = collections.deque()
        # Of the planner, after the last step that was returned.
        self._state = self._planner.state()
        self._seen = self._broken = self._warned = 0
        self._last_errors: collections.deque[str] = collections.deque(maxlen=10)

    def __next__(self) -> tuple[TrainingBatch, BatchInfo]:
        self._assert_not_closed()
        self._plan()
        if not self._steps:
            raise StopIteration
        step = self._steps.popleft()
        rows = [[s for f in row if (s := self._result(f)) is not None] for row in step.rows]
        self._state = step.state
        info = dataclasses.replace(
            step.info,
            keys=tuple(tuple(loaded.sample.key for loaded in row) for row in rows),
            broken=self._broken,
            image_warnings=self._warned,
        )
        return collate(rows, self._loader.config, self._loader.data), info

    def _plan(self) -> None:
        """Plans the next step, and as many more as keep all readers busy."""
        wanted = 2 * READERS if self._readers else 1
        while len(self._steps) < _MOST_STEPS and sum(map(_samples, self._steps)) < wanted:
            planned = self._planner.next_step()
            if planned is None:
                return
            rows = [
                [self._submit(*self._planner.locate(i)) for i in planned[row].indices]
                for row in self._loader.rows
            ]
            self._steps.append(_Step(rows, self._planner.state(), self._info(planned)))
            if self._readers is None:
                return

    def _submit(self, index: int, epoch: int) -> "Future[LoadedSample | _Broken]":
        if self._readers is None:
            return self._pool.submit(self._load, index, epoch)
        # Both pools work in order, so the threads that decode wait for what comes first.
        found = self._readers.submit(self._build, index, epoch)
        return self._pool.submit(lambda: _loaded(found.result()))

    def get_state(self) -> dict[str, Any]:
        local = {
            "process": [self._loader.process_index, self._loader.process_count],
            "seen": self._seen,
            "broken": self._broken,
            "image_warnings": self._warned,
        }
        return self._state | {"local": local}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises DataError if this is not a state of such a loader."""
        self._planner.restore(state)
        self._steps.clear()
        self._state = self._planner.state()
        local = state.get("local", {})
        # Counts of another process, or of another number of processes, do not apply here.
        same = local.get("process") == [self._loader.process_index, self._loader.process_count]
        self._seen, self._broken = (local["seen"], local["broken"]) if same else (0, 0)
        # States of earlier versions have no such count.
        self._warned = local.get("image_warnings", 0) if same else 0
        self._last_errors.clear()

    def close(self) -> None:
        if not self._closed:
            super().close()
            for pool in filter(None, (self._readers, self._pool)):
                pool.shutdown(wait=False, cancel_futures=True)

    def _load(self, index: int, epoch: int) -> LoadedSample | _Broken:
        return _loaded(self._build(index, epoch))

    def _build(self, index: int, epoch: int) -> TrainingSample | _Broken:
        """The sample; images in buckets are read."""
        try:
            return self._loader.samples.build(index, epoch)
        except UniXError as error:
            return _Broken(str(error))

    def _result(self, future: "Future[LoadedSample | _Broken]") -> LoadedSample | None:
        result = future.result()
        self._seen += 1
        if isinstance(result, LoadedSample):
            for problem in result.sample.problems:
                self._warn(result.sample.key, problem)
            return result
        self._broken += 1
        self._last_errors.append(result.error)
        if is_logged(self._broken):
            _LOG.warning("broken sample skipped (%d so far): %s", self._broken, result.error)
        check_broken(self._loader.data, self._broken, self._seen, list(self._last_errors))
        return None

    def _warn(self, key: str, problem: str) -> None:
        """Counts an image; its name is logged at counts of 1, 2, 4, 8, ..."""
        self._warned += 1
        if self._warned & (self._warned - 1) == 0:
            _LOG.warning(
                "%d image(s) so far show almost nothing, and are trained on; the last: %s: %s",
                self._warned, key, problem,
            )  # fmt: skip

    def _info(self, planned: Sequence[PlannedRow]) -> BatchInfo:
        """What is known of the step that was planned last."""
        loader, data = self._loader, self._loader.data
        und = sum(row.cost.und for row in planned)
        gen_row = data.gen_tokens(loader.config)
        gen = sum(row.cost.vae for row in planned) * gen_row // max(data.vae_images, 1)
        return BatchInfo(
            keys=(),
            step=self._planner.steps,
            epoch=self._planner.epoch,
            samples=sum(len(row.indices) for row in planned),
            und_tokens=und,
            gen_tokens=gen,
            padding_fraction=1 - (und + gen) / (data.rows * (data.und_tokens + gen_row)),
            skipped=dict(self._planner.skipped),
            first_skipped=dict(self._planner.first_skipped),
            broken=0,
            image_warnings=0,
            digest=self._planner.digest,
            sources=self._planner.sources,
        )


def _loaded(sample: TrainingSample | _Broken) -> LoadedSample | _Broken:
    if isinstance(sample, _Broken):
        return sample
    try:
        return load(sample)
    except UniXError as error:
        text = str(error)
        return _Broken(text if sample.key in text else f"{sample.key}: {text}")


def _samples(step: _Step) -> int:
    return sum(map(len, step.rows))

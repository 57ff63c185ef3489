"""Batches on the devices, each with the state of the data from which the next one follows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from unix_jax.config import UniXConfig
from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.data.fingerprint import difference, fingerprint
from unix_jax.data.loader import BatchInfo, Loader
from unix_jax.data.mixture import Task, open_mixture, source_parts
from unix_jax.data.records import Record, RecordSource, captions_of, report_text
from unix_jax.data.samples import record_samples
from unix_jax.data.sources import overlap
from unix_jax.errors import DataError, UniXError
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training.config import TrainConfig
from unix_jax.training.distributed import place_batch, raise_together, row_share
from unix_jax.training.export import gather
from unix_jax.training.skipped import SkippedSamples


class Fed(NamedTuple):
    """A batch as global arrays and as this process's host arrays; `state` is that of the data from
    which the next one follows."""

    batch: TrainingBatch
    host: TrainingBatch
    info: BatchInfo
    state: dict[str, Any]


class Opened(NamedTuple):
    """The sources of a run; `warning` where it trains on what it validates on, "" elsewhere."""

    training: RecordSource
    held_out: RecordSource | None
    warning: str


def open_records(config: TrainConfig) -> Opened:
    """Opens a run's sources, so that one that is not there ends it before a model is loaded.

    Raises:
      DataError: a source that cannot be opened, or that has no records of its split.
    """
    data = training_data(config)
    training = _open(data)
    if not (config.validate_every or config.preview_every or config.evals.any):
        return Opened(training, None, "")
    other = validation_data(config)
    held_out = _open(other)
    shared = [
        source
        for part, source in source_parts(training, data.source, data.task)
        for held in other.parts
        if overlap(part.spec, data.split, source, held.spec, other.split)
    ]
    if not shared:
        return Opened(training, held_out, "")
    why = "the source has no splits" if getattr(shared[0], "unsplit", False) else (
        f"data.split is {data.split!r} and validation.split {other.split!r}"
    )  # fmt: skip
    return Opened(
        training,
        held_out,
        f"the run validates on records that it trains on: {why}; set validation.source or "
        "validation.split",
    )


def _open(data: DataConfig) -> RecordSource:
    return open_mixture(data.source, data.split, data.task)


class Feed:
    """Iterates over placed batches of a data configuration, from the start or from a state."""

    def __init__(
        self,
        data: DataConfig,
        model_config: UniXConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        state: Mapping[str, Any] | None = None,
        vae_params: Mapping[str, Any] | None = None,
        records: RecordSource | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Opens the source, unless `records` are it; `state` is what `saved` returned in any run
        over the same data.

        `vae_params` are the run's autoencoder: moments must be of it. Weights that are held in a
        narrower type than float32 cannot be compared, and are not. With `restart` a state of other
        data is not refused: their order begins anew, and `restarted` says why.

        Raises:
          DataError, ConfigError: a source that cannot be opened, rows that the mesh does not
            divide, a state of other data.
        """
        self.notes: list[str] = []
        self.restarted = ""
        self.error: UniXError | None = None
        self._last: Fed | None = None
        self._mesh, self._rows = mesh, data.rows
        self._share = row_share(mesh, data.rows)
        self.records: RecordSource = _open(data) if records is None else records
        self._loader = Loader(
            record_samples(self.records, tokenizer, model_config, data, _comparable(vae_params)),
            model_config,
            data,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            rows=self._share,
        )
        self._iterator = iter(self._loader)
        if state is not None:
            self._resume(dict(state), restart)

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """The fingerprint of the records."""
        return fingerprint(self.records)

    def saved(self, state: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A `Fed.state` for a checkpoint: with the fingerprint of the records."""
        return None if state is None else {**state, "source": self.source}

    def _resume(self, state: dict[str, Any], restart: bool) -> None:
        error = None
        try:
            before = state.pop("source", None)
            if before is None:
                self.notes.append(
                    "the data are compared with those before by their number alone: the checkpoint "
                    "is of an earlier version, which kept no fingerprint"
                )
            elif changed := difference(before, self.source):
                raise DataError(f"data.source: not the records that the run stopped in: {changed}")
            self._iterator.set_state(state)
        except UniXError as found:
            error = found
        try:
            # Processes with different data must not wait for each other.
            raise_together(error)
        except UniXError as found:
            self._iterator.close()
            if not restart:
                raise DataError(
                    f"{found}. With --restart-data their order begins anew, and the state and the "
                    "optimiser are kept"
                ) from None
            self.restarted = str(found)
            self._iterator = iter(self._loader)

    def __iter__(self) -> Iterator[Fed]:
        return self

    def __next__(self) -> Fed:
        """The next batch, placed.

        Asking the other processes whether they have one as well would wait for the step that runs.
        So a process without one takes part in the next steps with a batch that makes their losses
        infinite, which no state survives: all processes see that in the numbers of the same step,
        and `raise_errors` then tells them why.

        Raises:
          UniXError: a batch that cannot be made, by a process that is alone, or the first one.
        """
        try:
            if self.error is None:
                host, info = next(self._iterator)
        except UniXError as error:
            self.error = error
        if self._last is None or jax.process_count() == 1:
            self.raise_errors()
        if self.error is not None:
            assert self._last is not None
            host = jax.tree.map(_infinite, self._last.host)
            return self._last._replace(batch=self.place(host), host=host)
        # Taken before prefetching: the checkpoint of this step resumes with the next batch.
        state = self._iterator.get_state()
        self._last = Fed(self.place(host), host, info, state)
        return self._last

    def raise_errors(self) -> None:
        """Raises the error of this process or of another one; all processes call it together.

        Raises:
          UniXError: a process could not make a batch.
        """
        raise_together(self.error)

    def place(self, host: TrainingBatch) -> TrainingBatch:
        """A batch of this process's rows as global arrays on the mesh."""
        return place_batch(host, self._mesh, self._rows, self._share)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._iterator.close()
        # Frees the memory of a batch of large images.
        self._last = None


def _infinite(leaf: np.ndarray) -> np.ndarray:
    """The leaf filled with infinity; a leaf of integers is returned unchanged."""
    return np.full_like(leaf, np.inf) if np.issubdtype(leaf.dtype, np.floating) else leaf


def _comparable(vae_params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The weights as they were when moments were written, None if they are not available."""
    if vae_params is None:
        return None
    flat = gather(vae_params)
    return flat if all(leaf.dtype == np.float32 for leaf in flat.values()) else None


def training_data(config: TrainConfig) -> DataConfig:
    """The run's data: its seed orders them, and they end with its epochs."""
    return dataclasses.replace(config.data, seed=config.seed, epochs=config.total_epochs)


def validation_data(config: TrainConfig) -> DataConfig:
    """One pass over the held-out samples, in their order."""
    return dataclasses.replace(
        training_data(config),
        source=config.validation.source or config.data.source,
        split=config.validation.split,
        augmentation=AugmentationConfig(),
        jpeg_draft=False,
        moments=None,
        shuffle=False,
        epochs=1,
    )


def describe_sources(records: RecordSource, data: DataConfig) -> list[str]:
    """A line for each part of a mixture, numbered as in `metrics.jsonl`; none for one source."""
    if len(data.parts) == 1:
        return []
    return [
        f"source {number}: {part.weight:.1%} of the samples, {part.task}, {part.spec}, "
        f"{len(source)} records"
        for number, (part, source) in enumerate(source_parts(records, data.source, data.task), 1)
    ]


def source_counts(info: BatchInfo) -> dict[str, float]:
    """`source_N_samples`, `source_N_epoch` and `source_N_skipped` of each part of a mixture."""
    return {
        f"source_{number}_{name}": value
        for number, count in enumerate(info.sources, 1)
        for name, value in count._asdict().items()
    }


@dataclasses.dataclass(frozen=True)
class ValidationBatches:
    """Batches that wait in the memory of the host; iterating places one at a time."""

    hosts: list[TrainingBatch]
    place: Callable[[TrainingBatch], TrainingBatch]

    def __iter__(self) -> Iterator[TrainingBatch]:
        return map(self.place, self.hosts)


def validation_batches(feed: Feed, config: TrainConfig) -> ValidationBatches:
    """The first batches of a finite feed; rows without samples weigh nothing.

    The autoencoder's mean is over all rows, so its last, incomplete batch is left out.

    Raises:
      DataError: there is none.
    """
    found = list(itertools.islice(feed, config.validation.batches))
    feed.raise_errors()
    if found:
        feed.notes += _left_out("validation: ", found[-1].info, len(feed.records))
    if config.stage == "autoencoder":
        found = [fed for fed in found if fed.info.samples == config.data.rows]
    if not found:
        raise DataError(
            f"validation: expected at least one full batch of {config.data.rows} rows in split "
            f"{config.validation.split!r}, found none"
        )
    return ValidationBatches([fed.host for fed in found], feed.place)


def _left_out(name: str, info: BatchInfo, records: int) -> list[str]:
    skipped = SkippedSamples(name)
    return [*skipped.add(info), *skipped.summary(records)]


def shown_records(
    records: RecordSource, config: TrainConfig, count: int
) -> dict[Task, list[Record]]:
    """For each task the first `count` held-out records of its parts that have what it needs: an
    image and a text, and for the task edit a condition. A task without such records is absent.
    """
    data, found = validation_data(config), dict[Task, list[Record]]()
    for part, source in source_parts(records, data.source, data.task):
        chosen = found.setdefault(part.task, [])
        for index in range(len(source)):
            if len(chosen) == count:
                break
            try:
                record = source[index]
            except UniXError:
                continue
            has_text = report_text(record) or captions_of(record)
            has_condition = part.task != "edit" or record.condition is not None
            if record.image is not None and has_text and has_condition:
                chosen.append(record)
    return {task: chosen for task, chosen in found.items() if chosen}

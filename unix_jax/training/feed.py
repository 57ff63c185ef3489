"""Batches on the devices, each with the state of the data from which the next one follows."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.data.loader import BatchInfo, Loader
from unix_jax.data.records import Record, RecordSource, captions_of, report_text
from unix_jax.data.samples import record_samples
from unix_jax.data.sources import open_source, overlap
from unix_jax.errors import DataError, UniXError
from unix_jax.text import Tokenizer
from unix_jax.training.config import TrainConfig
from unix_jax.training.distributed import place_batch, raise_together, row_share
from unix_jax.training.export import gather


class Fed(NamedTuple):
    """A batch as global arrays and as this process's host arrays; `state` follows it."""

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
    training = open_source(data.source, data.split)
    if not (config.validate_every or config.preview_every):
        return Opened(training, None, "")
    other = validation_data(config)
    held_out = open_source(other.source, other.split)
    if not overlap(data.source, data.split, training, other.source, other.split):
        return Opened(training, held_out, "")
    why = "the source has no splits" if getattr(training, "unsplit", False) else (
        f"data.split is {data.split!r} and validation.split {other.split!r}"
    )  # fmt: skip
    return Opened(
        training,
        held_out,
        f"the run validates on records that it trains on: {why}; set validation.source or "
        "validation.split",
    )


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
    ) -> None:
        """Opens the source, unless `records` are it; `state` is a `Fed.state` of any run over the
        same data.

        `vae_params` are the run's autoencoder: moments must be of it. Weights that are held in a
        narrower type than float32 cannot be compared, and are not.

        Raises:
          DataError, ConfigError: a source that cannot be opened, rows that the mesh does not
            divide, a state of other data.
        """
        self._mesh, self._rows = mesh, data.rows
        self._share = row_share(mesh, data.rows)
        share = self._share[1] - self._share[0]
        self.records: RecordSource = (
            open_source(data.source, data.split) if records is None else records
        )
        self._iterator = iter(
            Loader(
                record_samples(
                    self.records, tokenizer, model_config, data, _comparable(vae_params)
                ),
                model_config,
                data,
                process_index=self._share[0] // share,
                process_count=data.rows // share,
            )
        )
        if state is not None:
            self._iterator.set_state(dict(state))

    def __iter__(self) -> Iterator[Fed]:
        return self

    def __next__(self) -> Fed:
        error = None
        try:
            host, info = next(self._iterator)
        except UniXError as found:
            error = found
        # The other processes would wait for this one's part of the next step.
        raise_together(error)
        # Taken before anything runs ahead: the checkpoint of this step goes on with the next one.
        state = self._iterator.get_state()
        return Fed(self.place(host), host, info, state)

    def place(self, host: TrainingBatch) -> TrainingBatch:
        """A batch of this process's rows as global arrays on the mesh."""
        return place_batch(host, self._mesh, self._rows, self._share)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._iterator.close()


def _comparable(vae_params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Weights as they were when moments were written, None if they are not at hand."""
    if vae_params is None:
        return None
    flat = gather(vae_params)
    return flat if all(leaf.dtype == np.float32 for leaf in flat.values()) else None


def training_data(config: TrainConfig) -> DataConfig:
    """The run's data: its seed orders them."""
    return dataclasses.replace(config.data, seed=config.seed)


def validation_data(config: TrainConfig) -> DataConfig:
    """One pass over the held-out samples, in their order."""
    return dataclasses.replace(
        training_data(config),
        source=config.validation.source or config.data.source,
        split=config.validation.split,
        moments=None,
        shuffle=False,
        epochs=1,
    )


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
    if config.stage == "autoencoder":
        found = [fed for fed in found if fed.info.samples == config.data.rows]
    if not found:
        raise DataError(
            f"validation: expected at least one full batch of {config.data.rows} rows in split "
            f"{config.validation.split!r}, found none"
        )
    return ValidationBatches([fed.host for fed in found], feed.place)


def preview_records(records: RecordSource, config: TrainConfig) -> list[Record]:
    """The first held-out records that have an image and a text."""
    found = []
    for index in range(len(records)):
        try:
            record = records[index]
        except UniXError:
            continue
        if record.image is not None and (report_text(record) or captions_of(record)):
            found.append(record)
        if len(found) == config.previews.count:
            break
    return found

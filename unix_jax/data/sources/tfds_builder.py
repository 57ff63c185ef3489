"""A tensorflow-datasets builder of our records, written as ArrayRecord; no TensorFlow is needed.

    UnixRecords(source="manifest:examples/cxr", data_dir="DIR").download_and_prepare()
    tfds.data_source("unix_records", split="train", data_dir="DIR")

The second line works wherever this module has been imported, and without it as
`tfds.builder_from_directory(".../unix_records/1.0.0").as_data_source("train")`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.records import Record, RecordSource, Subset, image_bytes
from unix_jax.data.sources import open_source
from unix_jax.data.sources.preparation import PreparedRecords
from unix_jax.errors import DataError
from unix_jax.extras import needed

with needed("tensorflow_datasets", "tfds", "unix-jax[data]"):
    import tensorflow_datasets as tfds

NAME = "unix_records"
TEXTS = ("key", "findings", "impression", "view", "patient", "split", "prompt", "answer")
LISTS = ("captions", "labels")
# The data set's name for records without a split; "all" is reserved.
NO_SPLIT = "records"


class UnixRecords(tfds.core.GeneratorBasedBuilder):
    """Chest X-rays with their reports, from any source of records.

    Features: `image`, the bytes of the image file (empty where there is none), and the other fields
    of `Record` as texts and lists of texts. `broken` and `report_problems` are as in
    `PreparedRecords`.
    """

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012

    def __init__(
        self,
        *,
        source: RecordSource | str | None = None,
        max_side: int | None = None,
        workers: int = 1,
        max_broken: float = 0.01,
        on_row: Callable[[], None] = lambda: None,
        **kwargs: Any,
    ) -> None:
        """Names the data set in a directory.

        Args:
          source: what is written: a source, or its spec; needed by `download_and_prepare` only.
          max_side, workers, max_broken, on_row: see `PreparedRecords`.
          **kwargs: the base class's, such as `data_dir`.
        """
        self._source, self._on_row = source, on_row
        self._options: dict[str, Any] = {
            "max_side": max_side,
            "workers": workers,
            "max_broken": max_broken,
        }
        self.broken: list[str] = []
        self.report_problems: list[str] = []
        # Other formats need TensorFlow, and have no random access.
        kwargs["file_format"] = tfds.core.FileFormat.ARRAY_RECORD
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in TEXTS}
        lists = {name: tfds.features.Sequence(tfds.features.Text()) for name in LISTS}
        image = {"image": tfds.features.Scalar(np.object_)}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Chest X-rays with reports.",
            features=tfds.features.FeaturesDict(image | texts | lists),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager
        if self._source is None:
            raise DataError("source: expected a source of records to write, found none")
        source = open_source(self._source) if isinstance(self._source, str) else self._source
        indices = indices_by_split(source)
        return {
            name or NO_SPLIT: self._generate_examples(Subset(source, chosen))
            for name, chosen in indices.items()
        }

    def _generate_examples(self, source: RecordSource) -> Iterator[tuple[int, dict[str, Any]]]:
        records = PreparedRecords(source, on_row=self._on_row, **self._options)
        for number, record in enumerate(records):
            yield number, to_example(record)
        self.broken += records.broken
        self.report_problems += records.report_problems


def write_tfds(
    source: RecordSource, data_dir: str | Path, **options: Any
) -> tuple[int, list[str], list[str]]:
    """Prepares `UnixRecords` in a directory.

    Returns the number of records, and the lists `broken` and `report_problems`.

    Args:
      source: what is written.
      data_dir: tfds's directory of data sets; `NAME` must not exist yet. **options:
        `UnixRecords`'s.

    Raises:
      DataError: the data set exists, or cannot be written.
    """
    builder = UnixRecords(source=source, data_dir=str(data_dir), **options)
    if Path(builder.data_path).exists():
        raise DataError(f"{builder.data_path}: exists already; name a new directory")
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{data_dir}: cannot be written: {reason}") from error
    splits = builder.info.splits.values()
    return sum(split.num_examples for split in splits), builder.broken, builder.report_problems


def indices_by_split(source: RecordSource) -> dict[str, list[int]]:
    """The rows of each split, in order; unreadable ones go to the first, whose writer counts them.

    Raises:
      DataError: no row can be read.
    """
    found: dict[str, list[int]] = {}
    broken: list[int] = []
    message = "no rows"
    for index in range(len(source)):
        try:
            found.setdefault(source[index].split, []).append(index)
        except DataError as error:
            broken.append(index)
            message = str(error)
    if not found:
        raise DataError(f"source: expected records, found none that can be read: {message}")
    first = next(iter(found))
    found[first] = sorted(found[first] + broken)
    return found


def to_example(record: Record) -> dict[str, Any]:
    """The features of a record.

    Raises:
      DataError: the image file cannot be read, or there are more images or turns than one.
    """
    if record.turns or record.more_images or record.condition is not None:
        raise DataError(
            f"{record.key}: expected one image with one question and answer for the format tfds, "
            f"found {len(record.images)} images, {max(len(record.turns), 1)} turns and "
            f"{'a' if record.condition is not None else 'no'} condition; the format array_record "
            "has all of them"
        )
    values: dict[str, Any] = {name: getattr(record, name) for name in TEXTS}
    values |= {name: list(getattr(record, name)) for name in LISTS}
    return values | {"image": image_bytes(record) or b""}


def from_example(values: dict[str, Any]) -> Record:
    """The record of `to_example`, from what a data source gives."""
    fields: dict[str, Any] = {name: _text(values[name]) for name in TEXTS}
    fields |= {name: tuple(_text(v) for v in values[name]) for name in LISTS}
    return Record(image=bytes(values["image"]) or None, **fields)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).decode()

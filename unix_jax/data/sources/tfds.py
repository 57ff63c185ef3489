"""`tfds:NAME?data_dir=DIR`: the output of `tfds_builder`, through `tfds.data_source`."""

import threading
from typing import Any

from unix_jax.data.records import Record, checked_index

# Imported to register its builder, by whose name `tfds.data_source` finds the data set.
from unix_jax.data.sources import tfds_builder
from unix_jax.errors import DataError
from unix_jax.extras import needed

with needed("tensorflow_datasets", "tfds", "unix-jax[data]"):
    import tensorflow_datasets as tfds


class TfdsSource:
    """Records of a prepared tensorflow-datasets data set in ArrayRecord files."""

    def __init__(self, name: str, split: str | None = None, data_dir: str | None = None) -> None:
        """Opens the data set.

        Args:
          name: `unix_records`, optionally with a version, or another data set of the same features.
          split: one split, or tfds's own slices such as train[:10%]; all splits if absent.
          data_dir: where it was prepared; tfds's default if absent.

        Raises:
          DataError: no such data set or split, or other features.
        """
        self._where = f"tfds:{name}" + (f"?data_dir={data_dir}" if data_dir else "")
        self._arguments: tuple[str, str | None, str | None] = name, None, data_dir
        # As in every kind of source, a data set without splits belongs to every split.
        self.unsplit = split is not None and self._has_no_splits()
        self._arguments = name, None if self.unsplit else split, data_dir
        self._lock = threading.Lock()
        parts = self._open()
        self._parts: list[Any] | None = parts
        self._length = sum(len(part) for part in parts)
        features = set(parts[0].dataset_info.features)
        expected = {"image", *tfds_builder.TEXTS, *tfds_builder.LISTS}
        if expected - features:
            raise DataError(
                f"{self._where}: expected features {sorted(expected)}, found {sorted(features)}"
            )

    def _has_no_splits(self) -> bool:
        parts = self._open()
        return len(parts) == 1 and set(parts[0].dataset_info.splits) == {tfds_builder.NO_SPLIT}

    def _open(self) -> list[Any]:
        name, split, data_dir = self._arguments
        try:
            opened = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
        except Exception as error:  # the library raises many kinds
            reason = " ".join(str(error).split())[:300]
            raise DataError(f"{self._where}: split {split}: {reason}") from error
        parts = [opened] if split is not None else [opened[key] for key in sorted(opened)]
        if not any(len(part) for part in parts):
            raise DataError(f"{self._where}: expected records of split {split}, found none")
        return parts

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        index = number = checked_index(index, self._length)
        with self._lock:
            if self._parts is None:
                self._parts = self._open()
            parts = self._parts
        for part in parts:
            if index < len(part):
                break
            index -= len(part)
        try:
            return tfds_builder.from_example(part[index])
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self._where}: record {number}: {reason}") from error

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_arguments", "_where", "_length", "unsplit")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._parts = threading.Lock(), None

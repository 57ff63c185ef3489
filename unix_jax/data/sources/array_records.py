"""Records in ArrayRecord files, the recommended format for training because of fast random access.

A directory holds shards of one split each, `train-00000.array_record`, and `records.json`, which
lists them. A record is the length of a JSON header (4 bytes, little-endian), the header (every
field except the images), and the unchanged bytes of the image files: the image, then the other
images of a conversation, then the condition. If there are several, the header has their `sizes`.
"""

import dataclasses
import io
import itertools
import json
import re
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unix_jax.data.records import (
    Record,
    Turn,
    checked_index,
    map_images,
    record_image,
    with_image_bytes,
)
from unix_jax.data.sources.fields import parse_object, report_fields, text_field
from unix_jax.errors import DataError
from unix_jax.extras import needed
from unix_jax.storage.bucket_path import any_path, local_file
from unix_jax.storage.files import atomic_directory
from unix_jax.storage.json_file import read_json, write_json

with needed("array_record", "ArrayRecord", "unix-jax[data]"):
    from array_record.python import array_record_data_source, array_record_module

INDEX = "records.json"
FORMAT = 1
SHARD_BYTES = 2**28
JPEG_QUALITY = 95

# One record per group, so that a read only decompresses the record.
_WRITER_OPTIONS = "group_size:1"
_HEADER_LENGTH = struct.Struct("<I")


def encode_record(record: Record) -> bytes:
    """The bytes of one record; a path is replaced by the file's bytes.

    Raises:
      DataError: an image file cannot be read.
    """
    record = with_image_bytes(record)
    values: dict[str, Any] = {f.name: getattr(record, f.name) for f in dataclasses.fields(Record)}
    condition = () if record.condition is None else (record.condition,)
    images: list[Any] = [*record.images, *condition]
    values |= {"image": record.image is not None, "condition": bool(condition)}
    values["sizes"] = [len(image) for image in images]
    values["turns"] = [dataclasses.asdict(turn) for turn in record.turns]
    del values["more_images"]
    for name in ("turns", "condition", "report_problem"):
        if not values[name]:
            del values[name]
    if len(images) < 2 and not condition:
        del values["sizes"]
    header = json.dumps(values, ensure_ascii=False).encode()
    return _HEADER_LENGTH.pack(len(header)) + header + b"".join(images)


def decode_record(data: bytes, where: str) -> Record:
    """The record of `encode_record`.

    Raises:
      DataError: other bytes; it names `where`.
    """
    if len(data) < _HEADER_LENGTH.size:
        raise DataError(f"{where}: expected a record, found {len(data)} bytes")
    end = _HEADER_LENGTH.size + _HEADER_LENGTH.unpack_from(data)[0]
    if end > len(data):
        raise DataError(f"{where}: expected a header of {end} bytes, found {len(data)} in all")
    row = parse_object(data[_HEADER_LENGTH.size : end], where)
    images = _images(row, bytes(data[end:]), where)
    condition = images.pop() if images and row.get("condition") is True else None
    return Record(
        key=text_field(row, "key", where),
        image=images[0] if images else None,
        more_images=tuple(images[1:]),
        condition=condition,
        turns=_turns(row, len(images), where),
        prompt=text_field(row, "prompt", where),
        answer=text_field(row, "answer", where),
        report_problem=text_field(row, "report_problem", where),
        **report_fields(row, where),
    )


def _images(row: dict[str, Any], data: bytes, where: str) -> list[bytes]:
    """The images of a record, from the bytes after its header."""
    sizes = row.get("sizes", [len(data)] if row.get("image") is True else [])
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise DataError(f"{where}: sizes: expected numbers of bytes, found {str(sizes)[:60]!r}")
    if "sizes" in row and sum(sizes) != len(data):
        raise DataError(f"{where}: expected images of {sum(sizes)} bytes, found {len(data)}")
    ends = list(itertools.accumulate(sizes))
    return [data[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _turns(row: dict[str, Any], images: int, where: str) -> tuple[Turn, ...]:
    values = row.get("turns", [])
    if not isinstance(values, list):
        raise DataError(f"{where}: turns: expected a list, found {values!r:.60}")
    turns = []
    for value in values:
        question = value.get("question") if isinstance(value, dict) else None
        if not isinstance(question, list) or not all(
            type(part) is str or (type(part) is int and 0 <= part < images) for part in question
        ):
            raise DataError(
                f"{where}: turns: expected a question of texts and indices of {images} images, "
                f"found {value!r:.60}"
            )
        turns.append(Turn(tuple(question), text_field(value, "answer", where)))
    return tuple(turns)


def shrunk(record: Record, max_side: int | None) -> Record:
    """The record with its images at most `max_side` pixels along the longest side.

    A smaller image keeps its bytes; others become JPEG, grayscale if all channels are equal.

    Raises:
      DataError: an image cannot be read.
    """
    if max_side is None:
        return record
    return map_images(record, lambda image: _shrunk_image(record.key, image, max_side))


def _shrunk_image(key: str, image: bytes | Path, max_side: int) -> bytes | Path:
    decoded = record_image(Record(key, image))
    if max(decoded.size) <= max_side:
        return image
    pixels = np.asarray(decoded)
    if (pixels == pixels[..., :1]).all():
        decoded = decoded.convert("L")
    decoded.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    decoded.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_array_records(
    records: Iterable[Record],
    out: str | Path,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes a directory of records atomically; returns the number of records.

    Args:
      records: in the order in which they are stored; of several splits, each gets its own shards.
      out: a new directory.
      shard_bytes: a shard is closed when it has reached this size.

    Raises:
      DataError: there are no records, or they cannot be written.
      UniXError: `out` exists.
    """
    written: dict[str, int] = {}
    with atomic_directory(out) as directory:
        shards = _Shards(directory, shard_bytes)
        try:
            for record in records:
                shards.write(record)
            written = shards.close()
            if not written:
                raise DataError(f"{out}: expected records to write, found none")
            write_json(directory / INDEX, {"format": FORMAT, "shards": shards.index})
        except (OSError, RuntimeError) as error:  # the library's C++ errors are RuntimeError
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{out}: cannot be written: {reason}") from error
    return sum(written.values())


class _Shards:
    """The open shard of each split, and the list of all of them."""

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.index: list[dict[str, Any]] = []
        self._directory, self._shard_bytes = directory, shard_bytes
        # Of each split: the writer, its entry of the index, bytes so far.
        self._open: dict[str, tuple[Any, dict[str, Any], int]] = {}

    def write(self, record: Record) -> None:
        data = encode_record(record)
        writer, entry, size = self._open.get(record.split) or self._new(record.split)
        writer.write(data)
        entry["records"] += 1
        self._open[record.split] = writer, entry, size + len(data)
        if size + len(data) >= self._shard_bytes:
            self._open.pop(record.split)[0].close()

    def _new(self, split: str) -> tuple[Any, dict[str, Any], int]:
        slug = re.sub(r"[^A-Za-z0-9_.]+", "_", split)[:40].lstrip(".") or "all"
        file = f"{slug}-{len(self.index):05d}.array_record"
        entry = {"file": file, "split": split, "records": 0}
        self.index.append(entry)
        path = str(self._directory / file)
        return array_record_module.ArrayRecordWriter(path, _WRITER_OPTIONS), entry, 0

    def close(self) -> dict[str, int]:
        """The number of records per split, after every shard is on disk."""
        for writer, _, _ in self._open.values():
            writer.close()
        counts: dict[str, int] = {}
        for entry in self.index:
            counts[entry["split"]] = counts.get(entry["split"], 0) + entry["records"]
        return counts


class ArrayRecordSource:
    """Records of a directory that `write_array_records` wrote."""

    def __init__(self, directory: str | Path, split: str | None = None) -> None:
        """Reads the index and compares it with the shards.

        Raises:
          DataError: no such directory, a broken index, a missing or truncated shard, or none of
            this split.
        """
        root = any_path(directory)
        shards = list(_checked_shards(root / INDEX))
        # As in every kind of source, a data set without splits belongs to every split.
        self.unsplit = split is not None and not any(name for _, name, _ in shards)
        every = split is None or self.unsplit
        chosen = [shard for shard in shards if every or shard[1] == split]
        if not chosen:
            found = sorted({name for _, name, _ in shards})
            raise DataError(f"{root}: expected split {split!r}, found {found}")
        self._files = [str(local_file(root / file)) for file, _, _ in chosen]
        self._length = sum(count for _, _, count in chosen)
        self._lock = threading.Lock()
        self._opened: Any = None
        for shard, (file, _, count) in zip(self._files, chosen, strict=True):
            found_count = _count(Path(shard))
            if found_count != count:
                raise DataError(f"{root / file}: expected {count} records, found {found_count}")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        index = checked_index(index, self._length)
        where = f"{Path(self._files[0]).parent}: record {index}"
        try:
            data = self._reader()[index]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{where}: cannot be read: {reason}") from error
        return decode_record(data, where)

    def _reader(self) -> Any:
        with self._lock:
            if self._opened is None:
                self._opened = array_record_data_source.ArrayRecordDataSource(self._files)
            return self._opened

    def __getstate__(self) -> dict[str, Any]:
        # Open files are not pickled: a worker opens its own.
        return {"_files": self._files, "_length": self._length, "unsplit": self.unsplit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._opened = threading.Lock(), None


def _checked_shards(index: Path) -> Iterator[tuple[str, str, int]]:
    """(file, split, records) of every shard."""
    document = read_json(index, DataError)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{index}: expected format {FORMAT}, found {str(document)[:60]!r}")
    shards = document.get("shards")
    if not isinstance(shards, list) or not shards:
        raise DataError(f"{index}: shards: expected a list of shards, found {str(shards)[:60]!r}")
    for shard in shards:
        values = [shard.get(k) for k in ("file", "split", "records")] if shard else []
        if [type(value) for value in values] != [str, str, int] or "/" in values[0]:
            raise DataError(f"{index}: expected file, split, records, found {str(shard)[:60]!r}")
        yield values[0], values[1], values[2]


def _count(file: Path) -> int:
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        try:
            return reader.num_records()
        finally:
            reader.close()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: broken or truncated: {reason}") from error

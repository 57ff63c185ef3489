"""The safetensors format: an 8-byte header length, a JSON header, then the tensors' bytes.

The header is parsed here rather than by the `safetensors` library: its numpy front end copies
each tensor, and its errors name neither the file nor the key. A mapped file read by this
parser gives views, so reading one tensor touches only its own pages.
"""

import json
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from unix_jax.checkpoints.formats.tensor_source import (
    MAX_BYTES,
    MAX_RANK,
    MappedFile,
    TensorInfo,
    TensorSource,
    missing_key,
    quoted,
)
from unix_jax.errors import CheckpointError

# A tensor takes some 130 bytes, so this is some 100,000 tensors. The library allows 100 MB, which
# takes seconds and gigabytes to parse.
MAX_HEADER_BYTES = 16 * 2**20

# Ordered as the library ranks them: its writer puts the last of these first in a file, so that
# every tensor is aligned to its own element size.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}


class SafetensorsFile(TensorSource):
    """One `.safetensors` file, mapped; every tensor is a read-only view of it.

    Raises:
      CheckpointError: the header is not valid, or does not describe exactly the bytes after it.
    """

    def __init__(self, file: MappedFile):
        self.path = file.path
        self.skipped = []
        self._file = file
        header, self._start = _header(file)
        self.metadata = _metadata(file.path, header.pop("__metadata__", {}))
        self._spans: dict[str, tuple[int, int]] = {}
        self._infos: dict[str, TensorInfo] = {}
        for key, entry in header.items():
            self._infos[key], self._spans[key] = _tensor(file.path, key, entry)
        _check_cover(file.path, self._spans, file.size - self._start)

    def keys(self) -> list[str]:
        return list(self._infos)

    def info(self, key: str) -> TensorInfo:
        if key not in self._infos:
            raise missing_key(self.path, key, self.keys())
        return self._infos[key]

    def read(self, key: str) -> np.ndarray:
        info = self.info(key)
        return self._file.array(self._start + self._spans[key][0], info.shape, info.dtype)

    def release(self, key: str) -> None:
        self.info(key)
        begin, end = self._spans[key]
        self._file.release(self._start + begin, end - begin)

    def close(self) -> None:
        self._file.close()


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the byte after it."""
    path = file.path
    if file.size < 8:
        raise CheckpointError(
            f"{path}: expected a safetensors file of at least 8 bytes, found {file.size}"
        )
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: not a safetensors file of weights: header length {length}, "
            f"expected at most {MAX_HEADER_BYTES} bytes"
        )
    if length > file.size - 8:
        raise CheckpointError(
            f"{path}: truncated: expected a header of {length} bytes, "
            f"found {file.size - 8} bytes after the length"
        )
    text = file.bytes(8, length)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: not a safetensors file: the header is not a JSON object")
    return parse_json_object(path, text, "safetensors header"), 8 + length


def parse_json_object(path: Path, text: bytes, what: str) -> dict[str, Any]:
    """A JSON object from a file that is not trusted.

    Raises:
      CheckpointError: the text is not UTF-8 JSON, repeats a name, nests too deep, holds a number
        or a name that JSON or UTF-8 does not allow, or is not an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    raise CheckpointError(f"{path}: {what}: key {quoted(name)} occurs twice")
                seen.add(name)
        return result

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path}: {what} is not valid JSON: {reason[:200]}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {what}: expected a JSON object, found {quoted(value)}")
    for key in value:
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone surrogate, written as an escape
            raise CheckpointError(
                f"{path}: {what}: key {quoted(key)} is not valid Unicode"
            ) from error
    return value


def _metadata(path: Path, value: object) -> dict[str, str]:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return value
    raise CheckpointError(f"{path}: __metadata__: expected an object of strings")


def _integers(value: object, limit: int) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) <= limit
        and all(type(item) is int and 0 <= item <= MAX_BYTES for item in value)
    )


def _tensor(path: Path, key: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """Type, shape and byte span of one header entry."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: {quoted(key)}: expected an object, found {quoted(entry)}")
    name, shape, offsets = (entry.get(field) for field in ("dtype", "shape", "data_offsets"))
    if not isinstance(name, str) or name not in DTYPES:
        raise CheckpointError(
            f"{path}: {quoted(key)}: dtype {quoted(name)} is not one of {', '.join(DTYPES)}"
        )
    if not _integers(shape, MAX_RANK):
        raise CheckpointError(
            f"{path}: {quoted(key)}: shape: expected at most {MAX_RANK} sizes from 0 to 2^62"
        )
    if not _integers(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{path}: {quoted(key)}: data_offsets: expected [begin, end] with 0 <= begin <= end"
        )
    info = TensorInfo(tuple(shape), DTYPES[name])
    if not fits_in_numpy(info):
        raise CheckpointError(f"{path}: {quoted(key)}: shape {list(shape)} is too large")
    if info.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{path}: {quoted(key)}: shape {list(shape)} of {name} needs {info.nbytes} bytes, "
            f"but data_offsets {offsets} hold {offsets[1] - offsets[0]}"
        )
    return info, (offsets[0], offsets[1])


def fits_in_numpy(info: TensorInfo) -> bool:
    """Whether numpy can describe such an array; it multiplies the non-zero sizes."""
    total = info.dtype.itemsize
    for size in info.shape:
        total *= max(size, 1)
        if total > MAX_BYTES:
            return False
    return len(info.shape) <= MAX_RANK


def _check_cover(path: Path, spans: dict[str, tuple[int, int]], available: int) -> None:
    """The tensors must be contiguous and fill the rest of the file."""
    position = 0
    for key, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if end > available:
            raise CheckpointError(
                f"{path}: {quoted(key)}: truncated or wrong: its data ends at byte {end}, "
                f"but the file holds {available} bytes of data"
            )
        if begin != position:
            fault = "overlap the tensor before them" if begin < position else "leave a gap"
            raise CheckpointError(
                f"{path}: {quoted(key)}: its data begins at byte {begin}, expected {position}: "
                f"they {fault}"
            )
        position = end
    if position != available:
        raise CheckpointError(
            f"{path}: expected {position} bytes of data after the header, found {available}"
        )

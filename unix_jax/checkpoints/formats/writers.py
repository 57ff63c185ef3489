"""Writes tensors in the two published formats, one tensor in memory at a time, without torch.

Both writers take `Entry` triples: a name, its shape and dtype, and a function that creates the
array when it is written. The file is created atomically.
"""

import contextlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from unix_jax.checkpoints.formats.safetensors_file import DTYPES, MAX_HEADER_BYTES
from unix_jax.checkpoints.formats.tensor_source import TensorInfo, quoted
from unix_jax.checkpoints.formats.torch_file import STORAGES
from unix_jax.errors import CheckpointError
from unix_jax.storage.files import atomic_write

Entry = tuple[str, TensorInfo, Callable[[], np.ndarray]]

# An array that is not contiguous is copied in pieces of about this size.
_CHUNK_BYTES = 16 * 2**20
# Torch aligns storages in its zip so that they can be mapped.
_ALIGNMENT = 64
_ALIGNMENT_FIELD = 0x4246


class _Sink(Protocol):
    def write(self, data: Any, /) -> object: ...


def entries(arrays: Mapping[str, np.ndarray]) -> list[Entry]:
    """`Entry` triples of arrays that are in memory already."""

    def entry(key: str, array: np.ndarray) -> Entry:
        return key, TensorInfo(array.shape, array.dtype), lambda: array

    return [entry(key, np.asarray(array)) for key, array in arrays.items()]


def library_order(tensors: Iterable[Entry]) -> list[Entry]:
    """The order in which the `safetensors` library writes: widest type first, then by name."""
    rank = {dtype: position for position, dtype in enumerate(DTYPES.values())}
    return sorted(tensors, key=lambda item: (-rank.get(item[1].dtype, 0), item[0]))


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray] | Iterable[Entry],
    metadata: Mapping[str, str] | None = None,
    *,
    keep_order: bool = False,
) -> None:
    """Writes a `.safetensors` file.

    With equal tensors, metadata and order, the bytes equal those of the `safetensors` library.

    Args:
      path: the file; replaced if it exists.
      tensors: name -> array, or `Entry` triples. The arrays are made and dropped one by one.
      metadata: strings to keep in the header; PyTorch projects expect `{"format": "pt"}`.
      keep_order: whether to keep the order given rather than `library_order`.

    Raises:
      CheckpointError: the file cannot be written, or a type or name has no place in the format.
      ValueError: an array is not of the announced shape or type.
    """
    items = _listed(path, tensors)
    items = items if keep_order else library_order(items)
    header = _safetensors_header(path, items, metadata or {})
    with _output(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for key, info, make in items:
            _write_array(file, key, info, make())


def _safetensors_header(path: str | Path, items: list[Entry], metadata: Mapping[str, str]) -> bytes:
    names = {dtype: name for name, dtype in DTYPES.items()}
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key, info, _ in items:
        if info.dtype not in names or key == "__metadata__":
            raise CheckpointError(f"{path}: {quoted(key)}: safetensors has no type {info.dtype}")
        end = position + info.nbytes
        table[key] = {
            "dtype": names[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: {len(header)} bytes of header, expected at most {MAX_HEADER_BYTES}"
        )
    return header


def write_torch_zip(
    path: str | Path,
    tensors: Mapping[str, np.ndarray] | Iterable[Entry],
    *,
    under: str | None = "state_dict",
) -> None:
    """Writes a file that `torch.load` reads, also with `weights_only=True`.

    The file holds `{under: OrderedDict(name -> tensor)}`, each tensor contiguous, with a storage
    of its own, on the CPU.

    Args:
      path: the file; replaced if it exists. Its stem, if ASCII, names the archive in it.
      tensors: name -> array, or `Entry` triples. The arrays are made and dropped one by one.
      under: the name of the state dict in the file; None makes it the top level itself.

    Raises:
      CheckpointError: the file cannot be written, or torch has no such type.
      ValueError: an array is not of the announced shape or type.
    """
    items = _listed(path, tensors)
    root = Path(path).stem if Path(path).stem.isascii() else "archive"
    pickled = _state_dict_pickle(path, items, under)
    with _output(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
        for name, data in (
            ("data.pkl", pickled),
            (".format_version", b"1"),
            (".storage_alignment", str(_ALIGNMENT).encode()),
            ("byteorder", b"little"),
        ):
            with _member(archive, f"{root}/{name}", len(data)) as member:
                member.write(data)
        for index, (key, info, make) in enumerate(items):
            with _member(archive, f"{root}/data/{index}", info.nbytes) as member:
                _write_array(member, key, info, make())
        with _member(archive, f"{root}/version", 2) as member:
            member.write(b"3\n")


def _member(archive: zipfile.ZipFile, name: str, size: int) -> IO[bytes]:
    """Starts a member of `size` bytes whose data begin at a multiple of the alignment."""
    record = zipfile.ZipInfo(name)
    record.file_size = size
    large = size * 1.05 > zipfile.ZIP64_LIMIT  # zipfile's own rule; adds a field of 20 bytes
    assert archive.fp is not None
    data_start = archive.fp.tell() + 30 + len(name) + 4 + (20 if large else 0)
    padding = -data_start % _ALIGNMENT
    record.extra = struct.pack("<HH", _ALIGNMENT_FIELD, padding) + b"Z" * padding
    return archive.open(record, "w", force_zip64=large)


def _state_dict_pickle(path: str | Path, items: list[Entry], under: str | None) -> bytes:
    """The pickle of `{under: OrderedDict}` in protocol 2, as torch would write it.

    Written instruction by instruction: Python's pickler would have to import torch to name it.
    """
    storages = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
    out = io.BytesIO()
    out.write(b"\x80\x02")
    if under is not None:
        out.write(b"}" + _text(under))
    out.write(_ORDERED_DICT)
    for index, (key, info, _) in enumerate(items):
        if info.dtype not in storages:
            raise CheckpointError(f"{path}: {quoted(key)}: torch has no storage of {info.dtype}")
        out.write(_text(key))
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n(")
        out.write(b"(" + _text("storage"))
        out.write(f"ctorch\n{storages[info.dtype]}\n".encode())
        out.write(_text(str(index)) + _text("cpu") + _integer(info.count) + b"tQ")
        out.write(_integer(0) + _integers(info.shape) + _integers(_contiguous_strides(info.shape)))
        out.write(b"\x89" + _ORDERED_DICT + b"tRs")
    if under is not None:
        out.write(b"s")
    out.write(b".")
    return out.getvalue()


# GLOBAL collections.OrderedDict, EMPTY_TUPLE, REDUCE
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


def _contiguous_strides(shape: tuple[int, ...]) -> list[int]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _listed(path: str | Path, tensors: Mapping[str, np.ndarray] | Iterable[Entry]) -> list[Entry]:
    items = entries(tensors) if isinstance(tensors, Mapping) else list(tensors)
    seen: set[str] = set()
    for key, _, _ in items:
        if key in seen:
            raise CheckpointError(f"{path}: tensor {quoted(key)} occurs twice")
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path}: name {quoted(key)} is not valid Unicode") from error
        seen.add(key)
    return items


@contextlib.contextmanager
def _output(path: str | Path) -> Iterator[Path]:
    """`atomic_write`, whose operating-system errors name the target, not the temporary file."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path}: cannot be written: {reason}") from error


def _write_array(sink: _Sink, key: str, info: TensorInfo, array: np.ndarray) -> None:
    """Writes the array's elements in row-major order, little-endian."""
    if array.shape != info.shape or array.dtype != info.dtype:
        raise ValueError(
            f"{key}: announced as {info.dtype}{list(info.shape)}, "
            f"got {array.dtype}{list(array.shape)}"
        )
    for piece in _pieces(array):
        sink.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8))


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array itself, or runs of its first axis small enough to copy."""
    if array.flags.c_contiguous or array.ndim == 0 or array.size == 0:
        yield array
        return
    rows = max(1, _CHUNK_BYTES * array.shape[0] // array.nbytes)
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]

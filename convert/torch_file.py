"""Files written by `torch.save`, read without torch: the zip format and the one before it.

The zip holds `NAME/data.pkl`, whose tensors refer to storages, and one member `NAME/data/KEY` per
storage. Members are stored without compression, so a tensor is a view of the mapped file. The
older format is a run of pickles followed by the storages' bytes; its bytes are mapped as well.

Checksums of the zip are not verified: torch does not either, and may be told not to write them.
"""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert.pickle_values import Storage, Tensor
from convert.safetensors_file import fits_in_numpy
from convert.sources import (
    MAX_BYTES,
    MAX_RANK,
    MappedFile,
    TensorInfo,
    TensorSource,
    is_average,
    missing_key,
    note,
    quoted,
)
from convert.unpickle import read_pickle
from convert.zip_members import ByteRange, inflate, locate, member_bytes, zip_members
from unix_jax.errors import CheckpointError, shortened

# Protocol 2, then the integer 0x1950a86a20f9469cfc6c as a pickle of its own.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# A pickle has some 150 bytes per tensor; nobody's is longer, and its values take memory.
MAX_PICKLE_BYTES = 64 * 2**20

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}

STORAGES: dict[str, np.dtype[Any]] = {
    "DoubleStorage": DTYPES["float64"],
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
    "ComplexFloatStorage": DTYPES["complex64"],
    "ComplexDoubleStorage": DTYPES["complex128"],
    "UntypedStorage": DTYPES["uint8"],
}

# Where a state dict is looked for: `state_dict` is Lightning's, the others are common.
_NESTS = ("state_dict", "model_state_dict", "model", "module")
# Where an average keeps it: `shadow` and `shadow_params` are those of the common helper classes.
_AVERAGE_NESTS = (*_NESTS, "shadow", "shadow_params", "params")
_MAX_NESTING = 3


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor whose description has been checked against its storage; units are elements."""

    storage: ByteRange
    info: TensorInfo
    offset: int
    stride: tuple[int, ...]


class TorchFile(TensorSource):
    """The state dict of a `torch.save` file; tensors are read-only views wherever possible.

    The state dict is the file's `state_dict` entry if it has one, else the top level, else its
    `model_state_dict`, `model` or `module`. An average is another entry, whose name has the word
    `ema`; it is taken where it is `wanted`, or where there is nothing else. Of several state dicts
    a note says which was taken.

    Raises:
      CheckpointError: the file is broken, holds no state dict, or its pickle calls something.
    """

    def __init__(self, file: MappedFile, wanted: str | None = None):
        self.path = file.path
        self.metadata = {}
        self._file = file
        self._unpacked: tuple[str, bytes] | None = None
        if file.bytes(0, len(LEGACY_START)) == LEGACY_START:
            value, storages = _read_legacy(file)
        else:
            value, storages = _read_zip(file)
        entries, self.averaged = _state_dict(file.path, value, wanted)
        self.skipped = [key for key, item in entries.items() if not isinstance(item, Tensor)]
        self._views = {
            key: _view(file.path, key, item, storages)
            for key, item in entries.items()
            if isinstance(item, Tensor)
        }

    def keys(self) -> list[str]:
        return list(self._views)

    def info(self, key: str) -> TensorInfo:
        if key not in self._views:
            raise missing_key(self.path, key, self.keys())
        return self._views[key].info

    def read(self, key: str) -> np.ndarray:
        info = self.info(key)
        view = self._views[key]
        strides = tuple(step * info.dtype.itemsize for step in view.stride)
        start = view.offset * info.dtype.itemsize
        if info.count == 0:
            empty = np.zeros(info.shape, info.dtype)
            empty.setflags(write=False)
            return empty
        if view.storage.member is None:
            return self._file.array(view.storage.offset + start, info.shape, info.dtype, strides)
        unpacked = self._unpack(view.storage.member)
        return np.ndarray(info.shape, info.dtype, unpacked, start, strides)

    def release(self, key: str) -> None:
        self.info(key)
        view = self._views[key]
        self._unpacked = None
        if view.storage.member is None:
            itemsize = view.info.dtype.itemsize
            size = _extent(view.info.shape, view.stride) * itemsize
            self._file.release(view.storage.offset + view.offset * itemsize, size)

    def close(self) -> None:
        self._unpacked = None
        self._file.close()

    def _unpack(self, member: zipfile.ZipInfo) -> bytes:
        # One storage is kept, because tensors that share one come together.
        if self._unpacked is None or self._unpacked[0] != member.filename:
            self._unpacked = (member.filename, inflate(self._file, member))
        return self._unpacked[1]


def _read_zip(file: MappedFile) -> tuple[Any, dict[str, ByteRange]]:
    """The pickle's value, and the bytes of each storage by key."""
    path = file.path
    members = zip_members(file)
    roots = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(
            f"{path}: expected a torch checkpoint: a zip with one NAME/data.pkl, found {len(roots)}"
        )
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise CheckpointError(f"{path}: is a TorchScript program; expected a state dict")
    order = members.get(f"{root}byteorder")
    if order is not None and member_bytes(file, order, 16) != b"little":
        raise CheckpointError(f"{path}: was written big-endian; only little-endian files are read")
    pickled = member_bytes(file, members[f"{root}data.pkl"], MAX_PICKLE_BYTES)
    storages = {
        name[len(root) + len("data/") :]: locate(file, member)
        for name, member in members.items()
        if name.startswith(f"{root}data/")
    }
    return read_pickle(io.BytesIO(pickled), str(path)), storages


def _read_legacy(file: MappedFile) -> tuple[Any, dict[str, ByteRange]]:
    """Magic, protocol, system, value and keys: five pickles; then per key a count and the bytes."""
    source = str(file.path)
    stream = io.BytesIO(file.bytes(0, MAX_PICKLE_BYTES))
    _, protocol, system, value, keys = (read_pickle(stream, source) for _ in range(5))
    if protocol != 1001 or not isinstance(system, dict):
        raise CheckpointError(f"{source}: torch format {quoted(protocol)} is not supported")
    if system.get("little_endian") is not True:
        raise CheckpointError(f"{source}: was written big-endian; only little-endian is read")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{source}: expected a list of storage names, found {quoted(keys)}")
    sizes = _storage_itemsizes(value)
    storages: dict[str, ByteRange] = {}
    position = stream.tell()
    for key in keys:
        count = int.from_bytes(file.bytes(position, 8), "little", signed=True)
        size = count * sizes.get(key, 1)
        position += 8
        if count < 0 or position + size > file.size or key in storages:
            raise CheckpointError(
                f"{source}: storage {quoted(key)}: truncated or wrong: {count} elements at byte "
                f"{position} of {file.size}"
            )
        storages[key] = ByteRange(position, size)
        position += size
    return value, storages


def _storage_itemsizes(value: Any) -> dict[str, int]:
    """Element size of every storage that `value` reaches, by key."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, Storage):
            if item.type_name in STORAGES:
                sizes[item.key] = STORAGES[item.type_name].itemsize
            continue
        if not isinstance(item, (dict, list, tuple, Tensor)) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            pending.append(item.storage)
        else:
            pending.extend(item.values() if isinstance(item, dict) else item)
    return sizes


@dataclasses.dataclass(frozen=True)
class _Nest:
    """A state dict inside a pickle: the names that lead to it, and whether one says average."""

    names: tuple[str, ...]
    entries: dict[Any, Any]
    averaged: bool

    def __str__(self) -> str:
        count = sum(isinstance(item, Tensor) for item in self.entries.values())
        names = ".".join(name if name.isprintable() else quoted(name) for name in self.names)
        return f"`{names}` ({count} tensors)" if names else f"the top level ({count} tensors)"


def _nests(value: dict[Any, Any]) -> list[_Nest]:
    """Every state dict at the top level or under the known names, the preferred ones first."""
    found: list[_Nest] = []
    seen: set[int] = set()

    def walk(nest: _Nest) -> None:
        if id(nest.entries) in seen:
            return
        seen.add(id(nest.entries))
        if any(isinstance(item, Tensor) for item in nest.entries.values()):
            found.append(nest)
        if len(nest.names) == _MAX_NESTING:
            return
        known = _AVERAGE_NESTS if nest.averaged else _NESTS
        averages = [k for k in nest.entries if isinstance(k, str) and is_average(k)]
        for name in dict.fromkeys((*known, *averages)):
            inner = nest.entries.get(name)
            if isinstance(inner, dict):
                averaged = nest.averaged or is_average(name)
                walk(_Nest((*nest.names, name), inner, averaged))

    walk(_Nest((), value, False))
    return sorted(found, key=lambda nest: nest.names[:1] != (_NESTS[0],))


def _state_dict(path: Path, value: Any, wanted: str | None) -> tuple[dict[str, Any], bool]:
    """The entries of the state dict whose names are strings, and whether it is an average."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a state dict, found {quoted(value)}")
    found = _nests(value)
    if not found:
        names = [quoted(key) for key in value if isinstance(key, str)]
        raise CheckpointError(
            f"{path}: expected a state dict at the top level or under {', '.join(_NESTS)}; "
            f"found {', '.join(shortened(names)) or 'nothing'}"
        )
    averages = [nest for nest in found if nest.averaged]
    weights = [nest for nest in found if not nest.averaged]
    if wanted == "model" and not weights:
        raise CheckpointError(
            f"{path}: expected weights that are no average (--weights model), "
            f"found {', '.join(shortened([str(nest) for nest in averages]))}"
        )
    nest = ((averages or weights) if wanted == "ema" else (weights or averages))[0]
    left = [str(other) for other in found if other is not nest]
    if left:
        note(f"{path}: used {nest}, not {', '.join(shortened(left))}")
    chosen = nest.entries
    entries = {key: item for key, item in chosen.items() if isinstance(key, str)}
    for key in entries:
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path}: key {quoted(key)} is not valid Unicode") from error
    return entries, nest.averaged


def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from a tensor's first to its last, both included; 0 if it has none."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) <= MAX_RANK
        and all(type(item) is int and 0 <= item <= MAX_BYTES for item in value)
    )


def _view(path: Path, key: str, tensor: Tensor, storages: dict[str, ByteRange]) -> _View:
    """Checks a tensor of the state dict against its storage."""
    name = f"{path}: {quoted(key)}"
    storage = tensor.storage
    if not isinstance(storage, Storage):
        raise CheckpointError(f"{name}: expected a storage, found {quoted(storage)}")
    table, type_name = (
        (STORAGES, storage.type_name) if tensor.dtype is None else (DTYPES, tensor.dtype)
    )
    if type_name not in table:
        raise CheckpointError(f"{name}: type {quoted(type_name)} is not supported")
    if not _sizes(tensor.shape) or not _sizes(tensor.stride) or not _sizes([tensor.offset]):
        raise CheckpointError(f"{name}: its shape, strides or offset are no sizes")
    info = TensorInfo(tuple(tensor.shape), table[type_name])
    stride = tuple(tensor.stride)
    if len(stride) != len(info.shape) or not fits_in_numpy(info):
        raise CheckpointError(
            f"{name}: shape {list(info.shape)} and strides {list(stride)} are no tensor"
        )
    place = storages.get(storage.key)
    if place is None:
        raise CheckpointError(f"{name}: its storage {quoted(storage.key)} is not in the file")
    available = place.size // info.dtype.itemsize
    needed = tensor.offset + _extent(info.shape, stride) if info.count else 0
    # A tensor larger than its storage repeats elements: a few bytes could stand for terabytes.
    if needed > available or info.count > available:
        raise CheckpointError(
            f"{name}: shape {list(info.shape)}, strides {list(stride)}, offset {tensor.offset} "
            f"reach beyond its storage {quoted(storage.key)} of {available} elements"
        )
    declared = storage.count
    itemsize = 1 if storage.type_name == "UntypedStorage" else info.dtype.itemsize
    if type(declared) is not int or not 0 <= declared <= place.size // itemsize:
        raise CheckpointError(
            f"{name}: its storage {quoted(storage.key)} should hold {quoted(declared)} elements, "
            f"found {place.size // itemsize}"
        )
    return _View(place, info, tensor.offset, stride)

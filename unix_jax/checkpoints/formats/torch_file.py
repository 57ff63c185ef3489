"""Reads files written by `torch.save` without torch: the zip format and the older one.

The zip contains `NAME/data.pkl`, whose tensors refer to storages, and one member `NAME/data/KEY`
per storage. Members are stored without compression, so a tensor is a view of the mapped file. The
older format is a sequence of pickles followed by the storages' bytes; its bytes are mapped as well.

Torch does not verify the CRC-32 of a zip's members, and may be configured not to write them. Here
each member's CRC-32 is verified when its first tensor is read. The older format has no checksums.
"""

import dataclasses
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from zlib_ng import zlib_ng

from unix_jax.checkpoints.formats.key_names import known_count
from unix_jax.checkpoints.formats.pickle_values import Storage, Tensor
from unix_jax.checkpoints.formats.safetensors_file import fits_in_numpy
from unix_jax.checkpoints.formats.tensor_source import (
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
from unix_jax.checkpoints.formats.unpickle import read_pickle
from unix_jax.checkpoints.formats.weight_files import is_training_state
from unix_jax.checkpoints.formats.zip_members import (
    ByteRange,
    inflate,
    locate,
    member_bytes,
    require_crc,
    zip_members,
)
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

# Bytes of a storage that are summed at a time.
_CHUNK_BYTES = 16 * 2**20

# The usual names of a state dict, best first: `state_dict` is Lightning's, "" the top level.
_USUAL = ("state_dict", "", "model_state_dict", "model", "module")
# Where a helper class for averages keeps one.
_USUAL_IN_AVERAGE = (*_USUAL, "shadow", "shadow_params", "params")
# Dictionaries inside one another in which state dicts are looked for.
_MAX_NESTING = 8


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor whose description has been checked against its storage; units are elements."""

    storage: ByteRange
    info: TensorInfo
    offset: int
    stride: tuple[int, ...]


class TorchFile(TensorSource):
    """The state dict of a `torch.save` file; tensors are read-only views wherever possible.

    Every dictionary of tensors in the file, under whatever name, may be the state dict, except
    those of optimizers and the like. If there are several, those with fewer than half as many
    `known` names as the best are not candidates. An average, recognised by its name (`is_average`),
    is used if `wanted` is `ema`, or if nothing else exists. Among the others, a usual name is
    preferred, then the one with the most known names. A note states what was used and what was not.

    Args:
      file: the mapped file.
      wanted: `model`, `ema`, the name of an entry such as `net` or `ema.shadow`, or None.
      known: names of the model's tensors; if empty, all tensors count.

    Raises:
      CheckpointError: the file is broken, contains no state dict, or its pickle calls something; or
        several state dicts match equally well.
    """

    def __init__(
        self, file: MappedFile, wanted: str | None = None, known: frozenset[str] = frozenset()
    ):
        self.path = file.path
        self.metadata = {}
        self._file = file
        self._unpacked: tuple[str, bytes] | None = None
        self._verified: set[int] = set()
        if file.bytes(0, len(LEGACY_START)) == LEGACY_START:
            value, storages = _read_legacy(file)
        else:
            value, storages = _read_zip(file)
        found = _state_dicts(file.path, value, known)
        chosen, self.named = _chosen(file.path, found, wanted)
        self.averaged = chosen.averaged
        self.sets = tuple(str(nest) for nest in found)
        entries = _entries(file.path, chosen)
        self.checksums = any(place.crc32 is not None for place in storages.values())
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
            self._verify(key, view.storage, start, info.nbytes)
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

    def _verify(self, key: str, storage: ByteRange, start: int, size: int) -> None:
        """Compares the storage's CRC-32 once; the tensor's own pages stay mapped."""
        if storage.crc32 is None or storage.offset in self._verified:
            return
        found = 0
        for first in range(0, storage.size, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, storage.size - first)
            piece = self._file.array(storage.offset + first, (count,), np.dtype(np.uint8))
            found = zlib_ng.crc32(piece.data, found)
            if first + count <= start or first >= start + size:
                self._file.release(storage.offset + first, count)
        require_crc(f"{self.path}: {quoted(key)}", storage.crc32, found)
        self._verified.add(storage.offset)

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
    records = {
        name[len(root) + len("data/") :]: member
        for name, member in members.items()
        if name.startswith(f"{root}data/")
    }
    storages = {key: locate(file, member) for key, member in records.items()}
    # `torch.serialization.set_crc32_options(False)` leaves all of them 0.
    if not any(member.CRC for member in records.values()):
        storages = {key: dataclasses.replace(x, crc32=None) for key, x in storages.items()}
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
    """A dictionary of tensors in a pickle.

    names: the path to it. averaged: whether one of them denotes an average. fit: the number of its
    tensors with a known name.
    """

    names: tuple[str, ...]
    entries: dict[Any, Any]
    averaged: bool
    fit: int

    def __str__(self) -> str:
        count = sum(isinstance(item, Tensor) for item in self.entries.values())
        names = ".".join(name if name.isprintable() else quoted(name) for name in self.names)
        return f"`{names}` ({count} tensors)" if names else f"the top level ({count} tensors)"

    def answers(self, wanted: str) -> bool:
        """Whether `wanted` is its name, or the name of an entry that it is in."""
        return wanted == ".".join(self.names) or wanted in self.names

    @property
    def rank(self) -> int | None:
        """The position of its name among the usual ones, or None for another name."""
        names = self.names or ("",)
        if self.averaged and names[0] == "ema":
            usual: tuple[str, ...] = _USUAL_IN_AVERAGE
            names = names[1:] or ("",)
        else:
            usual = _USUAL
        return usual.index(names[0]) if set(names) <= set(usual) else None


def _state_dicts(path: Path, value: Any, known: frozenset[str]) -> list[_Nest]:
    """Every dictionary of tensors that may be the weights; at least one."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a state dict, found {quoted(value)}")
    found: list[_Nest] = []
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], dict[Any, Any], bool]] = [((), value, False)]
    while pending:
        names, entries, averaged = pending.pop()
        if id(entries) in seen:
            continue
        seen.add(id(entries))
        keys = [k for k, v in entries.items() if isinstance(k, str) and isinstance(v, Tensor)]
        # An optimizer has one dictionary per parameter, whatever the entry is called.
        if not all(key == "step" or is_training_state(key) for key in keys):
            fit = known_count(keys, known) if known else len(keys)
            found.append(_Nest(names, entries, averaged, fit))
        inner = [
            ((*names, *path), item, averaged or is_average(path[0]))
            for path, item in _inner(entries, seen)
            if not is_training_state(path[0])
        ]
        if len(names) < _MAX_NESTING:
            pending += reversed(inner)
    if not found:
        listed = [quoted(key) for key in value if isinstance(key, str)]
        raise CheckpointError(
            f"{path}: expected a state dict (tensors by name), found entries "
            f"{', '.join(shortened(listed)) or 'none'} without one"
        )
    # Scores of callbacks, other models, or, where nothing has a known name, everything.
    return [nest for nest in found if nest.fit] or found


def _inner(
    entries: dict[Any, Any], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """(names, dictionary) of the dictionaries in a dictionary, also of those in lists.

    A list whose id was `seen` is skipped: a hostile file may hold one list a million times.
    """
    for position, (key, item) in enumerate(entries.items()):
        # The reader of pickles keeps no key that is not a string.
        name = key if isinstance(key, str) else str(position)
        if isinstance(item, dict):
            yield (name,), item
        elif isinstance(item, (list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            for number, part in enumerate(item):
                if isinstance(part, dict):
                    yield (name, str(number)), part


def _chosen(path: Path, found: list[_Nest], wanted: str | None) -> tuple[_Nest, bool]:
    """The state dict to use, and whether `wanted` is a name that selected it; emits a note."""
    most = max(nest.fit for nest in found)
    whole = [nest for nest in found if 2 * nest.fit >= most]
    averages = [nest for nest in whole if nest.averaged]
    weights = [nest for nest in whole if not nest.averaged]
    if wanted == "model" and not weights:
        raise CheckpointError(
            f"{path}: expected weights that are not an average (--weights model), "
            f"found {', '.join(shortened([str(nest) for nest in averages]))}"
        )
    answering = [nest for nest in found if wanted is not None and nest.answers(wanted)]
    named = wanted not in (None, "model", "ema") and bool(answering)
    if named:
        candidates = answering
    else:
        candidates = (averages or weights) if wanted == "ema" else (weights or averages)
    nest = _best(path, candidates)
    left = [str(other) for other in found if other is not nest]
    average = ", an average" if nest.averaged and wanted is None else ""
    if left:
        note(f"{path}: used {nest}{average}, not {', '.join(shortened(left))}")
    elif average:
        note(f"{path}: used {nest}{average}; found no other state dict")
    return nest, named


def _best(path: Path, candidates: list[_Nest]) -> _Nest:
    usual = [(nest.rank, nest) for nest in candidates if nest.rank is not None]
    if usual:
        return min(usual, key=lambda item: item[0])[1]
    most = max(nest.fit for nest in candidates)
    best = [nest for nest in candidates if nest.fit == most]
    if len(best) > 1:
        raise CheckpointError(
            f"{path}: expected one set of weights, found {len(best)} that match equally well: "
            f"{', '.join(shortened([str(nest) for nest in best]))}; name one with --weights NAME "
            "of `unix-jax convert`, or save it alone"
        )
    return best[0]


def _entries(path: Path, nest: _Nest) -> dict[str, Any]:
    """The entries whose names are strings."""
    entries = {key: item for key, item in nest.entries.items() if isinstance(key, str)}
    for key in entries:
        try:
            key.encode("utf-8")
        except UnicodeEncodeError as error:
            raise CheckpointError(f"{path}: key {quoted(key)} is not valid Unicode") from error
    return entries


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
        raise CheckpointError(f"{name}: its shape, strides or offset are not valid sizes")
    info = TensorInfo(tuple(tensor.shape), table[type_name])
    stride = tuple(tensor.stride)
    if len(stride) != len(info.shape) or not fits_in_numpy(info):
        raise CheckpointError(
            f"{name}: shape {list(info.shape)} and strides {list(stride)} are not a valid tensor"
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

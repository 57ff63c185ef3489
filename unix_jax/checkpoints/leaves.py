"""Lazy arrays: a shape, a dtype, and a function that reads any box of it.

A checkpoint on disk and a published weight file both provide their parameters as a flat `dict[path,
Leaf]`, so that saving, sharded loading and export never hold more than one of them. Paths are
`/`-joined names of the parameter tree, as in `decoder/layers/und/q_proj/kernel`.
"""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from unix_jax.errors import CheckpointError

Index = tuple[slice, ...]

# Tile in which a matrix is transposed: a row of it fills a cache line with two-byte numbers, and
# its rows fit the translation buffer; measured 2 to 5 times as fast as one strided copy.
_TILE = (512, 16)
# Numbers that are tested at a time: they stay in the cache.
_BLOCK = 1 << 17
_THREADS = min(8, os.cpu_count() or 1)
# Names at the start and at the end of a long list of arrays.
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array that is read on demand; `read(index)` gives the box `index`, one slice per axis.

    names: its names in the source, for errors: one name, or one per layer of a stack. Empty if the
    path in our tree is the only name.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]
    names: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read_all(self) -> np.ndarray:
        return self.read(tuple(slice(0, size) for size in self.shape))


def array_leaf(array: Any) -> Leaf:
    """A leaf over an array in memory; a `jax.Array` is fetched box by box."""
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    return Leaf(shape, dtype, lambda index: np.asarray(array[index]))


def cast(leaf: Leaf, dtype: Any) -> Leaf:
    """The leaf in another dtype; values that are too large for it become infinite."""
    kind = np.dtype(dtype)

    def read(index: Index) -> np.ndarray:
        with np.errstate(over="ignore"):
            return leaf.read(index).astype(kind, copy=False)

    return leaf if kind == leaf.dtype else dataclasses.replace(leaf, dtype=kind, read=read)


def non_finite_count(array: np.ndarray) -> int:
    """The number of NaN or infinite values; 0 for dtypes without such values."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return 0
    flat = array.reshape(-1)
    if flat.size <= 8 * _BLOCK:
        return _count_in_part(flat)
    # Testing releases the interpreter's lock.
    parts = np.array_split(flat, _THREADS)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return sum(pool.map(_count_in_part, parts))


def _count_in_part(flat: np.ndarray) -> int:
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    return sum(_count_in_block(block) for block in blocks)


def _count_in_block(block: np.ndarray) -> int:
    if block.dtype.itemsize == 2:
        # Infinity and NaN are the largest bits of either sign: two maxima that write nothing.
        exponent = 0x7C00 if block.dtype == np.float16 else 0x7F80
        bits = block.view(np.uint16)
        if bits.view(np.int16).max() < exponent and bits.max() < exponent | 0x8000:
            return 0
        return int(np.count_nonzero(bits & np.uint16(exponent) == exponent))
    finite = np.isfinite(block)
    return 0 if finite.all() else int(block.size - np.count_nonzero(finite))


class FiniteCheck:
    """Checks leaves as they are read, and records those with numbers that are not finite."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._owners: dict[str, str] = {}

    def watch(self, name: str, leaf: Leaf) -> Leaf:
        """The same leaf, checked; `name` is used in errors if the leaf has no names."""

        def read(index: Index) -> np.ndarray:
            array = leaf.read(index)
            if count := non_finite_count(array):
                if is_stacked(name) or len(leaf.names) > 1:
                    first = index[0].indices(leaf.shape[0])[0]
                    for layer, part in enumerate(array, first):
                        self._add(name, leaf, layer, non_finite_count(part))
                else:
                    self._add(name, leaf, None, count)
            return array

        return dataclasses.replace(leaf, read=read)

    def _add(self, name: str, leaf: Leaf, layer: int | None, count: int) -> None:
        if leaf.names:
            said = leaf.names[layer or 0]
        else:
            said = name if layer is None else f"{name}, layer {layer}"
        # A tensor of a file may become two leaves, as Janus-Pro's do.
        if count and self._owners.setdefault(said, name) == name:
            self.counts[said] = self.counts.get(said, 0) + count

    def watch_all(self, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
        """All leaves, tested."""
        return {name: self.watch(name, leaf) for name, leaf in leaves.items()}

    def lines(self) -> list[str]:
        """One line per array that is not finite; a long list is shortened to its start and end."""
        lines = [f"{name}: {count} numbers" for name, count in self.counts.items()]
        left_out = len(lines) - 2 * _LISTED
        if left_out > 0:
            lines[_LISTED:-_LISTED] = [f"... {left_out} more arrays ..."]
        return lines

    def require(self, source: str) -> None:
        """Raises a CheckpointError that names `source` and the arrays, if there are any."""
        if self.counts:
            arrays = "1 array holds" if len(self.counts) == 1 else f"{len(self.counts)} arrays hold"
            raise CheckpointError(
                f"{source}: expected finite weights; {arrays} NaN or infinite numbers "
                "(`unix-jax convert` accepts them with --allow-non-finite, functions with "
                "allow_non_finite=True):" + "".join(f"\n  {line}" for line in self.lines())
            )


def is_stacked(path: str) -> bool:
    """Whether the first axis of an array counts layers."""
    return "/layers/" in f"/{path}" or "/blocks/" in f"/{path}"


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, cache-friendly when `source` is the transpose of a C-order matrix."""
    transposed = source.ndim == 2 and source.strides[0] == source.itemsize < source.strides[1]
    if not transposed or source.size < math.prod(_TILE):
        target[...] = source
        return
    if target.dtype == source.dtype:
        # Same bits under a plain integer type: numpy copies those faster than extension types.
        integer = np.dtype(f"u{source.itemsize}")
        target, source = target.view(integer), source.view(integer)
    for row in range(0, source.shape[0], _TILE[0]):
        rows = slice(row, row + _TILE[0])
        to, of = target[rows], source[rows]
        for column in range(0, source.shape[1], _TILE[1]):
            columns = slice(column, column + _TILE[1])
            to[:, columns] = of[:, columns]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to one dictionary of `/`-joined paths."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def place(leaf: Leaf, dtype: Any = None, sharding: Sharding | None = None) -> Array:
    """The leaf as a `jax.Array`; each device's part is read alone, replicas are read once.

    `dtype` None keeps the leaf's own (float64 becomes float32 unless x64 is on). `sharding` None
    puts the whole array on the default device.
    """
    leaf = cast(leaf, _kept_dtype(leaf, dtype))
    if sharding is None:
        return jax.device_put(leaf.read_all())
    boxes: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: Index | None) -> np.ndarray:
        assert index is not None
        spans = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        if spans not in boxes:
            boxes[spans] = leaf.read(tuple(slice(*span) for span in spans))
        return boxes[spans]

    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _kept_dtype(leaf: Leaf, dtype: Any) -> np.dtype:
    return jax.dtypes.canonicalize_dtype(leaf.dtype if dtype is None else dtype)


def place_tree(
    leaves: Mapping[str, Leaf],
    dtype: Any = None,
    shardings: Any = None,
    *,
    source: str = "weights",
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """Places every leaf in turn and returns the nested parameter tree.

    Args:
      leaves: by path.
      dtype: floating-point dtype to cast to; None keeps each leaf's own.
      shardings: None, one `Sharding` for all leaves, or a nested tree of them.
      source: where the leaves come from, for the error.
      allow_non_finite: accept NaN and infinite numbers.

    Raises:
      CheckpointError: weights that are not finite in `dtype`; the arrays are named.
    """
    check = FiniteCheck()
    flat = flatten(shardings) if isinstance(shardings, Mapping) else None
    placed: dict[str, Array] = {}
    for path, leaf in leaves.items():
        watched = check.watch(path, cast(leaf, _kept_dtype(leaf, dtype)))
        placed[path] = place(watched, None, shardings if flat is None else flat.get(path))
        # One transfer at a time: the host buffer of a leaf is free before the next is read.
        placed[path].block_until_ready()
    if not allow_non_finite:
        check.require(source)
    return unflatten(placed)

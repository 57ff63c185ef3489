"""Tensors of a file as leaves of our parameter tree, read through the table on demand."""

import functools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints.formats.tensor_source import TensorInfo, TensorSource
from unix_jax.checkpoints.leaves import Index, Leaf, copy_into
from unix_jax.checkpoints.table import Entry


def infos(tensors: TensorSource) -> dict[str, TensorInfo]:
    """Shape and type of every tensor of a file, in the file's order."""
    keys = tensors.keys()
    return {key: tensors.info(key) for key in keys}


def table_leaves(
    table: tuple[Entry, ...], tensors: TensorSource, dtype: Any = None
) -> dict[str, Leaf]:
    """Our parameters by path, read from the file through the table."""
    return {entry.path: entry_leaf(entry, tensors, dtype) for entry in table}


def stacked_dtype(entry: Entry, tensors: TensorSource) -> np.dtype:
    """The dtype that holds every layer's tensor without loss, or None."""
    kinds = dict.fromkeys(tensors.info(key).dtype for key in entry.keys)
    try:
        return np.dtype(functools.reduce(jnp.promote_types, kinds))
    except (TypeError, ValueError):  # the 8-bit floats have no common type among themselves
        return np.dtype(np.float32)


def entry_leaf(entry: Entry, tensors: TensorSource, dtype: Any = None) -> Leaf:
    """One row of the table as a leaf: layers stacked, axes in our order, cast to `dtype`."""
    kind = stacked_dtype(entry, tensors) if dtype is None else np.dtype(dtype)

    def read_one(key: str, index: Index, target: np.ndarray) -> None:
        copy_into(target, entry.transform.to_ours(tensors.read(key))[index])
        tensors.release(key)

    def read(index: Index) -> np.ndarray:
        spans = [part.indices(n)[:2] for part, n in zip(index, entry.stacked_shape, strict=True)]
        array = np.empty([stop - start for start, stop in spans], kind)
        if entry.layers is None:
            read_one(entry.key, index, array)
        else:
            for position, layer in enumerate(range(*spans[0])):
                read_one(entry.keys[layer], index[1:], array[position])
        return array

    return Leaf(entry.stacked_shape, kind, read, tuple(_name(tensors, key) for key in entry.keys))


def _name(tensors: TensorSource, key: str) -> str:
    """A tensor's key, with its file if that is a shard."""
    file = tensors.file_of(key)
    return key if file == tensors.path else f"{file.name}: {key}"


def raw_leaf(tensors: TensorSource, key: str) -> Leaf:
    """A tensor of the file as it is."""
    info = tensors.info(key)

    def read(index: Index) -> np.ndarray:
        array = np.array(tensors.read(key)[index])
        tensors.release(key)
        return array

    return Leaf(info.shape, info.dtype, read)


def inexact_keys(table: tuple[Entry, ...], tensors: TensorSource) -> Iterator[str]:
    """Keys whose tensor does not survive, bit for bit, the common type of its stack."""
    for entry in table:
        kind = stacked_dtype(entry, tensors)
        for key in entry.keys:
            if tensors.info(key).dtype != kind:
                tensor = tensors.read(key)
                with np.errstate(all="ignore"):
                    back = tensor.astype(kind).astype(tensor.dtype)
                if back.tobytes() != np.ascontiguousarray(tensor).tobytes():
                    yield key
                tensors.release(key)

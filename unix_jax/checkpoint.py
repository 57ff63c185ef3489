"""This project's checkpoint directory: Orbax arrays, the configuration, the tokenizer.

    config.json       UniXConfig.to_dict()
    index.json        shape, dtype and chunk of every array; how the source files were laid out;
                      of the export of a training run, which weights they are (`training`)
    params/           Orbax: the UniX tree, layers stacked on L
    vae/              Orbax: the autoencoder tree (absent when the checkpoint has none)
    extras/           Orbax: tensors of the source that the model does not use, by source key
    source/           the source's own config.json, processor files and vae/config.yaml, verbatim
    tokenizer files   verbatim

Plain Orbax reads the array directories: `ocp.StandardCheckpointer().restore(OUT / "params")`.
Arrays are uncompressed zarr chunks of at most 4 MiB, one layer each at most, so that a device
reads little more than its own part, and so that a file's size tells whether it is whole.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.files import atomic_directory
from unix_jax.fitting import check_leaves, check_unix_counts, check_vae_counts
from unix_jax.json_file import read_json, write_json
from unix_jax.leaves import Leaf, array_leaf, flatten, place_tree
from unix_jax.orbax_tree import Progress, open_leaf, save_tree

FORMAT = "unix-jax-checkpoint-1"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_PARTS = ("params", "vae", "extras")


class ArrayInfo(NamedTuple):
    """Shape and dtype of one array on disk."""

    shape: tuple[int, ...]
    dtype: np.dtype


# --- writing -----------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    config: UniXConfig,
    params: Mapping[str, Any],
    vae_params: Mapping[str, Any] | None = None,
    *,
    extras: Mapping[str, Leaf] | Callable[[], Mapping[str, Leaf]] | None = None,
    layout: Mapping[str, Any] | None = None,
    copies: Iterable[tuple[Path, str]] = (),
    training: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint directory, two leaves in memory at a time; all of it or nothing.

    Args:
      path: a new directory.
      config: the sizes of the model.
      params: the UniX tree, nested or flat by path, of `Leaf`s or arrays.
      vae_params: the autoencoder tree likewise, or None.
      extras: tensors to keep verbatim by source key, or a function that gives them; it is called
        after `params` were written.
      layout: what export needs to rebuild the source files; any JSON.
      copies: (file, name inside the checkpoint) of the files to copy verbatim.
      training: which weights of a training run these are; any JSON.
      progress: called with the number of bytes of each leaf written.

    Raises:
      UniXError: `path` exists already or cannot be written.
    """
    with atomic_directory(path) as directory:
        index: dict[str, Any] = {"format": FORMAT, "layout": layout}
        if training is not None:
            index["training"] = dict(training)
        try:
            index["params"] = save_tree(directory / "params", _leaves(params), progress)
            if vae_params is not None:
                index["vae"] = save_tree(directory / "vae", _leaves(vae_params), progress)
            kept = extras() if callable(extras) else extras
            if kept:
                index["extras"] = save_tree(directory / "extras", kept, progress, nested=False)
            for file, name in copies:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, directory / name)
            write_json(directory / "config.json", config.to_dict())
            write_json(directory / "index.json", index)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written: {error.strerror or error}"
            ) from error


def _leaves(tree: Mapping[str, Any]) -> dict[str, Leaf]:
    flat = flatten(tree)
    return {k: v if isinstance(v, Leaf) else array_leaf(v) for k, v in flat.items()}


# --- reading -----------------------------------------------------------------------------------


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like a directory written by `save`."""
    return (Path(path) / "index.json").is_file() and (Path(path) / "params").is_dir()


def load_config(path: str | os.PathLike[str]) -> UniXConfig:
    """The configuration of a checkpoint directory.

    Raises:
      CheckpointError: not a directory of this kind.
      ConfigError: config.json is broken.
    """
    _require_directory(Path(path))
    file = Path(path) / "config.json"
    values = read_json(file)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return UniXConfig.from_dict(values, str(file))


def load_params(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The UniX parameters as a nested dictionary of `jax.Array`.

    Args:
      path: a checkpoint directory.
      dtype: floating type to cast to on load; None keeps the type on disk.
      shardings: None (the default device), one `jax.sharding.Sharding`, or a nested tree of them;
        a device reads only the chunks that overlap its own part.
      progress: called with the number of bytes of each leaf read.

    Raises:
      CheckpointError: files are missing or truncated, or leaves do not fit config.json; the
        message lists all of them.
    """
    leaves = open_leaves(path, "params")
    _fit(path, "params", leaves)
    return place_tree(leaves, dtype, shardings, progress)


def load_vae_params(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """The autoencoder's parameters, or None if the checkpoint has none; as `load_params`."""
    if not has_vae(path):
        return None
    leaves = open_leaves(path, "vae")
    _fit(path, "vae", leaves)
    return place_tree(leaves, dtype, shardings, progress)


def has_vae(path: str | os.PathLike[str]) -> bool:
    """Whether the checkpoint carries an autoencoder."""
    return "vae" in read_index(path)


def read_index(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked content of index.json.

    Raises:
      CheckpointError: no such directory, or the file is missing or broken.
    """
    directory = Path(path)
    _require_directory(directory)
    file = directory / "index.json"
    index = read_json(file, CheckpointError)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise CheckpointError(f"{file}: format: expected {FORMAT!r}, found {found!r}")
    for part in _PARTS:
        for name, entry in _entries(index, part, file).items():
            sizes = entry.get("shape") if isinstance(entry, dict) else None
            whole = isinstance(sizes, list) and all(isinstance(n, int) and n >= 0 for n in sizes)
            if not whole or not isinstance(entry.get("dtype"), str):
                raise CheckpointError(f"{file}: {part}.{name}: expected shape and dtype")
    if "params" not in index:
        raise CheckpointError(f"{file}: params: missing")
    return index


def _entries(index: Mapping[str, Any], part: str, file: Path) -> dict[str, Any]:
    entries = index.get(part, {})
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: {part}: expected an object")
    # Names become directories: only what `save` itself can have written is accepted.
    for name in entries:
        if not name or name.startswith(".") or "\0" in name or ".." in name:
            raise CheckpointError(f"{file}: {part}: not the name of an array: {name!r}")
    return entries


def tensor_infos(path: str | os.PathLike[str]) -> dict[str, ArrayInfo]:
    """Shape and dtype of every array, keyed `params/...`, `vae/...` and `extras/...`."""
    index = read_index(path)
    return {
        f"{part}/{name}": ArrayInfo(tuple(entry["shape"]), _dtype(entry["dtype"], Path(path)))
        for part in _PARTS
        for name, entry in index.get(part, {}).items()
    }


def open_leaves(path: str | os.PathLike[str], part: str) -> dict[str, Leaf]:
    """The arrays of `part` ("params", "vae" or "extras"), verified to be whole, read on demand.

    Raises:
      CheckpointError: a missing, truncated or disagreeing file, which is named.
    """
    directory = Path(path)
    entries = read_index(directory).get(part, {})
    return {
        name: open_leaf(
            directory / part, name, tuple(entry["shape"]), _dtype(entry["dtype"], directory)
        )
        for name, entry in entries.items()
    }


def _dtype(name: str, path: Path) -> np.dtype:
    try:
        return np.dtype(jax.numpy.dtype(name))
    except TypeError:
        raise CheckpointError(f"{path}/index.json: unknown dtype {name!r}") from None


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint directory, found no such directory")


def _fit(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError unless the leaves are what the model of config.json has."""
    from unix_jax.models import autoencoder, unix

    check_counts(path, part, leaves)
    config = load_config(path)
    try:
        shapes = (
            unix.param_shapes(config) if part == "params" else autoencoder.param_shapes(config.vae)
        )
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}/config.json: no model has these sizes: {error}") from error
    check_leaves(leaves, flatten(shapes), f"{path}/{part}")


def check_counts(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError if config.json states another number of layers than `leaves` has."""
    config = load_config(path)
    if part == "params":
        check_unix_counts(config, leaves, f"{path}/params")
    else:
        check_vae_counts(config.vae, leaves, f"{path}/vae")

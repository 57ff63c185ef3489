"""This project's checkpoint directory: Orbax arrays, the configuration, the tokenizer.

    config.json       UniXConfig.to_dict()
    index.json        shape, dtype, chunk and checksums of every array; size and checksum of every
                      other file (`files`); its own checksum (`crc32`); how the source files were
                      laid out; of a training run's export, which weights they are (`training`)
    params/           Orbax: the UniX tree, layers stacked on L
    vae/              Orbax: the autoencoder tree (absent when the checkpoint has none)
    text_encoder/     Orbax: that of an imported diffusers folder, whose U-Net is in params/ then
    extras/           Orbax: tensors of the source that the model does not use, by source key
    source/           the source's own config.json, processor files and vae/config.yaml, verbatim
    tokenizer files   verbatim

Plain Orbax reads the array directories: `ocp.StandardCheckpointer().restore(OUT / "params")`.
Arrays are uncompressed zarr chunks of at most 4 MiB, one layer each at most, so that a device reads
little more than its own part, and a file's size shows whether it is complete. The CRC-32 of each
file of each array is in index.json and is verified as the file is read; so is that of each other
file, see `unix_jax.storage.recorded_files`.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unix_jax.checkpoints import tokenizer_files
from unix_jax.checkpoints.configurations import is_diffusers_checkpoint
from unix_jax.checkpoints.fitting import check_leaves, check_unix_counts, check_vae_counts
from unix_jax.checkpoints.index import (
    FORMAT,
    PARTS,
    has_checksums,
    has_vae,
    is_checkpoint,
    load_config,
    read_config,
    read_index,
    write_index,
)
from unix_jax.checkpoints.leaves import FiniteCheck, Index, Leaf, array_leaf, flatten, place_tree
from unix_jax.checkpoints.table import unix_table, vae_table
from unix_jax.checkpoints.zarr_arrays import Progress, open_leaf
from unix_jax.config import TransformerStream, UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.storage import recorded_files
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.files import atomic_directory, atomic_write
from unix_jax.storage.json_file import read_json, sealed, write_json
from unix_jax.storage.recorded_files import TOKENIZER_FILES

__all__ = [
    "FORMAT",
    "PARTS",
    "ArrayInfo",
    "accept_files",
    "array_names",
    "carried_files",
    "check_counts",
    "has_checksums",
    "has_vae",
    "is_checkpoint",
    "load_config",
    "load_params",
    "load_vae_params",
    "open_array",
    "open_leaves",
    "read_index",
    "save",
    "stacked_leaves",
    "tensor_infos",
]


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
    allow_non_finite: bool = False,
    training: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint directory atomically, two leaves in memory at a time.

    Args:
      path: a new directory.
      config: the sizes of the model.
      params: the UniX tree, nested or flat by path, of `Leaf`s or arrays; with stacked layers, or
        as a pipeline with unrolled layers holds it (`unroll_params`), which is stacked again.
      vae_params: the autoencoder tree likewise, or None.
      extras: tensors to keep verbatim by source key, or a function that returns them; it is called
        after `params` were written.
      layout: what export needs to rebuild the source files; any JSON.
      copies: (file, name inside the checkpoint) of the files to copy verbatim.
      allow_non_finite: write weights that are NaN or infinite.
      training: description of the weights of a training run; any JSON.
      sources: where `params` and `vae` come from, for the error about weights that are not finite;
        by default `path`.
      progress: called with the number of bytes of each leaf written.

    Raises:
      UniXError: `path` exists already or cannot be written; the trees are not those of `config`,
        with one list of what is missing, unexpected or of another shape; weights are not finite.
    """
    # Orbax takes half a second to import, and writing alone needs it.
    from unix_jax.checkpoints.orbax_tree import save_tree

    path = any_path(path)
    found = stacked_leaves(_leaves(params), config)
    _fit_config(config, "params", found, "params to save")
    found_vae = None if vae_params is None else _leaves(vae_params)
    if found_vae is not None:
        _fit_config(config, "vae", found_vae, "vae_params to save")
    check, vae_check = FiniteCheck(), FiniteCheck()
    with atomic_directory(path) as directory:
        index: dict[str, Any] = {"format": FORMAT, "layout": layout}
        if training is not None:
            index["training"] = dict(training)
        try:
            index["params"] = save_tree(directory / "params", check.watch_all(found), progress)
            if found_vae is not None:
                index["vae"] = save_tree(
                    directory / "vae", vae_check.watch_all(found_vae), progress
                )
            if not allow_non_finite:
                said = {part: f"{path}: {part}" for part in PARTS} | dict(sources or {})
                check.require(said["params"])
                vae_check.require(said["vae"])
            kept = extras() if callable(extras) else extras
            if kept:
                index["extras"] = save_tree(directory / "extras", kept, progress, nested=False)
            for file, name in copies:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, directory / name)
            write_json(directory / "config.json", config.to_dict())
            if training is not None:
                # What an import came with goes back as it came; a training makes a new model.
                tokenizer_files.complete(directory, config)
            write_index(directory, index)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written: {error.strerror or error}"
            ) from error


def _leaves(tree: Mapping[str, Any]) -> dict[str, Leaf]:
    flat = flatten(tree)
    return {k: v if isinstance(v, Leaf) else array_leaf(v) for k, v in flat.items()}


def stacked_leaves(leaves: Mapping[str, Leaf], config: UniXConfig) -> dict[str, Leaf]:
    """Stacked leaves from those of `unix_jax.models.unix.unroll_params`; others stay as they are.

    Layer by layer, when they are read: no array is copied here.
    """
    first = "decoder/layers_0/"
    names = [path.removeprefix(first) for path in leaves if path.startswith(first)]
    layers = range(config.decoder.num_layers)
    taken = {f"decoder/layers_{i}/{name}" for i in layers for name in names}
    if not names or not taken <= leaves.keys():
        return dict(leaves)
    stacked = {path: leaf for path, leaf in leaves.items() if path not in taken}
    for name in names:
        parts = [leaves[f"decoder/layers_{i}/{name}"] for i in layers]
        stacked[f"decoder/layers/{name}"] = _stack(
            [_transposed(part) for part in parts] if name.endswith("kernel") else parts
        )
    if "lm_head/kernel" in stacked:
        stacked["lm_head/kernel"] = _transposed(stacked["lm_head/kernel"])
    return stacked


def _transposed(leaf: Leaf) -> Leaf:
    return Leaf(leaf.shape[::-1], leaf.dtype, lambda index: leaf.read(index[::-1]).T)


def _stack(parts: Sequence[Leaf]) -> Leaf:
    def read(index: Index) -> np.ndarray:
        return np.stack([part.read(index[1:]) for part in parts[index[0]]])

    return Leaf((len(parts), *parts[0].shape), parts[0].dtype, read)


def carried_files(path: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """(file, name in a checkpoint) of the files other than weights that a copy or a training keeps.

    Tokenizer files and `source/` of a checkpoint directory, or of any directory laid out like it;
    a file is taken for tokenizer.json.

    Raises:
      CheckpointError: a file that index.json lists is missing or changed.
    """
    directory = Path(path)
    if directory.is_file():
        return [(directory, "tokenizer.json")]
    entries = recorded_files.read_listed(directory)
    listed = [name for name in entries if name != recorded_files.CONFIG]
    recorded_files.require(directory, entries, listed)
    names = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    names += recorded_files.source_names(directory)
    return [(directory / name, name) for name in names]


def accept_files(path: str | os.PathLike[str]) -> list[str]:
    """Records config.json, the tokenizer files and those in `source/` as they are now.

    Returns:
      One line for each file that was changed, added or removed since index.json was written.

    Raises:
      CheckpointError: not a checkpoint, or index.json cannot be written.
      ConfigError: config.json or another JSON file is broken.
    """
    directory = Path(path)
    index = read_index(directory)
    before = recorded_files.listed(index, directory / "index.json")
    if not is_diffusers_checkpoint(directory):
        read_config(directory)
    now = recorded_files.record(directory)
    for name in now:
        if name.endswith(".json"):
            read_json(directory / name)
    lines = [
        f"{directory / name}: recorded as {'changed' if name in before else 'added'}"
        for name, entry in now.items()
        if entry != before.get(name)
    ]
    lines += [f"{directory / name}: recorded as removed" for name in before if name not in now]
    try:
        with atomic_write(directory / "index.json") as file:
            write_json(file, sealed(index | {recorded_files.FIELD: now}))
    except OSError as error:
        raise CheckpointError(
            f"{directory / 'index.json'}: cannot be written: {error.strerror or error}"
        ) from error
    return lines


# --- reading -----------------------------------------------------------------------------------


def load_params(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    allow_non_finite: bool = False,
) -> dict[str, Any]:
    """The UniX parameters as a nested dictionary of `jax.Array`.

    Args:
      path: a checkpoint directory.
      dtype: floating-point dtype to cast to on load; None keeps the type on disk.
      shardings: None (the default device), one `jax.sharding.Sharding`, or a nested tree of them;
        a device reads only the chunks that overlap its own part.
      allow_non_finite: accept weights that are NaN or infinite.

    Raises:
      CheckpointError: files are missing, truncated or changed; leaves do not fit config.json, and
        the message lists all of them; weights are not finite.
    """
    return _load(path, "params", dtype, shardings, allow_non_finite)


def load_vae_params(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    allow_non_finite: bool = False,
) -> dict[str, Any] | None:
    """The autoencoder's parameters, or None if the checkpoint has none; as `load_params`."""
    if not has_vae(path):
        return None
    return _load(path, "vae", dtype, shardings, allow_non_finite)


def _load(
    path: str | os.PathLike[str],
    part: str,
    dtype: Any,
    shardings: Any,
    allow_non_finite: bool,
) -> dict[str, Any]:
    leaves = open_leaves(path, part)
    _fit(path, part, leaves)
    return place_tree(
        leaves,
        dtype,
        shardings,
        source=f"{path}/{part}",
        allow_non_finite=allow_non_finite,
    )


def tensor_infos(path: str | os.PathLike[str]) -> dict[str, ArrayInfo]:
    """Shape and dtype of every array, keyed `params/...`, `vae/...` and `extras/...`."""
    index = read_index(path)
    return {
        f"{part}/{name}": ArrayInfo(tuple(entry["shape"]), _dtype(entry["dtype"], Path(path)))
        for part in PARTS
        for name, entry in index.get(part, {}).items()
    }


def open_leaves(path: str | os.PathLike[str], part: str) -> dict[str, Leaf]:
    """The arrays of `part`, one of `PARTS`, verified to be complete, read on demand.

    Raises:
      CheckpointError: a missing, truncated or disagreeing file, which is named. Reading a leaf
        raises it for a file whose content changed since it was written.
    """
    entries = read_index(path).get(part, {})
    return {name: _open(Path(path), part, name, entry) for name, entry in entries.items()}


def array_names(path: str | os.PathLike[str], part: str) -> list[str]:
    """The arrays of `part`, by path; none if the checkpoint lacks the part."""
    return list(read_index(path).get(part, {}))


def open_array(path: str | os.PathLike[str], part: str, name: str) -> Leaf:
    """One array, as `open_leaves`: damage of the others does not matter.

    Raises:
      CheckpointError: as `open_leaves`.
      KeyError: no such array.
    """
    return _open(Path(path), part, name, read_index(path)[part][name])


def _open(directory: Path, part: str, name: str, entry: Mapping[str, Any]) -> Leaf:
    return open_leaf(
        directory / part,
        name,
        tuple(entry["shape"]),
        _dtype(entry["dtype"], directory),
        entry.get("crc32"),
    )


def _dtype(name: str, path: Path) -> np.dtype:
    try:
        return np.dtype(jax.numpy.dtype(name))
    except TypeError:
        raise CheckpointError(f"{path}/index.json: unknown dtype {name!r}") from None


def _fit(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError unless the leaves are what the model of config.json has."""
    check_counts(path, part, leaves)
    try:
        _fit_config(load_config(path), part, leaves, f"{path}/{part}")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}/config.json: no model has these sizes: {error}") from error


def _fit_config(config: UniXConfig, part: str, leaves: Mapping[str, Leaf], source: str) -> None:
    check_leaves(leaves, _shapes(config, part), source)


def _shapes(config: UniXConfig, part: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the model, by path."""
    if part != "vae" and not isinstance(config.generation, TransformerStream):
        from unix_jax.models import unix

        return flatten(unix.param_shapes(config))
    # The table has the shapes of the model, and tracing it takes a fifth of a command's start.
    table = vae_table(config.vae) if part == "vae" else unix_table(config)
    return {entry.path: jax.ShapeDtypeStruct(entry.stacked_shape, np.float32) for entry in table}


def check_counts(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError if config.json states another number of layers than `leaves` has."""
    config = load_config(path)
    if part == "params":
        check_unix_counts(config, leaves, f"{path}/params")
    else:
        check_vae_counts(config.vae, leaves, f"{path}/vae")

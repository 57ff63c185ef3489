"""This project's checkpoint directory: Orbax arrays, the configuration, the tokenizer.

    config.json       UniXConfig.to_dict()
    index.json        shape, dtype, chunk and checksums of every array; size and checksum of every
                      other file (`files`); how the source files were laid out; of a training run's
                      export, which weights they are (`training`)
    params/           Orbax: the UniX tree, layers stacked on L
    vae/              Orbax: the autoencoder tree (absent when the checkpoint has none)
    text_encoder/     Orbax: that of an imported diffusers folder, whose U-Net is in params/ then
    extras/           Orbax: tensors of the source that the model does not use, by source key
    source/           the source's own config.json, processor files and vae/config.yaml, verbatim
    tokenizer files   verbatim

Plain Orbax reads the array directories: `ocp.StandardCheckpointer().restore(OUT / "params")`.
Arrays are uncompressed zarr chunks of at most 4 MiB, one layer each at most, so that a device
reads little more than its own part, and so that a file's size tells whether it is whole. The
CRC-32 of each file of each array is in index.json and is verified as the file is read; so is that
of each other file, see `unix_jax.storage.recorded_files`.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unix_jax.checkpoints import tokenizer_files
from unix_jax.checkpoints.fitting import check_leaves, check_unix_counts, check_vae_counts
from unix_jax.checkpoints.leaves import FiniteCheck, Index, Leaf, array_leaf, flatten, place_tree
from unix_jax.checkpoints.orbax_tree import Progress, open_leaf, save_tree
from unix_jax.config import FORMAT as CONFIG_FORMAT
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.storage import recorded_files
from unix_jax.storage.files import atomic_directory, atomic_write
from unix_jax.storage.json_file import read_json, write_json
from unix_jax.storage.paths import local_path
from unix_jax.storage.recorded_files import TOKENIZER_FILES

FORMAT = "unix-jax-checkpoint-1"
PARTS = ("params", "vae", "text_encoder", "extras")


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
        as a pipeline on a CPU or a GPU holds it (`unroll_params`), which is stacked again.
      vae_params: the autoencoder tree likewise, or None.
      extras: tensors to keep verbatim by source key, or a function that gives them; it is called
        after `params` were written.
      layout: what export needs to rebuild the source files; any JSON.
      copies: (file, name inside the checkpoint) of the files to copy verbatim.
      allow_non_finite: write weights that are NaN or infinite.
      training: which weights of a training run these are; any JSON.
      sources: where `params` and `vae` come from, for the error about weights that are not finite;
        by default `path`.
      progress: called with the number of bytes of each leaf written.

    Raises:
      UniXError: `path` exists already or cannot be written; the trees are not those of `config`,
        with one list of what is missing, unexpected or of another shape; weights are not finite.
    """
    path = local_path(path)
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
            index[recorded_files.FIELD] = recorded_files.record(directory)
            write_json(directory / "index.json", index)
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
    """(file, name in a checkpoint) of what a copy or a training carries on beside the weights.

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
    _read_config(directory)
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
            write_json(file, index | {recorded_files.FIELD: now})
    except OSError as error:
        raise CheckpointError(
            f"{directory / 'index.json'}: cannot be written: {error.strerror or error}"
        ) from error
    return lines


# --- reading -----------------------------------------------------------------------------------


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` looks like a directory written by `save`, also if a part of it is missing."""
    directory = Path(path)
    found = [(directory / "index.json").is_file(), (directory / "params").is_dir()]
    return all(found) or (any(found) and _has_own_config(directory))


def _has_own_config(directory: Path) -> bool:
    try:
        values = read_json(directory / "config.json")
    except ConfigError:
        return False
    return isinstance(values, dict) and values.get("format") == CONFIG_FORMAT


def load_config(path: str | os.PathLike[str]) -> UniXConfig:
    """The configuration of a checkpoint directory.

    Raises:
      CheckpointError: not a directory of this kind, or config.json changed since it was written.
      ConfigError: config.json is broken.
    """
    _require_directory(Path(path))
    recorded_files.verified(path, recorded_files.CONFIG)
    return _read_config(path)


def _read_config(path: str | os.PathLike[str]) -> UniXConfig:
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
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The UniX parameters as a nested dictionary of `jax.Array`.

    Args:
      path: a checkpoint directory.
      dtype: floating type to cast to on load; None keeps the type on disk.
      shardings: None (the default device), one `jax.sharding.Sharding`, or a nested tree of them;
        a device reads only the chunks that overlap its own part.
      allow_non_finite: accept weights that are NaN or infinite.
      progress: called with the number of bytes of each leaf read.

    Raises:
      CheckpointError: files are missing, truncated or changed; leaves do not fit config.json, and
        the message lists all of them; weights are not finite.
    """
    return _load(path, "params", dtype, shardings, allow_non_finite, progress)


def load_vae_params(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    shardings: Any = None,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """The autoencoder's parameters, or None if the checkpoint has none; as `load_params`."""
    if not has_vae(path):
        return None
    return _load(path, "vae", dtype, shardings, allow_non_finite, progress)


def _load(
    path: str | os.PathLike[str],
    part: str,
    dtype: Any,
    shardings: Any,
    allow_non_finite: bool,
    progress: Progress | None,
) -> dict[str, Any]:
    leaves = open_leaves(path, part)
    _fit(path, part, leaves)
    return place_tree(
        leaves,
        dtype,
        shardings,
        progress,
        source=f"{path}/{part}",
        allow_non_finite=allow_non_finite,
    )


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
    if not file.is_file():
        raise CheckpointError(
            f"{file}: expected this file, which lists the arrays of a checkpoint, found none"
        )
    index = read_json(file, CheckpointError)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise CheckpointError(f"{file}: format: expected {FORMAT!r}, found {found!r}")
    entries = [(part, _entries(index, part, file)) for part in PARTS]
    # Checkpoints of earlier versions have no checksums at all; one entry without is damage.
    summed = any(isinstance(e, dict) and "crc32" in e for _, part in entries for e in part.values())
    for part, listed in entries:
        for name, entry in listed.items():
            sizes = entry.get("shape") if isinstance(entry, dict) else None
            whole = isinstance(sizes, list) and all(isinstance(n, int) and n >= 0 for n in sizes)
            if not whole or not isinstance(entry.get("dtype"), str):
                raise CheckpointError(f"{file}: {part}.{name}: expected shape and dtype")
            sums = entry.get("crc32", {})
            if (summed and "crc32" not in entry) or not _are_checksums(sums):
                raise CheckpointError(f"{file}: {part}.{name}: crc32: expected file: number")
    if "params" not in index:
        raise CheckpointError(f"{file}: params: missing")
    recorded_files.listed(index, file)
    return index


def _are_checksums(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(crc, int) and not isinstance(crc, bool) for crc in value.values()
    )


def has_checksums(path: str | os.PathLike[str]) -> bool:
    """Whether index.json has the checksums of the arrays, as all except old checkpoints do."""
    index = read_index(path)
    return any("crc32" in entry for part in PARTS for entry in index.get(part, {}).values())


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
        for part in PARTS
        for name, entry in index.get(part, {}).items()
    }


def open_leaves(path: str | os.PathLike[str], part: str) -> dict[str, Leaf]:
    """The arrays of `part`, one of `PARTS`, verified to be whole, read on demand.

    Raises:
      CheckpointError: a missing, truncated or disagreeing file, which is named. Reading a leaf
        raises it for a file whose content changed since it was written.
    """
    entries = read_index(path).get(part, {})
    return {name: _open(Path(path), part, name, entry) for name, entry in entries.items()}


def array_names(path: str | os.PathLike[str], part: str) -> list[str]:
    """The arrays of `part`, by path; none where the checkpoint lacks the part."""
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


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint directory, found no such directory")


def _fit(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError unless the leaves are what the model of config.json has."""
    check_counts(path, part, leaves)
    try:
        _fit_config(load_config(path), part, leaves, f"{path}/{part}")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path}/config.json: no model has these sizes: {error}") from error


def _fit_config(config: UniXConfig, part: str, leaves: Mapping[str, Leaf], source: str) -> None:
    from unix_jax.models import autoencoder, unix

    shapes = unix.param_shapes(config) if part == "params" else autoencoder.param_shapes(config.vae)
    check_leaves(leaves, flatten(shapes), source)


def check_counts(path: str | os.PathLike[str], part: str, leaves: Mapping[str, Leaf]) -> None:
    """Raises a CheckpointError if config.json states another number of layers than `leaves` has."""
    config = load_config(path)
    if part == "params":
        check_unix_counts(config, leaves, f"{path}/params")
    else:
        check_vae_counts(config.vae, leaves, f"{path}/vae")

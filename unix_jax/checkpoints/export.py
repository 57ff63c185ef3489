"""Writes a checkpoint back in the published layout, one tensor in memory at a time.

An imported checkpoint is exported to the files it came from: same names, same keys in the same
order, same dtypes. A checkpoint that was trained here is exported to `model.safetensors` and
`vae/kl-f16d16.ckpt`; `unix_jax.checkpoints.loader_files` writes the other files.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints import native
from unix_jax.checkpoints.fitting import check_leaves
from unix_jax.checkpoints.formats.tensor_source import TensorInfo
from unix_jax.checkpoints.formats.writers import Entry as Written
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.leaves import FiniteCheck, Leaf, array_leaf, copy_into
from unix_jax.checkpoints.loader_files import write_loader_files
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.checkpoints.table import Entry, unix_table, vae_table
from unix_jax.errors import CheckpointError
from unix_jax.models.embeddings import sincos_table_2d
from unix_jax.storage.files import atomic_directory
from unix_jax.storage.json_file import read_json, write_json

# Called with (bytes done since the last call, bytes in all).
Progress = Callable[[int, int], None]

_VIT_TABLE = "vit_pos_embed.pos_embed"


def export_published(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint as a directory in the published layout.

    Args:
      path: a checkpoint directory of this project, or that of a training run.
      out: a new directory.
      allow_non_finite: write weights that are NaN or infinite.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: the checkpoint is broken, its weights are not finite, or `out` exists or cannot
        be written.
    """
    directory = resolve_checkpoint(path)
    index = native.read_index(directory)
    config = native.load_config(directory)
    check = FiniteCheck()
    tensors = _file_tensors(directory, "params", unix_table, config, check)
    if native.has_vae(directory):
        vae_tensors = _file_tensors(directory, "vae", vae_table, config.vae, check)
    else:
        vae_tensors = {}
    layout = index.get("layout")
    extras = native.open_leaves(directory, "extras")
    if layout is None:
        if _VIT_TABLE not in extras:
            # The original builds this unused table too, and asks for it when it loads strictly.
            side, width = config.vit_max_num_patch_per_side, config.decoder.hidden_size
            extras = extras | {_VIT_TABLE: array_leaf(sincos_table_2d(width, side))}
        layout = _default_layout(tensors | _extra_tensors(extras), vae_tensors)
    available = {**tensors, **vae_tensors, **_extra_tensors(extras)}
    files = check_layout(layout, available, directory)
    total = sum(info.nbytes for _, written in files for _, info, _ in written)
    step = None if progress is None else lambda done: progress(done, total)
    with atomic_directory(out) as target:
        try:
            write_loader_files(
                directory,
                target,
                config,
                with_vae=bool(vae_tensors),
                same_weights=index.get("layout") is not None,
            )
            with concurrent.futures.ThreadPoolExecutor(1) as reader:
                for file, written in files:
                    write_file(target, file, ahead(written, step, reader))
            if not allow_non_finite:
                check.require(str(directory))
            if not layout["kept"]:
                _correct_total_size(directory / "source", target, files)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


class FileTensor:
    """A tensor as the file has it: our leaf (or one layer of it), transformed back."""

    def __init__(self, leaf: Leaf, entry: Entry | None = None, layer: int | None = None):
        self._leaf, self._entry, self._layer = leaf, entry, layer
        self.shape = leaf.shape if entry is None else entry.file_shape
        self.dtype = leaf.dtype

    def make(self, kind: np.dtype) -> np.ndarray:
        if self._entry is None:
            return self._leaf.read_all().astype(kind, copy=False)
        index = tuple(slice(0, size) for size in self._leaf.shape)
        if self._layer is None:
            array = self._leaf.read(index)
        else:
            array = self._leaf.read((slice(self._layer, self._layer + 1), *index[1:]))[0]
        tensor = np.empty(self.shape, kind)
        with np.errstate(over="ignore"):
            copy_into(tensor, self._entry.transform.to_file(array))
        return tensor


def _file_tensors(
    directory: Path,
    part: str,
    table: Callable[[Any], tuple[Entry, ...]],
    config: Any,
    check: FiniteCheck,
) -> dict[str, FileTensor]:
    leaves = native.open_leaves(directory, part)
    native.check_counts(directory, part, leaves)
    entries = table(config)
    check_leaves(
        leaves,
        {entry.path: TensorInfo(entry.stacked_shape, np.dtype(np.int8)) for entry in entries},
        f"{directory / part}",
    )
    leaves = {path: check.watch(f"{part}/{path}", leaf) for path, leaf in leaves.items()}
    return {
        key: FileTensor(leaves[entry.path], entry, layer if entry.layers is not None else None)
        for entry in entries
        for layer, key in enumerate(entry.keys)
    }


def _extra_tensors(extras: Mapping[str, Leaf]) -> dict[str, FileTensor]:
    return {key: FileTensor(leaf) for key, leaf in extras.items()}


def _default_layout(
    tensors: Mapping[str, FileTensor], vae_tensors: Mapping[str, FileTensor]
) -> dict[str, Any]:
    def file(name: str, kind: str, under: str | None, items: Mapping[str, FileTensor]) -> Any:
        return {
            "name": name,
            "format": kind,
            "under": under,
            "metadata": {"format": "pt"},
            "tensors": {key: items[key].dtype.name for key in sorted(items)},
        }

    files = [file("model.safetensors", "safetensors", None, tensors)]
    if vae_tensors:
        files.append(file("vae/kl-f16d16.ckpt", "torch", "state_dict", vae_tensors))
    return {"kept": True, "files": files}


def check_layout(
    layout: Any, available: Mapping[str, FileTensor], directory: Path
) -> list[tuple[dict[str, Any], list[Written]]]:
    """The files to write; index.json comes from a disk, so nothing in it is trusted."""
    where = directory / "index.json"

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise CheckpointError(f"{where}: layout: {what}")

    need(isinstance(layout, dict) and isinstance(layout.get("files"), list), "expected files")
    need(isinstance(layout.get("kept"), bool), "expected kept: true or false")
    result = []
    for file in layout["files"]:
        need(isinstance(file, dict), "expected an object for each file")
        name, tensors, under = file.get("name"), file.get("tensors"), file.get("under")
        need(isinstance(name, str) and _is_plain(name), f"not a file name: {name!r}")
        need(file.get("format") in ("safetensors", "torch"), f"{name}: unknown format")
        need(under is None or isinstance(under, str), f"{name}: under: expected a name")
        need(isinstance(file.get("metadata"), dict), f"{name}: expected metadata")
        need(isinstance(tensors, dict), f"{name}: expected tensors")
        missing = [key for key in tensors if key not in available]
        need(not missing, f"{name}: not in this checkpoint: {', '.join(missing)}")
        written: list[Written] = []
        for key, kind in tensors.items():
            need(isinstance(kind, str), f"{name}: {key}: expected the name of a type")
            dtype = _dtype(kind, f"{where}: layout: {name}: {key}")
            written.append(
                (key, TensorInfo(available[key].shape, dtype), _make(available[key], dtype))
            )
        result.append((file, written))
    return result


def _make(tensor: FileTensor, dtype: np.dtype) -> Callable[[], np.ndarray]:
    return lambda: tensor.make(dtype)


def _dtype(name: str, where: str) -> np.dtype:
    try:
        return np.dtype(jnp.dtype(name))
    except TypeError:
        raise CheckpointError(f"{where}: unknown type {name!r}") from None


def _is_plain(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    known = folder in ("", "vae", "unet", "text_encoder")
    return known and bool(file) and not file.startswith(".") and not set(file) & set("\\:\0")


def ahead(
    written: list[Written],
    step: Callable[[int], None] | None,
    reader: concurrent.futures.Executor,
) -> list[Written]:
    """The same tensors, each made in `reader` while the one before it is written."""
    pending: dict[int, concurrent.futures.Future[np.ndarray]] = {}

    def make(number: int) -> np.ndarray:
        array = (pending.pop(number, None) or reader.submit(written[number][2])).result()
        if number + 1 < len(written):
            pending[number + 1] = reader.submit(written[number + 1][2])
        if step:
            step(array.nbytes)
        return array

    return [
        (key, info, functools.partial(make, number))
        for number, (key, info, _) in enumerate(written)
    ]


def write_file(target: Path, file: Mapping[str, Any], written: list[Written]) -> None:
    path = target / file["name"]
    if file["format"] == "safetensors":
        write_safetensors(path, written, file["metadata"], keep_order=True)
    else:
        write_torch_zip(path, written, under=file["under"])


def _correct_total_size(
    origin: Path, target: Path, files: list[tuple[dict[str, Any], list[Written]]]
) -> None:
    """An index of shards states the bytes of all tensors, which another dtype changes."""
    size = sum(
        info.nbytes for file, written in files if "/" not in file["name"] for _, info, _ in written
    )
    for path in target.glob("*.index.json"):
        index = read_json(origin / path.name)
        metadata = index.get("metadata", {}) if isinstance(index, dict) else None
        if not isinstance(metadata, dict):
            raise CheckpointError(
                f"{origin / path.name}: expected an object whose `metadata` is an object"
            )
        write_json(path, {**index, "metadata": metadata | {"total_size": size}})

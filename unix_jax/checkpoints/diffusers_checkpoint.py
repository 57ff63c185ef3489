"""Diffusers folders as checkpoints of this project, and back.

index.json config.json    as of every checkpoint (`unix_jax.checkpoints.native`)
params/ vae/ text_encoder/ extras/
                          Orbax: the U-Net, the autoencoder, the text encoder; tensors not used
source/                   everything of the folder but its weights, verbatim
"""

import concurrent.futures
import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints import native
from unix_jax.checkpoints.configurations import is_diffusers_checkpoint
from unix_jax.checkpoints.diffusers import DiffusersFolder, OpenPart
from unix_jax.checkpoints.diffusers_sizes import INDEX, PARTS, ImportedSizes, is_unused
from unix_jax.checkpoints.export import FileTensor, ahead, check_layout, write_file
from unix_jax.checkpoints.file_leaves import inexact_keys, raw_leaf, table_leaves
from unix_jax.checkpoints.fitting import check_leaves
from unix_jax.checkpoints.formats.tensor_source import note
from unix_jax.checkpoints.formats.weight_files import INDEX_SUFFIX, WEIGHT_SUFFIXES
from unix_jax.checkpoints.formats.writers import Entry as Written
from unix_jax.checkpoints.hub_files import checkpoint_files
from unix_jax.checkpoints.index import write_index
from unix_jax.checkpoints.leaves import FiniteCheck, Leaf, flatten, place_tree
from unix_jax.checkpoints.published import file_layout, parse_dtype
from unix_jax.checkpoints.published import write_index as write_shard_index
from unix_jax.checkpoints.source_files import MAX_COPIED_BYTES, refuse_links_out
from unix_jax.errors import CheckpointError, shortened
from unix_jax.models import autoencoder, bert, clip, unet
from unix_jax.models.encoder_config import ClipTextConfig
from unix_jax.models.unet_config import JointAttention
from unix_jax.storage.files import atomic_directory
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json, write_json

FORMAT = "unix-jax-diffusers-1"
# Called with (bytes done since the last call, bytes in all).
Progress = Callable[[int, int], None]
_FOLDERS = ("", "unet", "vae", "text_encoder", "tokenizer", "scheduler", "feature_extractor")
_WANTED = re.compile(r".*\.(json|txt)|(README|LICENSE|LICENCE|NOTICE)([._-].*)?", re.IGNORECASE)


class DiffusersCheckpoint(ImportedSizes, DiffusersFolder):
    """An imported folder: the configurations of `source/`, the weights of the Orbax directories."""

    def _load(self, part: str) -> dict[str, Any]:
        leaves = native.open_leaves(self.directory, PARTS[part])
        where = f"{self.directory / PARTS[part]}"
        check_leaves(leaves, self.shapes(part), where)
        return place_tree(leaves, jnp.float32, source=where)

    def shapes(self, part: str) -> dict[str, Any]:
        """The parameters that a part has, by path."""
        if part == "unet":
            return flatten(nn.unbox(unet.param_shapes(self.unet_config[0])))
        if part == "vae":
            return flatten(autoencoder.param_shapes(self.vae_config))
        config = self.text_config
        if isinstance(config, ClipTextConfig):
            return flatten(nn.unbox(clip.param_shapes(config)))
        return flatten(nn.unbox(bert.param_shapes(config))["bert"])


def open_diffusers(
    path: str | os.PathLike[str], joint: JointAttention | None = None
) -> DiffusersFolder:
    """A diffusers folder, as published or imported; arguments and errors as `DiffusersFolder`."""
    kind = DiffusersCheckpoint if is_diffusers_checkpoint(path) else DiffusersFolder
    return kind(path, joint)


def import_diffusers(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "keep",
    *,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Converts a folder of `StableDiffusionPipeline` to this project's checkpoint.

    Args:
      source: the folder, with `model_index.json`; or a name on the hub.
      out: a new directory.
      dtype: `keep`, with which `export_diffusers` returns every bit, or the floating-point dtype of
        the U-Net and the text encoder. The autoencoder and the unused tensors keep their types.
      allow_non_finite: write weights that are NaN or infinite.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: a part is missing, broken, not supported or does not fit another, `out` exists, or
        weights are not finite.
    """
    # Orbax takes half a second to import, and writing alone needs it.
    from unix_jax.checkpoints.orbax_tree import save_tree

    kind, directory = parse_dtype(dtype), located(source, checkpoint_files)
    folder = DiffusersFolder(directory)
    if not (directory / INDEX).is_file():
        raise CheckpointError(f"{directory / INDEX}: no such file; expected a diffusers folder")
    folder.check()
    with contextlib.ExitStack() as stack:
        parts = {name: stack.enter_context(folder.open_part(name)) for name in PARTS}
        kept = _verbatim(directory)
        weights = [
            file.parent / name
            for part in parts.values()
            for file in part.weights.paths
            for name in {file.name, *(name for name, _ in part.tensors.files())}
        ]
        refuse_links_out(directory, [*kept.values(), *weights])
        target = stack.enter_context(atomic_directory(out))
        check = FiniteCheck()
        index: dict[str, Any] = {"format": native.FORMAT}
        leaves: dict[str, dict[str, Leaf]] = {}
        extras: dict[str, Leaf] = {}
        files: list[dict[str, Any]] = []
        for name, part in parts.items():
            cast = None if name == "vae" else kind
            leaves[PARTS[name]] = table_leaves(part.table, part.tensors, cast)
            extras |= {
                f"{name}.{key}": raw_leaf(part.tensors, key) for key in _kept(name, part, cast)
            }
            files += _layout(name, part, cast)
        groups = [*leaves.values(), extras]
        total = sum(leaf.nbytes for group in groups for leaf in group.values())
        step = None if progress is None else lambda done: progress(done, total)
        try:
            for stored, group in leaves.items():
                index[stored] = save_tree(target / stored, check.watch_all(group), step)
            if not allow_non_finite:
                check.require(str(directory))
            if extras:
                index["extras"] = save_tree(target / "extras", extras, step, nested=False)
            for name, file in kept.items():
                (target / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / "source" / name)
            for name, part in parts.items():
                if part.weights.is_index:
                    copy = target / "source" / name / part.weights.name
                    write_shard_index(copy, part.weights.paths[0], part.tensors)
            index["layout"] = {"kept": kind is None, "files": files}
            write_json(target / "config.json", {"format": FORMAT})
            write_index(target, index)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


def _kept(name: str, part: OpenPart, cast: np.dtype | None) -> list[str]:
    """Keys of tensors that are kept unchanged: not used, or not exact in a stack's dtype."""
    inexact = [] if cast is not None else list(inexact_keys(part.table, part.tensors))
    return [key for key in part.tensors if is_unused(name)(key)] + inexact


def _layout(name: str, part: OpenPart, cast: np.dtype | None) -> list[dict[str, Any]]:
    used = {key for entry in part.table for key in entry.keys}
    return [
        file_layout(part.tensors, f"{name}/{file}", keys, lambda key: cast if key in used else None)
        for file, keys in part.tensors.files()
    ]


def _verbatim(directory: Path) -> dict[str, Path]:
    """Name in the folder -> file, for all files except weights; a note names the skipped ones."""
    kept: dict[str, Path] = {}
    left: list[str] = []
    for folder in _FOLDERS:
        place = directory / folder
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(INDEX_SUFFIX)
            if path.name.startswith(".") or (path.is_dir() and path.name in _FOLDERS) or weights:
                continue
            small = path.is_file() and path.stat().st_size <= MAX_COPIED_BYTES
            if small and _WANTED.fullmatch(path.name):
                kept[f"{folder}/{path.name}" if folder else path.name] = path
            else:
                left.append(str(path.relative_to(directory)))
    if left:
        note(f"{directory}: not copied: {', '.join(shortened(left))}")
    return kept


def export_diffusers(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes the diffusers folder that a checkpoint was imported from.

    The files of weights have the same names, keys in the same order and types; everything else is
    copied, except that parts which were not imported are null in `model_index.json`.

    Args:
      path: a checkpoint that `import_diffusers` wrote.
      out: a new directory.
      allow_non_finite: write weights that are NaN or infinite.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: the checkpoint is broken, its weights are not finite, or `out` exists or cannot
        be written.
    """
    folder = DiffusersCheckpoint(path)
    directory, check = folder.directory, FiniteCheck()
    layout = _checked_layout(native.read_index(directory).get("layout"), directory)
    extras = native.open_leaves(directory, "extras")
    files: list[tuple[dict[str, Any], list[Written]]] = []
    for name, stored in PARTS.items():
        leaves = native.open_leaves(directory, stored)
        check_leaves(leaves, folder.shapes(name), f"{directory / stored}")
        leaves = {path: check.watch(f"{stored}/{path}", leaf) for path, leaf in leaves.items()}
        listed = [file for file in layout["files"] if str(file.get("name")).startswith(f"{name}/")]
        keys = {key for file in listed for key in file.get("tensors", ())}
        available = {
            key: FileTensor(leaves[entry.path], entry, layer if entry.layers is not None else None)
            for entry in folder.table(name, keys)
            for layer, key in enumerate(entry.keys)
        }
        start = f"{name}."
        available |= {
            key.removeprefix(start): FileTensor(leaf)
            for key, leaf in extras.items()
            if key.startswith(start)
        }
        files += check_layout({**layout, "files": listed}, available, directory)
    total = sum(info.nbytes for _, written in files for _, info, _ in written)
    step = None if progress is None else lambda done: progress(done, total)
    with atomic_directory(out) as target:
        try:
            for file in sorted(folder.path.rglob("*")):
                if file.is_file():
                    copy = target / file.relative_to(folder.path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
            with concurrent.futures.ThreadPoolExecutor(1) as reader:
                for stated, written in files:
                    write_file(target, stated, ahead(written, step, reader))
            if not allow_non_finite:
                check.require(str(directory))
            _without_missing_parts(target)
        except OSError as error:
            raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


def _checked_layout(layout: Any, directory: Path) -> dict[str, Any]:
    files = layout.get("files") if isinstance(layout, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise CheckpointError(f"{directory / 'index.json'}: layout: expected a list of files")
    return layout


def _without_missing_parts(target: Path) -> None:
    """Loaders look for a folder of every part that `model_index.json` names."""
    raw = read_json(target / INDEX, CheckpointError)
    missing = [
        name
        for name, value in raw.items()
        if isinstance(value, list) and any(value) and not (target / name).is_dir()
    ]
    if missing:
        write_json(target / INDEX, raw | {name: [None, None] for name in missing})
        note(f"{target / INDEX}: {', '.join(missing)}: null, since the checkpoint has no such part")

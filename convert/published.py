"""The published layout, read: checked against its own configuration, imported, or run as it is.

    config.json, model.safetensors (or shards, or pytorch_model.bin), tokenizer files,
    vae/config.yaml, vae/kl-f16d16.ckpt

`convert.export` goes the other way.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from convert.export import export_published
from convert.file_leaves import inexact_keys, infos, raw_leaf, table_leaves
from convert.readers import DIRECTORY_NAMES, open_tensors
from convert.sizes import unix_disagreements, vae_disagreements
from convert.sources import TensorSource
from convert.table import UNUSED, VAE_DROPPED, Entry, unix_table, vae_table
from convert.yaml_file import read_yaml
from unix_jax import checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.fitting import raise_listing
from unix_jax.json_file import read_json
from unix_jax.leaves import Leaf, place_tree

__all__ = ["PublishedSource", "export_published", "import_published", "load_published"]

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_VAE_PREFERRED = "kl-f16d16.ckpt"
# Larger files beside the weights are none that a loader of this layout asks for.
_MAX_COPIED = 64 << 20

# Called with (bytes done since the last call, bytes in all).
Progress = Callable[[int, int], None]


class PublishedSource:
    """A directory in the published layout, opened but not read; a context manager.

    Attributes:
      directory: the path.
      raw: the JSON of `config.json`; raw_vae: the content of `vae/config.yaml`, or None.
      config: both, as this project's configuration.
      tensors: the tensors of the model.
      vae: those of the autoencoder, or None if the directory has none.

    Raises:
      CheckpointError: a file is missing or broken.
      ConfigError: a configuration is broken.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        self.raw, self.raw_vae = read_configurations(self.directory)
        self.config = UniXConfig.from_published(
            self.raw, self.raw_vae, source=str(self.directory / "config.json")
        )
        self.weights = find_weights(self.directory)
        self.vae_weights = find_vae_weights(self.directory / "vae")
        self.tensors = open_tensors(self.weights)
        self.vae: TensorSource | None = None
        try:
            self.vae = open_tensors(self.vae_weights) if self.vae_weights else None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the files."""
        self.tensors.close()
        if self.vae is not None:
            self.vae.close()

    def check(self) -> None:
        """Compares configuration and tensors.

        Raises:
          CheckpointError: they disagree; the message lists every disagreement, missing,
            unexpected and mis-shaped key, with the expected and the found shape.
        """
        shapes = {key: info.shape for key, info in infos(self.tensors).items()}
        if any(key.startswith("aligner.") for key in shapes):
            raise CheckpointError(
                f"{self.directory}: expected the published layout, found Janus-Pro's; "
                "`python -m convert import-janus` makes the start of stage 1 from it"
            )
        lines, listed = unix_disagreements(self.config, self.raw, shapes)
        lines = [f"{self.directory / 'config.json'}: {line}" for line in lines]
        errors = []
        try:
            check_keys(self.tensors, unix_table(listed), UNUSED.fullmatch, lines)
        except CheckpointError as error:
            errors.append(str(error))
        try:
            if self.vae is not None:
                yaml = self.directory / "vae" / "config.yaml"
                check_vae(self.config, self.raw_vae, self.vae, yaml)
        except CheckpointError as error:
            errors.append(str(error))
        if errors:
            raise CheckpointError("\n".join(errors))

    def leaves(self, dtype: Any = None) -> dict[str, Leaf]:
        """The UniX parameters by path, read on demand; `dtype` None keeps the file's types."""
        return table_leaves(unix_table(self.config), self.tensors, dtype)

    def vae_leaves(self) -> dict[str, Leaf] | None:
        """The autoencoder's parameters by path, in the file's types, or None."""
        return None if self.vae is None else table_leaves(vae_table(self.config.vae), self.vae)

    def extras(self) -> dict[str, Leaf]:
        """The tensors that the model does not use, by their own keys."""
        return {
            key: raw_leaf(self.tensors, key) for key in infos(self.tensors) if UNUSED.fullmatch(key)
        }

    def inexact(self) -> dict[str, Leaf]:
        """Tensors that would lose bits in the common type of their stack; for the extras."""
        pairs = [(unix_table(self.config), self.tensors)]
        if self.vae is not None:
            pairs.append((vae_table(self.config.vae), self.vae))
        return {
            key: raw_leaf(tensors, key)
            for table, tensors in pairs
            for key in inexact_keys(table, tensors)
        }

    def layout(self, dtype: np.dtype | None = None) -> dict[str, Any]:
        """Files, keys in order, and types: what export needs to write the same files again."""
        used = {key for entry in unix_table(self.config) for key in entry.keys}
        files = [
            _file_layout(self.tensors, name, keys, lambda key: dtype if key in used else None)
            for name, keys in _files(self.weights, self.tensors)
        ]
        if self.vae is not None and self.vae_weights is not None:
            kept = [key for key in infos(self.vae) if not VAE_DROPPED.fullmatch(key)]
            name = f"vae/{self.vae_weights.name}"
            files.append(_file_layout(self.vae, name, kept, lambda key: None, "state_dict"))
        return {"kept": dtype is None, "files": files}


def read_configurations(directory: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """`config.json` and `vae/config.yaml` (None if absent) of a published directory.

    Raises:
      CheckpointError: no such directory.
      ConfigError: a file is broken or config.json is missing.
    """
    if not directory.is_dir():
        found = "a file" if directory.is_file() else "no such directory"
        raise CheckpointError(f"{directory}: expected a checkpoint directory, found {found}")
    if checkpoint.is_checkpoint(directory):
        raise CheckpointError(
            f"{directory}: expected the published layout, found a checkpoint of this project"
        )
    raw = read_json(directory / "config.json")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{directory / 'config.json'}: expected a JSON object, found {type(raw).__name__}"
        )
    return raw, read_yaml(directory / "vae" / "config.yaml")


def verbatim_files(directory: Path) -> list[tuple[Path, str]]:
    """(file, name in the checkpoint) of everything beside the weights, to keep verbatim."""
    found = [(path, path.name) for path in sorted(directory.iterdir())]
    if (directory / "vae").is_dir():
        found += [(path, f"vae/{path.name}") for path in sorted((directory / "vae").iterdir())]
    return [
        (path, name if name in checkpoint.TOKENIZER_FILES else f"source/{name}")
        for path, name in found
        if path.is_file()
        and path.suffix not in WEIGHT_SUFFIXES
        and path.stat().st_size <= _MAX_COPIED
    ]


def find_weights(directory: Path) -> Path:
    """The model's weight file, or the index of its shards.

    Raises:
      CheckpointError: there is none, or several and none has a usual name.
    """
    for name in DIRECTORY_NAMES:
        if (directory / name).exists():
            return directory / name
    others = sorted(p for p in directory.iterdir() if p.suffix in (".safetensors", ".bin"))
    if len(others) == 1:
        return others[0]
    found = ", ".join(path.name for path in others) or "none"
    raise CheckpointError(
        f"{directory}: expected one of {', '.join(DIRECTORY_NAMES)}, or one weight file; "
        f"found {found}"
    )


def find_vae_weights(directory: Path) -> Path | None:
    """The one weight file of a `vae` directory, or None.

    Raises:
      CheckpointError: there are several, and none has the published name.
    """
    if not directory.is_dir():
        return None
    found = sorted(p for p in directory.iterdir() if p.suffix in WEIGHT_SUFFIXES)
    preferred = [path for path in found if path.name == _VAE_PREFERRED]
    if len(found) > 1 and not preferred:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{directory}: expected one weight file, found {names}")
    return next(iter(preferred or found), None)


def check_vae(
    config: UniXConfig, raw: Mapping[str, Any] | None, vae: TensorSource, source: Path
) -> None:
    """Compares the autoencoder's configuration and tensors, as `PublishedSource.check`."""
    shapes = {key: info.shape for key, info in infos(vae).items()}
    lines, listed = vae_disagreements(config.vae, raw, shapes)
    lines = [f"{source}: {line}" for line in lines]
    if listed is None:
        raise_listing(str(vae.path), {}, {}, {}, lines)
        return
    check_keys(vae, vae_table(listed), VAE_DROPPED.fullmatch, lines)


def check_keys(
    tensors: TensorSource,
    table: tuple[Entry, ...],
    ignored: Callable[[str], Any],
    disagreements: list[str],
) -> None:
    """Raises one CheckpointError that lists all that is wrong with the file's keys, grouped."""
    expected = {key: entry.file_shape for entry in table for key in entry.keys}
    found = infos(tensors)
    for key, info in found.items():
        if key in expected and not jnp.issubdtype(info.dtype, jnp.floating):
            disagreements = [*disagreements, f"{key} is {info.dtype}, expected a floating type"]
    raise_listing(
        str(tensors.path),
        {key: shape for key, shape in expected.items() if key not in found},
        {k: i.shape for k, i in found.items() if k not in expected and not ignored(k)},
        {
            key: (shape, found[key].shape)
            for key, shape in expected.items()
            if key in found and found[key].shape != shape
        },
        disagreements,
    )


# --- layout ----------------------------------------------------------------------------------


def _files(weights: Path, tensors: TensorSource) -> list[tuple[str, list[str]]]:
    """(file name, its keys in order) for every file that holds a part of the model."""
    if weights.suffix != ".json":
        return [(weights.name, tensors.keys())]
    # `open_tensors` has verified the index against its shards.
    placed: dict[str, str] = read_json(weights)["weight_map"]
    return [
        (name, open_tensors(weights.parent / name).keys())
        for name in dict.fromkeys(placed.values())
    ]


def _file_layout(
    tensors: TensorSource,
    name: str,
    keys: list[str],
    cast: Callable[[str], np.dtype | None],
    under: str | None = None,
) -> dict[str, Any]:
    kinds = {key: cast(key) or tensors.info(key).dtype for key in keys}
    return {
        "name": name,
        "format": "safetensors" if name.endswith(".safetensors") else "torch",
        "under": under,
        "metadata": tensors.metadata,
        "tensors": {key: kind.name for key, kind in kinds.items()},
    }


# --- what a user calls -----------------------------------------------------------------------


def parse_dtype(name: str) -> np.dtype | None:
    """`keep` -> None; `bfloat16`, `float32` (any floating type) -> its dtype.

    Raises:
      ConfigError: no floating type of that name.
    """
    if name == "keep":
        return None
    try:
        kind = np.dtype(jnp.dtype(name))
    except TypeError:
        kind = np.dtype(np.int8)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ConfigError(f"dtype: expected bfloat16, float32 or keep, found {name!r}")
    return kind


def import_published(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "keep",
    *,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Converts a published directory to this project's checkpoint.

    Args:
      source: the published directory.
      out: a new directory.
      dtype: `keep`, with which `export_published` gives back every bit, or the floating type of
        the model's parameters. The autoencoder and the unused tensors keep their types.
      allow_non_finite: write weights that are NaN or infinite.
      progress: called with (bytes since the last call, bytes in all).

    Raises:
      UniXError: the source is broken or does not fit its configuration, `out` exists, or weights
        are not finite.
    """
    kind = parse_dtype(dtype)
    with PublishedSource(source) as published:
        published.check()
        if published.vae is None:
            warnings.warn(
                f"{source}: no autoencoder in vae/: the checkpoint writes reports only",
                stacklevel=2,
            )
        leaves, vae_leaves = published.leaves(kind), published.vae_leaves()
        extras = published.extras()
        groups = (leaves, vae_leaves or {}, extras)
        total = sum(leaf.nbytes for group in groups for leaf in group.values())

        def all_extras() -> dict[str, Leaf]:
            if kind is not None:
                return extras
            return extras | published.inexact()

        checkpoint.save(
            out,
            published.config,
            leaves,
            vae_leaves,
            extras=all_extras,
            layout=published.layout(kind),
            copies=verbatim_files(published.directory),
            allow_non_finite=allow_non_finite,
            progress=None if progress is None else lambda done: progress(done, total),
        )


def load_published(
    source: str | os.PathLike[str],
    dtype: Any = None,
    shardings: Any = None,
    *,
    vae_dtype: Any = None,
    vae_shardings: Any = None,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """Reads a published directory onto the devices, leaf by leaf, without an intermediate file.

    Args:
      source: the published directory.
      dtype: floating type of the parameters; None keeps the file's.
      shardings: None, one `Sharding`, or a nested tree of them, for the UniX parameters.
      vae_dtype: likewise for the autoencoder.
      vae_shardings: likewise for the autoencoder.
      allow_non_finite: accept weights that are NaN or infinite.
      progress: called with (bytes since the last call, bytes in all).

    Returns:
      The configuration, the UniX parameters, and the autoencoder's (None if there is none).

    Raises:
      UniXError: the source is broken or does not fit its configuration, or weights are not finite.
    """
    with PublishedSource(source) as published:
        published.check()
        leaves, vae_leaves = published.leaves(), published.vae_leaves()
        total = sum(x.nbytes for group in (leaves, vae_leaves or {}) for x in group.values())
        step = None if progress is None else lambda done: progress(done, total)
        params = place_tree(
            leaves,
            dtype,
            shardings,
            step,
            source=str(published.tensors.path),
            allow_non_finite=allow_non_finite,
        )
        if vae_leaves is None:
            return published.config, params, None
        assert published.vae is not None
        vae_params = place_tree(
            vae_leaves,
            vae_dtype,
            vae_shardings,
            step,
            source=str(published.vae.path),
            allow_non_finite=allow_non_finite,
        )
        return published.config, params, vae_params

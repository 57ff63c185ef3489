"""Which kind of checkpoint a directory holds, and its configuration.

Nothing here reads weights or imports JAX: `unix-jax info` answers at once.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from unix_jax.checkpoints import index
from unix_jax.checkpoints.formats.weight_files import (
    PUBLISHED_VAE_NAMES,
    WeightFiles,
    find_weights,
    weight_files,
)
from unix_jax.checkpoints.formats.yaml_file import read_yaml
from unix_jax.checkpoints.published_config import from_published
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError, SourceNote
from unix_jax.storage.json_file import read_json

# The published one has some 2 KB.
MAX_CONFIG_BYTES = 1 << 20


def load_config(path: str | os.PathLike[str]) -> tuple[UniXConfig, bool]:
    """(configuration, whether there is an autoencoder), without reading weights.

    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    path = checkpoint_directory(path)
    if index.is_checkpoint(path):
        return index.load_config(path), index.has_vae(path)
    directory = Path(path)
    raw, raw_vae = read_configurations(directory)
    config = from_published(raw, raw_vae, source=str(directory / "config.json"))
    with warnings.catch_warnings():
        # What is not taken is said once, when the weights are read.
        warnings.simplefilter("ignore", SourceNote)
        return config, find_vae_weights(directory / "vae") is not None


def checkpoint_directory(path: str | os.PathLike[str]) -> Path:
    """The local directory of a checkpoint of UniX, see `resolve_checkpoint`.

    Raises:
      CheckpointError: a weight file, whose tokenizer would not be found, or a checkpoint of another
        kind; or as `resolve_checkpoint`.
    """
    directory = resolve_checkpoint(path)
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory, found a file; "
            "`unix-jax convert import FILE OUT` makes a checkpoint of one weight file"
        )
    if is_diffusers(directory):
        raise CheckpointError(
            f"{directory}: expected a checkpoint of UniX, found a diffusers checkpoint, which "
            "`unix-jax generate`, `app`, `evaluate images` and `info` take"
        )
    return directory


def read_configurations(directory: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """`config.json` and `vae/config.yaml` (None if absent) of a published directory.

    Raises:
      CheckpointError: no such directory.
      ConfigError: a file is broken or config.json is missing.
    """
    if not directory.is_dir():
        found = "a file" if directory.is_file() else "no such directory"
        raise CheckpointError(f"{directory}: expected a checkpoint directory, found {found}")
    if index.is_checkpoint(directory):
        raise CheckpointError(
            f"{directory}: expected the published layout, found a checkpoint of this project"
        )
    raw = read_json(directory / "config.json", max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{directory / 'config.json'}: expected a JSON object, found {type(raw).__name__}"
        )
    return raw, read_yaml(directory / "vae" / "config.yaml")


def find_vae_weights(directory: Path, wanted: str | None = None) -> WeightFiles | None:
    """The weights of a `vae` directory, or None.

    Raises:
      CheckpointError: there are several, and none has the published name.
    """
    if not directory.is_dir() or not weight_files(directory):
        return None
    return find_weights(directory, wanted, PUBLISHED_VAE_NAMES)


def is_diffusers_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a directory has `model_index.json` or `unet/config.json`."""
    directory = Path(path)
    names = ("model_index.json", "unet/config.json")
    return any((directory / name).is_file() for name in names)


def is_diffusers_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a directory was written by `import_diffusers`."""
    directory = Path(path)
    return index.is_checkpoint(directory) and (directory / "source" / "unet").is_dir()


def is_diffusers(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is a diffusers folder, as published or imported."""
    return is_diffusers_folder(path) or is_diffusers_checkpoint(path)

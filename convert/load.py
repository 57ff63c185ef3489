"""A model from disk, whichever of the two layouts it is in."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from convert.published import (
    PublishedSource,
    find_vae_weights,
    load_published,
    read_configurations,
)
from convert.sources import SourceNote
from unix_jax import checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.leaves import place_tree

# Called with the configuration; gives the shardings of (parameters, autoencoder parameters).
Shardings = Callable[[UniXConfig], tuple[Any, Any]]


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    vae_dtype: Any = jnp.float32,
    shardings: Shardings | None = None,
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """(config, parameters, autoencoder parameters or None) of a checkpoint or published layout.

    Args:
      path: a converted checkpoint, or a directory in the published layout.
      dtype: floating type to cast to; None keeps that of the files.
      vae_dtype: that of the autoencoder, float32 unless said otherwise: it is small, always
        frozen, and bfloat16 shows in its pictures.
      shardings: where each parameter goes; None puts all on the default device.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other.
    """
    _refuse_file(path)
    converted = checkpoint.is_checkpoint(path)
    placed = vae_placed = None
    if shardings is not None:
        with warnings.catch_warnings():
            # Unknown fields are named once, when the weights are read.
            warnings.simplefilter("ignore")
            config, _ = load_config(path)
        placed, vae_placed = shardings(config)
    if not converted:
        return load_published(path, dtype, placed, vae_dtype=vae_dtype, vae_shardings=vae_placed)
    params = checkpoint.load_params(path, dtype=dtype, shardings=placed)
    vae_params = checkpoint.load_vae_params(path, dtype=vae_dtype, shardings=vae_placed)
    return checkpoint.load_config(path), params, vae_params


def load_vae(path: str | os.PathLike[str]) -> tuple[UniXConfig, dict[str, Any]]:
    """(config, autoencoder parameters in float32); the model's own weights are not read.

    Raises:
      CheckpointError, ConfigError: as `load_model`, or there is no autoencoder.
    """
    _refuse_file(path)
    vae_params = None
    if checkpoint.is_checkpoint(path):
        config = checkpoint.load_config(path)
        vae_params = checkpoint.load_vae_params(path, dtype=jnp.float32)
    else:
        with PublishedSource(path) as published:
            published.check()
            config, leaves = published.config, published.vae_leaves()
            if leaves is not None:
                vae_params = place_tree(leaves, jnp.float32)
    if vae_params is None:
        raise CheckpointError(f"{path}: expected an autoencoder, found none")
    return config, vae_params


def load_config(path: str | os.PathLike[str]) -> tuple[UniXConfig, bool]:
    """(configuration, whether there is an autoencoder), without reading weights.

    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    _refuse_file(path)
    if checkpoint.is_checkpoint(path):
        return checkpoint.load_config(path), checkpoint.has_vae(path)
    directory = Path(path)
    raw, raw_vae = read_configurations(directory)
    config = UniXConfig.from_published(raw, raw_vae, source=str(directory / "config.json"))
    with warnings.catch_warnings():
        # What is not taken is said once, when the weights are read.
        warnings.simplefilter("ignore", SourceNote)
        return config, find_vae_weights(directory / "vae") is not None


def _refuse_file(path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for a weight file, whose tokenizer would not be found."""
    if Path(path).is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint directory, found a file; "
            "`python -m convert import FILE OUT` makes a checkpoint of one weight file"
        )

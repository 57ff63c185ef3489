"""A model from disk, whichever of the two layouts it is in."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from unix_jax.checkpoints import native
from unix_jax.checkpoints.diffusers_checkpoint import is_diffusers
from unix_jax.checkpoints.formats.tensor_source import SourceNote
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.published import (
    PublishedSource,
    find_vae_weights,
    load_published,
    read_configurations,
)
from unix_jax.checkpoints.published_config import from_published
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError

# Called with the configuration; gives the shardings of (parameters, autoencoder parameters).
Shardings = Callable[[UniXConfig], tuple[Any, Any]]


def load_model(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    vae_dtype: Any = jnp.float32,
    shardings: Shardings | None = None,
    allow_non_finite: bool = False,
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """(config, parameters, autoencoder parameters or None) of a checkpoint or published layout.

    Args:
      path: a converted checkpoint, a directory in the published layout, or that of a training run,
        whose export is meant; or a name on the hub.
      dtype: floating type to cast to; None keeps that of the files.
      vae_dtype: that of the autoencoder, float32 unless said otherwise: it is small, always
        frozen, and bfloat16 shows in its pictures.
      shardings: where each parameter goes; None puts all on the default device.
      allow_non_finite: accept weights that are NaN or infinite.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other;
        weights that are not finite.
    """
    path = _checkpoint(path)
    converted = native.is_checkpoint(path)
    placed = vae_placed = None
    if shardings is not None:
        with warnings.catch_warnings():
            # Unknown fields are named once, when the weights are read.
            warnings.simplefilter("ignore")
            config, _ = load_config(path)
        placed, vae_placed = shardings(config)
    if not converted:
        return load_published(
            path,
            dtype,
            placed,
            vae_dtype=vae_dtype,
            vae_shardings=vae_placed,
            allow_non_finite=allow_non_finite,
        )
    params = native.load_params(
        path, dtype=dtype, shardings=placed, allow_non_finite=allow_non_finite
    )
    vae_params = native.load_vae_params(
        path, dtype=vae_dtype, shardings=vae_placed, allow_non_finite=allow_non_finite
    )
    return native.load_config(path), params, vae_params


def load_vae(path: str | os.PathLike[str]) -> tuple[UniXConfig, dict[str, Any]]:
    """(config, autoencoder parameters in float32); the model's own weights are not read.

    Raises:
      CheckpointError, ConfigError: as `load_model`, or there is no autoencoder.
    """
    path, vae_params = _checkpoint(path), None
    if native.is_checkpoint(path):
        config = native.load_config(path)
        vae_params = native.load_vae_params(path, dtype=jnp.float32)
    else:
        with PublishedSource(path) as published:
            published.check()
            config, leaves = published.config, published.vae_leaves()
            if leaves is not None:
                vae_params = place_tree(leaves, jnp.float32, source=f"{path}/vae")
    if vae_params is None:
        raise CheckpointError(f"{path}: expected an autoencoder, found none")
    return config, vae_params


def load_config(path: str | os.PathLike[str]) -> tuple[UniXConfig, bool]:
    """(configuration, whether there is an autoencoder), without reading weights.

    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    path = _checkpoint(path)
    if native.is_checkpoint(path):
        return native.load_config(path), native.has_vae(path)
    directory = Path(path)
    raw, raw_vae = read_configurations(directory)
    config = from_published(raw, raw_vae, source=str(directory / "config.json"))
    with warnings.catch_warnings():
        # What is not taken is said once, when the weights are read.
        warnings.simplefilter("ignore", SourceNote)
        return config, find_vae_weights(directory / "vae") is not None


def _checkpoint(path: str | os.PathLike[str]) -> Path:
    """The local directory of a checkpoint of UniX; of a run, that of its export.

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
            "`unix-jax generate`, `evaluate images` and `info` take"
        )
    return directory

"""Loads a model from disk in either of the two layouts."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from unix_jax.checkpoints import native
from unix_jax.checkpoints.configurations import checkpoint_directory, load_config
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.published import (
    PublishedSource,
    load_published,
)
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
    autoencoder: bool = True,
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """(config, parameters, autoencoder parameters or None) of a checkpoint or published layout.

    Args:
      path: a converted checkpoint, a directory in the published layout, or the directory of a
        training run, of which the export is used; or a name on the hub.
      dtype: floating-point dtype to cast to; None keeps that of the files.
      vae_dtype: dtype of the autoencoder, by default float32: it is small and always frozen, and
        the rounding of bfloat16 is visible in its images.
      shardings: sharding of each parameter; None puts all on the default device.
      allow_non_finite: accept weights that are NaN or infinite.
      autoencoder: read its weights as well; without them, only reports are supported.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other;
        weights that are not finite.
    """
    path = checkpoint_directory(path)
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
            autoencoder=autoencoder,
        )
    params = native.load_params(
        path, dtype=dtype, shardings=placed, allow_non_finite=allow_non_finite
    )
    vae_params = None
    if autoencoder:
        vae_params = native.load_vae_params(
            path, dtype=vae_dtype, shardings=vae_placed, allow_non_finite=allow_non_finite
        )
    return native.load_config(path), params, vae_params


def load_vae(path: str | os.PathLike[str]) -> tuple[UniXConfig, dict[str, Any]]:
    """(config, autoencoder parameters in float32); the model's own weights are not read.

    Raises:
      CheckpointError, ConfigError: as `load_model`, or there is no autoencoder.
    """
    path, vae_params = checkpoint_directory(path), None
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

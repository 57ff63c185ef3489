"""A model from disk, whichever of the two layouts it is in."""

import os
from collections.abc import Callable
from typing import Any

from convert.published import load_published
from unix_jax import checkpoint
from unix_jax.config import UniXConfig

# Called with the configuration; returns shardings for (parameters, autoencoder parameters).
Shardings = Callable[[UniXConfig], tuple[Any, Any]]


def load_model(
    path: str | os.PathLike[str], *, dtype: Any = None, shardings: Shardings | None = None
) -> tuple[UniXConfig, dict[str, Any], dict[str, Any] | None]:
    """(config, parameters, autoencoder parameters or None) of a checkpoint or published layout.

    Args:
      path: a converted checkpoint, or a directory in the published layout.
      dtype: floating type to cast to; None keeps that of the files.
      shardings: where each parameter goes; None puts all on the default device.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other.
    """
    if not checkpoint.is_checkpoint(path):
        return load_published(path, dtype, shardings)
    config = checkpoint.load_config(path)
    placed, vae_placed = (None, None) if shardings is None else shardings(config)
    params = checkpoint.load_params(path, dtype=dtype, shardings=placed)
    return config, params, checkpoint.load_vae_params(path, dtype=dtype, shardings=vae_placed)

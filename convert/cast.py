"""A checkpoint in another floating type, such as a training's float32 export at half the size."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.published import Progress, parse_dtype
from unix_jax import checkpoint
from unix_jax.leaves import Leaf
from unix_jax.run_export import resolve_checkpoint


def cast(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    vae_dtype: str = "keep",
    progress: Progress | None = None,
) -> None:
    """Writes a copy, array by array, whole or not at all.

    What an import keeps for a bit-exact export is left out: the bits are not the published ones
    any more.

    Args:
      source: a checkpoint of this project, or the directory of a training run.
      out: a new directory.
      dtype: `bfloat16`, `float32`, or `keep`, of the model's parameters.
      vae_dtype: likewise, of the autoencoder's.
      progress: called with (bytes since the last call, bytes in all).

    Raises:
      UniXError: the source is broken, `out` exists or cannot be written, an unknown type.
    """
    source = resolve_checkpoint(source)
    config = checkpoint.load_config(source)
    params = _cast(checkpoint.open_leaves(source, "params"), parse_dtype(dtype))
    vae = None
    if checkpoint.has_vae(source):
        vae = _cast(checkpoint.open_leaves(source, "vae"), parse_dtype(vae_dtype))
    total = sum(leaf.nbytes for leaf in (*params.values(), *(vae or {}).values()))
    checkpoint.save(
        out,
        config,
        params,
        vae,
        copies=[
            (file, name)
            for name in checkpoint.TOKENIZER_FILES
            if (file := Path(source) / name).is_file()
        ],
        progress=None if progress is None else lambda done: progress(done, total),
    )


def _cast(leaves: Mapping[str, Leaf], dtype: np.dtype | None) -> dict[str, Leaf]:
    return dict(leaves) if dtype is None else {k: _as(v, dtype) for k, v in leaves.items()}


def _as(leaf: Leaf, dtype: np.dtype) -> Leaf:
    return Leaf(leaf.shape, dtype, lambda index: leaf.read(index).astype(dtype))

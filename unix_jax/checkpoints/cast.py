"""Copies a checkpoint in another floating-point dtype, for example a float32 export in bfloat16."""

import os
from collections.abc import Mapping

import numpy as np

from unix_jax.checkpoints import native
from unix_jax.checkpoints.leaves import Leaf
from unix_jax.checkpoints.leaves import cast as cast_leaf
from unix_jax.checkpoints.published import Progress, parse_dtype
from unix_jax.checkpoints.run_export import resolve_checkpoint


def cast(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str,
    vae_dtype: str = "keep",
    *,
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a copy atomically, array by array, with the other files of the source.

    The tensors that an import keeps for a bit-exact export are omitted: they would no longer be
    bit-exact.

    Args:
      source: a checkpoint of this project, or the directory of a training run.
      out: a new directory.
      dtype: `bfloat16`, `float32`, or `keep`, of the model's parameters.
      vae_dtype: likewise, of the autoencoder's.
      allow_non_finite: write weights that are NaN or infinite, or too large for the type.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: the source is broken, `out` exists or cannot be written, an unknown type,
        weights that are not finite in the new type.
    """
    source = resolve_checkpoint(source)
    config = native.load_config(source)
    params = _cast(native.open_leaves(source, "params"), parse_dtype(dtype))
    vae = None
    if native.has_vae(source):
        vae = _cast(native.open_leaves(source, "vae"), parse_dtype(vae_dtype))
    total = sum(leaf.nbytes for leaf in (*params.values(), *(vae or {}).values()))
    native.save(
        out,
        config,
        params,
        vae,
        copies=native.carried_files(source),
        allow_non_finite=allow_non_finite,
        sources={part: str(source / part) for part in ("params", "vae")},
        progress=None if progress is None else lambda done: progress(done, total),
    )


def _cast(leaves: Mapping[str, Leaf], dtype: np.dtype | None) -> dict[str, Leaf]:
    return dict(leaves) if dtype is None else {k: cast_leaf(v, dtype) for k, v in leaves.items()}

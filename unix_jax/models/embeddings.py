"""Time embedding, latent position table and latent patches.

Letters: B batch, G latent tokens, D width, p latent_patch_size, C autoencoder channels,
h, w latent tokens per column and per row.
"""

import einops
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unix_jax.config import TIME_FREQUENCIES

_MAX_PERIOD = 10000.0


def timestep_sinusoid(
    t: Float[Array, "*batch"],
    dim: int = TIME_FREQUENCIES,
    *,
    freq_shift: float = 0.0,
) -> Float[Array, "*batch dim"]:
    """Sinusoid of unscaled times: cosines first, then sines. Always float32.

    UniX's times are in [0, 1] (not x1000), the U-Net's are steps of its noise schedule.
    `freq_shift` is subtracted from dim / 2 where the frequencies are spaced (diffusers).
    Source: the original's `TimestepEmbedder.timestep_embedding`.
    """
    half = dim // 2
    exponent = jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    frequencies = jnp.exp(-jnp.log(_MAX_PERIOD) * exponent)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_table_2d(dim: int, grid_size: int) -> Float[np.ndarray, "grid*grid dim"]:
    """Fixed 2-D sin-cos table, float32; row id is row * grid_size + column.

    The first half of a row encodes the column ("w first"), the second the row, each as sines
    then cosines. Source: `get_2d_sincos_pos_embed` of MAE and DiT.

    Raises:
      ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim: expected a multiple of 4, found {dim}")
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    angles = np.arange(grid_size, dtype=np.float64)[:, None] * omega
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.meshgrid(np.arange(grid_size), np.arange(grid_size), indexing="ij")
    table = np.concatenate([axis[columns.ravel()], axis[rows.ravel()]], axis=1)
    return table.astype(np.float32)


def _torch_arange(start: float, end: float, step: float) -> np.ndarray:
    """`torch.arange` in float32 with torch's own rounding on x86.

    It computes in float64, but in runs of 16 numbers it rounds the first of every 8 to float32
    before it adds the rest; whether a fraction on a bucket's edge falls left or right of it
    depends on that.
    """
    count = int(np.ceil((end - start) / step))
    index = np.arange(count)
    base = start + step * (index - index % 8)
    vectorised = index < count - count % 16
    base = np.where(vectorised, base.astype(np.float32), base)
    offset = np.where(vectorised, index % 8, 0)
    scalar = start + step * index
    return np.where(vectorised, base + offset * step, scalar).astype(np.float32)


def latent_position_ids(
    height: int, width: int, max_latent_size: int, interpolate: bool = False
) -> Int[np.ndarray, "h*w"]:
    """Row-major ids into the position table for a grid of `height` x `width` latent tokens.

    Extrapolated: row * max_latent_size + column. Interpolated: each axis, as fractions of the
    image, is put into max_latent_size buckets. Source: the original's
    `get_flattened_position_ids_{extrapolate,interpolate}`; its float32 rounding decides the
    bucket of fractions that lie on an edge, so it is reproduced.

    Raises:
      ValueError: the grid is empty, or larger than the table while extrapolating.
    """
    if min(height, width) < 1:
        raise ValueError(f"height, width: expected at least 1 token, found {height} x {width}")
    if not interpolate:
        if max(height, width) > max_latent_size:
            raise ValueError(
                f"height, width: expected at most max_latent_size {max_latent_size} tokens, "
                f"found {height} x {width}"
            )
        rows, columns = np.arange(height), np.arange(width)
    else:
        rows, columns = (_buckets(n, max_latent_size) for n in (height, width))
    return (rows[:, None] * max_latent_size + columns).ravel().astype(np.int32)


def _buckets(count: int, max_latent_size: int) -> np.ndarray:
    boundaries = _torch_arange(1 / max_latent_size, 1.0, 1 / max_latent_size)
    fractions = _torch_arange(0.0, 1 - 1e-6, 1 / count)
    return np.searchsorted(boundaries, fractions, side="right")


def patchify(latents: Float[Array, "B H W C"], patch: int) -> Float[Array, "B h*w p*p*C"]:
    """Latents to tokens, row-major; a token's numbers run (p_row, p_column, channel)."""
    return einops.rearrange(latents, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(
    tokens: Float[Array, "B h*w p*p*C"], height: int, width: int, patch: int
) -> Float[Array, "B H W C"]:
    """Inverse of `patchify` for a grid of `height` x `width` tokens."""
    return einops.rearrange(
        tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=height, w=width, p=patch, q=patch
    )

"""Rotary positions.

Letters: B batch, N or T tokens, H head_dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unix_jax.sharding import platform_in_use


def rope_angles(
    position: Int[Array, "B N"], head_dim: int, theta: float
) -> tuple[Float[Array, "B N H/2"], Float[Array, "B N H/2"]]:
    """(cosines, sines) of the rotary angles, float32."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = position.astype(jnp.float32)[..., None] / (theta**exponent)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B T heads H"], angles: tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]
) -> Float[Array, "B T heads H"]:
    """Rotates the halves of the last axis (the rotate-half convention of Llama), in float32."""
    if platform_in_use() == "tpu":
        return _rotated_by_product(x, angles)
    cos, sin = (a[:, :, None, None, :] for a in angles)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    sign = jnp.array([[-1.0], [1.0]])
    # A reversal instead of a concatenation, since XLA ends a fusion at every concatenation.
    rotated = halves * cos + halves[..., ::-1, :] * (sign * sin)
    return rotated.reshape(x.shape).astype(x.dtype)


def _rotated_by_product(
    x: Float[Array, "B T heads H"], angles: tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]
) -> Float[Array, "B T heads H"]:
    """The same: the halves of a TPU's vectors are exchanged best by its matrix unit."""
    cos, sin = (jnp.concatenate([a, a], axis=-1)[:, :, None] for a in angles)
    exchange = np.kron([[0, 1], [-1, 0]], np.eye(x.shape[-1] // 2))
    # Exact: each sum has one term.
    exchanged = jnp.einsum(
        "btnh,hk->btnk",
        x,
        exchange.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return (x.astype(jnp.float32) * cos + exchanged * sin).astype(x.dtype)

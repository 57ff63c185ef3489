"""Rotary positions.

Letters: B batch, N or T tokens, H head_dim.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    cos, sin = (a[:, :, None, None, :] for a in angles)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    sign = jnp.array([[-1.0], [1.0]])
    # A reversal instead of a concatenation, since XLA ends a fusion at every concatenation.
    rotated = halves * cos + halves[..., ::-1, :] * (sign * sin)
    return rotated.reshape(x.shape).astype(x.dtype)

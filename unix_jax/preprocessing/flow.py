"""Rectified flow: the time grid, the shift, and the straight path between data and noise.

t = 1 is noise, t = 0 is data; x_t = (1 - t) x_0 + t noise; velocity = noise - x_0.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from unix_jax.errors import PromptError


def shift_timestep(t: Any, shift: float) -> Any:
    """t' = shift * t / (1 + (shift - 1) * t): more steps near noise for shift > 1.

    `t` is a jax or numpy array.
    """
    return shift * t / (1 + (shift - 1) * t)


def timestep_grid(num_steps: int, shift: float) -> Float[np.ndarray, "num_steps"]:
    """The shifted times 1 ... 0 of a sampling run: `num_steps` points, so num_steps - 1 steps.

    float32 with the rounding of `torch.linspace` (from both ends, fused multiply-add), since the
    guidance interval is decided by comparing these numbers.

    Raises:
      PromptError: fewer than 2 points, or a shift that is not positive.
    """
    if num_steps < 2:
        raise PromptError(f"num_steps: expected at least 2 grid points, found {num_steps}")
    if not shift > 0:
        raise PromptError(f"timestep_shift: expected a positive number, found {shift}")
    index = np.arange(num_steps, dtype=np.float64)
    step = np.float64(np.float32(-1.0) / np.float32(num_steps - 1))
    from_start, from_end = 1.0 + step * index, -step * (num_steps - 1 - index)
    grid = np.where(index < num_steps // 2, from_start, from_end).astype(np.float32)
    return np.asarray(shift_timestep(grid, shift))


def interpolate(
    data: Float[Array, "*batch C"], noise: Float[Array, "*batch C"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C"]:
    """x_t on the straight path; `t` has no channel axis."""
    return (1 - t[..., None]) * data + t[..., None] * noise

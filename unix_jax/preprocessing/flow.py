"""Rectified flow: the time grid, the shift, and the straight path between data and noise.

t = 1 is noise, t = 0 is data; x_t = (1 - t) x_0 + t noise; velocity = noise - x_0.
"""

from collections.abc import Iterable
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


def timestep_grid_through(
    steps: int, shift: float, times: Iterable[float]
) -> Float[np.ndarray, "steps+1"]:
    """The shifted times 1 ... 0 of `steps` steps, with each of `times` in (0, 1) as a point.

    Between two of them the points are evenly spaced before the shift, and each stretch has a share
    of the steps in proportion to its length, at least one. Where there are more stretches than
    steps, the latest times are kept.

    Raises:
      PromptError: fewer than 1 step, or a shift that is not positive.
    """
    timestep_grid(steps + 1, shift)  # its checks
    asked = sorted({float(np.float32(t)) for t in times if 0 < np.float32(t) < 1}, reverse=True)
    through = np.array([1.0, *asked[max(len(asked) - steps + 1, 0) :], 0.0])
    ends = through / (shift - (shift - 1) * through)  # before the shift
    share = steps * -np.diff(ends)
    counts = np.maximum(np.floor(share).astype(int), 1)
    while counts.sum() != steps:
        if counts.sum() < steps:
            counts[np.argmax(share - counts)] += 1
        else:
            counts[np.argmin(np.where(counts > 1, share - counts, np.inf))] -= 1
    parts = [
        np.linspace(start, end, count, endpoint=False)
        for start, end, count in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
    grid = shift_timestep(np.concatenate([*parts, [0.0]]), shift).astype(np.float32)
    # Exactly: whether guidance acts at a point is decided by comparing these numbers.
    grid[np.cumsum([0, *counts])] = through
    return grid


def interpolate(
    data: Float[Array, "*batch C"], noise: Float[Array, "*batch C"], t: Float[Array, "*batch"]
) -> Float[Array, "*batch C"]:
    """x_t on the straight path; `t` has no channel axis."""
    return (1 - t[..., None]) * data + t[..., None] * noise

"""A loss that is not finite ends the run, with what is needed to look into it."""

import math
from collections.abc import Mapping, Sequence

from unix_jax.errors import UniXError
from unix_jax.training.checkpoint_store import CheckpointStore
from unix_jax.training.distributed import collect

_WATCHED = ("loss", "grad_norm")
_SHOWN = 50


class NotFiniteError(UniXError):
    """The loss or the gradient of a step is NaN or infinite."""


def is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether loss and gradient are numbers."""
    return all(math.isfinite(metrics[name]) for name in _WATCHED)


def not_finite(
    step: int,
    metrics: Mapping[str, float],
    keys: Sequence[Sequence[str]],
    checkpoints: CheckpointStore,
) -> NotFiniteError:
    """The error that names the step, its samples and the newest checkpoint, which is complete.

    `keys` are those of the samples in each row of this process.
    """
    checkpoints.wait()
    samples = [key for rows in collect([list(row) for row in keys]) for row in rows for key in row]
    shown = ", ".join(samples[:_SHOWN]) + (", ..." if len(samples) > _SHOWN else "")
    found = " and ".join(
        f"{name} {metrics[name]}" for name in _WATCHED if not math.isfinite(metrics[name])
    )
    steps = checkpoints.steps()
    before = checkpoints.path(steps[-1]) if steps else "none yet"
    return NotFiniteError(
        f"step {step}: {found}; samples of the batch: {shown}; checkpoint from before: {before}"
    )

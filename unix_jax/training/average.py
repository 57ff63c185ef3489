"""The running mean of trained weights (EMA), the same for every trainer.

average_s+1 = d_s average_s + (1 - d_s) weights_s+1, with d_s = min(decay, (1 + s) / (10 + s)) at
step s. The ramp lets a young average follow the weights, so that a short run does not keep its
start; `decay` alone acts from step (10 decay - 1) / (1 - decay) on.

Source: the warm-up of `num_updates` in TensorFlow's ExponentialMovingAverage.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# A start that has more weight than this in the export is worth a warning.
LARGE_SHARE = 0.05


def ramped_decay(decay: float, step: Int[Array, "..."] | int) -> Float[Array, "..."]:
    """The decay in [0, 1) that acts at `step`, counted from 0."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_average(average: Any, weights: Any, decay: float, step: Int[Array, ""]) -> Any:
    """The average after the update `step`, which made `weights`; any pytree, float32."""
    acting = ramped_decay(decay, step)
    return jax.tree.map(lambda old, new: acting * old + (1 - acting) * new, average, weights)


def start_share(decay: float, first: int, last: int) -> float:
    """The weight in [0, 1] that the average of step `first` still has in that of step `last`.

    It is the product of the decays in between, 1 where there is no step.
    """
    steps = np.arange(first, last, dtype=np.float64)
    return float(np.prod(np.minimum(decay, (1 + steps) / (10 + steps))))


def share_after(decay: float | None, share: float, first: int, last: int) -> float | None:
    """The weight that a run's initial weights have in the average at step `last`.

    Args:
      decay: of the average; None without one, and then the result is None.
      share: that weight at step `first`.
    """
    return None if decay is None else share * start_share(decay, first, last)


def describe(exported: str, decay: float | None, share: float, first: int, last: int) -> list[str]:
    """Lines for the start of a run: what the export will be, and a warning where it deceives.

    Args:
      exported: "raw" or "average".
      decay, share, first: as `share_after`; `last` is the last step of the run.
    """
    if exported == "raw" or decay is None:
        return [f"the export will hold the weights of step {last}"]
    final = share * start_share(decay, first, last)
    lines = [
        f"the export will hold the average of the weights (decay {decay:g}, and "
        f"{min(decay, last / (9 + last)):.4g} at step {last}); {100 * final:.3g} % of it will be "
        "the initial weights"
    ]
    if final > LARGE_SHARE:
        lines.append(
            f"warning: {100 * final:.3g} % of the export will be the initial weights; train for "
            "more steps, lower --ema-decay, or take --export raw"
        )
    return lines

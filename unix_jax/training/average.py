"""The running mean of trained weights (EMA), the same for every trainer.

average_s+1 = d_s average_s + (1 - d_s) weights_s+1, with d_s = min(decay, (1 + s) / (10 + s)) at
step s. The ramp lets a young average follow the weights, so that a short run does not keep its
start; `decay` alone acts from step (10 decay - 1) / (1 - decay) on.

Source: the warm-up of `num_updates` in TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# With `auto`, the average is not exported if its loss exceeds that of the raw weights by more.
LARGE_DIFFERENCE = 0.05
# Warn if the initial weights have a larger share than this in the exported average.
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


def to_export(
    export: Literal["auto", "raw", "average"], has_average: bool, scores: Mapping[str, float]
) -> tuple[Literal["raw", "average"], str]:
    """(the weights to export, a line about the other ones or "").

    An average lags behind weights that still improve fast, as at the end of a short run.

    Args:
      export: the setting of the run; auto: the average, unless its loss is `LARGE_DIFFERENCE`
        higher than that of the raw weights.
      has_average: whether the state has one.
      scores: of the last validation, as `run.validate` returns them; nothing is compared where
        there was none.
    """
    if not has_average:
        return "raw", ""
    if "raw/loss" in scores:
        losses = {"average": scores["loss"], "raw": scores["raw/loss"]}
    elif "average/loss" in scores:
        losses = {"raw": scores["loss"], "average": scores["average/loss"]}
    else:
        return ("raw" if export == "raw" else "average"), ""
    best = min(losses.values())
    worse = {w: (loss - best) / max(abs(best), 1e-9) for w, loss in losses.items()}
    if export == "auto":
        if worse["average"] <= LARGE_DIFFERENCE:
            return "average", ""
        return "raw", (
            f"the raw weights are exported: the validation loss of their average is "
            f"{100 * worse['average']:.0f} % higher (--export average exports the average)"
        )
    if worse[export] <= LARGE_DIFFERENCE:
        return export, ""
    return export, (
        f"warning: the {export} weights, which are exported, have a validation loss that is "
        f"{100 * worse[export]:.0f} % higher than that of the others; --export auto compares them"
    )


def describe(
    export: str,
    decay: float | None,
    share: float,
    first: int,
    last: int,
    *,
    compared: bool = True,
) -> list[str]:
    """Lines for the start of a run: what the export will be, and a warning where it deceives.

    Args:
      export: the setting of the run: "auto", "raw" or "average".
      decay, share, first: as `share_after`; `last` is the last step of the run.
      compared: whether the run validates both, so that auto can select the raw weights.
    """
    if export == "raw" or decay is None:
        return [f"the export will hold the weights of step {last}"]
    final = share * start_share(decay, first, last)
    otherwise = (
        ", or the raw weights if they validate better" if export == "auto" and compared else ""
    )
    lines = [
        f"the export will hold the average of the weights{otherwise} (decay {decay:g}, and "
        f"{min(decay, last / (9 + last)):.4g} at step {last}); {100 * final:.3g} % of the average "
        "will be the initial weights"
    ]
    if final > LARGE_SHARE:
        lines.append(
            f"warning: {100 * final:.3g} % of the average will be the initial weights; train for "
            "more steps, lower --ema-decay, or take --export raw"
        )
    return lines

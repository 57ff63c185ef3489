"""The command `unix-jax export`: weights of a training run as a checkpoint for inference."""

import dataclasses
import warnings
from typing import Annotated, Literal

import tyro

from unix_jax.storage.arguments import AnyPathText


@dataclasses.dataclass
class Export:
    """Export a kept checkpoint of a training run as a checkpoint for inference.

    The run may be finished, stopped, killed or still running; it is only read. `unix-jax convert
    export` then writes the published layout for PyTorch.

    For example:
        unix-jax export runs/stage1
        unix-jax export runs/stage1 --step best --weights average --out CHECKPOINT
    """

    run_directory: Annotated[AnyPathText, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run, the --out of train.py."""
    out: AnyPathText | None = None
    """New directory for the checkpoint. The default is RUN/export."""
    step: str = "last"
    """Number of a kept step, last, or best (the lowest validation loss)."""
    weights: Literal["auto", "raw", "average"] = "auto"
    """Weights to export: the trained weights of that step (raw), their average (average), or those
    that the run itself exports (auto)."""

    def run(self) -> None:
        from unix_jax.training.average import LARGE_SHARE
        from unix_jax.training.kept import export_step

        path, record = export_step(
            self.run_directory, self.out, step=self.step, weights=self.weights
        )
        share = record.get("start_share", 0.0)
        if share > LARGE_SHARE:
            warnings.warn(
                f"{100 * share:.3g} % of this average comes from the initial weights of the run; "
                "--weights raw exports the trained weights of that step",
                stacklevel=1,
            )
        print(f"wrote {path}: {record['weights']} weights of step {record['step']}")

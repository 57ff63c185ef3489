"""`unix-jax export`: the weights of a training run as a checkpoint for inference."""

import dataclasses
import warnings
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass
class Export:
    """Write the weights of a kept checkpoint of a training run as a checkpoint for inference.

    The run may be finished, stopped, killed or still running; it is only read. `python -m convert
    export` then writes the published layout for PyTorch."""

    run_directory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run, the --out of train.py."""
    out: str | None = None
    """New directory for the checkpoint; RUN/export if absent."""
    step: str = "last"
    """A kept step, last, or best: the one of the lowest validation loss."""
    weights: Literal["auto", "raw", "average"] = "auto"
    """Trained weights of that step (raw) or their average; auto: those that the run exports."""

    def run(self) -> None:
        from unix_jax.training.average import LARGE_SHARE
        from unix_jax.training.kept import export_step

        path, record = export_step(
            self.run_directory, self.out, step=self.step, weights=self.weights
        )
        share = record.get("start_share", 0.0)
        if share > LARGE_SHARE:
            warnings.warn(
                f"{100 * share:.3g} % of this average are the initial weights of the run; "
                "--weights raw exports the trained weights of that step",
                stacklevel=1,
            )
        print(f"wrote {path}: {record['weights']} weights of step {record['step']}")

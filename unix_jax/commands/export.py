"""`unix-jax export`: the weights of a training run as a checkpoint for inference."""

import dataclasses
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
        from unix_jax.training.kept import export_step

        path, record = export_step(
            self.run_directory, self.out, step=self.step, weights=self.weights
        )
        print(f"wrote {path}: {record['weights']} weights of step {record['step']}")

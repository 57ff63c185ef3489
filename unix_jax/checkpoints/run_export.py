"""Resolves the directory of a training run to its export where a checkpoint is expected."""

import os
from pathlib import Path

from unix_jax.checkpoints import index
from unix_jax.errors import CheckpointError

RUN_FILE = "run.json"
EXPORT = "export"


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """`path`/export if `path` is the directory of a training run, else `path` unchanged.

    Raises:
      CheckpointError: the run has not been exported.
    """
    directory = Path(path)
    if index.is_checkpoint(directory) or not (directory / RUN_FILE).is_file():
        return directory
    if index.is_checkpoint(directory / EXPORT):
        return directory / EXPORT
    folder = directory / "checkpoints"
    steps = sorted(int(p.name) for p in folder.glob("[0-9]*") if p.name.isdecimal())
    found = f"checkpoints of the steps {', '.join(map(str, steps))}" if steps else "no checkpoints"
    raise CheckpointError(
        f"{directory}: expected the export of a run in {directory / EXPORT}, found {found} and no "
        "export. Resume the run with the same command until it ends, or export one of its "
        "steps with `unix-jax export`"
    )

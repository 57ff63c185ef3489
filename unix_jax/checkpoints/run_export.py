"""Resolves a checkpoint to a local directory: what is on the hub or in a bucket is downloaded.

Of the directory of a training run, the export is used.
"""

import os
from pathlib import Path

from unix_jax.checkpoints import index
from unix_jax.checkpoints.hub_files import EXPORT, RUN_FILE, checkpoint_files
from unix_jax.errors import CheckpointError
from unix_jax.storage.hub import located


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """`path`/export if `path` is the directory of a training run, else `path` unchanged.

    A name on the hub or a URL of a bucket is downloaded, see `unix_jax.storage.hub`.

    Raises:
      CheckpointError: the run has not been exported.
      StorageError: a URL, or a name on the hub that cannot be downloaded.
    """
    directory = located(path, checkpoint_files)
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

"""What a directory holds before a run begins in it: a run to resume, nothing, or something else."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from unix_jax.checkpoints.run_export import EXPORT, RUN_FILE
from unix_jax.checkpoints.run_files import DAMAGED, steps
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.storage.files import is_temporary_name
from unix_jax.storage.json_file import read_json
from unix_jax.training.checkpoint_store import FOLDER
from unix_jax.training.metrics import EVALUATION_FILE, METRICS_FILE, VALIDATION_FILE

# Files that a run writes in addition to run.json, and would overwrite.
_OF_A_RUN = (
    FOLDER, EXPORT, METRICS_FILE, VALIDATION_FILE, EVALUATION_FILE,
    "frozen", "tokenizer", "previews", "tensorboard", "profile", "parameters.txt",
)  # fmt: skip


def is_resumable(out: Path) -> bool:
    """Whether `out` holds checkpoints to resume from; False where a run may begin in it.

    A run that was killed before its first checkpoint has nothing to lose, and may begin again. It
    is told by its metrics, which end before the second checkpoint was due: a run writes that one
    only after the first is complete.

    Raises:
      CheckpointError, ConfigError: neither; says what is there. Nothing is changed.
    """
    try:
        return _is_resumable(out)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or out}: cannot be read: {error.strerror or error}. Nothing was "
            "changed"
        ) from error


def _is_resumable(out: Path) -> bool:
    if steps(out / FOLDER):
        if not (out / RUN_FILE).exists():
            raise CheckpointError(
                f"{out}: expected {RUN_FILE} beside its checkpoints, found none. Nothing was "
                "changed. Restore it from a copy, or name another --out"
            )
        return True
    there = [name for name in _OF_A_RUN if _holds_something(out / name)]
    if not (out / RUN_FILE).exists():
        if there:
            raise CheckpointError(
                f"{out}: expected a new directory or that of a run, found {', '.join(there)} "
                f"without {RUN_FILE}. Nothing was changed. Name another --out"
            )
        return False
    reason = _why_not_anew(out)
    if reason:
        raise CheckpointError(
            f"{out}: expected checkpoints, found none, but {reason}. Nothing was changed. Restore "
            f"{FOLDER} from a copy, or start a new run with another --out"
        )
    return False


def _why_not_anew(out: Path) -> str:
    if _holds_something(out / FOLDER / DAMAGED):
        return f"damaged ones in {out / FOLDER / DAMAGED}"
    if _holds_something(out / EXPORT):
        return f"the weights of a finished run in {out / EXPORT}"
    due = 2 * _checkpoint_every(read_json(out / RUN_FILE), out / RUN_FILE)
    last = _last_step(out / METRICS_FILE)
    if last >= due:
        return f"{METRICS_FILE} of {last} steps, after which at least one was written"
    return ""


def _checkpoint_every(saved: Any, file: Path) -> int:
    try:
        return int(saved["config"]["checkpoint_every"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: expected what train.py wrote, {error!r}") from None


def _last_step(file: Path) -> int:
    last = 0
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return 0
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            last = max(last, int(json.loads(line)["step"]))
    return last


def _holds_something(path: Path) -> bool:
    try:
        return any(os.scandir(path))
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return path.stat().st_size > 0


def sweep(out: Path) -> None:
    """Removes temporary files of a killed run; for the holder of the directory's lock."""
    for path in out.iterdir():
        if not is_temporary_name(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()

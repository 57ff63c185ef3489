"""The weights of a run as a checkpoint for inference, in `DIR/export`.

`index.json` says under `training` which weights they are.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.checkpoints import native
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.run_export import EXPORT as FOLDER
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.training.distributed import is_primary, to_host


def export(
    directory: str | os.PathLike[str],
    config: UniXConfig,
    params: Mapping[str, Any],
    vae_params: Mapping[str, Any] | None,
    tokenizer: Path | None,
    *,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `directory`/export, in the place of an earlier one; all processes take part.

    Args:
      directory: of the run.
      config: of the model.
      params, vae_params: nested trees of arrays, wherever their parts are.
      tokenizer: a directory with tokenizer files and `source/`, which are copied, see
        `native.carried_files`; or the file tokenizer.json.
      record: what the weights are (`step`, `weights`), for index.json.

    Raises:
      UniXError: it cannot be written; an earlier export stays.
    """
    target = Path(directory).absolute() / FOLDER
    fresh = target.with_name(f".{FOLDER}-new")
    trees = [None if tree is None else gather(tree) for tree in (params, vae_params)]
    if not is_primary():
        return target
    shutil.rmtree(fresh, ignore_errors=True)
    assert trees[0] is not None
    write(fresh, config, trees[0], trees[1], tokenizer, record)
    try:
        _replace(target, fresh)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def write(
    target: Path,
    config: UniXConfig,
    params: Mapping[str, Any],
    vae_params: Mapping[str, Any] | None,
    tokenizer: Path | None,
    record: Mapping[str, Any] | None,
) -> None:
    """Writes the new directory `target` atomically from arrays that this process can read whole.

    Raises:
      UniXError: `target` exists already or cannot be written.
    """
    native.save(
        target,
        config,
        params,
        vae_params,
        copies=_carried_files(tokenizer),
        training=record,
    )


def gather(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A flat dictionary whose arrays this process can read whole."""
    flat = flatten(tree)
    # Arrays that this process holds are fetched one by one while they are written.
    return {
        path: value if getattr(value, "is_fully_addressable", True) else to_host(value)
        for path, value in flat.items()
    }


def recover(directory: Path) -> None:
    """Undoes what a kill left of `export`: an earlier export stays, half a new one goes."""
    target = directory / FOLDER
    old, fresh = (target.with_name(f".{FOLDER}-{name}") for name in ("old", "new"))
    shutil.rmtree(fresh, ignore_errors=True)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _replace(target: Path, fresh: Path) -> None:
    old = target.with_name(f".{FOLDER}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _carried_files(tokenizer: Path | None) -> list[tuple[Path, str]]:
    return [] if tokenizer is None else native.carried_files(tokenizer)

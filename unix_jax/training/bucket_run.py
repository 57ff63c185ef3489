"""The directory of a run that is in a bucket: a local copy, which is uploaded during the run."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from unix_jax.checkpoints import run_files
from unix_jax.checkpoints.run_export import EXPORT, RUN_FILE
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.storage import bucket_cache
from unix_jax.storage.bucket_path import BucketPath
from unix_jax.storage.working_copy import WorkingCopy, closing
from unix_jax.training.checkpoint_store import FOLDER

# What a run that resumes does not read.
_NOT_READ = (FOLDER, EXPORT, "previews", "tensorboard", "profile")
_LISTING = re.compile(rf"{FOLDER}/(\d+)/{run_files.LISTING}")


class LocalRun(NamedTuple):
    """The directory that a run writes.

    note: a line to say, or "". upload: returns when the bucket has what the directory has.
    """

    directory: Path
    note: str = ""
    upload: Callable[[], None] = lambda: None


@contextlib.contextmanager
def local_run(out: Path, break_lock: bool) -> Iterator[LocalRun]:
    """The local directory of a run, which is uploaded if `out` is in a bucket.

    Raises:
      UniXError: another run is writing it, it cannot be read or written, or there are several
        processes, whose local copies would be different ones.
    """
    if not isinstance(out, BucketPath):
        yield LocalRun(out)
        return
    if jax.process_count() > 1:
        raise ConfigError(
            f"--out {out}: expected one process, found {jax.process_count()}: each has a local "
            "copy of its own; with several, name a directory that all of them share, such as a "
            "bucket that is mounted with gcsfuse (docs/buckets.md)"
        )
    copy = WorkingCopy(str(out), _is_read, break_lock=break_lock)
    with closing(copy):
        _fetch_newest(copy)
        yield LocalRun(copy.path, copy.note, copy.sync)


def _is_read(name: str) -> bool:
    return not name.startswith(tuple(f"{part}/" for part in _NOT_READ)) or bool(
        _LISTING.fullmatch(name)
    )


def _fetch_newest(copy: WorkingCopy) -> None:
    """Downloads the newest checkpoint that is not damaged, and the damaged ones after it."""
    names = list(copy.names())
    found = sorted((int(m[1]) for name in names if (m := _LISTING.fullmatch(name))), reverse=True)
    for step in found:
        start = f"{FOLDER}/{step}/"
        copy.fetch([name for name in names if name.startswith(start)])
        with contextlib.suppress(CheckpointError):
            run_files.verify(copy.path / FOLDER / str(step))
            return


def fetch_listings(run: str | os.PathLike[str]) -> Path:
    """The local copy of what tells which checkpoints a run in a bucket has."""

    def select(names: Sequence[str], _: str | None) -> list[str]:
        return [name for name in names if name == RUN_FILE or _LISTING.fullmatch(name)]

    return bucket_cache.fetch(os.fspath(run), select)


def fetch_step(run: str | os.PathLike[str], step: int) -> Path:
    """The local copy of a run in a bucket with one of its checkpoints, to be exported."""

    def select(names: Sequence[str], _: str | None) -> list[str]:
        start = (f"{FOLDER}/{step}/", "frozen/", "tokenizer/")
        return [name for name in names if name == RUN_FILE or name.startswith(start)]

    return bucket_cache.fetch(os.fspath(run), select)

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
from unix_jax.errors import CheckpointError
from unix_jax.storage import bucket_cache
from unix_jax.storage.bucket_path import BucketPath
from unix_jax.storage.working_copy import WorkingCopy, closing, reading_copy
from unix_jax.training.checkpoint_store import FOLDER
from unix_jax.training.distributed import agree

# What a run that resumes does not read.
_NOT_READ = (FOLDER, EXPORT, "previews", "tensorboard", "profile")
_LISTING = re.compile(rf"{FOLDER}/(\d+)/{run_files.LISTING}")


class LocalRun(NamedTuple):
    """The directory that a run writes.

    note: a line to say, or "". upload: returns when the bucket has what the directory has.
    shared: whether all processes see the same directory.
    """

    directory: Path
    note: str = ""
    upload: Callable[[], None] = lambda: None
    shared: bool = True


@contextlib.contextmanager
def local_run(out: Path, break_lock: bool) -> Iterator[LocalRun]:
    """The local directory of a run, which is uploaded if `out` is in a bucket.

    Of several processes, process 0 holds the lock, and uploads its directory. The others have
    directories of their own with what a run that resumes reads; what they write goes nowhere.

    Raises:
      UniXError: another run is writing it, or it cannot be read or written; in every process.
    """
    if not isinstance(out, BucketPath):
        yield LocalRun(out)
        return
    url = str(out)
    with contextlib.ExitStack() as stack:
        copies: list[WorkingCopy] = []

        def open_copy() -> int | None:
            copy = WorkingCopy(url, _is_read, break_lock=break_lock)
            copies.append(stack.enter_context(closing(copy)))
            return _fetch_newest(copy)

        step = agree(open_copy)
        alone = jax.process_count() == 1
        if copies:
            yield LocalRun(copies[0].path, copies[0].note, copies[0].sync, alone)
        else:
            yield LocalRun(_opened(stack, url, step), shared=False)
        # The last upload may take minutes, after which the processes end together.
        agree(stack.close)


def _opened(stack: contextlib.ExitStack, url: str, step: int | None) -> Path:
    """The directory of a process other than 0."""
    start = (RUN_FILE, "tokenizer/", "frozen/", f"{FOLDER}/{step}/")
    wanted = (lambda name: name.startswith(start)) if step is not None else (lambda name: False)
    return stack.enter_context(reading_copy(url, wanted))


def _is_read(name: str) -> bool:
    return not name.startswith(tuple(f"{part}/" for part in _NOT_READ)) or bool(
        _LISTING.fullmatch(name)
    )


def _fetch_newest(copy: WorkingCopy) -> int | None:
    """Downloads the newest checkpoint that is not damaged, and the damaged ones after it.

    Returns its step, or None.
    """
    names = list(copy.names())
    found = sorted((int(m[1]) for name in names if (m := _LISTING.fullmatch(name))), reverse=True)
    for step in found:
        start = f"{FOLDER}/{step}/"
        copy.fetch([name for name in names if name.startswith(start)])
        with contextlib.suppress(CheckpointError):
            run_files.verify(copy.path / FOLDER / str(step))
            return step
    return None


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

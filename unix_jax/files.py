"""Writing results so that a crash leaves either the whole result or nothing."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from unix_jax.errors import UniXError
from unix_jax.storage import local_path


def _temporary_sibling(path: Path) -> Path:
    return path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary directory beside `path`; renames it to `path` on success.

    On any exception, Ctrl-C included, the temporary directory is removed.

    Raises:
      UniXError: `path` exists already (an empty directory is replaced), cannot be created, or is
        a URL.
    """
    target = local_path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UniXError(f"{path}: exists already; name a new directory")
    temporary = _temporary_sibling(target)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UniXError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary file name beside `path`; renames it to `path` on success.

    The directory of `path` is created. On any exception the temporary file is removed.

    Raises:
      UniXError: `path` is a directory or a URL, or its own directory cannot be created.
    """
    target = local_path(path).absolute()
    if target.is_dir():
        raise UniXError(f"{path}: expected a file, found a directory")
    temporary = _temporary_sibling(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UniXError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)

"""Atomic writes: after a crash the target is either complete or absent.

A killed process cannot remove its temporary directory, but the next process that writes the same
target does. A directory is abandoned when nobody holds its kernel lock, or, if there are no such
locks or another machine wrote it, when nothing in it has changed for a day.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from unix_jax.errors import UniXError
from unix_jax.storage import buckets
from unix_jax.storage.bucket_cache import INCOMPLETE, cache_directory
from unix_jax.storage.buckets import bucket_url, is_bucket
from unix_jax.storage.directory_lock import boot_identity
from unix_jax.storage.paths import local_path
from unix_jax.storage.shown import remember

_ABANDONED_SECONDS = 24 * 3600.0
_TEMPORARY = r"\.(?P<machine>[0-9a-f]{8})[0-9a-f]{8}\.tmp"


def _temporary_sibling(path: Path) -> Path:
    return path.parent / f".{path.name}.{_machine()}{uuid.uuid4().hex[:8]}.tmp"


def _machine() -> str:
    """Eight digits that identify this machine since its last start."""
    return hashlib.sha256(boot_identity().encode()).hexdigest()[:8]


def is_temporary_name(name: str) -> bool:
    """Whether `name` is one that `atomic_directory` or `atomic_write` makes."""
    return re.fullmatch(rf"\..+{_TEMPORARY}", name) is not None


def _sweep(target: Path) -> None:
    """Removes the temporary directories of `target` whose processes have ended."""
    own = re.compile(re.escape(f".{target.name}") + _TEMPORARY)
    try:
        found = [(e, m) for e in os.scandir(target.parent) if (m := own.fullmatch(e.name))]
    except OSError:
        return
    for entry, match in found:
        if not entry.is_dir(follow_symlinks=False):
            continue
        descriptor, locked = _held(Path(entry.path))
        if descriptor is None:
            continue
        try:
            # Another machine's locks may not be seen here.
            trusted = match["machine"] == _machine() and locked is not None
            if locked is True if trusted else _age(Path(entry.path)) > _ABANDONED_SECONDS:
                shutil.rmtree(entry.path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _held(directory: Path) -> tuple[int | None, bool | None]:
    """(descriptor or None if it is gone, whether its kernel lock is ours; None: no locks here)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None, None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return descriptor, False
    except OSError:
        return descriptor, None
    return descriptor, True


def _age(directory: Path) -> float:
    """Seconds since the last change in it."""
    newest = 0.0
    for path in (directory, *directory.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, path.lstat().st_mtime)
    return time.time() - newest


def _make_held(target: Path) -> tuple[Path, int]:
    """A new temporary directory and the descriptor that holds its lock."""
    while True:
        temporary = _temporary_sibling(target)
        temporary.mkdir(parents=True)
        descriptor, locked = _held(temporary)
        # Between the two lines above, a sweep may have taken it for an abandoned one.
        if descriptor is not None and locked is not False and temporary.exists():
            return temporary, descriptor
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary directory next to `path`; renames it to `path` on success.

    What is written for a bucket is uploaded on success, JSON files of the directory itself last. An
    upload that was killed leaves an object `.unix-jax-incomplete`, with which the directory counts
    as absent.

    On any exception, including Ctrl-C, the temporary directory is removed; those of killed
    processes with the same target are removed at the start.

    Raises:
      UniXError: `path` exists already (an empty directory is replaced), cannot be created, or is
        a URL of another kind.
    """
    if is_bucket(path):
        with _uploaded_directory(bucket_url(path)) as directory:
            yield directory
        return
    target = local_path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UniXError(f"{path}: exists already; name a new directory")
    _sweep(target)
    try:
        temporary, descriptor = _make_held(target)
    except OSError as error:
        raise UniXError(f"{path}: cannot be created: {error.strerror}") from error
    try:
        yield temporary
        if target.exists():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary file name next to `path`; renames it to `path` on success.

    The directory of `path` is created. What is written for a bucket is uploaded on success. On any
    exception the temporary file is removed.

    Raises:
      UniXError: `path` is a directory or another URL, or its own directory cannot be created.
    """
    if is_bucket(path):
        with _uploaded_file(bucket_url(path)) as file:
            yield file
        return
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


# --- buckets -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _local_directory(url: str) -> Iterator[Path]:
    """A temporary directory for what is uploaded later."""
    outputs = cache_directory() / "outputs"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2])[:40].lstrip(".")
    try:
        _sweep(outputs / name)
        temporary, descriptor = _make_held(outputs / name)
    except OSError as error:
        raise UniXError(
            f"{outputs} (UNIX_JAX_CACHE): cannot be written: {error.strerror or error}"
        ) from error
    remember(temporary, url)
    try:
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _uploaded_directory(url: str) -> Iterator[Path]:
    found = buckets.entries(url)
    if found and INCOMPLETE not in found:
        raise UniXError(f"{url}: exists already; name a new directory")
    with _local_directory(url) as temporary:
        yield temporary
        marker = buckets.join(url, INCOMPLETE)
        buckets.write(marker, b"")
        leftover = (buckets.join(url, name) for name in found if name != INCOMPLETE)
        buckets.run_all(functools.partial(buckets.delete, name) for name in leftover)
        files = {
            file: buckets.join(url, file.relative_to(temporary).as_posix())
            for file in temporary.rglob("*")
            if file.is_file()
        }
        last = [file for file in files if file.parent == temporary and file.suffix == ".json"]
        for group in (files.keys() - set(last), last):
            buckets.run_all(functools.partial(buckets.upload, file, files[file]) for file in group)
        buckets.delete(marker)


@contextlib.contextmanager
def _uploaded_file(url: str) -> Iterator[Path]:
    if buckets.is_folder(url):
        raise UniXError(f"{url}: expected a file, found a directory")
    folder, _, name = url.rpartition("/")
    with _local_directory(folder) as temporary:
        yield temporary / name
        buckets.upload(temporary / name, url)

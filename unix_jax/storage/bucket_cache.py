"""Local copies of what is read from buckets: a cache of bounded size that several processes share.

    UNIX_JAX_CACHE     its directory; the default is ~/.cache/unix-jax
    UNIX_JAX_CACHE_GB  its largest size in GB; the default is 100

A copy is a folder of its own, `buckets/NAME-DIGEST`, whose digest covers the URL and the sizes and
checksums of its objects, so that a changed object is another copy. A process holds a shared kernel
lock on each copy that it uses until it ends. The copies that were not used for the longest time and
are not held are removed where another one needs their space.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unix_jax.errors import StorageError, UniXError
from unix_jax.storage import buckets
from unix_jax.storage.buckets import Entry
from unix_jax.storage.shown import remember

# As of `unix_jax.storage.hub.Select`.
Select = Callable[[Sequence[str], str | None], Sequence[str]]

_COMPLETE = "complete.json"
_FILES = "files"
_GB = 10**9
# Locks of the copies that this process uses; the system releases them when it ends.
_HELD: dict[Path, int] = {}


def cache_directory() -> Path:
    """The directory of copies and of outputs that are on their way to a bucket."""
    given = os.environ.get("UNIX_JAX_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "unix-jax"


def fetch(url: str, select: Select) -> Path:
    """The local copy of a folder, with the objects that are needed; or of one object.

    Args:
      url: of either.
      select: chooses the names that are needed, as of `unix_jax.storage.hub`. The second argument
        is the name of the object that `url` is, or None.

    Raises:
      StorageError: there is nothing, or it cannot be read.
    """
    folder, file = url, None
    found = buckets.entries(url)
    if "" in found:
        folder, _, file = url.rpartition("/")
        found = buckets.entries(folder)
    if not found:
        raise StorageError(f"{url}: no such object or folder")
    if unfinished(found):
        raise StorageError(f"{url}: is not complete: its writer has not ended, or was killed")
    try:
        chosen = list(select(list(found), file))
    except UniXError as error:
        problem = str(error).replace("in the repository", "in the folder")
        raise StorageError(f"{url}: {problem}") from error
    copy = _copy(folder, {name: found[name] for name in chosen})
    return copy / file if file else copy


def fetch_file(url: str) -> Path:
    """The local copy of one object.

    Raises:
      StorageError: there is none, or it cannot be read.
    """
    found = buckets.entry(url)
    if found is None:
        raise buckets.MissingError(f"{url}: no such object")
    folder, _, name = url.rpartition("/")
    return _copy(folder, {name: found}) / name


INCOMPLETE = ".unix-jax-incomplete"
"""An object of this name means that a folder is being written, or that its writer was killed."""


def unfinished(found: Mapping[str, Entry]) -> bool:
    """Whether the objects of a folder are not all there yet."""
    return INCOMPLETE in found


def _copy(url: str, wanted: Mapping[str, Entry]) -> Path:
    """The folder with these objects of `url`; downloads what is not in the cache."""
    identity = json.dumps([url, [(name, e.size, e.tag) for name, e in sorted(wanted.items())]])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2])[:40].lstrip(".")
    home = cache_directory() / "buckets" / f"{name}-{digest}"
    try:
        _prepare(home, url, wanted)
    except OSError as error:
        raise StorageError(
            f"{url}: cannot be kept in {cache_directory()} (UNIX_JAX_CACHE): "
            f"{error.strerror or error}"
        ) from error
    folder = home / _FILES
    remember(folder, url)
    return folder


def _prepare(home: Path, url: str, wanted: Mapping[str, Entry]) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    size = sum(entry.size for entry in wanted.values())
    while True:
        descriptor = _HELD.get(home) or os.open(
            home.with_name(home.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o666
        )
        _HELD[home] = descriptor
        _lock(descriptor, fcntl.LOCK_SH)
        if (home / _COMPLETE).is_file():
            os.utime(home / _COMPLETE)
            return
        # One process downloads; the others wait, and find the copy.
        _lock(descriptor, fcntl.LOCK_EX)
        if (home / _COMPLETE).is_file():
            continue
        _make_room(home.parent, size, url)
        missing = {
            name: entry
            for name, entry in wanted.items()
            if not _is_whole(home / _FILES / name, entry)
        }
        _announce(url, missing)
        buckets.download_all(url, missing, home / _FILES)
        (home / _FILES).mkdir(parents=True, exist_ok=True)
        temporary = home / f".{os.getpid()}.part"
        temporary.write_text(json.dumps({"url": url, "bytes": size}), encoding="utf-8")
        os.replace(temporary, home / _COMPLETE)


def _is_whole(file: Path, entry: Entry) -> bool:
    try:
        return file.stat().st_size == entry.size
    except OSError:
        return False


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        # No such locks here: files still appear atomically.
        pass
    return True


def _limit() -> int:
    text = os.environ.get("UNIX_JAX_CACHE_GB") or "100"
    try:
        limit = float(text)
        if not 0 < limit < float("inf"):
            raise ValueError
    except ValueError:
        raise StorageError(
            f"UNIX_JAX_CACHE_GB: expected a number of GB above 0, found {text!r}"
        ) from None
    return int(limit * _GB)


def _make_room(folder: Path, size: int, url: str) -> None:
    """Removes the copies that were used least recently until `size` bytes fit the limit.

    Raises:
      StorageError: it cannot fit.
    """
    limit = _limit()
    copies = []
    for marker in folder.glob(f"*/{_COMPLETE}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            used = int(json.loads(marker.read_text(encoding="utf-8"))["bytes"])
            copies.append((marker.stat().st_mtime, used, marker.parent))
    total = size + sum(used for _, used, _ in copies)
    for _, used, home in sorted(copies):
        if total <= limit:
            return
        if home not in _HELD and _remove(home):
            total -= used
    if total > limit:
        raise StorageError(
            f"{url}: needs {size / _GB:.2f} GB of the cache {folder.parent}, in which "
            f"{(total - size) / _GB:.2f} of {limit / _GB:.2f} GB are in use; set UNIX_JAX_CACHE_GB "
            "to a larger size, or UNIX_JAX_CACHE to a larger disk"
        )


def _remove(home: Path) -> bool:
    """Removes a copy that no process holds; returns whether it was removed."""
    try:
        descriptor = os.open(home.with_name(home.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return False
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        # First: without it, what is left counts for nothing.
        (home / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)


def _announce(url: str, missing: Mapping[str, Entry]) -> None:
    """Says on standard error what is going to be downloaded, if it is worth a line."""
    size = sum(entry.size for entry in missing.values())
    if size >= 1_000_000:
        count = f"{len(missing)} file" + ("s" if len(missing) > 1 else "")
        print(
            f"{url}: downloading {count}, {size / 1e6:,.1f} MB, to {cache_directory()}",
            file=sys.stderr,
        )

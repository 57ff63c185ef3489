"""Directories that are written in a bucket: a local copy, which is uploaded while it changes.

A command writes its files as it does locally. A thread uploads what has changed every few seconds;
leaving the context uploads the rest. Because a bucket has no rename, the order counts:

1. The listing of a directory (`files.json`, `index.json`) whose other files change or go is
   deleted.
2. Files are uploaded, those that lines are appended to with whole lines alone.
3. Listings are uploaded, those of checkpoints last. A directory counts from its listing. What was
   logged before a checkpoint was written is in the bucket before it. A file that is written by its
   name comes after those beside it.
4. What has gone locally is deleted, after everything that was written before it went.

So a kill at any moment leaves each directory as it was, as it is, or without its listing; the next
writer removes the last kind. Temporary files are not uploaded.
"""

import contextlib
import dataclasses
import fcntl
import functools
import os
import re
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from unix_jax.errors import StorageError, UniXError
from unix_jax.storage import bucket_cache, buckets
from unix_jax.storage.bucket_lock import BucketLock
from unix_jax.storage.buckets import Entry
from unix_jax.storage.directory_lock import LOCK_FILE
from unix_jax.storage.files import is_temporary_name
from unix_jax.storage.shown import remember, shown

LISTINGS = ("files.json", "index.json")
# Other files are told apart by them, so they come first.
_FIRST = ("run.json", "settings.json")
_SECONDS = 2.0
_GROWING_SECONDS = 30.0
# Half-written by Orbax, by an export of a run, or by a probe; and what wandb uploads itself.
_LEFT_OUT = re.compile(r".*orbax-checkpoint-tmp.*|\.export-(new|old)|\.writable-.*|wandb")

Wanted = Callable[[str], bool]


@dataclasses.dataclass(frozen=True)
class _State:
    """A local file as it was when it was uploaded or downloaded."""

    size: int
    time: int


class WorkingCopy:
    """A local copy of a directory in a bucket, or of the files there whose names begin alike."""

    def __init__(
        self,
        url: str,
        wanted: Wanted = lambda name: True,
        *,
        start: str = "",
        last: str = "",
        break_lock: bool = False,
    ) -> None:
        """Takes the lock, and downloads what is there.

        Args:
          url: of the directory; it need not exist.
          wanted: whether the content of a name is needed. Others are empty files here, which are
            not uploaded as long as they are not changed.
          start: only names that begin with this belong to the copy.
          last: a name that is uploaded after all others.
          break_lock: take the lock from a process that cannot be checked.

        Raises:
          UniXError: another process is writing it, or it cannot be read or written.
        """
        self.url, self._start, self._last = url, start, last
        self._lock = BucketLock(url, name=f"{start}{LOCK_FILE}", break_lock=break_lock)
        self.note = self._lock.note
        self._syncing = threading.Lock()
        # Of each name in the bucket that belongs to this copy: the local file that it equals.
        self._known: dict[str, _State | None] = {}
        self._home, self._descriptor = _new_home(url)
        self.path = self._home / "files"
        self.path.mkdir()
        remember(self.path, url)
        self._stop = threading.Event()
        self._lost: UniXError | None = None
        self._uploaded = time.monotonic()
        self._threads: list[threading.Thread] = []
        # A download may take longer than a lock counts without being renewed.
        self._begin(self._renew)
        try:
            self._found = {
                name: entry
                for name, entry in buckets.entries(url).items()
                if name.startswith(start) and self._belongs(name)
            }
            self._download(wanted)
        except BaseException:
            self._end_threads()
            self._close()
            raise
        self._begin(self._upload_changes)

    def _begin(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"{work.__name__} {self.url}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _end_threads(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def fetch(self, names: list[str]) -> None:
        """Downloads the content of names that were left empty."""
        wanted = {name: self._found[name] for name in names if name in self._found}
        # Meanwhile an upload would take them for changed ones.
        with self._syncing:
            buckets.download_all(self.url, wanted, self.path)
            for name in wanted:
                self._known[name] = _state(self.path / name)

    def names(self) -> dict[str, Entry]:
        """What was in the bucket at the start, without unfinished directories."""
        return {name: entry for name, entry in self._found.items() if self._known.get(name)}

    def sync(self) -> None:
        """Uploads what has changed.

        Raises:
          UniXError: the bucket cannot be written, or another process has taken its lock.
        """
        with self._syncing:
            self._sync(patient=False)

    def close(self) -> None:
        """Uploads the rest, and removes the local copy and the lock.

        Raises:
          UniXError: it cannot be uploaded; then the local copy stays, and the error names it.
        """
        self._end_threads()
        try:
            self.sync()
        except UniXError as error:
            with contextlib.suppress(OSError):
                os.replace(self.path, kept := self._home.with_name(f"{self._home.name}-kept"))
                raise StorageError(
                    f"{error}. The files that were not uploaded are in {kept}"
                ) from error
            raise
        finally:
            self._close()

    def _close(self) -> None:
        self._lock.release()
        shutil.rmtree(self._home, ignore_errors=True)
        os.close(self._descriptor)

    def _belongs(self, name: str) -> bool:
        plain = name.startswith(self._start) and name != f"{self._start}{LOCK_FILE}"
        return plain and not any(map(_is_left_out, name.split("/")))

    def _download(self, wanted: Wanted) -> None:
        listed = {_folder(name) for name in self._found if _is_listing(name)}
        # A checkpoint or a frozen state without its listing was not complete.
        for name in self._found:
            unit = _checkpoint(name)
            if unit is not None and unit not in listed:
                self._known[name] = None
        here = {name: e for name, e in self._found.items() if name not in self._known}
        content = {name: e for name, e in here.items() if wanted(name)}
        buckets.download_all(self.url, content, self.path)
        for name in here:
            file = self.path / name
            if name not in content:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            self._known[name] = _state(file)

    def _renew(self) -> None:
        while not self._stop.wait(_SECONDS):
            try:
                self._lock.renew()
            except UniXError as error:
                # A bucket that cannot be reached for a while has not given the lock away.
                if self._lock.is_lost():
                    self._lost = error
                    return

    def _upload_changes(self) -> None:
        failed = False
        while not self._stop.wait(_SECONDS):
            try:
                with self._syncing:
                    self._sync(patient=True)
                failed = False
            except UniXError as error:
                if not failed:
                    warnings.warn(f"{shown(error)}; the upload is tried again", stacklevel=2)
                failed = True

    def _sync(self, patient: bool) -> None:
        """Uploads what has changed; `patient`: files that only grow, every half minute."""
        if self._lost is not None:
            raise self._lost
        states = dict(self._scan())
        if gone := [name for name in self._known if name not in states]:
            # What was written before they went may have appeared after the scan had passed it.
            states = dict(self._scan())
            gone = [name for name in gone if name not in states]
        changed = [name for name, state in states.items() if self._known.get(name) != state]
        waited = time.monotonic() - self._uploaded
        if patient and not gone and waited < _GROWING_SECONDS and all(map(_grows, changed)):
            return
        self._uploaded = time.monotonic()
        touched = {_unit(name, states.keys() | self._known.keys()) for name in (*changed, *gone)}
        for unit in touched - {None}:
            for listing in LISTINGS:
                name = f"{unit}/{listing}"
                if name in self._known:
                    buckets.delete(buckets.join(self.url, name))
                    del self._known[name]
                    if name in states and name not in changed:
                        changed.append(name)
        late = [name for name in changed if _is_listing(name) or name == self._last]
        plain = [name for name in changed if name not in late]
        first = [name for name in plain if name in _FIRST]
        broken: set[str | None] = set()

        def upload(name: str) -> None:
            try:
                self._upload(name)
            except FileNotFoundError:
                # It was removed meanwhile, and so will be what belongs to it.
                broken.add(_unit(name, states.keys() | self._known.keys()))
                return
            self._known[name] = states[name]

        for name in first:
            upload(name)
        buckets.run_all(functools.partial(upload, name) for name in plain if name not in first)
        for name in sorted(late, key=lambda name: (name.startswith("checkpoints/"), name)):
            if _folder(name) not in broken:
                upload(name)
        for name in gone:
            if name in self._known:
                buckets.delete(buckets.join(self.url, name))
                del self._known[name]

    def _upload(self, name: str) -> None:
        file, url = self.path / name, buckets.join(self.url, name)
        if not _grows(name):
            buckets.upload(file, url)
            return
        data = file.read_bytes()
        whole = data.rfind(b"\n") + 1 if name.endswith(".jsonl") else len(data)
        buckets.write(url, data[:whole])

    def _scan(self) -> Iterator[tuple[str, _State]]:
        """(name, state) of every local file that belongs to the copy."""
        for folder, folders, files in os.walk(self.path):
            inside = Path(folder).relative_to(self.path).as_posix()
            front = "" if inside == "." else f"{inside}/"
            folders[:] = [folder for folder in folders if not _is_left_out(folder)]
            for file in files:
                if self._belongs(name := front + file):
                    with contextlib.suppress(FileNotFoundError):
                        yield name, _state(Path(folder) / file)


@contextlib.contextmanager
def working_copy(
    path: str | os.PathLike[str],
    wanted: Wanted = lambda name: True,
    *,
    break_lock: bool = False,
) -> Iterator[Path]:
    """The local directory to write into: `path` itself, or a copy of one in a bucket.

    Args:
      path: a local path, or a URL.
      wanted, break_lock: as of `WorkingCopy`.
    """
    if not buckets.is_bucket(path):
        yield Path(path)
        return
    copy = WorkingCopy(buckets.bucket_url(path), wanted, break_lock=break_lock)
    with closing(copy):
        yield copy.path


@contextlib.contextmanager
def working_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The local file to write: `path` itself, or a copy of one in a bucket.

    Files beside it whose names begin with its own name without a suffix belong to the copy, and are
    uploaded before it.
    """
    if not buckets.is_bucket(path):
        yield Path(path)
        return
    folder, _, name = buckets.bucket_url(path).rpartition("/")
    copy = WorkingCopy(folder, start=Path(name).stem, last=name)
    with closing(copy):
        yield copy.path / name


@contextlib.contextmanager
def closing(copy: WorkingCopy) -> Iterator[WorkingCopy]:
    """Closes a copy; an error that is on its way wins over one of the last upload."""
    try:
        yield copy
    except BaseException:
        with contextlib.suppress(UniXError):
            copy.close()
        raise
    copy.close()


@contextlib.contextmanager
def reading_copy(url: str, wanted: Wanted) -> Iterator[Path]:
    """A local copy of the names of a directory in a bucket that are `wanted`; it is not uploaded.

    Raises:
      UniXError: it cannot be read.
    """
    home, descriptor = _new_home(url)
    try:
        path = home / "files"
        path.mkdir()
        remember(path, url)
        found = buckets.entries(url)
        buckets.download_all(url, {n: e for n, e in found.items() if n and wanted(n)}, path)
        yield path
    finally:
        shutil.rmtree(home, ignore_errors=True)
        os.close(descriptor)


def _new_home(url: str) -> tuple[Path, int]:
    """A new directory for a copy, and the descriptor that holds it; removes abandoned ones."""
    outputs = bucket_cache.cache_directory() / "outputs"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2])[:40].lstrip(".")
    try:
        outputs.mkdir(parents=True, exist_ok=True)
        for other in outputs.iterdir():
            _remove_abandoned(other)
        while True:
            home = outputs / f"{name}-{uuid.uuid4().hex[:8]}"
            home.mkdir()
            try:
                descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Another process that starts may have taken it for an abandoned one.
            if home.exists():
                break
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"{outputs} (UNIX_JAX_CACHE): cannot be written: {error.strerror or error}"
        ) from error
    return home, descriptor


def _remove_abandoned(home: Path) -> None:
    """Removes the copy of a process that was killed; what it had uploaded is in the bucket."""
    if home.name.endswith("-kept"):
        return
    try:
        descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(home, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(descriptor)


def _state(file: Path) -> _State:
    found = file.stat()
    return _State(found.st_size, found.st_mtime_ns)


def _is_left_out(name: str) -> bool:
    """Whether a file or directory of this name is half-written, and so not uploaded."""
    return is_temporary_name(name) or _LEFT_OUT.fullmatch(name) is not None


def _grows(name: str) -> bool:
    """Whether a file is one that lines or events are appended to."""
    return name.endswith(".jsonl") or "tfevents" in name


def _is_listing(name: str) -> bool:
    return name.rpartition("/")[2] in LISTINGS


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _checkpoint(name: str) -> str | None:
    """The directory of a training checkpoint that a name is in, or None."""
    match = re.match(r"((?:frozen/)?checkpoints/\d+)/", name)
    return match and match[1]


def _unit(name: str, names: object) -> str | None:
    """The innermost directory with a listing that a name is in, or None."""
    folder = _folder(name)
    while folder:
        if any(f"{folder}/{listing}" in names for listing in LISTINGS):  # type: ignore[operator]
            return folder
        folder = _folder(folder)
    return None

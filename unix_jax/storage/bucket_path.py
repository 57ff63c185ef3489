"""Paths of objects in buckets, for code that reads images and texts by `pathlib`'s methods."""

import contextlib
import errno
import io
import os
import stat as modes
from collections.abc import Generator, Iterator
from pathlib import Path, PosixPath
from typing import Any

from unix_jax.errors import StorageError
from unix_jax.storage import bucket_cache, buckets
from unix_jax.storage.paths import local_path


class BucketPath(PosixPath):
    """`gs://BUCKET/NAME` or `s3://BUCKET/NAME` with the methods of a `Path` that read.

    A read is one request; nothing is cached except by `read_ahead`. An object that cannot be
    read raises an OSError with one line in `strerror`, as a local file does. A local `Path` made of
    it names nothing, so methods that write raise an OSError.
    """

    _content: bytes | None = None

    def read_ahead(self, limit: int) -> "BucketPath":
        """This path with the first `limit` bytes of its object, which reads return from now on.

        An object that cannot be read raises its error when it is used.
        """
        path = BucketPath(self)
        with contextlib.suppress(OSError):
            path._content = self.read_at_most(limit)
        return path

    def __str__(self) -> str:
        # `pathlib` keeps one slash of the two.
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def __bytes__(self) -> bytes:
        return os.fsencode(str(self))

    def absolute(self) -> "BucketPath":
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def is_absolute(self) -> bool:
        return True

    @property
    def _url(self) -> str:
        """Raises a StorageError where `..` or an absolute name has led out of the bucket."""
        return buckets.bucket_url(str(self))

    def read_bytes(self) -> bytes:
        with self._as_local_error():
            return buckets.read(self._url)

    def read_at_most(self, limit: int) -> bytes:
        """The first `limit` bytes, in one request."""
        if self._content is not None:
            return self._content[:limit]
        with self._as_local_error():
            return buckets.read(self._url, limit)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *_: Any, **options: Any) -> Any:
        if set(mode) - set("rbt"):
            raise self._read_only()
        data = io.BytesIO(self.read_bytes())
        if "b" in mode:
            return data
        allowed = {k: v for k, v in options.items() if k in ("encoding", "errors", "newline")}
        return io.TextIOWrapper(data, **{"encoding": "utf-8"} | allowed)

    def stat(self, **_: Any) -> os.stat_result:
        with self._as_local_error():
            found = buckets.entry(self._url)
            if found is not None:
                mode, size, time = modes.S_IFREG | 0o444, found.size, found.time
            elif buckets.is_folder(self._url):
                mode, size, time = modes.S_IFDIR | 0o555, 0, 0.0
            else:
                raise buckets.MissingError(f"{self}: no such object")
        return os.stat_result((mode, 0, 0, 1, 0, 0, size, int(time), int(time), int(time)))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def exists(self, **_: Any) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self, **_: Any) -> bool:
        return self.exists() and modes.S_ISREG(self.stat().st_mode)

    def is_dir(self, **_: Any) -> bool:
        with self._as_local_error():
            return buckets.is_folder(self._url)

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Generator["BucketPath", None, None]:
        with self._as_local_error():
            yield from (self / name for name in buckets.children(self._url))

    def glob(self, pattern: Any, **_: Any) -> Iterator["BucketPath"]:  # type: ignore[override]
        """The names directly below that fit; `**` is not supported."""
        if "/" in str(pattern):
            raise NotImplementedError(f"{self}: glob: {pattern}")
        return (path for path in self.iterdir() if path.match(str(pattern)))

    def rglob(self, pattern: Any, **_: Any) -> Iterator["BucketPath"]:  # type: ignore[override]
        """The objects below whose name fits."""
        with self._as_local_error():
            found = [self / name for name in buckets.entries(self._url) if name]
        return (path for path in found if path.match(str(pattern)))

    def _read_only(self) -> OSError:
        return OSError(errno.EROFS, "is in a bucket, and can only be read here", str(self))

    def mkdir(self, *_: Any, **__: Any) -> None:
        raise self._read_only()

    def touch(self, *_: Any, **__: Any) -> None:
        raise self._read_only()

    def unlink(self, *_: Any, **__: Any) -> None:
        raise self._read_only()

    def rmdir(self) -> None:
        raise self._read_only()

    def rename(self, target: Any) -> Any:
        raise self._read_only()

    def replace(self, target: Any) -> Any:
        raise self._read_only()

    def write_bytes(self, data: Any) -> int:
        raise self._read_only()

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        raise self._read_only()

    @contextlib.contextmanager
    def _as_local_error(self) -> Iterator[None]:
        try:
            yield
        except buckets.MissingError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self)) from error
        except StorageError as error:
            reason = str(error).removeprefix(f"{self}: ")
            raise OSError(errno.EIO, reason, str(self)) from error


def any_path(path: str | os.PathLike[str], argument: str | None = None) -> Path:
    """A local path, or that of a bucket; nothing is looked up.

    Args:
      path: a text or a path.
      argument: the name of the path in errors, such as `--out`.

    Raises:
      StorageError: another URL, an empty text, or another type.
    """
    if isinstance(path, str | os.PathLike) and buckets.is_bucket(path):
        return BucketPath(buckets.bucket_url(path, argument))
    return local_path(path, argument)


def path_of(path: str | os.PathLike[str]) -> Path:
    """As `any_path`, for a text that has passed a check of its own."""
    if isinstance(path, BucketPath):
        return path
    return any_path(path) if buckets.is_bucket(path) else Path(path)


def local_file(path: Path) -> Path:
    """A local file as it is; the cached copy of an object.

    Raises:
      StorageError: there is no such object, or it cannot be read.
    """
    return bucket_cache.fetch_file(str(path)) if isinstance(path, BucketPath) else path

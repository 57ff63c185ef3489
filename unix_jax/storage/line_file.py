"""Append-only file of lines, locked by one process; incomplete lines after a crash are removed."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from unix_jax.errors import UniXError
from unix_jax.storage.paths import local_path


class LineFile:
    """A file that is open for appending lines; use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file.

        It is not changed before `cut` or `append`, since it may belong to another process.

        Raises:
          UniXError: it cannot be written, or another process holds it.
        """
        self.path = local_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise unwritable(path, error) from None
        self._file: BinaryIO = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._lock()
            self._end = sum(len(line) for line in whole_lines(path))
        except BaseException:
            self._file.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of its whole lines."""
        return self._end

    def append(self, lines: bytes) -> int:
        """Appends lines; they are on disk when this returns. Returns the offset of the first.

        Raises:
          UniXError: they cannot be written. Earlier lines stay intact.
        """
        offset = self._end
        try:
            self._file.seek(offset)
            written = 0
            while written < len(lines):
                written += self._file.write(lines[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self.cut()
            raise unwritable(self.path, error) from None
        self._end += len(lines)
        return offset

    def cut(self) -> None:
        """Removes an incomplete line after a crash or a full disk.

        Raises:
          UniXError: it cannot be written.
        """
        try:
            self._file.truncate(self._end)
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UniXError(f"{self.path}: another run is writing it") from None

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, each with its newline; a last line without one is ignored.

    Raises:
      UniXError: it cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                yield line
    except OSError as error:
        raise UniXError(f"{path}: cannot be read: {error.strerror}") from None


def unwritable(path: Path, error: OSError) -> UniXError:
    """The error for a file that cannot be written."""
    return UniXError(f"{path}: cannot be written: {error.strerror}")

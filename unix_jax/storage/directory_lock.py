"""Directory lock: one process writes a directory at a time.

`DIRECTORY/run.lock` is created only if it is absent, and contains its owner. If the file system has
kernel locks, the owner also holds one on this file until the process ends, so that a dead owner on
the same machine is detected reliably. Otherwise the process number and the start time of the
process are compared. An owner on another machine cannot be checked.

Not covered: NFS before version 3 (creation is not atomic there), and two processes that take over
the same stale lock at the same moment on a file system without kernel locks.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from unix_jax.errors import UniXError

LOCK_FILE = "run.lock"
_ATTEMPTS = 20


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    host: its name. boot: identifies the machine and its last start. namespace: of its process
    number, which containers number anew. started: when the process started, in the kernel's ticks.
    since: when it took the lock. token: is different for every lock that was ever taken.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def boot_identity() -> str:
    """Identifies this machine and its last start; "" if the system does not provide it."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def this_process() -> Owner:
    """The owner record of this process."""
    return Owner(
        socket.gethostname(),
        boot_identity(),
        _namespace(),
        os.getpid(),
        _start_of(os.getpid()),
        datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        uuid.uuid4().hex,
    )


def is_running(owner: Owner) -> bool | None:
    """Whether the process exists; None if this cannot be determined from here."""
    if owner.host != socket.gethostname():
        return None
    if owner.boot != boot_identity():
        return False
    if owner.namespace != _namespace():
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return _start_of(owner.pid) == owner.started


class DirectoryLock:
    """Holds a directory from construction until `release`; use as a context manager.

    `note` is a line of text if the lock of a process that has ended was taken over, else "".
    """

    def __init__(self, directory: str | os.PathLike[str], *, break_lock: bool = False) -> None:
        """Takes the lock. Nothing else in the directory is touched.

        Args:
          directory: created if absent.
          break_lock: take the lock from a process that cannot be checked.

        Raises:
          UniXError: another process holds the lock, or the directory cannot be written.
        """
        self.path = Path(directory).absolute() / LOCK_FILE
        self.note = ""
        self._owner = this_process()
        try:
            self._created = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                if self._try(break_lock):
                    return
        except OSError as error:
            file = error.filename or self.path
            raise UniXError(f"{file}: cannot be written: {error.strerror or error}") from None
        raise UniXError(f"{self.path}: changes too often; other runs are starting here")

    def release(self) -> None:
        """Removes the lock, unless another process broke it meanwhile."""
        with contextlib.suppress(OSError):
            if _read_owner(self._descriptor) == _owner_at(self.path) == self._owner:
                self.path.unlink()
        os.close(self._descriptor)
        if self._created:
            with contextlib.suppress(OSError):
                # Not empty, if the run has begun.
                self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.release()

    def _try(self, break_lock: bool) -> bool:
        """Takes the lock, or returns False when the file changed meanwhile."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            created = True
        except FileExistsError:
            try:
                descriptor = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                return False
            created = False
        kept = False
        try:
            locked = _kernel_lock(descriptor)
            if not _is_at(descriptor, self.path):
                return False
            if not created or locked is False:
                holder = _read_owner(descriptor)
                if not self._may_take(holder, locked, break_lock):
                    raise self._refusal(holder)
                if locked is False:
                    # The holder keeps its kernel lock on this file: a new file needs a new one.
                    self.path.unlink(missing_ok=True)
                    return False
                ended = "has ended" if holder is None or _has_ended(holder, locked) else "is broken"
                self.note = f"took over {self.path}: {holder or 'its process'} {ended}"
            _write_owner(descriptor, self._owner)
            self._descriptor, kept = descriptor, True
            return True
        finally:
            if not kept:
                os.close(descriptor)

    def _may_take(self, holder: Owner | None, locked: bool | None, break_lock: bool) -> bool:
        if holder is None:
            # Killed before it wrote its name, or it is just about to.
            return locked is True or break_lock
        if is_running(holder):
            return False
        return break_lock or _has_ended(holder, locked)

    def _refusal(self, holder: Owner | None) -> UniXError:
        shown = f" ({holder})" if holder else ""
        text = f"another run is writing {self.path.parent}{shown}"
        if holder is None or not is_running(holder):
            text += (
                "; whether it still runs cannot be checked from here: if it has ended, start "
                "again with --break-lock"
            )
        return UniXError(text)


def _has_ended(holder: Owner, locked: bool | None) -> bool:
    """`locked`: the kernel's lock is ours (True), another's (False), or there is none (None)."""
    if locked is False or is_running(holder):
        return False
    same_machine = holder.boot == boot_identity() and bool(holder.boot)
    return is_running(holder) is False or (locked is True and same_machine)


def _kernel_lock(descriptor: int) -> bool | None:
    """True: we hold it; False: another process does; None: there are no such locks here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int, owner: Owner) -> None:
    text = json.dumps(dataclasses.asdict(owner)).encode() + b"\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text, 0)
    os.fsync(descriptor)


def _read_owner(descriptor: int) -> Owner | None:
    return parse_owner(os.pread(descriptor, 1 << 16, 0))


def _owner_at(path: Path) -> Owner | None:
    return parse_owner(path.read_bytes())


def parse_owner(text: bytes) -> Owner | None:
    """The owner that the content of a lock names; None if the content is incomplete."""
    try:
        values: Any = json.loads(text)
        owner = Owner(**values)
    except (ValueError, TypeError, RecursionError):
        return None
    fields = dataclasses.asdict(owner)
    pid = fields.pop("pid")
    whole = type(pid) is int and pid > 0 and all(isinstance(v, str) for v in fields.values())
    return owner if whole else None


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Start time of a process, in ticks; "ended" for a zombie; "" if unknown."""
    state = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(state) < 20:
        return ""
    return "ended" if state[0] in "ZX" else state[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""

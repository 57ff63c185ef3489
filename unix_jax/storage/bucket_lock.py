"""The lock on a directory in a bucket: one process writes it at a time.

`DIRECTORY/run.lock` is created only if it does not exist, which a bucket does atomically, and
contains its owner. The owner writes it anew every half minute. A lock that has not been renewed for
five minutes belongs to a process that has ended, and so does that of a process that is known to
have ended on this machine.

Not covered: two processes that take over the same abandoned lock within the same second. The one
whose lock is gone ends at its next renewal.
"""

import contextlib
import dataclasses
import json
import time
import uuid

from unix_jax.errors import UniXError
from unix_jax.storage import buckets
from unix_jax.storage.directory_lock import (
    LOCK_FILE,
    Owner,
    is_running,
    parse_owner,
    this_process,
)

RENEWED_SECONDS = 30.0
ABANDONED_SECONDS = 300.0
_ATTEMPTS = 20


class BucketLock:
    """Holds a directory in a bucket from construction until `release`.

    `note` is a line of text if the lock of a process that has ended was taken over, else "".
    """

    def __init__(self, directory: str, *, name: str = LOCK_FILE, break_lock: bool = False) -> None:
        """Takes the lock.

        Args:
          directory: its URL.
          name: of the lock's object.
          break_lock: take the lock from a process that cannot be checked.

        Raises:
          UniXError: another process holds the lock, or the bucket cannot be written.
        """
        self.url = buckets.join(directory, name)
        self._directory = directory
        self.note = ""
        self._owner = this_process()
        self._content = json.dumps(dataclasses.asdict(self._owner)).encode() + b"\n"
        self._renewed = time.monotonic()
        for _ in range(_ATTEMPTS):
            if buckets.create(self.url, self._content):
                return
            self._take_over(break_lock)
        raise UniXError(f"{self.url}: changes too often; other runs are starting here")

    def renew(self) -> None:
        """Writes the lock anew, if it is time.

        Raises:
          UniXError: another process has taken it.
        """
        if time.monotonic() - self._renewed < RENEWED_SECONDS:
            return
        if (holder := self._holder()) != self._owner:
            raise UniXError(f"{self._directory}: another run has taken its lock ({holder})")
        buckets.write(self.url, self._content)
        self._renewed = time.monotonic()

    def is_lost(self) -> bool:
        """Whether another process has the lock; False where the bucket cannot be asked."""
        try:
            return self._holder() != self._owner
        except UniXError:
            return False

    def release(self) -> None:
        """Removes the lock, unless another process has taken it."""
        with contextlib.suppress(UniXError):
            if self._holder() == self._owner:
                buckets.delete(self.url)

    def _holder(self) -> Owner | None:
        try:
            return parse_owner(buckets.read(self.url))
        except buckets.MissingError:
            return None

    def _take_over(self, break_lock: bool) -> None:
        """Removes the lock of a process that has ended; returns if it has gone by itself, too."""
        found = buckets.entry(self.url)
        if found is None:
            return
        holder = self._holder()
        running = None if holder is None else is_running(holder)
        abandoned = self._now() - found.time > ABANDONED_SECONDS
        if running or not (running is False or abandoned or break_lock):
            shown = f" ({holder})" if holder else ""
            text = f"another run is writing {self._directory}{shown}"
            if not running:
                text += (
                    "; whether it still runs cannot be checked from here: its lock counts for "
                    f"{ABANDONED_SECONDS / 60:.0f} minutes after its end; if it has ended, start "
                    "again then, or with --break-lock"
                )
            raise UniXError(text)
        ended = "has ended" if running is False or abandoned else "is broken"
        self.note = f"took over {self.url}: {holder or 'its process'} {ended}"
        buckets.delete(self.url)

    def _now(self) -> float:
        """The bucket's time, since clocks of machines differ."""
        probe = f"{self.url}.{uuid.uuid4().hex[:8]}"
        buckets.write(probe, b"")
        try:
            found = buckets.entry(probe)
            return time.time() if found is None else found.time
        finally:
            buckets.delete(probe)

"""A bound on the uploads that are on disk at a time: of one visitor, and of all visitors."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class _Upload:
    expires: float
    visitor: str
    size: int


class UploadBudget:
    """Counts uploads until their files are deleted. Used by the event loop alone.

    Args:
      visitor_bytes: bytes of one visitor's uploads.
      total_bytes: bytes of all uploads.
      seconds: time after which an upload has been deleted.
      now: the present time in seconds.
    """

    def __init__(
        self,
        visitor_bytes: int,
        total_bytes: int,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._visitor_bytes, self._total_bytes = visitor_bytes, total_bytes
        self._seconds, self._now = seconds, now
        self._uploads: deque[_Upload] = deque()

    def refusal(self, visitor: str, size: int) -> str | None:
        """Why an upload of `size` bytes must be refused; None if it is accepted and counted.

        Args:
          visitor: the visitor's address. A session's name comes from the browser, and could be
            another one for each upload.
        """
        now = self._now()
        while self._uploads and self._uploads[0].expires <= now:
            self._uploads.popleft()
        own = sum(upload.size for upload in self._uploads if upload.visitor == visitor)
        total = sum(upload.size for upload in self._uploads)
        for found, most, whose in (
            (own, self._visitor_bytes, "from your address"),
            (total, self._total_bytes, "from all visitors"),
        ):
            if found + size > most:
                return (
                    f"Expected at most {most / 2**20:g} MB of uploads {whose} in "
                    f"{self._seconds / 60:g} minutes, found {(found + size) / 2**20:.0f} MB. "
                    "Try again later."
                )
        self._uploads.append(_Upload(now + self._seconds, visitor, size))
        return None

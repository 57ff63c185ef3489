"""Jobs that wait, and the one thread that runs them in batches.

The thread takes the oldest job, and those after it that can be computed together with it, as long
as they fit the largest batch. While the model computes, jobs collect, and a batch that has room may
take the oldest of them. When it is idle, the first job waits for a short window.
"""

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.refusals import RequestError
from unix_jax.serving.requests import Request

Deliver = Callable[[Any], None]


class Job:
    """A request on its way through the model.

    Attributes:
      request: what to compute.
      deliver: receives the pieces and the result, or an exception, on the scheduler's thread.
      arrived: when it was submitted, by `time.monotonic`.
      cancelled: whether nobody waits for it any more. It is checked between two steps.
    """

    def __init__(self, request: Request, deliver: Deliver) -> None:
        self.request, self.deliver = request, deliver
        self.arrived = time.monotonic()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stops the job at its next step, or before it begins."""
        self._cancelled.set()


Fits = Callable[[Request, int], bool]
Join = Callable[[Fits], Job | None]
Run = Callable[[Sequence[Job], Join], None]


def stopping() -> RequestError:
    """The error of requests that a server which is stopping does not compute."""
    return RequestError("The server is stopping.", status=503)


class Scheduler:
    """Runs jobs on a thread of its own, between `start` and `close`.

    Args:
      run: computes a batch of jobs of equal keys, and delivers to each. Its second argument adds
        the oldest job that waits to the batch and returns it, or None if that has another key or
        does not fit: later jobs do not overtake it. `fits` is called with the job's request and
        the number of jobs of its key that wait.
      limits: batch sizes and window.
    """

    def __init__(self, run: Run, limits: ServeLimits) -> None:
        self._run, self._limits = run, limits
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are computed."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        with self._changed:
            return sum(not job.cancelled for job in self._jobs)

    def submit(self, request: Request, deliver: Deliver) -> Job:
        """The job of a request.

        Raises:
          RequestError: the server is stopping.
        """
        job = Job(request, deliver)
        with self._changed:
            if self._closed or not self.alive:
                raise stopping()
            self._jobs.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Stops the thread after its present step; jobs that wait get an error."""
        with self._changed:
            self._closed = True
            left, self._jobs = list(self._jobs), deque()
            self._changed.notify()
        for job in left:
            job.deliver(stopping())
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _work(self) -> None:
        while batch := self._next():
            try:
                self._run(tuple(batch), functools.partial(self._join, batch))
            except Exception as error:
                # The message of a visitor's mistake is sent to the visitor; this is none.
                logging.getLogger(__name__).exception("a batch of %d jobs failed", len(batch))
                for job in batch:
                    job.deliver(error)
            if self._closed:
                for job in batch:
                    job.deliver(stopping())

    def _join(self, batch: list[Job], fits: Fits) -> Job | None:
        with self._changed:
            self._jobs = deque(job for job in self._jobs if not job.cancelled)
            key = batch[0].request.key
            waiting = sum(job.request.key == key for job in self._jobs)
            first = self._jobs[0].request if self._jobs else None
            if first is None or first.key != key or not fits(first, waiting):
                return None
            batch.append(self._jobs.popleft())
            return batch[-1]

    def _next(self) -> list[Job]:
        """The next batch, as soon as its window has passed; empty after `close`."""
        with self._changed:
            while True:
                self._jobs = deque(job for job in self._jobs if not job.cancelled)
                if self._closed:
                    return []
                if not self._jobs:
                    self._changed.wait()
                    continue
                batch = self._together()
                rows = sum(job.request.rows for job in batch)
                left = self._jobs[0].arrived + self._limits.window - time.monotonic()
                if left <= 0 or rows >= self._limits.largest_batch:
                    taken = set(map(id, batch))
                    self._jobs = deque(job for job in self._jobs if id(job) not in taken)
                    return batch
                self._changed.wait(left)

    def _together(self) -> list[Job]:
        """The oldest job and those of its key after it, while they fit the largest batch."""
        first, rows = self._jobs[0], 0
        batch = []
        for job in self._jobs:
            if job.request.key != first.request.key:
                continue
            rows += job.request.rows
            if rows > self._limits.largest_batch:
                break
            batch.append(job)
        return batch

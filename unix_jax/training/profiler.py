"""A profiler trace of a few steps, for TensorBoard's profile page or Perfetto."""

from pathlib import Path
from typing import Self

import jax

FOLDER = "profile"


class Profiler:
    """Traces steps `start` to `start + steps - 1` into DIR/profile; None traces nothing."""

    def __init__(self, directory: Path, start: int | None, steps: int) -> None:
        self._path = directory / FOLDER
        self._first, self._last = (0, -1) if start is None else (start, start + steps - 1)
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """To be called before a step."""
        if not self._running and self._first <= step <= self._last:
            jax.profiler.start_trace(str(self._path))
            self._running = True

    def after(self, step: int) -> None:
        """To be called when a step's numbers are on the host."""
        if step >= self._last:
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

"""Stopping in good order: SIGTERM (preemption) and Ctrl-C are heeded at the end of a step."""

import os
import signal
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

INTERRUPTED = 130
_STANDARD_ERROR = 2


class StopRequest:
    """While entered, the first SIGTERM or Ctrl-C is noted, and a second Ctrl-C quits at once.

    With several processes, a signal to any of them stops all at the same step: JAX's preemption
    service hears SIGTERM and agrees on the step.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._several = jax.process_count() > 1

    def __enter__(self) -> Self:
        # JAX's own handler of SIGTERM is kept for runs of several processes, which use it.
        heard = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            # Written without a buffer, since the main thread may be inside a print.
            os.write(_STANDARD_ERROR, b"interrupted twice: quitting at once\n")
            os._exit(INTERRUPTED)
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            os.write(
                _STANDARD_ERROR,
                b"interrupted: finishing this step and writing a checkpoint; "
                b"Ctrl-C again quits at once\n",
            )
        if self._several:
            # Also informs the other processes.
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`; every process calls it for every step."""
        if self._several:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.signal is not None

    @property
    def name(self) -> str:
        """Of the signal, for messages."""
        return "a signal to another process" if self.signal is None else self.signal.name

    @property
    def exit_code(self) -> int:
        """Of a run that stopped in good order: 130 after Ctrl-C, else 0."""
        return INTERRUPTED if self.signal == signal.SIGINT else 0

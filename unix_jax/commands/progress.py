"""The progress bar of every command, on standard error.

A terminal shows a bar with the rate and the remaining time, and removes it at the end. In a log, a
line is printed at intervals.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from unix_jax.commands import terminal


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_rate(speed)}/s")


class ProgressLine:
    """Shows the number of finished items, their metrics, the rate and the remaining time."""

    def __init__(
        self,
        unit: str = "step",
        *,
        in_bytes: bool = False,
        shown: bool = True,
        seconds_between_lines: float = 30.0,
    ) -> None:
        """A progress line that has not started.

        Args:
          unit: name of one item, in the singular.
          in_bytes: items are bytes, and `unit` is the name of the task.
          shown: False prints nothing.
          seconds_between_lines: minimum interval between lines of a log.
        """
        self._unit, self._in_bytes, self._shown = unit, in_bytes, shown
        self._between = seconds_between_lines
        self._bar: Progress | None = None

    @contextlib.contextmanager
    def over(self, first: int, total: int | None) -> Iterator[None]:
        """Shows progress within the block, from `first` of `total` items; `update` may set the
        total.
        """
        self._first, self._total = first, total
        self._started = self._said = time.monotonic()
        counts = (
            (DownloadColumn(), TransferSpeedColumn())
            if self._in_bytes
            else (MofNCompleteColumn(), _Rate())
        )
        self._bar = Progress(
            TextColumn(self._unit),
            BarColumn(),
            *counts,
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=terminal.ERRORS,
            transient=True,
            # In a log the bar would leave an empty line.
            disable=not (self._shown and terminal.ERRORS.is_terminal),
        )
        self._task = self._bar.add_task(self._unit, total=total, completed=first, numbers="")
        with self._bar:
            yield

    def update(
        self,
        done: int,
        numbers: Mapping[str, float | None] | None = None,
        *,
        total: int | None = None,
    ) -> None:
        """Sets the number of finished items. With `numbers`, which may be empty, a line may be
        printed in a log.
        """
        assert self._bar is not None
        self._total = total or self._total
        self._bar.update(self._task, completed=done, total=self._total)
        if numbers is None:
            return
        self._bar.update(self._task, numbers=describe_numbers(numbers))
        now = time.monotonic()
        if terminal.ERRORS.is_terminal:
            return
        if now - self._said < self._between and done < (self._total or 0):
            return
        self._said = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = "unknown"
        if rate > 0 and self._total is not None:
            left = _duration((self._total - done) / rate)
        unit = self._unit
        speed = f"{_rate(rate)} {unit}s/s, {left} left"
        self.say(f"{unit} {done}/{self._total} {describe_numbers(numbers)} | {speed}")

    def say(self, line: str) -> None:
        """Prints a permanent line."""
        if self._shown:
            terminal.say(line)

    def warn(self, line: str) -> None:
        """Prints a permanent warning."""
        if self._shown:
            terminal.warn(line)


@contextlib.contextmanager
def advancing(unit: str, total: int | None = None, *, in_bytes: bool = False) -> Iterator[Callable]:
    """A `ProgressLine`; yields `advance(count=1, total=None)`, which adds finished items."""
    line = ProgressLine(unit, in_bytes=in_bytes)
    done = 0

    def advance(count: int = 1, total: int | None = None) -> None:
        nonlocal done
        done += count
        line.update(done, total=total)

    with line.over(0, total):
        yield advance


def describe_numbers(numbers: Mapping[str, float | None]) -> str:
    """`name value` of each number that is not None, except the step."""
    shown = {name: value for name, value in numbers.items() if value is not None and name != "step"}
    return " ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in shown.items()
    )


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

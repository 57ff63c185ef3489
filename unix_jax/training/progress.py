"""The progress line of a run: rate and time left on a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressLine:
    """Shows the step, its numbers, the rate and the time left on standard error."""

    def __init__(
        self, *, seconds_between_lines: float = 30.0, shown: bool = True, unit: str = "step"
    ) -> None:
        """`shown` off says nothing at all. Where there is no terminal, lines are that far apart."""
        self._unit = unit
        self._console = Console(stderr=True, quiet=not shown, highlight=False, soft_wrap=True)
        self._between = seconds_between_lines
        self._bar: Progress | None = None

    @contextlib.contextmanager
    def over(self, first: int, total: int) -> Iterator[None]:
        """Shows progress over steps; `first` of `total` are done."""
        self._first, self._total = first, total
        self._started = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn(self._unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(self._unit, total=total, completed=first, numbers="")
        with self._bar:
            yield

    def update(self, step: int, numbers: Mapping[str, float | None] | None = None) -> None:
        """Moves on to `step`; with `numbers`, shows them."""
        assert self._bar is not None
        fields = {} if numbers is None else {"numbers": describe_numbers(numbers)}
        self._bar.update(self._task, completed=step, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        if self._console.is_terminal or numbers is None:
            return
        if now - self._said < self._between and step < self._total:
            return
        self._said = now
        rate = (step - self._first) / max(now - self._started, 1e-9)
        left = _duration((self._total - step) / rate) if rate > 0 else "unknown"
        unit = self._unit
        speed = f"{rate:.3g} {unit}s/s, {left} left"
        self.say(f"{unit} {step}/{self._total} {describe_numbers(numbers)} | {speed}")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, markup=False)


def describe_numbers(numbers: Mapping[str, float | None]) -> str:
    """`name value` of each number that is there, except the step."""
    shown = {name: value for name, value in numbers.items() if value is not None and name != "step"}
    return " ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in shown.items()
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

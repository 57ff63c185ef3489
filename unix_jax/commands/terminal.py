"""What every command does with errors, warnings, Ctrl-C and standard output.

Errors that an input caused are one message on standard error and exit code 1; Ctrl-C is 130.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from unix_jax.errors import ImageWarning, UniXError

ERRORS = Console(stderr=True)
INTERRUPTED = 130


def say(line: str, style: str | None = None) -> None:
    """Prints a line on standard error as it is."""
    ERRORS.print(line, style=style, highlight=False, soft_wrap=True, markup=False)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """`warnings.showwarning` without the line of code that the warning comes from."""
    say(f"warning: {' '.join(str(message).split())}", "yellow")


@contextlib.contextmanager
def progress_bar(unit: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error with rate and time left, which is removed at the end.

    Yields:
      A function that moves it on by one.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    bar = Progress(
        TextColumn("{task.description}"),
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=ERRORS,
        transient=True,
        # In a log it would leave an empty line.
        disable=not ERRORS.is_terminal,
    )
    with bar:
        task = bar.add_task("Computing", total=total)
        yield lambda: bar.advance(task)


def run_command(
    command: Callable[[], int | None],
    *,
    on_error: Callable[[UniXError], str] = str,
    interrupted: str = "interrupted",
) -> int:
    """Runs a whole command; returns its exit code.

    Args:
      command: parses its arguments, runs, and may return an exit code.
      on_error: the text of an error of ours.
      interrupted: what Ctrl-C says.
    """
    warnings.showwarning = show_warning
    warnings.simplefilter("always", ImageWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A report may hold a character that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            code = command() or 0
        finally:
            # Also at the end of `--help`, which leaves by SystemExit.
            sys.stdout.flush()
    except UniXError as error:
        return _failed(on_error(error))
    except KeyboardInterrupt:
        say(interrupted)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader ended early (`| head`), which is no error of this program.
        _close_output()
        return 0
    except OSError as error:
        _close_output()
        file = f"{error.filename}: " if error.filename else ""
        return _failed(f"{file}{error.strerror or error}")
    return code


def _failed(message: str) -> int:
    say(f"error: {message}", "red")
    return 1


def _close_output() -> None:
    """What is left in the buffer of standard output cannot be written, and is not tried again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

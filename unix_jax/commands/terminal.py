"""Errors, warnings, Ctrl-C and standard output of every command.

Errors caused by an input are printed as one message on standard error with exit code 1; the exit
code of Ctrl-C is 130.
"""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rich.console import Console

from unix_jax.errors import ImageWarning, SourceNote, UniXError
from unix_jax.storage.shown import shown

ERRORS = Console(stderr=True)
INTERRUPTED = 130


def say(line: str, style: str | None = None) -> None:
    """Prints a line on standard error, with the URLs of local copies instead of their paths."""
    ERRORS.print(shown(line), style=style, highlight=False, soft_wrap=True, markup=False)


def warn(message: Warning | str) -> None:
    """Prints a warning as one line on standard error."""
    say(f"warning: {' '.join(str(message).split())}", "yellow")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """`warnings.showwarning` without the line of code that the warning comes from."""
    if issubclass(category, SourceNote):
        say(f"note: {message}")
    else:
        warn(message)


class _LogLines(logging.Handler):
    """Prints log records in the form of this project's own warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        say(f"{record.levelname.lower()}: {self.format(record)}", style)


def _print_log() -> None:
    """Makes every command print logged warnings, such as those of the data loader."""
    root = logging.getLogger()
    if not any(isinstance(handler, _LogLines) for handler in root.handlers):
        root.addHandler(_LogLines(logging.WARNING))


def run_command(
    command: Callable[[], int | None],
    *,
    on_error: Callable[[UniXError], str] = str,
    interrupted: str = "interrupted",
) -> int:
    """Runs a complete command; returns its exit code.

    Args:
      command: parses its arguments, runs, and may return an exit code.
      on_error: the text to print for a `UniXError`.
      interrupted: the text to print after Ctrl-C.
    """
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", ImageWarning)
    warnings.simplefilter("always", SourceNote)
    _print_log()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A report may contain a character that the terminal's encoding does not support.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            code = command() or 0
        finally:
            # Also after `--help`, which raises SystemExit.
            sys.stdout.flush()
    except UniXError as error:
        return _failed(on_error(error))
    except KeyboardInterrupt:
        say(interrupted)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader ended early (`| head`), which is not an error of this program.
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
    """Discards the remaining buffer of standard output, which cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

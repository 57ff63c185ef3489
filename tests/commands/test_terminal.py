"""Standard error of every command: warnings, notes, the log and progress look alike."""

import io
import logging
import warnings

import pytest
from rich.console import Console

from unix_jax.commands import terminal
from unix_jax.commands.progress import ProgressLine, advancing
from unix_jax.commands.terminal import run_command
from unix_jax.errors import ImageWarning, SourceNote


@pytest.fixture
def screen(monkeypatch):
    """What a terminal of 120 columns is sent."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(terminal, "ERRORS", console)
    return shown


@pytest.fixture(autouse=True)
def _restored():
    """What `run_command` changes for a whole process."""
    handlers, shown = list(logging.getLogger().handlers), warnings.showwarning
    with warnings.catch_warnings():
        yield
    logging.getLogger().handlers[:], warnings.showwarning = handlers, shown


def test_log_warnings_and_notes_have_one_form(capsys):
    def command():
        logging.getLogger("unix_jax.data.loader").warning("broken sample left out: %s", "a.png")
        logging.getLogger("unix_jax.data.loader").info("not shown")
        warnings.warn("x-ray 3:\n  nearly black", ImageWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("safety_checker: not copied", SourceNote, stacklevel=1)

    assert run_command(command) == 0
    assert run_command(lambda: logging.warning("once")) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: broken sample left out: a.png",
        "warning: x-ray 3: nearly black",
        "note: safety_checker: not copied",
        "note: safety_checker: not copied",
        "warning: once",
    ]


def test_the_bar_of_a_terminal_counts_and_is_removed(screen):
    with advancing("record", 4) as advance:
        advance()
        advance(2)
        terminal.say("a line that stays")
    text = screen.getvalue()
    assert "record" in text
    assert "3/4" in text
    assert "a line that stays\n" in text
    assert text.endswith("\x1b[2K")


def test_bytes_and_a_total_that_is_told_later(screen):
    with advancing("import", in_bytes=True) as advance:
        advance(1_500_000, 6_000_000)
    assert "1.5/6.0 MB" in screen.getvalue()


def test_a_process_that_shows_nothing(screen):
    line = ProgressLine(shown=False, seconds_between_lines=0)
    with line.over(0, 2):
        line.update(1, {"loss": 1.0})
        line.say("x")
        line.warn("y")
    assert screen.getvalue() == ""

"""The commands of the documentation, for the tests that parse them and those that run them.

A comment `# needs SOMETHING` at the end of a command, or on a line of its own before commands of
its block, marks what cannot be shipped: weights, data, hardware, a key. Every other command is run.
"""

import itertools
import re
import shlex
import typing

from support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Longer names first: `unix-jax convert` has a command line of its own.
PROGRAMS = ("unix-jax convert", "unix-jax data", "unix-jax evaluate", "unix-jax")
SCRIPTS = ("benchmarks/", "examples/")
# Programs of others, which only their own documentation can check.
FOREIGN = {
    ".", "cd", "export", "gcloud", "git", "mkdocs", "pip", "pre-commit", "pytest", "python3.11",
    "ruff",
}  # fmt: skip
_NEEDS = re.compile(r"# needs (.+)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


NAMES = [name_of(page) for page in PAGES]


class Command(typing.NamedTuple):
    """One command of a page. environment: assignments before it; needs: what it is marked with."""

    line: int
    words: list[str]
    environment: dict[str, str]
    needs: str | None


def blocks(page, language):
    """(line number, text) of each block in that language."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found.group(1)


def prose(page):
    """The page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def split_commands(line):
    """(assignments, words) of the simple commands of a shell line, without launchers."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    for separator, words in itertools.groupby(lexer, lambda word: set(word) <= set("&|;")):
        if not separator:
            yield from _unwrapped(list(words))


def _unwrapped(words):
    environment = {}
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "time"):
        name, assigned, value = words[0].partition("=")
        if assigned:
            environment[name] = value
        words = words[1:]
    if words[:1] == ["srun"]:
        words = list(itertools.dropwhile(lambda word: word.startswith("-"), words[1:]))
    if not words:
        return
    words[0] = words[0].removeprefix(".venv/bin/")
    yield environment, words
    for word in words:
        # What a remote shell is told to do.
        if words[0] == "gcloud" and word.startswith("--command="):
            yield from split_commands(word.removeprefix("--command="))


def commands(page):
    """Every command of the page's ```bash blocks, in order."""
    for first, block in blocks(page, "bash"):
        needs = None
        for number, line in enumerate(block.splitlines(), first):
            assert not line.endswith("\\"), f"{page}:{number}: expected a command on one line"
            mark = _NEEDS.search(line)
            if line.startswith("#"):
                needs = mark and mark.group(1)
            here = mark.group(1) if mark else needs
            for environment, words in split_commands(line):
                yield Command(number, words, environment, here)


def scripts(page):
    """The page's ```python blocks that need nothing, as one script."""
    kept = [block for _, block in blocks(page, "python") if not _NEEDS.search(block)]
    return "\n".join(kept)


def program(words):
    """One of PROGRAMS, `train.py`, a script of SCRIPTS, or the first word."""
    for name in PROGRAMS:
        if words[: len(name.split())] == name.split():
            return name
    if words[0] == "python" and len(words) > 1:
        return words[1]
    return words[0]

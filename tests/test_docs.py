"""Documentation that cannot go stale: commands parse, code compiles, links lead somewhere.

A command of a ```bash block is given to the parser that reads it when it is run
(test_documented_commands.py runs it). Every other line of such a block must be of a kind that is
named in documentation.py: nothing is passed over.
"""

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import typing
import warnings
from types import SimpleNamespace

import pytest
import tyro

import unix_jax.commands.convert as convert_cli
import unix_jax.commands.data as data_cli
import unix_jax.commands.evaluate as evaluate_cli
from support.documentation import (
    FOREIGN,
    NAMES,
    PAGES,
    PROGRAMS,
    ROOT,
    SCRIPTS,
    blocks,
    commands,
    program,
    prose,
)
from support.helps import HELPS
from unix_jax import cli
from unix_jax.training.config import Invocation, TrainConfig, parse_arguments

MAINS = dict(
    zip(PROGRAMS, (convert_cli.main, data_cli.main, evaluate_cli.main, cli.main), strict=True)
)
# `--xla` begins the flags of XLA, which have underscores.
FOREIGN_OPTIONS = {
    "--check", "--help", "--rename-dir-limit", "--requeue", "--signal", "--strict", "--xla",
}  # fmt: skip
# Arguments that name weights which must be there before.
INPUTS = ("checkpoint", "init", "rad_dino", "chexbert", "biovil_t", "vae", "source", "path")


@contextlib.contextmanager
def process_state_kept():
    """The command lines change how warnings are shown and SIGTERM is handled."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def parsed_by(main, arguments, monkeypatch):
    """What the command line `main` makes of the arguments; nothing of it is run."""
    seen = []
    parse = tyro.cli

    def parse_only(*positional, **named):
        seen.append(parse(*positional, **named))
        return SimpleNamespace(run=lambda: 0, verbose=False)

    with monkeypatch.context() as patched, process_state_kept():
        patched.setattr(tyro, "cli", parse_only)
        main(arguments)
    return seen[0]


def parsed(words, monkeypatch):
    name = program(words)
    if name == "train.py" or words[:2] == ["unix-jax", "train"]:
        return parse_arguments(words[2:])
    return parsed_by(MAINS[name], words[len(name.split()) :], monkeypatch)


def inputs(value, words):
    """Weights that the command line itself names."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if field.name == "config" and dataclasses.is_dataclass(inner):
            yield from inputs(inner, words)
        elif field.name in INPUTS and str(inner) in words:
            yield str(inner)


def is_at_hand(path, words):
    """In the repository, made by a command before, or visibly a stand-in for the reader's own."""
    stand_in = any(re.search(r"\b[A-Z][A-Z_]{2,}\b", word) for word in words)
    return stand_in or path.startswith(("out/", "runs/")) or (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for _, words, _, needs in commands(page):
        name, line = program(words), shlex.join(words)
        if name in MAINS or name == "train.py":
            try:
                found = parsed(words, monkeypatch)
            except SystemExit:
                pytest.fail(f"{line}\n{capsys.readouterr().err}")
            for path in inputs(found, words):
                assert needs or is_at_hand(path, words), (
                    f"{line}\n{path} is neither in the repository nor made by a command; "
                    "expected a comment '# needs the published weights' in the block"
                )
        elif name.startswith(SCRIPTS):
            source = (ROOT / name).read_text(encoding="utf-8")
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                field = rf"^    {option[2:].replace('-', '_')}: "
                assert f'"{option}"' in source or re.search(field, source, re.M), line
        else:
            assert name in FOREIGN, f"{line}\nexpected a command that this test knows"


@pytest.mark.parametrize("name", [name for name in HELPS if name != "train CONFIG"])
def test_examples_of_the_help_parse(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    show, arguments = HELPS[name]
    with process_state_kept(), pytest.raises(SystemExit):
        show(arguments)
    _, found, text = capsys.readouterr().out.partition("For example:\n")
    lines = re.findall(r"^ {4}(unix-jax .*)$", text, re.MULTILINE)
    assert found
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])
        try:
            parsed(words, monkeypatch)
        except SystemExit:
            pytest.fail(f"{line}\n{capsys.readouterr().err}")


def test_lists_of_subcommands_are_short(capsys):
    for name in ("unix-jax", "convert", "data", "evaluate"):
        show, arguments = HELPS[name]
        with pytest.raises(SystemExit):
            show(arguments)
        assert capsys.readouterr().out.count("For example:") == 1


def subcommands(union):
    """{name: type} of `Annotated[type, tyro.conf.subcommand(name)] | ...`."""
    return {kind.__metadata__[0].name: kind.__origin__ for kind in typing.get_args(union)}


# The commands that the project's command lines have, by program and name.
REGISTERED = {
    (name, subcommand): kind
    for name, union in (
        ("unix-jax", typing.get_args(cli._Command)[0]),
        ("unix-jax convert", convert_cli.Command),
        ("unix-jax data", typing.get_args(data_cli._Command)[0]),
        ("unix-jax evaluate", typing.get_args(evaluate_cli.Command)[0]),
    )
    for subcommand, kind in subcommands(union).items()
    if f"{name} {subcommand}" not in PROGRAMS
}


@pytest.mark.parametrize(("name", "subcommand"), REGISTERED)
def test_every_command_is_shown(name, subcommand):
    shown = {
        (program(words), words[len(program(words).split())])
        for page in PAGES
        for _, words, _, _ in commands(page)
        if program(words) in PROGRAMS
    }
    assert (name, subcommand) in shown


def options(kind, prefix="--"):
    """The options of a dataclass, as tyro names them."""
    for name, hint in typing.get_type_hints(kind).items():
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            # The fields of a run's configuration stand without a prefix.
            yield from options(hint, "--" if hint is TrainConfig else f"{option}.")
        else:
            yield option
            if hint is bool:
                yield f"--no-{option[2:]}"


def test_options_named_in_the_text_exist():
    known = set(FOREIGN_OPTIONS)
    for kind in (*REGISTERED.values(), Invocation):
        known |= set(options(kind))
    for name, page in zip(NAMES, PAGES, strict=True):
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            script = program(code.split()) if code.split() else ""
            if not script.startswith(SCRIPTS) and script not in FOREIGN:
                named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*(?:\.[a-z0-9-]+)*", code))
                assert named <= known, f"{name}: `{code}`: no command has {named - known}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_compiles_and_its_imports_exist(page):
    for line, block in blocks(page, "python"):
        tree = compile("\n" * (line - 1) + block, str(page), "exec", ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                if node.module.split(".")[0] not in ("unix_jax", "convert"):
                    continue
                module = importlib.import_module(node.module)
                for name in node.names:
                    submodule = f"{node.module}.{name.name}"
                    assert hasattr(module, name.name) or importlib.util.find_spec(submodule)


def anchors(page):
    """Ids of the headings, as forges and mkdocs both make them."""
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        yield re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    html = re.findall(r'\b(?:src|srcset|href)="([^"]+)"', prose(page))
    for target in [*re.findall(r"\]\(([^)\s]+)\)", prose(page)), *html]:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target}: no such file"
        assert file.is_relative_to(ROOT), f"{target}: outside of the repository"
        if anchor:
            assert anchor in set(anchors(file)), f"{target}: no such heading"


def test_the_site_builds(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                continue
        pytest.skip(f"{module} is not installed (extra docs)")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "UNIX_JAX_REPOSITORY_URL"}
        | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert "generate_report" in (tmp_path / "api" / "inference.html").read_text(encoding="utf-8")
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "architecture_dark.svg#only-dark" in home
    assert home.count('class="grid cards"') == 1
    # Options in long commands are not broken in the middle.
    nano = (tmp_path / "nano.html").read_text(encoding="utf-8")
    assert '<span class="name">--optimizer.learning-rate</span> ' in nano
    # Links into the repository lead to pages of the site, as long as no address is known.
    assert (tmp_path / "repository" / "train.py.html").exists()
    for file in tmp_path.glob("*.html"):
        html = file.read_text(encoding="utf-8")
        assert not re.search(r"<thead>\s*<tr>\s*(<th[^>]*>\s*</th>\s*)+</tr>", html), file.name
        for target in re.findall(r'href="(repository/[^"#]+)', html):
            assert (tmp_path / target).exists(), f"{file.name}: {target}"

"""Every option of every command has a sentence of help, and settings without effect are refused."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from pathlib import Path

import pytest

from unix_jax import cli
from unix_jax.commands import convert, data
from unix_jax.errors import ConfigError
from unix_jax.training.config import Invocation, parse_arguments

CONFIG = str(Path(__file__).parents[1] / "configs" / "nano_understanding.py")


def described(kind):
    """Names of the fields that a string follows, in a dataclass and its bases."""
    found = set()
    for base in kind.__mro__[:-1]:
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, after in itertools.pairwise(body):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                found.add(field.target.id)
    return found


def options(kind, prefix=""):
    """(dotted name, whether it is described) of every field, through nested dataclasses."""
    texts = described(kind)
    for name, hint in typing.get_type_hints(kind).items():
        inner = [hint, *typing.get_args(hint)]
        nested = [t for t in inner if dataclasses.is_dataclass(t) and isinstance(t, type)]
        if nested:
            for one in nested:
                yield from options(one, f"{prefix}{name}.")
        else:
            yield prefix + name, name in texts


def commands():
    unions = [typing.get_args(cli._Command)[0], convert.Command, typing.get_args(data._Command)[0]]
    for union in unions:
        assert isinstance(union, types.UnionType | typing._UnionGenericAlias)
        for annotated in typing.get_args(union):
            kind = typing.get_args(annotated)[0]
            inner = typing.get_type_hints(kind, include_extras=True).get("what")
            if inner is None:
                yield kind
            else:
                yield from (typing.get_args(one)[0] for one in typing.get_args(inner))
    yield Invocation


# What the names of positional arguments say already.
SAID_BY_NAME = {"path"}


@pytest.mark.parametrize("kind", commands(), ids=lambda kind: kind.__module__ + kind.__name__)
def test_every_option_has_a_sentence(kind):
    missing = {n for n, told in options(kind) if not told} - SAID_BY_NAME - {"config"}
    assert not missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora.rank", "4"], "lora.rank: is not read in a run without use_lora"),
        (
            ["--autoencoder.kl-weight", "1"],
            "autoencoder.kl_weight: is not read in the stage unders",
        ),
        (["--rad-dino", "x"], "rad_dino: is not read in a run without REPA"),
        (["--repa.image-size", "28"], "repa.image_size: is not read in a run without REPA"),
    ],
)
def test_settings_without_effect_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments([CONFIG, "--out", "runs/x", *arguments])


@pytest.mark.parametrize(
    "option", ["--data.seed", "--optimizer.total-steps", "--autoencoder.perceptual-weight"]
)
def test_what_a_run_sets_itself_is_no_option(option, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([CONFIG, "--out", "runs/x", option, "3"])
    assert option in capsys.readouterr().err


def test_a_cosine_takes_the_length_of_the_run():
    given = [CONFIG, "--out", "runs/x", "--optimizer.schedule", "cosine", "--total-steps", "99"]
    assert parse_arguments(given).config.scheduled_optimizer.total_steps == 99


def test_training_needs_a_configuration_file(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([])
    assert stop.value.code == 2
    assert "CONFIG" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    assert not stop.value.code

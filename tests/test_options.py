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
from unix_jax.commands import convert, data, evaluate
from unix_jax.errors import ConfigError, UniXError
from unix_jax.training.config import Invocation, load_config, parse_arguments

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
    annotated = [cli._Command, data._Command, evaluate.Command]
    for union in [convert.Command, *(typing.get_args(one)[0] for one in annotated)]:
        assert isinstance(union, types.UnionType | typing._UnionGenericAlias)
        for member in typing.get_args(union):
            yield typing.get_args(member)[0]
    yield Invocation


@pytest.mark.parametrize("kind", commands(), ids=lambda kind: kind.__module__ + kind.__name__)
def test_every_option_has_a_sentence(kind):
    missing = {n for n, told in options(kind) if not told} - {"config"}
    assert not missing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora.alpha", "4"], "lora.alpha: is not read in a run without adapters"),
        (
            ["--autoencoder.kl-weight", "1"],
            "autoencoder.kl_weight: is not read in the stage unders",
        ),
        (["--repa.encoder", "x"], "repa.encoder: is not read in the stage understanding"),
        (["--losses.mse-weight", "2"], "losses.mse_weight: is not read in the stage under"),
        (["--evals.images.count", "9"], "evals.images.count: is not read in the stage under"),
        (
            ["--evals.reports.count", "9"],
            "evals.reports.count: is not read while evals.reports.every",
        ),
        (["--optimizer.decay-fraction", "0.5"], "decay_fraction: is not read by the schedule cos"),
        (["--optimizer.name", "lion", "--optimizer.eps", "1e-6"], "eps: is not read by the optim"),
        (["--optimizer.weight-decay", "0", "--optimizer.weight-decay-on", "a"], "without weight_d"),
        (
            ["--lora.rank", "4", "--trainable", "vision/.*"],
            "trainable: is not read in a run with adapters",
        ),
    ],
)
def test_settings_without_effect_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_arguments([CONFIG, "--out", "runs/x", *arguments])


@pytest.mark.parametrize("option", ["evals.reports.chexbert", "evals.images.rad-dino"])
def test_urls_of_evaluations_are_refused(option):
    with pytest.raises(UniXError, match=f"{option.replace('-', '_')}: https://host/x: remote"):
        parse_arguments([CONFIG, "--out", "runs/x", f"--{option}", "https://host/x"])


@pytest.mark.parametrize(
    ("option", "now"),
    [
        ("--data.seed", "seed"),
        ("--data.epochs", "total_epochs"),
        ("--optimizer.total-steps", "total_steps, total_epochs or total_samples"),
        ("--autoencoder.perceptual-weight", "no setting of train.py"),
        ("--use-lora", "lora.rank"),
        ("--no-use-lora", "lora.rank"),
        ("--rad-dino", "repa.encoder"),
        ("--losses.repa-weight", "repa.weight"),
        ("--losses.repa_layer=2", "repa.layer"),
    ],
)
def test_old_options_name_the_new_ones(option, now, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([CONFIG, "--out", "runs/x", option, "3"])
    assert stop.value.code == 2
    name = option.partition("=")[0].replace("_", "-")
    assert capsys.readouterr().err.startswith(f"error: {name}: is now {now}")


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("use_lora=True", "use_lora: is now lora.rank"),
        ("losses=LossConfig(repa_weight=0.5)", "losses.repa_weight: is now repa.weight"),
        ("optimizer=OptimizerConfig(total_steps=3)", "optimizer.total_steps: is now total_steps"),
    ],
)
def test_files_of_earlier_versions_are_told_the_new_names(tmp_path, old, now):
    file = tmp_path / "config.py"
    file.write_text(
        "from unix_jax.data import DataConfig\n"
        "from unix_jax.training import LossConfig, OptimizerConfig, TrainConfig\n"
        f"config = TrainConfig('understanding', DataConfig('csv:a'), 3, {old})\n"
    )
    with pytest.raises(ConfigError, match=f"config.py: {now}"):
        load_config(file)


def test_a_length_of_the_command_line_replaces_that_of_the_file():
    def config(*arguments):
        return parse_arguments([CONFIG, "--out", "runs/x", *arguments]).config

    assert config("--total-steps", "9").total_steps == 9
    found = config("--total-epochs", "2")
    assert (found.total_steps, found.total_epochs) == (None, 2)
    assert config("--total-samples=50").total_samples == 50
    with pytest.raises(ConfigError, match=r"length of the run: expected one of .*, found .*epochs"):
        config("--total-steps", "9", "--total-epochs", "2")
    with pytest.raises(ConfigError, match="found none of them"):
        dataclasses.replace(config(), total_steps=None)


def test_what_another_option_makes_unread_is_no_mistake():
    """The file has a final_fraction for its cosine, and eps for AdamW."""
    given = ["--optimizer.schedule", "constant", "--optimizer.name", "lion"]
    config = parse_arguments([CONFIG, "--out", "runs/x", *given]).config
    assert {name for name, *_ in config.unread()} == {
        "optimizer.final_fraction", "optimizer.eps",
    }  # fmt: skip


def test_training_needs_a_configuration_file(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments([])
    assert stop.value.code == 2
    assert "CONFIG" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    assert not stop.value.code


def attributes_read():
    """Names of the attributes that the package reads, outside of the checks of a configuration."""
    names = set()
    checks = {"__post_init__", "unread", "check_used", "_check_tasks"}

    def visit(node):
        if isinstance(node, ast.FunctionDef) and node.name in checks:
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for file in (Path(__file__).parents[1] / "unix_jax").rglob("*.py"):
        visit(ast.parse(file.read_text()))
    return names


def test_every_setting_of_training_is_read():
    """What nothing reads has no effect."""
    read = attributes_read()
    unread = {name for name, _ in options(Invocation) if name.rpartition(".")[2] not in read}
    assert not unread


@pytest.mark.parametrize("file", sorted(Path(CONFIG).parent.glob("*.py")), ids=lambda f: f.stem)
def test_configurations_of_the_project_have_no_setting_without_effect(file):
    config = parse_arguments([str(file), "--out", "runs/x"]).config
    assert config.unread() == []


def test_the_help_begins_with_what_people_change(capsys):
    with pytest.raises(SystemExit):
        parse_arguments([CONFIG, "--help"])
    text = capsys.readouterr().out
    first, _, rest = text.partition("show this help message")
    assert "Most used options" in first
    for option in ("--init", "--data.source", "--total-steps 300", "--optimizer.learning-rate"):
        assert option in first
        assert option.split()[0] in rest

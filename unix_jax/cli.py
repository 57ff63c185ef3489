"""The command line `unix-jax`: reports, images, training, checkpoints, evaluation and data.

Errors caused by an input are printed as one message on standard error with exit code 1; the exit
code of Ctrl-C is 130.
"""

import dataclasses
import difflib
import importlib
import sys
import typing
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from unix_jax import __version__
from unix_jax.commands.app import App
from unix_jax.commands.clean import Clean
from unix_jax.commands.export import Export
from unix_jax.commands.generate import Generate
from unix_jax.commands.info import Info
from unix_jax.commands.report import Report
from unix_jax.commands.serve import Serve
from unix_jax.commands.subcommands import with_short_descriptions
from unix_jax.commands.terminal import run_command
from unix_jax.dry_run import topology
from unix_jax.errors import UniXError

# Options of earlier versions, by command -> what replaced them.
_RENAMED = {
    ("generate", "--steps"): "--num-inference-steps, the number of steps. --steps counted the "
    "points of the time grid, so --steps 50 is --num-inference-steps 49. For a diffusers "
    "checkpoint the number is unchanged",
}
_RENAMED["evaluate", "--steps"] = _RENAMED["generate", "--steps"]

# Subcommands with their own command line: the module, and the first arguments.
_PROGRAMS = {
    "train": ("unix_jax.commands.train", []),
    "convert": ("unix_jax.commands.convert", []),
    "check": ("unix_jax.commands.convert", ["check"]),
    "data": ("unix_jax.commands.data", []),
    "evaluate": ("unix_jax.commands.evaluate", []),
}


@dataclasses.dataclass
class _Evaluate:
    """Evaluate a model on a data set, or reports or images from other software."""


@dataclasses.dataclass
class _Train:
    """Train a model from a configuration file: `unix-jax train CONFIG --out DIR`."""


@dataclasses.dataclass
class _Convert:
    """Convert checkpoints between PyTorch and JAX: import, export, cast, inspect, check."""


@dataclasses.dataclass
class _Check:
    """Compare the model with golden outputs of the original: `unix-jax check CHECKPOINT DIR`."""


@dataclasses.dataclass
class _Data:
    """Inspect a source of X-rays and reports, write it as ArrayRecord, or write moments."""


_Command: Any = tyro.conf.OmitSubcommandPrefixes[  # type: ignore[misc]
    Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[_Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[App, tyro.conf.subcommand("app")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[_Train, tyro.conf.subcommand("train")]
    | Annotated[_Convert, tyro.conf.subcommand("convert")]
    | Annotated[_Check, tyro.conf.subcommand("check")]
    | Annotated[_Data, tyro.conf.subcommand("data")]
]


_DESCRIPTION = """UniX: reports from chest X-rays, and chest X-rays from text. Research software,
not a medical device.

For example:
    unix-jax report xray.png
    unix-jax generate "Large right pleural effusion."
    unix-jax train configs/nano_generation.py --out runs/nano
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `unix-jax`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _PROGRAMS:
        module, first = _PROGRAMS[given[0]]

        def run_program() -> int | None:
            _refuse_renamed(given)
            if given[0] == "train":
                # Before the seconds that it takes to load JAX.
                topology.check_arguments(given[1:])
            # The import raises an error if an extra is not installed.
            return importlib.import_module(module).main([*first, *given[1:]])

        return run_command(run_program)

    def run() -> None:
        if given == ["--version"]:
            print(f"unix-jax {__version__}")
            return
        _require_subcommand(given)
        _refuse_renamed(given)
        command: Report | Generate | Info | Clean | Export | App | Serve = tyro.cli(
            with_short_descriptions(_Command, given),
            prog="unix-jax",
            description=_DESCRIPTION,
            args=given,
        )
        command.run()

    return run_command(run)


def _refuse_renamed(given: Sequence[str]) -> None:
    """Raises UniXError for an option of an earlier version; the error names the new one."""
    for option in given[1:]:
        if replaced := _RENAMED.get((given[0], option.partition("=")[0])):
            raise UniXError(f"{option}: this option is now {replaced}")


def _require_subcommand(given: Sequence[str]) -> None:
    """Raises UniXError if the first word is not a subcommand; the error names the nearest one."""
    annotated = typing.get_args(typing.get_args(_Command)[0])
    names = [typing.get_args(one)[1].name for one in annotated]
    if not given or given[0].startswith("-") or given[0] in names:
        return
    near = difflib.get_close_matches(given[0], names, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UniXError(f"{given[0]}: expected one of {', '.join(names)}{meant}")


if __name__ == "__main__":
    sys.exit(main())

"""The `--help` of every command of the project."""

from support.paths import ROOT
from unix_jax import cli
from unix_jax.commands import convert, data
from unix_jax.training.config import parse_arguments

CONFIG = ROOT / "configs" / "nano_understanding.py"


def _helps():
    """(the command's name, what shows its help, the arguments) of every command."""
    for name in ("report", "generate", "info", "clean", "export", "app", "serve", "check"):
        yield name, cli.main, [name, "--help"]
    for name in ("reports", "images", "score"):
        yield f"evaluate {name}", cli.main, ["evaluate", name, "--help"]
    for command in (
        "import", "import-janus", "import-diffusers", "export", "cast", "accept", "inspect",
        "check",
    ):  # fmt: skip
        yield f"convert {command}", convert.main, [command, "--help"]
    for command in ("inspect", "write", "moments"):
        yield f"data {command}", data.main, [command, "--help"]
    yield "unix-jax", cli.main, ["--help"]
    yield "evaluate", cli.main, ["evaluate", "--help"]
    yield "convert", convert.main, ["--help"]
    yield "data", data.main, ["--help"]
    yield "train", parse_arguments, ["--help"]
    yield "train CONFIG", parse_arguments, [str(CONFIG), "--help"]


HELPS = {name: (show, arguments) for name, show, arguments in _helps()}

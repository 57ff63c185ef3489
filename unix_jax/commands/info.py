"""The command `unix-jax info`: sizes and contents of a checkpoint."""

import dataclasses
import json
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from unix_jax.commands.model import default_checkpoint
from unix_jax.commands.terminal import ERRORS
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import CheckpointText


@dataclasses.dataclass
class Info:
    """Print the sizes and contents of a checkpoint.

    For example:
        unix-jax info CHECKPOINT
        unix-jax info CHECKPOINT --verify
    """

    checkpoint: Annotated[
        CheckpointText | None, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")
    ] = None
    """Converted checkpoint, directory in the published layout, directory of a training run, or
    diffusers folder; or a name on the Hugging Face hub, which is downloaded. The default is the
    bundled nano model."""
    json: bool = False
    """Print the configuration as JSON instead of a table."""
    verify: bool = False
    """Read every array, compare it with its checksum, and check for NaN and infinite weights. For
    the directory of a training run, all of its checkpoints are verified."""

    def run(self) -> None:
        from unix_jax.checkpoints.configurations import is_diffusers, load_config
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        if self.verify and self.json:
            raise UniXError("--json: cannot be combined with --verify")
        path = default_checkpoint(self.checkpoint)
        if self.verify:
            _verify(path)
            return
        if is_diffusers(path):
            self._print_diffusers(path)
            return
        path = str(resolve_checkpoint(path))
        config, has_vae = load_config(path)
        if self.json:
            print(json.dumps(config.to_dict(), indent=1))
            return
        from unix_jax.commands.checkpoint_table import summary

        Console().print(summary(path, config, has_vae))

    def _print_diffusers(self, path: str) -> None:
        from unix_jax.checkpoints.diffusers_sizes import read_sizes
        from unix_jax.commands.checkpoint_table import diffusion_summary

        folder = read_sizes(path)
        sizes = folder.sizes()
        if self.json:
            values = {name: dataclasses.asdict(config) for name, config in sizes.items()}
            print(json.dumps(values, indent=1))
            return
        Console().print(diffusion_summary(path, sizes, folder.parameter_counts()))


def _verify(path: str) -> None:
    from unix_jax.checkpoints.verification import verify
    from unix_jax.commands.checkpoint_table import verification_table
    from unix_jax.errors import CheckpointError

    with ERRORS.status(f"Reading {escape(path)} ..."):
        parts = list(verify(path))
    Console().print(verification_table(path, parts))
    if problems := [line for part in parts for line in part.problems]:
        listed = "".join(f"\n  {line}" for line in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise CheckpointError(f"{path}: {count}:{listed}")

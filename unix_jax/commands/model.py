"""Options and loading of the model that several commands share."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from unix_jax.commands.terminal import ERRORS, say
from unix_jax.storage.arguments import PathText

if TYPE_CHECKING:
    from unix_jax.inference.pipeline import UniXPipeline


@dataclasses.dataclass
class Model:
    """Where the model comes from and where it runs."""

    checkpoint: PathText | None = None
    """Converted checkpoint, directory in the published layout, or directory of a training run. If
    absent: examples/nano of the clone, a demonstration, where the package runs from a clone."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters and computation; a CPU uses float32 either way."""
    mesh: str | None = None
    """Devices to share the work, for example data=2,tensor=4; one device if absent."""

    def load(self) -> "UniXPipeline":
        """The pipeline."""
        from unix_jax.inference.pipeline import UniXPipeline

        return self.load_as(UniXPipeline)

    def load_as(self, kind: Any) -> Any:
        """A pipeline of `kind`, while a line says what is loaded."""
        from unix_jax.sharding import parse_mesh

        with ERRORS.status(f"Loading {escape(self.directory)} ..."):
            mesh = None if self.mesh is None else parse_mesh(self.mesh)
            return kind.from_pretrained(self.directory, dtype=self.dtype, mesh=mesh)

    @functools.cached_property
    def directory(self) -> str:
        """The directory given, or that of the clone's nano model, which is said once."""
        return default_checkpoint(self.checkpoint)


def default_checkpoint(given: str | None) -> str:
    """The directory given, or that of the clone's nano model, which is said.

    Raises:
      UniXError: none given, and the package does not run from a clone.
    """
    from unix_jax.app.bundled import checkpoint_path

    path = checkpoint_path(given)
    if given is None:
        say(f"no checkpoint given: {path} is used, a small demonstration")
    return path

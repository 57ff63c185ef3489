"""Model options and model loading, shared by several commands."""

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
    """Options that select the model and its devices."""

    checkpoint: PathText | None = None
    """Converted checkpoint, directory in the published layout, or directory of a training run. The
    default is the demonstration model examples/nano if the package runs from a clone."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of parameters and computation; a CPU always uses float32."""
    mesh: str | None = None
    """Devices that share the work, for example data=2,tensor=4. The default is one device."""

    def load(self) -> "UniXPipeline":
        """The pipeline."""
        from unix_jax.inference.pipeline import UniXPipeline

        return self.load_as(UniXPipeline)

    def load_as(self, kind: Any) -> Any:
        """A pipeline of `kind`; a status line names the directory while it is loaded."""
        from unix_jax.sharding import parse_mesh

        with ERRORS.status(f"Loading {escape(self.directory)} ..."):
            mesh = None if self.mesh is None else parse_mesh(self.mesh)
            return kind.from_pretrained(self.directory, dtype=self.dtype, mesh=mesh)

    @functools.cached_property
    def directory(self) -> str:
        """The given directory, or that of the clone's nano model; see `default_checkpoint`."""
        return default_checkpoint(self.checkpoint)


def default_checkpoint(given: str | None) -> str:
    """The given directory, or that of the clone's nano model, which a message names.

    Raises:
      UniXError: no directory is given, and the package does not run from a clone.
    """
    from unix_jax.app.bundled import checkpoint_path

    path = checkpoint_path(given)
    if given is None:
        say(f"no --checkpoint: using {path}, a small demonstration model")
    return path

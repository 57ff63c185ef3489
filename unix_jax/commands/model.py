"""Model options and model loading, shared by several commands."""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from unix_jax.commands.terminal import ERRORS, say
from unix_jax.errors import UniXError
from unix_jax.storage.arguments import AnyPathText, CheckpointText
from unix_jax.storage.shown import shown

if TYPE_CHECKING:
    from unix_jax.inference.pipeline import UniXPipeline


@dataclasses.dataclass
class Model:
    """Options that select the model and its devices."""

    checkpoint: CheckpointText | None = None
    """Converted checkpoint, directory in the published layout, or directory of a training run; or a
    name on the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION, which is downloaded. The
    default is the bundled nano model, a demonstration."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of parameters and computation; a CPU always uses float32."""
    mesh: str | None = None
    """Devices that share the work, for example data=2,tensor=4. The default is one device."""

    def load(self, **options: Any) -> "UniXPipeline":
        """The pipeline; `options` are those of `load_as`."""
        with _uncollected():
            from unix_jax.inference.pipeline import UniXPipeline

            return self.load_as(UniXPipeline, **options)

    def load_as(self, kind: Any, **options: Any) -> Any:
        """A pipeline of `kind`; a status line names the directory while it is loaded.

        `options` are further arguments of `from_pretrained`.
        """
        from unix_jax.sharding import parse_mesh

        mesh = None if self.mesh is None else parse_mesh(self.mesh)
        with _uncollected(), ERRORS.status(f"Loading {escape(shown(self.directory))} ..."):
            return kind.from_pretrained(self.directory, dtype=self.dtype, mesh=mesh, **options)

    @functools.cached_property
    def directory(self) -> str:
        """The local directory of the checkpoint, see `default_checkpoint`; found once."""
        return default_checkpoint(self.checkpoint)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which afterwards ignores what was made meanwhile.

    JAX's modules and a model are some 10^5 objects, most of which live until the process ends.
    Visiting them again and again took a sixth of the CPU time of a first report.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@dataclasses.dataclass(kw_only=True)
class Quantized:
    """An option that makes decoding on an accelerator faster."""

    quantization: Literal["none", "int8"] = "none"
    """int8: keep the kernels that write reports as 8-bit integers, with a scale for each output.
    A token reads half of the bytes of bfloat16 weights; results may differ. Not with a mesh that
    splits the weights; slower on a CPU."""


@dataclasses.dataclass(kw_only=True)
class Drafting:
    """Options that generate the same reports in fewer steps."""

    draft: Literal["none", "ngram", "prompt"] = "none"
    """Draft the next tokens, so that one step of the model verifies several: from the n-grams of
    --ngrams, or from repetitions in the prompt and the report. The reports are the same, except
    where two tokens are equally probable up to rounding. Requires greedy decoding."""
    ngrams: AnyPathText | None = None
    """File for --draft ngram, made by `unix-jax data ngrams`."""

    def check_draft(self) -> None:
        """Raises UniXError for a file without its draft, or a draft without its file."""
        if self.draft == "ngram" and self.ngrams is None:
            raise UniXError("--ngrams: expected a file for --draft ngram, found none")
        if self.draft != "ngram" and self.ngrams is not None:
            raise UniXError("--ngrams: has no effect without --draft ngram")


def default_checkpoint(given: str | None) -> str:
    """The local directory of a checkpoint; without one, that of the bundled nano model, which a
    message names.

    A name on the hub is downloaded.

    Raises:
      UniXError: none is given, and no model is bundled.
      StorageError: a name on the hub that cannot be downloaded.
    """
    from unix_jax.app.bundled import checkpoint_path
    from unix_jax.checkpoints.hub_files import checkpoint_files
    from unix_jax.storage.hub import located

    path = checkpoint_path(given)
    if given is None:
        say(f"no --checkpoint: using {path}, a small demonstration model")
    return str(located(path, checkpoint_files))

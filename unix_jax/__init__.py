"""UniX in JAX/Flax: reports from chest X-rays, and chest X-rays from text."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from unix_jax.config import UniXConfig
from unix_jax.errors import UniXError

if TYPE_CHECKING:
    from unix_jax.inference.pipeline import UniXPipeline

try:
    __version__ = version("unix-jax")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["UniXConfig", "UniXError", "UniXPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # Deferred: the command line answers --help without loading the model code.
    if name == "UniXPipeline":
        from unix_jax.inference.pipeline import UniXPipeline

        return UniXPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

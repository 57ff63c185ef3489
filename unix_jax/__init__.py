"""UniX in JAX/Flax: reports from chest X-rays, and chest X-rays from text."""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# The public names are in __init__.pyi. Each is imported on first use, so that the command line
# shows --help without loading JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("unix-jax")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

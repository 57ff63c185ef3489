"""UniX in JAX/Flax: reports from chest X-rays, and chest X-rays from text."""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# The public names stand in __init__.pyi. Each is imported when it is first used: the command line
# answers --help without loading JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("unix-jax")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

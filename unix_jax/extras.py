"""Imports packages of the extras when a feature needs them."""

import importlib
from typing import Any

from unix_jax.errors import UniXError


def require(module: str, purpose: str, install: str) -> Any:
    """The imported module; `install` is the argument of `pip install` for this purpose.

    Raises:
      UniXError: the module is not installed, or cannot be imported; names what to install.
    """
    try:
        return importlib.import_module(module)
    # A compiled package that does not fit its neighbours raises RuntimeError or OSError.
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UniXError(
            f"{purpose} needs the package {module.partition('.')[0]!r}: "
            f"pip install '{install}' ({reason})"
        ) from error

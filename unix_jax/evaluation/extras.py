"""Packages that only some metrics need, imported when they are."""

import importlib
from typing import Any

from unix_jax.errors import UniXError


def require(module: str, purpose: str, install: str = "unix-jax[eval]") -> Any:
    """The imported module.

    Raises:
      UniXError: it is not installed, or cannot be imported here; names what to install.
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

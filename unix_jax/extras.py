"""Imports packages of the extras when a feature needs them."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from unix_jax.errors import UniXError


def require(module: str, purpose: str, install: str) -> Any:
    """The imported module; `install` is the argument of `pip install` for this purpose.

    Raises:
      UniXError: the module is not installed, or cannot be imported; names what to install.
    """
    with needed(module.partition(".")[0], purpose, install):
        return importlib.import_module(module)


@contextlib.contextmanager
def needed(package: str, purpose: str, install: str) -> Iterator[None]:
    """Around imports of a package that the base installation lacks; `install` is as in `require`.

    Raises:
      UniXError: as `require`.
    """
    try:
        yield
    # A compiled package that does not fit its neighbours raises RuntimeError or OSError.
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UniXError(
            f"{purpose} needs the package {package!r}: pip install '{install}' ({reason})"
        ) from error

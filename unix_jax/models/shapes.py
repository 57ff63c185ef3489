"""The initialisation of a model without the seconds that tracing and compiling it can take."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax

P = ParamSpec("P")


def traced_once(shapes: Callable[P, dict[str, Any]]) -> Callable[P, dict[str, Any]]:
    """`shapes` with its results kept, by its arguments, which must be hashable.

    Each call returns dictionaries of its own, which the caller may change.
    """
    kept: Callable[..., dict[str, Any]] = functools.lru_cache(maxsize=32)(shapes)

    @functools.wraps(shapes)
    def copied(*arguments: P.args, **options: P.kwargs) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf, kept(*arguments, **options))

    return copied


def initialisation_options() -> dict[str, int] | None:
    """Options of `jax.jit` for a program that makes fresh parameters and runs once.

    On a CPU, XLA optimises it less: the numbers are the same, the run takes as long, and the
    program of a U-Net, with a random generator for each parameter, compiles in half of the time.
    """
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

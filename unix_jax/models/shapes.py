"""Cached shapes of parameters, since tracing the initialisation of a model takes seconds."""

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

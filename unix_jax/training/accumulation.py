"""A batch computed in parts, one after the other: memory of a part, numbers of the whole.

Letters: B rows of the batch, k microbatches.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from unix_jax.errors import ConfigError
from unix_jax.sharding import batch_shards


def sum_over_microbatches(function: Callable[..., Any], k: int, *arguments: Any) -> Any:
    """The sum of `function` over k microbatches of its arguments.

    Microbatch i takes the rows i, i + k, i + 2k, ..., which moves nothing between devices.

    Args:
      function: of arguments with B / k rows; returns a pytree of arrays of fixed shapes.
      k: number of microbatches; divides B.
      arguments: pytrees of arrays [B, ...].
    """
    if k == 1:
        return function(*arguments)

    def add(total: Any, rows: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*rows)), None

    micro = jax.tree.map(lambda x: _split(x, k), arguments)
    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *first))
    total, _ = jax.lax.scan(add, zeros, micro)
    return total


def _split(x: Array, k: int) -> Array:
    """[B, ...] -> [k, B / k, ...]: microbatch i contains the rows i, i + k, ..."""
    split = jnp.moveaxis(x.reshape(-1, k, *x.shape[1:]), 1, 0)
    return nn.with_logical_constraint(split, (None, "batch", *[None] * (x.ndim - 1)))


def check_rows(rows: int, k: int, mesh: Mesh | None = None) -> None:
    """Raises ConfigError unless B `rows` divide into k microbatches, and these over the mesh."""
    parts = k * (1 if mesh is None else batch_shards(mesh))
    if rows % parts:
        raise ConfigError(
            f"batch: expected a multiple of {parts} rows (accumulation {k} x parts of the mesh), "
            f"found {rows}"
        )

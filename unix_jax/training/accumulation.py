"""A batch computed in parts, one after the other: memory of a part, numbers of the whole.

Letters: B rows of the batch, k microbatches.
"""

from collections.abc import Callable, Iterator
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


def check_rows(rows: int, k: int, mesh: Mesh | None = None, heads: int = 1) -> None:
    """Raises ConfigError unless B `rows` divide into k microbatches, and these over the mesh.

    The error says which options fit.

    Args:
      heads: a number that the mesh's tensor axis may divide.
    """
    shards = 1 if mesh is None else batch_shards(mesh)
    if rows % (k * shards) == 0:
        return
    advice = "".join(f"\n  {line}" for line in _fitting(rows, k, shards, mesh, heads))
    raise ConfigError(
        f"data.rows: expected a multiple of {k * shards} rows (accumulation {k} x {shards} parts "
        f"of the mesh), found {rows}. Options that fit:{advice}"
    )


def _fitting(rows: int, k: int, shards: int, mesh: Mesh | None, heads: int) -> Iterator[str]:
    """Options with which the rows divide evenly, those that keep the batch first."""

    def parts(shards: int) -> int:
        """The largest accumulation of at most k."""
        return next(n for n in range(k, 0, -1) if rows % (n * shards) == 0)

    if rows % shards == 0:
        yield f"--accumulation {parts(shards)}: the same batch"
        return
    if mesh is not None:
        data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
        for wider in range(tensor + 1, heads + 1):
            rest, left = divmod(fsdp * tensor, wider)
            if heads % wider == 0 and left == 0 and rows % (data * rest) == 0:
                yield (
                    f"--accumulation {parts(data * rest)} "
                    f"--mesh data={data},fsdp={rest},tensor={wider}: the same batch"
                )
                break
    more = -(-rows // shards) * shards
    yield (
        f"--accumulation 1 --data.rows {more}: a batch of {more} rows instead of {rows}; adjust "
        "the learning rate and the length of the run"
    )

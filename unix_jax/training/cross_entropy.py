"""Cross-entropy over a large vocabulary in chunks: no [tokens, vocab] array is ever kept.

Places with a loss are moved to the front of each row, then chunks of places are scanned. A chunk
in which no row has a loss is skipped at run time. Training computes the gradients of a chunk
directly after its logits, which nothing has to compute again.

Letters: B rows, U und tokens, C chunks, S places of a chunk, D width, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from unix_jax.models.layers import Dtype
from unix_jax.sharding import GatheredKernel, axes_in_use, gathered_kernel


def chunked_cross_entropy(
    hidden: Float[Array, "B U D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    weights: Float[Array, "B U"],
    *,
    chunk: int = 128,
    dtype: Dtype = jnp.float32,
) -> tuple[Float[Array, ""], Float[Array, "B U"]]:
    """(sum of weights * values, values), where values are -log softmax(hidden @ kernel)[label].

    Both are float32. The values are 0 at places without a weight, and have no gradient: only the
    sum has one, in `hidden` and `kernel`. On a mesh every device takes its own rows (and its part
    of a split vocabulary): the kernel is gathered once, and its gradient is summed over the devices
    once.

    Args:
      weights: of the losses; a place has none unless its weight is positive. The cost grows with
        the row that has most of them.
      chunk: places of each row whose logits exist at one time.
      dtype: in which the product is computed; its sums are float32.

    Raises:
      ValueError: `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 place, found {chunk}")
    length = hidden.shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)
    # The same on all devices, so that they run the same chunks.
    used = jnp.arange(count) * chunk < (weights > 0).sum(axis=1).max()
    axes = axes_in_use("batch")
    gathered = gathered_kernel(hidden.shape[0], kernel.shape, ("embed", "vocab"))
    rows = functools.partial(_rows, chunk=chunk, static=_Static(dtype, axes, gathered))
    if axes:
        split, whole = PartitionSpec(axes), PartitionSpec()
        rows = jax.shard_map(
            rows,
            in_specs=(split, whole if gathered is None else gathered.spec, split, split, whole),
            out_specs=(whole, split),
            axis_names=set(axes),
        )
    total, values = rows(hidden, kernel, labels, weights, used)
    return total, jax.lax.stop_gradient(values)


def _rows(
    hidden: Float[Array, "B U D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    weights: Float[Array, "B U"],
    used: Bool[Array, " chunks"],
    *,
    chunk: int,
    static: "_Static",
) -> tuple[Float[Array, ""], Float[Array, "B U"]]:
    length = hidden.shape[1]
    # Its gradients are those of these rows until here, where they are summed over the devices.
    same = static.axes if static.gathered is None else static.gathered.others
    kernel = jax.lax.pcast(kernel, same, to="varying")
    mask = weights > 0
    # A stable sort: positions with a loss first, in their original order.
    order = jnp.argsort(~mask, axis=1, stable=True)
    weights = jnp.take_along_axis(jnp.where(mask, weights, 0.0), order, axis=1)

    def by_chunk(x: Shaped[Array, "B U"]) -> Shaped[Array, "C B S"]:
        padded = jnp.pad(x, ((0, 0), (0, used.shape[0] * chunk - length)))
        return jnp.moveaxis(padded.reshape(x.shape[0], -1, chunk), 1, 0)

    total, values = _of_chunks(
        static, hidden, kernel, labels, by_chunk(order), by_chunk(weights), used
    )
    back = _in_place(values, jnp.argsort(order, axis=1))
    return jax.lax.psum(total, static.axes), jnp.where(mask, back, 0.0)


class _Static(NamedTuple):
    """Static arguments: the dtype of the products, the mesh axes over which rows are split, and how
    the kernel is gathered; None: it is whole."""

    dtype: Dtype
    axes: tuple[str, ...]
    gathered: GatheredKernel | None

    def zeros(self, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return jax.lax.pcast(jnp.zeros(shape, dtype), self.axes, to="varying")

    def whole(self, kernel: Array) -> Array:
        """The kernel in the dtype of the products."""
        cast = kernel.astype(self.dtype)
        return cast if self.gathered is None else self.gathered.whole(cast)

    def part(self, gradient: Array) -> Array:
        """Of the gradient of the whole kernel, the part that belongs to this device's."""
        return gradient if self.gathered is None else self.gathered.part(gradient)


def _in_place(
    chunks: Shaped[Array, "C B S *rest"], inverse: Int[Array, "B U"]
) -> Shaped[Array, "B U *rest"]:
    """Restores the original order of sorted positions."""
    rows = jnp.moveaxis(chunks, 0, 1)
    rows = rows.reshape(rows.shape[0], -1, *rows.shape[3:])
    index = inverse.reshape(*inverse.shape, *[1] * (rows.ndim - 2))
    return jnp.take_along_axis(rows, index, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_chunks(
    static: _Static,
    hidden: Float[Array, "B U D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    places: Int[Array, "C B S"],
    weights: Float[Array, "C B S"],
    used: Bool[Array, " C"],
) -> tuple[Float[Array, ""], Float[Array, "C B S"]]:
    """(sum of weights * cross-entropies, cross-entropies) at `places`, each of which is there once;
    those without a weight, padding among them, are of no consequence.

    With a rule of its own for the gradients. The sum is linear in them, so they are computed in the
    forward pass, as Liger Kernel does (Hsu et al. 2024, arXiv 2410.10989), and the backward pass
    multiplies them by the sum's: the logits of a chunk are computed once. The kernel's gradient is
    added up in the kernel's own type, in those chunks alone that are used. Products have operands
    of `dtype` and float32 sums; the logits' gradient is rounded to `dtype`, as a framework's
    bfloat16 does.
    """
    cast = static.whole(kernel)

    def step(_: None, chunk: tuple[Array, Array]) -> tuple[None, Array]:
        places, used = chunk

        def compute() -> Array:
            logits, chosen = _logits(_taken(hidden, places, static), cast, labels, places)
            return _values(logits, chosen)[0]

        return None, jax.lax.cond(used, compute, lambda: static.zeros(places.shape, jnp.float32))

    _, values = jax.lax.scan(step, None, (places, used))
    return _weighted_sum(weights, values), values


def _forward(
    static: _Static,
    hidden: Array,
    kernel: Array,
    labels: Array,
    places: Array,
    weights: Array,
    used: Array,
) -> tuple[tuple[Array, Array], Any]:
    cast = static.whole(kernel)

    def step(total: Array | None, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        places, weights, used = chunk

        def compute(total: Array | None) -> tuple[Array, tuple[Array, Array]]:
            mask = weights[..., None] > 0
            taken = jnp.where(mask, _taken(hidden, places, static), 0)
            logits, chosen = _logits(taken, cast, labels, places)
            values, log_sum = _values(logits, chosen)
            softmax = jnp.exp(logits - log_sum[..., None])
            # Not only a product: places without a loss may contain any value.
            slopes = jnp.where(mask, (softmax - chosen) * weights[..., None], 0.0)
            slopes = slopes.astype(static.dtype)
            added = jnp.einsum("bsd,bsv->dv", taken, slopes, preferred_element_type=jnp.float32)
            of_taken = jnp.einsum("bsv,dv->bsd", slopes, cast)
            added = added.astype(kernel.dtype)
            total = added if total is None else total + added
            return total, (values, of_taken.astype(hidden.dtype))

        def skip(total: Array | None) -> tuple[Array, tuple[Array, Array]]:
            total = static.zeros(cast.shape, kernel.dtype) if total is None else total
            nothing = static.zeros((*places.shape, hidden.shape[2]), hidden.dtype)
            return total, (static.zeros(places.shape, jnp.float32), nothing)

        return jax.lax.cond(used, compute, skip, total)

    chunks = (places, weights, used)
    if used.shape[0] == 1:
        # Without a sum, whose zeros are as large as the head.
        of_kernel, one = step(None, jax.tree.map(lambda x: x[0], chunks))
        values, of_taken = jax.tree.map(lambda x: x[None], one)
    else:
        zeros = static.zeros(cast.shape, kernel.dtype)
        of_kernel, (values, of_taken) = jax.lax.scan(step, zeros, chunks)
    sorted_places = jnp.moveaxis(places, 0, 1).reshape(hidden.shape[0], -1)
    inverse = jnp.argsort(sorted_places[:, : hidden.shape[1]], axis=1)
    kept = _in_place(of_taken, inverse), static.part(of_kernel)
    return (_weighted_sum(weights, values), values), kept


def _backward(
    static: _Static, kept: tuple[Array, Array], gradients: tuple[Float[Array, ""], Array]
) -> tuple[Any, ...]:
    of_sum, _ = gradients
    of_hidden, of_kernel = ((of_sum * x).astype(x.dtype) for x in kept)
    return of_hidden, of_kernel, None, None, None, None


_of_chunks.defvjp(_forward, _backward)


def _weighted_sum(weights: Float[Array, "C B S"], values: Float[Array, "C B S"]) -> Array:
    # Not only a product: places without a loss may contain any value, also infinity.
    return jnp.where(weights > 0, weights * values, 0.0).sum()


def _values(
    logits: Float[Array, "B S V"], chosen: Bool[Array, "B S V"]
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """(cross-entropies, logarithms of the sums of the exponentials)."""
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return log_sum - jnp.where(chosen, logits, 0.0).sum(axis=-1), log_sum


def _taken(hidden: Array, places: Int[Array, "B S"], static: _Static) -> Float[Array, "B S D"]:
    return jnp.take_along_axis(hidden, places[..., None], axis=1).astype(static.dtype)


def _logits(
    taken: Float[Array, "B S D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    places: Int[Array, "B S"],
) -> tuple[Float[Array, "B S V"], Bool[Array, "B S V"]]:
    """(logits of the places, where their labels are)."""
    logits = jnp.einsum("bsd,dv->bsv", taken, kernel, preferred_element_type=jnp.float32)
    logits = nn.with_logical_constraint(logits, (None, None, "vocab"))
    targets = jnp.take_along_axis(labels, places, axis=1)
    # A comparison instead of an index, which would gather a sharded vocabulary.
    return logits, jnp.arange(logits.shape[-1]) == targets[..., None]

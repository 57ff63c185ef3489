"""Cross-entropy over a large vocabulary in chunks: no [tokens, vocab] array is ever kept.

Places with a loss are moved to the front of each row, then chunks of places are scanned. A chunk
in which no row has a loss is skipped at run time; the others are recomputed in the backward pass.

Letters: B rows, U und tokens, S places of a chunk, D width, V vocabulary.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.layers import Dtype
from unix_jax.sharding import axes_in_use


def chunked_cross_entropy(
    hidden: Float[Array, "B U D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    mask: Bool[Array, "B U"],
    *,
    chunk: int = 128,
    dtype: Dtype = jnp.float32,
) -> Float[Array, "B U"]:
    """-log softmax(hidden @ kernel)[label], float32; 0 where `mask` is False.

    On a mesh every device takes its own rows (and its part of a split vocabulary): the kernel is
    gathered once before the chunks, and its gradient is summed over the devices once after them.

    Args:
      mask: places with a loss. The cost grows with the row that has most of them.
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
    # Known to all devices alike, so that they run the same chunks.
    used = jnp.arange(count) * chunk < mask.sum(axis=1).max()
    axes = axes_in_use("batch")
    rows = functools.partial(_rows, chunk=chunk, dtype=dtype, axes=axes)
    if axes:
        split, whole = PartitionSpec(axes), PartitionSpec()
        rows = jax.shard_map(
            rows,
            in_specs=(split, whole, split, split, whole),
            out_specs=split,
            axis_names=set(axes),
        )
    return rows(hidden, kernel, labels, mask, used)


def _rows(
    hidden: Float[Array, "B U D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B U"],
    mask: Bool[Array, "B U"],
    used: Bool[Array, " chunks"],
    *,
    chunk: int,
    dtype: Dtype,
    axes: tuple[str, ...],
) -> Float[Array, "B U"]:
    length = hidden.shape[1]
    # Its gradients are those of these rows until here, where they are summed over the devices.
    kernel = jax.lax.pcast(kernel, axes, to="varying")
    # A stable sort: places with a loss first, in their own order.
    order = jnp.argsort(~mask, axis=1, stable=True)
    places = jnp.pad(order, ((0, 0), (0, used.shape[0] * chunk - length)))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(places: Int[Array, "B S"], used: Bool[Array, ""]) -> Float[Array, "B S"]:
        def compute(_: None) -> Array:
            taken = jnp.take_along_axis(hidden, places[..., None], axis=1)
            targets = jnp.take_along_axis(labels, places, axis=1)
            # Cast in here: the chunks' gradients are then summed in the kernel's own dtype.
            return _cross_entropy(taken.astype(dtype), kernel.astype(dtype), targets)

        def skip(_: None) -> Array:
            return jax.lax.pcast(jnp.zeros(places.shape, jnp.float32), axes, to="varying")

        return jax.lax.cond(used, compute, skip, None)

    def step(_: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        return None, run(*inputs)

    by_chunk = jnp.moveaxis(places.reshape(places.shape[0], -1, chunk), 1, 0)
    _, values = jax.lax.scan(step, None, (by_chunk, used))
    values = jnp.moveaxis(values, 0, 1).reshape(places.shape)[:, :length]
    back = jnp.take_along_axis(values, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(mask, back, 0.0)


@jax.custom_vjp
def _product(hidden: Float[Array, "B S D"], kernel: Float[Array, "D V"]) -> Float[Array, "B S V"]:
    """Float32 logits; their gradient is rounded to the operands' type before it is multiplied.

    As a framework's bfloat16 does whose logits are bfloat16. JAX's own rule would multiply float32
    with bfloat16, for which no device has a unit.
    """
    return jnp.einsum("bsd,dv->bsv", hidden, kernel, preferred_element_type=jnp.float32)


def _product_forward(hidden: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(hidden, kernel), (hidden, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    hidden, kernel = kept
    gradient = gradient.astype(hidden.dtype)
    return (
        jnp.einsum("bsv,dv->bsd", gradient, kernel),
        jnp.einsum("bsd,bsv->dv", hidden, gradient),
    )


_product.defvjp(_product_forward, _product_backward)


def _cross_entropy(
    hidden: Float[Array, "B S D"], kernel: Float[Array, "D V"], labels: Int[Array, "B S"]
) -> Float[Array, "B S"]:
    logits = _product(hidden, kernel)
    logits = nn.with_logical_constraint(logits, (None, None, "vocab"))
    # A sum over the vocabulary, not an index into it, which would gather a split vocabulary.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0.0).sum(axis=-1)

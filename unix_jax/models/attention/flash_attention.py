"""Joint attention as TPU kernels: the online softmax over blocks, with the mask rule inside.

Written in Pallas. Logits live in the chip's own memory, block by block; what reaches the main
memory are the operands, the result and one number per query. The mask is the rule of
`mask.visible`, evaluated from the tokens' metadata in each block; fully masked blocks are skipped.
On other devices the same kernels are interpreted, which is for tests.

Source: FlashAttention-2 (Dao, 2023), whose backward pass recomputes the weights from the logarithm
of their sum.

Letters: B batch, T queries, S keys, N query heads, K key heads, G = N / K, H head_dim, i and j
blocks of queries and of keys.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from unix_jax.models.attention.exact_attention import pad_axis
from unix_jax.models.attention.mask import MASKED, TokenMetadata, visible
from unix_jax.models.layers import LANES
from unix_jax.models.remat import ATTENTION_OUTPUT
from unix_jax.sharding import attention_axes

# Grid axes over which a kernel accumulates come last.
_PARALLEL, _SUMMED = pltpu.GridDimensionSemantics.PARALLEL, pltpu.GridDimensionSemantics.ARBITRARY


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """The static parameters of a call."""

    block_q: int
    block_k: int
    interpret: bool


def flash_attention(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    query_metadata: TokenMetadata,
    key_metadata: TokenMetadata,
    *,
    block_size: int = 512,
    interpret: bool = False,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T"]]:
    """(attention over the visible keys, logarithm of the sum of the exponentials of their logits).

    Both are float32, and zeros and `MASKED` for a fully masked query. Results over several sets of
    keys can be merged by the second. Differentiable in query, key and value; unused gradients are
    not computed.

    Args:
      query: scaled already; N is a multiple of K.
      block_size: maximum queries and keys per block, rounded up to a multiple of 128.
      interpret: run without a TPU.
    """
    run = functools.partial(_one_device, block_size=block_size, interpret=interpret)
    axes = attention_axes(query.shape[0], query.shape[1], key.shape[1])
    if axes is not None:
        of_query = PartitionSpec(axes.batch, axes.heads)
        of_key, tokens = PartitionSpec(axes.batch, axes.kv_heads), PartitionSpec(axes.batch)
        run = jax.shard_map(
            run, in_specs=(of_query, of_key, of_key, tokens, tokens),
            out_specs=(of_query, of_query), check_vma=False,
        )  # fmt: skip
    return run(query, key, value, query_metadata, key_metadata)


def _one_device(
    query: Array,
    key: Array,
    value: Array,
    query_metadata: TokenMetadata,
    key_metadata: TokenMetadata,
    *,
    block_size: int,
    interpret: bool,
) -> tuple[Array, Array]:
    length, keys = query.shape[2], key.shape[2]
    tiles = _Tiles(_block(length, block_size), _block(keys, block_size), interpret)
    query = pad_axis(query, 2, tiles.block_q)
    key, value = (pad_axis(x, 2, tiles.block_k) for x in (key, value))
    # Padding has segment 0 and is attended to by no token.
    columns = jnp.stack(_fields(query_metadata, tiles.block_q), axis=2)
    rows = jnp.stack(_fields(key_metadata, tiles.block_k), axis=1)
    live = live_blocks(columns, rows, tiles.block_q, tiles.block_k)
    out, lse = _attend(tiles, query, key, value, columns, rows, live)
    return out[:, :, :length], lse[:, :, :length]


def live_blocks(
    columns: Int[Array, "B T 4"], rows: Int[Array, "B 4 S"], block_q: int, block_k: int
) -> Int[Array, "B i j"]:
    """0 if the block can be skipped because it is fully masked. A block with 1 may be empty too.

    By the ranges of segments, and of splits where the block has one sample.
    """
    highest = jnp.iinfo(jnp.int32).max

    def ranges(fields: Int[Array, "B n block 4"]) -> tuple[tuple[Array, Array], ...]:
        real = fields[..., 0] > 0
        return tuple(
            (
                jnp.where(real, fields[..., i], highest).min(-1),
                jnp.where(real, fields[..., i], -1).max(-1),
            )
            for i in (0, 1)
        )

    batch = columns.shape[0]
    queries = ranges(columns.reshape(batch, -1, block_q, 4))
    keys = ranges(rows.swapaxes(1, 2).reshape(batch, -1, block_k, 4))
    (q_first, q_last), (_, q_split) = ((x[:, :, None] for x in pair) for pair in queries)
    (k_first, k_last), (k_split, _) = ((x[:, None, :] for x in pair) for pair in keys)
    common = jnp.maximum(q_first, k_first) <= jnp.minimum(q_last, k_last)
    one_sample = (q_first == q_last) & (k_first == k_last)
    return (common & ~(one_sample & (k_split > q_split))).astype(jnp.int32)


# ----------------------------------------------------------------------------- shapes


def _block(length: int, most: int) -> int:
    """Blocks of equal length, with little padding."""
    count = -(-length // most)
    return -(-length // (count * LANES)) * LANES


def _fields(metadata: TokenMetadata, block: int) -> list[Array]:
    """The inputs of the mask rule."""
    fields = (metadata.segment, metadata.split, metadata.order, metadata.mode)
    return [pad_axis(jnp.asarray(x, jnp.int32), 1, block) for x in fields]


# ----------------------------------------------------------------------------- kernels


def _visible(columns_ref: Any, rows_ref: Any) -> Array:
    """The mask rule in a block, [T, S]."""
    queries = tuple(columns_ref[0, :, i : i + 1] for i in range(4))
    keys = tuple(rows_ref[0, i : i + 1, :] for i in range(4))
    return visible(queries, keys)


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    return jax.lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def _forward_kernel(
    live_ref, q_ref, k_ref, v_ref, columns_ref, rows_ref, out_ref, lse_ref, peak_ref, total_ref,
    sum_ref,
):  # fmt: skip
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        peak_ref[...] = jnp.full_like(peak_ref, MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(live_ref[b, i, j] != 0)
    def _() -> None:
        value = v_ref[0, 0]
        seen = _visible(columns_ref, rows_ref)
        logits = jnp.where(seen, _product(q_ref[0, 0], k_ref[0, 0], (1, 1)), MASKED)
        before = peak_ref[:, :1]
        peak = jnp.maximum(before, logits.max(axis=1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(logits - peak), 0.0)
        correction = jnp.exp(before - peak)
        total = total_ref[:, :1] * correction + weights.sum(axis=1, keepdims=True)
        sum_ref[...] = sum_ref[...] * correction + _product(
            weights.astype(value.dtype), value, (1, 0)
        )
        peak_ref[...] = jnp.broadcast_to(peak, peak_ref.shape)
        total_ref[...] = jnp.broadcast_to(total, total_ref.shape)

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        total = total_ref[:, :1]
        unseen = total == 0  # NaN is not zero and must remain visible
        safe = jnp.where(unseen, 1.0, total)
        out_ref[0, 0] = sum_ref[...] / safe
        lse_ref[0, 0] = jnp.where(unseen, MASKED, peak_ref[:, :1] + jnp.log(safe))


def _weights(q_ref, k_ref, columns_ref, rows_ref, lse_ref) -> Array:
    """The softmax of a block, from the logarithm of the sum of all."""
    logits = _product(q_ref[0, 0], k_ref[0, 0], (1, 1))
    return jnp.where(_visible(columns_ref, rows_ref), jnp.exp(logits - lse_ref[0, 0]), 0.0)


def _query_kernel(
    live_ref, q_ref, k_ref, v_ref, columns_ref, rows_ref, lse_ref, grad_ref, delta_ref, dq_ref,
    sum_ref,
):  # fmt: skip
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(live_ref[b, i, j] != 0)
    def _() -> None:
        key = k_ref[0, 0]
        weights = _weights(q_ref, k_ref, columns_ref, rows_ref, lse_ref)
        slope = _product(grad_ref[0, 0], v_ref[0, 0], (1, 1)) - delta_ref[0, 0]
        sum_ref[...] += _product((weights * slope).astype(key.dtype), key, (1, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        dq_ref[0, 0] = sum_ref[...].astype(dq_ref.dtype)


def _key_kernel(
    live_ref, q_ref, k_ref, v_ref, columns_ref, rows_ref, lse_ref, grad_ref, delta_ref, dk_ref,
    dv_ref, key_sum_ref, value_sum_ref,
):  # fmt: skip
    b, j, g, i = (pl.program_id(axis) for axis in (0, 2, 3, 4))

    @pl.when((g == 0) & (i == 0))
    def _() -> None:
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(live_ref[b, i, j] != 0)
    def _() -> None:
        query, grad = q_ref[0, 0], grad_ref[0, 0]
        weights = _weights(q_ref, k_ref, columns_ref, rows_ref, lse_ref)
        slope = _product(grad, v_ref[0, 0], (1, 1)) - delta_ref[0, 0]
        value_sum_ref[...] += _product(weights.astype(grad.dtype), grad, (0, 0))
        key_sum_ref[...] += _product((weights * slope).astype(query.dtype), query, (0, 0))

    @pl.when((g == pl.num_programs(3) - 1) & (i == pl.num_programs(4) - 1))
    def _() -> None:
        dk_ref[0, 0] = key_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[0, 0] = value_sum_ref[...].astype(dv_ref.dtype)


# ----------------------------------------------------------------------------- calls


def _cost(query: Array, key: Array, products: int, numbers: int) -> pl.CostEstimate:
    """As if every block were computed; `numbers` are read or written, those read again included."""
    pairs = math.prod(query.shape[:3]) * key.shape[2]
    return pl.CostEstimate(
        flops=2 * products * pairs * query.shape[3],
        transcendentals=pairs,
        bytes_accessed=numbers * query.dtype.itemsize,
    )


def _by_query(tiles: _Tiles, group: int, dim: int) -> tuple[Any, ...]:
    """Blocks of queries, keys, columns, rows, and what is one number per query: grid B N i j."""
    q, k = tiles.block_q, tiles.block_k
    return (
        pl.BlockSpec((1, 1, q, dim), lambda b, n, i, j, live: (b, n, i, 0)),
        pl.BlockSpec((1, 1, k, dim), lambda b, n, i, j, live: (b, n // group, j, 0)),
        pl.BlockSpec((1, q, 4), lambda b, n, i, j, live: (b, i, 0)),
        pl.BlockSpec((1, 4, k), lambda b, n, i, j, live: (b, 0, j)),
        pl.BlockSpec((1, 1, q, 1), lambda b, n, i, j, live: (b, n, i, 0)),
    )


def _by_key(tiles: _Tiles, group: int, dim: int) -> tuple[Any, ...]:
    """The same for the grid B K j G i."""
    q, k = tiles.block_q, tiles.block_k
    return (
        pl.BlockSpec((1, 1, q, dim), lambda b, h, j, g, i, live: (b, h * group + g, i, 0)),
        pl.BlockSpec((1, 1, k, dim), lambda b, h, j, g, i, live: (b, h, j, 0)),
        pl.BlockSpec((1, q, 4), lambda b, h, j, g, i, live: (b, i, 0)),
        pl.BlockSpec((1, 4, k), lambda b, h, j, g, i, live: (b, 0, j)),
        pl.BlockSpec((1, 1, q, 1), lambda b, h, j, g, i, live: (b, h * group + g, i, 0)),
    )


def _call(
    kernel: Any, tiles: _Tiles, grid: tuple[int, ...], specs: Any, out_specs: Any, out_shape: Any,
    scratch: Any, summed_axes: int, cost: pl.CostEstimate,
) -> Any:  # fmt: skip
    semantics = [_PARALLEL] * (len(grid) - summed_axes) + [_SUMMED] * summed_axes
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=grid, in_specs=specs, out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        cost_estimate=cost,
        interpret=tiles.interpret,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    tiles: _Tiles, query: Array, key: Array, value: Array, columns: Array, rows: Array, live: Array
) -> tuple[Array, Array]:
    batch, heads, length, dim = query.shape
    numbers, keys, column, row, one = _by_query(tiles, heads // key.shape[1], dim)
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    again = key.size * heads // key.shape[1]  # every query head reads its keys for every block
    out, lse = _call(
        _forward_kernel, tiles, (batch, heads, *live.shape[1:]),
        [numbers, keys, keys, column, row], [numbers, one],
        [f32(query.shape), f32((batch, heads, length, 1))],
        [
            pltpu.VMEM((tiles.block_q, LANES), jnp.float32),
            pltpu.VMEM((tiles.block_q, LANES), jnp.float32),
            pltpu.VMEM((tiles.block_q, dim), jnp.float32),
        ],
        1, _cost(query, key, 2, 2 * query.size + 2 * again * live.shape[1]),
    )(live, query, key, value, columns, rows)  # fmt: skip
    return out, lse[..., 0]


def _attend_forward(tiles: _Tiles, *operands: Array) -> tuple[Any, Any]:
    out, lse = checkpoint_name(_attend(tiles, *operands), ATTENTION_OUTPUT)
    return (out, lse), (operands, out, lse)


def _attend_backward(tiles: _Tiles, kept: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    (query, key, value, columns, rows, live), out, lse = kept
    grad, lse_grad = gradients
    batch, heads, _, dim = query.shape
    kv_heads, group = key.shape[1], heads // key.shape[1]
    again = key.size * group
    # The softmax's own term; the logarithm's gradient joins it, since both scale with the weights.
    delta = (grad * out).sum(axis=-1) - lse_grad
    arguments = (
        live, query, key, value, columns, rows, lse[..., None], grad.astype(value.dtype),
        delta[..., None],
    )  # fmt: skip

    def specs(blocks: tuple[Any, ...]) -> list[Any]:
        numbers, keys, column, row, one = blocks
        return [numbers, keys, keys, column, row, one, numbers, one]

    by_query, by_key = _by_query(tiles, group, dim), _by_key(tiles, group, dim)
    count_q, count_k = live.shape[1:]
    dq = _call(
        _query_kernel, tiles, (batch, heads, count_q, count_k), specs(by_query), by_query[0],
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        [pltpu.VMEM((tiles.block_q, dim), jnp.float32)],
        1, _cost(query, key, 3, 3 * query.size + 2 * again * count_q),
    )(*arguments)  # fmt: skip
    dk, dv = _call(
        _key_kernel, tiles, (batch, kv_heads, count_k, group, count_q), specs(by_key),
        [by_key[1], by_key[1]], [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (key, value)],
        [pltpu.VMEM((tiles.block_k, dim), jnp.float32)] * 2,
        2, _cost(query, key, 4, 4 * key.size + 2 * query.size * count_k),
    )(*arguments)  # fmt: skip
    return dq, dk, dv, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)

"""The U-Net: sizes, contexts, meshes and gradients; parity: tests/convert/test_diffusers.py."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.config import DecoderConfig
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.unet import JointContext, UNet, param_shapes
from unix_jax.models.unet_config import JointAttention, TextAttention, UNetConfig
from unix_jax.sharding import make_mesh, param_shardings, use_mesh

SMALL = UNetConfig(
    widths=(16, 32),
    down_attention=(True, False),
    up_attention=(True, True),
    layers=(1, 1),
    depths=(1, 2),
    up_depths=(2, 1),
    num_heads=(2, 4),
    context=TextAttention(12),
    time_width=64,
    norm_groups=8,
)
DECODER = DecoderConfig(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8)
JOINT = dataclasses.replace(SMALL, context=JointAttention(DECODER))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def inputs(config, rows=2):
    context = normal(1, rows, 5, 12)
    if isinstance(config.context, JointAttention):
        shape = (DECODER.num_layers, rows, 6, DECODER.num_kv_heads, DECODER.head_dim)
        valid = jnp.ones((rows, 6), bool).at[0, 2:].set(False)
        cache = KVCache(normal(2, *shape), normal(3, *shape), valid, jnp.int32(6))
        context = JointContext(cache, jnp.arange(rows) + 4)
    return normal(4, rows, 8, 6, 4), jnp.linspace(900.0, 3.0, rows), context


@functools.cache
def params(config):
    rng = np.random.default_rng(5)
    shapes = nn.unbox(param_shapes(config))
    return jax.tree.map(
        lambda leaf: 0.3 * jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes
    )


@functools.cache
def apply(config, dtype=jnp.float32, implementation="auto"):
    """(parameters, latents, times, context) -> output, compiled once per shape of the inputs."""
    model = UNet(config, dtype, implementation)
    return jax.jit(lambda weights, *arguments: model.apply({"params": weights}, *arguments))


def count(config):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(param_shapes(config))))


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [
        (UNetConfig(), 859_520_964, 686),
        pytest.param(
            UNetConfig(num_heads=(5, 10, 20, 20), context=TextAttention(1024)),
            865_910_724,
            686,
            marks=pytest.mark.extended,
        ),
    ],
    ids=["SD 1.5", "SD 2.1"],
)
def test_published_sizes(config, parameters, tensors):
    assert count(config) == parameters
    assert len(jax.tree.leaves(nn.unbox(param_shapes(config)))) == tensors


def test_blocks_read_the_layers_of_the_decoder_in_order():
    # Down 1, middle 2, up 2 x 2 and 2 x 1.
    assert JOINT.num_blocks == 9
    assert [JOINT.matching_layer(i, 3) for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [JOINT.matching_layer(i, 24) for i in (0, 8)] == [0, 23]
    one = dataclasses.replace(
        JOINT, depths=(1, 1), down_attention=(False,) * 2, up_attention=(False,) * 2
    )
    assert one.matching_layer(0, 24) == 0


@pytest.mark.extended
@pytest.mark.parametrize("config", [SMALL, JOINT], ids=["text", "joint"])
def test_remat_changes_no_gradient(config, assert_close):
    """With one level, which has every kind of block that is rematerialised."""
    config = dataclasses.replace(
        config, widths=(16,), down_attention=(True,), up_attention=(True,), layers=(1,),
        depths=(1,), up_depths=(1,), num_heads=(2,),
    )  # fmt: skip
    weights, (x, t, context) = params(config), inputs(config)

    def gradient(policy):
        model = UNet(config, remat_policy=policy)
        return jax.jit(
            jax.grad(lambda p: jnp.mean(model.apply({"params": p}, x, t, context) ** 2))
        )(weights)

    plain, full = gradient("none"), gradient("full")
    for ours, expected in zip(jax.tree.leaves(full), jax.tree.leaves(plain), strict=True):
        assert_close(ours, expected, 1e-4)

    def products(policy):
        model = UNet(config, remat_policy=policy)
        loss = jax.grad(lambda p: jnp.mean(model.apply({"params": p}, x, t, context) ** 2))
        text = str(jax.make_jaxpr(loss)(weights))
        return text.count("dot_general"), text.count("conv_general_dilated")

    assert products("products") == products("none")
    with pytest.raises(ValueError, match="remat_policy"):
        UNet(config, remat_policy="some").init(jax.random.key(0), x, t, context)


@pytest.mark.extended
@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_attention_implementations_agree(implementation, assert_close):
    weights, arguments = params(JOINT), inputs(JOINT)
    expected = apply(JOINT)(weights, *arguments)
    assert_close(apply(JOINT, implementation=implementation)(weights, *arguments), expected)


@pytest.mark.extended
def test_a_merged_cache_reads_as_a_stacked_one(assert_close):
    weights, (x, t, context) = params(JOINT), inputs(JOINT)
    cache = context.cache
    empty = KVCache.create(DECODER, 2, 6, merged=True)
    merged = empty.append(tuple(cache.keys), tuple(cache.values), cache.valid)
    expected = apply(JOINT)(weights, x, t, context)
    ours = apply(JOINT)(weights, x, t, JointContext(merged, context.position))
    assert_close(ours, expected)


@pytest.mark.extended
def test_the_und_stream_is_frozen_and_its_holes_are_not_seen():
    weights, (x, t, context) = params(JOINT), inputs(JOINT)
    out = apply(JOINT)

    @jax.jit
    def total(keys):
        cache = context.cache.replace(keys=keys)
        return jnp.sum(out(weights, x, t, JointContext(cache, context.position)))

    assert not jnp.any(jax.jit(jax.grad(total))(context.cache.keys))
    keys = context.cache.keys
    assert total(keys) == total(keys.at[:, 0, 3].set(100.0))  # a slot that row 0 does not have
    assert total(keys) != total(keys.at[:, 1, 3].set(100.0))
    # All tokens of the image share a position: only its distance from the text counts.
    moved = JointContext(context.cache, context.position + 3)
    assert jnp.any(out(weights, x, t, moved) != out(weights, x, t, context))


@pytest.mark.extended
@pytest.mark.parametrize("config", [SMALL, pytest.param(JOINT)], ids=["text", "joint"])
@pytest.mark.parametrize(
    "axes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        # Compiles for long, and has nothing that the first one does not have.
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
    ],
)
def test_meshes(config, axes, assert_close):
    weights, (x, t, context) = params(config), inputs(config, rows=8)
    model = UNet(config)
    expected = apply(config)(weights, x, t, context)
    mesh = make_mesh(**axes)
    shardings = param_shardings(param_shapes(config), mesh)
    placed = jax.tree.map(jax.device_put, weights, shardings)
    conv = placed["down_blocks_1_resnets_0"]["conv1"]["kernel"]
    tensor = axes.get("tensor", 1)
    assert conv.addressable_shards[0].data.shape == (3, 3, 16 // axes["fsdp"], 32 // tensor)
    query = placed["mid_block_attentions_0"]["transformer_blocks_1"]["attn1"]["to_q"]["kernel"]
    assert query.addressable_shards[0].data.shape == (32 // axes["fsdp"], 32 // tensor)
    with use_mesh(mesh):
        ours = jax.jit(model.apply)({"params": placed}, x, t, context)
    assert_close(ours, expected)


@pytest.mark.extended
def test_bfloat16_computes_and_returns_float32(assert_close):
    weights, arguments = params(SMALL), inputs(SMALL)
    half = apply(SMALL, jnp.bfloat16)(weights, *arguments)
    assert half.dtype == jnp.float32
    assert_close(half, apply(SMALL)(weights, *arguments), 0.05)


@pytest.mark.extended
def test_rows_do_not_see_each_other():
    weights, (x, t, context) = params(SMALL), inputs(SMALL)
    both = apply(SMALL)(weights, x, t, context)
    alone = apply(SMALL)(weights, x[1:], t[1:], context[1:])
    np.testing.assert_allclose(alone[0], both[1], rtol=0, atol=2e-5 * float(jnp.abs(both).max()))

"""Sharding on 8 virtual devices: what is split, what is communicated, and equal numbers."""

import dataclasses
import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unix_jax import sharding as own
from unix_jax.config import DecoderConfig, UniXConfig, VisionConfig
from unix_jax.errors import ConfigError
from unix_jax.models import autoencoder
from unix_jax.models.unix import TwoStreamBatch, UniX, param_shapes
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out
from unix_jax.sharding import (
    ShardingRules,
    _arranged,
    batch_shards,
    check_mesh,
    make_mesh,
    param_shardings,
    parse_mesh,
    shard_batch,
    slice_count,
    use_mesh,
)
from unix_jax.training import distributed
from unix_jax.training.distributed import place_batch, row_share

CONFIG = dataclasses.replace(
    UniXConfig.preset("tiny"),
    decoder=DecoderConfig(32, 48, 2, 4, 2, 8, 640, 64),
    vision=VisionConfig(16, 8, 16, 1, 2),
)
MODEL = UniX(CONFIG)
MESHES = {
    "fsdp8": {"fsdp": 8},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
}
ROWS = 8

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)

    def random(x):
        return (rng.normal(size=x.shape) * (x.shape[-2] if x.ndim > 1 else 4) ** -0.5).astype("f4")

    return jax.tree.map(random, param_shapes(CONFIG))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    texts = rng.integers(0, 600, (ROWS, 4)).tolist()
    rows = [[[VitSplit(), TextSplit(ids), VaeSplit(2, 2, noised=True)]] for ids in texts]
    layout = lay_out(rows, CONFIG)
    return TwoStreamBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        vit_pixels=rng.normal(size=(ROWS, 1, 16, 16, 3)).astype(np.float32),
        vit_index=layout.vit_index,
        gen=layout.gen,
        latents=rng.normal(size=(ROWS, 4, 16)).astype(np.float32),
        timesteps=np.full((ROWS, 4), 0.4, np.float32),
        latent_position_ids=layout.latent_position_ids,
    )


def forward(params, batch):
    und, gen = MODEL.apply({"params": params}, batch)
    return (
        MODEL.apply({"params": params}, und, method=UniX.logits),
        MODEL.apply({"params": params}, gen, method=UniX.velocity),
    )


@pytest.fixture(scope="module")
def expected(params, batch):
    """On one device, without any mesh."""
    return jax.tree.map(np.asarray, jax.jit(forward)(params, batch))


@functools.cache
def boxed():
    return param_shapes(CONFIG, boxed=True)


def named(tree):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


@pytest.fixture(scope="module", params=sorted(MESHES))
def sharded(request, params, batch):
    """(mesh, placed parameters, compiled forward pass, its arguments) on one of the meshes."""
    mesh = make_mesh(**MESHES[request.param])
    placed = jax.device_put(params, param_shardings(boxed(), mesh))
    rows = shard_batch(batch, mesh)
    with use_mesh(mesh):
        compiled = jax.jit(forward).lower(placed, rows).compile()
    return mesh, placed, compiled, rows


# ----------------------------------------------------------------------------- parameters


def test_every_large_parameter_is_split(sharded):
    """By every axis its names promise: nothing but the ViT's table and patches stays whole."""
    mesh, placed, *_ = sharded
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    both = fsdp * tensor
    factors = {
        "embed_tokens/embedding": both,
        "lm_head/kernel": both,
        "latent_pos_embed": fsdp,
        "vae2llm/kernel": fsdp,
        "llm2vae/kernel": fsdp,
        "vision/patch_embed/kernel": fsdp,
        "vision/pos_embed": fsdp,
    }
    checked = 0
    for name, leaf in named(placed).items():
        shard = leaf.sharding.shard_shape(leaf.shape)
        factor = leaf.size // int(np.prod(shard))
        if name in factors:
            assert factor == factors[name], name
        elif name.endswith("kernel"):
            assert factor == both, name
        elif name.endswith("bias") and "_proj" in name:
            assert factor == tensor, name
        # The shards that lie on the devices, not only what the sharding says.
        assert {s.data.shape for s in leaf.addressable_shards} == {shard}
        assert len(leaf.addressable_shards) == 8
        checked += factor > 1
    assert checked >= 30


def test_shard_shapes_by_hand():
    mesh = make_mesh(fsdp=4, tensor=2)
    shardings = named(param_shardings(boxed(), mesh))
    shapes = named(param_shapes(CONFIG))
    expected = {
        "embed_tokens/embedding": (640 // 2, 32 // 4),
        "decoder/layers/gen/q_proj/kernel": (2, 32 // 4, 32 // 2),
        "decoder/layers/und/k_proj/kernel": (2, 32 // 4, 16 // 2),
        "decoder/layers/und/o_proj/kernel": (2, 32 // 2, 32 // 4),
        "decoder/layers/und/down_proj/kernel": (2, 48 // 2, 32 // 4),
        "decoder/layers/und/q_norm/scale": (2, 8),
        "decoder/norm/gen/scale": (32,),
        "vision/blocks/qkv/kernel": (1, 16 // 4, 48 // 2),
    }
    for name, shape in expected.items():
        assert shardings[name].shard_shape(shapes[name].shape) == shape, name


def test_indivisible_dimensions_are_replicated():
    config = dataclasses.replace(
        CONFIG, decoder=dataclasses.replace(CONFIG.decoder, intermediate_size=45)
    )
    mesh = make_mesh(fsdp=4, tensor=2)
    shardings = named(param_shardings(param_shapes(config, boxed=True), mesh))
    assert shardings["decoder/layers/und/gate_proj/kernel"].spec == PartitionSpec(
        None, "fsdp", None
    )


def test_unnamed_parameters_are_replicated():
    mesh = make_mesh(fsdp=8)
    shapes = autoencoder.param_shapes(CONFIG.vae)
    for sharding in jax.tree.leaves(param_shardings(shapes, mesh)):
        assert sharding.is_fully_replicated


# ----------------------------------------------------------------------------- computation


def test_results_equal_one_device(sharded, expected, assert_close):
    mesh, placed, compiled, rows = sharded
    for ours, one in zip(compiled(placed, rows), expected, strict=True):
        assert_close(ours, one)
        # The batch stays split from end to end.
        assert ours.sharding.shard_shape(ours.shape)[0] == ROWS // batch_shards(mesh)


def collectives(compiled):
    text = compiled.as_text()
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in names}


def test_collectives(sharded):
    """Weights split over fsdp are gathered; products split over tensor are summed."""
    mesh, _, compiled, _ = sharded
    found = collectives(compiled)
    assert found["all-gather"] > 0
    if mesh.shape["tensor"] > 1:
        assert found["all-reduce"] > 0
    assert "num_partitions=8" in compiled.as_text()


def test_data_parallel_forward_needs_no_communication(params, batch):
    mesh = make_mesh(data=8)
    placed = jax.device_put(params, param_shardings(boxed(), mesh))
    rows = shard_batch(batch, mesh)
    with use_mesh(mesh):
        compiled = jax.jit(forward).lower(placed, rows).compile()
    assert not any(collectives(compiled).values())
    logits, _ = compiled(placed, rows)
    assert logits.sharding.shard_shape(logits.shape)[0] == 1


def constrained(x):
    return nn.with_logical_constraint(x * 2, ("batch", "length", "mlp"))


def test_constraints_take_effect_under_use_mesh_only():
    mesh, x = make_mesh(fsdp=4, tensor=2), jnp.ones((8, 3, 4))
    whole = jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
    with use_mesh(mesh):
        assert jax.jit(constrained)(whole).sharding.shard_shape(x.shape) == (2, 3, 2)
    rules = ShardingRules(mlp=None, batch="tensor")
    with use_mesh(mesh), nn.logical_axis_rules(rules.linen()):
        assert jax.jit(lambda x: constrained(x))(whole).sharding.shard_shape(x.shape) == (4, 3, 4)
    # The trap this module avoids: a plain `with mesh` drops them without a word.
    with mesh, nn.logical_axis_rules(ShardingRules().linen()):
        silent = jax.jit(lambda x: constrained(x))(whole)
    assert silent.sharding.shard_shape(x.shape) == x.shape


def test_use_mesh_without_a_mesh_does_nothing():
    with use_mesh(None):
        assert constrained(jnp.ones((2, 1, 2))).sharding.is_fully_replicated


def test_use_mesh_ends():
    mesh = make_mesh(fsdp=8)

    def fail():
        with use_mesh(mesh):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert jax.sharding.get_abstract_mesh().empty
    assert not nn.get_logical_axis_rules()


def test_shard_batch():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert batch_shards(mesh) == 4
    tree = shard_batch({"a": np.zeros((8, 3)), "b": np.zeros(4)}, mesh)
    assert tree["a"].sharding.shard_shape((8, 3)) == (2, 3)
    assert tree["b"].sharding.shard_shape((4,)) == (1,)


# ----------------------------------------------------------------------------- rules and meshes


def test_specs():
    rules = ShardingRules()
    assert rules.spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")
    assert rules.spec(("batch", "length", "heads_act", None)) == PartitionSpec(
        ("data", "fsdp"), None, "tensor", None
    )


@pytest.mark.parametrize("names", [("heads", "mlp"), ("batch", "embed"), ("vocab", None, "vocab")])
def test_collisions_raise(names):
    with pytest.raises(ConfigError, match="on two dimensions"):
        ShardingRules().spec(names)


def test_unknown_axes_raise():
    with pytest.raises(ConfigError, match=r"ShardingRules.mlp: expected axes of .* 'model'"):
        ShardingRules(mlp=("tensor", "model"))


def test_parse_mesh():
    assert dict(parse_mesh("data=1,fsdp=4,tensor=2").shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert dict(parse_mesh(" tensor=2, fsdp=4 ").shape) == {"data": 1, "fsdp": 4, "tensor": 2}
    assert parse_mesh("fsdp=8").axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
    "text", ["", "fsdp", "fsdp=", "fsdp=x", "fsdp=-8", "model=8", "fsdp=8,", "fsdp=4,fsdp=2", "8"]
)
def test_parse_mesh_refuses(text):
    with pytest.raises(ConfigError, match="mesh: expected for example data=1,fsdp=4,tensor=2"):
        parse_mesh(text)


@pytest.mark.parametrize("text", ["fsdp=4", "fsdp=16", "fsdp=0", "data=0,fsdp=8"])
def test_parse_mesh_wrong_size(text):
    with pytest.raises(ConfigError, match="multiply to 8 devices"):
        parse_mesh(text)


def test_check_mesh():
    check_mesh(make_mesh(fsdp=4, tensor=2), CONFIG)
    with pytest.raises(ConfigError, match="tensor=4 does not divide num_kv_heads 2"):
        check_mesh(make_mesh(fsdp=2, tensor=4), CONFIG)
    with pytest.raises(ConfigError, match="tensor=8 does not divide num_heads 4"):
        check_mesh(make_mesh(tensor=8), CONFIG)
    explicit = jax.make_mesh((1, 8, 1), ("data", "fsdp", "tensor"), (AxisType.Explicit,) * 3)
    with pytest.raises(ConfigError, match="expected Auto axes"):
        check_mesh(explicit, CONFIG)
    with pytest.raises(ConfigError, match="expected Auto axes"):
        check_mesh(jax.make_mesh((8,), ("fsdp",), (AxisType.Auto,)), CONFIG)


def test_make_mesh_on_some_devices():
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:2])
    assert mesh.devices.shape == (1, 2, 1)
    with pytest.raises(ConfigError, match="multiply to 2 devices"):
        make_mesh(fsdp=4, devices=jax.devices()[:2])


# ----------------------------------------------------------------------------- several slices


def stand_ins(count=8, slices=2, platform="cpu"):
    """Devices as JAX lists them, in another order than that of their slices."""
    made = [
        types.SimpleNamespace(
            id=i,
            platform=platform,
            device_kind=platform,
            process_index=i // 2,
            slice_index=i * slices // count,
        )
        for i in range(count)
    ]
    return made[::2] + made[1::2]


def test_slices_are_counted():
    assert slice_count(jax.devices()) == 1
    assert slice_count(stand_ins()) == 2
    assert slice_count(stand_ins(slices=4)) == 4
    # The machines of a GPU cluster are no slices.
    assert slice_count(stand_ins(platform="gpu")) == 1


@pytest.mark.parametrize(("slices", "sizes"), [(2, (4, 2, 1)), (2, (2, 2, 2)), (4, (4, 2, 1))])
def test_only_the_data_axis_spans_slices(slices, sizes):
    arranged = _arranged(sizes, stand_ins(slices=slices), slices)
    assert arranged.shape == sizes
    assert sorted(device.id for device in arranged.flat) == list(range(8))
    per_slice = sizes[0] // slices
    for number in range(slices):
        part = arranged[number * per_slice : (number + 1) * per_slice]
        assert {device.slice_index for device in part.flat} == {number}


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"data": 1, "tensor": 8}])
def test_an_axis_that_would_span_slices(axes):
    with pytest.raises(ConfigError, match="expected data to be a multiple of 4, the number of sl"):
        make_mesh(**axes, devices=stand_ins(slices=4))


def test_axes_that_do_not_fit_the_links(monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("Failed to find assignment")

    monkeypatch.setattr(own.mesh_utils, "create_device_mesh", refuse)
    with pytest.raises(ConfigError, match=r"expected axes that fit the links .* Failed to find"):
        make_mesh(fsdp=8)


def test_rows_follow_the_order_of_the_devices():
    """A ring through a slice leaves a machine and comes back to it."""
    ring = np.array(jax.devices())[[0, 3, 1, 7, 2, 6, 4, 5]].reshape(1, 8, 1)
    mesh = Mesh(ring, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    share = row_share(mesh, 16)
    assert share == tuple(range(16))
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    placed = place_batch({"x": rows}, mesh, 16, share)["x"]
    np.testing.assert_array_equal(placed, rows)
    for shard in placed.addressable_shards:
        position = list(ring.flat).index(shard.device)
        np.testing.assert_array_equal(shard.data, rows[2 * position : 2 * position + 2])


class HalfOfTheDevices(NamedSharding):
    """As a process sees it that holds the devices of even ids."""

    def addressable_devices_indices_map(self, shape):
        return {d: i for d, i in self.devices_indices_map(shape).items() if d.id % 2 == 0}


def test_rows_of_a_process_need_not_be_adjacent(monkeypatch):
    monkeypatch.setattr(distributed, "NamedSharding", HalfOfTheDevices)
    assert row_share(make_mesh(data=8), 16) == (0, 1, 4, 5, 8, 9, 12, 13)
    assert row_share(make_mesh(data=4, tensor=2), 8) == tuple(range(8))
    with pytest.raises(ConfigError, match="multiple of 8"):
        row_share(make_mesh(data=8), 12)

"""Training on 8 virtual devices: one device's losses, what is split, what is communicated."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_batches import CONFIG, init_unix, make_batch, named, unix_params
from unix_jax.errors import ConfigError
from unix_jax.models.unix import UniX
from unix_jax.sharding import batch_shards, make_mesh, shard_batch
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.parameter_groups import GENERATION, JOINT
from unix_jax.training.state import abstract_state, create_state, state_shardings
from unix_jax.training.step import StepConfig, make_train_step

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")

# No dimension of a parameter has this size: an array with it is an activation of all rows.
MICROBATCH = 40
STEPS = 20
KEY = jax.random.key(3)
MESHES = [
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, id="data2_fsdp2_tensor2"),
    # Each compiles for long, and has nothing that the first one does not have.
    pytest.param({"fsdp": 8}, id="fsdp8", marks=pytest.mark.slow),
    pytest.param({"data": 8}, id="data8", marks=pytest.mark.slow),
    pytest.param({"fsdp": 4, "tensor": 2}, id="fsdp4_tensor2", marks=pytest.mark.slow),
]


def run(mesh=None):
    """(state and step compiled for it, losses of 20 steps, final state)."""
    tx, schedule = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup_steps=3))
    config = StepConfig(LossConfig(ce_chunk=8), accumulation=2)
    state = create_state(
        JOINT, tx, KEY, init={"unix": init_unix}, given={"unix": unix_params()}, mesh=mesh
    )
    batch = make_batch(2 * MICROBATCH)
    if mesh is not None:
        batch = shard_batch(batch, mesh)
    shardings = None if mesh is None else jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(UniX(CONFIG), config, tx, schedule, shardings=shardings)
    compiled = step.lower(state, batch, KEY).compile()
    losses = []
    for _ in range(STEPS):
        state, metrics = compiled(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    return compiled.as_text(), np.array(losses), state


@functools.cache
def one_device():
    return run()[1]


@pytest.fixture(scope="module", params=MESHES)
def trained(request):
    mesh = make_mesh(**request.param)
    return mesh, *run(mesh)


@pytest.mark.extended
def test_losses_of_one_device(trained):
    losses = trained[2]
    assert losses[-1] < losses[0] - 1
    np.testing.assert_allclose(losses, one_device(), rtol=1e-5)


@pytest.mark.extended
def test_parameters_moments_and_means_are_split(trained):
    mesh, _, _, state = trained
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    less = {
        "unix/vae2llm/kernel": fsdp,
        "unix/llm2vae/kernel": fsdp,
        "unix/vision/patch_embed/kernel": fsdp,
    }
    moments = {path.split("/unix/")[1]: [] for path in named(state.opt_state) if "/unix/" in path}
    for path, leaf in named(state.opt_state).items():
        if "/unix/" in path:
            moments[path.split("/unix/")[1]].append(leaf)
    ema, large = named(state.ema), 0
    for path, leaf in named(state.trained).items():
        shard = leaf.sharding.shard_shape(leaf.shape)
        if path.endswith(("kernel", "embedding")):
            assert leaf.size // np.prod(shard) == less.get(path, fsdp * tensor), path
            large += 1
        pair = moments[path.removeprefix("unix/")]
        assert len(pair) == 2
        for other in (ema[path], *pair):
            # The pieces that lie on the devices, after 20 steps.
            assert {s.data.shape for s in other.addressable_shards} == {shard}, path
    assert large >= 20


@pytest.mark.extended
def test_communication(trained):
    """Weights are gathered and gradients summed; activations of all rows are never gathered."""
    mesh, program, *_ = trained
    lines = {
        name: re.findall(rf"= (.*?) {name}(?:-start)?\(", program)
        for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    }
    assert lines["all-reduce"]
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        assert not lines["all-gather"]
        assert not lines["all-to-all"]
    else:
        assert lines["all-gather"]
    # Each device has activations of its own rows.
    own_rows = MICROBATCH // batch_shards(mesh)
    length, width = make_batch(MICROBATCH).token_ids.shape[1], CONFIG.decoder.hidden_size
    assert f"f32[{own_rows},{length},{width}]" in program
    # What has all rows (a part of the width in the look-up of tokens) is no larger than that.
    for name, results in lines.items():
        for dims in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", " ".join(results)):
            shape = [int(n) for n in dims.split(",")]
            if MICROBATCH in shape[:2]:
                assert np.prod(shape) <= own_rows * length * width, (name, dims)


def test_states_have_shapes_and_shardings_without_arrays():
    mesh = make_mesh(fsdp=4, tensor=2)
    tx, _ = make_optimizer(OptimizerConfig())
    options = {"trainable": GENERATION, "tx": tx, "init": {"unix": init_unix}, "mesh": mesh}
    abstract = named(abstract_state(**options))
    shardings = named(state_shardings(**options))
    assert shardings.keys() == abstract.keys()
    path = "trained/unix/decoder/layers/gen/up_proj/kernel"
    assert abstract[path].sharding == shardings[path]
    assert shardings[path].shard_shape(abstract[path].shape) == (2, 32 // 4, 48 // 2)
    moments = [p for p in shardings if p.endswith("mu/unix/decoder/layers/gen/up_proj/kernel")]
    assert len(moments) == 1
    assert shardings[moments[0]] == shardings[path]
    assert shardings["step"].is_fully_replicated


def test_fresh_parameters_are_made_where_they_belong():
    """A part that is not given is initialised by the devices, each its own shards."""
    mesh = make_mesh(fsdp=8)
    tx, _ = make_optimizer(OptimizerConfig())

    def init(key):
        return {"kernel": nn.LogicallyPartitioned(jax.random.normal(key, (16, 4)), ("embed", None))}

    states = [create_state(GENERATION, tx, KEY, init={"repa": init}, mesh=m) for m in (mesh, None)]
    kernels = [state.trained["repa"]["kernel"] for state in states]
    assert {s.data.shape for s in kernels[0].addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(*kernels)


def test_rows_must_divide_over_the_mesh():
    mesh = make_mesh(data=4, tensor=2)
    tx, schedule = make_optimizer(OptimizerConfig())
    state = abstract_state(JOINT, tx, init={"unix": init_unix}, mesh=mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    config = StepConfig(accumulation=2)
    step = make_train_step(UniX(CONFIG), config, tx, schedule, shardings=shardings)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.asarray(x).dtype), make_batch(4)
    )
    with pytest.raises(ConfigError, match="expected a multiple of 8 rows"):
        step.lower(state, batch, KEY)

"""Low-rank adapters: a base at first, alone trained, merged for export."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_batches import CONFIG, init_unix, make_batch, named, unix_params
from unix_jax.errors import ConfigError
from unix_jax.models.unix import TwoStreamBatch, UniX
from unix_jax.sharding import make_mesh, shard_batch
from unix_jax.training.lora import LoraConfig, init_lora, merge_lora
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.parameter_groups import UNDERSTANDING
from unix_jax.training.state import create_state
from unix_jax.training.step import StepConfig, make_eval_step, make_train_step

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q_proj", "down_proj"), streams=("und", "gen"))
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def adapters():
    return jax.jit(lambda key: nn.unbox(init_lora(LORA, CONFIG, key)))(KEY)


def test_shapes_and_start(adapters):
    flat = named(adapters)
    assert len(flat) == 8
    assert flat["decoder/layers/und/q_proj/a"].shape == (2, 32, 3)
    assert flat["decoder/layers/gen/down_proj/b"].shape == (2, 3, 32)
    params = unix_params()
    merged = merge_lora(params, adapters, LORA)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_merging_by_hand(adapters):
    flat = named(adapters)
    rng = np.random.default_rng(0)
    filled = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), adapters)
    merged = merge_lora(unix_params(), filled, LORA)
    a = filled["decoder"]["layers"]["gen"]["down_proj"]["a"]
    b = filled["decoder"]["layers"]["gen"]["down_proj"]["b"]
    kernel = unix_params()["decoder"]["layers"]["gen"]["down_proj"]["kernel"]
    ours = merged["decoder"]["layers"]["gen"]["down_proj"]["kernel"]
    np.testing.assert_allclose(ours, kernel + 2.0 * (a @ b), rtol=1e-5, atol=1e-5)
    untouched = merged["decoder"]["layers"]["gen"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(
        untouched, unix_params()["decoder"]["layers"]["gen"]["up_proj"]["kernel"]
    )
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), unix_params())
    assert {x.dtype for x in jax.tree.leaves(merge_lora(half, filled, LORA))} == {
        jnp.dtype("bfloat16")
    }
    assert len(flat) == 8


def test_only_adapters_are_trained_and_the_merged_export_equals():
    batch = make_batch(4).replace(
        gen=None, vae_moments=None, latent_index=None, latent_position_ids=None, noised=None,
        mse_weights=None,
    )  # fmt: skip
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "v_proj"))
    tx, schedule = make_optimizer(OptimizerConfig(learning_rate=0.05))
    model = UniX(CONFIG)
    config = StepConfig(LossConfig(ce_chunk=8), lora=lora)
    init = {"unix": init_unix, "lora": lambda key: init_lora(lora, CONFIG, key)}
    state = create_state(UNDERSTANDING, tx, KEY, init=init, given={"unix": unix_params()})
    assert set(state.trained) == {"lora"}
    assert len(jax.tree.leaves(state.opt_state)) == 2 * 4 + 2
    step = make_train_step(model, config, tx, schedule)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1

    evaluate = make_eval_step(model, config)
    adapted = float(evaluate(state, batch, KEY)["loss"])
    exported = merge_lora(state.frozen["unix"], state.trained["lora"], lora)
    plain_tx, _ = make_optimizer(OptimizerConfig())
    plain = create_state(
        UNDERSTANDING, plain_tx, KEY, init={"unix": init_unix}, given={"unix": exported}
    )
    plain_evaluate = make_eval_step(model, StepConfig(LossConfig(ce_chunk=8)))
    assert float(plain_evaluate(plain, batch, KEY)["loss"]) == pytest.approx(adapted, rel=1e-6)
    with pytest.raises(ValueError, match=r"StepConfig\.lora: expected it"):
        make_eval_step(model, config)(plain, batch, KEY)


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
def test_on_a_mesh():
    """The losses of one device; adapters are split as the kernels that they are added to."""
    batch = make_batch(8).replace(
        gen=None, vae_moments=None, latent_index=None, latent_position_ids=None, noised=None,
        mse_weights=None,
    )  # fmt: skip
    lora = LoraConfig(rank=2, alpha=4.0)
    tx, schedule = make_optimizer(OptimizerConfig(learning_rate=0.05))
    config = StepConfig(LossConfig(ce_chunk=8), lora=lora)
    init = {"unix": init_unix, "lora": lambda key: init_lora(lora, CONFIG, key)}

    def run(mesh=None):
        given = {"unix": unix_params()}
        state = create_state(UNDERSTANDING, tx, KEY, init=init, given=given, mesh=mesh)
        shardings = None if mesh is None else jax.tree.map(lambda x: x.sharding, state)
        step = make_train_step(UniX(CONFIG), config, tx, schedule, shardings=shardings)
        losses = []
        for _ in range(4):
            rows = batch if mesh is None else shard_batch(batch, mesh)
            state, metrics = step(state, rows, KEY)
            losses.append(float(metrics["loss"]))
        return losses, state

    losses, state = run(make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(losses, run()[0], rtol=1e-5)
    assert losses[-1] < losses[0]
    query = state.trained["lora"]["decoder"]["layers"]["und"]["q_proj"]
    assert query["a"].sharding.shard_shape(query["a"].shape) == (2, 32 // 2, 2)
    assert query["b"].sharding.shard_shape(query["b"].shape) == (2, 2, 32 // 2)


def test_gradients_reach_the_adapters_alone(adapters):
    """Through a merge inside the compiled function, as in training."""
    batch = make_batch(2)
    streams = TwoStreamBatch(batch.token_ids, batch.und, batch.vit_pixels, batch.vit_index)
    params = unix_params()

    @jax.jit
    def gradients(adapters):
        def total(adapters):
            merged = merge_lora(params, adapters, LORA)
            return jnp.square(UniX(CONFIG).apply({"params": merged}, streams)[0]).sum()

        return jax.grad(total)(adapters)

    found = named(gradients(adapters))
    # B starts at zero, so that A has no gradient yet; gen is not run here.
    assert {path for path, x in found.items() if np.any(x)} == {
        "decoder/layers/und/q_proj/b", "decoder/layers/und/down_proj/b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": -1}, "rank: expected at least 0, found -1"),
        ({"targets": ("lm_head",)}, "targets: expected some of"),
        ({"streams": ()}, "streams: expected some of"),
    ],
)
def test_impossible_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**values)

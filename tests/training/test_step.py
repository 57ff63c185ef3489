"""The train step: what it updates, accumulation, REPA's hook, the frozen stream, states."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from support.toy_batches import CONFIG, init_unix, make_batch, named, unix_params
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.packed_images import to_images
from unix_jax.models.unix import TwoStreamBatch, UniX, param_shapes, unroll_params
from unix_jax.training import step as step_module
from unix_jax.training.draws import FlowDraw
from unix_jax.training.losses import Alignment, LossConfig, count_totals, loss_and_terms
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from unix_jax.training.parameter_groups import (
    GENERATION,
    JOINT,
    merge_params,
    split_params,
    trains_und,
)
from unix_jax.training.state import abstract_state, create_state
from unix_jax.training.step import StepConfig, make_eval_step, make_train_step

LOSSES = LossConfig(ce_weight=0.0)
WIDTH = CONFIG.decoder.hidden_size
KEY = jax.random.key(7)


def init_projector(key):
    kernel = jax.random.normal(key, (WIDTH, 4)) * WIDTH**-0.5
    return {"kernel": nn.LogicallyPartitioned(kernel, ("embed", None))}


INIT = {"unix": init_unix, "repa": init_projector}


def toy_repa(params, hidden, batch):
    """Mean square distance of projected hidden states to 1, for each image."""
    images = to_images(hidden, batch.latent_index, 2, 4)
    return jnp.square(images @ params["repa"]["kernel"] - 1.0).mean(axis=(2, 3))


REPA = Alignment(toy_repa, weight=0.5, layer=1)


MODEL = UniX(CONFIG, freeze_und=True)
STEP = StepConfig(LOSSES, accumulation=1, ema_decay=0.5)
TX, SCHEDULE = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2, clip_norm=1e-3))


def make_step(accumulation):
    config = dataclasses.replace(STEP, accumulation=accumulation)
    return make_train_step(MODEL, config, TX, SCHEDULE, repa=REPA)


@pytest.fixture(scope="module")
def start():
    """The state of step 0 as numpy arrays."""
    state = create_state(GENERATION, TX, KEY, init=INIT, given={"unix": unix_params()})
    return jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def evaluate():
    return make_eval_step(MODEL, STEP, repa=REPA)


@pytest.fixture(scope="module")
def batch():
    return make_batch(8)


@pytest.fixture(scope="module")
def made(batch, start):
    """(step, the state before as numpy, after one step, its metrics)."""
    step = make_step(1)
    after, metrics = step(jax.tree.map(jnp.array, start), batch, KEY)
    return step, start, after, jax.tree.map(float, metrics)


# ----------------------------------------------------------------------------- one step


def test_only_trained_parameters_change(made):
    _, before, after, _ = made
    changed = named(jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after))
    for path, different in changed.items():
        if path.startswith("frozen/"):
            assert not different, path
        if path.startswith("trained/"):
            assert different, path
    assert int(after.step) == 1


def test_frozen_parameters_have_no_state(made):
    *_, after, _ = made
    trained = len(jax.tree.leaves(after.trained))
    assert len(jax.tree.leaves(after.ema)) == trained
    # Adam's two moments and its two counters.
    assert len(jax.tree.leaves(after.opt_state)) == 2 * trained + 2
    for path in named(after.trained):
        assert "/und/" not in path
    assert {"unix", "repa"} == set(after.trained)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(after.trained))


def test_ema_is_a_running_mean(made):
    """A young one follows quickly: of the start a tenth is left, whatever the decay."""
    _, before, after, _ = made
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, before.trained, after.trained)
    for a, b in zip(jax.tree.leaves(after.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_metrics(made, batch):
    *_, metrics = made
    assert set(metrics) == {
        "loss", "ce", "mse", "repa", "grad_norm", "learning_rate", "ce_tokens", "mse_tokens",
    }  # fmt: skip
    assert metrics["loss"] == pytest.approx(metrics["mse"] + 0.5 * metrics["repa"], rel=1e-6)
    assert metrics["learning_rate"] == pytest.approx(5e-3)
    assert metrics["mse_tokens"] == batch.mse_weights.sum()
    # Reported before the clipping, whose limit is 1e-3 here.
    assert metrics["grad_norm"] > 1e-2


def test_accumulation_changes_no_number(made, batch):
    """Rows with unequal numbers of tokens, and draws that follow the row."""
    _, before, one, expected = made
    after, metrics = make_step(4)(jax.tree.map(jnp.array, before), batch, KEY)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name
    # The first moment is (1 - b1) times the clipped gradient.
    ours, whole = named(after.opt_state), named(one.opt_state)
    moments = [path for path in whole if "/mu/" in path]
    assert moments
    scale = max(np.abs(whole[path]).max() for path in moments)
    for path in moments:
        assert np.abs(ours[path] - whole[path]).max() < 1e-5 * scale, path


@pytest.mark.extended
def test_half_precision_gradients_are_those_of_the_masters(batch, start):
    """Kernels cast once a step, not where they are used: the same numbers in the same type."""
    model, config, state = MODEL.clone(dtype=jnp.bfloat16), STEP, start
    totals = count_totals(batch)

    @jax.jit
    def gradients(trained, frozen):
        *_, ours = step_module._gradients(model, config, trained, frozen, batch, KEY, REPA, None)

        def loss(trained):
            params = merge_params(trained, frozen)
            rows = jnp.arange(batch.rows)
            return step_module._loss(model, config, params, batch, rows, totals, KEY, REPA)[0]

        return ours, jax.grad(loss)(trained)

    ours, direct = (named(x) for x in gradients(state.trained, state.frozen))
    assert set(ours) == set(direct)
    for path, value in direct.items():
        assert ours[path].dtype == np.float32
        np.testing.assert_array_equal(ours[path], value, err_msg=path)
    copy = named(step_module._working_copy(model, config, state.trained))
    narrow = {path for path, x in copy.items() if x.dtype == jnp.bfloat16}
    assert narrow == {path for path in copy if "/layers/" in path and path.endswith("/kernel")}


def test_the_same_key_and_step_draw_the_same(made, batch):
    step, before, _, metrics = made
    _, again = step(jax.tree.map(jnp.array, before), batch, KEY)
    assert float(again["loss"]) == metrics["loss"]
    later = jax.tree.map(jnp.array, before).replace(step=jnp.int32(1))
    _, other = step(later, batch, KEY)
    assert float(other["loss"]) != metrics["loss"]


def test_a_loss_that_is_not_finite_changes_nothing(made, batch):
    step, before, *_ = made
    broken = batch.replace(vae_moments=np.full_like(batch.vae_moments, np.nan))
    after, metrics = step(jax.tree.map(jnp.array, before), broken, KEY)
    assert not np.isfinite(metrics["loss"])
    assert after.halted
    # Neither does what is dispatched before anyone has looked.
    later, metrics = step(after, batch, KEY)
    assert np.isfinite(metrics["loss"])
    kept = jax.tree.leaves(later.replace(halted=before.halted))
    for a, b in zip(kept, jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluation(made, batch, evaluate):
    """The losses of the same draw, with the trained weights or their running means."""
    _, before, after, metrics = made
    ours = evaluate(jax.tree.map(jnp.array, before), batch, jax.random.fold_in(KEY, 0))
    for name, value in ours.items():
        assert float(value) == pytest.approx(metrics[name], rel=1e-5), name
    mean = evaluate(after.averaged(), batch, KEY)
    swapped = after.replace(trained=after.ema)
    assert float(mean["loss"]) == pytest.approx(float(evaluate(swapped, batch, KEY)["loss"]))
    with pytest.raises(ValueError, match="ema: expected a state with a running mean"):
        after.replace(ema=None).params(ema=True)
    with pytest.raises(ValueError, match="ema: expected a state with a running mean"):
        after.replace(ema=None).averaged()


def test_evaluation_in_microbatches_changes_no_number(start, batch, evaluate):
    state = jax.tree.map(jnp.array, start)
    whole = evaluate(state, batch, KEY)
    parts = make_eval_step(MODEL, dataclasses.replace(STEP, accumulation=4), repa=REPA)
    found = parts(state, batch, KEY)
    assert set(found) == set(whole)
    for name, value in whole.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name
    with pytest.raises(ConfigError, match="expected a multiple of 4 rows"):
        parts(state, make_batch(2), KEY)


def test_rows_must_divide(start):
    with pytest.raises(ConfigError, match="expected a multiple of 3 rows"):
        make_step(3)(start, make_batch(4), KEY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulation": 0}, "accumulation: expected at least 1, found 0"),
        ({"ema_decay": 1.0}, "ema_decay: expected a number in"),
    ],
)
def test_impossible_step_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        StepConfig(**values)


# ----------------------------------------------------------------------------- REPA's hook


def two_stream(batch):
    rng = np.random.default_rng(0)
    shape = (*batch.latent_index.shape, CONFIG.latent_channels)
    return TwoStreamBatch(
        batch.token_ids, batch.und, batch.vit_pixels, batch.vit_index, batch.gen,
        rng.normal(size=shape).astype(np.float32),
        np.full(shape[:2], 0.4, np.float32), batch.latent_position_ids,
    )  # fmt: skip


@pytest.mark.extended
def test_hidden_state_after_a_layer(batch, assert_close):
    """Counted from 1, before the final norm; scanned and unrolled layers agree."""
    streams = two_stream(batch)

    def run(config, params, layer, scan_layers=True):
        model = UniX(config, scan_layers=scan_layers)
        return jax.jit(lambda p: model.apply({"params": p}, streams, layer, method=UniX.forward))(
            params
        )

    params = unix_params()
    (_, gen), _, last = run(CONFIG, params, 2)
    last = np.asarray(last, np.float64)
    scale = params["decoder"]["norm"]["gen"]["scale"]
    rms = np.sqrt(np.square(last).mean(axis=-1, keepdims=True) + CONFIG.decoder.rms_norm_eps)
    assert_close(gen, scale * last / rms)

    short = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, num_layers=1))
    layers = jax.tree.map(lambda x: x[:1], params["decoder"]["layers"])
    cut = params | {"decoder": params["decoder"] | {"layers": layers}}
    (_, gen), _, first = run(CONFIG, params, 1)
    assert_close(first, run(short, cut, 1).hidden)
    assert np.abs(first - last).max() > 0.1
    unrolled = unroll_params(jax.tree.map(jnp.array, params), 2)
    assert_close(run(CONFIG, unrolled, 1, scan_layers=False).hidden, first)


def test_layers_that_do_not_exist(batch):
    streams = two_stream(batch)

    def run(layer, streams):
        model = UniX(CONFIG)
        return jax.eval_shape(
            lambda: model.apply({"params": unix_params()}, streams, layer, method=UniX.forward)
        )

    assert run(None, streams).hidden is None
    for layer in (0, 3):
        with pytest.raises(ValueError, match=f"hidden_after_layer: expected 1 to 2, found {layer}"):
            run(layer, streams)
    with pytest.raises(ValueError, match="expected a gen stream, found None"):
        run(1, streams.replace(gen=None))


# ----------------------------------------------------------------------------- frozen und


LONG = dataclasses.replace(
    CONFIG, decoder=dataclasses.replace(CONFIG.decoder, hidden_size=64, intermediate_size=128)
)


def cost_of(trainable, tokens=128):
    """(FLOPs, bytes of temporaries) of a gradient over equally many und and gen tokens."""
    shape = jax.ShapeDtypeStruct((2, tokens), jnp.int32)
    metadata = TokenMetadata(shape, shape, shape, shape, shape)
    numbers = jax.ShapeDtypeStruct((2, tokens, LONG.latent_channels), jnp.float32)
    streams = TwoStreamBatch(
        shape, metadata, None, None, metadata, numbers,
        jax.ShapeDtypeStruct((2, tokens), jnp.float32), shape,
    )  # fmt: skip
    trained, frozen = split_params({"unix": param_shapes(LONG)}, trainable)
    model = UniX(LONG, attention_implementation="xla", freeze_und=not trains_und(trained))

    def loss(trained, frozen, streams):
        und, gen = model.apply({"params": merge_params(trained, frozen)["unix"]}, streams)
        return jnp.square(gen).sum() + (0.0 if model.freeze_und else jnp.square(und).sum())

    compiled = jax.jit(jax.grad(loss)).lower(trained, frozen, streams).compile()
    return (
        compiled.cost_analysis()["flops"],
        compiled.memory_analysis().temp_size_in_bytes,
    )


def test_frozen_stream_has_no_backward_pass():
    """Forward of both and backward of one: 4 of 6 parts of the FLOPs, and half the activations."""
    full_flops, full_bytes = cost_of(JOINT)
    flops, size = cost_of(GENERATION)
    assert flops < 0.72 * full_flops
    assert size < 0.65 * full_bytes


@pytest.mark.extended
def test_frozen_stream_takes_no_gradient(batch):
    """Whatever is asked for: und weights are constants, and gen's gradients do not pass by them."""
    drawn = two_stream(batch)
    noise = jnp.ones_like(drawn.latents)
    config = LossConfig(ce_chunk=8)

    @jax.jit
    def gradients(params):
        def loss(params):
            *_, terms = loss_and_terms(
                UniX(CONFIG, freeze_und=True), {"unix": params}, batch,
                FlowDraw(drawn.latents, noise, drawn.timesteps), count_totals(batch), config,
            )  # fmt: skip
            return terms.squared_error.sum()

        return jax.grad(loss)(params)

    found = named(gradients(unix_params()))
    for path, value in found.items():
        is_gen = "/gen/" in path or path.split("/")[0] in ("time_embedder", "vae2llm", "llm2vae")
        assert bool(np.any(value)) == is_gen, path


# ----------------------------------------------------------------------------- states


def test_given_parameters_stay_the_callers():
    """A step donates its state, never what the caller holds."""
    given = jax.tree.map(jnp.array, unix_params())
    tx, _ = make_optimizer(OptimizerConfig())
    state = create_state(GENERATION, tx, KEY, init=INIT, given={"unix": given})
    for a, b in zip(jax.tree.leaves(state.params()["unix"]), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(a, b)
    buffers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.trained, state.ema))}
    assert len(buffers) == 2 * len(jax.tree.leaves(state.trained))
    assert not buffers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(given)}


def test_frozen_weights_in_half_precision():
    tx, _ = make_optimizer(OptimizerConfig())
    state = abstract_state(GENERATION, tx, init=INIT, frozen_dtype=jnp.bfloat16, ema=False)
    assert state.ema is None
    assert {x.dtype for x in jax.tree.leaves(state.frozen)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(state.trained)} == {jnp.dtype("float32")}


def test_given_parameters_must_fit():
    tx, _ = make_optimizer(OptimizerConfig())
    params = unix_params()
    params["lm_head"] = {"kernel": np.zeros((3, 4), np.float32)}
    with pytest.raises(CheckpointError, match="lm_head/kernel"):
        create_state(JOINT, tx, KEY, init=INIT, given={"unix": params})
    with pytest.raises(CheckpointError, match="expected some of"):
        create_state(JOINT, tx, KEY, init=INIT, given={"vae": params})


# ----------------------------------------------------------------------------- optimiser


def test_schedules():
    constant = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4))
    np.testing.assert_allclose([constant(i) for i in range(6)], [0.25, 0.5, 0.75, 1, 1, 1])
    cosine = make_schedule(OptimizerConfig(1.0, 2, schedule="cosine", final_fraction=0.1), 6)
    half = 0.1 + 0.9 * 0.5
    np.testing.assert_allclose([cosine(i) for i in (0, 1, 2, 4, 6)], [0.5, 1, 1, half, 0.1])
    assert make_schedule(OptimizerConfig(learning_rate=3.0))(0) == 3.0


def test_adamw_of_the_recipe():
    """By hand: clipped gradient, both moments, no decay of scales and biases."""
    tx, _ = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1.0))
    params = {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0, 1.0])}
    gradients = {"kernel": jnp.array([3.0, 0.0]), "bias": jnp.array([0.0, 4.0])}
    updates, _ = tx.update(gradients, tx.init(params), params)
    # The first step of Adam is the gradient's sign; decay is 0.5 * 0.1 of the weight.
    np.testing.assert_allclose(updates["kernel"], [-0.1 - 0.1, 0.05], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [0.0, -0.1], atol=1e-6)
    assert optax.global_norm(gradients) == 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "step"}, "schedule: expected one of"),
        ({"name": "sgd"}, "name: expected one of"),
        ({"schedule": "cosine", "warmup_steps": 5}, "total_steps: expected more"),
        ({"learning_rate": -1.0}, "learning_rate: expected at least 0"),
    ],
)
def test_impossible_optimizers(values, message):
    with pytest.raises(ConfigError, match=message):
        make_optimizer(OptimizerConfig(**values), 5)

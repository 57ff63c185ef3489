"""Optimisers by name, their schedules, and what patterns over names do to them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_batches import CONFIG, init_unix, make_batch, named, unix_params
from unix_jax.errors import ConfigError
from unix_jax.models.unix import UniX
from unix_jax.sharding import make_mesh, shard_batch
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from unix_jax.training.parameter_groups import JOINT, UNDERSTANDING
from unix_jax.training.state import create_state, state_shardings
from unix_jax.training.step import StepConfig, make_train_step

KEY = jax.random.key(3)
NAMES = ("adamw", "lion", "adafactor", "muon")
PARAMS = {
    "unix": {
        "decoder": {"layers": {"und": {"q_proj": {
            "kernel": np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32),
            "bias": np.ones((2, 6), np.float32),
        }}}},
        "lm_head": {"kernel": np.ones((4, 5), np.float32)},
    }
}  # fmt: skip
GRADIENTS = jax.tree.map(lambda x: jnp.asarray(np.cos(x) + 0.5), PARAMS)


def updates(steps=1, **settings):
    tx, _ = make_optimizer(OptimizerConfig(0.1, clip_norm=0.0, **settings))
    state = tx.init(PARAMS)
    for _ in range(steps):
        found, state = tx.update(GRADIENTS, state, PARAMS)
    return named(found)


# ----------------------------------------------------------------------------- schedules


def test_linear():
    linear = make_schedule(OptimizerConfig(1.0, 2, schedule="linear", final_fraction=0.2), 6)
    expected = [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2]
    np.testing.assert_allclose([linear(i) for i in range(7)], expected, rtol=1e-6)


def test_warmup_stable_decay():
    config = OptimizerConfig(
        1.0, 2, schedule="warmup-stable-decay", final_fraction=0.1, decay_fraction=0.3
    )
    found = make_schedule(config, 10)
    expected = [0.5, 1, 1, 1, 1, 1, 1, 1, 0.7, 0.4, 0.1]
    np.testing.assert_allclose([found(i) for i in range(11)], expected, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup-stable-decay"])
def test_all_schedules_end_at_their_last_fraction(schedule):
    config = OptimizerConfig(2.0, 3, schedule=schedule, final_fraction=0.25, decay_fraction=1.0)
    found = make_schedule(config, 12)
    assert float(found(12)) == pytest.approx(0.5)
    assert float(found(3)) == pytest.approx(2.0)
    with pytest.raises(ConfigError, match="total_steps: expected more than warmup_steps 3"):
        make_schedule(config, 3)


# ----------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_decoupled_and_of_matched_names_alone(name):
    plain = updates(name=name)
    decayed = updates(name=name, weight_decay=0.5, weight_decay_on="lm_head/.*")
    for path, update in plain.items():
        weight = named(PARAMS)[path]
        expected = update - (0.1 * 0.5 * weight if "lm_head" in path else 0.0)
        np.testing.assert_allclose(decayed[path], expected, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_factors_scale_updates_and_keep_the_state(name):
    factors = (("lm_head/.*", 0.5), ("kernel", 0.25))
    plain, scaled = updates(2, name=name), updates(2, name=name, learning_rate_factors=factors)
    for path, update in plain.items():
        factor = 0.5 if "lm_head" in path else 0.25 if path.endswith("kernel") else 1.0
        np.testing.assert_allclose(scaled[path], factor * update, rtol=1e-6, err_msg=path)
    trees = [
        make_optimizer(OptimizerConfig(name=name, learning_rate_factors=f))[0].init(PARAMS)
        for f in ((), factors)
    ]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


def test_muon_makes_updates_of_stacked_kernels_orthogonal():
    found = updates(name="muon")
    kernel = np.asarray(found["unix/decoder/layers/und/q_proj/kernel"])
    for layer in kernel:
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() / singular.min() < 2.5
    # The rest is AdamW's, with Nesterov's momentum: its first step has one size.
    np.testing.assert_allclose(np.abs(found["unix/lm_head/kernel"]), 0.14737, rtol=1e-3)


def test_lion_takes_signs():
    found = updates(name="lion")
    for path, update in found.items():
        np.testing.assert_allclose(update, -0.1 * np.sign(named(GRADIENTS)[path]), err_msg=path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate_factors": (("vision/.*", 0.1),)}, "learning_rate_factors: expected a pat"),
        ({"weight_decay": 0.1, "weight_decay_on": "x"}, "weight_decay_on: expected a pattern"),
        ({"name": "muon"}, "optimizer.name: expected kernels of stacked layers"),
    ],
)
def test_what_matches_no_trained_parameter_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**settings).check_names(["unix/lm_head/kernel"])


def test_factors_must_be_positive():
    with pytest.raises(ConfigError, match="expected factors above 0"):
        OptimizerConfig(learning_rate_factors=(("a", 0.0),))
    with pytest.raises(ConfigError, match="expected a regular expression"):
        OptimizerConfig(weight_decay_on="(")


# ----------------------------------------------------------------------------- sharding


needs_devices = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")


def run(config, mesh):
    tx, schedule = make_optimizer(config)
    options = {"init": {"unix": init_unix}, "mesh": mesh}
    state = create_state(UNDERSTANDING, tx, KEY, given={"unix": unix_params()}, **options)
    shardings = None
    batch = make_batch(8).replace(
        gen=None, vae_moments=None, latent_index=None, latent_position_ids=None, noised=None,
        mse_weights=None,
    )  # fmt: skip
    if mesh is not None:
        shardings = jax.tree.map(lambda x: x.sharding, state)
        batch = shard_batch(batch, mesh)
    step = make_train_step(
        UniX(CONFIG), StepConfig(LossConfig(ce_chunk=8)), tx, schedule, shardings=shardings
    )
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    return losses, state


@needs_devices
@pytest.mark.extended
@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_a_mesh_gives_the_losses_of_one_device(name):
    """AdamW's are tested at length in test_sharding_training.py."""
    config = OptimizerConfig(1e-3, name=name, weight_decay=0.1)
    expected, _ = run(config, None)
    losses, state = run(config, make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0]
    trained = named(state.trained)
    moments = [
        (path, leaf) for path, leaf in named(state.opt_state).items() if leaf.ndim and leaf.size > 3
    ]
    for path, leaf in moments:
        whole = trained["unix/" + path.split("/unix/")[1]]
        if leaf.shape == whole.shape:
            assert leaf.sharding == whole.sharding, path
    assert any(leaf.shape == trained["unix/" + p.split("/unix/")[1]].shape for p, leaf in moments)


@needs_devices
def test_factored_moments_are_split_along_the_axes_that_they_have():
    mesh = make_mesh(fsdp=4, tensor=2)
    tx, _ = make_optimizer(OptimizerConfig(name="adafactor"))

    def init(key):
        kernel = nn.LogicallyPartitioned(jnp.zeros((2, 256, 512)), ("layers", "embed", "mlp"))
        return {"layers": {"und": {"kernel": kernel}}}

    found = named(state_shardings(JOINT, tx, init={"unix": init}, mesh=mesh).opt_state)
    rows = [s for path, s in found.items() if "/v_row/" in path]
    columns = [s for path, s in found.items() if "/v_col/" in path]
    assert len(rows) == len(columns) == 1
    assert rows[0].shard_shape((2, 256)) == (2, 64)
    assert columns[0].shard_shape((2, 512)) == (2, 256)

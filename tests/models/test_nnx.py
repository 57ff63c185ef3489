"""Flax's bridge: the model as an NNX module computes what it computes as a Linen module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx import bridge

from support import toy_batches
from unix_jax.models import unix
from unix_jax.models.unix import TwoStreamBatch, UniX, init_params
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out

CONFIG = toy_batches.CONFIG
LINEN = UniX(CONFIG)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 58, (2, 4)).tolist()
    rows = [[[VitSplit(), TextSplit(ids), VaeSplit(2, 2, noised=True)]] for ids in texts]
    layout = lay_out(rows, CONFIG)
    latents = rng.normal(size=(2, 4, CONFIG.latent_channels)).astype(np.float32)
    return TwoStreamBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        vit_pixels=rng.normal(size=(2, 1, 16, 16, 3)).astype(np.float32),
        vit_index=layout.vit_index,
        gen=layout.gen,
        latents=latents,
        timesteps=np.full((2, 4), 0.4, np.float32),
        latent_position_ids=layout.latent_position_ids,
    )


def wrapped(key):
    """The NNX module with fresh parameters; docs/nnx.md explains `use_eager_sharding`."""
    with nnx.use_eager_sharding(False):
        return bridge.ToNNX(LINEN).lazy_init(
            unix.probe_batch(CONFIG), method=UniX.initialise, rngs=key
        )


def named(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def linen_loss(params, batch):
    und, gen = LINEN.apply({"params": params}, batch)
    logits = LINEN.apply({"params": params}, und, method=UniX.logits)
    velocity = LINEN.apply({"params": params}, gen, method=UniX.velocity)
    return jnp.square(logits).mean() + jnp.square(velocity).mean()


def nnx_loss(model, batch):
    und, gen = model(batch)
    return jnp.square(model.logits(und)).mean() + jnp.square(model.velocity(gen)).mean()


@pytest.mark.extended
def test_the_bridge_gives_the_same_numbers(batch):
    key = jax.random.key(3)
    model = wrapped(key)

    # --- initialises
    fresh, expected = (
        named(nnx.to_pure_dict(nnx.state(model, nnx.Param))),
        named(init_params(CONFIG, key)),
    )
    assert fresh.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(fresh[name], value, err_msg=name)

    # --- keeps the logical axes
    metadata = model.lm_head["kernel"].get_metadata()
    assert metadata["out_sharding"] == ("embed", "vocab")

    # --- takes loaded weights, applies, differentiates
    params = toy_batches.unix_params()
    nnx.update(model, params)
    loss, gradient = jax.jit(jax.value_and_grad(linen_loss))(params, batch)
    own_loss, own_gradient = nnx.jit(nnx.value_and_grad(nnx_loss))(model, batch)
    np.testing.assert_allclose(own_loss, loss, rtol=1e-6)
    own = named(nnx.to_pure_dict(own_gradient))
    for name, value in named(gradient).items():
        scale = max(float(np.abs(value).max()), 1e-12)
        np.testing.assert_allclose(own[name] / scale, value / scale, atol=1e-5, err_msg=name)
    assert any(np.abs(value).max() > 0 for value in own.values())

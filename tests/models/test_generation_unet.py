"""The U-Net as the generation backbone: its parameters, what it sees, training against sampling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_pipelines import random_params
from support.toy_unet import CONFIG, GRID, TOKENS, latent_index, packed, unet_params
from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import TransformerStream, UNetBackbone, UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.inference.context import image_context
from unix_jax.inference.sampling import predict_velocity
from unix_jax.models.packed_images import PackedImages
from unix_jax.models.unet_config import backbone_config
from unix_jax.models.unix import TwoStreamBatch, UniX, init_params, param_shapes

MODEL = UniX(CONFIG)
TEXTS = [[600, 5, 6, 7, 601], [600, 8, 601], [600, 601], [600, 9, 10, 11, 12, 601]]


def batch_of(rows, latents, times):
    layout = packed(rows)
    return TwoStreamBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        gen=layout.gen,
        latents=jnp.asarray(latents),
        timesteps=jnp.asarray(np.repeat(times, TOKENS, axis=1)),
        latent_position_ids=layout.latent_position_ids,
        images=PackedImages(jnp.asarray(latent_index(layout)), latents.shape[1] // TOKENS, GRID),
    )


@pytest.fixture(scope="module")
def params():
    return unet_params()


@pytest.fixture(scope="module")
def rows():
    """Two rows of two samples each, their latents and times."""
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(2, 2 * TOKENS, CONFIG.latent_channels)).astype(np.float32)
    return [TEXTS[:2], TEXTS[2:]], latents, np.array([[0.9, 0.3], [0.5, 0.05]], np.float32)


@pytest.fixture(scope="module")
def predict():
    return jax.jit(lambda params, batch: MODEL.apply({"params": params}, batch, method="predict"))


@pytest.mark.extended
def test_the_parameters_of_the_gen_stream_are_absent():
    own = set(flatten(param_shapes(dataclasses.replace(CONFIG, generation=TransformerStream()))))
    names = set(flatten(param_shapes(CONFIG)))
    gen = ("/gen/", "time_embedder/", "vae2llm/", "llm2vae/", "latent_pos_embed")
    assert {n for n in names if n.startswith("unet/")} == names - own
    assert own - names == {n for n in own if any(part in n for part in gen)}


@pytest.mark.extended
def test_fresh_weights_predict_no_velocity(params, rows, predict):
    """Because of the last convolution, whatever precedes it."""
    last = jax.jit(lambda key: init_params(CONFIG, key)["unet"]["conv_out"])(jax.random.key(0))
    fresh = params | {"unet": params["unet"] | {"conv_out": last}}
    predicted = predict(fresh, batch_of(*rows))
    assert predicted.gen is None
    np.testing.assert_array_equal(predicted.velocity, 0)


@pytest.mark.extended
def test_packed_images_are_denoised_as_single_prompts(params, rows, predict, assert_close):
    """Rows of several samples in training are single prompts in sampling: the same velocity."""
    texts, latents, times = rows
    packed_velocity = predict(params, batch_of(*rows)).velocity
    for row in range(2):
        for image in range(2):
            context = image_context(MODEL, params, [texts[row][image]], GRID)
            of_image = slice(image * TOKENS, (image + 1) * TOKENS)
            alone = jax.jit(predict_velocity, static_argnums=0)(
                MODEL, params, context, latents[row : row + 1, of_image], times[row, image]
            )
            assert_close(packed_velocity[row, of_image], alone[0])


def test_the_text_matters_and_other_samples_do_not(params, rows, predict, assert_close):
    texts, latents, times = rows
    before = predict(params, batch_of(*rows)).velocity
    changed = batch_of([[texts[0][0], [600, 20, 601]], texts[1]], latents, times)
    after = predict(params, changed).velocity
    assert np.abs(after - before)[0, TOKENS:].max() > 1e-3
    assert_close(after[0, :TOKENS], before[0, :TOKENS])
    assert_close(after[1], before[1])


def test_the_und_stream_is_as_without_images(params, rows, predict, assert_close):
    batch = batch_of(*rows)
    alone = batch.replace(gen=None, latents=None, images=None)
    assert_close(predict(params, batch).und, predict(params, alone).und)
    assert predict(params, alone).velocity is None


@pytest.mark.extended
def test_no_gradient_reaches_the_und_stream(params, rows):
    batch = batch_of(*rows)

    def loss(params):
        velocity = MODEL.apply({"params": params}, batch, method=UniX.predict).velocity
        return jnp.square(velocity).mean()

    gradients = flatten(jax.jit(jax.grad(loss))(params))
    reached = {name.split("/")[0] for name, g in gradients.items() if np.any(g)}
    assert reached == {"unet"}
    assert all(np.any(g) for name, g in gradients.items() if name.startswith("unet/"))


def test_padding_is_zero_and_finite(params, rows, predict):
    texts, latents, times = rows
    batch = batch_of([texts[0], texts[1][:1]], latents, times)
    velocity = predict(params, batch).velocity
    assert np.isfinite(velocity).all()
    np.testing.assert_array_equal(velocity[1, TOKENS:], 0)


def test_latents_without_their_images_are_refused(params, rows):
    with pytest.raises(ValueError, match="expected latents, timesteps and images with a U-Net"):
        MODEL.apply({"params": params}, batch_of(*rows).replace(images=None), method=UniX.predict)
    with pytest.raises(ValueError, match="hidden_after_layer: expected None with a U-Net"):
        MODEL.apply({"params": params}, batch_of(*rows), 1, method=UniX.predict)


# ------------------------------------------------------------------------- configuration


def test_the_configuration_is_read_back():
    assert UniXConfig.from_dict(CONFIG.to_dict()) == CONFIG
    assert CONFIG.to_dict()["generation"]["type"] == "unet"
    own = UniXConfig.preset("tiny")
    assert "generation" not in own.to_dict()
    assert UniXConfig.from_dict(own.to_dict()) == own


def test_sizes_follow_the_model():
    unet = backbone_config(CONFIG)
    assert unet.in_channels == unet.out_channels == CONFIG.vae.z_channels
    assert unet.up_attention == CONFIG.generation.attention[::-1]
    assert unet.context.decoder == CONFIG.decoder


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "dit"}, "generation: type: expected 'unet', found 'dit'"),
        ({}, "generation: type: expected 'unet', found None"),
        ([1], r"generation: expected a JSON object, found \[1\]"),
        ({"type": "unet", "width": 3}, "generation: unknown fields"),
        ({"type": "unet", "attention": [1, True, True, False]}, r"attention\[0\]: expected bool"),
        ({"type": "unet", "widths": [32, True]}, r"widths\[1\]: expected int, found True"),
        ({"type": "unet", "layers": [1]}, r"generation.layers: expected 4 values, found \(1,\)"),
    ],
)
def test_a_broken_backbone_is_refused(given, message):
    values = UniXConfig.preset("tiny").to_dict() | {"generation": given}
    with pytest.raises(ConfigError, match=message):
        UniXConfig.from_dict(values)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": ()}, "generation.widths: expected at least one level"),
        ({"depths": (1, 0, 1, 1)}, "generation.depths: expected values of at least 1"),
        ({"norm_groups": 0}, "generation.norm_groups: expected at least 1, found 0"),
        ({"widths": (320, 640, 1280, 1000)}, "expected multiples of norm_groups 32, found 1000"),
        ({"widths": (3, 3, 3, 3), "norm_groups": 3}, "expected an even first width"),
    ],
)
def test_sizes_that_no_unet_has_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        UNetBackbone(**fields)


def test_random_params_cover_the_unet():
    assert flatten(random_params(param_shapes(CONFIG), 0)).keys() == flatten(unet_params()).keys()

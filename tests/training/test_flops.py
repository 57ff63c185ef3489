"""FLOP counts against the matrix products and convolutions in the traced program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from support import toy_unet
from unix_jax.config import AutoencoderConfig, DecoderConfig, UniXConfig, VisionConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.dinov2 import Dinov2, Dinov2Config, encoder_size
from unix_jax.models.packed_images import PackedImages
from unix_jax.models.unix import TwoStreamBatch, UniX, param_shapes
from unix_jax.training import flops

CONFIG = UniXConfig(
    decoder=DecoderConfig(32, 48, 2, 4, 2, 8, 64, 256),
    vision=VisionConfig(32, 8, 24, 2, 3, 2.0),
    vae=AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(128,)),
    latent_patch_size=2,
)


def product_flops(jaxpr):
    """2 per multiply-add of every dot_general and convolution; loops count as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            total += 2 * out * math.prod(kernel) // kernel[spec.rhs_spec[0]]
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            if isinstance(value, ClosedJaxpr):
                total += times * product_flops(value.jaxpr)
            elif isinstance(value, Jaxpr):
                total += times * product_flops(value)
    return total


def metadata(rows, length):
    zeros = jnp.zeros((rows, length), jnp.int32)
    return TokenMetadata(zeros, zeros + 1, zeros, zeros, zeros + 1)


def batch(rows=2, und=40, gen=16, images=1):
    pixels = jnp.zeros((rows, images, 32, 32, 3)) if images else None
    return TwoStreamBatch(
        token_ids=jnp.zeros((rows, und), jnp.int32),
        und=metadata(rows, und),
        vit_pixels=pixels,
        vit_index=None if pixels is None else jnp.full((rows, und), -1, jnp.int32),
        gen=metadata(rows, gen) if gen else None,
        latents=jnp.zeros((rows, gen, CONFIG.latent_channels)) if gen else None,
        timesteps=jnp.zeros((rows, gen)) if gen else None,
        latent_position_ids=jnp.zeros((rows, gen), jnp.int32) if gen else None,
    )


def counts(rows=2, und=40, gen=16, images=1):
    return flops.Counts(
        und_tokens=rows * und,
        gen_tokens=rows * gen,
        und_pairs=rows * und * und,
        gen_und_pairs=rows * gen * und,
        gen_gen_pairs=rows * gen * gen,
        vit_images=rows * images,
        vae_images=0,
        vae_size=(0, 0),
        text_losses=0,
    )


def test_forward_of_the_und_stream():
    model, params = UniX(CONFIG), param_shapes(CONFIG)
    traced = jax.make_jaxpr(lambda p: model.apply({"params": p}, batch(gen=0)))(params)
    trained = flops.step_flops(CONFIG, counts(gen=0), "understanding")
    assert product_flops(traced.jaxpr) * 3 == trained


def test_backward_of_the_und_stream():
    model, params = UniX(CONFIG), param_shapes(CONFIG)
    traced = jax.make_jaxpr(
        jax.grad(lambda p: model.apply({"params": p}, batch(gen=0))[0].sum(), allow_int=True)
    )(params)
    expected = flops.step_flops(CONFIG, counts(gen=0), "understanding")
    pixels_gradient = 2 * 16 * 2 * (3 * 8 * 8) * 24
    # The backward pass computes the logits once more, of the decoder and of the ViT.
    repeated = 2 * (2 * 40 * 40) * 2 * 4 * 8 + 2 * (2 * 16 * 16) * 2 * 24
    assert product_flops(traced.jaxpr) == expected - pixels_gradient + repeated


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_forward_of_the_encoder_of_repa(size):
    config = Dinov2Config(24, 8, 32, 2, 4, 2.0)
    encoder, pixels = Dinov2(config), jnp.zeros((3, *encoder_size(*size, 24, 8), 3))
    params = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
    three, one = (
        product_flops(jax.make_jaxpr(encoder.apply)(params, x).jaxpr) for x in (pixels, pixels[:1])
    )
    # Not the table, resampled for another shape of images: once for any number of them.
    assert three - one == flops.repa_flops(config, 24, 2, size)


def test_step_with_the_und_stream_frozen():
    model, params = UniX(CONFIG, freeze_und=True), param_shapes(CONFIG)

    def loss(params):
        hidden = model.apply({"params": params}, batch(images=0))[1]
        return model.apply({"params": params}, hidden, method=UniX.velocity).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(params)
    # Without the gradients of und's keys and values, which nothing reads.
    used, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    expected = flops.step_flops(CONFIG, counts(images=0), "generation")
    repeated = 2 * (2 * 16 * (40 + 16)) * 2 * 4 * 8
    # The time embedding, one more small product for each token, is not counted.
    assert product_flops(used) == pytest.approx(expected + repeated, rel=0.25)


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
def test_encoder(size):
    autoencoder = Autoencoder(CONFIG.vae)
    pixels = jnp.zeros((1, *size, 3))
    params = jax.eval_shape(autoencoder.init, jax.random.key(0), pixels)
    traced = jax.make_jaxpr(lambda p: autoencoder.apply(p, pixels, method="moments"))(params)
    assert product_flops(traced.jaxpr) == flops.encoder_flops(CONFIG.vae, size)


def test_head_latents_and_images_add_up():
    without = dataclasses.replace(counts(), text_losses=0)
    with_losses = dataclasses.replace(counts(), text_losses=7)
    width, vocabulary = CONFIG.decoder.hidden_size, CONFIG.decoder.vocab_size
    difference = flops.step_flops(CONFIG, with_losses, "understanding") - flops.step_flops(
        CONFIG, without, "understanding"
    )
    assert difference == 3 * 2 * width * vocabulary * 7
    assert flops.step_flops(CONFIG, with_losses, "understanding", weights_frozen=True) < (
        flops.step_flops(CONFIG, with_losses, "understanding")
    )


def test_counting_leaves_padding_out():
    und = np.array([[1, 1, 1, 2, 2, 0, 0, 0]], np.int32)
    gen = np.array([[2, 2, 2, 2, 0, 0]], np.int32)

    def meta(segment):
        zeros = np.zeros_like(segment)
        return TokenMetadata(zeros, segment, zeros, zeros, zeros)

    found = flops.count(
        TrainingBatch(
            token_ids=und,
            und=meta(und),
            labels=und,
            ce_weights=np.array([[1, 1, 0, 0, 0, 0, 0, 0]], np.float32),
            gen=meta(gen),
            vae_pixels=np.zeros((1, 2, 8, 8, 3), np.float32),
            latent_index=np.where(gen > 0, 0, -1),
        ),
        CONFIG,
    )
    assert (found.und_tokens, found.gen_tokens, found.tokens) == (5, 4, 9)
    assert (found.und_pairs, found.gen_und_pairs, found.gen_gen_pairs) == (9 + 4, 8, 16)
    assert (found.vae_images, found.vae_size, found.text_losses) == (1, (8, 8), 2)


def test_utilisation_of_unknown_and_known_devices():
    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    assert flops.utilisation(989e12, 2.0, 1, Device()) == 0.5
    assert flops.utilisation(1.0, 1.0, 1, jax.devices()[0]) is None


# Each level has its own sizes; one has no attention.
BACKBONES = [
    toy_unet.BACKBONE,
    dataclasses.replace(
        toy_unet.BACKBONE, widths=(16, 24, 40), attention=(False, True, True), layers=(1, 2, 1),
        depths=(1, 2, 1),
    ),
]  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize(
    "backbone",
    BACKBONES,
    ids=["two levels", "three levels"],
)
def test_unet_flops(backbone):
    config = dataclasses.replace(toy_unet.CONFIG, generation=backbone)
    batch, model = toy_unet.make_batch(2, 1), UniX(config)
    # All und tokens are seen in the program; those of the text and the two edges are counted.
    counts = flops.count(batch, config)
    assert (counts.latent_images, counts.vae_images) == (2, 0)
    seen = batch.token_ids.shape[1]
    counts = dataclasses.replace(counts, gen_und_pairs=counts.gen_tokens * seen)

    def velocity(params, *, alone=False):
        latents = jnp.zeros((2, math.prod(toy_unet.GRID), config.latent_channels))
        streams = TwoStreamBatch(
            token_ids=batch.token_ids, und=batch.und, gen=None if alone else batch.gen,
            latents=latents, timesteps=latents[..., 0],
            images=PackedImages(jnp.asarray(batch.latent_index), 1, toy_unet.GRID),
        )  # fmt: skip
        return model.apply({"params": params}, streams, method=UniX.predict)

    def traced(**options):
        jaxpr = jax.make_jaxpr(lambda p: velocity(p, **options))(param_shapes(config))
        return product_flops(jaxpr.jaxpr)

    expected = traced() - traced(alone=True)
    assert flops.unet_flops(config, counts) == pytest.approx(expected, rel=0.02)

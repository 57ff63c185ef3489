"""8-bit pixels in batches: the devices compute the numbers that the host computed."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from support.toy_data import CONFIG, GENERATION, ListSource, picture, records, tokenizer
from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.collate import collate, load
from unix_jax.data.records import Record, record_image
from unix_jax.data.samples import record_samples
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import UniX, init_params
from unix_jax.preprocessing.pixels import vae_input, vit_input
from unix_jax.preprocessing.transforms import (
    SIGLIP_MEAN,
    SIGLIP_STD,
    VAE_MEAN,
    VAE_STD,
    to_model_image,
    to_padded_vae_image,
)
from unix_jax.training.feed import _infinite
from unix_jax.training.losses import LossConfig, unix_loss
from unix_jax.training.stages import _images

EDIT = dataclasses.replace(
    GENERATION, task="edit", und_tokens=160, vit_images=3, vae_images=4,
    caption_dropout=0.0, condition_dropout=0.0,
)  # fmt: skip
GRAY = dataclasses.replace(EDIT, grayscale=True)


def batch_of(source, data=EDIT):
    samples = record_samples(ListSource(source), tokenizer(), CONFIG, data)
    loaded = [load(samples.build(index, 0)) for index in range(len(samples))]
    return collate([loaded], CONFIG, data)


def pairs(count=1):
    return [
        Record(f"p{i}", picture(2 * i), impression="Larger.", condition=picture(2 * i + 1))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("normalise", "mean", "std"),
    [(vit_input, SIGLIP_MEAN, SIGLIP_STD), (vae_input, VAE_MEAN, VAE_STD)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_all_levels_equal_those_of_numpy(normalise, mean, std, channels):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    expected = (levels.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    found = jax.jit(normalise)(np.repeat(levels, channels, axis=-1))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, np.repeat(expected, 3, axis=-1))


def test_floats_are_normalised_already():
    pixels = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    assert vit_input(pixels) is pixels


@pytest.mark.parametrize("data", [EDIT, GRAY])
def test_a_batch_has_the_numbers_of_inference(data):
    (record,) = pairs()
    batch = batch_of([record], data)
    channels = 1 if data.grayscale else 3
    assert batch.vit_pixels.dtype == batch.vae_pixels.dtype == np.uint8
    assert batch.vit_pixels.shape == (1, 3, 32, 32, channels)
    assert batch.vae_pixels.shape == (1, 4, 12, 8, channels)
    condition = record_image(dataclasses.replace(record, image=record.condition))
    np.testing.assert_array_equal(vit_input(batch.vit_pixels)[0, 0], to_model_image(condition, 32))
    for place, image in enumerate((condition, record_image(record))):
        np.testing.assert_array_equal(
            vae_input(batch.vae_pixels)[0, place], to_padded_vae_image(image, 12, 8)
        )


def test_grayscale_changes_no_gray_image():
    """Files of one and of three equal channels, with an augmentation."""
    augmentation = AugmentationConfig(shift=0.1, rotation=5, contrast=0.2, noise=0.05)
    for mode, form in (("L", "PNG"), ("RGB", "PNG"), ("L", "JPEG"), ("RGB", "JPEG")):
        file = io.BytesIO()
        Image.open(io.BytesIO(picture(5, 60, 50))).convert(mode).save(file, form)
        record = dataclasses.replace(pairs()[0], image=file.getvalue())
        three, one = (
            batch_of([record], dataclasses.replace(data, augmentation=augmentation))
            for data in (EDIT, GRAY)
        )
        np.testing.assert_array_equal(vit_input(one.vit_pixels), vit_input(three.vit_pixels))
        np.testing.assert_array_equal(vae_input(one.vae_pixels), vae_input(three.vae_pixels))


def test_grayscale_is_the_luminance_of_colours(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 40), (255, 0, 0)).save(path)
    record = dataclasses.replace(pairs()[0], image=path)
    assert batch_of([record], EDIT).vae_pixels[0, 1, 6, 4].tolist() == [255, 0, 0]
    assert batch_of([record], GRAY).vae_pixels[0, 1, 6, 4].tolist() == [76]


@pytest.mark.extended
def test_the_loss_of_a_batch_is_that_of_normalised_images():
    model = UniX(CONFIG)
    params = {
        "unix": init_params(CONFIG, jax.random.key(0)),
        "autoencoder": Autoencoder(CONFIG.vae).init(
            jax.random.key(1), jnp.zeros((1, 12, 8, 3)), method=None
        )["params"],
    }

    @jax.jit
    def loss(batch):
        return unix_loss(model, params, batch, jax.random.key(2), LossConfig())

    batch = batch_of(pairs(2), GRAY)
    normalised = dataclasses.replace(
        batch,
        vit_pixels=np.asarray(vit_input(batch.vit_pixels)),
        vae_pixels=np.asarray(vae_input(batch.vae_pixels)),
    )
    for found, expected in zip(*map(jax.tree.leaves, (loss(batch), loss(normalised))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert sum(x.nbytes for x in (batch.vit_pixels, batch.vae_pixels)) * 12 == sum(
        x.nbytes for x in (normalised.vit_pixels, normalised.vae_pixels)
    )


def test_absent_images_of_the_autoencoder_stay_zeros():
    """And those of a process without a batch give no finite loss."""
    data = dataclasses.replace(GENERATION, vae_images=1, und_tokens=2, caption_dropout=1.0)
    samples = record_samples(records(1), tokenizer(), CONFIG, data)
    batch: TrainingBatch = collate([[load(samples.build(0, 0))], []], CONFIG, data)
    found = _images(batch)
    np.testing.assert_array_equal(found[0], vae_input(batch.vae_pixels[0, 0]))
    assert (found[1] == 0).all()
    assert not np.isfinite(_images(jax.tree.map(_infinite, batch))).any()

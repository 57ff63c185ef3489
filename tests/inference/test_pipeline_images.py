"""Images by the pipeline: rows that ignore their neighbours, settings, looks on the way."""

import dataclasses
import io
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.toy_pipelines import PROMPTS, SMALL, draw, pictures, small_pipe, tiny_pipe
from unix_jax.cli import Generate, Report
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels, vit_pixels
from unix_jax.data.records import Record
from unix_jax.errors import PromptError
from unix_jax.inference import image_latents
from unix_jax.inference.inputs import image_list
from unix_jax.inference.sampling import SamplingState, sample_latents
from unix_jax.inference.settings import (
    DiffusionOptions,
    DiffusionSettings,
    ImageOptions,
    ImageSettings,
    ReportOptions,
    ReportSettings,
)
from unix_jax.preprocessing.pixels import vae_input, vit_input

# ------------------------------------------------------------------------- images by rows


def test_image_rows_equal_rows_alone():
    seeds = [3, 1, 4, 1, 5]
    alone = [draw([p], seed=[s])[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    for size in (2, 5):
        np.testing.assert_allclose(draw(PROMPTS[:size], seed=seeds[:size]), alone[:size], atol=1e-5)
    order = [4, 2, 0, 2, 1]
    found = draw([PROMPTS[i] for i in order], seed=[seeds[i] for i in order])
    np.testing.assert_allclose(found, [alone[i] for i in order], atol=1e-5)


def test_one_seed_for_all_or_one_for_each():
    same = draw([PROMPTS[0]] * 5, seed=7)
    np.testing.assert_allclose(same[1:], same[:1].repeat(4, 0), atol=1e-5)
    different = draw([PROMPTS[0]] * 5, seed=[7, 8, 9, 10, 11])
    np.testing.assert_allclose(different[0], same[0], atol=1e-5)
    assert np.abs(different[1] - different[0]).max() > 1e-2
    assert np.abs(different[2] - different[1]).max() > 1e-2


def test_prompts_and_scales_matter():
    base = draw([PROMPTS[0]])
    for changed in (
        draw([PROMPTS[1]]),
        draw([PROMPTS[0]], guidance_scale=4.0),
        draw([PROMPTS[0]], timestep_shift=1.0),
        draw([PROMPTS[0]], guidance_interval=(0.9, 1.0)),
        draw([PROMPTS[0]], renorm="channel"),
        draw([PROMPTS[0]], image_guidance_scale=2.0),
    ):
        assert np.abs(changed - base).max() > 1e-4
    strong = [draw([PROMPTS[0]], guidance_scale=4.0, renorm_min=x) for x in (0.0, 1.0)]
    assert np.abs(strong[0] - strong[1]).max() > 1e-4


def test_no_guidance_at_a_scale_of_one_or_less():
    base = draw(PROMPTS[:2], guidance_scale=1.0)
    for options in (
        {"guidance_scale": 0.5},
        {"guidance_scale": 0.0, "image_guidance_scale": 1.0, "renorm_min": 1.0},
    ):
        np.testing.assert_array_equal(draw(PROMPTS[:2], **options), base)
    # An interval that no time falls into is no guidance either.
    np.testing.assert_allclose(draw(PROMPTS[:2], guidance_interval=(1.0, 1.0)), base, atol=1e-5)


def test_progress_changes_no_bit_and_compiles_nothing():
    whole = draw(PROMPTS[:2], num_inference_steps=5)
    compiled = sample_latents._cache_size()
    calls = []
    pieces = draw(
        PROMPTS[:2], num_inference_steps=5, callback=lambda at: calls.append((at.step, at.total))
    )
    np.testing.assert_array_equal(pieces, whole)
    assert calls == [(i, 5) for i in range(1, 6)]
    assert sample_latents._cache_size() == compiled


def test_numbers_of_steps_share_a_program():
    draw(PROMPTS[:2], num_inference_steps=5)
    compiled = sample_latents._cache_size()
    few, more = (draw(PROMPTS[:2], num_inference_steps=n) for n in (4, 49))
    assert sample_latents._cache_size() == compiled
    assert np.abs(few - more).max() > 1e-3


def test_initial_noise_overrides_the_seed():
    shape = (15, SMALL.latent_channels)
    noise = np.random.default_rng(0).normal(size=shape)
    first = draw([PROMPTS[0]], initial_noise=noise, seed=1)
    np.testing.assert_array_equal(first, draw([PROMPTS[0]], initial_noise=noise[None], seed=2))
    for wrong in (noise[:-1], np.stack([noise] * 2), noise[..., :-1], noise.ravel()):
        with pytest.raises(PromptError, match="initial_noise: expected shape"):
            draw([PROMPTS[0]], initial_noise=wrong)


def test_kinds_of_output():
    pixels = draw(PROMPTS[:2], output_type="np")
    assert pixels.shape == (2, 12, 20, 3)
    assert pixels.dtype == np.float32
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    pictures_ = draw(PROMPTS[:2], output_type="pil")
    assert [p.size for p in pictures_] == [(20, 12)] * 2
    assert [p.mode for p in pictures_] == ["L"] * 2
    gray = (pixels[1].mean(axis=2, dtype=np.float32) * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(pictures_[1]), gray)


def test_one_step():
    assert np.isfinite(draw(PROMPTS[:1], num_inference_steps=1)).all()
    with pytest.raises(PromptError, match="num_inference_steps: expected an integer from 1"):
        draw(PROMPTS[:1], num_inference_steps=0)


@pytest.mark.extended
def test_conditioned_rows_equal_rows_alone():
    """Images of several shapes are padded to one, and come back in their order."""
    shapes = [(40, 40), (40, 20), (44, 44)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, s, dtype=np.uint8) for s in shapes]
    options = {"guidance_scale": 2.5, "image_guidance_scale": 1.5, "guidance_interval": (0.1, 1.0)}
    seeds, prompts = [1, 2, 3], PROMPTS[:3]
    together = draw(prompts, images=images, seed=seeds, **options)
    assert len({tuple(row[0]) for row in together}) == 3
    for i in range(3):
        alone = draw([PROMPTS[i]], images=images[i], seed=seeds[i], **options)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 20), (20, 31), (24, 40)])
def test_a_condition_image_is_prepared_as_in_training(shape):
    """Both encoders see the same pixels in training and here, whatever the image's shape."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    record = Record("a", file.getvalue())
    data = DataConfig(task="edit", vae_images=2, vae_height=12, vae_width=20)
    loaded = small_pipe().loaded
    seen = []

    class Seeing:
        config = loaded.config

        def autoencode(self, pixels, way):
            seen.append((way, pixels))
            return loaded.autoencode(pixels, way)

    given = image_list(image)
    batch = image_latents._conditioned(Seeing(), [[1], [2]], [0, 1], given, [0, 0], (12, 20))
    ((way, pixels),) = seen
    assert way == "encode"
    np.testing.assert_array_equal(pixels[0], vae_input(vae_pixels(record, data)))
    np.testing.assert_array_equal(batch.vit_pixels[1], vit_input(vit_pixels(record, loaded.config)))
    settings = ImageSettings(height=12, width=20)
    assert batch.clean_grid == image_latents.latent_size(loaded.config, settings)
    assert len(batch.vit_pixels) == len(batch.clean_latents) == 2


def test_one_condition_image_serves_all_prompts():
    image = pictures(1)[0]
    one = draw(PROMPTS[:2], images=image, guidance_scale=1.0)
    np.testing.assert_allclose(
        one, draw(PROMPTS[:2], images=[image, image], guidance_scale=1.0), atol=1e-6
    )
    assert np.abs(one - draw(PROMPTS[:2], guidance_scale=1.0)).max() > 1e-3


# ------------------------------------------------------------------------- images by steps


@pytest.mark.extended
def test_streamed_images_end_in_the_image():
    settings = ImageSettings(height=64, width=64, num_inference_steps=7, guidance_scale=3.0)
    prompts = ["Effusion.", "No finding."]
    steps = list(tiny_pipe().stream_image(prompts, settings=settings, seed=3, every=3))
    assert [(at.step, at.total) for at in steps] == [(3, 7), (6, 7), (7, 7)]
    options = {"height": 64, "width": 64, "num_inference_steps": 7, "guidance_scale": 3.0}
    whole = tiny_pipe().generate_image(prompts, seed=3, **options)
    difference = [
        [
            np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()
            for a, b in zip(at.images, whole, strict=True)
        ]
        for at in steps
    ]
    assert max(difference[-1]) <= 0.01  # one where rounding crosses an integer
    assert min(difference[0]) > max(difference[1]) > max(difference[-1])


def test_looks_are_estimates_of_the_image():
    """With a velocity that points straight at an image, every look is that image."""
    pipe, target = small_pipe(), np.full((1, 16, 16), 0.25, np.float32)

    def straight(model, params, context, state, times, first, last, *_, **__):
        x = np.asarray(state.latents)
        for i in range(int(first), int(last)):
            v = (x - target) / times[i]
            x = x - v * (times[i] - times[i + 1])
        return SamplingState(x, v, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_latents, "sample_latents", straight)
        settings = ImageSettings(height=16, width=16, num_inference_steps=5)
        _, steps = image_latents.generate_latents(pipe.loaded, [5], settings, None, None, 0, 1)
        looks = list(steps)
    assert [look.step for look in looks] == [1, 2, 3, 4, 5]
    for look in looks:
        np.testing.assert_allclose(look.estimate, target, atol=1e-5)
    assert np.abs(looks[0].latents - target).max() > 0.1


def test_stream_image_refuses():
    with pytest.raises(PromptError, match="every: expected an integer of at least 1, found 0"):
        next(tiny_pipe().stream_image("x", every=0))
    with pytest.raises(PromptError, match="height: expected a positive multiple"):
        next(tiny_pipe().stream_image("x", settings=ImageSettings(height=1)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (UniXConfig(), (512, 512)),
        (UniXConfig.preset("tiny"), (128, 128)),
        (UniXConfig.preset("nano"), (128, 128)),
    ],
    ids=["published", "tiny", "nano"],
)
def test_sizes_by_default(config, expected):
    assert ImageSettings().size(config) == expected
    assert ImageSettings(height=64).size(config) == (64, expected[1])


def test_settings_have_one_default_each():
    """The command line has the defaults of the library."""
    command = Generate(checkpoint=str(Path(__file__).parents[1] / "golden" / "tiny" / "checkpoint"))
    _, settings = command.unix()
    assert settings == ImageSettings(height=128, width=128)
    # What depends on the kind of checkpoint is absent on the command line until it is known.
    assert command.guidance_scale is None
    assert command.num_inference_steps is None
    report = Report(images=["x.png"])._settings()
    fields = dataclasses.asdict(ReportSettings())
    assert {name: report[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (ImageOptions, ImageSettings),
        (ReportOptions, ReportSettings),
        (DiffusionOptions, DiffusionSettings),
    ],
)
def test_keywords_are_the_fields_of_the_settings(options, kind):
    assert typing.get_type_hints(options) == {
        field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)
    }

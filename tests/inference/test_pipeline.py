"""The pipeline: the golden numbers through the public calls; rows that ignore their neighbours."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import pytest
from PIL import Image
from toy import (
    CHECKPOINT,
    GOLDEN,
    SMALL,
    golden,
    pictures,
    small_params,
    small_pipe,
    small_writing_pipe,
    tiny_pipe,
)

from unix_jax import UniXPipeline
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError, ImageError, PromptError
from unix_jax.inference import context as context_module
from unix_jax.inference import decoding, drawing
from unix_jax.inference import reports as reports_module
from unix_jax.inference.decoding import decode_until
from unix_jax.inference.drawing import ImageSettings
from unix_jax.inference.sampling import sample_latents
from unix_jax.text import Tokenizer

INFO = json.loads((GOLDEN / "golden.json").read_text())
PROMPTS = [[5, 6, 7], [8], list(range(40)), [5, 6, 7], []]
DRAW = {"height": 12, "width": 20, "num_steps": 4, "output_type": "latent"}
WRITE = {"max_new_tokens": 12}


def close(ours, expected, tolerance=1e-4):
    ours = np.asarray(ours)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def arguments(run):
    """A golden run's settings in the words of `generate_image`."""
    return {
        "num_steps": run["num_timesteps"],
        "timestep_shift": run["timestep_shift"],
        "guidance_scale": run["cfg_text_scale"],
        "image_guidance_scale": run["cfg_img_scale"],
        "guidance_interval": tuple(run["cfg_interval"]),
        "renorm": run["cfg_renorm_type"],
        "renorm_min": run["cfg_renorm_min"],
    }


# ------------------------------------------------------------------------- golden


@pytest.mark.parametrize("run", range(4))
def test_golden_images(run):
    pipe, tensors = tiny_pipe(), golden()
    latents = pipe.generate_image(
        [tensors["gen.prompt_ids"].tolist()],
        *INFO["generation_image_hw"],
        initial_noise=tensors["gen.init_noise"],
        output_type="latent",
        **arguments(INFO["generation_samples"][run]),
    )
    close(latents[0], tensors[f"gen.sample.{run}.latent"])


def test_golden_picture():
    pipe, tensors = tiny_pipe(), golden()
    options = arguments(INFO["generation_samples"][0]) | {
        "initial_noise": tensors["gen.init_noise"][None]
    }
    pixels = pipe.generate_image(tensors["gen.prompt_ids"], 64, 64, output_type="np", **options)
    expected = np.moveaxis(tensors["gen.sample.0.image"], 1, -1)
    close(pixels, expected)
    (picture,) = pipe.generate_image(tensors["gen.prompt_ids"], 64, 64, **options)
    difference = np.asarray(picture).astype(int) - (expected[0] * 255).astype(np.uint8)
    assert picture.mode == "RGB"
    assert np.abs(difference).max() <= 1  # one where rounding crosses an integer


def test_golden_edit(monkeypatch):
    pipe, tensors = tiny_pipe(), golden()
    monkeypatch.setattr(
        drawing, "to_vae_image",
        lambda *_, **__: np.moveaxis(tensors["edit.vae_pixels"][0], 0, -1),
    )  # fmt: skip
    monkeypatch.setattr(
        drawing, "to_model_image",
        lambda *_: np.moveaxis(tensors["und.pixel_values"][0], 0, -1),
    )  # fmt: skip
    latents = pipe.generate_image(
        [tensors["gen.prompt_ids"].tolist()], 64, 64,
        images=pictures(1), initial_noise=tensors["gen.init_noise"], output_type="latent",
        **arguments(INFO["edit_sample"]),
    )  # fmt: skip
    close(latents[0], tensors["edit.sample.latent"])


def test_golden_report(monkeypatch):
    pipe, tensors, rows = tiny_pipe(), golden(), 2
    monkeypatch.setattr(
        reports_module, "to_model_image",
        lambda *_: np.moveaxis(tensors["und.pixel_values"][0], 0, -1),
    )  # fmt: skip
    expected = tensors["und.greedy_tokens"][1:].tolist()
    found = pipe.generate_report_ids(
        pictures(rows), tensors["und.prompt_ids"].tolist(), len(expected)
    )
    assert found == [expected] * rows
    text = pipe.generate_report(pictures(rows), tensors["und.prompt_ids"], len(expected))
    assert text == [pipe.tokenizer.decode(expected)] * rows


def test_double_bos_is_for_strings_alone():
    pipe = tiny_pipe()
    assert pipe.config.double_bos
    special, ids = pipe.config.special_tokens, pipe.tokenizer.encode("No effusion.")
    assert pipe._loaded.encode_prompts("No effusion.", 1, 100) == [
        [special.bos, special.bos, *ids, special.eos]
    ]
    assert pipe._loaded.encode_prompts([ids], 1, 100) == [[special.bos, *ids, special.eos]]
    off = UniXPipeline.from_pretrained(CHECKPOINT, double_bos=False, compilation_cache=False)
    assert off._loaded.encode_prompts("No effusion.", 1, 100) == [[special.bos, *ids, special.eos]]


# ------------------------------------------------------------------------- reports by rows


def reports(images, prompts, pipe=None, **options):
    return (pipe or small_pipe()).generate_report_ids(images, prompts, **(WRITE | options))


SAMPLED = {"temperature": 1.5, "top_p": 0.95}


@pytest.mark.parametrize(
    ("options", "sizes"), [({}, (2, 3, 4, 5)), (SAMPLED, (3,))], ids=["greedy", "sampled"]
)
def test_report_rows_equal_rows_alone(options, sizes):
    images, seeds = pictures(5, seed=1), [3, 1, 4, 1, 5]
    alone = [
        reports([image], [prompt], seed=[seed], **options)[0]
        for image, prompt, seed in zip(images, PROMPTS, seeds, strict=True)
    ]
    assert len({tuple(row) for row in alone}) == 5
    for size in sizes:
        assert reports(images[:size], PROMPTS[:size], seed=seeds[:size], **options) == alone[:size]
    order = [4, 2, 0, 2, 1]
    found = reports(
        [images[i] for i in order],
        [PROMPTS[i] for i in order],
        seed=[seeds[i] for i in order],
        **options,
    )
    assert found == [alone[i] for i in order]


def test_equal_rows_with_one_seed_are_equal_and_with_several_differ():
    images = pictures(1) * 3
    same = reports(images, [PROMPTS[0]] * 3, seed=7, **SAMPLED)
    assert same[0] == same[1] == same[2]
    different = reports(images, [PROMPTS[0]] * 3, seed=[7, 8, 9], **SAMPLED)
    assert different[0] == same[0]
    assert len({tuple(row) for row in different}) == 3
    assert reports(images, [PROMPTS[0]] * 3, seed=[9, 8, 7], **SAMPLED) == different[::-1]


def test_one_new_token_and_prefixes():
    images = pictures(2)
    twelve = reports(images, PROMPTS[:2])
    assert reports(images, PROMPTS[:2], max_new_tokens=1) == [row[:1] for row in twelve]
    assert reports(images, PROMPTS[:2], max_new_tokens=5) == [row[:5] for row in twelve]


def test_vanishing_top_p_and_temperature_are_greedy():
    images = pictures(2)
    greedy = reports(images, PROMPTS[:2])
    assert reports(images, PROMPTS[:2], temperature=1.0, top_p=1e-9) == greedy
    assert reports(images, PROMPTS[:2], temperature=1e-3) == greedy


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-60])
def test_smallest_temperatures_are_greedy(temperature):
    images = pictures(2)
    assert reports(images, PROMPTS[:2], temperature=temperature) == reports(images, PROMPTS[:2])


@pytest.mark.filterwarnings("error")
def test_growing_cache_gives_the_same_tokens(monkeypatch):
    images, prompts = pictures(2), PROMPTS[:2]
    whole = reports(images, prompts, max_new_tokens=24)
    monkeypatch.setattr(context_module, "_BUCKETS", (16, 20, 26, 48))
    grown: list[int] = []
    grow = decoding.grow

    def watched(state, capacity):
        grown.append(capacity)
        return grow(state, capacity)

    monkeypatch.setattr(decoding, "grow", watched)
    assert reports(images, prompts, max_new_tokens=24) == whole
    assert len(grown) >= 2
    assert grown == sorted(set(grown))


def early_eos_pipe() -> UniXPipeline:
    """A pipeline whose logits like the eos: rows end at different steps."""
    params, vae = small_params()
    kernel = np.array(params["lm_head"]["kernel"])
    kernel[:, SMALL.special_tokens.eos] *= 3.0
    params["lm_head"]["kernel"] = jax.numpy.asarray(kernel)
    return UniXPipeline(SMALL, params, vae)


def test_rows_that_end_early():
    pipe, images = early_eos_pipe(), pictures(5, seed=1)
    options = {"max_new_tokens": 40, "temperature": 1.0}
    seeds = [1, 2, 3, 4, 5]
    together = reports(images, PROMPTS, pipe, seed=seeds, **options)
    lengths = {len(row) for row in together}
    assert len(lengths) > 2, lengths
    assert min(lengths) < 40
    assert all(SMALL.special_tokens.eos not in row for row in together)
    for image, prompt, seed, row in zip(images, PROMPTS, seeds, together, strict=True):
        assert reports([image], [prompt], pipe, seed=seed, **options) == [row]


# ------------------------------------------------------------------------- streams


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_pieces_joined_are_the_report(options):
    pipe, images = small_writing_pipe(), pictures(3)
    prompts = ["Report:", "", "Is there an effusion? Wo ist der Erguß?"]
    whole = pipe.generate_report(images, prompts, 20, **options)
    pieces = list(pipe.stream_report(images, prompts, 20, **options))
    assert len(pieces) <= 21
    assert [len(piece) for piece in pieces] == [3] * len(pieces)
    assert ["".join(row) for row in zip(*pieces, strict=True)] == whole


def test_tokens_that_were_handed_out_do_not_change():
    states = list(
        reports_module.decode_reports(
            tiny_pipe()._loaded, pictures(2), "Report:", 10, 0.0, 1.0, 0, stride=1
        )
    )
    copies = [tokens.tolist() for _, tokens in states]
    last = states[-1][1]
    for tokens in copies:
        assert tokens == last[:, : len(tokens[0])].tolist()


def test_abandoned_stream_leaves_the_pipeline_usable():
    pipe, images = small_writing_pipe(), pictures(2)
    whole = pipe.generate_report(images, "Report:", 10)
    first, second = (pipe.stream_report(images, "Report:", 10) for _ in range(2))
    next(first)
    next(second)
    next(first)
    first.close()
    assert pipe.generate_report(images, "Report:", 10) == whole
    rest = [next(pipe.stream_report(images, "Report:", 10)), *second]
    assert ["".join(row) for row in zip(*rest, strict=True)] == whole


def test_streaming_compiles_nothing_new():
    pipe, images = small_writing_pipe(), pictures(2)
    pipe.generate_report(images, "Report:", 10)
    compiled = decode_until._cache_size()
    list(pipe.stream_report(images, "Report:", 10))
    list(pipe.stream_report(images, "Another prompt", 30))
    assert decode_until._cache_size() == compiled


# ------------------------------------------------------------------------- images by rows


def draw(prompts, pipe=None, **options):
    return (pipe or small_pipe()).generate_image(prompts, **(DRAW | options))


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
        {"guidance_scale": 1.0, "image_guidance_scale": 3.0},
        {"guidance_scale": -2.0, "renorm_min": 1.0},
    ):
        np.testing.assert_array_equal(draw(PROMPTS[:2], **options), base)
    # An interval that no time falls into is no guidance either.
    np.testing.assert_allclose(draw(PROMPTS[:2], guidance_interval=(1.0, 1.0)), base, atol=1e-5)


def test_progress_changes_no_bit_and_compiles_nothing():
    whole = draw(PROMPTS[:2], num_steps=6)
    compiled = sample_latents._cache_size()
    calls = []
    pieces = draw(PROMPTS[:2], num_steps=6, progress=lambda *step: calls.append(step))
    np.testing.assert_array_equal(pieces, whole)
    assert calls == [(i, 5) for i in range(1, 6)]
    assert sample_latents._cache_size() == compiled


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
    np.testing.assert_array_equal(np.asarray(pictures_[1]), (pixels[1] * 255).astype(np.uint8))


def test_two_steps_are_one_evaluation():
    # The original counts grid points: 2 points give one step from noise to data.
    assert np.isfinite(draw(PROMPTS[:1], num_steps=2)).all()
    with pytest.raises(PromptError, match="num_steps: expected at least 2"):
        draw(PROMPTS[:1], num_steps=1)


def test_conditioned_rows_equal_rows_alone():
    """Pictures of several shapes: they are grouped inside, and come back in their order."""
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


def test_one_condition_image_serves_all_prompts():
    image = pictures(1)[0]
    one = draw(PROMPTS[:2], images=image, guidance_scale=1.0)
    np.testing.assert_allclose(
        one, draw(PROMPTS[:2], images=[image, image], guidance_scale=1.0), atol=1e-6
    )
    assert np.abs(one - draw(PROMPTS[:2], guidance_scale=1.0)).max() > 1e-3


# ------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"height": 13}, "height: expected a positive multiple of 4, found 13"),
        ({"width": 0}, "width: expected a positive multiple"),
        ({"height": -4}, "height: expected a positive multiple"),
        ({"renorm": "none"}, "renorm: expected one of"),
        ({"renorm_min": 1.5}, "renorm_min: expected"),
        ({"renorm_min": float("nan")}, "renorm_min: expected"),
        ({"output_type": "jpg"}, "output_type: expected"),
        ({"guidance_interval": (0.1,)}, "guidance_interval: expected two times"),
        ({"timestep_shift": 0.0}, "timestep_shift: expected"),
        ({"timestep_shift": float("nan")}, "timestep_shift: expected"),
        ({"num_steps": 0}, "num_steps: expected"),
        ({"prompts": []}, "prompts: expected at least one"),
        ({"prompts": [[640]]}, r"prompt\[0\]: expected a token id from 0 to 639, found 640"),
        ({"prompts": [[1], [-1]]}, r"prompts\[1\]\[0\]: expected a token id"),
        ({"prompts": [[1.5]]}, "expected an integer token id"),
        ({"prompts": "text"}, "no tokenizer"),
        ({"prompts": [list(range(90)) * 6]}, "expected at most 510 tokens"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": [1, 2, 3]}, "seed: expected one, or 1"),
        ({"images": pictures(3)}, "images: expected one, or 1"),
    ],
)
def test_bad_image_arguments(options, match):
    with pytest.raises(PromptError, match=match):
        draw(**({"prompts": [PROMPTS[0]]} | options))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ({"max_new_tokens": 512}, "max_new_tokens: expected at most"),
        ({"temperature": -0.1}, "temperature: expected at least 0"),
        ({"temperature": float("nan")}, "temperature: expected at least 0"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"top_p": 1.1}, "top_p: expected"),
        ({"prompts": [[1], [2]]}, "prompts: expected one, or 1"),
        ({"prompts": None}, "no tokenizer"),
        ({"prompts": [[0] * 499]}, "expected at most 498 tokens"),
        ({"seed": [0, 1]}, "seed: expected one, or 1"),
    ],
)
def test_bad_report_arguments(options, match):
    with pytest.raises(PromptError, match=match):
        small_pipe().generate_report_ids(pictures(1), **({"prompts": [[1]]} | WRITE | options))


def test_interpolated_positions_allow_larger_images_and_extrapolated_do_not():
    assert draw(PROMPTS[:1], height=24, width=4, num_steps=2).shape[1] == 6
    with pytest.raises(PromptError, match="height: expected at most 128"):
        tiny_pipe().generate_image("x", 144, 64)


def test_missing_parts_are_named():
    params, _ = small_params()
    pipe = UniXPipeline(SMALL, params)
    with pytest.raises(CheckpointError, match="autoencoder"):
        pipe.generate_image([[1]], 12, 20)
    with pytest.raises(CheckpointError, match="autoencoder"):
        draw([[1]], pipe, images=pictures(1))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        pipe.generate_report(pictures(1))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        pipe.stream_report(pictures(1))
    with pytest.raises(ImageError):
        reports([np.zeros((1, 1), np.uint8)], [[1]])


def test_control_tokens_outside_the_vocabulary():
    small = dataclasses.replace(SMALL.decoder, vocab_size=600)
    config = dataclasses.replace(SMALL, decoder=small)
    with pytest.raises(ConfigError, match="special_token_ids"):
        UniXPipeline(config, {})


def test_unknown_dtype():
    with pytest.raises(PromptError, match="dtype: expected"):
        UniXPipeline.from_pretrained(CHECKPOINT, "float16")


def test_bfloat16_is_float32_on_a_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = UniXPipeline.from_pretrained(CHECKPOINT, "bfloat16", compilation_cache=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pipe.params)} == {"float32"}
    assert isinstance(pipe.tokenizer, Tokenizer)


def test_every_kind_of_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    file = tmp_path / "x.png"
    Image.fromarray(array).save(file)
    kinds = [array, Image.fromarray(array), str(file), file, file.read_bytes(),
             array.astype(np.uint16) * 257]  # fmt: skip
    found = reports(kinds, [1, 2])
    assert all(row == found[0] for row in found)


# ------------------------------------------------------------------------- images by steps


def test_streamed_images_end_in_the_image():
    settings = ImageSettings(64, 64, num_steps=8, guidance_scale=3.0)
    steps = list(tiny_pipe().stream_image(["Effusion.", "No finding."], settings, seed=3, every=3))
    assert [(at.step, at.total) for at in steps] == [(3, 7), (6, 7), (7, 7)]
    whole = tiny_pipe().generate_image(
        ["Effusion.", "No finding."], 64, 64, num_steps=8, guidance_scale=3.0, seed=3
    )
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

    def straight(model, params, context, latents, times, first, last, *_, **__):
        x = np.asarray(latents)
        for i in range(int(first), int(last)):
            x = x - (x - target) / times[i] * (times[i] - times[i + 1])
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "sample_latents", straight)
        settings = ImageSettings(16, 16, num_steps=6)
        looks = list(drawing.draw_latents(pipe._loaded, [5], settings, None, None, 0, 1))
    assert [look.step for look in looks] == [1, 2, 3, 4, 5]
    for look in looks:
        np.testing.assert_allclose(look.estimate, target, atol=1e-5)
    assert np.abs(looks[0].latents - target).max() > 0.1


def test_stream_image_refuses():
    with pytest.raises(PromptError, match="every: expected at least 1, found 0"):
        next(tiny_pipe().stream_image("x", every=0))
    with pytest.raises(PromptError, match="height: expected a positive multiple"):
        next(tiny_pipe().stream_image("x", ImageSettings(height=1)))


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

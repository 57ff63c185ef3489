"""The pipeline: the golden numbers through the public calls; rows that ignore their neighbours."""

import dataclasses
import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from support.toy_pipelines import (
    CHECKPOINT,
    DRAW,
    GOLDEN,
    PROMPTS,
    SMALL,
    draw,
    golden,
    pictures,
    small_params,
    small_pipe,
    small_writing_pipe,
    tiny_pipe,
)
from unix_jax import UniXPipeline
from unix_jax.errors import CheckpointError, ConfigError, ImageError, PromptError
from unix_jax.inference import context as context_module
from unix_jax.inference import decoding, image_latents, pipeline
from unix_jax.inference import reports as reports_module
from unix_jax.inference.context import prefill
from unix_jax.inference.decoding import decode_until
from unix_jax.inference.inputs import image_rows
from unix_jax.inference.settings import ImageSettings, ReportSettings
from unix_jax.preprocessing import transforms
from unix_jax.preprocessing.text import Tokenizer

INFO = json.loads((GOLDEN / "tiny" / "golden.json").read_text())
WRITE = {"max_new_tokens": 12}


def close(ours, expected, tolerance=1e-4):
    ours = np.asarray(ours)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def arguments(run):
    """A golden run's settings in the words of `generate_image`."""
    return {
        "num_inference_steps": run["num_timesteps"] - 1,
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
        **dict(zip(("height", "width"), INFO["generation_image_hw"], strict=True)),
        initial_noise=tensors["gen.init_noise"],
        output_type="latent",
        **arguments(INFO["generation_samples"][run]),
    )
    close(latents[0], tensors[f"gen.sample.{run}.latent"])


def test_golden_image():
    pipe, tensors = tiny_pipe(), golden()
    options = arguments(INFO["generation_samples"][0]) | {
        "initial_noise": tensors["gen.init_noise"][None]
    }
    pixels = pipe.generate_image(
        tensors["gen.prompt_ids"], height=64, width=64, output_type="np", **options
    )
    expected = np.moveaxis(tensors["gen.sample.0.image"], 1, -1)
    close(pixels, expected)
    (picture,) = pipe.generate_image(tensors["gen.prompt_ids"], height=64, width=64, **options)
    # The original saves RGB; a PIL image here is the mean of its channels.
    gray = (expected[0].mean(axis=2) * 255).astype(np.uint8)
    difference = np.asarray(picture).astype(int) - gray
    assert picture.mode == "L"
    assert np.abs(difference).max() <= 1  # one where rounding crosses an integer


def test_golden_edit(monkeypatch):
    pipe, tensors = tiny_pipe(), golden()
    monkeypatch.setattr(
        image_latents, "to_padded_vae_image",
        lambda *_, **__: np.moveaxis(tensors["edit.vae_pixels"][0], 0, -1),
    )  # fmt: skip
    monkeypatch.setattr(
        image_latents, "to_model_image",
        lambda *_: np.moveaxis(tensors["und.pixel_values"][0], 0, -1),
    )  # fmt: skip
    latents = pipe.generate_image(
        [tensors["gen.prompt_ids"].tolist()], height=64, width=64,
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
        pictures(rows), prompts=tensors["und.prompt_ids"].tolist(), max_new_tokens=len(expected)
    )
    assert found == [expected] * rows
    text = pipe.generate_report(
        pictures(rows), prompts=tensors["und.prompt_ids"], max_new_tokens=len(expected)
    )
    assert text == [pipe.tokenizer.decode(expected)] * rows


def test_double_bos_is_for_strings_alone():
    pipe = tiny_pipe()
    assert pipe.config.double_bos
    special, ids = pipe.config.special_tokens, pipe.tokenizer.encode("No effusion.")
    assert pipe.loaded.encode_prompts("No effusion.", 1, 100) == [
        [special.bos, special.bos, *ids, special.eos]
    ]
    assert pipe.loaded.encode_prompts([ids], 1, 100) == [[special.bos, *ids, special.eos]]
    off = UniXPipeline.from_pretrained(CHECKPOINT, double_bos=False, compilation_cache=False)
    assert off.loaded.encode_prompts("No effusion.", 1, 100) == [[special.bos, *ids, special.eos]]


# ------------------------------------------------------------------------- reports by rows


def reports(images, prompts, pipe=None, **options):
    return (pipe or small_pipe()).generate_report_ids(images, prompts=prompts, **(WRITE | options))


SAMPLED = {"temperature": 1.5, "top_p": 0.95}


@pytest.mark.parametrize(
    ("options", "sizes"), [({}, (2, 5)), (SAMPLED, (3,))], ids=["greedy", "sampled"]
)
def test_report_rows_equal_rows_alone(options, sizes):
    images, seeds = pictures(5, seed=1), [3, 1, 4, 2, 5]
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


def test_rows_of_several_images_equal_rows_alone():
    """Rows of one, two and three images in a batch."""
    a, b, c = pictures(3, seed=1)
    rows = [[a, b], a, (c, b, a), [b, c], [b]]
    alone = [reports([row], [PROMPTS[0]])[0] for row in rows]
    assert len({tuple(row) for row in alone}) == 5
    assert reports(rows, [PROMPTS[0]] * 5) == alone
    assert reports(rows[2:4], PROMPTS[0]) == alone[2:4]
    assert reports([a], PROMPTS[0]) == reports([[a]], PROMPTS[0]) == reports(a, PROMPTS[0])


def test_rows_of_several_images_that_cannot_be_used():
    (a,) = pictures(1)
    for images, expected in (
        ([[a], []], r"images\[1\]: expected at least one image, found none"),
        ([], r"images: expected at least one, found none"),
    ):
        with pytest.raises(PromptError, match=expected):
            reports(images, PROMPTS[0])
    with pytest.raises(ImageError, match=r"images\[0\]\[1\]: expected a path"):
        reports([[a, 3]], PROMPTS[0])
    with pytest.raises(ImageError, match=r"images\[0\]\[0\]: expected a path.*found list"):
        reports([[[a]]], PROMPTS[0])


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


@pytest.mark.extended
@pytest.mark.filterwarnings("error")
def test_growing_cache_gives_the_same_tokens(monkeypatch):
    images, prompts = pictures(2), PROMPTS[:2]
    whole = reports(images, prompts, max_new_tokens=24)
    monkeypatch.setattr(context_module, "_BUCKETS", tuple(range(16, 49, 4)))
    grown: list[int] = []
    resize = decoding.resize

    def watched(state, **sizes):
        grown.append(sizes["context"] + sizes["ring"])
        return resize(state, **sizes)

    monkeypatch.setattr(decoding, "resize", watched)
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


def test_the_ring_is_smaller_after_the_end_of_a_long_report(monkeypatch):
    monkeypatch.setattr(context_module, "_BUCKETS", tuple(range(16, 97, 8)))
    pipe, lengths = tiny_pipe(), [40, 3, 3, 3, 30, 3, 3, 3, 3, 3, 12]
    rings: list[int] = []
    resize = decoding.resize

    def watched(state, **sizes):
        rings.append(sizes["ring"])
        return resize(state, **sizes)

    monkeypatch.setattr(decoding, "resize", watched)
    images = pictures(len(lengths))
    requests = (
        pipe.report_request(image, prompt=[5], max_new_tokens=length)
        for image, length in zip(images, lengths, strict=True)
    )
    found = dict(pipe.iterate_reports(requests, batch_size=2))
    assert any(after < before for before, after in itertools.pairwise(rings)), rings
    for i, (image, length) in enumerate(zip(images, lengths, strict=True)):
        assert [found[i].token_ids] == reports([image], [5], pipe, max_new_tokens=length)


@pytest.mark.extended
@pytest.mark.parametrize("batch_size", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_replaced_rows_equal_rows_alone(batch_size, monkeypatch):
    """More reports than rows, of many lengths, over a ring that grows and is used again."""
    monkeypatch.setattr(context_module, "_BUCKETS", (16, 24, 40, 56, 72, 96))
    pipe, count = early_eos_pipe(), 9
    images = pictures(count, seed=1)
    rows = [images[i] if i % 3 else [images[i], images[0]] for i in range(count)]
    prompts = [PROMPTS[i % 5] for i in range(count)]
    options = {"max_new_tokens": 40, "temperature": 1.0}
    alone = [
        reports([row], [prompt], pipe, seed=i, **options)[0]
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    assert len({len(row) for row in alone}) > 3
    seeds = list(range(count))
    assert reports(rows, prompts, pipe, seed=seeds, batch_size=batch_size, **options) == alone


def test_reports_are_yielded_when_they_end():
    pipe, count, taken = early_eos_pipe(), 9, []

    def requests():
        for i, image in enumerate(pictures(count, seed=1)):
            taken.append(i)
            # Settings may differ from report to report.
            settings = ReportSettings(max_new_tokens=40 - i, temperature=float(i % 2))
            yield pipe.report_request(image, prompt=PROMPTS[i % 5], settings=settings, seed=i)

    running = pipe.iterate_reports(requests(), batch_size=2)
    assert taken == []
    first = next(running)
    assert len(taken) < count
    found = dict([first, *running])
    assert sorted(found) == list(range(count))
    for i, image in enumerate(pictures(count, seed=1)):
        (alone,) = pipe._reports(
            None, image, [PROMPTS[i % 5]],
            ReportSettings(max_new_tokens=40 - i, temperature=float(i % 2)), i, None, "none", None,
        )  # fmt: skip
        assert found[i] == alone


def test_no_row_is_idle_while_requests_wait():
    pipe, lengths = tiny_pipe(), [20, 4, 4, 4, 4]
    requests = (
        pipe.report_request(image, prompt=[5], max_new_tokens=length)
        for image, length in zip(pictures(5), lengths, strict=True)
    )
    # The short reports follow each other beside the long one, which ends with the last of them.
    ended = [index for index, _ in pipe.iterate_reports(requests, batch_size=2)]
    assert ended[:3] == [1, 2, 3]
    assert set(ended[3:]) == {0, 4}


def test_reports_in_small_batches_compile_one_shape():
    pipe, images = early_eos_pipe(), pictures(7)
    reports(images[:5], [5], pipe, batch_size=2)
    compiled = [f._cache_size() for f in (decode_until, decoding.replace_rows, prefill)]
    reports(images, [5], pipe, batch_size=2, temperature=0.0)
    assert [f._cache_size() for f in (decode_until, decoding.replace_rows, prefill)] == compiled


def test_closing_the_iterator_stops_taking_requests():
    pipe, taken = early_eos_pipe(), []
    requests = (
        taken.append(i) or pipe.report_request(image, prompt=[5], max_new_tokens=4)
        for i, image in enumerate(pictures(20))
    )
    running = pipe.iterate_reports(requests, batch_size=2)
    next(running)
    running.close()
    assert len(taken) < 10
    assert len(reports(pictures(3), [5], pipe, batch_size=2)) == 3


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", True])
def test_bad_batch_sizes(batch_size):
    with pytest.raises(PromptError, match="batch_size: expected"):
        reports(pictures(2), [5], batch_size=batch_size)
    with pytest.raises(PromptError, match="batch_size: expected"):
        small_pipe().iterate_reports([], batch_size=batch_size)


def test_a_callback_needs_reports_that_begin_together():
    options = {"prompts": [5], "batch_size": 1, "callback": print, **WRITE}
    with pytest.raises(PromptError, match="callback: expected None with batch_size 1 for 2"):
        small_pipe().generate_report_ids(pictures(2), **options)
    seen = []
    options |= {"batch_size": 2, "callback": seen.append}
    assert small_pipe().generate_report_ids(pictures(2), **options)
    assert seen


# ------------------------------------------------------------------------- streams


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_pieces_joined_are_the_report(options):
    pipe, images = small_writing_pipe(), pictures(3)
    prompts = ["Report:", "", "Is there an effusion? Wo ist der Erguß?"]
    whole = pipe.generate_report(images, prompts=prompts, max_new_tokens=20, **options)
    pieces = list(pipe.stream_report(images, prompts=prompts, max_new_tokens=20, **options))
    assert len(pieces) <= 21
    assert [len(piece) for piece in pieces] == [3] * len(pieces)
    assert ["".join(row) for row in zip(*pieces, strict=True)] == whole


def test_tokens_that_were_handed_out_do_not_change():
    settings, loaded = ReportSettings(max_new_tokens=10), tiny_pipe().loaded
    _, requests = reports_module.report_requests(
        loaded, image_rows(pictures(2)), "Report:", settings, 0
    )
    states = list(reports_module.decode_reports(loaded, requests, 2, together=True, stride=1))
    assert len(states) == 10
    for step, rows in enumerate(states, start=1):
        assert rows.counts.tolist() == [step, step]
        assert rows.tokens[:, :step].tolist() == states[-1].tokens[:, :step].tolist()


def test_abandoned_stream_leaves_the_pipeline_usable():
    pipe, images = small_writing_pipe(), pictures(2)
    whole = pipe.generate_report(images, prompts="Report:", max_new_tokens=10)
    first, second = (
        pipe.stream_report(images, prompts="Report:", max_new_tokens=10) for _ in range(2)
    )
    next(first)
    next(second)
    next(first)
    first.close()
    assert pipe.generate_report(images, prompts="Report:", max_new_tokens=10) == whole
    rest = [next(pipe.stream_report(images, prompts="Report:", max_new_tokens=10)), *second]
    assert ["".join(row) for row in zip(*rest, strict=True)] == whole


def test_streaming_compiles_nothing_new():
    pipe, images = small_writing_pipe(), pictures(2)
    pipe.generate_report(images, prompts="Report:", max_new_tokens=10)
    compiled = decode_until._cache_size()
    list(pipe.stream_report(images, prompts="Report:", max_new_tokens=10))
    list(pipe.stream_report(images, prompts="Another prompt", max_new_tokens=30))
    assert decode_until._cache_size() == compiled


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
        ({"guidance_interval": (0.9, 0.4)}, "guidance_interval: expected two times"),
        ({"guidance_interval": "ab"}, "guidance_interval: expected two times"),
        ({"guidance_interval": 0.4}, "guidance_interval: expected two times"),
        ({"guidance_interval": (0.4, float("nan"))}, r"guidance_interval\[1\]: expected a time"),
        ({"guidance_interval": (-0.1, 1)}, r"guidance_interval\[0\]: expected a time"),
        ({"guidance_interval": (0, 2.0)}, r"guidance_interval\[1\]: expected a time"),
        ({"guidance_scale": float("nan")}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": 1e39}, "guidance_scale: expected a finite number"),
        ({"guidance_scale": -1.0}, "guidance_scale: expected a finite number of at least 0"),
        ({"guidance_scale": "2.0"}, "guidance_scale: expected a finite number .*found '2.0'"),
        ({"guidance_scale": True}, "guidance_scale: expected a finite number .*found True"),
        ({"guidance_scale": None}, "guidance_scale: expected a finite number .*found None"),
        ({"guidance_scale": np.ones(2)}, "guidance_scale: expected a finite number"),
        ({"image_guidance_scale": 2j}, "image_guidance_scale: expected a finite number"),
        ({"guidance_scale": 1.0, "image_guidance_scale": 3.0}, "it requires text guidance"),
        ({"num_inference_steps": 3.5}, "num_inference_steps: expected an integer .*found 3.5"),
        ({"num_inference_steps": "3"}, "num_inference_steps: expected an integer .*found '3'"),
        ({"num_inference_steps": True}, "num_inference_steps: expected an integer .*found True"),
        (
            {"num_inference_steps": 10**12},
            "num_inference_steps: expected an integer from 1 to 100000",
        ),
        ({"height": 16.0}, "height: expected a positive multiple of 4, found 16.0"),
        ({"renorm": None}, "renorm: expected one of"),
        ({"timestep_shift": float("inf")}, "timestep_shift: expected a positive number"),
        ({"initial_noise": np.full((15, 16), np.nan)}, "initial_noise: expected finite numbers"),
        ({"initial_noise": np.ones((1, 15, 16)) * 1j}, "initial_noise: expected an array"),
        ({"initial_noise": np.ones((14, 16))}, "initial_noise: expected shape"),
        ({"initial_noise": np.ones((2, 15, 16))}, "initial_noise: expected shape"),
        ({"initial_noise": "noise"}, "initial_noise: expected an array"),
        ({"initial_noise": [[1.0], [1.0, 2.0]]}, "initial_noise: expected an array"),
        ({"prompts": None}, "prompts: expected a text.*found None"),
        ({"prompts": 3}, "prompts: expected a text.*found int"),
        ({"prompts": {"a": 1}}, "prompts: expected a text.*found dict"),
        ({"prompts": b"text"}, "prompts: expected a text.*found bytes"),
        ({"prompts": [None]}, "expected a string or a sequence of token ids, found NoneType"),
        ({"prompts": [True]}, r"prompt\[0\]: expected an integer token id, found True"),
        ({"seed": "1"}, "seed: expected an integer"),
        ({"seed": [[1], [2, 3]]}, "seed: expected one, or 1"),
        ({"timestep_shift": 0.0}, "timestep_shift: expected"),
        ({"timestep_shift": float("nan")}, "timestep_shift: expected"),
        ({"num_inference_steps": 0}, "num_inference_steps: expected"),
        ({"solver": "heun"}, "solver: expected one of"),
        ({"solver": None}, "solver: expected one of"),
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
    given = DRAW | {"prompts": [PROMPTS[0]]} | options
    with pytest.raises(PromptError, match=match):
        draw(**({"prompts": [PROMPTS[0]]} | options))
    if "output_type" in options:
        return
    # Streaming checks the same, and before its first item.
    names = {field.name for field in dataclasses.fields(ImageSettings)}
    settings = ImageSettings(**{k: v for k, v in given.items() if k in names})
    others = {k: v for k, v in given.items() if k in ("prompts", "images", "initial_noise", "seed")}
    with pytest.raises(PromptError, match=match):
        small_pipe().stream_image(settings=settings, **others)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer from 1 to 508"),
        (
            {"max_new_tokens": 512},
            r"max_new_tokens: expected an integer from 1 to 508 \(512 positions\), found 512",
        ),
        ({"temperature": -0.1}, "temperature: expected a finite number of at least 0"),
        ({"temperature": float("inf")}, "temperature: expected a finite number of at least 0"),
        ({"temperature": "0"}, "temperature: expected a finite number of at least 0"),
        ({"temperature": True}, "temperature: expected a finite number of at least 0"),
        ({"max_new_tokens": 8.0}, "max_new_tokens: expected an integer"),
        ({"max_new_tokens": None}, "max_new_tokens: expected an integer"),
        ({"max_new_tokens": True}, "max_new_tokens: expected an integer"),
        ({"top_p": float("nan")}, "top_p: expected a number in"),
        ({"top_p": "0.9"}, "top_p: expected a number in"),
        ({"resize": "crop"}, "resize: expected one of"),
        ({"resize": None}, "resize: expected one of"),
        ({"seed": None}, "seed: expected an integer"),
        ({"seed": 2**32}, "seed: expected an integer from 0 to 4294967295"),
        ({"seed": 1.5}, "seed: expected an integer"),
        ({"temperature": float("nan")}, "temperature: expected a finite number of at least 0"),
        ({"top_p": 0.0}, "top_p: expected"),
        ({"top_p": 1.1}, "top_p: expected"),
        ({"prompts": [[1], [2]]}, "prompts: expected one, or a list of 1"),
        ({"prompts": None}, "no tokenizer"),
        ({"prompts": [[0] * 499]}, "expected at most 498 tokens"),
        ({"seed": [0, 1]}, "seed: expected one, or 1"),
    ],
)
def test_bad_report_arguments(options, match):
    with pytest.raises(PromptError, match=match):
        small_pipe().generate_report_ids(pictures(1), **({"prompts": [[1]]} | WRITE | options))
    if "no tokenizer" in match:
        return
    # Streaming checks the same, and before its first item.
    with pytest.raises(PromptError, match=match):
        small_writing_pipe().stream_report(pictures(1), **({"prompts": [[1]]} | WRITE | options))


def test_interpolated_positions_allow_larger_images_and_extrapolated_do_not():
    assert draw(PROMPTS[:1], height=24, width=4, num_inference_steps=1).shape[1] == 6
    with pytest.raises(PromptError, match="height: expected at most 128"):
        tiny_pipe().generate_image("x", height=144, width=64)


def test_missing_parts_are_named():
    params, _ = small_params()
    pipe = UniXPipeline(SMALL, params)
    with pytest.raises(CheckpointError, match="autoencoder"):
        pipe.generate_image([[1]], height=12, width=20)
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
        UniXPipeline.from_pretrained(CHECKPOINT, dtype="float16")


def test_bfloat16_is_float32_on_a_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = UniXPipeline.from_pretrained(CHECKPOINT, dtype="bfloat16", compilation_cache=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(pipe.params)} == {"float32"}
    assert isinstance(pipe.tokenizer, Tokenizer)


def test_every_kind_of_image(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    file = tmp_path / "x.png"
    Image.fromarray(array).save(file)
    kinds = [array, Image.fromarray(array), str(file), file, file.read_bytes(),
             array.astype(np.uint16) * 257]  # fmt: skip
    found = reports(kinds, [1, 2])
    assert all(row == found[0] for row in found)


# ------------------------------------------------------------------------- forms of inputs


def test_numbers_may_be_scalars_of_any_library():
    base = draw(PROMPTS[:1], num_inference_steps=2, guidance_scale=2.5, seed=4)
    same = draw(
        PROMPTS[:1],
        num_inference_steps=np.int64(2),
        guidance_scale=jnp.float32(2.5),
        guidance_interval=np.array([0.4, 1.0]),
        height=jnp.asarray(12),
        seed=jnp.asarray([4]),
    )
    np.testing.assert_array_equal(base, same)


def test_a_generator_of_prompts_is_read_once():
    base = draw(PROMPTS[:2])
    np.testing.assert_array_equal(draw(prompt for prompt in PROMPTS[:2]), base)
    images = pictures(2)
    whole = reports(images, PROMPTS[:2])
    assert reports(iter(images), iter(PROMPTS[:2])) == whole


def test_image_guidance_of_texts_alone_is_stronger_text_guidance():
    # v_0 + 1.5 * ((v_empty + 3 * (v - v_empty)) - v), with v in the place of v_0, is guidance of 4.
    options = {"renorm_min": 1.0}
    both = draw(PROMPTS[:2], guidance_scale=3.0, image_guidance_scale=1.5, **options)
    close(both, draw(PROMPTS[:2], guidance_scale=4.0, **options))


def test_squashed_and_letterboxed_images_are_told_apart():
    wide = np.random.default_rng(0).integers(0, 256, (32, 96), dtype=np.uint8)
    square = np.asarray(Image.fromarray(wide).convert("RGB").resize((32, 32), 3))
    assert reports([wide], PROMPTS[:1], resize="squash") == reports([square], PROMPTS[:1])
    pixels = transforms.to_model_image(Image.fromarray(wide), 32, "squash")
    np.testing.assert_array_equal(
        pixels, transforms.to_model_image(Image.fromarray(square), 32, "letterbox")
    )


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), jnp.float32,
                                   "bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")])  # fmt: skip
def test_dtypes_in_any_form(dtype):
    assert pipeline._dtype(dtype) == jnp.dtype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bf16", np.int32, jnp.float16, None, 3, "x"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(PromptError, match="dtype: expected 'bfloat16' or 'float32', found"):
        UniXPipeline.from_pretrained(CHECKPOINT, dtype=dtype)

"""The pipeline's calls: settings, callbacks, details, old names, saving, and how it prints."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import pytest

from support.toy_pipelines import (
    CHECKPOINT,
    DRAW,
    PROMPTS,
    SMALL,
    draw,
    pictures,
    small_params,
    small_pipe,
    small_writing_pipe,
    tiny_pipe,
)
from unix_jax import UniXPipeline
from unix_jax.errors import ArgumentNameError, PromptError, UniXError
from unix_jax.inference import image_latents
from unix_jax.inference.results import ImageStep, ReportStep
from unix_jax.inference.settings import DiffusionSettings, ImageSettings, ReportSettings

KINDS = (ReportSettings, ImageSettings, DiffusionSettings)
WRITE = {"prompts": "Report:", "max_new_tokens": 12}

# ------------------------------------------------------------------------- settings


def test_settings_or_keywords():
    options = {"height": 12, "width": 20, "num_inference_steps": 2, "solver": "ab2"}
    by_keywords = draw(PROMPTS[:2], **options)
    given = {"settings": ImageSettings(**options), "output_type": "latent"}
    by_settings = small_pipe().generate_image(PROMPTS[:2], **given)
    np.testing.assert_array_equal(by_settings, by_keywords)
    *_, last = small_pipe().stream_image(PROMPTS[:2], settings=given["settings"])
    *_, same = small_pipe().stream_image(PROMPTS[:2], **options)
    np.testing.assert_array_equal(last.latents, same.latents)
    np.testing.assert_allclose(last.latents, by_keywords, atol=1e-6)

    pipe, images = small_writing_pipe(), pictures(2)
    settings = ReportSettings(max_new_tokens=6)
    texts = pipe.generate_report(images, prompts="Report:", max_new_tokens=6)
    assert pipe.generate_report(images, prompts="Report:", settings=settings) == texts
    pieces = pipe.stream_report(images, prompts="Report:", settings=settings)
    assert ["".join(row) for row in zip(*pieces, strict=True)] == texts


def test_settings_and_keywords_together_are_refused():
    with pytest.raises(PromptError, match="either settings or keywords, found both: height"):
        small_pipe().generate_image([[1]], settings=ImageSettings(), height=12)
    with pytest.raises(PromptError, match="settings: expected ImageSettings, found"):
        small_pipe().generate_image([[1]], settings=ReportSettings())
    with pytest.raises(PromptError, match="settings: expected ReportSettings, found"):
        small_pipe().generate_report_ids(pictures(1), prompts=[1], settings={"max_new_tokens": 3})


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_frozen_values(kind):
    settings = kind()
    assert settings == kind() == copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings))
    assert hash(settings) == hash(kind())
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, 1)


def test_old_names_name_the_new_ones():
    old = {"num_steps": "num_inference_steps", "progress": "callback"}
    for name, new in old.items():
        with pytest.raises(ArgumentNameError, match=f"{name}: this argument is now {new}"):
            draw(PROMPTS[:1], **{name: 5})
        with pytest.raises(ArgumentNameError, match=f"{name}: this argument is now {new}"):
            small_pipe().stream_image(PROMPTS[:1], **{name: 5})
        with pytest.raises(ArgumentNameError, match=f"{name}: this argument is now {new}"):
            ImageSettings(**{name: 5})
    with pytest.raises(ArgumentNameError, match="num_steps=50 is num_inference_steps=49"):
        ImageSettings(num_steps=50)
    with pytest.raises(TypeError):  # as for any function
        draw(PROMPTS[:1], num_steps=5)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("guidance", "guidance_scale"), ("num_inference_step", "num_inference_steps"), ("xyz", None)],
)
def test_unknown_names(name, meant):
    with pytest.raises(ArgumentNameError, match=f"{name}: expected an argument") as error:
        draw(PROMPTS[:1], **{name: 1})
    assert ("did you mean" in str(error.value)) == (meant is not None)
    assert meant is None or str(error.value).endswith(f"did you mean {meant}?")


def test_arguments_after_the_first_are_keywords():
    pipe = small_writing_pipe()
    for call in (
        lambda: pipe.generate_image([[1]], 12),
        lambda: pipe.stream_image([[1]], 12),
        lambda: pipe.generate_report(pictures(1), "Report:"),
        lambda: pipe.stream_report(pictures(1), "Report:"),
        lambda: pipe.generate_report_ids(pictures(1), [1]),
        lambda: UniXPipeline.from_pretrained("x", "float32"),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


# ------------------------------------------------------------------------- callbacks and details


def test_a_callback_sees_every_token():
    pipe, images, seen = small_writing_pipe(), pictures(2), []
    texts = pipe.generate_report(images, callback=seen.append, **WRITE)
    ids = pipe.generate_report_ids(images, **WRITE)
    assert texts == pipe.generate_report(images, **WRITE)
    assert all(isinstance(step, ReportStep) for step in seen)
    *steps, last = seen
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in seen} == {12}
    assert last.token_ids == [None, None]
    assert ["".join(row) for row in zip(*(s.pieces for s in seen), strict=True)] == texts
    eos = SMALL.special_tokens.eos
    for row in range(2):
        found = [s.token_ids[row] for s in steps]
        assert [i for i in found if i not in (None, eos)] == ids[row]
    streamed = list(pipe.stream_report(images, return_details=True, **WRITE))
    assert streamed == seen


def test_a_callback_sees_every_step():
    seen = []
    found = draw(PROMPTS[:2], num_inference_steps=4, callback=seen.append)
    assert all(isinstance(step, ImageStep) for step in seen)
    assert [(step.step, step.total) for step in seen] == [(i, 4) for i in range(1, 5)]
    np.testing.assert_array_equal(seen[-1].latents, found)
    np.testing.assert_array_equal(seen[-1].estimate, found)
    assert np.abs(seen[0].latents - found).max() > 1e-3
    assert [image.size for image in seen[1].images] == [(20, 12)] * 2
    assert "latents" not in repr(seen[0])
    with pytest.raises(PromptError, match="callback: expected a function, found 3"):
        draw(PROMPTS[:1], callback=3)


def ending_pipe():
    """A pipeline with a tokenizer, some of whose rows end early."""
    params, vae = small_params()
    kernel = np.array(params["lm_head"]["kernel"])
    kernel[:, SMALL.special_tokens.eos] *= 3.0
    params["lm_head"]["kernel"] = jax.numpy.asarray(kernel)
    return UniXPipeline(SMALL, params, vae, small_writing_pipe().tokenizer)


def test_details_of_reports():
    pipe, images = ending_pipe(), pictures(5, seed=1)
    options = {"prompts": PROMPTS, "seed": [1, 2, 3, 4, 5], "max_new_tokens": 20, "temperature": 1}
    results = pipe.generate_report(images, return_details=True, **options)
    assert [result.text for result in results] == pipe.generate_report(images, **options)
    assert [result.token_ids for result in results] == pipe.generate_report_ids(images, **options)
    assert [result.seed for result in results] == [1, 2, 3, 4, 5]
    assert {result.finish_reason for result in results} == {"eos", "length"}
    for result in results:
        assert (result.finish_reason == "length") == (len(result.token_ids) == 20)
    # A row that has ended has no further tokens.
    steps = list(pipe.stream_report(images, return_details=True, **options))
    for row, result in enumerate(results):
        ids = [step.token_ids[row] for step in steps if step.token_ids[row] is not None]
        ended = [SMALL.special_tokens.eos] if result.finish_reason == "eos" else []
        assert ids == result.token_ids + ended


def test_details_of_images():
    found = draw(PROMPTS[:2], seed=[4, 5], return_details=True)
    np.testing.assert_array_equal([r.image for r in found], draw(PROMPTS[:2], seed=[4, 5]))
    assert [result.seed for result in found] == [4, 5]
    assert found[0].settings == ImageSettings(height=12, width=20, num_inference_steps=3)
    noise = np.zeros((15, SMALL.latent_channels))
    assert draw(PROMPTS[:1], initial_noise=noise, return_details=True)[0].seed is None


# ------------------------------------------------------------------------- equal rows


def sampled_rows(monkeypatch):
    """The number of rows of every call of the sampling loop."""
    seen, plain = [], image_latents.sample_latents

    def watched(*arguments, **options):
        seen.append(len(arguments[3].latents))
        return plain(*arguments, **options)

    monkeypatch.setattr(image_latents, "sample_latents", watched)
    return seen


@pytest.mark.extended
def test_equal_rows_are_computed_once(monkeypatch):
    rows, seeds = [PROMPTS[i] for i in (0, 1, 0, 0, 1)], [7, 7, 7, 8, 7]
    alone = [draw([row], seed=[seed])[0] for row, seed in zip(rows, seeds, strict=True)]
    seen = sampled_rows(monkeypatch)
    found = draw(rows, seed=seeds)
    assert seen == [3]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    # One condition image for all is encoded once; other images make other rows.
    image, other = pictures(2)
    encoded = []
    pipe = small_pipe()
    plain = type(pipe.loaded).autoencode

    def autoencode(self, x, method):
        encoded.append((method, len(x)))
        return plain(self, x, method)

    monkeypatch.setattr(type(pipe.loaded), "autoencode", autoencode)
    draw(rows, images=image, seed=seeds)
    assert (encoded, seen[1:]) == ([("encode", 1)], [3])
    draw(rows[:1] * 2, images=[image, image], seed=1)
    assert len(draw(rows[:1] * 2, images=[image, other], seed=1)) == 2


def test_errors_name_the_callers_rows():
    params, vae = small_params()
    table = np.array(params["embed_tokens"]["embedding"])
    table[9] = np.nan
    params["embed_tokens"]["embedding"] = jax.numpy.asarray(table)
    pipe = UniXPipeline(SMALL, params, vae)
    with pytest.raises(Exception, match=r"^prompts\[3\]: keys or values"):
        pipe.generate_image([[5], [5], [6], [9]], **DRAW)


# ------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    "layout", [pytest.param("native", marks=pytest.mark.extended), "published"]
)
def test_saved_and_loaded_again(tmp_path, layout, assert_close):
    pipe, out = tiny_pipe(), tmp_path / "saved"
    write = {"prompts": "Report:", "max_new_tokens": 8}
    make = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
    pipe.save_pretrained(out, layout=layout)
    again = UniXPipeline.from_pretrained(out, dtype="float32", compilation_cache=False)
    assert again.config == pipe.config
    report = pipe.generate_report(pictures(1), **write)
    assert again.generate_report(pictures(1), **write) == report
    assert_close(again.generate_image("x", **make), pipe.generate_image("x", **make))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert (out / "model.safetensors").is_file() == (layout == "published")
    assert (out / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("layout", ["native", "published"])
def test_saving_refuses(tmp_path, layout):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    with pytest.raises(UniXError, match="there"):
        tiny_pipe().save_pretrained(tmp_path / "there", layout=layout)
    (tmp_path / "file").touch()
    with pytest.raises(UniXError, match="file"):
        tiny_pipe().save_pretrained(tmp_path / "file" / "below", layout=layout)
    with pytest.raises(PromptError, match="layout: expected one of"):
        tiny_pipe().save_pretrained(tmp_path / "new", layout="torch")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_saving_a_model_of_reports_alone(tmp_path):
    UniXPipeline(SMALL, small_params()[0]).save_pretrained(tmp_path / "x")
    again = UniXPipeline.from_pretrained(tmp_path / "x", compilation_cache=False)
    assert (again.vae_params, again.tokenizer) == (None, None)


# ------------------------------------------------------------------------- printed


def test_a_pipeline_and_a_configuration_print_for_people():
    text = repr(tiny_pipe())
    for part in ("0.5 M parameters, float32 on 1 x cpu", "128 x 128 px", "512 positions"):
        assert part in text
    bare = repr(UniXPipeline(SMALL, small_params()[0]))
    assert "no autoencoder: reports only" in bare
    assert "no tokenizer: token ids only" in bare
    lines = repr(SMALL).splitlines()
    assert lines[0] == "UniXConfig("
    assert len(lines) == len(dataclasses.fields(SMALL)) + 2
    assert "  latent_patch_size=2," in lines

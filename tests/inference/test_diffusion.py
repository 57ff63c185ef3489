"""Images from text with diffusers checkpoints; parity is in tests/convert/test_diffusers.py."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unix_jax.checkpoints.diffusers_checkpoint import import_diffusers
from unix_jax.cli import main
from unix_jax.errors import ArgumentNameError, NonFiniteError, PromptError
from unix_jax.inference import diffusion
from unix_jax.inference.denoising import denoise
from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.settings import DiffusionSettings
from unix_jax.sharding import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP, BERT = (GOLDEN / name / "checkpoint" for name in ("unet_clip", "unet_bert"))
QUICK = {"num_inference_steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return DiffusionPipeline.from_pretrained(CLIP)


@pytest.mark.extended
def test_a_row_does_not_depend_on_the_others(pipe, assert_close):
    both = pipe.generate_image(["left", "no effusion"], seed=[3, 4], **QUICK)
    assert both.shape == (2, 8, 8, 4)
    assert_close(pipe.generate_image("no effusion", seed=4, **QUICK)[0], both[1])
    other = pipe.generate_image("no effusion", seed=5, **QUICK)
    assert np.abs(other[0] - both[1]).max() > 0.1


def test_steps_one_by_one_are_the_whole_run(pipe, assert_close):
    seen = []
    whole = pipe.generate_image("left", sampler="euler", **QUICK)
    steps = pipe.generate_image(
        "left", sampler="euler", callback=lambda at: seen.append((at.step, at.total)), **QUICK
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert_close(steps, whole)
    assert np.abs(whole - pipe.generate_image("left", **QUICK)).max() > 1e-3


def test_a_stream(pipe):
    options = {"num_inference_steps": 5, "seed": 1}
    *first, last = pipe.stream_image("left", every=2, **options)
    assert [(at.step, at.total) for at in (*first, last)] == [(2, 5), (4, 5), (5, 5)]
    (expected,) = pipe.generate_image("left", **options)
    assert np.array_equal(last.images[0], expected)
    assert not np.array_equal(first[0].images[0], expected)


def test_a_stream_checks_its_arguments_at_once(pipe):
    with pytest.raises(PromptError, match="every"):
        pipe.stream_image("left", every=0)
    with pytest.raises(PromptError, match="num_inference_steps"):
        pipe.stream_image("left", num_inference_steps=1001)


def test_numbers_of_steps_share_programs(pipe):
    pipe.generate_image("left", num_inference_steps=2)
    compiled = [f._cache_size() for f in (denoise, diffusion._applied)]
    pipe.generate_image("no", num_inference_steps=4, guidance_scale=3.0, seed=5)
    assert [f._cache_size() for f in (denoise, diffusion._applied)] == compiled


@pytest.mark.extended
def test_every_argument_changes_the_image(pipe):
    base = pipe.generate_image("left", guidance_scale=3.0, **QUICK)
    for changes in ({"guidance_scale": 1.0}, {"guidance_rescale": 0.5}, {"num_inference_steps": 4}):
        other = pipe.generate_image("left", **({"guidance_scale": 3.0} | QUICK | changes))
        assert np.abs(base - other).max() > 1e-3


def test_images(pipe):
    images = pipe.generate_image(["left", "no"], height=12, width=20, num_inference_steps=2)
    assert [image.size for image in images] == [(20, 12)] * 2
    assert images[0].mode == "L"
    pixels = pipe.generate_image("left", num_inference_steps=2, output_type="np")
    assert pixels.shape == (1, 16, 16, 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_text_that_is_too_long_is_said(pipe):
    with pytest.warns(UserWarning, match=r"cut off at 10 tokens: prompts\[1\] by 5"):
        pipe.generate_image(["no", "left " * 15], **QUICK)


@pytest.mark.extended
@pytest.mark.parametrize("source", [CLIP, BERT], ids=["clip", "bert"])
def test_a_mesh(source, assert_close):
    one = DiffusionPipeline.from_pretrained(source)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    several = DiffusionPipeline.from_pretrained(source, mesh=mesh)
    arguments = {"prompts": ["left", "no", "right"], "seed": [1, 2, 3], **QUICK}
    assert_close(several.generate_image(**arguments), one.generate_image(**arguments), 1e-4)
    kernel = several.params["unet"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 3, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": [[1, 2]]}, "prompts"),
        ({"height": 13}, "height: expected a positive multiple of 2"),
        ({"width": 0}, "width"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"guidance_scale": 1, "guidance_rescale": 0.5}, "guidance_rescale: expected 0 without"),
        ({"sampler": "heun"}, "sampler"),
        ({"seed": [1, 2]}, "seed"),
        ({"output_type": "jpg"}, "output_type"),
    ],
)
def test_arguments_that_are_refused(arguments, words, pipe):
    with pytest.raises(PromptError, match=words):
        pipe.generate_image(**({"prompts": "left"} | arguments))


def test_numbers_that_are_not_finite(pipe):

    params = pipe.params | {"vae": {**pipe.params["vae"]}}
    params["vae"]["post_quant_conv"] = {
        name: jnp.full_like(x, jnp.nan) for name, x in params["vae"]["post_quant_conv"].items()
    }
    with pytest.raises(NonFiniteError, match="decoded pixels"):
        dataclasses.replace(pipe, params=params).generate_image("left", num_inference_steps=1)


# ------------------------------------------------------------------------- command line


def test_generate(tmp_path, capsys):
    import_diffusers(CLIP, tmp_path / "jax")
    arguments = [
        "generate",
        "left",
        "no",
        "--num-inference-steps",
        "2",
        "--guidance-rescale",
        "0.5",
    ]
    written = []
    for name, checkpoint in (("a", CLIP), ("b", tmp_path / "jax")):
        out = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / name)]
        assert main([*arguments, *out]) == 0
        written.append(sorted(path.name for path in (tmp_path / name).iterdir()))
    assert (
        written[0] == written[1] == ["000_left_seed0.png", "001_no_seed1.png", "contact_sheet.png"]
    )
    first, second = (tmp_path / name / "000_left_seed0.png" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    image = Image.open(first)
    assert image.size == (16, 16)
    assert image.info["guidance_rescale"] == "0.5"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("checkpoint", "option", "words"),
    [
        (CLIP, ["--timestep-shift", "2"], "--timestep-shift: has no effect with a diffusers"),
        (CLIP, ["--renorm", "channel"], "--renorm: has no effect"),
        (CLIP, ["--width", "7"], "width: expected a positive multiple of 2"),
        (CLIP, ["--guidance-rescale", "2"], "guidance_rescale: expected a number from 0 to 1"),
        (GOLDEN / "tiny" / "checkpoint", ["--sampler", "ddim"], "--sampler: has no effect"),
    ],
)
def test_options_without_effect(checkpoint, option, words, tmp_path, capsys):
    arguments = ["generate", "left", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "o")]
    assert main([*arguments, *option]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_details_settings_and_old_names(pipe):
    seen = []
    settings = DiffusionSettings(num_inference_steps=2)
    (plain,) = pipe.generate_image("left", settings=settings, seed=3)
    (result,) = pipe.generate_image(
        "left", settings=settings, seed=3, return_details=True, callback=seen.append
    )
    assert np.array_equal(result.image, plain)
    assert (result.seed, result.settings.num_inference_steps) == (3, 2)
    assert [step.images[0].size for step in seen] == [(16, 16)] * 2
    assert np.array_equal(seen[-1].images[0], plain)
    with pytest.raises(ArgumentNameError, match=r"num_steps: .* now num_inference_steps"):
        pipe.generate_image("left", num_steps=2)
    assert "parameters" in repr(pipe)


def test_a_folder_that_does_not_fit(tmp_path, capsys):
    folder = Path(shutil.copytree(CLIP, tmp_path / "folder"))
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": "large"}))
    arguments = ["generate", "left", "--checkpoint", str(folder), "--out", str(tmp_path / "o")]
    assert main(arguments) == 1
    assert "sample_size: expected one or two integers" in capsys.readouterr().err


@pytest.mark.extended
def test_info(tmp_path, capsys):
    import_diffusers(CLIP, tmp_path / "jax")
    for path in (CLIP, tmp_path / "jax"):
        assert main(["info", str(path)]) == 0
        assert "parameters" in capsys.readouterr().out
        assert main(["info", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["unet"]["widths"] == [16, 32]
        assert main(["info", str(path), "--verify"]) == 0
        assert capsys.readouterr().out.count("good") == (3 if path == CLIP else 5)
    files = (p for p in (tmp_path / "jax" / "params" / "conv_in.kernel").rglob("*") if p.is_file())
    damaged = max(files, key=lambda p: p.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"12345678")
    assert main(["info", str(tmp_path / "jax"), "--verify"]) == 1
    assert "1 problem" in capsys.readouterr().err


def test_other_commands_say_what_they_found(tmp_path, capsys):
    image = tmp_path / "x.png"
    Image.new("L", (64, 64), 90).save(image)
    assert main(["report", str(image), "--checkpoint", str(CLIP)]) == 1
    assert "expected a checkpoint of UniX, found a diffusers checkpoint" in capsys.readouterr().err

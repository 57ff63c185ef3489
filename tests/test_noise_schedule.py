"""Noise schedules and samplers against diffusers' own runs, and what they refuse."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from unix_jax.checkpoints.diffusers_config import read_schedule
from unix_jax.errors import ConfigError, PromptError, SourceNote
from unix_jax.preprocessing.noise_schedule import NoiseSchedule, rescaled

GOLDEN = Path(__file__).parent / "golden" / "unet_schedulers"
RUNS = json.loads((GOLDEN / "golden.json").read_text())["runs"]
TENSORS = load_file(GOLDEN / "golden.safetensors")


def write(path, fields):
    file = path / "scheduler_config.json"
    file.write_text(json.dumps(fields))
    return file


@pytest.mark.parametrize("index", range(len(RUNS)))
def test_runs_are_those_of_diffusers(index, tmp_path, assert_close):
    schedule = NoiseSchedule.of(read_schedule(write(tmp_path, RUNS[index])))
    plan = schedule.plan(7)
    np.testing.assert_array_equal(plan.timesteps, TENSORS[f"timesteps.{index}"])
    x = jnp.asarray(TENSORS["noise"]) * plan.start_scale
    for t, alpha, after in zip(plan.timesteps, plan.alphas, plan.next_alphas, strict=True):
        x = schedule.step(x, 0.6 * x - 0.3 + 0.2 * jnp.cos(t / 100), alpha, after)
    assert_close(x * plan.end_scale, TENSORS[f"out.{index}"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, ["_class_name", "HeunDiscreteScheduler"]),
        ({"thresholding": True}, ["thresholding", "True"]),
        ({"use_karras_sigmas": True}, ["use_karras_sigmas"]),
        ({"prediction_type": "flow"}, ["prediction_type", "flow"]),
        ({"beta_schedule": "sigmoid"}, ["beta_schedule", "sigmoid"]),
        ({"trained_betas": [0.1]}, ["trained_betas"]),
        ({"timestep_spacing": None}, ["timestep_spacing"]),
        ({"steps_offset": -1}, ["steps_offset"]),
        ({"beta_end": 1.5}, ["beta_end"]),
        ({"num_train_timesteps": 10**9}, ["num_train_timesteps"]),
        ({"new_field": 1}, ["new_field", "unknown"]),
        ([1], ["JSON object"]),
    ],
)
def test_fields_that_are_refused(fields, words, tmp_path):
    file = write(tmp_path, fields)
    with pytest.raises(ConfigError) as error:
        read_schedule(file)
    assert all(word in str(error.value) for word in [str(file), *words])


def test_pndm_is_replaced_and_said(tmp_path):
    file = write(tmp_path, {"_class_name": "PNDMScheduler", "skip_prk_steps": True})
    with pytest.warns(SourceNote, match="PNDMScheduler is not supported; sampling uses DDIM"):
        assert read_schedule(file).sampler == "ddim"


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(PromptError, match=f"expected 1 to 1000, found {steps}"):
        NoiseSchedule().plan(steps)


def test_runs_that_cannot_be():
    with pytest.raises(PromptError, match="reach timestep 1000, expected at most 999"):
        NoiseSchedule(steps_offset=1).plan(1000)
    zero = NoiseSchedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(PromptError, match="expected v_prediction or sample"):
        zero.plan(10)


def test_rescaling_keeps_each_images_spread():
    rng = np.random.default_rng(0)
    guided, conditional = (jnp.asarray(rng.normal(size=(2, 4, 4, 3))) for _ in range(2))
    np.testing.assert_allclose(rescaled(guided, conditional, jnp.float32(0)), guided, rtol=1e-6)
    full = rescaled(guided, conditional, jnp.float32(1))
    np.testing.assert_allclose(full.std((1, 2, 3)), conditional.std((1, 2, 3)), rtol=1e-5)

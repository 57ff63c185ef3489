"""The task edit: a run from pairs of images, and a model that learns what its condition says."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from support import toy_run
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.records import Record
from unix_jax.data.samples import record_samples
from unix_jax.models.unix import UniX, init_params
from unix_jax.preprocessing.pixels import vae_input
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.parameter_groups import GENERATION
from unix_jax.training.state import create_state
from unix_jax.training.step import StepConfig, make_eval_step, make_train_step

# A picture must have 16 pixels along each side.
MODEL = dataclasses.replace(toy_run.MODEL, max_latent_size=8)
EDIT = DataConfig(
    source="edit:csv:pairs", rows=4, und_tokens=128, vit_images=2, vae_images=4, vae_height=16,
    vae_width=16, caption_dropout=0.0, condition_dropout=0.0,
)  # fmt: skip
DARK = np.linspace(0, 100, 16)[:, None] * np.ones(16)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def edit_batch(swapped):
    """Two kinds of pairs under one text: what to generate is told by the condition alone."""
    before, after = [png(DARK), png(255 - DARK)], [png(255 - DARK.T), png(DARK.T)]
    records = [
        Record(str(kind), after[kind], impression="x", condition=before[kind ^ swapped])
        for kind in (0, 1)
    ]
    tokenizer = Tokenizer.from_directory(toy_run.TOKENIZER, MODEL.special_tokens)
    samples = record_samples(records, tokenizer, MODEL, EDIT)
    row = [load(samples.build(index, 0)) for index in (0, 1)]
    batch = collate([row] * EDIT.rows, MODEL, EDIT)
    # In the place of an autoencoder: the gray levels, without uncertainty, at unit scale.
    pixels = np.asarray(vae_input(jnp.asarray(batch.vae_pixels)))
    mean = pixels[..., :1].repeat(4, axis=-1) / MODEL.vae.scale_factor
    moments = np.concatenate([mean, np.full_like(mean, -30.0)], axis=-1)
    return batch.replace(vae_pixels=None, vae_moments=moments.astype(np.float32))


@pytest.mark.extended
def test_the_condition_is_learned():
    """Squared error, with the same noise, after the right and after the other condition."""
    tx, schedule = make_optimizer(OptimizerConfig(learning_rate=3e-3))
    # Times near 1: what is to be generated can hardly be seen in the noised image.
    model = UniX(dataclasses.replace(MODEL, timestep_shift=20.0), freeze_und=True)
    given = {"unix": toy_run.random_weights(jax.eval_shape(
        lambda key: init_params(MODEL, key), jax.random.key(0)))}  # fmt: skip
    state = create_state(
        GENERATION, tx, jax.random.key(0), given=given, ema=False,
        init={"unix": lambda key: init_params(MODEL, key, boxed=True)},
    )  # fmt: skip
    step = make_train_step(model, StepConfig(), tx, schedule)
    evaluate = make_eval_step(model, StepConfig())
    right, other = edit_batch(0), edit_batch(1)
    np.testing.assert_array_equal(right.noised, other.noised)

    def errors():
        return [float(evaluate(state, b, jax.random.key(9))["mse"]) for b in (right, other)]

    start = errors()
    for _ in range(200):
        state, _ = step(state, right, jax.random.key(1))
    learned = errors()
    assert learned[0] < 0.2 * start[0]
    assert learned[1] > 3 * learned[0]


@pytest.fixture
def pairs(tmp_path):
    """(configuration file of a stage, source of pairs)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_run, "MODEL", MODEL)
        init = toy_run.write_start(tmp_path / "init")
    source = toy_run.write_pictures(tmp_path / "data")
    file = source / "manifest.jsonl"
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines[:-1]):
        lines[number] = line[:-1] + f', "condition": "images/{number + 1:03d}.png"}}'
    file.write_text("\n".join(lines) + "\n")
    return lambda stage: toy_run.write_config(tmp_path / f"{stage}.py", stage, source, init)


@pytest.mark.extended
@pytest.mark.parametrize("stage", ["generation", "joint"])
def test_a_run_from_pairs(pairs, stage, tmp_path, capsys):
    out, config = tmp_path / "run", pairs(stage)
    source = config.read_text().split('source = "')[1].split('"')[0]
    spec = f"edit:{source}" if stage == "generation" else f"edit:{source} + understanding:{source}"
    options = [
        "--data.source", spec, "--data.vit-images", "2", "--data.vae-images", "4", "--total-steps",
        "4", "--data.vae-height", "16", "--data.vae-width", "16", "--validate-every", "4",
        "--preview-every", "4",
    ]  # fmt: skip
    train = toy_run.load_train()
    assert train.main([str(config), "--out", str(out), *options]) == 0, capsys.readouterr().err
    found = {path.name for path in (out / "previews").iterdir()}
    assert found == {"00000004_edited.png"} | (
        {"00000004_reports.txt"} if stage == "joint" else set()
    )
    (*_, last) = toy_run.metrics(out)
    assert last["mse"] > 0
    assert (last["ce"] is not None) == (stage == "joint")
    assert "no_image: it has no condition" in capsys.readouterr().err

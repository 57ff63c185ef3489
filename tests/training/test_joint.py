"""Both tasks in one step: what is trained, what is counted, and what is refused."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from support import toy_run
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import MixedRecords, Part
from unix_jax.data.records import Record
from unix_jax.data.samples import record_samples
from unix_jax.dry_run.dry_run import full_row
from unix_jax.errors import ConfigError
from unix_jax.models import unix
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training.config import TrainConfig, ValidationConfig
from unix_jax.training.flops import count, step_flops
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.parameter_groups import JOINT
from unix_jax.training.state import create_state
from unix_jax.training.step import StepConfig, make_eval_step

UND, GEN = "understanding:csv:a", "generation:csv:b"
DATA = DataConfig(
    source=f"{UND} + {GEN}", und_tokens=64, vit_images=2, vae_images=3, vae_height=8, vae_width=8
)


@pytest.fixture(scope="module")
def run(toy, train, tmp_path_factory):
    """The directory of a run of 4 steps with validation and previews."""
    out = tmp_path_factory.mktemp("joint") / "run"
    options = ["--total-steps", "4", "--export", "raw", "--validate-every", "4"]
    options += ["--preview-every", "4", "--checkpoint-every", "2"]
    assert train.main([str(toy("joint")), "--out", str(out), *options]) == 0
    return out


@pytest.mark.extended
def test_every_parameter_is_trained(toy, run):
    start = toy_run.arrays(toy("joint").parent / "init")
    trained = toy_run.exported(run)
    same = [name for name, value in trained.items() if np.array_equal(value, start[name])]
    assert [name for name in same if "latent_pos_embed" not in name] == []


@pytest.mark.extended
def test_numbers_of_both_tasks_and_of_each_source(run):
    lines = toy_run.metrics(run)
    for line in lines:
        assert line["loss"] == pytest.approx(line["ce"] + line["mse"], rel=1e-5)
        counts = [line[f"source_{number}_samples"] for number in (1, 2)]
        assert counts[0] / sum(counts) == pytest.approx(0.6, abs=0.15)
        assert (line["source_1_skipped"], line["source_2_skipped"]) == (0, 0)
    assert lines[-1]["source_1_epoch"] > lines[0]["source_1_epoch"] > 0
    (scores,) = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert scores["ce"] > 0
    assert scores["mse"] > 0
    assert {path.name.split("_")[1] for path in (run / "previews").iterdir()} == {
        "images.png",
        "reports.txt",
    }


@pytest.mark.extended
def test_other_weights_are_refused_and_restarted(toy, train, run, capsys):
    text = toy("joint").read_text()
    source = text.split('source = "')[1].split('"')[0]
    changed = f"0.3*understanding:{source} + 0.7*generation:{source}"
    options = [toy("joint"), "--out", run, "--total-steps", "14", "--export", "raw"]
    assert train.main([*map(str, options), "--data.source", changed]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "data.weights: expected [0.6, 0.4], found [0.3, 0.7]" in error
    assert "--restart-data" in error
    # Few open rows: samples of the part that has more of them do not wait.
    options += ["--data.open-rows", "1"]
    arguments = [*map(str, options), "--data.source", changed, "--restart-data"]
    assert train.main(arguments) == 0
    said = capsys.readouterr().err
    assert "source 2: 70.0% of the samples, generation, manifest:" in said
    assert "the order of the data restarts" in said
    last = toy_run.metrics(run)[-1]
    assert last["source_1_samples"] < last["source_2_samples"]


def test_stages_and_their_tasks():
    def config(stage, source, **fields):
        return TrainConfig(stage, dataclasses.replace(DATA, source=source), 1, **fields)

    assert config("joint", f"{UND} + {GEN}").data.tasks == ("understanding", "generation")
    for source in (UND, GEN, f"{UND} + {UND}", f"{GEN} + {GEN}"):
        with pytest.raises(ConfigError, match=r"data.source: expected parts of the task under"):
            config("joint", source)
    assert config("understanding", f"{UND} + {UND}")
    for stage in ("understanding", "generation", "autoencoder"):
        with pytest.raises(ConfigError, match=rf"data.task: expected .* for the stage {stage}"):
            config(stage, f"{UND} + {GEN}")
    with pytest.raises(ConfigError, match=r"validation.source: expected a task of the stage und"):
        config("understanding", UND, validation=ValidationConfig(source=GEN))
    with pytest.raises(ConfigError, match=r"validation.source: part 2 of 2 .*found 'cvs:b'"):
        config("joint", f"{UND} + {GEN}", validation=ValidationConfig(source=f"{UND} + cvs:b"))
    single = dataclasses.replace(DATA, source=f"{GEN} + {GEN}", vae_images=1)
    with pytest.raises(ConfigError, match=r"one source for the stage autoencoder, found a mixture"):
        TrainConfig("autoencoder", single, 1)


def test_a_full_row_has_both_tasks():
    row = full_row(DATA, toy_run.MODEL)
    counts = count(row, toy_run.MODEL)
    assert (counts.vit_images, counts.vae_images) == (2, 3)
    assert row.mse_weights.all()
    assert 0 < counts.text_losses < counts.und_tokens
    both, und, gen = (
        step_flops(toy_run.MODEL, counts, stage) for stage in ("all", "understanding", "generation")
    )
    assert both > max(und, gen)


@pytest.mark.extended
def test_each_loss_is_divided_by_its_own_tokens():
    """A batch of both tasks has the losses of the batches of each, for the same places and noise.

    More rows of one task change neither the other's loss nor their own mean.
    """
    config = toy_run.MODEL
    tokenizer = Tokenizer.from_directory(toy_run.TOKENIZER, config.special_tokens)
    data = dataclasses.replace(DATA, caption_dropout=0.0, prompts=("x",))
    records = [Record("a", png(1), impression="Edema."), Record("b", png(2), impression="Clear.")]
    parts = [Part(0.5, "understanding", "csv:a"), Part(0.5, "generation", "csv:b")]
    samples = record_samples(MixedRecords(parts, [records, records]), tokenizer, config, data)
    und, gen = load(samples.build(0, 0)), load(samples.build(3, 0))

    def losses(*rows):
        batch = collate(rows, config, data)
        moments = np.zeros((*batch.vae_pixels.shape[:4], 8), np.float32)
        batch = batch.replace(vae_pixels=None, vae_moments=moments)
        metrics = evaluate(state, batch, jax.random.key(3))
        return {name: float(value) for name, value in metrics.items()}

    tx, _ = make_optimizer(OptimizerConfig())
    params = toy_run.random_weights(unix.param_shapes(config))
    init = {"unix": lambda key: unix.init_params(config, key, boxed=True)}
    state = create_state(JOINT, tx, jax.random.key(0), given={"unix": params}, ema=False, init=init)
    evaluate = make_eval_step(unix.UniX(config), StepConfig())
    both = losses([und], [gen], [], [])
    only_und, only_gen = losses([und], [], [], []), losses([], [gen], [], [])
    assert both["ce"] == pytest.approx(only_und["ce"], rel=1e-5)
    assert both["mse"] == pytest.approx(only_gen["mse"], rel=1e-5)
    assert both["loss"] == pytest.approx(both["ce"] + both["mse"], rel=1e-6)
    assert only_und["mse"] == only_gen["ce"] == 0
    more = losses([und], [gen], [und], [und])
    assert more["ce"] == pytest.approx(both["ce"], rel=1e-5)
    assert more["mse"] == pytest.approx(both["mse"], rel=1e-5)
    # In one row, samples do not see each other; the noise is that of another row.
    packed = losses([und, gen], [], [], [])
    assert packed["ce"] == pytest.approx(both["ce"], rel=1e-5)
    assert packed["mse_tokens"] == both["mse_tokens"]


def png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()

"""How long a run is: in steps, epochs or samples."""

import dataclasses

import pytest

from support import toy_run
from unix_jax.data.config import DataConfig
from unix_jax.data.sources import open_source
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training import length
from unix_jax.training.config import TrainConfig


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return toy_run.write_pictures(tmp_path_factory.mktemp("toy") / "data")


def found(source, **fields):
    data = DataConfig(
        source=f"manifest:{source}", rows=2, und_tokens=128, vit_images=2, vae_images=0
    )
    config = TrainConfig("understanding", data, **fields)
    records = open_source(data.source, "train")
    tokenizer = Tokenizer.from_directory(toy_run.TOKENIZER, toy_run.MODEL.special_tokens)
    return length.run_length(config, records, tokenizer, toy_run.MODEL)


def test_epochs_are_counted_to_the_sample(source):
    for epochs in (1, 3):
        whole = found(source, total_epochs=epochs)
        assert (whole.samples, whole.epochs, whole.exact) == (10 * epochs, epochs, True)
        assert 10 * epochs / 4 <= whole.steps < 10 * epochs


def test_samples_end_with_the_step_that_reaches_them(source):
    whole, one_more = (found(source, total_samples=count) for count in (20, 21))
    assert whole.samples >= 20
    assert one_more.steps - whole.steps in (0, 1)
    assert found(source, total_samples=1).steps == 1


def test_steps_are_as_given_and_their_samples_counted(source):
    whole = found(source, total_steps=4)
    assert (whole.steps, whole.exact) == (4, True)
    assert found(source, total_samples=whole.samples).steps == 4


@pytest.mark.parametrize("fields", [{"total_epochs": 50}, {"total_samples": 500}])
def test_long_runs_are_extrapolated(source, fields, monkeypatch):
    exact = found(source, **fields)
    monkeypatch.setattr(length, "_COUNTED", 40)
    guessed = found(source, **fields)
    assert exact.exact
    assert not guessed.exact
    assert "about" in str(guessed)
    for name in ("steps", "samples", "epochs"):
        value = getattr(exact, name)
        assert getattr(guessed, name) == pytest.approx(value, rel=0.1), name


@pytest.mark.extended
def test_a_run_of_two_epochs(toy, train, tmp_path, capsys):
    """It ends with its data, its schedule ends with it, and each sample was seen twice."""
    config = str(toy("understanding"))
    options = ["--total-epochs", "2", "--log-every", "1", "--optimizer.schedule", "linear"]
    out = tmp_path / "run"
    assert train.main([config, "--out", str(out), *options]) == 0
    said = capsys.readouterr()
    lines = toy_run.metrics(out)
    steps = len(lines)
    assert f"length {steps} steps, 20 samples, 2 epochs" in said.out
    assert "the data ended" not in said.err
    assert lines[-1]["epoch"] == 2
    assert lines[-1]["learning_rate"] == pytest.approx(1e-2 / steps)
    # One more epoch is a longer run, which resumes.
    options[1] = "3"
    assert train.main([config, "--out", str(out), *options]) == 0
    assert f"changed from step {steps + 1}: total_epochs: 2 -> 3" in capsys.readouterr().err
    assert toy_run.metrics(out)[-1]["epoch"] == 3


def test_lengths_read_well():
    one = length.Length(1200, 34567, 3.5, exact=False)
    assert str(one) == "1,200 steps, about 34,567 samples, about 3.5 epochs"
    exact = dataclasses.replace(one, exact=True)
    assert str(exact) == "1,200 steps, 34,567 samples, 3.5 epochs"

"""The average of trained weights, what is said of it, and what is exported."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import toy_run
from unix_jax import cli
from unix_jax.checkpoints import native
from unix_jax.data.config import DataConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.storage.json_file import read_json
from unix_jax.training import average
from unix_jax.training.config import TrainConfig, load_config
from unix_jax.training.kept import export_step, find_step
from unix_jax.training.lora import LoraConfig
from unix_jax.training.stages import Stage
from unix_jax.training.start import keep_average, recorded_share

DATA = DataConfig(source="nowhere")
CONFIG = TrainConfig(stage="understanding", data=DATA, total_steps=40)
NANO = ("nano_autoencoder", "nano_understanding", "nano_generation")
PUBLISHED = ("stage1_understanding", "stage2_generation", "stage3_generation_hr")


# --- the formula -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(decay=st.floats(0, 0.99999), first=st.integers(0, 40), steps=st.integers(0, 40))
def test_the_share_of_the_start_is_what_the_recursion_leaves(decay, first, steps):
    """A start of ones and weights of zero from then on."""
    update = jax.jit(average.update_average)
    tree = {"a": jnp.ones(2)}
    for step in range(first, first + steps):
        tree = update(tree, {"a": jnp.zeros(2)}, decay, jnp.int32(step))
    expected = average.start_share(decay, first, first + steps)
    np.testing.assert_allclose(tree["a"], expected, rtol=1e-4, atol=1e-30)


def test_the_ramp_and_the_constant():
    assert float(average.ramped_decay(0.9999, 0)) == pytest.approx(0.1)
    assert float(average.ramped_decay(0.9999, 40)) == pytest.approx(41 / 50)
    assert float(average.ramped_decay(0.9, 10**6)) == pytest.approx(0.9)
    # 9! 40! / 49!, and of 3,840 steps practically nothing.
    assert average.start_share(0.9999, 0, 40) == pytest.approx(4.868e-10, rel=1e-3)
    assert average.start_share(0.9999, 0, 3840) < 1e-26
    # From 80 to 81 % on the constant acts alone.
    assert average.start_share(0.5, 100, 103) == 0.125


@pytest.mark.parametrize("name", [*NANO, *PUBLISHED])
def test_configurations_leave_nothing_of_their_start(name):
    config, _ = load_config(toy_run.ROOT / "configs" / f"{name}.py")
    assert config.preferred == "average"
    assert average.start_share(config.average_decay, 0, config.total_steps) < 1e-15
    adapted = dataclasses.replace(config, lora=LoraConfig(rank=4))
    assert adapted.average_decay is None
    assert adapted.preferred == "raw"


# --- the configuration -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "decay", "preferred"),
    [
        ({}, 0.9999, "average"),
        ({"ema_decay": 0.5}, 0.5, "average"),
        ({"ema_decay": None}, None, "raw"),
        ({"export": "raw"}, 0.9999, "raw"),
        ({"lora": LoraConfig(rank=4)}, None, "raw"),
        ({"lora": LoraConfig(rank=4), "ema_decay": 0.9999}, 0.9999, "average"),
    ],
)
def test_what_is_averaged_and_preferred(options, decay, preferred):
    config = dataclasses.replace(CONFIG, **options)
    assert (config.average_decay, config.preferred) == (decay, preferred)
    # The record spells it out.
    assert config.to_dict()["ema_decay"] == decay


@pytest.mark.parametrize("options", [{"ema_decay": None}, {"lora": LoraConfig(rank=4)}])
def test_an_average_that_is_not_kept_is_not_exported(options):
    with pytest.raises(ConfigError, match="export: expected auto or raw where no average is kept"):
        dataclasses.replace(CONFIG, export="average", **options)


def test_what_is_said_at_the_start():
    (line,) = average.describe("average", 0.9999, 1.0, 0, 40)
    assert "0.9999" in line
    assert "4.87e-08 % of the average will be the initial weights" in line
    (line,) = average.describe("raw", 0.9999, 1.0, 0, 40)
    assert line == "the export will hold the weights of step 40"
    (line,) = average.describe("auto", 0.9999, 1.0, 0, 40)
    assert "or the raw weights if they validate better" in line
    (line,) = average.describe("auto", 0.9999, 1.0, 0, 40, compared=False)
    assert "validate" not in line
    line, warning = average.describe("average", 0.9999, 1.0, 0, 1)
    assert warning.startswith("warning: 10 % of the average will be the initial weights")
    # A run of an earlier version that ends soon after it continues.
    assert len(average.describe("average", 0.9999, 0.9, 3830, 3840)) == 2
    assert len(average.describe("average", 0.9999, 0.9, 100, 3840)) == 1


def test_the_share_in_checkpoints_of_earlier_versions():
    """Without a ramp, except for the autoencoder."""
    old = {"stage": "understanding", "ema_decay": 0.9999}
    assert recorded_share({"config": old}, 3840) == pytest.approx(0.681, abs=1e-3)
    assert recorded_share({"config": old, "start_share": 0.25}, 7) == 0.25
    autoencoder = {"stage": "autoencoder", "ema_decay": 0.9, "autoencoder": {"ema_decay": 0.999}}
    assert recorded_share({"config": autoencoder}, 1) == pytest.approx(0.1)
    assert recorded_share({"config": {"stage": "generation", "ema_decay": None}}, 5) == 1


def test_a_run_keeps_its_average(tmp_path):
    """Earlier versions kept one with LoRA too; `auto` is what the run has."""
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=4))
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"config": {"ema_decay": 0.9999}}))
    assert keep_average(tmp_path, adapted).average_decay == 0.9999
    other = dataclasses.replace(CONFIG, ema_decay=0.99)
    assert keep_average(tmp_path, other).average_decay == 0.99
    with pytest.raises(ConfigError, match=r"ema_decay: expected a number, .* found None"):
        keep_average(tmp_path, dataclasses.replace(CONFIG, ema_decay=None))
    record.write_text(json.dumps({"config": {"ema_decay": None}}))
    assert keep_average(tmp_path, CONFIG).average_decay is None
    with pytest.raises(ConfigError, match=r"ema_decay: expected None, .* found 0.99"):
        keep_average(tmp_path, other)


def test_the_losses_are_said_with_their_weights():
    run = types.SimpleNamespace(validated=("average", "raw"))
    assert Stage.describe_validation(run, 30, {"loss": 0.4947, "raw/loss": 0.2587}) == (
        "step 30: validation loss 0.4947 (average weights), 0.2587 (raw)"
    )


@pytest.mark.parametrize(
    ("export", "scores", "exported", "said"),
    [
        ("auto", {"loss": 0.4947, "raw/loss": 0.2587}, "raw", "of their average is 91 % higher"),
        ("auto", {"loss": 1.04, "raw/loss": 1.0}, "average", ""),
        ("auto", {"loss": 1.0, "raw/loss": 2.0}, "average", ""),
        ("auto", {}, "average", ""),
        ("average", {"loss": 2.0, "raw/loss": 1.0}, "average", "warning: the average weights"),
        ("raw", {"loss": 2.0, "average/loss": 1.0}, "raw", "warning: the raw weights, which"),
        ("raw", {"loss": 1.0, "average/loss": 2.0}, "raw", ""),
        ("raw", {}, "raw", ""),
    ],
)
def test_the_weights_that_validate_worse_are_not_exported_in_silence(
    export, scores, exported, said
):
    found, line = average.to_export(export, True, scores)
    assert found == exported
    assert line == "" if not said else said in line


def test_without_an_average_the_raw_weights_are_exported():
    assert average.to_export("auto", False, {"loss": 1.0}) == ("raw", "")


# --- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(toy, train, tmp_path_factory):
    """A short run with the decay of the stages, validated at each checkpoint."""
    out = tmp_path_factory.mktemp("run")
    options = ["--total-steps", "40", "--ema-decay", "0.9999", "--validate-every", "10",
               "--checkpoint-every", "10", "--optimizer.learning-rate", "3e-3"]  # fmt: skip
    assert train.main([str(toy("understanding")), "--out", str(out), *options]) == 0
    return out


def validation(out):
    return [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]


def arrays(directory):
    return {
        (part, name): leaf.read_all()
        for part in ("params", "vae")
        for name, leaf in native.open_leaves(directory, part).items()
    }


def assert_same(one, other):
    first, second = arrays(one), arrays(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=str(name))


@pytest.mark.extended
def test_a_short_run_exports_what_it_trained(run, train, capsys):
    first, *_, last = validation(run)
    assert last["step"] == 40
    assert set(last) == {"step", "loss", "ce", "raw/loss", "raw/ce"}
    assert last["loss"] < 1.25 * last["raw/loss"]
    assert last["loss"] < 0.9 * first["loss"]
    record = read_json(run / "export" / "index.json")["training"]
    weights, _ = average.to_export("auto", True, last)
    assert (record["step"], record["weights"]) == (40, weights)
    assert last["loss" if weights == "average" else "raw/loss"] <= 1.05 * last["raw/loss"]


@pytest.mark.extended
def test_paths_relative_to_the_working_directory(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    _, record = export_step(run.name, tmp_path / "relative", step="best")
    assert record["step"] == find_step(run.name, "best")
    assert (tmp_path / "relative" / "index.json").exists()


@pytest.mark.extended
def test_the_best_and_any_kept_step_can_be_exported(run, tmp_path, capsys):
    losses = {line["step"]: line["loss"] for line in validation(run)}
    best = min(losses, key=losses.get)
    kept = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")}
    assert set(kept) == {30, 40, best}
    assert find_step(run, "best") == best
    kept_raw = {line["step"]: line["raw/loss"] for line in validation(run) if line["step"] in kept}
    assert find_step(run, "best", "raw") == min(kept_raw, key=kept_raw.get)
    # What the run itself exported, to the bit.
    _, record = export_step(run, tmp_path / "last")
    assert record == read_json(run / "export" / "index.json")["training"]
    assert_same(tmp_path / "last", run / "export")
    assert cli.main(["export", str(run), "--out", str(tmp_path / "raw"), "--step", "30",
                     "--weights", "raw"]) == 0  # fmt: skip
    assert "raw weights of step 30" in capsys.readouterr().out
    assert read_json(tmp_path / "raw" / "index.json")["training"] == {"step": 30, "weights": "raw"}
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*")} == before
    with pytest.raises(CheckpointError, match=r"found '7'; .* has .*30 .*40 \(validation loss"):
        export_step(run, tmp_path / "none", step="7")
    progress = run / "checkpoints" / "40" / "progress" / "metadata"
    written = json.loads(progress.read_text())
    _, record = export_step(run, tmp_path / "average", weights="average")
    share = pytest.approx(average.start_share(0.9999, 0, 40))
    assert record == {"step": 40, "weights": "average", "start_share": share}
    assert written["start_share"] == share
    # What is there is not replaced.
    assert cli.main(["export", str(run)]) == 1
    assert "exists already; name a new directory with --out" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_stopped_run_and_a_damaged_checkpoint(toy, train, tmp_path):
    out = tmp_path / "run"
    options = ["--ema-decay", "None", "--total-steps", "6"]
    assert train.main([str(toy("generation")), "--out", str(out), *options]) == 0
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"3", "6"}
    # As if it had been killed before it exported.
    (out / "export").rename(tmp_path / "export")
    with pytest.raises(CheckpointError, match="expected a step that was validated, found 'best'"):
        export_step(out, step="best")
    with pytest.raises(CheckpointError, match="expected an average of the weights, found none"):
        export_step(out, weights="average")
    export_step(out)
    assert_same(out / "export", tmp_path / "export")
    file = max((out / "checkpoints" / "3").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=file.name):
        export_step(out, tmp_path / "damaged", step="3")
    assert not (tmp_path / "damaged").exists()


@pytest.mark.slow
def test_lora_is_not_averaged_unless_asked(toy, train, tmp_path, capsys):
    """`auto` with adapters; the file of the toy asks for an average, so the option resets it."""
    options = ["--lora.rank", "2", "--validate-every", "3", "--total-steps", "6"]
    one, other = tmp_path / "auto", tmp_path / "asked"
    config = str(toy("understanding"))
    assert train.main([config, "--out", str(one), *options, "--ema-decay", "auto"]) == 0
    assert "the export will hold the weights of step 6" in capsys.readouterr().err
    assert set(validation(one)[-1]) == {"step", "loss", "ce"}
    assert read_json(one / "run.json")["config"]["ema_decay"] is None
    assert read_json(one / "export" / "index.json")["training"]["weights"] == "raw"
    assert train.main([config, "--out", str(other), *options, "--export", "raw"]) == 0
    assert set(validation(other)[-1]) == {"step", "loss", "ce", "average/loss", "average/ce"}
    export_step(other, tmp_path / "raw", weights="raw")
    assert_same(tmp_path / "raw", other / "export")
    export_step(other, tmp_path / "merged", weights="average")
    assert read_json(tmp_path / "merged" / "index.json")["training"]["weights"] == "average"


@pytest.mark.slow
def test_autoencoder(toy, train, tmp_path):
    """Accumulation is honoured, and a kept step has the statistics that a run measures."""
    config, out = str(toy("autoencoder")), tmp_path / "run"
    options = ["--accumulation", "2", "--validate-every", "3", "--total-steps", "3"]
    assert train.main([config, "--out", str(out), *options]) == 0
    assert {"loss", "psnr", "raw/loss", "raw/psnr"} < set(validation(out)[-1])
    export_step(out, tmp_path / "kept", step="best")
    assert_same(tmp_path / "kept", out / "export")
    assert native.load_config(tmp_path / "kept") == native.load_config(out / "export")
    assert train.main([config, "--out", str(tmp_path / "no"), "--accumulation", "3"]) == 1

"""What may change when a run resumes: every setting has a rule, and no change is silent."""

import dataclasses
import json
import os
import shutil

import pytest

from support import toy_run
from support.files import content
from support.toy_run import one_error
from unix_jax.checkpoints.run_files import write_listing
from unix_jax.data.config import DataConfig
from unix_jax.errors import ConfigError
from unix_jax.training.config import TrainConfig
from unix_jax.training.lora import LoraConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.repa import RepaConfig
from unix_jax.training.resuming import RULES, Change, Rule, changes, extended_history, settings

CONFIG = TrainConfig("understanding", DataConfig(), 10, init="start", ema_decay=0.9)


@pytest.fixture(scope="module")
def half(toy, train, tmp_path_factory):
    """The directory of a run of 4 steps."""
    out = tmp_path_factory.mktemp("half") / "run"
    arguments = [str(toy("understanding")), "--out", str(out), "--total-steps", "4"]
    assert train.main(arguments) == 0
    return out


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


def other(value):
    """A JSON value that is another than `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "x"] if isinstance(value, list) else f"{value}x"


def recorded(**changed):
    values = json.loads(json.dumps(CONFIG.to_dict()))
    for name, value in changed.items():
        *folders, last = name.split(".")
        inner = values
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    return values


def test_every_setting_has_a_rule():
    """A new field of the configuration is given one in `unix_jax/training/resuming.py`."""
    assert {name for name, _ in settings(CONFIG.to_dict())} == set(RULES)


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_setting_by_its_rule(name, tmp_path):
    now, rule = dict(settings(recorded()))[name], RULES[name]
    before = recorded(**{name: other(now)})
    switched_off = rule is Rule.SWITCH and not now
    fixed = rule in (Rule.FIXED, Rule.ENCODER)
    if fixed or switched_off or (rule is Rule.ORIGIN and now):
        with pytest.raises(ConfigError, match=f"{name}: expected .*, found .*name another --out"):
            changes(before, CONFIG, tmp_path, None)
        return
    found = changes(before, CONFIG, tmp_path, None)
    said = rule in (Rule.RECORDED, Rule.SWITCH)
    assert found == ([Change(name, other(now), now)] if said else [])


def test_a_record_of_an_older_version(tmp_path):
    before = recorded()
    del before["lora"]["alpha"], before["data"]["prompts"]
    assert changes(before | {"gone": 1}, CONFIG, tmp_path, None) == []


def test_all_that_is_refused_is_named(tmp_path):
    before = recorded(**{"lora.alpha": 32.5, "seed": 3, "optimizer.b1": 0.5})
    with pytest.raises(ConfigError) as error:
        changes(before, CONFIG, tmp_path, None)
    assert "lora.alpha: expected 32.5, found 32.0" in str(error.value)
    assert "seed: expected 3, found 0" in str(error.value)
    assert "b1" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("ema_decay", None, 0.9), ("ema_decay", 0.9, None)],
)
def test_what_adds_arrays_is_not_switched(tmp_path, name, before, now):
    config = dataclasses.replace(CONFIG, **{name: now})
    with pytest.raises(ConfigError, match=f"{name}: expected {before}, found {now}"):
        changes(recorded(**{name: before}), config, tmp_path, None)


def test_where_a_run_started_from(tmp_path, monkeypatch):
    started_in, elsewhere = tmp_path / "a", tmp_path / "b"
    for folder in (started_in, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)

    def found(init):
        config = dataclasses.replace(CONFIG, init=init)
        return changes(recorded(init="start"), config, tmp_path, started_in)

    assert found(None) == found("start") == found(str(started_in / "start")) == []
    assert found("../a/start") == []
    (elsewhere / "link").symlink_to(started_in / "start")
    assert found("link") == []
    with pytest.raises(ConfigError, match=r"init: expected 'start', found '/other'"):
        found("/other")


def test_records_of_earlier_versions(tmp_path):
    """The settings of before the optimiser's name, with REPA and adapters in several places."""

    def old(config, **fields):
        values = config.to_dict()
        for name in ("trainable", "total_epochs", "total_samples", "evals"):
            del values[name]
        for name in ("name", "weight_decay_on", "learning_rate_factors", "decay_fraction"):
            del values["optimizer"][name]
        values["optimizer"]["total_steps"] = values["total_steps"]
        repa = values["repa"]
        values |= {"use_lora": False, "rad_dino": repa.pop("encoder")}
        values["losses"] |= {
            "repa_weight": repa.pop("weight") if values["rad_dino"] else 0.0,
            "repa_layer": repa.pop("layer"),
        }
        repa.pop("weight", None)
        values["lora"]["rank"] = 16
        return json.loads(json.dumps(values | fields))

    assert changes(old(CONFIG), CONFIG, tmp_path, None) == []
    adapted = dataclasses.replace(CONFIG, lora=LoraConfig(rank=16), ema_decay=0.9)
    before = old(adapted, use_lora=True)
    assert changes(before, adapted, tmp_path, None) == []
    with pytest.raises(ConfigError, match=r"lora.rank: expected 0, found 16"):
        changes(old(CONFIG), adapted, tmp_path, None)
    lion = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(name="lion"))
    with pytest.raises(ConfigError, match=r"optimizer.name: expected 'adamw', found 'lion'"):
        changes(old(CONFIG), lion, tmp_path, None)
    data = DataConfig(source="csv:a", task="generation", vae_images=1)
    aligned = TrainConfig("generation", data, 3, repa=RepaConfig("encoder", 0.25, 3))
    assert changes(old(aligned), aligned, tmp_path, None) == []
    stronger = dataclasses.replace(aligned, repa=RepaConfig("encoder", 0.5, 3))
    found = changes(old(aligned), stronger, tmp_path, None)
    assert found == [Change("repa.weight", 0.25, 0.5)]
    for repa, message in (
        (RepaConfig("other", 0.25, 3), "repa.encoder: expected 'encoder', found 'other'"),
        (RepaConfig(None, 0.25, 3), "repa.encoder: expected 'encoder', found None"),
        (RepaConfig("encoder", 0.25, 4), "repa.layer: expected 3, found 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            changes(old(aligned), dataclasses.replace(aligned, repa=repa), tmp_path, None)


def test_history_of_steps_that_are_repeated():
    entry = {"step": 6, "option": "optimizer.b1", "old": 0.9, "new": 0.8, "time": "then"}
    found = extended_history([entry], 3, [Change("data.rows", 2, 4)], "now")
    assert [(e["step"], e["option"], e["time"]) for e in found] == [
        (3, "optimizer.b1", "then"),
        (3, "data.rows", "now"),
    ]


# --- the script --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seed", "6"], "seed: expected 0, found 6"),
        (["--lora.rank", "4"], "lora.rank: expected 0, found 4"),
        (["--init", "elsewhere"], "found 'elsewhere'"),
        (["--model.preset", "nano"], "model.preset: expected 'published', found 'nano'"),
        (["--model.tokenizer", "elsewhere"], "model.tokenizer: expected None, found 'elsewhere'"),
    ],
)
def test_refused(toy, train, run, capsys, options, expected):
    before = content(run)
    error = one_error(train, capsys, toy("understanding"), "--out", run, *options)
    assert expected in error
    assert content(run) == before


@pytest.mark.extended
def test_said_and_recorded(toy, train, run, capsys):
    init = toy("understanding").parent / "init"
    config = [str(toy("understanding")), "--out", str(run), "--init", os.path.relpath(init)]
    assert train.main([*config, "--optimizer.learning-rate", "2e-3", "--log-every", "1"]) == 0
    said = capsys.readouterr().err
    assert "changed from step 5: optimizer.learning_rate: 0.01 -> 0.002\n" in said
    assert "changed from step 5: total_steps: 4 -> 8\n" in said
    assert "log_every" not in said
    record = json.loads((run / "run.json").read_text())
    assert record["config"]["optimizer"]["learning_rate"] == 2e-3
    assert record["config"]["log_every"] == 1
    assert record["config"]["init"] == str(init)
    history = {e["option"]: (e["step"], e["old"], e["new"]) for e in record["history"]}
    assert history == {
        "optimizer.learning_rate": (4, 0.01, 2e-3),
        "total_steps": (4, 4, 8),
    }
    # The same command again: nothing changes any more.
    assert train.main([*config, "--optimizer.learning-rate", "2e-3", "--log-every", "1"]) == 0
    assert "changed" not in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["history"] == record["history"]


@pytest.mark.extended
def test_a_run_of_an_older_version_resumes(toy, train, run, whole):
    record = json.loads((run / "run.json").read_text())
    for name in ("history", "started", "working_directory"):
        del record[name]
    del record["config"]["previews"]
    (run / "run.json").write_text(json.dumps(record))
    assert train.main([str(toy("understanding")), "--out", str(run)]) == 0
    toy_run.assert_same_run(run, whole("understanding"))


# --- the data ----------------------------------------------------------------------------------


def refused(train, capsys, run, *arguments):
    """The error of a command that changes nothing in the directory of a run."""
    before = content(run)
    assert train.main([str(argument) for argument in arguments]) == 1
    assert content(run) == before
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return error


def manifest(toy, directory, order):
    """The toy's manifest with its lines in another order, and the option that names it."""
    source = toy("understanding").parent / "data"
    lines = (source / "manifest.jsonl").read_text().splitlines(keepends=True)
    (directory / "manifest.jsonl").write_text("".join(order(lines)))
    return ["--data.source", f"manifest:{directory}/manifest.jsonl?images={source}"]


@pytest.mark.extended
def test_a_manifest_in_reverse_order(toy, train, run, tmp_path, capsys):
    config = [str(toy("understanding")), "--out", str(run)]
    options = manifest(toy, tmp_path, lambda lines: lines[::-1])
    error = refused(train, capsys, run, *config, *options)
    assert "data.source: not the records that the run stopped in" in error
    assert "the 10 records differ, or are in another order" in error
    assert "the first was 'images/000.png' and is 'images/009.png'" in error
    assert "--restart-data" in error
    assert train.main([*config, *options, "--restart-data"]) == 0
    said = capsys.readouterr().err
    assert "the order of the data restarts: data.source: not the records" in said
    lines = toy_run.metrics(run)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert lines[2]["epoch"] <= lines[1]["epoch"]
    history = json.loads((run / "run.json").read_text())["history"]
    assert [e["option"] for e in history if e["step"] == 4][-1] == "order of the data"
    # Now these are the data of the run, with the option or without it.
    for more in ([], ["--restart-data"]):
        assert train.main([*config, *options, *more, "--total-steps", "9"]) == 0
        assert "anew" not in capsys.readouterr().err


def test_fewer_records(toy, train, run, tmp_path, capsys):
    options = manifest(toy, tmp_path, lambda lines: lines[1:])
    error = refused(train, capsys, run, toy("understanding"), "--out", run, *options)
    assert "expected 10 records, found 9" in error


@pytest.mark.extended
def test_the_same_records_elsewhere(toy, train, run, tmp_path, capsys):
    options = manifest(toy, tmp_path, lambda lines: lines)
    assert train.main([str(toy("understanding")), "--out", str(run), *options]) == 0
    said = capsys.readouterr().err
    assert "changed from step 5: data.source: " in said
    assert "anew" not in said


@pytest.mark.extended
def test_another_plan(toy, train, run, capsys):
    config = [str(toy("understanding")), "--out", str(run), "--data.und-tokens", "140"]
    error = refused(train, capsys, run, *config)
    assert "data.und_tokens: expected 128, found 140" in error
    assert train.main([*config, "--restart-data"]) == 0
    said = capsys.readouterr().err
    assert "the order of the data restarts: " in said
    assert "data.und_tokens: expected 128, found 140" in said
    assert [line["step"] for line in toy_run.metrics(run)] == [2, 4, 6, 8]


def test_data_of_an_older_version(toy, train, run, capsys):
    (progress,) = (run / "checkpoints" / "4").rglob("metadata")
    content = json.loads(progress.read_text())
    del content["data"]["source"]
    progress.write_text(json.dumps(content))
    listing = run / "checkpoints" / "4" / "files.json"
    write_listing(listing.parent, json.loads(listing.read_text())["metrics"])
    assert train.main([str(toy("understanding")), "--out", str(run)]) == 0
    assert "kept no fingerprint" in capsys.readouterr().err


# --- what is left out --------------------------------------------------------------------------


@pytest.mark.extended
def test_what_is_left_out_is_said_and_counted(toy, train, tmp_path, capsys):
    """Rows of 60 tokens do not hold all reports."""
    config = [str(toy("understanding")), "--data.und-tokens", "60", "--validate-every", "4"]
    assert train.main([*config, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.splitlines()
    (first,) = [line for line in said if line.startswith("left out: ")]
    assert "images/00" in first
    assert first.endswith("und tokens but a row has at most 60")
    last = toy_run.metrics(tmp_path / "run")[-1]
    assert last["epoch"] > 1
    assert last["skipped_too_long"] > 1
    assert last["skipped_no_text"] == last["skipped_no_image"] == last["skipped_broken"] == 0
    (summary,) = [line for line in said if line.startswith("left out ")]
    assert summary.startswith(f"left out {last['skipped_too_long']} of ")
    assert summary.endswith(f"epochs of 10: {last['skipped_too_long']} too_long")
    # A resumed run counts on.
    half = [*config, "--out", str(tmp_path / "half")]
    assert train.main([*half, "--total-steps", "4"]) == 0
    assert train.main(half) == 0
    assert toy_run.metrics(tmp_path / "half") == toy_run.metrics(tmp_path / "run")


def test_left_out_of_validation(toy, train, tmp_path, capsys):
    config = [str(toy("understanding")), "--out", str(tmp_path), "--total-steps", "1"]
    config += ["--validation.source", "manifest:" + str(tmp_path / "data"), "--validate-every", "1"]
    source = toy_run.write_pictures(tmp_path / "data")
    rows = [json.loads(line) for line in (source / "manifest.jsonl").read_text().splitlines()]
    rows[-1]["findings"] = "No pleural effusion. " * 60
    (source / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config[2] = str(tmp_path / "run")
    assert train.main(config) == 0
    said = capsys.readouterr().err
    assert "validation: left out: images/013.png: too_long: " in said
    assert "validation: left out 1 of 4 samples (25.0%)" in said


def test_all_left_out(toy, train, tmp_path, capsys):
    config = [toy("understanding"), "--out", tmp_path, "--data.und-tokens", "20"]
    error = one_error(train, capsys, *config)
    assert "expected samples that fit a row of 20 und tokens" in error
    assert "'too_long': 20" in error

"""What may change when a run resumes: every setting has a rule, and no change is silent."""

import dataclasses
import json
import os
import shutil

import pytest
import toy_run
from test_train_script import one_error
from test_training_checkpoint import content

from unix_jax.data.config import DataConfig
from unix_jax.errors import ConfigError
from unix_jax.training.config import TrainConfig
from unix_jax.training.resuming import RULES, Change, Rule, changes, extended_history, settings

CONFIG = TrainConfig("understanding", DataConfig(), 10, init="start", ema_decay=0.9)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """stage -> a configuration file."""
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def train():
    return toy_run.load_train()


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
    now = dict(settings(recorded()))[name]
    before = recorded(**{name: other(now)})
    if RULES[name] in (Rule.FIXED, Rule.ORIGIN) and now is not None:
        with pytest.raises(ConfigError, match=f"{name}: expected .*, found .*name another --out"):
            changes(before, CONFIG, tmp_path, None)
        return
    found = changes(before, CONFIG, tmp_path, None)
    if RULES[name] in (Rule.FREE, Rule.ORIGIN):
        assert found == []
    elif RULES[name] is Rule.RECORDED or (now and RULES[name] is Rule.SWITCH):
        assert found == [Change(name, other(now), now)]


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
        (["--lora.alpha", "512"], "lora.alpha: expected 32.0, found 512.0"),
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


def test_a_run_of_an_older_version_resumes(toy, train, run):
    record = json.loads((run / "run.json").read_text())
    for name in ("history", "started", "working_directory"):
        del record[name]
    del record["config"]["previews"]
    (run / "run.json").write_text(json.dumps(record))
    assert train.main([str(toy("understanding")), "--out", str(run)]) == 0

"""Journals: what is whole stays, what is torn goes, and settings are held to."""

import json
import os
import signal
import subprocess
import sys

import pytest

from unix_jax.errors import DataError, PromptError, UniXError
from unix_jax.evaluation_runs.evaluation_files import journal_file, read_entries, remember
from unix_jax.evaluation_runs.items import Share, run_items
from unix_jax.storage.journal import Entry, Journal

# Appends items until it is killed: the kill may fall inside a write.
WRITER = """
import sys
from pathlib import Path
from unix_jax.evaluation_runs.items import run_items
run_items(
    Path(sys.argv[1]), 10**6, 3, lambda i: (str(i), i),
    lambda ready, rows: [{"text": "x" * 999, "square": item.input ** 2} for item in ready],
)
"""


def test_entries_come_back_from_all_processes(tmp_path):
    with (
        Journal(journal_file(tmp_path, 0)) as first,
        Journal(journal_file(tmp_path, 1)) as second,
    ):
        second.append([Entry(1, "b", values={"text": "\ud800 and ü"})])
        first.append([Entry(0, "a"), Entry(2, "c", "failed", "broken")])
        found = read_entries(tmp_path)
    assert list(found) == [0, 1, 2]
    assert found[1].values == {"text": "\ud800 and ü"}
    assert (found[2].status, found[2].error) == ("failed", "broken")


def test_a_torn_line_is_dropped_and_done_again(tmp_path):
    with Journal(journal_file(tmp_path)) as journal:
        journal.append([Entry(0, "a"), Entry(1, "b")])
    whole = journal.path.read_bytes()
    for length in range(1, len(whole)):
        journal.path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        assert len(read_entries(tmp_path)) == lines
        with Journal(journal_file(tmp_path)) as again:
            again.append([Entry(5, "c")])
        assert list(read_entries(tmp_path)) == [*range(lines), 5]


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"index": "1", "key": "", "status": "done"}', "\0\0"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "items-0.jsonl").write_text(line + "\n")
    with pytest.raises(UniXError, match=r"items-0\.jsonl: line 1: expected an item"):
        read_entries(tmp_path)


def test_an_item_twice_is_refused(tmp_path):
    for process in (0, 1):
        with Journal(journal_file(tmp_path, process)) as journal:
            journal.append([Entry(7, "a")])
    with pytest.raises(UniXError, match=r"items-1\.jsonl: line 1: item 7 (is there|occurs) twice"):
        read_entries(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with (
        Journal(journal_file(tmp_path)),
        pytest.raises(UniXError, match="another run is writing it"),
    ):
        Journal(journal_file(tmp_path))


def test_other_settings_are_refused_and_named(tmp_path):
    remember(tmp_path, {"steps": 50, "size": None, "interval": (0.4, 1.0)})
    remember(tmp_path, {"steps": 50, "size": None, "interval": (0.4, 1.0)})
    with pytest.raises(UniXError, match=r"started with steps 50 \(now 20\); use the same"):
        remember(tmp_path, {"steps": 20, "size": None, "interval": (0.4, 1.0)})
    (tmp_path / "settings.json").unlink()
    (tmp_path / "items-0.jsonl").touch()
    with pytest.raises(UniXError, match=r"settings\.json: expected this file together with"):
        remember(tmp_path, {})


def test_more_items_of_the_same_records_are_accepted(tmp_path):
    begun = {"data": "csv:a.csv", "records": 9, "items": 3}
    remember(tmp_path, begun)
    remember(tmp_path, begun | {"items": 5})
    remember(tmp_path, begun | {"items": 5})
    for other, message in (
        ({"items": 3}, r"items 5 \(now 3\)"),
        ({"items": 9, "records": 10}, r"records 9 \(now 10\), items 5 \(now 9\)"),
        ({"items": 9, "data": "csv:b.csv"}, r"data \"csv:a.csv\""),
        ({"items": "9"}, r"items 5 \(now \"9\"\)"),
    ):
        with pytest.raises(UniXError, match=message):
            remember(tmp_path, begun | other)
    # An earlier version did not store the number of records.
    (tmp_path / "settings.json").write_text('{"data": "csv:a.csv", "items": 5}')
    remember(tmp_path, begun | {"items": 5})
    remember(tmp_path, begun | {"items": 6})
    assert json.loads((tmp_path / "settings.json").read_text())["records"] == 9


def test_a_killed_process_leaves_each_item_once(tmp_path):
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        path = tmp_path / "items-0.jsonl"
        before = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < before + 20_000:
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    done = len(read_entries(tmp_path))
    run_items(
        tmp_path, done + 4, 3, lambda i: (str(i), i),
        lambda ready, rows: [{"text": "", "square": item.input**2} for item in ready],
    )  # fmt: skip
    entries = read_entries(tmp_path)
    assert list(entries) == list(range(done + 4))
    assert all(entry.values["square"] == index**2 for index, entry in entries.items())
    lines = path.read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(done + 4))


def test_processes_share_all_items(tmp_path):
    for process in range(3):
        run_items(
            tmp_path, 10, 2, lambda i: (str(i), i), lambda ready, rows: [{} for _ in ready],
            share=Share(process, 3),
        )  # fmt: skip
        assert (tmp_path / f"items-{process}.jsonl").exists()
    assert list(read_entries(tmp_path)) == list(range(10))


def test_failing_items_stop_nothing(tmp_path):
    def prepare(index):
        if index == 1:
            raise DataError("no picture")
        return f"key {index}", index

    def compute(ready, rows):
        assert rows == 3
        if any(item.input == 3 for item in ready):
            raise PromptError("too long")
        return [{"value": item.input} for item in ready]

    counts = []
    run_items(tmp_path, 6, 3, prepare, compute, name=lambda i: "named", progress=counts.append)
    entries = read_entries(tmp_path)
    assert counts == [3, 3]
    assert [entry.status for entry in entries.values()] == [
        "done", "failed", "done", "failed", "done", "done",
    ]  # fmt: skip
    assert (entries[1].key, entries[1].error) == ("named", "no picture")
    assert (entries[3].key, entries[3].error) == ("key 3", "too long")


def test_other_faults_end_the_run_and_keep_what_is_done(tmp_path):
    def compute(ready, rows):
        if ready[0].index:
            raise UniXError("no autoencoder")
        return [{}]

    with pytest.raises(UniXError, match="no autoencoder"):
        run_items(tmp_path, 3, 1, lambda i: ("", i), compute)
    assert list(read_entries(tmp_path)) == [0]
    with pytest.raises(UniXError, match="batch_size: expected at least 1"):
        run_items(tmp_path, 3, 0, lambda i: ("", i), compute)

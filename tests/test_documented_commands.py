"""Runs commands and code of the documentation as they stand, page by page, beside the checkout.

    pytest -m slow tests/test_documented_commands.py

A command that says what it needs (`# needs ...`) is only parsed, by test_docs.py. Training and
evaluation are cut short by an option; words in capitals are replaced by files of the checkout.
"""

import csv
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
from pathlib import Path

import pytest

from support.documentation import FOREIGN, PAGES, ROOT, commands, name_of, program, scripts

# Installs, starts a shell, or is a test of its own: what `.ci/run` and test_docs.py do.
ELSEWHERE = FOREIGN - {"pip"}
# What the reader has, and what the test puts in its place.
STAND_INS = {
    "MY_XRAYS": "examples/cxr",
    "CHECKPOINT": "examples/nano",
    "SOURCE_MANIFEST_DIR": "source",
    "OUT": "out/OUT",
}
SHORTER = (
    (r"(train\.py|unix-jax train) (?!.*--dry-run)", "--total-steps 2 --validation.batches 1"),
    (r"make_nano_vision\.py", "--steps 2"),
    (r"unix-jax evaluate (reports|images)", "--limit 3"),
    (
        r"python benchmarks/inference\.py",
        "--width 64 --mlp 128 --layers 1 --heads 1 --vocab 256 --context 64 --new-tokens 4 "
        "--steps 1 --batches 1 --sizes 64 --repeats 1",
    ),
    (r"python benchmarks/training\.py", "--quick"),
    (r"python benchmarks/serving\.py", "--seconds 2 --rounds 1 --clients 2 --batch-sizes 1 2"),
)
# Modules without which a command says that it needs an extra.
EXTRAS = (
    (r"benchmarks/(inference|training)", ("torch", "transformers")),
    (r"unix-jax app", ("gradio",)),
    (r"unix-jax serve|benchmarks/serving", ("starlette", "uvicorn", "prometheus_client")),
    (r"--topology", ("libtpu",)),
)
SECONDS = 1500
# What a clone does not have, by the names that the pages give it.
MISSING = re.compile(
    r"weights/|\bjanus\b|JANUS|CHECKPOINT|SHARED|MIMIC|ZrH42/UniX|OWNER/|https://|my-bucket|example\.org"
)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    """A directory that looks like a clone, in which commands may write."""
    folder = tmp_path
    for path in ROOT.iterdir():
        if path.name not in ("runs", "out", "results", ".venv", ".git"):
            (folder / path.name).symlink_to(path)
    with open(ROOT / "examples" / "cxr" / "manifest.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 5)]
    (folder / "source").mkdir()
    (folder / "source" / "images").symlink_to(ROOT / "examples" / "cxr" / "images")
    write_lines(folder / "source" / "manifest.jsonl", rows)
    write_lines(folder / "reports.jsonl", rows)
    texts = [{"key": str(i), "reference": row["findings"]} for i, row in enumerate(rows)]
    write_lines(folder / "references.jsonl", texts)
    with open(folder / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "prediction"])
        writer.writerows(text.values() for text in texts)
    return folder


def environment(added):
    """That of a user's shell: no virtual devices, and the scripts of this Python."""
    found = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    found["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), found["PATH"]))
    return found | added


def runnable(words):
    line = shlex.join(words)
    for pattern, modules in EXTRAS:
        if re.search(pattern, line) and not all(map(importlib.util.find_spec, modules)):
            return False
    return True


def prepared(words):
    line = shlex.join(words)
    words = [re.sub(r"[A-Z][A-Z_]+", lambda m: STAND_INS.get(m[0], m[0]), w) for w in words]
    return words + " ".join(more for pattern, more in SHORTER if re.search(pattern, line)).split()


def expanded(words, folder):
    """What the shell makes of `*`."""
    for word in words:
        found = sorted(folder.glob(word)) if "*" in word else ()
        yield from [path.relative_to(folder).as_posix() for path in found] or [word]


def start(words, added, folder):
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(added),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def killed(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def ended(process, where):
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        killed(process)
    assert process.returncode == 0, f"{where}\n{output[-4000:]}"


def served(process, where, path, expected):
    """A server answers at a path of the address that it prints, and ends at Ctrl-C."""
    deadline = threading.Timer(SECONDS, killed, [process])
    deadline.start()
    output, found = "", None
    try:
        while found is None and (line := process.stdout.readline()):
            output += line
            found = re.search(r"http://127\.0\.0\.1:\d+/", output)
        assert found, f"{where}\n{output}"
        with urllib.request.urlopen(f"{found[0]}{path}", timeout=60) as answer:
            assert expected in answer.read(), where
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, where
    finally:
        deadline.cancel()
        killed(process)


def extras_exist(words):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"\[([\w,]+)\]", shlex.join(words)):
        assert set(extra.split(",")) <= set(known), extra


def run_page(page, folder):
    """Runs them in order, and returns those whose extra is not installed."""
    waiting, left_out = [], []
    for command in commands(page):
        if program(command.words) == "pip":
            extras_exist(command.words)
            continue
        if command.needs or program(command.words) in ELSEWHERE:
            continue
        if not runnable(command.words):
            left_out.append(shlex.join(command.words))
            continue
        words = list(expanded(prepared(command.words), folder))
        where = f"{name_of(page)}:{command.line}: {shlex.join(words)}"
        process = start(words, command.environment, folder)
        if command.words[:2] == ["unix-jax", "app"]:
            served(process, where, "", b"<html")
        elif command.words[:2] == ["unix-jax", "serve"]:
            served(process, where, "health", b'"ok"')
        elif "--distributed.process-id" in words:
            # Processes that wait for each other.
            waiting.append((process, where))
            count = int(words[words.index("--distributed.num-processes") + 1])
            if len(waiting) == count:
                try:
                    for each in waiting:
                        ended(*each)
                finally:
                    for other, _ in waiting:
                        killed(other)
                waiting = []
        else:
            ended(process, where)
    assert not waiting
    return left_out


WITH_COMMANDS = [
    page
    for page in PAGES
    if any(not c.needs and program(c.words) not in FOREIGN for c in commands(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=map(name_of, WITH_COMMANDS))
def test_commands_run(page, checkout):
    left_out = run_page(page, checkout)
    if left_out:
        pytest.skip(f"all else ran; for want of their extras not: {'; '.join(left_out)}")


WITH_CODE = [page for page in PAGES if scripts(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=map(name_of, WITH_CODE))
def test_code_runs(page, checkout):
    code = scripts(page)
    if "tensorflow_datasets" in code:
        pytest.importorskip("tensorflow_datasets")
    added = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}  # docs/inference.md, meshes
    ended(start([sys.executable, "-c", code], added, checkout), name_of(page))


def test_marked_commands_name_what_is_missing():
    """Nothing that a clone can do is excused from being run."""
    for page in PAGES:
        for command in commands(page):
            line = shlex.join(command.words)
            if program(command.words) == "gcloud":
                assert command.needs, f"{name_of(page)}:{command.line}"
            elif command.needs and program(command.words) not in FOREIGN:
                assert MISSING.search(line), f"{name_of(page)}:{command.line}: {line}"

"""Several processes evaluate together what one evaluates alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def evaluate(out, environment):
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "unix_jax.cli", "evaluate", "reports"),
            *("--checkpoint", "examples/nano", "--data", "manifest:examples/cxr"),
            *("--out", str(out), "--limit", "5"),
        ],
        cwd=ROOT,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_tasks_of_slurm_give_what_one_process_gives(tmp_path):
    # The job's number is where JAX's port comes from.
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}
    started = [evaluate(tmp_path / "one", {})] + [
        evaluate(
            tmp_path / "two",
            job | {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    for name in ("predictions.jsonl", "results.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    counts = [
        len((tmp_path / "two" / f"items-{rank}.jsonl").read_text().splitlines())
        for rank in range(2)
    ]
    assert counts == [3, 2]

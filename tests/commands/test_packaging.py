"""What an installation holds, and that a user's own files do not get in its way."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tiny" / "checkpoint"


def test_the_wheel_holds_one_package():
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert find["find"]["include"] == ["unix_jax*"]
    matching = [path.name for path in ROOT.glob("unix_jax*") if path.is_dir()]
    assert [name for name in matching if not name.endswith(".egg-info")] == ["unix_jax"]


def test_a_users_own_convert_and_train_are_not_imported(tmp_path):
    for name in ("convert", "train", "configs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was run')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command in (["convert", "import", str(GOLDEN), "imported"], ["info", "imported"]):
        # `-m` puts the working directory first on the path, which the installed command does not.
        run = subprocess.run(
            [sys.executable, "-m", "unix_jax", *command],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr


def test_ci_reads_both_commands_of_the_readme():
    function = re.search(r"^readme_command\(\).*?^\}", (ROOT / ".ci/run").read_text(), re.M | re.S)
    script = f"set -euo pipefail\nwork=/W python=python3.12\n{function[0]}\nreadme_command "
    found = {}
    for marker in ("main-job", "test-command"):
        run = subprocess.run(
            ["bash", "-c", f"{script} {marker} env"], cwd=ROOT, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        found[marker] = run.stdout.rstrip("\n").split(" && ")
        assert found[marker][0] == "python3.12 -m venv /W/env"
    install, report, generate = found["main-job"][1:]
    assert install == "/W/env/bin/pip install -c constraints.txt ."
    assert report.startswith("/W/env/bin/unix-jax report ")
    assert generate.endswith(" --out out")
    assert found["test-command"][1:] == [
        "/W/env/bin/pip install -c constraints.txt -e '.[dev]'",
        "/W/env/bin/pytest -n 2",
    ]
    missing = subprocess.run(
        ["bash", "-c", f"{script} other env"], cwd=ROOT, capture_output=True, text=True
    )
    assert missing.returncode == 1
    assert "error: README.md: expected" in missing.stderr

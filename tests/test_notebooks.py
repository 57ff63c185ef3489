"""The notebooks: short, without outputs, and every cell runs (`pytest -m slow`)."""

import ast
import json
import os
import subprocess
import sys

import pytest

from support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
NAMES = [notebook.stem for notebook in NOTEBOOKS]


def cells(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def test_both_exist():
    assert NAMES == ["finetune", "quickstart"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_outputs_are_not_kept(notebook):
    """They would be of an earlier model, and thousands of lines of every change."""
    for cell in cells(notebook):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert "medical device" in notebook.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_code_compiles_and_needs_neither_shell_nor_network(notebook):
    for cell in cells(notebook):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            ast.parse(source)
        assert "http" not in source


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_the_tpu_cell_is_skipped_elsewhere(notebook):
    source = "".join(cells(notebook)[-1]["source"])
    assert source.startswith('if jax.default_backend() == "tpu":')
    assert 'else:\n    print(f"skipped: expected a TPU' in source


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=NAMES)
def test_every_cell_runs(notebook, tmp_path):
    """By nbmake, in a kernel of this Python; a cell that raises fails."""
    pytest.importorskip("nbmake", reason="nbmake is not installed (extra dev)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra dev)")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(ROOT)
    # A kernel's specification may name another Python than this one.
    kernels = [sys.executable, "-m", "ipykernel", "install", "--prefix", str(tmp_path)]
    subprocess.run(kernels, check=True, capture_output=True, env=environment)
    environment["JUPYTER_PATH"] = str(tmp_path / "share" / "jupyter")
    command = [
        sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=1200",
        "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(tmp_path), str(notebook),
    ]  # fmt: skip
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert "1 passed" in run.stdout

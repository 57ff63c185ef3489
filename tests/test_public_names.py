"""The public names: those of the packages, of their stubs for type checkers, and of docs/api."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unix_jax

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "training", "evaluation")
# Its module has the same name, which hides it in the package.
HIDDEN = {"prdc"}


def documented(page):
    """Names that an API page shows."""
    text = (ROOT / "docs" / "api" / f"{page}.md").read_text()
    names = set()
    for found in re.finditer(r"^::: ([\w.]+)\n((?: {4}.*\n)*)", text + "\n", re.MULTILINE):
        members = re.search(r"members: \[([^\]]*)\]", found[2])
        shown = members[1].split(",") if members else [found[1].rpartition(".")[2]]
        names |= {name.strip() for name in shown}
    return names


@pytest.mark.parametrize("name", PACKAGES)
def test_package_stub_and_documentation_agree(name):
    package = importlib.import_module(f"unix_jax.{name}")
    assert set(package.__all__) == documented(name) - HIDDEN
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public).__module__.startswith("unix_jax.") or public.isupper()


def test_names_of_the_root():
    for public in unix_jax.__all__:
        assert getattr(unix_jax, public) is not None
    assert set(unix_jax.__all__) <= set(dir(unix_jax))
    with pytest.raises(AttributeError, match="image_latents"):
        unix_jax.image_latents  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used():
    program = (
        "import sys, unix_jax.data, unix_jax.training, unix_jax.evaluation, unix_jax.cli; "
        "heavy = ('jax', 'flax', 'orbax', 'pydicom', 'numpy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_convert_module_of_the_users_own_is_no_matter(tmp_path):
    (tmp_path / "convert.py").write_text("raise SystemExit('the wrong module')\n")
    program = (
        "from unix_jax import UniXPipeline; "
        f"pipe = UniXPipeline.from_pretrained({str(ROOT / 'tests/golden/tiny/checkpoint')!r}); "
        "print(pipe.config.decoder.num_layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout == "3\n", done.stderr


_USERS_FILE = """
from collections.abc import Iterator
from PIL import Image
import numpy as np
from unix_jax import ImageResult, ImageSettings, ReportResult, UniXPipeline

pipe = UniXPipeline.from_pretrained("x")
reports: list[str] = pipe.generate_report("x.png", max_new_tokens=5)
details: list[ReportResult] = pipe.generate_report("x.png", return_details=True)
pieces: Iterator[list[str]] = pipe.stream_report("x.png")
images: list[Image.Image] = pipe.generate_image("x", solver="ab2")
pixels: np.ndarray = pipe.generate_image("x", output_type="np")
known: list[ImageResult[ImageSettings]] = pipe.generate_image("x", return_details=True)
pipe.generate_image("x", num_steps=3)
pipe.generate_image("x", solver="heun")
wrong: int = pipe.generate_report("x.png")
"""


@pytest.mark.slow
def test_a_users_file_is_checked(tmp_path):
    """mypy knows the results of the calls, and refuses the last three lines."""
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "users.py"
    file.write_text(_USERS_FILE)
    out, errors, _ = api.run(
        [str(file), "--ignore-missing-imports", "--follow-imports=silent",
         "--cache-dir", str(tmp_path / "cache")]
    )  # fmt: skip
    assert not errors
    lines = _USERS_FILE.count("\n") + 1
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    assert found == {lines - 3, lines - 2, lines - 1}, out


def test_python_m_and_the_command_line_are_the_same():
    done = subprocess.run(
        [sys.executable, "-m", "unix_jax", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == f"unix-jax {unix_jax.__version__}\n"

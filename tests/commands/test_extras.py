"""What the base installation does, and what it says where an extra is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NANO, EXAMPLES = str(ROOT / "examples" / "nano"), f"manifest:{ROOT / 'examples' / 'cxr'}"
# Imports of what an extra brings fail, as in an environment without it.
WITHOUT = """
import sys
absent = {"grain", "array_record", "pyarrow", "tensorflow_datasets", "tensorboardX", "safetensors"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(program, *arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + program, *arguments],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip


@pytest.mark.extended
def test_inference_loads_nothing_of_the_extras_and_no_orbax():
    run = python(
        "import unix_jax\n"
        "pipe = unix_jax.UniXPipeline.from_pretrained(sys.argv[1])\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & (absent | {'optax', 'orbax', 'scipy'})))",
        NANO,
    )
    assert run.stdout == "[]\n", run.stderr


def test_a_report_imports_nothing_that_it_does_not_need():
    """Each of these costs a noticeable part of the time until the first report."""
    run = python(
        "from unix_jax.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "names = {'optax', 'orbax', 'scipy', 'tensorstore', 'transformers', 'huggingface_hub',\n"
        "         'fsspec', 'grain', 'pydicom', 'torch', 'unix_jax.training',\n"
        "         'unix_jax.evaluation', 'unix_jax.inference.diffusion'}\n"
        "print(sorted(names & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)",
        "report", str(ROOT / "examples" / "nih_0823b2557d1225f4.jpg"), "--max-new-tokens", "2",
        "--checkpoint", NANO,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[-1] == "[]"


MAIN = "from unix_jax.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "configs/nano_understanding.py", "--out", "never"], "grain", "train"),
        (["export", "never"], "grain", "train"),
        (["data", "write", EXAMPLES, "never"], "array_record", "data"),
        (["data", "inspect", "parquet:never"], "pyarrow", "data"),
        (["data", "inspect", "mimic:never"], "pyarrow", "data"),
        (["data", "inspect", "array_record:never"], "array_record", "data"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(arguments, package, extra):
    run = python(MAIN, *arguments)
    (line,) = run.stderr.splitlines()
    assert run.returncode == 1
    assert f"needs the package '{package}': pip install 'unix-jax[{extra}]'" in line
    assert not (ROOT / "never").exists()


def test_sources_without_an_extra_are_read():
    run = python(MAIN, "data", "inspect", EXAMPLES)
    assert run.returncode == 0, run.stderr

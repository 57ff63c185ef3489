"""Length of the four main ways through the code: distinct functions of unix_jax that run on the
host, and their files.

    python benchmarks/ways.py              # a table beside the aims of docs/architecture.md
    python benchmarks/ways.py --list       # every function of each way, by file, in order of entry

Each way runs once before it is counted, so that imports and compiling are not in it. The loss alone
is traced, since its functions run at no other time. Comprehensions and generated methods are not
counted; methods that a prefetching thread runs are.
"""

import argparse
import dataclasses
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from rich.console import Console
from rich.table import Table

import unix_jax
from unix_jax.checkpoints.load import load_config
from unix_jax.data.loader import Loader
from unix_jax.data.mixture import open_mixture
from unix_jax.data.samples import record_samples
from unix_jax.models import autoencoder, unix
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.training import load_config as load_run_config
from unix_jax.training import unix_loss

ROOT = Path(__file__).parents[1]
PACKAGE = str(Path(unix_jax.__file__).parent)
NANO, XRAY = ROOT / "examples" / "nano", ROOT / "examples" / "nih_0823b2557d1225f4.jpg"
MODEL, _ = load_config(NANO)
JOINT, _ = load_run_config(ROOT / "configs" / "nano_joint.py")
_NOT_FUNCTIONS = ("<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way. run: returns what to do; its first call warms up. aims: (functions, files)."""

    name: str
    aims: tuple[int, int]
    run: Callable[[], Callable[[], object]]


def entered(run: Callable[[], object]) -> list[types.CodeType]:
    """Functions of unix_jax that `run` enters in any thread, in order of their first entry."""
    found: dict[types.CodeType, None] = {}

    def profile(frame: types.FrameType, event: str, _: object) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) and code.co_name not in _NOT_FUNCTIONS
        if event == "call" and ours:
            found.setdefault(code)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(found)


def report() -> Callable[[], object]:
    pipe = unix_jax.UniXPipeline.from_pretrained(NANO)
    return lambda: pipe.generate_report([XRAY], max_new_tokens=4)


def image() -> Callable[[], object]:
    pipe = unix_jax.UniXPipeline.from_pretrained(NANO)
    return lambda: pipe.generate_image(["No acute finding."])


def _loader() -> Loader:
    """Of configs/nano_joint.py: reports to write and images to generate, in one batch."""
    records = open_mixture(JOINT.data.source, JOINT.data.split, JOINT.data.task)
    tokenizer = Tokenizer.from_directory(NANO, MODEL.special_tokens)
    return Loader(record_samples(records, tokenizer, MODEL, JOINT.data), MODEL, JOINT.data)


def batch() -> Callable[[], object]:
    loader = _loader()
    # Closed at exit.
    return lambda: next(iter(loader))


def loss() -> Callable[[], object]:
    iterator: Any = iter(_loader())
    host, _ = next(iterator)
    iterator.close()
    params = {
        "unix": nn.unbox(unix.param_shapes(MODEL)),
        "autoencoder": nn.unbox(autoencoder.param_shapes(MODEL.vae)),
    }
    model, key = unix.UniX(MODEL), jax.random.key(0)

    def run() -> object:
        # A new function each time: JAX traces the same one once.
        return jax.eval_shape(
            lambda params, host, key: unix_loss(model, params, host, key, JOINT.losses),
            params,
            host,
            key,
        )

    return run


WAYS = (
    Way("an image in generate_report", (30, 10), report),
    Way("a prompt in generate_image", (30, 10), image),
    Way("a record to a batch", (60, 12), batch),
    Way("a batch to its loss", (45, 10), loss),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="name every function")
    listed = parser.parse_args().list
    table = Table("way", "functions", "aim", "files", "aim", title="Ways through unix_jax")
    console = Console()
    for way in WAYS:
        run = way.run()
        run()
        found = entered(run)
        files: dict[str, list[str]] = {}
        for code in found:
            name = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            files.setdefault(name, []).append(code.co_qualname.replace(".<locals>", ""))
        functions, most = way.aims
        table.add_row(way.name, str(len(found)), str(functions), str(len(files)), str(most))
        if listed:
            console.print(f"\n{way.name}", style="bold")
            for file, names in files.items():
                console.print(f"  {file} ({len(names)}): {', '.join(names)}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()

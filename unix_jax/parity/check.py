"""The command `unix-jax check`: comparison of this implementation with golden tensors."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unix_jax.checkpoints.configurations import is_diffusers
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.load import load_model
from unix_jax.errors import CheckpointError
from unix_jax.parity.golden import (
    Golden,
    autoencoder_tensors,
    edit_tensors,
    generation_tensors,
    understanding_tensors,
)
from unix_jax.parity.golden_diffusers import DIFFUSERS_GROUPS, DIFFUSERS_INPUTS, DiffusersGolden
from unix_jax.parity.golden_training import training_tensors
from unix_jax.storage.files import atomic_write

# From the start of a tensor's name to what recomputes such tensors.
Groups = Mapping[str, Callable[[Any], dict[str, Any]]]

TOLERANCE = 2e-5
LOOSE_TOLERANCE = 1e-4
# Whole sampling runs and gradients accumulate rounding over many steps.
_LOOSE = ("gen.sample.", "edit.sample.", "train.grad.", "sample.", "unet.grad.")
_INPUTS = (
    "vae.pixels", "vae.sample_noise", "und.pixel_values", "und.prompt_ids", "gen.prompt_ids",
    "gen.init_noise", "edit.vae_pixels", "train.vit_pixels.", "train.vae_pixels.",
    "train.packed_timesteps", "train.noise", *DIFFUSERS_INPUTS,
)  # fmt: skip
_GROUPS: Groups = {
    "vae.": autoencoder_tensors,
    "und.": understanding_tensors,
    "gen.": generation_tensors,
    "edit.": edit_tensors,
    "train.": training_tensors,
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One golden tensor. `passed` is None for inputs and for tensors that are not checked."""

    tensor: str
    shape: list[int]
    max_relative_difference: float | None
    tolerance: float | None
    passed: bool | None
    note: str = ""


def compare(name: str, golden: np.ndarray, ours: np.ndarray) -> Result:
    """max |a - b| / max |b|; integers and masks must be equal."""
    exact = golden.dtype.kind in "iub"
    tolerance = 0.0 if exact else LOOSE_TOLERANCE if name.startswith(_LOOSE) else TOLERANCE
    shape = list(golden.shape)
    if ours.shape != golden.shape:
        note = f"shape: expected {tuple(golden.shape)}, found {tuple(ours.shape)}"
        return Result(name, shape, None, tolerance, False, note)
    if not golden.size:
        return Result(name, shape, 0.0, tolerance, True)
    difference = np.abs(ours.astype(np.float64) - golden.astype(np.float64)).max()
    scale = np.abs(golden.astype(np.float64)).max()
    # A tensor of zeros has no magnitude to compare with: it must be met exactly.
    relative = float(difference / scale) if scale else float(difference)
    if not math.isfinite(relative):
        return Result(name, shape, None, tolerance, False, "not finite")
    return Result(name, shape, relative, tolerance, bool(relative <= tolerance))


def read_golden_directory(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Any]:
    """(tensors, the content of golden.json).

    Raises:
      CheckpointError: a file is missing or broken.
    """
    directory = Path(path)
    for file in (directory / "golden.safetensors", directory / "golden.json"):
        if not file.is_file():
            raise CheckpointError(f"{file}: expected a file, found none")
    with open_tensors(directory / "golden.safetensors") as source:
        tensors = {key: np.array(source.read(key)) for key in source.keys()}  # noqa: SIM118
    try:
        info = json.loads((directory / "golden.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{directory / 'golden.json'}: not JSON: {error}") from error
    if not isinstance(info, dict):
        raise CheckpointError(
            f"{directory / 'golden.json'}: expected a JSON object, found {type(info).__name__}"
        )
    return tensors, info


def run_checks(
    path: str | os.PathLike[str], golden_directory: str | os.PathLike[str]
) -> list[Result]:
    """Compares every golden tensor with what the model at `path` computes in float32.

    Args:
      path: a converted checkpoint, a directory in the published layout, or a diffusers folder.
      golden_directory: contains golden.safetensors and golden.json.

    Raises:
      CheckpointError: a file is missing or broken, or an entry that is needed is absent.
    """
    tensors, info = read_golden_directory(golden_directory)
    golden: Golden | DiffusersGolden
    groups: Groups
    if is_diffusers(path):
        golden, groups = DiffusersGolden.open(path, tensors, info), DIFFUSERS_GROUPS
    else:
        golden, groups = Golden(*load_model(path, dtype=jnp.float32), tensors, info), _GROUPS
    ours: dict[str, Any] = {}
    # Accelerators multiply in lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        for prefix, compute in groups.items():
            if any(name.startswith(prefix) for name in tensors):
                try:
                    ours |= compute(golden)
                except KeyError as error:
                    raise CheckpointError(
                        f"{golden_directory}/golden.json: expected the entry {error} for "
                        f"{prefix}*, found none"
                    ) from error
    # Without ids, the hidden states that the U-Net attends to are given.
    inputs = _INPUTS if "text.ids" in tensors else (*_INPUTS, "text.hidden")
    return [_result(name, tensor, ours, inputs) for name, tensor in sorted(tensors.items())]


def _result(name: str, tensor: np.ndarray, ours: dict[str, Any], inputs: tuple[str, ...]) -> Result:
    if name in ours:
        return compare(name, tensor, np.asarray(ours[name]))
    note = "input" if name.startswith(inputs) else "unchecked"
    return Result(name, list(tensor.shape), None, None, None, note)


def print_results(results: Iterable[Result], console: Console) -> None:
    """Prints the table and a summary line."""
    table = Table(box=None, header_style="bold")
    for header in ("tensor", "shape", "max rel. difference", "tolerance", ""):
        table.add_column(
            header, justify="left" if header in ("tensor", "") else "right", overflow="fold"
        )
    verdict = {True: "[green]pass[/]", False: "[red]FAIL[/]"}
    rows = list(results)
    for r in rows:
        difference = "" if r.max_relative_difference is None else f"{r.max_relative_difference:.2e}"
        tolerance = "" if r.tolerance is None else f"{r.tolerance:.0e}" if r.tolerance else "exact"
        status = escape(r.note) if r.passed is None else verdict[r.passed]
        if r.passed is False and r.note:
            status += f" ({escape(r.note)})"
        table.add_row(escape(r.tensor), "x".join(map(str, r.shape)), difference, tolerance, status)
    console.print(table)
    counts = {
        "passed": sum(r.passed is True for r in rows),
        "failed": sum(r.passed is False for r in rows),
        "inputs": sum(r.note == "input" for r in rows),
        "unchecked": sum(r.note == "unchecked" for r in rows),
    }
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()))


def check(
    path: str | os.PathLike[str],
    golden_directory: str | os.PathLike[str],
    json_path: str | os.PathLike[str] | None = None,
) -> int:
    """Runs the checks, prints the table, optionally writes it as JSON.

    Returns:
      0 if every checked tensor passed, else 1.
    """
    results = run_checks(path, golden_directory)
    print_results(results, Console())
    if json_path is not None:
        with atomic_write(json_path) as temporary:
            rows = [dataclasses.asdict(r) for r in results]
            temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(r.passed is False for r in results))

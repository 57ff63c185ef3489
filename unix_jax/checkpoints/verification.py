"""Reads every file of a checkpoint and reports damaged files and numbers that are not finite."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from unix_jax.checkpoints import native, run_files
from unix_jax.checkpoints.configurations import is_diffusers, is_diffusers_checkpoint
from unix_jax.checkpoints.leaves import FiniteCheck, Leaf
from unix_jax.checkpoints.published import PublishedSource
from unix_jax.errors import CheckpointError
from unix_jax.storage import recorded_files


@dataclasses.dataclass(frozen=True)
class Verified:
    """One completely read part of a checkpoint.

    part: its name. arrays, nbytes: what was read. checksums: whether the part has them. problems:
      one line each.
    """

    part: str
    arrays: int
    nbytes: int
    checksums: bool
    problems: list[str]


def verify(path: str | os.PathLike[str]) -> Iterator[Verified]:
    """Reads all of a checkpoint, of either layout, or of a training run's directory.

    Args:
      path: a converted checkpoint, a directory in the published layout, a diffusers folder (as
        published or imported), or the directory of a run:
        its training checkpoints, its frozen weights and its export are read.

    Yields:
      Each part after it was read.

    Raises:
      CheckpointError, ConfigError: there is no checkpoint, or its index is unreadable.
    """
    # The tables of published keys live in `convert`, which stands above this package.

    directory = Path(path)
    if is_diffusers(directory):
        yield from _diffusers(directory)
    elif native.is_checkpoint(directory):
        yield from _converted(directory, "")
    elif (directory / "run.json").is_file():
        yield from _run(directory)
    else:
        yield from _published(directory)


def _diffusers(directory: Path) -> Iterator[Verified]:
    from unix_jax.checkpoints.diffusers_checkpoint import open_diffusers
    from unix_jax.checkpoints.diffusers_sizes import PARTS
    from unix_jax.checkpoints.file_leaves import table_leaves

    folder = open_diffusers(directory)
    folder.check()
    if is_diffusers_checkpoint(directory):
        yield from _files(directory, "")
        yield from _arrays(directory, "")
        return
    for part in PARTS:
        with folder.open_part(part) as opened:
            leaves = table_leaves(opened.table, opened.tensors)
            openers = {name: lambda leaf=leaf: leaf for name, leaf in leaves.items()}
            yield _read(part, openers, False, True)


def _converted(directory: Path, prefix: str) -> Iterator[Verified]:
    files = _files(directory, prefix)
    yield from files
    config = f"{directory / recorded_files.CONFIG}:"
    if not any(line.startswith(config) for part in files for line in part.problems):
        # A configuration at odds with the arrays is damage as well.
        native.load_config(directory)
    yield from _arrays(directory, prefix)


def _files(directory: Path, prefix: str) -> list[Verified]:
    """The files other than arrays as one part; none if index.json lists none."""
    entries = recorded_files.read_listed(directory)
    if not entries:
        return []
    lines = [recorded_files.difference(directory, name, x) for name, x in entries.items()]
    nbytes = sum(entry["size"] for entry in entries.values())
    part = f"{prefix}config, tokenizer, source (files)"
    return [Verified(part, len(entries), nbytes, True, [line for line in lines if line])]


def _arrays(directory: Path, prefix: str) -> Iterator[Verified]:
    summed = native.has_checksums(directory)
    for part in native.PARTS:
        names = native.array_names(directory, part)
        if names:
            openers = {
                name: functools.partial(native.open_array, directory, part, name) for name in names
            }
            # The unused tensors of a source may be what they like.
            yield _read(f"{prefix}{part}", openers, summed, part != "extras")


def _published(directory: Path) -> Iterator[Verified]:
    with PublishedSource(directory) as published:
        published.check()
        for part, leaves, tensors in (
            ("params", published.leaves(), published.tensors),
            ("vae", published.vae_leaves(), published.vae),
        ):
            if leaves and tensors is not None:
                openers = {name: lambda leaf=leaf: leaf for name, leaf in leaves.items()}
                yield _read(part, openers, tensors.checksums, True)


def _read(
    part: str,
    openers: Mapping[str, Callable[[], Leaf]],
    summed: bool,
    finite: bool,
) -> Verified:
    problems, nbytes = [], 0
    for name, open_one in openers.items():
        try:
            check = FiniteCheck()
            array = check.watch(f"{part}/{name}", open_one()).read_all()
        except CheckpointError as error:
            problems.append(f"{part}/{name}: {error}")
            continue
        nbytes += array.nbytes
        if finite:
            problems += [f"{line} are NaN or infinite" for line in check.lines()]
    return Verified(part, len(openers), nbytes, summed, problems)


def _run(directory: Path) -> Iterator[Verified]:

    for name in ("checkpoints", "frozen/checkpoints"):
        folder = directory / name
        for step in run_files.steps(folder) if folder.is_dir() else []:
            problems = []
            try:
                run_files.verify(folder / str(step))
            except CheckpointError as error:
                problems.append(str(error))
            sizes = run_files.listed_files(folder / str(step))
            part = f"{name}/{step} (files)"
            yield Verified(part, len(sizes), sum(sizes.values()), True, problems)
    if native.is_checkpoint(directory / "export"):
        yield from _converted(directory / "export", "export/")

"""The table of `unix-jax convert inspect PATH`: names, shapes, dtypes, parameters.

Reads only tables of contents, never a tensor.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unix_jax.checkpoints.formats.readers import DIRECTORY_NAMES, open_tensors
from unix_jax.checkpoints.run_export import resolve_checkpoint
from unix_jax.errors import CheckpointError

# A name of the tensor, its shape, its type's name, its number of elements.
Row = tuple[str, tuple[int, ...], str, int]

_VAE_FILE = Path("vae") / "kl-f16d16.ckpt"
# Prefixes this deep form a group: `vit_model.vision_tower`, `params/decoder/layers`.
_GROUP_DEPTH = {".": 2, "/": 3}


def describe(path: str | Path) -> list[Row]:
    """Lists the tensors of a checkpoint in the order of its file.

    Args:
      path: a tensor file or an index of shards; a directory in the published layout, whose VAE
        tensors then carry the prefix `vae:`; or a checkpoint of this project.

    Returns:
      (name, shape, type, number of elements) of every tensor.

    Raises:
      CheckpointError: there is nothing that can be read.
    """
    path = resolve_checkpoint(path)
    if not path.exists():
        raise CheckpointError(f"{path}: expected a checkpoint, but it does not exist")
    if path.is_dir() and not _is_published(path):
        return _describe_own(path)
    if not path.is_dir():
        return _describe_source(path, "")
    rows = _describe_source(path, "") if _has_model(path) else []
    if (path / _VAE_FILE).exists():
        rows += _describe_source(path / _VAE_FILE, "vae:")
    return rows


def print_table(path: str | Path, console: Console | None = None) -> None:
    """Prints `describe(path)` and the totals of its groups.

    Raises:
      CheckpointError: as `describe`.
    """
    rows = describe(path)
    console = console or Console()
    tensors = _table("tensor", "shape", "type", "parameters")
    for key, shape, dtype, count in rows:
        tensors.add_row(_shown(key), "×".join(map(str, shape)) or "scalar", dtype, f"{count:,}")
    groups = _table("group", "tensors", "type", "parameters")
    for group, members in _grouped(rows).items():
        dtypes = ", ".join(sorted({dtype for _, _, dtype, _ in members}))
        total = f"{sum(count for *_, count in members):,}"
        groups.add_row(_shown(group), f"{len(members):,}", dtypes, total)
    groups.add_section()
    groups.add_row("total", f"{len(rows):,}", "", f"{sum(count for *_, count in rows):,}")
    console.print(tensors)
    console.print(groups)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if column in ("parameters", "tensors") else "left")
        table.columns[index].no_wrap = index > 0
    table.columns[0].overflow = "fold"  # a name must never be cut
    return table


def _shown(name: str) -> str:
    return escape(
        "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)
    )


def _grouped(rows: list[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row[0]), []).append(row)
    return groups


def _group(key: str) -> str:
    """The first parts of a name, apart for the gen stream; its last part never is a group."""
    separator = "/" if "/" in key else "."
    parts = key.split(separator)
    group = separator.join(parts[: min(_GROUP_DEPTH[separator], max(1, len(parts) - 1))])
    return f"{group} (gen)" if "_moe_gen" in key or "/gen/" in key else group


def _has_model(path: Path) -> bool:
    return any((path / name).exists() for name in DIRECTORY_NAMES)


def _is_published(path: Path) -> bool:
    return _has_model(path) or (path / _VAE_FILE).exists()


def _describe_source(path: Path, prefix: str) -> list[Row]:
    with open_tensors(path) as source:
        infos = {f"{prefix}{key}": source.info(key) for key in source}
    return _rows(infos)


def _describe_own(path: Path) -> list[Row]:
    # Late, because it loads Orbax, which takes seconds that the other layouts need not wait for.
    from unix_jax.checkpoints import native

    try:
        return _rows(native.tensor_infos(path))
    except CheckpointError as error:
        names = ", ".join((*DIRECTORY_NAMES, str(_VAE_FILE)))
        raise CheckpointError(
            f"{path}: expected a checkpoint of this project, or a directory with one of {names}: "
            f"{error}"
        ) from error


def _rows(infos: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for key, info in infos.items():
        count = 1
        for size in info.shape:
            count *= size
        rows.append((key, tuple(info.shape), str(info.dtype), count))
    return rows

"""User-supplied files of radiomics features, for the Fréchet radiomics distance."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unix_jax.data.sources.tables import is_table, read_header, table_rows
from unix_jax.errors import DataError

_NAME = "img_fname"


@dataclasses.dataclass(frozen=True)
class Radiomics:
    """Features of one set: rows without missing values, and the columns' names, () if unknown.

    files: the image of each row, from the column `img_fname`; () if there is none.
    skipped: rows with a missing value.
    """

    path: Path
    rows: np.ndarray
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class RadiomicsTables:
    """Features of the real and of the generated images."""

    real: Radiomics
    generated: Radiomics

    def settings(self) -> dict[str, Any]:
        """The files and their numbers of rows, for results.json."""
        return {
            name: {"file": str(one.path), "rows": len(one.rows), "rows_left_out": one.skipped}
            for name, one in (("real", self.real), ("generated", self.generated))
        }

    def notes(self) -> list[str]:
        """A warning about skipped rows."""
        return [
            f"{one.path}: {one.skipped} of {one.skipped + len(one.rows)} rows have a missing value "
            "and are skipped"
            for one in (self.real, self.generated)
            if one.skipped
        ]

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """The features of both sets, with the columns in the order of the real set.

        Raises:
          DataError: they do not have the same columns.
        """
        real, fake = self.real, self.generated
        if bool(real.names) != bool(fake.names):
            raise DataError(f"{fake.path}: expected a file of the same kind as {real.path}")
        if real.names and set(real.names) != set(fake.names):
            missing = sorted(set(real.names) ^ set(fake.names))
            raise DataError(
                f"{fake.path}: expected the columns of {real.path}, found {len(missing)} that only "
                f"one of them has, such as {missing[0]!r}"
            )
        order = [fake.names.index(name) for name in real.names] or slice(None)
        return real.rows, fake.rows[:, order]


def read_radiomics(path: Path) -> Radiomics:
    """Features of a .npy array [images, features], or of a table as the benchmark writes it.

    In a table each row is an image; columns without numbers (`img_fname`, diagnostics), shape
    features, and rows with an empty cell are skipped.

    Raises:
      DataError: the file cannot be read, or has no such numbers.
    """
    if path.suffix.lower() == ".npy":
        return Radiomics(path, _array(path))
    if not is_table(path):
        raise DataError(f"{path}: expected a .npy or .csv file of features")
    rows = table_rows(path)
    header = read_header(rows)
    cells = [row for _, row in rows]
    if not cells:
        raise DataError(f"{path}: expected rows of features, found none")
    columns = {
        name: values
        for index, name in enumerate(header)
        if name != _NAME and "shape2D" not in name
        if (values := _numbers([row[index] if index < len(row) else "" for row in cells]))
        is not None
    }
    if not columns:
        raise DataError(f"{path}: expected columns of numbers, found {header[:10]}")
    table = np.stack(list(columns.values()), axis=1)
    whole = np.isfinite(table).all(1)
    files: tuple[str, ...] = ()
    if _NAME in header:
        column = header.index(_NAME)
        files = tuple(
            row[column] if column < len(row) else ""
            for row, kept in zip(cells, whole, strict=True)
            if kept
        )
    return Radiomics(path, table[whole], tuple(columns), files, int((~whole).sum()))


def _array(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected an array of numbers [images, features]")
    return values


def _numbers(cells: Sequence[str]) -> np.ndarray | None:
    """A column as numbers, NaN for an empty cell; None if it has none, or texts."""
    try:
        values = np.array([float(cell) if cell.strip() else np.nan for cell in cells])
    except ValueError:
        return None
    return None if np.isnan(values).all() else values

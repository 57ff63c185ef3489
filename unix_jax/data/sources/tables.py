"""Reads CSV files, plain or gzipped: their rows, and errors that name the file."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from unix_jax.errors import DataError

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def is_table(file: Path) -> bool:
    """Whether the name is that of a CSV file."""
    return file.name.lower().endswith(SUFFIXES)


def table_rows(file: Path, errors: str = "surrogateescape") -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, cells) of every row that is not blank, the header first.

    Args:
      file: comma-separated, or tab-separated where its name says so; in UTF-8.
      errors: what becomes of a wrong byte, as in `open`. It spoils its own row alone.

    Raises:
      DataError: the file cannot be read as CSV.
    """
    open_text = gzip.open if file.suffix.lower() == ".gz" else open
    delimiter = "\t" if ".tsv" in file.name.lower()[-7:] else ","
    try:
        with open_text(file, "rt", encoding="utf-8-sig", errors=errors, newline="") as opened:
            reader = csv.reader(opened, delimiter=delimiter)
            header = True
            for row in reader:
                if header and any("\udc80" <= c <= "\udcff" for cell in row for c in cell):
                    raise DataError(f"{file}: expected CSV in UTF-8, found another encoding")
                header = header and not row
                if row:
                    yield reader.line_num, row
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{file}: cannot be read: {reason}") from error


def read_header(rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    """The names of the columns; [] for an empty file."""
    return [name.strip() for name in next(rows, (0, []))[1]]


def row_of_cells(header: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str]:
    """The cells by their columns.

    Raises:
      DataError: more or fewer cells than columns.
    """
    if len(cells) != len(header):
        raise DataError(f"{where}: expected {len(header)} cells, found {len(cells)}")
    return dict(zip(header, cells, strict=True))


def table_columns(
    file: Path, names: Sequence[str], errors: str = "surrogateescape"
) -> Iterator[tuple[str, ...]]:
    """These columns of every row; a cell that a short row lacks is "", an error when it is read.

    Raises:
      DataError: a column is missing.
    """
    rows = table_rows(file, errors)
    header = read_header(rows)
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"{file}: expected columns {list(names)}, found {header[:40]}")
    indices = [header.index(name) for name in names]
    for _, row in rows:
        yield tuple(row[i].strip() if i < len(row) else "" for i in indices)

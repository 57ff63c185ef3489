"""`mimic:DIR?reports=DIR&views=PA,AP`: MIMIC-CXR-JPG as published, a record an image.

In DIR (each CSV plain or gzipped):

* mimic-cxr-2.0.0-metadata.csv: dicom_id, subject_id, study_id, ViewPosition
* mimic-cxr-2.0.0-split.csv: dicom_id, split
* mimic-cxr-2.0.0-chexpert.csv or -negbio.csv, if there: labels of a study, where 1.0
* files/p10/p10000032/s50414267/DICOM_ID.jpg
* reports: files/p10/p10000032/s50414267.txt, from MIMIC-CXR, in DIR or in `reports`; `reports=none`
  leaves the texts empty

`views` keeps the images of these views. Versions other than 2.0.0 are found as well.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from unix_jax.data.records import Record, checked_index
from unix_jax.data.report_sections import split_report
from unix_jax.errors import DataError


class MimicSource:
    """Records of MIMIC-CXR-JPG; an index of a few numbers and strings an image is in memory."""

    def __init__(
        self,
        directory: str | Path,
        split: str | None = None,
        image_root: str | Path | None = None,
        reports: str | Path | None = None,
        views: Sequence[str] = (),
    ) -> None:
        """Reads the tables.

        Args:
          directory: where the CSV files are.
          split: train, validate or test; all if absent.
          image_root: directory with `files/` of the images, if not `directory`.
          reports: directory with `files/` of the reports, if not `directory`; "none" for no texts.
          views: keeps these values of ViewPosition, such as PA and AP; all if empty.

        Raises:
          DataError: a table or a column is missing, or no image is left.
        """
        root = Path(directory)
        self._images = Path(image_root) if image_root is not None else root
        self._reports = None if str(reports) == "none" else Path(reports or root)
        split_table = _table(root, "split")
        split_of = {row[0]: row[1] for row in _columns(split_table, ("dicom_id", "split"))}
        self._metadata = _table(root, "metadata")
        rows = [
            (number, *row, split_of.get(row[0], ""))
            for number, row in enumerate(
                _columns(self._metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")), 2
            )
            if (split is None or split_of.get(row[0], split) == split)
            and (not views or row[3] in views)
        ]
        if not rows:
            raise DataError(
                f"{self._metadata}: expected images of split {split or 'any'} and views "
                f"{list(views) or 'any'}, found none; splits are {sorted(set(split_of.values()))}"
            )
        numbers, dicoms, subjects, studies, shown, splits = zip(*rows, strict=True)
        self._numbers = np.array(numbers, np.int64)
        self._dicoms, self._subjects, self._studies = map(pa.array, (dicoms, subjects, studies))
        self._views = pa.array(shown).dictionary_encode()
        self._splits = pa.array(splits).dictionary_encode()
        self._labels = _labels(root)

    def __len__(self) -> int:
        return len(self._numbers)

    def keys(self) -> Iterator[str]:
        """The keys of all records."""
        return (dicom.as_py() for dicom in self._dicoms)

    def __getitem__(self, index: int) -> Record:
        index = checked_index(index, len(self))
        columns = (self._dicoms, self._subjects, self._studies, self._views, self._splits)
        dicom, subject, study, view, split = (column[index].as_py() for column in columns)
        where = f"{self._metadata}: line {self._numbers[index]}: {dicom or 'no dicom_id'}"
        patient, visit = _number(subject, "subject_id", where), _number(study, "study_id", where)
        if not dicom or "/" in dicom or dicom.startswith("."):
            raise DataError(f"{where}: dicom_id: expected a file's name, found {dicom!r:.60}")
        if not split:
            raise DataError(f"{where}: expected a row of the split table, found none")
        folder = Path("files") / f"p{patient[:2]}" / f"p{patient}"
        findings, impression = self._sections(folder / f"s{visit}.txt", where)
        return Record(
            key=dicom,
            image=self._images / folder / f"s{visit}" / f"{dicom}.jpg",
            findings=findings,
            impression=impression,
            view=view,
            patient=patient,
            split=split,
            labels=self._labels.get(visit, ()),
        )

    def _sections(self, file: Path, where: str) -> tuple[str, str]:
        if self._reports is None:
            return "", ""
        report = self._reports / file
        try:
            return split_report(report.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "expected UTF-8"
            raise DataError(f"{where}: report {report}: {reason}") from error


def _number(text: str, name: str, where: str) -> str:
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where}: {name}: expected a number, found {text!r:.60}")
    return text


def _table(root: Path, name: str) -> Path:
    found = _tables(root, name)
    if not found:
        raise DataError(f"{root}: expected mimic-cxr-2.0.0-{name}.csv or .csv.gz, found neither")
    return found[0]


def _tables(root: Path, name: str) -> list[Path]:
    return sorted(root.glob(f"mimic-cxr-*-{name}.csv")) + sorted(
        root.glob(f"mimic-cxr-*-{name}.csv.gz")
    )


def _rows(file: Path) -> Iterator[list[str]]:
    """The rows of a CSV file, its header first.

    Raises:
      DataError: it cannot be read as CSV.
    """
    open_text = gzip.open if file.suffix == ".gz" else open
    try:
        # A wrong byte spoils its own row alone.
        with open_text(file, "rt", encoding="utf-8", errors="replace", newline="") as opened:
            yield from csv.reader(opened)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{file}: cannot be read: {' '.join(str(error).split())[:200]}") from error


def _columns(file: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """These columns of every row; a field that a short row lacks is "", an error when it is read.

    Raises:
      DataError: a column is missing.
    """
    rows = _rows(file)
    header = [name.strip() for name in next(rows, [])]
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"{file}: expected columns {list(names)}, found {header[:40]}")
    places = [header.index(name) for name in names]
    for row in rows:
        if row:
            yield tuple(row[i].strip() if i < len(row) else "" for i in places)


def _labels(root: Path) -> dict[str, tuple[str, ...]]:
    """Labels of each study that the labeller found present; uncertain ones (-1) are not."""
    found = _tables(root, "chexpert") or _tables(root, "negbio")
    if not found:
        return {}
    rows = _rows(found[0])
    header = [name.strip() for name in next(rows, [])]
    if "study_id" not in header:
        raise DataError(f"{found[0]}: expected a column study_id, found {header[:40]}")
    study = header.index("study_id")
    names = [(i, n) for i, n in enumerate(header) if n not in ("study_id", "subject_id")]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for row in rows:
        if study < len(row):
            present = tuple(n for i, n in names if i < len(row) and row[i].strip() in ("1", "1.0"))
            # Few combinations occur: one tuple serves all their studies.
            labels[row[study].strip()] = shared.setdefault(present, present)
    return labels

"""Reader of reports for `clean`: JSON lines, CSV, or a directory of .txt files, by index.

A row has its report in one text field with headings, or in fields `findings` and `impression`. With
neither of these, `last_paragraph` of MIMIC-CXR's mimic_cxr_sectioned.csv is the report. The fields
that identify the study are kept, so that `mimic:DIR?reports=OUT` finds its images.
A broken row raises DataError when it is read, not before, so that a run can set it aside.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unix_jax.cleaning.facts import unsaid
from unix_jax.data.records import Record, checked_index, report_text
from unix_jax.data.report_sections import (
    dropped_sections,
    report_sections,
    sections_with_problem,
    shortened,
    split_report,
)
from unix_jax.data.sources.csv_file import CsvRows
from unix_jax.data.sources.fields import text_field
from unix_jax.data.sources.lines import JsonLines
from unix_jax.data.sources.mimic_reports import patient_and_study
from unix_jax.data.sources.tables import is_table
from unix_jax.errors import DataError
from unix_jax.storage import bucket_cache
from unix_jax.storage.bucket_path import BucketPath, any_path

_TEXT_FIELDS = ("report", "text", "answer")
_KEY_FIELDS = ("id", "key", "study_id", "study")
_HEADING = re.compile(r"\b(?:FINDINGS|IMPRESSION):")


@dataclasses.dataclass(frozen=True)
class RawReport:
    """A report of the input.

    key: its id in the output and in messages; a number where the input has one.
    text: the whole report; with headings unless it had none.
    findings, impression: its sections; "" for one that it does not have.
    row: the fields that the output takes over as they are.
    vanished: why the report must be set aside: it has no findings and no impression, or a section
      that is left out states a finding that the others do not; "" where neither holds.
    text_fields: those of them that hold the uncleaned text, which the output replaces.
    """

    key: str | int
    text: str
    findings: str
    impression: str
    row: Mapping[str, Any] = dataclasses.field(repr=False)
    text_fields: tuple[str, ...] = ()
    vanished: str = ""


class ReportSource(Protocol):
    """Random access to reports."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> RawReport: ...

    def name(self, index: int, /) -> str | int:
        """The id of a report in the output, as in the input; its file and line where it has none,
        or cannot be read."""
        ...

    def fingerprint(self) -> str:
        """Differs where the reports differ."""
        ...


def open_reports(path: str | Path, text_field_name: str = "") -> ReportSource:
    """Opens `path`: a .jsonl, .csv or .csv.gz file, or a directory of .txt files, all of them read.

    Args:
      path: what to read.
      text_field_name: the field or column with the report; if "", `findings` and `impression`,
        or else the first of `report`, `text` and `answer`.

    Raises:
      DataError: no such file, another format, or no reports.
    """
    file = _local(any_path(path))
    if file.is_dir():
        return _TextFiles(file)
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        lines = JsonLines(file, None)
        return _Rows(file, lines.row, len(lines), text_field_name)
    if is_table(file):
        rows = CsvRows(file)
        if text_field_name and text_field_name not in rows.header:
            raise DataError(
                f"{file}: expected a column {text_field_name}, found {rows.header[:20]}"
            )
        return _Rows(file, rows.row, len(rows), text_field_name)
    if not file.exists():
        raise DataError(f"{file}: no such file or directory")
    raise DataError(f"{file}: expected .jsonl, .csv, .csv.gz or a directory of .txt files")


def _local(path: Path) -> Path:
    """The local copy of what is in a bucket: the file, or the texts of a folder."""
    if not isinstance(path, BucketPath):
        return path

    def select(names: Sequence[str], file: str | None) -> list[str]:
        return [file] if file else [name for name in names if name.lower().endswith(".txt")]

    return bucket_cache.fetch(str(path), select)


class _Rows:
    """Rows of a file, parsed on demand."""

    def __init__(
        self,
        file: Path,
        row: Callable[[int], tuple[dict[str, Any], str]],
        length: int,
        text_field_name: str,
    ) -> None:
        self._file, self._row, self._length = file, row, length
        self._text_field = text_field_name

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str | int:
        try:
            row, where = self._row(index)
        except DataError:
            return self._place(index)
        return _id_of(row, where, self._place(index))

    def _place(self, index: int) -> str:
        return f"{self._file.name}:{index + 1}"

    def __getitem__(self, index: int) -> RawReport:
        row, where = self._row(checked_index(index, self._length))
        key = _id_of(row, where, self._place(index))
        if not self._text_field and ("findings" in row or "impression" in row):
            findings, impression = (
                text_field(row, name, where) for name in ("findings", "impression")
            )
            if not (findings or impression):
                findings = text_field(row, "last_paragraph", where)
            if "last_paragraph" in row:
                # Neither is cleaned, and the second tells of earlier examinations.
                row = {n: v for n, v in row.items() if n not in ("last_paragraph", "comparison")}
            vanished = ""
            if _HEADING.search(f"{findings} {impression}"):
                # A report that was filed under one of the fields as a whole.
                joined = " ".join(f"FINDINGS: {findings} IMPRESSION: {impression}".split())
                findings, impression = _without_repeats(*split_report(joined))
                vanished = _vanished(joined, findings, impression)
            text = report_text(Record(str(key), findings=findings, impression=impression))
            return _checked(RawReport(key, text, findings, impression, row, (), vanished), where)
        candidates = (self._text_field,) if self._text_field else _TEXT_FIELDS
        name = next((name for name in candidates if name in row), None)
        if name is None:
            expected = self._text_field or "findings, impression, " + ", ".join(_TEXT_FIELDS)
            raise DataError(f"{where}: expected a field {expected}, found {sorted(row)[:20]}")
        text = text_field(row, name, where)
        sections = report_sections(text)
        report = RawReport(key, text, *sections, row, (name,), _vanished(text, *sections))
        return _checked(report, where)

    def fingerprint(self) -> str:
        try:
            with self._file.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{self._file}: cannot be read: {error.strerror}") from error


class _TextFiles:
    """One file per report, in the order of their paths, such as MIMIC-CXR's tree of reports."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = sorted(
            os.path.relpath(os.path.join(parent, name), directory)
            for parent, _, names in os.walk(directory)
            for name in names
            if name.lower().endswith(".txt")
        )
        if not self._files:
            raise DataError(f"{directory}: expected .txt files, found none")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return Path(self._files[index]).with_suffix("").as_posix()

    def __getitem__(self, index: int) -> RawReport:
        file = self._directory / self._files[checked_index(index, len(self))]
        try:
            text = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DataError(f"{file}: expected UTF-8") from None
        key = self.name(index)
        row = {"id": key}
        numbers = patient_and_study(key)
        if numbers is not None:
            row |= {"subject_id": numbers[0], "study_id": numbers[1]}
        sections = report_sections(text)
        report = RawReport(key, text, *sections, row, (), _vanished(text, *sections))
        return _checked(report, str(file))

    def fingerprint(self) -> str:
        """Of names and sizes: reading every file twice would take minutes."""
        digest = hashlib.sha256()
        for name in self._files:
            try:
                size = (self._directory / name).stat().st_size
            except OSError as error:
                raise DataError(f"{name}: cannot be read: {error.strerror}") from error
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _without_repeats(*texts: str) -> tuple[str, ...]:
    """Each text once where it stands there twice in a row."""
    halves = [(text[: len(text) // 2].strip(), text[len(text) // 2 :].strip()) for text in texts]
    return tuple(
        first if first == second else text
        for text, (first, second) in zip(texts, halves, strict=True)
    )


def _id_of(row: Mapping[str, Any], where: str, place: str) -> str | int:
    """The id of a row, `place` where it has none; numbers stay numbers."""
    for name in _KEY_FIELDS:
        try:
            text = text_field(row, name, where)
        except DataError:
            continue
        if text:
            return row[name] if isinstance(row[name], int) else text
    return place


def _vanished(text: str, findings: str, impression: str) -> str:
    """Why `text` must be set aside: its sections lack a finding that a dropped one states."""
    if not (findings or impression):
        return sections_with_problem(text)[2]
    for section in dropped_sections(text):
        lost = unsaid(section, f"{findings} {impression}")
        if lost:
            return f"{shortened(section)} would be left out, and with it {', '.join(lost[:6])}"
    return ""


def _checked(report: RawReport, where: str) -> RawReport:
    if not report.text:
        raise DataError(f"{where}: expected a report, found no text")
    return report

"""Reports of MIMIC-CXR's studies: one text file per study, or one file with all of them.

Two of the latter are supported: the section parser's `mimic_cxr_sectioned.csv` (also `.gz`; columns
study, findings, impression, last_paragraph), and the output of `unix-jax clean` (JSON lines).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unix_jax.data.report_sections import sections_with_problem
from unix_jax.data.sources.fields import text_field
from unix_jax.data.sources.lines import JsonLines
from unix_jax.data.sources.tables import is_table, read_header, row_of_cells, table_rows
from unix_jax.errors import DataError

_STUDY_FIELDS = ("study_id", "study", "id", "key")
_TEXT_FIELDS = ("findings", "impression", "last_paragraph", "report", "text")
# s50414267, 50414267, or a path such as files/p10/p10000032/s50414267.txt.
_STUDY = re.compile(r"(?:.*/)?s?(\d{4,})(?:\.txt)?", re.DOTALL)
_TREE = re.compile(r"(?:.*/)?p(\d{4,})/s(\d{4,})(?:\.txt)?", re.DOTALL)


def is_report_file(path: Path) -> bool:
    """Whether the name is that of one file with all reports."""
    return is_table(path) or path.suffix.lower() in (".jsonl", ".ndjson")


def study_number(text: str) -> str | None:
    """The number in the name of a study or in the path of its report; None where there is none."""
    found = _STUDY.fullmatch(text.strip())
    return found and found[1]


def patient_and_study(path: str) -> tuple[str, str] | None:
    """The numbers in a path of MIMIC-CXR's tree of reports, such as p10/p10000032/s50414267."""
    found = _TREE.fullmatch(path)
    return found and (found[1], found[2])


def sections_of_row(row: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """(findings, impression, problem) of a row; with neither, its last paragraph counts as
    findings. The problem is that of `sections_with_problem`, "" for a row without a report.
    """
    findings, impression, last, report, text = (text_field(row, n, where) for n in _TEXT_FIELDS)
    problem = ""
    if not (findings or impression):
        findings, whole = last, "" if last else report or text
        if whole:
            findings, impression, problem = sections_with_problem(whole)
    return " ".join(findings.split()), " ".join(impression.split()), problem


class StudyReports:
    """Findings and impression by study, of one file.

    unknown: rows without a study. empty: rows without a text. unread: rows whose text has neither
    findings nor impression. repeated: rows of a study that an earlier row has; the first one
    counts. broken: rows that cannot be read.
    """

    def __init__(self, file: Path) -> None:
        """Reads the file.

        Raises:
          DataError: it cannot be read, has no column of a study or of a text, or no report.
        """
        self.file = file
        self.texts: dict[str, tuple[str, str]] = {}
        self.unknown = self.empty = self.unread = self.repeated = self.broken = 0
        self._first_unread = ""
        for read in self._csv_rows() if is_table(file) else self._json_rows():
            if isinstance(read, DataError):
                self.broken += 1
                last = str(read)
                continue
            row, where = read
            try:
                names = [text_field(row, name, where) for name in _STUDY_FIELDS]
                findings, impression, problem = sections_of_row(row, where)
            except DataError as error:
                self.broken += 1
                last = str(error)
                continue
            study = next((found for name in names if (found := study_number(name))), None)
            if study is None:
                self.unknown += 1
            elif problem:
                self.unread += 1
                self._first_unread = self._first_unread or f"study {study}: {problem}"
            elif not (findings or impression):
                self.empty += 1
            elif study in self.texts:
                self.repeated += 1
            else:
                self.texts[study] = findings, impression
        if not self.texts:
            why = f"; the last row: {last}" if self.broken else ""
            raise DataError(
                f"{file}: expected reports with a study in {', '.join(_STUDY_FIELDS)}, found "
                f"{self.left_out() or 'no rows'}{why}"
            )

    def left_out(self) -> str:
        """The skipped rows in words; "" if there are none."""
        counts = {
            "name no study": self.unknown,
            "have no text": self.empty,
            f"have neither findings nor impression (the first: {self._first_unread})": self.unread,
            "repeat a study (the first row counts)": self.repeated,
            "cannot be read": self.broken,
        }
        return ", ".join(f"{count} rows that {why}" for why, count in counts.items() if count)

    def _csv_rows(self) -> Iterator[tuple[dict[str, Any], str] | DataError]:
        rows = table_rows(self.file)
        header = read_header(rows)
        for fields in (_STUDY_FIELDS, _TEXT_FIELDS):
            if not set(fields) & set(header):
                raise DataError(
                    f"{self.file}: expected one of the columns {', '.join(fields)}, "
                    f"found {header[:40]}"
                )
        for line, cells in rows:
            where = f"{self.file}: line {line}"
            try:
                yield row_of_cells(header, cells, where), where
            except DataError as error:
                yield error

    def _json_rows(self) -> Iterator[tuple[dict[str, Any], str] | DataError]:
        lines = JsonLines(self.file, None)
        for index in range(len(lines)):
            try:
                yield lines.row(index)
            except DataError as error:
                yield error

"""`mimic:DIR?reports=WHERE&views=PA,AP`: MIMIC-CXR-JPG as published, one record per image.

In DIR (each CSV plain or gzipped):

* mimic-cxr-2.0.0-metadata.csv: dicom_id, subject_id, study_id, ViewPosition; for pairs also
  StudyDate and StudyTime
* mimic-cxr-2.0.0-split.csv: dicom_id, split * mimic-cxr-2.0.0-chexpert.csv or -negbio.csv, if
present: labels of a study with the value 1.0
* files/p10/p10000032/s50414267/DICOM_ID.jpg

WHERE is a directory with files/p10/p10000032/s50414267.txt, from MIMIC-CXR (DIR unless given); one
file with all reports (see `mimic_reports`), whose studies are joined with the images'; or `none`
for empty texts. `views` selects the images of these views. `pairs=previous` selects the images
whose patient has an earlier study; the condition of a record is an image of that study
(`previous_images`). Other versions than 2.0.0 are supported as well.
"""

import collections
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unix_jax.data.records import Record, checked_index
from unix_jax.data.report_sections import sections_with_problem
from unix_jax.data.sources.mimic_reports import StudyReports, is_report_file
from unix_jax.data.sources.tables import read_header, table_columns, table_rows
from unix_jax.errors import DataError
from unix_jax.extras import needed
from unix_jax.storage.bucket_path import any_path, local_file

with needed("pyarrow", "A mimic source", "unix-jax[data]"):
    import pyarrow as pa

_FRONTAL = {"PA", "AP"}


class _Row(NamedTuple):
    """A row of the metadata; `line` of its file."""

    line: int
    dicom: str
    subject: str
    study: str
    view: str
    split: str


class MimicSource:
    """Records of MIMIC-CXR-JPG; an index of a few numbers and strings an image is in memory."""

    def __init__(
        self,
        directory: str | Path,
        split: str | None = None,
        image_root: str | Path | None = None,
        reports: str | Path | None = None,
        views: Sequence[str] = (),
        pairs: bool = False,
    ) -> None:
        """Reads the tables.

        Args:
          directory: where the CSV files are.
          split: train, validate or test; all if absent.
          image_root: directory with `files/` of the images, if not `directory`.
          reports: directory with `files/` of the reports, if not `directory`; one file with all
            of them, which leaves out the images that it has no report for; "none" for no texts.
          views: keeps these values of ViewPosition, such as PA and AP; all if empty.
          pairs: keeps images with an image of an earlier study, which becomes their condition.

        Raises:
          DataError: a table or a column is missing, a view that no image has, or no image is left.

        Warns of images and reports that find no partner.
        """
        root = any_path(directory)
        self._images = any_path(image_root) if image_root is not None else root
        self._reports = None if str(reports) == "none" else any_path(reports or root)
        self._joined: StudyReports | None = None
        split_table = _table(root, "split")
        split_of = {row[0]: row[1] for row in _columns(split_table, ("dicom_id", "split"))}
        self._metadata = _table(root, "metadata")
        table = list(
            _columns(self._metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
        )
        _check_views(views, [row[3] for row in table], self._metadata)
        rows = [
            _Row(line, dicom, subject, study, view, split_of.get(dicom, ""))
            for line, (dicom, subject, study, view) in enumerate(table, 2)
            if (split is None or split_of.get(dicom, split) == split)
            and (not views or view in views)
        ]
        if not rows:
            raise DataError(
                f"{self._metadata}: expected images of split {split or 'any'} and views "
                f"{list(views) or 'any'}, found none; splits are {sorted(set(split_of.values()))}"
            )
        previous = self._previous_images(rows) if pairs else {}
        rows = [row for row in rows if row.line in previous] if pairs else rows
        if self._reports is not None and is_report_file(self._reports):
            self._joined = StudyReports(local_file(self._reports))
            rows = self._with_reports(rows, {row[2] for row in table})
        numbers, dicoms, subjects, studies, shown, splits = zip(*rows, strict=True)
        self._numbers = np.array(numbers, np.int64)
        self._dicoms, self._subjects, self._studies = map(pa.array, (dicoms, subjects, studies))
        self._views = pa.array(shown).dictionary_encode()
        self._splits = pa.array(splits).dictionary_encode()
        self._labels = _labels(root)
        self._pairs = pairs
        before = [previous[row.line] for row in rows] if pairs else []
        self._before_dicoms = pa.array([row.dicom for row in before], pa.string())
        self._before_studies = pa.array([row.study for row in before], pa.string())

    def _previous_images(self, rows: Sequence[_Row]) -> dict[int, _Row]:
        """The condition of each row that has one, by its line; warns of those without one."""
        columns = ("StudyDate", "StudyTime")
        times = {
            line: study_time(*row) for line, row in enumerate(_columns(self._metadata, columns), 2)
        }
        previous = previous_images(rows, times)
        unknown = sum(times[row.line] is None for row in rows)
        if not previous:
            raise DataError(
                f"{self._metadata}: pairs: expected patients with an earlier study, found none "
                f"among {len(rows)} images, {unknown} of them without a valid date and time"
            )
        if len(previous) < len(rows):
            why = f" ({unknown} have no valid StudyDate and StudyTime)" if unknown else ""
            warnings.warn(
                f"{self._metadata}: pairs: {len(rows) - len(previous)} of {len(rows)} images have "
                f"no image of a similar view in an earlier study and are skipped{why}",
                stacklevel=4,
            )
        return previous

    def _with_reports(self, rows: list[_Row], studies: set[str]) -> list[_Row]:
        """The rows whose study has a report; warns of unpaired rows and reports."""
        assert self._joined is not None
        texts, file = self._joined.texts, self._joined.file
        kept = [row for row in rows if row.study in texts]
        if not kept:
            raise DataError(
                f"{file}: expected reports of the studies in {self._metadata}, found none of "
                f"{len(rows)} images' studies among its {len(texts)}"
            )
        alone = sum(study not in studies for study in texts)
        found = [
            f"{len(rows) - len(kept)} of {len(rows)} images have no report in it and are skipped"
            if len(kept) < len(rows) else "",
            f"{alone} of its {len(texts)} reports belong to no image of {self._metadata.name}"
            if alone else "",
            f"it has {self._joined.left_out()}" if self._joined.left_out() else "",
        ]  # fmt: skip
        if any(found):
            warnings.warn(f"{file}: {'; '.join(filter(None, found))}", stacklevel=3)
        return kept

    def __len__(self) -> int:
        return len(self._numbers)

    def keys(self) -> Iterator[str]:
        """The keys of all records; of a pair both names."""
        return (self._key(index) for index in range(len(self)))

    def _key(self, index: int) -> str:
        dicom = self._dicoms[index].as_py()
        return f"{dicom} after {self._before_dicoms[index].as_py()}" if self._pairs else dicom

    def __getitem__(self, index: int) -> Record:
        index = checked_index(index, len(self))
        columns = (self._dicoms, self._subjects, self._studies, self._views, self._splits)
        dicom, subject, study, view, split = (column[index].as_py() for column in columns)
        where = f"{self._metadata}: line {self._numbers[index]}: {dicom or 'no dicom_id'}"
        patient, visit = _number(subject, "subject_id", where), _number(study, "study_id", where)
        _check_dicom(dicom, where)
        if not split:
            raise DataError(f"{where}: expected a row of the split table, found none")
        folder = Path("files") / f"p{patient[:2]}" / f"p{patient}"
        if self._joined is not None:
            findings, impression, problem = *self._joined.texts[visit], ""
        else:
            findings, impression, problem = self._sections(folder / f"s{visit}.txt", where)
        condition = None
        if self._pairs:
            before = self._before_dicoms[index].as_py()
            _check_dicom(before, f"{where}: previous image")
            earlier = _number(self._before_studies[index].as_py(), "study_id", where)
            condition = self._images / folder / f"s{earlier}" / f"{before}.jpg"
        return Record(
            key=self._key(index),
            image=self._images / folder / f"s{visit}" / f"{dicom}.jpg",
            condition=condition,
            findings=findings,
            impression=impression,
            view=view,
            patient=patient,
            split=split,
            labels=self._labels.get(visit, ()),
            report_problem=problem,
        )

    def _sections(self, file: Path, where: str) -> tuple[str, str, str]:
        """(findings, impression, the problem of a report that gives neither)."""
        if self._reports is None:
            return "", "", ""
        report = self._reports / file
        try:
            return sections_with_problem(report.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "expected UTF-8"
            raise DataError(f"{where}: report {report}: {reason}") from error


def study_time(date: str, time: str) -> tuple[int, float] | None:
    """Sort key of studies, from the columns StudyDate (YYYYMMDD) and StudyTime (HHMMSS.fff, without
    leading zeros); None if they are not such numbers.
    """
    try:
        found = int(date), float(time)
    except ValueError:
        return None
    valid = 1_01_01 <= found[0] <= 9999_12_31 and 0 <= found[1] < 24_00_00
    return found if valid else None


def previous_images(
    rows: Sequence[_Row], times: Mapping[int, tuple[int, float] | None]
) -> dict[int, _Row]:
    """For each row, by its line, an image of the latest earlier study of its patient.

    That study must have an image of the same view, or both views must be frontal (PA, AP); of
    several the one of the same view counts, then the first in the table. A study is as old as the
    earliest of its images; of two studies at one time neither is earlier.

    Args:
      rows: whose images may be paired.
      times: of their lines, see `study_time`; rows without one have no partner.
    """
    studies: dict[str, dict[str, list[_Row]]] = {}
    for row in rows:
        if times[row.line] is not None:
            studies.setdefault(row.subject, {}).setdefault(row.study, []).append(row)
    found: dict[int, _Row] = {}
    for of_patient in studies.values():

        def start(images: list[_Row]) -> tuple[int, float]:
            return min(time for image in images if (time := times[image.line]) is not None)

        ordered = sorted(of_patient.values(), key=start)
        for number, images in enumerate(ordered):
            earlier = [other for other in ordered[:number] if start(other) < start(images)]
            for image in images:
                partner = next(
                    (
                        min(fitting, key=lambda other: other.view != image.view)
                        for other_images in reversed(earlier)
                        if (fitting := [o for o in other_images if _similar(o.view, image.view)])
                    ),
                    None,
                )
                if partner is not None:
                    found[image.line] = partner
    return found


def _similar(view: str, other: str) -> bool:
    return view == other or {view, other} <= _FRONTAL


def _check_dicom(dicom: str | None, where: str) -> None:
    if not dicom or "/" in dicom or dicom.startswith("."):
        raise DataError(f"{where}: dicom_id: expected a file's name, found {dicom!r:.60}")


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
    patterns = (f"mimic-cxr-*-{name}.csv", f"mimic-cxr-*-{name}.csv.gz")
    return [local_file(file) for pattern in patterns for file in sorted(root.glob(pattern))[:1]]


def _columns(file: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    # A wrong byte affects only its own row, whose number or name is then unknown.
    return list(table_columns(file, names, errors="replace"))


def _check_views(views: Sequence[str], found: Sequence[str], file: Path) -> None:
    counts = collections.Counter(found)
    unknown = [view for view in views if not counts[view]]
    if unknown:
        known = ", ".join(f"{view or '(none)'} {count}" for view, count in counts.most_common())
        raise DataError(
            f"{file}: views: no image has the view {', '.join(unknown)}; the views and their "
            f"numbers of images are {known}"
        )


def _labels(root: Path) -> dict[str, tuple[str, ...]]:
    """Labels of each study that the labeller found present; uncertain ones (-1) are not."""
    found = _tables(root, "chexpert") or _tables(root, "negbio")
    if not found:
        return {}
    rows = table_rows(found[0], errors="replace")
    header = read_header(rows)
    if "study_id" not in header:
        raise DataError(f"{found[0]}: expected a column study_id, found {header[:40]}")
    study = header.index("study_id")
    names = [(i, n) for i, n in enumerate(header) if n not in ("study_id", "subject_id")]
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for _, row in rows:
        if study < len(row):
            present = tuple(n for i, n in names if i < len(row) and row[i].strip() in ("1", "1.0"))
            # Few combinations occur, so studies share one tuple per combination.
            labels[row[study].strip()] = shared.setdefault(present, present)
    return labels

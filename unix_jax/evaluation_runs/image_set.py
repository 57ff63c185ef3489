"""The images to evaluate: generated images, and their records or the real images to compare with.

The images are those of a run, by its journals, or from other software: a folder, or a table such as
the original's, with `annotated_prompt` and `synthetic_filename`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unix_jax.data.records import Record, RecordSource, captions_of, record_image
from unix_jax.data.sources.lines import JsonLines
from unix_jax.data.sources.tables import is_table, read_header, row_of_cells, table_rows
from unix_jax.errors import DataError, ImageError, UniXError
from unix_jax.evaluation_runs.evaluation_files import read_entries
from unix_jax.evaluation_runs.items import Steps, key_of, unseen
from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.images import load_image
from unix_jax.storage.journal import Entry

FILES = ("synthetic_filename", "img_savename", "image", "file_name", "filename")
"""Columns that may contain the file of a generated image; the first existing one is used."""
PROMPTS = ("annotated_prompt", "prompt", "caption", "text")
"""Columns that may contain the text that it was generated from."""
GENERATIONS = "generations.csv"
"""The table of a run's images, in its directory."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".dcm", ".dicom")
"""Suffixes of the image files in a folder."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generated image.

    key: its name. path: its file.
    prompt: the text that it was generated from; "" if unknown.
    record: index of its record in the source; None if it has none.
    warning: the problem of its gray levels, or "".
    """

    key: str
    path: Path
    prompt: str = ""
    record: int | None = None
    warning: str = ""

    @property
    def entry(self) -> Entry:
        """As an item of an evaluation, for its lists."""
        index = -1 if self.record is None else self.record
        return Entry(index, self.key, values={"warning": self.warning})


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Generated images and the real ones of a source.

    items: the expected number of images; images: those that can be measured.
    real: indices of the records whose images they are compared with.
    side: side of all generated images in pixels; 0 if they do not have one square size.
    failures: items without an image. unreadable: records, or their images, that cannot be read.
    notes: remarks about the two sets for readers of the results.
    """

    source: RecordSource
    items: int
    images: Sequence[Generated]
    real: Sequence[int]
    side: int = 0
    failures: Sequence[Entry] = ()
    unreadable: Sequence[Entry] = ()
    notes: Sequence[str] = ()

    def real_images(self, steps: Steps) -> Iterator[Image.Image]:
        """One at a time: the images of a data set are larger than memory."""
        return (record_image(self.source[index]) for index in steps(self.real, "real image"))

    def paths(self) -> list[Path]:
        """The files of the generated images."""
        return [image.path for image in self.images]

    @functools.cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """(position in `real`, position in `images`) of each image whose record is in `real`."""
        positions = {record: position for position, record in enumerate(self.real)}
        return [
            (positions[image.record], position)
            for position, image in enumerate(self.images)
            if image.record in positions
        ]

    @functools.cached_property
    def labels(self) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """The labels of the record of each real image, and of each generated one."""
        own = {image.record for image in self.images if image.record is not None}
        found = {index: self.source[index].labels for index in sorted({*self.real, *own})}
        return (
            [found[index] for index in self.real],
            [() if one.record is None else found[one.record] for one in self.images],
        )

    @property
    def labels_by_file(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """The same by file name, for features that were computed from the files."""
        real, fake = self.labels
        records = [self.source[index] for index in self.real]
        return (
            {_file_name(one): labels for one, labels in zip(records, real, strict=True)},
            {one.path.name: labels for one, labels in zip(self.images, fake, strict=True)},
        )


# --- images of a run ---------------------------------------------------------------------------


def images_of_run(source: RecordSource, out: Path, side: int) -> ImageSet:
    """The images that the journals of a directory have, and the real ones of the same records.

    `side` is that of the images in pixels.

    Raises:
      UniXError: a journal cannot be read.
    """
    entries = read_entries(out).values()
    images = [
        Generated(
            entry.key,
            out / entry.values["image"],
            entry.values["prompt"],
            entry.index,
            entry.values.get("warning", ""),
        )
        for entry in entries
        if entry.status == "done"
    ]
    real = [
        image.record
        for image in images
        if image.record is not None and source[image.record].image is not None
    ]
    failures = [entry for entry in entries if entry.status == "failed"]
    return ImageSet(source, len(source), images, real, side, failures)


# --- images from other software ----------------------------------------------------------------


def images_of_files(
    generated: Path,
    source: RecordSource,
    root: Path | None = None,
    *,
    compared: bool = True,
    steps: Steps = unseen,
) -> ImageSet:
    """The images of a folder or a table, each with its record where one is found.

    A row of a table belongs to the record of its `key`, else to the only record with its text. If
    several records have the text, the file name selects one of them. If none has it, and for the
    files of a folder, the file name must be the record's key or the name of its image, with or
    without suffix. A key, text or name that several records share is not sufficient. A folder that
    a run wrote has its own table, which is read. The real images are those of all records.

    Args:
      generated: a folder, searched with its subfolders, or a .csv, .tsv or .jsonl file.
      source: the records.
      root: the folder of the file names of a table; by default the table's folder.
      compared: whether the real images are needed, and therefore checked.
      steps: shows progress over the checked images.

    Raises:
      DataError: there is no such file or folder, no column of files, or no image that can be read.
    """
    if (generated / GENERATIONS).is_file():
        generated = generated / GENERATIONS
    table = not generated.is_dir()
    if root is not None and not table:
        raise DataError(f"{root}: expected --generated-root only with a table, found a folder")
    rows = list(_rows(generated, root) if table else _files(generated))
    if not rows:
        raise DataError(f"{generated}: expected images {', '.join(SUFFIXES)}, found none")
    records = _Records(source)
    images, failures, sizes = [], list[Entry](), set[tuple[int, int]]()
    for number, row in enumerate(steps(rows, "image")):
        record = records.find(row)
        prompt = row.prompt or (records.prompts.get(record, "") if record is not None else "")
        try:
            image = load_image(row.path)
        except ImageError as error:
            failures.append(Entry(number, row.name, "failed", str(error)))
            continue
        sizes.add(image.size)
        warning = gray_level_problem(image)
        images.append(Generated(row.name, row.path, prompt, record, warning))
    if not images:
        raise DataError(
            f"{generated}: expected images that can be read, found none in {len(rows)}; "
            f"the first: {failures[0].error}"
        )
    if not table:  # in the order of the records, as shards are cut
        images.sort(key=lambda one: len(source) if one.record is None else one.record)
    real, unreadable = list[int](), records.broken
    for index in steps(records.with_image if compared else (), "real image"):
        try:
            record_image(source[index])
            real.append(index)
        except UniXError as error:
            unreadable.append(Entry(index, key_of(source, index), "failed", str(error)))
    width, height = next(iter(sizes), (0, 0))
    side = width if len(sizes) == 1 and width == height else 0
    notes = _notes(images, records, table) + _doubts(rows, records)
    if compared:
        notes.append(f"real images that they are compared with: {len(real)}")
    return ImageSet(source, len(rows), images, real, side, failures, unreadable, notes)


@dataclasses.dataclass(frozen=True)
class _Row:
    name: str
    path: Path
    prompt: str = ""
    key: str = ""


def _files(folder: Path) -> Iterator[_Row]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            yield _Row(path.relative_to(folder).as_posix(), path)


def _rows(table: Path, root: Path | None) -> Iterator[_Row]:
    folder = table.parent if root is None else root
    column: dict[str, str] = {}
    for row, where in _table(table):
        if not column:
            for name, known in (("file", FILES), ("prompt", PROMPTS), ("key", ("key",))):
                column[name] = next((one for one in known if one in row), "")
            if not column["file"]:
                raise DataError(
                    f"{table}: expected a column {' or '.join(FILES)}, found {list(row)[:40]}"
                )
        values = {name: row.get(one) for name, one in column.items() if one}
        for name, value in values.items():
            if not isinstance(value, str | int | None):
                raise DataError(f"{where}: {column[name]}: expected a text, found {value!r:.60}")
        text = {name: "" if value is None else str(value).strip() for name, value in values.items()}
        if not text["file"] or "\0" in text["file"]:
            raise DataError(f"{where}: {column['file']}: expected a file, found {text['file']!r}")
        yield _Row(text["file"], folder / text["file"], text.get("prompt", ""), text.get("key", ""))


def _table(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    if is_table(path):
        rows = table_rows(path)
        header = read_header(rows)
        for line, cells in rows:
            where = f"{path}: line {line}"
            yield row_of_cells(header, cells, where), where
    elif path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        lines = JsonLines(path, None)
        yield from (lines.row(index) for index in range(len(lines)))
    else:
        raise DataError(f"{path}: expected a folder, or a .csv, .tsv or .jsonl file")


class _Records:
    """Finds the record that an image belongs to."""

    def __init__(self, source: RecordSource) -> None:
        self.prompts: dict[int, str] = {}
        self.with_image: list[int] = []
        self.broken: list[Entry] = []
        self.total = len(source)
        keys, names = dict[str, set[int]](), dict[str, set[int]]()
        self._by_text: dict[str, set[int]] = {}
        for index in range(len(source)):
            try:
                record = source[index]
            except UniXError as error:
                self.broken.append(Entry(index, str(index), "failed", str(error)))
                continue
            keys.setdefault(record.key, set()).add(index)
            for text in captions_of(record):
                if text.strip():
                    self._by_text.setdefault(text.strip(), set()).add(index)
                self.prompts.setdefault(index, text)
            if record.image is not None:
                self.with_image.append(index)
            for name in _names(record):
                names.setdefault(name, set()).add(index)
        self._by_key, self._by_name = _of_one(keys), _of_one(names)

    def find(self, row: _Row) -> int | None:
        if row.key in self._by_key:
            return self._by_key[row.key]
        named, told = self.named(row), self.told(row)
        if named is not None and (not told or named in told):
            return named
        return next(iter(told)) if len(told) == 1 else None

    def named(self, row: _Row) -> int | None:
        """The only record of that name."""
        forms = (row.name, Path(row.name).name, Path(row.name).stem)
        return next((self._by_name[name] for name in forms if name in self._by_name), None)

    def told(self, row: _Row) -> set[int]:
        """The records with that text."""
        return self._by_text.get(row.prompt, set())


def _of_one(found: Mapping[str, set[int]]) -> dict[str, int]:
    """None for a key that several records share."""
    return {text: min(records) for text, records in found.items() if len(records) == 1}


def _file_name(record: Record) -> str:
    return record.image.name if isinstance(record.image, Path) else Path(record.key).name


def _names(record: Record) -> set[str]:
    texts = (record.key, _file_name(record))
    return {form for text in texts for form in (text, Path(text).name, Path(text).stem) if form}


def _notes(images: Sequence[Generated], records: _Records, table: bool) -> list[str]:
    found = [image.record for image in images if image.record is not None]
    by = "key, text or file name" if table else "file name"
    notes = [f"generated images whose record was found, by {by}: {len(found)} of {len(images)}"]
    left = records.total - len(set(found))
    if found and left:
        notes.append(f"records without a generated image: {left} of {records.total}")
    return notes


def _doubts(rows: Sequence[_Row], records: _Records) -> list[str]:
    """Counts of ambiguous rows of a table."""
    unclear = sum(len(records.told(row)) > 1 and records.find(row) is None for row in rows)
    contrary = 0
    for row in rows:
        named, told = records.named(row), records.told(row)
        contrary += len(told) == 1 and named not in told | {None, records.find(row)}
    repeated = len(rows) - len({row.path for row in rows})
    counted = {
        "generated images without a record, since several records have their text": unclear,
        "generated images whose file name is that of one record and whose text is that of another; "
        "the name was not used": contrary,
        "rows with an image that an earlier row has": repeated,
    }
    return [f"{what}: {count} of {len(rows)}" for what, count in counted.items() if count]

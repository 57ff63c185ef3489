"""`manifest:DIR`: one JSON object per line in DIR/manifest.jsonl, with image files.

Fields: image (a path relative to DIR), condition (the path of an image that it is generated from),
findings, impression, captions, labels, view, patient, split, prompt, answer; all may be absent. DIR
may also be the manifest file. Rows without an image contain only a report. Other fields (licence,
source, ...) are ignored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unix_jax.data.records import Record
from unix_jax.data.sources.fields import image_path, report_fields, text_field
from unix_jax.data.sources.lines import JsonLines
from unix_jax.data.sources.tables import is_table
from unix_jax.errors import DataError
from unix_jax.storage.bucket_path import any_path, local_file


class ManifestSource:
    """Records of a manifest."""

    def __init__(
        self, path: str | Path, split: str | None = None, image_root: str | Path | None = None
    ) -> None:
        """Indexes the manifest.

        Args:
          path: directory with `manifest.jsonl`, or the file.
          split: selects the rows of one split.
          image_root: the directory of relative paths in `image`; by default the manifest's
            directory.

        Raises:
          DataError: no such file, or no rows.
        """
        given = any_path(path)
        file = given / "manifest.jsonl" if given.is_dir() else given
        other = _other_kind(given, file)
        if other is not None:
            raise DataError(f"{file}: expected JSON lines, {other}")
        self._lines = JsonLines(local_file(file), split)
        self.unsplit = self._lines.unsplit
        self._root = any_path(image_root) if image_root is not None else file.parent

    def __len__(self) -> int:
        return len(self._lines)

    def keys(self) -> Iterator[str]:
        """The keys of all records; a row without a valid one counts by its line."""
        for index, row in self._lines.rows():
            try:
                yield self._key(index, row, "")
            except DataError:
                yield self._lines.key(index)

    def _key(self, index: int, row: dict[str, Any], where: str) -> str:
        # Indiana's reports are known by `id`.
        names = (text_field(row, name, where) for name in ("key", "image", "id"))
        return next((name for name in names if name), "") or self._lines.key(index)

    def __getitem__(self, index: int) -> Record:
        row, where = self._lines.row(index)
        image, condition = row.get("image"), row.get("condition")
        return Record(
            key=self._key(index, row, where),
            image=None if image is None else image_path(image, self._root, where),
            condition=None
            if condition is None
            else image_path(condition, self._root, where, "condition"),
            prompt=text_field(row, "prompt", where),
            answer=text_field(row, "answer", where),
            **report_fields(row, where),
        )


def _other_kind(path: Path, file: Path) -> str | None:
    """The file that exists instead of a manifest and how to read it, or None."""
    if is_table(file):
        return f"found CSV by its name; read it as csv:{path}"
    if file.suffix.lower() == ".parquet":
        return f"found Parquet by its name; read it as parquet:{path}"
    if path.is_dir() and not file.is_file():
        for name in ("metadata.csv", "metadata.jsonl"):
            if (path / name).is_file():
                return f"found {name}; read it as csv:{path}"
    return None

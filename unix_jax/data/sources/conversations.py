"""`conversations:FILE?images=DIR`: an image with one question and one answer per row.

    {"id": "1", "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWrite the report."},
        {"from": "gpt", "value": "FINDINGS: Clear lungs. IMPRESSION: Normal."}]}

FILE holds one such object per line, or is a JSON list of them (.json). The original's
`test_data.json` spells the same with `images` (a list) and `messages` of `role` and `content`; both
spellings are read in both files.

The image is a path relative to `images` (FILE's directory unless given). The marker `<image>` says
that the image belongs to the question; it is taken out, and the image always comes first. A row of
several images or turns is an error of that row: a record has one of each.
"""

import re
from pathlib import Path
from typing import Any

from unix_jax.data.records import Record
from unix_jax.data.report_sections import split_report
from unix_jax.data.sources.fields import image_path, report_fields, text_field
from unix_jax.data.sources.lines import JsonLines
from unix_jax.errors import DataError

IMAGE_MARKER = "<image>"

_SIDES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_AROUND_MARKER = re.compile(rf"\s*{IMAGE_MARKER}\s*")


class ConversationsSource:
    """Records of a file of conversations."""

    def __init__(
        self, file: str | Path, split: str | None = None, image_root: str | Path | None = None
    ) -> None:
        """Indexes the file; see `ManifestSource`."""
        self._lines = JsonLines(Path(file), split)
        self.unsplit = self._lines.unsplit
        self._root = Path(image_root) if image_root is not None else Path(file).parent

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Record:
        row, where = self._lines.row(index)
        image = _image(row, where)
        question, answer = _turns(row, where)
        prompt = _without_marker(question, 0 if image is None else 1, where)
        findings, impression = split_report(answer)
        fields = report_fields(row, where)
        fields["findings"] = fields["findings"] or findings
        fields["impression"] = fields["impression"] or impression
        name = text_field(row, "id", where) or ("" if image is None else str(image))
        return Record(
            key=name or self._lines.key(index),
            image=None if image is None else image_path(image, self._root, where),
            prompt=prompt,
            answer=answer,
            **fields,
        )


def _image(row: dict[str, Any], where: str) -> Any:
    """The only image of a row, or None."""
    name = _spelling(row, ("image", "images"), where)
    image = row.get(name)
    if not isinstance(image, list):
        return image
    if len(image) > 1:
        raise DataError(f"{where}: {name}: expected one image, found {len(image)}")
    return image[0] if image else None


def _turns(row: dict[str, Any], where: str) -> tuple[str, str]:
    """(question, answer)."""
    name = _spelling(row, ("conversations", "messages"), where)
    side, text = ("from", "value") if name == "conversations" else ("role", "content")
    turns = row.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(
            f"{where}: {name}: expected a list of {{{side}, {text}}}, found {turns!r:.60}"
        )
    sides = [_SIDES.get(str(turn.get(side))) for turn in turns]
    if sides != ["human", "gpt"]:
        found = [str(turn.get(side))[:20] for turn in turns[:6]]
        first, second = ("human", "gpt") if name == "conversations" else ("user", "assistant")
        raise DataError(f"{where}: {name}: expected {side} {first}, then {second}, found {found}")
    question, answer = (text_field(turn, text, where) for turn in turns)
    if not answer:
        raise DataError(f"{where}: {name}: expected an answer, found an empty one")
    if IMAGE_MARKER in answer:
        raise DataError(f"{where}: {name}: expected no {IMAGE_MARKER} in the answer")
    return question, answer


def _spelling(row: dict[str, Any], names: tuple[str, str], where: str) -> str:
    """The one of two names that the row has, or the first."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise DataError(f"{where}: expected {names[0]} or {names[1]}, found both")
    return found[0] if found else names[0]


def _without_marker(question: str, images: int, where: str) -> str:
    found = question.count(IMAGE_MARKER)
    if found != images:
        raise DataError(
            f"{where}: question: expected {images} {IMAGE_MARKER} (one for each image), "
            f"found {found}"
        )
    return _AROUND_MARKER.sub(" ", question).strip()

"""`conversations:FILE?images=DIR`: images with questions and answers, a conversation per row.

    {"id": "1", "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWrite the report."},
        {"from": "gpt", "value": "FINDINGS: Clear lungs. IMPRESSION: Normal."}]}

FILE holds one such object per line, or is a JSON list of them (.json). The original's
`test_data.json` spells the same with `images` (a list) and `messages` of `role` and `content`; both
spellings are read in both files.

Images are paths relative to `images` (by default FILE's directory), a path or a list of paths. The
markers `<image>` in a question are the positions of the images, one for each image, in order; they
are removed. A question's only image comes before its text; of several, each stays at its marker.
Questions and answers alternate; the loss covers the answers.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unix_jax.data.records import Record, Turn
from unix_jax.data.report_sections import split_report
from unix_jax.data.sources.fields import image_path, report_fields, text_field
from unix_jax.data.sources.lines import JsonLines
from unix_jax.errors import DataError
from unix_jax.storage.bucket_path import any_path, local_file

IMAGE_MARKER = "<image>"

_SIDES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_AROUND_MARKER = re.compile(rf"\s*{IMAGE_MARKER}\s*")


class ConversationsSource:
    """Records of a file of conversations."""

    def __init__(
        self, file: str | Path, split: str | None = None, image_root: str | Path | None = None
    ) -> None:
        """Indexes the file; see `ManifestSource`."""
        given = any_path(file)
        self._lines = JsonLines(local_file(given), split)
        self.unsplit = self._lines.unsplit
        self._root = any_path(image_root) if image_root is not None else given.parent

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
        images = _images(row, where)
        return text_field(row, "id", where) or (
            str(images[0]) if images else self._lines.key(index)
        )

    def __getitem__(self, index: int) -> Record:
        row, where = self._lines.row(index)
        images = [image_path(image, self._root, where) for image in _images(row, where)]
        turns = _turns(row, len(images), where)
        first = turns[0]
        findings, impression = split_report(first.answer)
        fields = report_fields(row, where)
        fields["findings"] = fields["findings"] or findings
        fields["impression"] = fields["impression"] or impression
        return Record(
            key=self._key(index, row, where),
            image=images[0] if images else None,
            more_images=tuple(images[1:]),
            prompt=first.text,
            answer=first.answer,
            turns=turns if len(turns) > 1 or len(images) > 1 else (),
            **fields,
        )


def _images(row: dict[str, Any], where: str) -> list[Any]:
    """The images of a row as it has them."""
    images = row.get(_spelling(row, ("image", "images"), where))
    if isinstance(images, list):
        return images
    return [] if images is None else [images]


def _turns(row: dict[str, Any], images: int, where: str) -> tuple[Turn, ...]:
    """The turns of a row with this number of images."""
    name = _spelling(row, ("conversations", "messages"), where)
    side, text = ("from", "value") if name == "conversations" else ("role", "content")
    turns = row.get(name)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(
            f"{where}: {name}: expected a list of {{{side}, {text}}}, found {turns!r:.60}"
        )
    sides = [_SIDES.get(str(turn.get(side))) for turn in turns]
    if not sides or sides != ["human", "gpt"] * (len(sides) // 2):
        found = [str(turn.get(side))[:20] for turn in turns[:6]]
        first, second = ("human", "gpt") if name == "conversations" else ("user", "assistant")
        raise DataError(
            f"{where}: {name}: expected {side} {first}, then {second}, found {found}; each "
            "question has an answer"
        )
    texts = [text_field(turn, text, where) for turn in turns]
    questions, answers = texts[::2], texts[1::2]
    for answer in answers:
        if not answer:
            raise DataError(f"{where}: {name}: expected an answer, found an empty one")
        if IMAGE_MARKER in answer:
            raise DataError(f"{where}: {name}: expected no {IMAGE_MARKER} in the answer")
    markers = sum(question.count(IMAGE_MARKER) for question in questions)
    if markers != images:
        raise DataError(
            f"{where}: question: expected {images} {IMAGE_MARKER} (one for each image), "
            f"found {markers}"
        )
    found_turns, used = [], 0
    for question, answer in zip(questions, answers, strict=True):
        parts = _question(question, used)
        if not parts and len(questions) > 1:
            raise DataError(f"{where}: {name}: expected a question, found an empty one")
        found_turns.append(Turn(parts, answer))
        used += question.count(IMAGE_MARKER)
    return tuple(found_turns)


def _question(text: str, first: int) -> tuple[str | int, ...]:
    """The texts and images of a question; its first image has the index `first`."""
    pieces = text.split(IMAGE_MARKER)
    if len(pieces) <= 2:
        # A single image comes first, at any position of its marker.
        joined = _AROUND_MARKER.sub(" ", text).strip()
        return (*range(first, first + len(pieces) - 1), *([joined] if joined else []))
    parts: list[str | int] = []
    for number, piece in enumerate(pieces):
        parts += [first + number - 1] if number else []
        parts += [piece.strip()] if piece.strip() else []
    return tuple(parts)


def _spelling(row: dict[str, Any], names: tuple[str, str], where: str) -> str:
    """The one of two field names that the row has, or the first."""
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise DataError(f"{where}: expected {names[0]} or {names[1]}, found both")
    return found[0] if found else names[0]

"""One example of any source: an X-ray with its texts, and what a source of them must offer.

The image is bytes of a file or a path, never pixels: a record is cheap to make, to pickle and to
skip, and whoever needs the picture decodes it (`record_image`).
"""

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unix_jax.errors import DataError, ImageError
from unix_jax.images import load_image
from unix_jax.instructions import Instructions


@dataclasses.dataclass(frozen=True)
class Record:
    """One X-ray and what is known of it; an absent text is "", an absent tuple ().

    key: names the record in its source, for logs and errors.
    image: the bytes of an image file, its path, or None for a text alone.
    findings, impression: the report's sections, without their headings.
    captions: texts to draw the image from, each sufficient alone.
    view: PA, AP, LATERAL, ... as the source has it.
    patient, split: for splits that no patient crosses.
    labels: names of what is present.
    prompt, answer: the two sides of a conversation, verbatim; the answer then is the report.
    """

    key: str
    image: bytes | Path | None = dataclasses.field(default=None, repr=False)
    findings: str = ""
    impression: str = ""
    captions: tuple[str, ...] = ()
    view: str = ""
    patient: str = ""
    split: str = ""
    labels: tuple[str, ...] = ()
    prompt: str = ""
    answer: str = ""


@typing.runtime_checkable
class RecordSource(typing.Protocol):
    """Random access to records; picklable, and safe to read from several threads.

    Opening reads an index at most. A broken row raises DataError when it is read, not before, so
    that a run can skip and count it.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Subset:
    """The records of a source at these indices, in their order."""

    source: RecordSource
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[checked_index(index, len(self))])]


def report_text(record: Record) -> str:
    """The report that understanding is trained on; "" if there is none.

    A conversation's answer as it is; else "FINDINGS: ... IMPRESSION: ..." when both sections are
    there, or the only one under its own heading.
    """
    if record.answer:
        return record.answer
    parts = (("FINDINGS", record.findings), ("IMPRESSION", record.impression))
    return " ".join(f"{heading}: {text}" for heading, text in parts if text)


def instructions_for(record: Record, instructions: Instructions) -> tuple[str, ...]:
    """What may be asked for the record's report: its own prompt, or those for its sections.

    The sections are those of `report_text`; where an answer stands in their place they are what its
    source found in it.
    """
    if record.prompt:
        return (record.prompt,)
    return instructions.fitting(record.findings, record.impression)


def captions_of(record: Record) -> tuple[str, ...]:
    """The texts to draw the image from: the first kind of text that the record has.

    In this order: its captions, its impression, its findings, its answer, its labels as one list.
    """
    if record.captions:
        return record.captions
    labels = ", ".join(label for label in record.labels if label)
    texts = (record.impression, record.findings, record.answer, f"{labels}." if labels else "")
    return next(((text,) for text in texts if text), ())


def record_image(record: Record) -> Image.Image:
    """The decoded picture, mode RGB.

    Raises:
      DataError: no image, or one that cannot be read; it names the record.
    """
    if record.image is None:
        raise DataError(f"{record.key}: expected an image, found none")
    try:
        return load_image(record.image)
    except ImageError as error:
        raise DataError(f"{record.key}: {error}") from error


def image_bytes(record: Record) -> bytes | None:
    """The image file's bytes, undecoded; None for a record without an image.

    Raises:
      DataError: the file cannot be read.
    """
    if not isinstance(record.image, Path):
        return record.image
    try:
        return record.image.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{record.key}: {record.image}: cannot be read: {reason}") from error


def checked_index(index: int, length: int) -> int:
    """A row's number from 0, for an `index` that may count from the end.

    Raises:
      IndexError: out of range, which also ends a loop over a source.
    """
    found = index + length if index < 0 else index
    if not 0 <= found < length:
        raise IndexError(f"record {index} of {length}")
    return found

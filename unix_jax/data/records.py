"""The record of any source, an X-ray with its texts, and the interface of a source.

The image is the bytes of a file or a path, never pixels: a record is cheap to create, to pickle and
to skip, and callers that need the image decode it (`record_image`).
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from unix_jax.errors import DataError, ImageError
from unix_jax.instructions import Instructions
from unix_jax.preprocessing.images import load_image, load_levels, most_bytes
from unix_jax.storage.bucket_path import BucketPath


@dataclasses.dataclass(frozen=True)
class Turn:
    """A question and its answer in a conversation.

    question: its texts and images in their order; a number is an index into `Record.images`.
    """

    question: tuple[str | int, ...]
    answer: str

    @property
    def text(self) -> str:
        """The question without its images."""
        return " ".join(part for part in self.question if isinstance(part, str))

    @property
    def images(self) -> tuple[int, ...]:
        """Indices of the question's images."""
        return tuple(part for part in self.question if isinstance(part, int))


@dataclasses.dataclass(frozen=True)
class Record:
    """One X-ray and its texts; an absent text is "", an absent tuple ().

    key: names the record in its source, for logs and errors.
    image: the bytes of an image file, its path, or None for a record without one.
    findings, impression: the report's sections, without their headings.
    captions: texts to generate the image from, each sufficient by itself.
    view: PA, AP, LATERAL, ... as the source has it.
    patient, split: for splits without common patients.
    labels: names of the present findings.
    prompt, answer: the two sides of a conversation, verbatim; the answer then is the report.
    turns: all of a conversation that has several turns or images; () for others. `prompt` and
      `answer` then are those of the first turn.
    more_images: the images after the first one, which is `image`, in the order of their markers.
    condition: the image that `image` is generated from, such as that of the previous study.
    report_problem: why a report that exists gives no findings and no impression
      (`report_sections.sections_with_problem`); "" for others.
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
    turns: tuple[Turn, ...] = ()
    more_images: tuple[bytes | Path, ...] = dataclasses.field(default=(), repr=False)
    condition: bytes | Path | None = dataclasses.field(default=None, repr=False)
    report_problem: str = ""

    @property
    def images(self) -> tuple[bytes | Path, ...]:
        """All images, in their order; () for a text alone."""
        return () if self.image is None else (self.image, *self.more_images)


@typing.runtime_checkable
class RecordSource(typing.Protocol):
    """Random access to records; picklable, and safe to read from several threads.

    Opening reads at most an index. A broken row raises DataError when it is read, not before, so
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

    A conversation's (first) answer unchanged; else "FINDINGS: ... IMPRESSION: ..." if both sections
    exist, or the only one under its own heading.
    """
    if record.answer:
        return record.answer
    parts = (("FINDINGS", record.findings), ("IMPRESSION", record.impression))
    return " ".join(f"{heading}: {text}" for heading, text in parts if text)


def instructions_for(record: Record, instructions: Instructions) -> tuple[str, ...]:
    """The possible instructions for the record's report: its own prompt, or those for its sections.

    The sections are those of `report_text`; with an answer instead, they are what its source found
    in it.
    """
    if record.prompt:
        return (record.prompt,)
    return instructions.fitting(record.findings, record.impression)


def captions_of(record: Record) -> tuple[str, ...]:
    """The texts to generate the image from: the first kind of text that the record has.

    In this order: its captions, its impression, its findings, its answer, its labels as one list.
    """
    if record.captions:
        return record.captions
    labels = ", ".join(label for label in record.labels if label)
    texts = (record.impression, record.findings, record.answer, f"{labels}." if labels else "")
    return next(((text,) for text in texts if text), ())


def record_image(record: Record, number: int = 0) -> Image.Image:
    """A decoded image, mode RGB; `number` is its index in `record.images`.

    Raises:
      DataError: no image, or one that cannot be read; it names the record.
    """
    return _decoded(record, number, load_image)


def record_levels(record: Record, number: int = 0, draft_side: int | None = None) -> Image.Image:
    """Like `record_image`, but a grayscale image has mode L; arguments as of `load_levels`."""
    return _decoded(record, number, functools.partial(load_levels, draft_side=draft_side))


def _decoded(
    record: Record, number: int, load: Callable[[bytes | Path], Image.Image]
) -> Image.Image:
    if record.image is None:
        raise DataError(f"{record.key}: expected an image, found none")
    try:
        return load(record.images[number])
    except ImageError as error:
        raise DataError(f"{record.key}: {error}") from error


def question_images(record: Record) -> list[Image.Image]:
    """The decoded images of the record's (first) question, as `record_levels` returns them.

    Raises:
      DataError: as `record_image`.
    """
    numbers = record.turns[0].images if record.turns else (0,)
    return [record_levels(record, number) for number in numbers or (0,)]


def image_bytes(record: Record) -> bytes | None:
    """The (first) image file's bytes, undecoded; None for a record without an image.

    Raises:
      DataError: the file cannot be read.
    """
    return None if record.image is None else _bytes_of(record.image, record.key)


def with_image_bytes(record: Record) -> Record:
    """The record with the bytes of all its image files, undecoded, instead of their paths.

    Raises:
      DataError: a file cannot be read.
    """
    return map_images(record, lambda image: _bytes_of(image, record.key))


def images_read_ahead(record: Record) -> Record:
    """The record with the content of its images that are in buckets, undecoded.

    An image that cannot be read raises its error when it is decoded.
    """

    def read(image: bytes | Path) -> bytes | Path:
        return image.read_ahead(most_bytes() + 1) if isinstance(image, BucketPath) else image

    return map_images(record, read)


def map_images(record: Record, function: Callable[[bytes | Path], bytes | Path]) -> Record:
    """The record with `function` applied to each of its images, the condition included."""
    first, condition, *others = (
        None if image is None else function(image)
        for image in (record.image, record.condition, *record.more_images)
    )
    more = tuple(image for image in others if image is not None)
    return dataclasses.replace(record, image=first, condition=condition, more_images=more)


def _bytes_of(image: bytes | Path, key: str) -> bytes:
    if not isinstance(image, Path):
        return image
    try:
        return image.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{key}: {image}: cannot be read: {reason}") from error


def checked_index(index: int, length: int) -> int:
    """A row's number from 0, for an `index` that may count from the end.

    Raises:
      IndexError: out of range, which also ends a loop over a source.
    """
    found = index + length if index < 0 else index
    if not 0 <= found < length:
        raise IndexError(f"record {index} of {length}")
    return found

"""The bundled model and example X-rays, which come with the package."""

import dataclasses

from unix_jax.data.records import Record, captions_of, image_bytes
from unix_jax.data.sources import open_source
from unix_jax.errors import UniXError
from unix_jax.storage.bundled import ROOT

SPLIT = "test"  # records of patients that the model was not trained on
EXAMPLES = 6
NO_FINDING = ("No Finding",)

# The labels of the single files, which examples/ATTRIBUTION.md lists.
LABELS = {
    "nih_0823b2557d1225f4.jpg": NO_FINDING,
    "nih_a1f696e719425b42.jpg": ("Atelectasis", "Cardiomegaly", "Pneumonia"),
    "nih_a44e40f80bea8dec.jpg": ("Consolidation", "Effusion", "Infiltration", "Pneumonia"),
}


@dataclasses.dataclass(frozen=True)
class Example:
    """An X-ray file, its name on the page, and its labels in the data set, if they are known."""

    name: str
    data: bytes = dataclasses.field(repr=False)
    labels: tuple[str, ...] = ()


def checkpoint_path(given: str | None) -> str:
    """The given directory, or the bundled nano model.

    Raises:
      UniXError: no directory is given, and no model is bundled.
    """
    if given is not None:
        return given
    nano = ROOT / "examples" / "nano"
    if not nano.is_dir():
        raise UniXError(f"--checkpoint: expected a directory; found no bundled model at {nano}")
    return str(nano)


def example_xrays() -> list[Example]:
    """Up to six examples: the single files first, then held-out records by their labels."""
    files = sorted((ROOT / "examples").glob("*.jpg"))[: EXAMPLES // 2]
    found = [
        Example(f"X-ray {i + 1}", file.read_bytes(), LABELS.get(file.name, ()))
        for i, file in enumerate(files)
    ]
    for record in _distinct(EXAMPLES - len(found)):
        data = image_bytes(record)
        if data is not None:
            found.append(Example(", ".join(record.labels), data, record.labels))
    return found


def example_texts(count: int = 4) -> list[str]:
    """Texts like those that the bundled model was trained on."""
    captions = [captions_of(record)[0] for record in _distinct(count) if captions_of(record)]
    return captions or ["No acute cardiopulmonary process.", "Large right pleural effusion."]


def _distinct(count: int) -> list[Record]:
    """The first record of each set of labels, that without findings first, then by their number."""
    directory = ROOT / "examples" / "cxr"
    if not directory.is_dir():
        return []
    by_labels: dict[tuple[str, ...], Record] = {}
    for record in open_source(f"manifest:{directory}", SPLIT):  # type: ignore[attr-defined]
        if record.labels:
            by_labels.setdefault(record.labels, record)
    by_number = sorted(by_labels.values(), key=lambda record: len(record.labels))
    return sorted(by_number, key=lambda record: record.labels != NO_FINDING)[:count]

"""Creates a small data set in the three formats of docs/finetuning.md.

    python examples/make_own_data.py OUT [--count 100]

OUT then contains the same bundled X-rays three times: `table/xrays.csv` beside `table/images`,
`folder/metadata.csv` in the layout of Hugging Face's ImageFolder, and `mimic`, with the tables,
images and reports of MIMIC-CXR-JPG and MIMIC-CXR. 80 % of the X-rays are for training, 10 % for
validation, 10 % for testing. The texts are not a radiologist's: they state the label of the image,
in a wording that the nano model has not been trained on.
"""

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unix_jax.errors import DataError, UniXError
from unix_jax.storage.bundled import example
from unix_jax.storage.files import atomic_directory

NORMAL = "No Finding"
SHARES = {"train": 0.8, "validate": 0.1, "test": 0.1}


def texts(labels: Sequence[str]) -> tuple[str, str]:
    """(findings, impression) of the labels of an X-ray."""
    if list(labels) == [NORMAL]:
        return "The lungs are clear. The heart is normal.", "No finding."
    named = ["COVID-19 pneumonia" if name == "COVID-19" else name.lower() for name in labels]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
    return f"There is {listed}.", f"{listed[0].upper()}{listed[1:]}."


def chosen(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Evenly spaced rows of each split, so that both hospitals occur in all of them.

    Raises:
      DataError: more rows of a split than exist.
    """
    kept = []
    for split, share in SHARES.items():
        found = [row for row in rows if row["split"] == split]
        wanted = max(round(count * share), 1)
        if wanted > len(found):
            raise DataError(f"count: expected at most {len(found)} of {split}, found {wanted}")
        kept += [found[i * len(found) // wanted] for i in range(wanted)]
    return kept


def write_table(file: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a CSV file."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])


def copied(source: Path, target: Path) -> None:
    """Copies a file to a directory that may not exist yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def make_table(images: Path, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """A CSV file with one X-ray per row, and a directory of images."""
    for row in rows:
        copied(images / row["image"], out / row["image"])
    header = ["image", "findings", "impression", "patient", "split"]
    body = [
        [Path(row["image"]).name, *texts(row["labels"]), row["patient"], row["split"]]
        for row in rows
    ]
    write_table(out / "xrays.csv", header, body)


def make_folder(images: Path, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Hugging Face's ImageFolder: images by split, and metadata.csv with a text per image."""
    body = []
    for row in rows:
        name = f"{row['split']}/{Path(row['image']).name}"
        copied(images / row["image"], out / name)
        findings, impression = texts(row["labels"])
        body.append([name, f"FINDINGS: {findings} IMPRESSION: {impression}", row["split"]])
    write_table(out / "metadata.csv", ["file_name", "text", "split"], body)


def make_mimic(images: Path, rows: Sequence[dict[str, Any]], out: Path) -> None:
    """The tables, images and reports of MIMIC-CXR-JPG and MIMIC-CXR, with one image per study."""
    metadata, splits = [], []
    for number, row in enumerate(rows):
        subject, study, dicom = f"{10000032 + number}", f"{50414267 + 11 * number}", f"{number:08x}"
        folder = out / "files" / f"p{subject[:2]}" / f"p{subject}"
        copied(images / row["image"], folder / f"s{study}" / f"{dicom}.jpg")
        findings, impression = texts(row["labels"])
        report = f" FINAL REPORT\n FINDINGS:\n\n {findings}\n\n IMPRESSION:\n\n {impression}\n"
        (folder / f"s{study}.txt").write_text(report, encoding="utf-8")
        metadata.append([dicom, subject, study, row["view"]])
        splits.append([dicom, study, subject, row["split"]])
    header = ["dicom_id", "subject_id", "study_id", "ViewPosition"]
    write_table(out / "mimic-cxr-2.0.0-metadata.csv", header, metadata)
    header = ["dicom_id", "study_id", "subject_id", "split"]
    write_table(out / "mimic-cxr-2.0.0-split.csv", header, splits)


def make(out: Path, count: int) -> int:
    """Writes the three formats to a new directory; returns the number of X-rays."""
    source = Path(example("cxr"))
    lines = (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = chosen([json.loads(line) for line in lines], count)
    with atomic_directory(out) as directory:
        for name, write in (("table", make_table), ("folder", make_folder), ("mimic", make_mimic)):
            (directory / name).mkdir()
            write(source, rows, directory / name)
        shutil.copyfile(source / "ATTRIBUTION.md", directory / "ATTRIBUTION.md")
    return len(rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="new directory")
    parser.add_argument("--count", type=int, default=100, help="number of X-rays (default: 100)")
    arguments = parser.parse_args()
    try:
        count = make(arguments.out, arguments.count)
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {count} X-rays in each of table, folder and mimic")
    return 0


if __name__ == "__main__":
    sys.exit(main())

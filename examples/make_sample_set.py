"""Creates the bundled sample set: `python examples/make_sample_set.py SOURCE_MANIFEST_DIR OUT`.

Takes the images of a manifest directory (see docs/data.md) that may be passed on, NIH
ChestX-ray14 (`nih_*`) and Hannover Medical School (`hann_*`), shrinks them, and writes short
reports made from their labels by a fixed rule. The reports are no radiologist's: they say what
the label says and nothing else, in few words, so that a small model can learn them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unix_jax.errors import DataError, UniXError
from unix_jax.preprocessing.images import load_image
from unix_jax.storage.files import atomic_directory

MAX_SIDE = 320
QUALITY = 85
PREFIXES = ("nih_", "hann_")

# Source label -> unified label, sentence of the findings, words of the impression. The order is
# the order in which a report mentions them.
LABELS = {
    "Cardiomegaly": ("Cardiomegaly", "The heart is enlarged.", "cardiomegaly"),
    "COVID-19": ("COVID-19", "There is COVID-19 pneumonia.", "COVID-19 pneumonia"),
    "Pneumonia": ("Pneumonia", "There is pneumonia.", "pneumonia"),
    "Consolidation": ("Consolidation", "There is consolidation.", "consolidation"),
    "Infiltration": ("Infiltration", "There is an infiltrate.", "infiltrate"),
    "Edema": ("Edema", "There is pulmonary edema.", "pulmonary edema"),
    "Atelectasis": ("Atelectasis", "There is atelectasis.", "atelectasis"),
    "Effusion": ("Pleural Effusion", "There is a pleural effusion.", "pleural effusion"),
    "Pneumothorax": ("Pneumothorax", "There is a pneumothorax.", "pneumothorax"),
    "Pleural_Thickening": (
        "Pleural Thickening", "There is pleural thickening.", "pleural thickening"
    ),
    "Mass": ("Mass", "There is a mass.", "mass"),
    "Nodule": ("Nodule", "There is a nodule.", "nodule"),
    "Emphysema": ("Emphysema", "There is emphysema.", "emphysema"),
    "Fibrosis": ("Fibrosis", "There is fibrosis.", "fibrosis"),
    "Hernia": ("Hernia", "There is a hernia.", "hernia"),
}  # fmt: skip
NORMAL = "No Finding"
NORMAL_FINDINGS = (
    "The heart is normal in size. The lungs are clear. There is no pleural effusion. "
    "There is no pneumothorax."
)
NORMAL_IMPRESSION = "No acute finding."


def short_report(labels: Sequence[str]) -> tuple[str, str, list[str]]:
    """(findings, impression, unified labels) of the source's labels.

    Raises:
      DataError: no label, an unknown one, or "No Finding" beside others.
    """
    if list(labels) == [NORMAL]:
        return NORMAL_FINDINGS, NORMAL_IMPRESSION, [NORMAL]
    unknown = [label for label in labels if label not in LABELS]
    if unknown or not labels:
        raise DataError(f"labels: expected {NORMAL!r} alone or known findings, found {labels}")
    rows = [row for label, row in LABELS.items() if label in labels]
    named = [words for _, _, words in rows]
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if named[1:] else named)
    findings = " ".join(sentence for _, sentence, _ in rows)
    return findings, listed[0].upper() + listed[1:] + ".", [label for label, _, _ in rows]


def make(source: Path, out: Path) -> int:
    """Writes images, manifest and attribution; returns the number of images."""
    lines = (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["image"])
    rows = [row for row in rows if Path(row["image"]).name.startswith(PREFIXES)]
    with atomic_directory(out) as directory:
        (directory / "images").mkdir()
        made = []
        for row in rows:
            image = load_image(source / row["image"]).convert("L")
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
            image.save(directory / row["image"], "JPEG", quality=QUALITY, optimize=True)
            made.append(_row(row))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (directory / "manifest.jsonl").write_text(text, encoding="utf-8")
        (directory / "ATTRIBUTION.md").write_text(_attribution(rows), encoding="utf-8")
    return len(rows)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    findings, impression, labels = short_report(row["labels"])
    kept = ("view", "source", "license", "split", "patient", "upstream")
    texts = {"findings": findings, "impression": impression, "labels": labels}
    return {"image": row["image"], **texts, **{k: row[k] for k in kept}, "text_kind": "labels"}


_ATTRIBUTION = """# Origin of the sample set

{count} frontal chest X-rays, converted to 8-bit grayscale JPEG with a longest side of {side}
pixels by `examples/make_sample_set.py`. **The texts are not radiologists' reports**: the same
program made them from the labels. In `manifest.jsonl`, `labels` are unified names and `source` is
the original image. Splits do not share patients. For trying the software only; not for clinical
use.

## `nih_*`: NIH ChestX-ray14 ({nih} images)

The NIH Clinical Center provided the data set and places no restriction on its use; it asks for this
attribution. Labels were mined from reports by a program, and are noisy. Download site:
<https://nihcc.app.box.com/v/ChestXray-NIHCC>

X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers. *ChestX-ray8: Hospital-scale Chest X-ray
Database and Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax
Diseases.* IEEE CVPR 2017, pages 3462-3471.

## `hann_*`: COVID-19 Image Repository ({hann} images)

H. B. Winther, H. Laser, S. Gerbel, S. K. Maschke, J. B. Hinrichs, J. Vogel-Claussen, F. K. Wacker,
M. M. Höper, B. C. Meyer (Hannover Medical School). *COVID-19 Image Repository*, 2020.
<https://doi.org/10.6084/m9.figshare.12275009>,
<https://github.com/ml-workgroup/covid-19-image-repository>. Licensed under CC BY 3.0,
<https://creativecommons.org/licenses/by/3.0/>. Changes: converted,
shrunk, recompressed; texts added.

## Images

| file | original | labels of the source | licence |
|---|---|---|---|
"""


def _attribution(rows: list[dict[str, Any]]) -> str:
    nih, hann = (
        sum(Path(row["image"]).name.startswith(prefix) for row in rows) for prefix in PREFIXES
    )
    head = _ATTRIBUTION.format(count=len(rows), side=MAX_SIDE, nih=nih, hann=hann)
    lines = (
        f"| `{Path(row['image']).name}` | `{row['source']}` | {', '.join(row['labels'])} "
        f"| {row['license']} |\n"
        for row in rows
    )
    return head + "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="directory with manifest.jsonl and images/")
    parser.add_argument("out", type=Path, help="new directory")
    arguments = parser.parse_args()
    try:
        count = make(arguments.source, arguments.out)
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {count} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A made-up MIMIC-CXR-JPG folder from bundled X-rays: the layout of the real one, other texts."""

import csv
import json
import shutil
from pathlib import Path

from support.paths import ROOT

CXR = ROOT / "examples" / "cxr"

# Forms of the dataset's reports; each names what `clean` has to find.
_FORMS = (
    " EXAMINATION:  CHEST (PORTABLE AP)\n \n INDICATION:  ___ year old with cough\n \n"
    " COMPARISON:  ___.\n \n FINDINGS:\n \n {findings}\n \n IMPRESSION:\n \n {impression}\n",
    " CHEST, TWO VIEWS:  {findings}\n \n IMPRESSION:  {impression}\n",
    " INDICATION:  Fever.\n \n COMPARISON:  None.\n \n {findings}  {impression}\n",
    " FINDINGS AND IMPRESSION:  {findings}\n",
)
_WET_READ = " WET READ: ___ ___ 5:10 PM\n  No acute process.\n" + "_" * 70 + "\n"


def make_mimic(root: Path, studies: int = 40) -> tuple[Path, Path]:
    """(folder of the images and tables, folder of the reports); a lateral image per fourth study.

    Of `studies`, 80 % are train, the others validate and test in turn.
    """
    jpg, reports = root / "mimic-cxr-jpg", root / "mimic-cxr"
    rows = [json.loads(line) for line in (CXR / "manifest.jsonl").read_text().splitlines()]
    metadata, splits, labels = [], [], []
    for number, row in enumerate(rows[:studies]):
        subject, study = f"{10000032 + number}", f"{50414267 + 11 * number}"
        part = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        split = "train" if number % 5 else ("validate" if number % 10 else "test")
        for view in ("PA" if number % 2 else "AP", *(["LATERAL"] if number % 4 == 0 else [])):
            dicom = f"{number:08x}-{view.lower()}"
            image = jpg / part / f"s{study}" / f"{dicom}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CXR / row["image"], image)
            metadata.append([dicom, subject, study, view])
            splits.append([dicom, study, subject, split])
        labels.append([subject, study, "1.0" if "Edema" in row["labels"] else ""])
        text = _FORMS[number % len(_FORMS)].format(**row)
        report = reports / part / f"s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        head = (_WET_READ if number % 3 == 0 else "") + " " * 33 + "FINAL REPORT\n"
        report.write_text(head + text)
    for name, header, body in (
        ("metadata", ["dicom_id", "subject_id", "study_id", "ViewPosition"], metadata),
        ("split", ["dicom_id", "study_id", "subject_id", "split"], splits),
        ("chexpert", ["subject_id", "study_id", "Edema"], labels),
    ):
        with (jpg / f"mimic-cxr-2.0.0-{name}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows([header, *body])
    return jpg, reports

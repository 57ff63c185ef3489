"""Makes what the nano model learns to read: `python examples/make_nano_reports.py OUT`.

A directory in the manifest layout (docs/data.md) from the bundled X-rays. Each training image has
several rows: reports in the styles of `nano_texts`, with FINDINGS and IMPRESSION, with one of them
alone, and more rows if it has no findings. A few percent of the rows are images that are no
radiograph: blank, noise, and training X-rays with inverted gray levels. Held-out images have one
row, as in the bundled set.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from nano_texts import NORMAL, STYLES, UNREADABLE, UNREADABLE_IMPRESSION, report
from PIL import Image, ImageOps

from unix_jax.storage.files import atomic_directory

ROOT = Path(__file__).parents[1]
# How many images of each kind that is no radiograph.
UNREADABLE_IMAGES = {"blank": 64, "noise": 32, "inverted": 32}
# Rows of an X-ray without findings, and of others: a report in doubt should say that there is
# nothing, which is right most often.
NORMAL_ROWS, ROWS = 6, 3


def sections(findings: str, impression: str, number: int) -> dict[str, str]:
    """Both sections in half of the rows, FINDINGS alone in a third, IMPRESSION alone in a sixth."""
    if number % 6 == 3:
        return {"impression": impression}
    if number % 2:
        return {"findings": findings}
    return {"findings": findings, "impression": impression}


def rows_of(row: dict[str, Any], number: int, normal_rows: int) -> list[dict[str, Any]]:
    """The training rows of one bundled X-ray."""
    kept = {k: row[k] for k in ("image", "labels", "view", "split", "patient")}
    made = []
    for copy in range(normal_rows if row["labels"] == [NORMAL] else ROWS):
        texts = report(row["labels"], (number + copy) % STYLES)
        made.append(
            kept | {"key": f"{row['image']}#{copy}"} | sections(*texts, number + number // 3 + copy)
        )
    return made


def unreadable(kind: str, number: int, xray: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One image that is no radiograph."""
    if kind == "inverted":
        return ImageOps.invert(xray)
    side = (int(rng.integers(96, 320)), int(rng.integers(96, 320)))
    if number // 2 % 2:
        # Square or nearly so: others have bands in the ViT's input, by which they could be told.
        side = (side[0], side[0] + 2 * (number % 9 - 4))
    if kind == "blank":
        # Evenly spread: of a gray level that is far from all of these, nothing is learned.
        level = round(255 * number / (UNREADABLE_IMAGES[kind] - 1))
        return Image.new("L", side, level)
    cell = int(rng.integers(1, 9))
    small = (side[1] // cell + 1, side[0] // cell + 1)
    spread = rng.uniform(20, 90)
    levels = rng.normal(128, spread, small) if number % 2 else rng.integers(0, 256, small)
    noise = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return noise.resize(side, Image.Resampling.NEAREST)


def make(source: Path, out: Path, normal_rows: int = NORMAL_ROWS) -> int:
    """Writes manifest and images; returns the number of rows."""
    lines = (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    bundled = [json.loads(line) for line in lines]
    rng = np.random.default_rng(0)
    with atomic_directory(out) as directory:
        (directory / "images").mkdir()
        rows: list[dict[str, Any]] = []
        for number, row in enumerate(bundled):
            shutil.copyfile(source / row["image"], directory / row["image"])
            rows += rows_of(row, number, normal_rows) if row["split"] == "train" else [row]
        train = [row for row in bundled if row["split"] == "train"]
        chosen = rng.choice(len(train), max(UNREADABLE_IMAGES.values()), replace=False)
        for kind, text in UNREADABLE.items():
            for number, index in enumerate(chosen[: UNREADABLE_IMAGES[kind]]):
                name = f"images/{kind}_{number:02d}.png"
                xray = Image.open(source / train[index]["image"]).convert("L")
                unreadable(kind, number, xray, rng).save(directory / name)
                texts = sections(text, UNREADABLE_IMPRESSION, 2 * (number % 2) + number // 2 % 2)
                rows.append({"image": name, "split": "train", "labels": [kind]} | texts)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / "manifest.jsonl").write_text(text, encoding="utf-8")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="new directory")
    parser.add_argument("--source", type=Path, default=ROOT / "examples" / "cxr")
    parser.add_argument(
        "--normal-rows", type=int, default=NORMAL_ROWS,
        help="rows of an X-ray without findings; others have 3",
    )  # fmt: skip
    a = parser.parse_args()
    print(f"{a.out}: {make(a.source, a.out, a.normal_rows)} rows")


if __name__ == "__main__":
    main()

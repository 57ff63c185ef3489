"""Makes what the nano model learns to generate: `python examples/make_nano_images.py OUT`.

A directory in the manifest layout (docs/data.md) from the bundled X-rays: each training image, and
copies of it that are shifted, scaled, rotated and changed in contrast, never mirrored. `unix-jax
data moments` encodes them once, instead of at every step of the training. Held-out images are as
they are.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unix_jax.data.augmentation import AugmentationConfig, augment
from unix_jax.storage.files import atomic_directory

ROOT = Path(__file__).parents[1]
AUGMENTATION = AugmentationConfig(shift=0.02, scale=0.04, rotation=2.0, contrast=0.1)


def make(source: Path, out: Path, copies: int) -> int:
    """Writes manifest and images; returns the number of rows."""
    lines = (source / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with atomic_directory(out) as directory:
        (directory / "images").mkdir()
        for row in map(json.loads, lines):
            shutil.copyfile(source / row["image"], directory / row["image"])
            rows.append(row)
            for number in range(copies if row["split"] == "train" else 0):
                name = f"images/{Path(row['image']).stem}_{number}.png"
                xray = Image.open(source / row["image"]).convert("L")
                augment(xray, AUGMENTATION, rng).save(directory / name)
                rows.append(row | {"image": name})
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (directory / "manifest.jsonl").write_text(text, encoding="utf-8")
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="new directory")
    parser.add_argument("--source", type=Path, default=ROOT / "examples" / "cxr")
    parser.add_argument("--copies", type=int, default=7, help="changed copies of a training image")
    arguments = parser.parse_args()
    rows = make(arguments.source, arguments.out, arguments.copies)
    print(f"{arguments.out}: {rows} rows")


if __name__ == "__main__":
    main()

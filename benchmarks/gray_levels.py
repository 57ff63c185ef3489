"""Detections of the thresholds of `gray_levels` in a folder of X-rays, intact and damaged.

python benchmarks/gray_levels.py examples examples/cxr/images
"""

import argparse
import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.images import load_image


def window(center: float, width: float) -> Callable[[np.ndarray], np.ndarray]:
    """Another window than the file's own."""
    return lambda gray: ((gray - center) / width + 0.5).clip(0, 1) * 255


SPOILT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda gray: gray,
    "10 bits in 16": lambda gray: gray / 64,
    "12 bits in 16": lambda gray: gray / 16,
    "14 bits in 16": lambda gray: gray / 4,
    "window far above": window(1000, 255),
    "window far below": window(-700, 255),
    "window 20 times too wide": window(127.5, 20 * 255),
    "window 200 times too narrow": window(127.5, 255 / 200),
    "constant": lambda gray: np.full_like(gray, gray.mean()),
}


def main() -> None:
    """Prints, for each way of spoiling, the number of images of each kind of warning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="of images")
    parser.add_argument("--out", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    paths = sorted(
        path for folder in arguments.folders for path in folder.glob("*.*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".dcm")
    )  # fmt: skip
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in paths:
        gray = np.asarray(load_image(path).convert("L"), np.float32)
        for name, change in SPOILT.items():
            image = Image.fromarray(np.rint(change(gray)).astype(np.uint8))
            found[name][gray_level_problem(image).partition(" (")[0] or "no warning"] += 1
    lines = [f"{len(paths)} images"]
    for name, counts in found.items():
        kinds = ", ".join(f"{number} {kind}" for kind, number in counts.most_common())
        lines.append(f"  {name:28s} {kinds}")
    text = "\n".join(lines)
    print(text)
    if arguments.out is not None:
        command = f"$ python benchmarks/gray_levels.py {' '.join(map(str, arguments.folders))}"
        arguments.out.write_text(f"{command}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

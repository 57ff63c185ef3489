"""What the thresholds of `unix_jax.gray_levels` find in a folder of X-rays, as they are and spoilt.

python benchmarks/gray_levels.py DIR [DIR ...]
"""

import collections
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from unix_jax.gray_levels import gray_level_problem
from unix_jax.images import load_image


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
    paths = sorted(
        path for folder in sys.argv[1:] for path in Path(folder).glob("*.*")
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".dcm")
    )  # fmt: skip
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path in paths:
        gray = np.asarray(load_image(path).convert("L"), np.float32)
        for name, change in SPOILT.items():
            image = Image.fromarray(np.rint(change(gray)).astype(np.uint8))
            problem = gray_level_problem(image)
            found[name][problem.partition(":")[0] or "no warning"] += 1
    print(f"{len(paths)} images")
    for name, counts in found.items():
        print(f"{name}: " + ", ".join(f"{kind} {n}" for kind, n in counts.most_common()))


if __name__ == "__main__":
    main()

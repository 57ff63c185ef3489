"""Images per CPU second of the data loader, for each format of a chest X-ray, on one core.

    python benchmarks/loader.py
    python benchmarks/loader.py --image XRAY --size 3000 2500

The X-ray is enlarged to a detector's size, written in each format, and read as training reads it:
decoded, checked for missing content, reduced to the ViT's square or the autoencoder's rectangle,
and normalised. `RGB first` is the same with three channels from the decoder on, as before; its
arrays are compared with the others'. CPU seconds are of this process: other jobs of the machine
count less than in wall time. `needed` is for one H200 and the 4 chips of a v5e host, at the
measured and at the compiled rate of training in docs/data.md.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from common import machine, print_table
from PIL import Image

from unix_jax.preprocessing.gray_levels import gray_level_problem
from unix_jax.preprocessing.images import load_image, load_levels
from unix_jax.preprocessing.transforms import to_model_image, to_padded_vae_image

XRAY = Path(__file__).parent.parent / "examples" / "nih_0823b2557d1225f4.jpg"


@dataclasses.dataclass
class Arguments:
    """Image and effort."""

    image: str = str(XRAY)
    """Image file to enlarge."""
    size: tuple[int, int] = (3000, 2500)
    """Height and width of the enlarged image."""
    quality: int = 95
    """Quality of JPEG."""
    reduced: int = 1024
    """Longest side of the reduced image, as `unix-jax data write --max-side` writes it."""
    vit: int = 384
    """Side of the ViT's image."""
    vae: int = 512
    """Side of the autoencoder's image."""
    repeats: int = 7


def files(a: Arguments, directory: Path) -> dict[str, tuple[Path, int | None]]:
    """(file, multiple of the model's side for a draft) by the name of the format."""
    large = load_levels(a.image).resize(a.size[::-1], Image.Resampling.BICUBIC)
    # Noise as a detector's: an enlarged image alone is unusually easy to decode.
    noise = np.random.default_rng(0).normal(0, 3, a.size)
    large = Image.fromarray(np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8))
    small = large.copy()
    small.thumbnail((a.reduced, a.reduced), Image.Resampling.LANCZOS)
    wide = Image.fromarray(np.asarray(large).astype(np.uint16) * 257)
    height, width = a.size
    found: dict[str, tuple[Path, int | None]] = {}

    def write(name: str, image: Image.Image, suffix: str, draft: int | None = None) -> None:
        path = directory / f"{len(found)}{suffix}"
        image.save(path, **({"quality": a.quality} if suffix == ".jpg" else {}))
        found[name] = path, draft

    write(f"JPEG {width} x {height}", large, ".jpg")
    found["the same, jpeg_draft"] = found[f"JPEG {width} x {height}"][0], 2
    write("JPEG of three channels", large.convert("RGB"), ".jpg")
    write("PNG, 8 bits", large, ".png")
    write("PNG, 16 bits", wide, ".png")
    write(f"JPEG, longest side {a.reduced}", small, ".jpg")
    return found


def prepared(
    path: Path, load: Callable[..., Image.Image], draft: int | None, side: int, vit: bool
) -> np.ndarray:
    """The model's input, as `unix_jax.data.model_images` makes it."""
    image = load(path, **({} if draft is None else {"draft_side": draft * side}))
    gray_level_problem(image)
    return to_model_image(image, side) if vit else to_padded_vae_image(image, side, side)


def cpu_seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    run()
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        found.append(time.process_time() - begin)
    return found


def main(a: Arguments) -> None:
    print(machine())
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, (path, draft) in files(a, Path(directory)).items():
            row = [name, f"{os.path.getsize(path) / 1e6:.2f}"]
            for side, vit in ((a.vit, True), (a.vae, False)):
                now = cpu_seconds(lambda: prepared(path, load_levels, draft, side, vit), a.repeats)  # noqa: B023
                before = cpu_seconds(lambda: prepared(path, load_image, None, side, vit), a.repeats)  # noqa: B023
                arrays = [
                    prepared(path, load, used, side, vit)
                    for load, used in ((load_levels, draft), (load_image, None))
                ]
                difference = np.abs(arrays[0] - arrays[1]).max()
                if draft is None:
                    assert difference == 0, f"{name}: the arrays differ by {difference}"
                ratios = sorted(b / n for b, n in zip(before, now, strict=True))
                row += [
                    f"{1 / statistics.median(now):.0f}", f"{1 / statistics.median(before):.0f}",
                    f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    f"{difference * (0.336385 if vit else 0.5) * 255:.1f}",
                ]  # fmt: skip
            rows.append(row)
    header = ["images/CPU s", "RGB first", "ratio (spread)", "gray levels"]
    print_table(
        f"ViT of {a.vit} pixels, then autoencoder of {a.vae}; largest difference in gray levels",
        ["format", "MB", *header, *header],
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

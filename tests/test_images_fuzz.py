"""Seeded damage to image files: an ImageError or a picture, in bounded time and memory."""

import contextlib
import io
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.uid import RLELossless

from support.toy_images import FULL, RAMP, TWELVE, dicom_file
from unix_jax.errors import ImageError
from unix_jax.preprocessing import transforms
from unix_jax.preprocessing.images import check_image, load_image

LIMIT = 1_000_000  # pixels
CASES_PER_SEED_FILE = 120


def _seeds() -> dict[str, bytes]:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    comment = PngImagePlugin.PngInfo()
    comment.add_text("comment", "c" * 800)
    seeds = {}
    for name, image, options in (
        ("PNG", Image.fromarray(noisy), {"exif": exif, "pnginfo": comment}),
        ("JPEG", Image.fromarray(noisy), {"exif": exif}),
        ("TIFF", Image.fromarray(RAMP.astype(np.uint16) * 257), {"compression": "tiff_lzw"}),
        ("GIF", Image.fromarray(RAMP), {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, format=name, **options)
        seeds[name] = buffer.getvalue()
    seeds["DICOM"] = dicom_file(TWELVE, RescaleSlope="2", RescaleIntercept="-9", **FULL)
    seeds["DICOM-RLE"] = dicom_file(RAMP, RLELossless)
    return seeds


def _damage(data: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(5)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    damaged = bytearray(data)
    # Headers hold the lengths and sizes, so half of the damage goes there.
    reach = len(data) if draw.random() < 0.5 else min(len(data), 900)
    for _ in range(draw.randint(1, 12)):
        at = draw.randrange(reach)
        if kind == 1:
            damaged[at % len(damaged)] ^= 1 << draw.randrange(8)
        elif kind == 2:
            damaged[at : at + 4] = draw.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
        elif kind == 3:
            del damaged[at : at + draw.randint(1, 30)]
        else:
            damaged[at:at] = draw.randbytes(draw.randint(1, 30))
    return bytes(damaged)


def _with_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks' checksums hold again, so that the damage gets past them."""
    repaired, at = bytearray(data), 8
    while at + 12 <= len(repaired):
        (length,) = struct.unpack_from(">I", repaired, at)
        end = at + 8 + length
        if end + 4 > len(repaired):
            break
        struct.pack_into(">I", repaired, end, zlib.crc32(repaired[at + 4 : end]))
        at = end + 4
    return bytes(repaired)


SEEDS = _seeds()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEDS)
def test_damaged_files(name, tmp_path: Path):
    draw = random.Random(f"images {name}")
    path = tmp_path / ("film.dcm" if name.startswith("DICOM") else "film")
    outcomes = {"read": 0, "refused": 0}
    messages: list[str] = []
    slowest = 0.0
    tracemalloc.start()
    try:
        for _ in range(CASES_PER_SEED_FILE):
            damaged = _damage(SEEDS[name], draw)
            if name == "PNG" and draw.random() < 0.7:
                damaged = _with_checksums(damaged)
            path.write_bytes(damaged)
            started = time.perf_counter()
            try:
                image = load_image(path, max_pixels=LIMIT)
            except ImageError as error:
                outcomes["refused"] += 1
                messages.append(str(error))
                with contextlib.suppress(ImageError):
                    check_image(path, max_pixels=LIMIT)
            else:
                check_image(path, max_pixels=LIMIT)
                outcomes["read"] += 1
                assert image.mode == "RGB"
                assert 16 * 16 <= image.width * image.height <= LIMIT
                assert np.isfinite(transforms.to_model_image(image, 32)).all()
            slowest = max(slowest, time.perf_counter() - started)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert slowest < 5, f"{slowest:.1f} s"
    assert peak < 64 * LIMIT, f"{peak / 2**20:.0f} MiB"
    assert all(str(path) in message and "\n" not in message for message in messages)
    assert min(outcomes.values()) > 0, outcomes
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

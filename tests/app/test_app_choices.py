"""Bounds of what visitors may ask."""

import io
import math

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from unix_jax.app.choices import (
    Limits,
    default_tokens,
    image_choices,
    read_xray,
    report_choices,
)
from unix_jax.config import UniXConfig
from unix_jax.errors import ImageError, PromptError
from unix_jax.preprocessing.transforms import letterbox

TINY = UniXConfig.preset("tiny")
LIMITS = Limits()


def dicom_bytes() -> bytes:
    """A radiograph of 8 bits."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 64, 48, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = 0, "MONOCHROME2"
    dataset.PixelData = np.arange(64 * 48, dtype=np.uint8).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def test_an_xray_is_what_the_pipeline_would_make_of_it(xray_png):
    xray = read_xray(xray_png, "mine", TINY, LIMITS)
    expected = letterbox(Image.open(io.BytesIO(xray_png)).convert("RGB"), 48)
    assert np.array_equal(xray.image, expected)
    # Letterboxing it again, as the pipeline does, changes nothing.
    assert np.array_equal(letterbox(xray.image, 48), expected)
    assert Image.open(io.BytesIO(xray.preview)).size == (90, 120)


def test_dicom():
    xray = read_xray(dicom_bytes(), "mine", TINY, LIMITS)
    assert Image.open(io.BytesIO(xray.preview)).size == (48, 64)


def test_the_images_of_an_xray_are_bounded():
    file = io.BytesIO()
    Image.new("L", (3000, 2000), 90).save(file, "PNG")
    xray = read_xray(file.getvalue(), "mine", TINY, LIMITS)
    sizes = [max(Image.open(io.BytesIO(image)).size) for image in (xray.preview, xray.thumbnail)]
    assert sizes == [1280, 256]


@pytest.mark.parametrize(
    ("data", "limits", "expected"),
    [
        (b"not a picture", LIMITS, "mine: expected an image"),
        (b"", LIMITS, "mine: expected an image, found an empty file"),
        (b"x" * 1000, Limits(upload_bytes=100), "mine: expected at most"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, LIMITS, "mine: "),
    ],
)
def test_bad_uploads(data, limits, expected):
    with pytest.raises(ImageError, match=expected):
        read_xray(data, "mine", TINY, limits)


def test_a_bomb_is_not_decoded(bomb_png):
    with pytest.raises(ImageError, match="mine: expected at most 50000000 pixels"):
        read_xray(bomb_png, "mine", TINY, LIMITS)


def test_defaults_of_a_model():
    assert default_tokens(UniXConfig(), LIMITS) == 500
    assert default_tokens(TINY, LIMITS) == 256


def image(
    prompt="a", seed=0, steps=5, guidance=2.0, side=64, shift=3.0, renorm="global", solver="euler"
):
    return image_choices(
        prompt, seed, steps, guidance, side, shift, renorm, solver, config=TINY, limits=LIMITS
    )


def report(prompt="", tokens=10, temperature=0, top_p=1, seed=0):
    return report_choices(prompt, tokens, temperature, top_p, seed, limits=LIMITS)


def test_good_choices():
    found = image("  effusion ", 7, 5.0)
    assert (found.prompt, found.seed, found.settings.num_inference_steps) == ("effusion", 7, 5)
    assert (found.settings.height, found.settings.width) == (64, 64)
    assert report(None).prompt == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prompt": "   "}, "Findings"),
        ({"prompt": 5}, "Findings"),
        ({"prompt": "x" * 4001}, "Findings: expected at most 4000 characters"),
        ({"seed": None}, "Seed: expected a number from 0 to 4,294,967,295, found nothing"),
        ({"seed": -1}, "Seed"),
        ({"seed": 10**400}, "Seed: .*found an integer of more than 40 digits"),
        ({"seed": 10**5000}, "Seed: .*found an integer of more than 40 digits"),
        ({"seed": -(10**5000)}, "Seed: .*found an integer of more than 40 digits"),
        ({"side": 48}, "Side: expected one of 32, 64, 96, 128, found 48"),
        ({"seed": 1.5}, "Seed: expected an integer"),
        ({"seed": "0"}, "Seed"),
        ({"seed": True}, "Seed"),
        ({"steps": 0}, "Steps"),
        ({"steps": 10**9}, "Steps"),
        ({"guidance": math.nan}, "Guidance"),
        ({"guidance": math.inf}, "Guidance"),
        ({"side": 100}, "Side: expected one of"),
        ({"side": 4096}, "Side"),
        ({"shift": 0}, "Shift"),
        ({"renorm": "none"}, "renorm"),
        ({"solver": "heun"}, "solver"),
    ],
)
def test_bad_image_choices(arguments, expected):
    with pytest.raises(PromptError, match=expected):
        image(**arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"tokens": 0}, "Maximum length"),
        ({"tokens": 501}, "Maximum length"),
        ({"temperature": -1}, "Temperature"),
        ({"top_p": 0}, "Nucleus"),
        ({"seed": None}, "Seed"),
        ({"prompt": ["x"]}, "Instruction"),
    ],
)
def test_bad_report_choices(arguments, expected):
    with pytest.raises(PromptError, match=expected):
        report(**arguments)

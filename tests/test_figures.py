"""Figures of the documentation: their scripts still create them, and they load nothing."""

import re
import runpy
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from support.paths import ROOT

FIGURES = ROOT / "docs" / "figures"
IMAGES = ROOT / "docs" / "images"


@pytest.fixture(scope="module")
def drawn():
    return runpy.run_path(str(FIGURES / "architecture.py"))["figures"]()


@pytest.mark.parametrize("name", ["architecture_light.svg", "architecture_dark.svg", "logo.svg"])
def test_the_committed_figure_is_that_of_its_script(name, drawn):
    assert (IMAGES / name).read_text(encoding="utf-8") == drawn[name], (
        "expected the output of `python docs/figures/architecture.py`"
    )


def test_svg_files_load_nothing_and_stay_in_their_frame(drawn):
    for name, text in drawn.items():
        root = ET.fromstring(text)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for element in root.iter():
            tag = element.tag.rpartition("}")[2]
            assert tag in {"svg", "title", "text", "rect", "polyline", "polygon", "g", "path"}, name
            assert not {"href", "onload", "style"} & set(element.attrib)
            if tag == "rect":
                x, y = float(element.attrib.get("x", 0)), float(element.attrib.get("y", 0))
                assert x + float(element.attrib["width"]) <= width
                assert y + float(element.attrib["height"]) <= height


@pytest.fixture(scope="module")
def showcase():
    return runpy.run_path(str(FIGURES / "showcase.py"))


def test_the_showcase_has_both_schemes_and_every_image(showcase):
    xray = Image.new("L", (500, 500), 80)
    report = "FINDINGS: The heart is normal in size. IMPRESSION: No acute finding."
    generated = [(text, Image.new("L", (128, 128), 200)) for text in showcase["PROMPTS"]]
    for scheme, colours in showcase["SCHEMES"].items():
        sheet = showcase["showcase"](xray, report, generated, colours)
        assert sheet.getpixel((0, 0))[3] == sheet.getpixel((sheet.width - 1, 0))[3] == 0
        levels = {level: count for count, level in sheet.getcolors(1 << 24)}
        assert levels[(80, 80, 80, 255)] >= 500 * 500
        assert levels[(200, 200, 200, 255)] >= 4 * showcase["CELL"] ** 2
        with Image.open(IMAGES / f"showcase_{scheme}.png") as committed:
            assert committed.width == sheet.width


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("FINDINGS: A. IMPRESSION: B.", [("FINDINGS", "A."), ("IMPRESSION", "B.")]),
        ("IMPRESSION: B.", [("IMPRESSION", "B.")]),
        ("FINDINGS: A.", [("", "FINDINGS: A.")]),
        ("", [("", "")]),
    ],
)
def test_sections_of_a_report(report, expected, showcase):
    assert showcase["sections"](report) == expected


def test_the_animation_is_small_and_not_in_the_wheel():
    file = IMAGES / "app.gif"
    assert file.stat().st_size < 1_500_000
    with Image.open(file) as animation:
        assert animation.n_frames > 10
        assert animation.info["loop"] == 0
        assert animation.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    bundled = re.search(r"^BUNDLED = .*?^\S", (ROOT / "setup.py").read_text(), re.M | re.S)
    assert bundled
    assert "docs" not in bundled[0]


def test_frames_with_one_palette_keep_white_and_the_colours_of_the_page():
    pytest.importorskip("playwright", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    functions = runpy.run_path(str(FIGURES / "screenshots.py"))
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 40, axis=1)
    first, second = (np.stack([ramp] * 3, axis=-1) for _ in range(2))
    second[:20] = (37, 99, 235)
    frames = [Image.fromarray(first), Image.fromarray(second)]
    found = functions["with_one_palette"](frames)
    assert found[0].palette.tobytes() == found[1].palette.tobytes()
    for before, after in zip(frames, found, strict=True):
        difference = np.abs(np.asarray(before).astype(int) - np.asarray(after.convert("RGB")))
        assert difference.max() <= 1
        assert (difference[[0, -1]] == 0).all()

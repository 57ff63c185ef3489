"""Creates the first image of the README: a report of an X-ray, and X-rays generated from texts.

    python docs/figures/showcase.py

Writes docs/images/showcase_light.png and docs/images/showcase_dark.png with the bundled model. Run
it again when that model changes. The seeds are 0 to 3, so that nothing is selected.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from unix_jax import UniXPipeline
from unix_jax.errors import UniXError
from unix_jax.preprocessing.images import load_image
from unix_jax.storage.bundled import example

IMAGES = Path(__file__).parents[1] / "images"
XRAY = "nih_0823b2557d1225f4.jpg"
PROMPTS = ("No acute finding.", "COVID-19 pneumonia.", "Cardiomegaly.", "Pneumonia.")
WIDTH, MARGIN, GAP = 1200, 24, 24
SIDE, CELL, LINE = 588, 258, 44
"""Sides of the X-ray and of a generated one, and the height of a line of text, in pixels."""


class Colours(NamedTuple):
    """Colours of a scheme, as Pillow names them; the background is transparent."""

    background: str
    text: str
    muted: str
    accent: str


SCHEMES = {
    "light": Colours("#ffffff00", "#1f2328", "#59636e", "#0b6e75"),
    "dark": Colours("#0d111700", "#e6edf3", "#9198a1", "#4cc3cb"),
}


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def sections(report: str) -> list[tuple[str, str]]:
    """(heading, text) of a report's sections; the heading is "" for a text without any."""
    found = []
    findings, separator, impression = report.partition("IMPRESSION:")
    for heading, text in (("FINDINGS", findings), ("IMPRESSION", impression)):
        if text.strip():
            text = text.strip()
            found.append((heading, text.removeprefix("FINDINGS:").strip()))
    return found if separator else [("", report.strip())]


def showcase(
    xray: Image.Image,
    report: str,
    generated: Sequence[tuple[str, Image.Image]],
    colours: Colours,
) -> Image.Image:
    """One image: on the left the X-ray and its report, on the right the generated X-rays."""
    title, body = font_of(30), font_of(32)
    texts = [
        (heading, wrapped(text, body, WIDTH - 2 * MARGIN)) for heading, text in sections(report)
    ]
    top = MARGIN + 48
    below = top + SIDE + GAP
    height = below + sum(LINE * (len(lines) + bool(heading)) + GAP for heading, lines in texts)
    sheet = Image.new("RGBA", (WIDTH, height), colours.background)
    draw = ImageDraw.Draw(sheet)
    right = WIDTH - MARGIN - 2 * CELL - GAP
    draw.text((MARGIN, MARGIN - 8), "X-ray in, report out", fill=colours.accent, font=title)
    draw.text((right, MARGIN - 8), "Text in, X-ray out", fill=colours.accent, font=title)
    square = xray.convert("L")
    square.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    sheet.paste(square.convert("RGBA"), (MARGIN, top))
    for index, (prompt, image) in enumerate(generated):
        x = right + index % 2 * (CELL + GAP)
        y = top + index // 2 * (SIDE + GAP) // 2
        larger = image.convert("L").resize((CELL, CELL), Image.Resampling.BICUBIC)
        sheet.paste(larger.convert("RGBA"), (x, y))
        draw.text((x, y + CELL + 4), prompt, fill=colours.text, font=font_of(26))
    y = below
    for heading, lines in texts:
        for number, line in enumerate([heading, *lines] if heading else lines):
            fill = colours.muted if heading and number == 0 else colours.text
            draw.text((MARGIN, y), line, fill=fill, font=body)
            y += LINE
        y += GAP
    return sheet


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=example("nano"), help="a model with a tokenizer")
    parser.add_argument("--image", default=example(XRAY), help="the X-ray to report")
    parser.add_argument("--out", type=Path, default=IMAGES, help="directory of the two images")
    arguments = parser.parse_args()
    try:
        pipe = UniXPipeline.from_pretrained(arguments.checkpoint)
        xray = load_image(arguments.image)
        (report,) = pipe.generate_report([xray], max_new_tokens=120)
        images = pipe.generate_image(list(PROMPTS), seed=list(range(len(PROMPTS))))
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report)
    for scheme, colours in SCHEMES.items():
        file = arguments.out / f"showcase_{scheme}.png"
        sheet = showcase(xray, report, list(zip(PROMPTS, images, strict=True)), colours)
        sheet.save(file, optimize=True)
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())

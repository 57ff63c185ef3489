"""Creates the figure of the architecture and the logo, as SVG files without scripts or fonts.

    python docs/figures/architecture.py

Writes docs/images/architecture_light.svg, docs/images/architecture_dark.svg and
docs/images/logo.svg. The sizes in the figure are those of the published configuration.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from unix_jax.config import UniXConfig

IMAGES = Path(__file__).parents[1] / "images"
WIDTH, HEIGHT = 1080, 440
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


class Colours(NamedTuple):
    """Colours of a scheme: text, secondary text, lines; fill and line of each stream."""

    text: str
    muted: str
    line: str
    panel: str
    und: tuple[str, str]
    gen: tuple[str, str]
    shared: tuple[str, str]


SCHEMES = {
    "light": Colours(
        "#1f2328", "#59636e", "#818b98", "#f6f8fa",
        ("#d7f0f1", "#0b6e75"), ("#fde7d3", "#b45309"), ("#e6e6fa", "#5b55b5"),
    ),
    "dark": Colours(
        "#e6edf3", "#9198a1", "#6e7681", "#161b22",
        ("#0f3b3f", "#4cc3cb"), ("#46280d", "#f0a35e"), ("#2a2850", "#a9a4f5"),
    ),
}  # fmt: skip


class Drawing:
    """SVG elements in the colours of a scheme. Positions and sizes are in pixels."""

    def __init__(self, colours: Colours) -> None:
        self.colours = colours
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 15,
        colour: str | None = None,
        weight: int = 400,
        anchor: str = "middle",
    ) -> None:
        """A line of text, whose baseline is at y."""
        fill = colour or self.colours.text
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}" '
            f'text-anchor="{anchor}" fill="{fill}">{text}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, line: str, radius: int = 8
    ) -> None:
        """A rectangle with round corners."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'fill="{fill}" stroke="{line}" stroke-width="1.5"/>'
        )

    def labelled(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: tuple[str, str],
        title: str,
        note: str = "",
    ) -> None:
        """A box with a title, and a note below it."""
        self.box(x, y, width, height, *kind)
        middle = y + height / 2
        self.text(x + width / 2, middle + (-3 if note else 5), title, weight=600)
        if note:
            self.text(x + width / 2, middle + 16, note, 12, self.colours.muted)

    def plain(self, x: float, y: float, title: str, note: str = "") -> None:
        """An input or output: its name without a box."""
        self.text(x, y + (-3 if note else 5), title, weight=600)
        if note:
            self.text(x, y + 15, note, 12, self.colours.muted)

    def line(self, *points: tuple[float, float]) -> None:
        """A line through the points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        line = self.colours.line
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line}" stroke-width="2"/>'
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at its end."""
        self.line(*points)
        (x0, y0), (x, y) = points[-2:]
        along = ((x > x0) - (x < x0), (y > y0) - (y < y0))
        across = (-along[1], along[0])
        head = " ".join(
            f"{x - back * along[0] + side * across[0]:g},{y - back * along[1] + side * across[1]:g}"
            for back, side in ((0, 0), (9, 5), (9, -5))
        )
        self.parts.append(f'<polygon points="{head}" fill="{self.colours.line}"/>')


def architecture(colours: Colours) -> str:
    """The figure: inputs on the left, the two streams in the middle, outputs on the right."""
    config = UniXConfig.preset("published")
    drawing = Drawing(colours)
    und, gen, shared = colours.und, colours.gen, colours.shared
    # The y of the middle of the lanes, and of the inputs above and below them.
    upper, lower, image, text, latents = 142, 306, 96, 188, 396
    drawing.box(352, 20, 420, 372, colours.panel, colours.line, 14)
    layers, size = config.decoder.num_layers, config.decoder.hidden_size
    drawing.text(562, 46, f"decoder: {layers} layers of width {size}", 14, colours.muted, 600)
    drawing.box(494, 64, 136, 312, *shared)
    drawing.text(562, 142, "one joint", weight=600)
    drawing.text(562, 162, "attention", weight=600)
    notes = ("text: causal", "an image: all", "of itself", "", "gen also reads", "all of und")
    for line, words in enumerate(notes):
        drawing.text(562, 194 + 18 * line, words, 13, colours.muted)
    for y, kind, name, tokens in (
        (upper, und, "und stream", "text, ViT patches"),
        (lower, gen, "gen stream", "image latents"),
    ):
        drawing.text(420, y - 46, name, 15, kind[1], 600)
        drawing.text(420, y + 52, tokens, 12, colours.muted)
        drawing.labelled(370, y - 28, 100, 56, kind, "Q, K, V", "own weights")
        drawing.labelled(654, y - 28, 100, 56, kind, "MLP", "own weights")
        drawing.arrow((470, y), (493, y))
        drawing.arrow((630, y), (653, y))
    # Inputs.
    drawing.plain(58, image, "chest X-ray", f"{config.vision.image_size} pixels")
    drawing.labelled(132, image - 24, 164, 48, und, "SigLIP ViT", "connector")
    drawing.plain(58, text, "text", "prompt, report")
    drawing.labelled(132, text - 24, 164, 48, und, "token embedding")
    drawing.plain(58, lower, "noise, time")
    drawing.labelled(132, lower - 24, 164, 48, gen, "noised latents")
    drawing.plain(58, latents, "chest X-ray", "in training")
    drawing.labelled(132, latents - 24, 164, 48, gen, "autoencoder", "encoder")
    for y in (image, text, lower, latents):
        drawing.arrow((106, y), (131, y))
    drawing.arrow((214, latents - 24), (214, lower + 25))
    for y in (image, text):
        drawing.line((296, y), (322, y), (322, upper))
    drawing.arrow((322, upper), (369, upper))
    drawing.arrow((296, lower), (369, lower))
    # Outputs.
    drawing.arrow((754, upper), (803, upper))
    drawing.labelled(804, upper - 24, 130, 48, und, "text head")
    drawing.arrow((934, upper), (959, upper))
    drawing.plain(1012, upper, "report", "token by token")
    drawing.arrow((754, lower), (803, lower))
    drawing.labelled(804, lower - 24, 200, 48, gen, "velocity, ODE steps", "with guidance")
    drawing.arrow((869, lower + 24), (869, latents - 25))
    drawing.labelled(804, latents - 24, 130, 48, gen, "autoencoder", "decoder")
    drawing.arrow((934, latents), (959, latents))
    drawing.plain(1018, latents, "chest X-ray", "512 pixels")
    return svg(drawing.parts, WIDTH, HEIGHT, "UniX: two streams with one joint attention")


LOGO = """\
<rect width="64" height="64" rx="14" fill="#0b6e75"/>
<g fill="none" stroke="#ffffff" stroke-width="4.5" stroke-linecap="round">
<path d="M32 12V52"/>
<path d="M24 18H12M24 28H10M24 38H14M24 48H18"/>
<path d="M40 18C50 16 55 19 56 25M40 28C50 26 56 30 57 37"/>
<path d="M40 38C48 37 53 41 54 47M40 48C44 47 47 49 48 52"/>
</g>"""
"""Lines of text on the left of a spine, ribs on the right: a report and an X-ray."""


def svg(parts: list[str], width: int, height: int, title: str) -> str:
    """An SVG document."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}" font-family="{FONT}">\n'
        f"<title>{title}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def figures() -> dict[str, str]:
    """{file name: text} of every figure."""
    found = {f"architecture_{name}.svg": architecture(c) for name, c in SCHEMES.items()}
    return found | {"logo.svg": svg([LOGO], 64, 64, "unix-jax")}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=IMAGES, help="directory of the files")
    arguments = parser.parse_args()
    for name, text in figures().items():
        (arguments.out / name).write_text(text, encoding="utf-8")
        print(arguments.out / name)


if __name__ == "__main__":
    main()

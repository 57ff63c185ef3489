"""X-rays, generated images and messages as HTML with the pixels as data URLs.

Nothing is written to disk, and no address exists at which another visitor could find an image. All
text from visitors is escaped.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Sequence

from PIL import Image

from unix_jax.app.choices import SAMPLERS, THUMBNAIL_SIDE, ImageChoices, Xray
from unix_jax.app.reports import WrittenReport, sections
from unix_jax.inference.results import png_entries
from unix_jax.inference.settings import DiffusionSettings
from unix_jax.preprocessing.transforms import jpeg_bytes, png_bytes


@dataclasses.dataclass(frozen=True)
class GeneratedImage:
    """A finished image: its PNG file, a small JPEG of it, and its settings."""

    choices: ImageChoices
    png: bytes = dataclasses.field(repr=False)
    thumbnail: bytes = dataclasses.field(repr=False)

    @classmethod
    def of(cls, image: Image.Image, choices: ImageChoices) -> "GeneratedImage":
        """The image and its settings, which are written into the PNG file."""
        entries = png_entries(choices.prompt, choices.seed, choices.settings)
        return cls(choices, png_bytes(image, entries), jpeg_bytes(image, THUMBNAIL_SIDE))

    @property
    def file_name(self) -> str:
        """The file name of the download."""
        words = re.sub(r"[^a-z0-9]+", "-", self.choices.prompt.lower()).strip("-")[:40]
        return f"{words.rstrip('-') or 'image'}_seed{self.choices.seed}.png"


def described(choices: ImageChoices) -> str:
    """The settings that visitors compare."""
    settings = choices.settings
    if isinstance(settings, DiffusionSettings):
        assert settings.sampler is not None
        method, strength = SAMPLERS[settings.sampler], settings.guidance_rescale
        rescale = f"rescaled by {strength:g}, " if strength else ""
    else:
        method, rescale = settings.solver, ""
    return (
        f"seed {choices.seed}, {settings.num_inference_steps} {method} steps, "
        f"guidance {settings.guidance_scale:g}, {rescale}"
        f"{settings.width} × {settings.height}"
    )


def empty_figure(text: str) -> str:
    """A placeholder for an image."""
    return f'<div class="xray empty">{html.escape(text)}</div>'


_VIEW = (
    ("zoom", "Zoom", 1, 4),
    ("brightness", "Brightness", 0.5, 2),
    ("contrast", "Contrast", 0.5, 3),
)
"""Sliders below an X-ray: the variable that the style sheet reads, the label, and the bounds."""


def xray_figure(xray: Xray) -> str:
    """An X-ray, with a warning if it has one, and sliders for how it is shown.

    `style.HEAD` applies the sliders in the browser. The model does not see their effect.
    """
    sliders = "".join(
        f'<label>{label}<input type="range" name="{name}" min="{low}" max="{high}" step="0.05" '
        'value="1"></label>'
        for name, label, low, high in _VIEW
    )
    return (
        '<figure class="xray viewer">'
        # With zoom the image scrolls, which the arrow keys do once it is reached.
        f'<div class="film" tabindex="0" role="group" aria-label="X-ray; scrolls with zoom">'
        f"{_image(_address('jpeg', xray.preview), f'Chest X-ray {xray.name}')}</div>"
        f"<figcaption>{html.escape(xray.name)}</figcaption>"
        f"{complaint(xray.warning) if xray.warning else ''}"
        f"<details><summary>Zoom and contrast</summary>{sliders}"
        '<button type="button" class="reset">Reset</button></details></figure>'
    )


def progress_figure(image: Image.Image, choices: ImageChoices, step: int, total: int) -> str:
    """An unfinished image with a progress bar."""
    return _figure(
        _address("jpeg", jpeg_bytes(image)),
        f"Chest X-ray being generated for: {choices.prompt}",
        f'<progress max="{total}" value="{step}" aria-label="Generating"></progress>'
        f"<figcaption>Step {step} of {total}</figcaption>",
    )


def generated_figure(finished: GeneratedImage) -> str:
    """A finished image with its download."""
    png = _address("png", finished.png)
    return _figure(
        png, f"Generated chest X-ray for: {finished.choices.prompt}", _below(finished, png)
    )


def several_figures(figures: Sequence[str]) -> str:
    """Figures side by side; a single one alone."""
    if len(figures) == 1:
        return figures[0]
    return f'<ul class="session">{"".join(f"<li>{figure}</li>" for figure in figures)}</ul>'


def session_figures(session: Sequence[GeneratedImage | WrittenReport], empty: str) -> str:
    """All generated images and reports, the last one first; `empty` is the text without any."""
    if not session:
        return empty_figure(empty)
    items = (f"<li>{_session_figure(finished)}</li>" for finished in reversed(session))
    return f'<ul class="session">{"".join(items)}</ul>'


def _session_figure(finished: GeneratedImage | WrittenReport) -> str:
    if isinstance(finished, WrittenReport):
        name = html.escape(finished.xray.name)
        return _figure(
            _address("jpeg", finished.xray.thumbnail),
            f"Chest X-ray {finished.xray.name}",
            f"<figcaption>{name}</figcaption>{sections(finished)}",
        )
    return _figure(
        _address("jpeg", finished.thumbnail),
        f"Generated chest X-ray for: {finished.choices.prompt}",
        f"<p>{html.escape(finished.choices.prompt)}</p>"
        + _below(finished, _address("png", finished.png)),
    )


def said(text: str) -> str:
    """A status message, which screen readers announce when idle."""
    return f'<p class="said" role="status">{html.escape(text)}</p>'


def complaint(text: str) -> str:
    """An error message, which screen readers announce immediately."""
    return f'<p class="complaint" role="alert">{html.escape(text)}</p>'


def data_address(image: Image.Image) -> str:
    """A small JPEG as a data address."""
    return _address("jpeg", jpeg_bytes(image))


def _below(finished: GeneratedImage, png: str) -> str:
    name = html.escape(finished.file_name)
    label = html.escape(f"Download PNG: {finished.choices.prompt}, {described(finished.choices)}")
    return (
        f"<figcaption>{html.escape(described(finished.choices))}</figcaption>"
        f'<a class="download" href="{png}" download="{name}" aria-label="{label}">Download PNG</a>'
    )


def _figure(address: str, alternative: str, below: str) -> str:
    return f'<figure class="xray">{_image(address, alternative)}{below}</figure>'


def _image(address: str, alternative: str) -> str:
    return f'<img src="{address}" alt="{html.escape(alternative)}">'


def _address(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"

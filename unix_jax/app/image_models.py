"""What generates the page's images: the settings of a visitor, and a stream of steps.

`UniXImages` and `DiffusionImages` are the two kinds. The page and its actions know `ImageModel`
alone.
"""

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from unix_jax.app.choices import (
    SAMPLERS,
    ImageChoices,
    Limits,
    diffusion_choices,
    image_choices,
)
from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.programs import diffusion_shape, image_shape
from unix_jax.inference.results import ImageStep
from unix_jax.inference.sampling import RENORMS, SOLVERS
from unix_jax.inference.settings import DiffusionSettings, ImageSettings
from unix_jax.web.shapes import image_sides, quarter_sizes

_Settings = TypeVar("_Settings", ImageSettings, DiffusionSettings)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A field for an integer."""

    label: str
    value: int
    info: str = ""


@dataclasses.dataclass(frozen=True)
class Slider:
    """A field for a number from `low` to `high`."""

    label: str
    low: float
    high: float
    value: float
    step: float
    info: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A field for one of several values, each with its name on the page.

    listed: all of them are visible, rather than in a menu.
    """

    label: str
    options: Mapping[Any, str]
    value: Any
    info: str = ""
    listed: bool = False


Field = Whole | Slider | Choice


class ImageModel(Protocol[_Settings]):
    """A model that generates images.

    Attributes:
      own: the fields seed, steps and guidance, which each side of a comparison has.
      common: further fields.
      compared: `own` of the two sides of a comparison, with different values.
      size: pixels of the largest images that the page names, such as "512 × 512".
      params: the parameters, which the page counts.
    """

    @property
    def own(self) -> tuple[Field, ...]: ...

    @property
    def common(self) -> tuple[Field, ...]: ...

    @property
    def compared(self) -> tuple[tuple[Field, ...], tuple[Field, ...]]: ...

    @property
    def size(self) -> str: ...

    @property
    def params(self) -> Any: ...

    def choices(self, prompt: Any, *values: Any) -> ImageChoices[_Settings]:
        """The settings from the values of `own` and `common`.

        Raises:
          PromptError: a value out of bounds, with the page's wording.
        """

    def programs(self, chosen: ImageChoices[_Settings]) -> Hashable:
        """What the compiled programs of an image depend on."""

    def stream(self, chosen: ImageChoices[_Settings], every: int) -> Iterator[ImageStep]:
        """The image after every `every` steps, and after the last."""

    def note(self, chosen: ImageChoices[_Settings]) -> str:
        """A sentence for the visitor about what the model did not use, or ""."""


def image_model(pipe: UniXPipeline | DiffusionPipeline, limits: Limits) -> ImageModel[Any]:
    """The model of a pipeline."""
    if isinstance(pipe, DiffusionPipeline):
        return DiffusionImages(pipe, limits)
    return UniXImages(pipe, limits)


def _own(steps: int, most: int, guidance: Slider) -> tuple[Field, ...]:
    return (
        Whole("Seed", 0, "The same seed generates the same image"),
        Slider("Steps", 1, most, min(steps, most), 1),
        guidance,
    )


@dataclasses.dataclass(frozen=True)
class UniXImages:
    """Images of UniX."""

    pipe: UniXPipeline
    limits: Limits

    @property
    def own(self) -> tuple[Field, ...]:
        return self._own(2.0)

    @property
    def compared(self) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
        return self._own(1.0), self._own(3.0)

    def _own(self, guidance: float) -> tuple[Field, ...]:
        slider = Slider("Guidance", 1, 8, guidance, 0.1, "1 turns it off")
        return _own(49, self.limits.steps, slider)

    @property
    def common(self) -> tuple[Field, ...]:
        config = self.pipe.config
        return (
            Choice(
                "Side",
                {side: str(side) for side in image_sides(config)},
                ImageSettings().size(config)[0],
                "In pixels; the image is square",
                listed=True,
            ),
            Slider(
                "Shift of the time grid", 0.5, 6, 3, 0.1,
                "Values above 1 place more steps near the noise",
            ),
            Choice("Renormalisation of guidance", {name: name for name in RENORMS}, "global"),
            Choice(
                "Solver", {name: name for name in SOLVERS}, "euler",
                "ab2 and pec need fewer steps for the same image",
            ),
        )  # fmt: skip

    @property
    def size(self) -> str:
        side = ImageSettings().size(self.pipe.config)[0]
        return f"{side} × {side}"

    @property
    def params(self) -> Any:
        return self.pipe.params

    def choices(self, prompt: Any, *values: Any) -> ImageChoices[ImageSettings]:
        return image_choices(prompt, *values, config=self.pipe.config, limits=self.limits)

    def programs(self, chosen: ImageChoices[ImageSettings]) -> Hashable:
        longest = self.pipe.config.decoder.max_position_embeddings - 2
        (ids,) = self.pipe.loaded.encode_prompts([chosen.prompt], 1, longest)
        return image_shape(chosen.settings, 1, len(ids))

    def stream(self, chosen: ImageChoices[ImageSettings], every: int) -> Iterator[ImageStep]:
        return self.pipe.stream_image(
            chosen.prompt, settings=chosen.settings, seed=chosen.seed, every=every
        )

    def note(self, chosen: ImageChoices[ImageSettings]) -> str:
        # A text that is too long is refused.
        return ""


@dataclasses.dataclass(frozen=True)
class DiffusionImages:
    """Images of a diffusers checkpoint."""

    pipe: DiffusionPipeline
    limits: Limits

    @property
    def own(self) -> tuple[Field, ...]:
        return self._own(7.5)

    @property
    def compared(self) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
        return self._own(3.0), self._own(7.5)

    def _own(self, guidance: float) -> tuple[Field, ...]:
        slider = Slider("Guidance", 1, 20, guidance, 0.5, "1 turns it off")
        return _own(50, self._most_steps, slider)

    @property
    def common(self) -> tuple[Field, ...]:
        names, own = list(self._sizes), self.pipe.schedule.sampler
        return (
            Choice(
                "Size", {name: str(name) for name in names}, names[-1],
                f"In pixels; the model was trained for {names[-1]}", listed=True,
            ),
            Slider(
                "Guidance rescale", 0, 1, 0, 0.05,
                "Reduces the contrast that strong guidance adds; 0 turns it off",
            ),
            Choice(
                "Sampler", SAMPLERS, own, f"The checkpoint's own is {SAMPLERS[own]}", listed=True
            ),
        )  # fmt: skip

    @property
    def size(self) -> str:
        height, width = list(self._sizes.values())[-1]
        return f"{width} × {height}"

    @property
    def params(self) -> Any:
        return self.pipe.params

    @functools.cached_property
    def _sizes(self) -> dict[int | str, tuple[int, int]]:
        """(height, width) by their names on the page, the native size last."""
        sizes = quarter_sizes(self.pipe.native, self.pipe.vae.downsample)
        return {h if h == w else f"{w} × {h}": (h, w) for h, w in sizes}

    @property
    def _most_steps(self) -> int:
        return min(self.limits.steps, self.pipe.schedule.num_train_timesteps)

    def choices(self, prompt: Any, *values: Any) -> ImageChoices[DiffusionSettings]:
        return diffusion_choices(
            prompt, *values, sizes=self._sizes, most_steps=self._most_steps, limits=self.limits
        )

    def programs(self, chosen: ImageChoices[DiffusionSettings]) -> Hashable:
        return diffusion_shape(chosen.settings, 1)

    def stream(self, chosen: ImageChoices[DiffusionSettings], every: int) -> Iterator[ImageStep]:
        return self.pipe.stream_image(
            chosen.prompt, settings=chosen.settings, seed=chosen.seed, every=every
        )

    def note(self, chosen: ImageChoices[DiffusionSettings]) -> str:
        tokenizer = self.pipe.tokenizer
        _, (cut,) = tokenizer.encode([chosen.prompt])
        if not cut:
            return ""
        return (
            f"The model reads {tokenizer.length - 2} tokens of a text: the last {cut} tokens of "
            "this one had no effect."
        )

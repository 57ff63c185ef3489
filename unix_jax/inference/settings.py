"""Settings of generation: one frozen dataclass per task.

Each pipeline's call and its streaming form accept `settings=ImageSettings(...)`, or the fields as
keywords, from which the settings are made. The `...Options` classes declare these keywords for type
checkers.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypedDict, TypeVar

import jax.numpy as jnp

from unix_jax.config import AutoencoderConfig, UniXConfig
from unix_jax.errors import ArgumentNameError, PromptError
from unix_jax.inference.inputs import TINY, choice, interval, number, require, whole
from unix_jax.inference.sampling import RENORMS, SOLVERS, Guidance, Renorm, Solver
from unix_jax.preprocessing.schedule_config import Sampler
from unix_jax.preprocessing.transforms import RESIZES, Resize

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES: tuple[str, ...] = typing.get_args(OutputType)
# A report's bos, an image, and the prompt's bos and eos occupy one position each.
_OTHER_POSITIONS = 4
_MOST_STEPS = 100_000
_OLD_PROGRESS = "callback, which is called with an ImageStep after each step"


class _Settings:
    """Raises an error for unknown names, before the dataclass does, that suggests known ones."""

    # Names of earlier versions, and what replaced them.
    renamed: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *_: Any, **given: Any) -> Self:
        fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in given:
            if name in fields:
                continue
            if name in cls.renamed:
                raise ArgumentNameError(f"{name}: this argument is now {cls.renamed[name]}")
            near = difflib.get_close_matches(name, fields, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentNameError(
                f"{name}: expected an argument of this call or one of {', '.join(fields)}{meant}"
            )
        return super().__new__(cls)


_Kind = TypeVar("_Kind", bound=_Settings)


def settings_of(kind: type[_Kind], settings: _Kind | None, keywords: Mapping[str, Any]) -> _Kind:
    """The given settings, or those made from the keywords.

    Raises:
      PromptError: settings that are not of `kind`, or settings and keywords together.
      ArgumentNameError: a keyword that is not a field.
    """
    made = kind(**keywords)
    if settings is None:
        return made
    require(isinstance(settings, kind), "settings", kind.__name__, settings)
    if keywords:
        raise PromptError(
            f"settings: expected either settings or keywords, found both: {', '.join(keywords)}; "
            "`dataclasses.replace(settings, ...)` changes some of them"
        )
    return settings


# --- reports -----------------------------------------------------------------------------------


class ReportOptions(TypedDict, total=False):
    """The fields of `ReportSettings` as keywords."""

    max_new_tokens: int
    temperature: float
    top_p: float
    resize: Resize


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(_Settings):
    """Settings of report generation.

    Attributes:
      max_new_tokens: maximum number of new tokens, at least 1. Context and new tokens together
        must fit the model's positions.
      temperature: 0 selects greedy decoding; otherwise each token is sampled from
        softmax(logits / temperature).
      top_p: probability mass of the nucleus from which tokens are sampled, in (0, 1].
      resize: how an image is made square for the ViT: `letterbox` (reduced, never enlarged, and
        centred on white, as in the original's evaluation) or `squash` (as in its web demo).
    """

    max_new_tokens: int = 500
    temperature: float = 0.0
    top_p: float = 1.0
    resize: Resize = "letterbox"

    def checked(self, config: UniXConfig) -> Self:
        """The same settings, converted to plain numbers.

        Raises:
          PromptError: a setting that has another type, is not finite, or is out of range.
        """
        positions = config.decoder.max_position_embeddings
        most = positions - _OTHER_POSITIONS
        expected = f"an integer from 1 to {most} ({positions} positions)"
        choice("resize", self.resize, RESIZES)
        return dataclasses.replace(
            self,
            max_new_tokens=whole("max_new_tokens", self.max_new_tokens, 1, most, expected),
            temperature=number("temperature", self.temperature, "a finite number of at least 0", 0),
            top_p=number("top_p", self.top_p, "a number in (0, 1]", TINY, 1),
        )


# --- images ------------------------------------------------------------------------------------


class ImageOptions(TypedDict, total=False):
    """The fields of `ImageSettings` as keywords."""

    height: int | None
    width: int | None
    num_inference_steps: int
    solver: Solver
    timestep_shift: float
    guidance_scale: float
    image_guidance_scale: float
    guidance_interval: tuple[float, float]
    renorm: Renorm
    renorm_min: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(_Settings):
    """Settings of image generation with UniX.

    Attributes:
      height, width: size in pixels, multiples of `config.latent_downsample`; None is 512, or the
        maximum of a smaller model.
      num_inference_steps: number of steps from noise to the image, at least 1. Each step evaluates
        the network once, with the guidance branches as rows of one batch. The original counts the
        points of the time grid, so its 50 points are 49 steps.
      solver: `euler`, as in the original; `ab2` and `pec` reach the same accuracy with fewer
        steps, see `unix_jax.inference.sampling`. They place a grid point at each end of the
        guidance interval.
      timestep_shift: shift of the time grid; values above 1 place more steps near the noise.
      guidance_scale: text guidance; 1 or less turns guidance off.
      image_guidance_scale: image guidance; 1 or less turns it off, and above 1 it requires text
        guidance. Without a condition image it increases the text guidance to
        1 + image_guidance_scale * (guidance_scale - 1), as in the original.
      guidance_interval: guidance is applied at times in (low, high], 0 <= low <= high <= 1.
      renorm: `global` (over an image), `channel` (per token) or `text_channel` (per token, after
        the text guidance only).
      renorm_min: lower bound of the renormalisation factor, in [0, 1].
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "num_steps": "num_inference_steps, the number of steps. num_steps counted the points of "
        "the time grid, so num_steps=50 is num_inference_steps=49",
        "progress": _OLD_PROGRESS,
    }

    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 49
    solver: Solver = "euler"
    timestep_shift: float = 3.0
    guidance_scale: float = 2.0
    image_guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.4, 1.0)
    renorm: Renorm = "global"
    renorm_min: float = 0.0

    def size(self, config: UniXConfig) -> tuple[int, int]:
        """(height, width) in pixels, where None is 512, or the maximum of a smaller model.

        Raises:
          PromptError: a size that this model does not support.
        """
        side = config.latent_downsample
        largest = config.max_latent_size * side
        default = min(512 // side * side or side, largest)
        sides, multiple = [], f"a positive multiple of {side}"
        for name, given in (("height", self.height), ("width", self.width)):
            value = default if given is None else whole(name, given, side, None, multiple)
            sides.append(value)
            require(value % side == 0, name, multiple, value)
            if not config.interpolate_pos:
                require(value <= largest, name, f"at most {largest} (position table)", value)
        return sides[0], sides[1]

    def checked(self, config: UniXConfig) -> Self:
        """The same settings, converted to plain numbers, with the size filled in.

        Raises:
          PromptError: a setting that has another type, is not finite, is not supported by this
            model, or would have no effect.
        """
        height, width = self.size(config)
        choice("renorm", self.renorm, RENORMS)
        choice("solver", self.solver, SOLVERS)
        text, image = (
            number(name, getattr(self, name), "a finite number of at least 0", 0)
            for name in ("guidance_scale", "image_guidance_scale")
        )
        if text <= 1 < image:
            raise PromptError(
                "image_guidance_scale: expected at most 1 without text guidance "
                f"(guidance_scale {text:g}), found {image:g}: it requires text guidance"
            )
        return dataclasses.replace(
            self,
            height=height,
            width=width,
            num_inference_steps=whole(
                "num_inference_steps", self.num_inference_steps, 1, _MOST_STEPS
            ),
            timestep_shift=number("timestep_shift", self.timestep_shift, "a positive number", TINY),
            guidance_scale=text,
            image_guidance_scale=image,
            guidance_interval=interval("guidance_interval", self.guidance_interval),
            renorm_min=number("renorm_min", self.renorm_min, "a number in [0, 1]", 0, 1),
        )

    @property
    def guided(self) -> bool:
        """Whether text guidance is used."""
        return self.guidance_scale > 1

    @property
    def image_guided(self) -> bool:
        """Whether image guidance is used: with text guidance only, as in the original."""
        return self.guided and self.image_guidance_scale > 1

    @property
    def guidance(self) -> Guidance:
        """The guidance as inputs of a compiled program."""
        numbers = (
            self.guidance_scale,
            self.image_guidance_scale,
            *self.guidance_interval,
            self.renorm_min,
        )
        return Guidance(*(jnp.float32(x) for x in numbers))


# --- images of a diffusers checkpoint ----------------------------------------------------------


class DiffusionOptions(TypedDict, total=False):
    """The fields of `DiffusionSettings` as keywords."""

    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    sampler: Sampler | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSettings(_Settings):
    """Settings of image generation with a diffusers checkpoint.

    Attributes:
      height, width: size in pixels, multiples of the autoencoder's factor; None is the size that
        the U-Net was trained for.
      num_inference_steps: number of evaluations of the U-Net per image.
      guidance_scale: guidance against the empty prompt; 1 or less turns it off.
      guidance_rescale: strength, from 0 to 1, of rescaling the guided output to the standard
        deviation of the conditional one.
      sampler: `ddim` or `euler`, on the checkpoint's noise schedule; None is the checkpoint's own.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "num_steps": "num_inference_steps",
        "progress": _OLD_PROGRESS,
    }

    height: int | None = None
    width: int | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    sampler: Sampler | None = None

    def checked(self, vae: AutoencoderConfig, native: tuple[int, int]) -> Self:
        """The same settings, converted to plain numbers, with the size filled in.

        Raises:
          PromptError: a setting that has another type, is out of range, or would have no effect.
        """
        side = vae.downsample
        sizes = []
        for name, latents in zip(("height", "width"), native, strict=True):
            given = getattr(self, name)
            multiple = f"a positive multiple of {side}"
            value = latents * side if given is None else whole(name, given, side, None, multiple)
            require(value % side == 0, name, multiple, value)
            sizes.append(value)
        scale = number("guidance_scale", self.guidance_scale, "a number of at least 0", 0)
        rescale = number("guidance_rescale", self.guidance_rescale, "a number from 0 to 1", 0, 1)
        without = "0 without guidance (guidance_scale of at most 1)"
        require(scale > 1 or rescale == 0, "guidance_rescale", without, rescale)
        if self.sampler is not None:
            choice("sampler", self.sampler, typing.get_args(Sampler))
        return dataclasses.replace(
            self,
            height=sizes[0],
            width=sizes[1],
            num_inference_steps=whole("num_inference_steps", self.num_inference_steps, 1),
            guidance_scale=scale,
            guidance_rescale=rescale,
        )

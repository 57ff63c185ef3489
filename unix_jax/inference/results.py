"""Result types of the pipelines: details of reports and images, and the steps of callbacks.

Letters: B rows, G latent tokens, C numbers in a latent token.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.inference.settings import DiffusionSettings, ImageSettings

FinishReason = Literal["eos", "length"]
_Settings = TypeVar("_Settings", ImageSettings, DiffusionSettings)


@dataclasses.dataclass(frozen=True)
class ReportResult:
    """One report, with the details of its generation.

    Attributes:
      text: the report; None where the checkpoint has no tokenizer.
      token_ids: its tokens, without bos and eos.
      seed: the seed of its sampling, which greedy decoding does not use.
      finish_reason: `eos` if the model ended the report, `length` if it was cut off at
        `max_new_tokens`.
    """

    text: str | None
    token_ids: list[int]
    seed: int
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class ReportStep:
    """Progress of reports after new token `step` of at most `total`.

    Attributes:
      token_ids: the new token of each row, including eos; None for a row that ended earlier.
      pieces: the new text of each row. It may be empty, because a character is returned when all
        of its bytes are known. The concatenated pieces of a row are its report.
    """

    step: int
    total: int
    token_ids: list[int | None]
    pieces: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult(Generic[_Settings]):
    """One image, with the details of its generation.

    Attributes:
      image: a PIL image, pixels [H, W, 3] or latents, according to `output_type`.
      seed: the seed of its noise; None if `initial_noise` was given.
      settings: the settings of the call, with the defaults filled in.
    """

    image: Image.Image | np.ndarray = dataclasses.field(repr=False)
    seed: int | None
    settings: _Settings


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStep:
    """Progress of images after `step` of `total` network evaluations.

    Attributes:
      latents: the state x, float32 [B, G, C]; [B, h, w, C] for a `DiffusionPipeline`.
      estimate: the model's present estimate x - t v of the final latents, with the velocity v of
        the last step. It equals `latents` at the last step, and always for a `DiffusionPipeline`.
    """

    step: int
    total: int
    latents: Float[np.ndarray, "B ..."] = dataclasses.field(repr=False)
    estimate: Float[np.ndarray, "B ..."] = dataclasses.field(repr=False)
    _decode: Callable[[np.ndarray], list[Image.Image]] = dataclasses.field(repr=False)

    @functools.cached_property
    def images(self) -> list[Image.Image]:
        """The estimate as PIL images of mode L. The first access runs the autoencoder's decoder.

        Raises:
          NonFiniteError: pixels that are NaN or infinite.
        """
        return self._decode(self.estimate)


def png_entries(
    prompt: str, seed: int, settings: ImageSettings | DiffusionSettings
) -> dict[str, str]:
    """Text entries of the PNG file of a generated image: its text, its seed and its settings."""
    values = {"prompt": prompt, "seed": seed, "software": "unix-jax"}
    return {key: str(value) for key, value in (values | dataclasses.asdict(settings)).items()}

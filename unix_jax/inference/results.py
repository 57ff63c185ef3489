"""What a pipeline returns beside texts and images, and what it hands to callbacks.

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
    """One report, and how it came about.

    Attributes:
      text: the report; None where the checkpoint has no tokenizer.
      token_ids: its tokens, without bos and eos.
      seed: the seed of its sampling, which greedy decoding does not use.
      finish_reason: `eos` where the model ended it, `length` where it was cut at
        `max_new_tokens`.
    """

    text: str | None
    token_ids: list[int]
    seed: int
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class ReportStep:
    """After new token number `step` of at most `total`.

    Attributes:
      token_ids: the new token of each row, eos included; None for a row that ended before.
      pieces: the new text of each row, which may be empty: the bytes of a character wait until it
        is complete. The pieces of a row, joined, are its report.
    """

    step: int
    total: int
    token_ids: list[int | None]
    pieces: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult(Generic[_Settings]):
    """One image, and how it came about.

    Attributes:
      image: as `output_type` asks: a PIL image, pixels [H, W, 3] or latents.
      seed: the seed of its noise; None where `initial_noise` was given.
      settings: the settings of the call, with their defaults filled in.
    """

    image: Image.Image | np.ndarray = dataclasses.field(repr=False)
    seed: int | None
    settings: _Settings


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStep:
    """Images that are being generated, after `step` of `total` network evaluations.

    Attributes:
      latents: the state, float32 [B, G, C]; [B, h, w, C] of a `DiffusionPipeline`.
      estimate: the latents of the images that the model predicts at this step, x - t v, with the
        velocity of the step just taken. In the last step they are `latents`; for a
        `DiffusionPipeline` they always are.
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

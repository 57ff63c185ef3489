"""RAD-DINO features of images, with the two resizes of the image protocol.

An image is squashed to 299 x 299, ignoring its aspect ratio (the size of the Inception network,
which the protocol's code also feeds), and then prepared as in RAD-DINO's own processor: the shorter
side to 518, a centre crop, RAD-DINO's statistics.
Letters: N images, H W pixels, D width.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.errors import MetricError
from unix_jax.models.dinov2 import RAD_DINO_MEAN, RAD_DINO_STD, Dinov2, Dinov2Config, pooled
from unix_jax.preprocessing.images import ImageSource, load_image
from unix_jax.preprocessing.transforms import normalize

PROTOCOL_SIDE = 299


def rad_dino_image(
    image: Image.Image, size: int = 518, squash: int | None = PROTOCOL_SIDE
) -> Float[np.ndarray, "H W 3"]:
    """The encoder's input, `size` x `size`, of an RGB image.

    Args:
      image: the result of `images.load_image`.
      size: side of the encoder's input.
      squash: side of the square to which the image is first resized (bilinear, antialias), ignoring
        its aspect ratio; None skips this.

    Raises:
      MetricError: a size below 1.
    """
    for name, side in (("size", size), ("squash", squash)):
        if side is not None and side < 1:
            raise MetricError(f"{name}: expected at least 1 pixel, found {side}")
    if squash is not None:
        image = image.resize((squash, squash), Image.Resampling.BILINEAR)
    shorter = min(image.size)
    # The longer side is rounded down, as the processor does.
    width, height = (side * size // shorter for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    return normalize(image, RAD_DINO_MEAN, RAD_DINO_STD)


@dataclasses.dataclass(frozen=True, eq=False)
class RadDino:
    """The encoder as a function from images to features; build it by `from_pretrained`."""

    config: Dinov2Config
    params: Any = dataclasses.field(repr=False)
    apply: Callable[..., Any] = dataclasses.field(repr=False)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, dtype: Any = None) -> "RadDino":
        """Reads a directory such as `microsoft/rad-dino`'s.

        Args:
          path: with `config.json` and `model.safetensors`.
          dtype: floating-point dtype of weights and arithmetic; None takes the file's, float32.

        Raises:
          CheckpointError, ConfigError: a file is missing or broken, or they do not fit each other.
        """
        from unix_jax.checkpoints.rad_dino_files import load_dinov2

        config, params = load_dinov2(path, dtype=dtype)
        model = Dinov2(config, params["cls_token"].dtype)

        def encode(params: Any, pixels: Any) -> Any:
            tokens: Any = model.apply({"params": params}, pixels)
            return pooled(tokens)

        return cls(config, params, jax.jit(encode))

    def features(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = 16,
        squash: int | None = PROTOCOL_SIDE,
        progress: Callable[[int], None] | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """The pooled output of each image, float32.

        Args:
          images: paths, bytes, PIL images or arrays, as for `images.load_image`; read when needed.
          batch_size: images per batch.
          squash: as `rad_dino_image`; None for RAD-DINO's own preprocessing alone.
          progress: called with the number of images done since the last call.

        Raises:
          ImageError: an image cannot be read. MetricError: an argument out of range.
        """
        blocks = []
        for block in self.blocks(images, batch_size=batch_size, squash=squash):
            blocks.append(block)
            if progress is not None:
                progress(len(block))
        return np.concatenate([np.zeros((0, self.config.hidden_size), np.float32), *blocks])

    def blocks(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = 16,
        squash: int | None = PROTOCOL_SIDE,
    ) -> Iterator[Float[np.ndarray, "n D"]]:
        """As `features`, a batch at a time: for `streaming.Moments`, or a file on disk."""
        if batch_size < 1:
            raise MetricError(f"batch_size: expected at least 1, found {batch_size}")
        waiting: list[np.ndarray] = []
        for source in images:
            waiting.append(rad_dino_image(load_image(source), self.config.image_size, squash))
            if len(waiting) == batch_size:
                yield self._encode(waiting, batch_size)
                waiting = []
        if waiting:
            yield self._encode(waiting, batch_size)

    def _encode(self, pixels: list[np.ndarray], batch_size: int) -> np.ndarray:
        # One shape is compiled: the last batch repeats its last image.
        batch = np.stack(pixels + pixels[-1:] * (batch_size - len(pixels)))
        return np.asarray(self.apply(self.params, batch), np.float32)[: len(pixels)]

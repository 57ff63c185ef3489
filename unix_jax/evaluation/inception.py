"""Inception-v3 features by the package `torch-fidelity`, for FID, KID and the Inception score.

The network is that of the benchmark, which uses it from the same package through torchmetrics. The
user supplies the weights, which are read without executing anything in them.
Letters: N images, K classes.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.errors import CheckpointError, MetricError
from unix_jax.evaluation.batches import batches
from unix_jax.extras import require
from unix_jax.preprocessing.images import ImageSource, load_image

SIDE = 299
_PURPOSE, _PACKAGE = "Inception-v3", "unix-jax[inception]"
_FEATURES = ["2048", "logits_unbiased"]


@dataclasses.dataclass(frozen=True, eq=False)
class Inception:
    """The network as a function of images; build it by `from_pretrained`."""

    network: Any = dataclasses.field(repr=False)
    device: str = "cpu"

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, device: str = "cpu") -> "Inception":
        """Reads torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`.

        Args:
          path: the file, or one with the same keys in safetensors.
          device: torch's name of the device.

        Raises:
          CheckpointError: the file is missing or broken, or does not fit the network.
          UniXError: `torch-fidelity` is not installed, or does not run with this torch.
        """
        from unix_jax.checkpoints.formats.readers import open_tensors

        torch = require("torch", _PURPOSE, _PACKAGE)
        module = require("torch_fidelity.feature_extractor_inceptionv3", _PURPOSE, _PACKAGE)
        with open_tensors(os.fspath(path)) as tensors:
            state = {key: torch.from_numpy(np.array(tensors.read(key))) for key in tensors}
        with tempfile.TemporaryDirectory() as folder:
            # The package unpickles the file that it is given without limits: it gets our own copy.
            copy = Path(folder) / "inception.pth"
            torch.save(state, copy)
            try:
                network = module.FeatureExtractorInceptionV3(
                    "inception", _FEATURES, feature_extractor_weights_path=str(copy)
                )
            except RuntimeError as error:  # keys or shapes that do not fit
                reason = " ".join(str(error).split())[:300]
                raise CheckpointError(
                    f"{path}: expected the weights of torch-fidelity's Inception-v3: {reason}"
                ) from error
        return cls(network.eval().to(device), device)

    def features(
        self, images: Iterable[ImageSource], *, batch_size: int = 32
    ) -> tuple[Float[np.ndarray, "N 2048"], Float[np.ndarray, "N K"]]:
        """(pooled features, logits without bias) of each image, squashed to 299 x 299.

        Raises:
          ImageError: an image cannot be read. MetricError: `batch_size` below 1.
        """
        torch = require("torch", _PURPOSE, _PACKAGE)
        pooled, logits = [np.zeros((0, 2048), np.float32)], list[np.ndarray]()
        for batch in batches(map(inception_image, images), batch_size):
            with torch.inference_mode():
                found = self.network(torch.from_numpy(np.stack(batch)).to(self.device))
            for rows, one in zip((pooled, logits), found, strict=True):
                rows.append(one.float().cpu().numpy())
        return np.concatenate(pooled), np.concatenate(logits or [np.zeros((0, 1008), np.float32)])


def inception_image(source: ImageSource) -> np.ndarray:
    """uint8 [3, 299, 299], the image squashed (bilinear, antialias) as in the image protocol."""
    image = load_image(source).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))


def softmax(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Probabilities of classes, in float64.

    Raises:
      MetricError: a number is not finite.
    """
    values = np.asarray(logits, np.float64)
    if not np.isfinite(values).all():
        raise MetricError("logits: expected finite numbers, found NaN or infinity")
    powers = np.exp(values - values.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)

"""Re-identification: probability that two chest X-rays are of one patient, by a siamese ResNet-50.

This is the benchmark's privacy score. The network is torchvision's; the user supplies its weights
(`ResNet-50_epoch11_data_handling_RPN.pth`), which are read without executing anything in them.
Source: Packhäuser et al., arXiv 2103.08562; CheXGenBench, arXiv 2505.10496. Letters: N, M images.
"""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.evaluation.batches import batches
from unix_jax.evaluation.torch_weights import load_weights
from unix_jax.extras import require

_PURPOSE, _PACKAGE = "Re-identification", "unix-jax[reid]"
_SIDE, _FEATURES = 224, 128


@dataclasses.dataclass(frozen=True, eq=False)
class Reidentification:
    """The siamese network; build it by `from_pretrained`."""

    network: Any = dataclasses.field(repr=False)
    weight: Float[np.ndarray, " 128"] = dataclasses.field(repr=False)
    bias: float
    device: str = "cpu"

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, device: str = "cpu"
    ) -> "Reidentification":
        """Reads the state of the benchmark's `SiameseNetwork`: `model.*` and `fc_end.*`.

        Args:
          path: the file.
          device: torch's name of the device.

        Raises:
          CheckpointError: the file is missing or broken, or does not fit the network.
          UniXError: `torchvision` is not installed, or does not run with this torch.
        """
        torch = require("torch", _PURPOSE, _PACKAGE)
        models = require("torchvision.models", _PURPOSE, _PACKAGE)
        branch = models.resnet50(weights=None)
        branch.fc = torch.nn.Linear(2048, _FEATURES)
        both = torch.nn.ModuleDict({"model": branch, "fc_end": torch.nn.Linear(_FEATURES, 1)})
        load_weights(both, path, torch)
        last = both["fc_end"]
        weight = last.weight.detach().numpy()[0].astype(np.float64)
        return cls(branch.eval().to(device), weight, float(last.bias.detach()[0]), device)

    def embeddings(
        self, images: Iterable[Image.Image], *, batch_size: int = 16
    ) -> Float[np.ndarray, "N 128"]:
        """The embedding of each RGB image with values in [0, 1].

        Raises:
          MetricError: `batch_size` below 1.
        """
        torch = require("torch", _PURPOSE, _PACKAGE)
        found = [np.zeros((0, _FEATURES), np.float32)]
        for batch in batches(map(_pixels, images), batch_size):
            with torch.inference_mode():
                output = self.network(torch.from_numpy(np.stack(batch)).to(self.device))
            found.append(torch.sigmoid(output).float().cpu().numpy())
        return np.concatenate(found)

    def scores(
        self, first: Float[np.ndarray, "N 128"], second: Float[np.ndarray, "M 128"]
    ) -> Float[np.ndarray, "N M"]:
        """The score of each pair of embeddings, in [0, 1]; near 1 for one patient."""
        total = np.full((len(first), len(second)), self.bias)
        for column, weight in enumerate(self.weight):
            total += weight * np.abs(first[:, column, None] - second[None, :, column])
        return 1 / (1 + np.exp(-np.clip(total, -500, 500)))


def _pixels(image: Image.Image) -> np.ndarray:
    small = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).transpose(2, 0, 1) / np.float32(255)

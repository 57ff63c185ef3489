"""Image-text alignment: the cosine of BioViL-T's embeddings of an image and of its prompt.

The networks are those of the package `hi-ml-multimodal`, in PyTorch; the user supplies weights and
vocabulary, which are read without executing anything. The package's own preprocessing is
reimplemented here: its tokenizer calls no longer exist in current `transformers`, and its image
reader only accepts paths.
Source: Bannur et al., arXiv 2301.04558. Letters: N pairs, E width of an embedding.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from unix_jax.errors import CheckpointError, MetricError
from unix_jax.evaluation.batches import batches
from unix_jax.evaluation.rows import FeatureRows, check_reports
from unix_jax.evaluation.torch_weights import load_weights
from unix_jax.evaluation.wordpiece import VOCABULARY_NAMES, WordPiece
from unix_jax.extras import require
from unix_jax.preprocessing.images import ImageSource, load_image
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json

IMAGE_WEIGHTS = "biovil_t_image_model_proj_size_128.pt"
_RESIZED, _CROPPED = 512, 448
_PURPOSE, _PACKAGE = "BioViL-T", "hi-ml-multimodal>=0.2.2"
# The heads that predict masked words take no part in an embedding.
_UNUSED_TEXT_KEYS = ("cls.predictions.", "bert.embeddings.position_ids")


def cosine_similarities(
    image_embeddings: Float[np.ndarray, "N E"], text_embeddings: Float[np.ndarray, "N E"]
) -> Float[np.ndarray, " N"]:
    """The cosine of each pair of rows, in [-1, 1]; 0 if a row is all zeros.

    Raises:
      MetricError: not finite numbers, or arrays of different shapes.
    """
    first = FeatureRows(image_embeddings, "image_embeddings")
    second = FeatureRows(text_embeddings, "text_embeddings")
    if (first.count, first.width) != (second.count, second.width):
        raise MetricError(
            f"text_embeddings: expected {[first.count, first.width]} as image_embeddings, "
            f"found {[second.count, second.width]}"
        )
    images, texts = first.block(0, first.count), second.block(0, second.count)
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    products = (images * texts).sum(1)
    return np.clip(np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0), -1, 1)


def biovil_image(image: Image.Image) -> Float[np.ndarray, "3 448 448"]:
    """The image network's input of an RGB image: gray, its range scaled to [0, 1].

    The shorter side is resized to 512 (bilinear, antialias), then the centre is cropped. An image
    of one gray level becomes black.
    """
    pixels = np.asarray(image, np.float64)
    low, high = pixels.min(), pixels.max()
    stretched = (pixels - low) / max(high - low, 1) * 255
    gray = Image.fromarray(stretched.astype(np.uint8)).convert("L")
    shorter = min(gray.size)
    width, height = (side * _RESIZED // shorter for side in gray.size)
    gray = gray.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - _CROPPED) / 2), round((height - _CROPPED) / 2)
    gray = gray.crop((left, top, left + _CROPPED, top + _CROPPED))
    return np.repeat(np.asarray(gray, np.float32)[None] / np.float32(255), 3, axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class BioViLT:
    """Both networks of BioViL-T; build it by `from_pretrained`."""

    image_network: Any = dataclasses.field(repr=False)
    text_network: Any = dataclasses.field(repr=False)
    tokenizer: WordPiece
    max_tokens: int
    device: str = "cpu"

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, device: str = "cpu") -> "BioViLT":
        """Reads a directory such as `microsoft/BiomedVLP-BioViL-T`'s.

        Args:
          path: with `config.json`, `vocab.txt`, `pytorch_model.bin` or `model.safetensors`, and
            `biovil_t_image_model_proj_size_128.pt`.
          device: torch's name of the device.

        Raises:
          CheckpointError, ConfigError: a file is missing or broken, or they do not fit each other.
          UniXError: `hi-ml-multimodal` is not installed, or does not run with this torch.
        """
        from unix_jax.checkpoints.hub_files import alignment_files

        directory = located(path, alignment_files)
        raw = read_json(directory / "config.json")
        tokenizer = WordPiece.beside(directory)
        if tokenizer is None:
            raise CheckpointError(f"{directory}: expected one of {', '.join(VOCABULARY_NAMES)}")
        torch = require("torch", _PURPOSE, _PACKAGE)
        text_module = require("health_multimodal.text.model", _PURPOSE, _PACKAGE)
        image_module = require("health_multimodal.image.model.model", _PURPOSE, _PACKAGE)
        try:
            text_network = text_module.CXRBertModel(text_module.CXRBertConfig(**raw))
            image_network = image_module.ImageModel(
                img_encoder_type="resnet50_multi_image", joint_feature_size=128
            )
        except Exception as error:  # whatever torch and transformers raise on a wrong config.json
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{directory / 'config.json'}: hi-ml-multimodal cannot build BioViL-T: {reason}"
            ) from error
        load_weights(text_network, directory, torch, _UNUSED_TEXT_KEYS)
        load_weights(image_network, directory / IMAGE_WEIGHTS, torch)
        for network in (text_network, image_network):
            network.eval().to(device)
        limit = int(text_network.config.max_position_embeddings)
        return cls(image_network, text_network, tokenizer, limit, device)

    def scores(
        self, images: Iterable[ImageSource], texts: Sequence[str], *, batch_size: int = 16
    ) -> Float[np.ndarray, " N"]:
        """The cosine of each image and its text.

        Raises:
          ImageError: an image cannot be read. MetricError: different numbers of images and texts.
        """
        check_reports(texts=texts)
        image_rows = self.image_embeddings(images, batch_size=batch_size)
        if len(image_rows) != len(texts):
            raise MetricError(f"texts: expected {len(image_rows)} as images, found {len(texts)}")
        return cosine_similarities(image_rows, self.text_embeddings(texts, batch_size=batch_size))

    def image_embeddings(
        self, images: Iterable[ImageSource], *, batch_size: int = 16
    ) -> Float[np.ndarray, "N E"]:
        """The projected global embedding of each image, not normalised."""
        torch = require("torch", _PURPOSE, _PACKAGE)
        embeddings: list[np.ndarray] = []
        for batch in batches((biovil_image(load_image(image)) for image in images), batch_size):
            with torch.inference_mode():
                output = self.image_network(torch.from_numpy(np.stack(batch)).to(self.device))
            embeddings.append(output.projected_global_embedding.float().cpu().numpy())
        return np.concatenate(embeddings) if embeddings else np.zeros((0, 128), np.float32)

    def text_embeddings(
        self, texts: Sequence[str], *, batch_size: int = 16
    ) -> Float[np.ndarray, "N E"]:
        """The projected embedding of each text without final "!", "?", "."; not normalised."""
        torch = require("torch", _PURPOSE, _PACKAGE)
        check_reports(texts=texts)
        ids = self.tokenizer.encode([text.rstrip("!?.") for text in texts], self.max_tokens)
        embeddings: list[np.ndarray] = []
        for batch in batches(ids, batch_size):
            longest = max(len(row) for row in batch)
            tokens, mask = np.zeros((2, len(batch), longest), np.int64)
            for place, row in enumerate(batch):
                tokens[place, : len(row)], mask[place, : len(row)] = row, 1
            with torch.inference_mode():
                output = self.text_network.get_projected_text_embeddings(
                    input_ids=torch.from_numpy(tokens).to(self.device),
                    attention_mask=torch.from_numpy(mask).to(self.device),
                    normalize_embeddings=False,
                )
            embeddings.append(output.float().cpu().numpy())
        return np.concatenate(embeddings) if embeddings else np.zeros((0, 128), np.float32)

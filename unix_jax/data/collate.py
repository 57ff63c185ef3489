"""Rows of loaded samples -> one `TrainingBatch` of numpy arrays.

Letters as in `batch`: B rows, U und tokens, G latent tokens, I, J ViT and VAE images of a row, T
latent tokens of a VAE image.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.data.samples import TrainingSample
from unix_jax.data.slots import in_slots, slots_of
from unix_jax.preprocessing.layout import (
    Layout,
    TextSplit,
    VaeSplit,
    VitSplit,
    lay_out,
    stream_lengths,
)


@dataclasses.dataclass(frozen=True)
class LoadedSample:
    """A sample with the arrays of its image loaders, in order."""

    sample: TrainingSample
    images: tuple[np.ndarray, ...]


Row = Sequence[LoadedSample]


def load(sample: TrainingSample) -> LoadedSample:
    """Reads the sample's images; raises the errors of its loaders."""
    return LoadedSample(sample, tuple(read() for read in sample.images))


def collate(rows: Sequence[Row], config: UniXConfig, data: DataConfig) -> TrainingBatch:
    """Lays out rows, each padded to the size in `data`; an empty row consists of padding.

    With `data.text_tokens`, the images of a row are in slots; without, in the order of the samples.

    Raises:
      ValueError: a row does not fit, or an image is not of the size of all others of its kind.
      ConfigError: slots that do not fit a row.
    """
    slots = slots_of(config, data)
    layout = lay_out(
        [[loaded.sample.splits for loaded in row] for row in rows],
        config,
        data.und_tokens,
        data.gen_tokens(config),
    )
    labels = np.zeros(layout.token_ids.shape, np.int32)
    ce_weights = np.zeros(layout.token_ids.shape, np.float32)
    for index, row in enumerate(rows):
        _write_text_losses(row, config, data, labels[index], ce_weights[index])
    fields: dict[str, Any] = {
        "token_ids": layout.token_ids,
        "und": layout.und,
        "labels": labels,
        "ce_weights": ce_weights,
    }
    if data.vit_images:
        fields |= _vit_fields(rows, layout, config, data)
    if data.vae_images:
        fields |= _vae_fields(rows, layout, config, data)
    batch = TrainingBatch(**fields)
    return batch if slots is None else in_slots(batch, slots)


def _write_text_losses(
    row: Row, config: UniXConfig, data: DataConfig, labels: np.ndarray, weights: np.ndarray
) -> None:
    """Each token of a loss text predicts the next one: bos the first id, the last id eos."""
    place = 0
    for loaded in row:
        for split, loss in zip(loaded.sample.splits, loaded.sample.losses, strict=True):
            length, _ = stream_lengths([[split]], config)
            if loss and isinstance(split, TextSplit) and length > 1:
                predicted = slice(place, place + length - 1)
                labels[predicted] = split.ids[1:]
                weights[predicted] = 1.0 if data.ce_weighting == "token" else (length - 1) ** -0.5
            place += length


def _vit_fields(
    rows: Sequence[Row], layout: Layout, config: UniXConfig, data: DataConfig
) -> dict[str, Any]:
    size = config.vision.image_size
    images = [
        [image for split, _, image in _images(row) if isinstance(split, VitSplit)] for row in rows
    ]
    return {
        "vit_pixels": _stacked(
            images, data.vit_images, (size, size, 1 if data.grayscale else 3), np.uint8
        ),
        "vit_index": layout.vit_index,
    }


def _vae_fields(
    rows: Sequence[Row], layout: Layout, config: UniXConfig, data: DataConfig
) -> dict[str, Any]:
    grid = data.latent_grid(config)
    images: list[list[np.ndarray]] = []
    noised = np.zeros((len(rows), data.vae_images), bool)
    losses = np.zeros((len(rows), data.vae_images), np.float32)
    for index, row in enumerate(rows):
        found = [item for item in _images(row) if isinstance(item[0], VaeSplit)]
        images.append([image for _, _, image in found])
        for place, (split, loss, _) in enumerate(found):
            if (split.height, split.width) != grid:
                raise ValueError(
                    f"VAE image: expected {grid[0]} x {grid[1]} latent tokens, "
                    f"found {split.height} x {split.width}"
                )
            noised[index, place], losses[index, place] = split.noised, loss
    if data.moments is None:
        size = (data.vae_height, data.vae_width, 1 if data.grayscale else 3)
        inputs = {"vae_pixels": _stacked(images, data.vae_images, size, np.uint8)}
    else:
        side = config.vae.downsample
        size = (data.vae_height // side, data.vae_width // side, 2 * config.vae.embed_dim)
        inputs = {"vae_moments": _stacked(images, data.vae_images, size, np.float32)}
    # Images have one size and are consecutive, so a latent's index determines its image.
    places = np.arange(layout.gen.segment.shape[1], dtype=np.int32)
    real = np.asarray(layout.gen.segment) > 0
    return inputs | {
        "gen": layout.gen,
        "latent_index": np.where(real, places, -1).astype(np.int32),
        "latent_position_ids": layout.latent_position_ids,
        "noised": noised,
        "mse_weights": np.repeat(losses, grid[0] * grid[1], axis=1),
    }


def _images(row: Row) -> list[tuple[Any, bool, np.ndarray]]:
    """(split, loss, array) of the row's images of both kinds, in order."""
    found = []
    for loaded in row:
        arrays = iter(loaded.images)
        for split, loss in zip(loaded.sample.splits, loaded.sample.losses, strict=True):
            if not isinstance(split, TextSplit):
                found.append((split, loss, next(arrays)))
    return found


def _stacked(
    rows: Sequence[Sequence[np.ndarray]], count: int, size: tuple[int, ...], dtype: type
) -> np.ndarray:
    """[B, count, *size]; absent images are zeros."""
    out: np.ndarray = np.zeros((len(rows), count, *size), dtype)
    for index, images in enumerate(rows):
        for place, image in enumerate(images):
            if image.shape != size:
                raise ValueError(f"image: expected shape {list(size)}, found {list(image.shape)}")
            out[index, place] = image
    return out

"""What a diffusers folder says of itself: its configurations, and its numbers of parameters.

Nothing here reads weights or imports JAX: `unix-jax info` answers at once.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unix_jax.checkpoints.configurations import is_diffusers_checkpoint
from unix_jax.checkpoints.diffusers_config import (
    Fields,
    read_schedule,
    read_text_config,
    read_unet_config,
    read_vae_config,
)
from unix_jax.checkpoints.formats.readers import open_weights
from unix_jax.checkpoints.formats.weight_files import DIFFUSERS_NAMES, find_weights, weight_files
from unix_jax.checkpoints.index import read_index
from unix_jax.config import AutoencoderConfig
from unix_jax.errors import ConfigError
from unix_jax.models.encoder_config import BertConfig, ClipTextConfig
from unix_jax.models.unet_config import JointAttention, UNetConfig
from unix_jax.preprocessing.schedule_config import ScheduleConfig
from unix_jax.storage import recorded_files
from unix_jax.storage.json_file import read_json

INDEX = "model_index.json"
_PIPELINE = "StableDiffusionPipeline"
_CLASSES = {"unet": {"UNet2DConditionModel"}, "vae": {"AutoencoderKL"}}
# Parts with weights, and where a checkpoint of this project keeps them.
PARTS = {"unet": "params", "vae": "vae", "text_encoder": "text_encoder"}
# Counters, poolers and heads that the hidden states do not read.
_TEXT_UNUSED = re.compile(
    r"((text_model|bert)\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))"
    r"|text_projection\.weight|cls\..*|cls_projection_head\..*"
)


def is_unused(part: str) -> Callable[[str], Any]:
    """Whether a key of a part is unused."""
    return _TEXT_UNUSED.fullmatch if part == "text_encoder" else lambda key: False


class DiffusersSizes:
    """The configurations of the parts of one folder; each file is read on demand.

    Args:
      path: the folder.
      joint: where given, the U-Net's attention is UniX's instead of cross-attention to text.

    Raises:
      ConfigError: `model_index.json` names another pipeline or another kind of a part.
    """

    def __init__(self, path: str | os.PathLike[str], joint: JointAttention | None = None):
        self.path = Path(path)
        self._joint = joint
        if (self.path / INDEX).is_file():
            self._check_index(read_json(self.path / INDEX, max_bytes=1 << 20))

    def _check_index(self, raw: Any) -> None:
        where = self.path / INDEX
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        if raw.get("_class_name") != _PIPELINE:
            raise ConfigError(
                f"{where}: _class_name: expected {_PIPELINE}, found {raw.get('_class_name')!r}"
            )
        for part, classes in _CLASSES.items():
            found = raw.get(part)
            if not isinstance(found, list) or len(found) != 2 or found[1] not in classes:
                raise ConfigError(f"{where}: {part}: expected {sorted(classes)}, found {found!r}")

    def _fields(self, part: str, class_name: str | None = None) -> Fields:
        return Fields.of_file(self.path / part / "config.json", class_name)

    @functools.cached_property
    def unet_config(self) -> tuple[UNetConfig, bool]:
        """The U-Net's sizes, and whether its projections are linear."""
        config, linear = read_unet_config(self._fields("unet", "UNet2DConditionModel"))
        if self._joint is not None:
            config = dataclasses.replace(config, context=self._joint)
        return config, linear

    @functools.cached_property
    def native_size(self) -> tuple[int, int]:
        """(rows, columns) of the latents that the U-Net was trained for; 64 x 64 by default.

        Raises:
          ConfigError: `sample_size` is not a size.
        """
        found = self._fields("unet").take("sample_size")
        sides = [64 if found is None else found] * 2 if not isinstance(found, list) else found
        if len(sides) != 2 or not all(type(n) is int and 1 <= n <= 4096 for n in sides):
            raise ConfigError(
                f"{self.path / 'unet' / 'config.json'}: sample_size: expected one or two integers "
                f"from 1 to 4096, found {found!r}"
            )
        return sides[0], sides[1]

    @functools.cached_property
    def vae_config(self) -> AutoencoderConfig:
        """The autoencoder's sizes."""
        return read_vae_config(self._fields("vae", "AutoencoderKL"))

    @functools.cached_property
    def text_config(self) -> ClipTextConfig | BertConfig:
        """The text encoder's sizes; their type identifies the encoder."""
        return read_text_config(self._fields("text_encoder"))

    @functools.cached_property
    def schedule_config(self) -> ScheduleConfig:
        """The settings of the noise schedule and the sampler."""
        return read_schedule(self.path / "scheduler" / "scheduler_config.json")

    def sizes(self) -> dict[str, Any]:
        """The configuration of every part, by the part's name; dataclasses."""
        return {
            "unet": self.unet_config[0],
            "vae": self.vae_config,
            "text_encoder": self.text_config,
            "scheduler": self.schedule_config,
        }

    def parameter_counts(self) -> dict[str, int]:
        """The number of parameters of each part that has weights, from the tables of its files.

        Raises:
          CheckpointError: a file of weights is broken.
        """
        found = {}
        for part in PARTS:
            directory = self.path / part
            if not directory.is_dir() or not weight_files(directory):
                continue
            with open_weights(find_weights(directory, preferred=DIFFUSERS_NAMES[part])) as tensors:
                found[part] = sum(
                    math.prod(tensors.info(key).shape)
                    for key in tensors.keys()  # noqa: SIM118
                    if not is_unused(part)(key)
                )
        return found


class ImportedSizes(DiffusersSizes):
    """The configurations of a checkpoint that `import_diffusers` wrote, from its `source/`."""

    def __init__(self, path: str | os.PathLike[str], joint: JointAttention | None = None):
        self.directory = Path(path)
        entries = recorded_files.read_listed(self.directory)
        recorded_files.require(self.directory, entries, entries)
        super().__init__(self.directory / "source", joint)

    def parameter_counts(self) -> dict[str, int]:
        index = read_index(self.directory)
        return {
            part: sum(math.prod(entry["shape"]) for entry in index.get(stored, {}).values())
            for part, stored in PARTS.items()
        }


def read_sizes(path: str | os.PathLike[str]) -> DiffusersSizes:
    """The sizes of a diffusers folder, as published or imported; errors as `DiffusersSizes`."""
    return ImportedSizes(path) if is_diffusers_checkpoint(path) else DiffusersSizes(path)

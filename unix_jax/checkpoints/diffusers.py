"""Reads a diffusers folder of `StableDiffusionPipeline`, as it is published.

    model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/

Each part is opened on demand, so a folder may lack unused parts.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from unix_jax.checkpoints.diffusers_config import (
    Fields,
    read_schedule,
    read_text_config,
    read_unet_config,
    read_vae_config,
)
from unix_jax.checkpoints.diffusers_table import bert_table, clip_table, kl_table, unet_table
from unix_jax.checkpoints.file_leaves import table_leaves
from unix_jax.checkpoints.formats.readers import open_weights
from unix_jax.checkpoints.formats.tensor_source import TensorSource
from unix_jax.checkpoints.formats.weight_files import DIFFUSERS_NAMES, WeightFiles, find_weights
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published import check_keys
from unix_jax.checkpoints.table import Entry
from unix_jax.config import AutoencoderConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.bert import BertConfig
from unix_jax.models.clip import ClipTextConfig
from unix_jax.models.unet_config import JointAttention, TextAttention, UNetConfig
from unix_jax.preprocessing.noise_schedule import NoiseSchedule
from unix_jax.preprocessing.prompt_tokenizer import PromptTokenizer
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


@dataclasses.dataclass(frozen=True)
class OpenPart:
    """Which files hold a part's weights, their tensors, and the table that maps them."""

    weights: WeightFiles
    tensors: TensorSource
    table: tuple[Entry, ...]


class DiffusersFolder:
    """The parts of one folder; each holds its sizes and its parameters in float32.

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
    def schedule(self) -> NoiseSchedule:
        """The noise schedule and the sampler."""
        return read_schedule(self.path / "scheduler" / "scheduler_config.json")

    @functools.cached_property
    def tokenizer(self) -> PromptTokenizer:
        """The tokenizer of prompts."""
        return PromptTokenizer.from_directory(self.path / "tokenizer")

    @functools.cached_property
    def unet(self) -> dict[str, Any]:
        """Parameters of `models.unet.UNet`."""
        return self._load("unet")

    @functools.cached_property
    def vae(self) -> dict[str, Any]:
        """Parameters of `models.autoencoder.Autoencoder`."""
        return self._load("vae")

    @functools.cached_property
    def text_encoder(self) -> dict[str, Any]:
        """Parameters of `models.clip.ClipText` or `models.bert.Bert`."""
        return self._load("text_encoder")

    def table(self, part: str, keys: Collection[str]) -> tuple[Entry, ...]:
        """The table of a part's weights; `keys` determine which published form they have."""
        if part == "unet":
            return unet_table(*self.unet_config)
        if part == "vae":
            old = "encoder.mid_block.attentions.0.query.weight" in keys
            return kl_table(self.vae_config, old)
        config = self.text_config
        if isinstance(config, ClipTextConfig):
            table = clip_table(config, "text_model.")
            return table if table[0].key in keys else clip_table(config)
        table = bert_table(config, "bert.")
        return table if table[0].key in keys else bert_table(config)

    @contextlib.contextmanager
    def open_part(self, part: str) -> Iterator[OpenPart]:
        """A part's tensors, checked against its sizes, not read.

        Raises:
          CheckpointError: there are no weights, they are broken, or keys are missing, unexpected
            or wrongly shaped: all in one listing.
        """
        directory = self.path / part
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: expected a directory, found none")
        weights = find_weights(directory, preferred=DIFFUSERS_NAMES[part])
        opened = open_weights(weights)
        try:
            table = self.table(part, set(opened.keys()))
        except BaseException:
            opened.close()
            raise
        with unwrapped(opened, known_names(table), keep=is_unused(part)) as tensors:
            check_keys(tensors, table, is_unused(part), [])
            yield OpenPart(weights, tensors, table)

    def _load(self, part: str) -> dict[str, Any]:
        with self.open_part(part) as opened:
            leaves = table_leaves(opened.table, opened.tensors)
            return place_tree(leaves, jnp.float32, source=str(opened.tensors.path))

    def sizes(self) -> dict[str, Any]:
        """The configuration of every part, by the part's name; dataclasses."""
        return {
            "unet": self.unet_config[0],
            "vae": self.vae_config,
            "text_encoder": self.text_config,
            "scheduler": self.schedule,
        }

    def parameter_counts(self) -> dict[str, int]:
        """The number of parameters of every part with weights, by its sizes."""
        return {
            part: sum(math.prod(entry.stacked_shape) for entry in self.table(part, ()))
            for part in PARTS
        }

    def check(self) -> None:
        """Reads every part's configuration, and compares the sizes that two of them state.

        Raises:
          CheckpointError, ConfigError: a part is missing or broken, or two parts disagree.
        """
        unet, vae, text = self.unet_config[0], self.vae_config, self.text_config
        assert isinstance(unet.context, TextAttention)
        tokens, largest = self.tokenizer, max(self.tokenizer.backend.get_vocab().values())
        for where, name, found, expected in (
            ("unet", "in_channels", unet.in_channels, vae.z_channels),
            ("unet", "out_channels", unet.out_channels, vae.z_channels),
            ("unet", "cross_attention_dim", unet.context.width, text.hidden_size),
        ):
            if found != expected:
                raise ConfigError(
                    f"{self.path / where / 'config.json'}: {name}: expected {expected}, as the "
                    f"autoencoder and the text encoder have, found {found}"
                )
        for name, least, found in (
            ("vocab_size", largest + 1, text.vocab_size),
            ("max_position_embeddings", tokens.length, text.max_positions),
        ):
            if found < least:
                raise ConfigError(
                    f"{self.path / 'text_encoder' / 'config.json'}: {name}: expected at least "
                    f"{least} for the tokenizer, found {found}"
                )
        self.schedule  # noqa: B018

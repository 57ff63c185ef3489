"""Reads a diffusers folder of `StableDiffusionPipeline`, as it is published.

    model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/

Each part is opened on demand, so a folder may lack unused parts.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp

from unix_jax.checkpoints.diffusers_sizes import DiffusersSizes, is_unused
from unix_jax.checkpoints.diffusers_table import bert_table, clip_table, kl_table, unet_table
from unix_jax.checkpoints.file_leaves import table_leaves
from unix_jax.checkpoints.formats.readers import open_weights
from unix_jax.checkpoints.formats.tensor_source import TensorSource
from unix_jax.checkpoints.formats.weight_files import DIFFUSERS_NAMES, WeightFiles, find_weights
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published import check_keys
from unix_jax.checkpoints.table import Entry
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.encoder_config import ClipTextConfig
from unix_jax.models.unet_config import TextAttention
from unix_jax.preprocessing.noise_schedule import NoiseSchedule
from unix_jax.preprocessing.prompt_tokenizer import PromptTokenizer


@dataclasses.dataclass(frozen=True)
class OpenPart:
    """Which files hold a part's weights, their tensors, and the table that maps them."""

    weights: WeightFiles
    tensors: TensorSource
    table: tuple[Entry, ...]


class DiffusersFolder(DiffusersSizes):
    """The parts of one folder; each holds its sizes and its parameters in float32."""

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule and the steps of its sampler."""
        return NoiseSchedule.of(self.schedule_config)

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

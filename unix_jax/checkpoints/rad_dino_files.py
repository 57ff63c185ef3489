"""Reads RAD-DINO, or another DINOv2 ViT, from the directory that the hub publishes.

The files are `config.json` and `model.safetensors`, in the layout of `Dinov2Model`; nothing in them
is executed.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from unix_jax.checkpoints.file_leaves import infos, table_leaves
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.tensor_source import TensorSource
from unix_jax.checkpoints.hub_files import encoder_files
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published import check_keys
from unix_jax.checkpoints.sizes import count_layers
from unix_jax.checkpoints.table import Entry, conv, linear, norm, stacked
from unix_jax.config import typed
from unix_jax.errors import ConfigError
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json

# Only masked pre-training uses it.
_UNUSED = re.compile(r"embeddings\.mask_token")
# Our field: theirs.
_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
    "layer_norm_eps": "layer_norm_eps",
    "qkv_bias": "qkv_bias",
}
# What the file may say otherwise, and what this model has.
_FIXED = {"model_type": "dinov2", "hidden_act": "gelu", "num_channels": 3, "use_swiglu_ffn": False}


def _block(config: Dinov2Config) -> Iterator[Entry]:
    width, inner, path, key = config.hidden_size, config.mlp_size, "blocks", "encoder.layer.{layer}"
    yield from norm(f"{path}/norm1", f"{key}.norm1", width)
    for name in ("query", "key", "value"):
        yield from linear(
            f"{path}/{name}", f"{key}.attention.attention.{name}", width, width, config.qkv_bias
        )
    yield from linear(f"{path}/proj", f"{key}.attention.output.dense", width, width)
    yield Entry(f"{path}/layer_scale1", f"{key}.layer_scale1.lambda1", (width,))
    yield from norm(f"{path}/norm2", f"{key}.norm2", width)
    yield from linear(f"{path}/fc1", f"{key}.mlp.fc1", width, inner)
    yield from linear(f"{path}/fc2", f"{key}.mlp.fc2", inner, width)
    yield Entry(f"{path}/layer_scale2", f"{key}.layer_scale2.lambda1", (width,))


def dinov2_table(config: Dinov2Config) -> tuple[Entry, ...]:
    """The table of `model.safetensors` for these sizes."""
    width = config.hidden_size
    return (
        Entry("cls_token", "embeddings.cls_token", (1, 1, width)),
        Entry("pos_embed", "embeddings.position_embeddings", (1, 1 + config.grid**2, width)),
        *conv("patch_embed", "embeddings.patch_embeddings.projection", 3, width, config.patch_size),
        *stacked(_block(config), config.num_layers),
        *norm("norm", "layernorm", width),
    )


DINOV2_NAMES = known_names(dinov2_table(Dinov2Config()))


def read_dinov2_config(raw: Any, source: str = "config.json") -> Dinov2Config:
    """Sizes from the hub's `config.json`; missing fields are those of RAD-DINO.

    Raises:
      ConfigError: a value of the wrong kind, or a variant that this model is not (SwiGLU, ...).
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: expected a JSON object, found {type(raw).__name__}")
    for name, expected in _FIXED.items():
        found = raw.get(name, expected)
        if found != expected or type(found) is not type(expected):
            raise ConfigError(f"{source}: {name}: expected {expected!r}, found {found!r}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Dinov2Config):
        name = _FIELDS[field.name]
        value = typed(raw.get(name, field.default), field.type, f"{source}: {name}")
        if field.type is not bool and value <= 0:
            raise ConfigError(f"{source}: {name}: expected a positive number, found {value!r}")
        values[field.name] = value
    config = Dinov2Config(**values)
    for name, whole, part in (
        ("image_size", config.image_size, config.patch_size),
        ("hidden_size", config.hidden_size, config.num_heads),
    ):
        if whole % part:
            raise ConfigError(f"{source}: {name}: expected a multiple of {part}, found {whole}")
    return config


def load_dinov2_config(path: str | os.PathLike[str]) -> Dinov2Config:
    """The sizes of a published directory, without its weights.

    Raises:
      ConfigError: as `read_dinov2_config`, or there is no such file.
    """
    directory = located(path, encoder_files)
    source = (directory.parent if directory.is_file() else directory) / "config.json"
    return read_dinov2_config(read_json(source), str(source))


def check_dinov2(config: Dinov2Config, tensors: TensorSource) -> None:
    """Compares the stated sizes with the tensors, before any is read.

    Raises:
      CheckpointError: all keys that are missing, unexpected or wrongly shaped, in one listing.
    """
    lines: list[str] = []
    layers = count_layers(tensors.keys(), "encoder.layer")
    if layers != config.num_layers:
        lines.append(f"num_hidden_layers is {config.num_layers}, but encoder.layer.* has {layers}")
        # The listing stays as long as the file rather than as long as a wrong number says.
        config = dataclasses.replace(config, num_layers=min(layers, len(infos(tensors))))
    check_keys(tensors, dinov2_table(config), _UNUSED.fullmatch, lines)


def load_dinov2(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[Dinov2Config, dict[str, Any]]:
    """(sizes, parameters of `Dinov2`) of a published directory such as `microsoft/rad-dino`'s.

    Args:
      path: the directory, with `config.json` and `model.safetensors`; or a weight file in it; or a
        name on the hub.
      dtype: floating-point dtype to cast to; None keeps that of the file.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other.
    """
    path = located(path, encoder_files)
    config = load_dinov2_config(path)
    with unwrapped(
        open_tensors(path, known=DINOV2_NAMES), DINOV2_NAMES, keep=_UNUSED.fullmatch
    ) as tensors:
        check_dinov2(config, tensors)
        return config, place_tree(
            table_leaves(dinov2_table(config), tensors), dtype, source=str(tensors.path)
        )

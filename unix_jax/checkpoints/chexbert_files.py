"""Reads CheXbert: the weights of BERT and its 14 heads, with BERT's `config.json` if it exists.

The published file is a torch pickle, `chexbert.pth`, whose `model_state_dict` has names that begin
with `module.`. A `.safetensors` file with the same names is also supported. Nothing is executed.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unix_jax.checkpoints.file_leaves import infos, table_leaves
from unix_jax.checkpoints.formats.readers import DIRECTORY_NAMES, open_tensors
from unix_jax.checkpoints.formats.tensor_source import TensorSource
from unix_jax.checkpoints.hub_files import labeller_files
from unix_jax.checkpoints.leaves import place_tree
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published import check_keys
from unix_jax.checkpoints.sizes import count_layers
from unix_jax.checkpoints.table import Entry, linear, norm, stacked
from unix_jax.config import typed
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.bert import CLASSES, FOUR_CLASS_HEADS, NO_FINDING_CLASSES
from unix_jax.models.encoder_config import BertConfig
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json

WEIGHTS_NAME = "chexbert.pth"
# That of the published file's keys.
_PREFIX = "module."
# The pooler is BERT's own, which CheXbert does not use; position_ids counts from 0.
_UNUSED = re.compile(r"(module\.)?bert\.(pooler\.dense\.(weight|bias)|embeddings\.position_ids)")
# Our field: theirs.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
}
# What the file may say otherwise, and what this model has.
_FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def _layer(config: BertConfig, prefix: str) -> Iterator[Entry]:
    width, inner = config.hidden_size, config.intermediate_size
    path, key = "bert/layers", f"{prefix}bert.encoder.layer.{{layer}}"
    for name in ("query", "key", "value"):
        yield from linear(f"{path}/{name}", f"{key}.attention.self.{name}", width, width)
    yield from linear(f"{path}/proj", f"{key}.attention.output.dense", width, width)
    yield from norm(f"{path}/norm1", f"{key}.attention.output.LayerNorm", width)
    yield from linear(f"{path}/fc1", f"{key}.intermediate.dense", width, inner)
    yield from linear(f"{path}/fc2", f"{key}.output.dense", inner, width)
    yield from norm(f"{path}/norm2", f"{key}.output.LayerNorm", width)


def _heads(config: BertConfig, prefix: str) -> Iterator[Entry]:
    for entry in linear("heads", f"{prefix}linear_heads.{{layer}}", config.hidden_size, CLASSES):
        yield dataclasses.replace(entry, path=entry.path.replace("/", "_"))


def chexbert_table(config: BertConfig, prefix: str = "") -> tuple[Entry, ...]:
    """The table of the state dict for these sizes; `prefix` stands before every key."""
    width, embeddings = config.hidden_size, f"{prefix}bert.embeddings"
    tables = {
        "word_embeddings": config.vocab_size,
        "position_embeddings": config.max_positions,
        "token_type_embeddings": config.token_types,
    }
    return (
        *(Entry(f"bert/{k}", f"{embeddings}.{k}.weight", (n, width)) for k, n in tables.items()),
        *norm("bert/norm", f"{embeddings}.LayerNorm", width),
        *stacked(_layer(config, prefix), config.num_layers),
        *stacked(_heads(config, prefix), FOUR_CLASS_HEADS),
        *linear(
            "no_finding", f"{prefix}linear_heads.{FOUR_CLASS_HEADS}", width, NO_FINDING_CLASSES
        ),
    )


CHEXBERT_NAMES = known_names(chexbert_table(BertConfig()))


def read_bert_config(raw: Any, source: str = "config.json") -> BertConfig:
    """Sizes from the hub's `config.json`; missing fields are those of bert-base-uncased.

    Raises:
      ConfigError: a value of the wrong kind, or an unsupported variant.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{source}: expected a JSON object, found {type(raw).__name__}")
    for name, expected in _FIXED.items():
        found = raw.get(name, expected)
        if found != expected:
            raise ConfigError(f"{source}: {name}: expected {expected!r}, found {found!r}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(BertConfig):
        name = _FIELDS[field.name]
        value = typed(raw.get(name, field.default), field.type, f"{source}: {name}")
        if value <= 0:
            raise ConfigError(f"{source}: {name}: expected a positive number, found {value!r}")
        values[field.name] = value
    config = BertConfig(**values)
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"{source}: hidden_size: expected a multiple of {config.num_heads}, "
            f"found {config.hidden_size}"
        )
    return config


def find_chexbert(path: str | os.PathLike[str]) -> Path:
    """The file of weights: `path` itself, or `chexbert.pth` or a usual name in that directory.

    A name on the hub is downloaded.

    Raises:
      CheckpointError: there is none.
    """
    source = located(path, labeller_files)
    if source.is_file():
        return source
    names = (WEIGHTS_NAME, *DIRECTORY_NAMES)
    found = next((source / name for name in names if (source / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{source}: expected CheXbert's weights, {WEIGHTS_NAME}, or a directory that holds "
            f"one of {', '.join(names)}"
        )
    return found


def check_chexbert(config: BertConfig, tensors: TensorSource) -> tuple[Entry, ...]:
    """The table that fits the file, compared with its tensors before any is read.

    Raises:
      CheckpointError: all keys that are missing, unexpected or wrongly shaped, in one listing.
    """
    keys = tensors.keys()
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in keys) else ""
    lines: list[str] = []
    layers = count_layers(keys, f"{prefix}bert.encoder.layer")
    if layers != config.num_layers:
        lines.append(
            f"num_hidden_layers is {config.num_layers}, but bert.encoder.layer.* has {layers}"
        )
        # The listing stays as long as the file rather than as long as a wrong number says.
        config = dataclasses.replace(config, num_layers=min(layers, len(infos(tensors))))
    table = chexbert_table(config, prefix)
    check_keys(tensors, table, _UNUSED.fullmatch, lines)
    return table


def load_chexbert(
    path: str | os.PathLike[str], *, dtype: Any = None
) -> tuple[BertConfig, dict[str, Any]]:
    """(sizes, parameters of `ReportLabeler`).

    Args:
      path: `chexbert.pth`, or its directory. A `config.json` in the same directory is read; without
        it the sizes are those of bert-base-uncased, as in the published file.
      dtype: floating-point dtype to cast to; None keeps that of the file.

    Raises:
      CheckpointError, ConfigError: files that are missing, broken, or do not fit each other.
    """
    weights = find_chexbert(path)
    source = weights.parent / "config.json"
    config = read_bert_config(read_json(source), str(source)) if source.exists() else BertConfig()
    with unwrapped(
        open_tensors(weights, known=CHEXBERT_NAMES),
        CHEXBERT_NAMES,
        keep=_UNUSED.fullmatch,
        usual=_PREFIX,
    ) as tensors:
        table = check_chexbert(config, tensors)
        return config, place_tree(table_leaves(table, tensors), dtype, source=str(tensors.path))

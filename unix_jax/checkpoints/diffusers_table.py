"""Table between the keys of a diffusers folder and our parameters: U-Net, autoencoder, encoders.

The U-Net's names follow diffusers', so its rows are derived from the model's own tree; the others
are listed explicitly. Each table is used in both directions, like `unix_jax.checkpoints.table`.
"""

import dataclasses
import re
from collections.abc import Iterator

import flax.linen as nn

from unix_jax.checkpoints.chexbert_files import chexbert_table
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.table import (
    CONV,
    CONV_AS_LINEAR,
    LINEAR,
    LINEAR_AS_CONV,
    SAME,
    Entry,
    Transform,
    linear,
    norm,
    stacked,
    vae_table,
)
from unix_jax.config import AutoencoderConfig
from unix_jax.models import unet
from unix_jax.models.encoder_config import BertConfig, ClipTextConfig
from unix_jax.models.unet_config import UNetConfig

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# After numbers have become segments of their own.
_UNET_RENAMES = (
    ("mid_block_", "mid_block."),
    ("time_embedding.", "time_embedding.linear_"),
    (".ff_proj.", ".ff.net.0.proj."),
    (".ff_out.", ".ff.net.2."),
    (".to_out.", ".to_out.0."),
)


def unet_table(config: UNetConfig, linear_projections: bool) -> tuple[Entry, ...]:
    """The table of `unet/`; `linear_projections` as `use_linear_projection` of its config.json."""
    return tuple(
        Entry(path, _unet_key(path), leaf.shape, _unet_transform(path, leaf, linear_projections))
        for path, leaf in flatten(nn.unbox(unet.param_shapes(config))).items()
    )


def _unet_key(path: str) -> str:
    module, _, leaf = path.rpartition("/")
    key = re.sub(r"_([0-9]+)(_|(?=/)|$)", r".\1.", module).replace("/", ".") + "."
    for ours, theirs in _UNET_RENAMES:
        key = key.replace(ours, theirs)
    return re.sub(r"\.+", ".", key) + _LEAVES[leaf]


def _unet_transform(path: str, leaf: nn.Module, linear_projections: bool) -> Transform:
    if not path.endswith("/kernel"):
        return SAME
    if len(leaf.shape) == 4:
        return CONV
    projection = path.endswith(("/proj_in/kernel", "/proj_out/kernel"))
    return CONV_AS_LINEAR if projection and not linear_projections else LINEAR


# Ours in CompVis' names: theirs. Levels of the decoder are counted from the other end.
_VAE_RENAMES = (
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
    (r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\bnorm_out\.", "conv_norm_out."),
)
# The attention's four layers, as they are called now and were called before diffusers 0.17.
_VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_VAE_ATTENTION = {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def kl_table(config: AutoencoderConfig, old_names: bool = False) -> tuple[Entry, ...]:
    """The table of `vae/`, an `AutoencoderKL`; `old_names` for a file of diffusers before 0.17."""
    names, levels = _OLD_VAE_ATTENTION if old_names else _VAE_ATTENTION, len(config.ch_mult)

    def renamed(entry: Entry) -> Entry:
        key, transform = entry.key, entry.transform
        if layer := re.search(r"\.mid\.attn_1\.(q|k|v|proj_out)\.", key):
            key = key.replace(f".{layer[1]}.", f".{names[layer[1]]}.")
            transform = LINEAR_AS_CONV if transform is CONV else transform
        key = re.sub(r"\bup\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", key)
        for ours, theirs in _VAE_RENAMES:
            key = re.sub(ours, theirs, key)
        return dataclasses.replace(entry, key=key, transform=transform)

    return tuple(map(renamed, vae_table(config)))


def _clip_layer(config: ClipTextConfig, prefix: str) -> Iterator[Entry]:
    width, inner = config.hidden_size, config.intermediate_size
    path, key = "layers", f"{prefix}encoder.layers.{{layer}}"
    yield from norm(f"{path}/norm1", f"{key}.layer_norm1", width)
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("proj", "out")):
        yield from linear(f"{path}/{ours}", f"{key}.self_attn.{theirs}_proj", width, width)
    yield from norm(f"{path}/norm2", f"{key}.layer_norm2", width)
    yield from linear(f"{path}/fc1", f"{key}.mlp.fc1", width, inner)
    yield from linear(f"{path}/fc2", f"{key}.mlp.fc2", inner, width)


def clip_table(config: ClipTextConfig, prefix: str = "") -> tuple[Entry, ...]:
    """The table of `text_encoder/`, a `CLIPTextModel`; `prefix` stands before every key."""
    width, embeddings = config.hidden_size, f"{prefix}embeddings"
    tables = {"token_embedding": config.vocab_size, "position_embedding": config.max_positions}
    return (
        *(Entry(name, f"{embeddings}.{name}.weight", (n, width)) for name, n in tables.items()),
        *stacked(_clip_layer(config, prefix), config.num_layers),
        *norm("norm", f"{prefix}final_layer_norm", width),
    )


def bert_table(config: BertConfig, prefix: str = "") -> tuple[Entry, ...]:
    """The table of `text_encoder/`, a `BertModel`; `prefix` stands before every key."""
    return tuple(
        dataclasses.replace(
            entry,
            path=entry.path.removeprefix("bert/"),
            key=prefix + entry.key.removeprefix("bert."),
        )
        for entry in chexbert_table(config)
        if entry.path.startswith("bert/")
    )

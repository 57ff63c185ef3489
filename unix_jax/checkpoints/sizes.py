"""Compares the sizes that `config.json` and `vae/config.yaml` state with the tensors themselves.

Letters: D width, F MLP width, V vocabulary, H head dim, W ViT width, P patch size, T ViT tokens,
C latent channels, M side of the latent position table.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unix_jax.config import AutoencoderConfig, UniXConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Check:
    """`field` of `section` states `value`; the shape of `key` gives `measure(shape)`."""

    section: tuple[str, ...]
    field: tuple[str, ...]
    value: int
    key: str
    measure: Callable[[Shape], int]


def axis(number: int) -> Callable[[Shape], int]:
    """The size of one axis."""
    return lambda shape: shape[number]


def count_layers(keys: Iterable[str], prefix: str) -> int:
    """One more than the largest N among keys `prefix.N.…`; 0 if there is none."""
    pattern = re.compile(re.escape(prefix) + r"\.([0-9]{1,9})\.")
    return max((int(m.group(1)) + 1 for key in keys if (m := pattern.match(key))), default=0)


_LANGUAGE = ("language_config", "llm_config")
_VISION = ("vision_config", "vit_config")


def _sections(raw: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Mapping[str, Any]]:
    """The name of the section that is present, and its fields with those of its `params`."""
    for name in names:
        section = raw.get(name)
        if isinstance(section, Mapping):
            params = section.get("params")
            return f"{name}.", {**section, **(params if isinstance(params, Mapping) else {})}
    return (f"{names[0]}.", {}) if names else ("", raw)


def _describe(check: _Check, raw: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    shape = shapes.get(check.key)
    if shape is None:
        return None
    try:
        found = check.measure(shape)
    except (IndexError, ZeroDivisionError):
        return None  # an axis too few: listed as mis-shaped
    if found == check.value:
        return None
    prefix, fields = _sections(raw, check.section)
    name = next((field for field in check.field if field in fields), None)
    default = "" if name else " (not in the file: the published default)"
    return (
        f"{prefix}{name or check.field[0]} is {check.value}{default}, "
        f"but {check.key} {list(shape)} gives {found}"
    )


def _count(
    stated: int, found: int, label: str, prefix: str, default: bool = False
) -> Iterable[str]:
    if found and stated != found:
        note = " (not in the file: the published default)" if default else ""
        yield f"{label} is {stated}{note}, but {prefix}.* has {found}"


def unix_disagreements(
    config: UniXConfig,
    raw: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    tower: str = "vit_model.vision_tower",
) -> tuple[list[str], UniXConfig]:
    """The disagreements of `config.json` with the tensors; each names both.

    Args:
      config: `raw` as it was read.
      raw: the JSON of `config.json`.
      shapes: shape of every tensor by key.
      tower: prefix of the vision tower's keys.

    Returns:
      The disagreements, and `config` with the numbers of layers that the tensors have, so that a
        wrong number of layers does not make the list of keys longer than the file.
    """
    decoder, vision = config.decoder, config.vision
    layer, attention = "language_model.model.layers.0", "language_model.model.layers.0.self_attn"
    embedding = "language_model.model.embed_tokens.weight"
    head = shapes.get(f"{attention}.q_norm.weight", (decoder.head_dim,))
    head_dim = head[0] if head else decoder.head_dim
    blocks, layers = f"{tower}.blocks", "language_model.model.layers"
    checks = (
        _Check(_LANGUAGE, ("hidden_size",), decoder.hidden_size, embedding, axis(1)),
        _Check(_LANGUAGE, ("vocab_size",), decoder.vocab_size, embedding, axis(0)),
        _Check(
            _LANGUAGE,
            ("intermediate_size",),
            decoder.intermediate_size,
            f"{layer}.mlp.gate_proj.weight",
            axis(0),
        ),
        _Check(_LANGUAGE, ("head_dim",), decoder.head_dim, f"{attention}.q_norm.weight", axis(0)),
        _Check(
            _LANGUAGE,
            ("num_attention_heads",),
            decoder.num_heads,
            f"{attention}.q_proj.weight",
            lambda shape: shape[0] // head_dim,
        ),
        _Check(
            _LANGUAGE,
            ("num_key_value_heads",),
            decoder.num_kv_heads,
            f"{attention}.k_proj.weight",
            lambda shape: shape[0] // head_dim,
        ),
        _Check(_VISION, ("width", "hidden_size"), vision.width, f"{tower}.pos_embed", axis(2)),
        _Check(
            _VISION, ("patch_size",), vision.patch_size, f"{tower}.patch_embed.proj.weight", axis(2)
        ),
        _Check(
            _VISION,
            ("image_size",),
            vision.image_size,
            f"{tower}.pos_embed",
            lambda shape: math.isqrt(shape[1]) * vision.patch_size,
        ),
        _Check(
            _VISION,
            ("mlp_ratio", "intermediate_size"),
            vision.mlp_size,
            f"{blocks}.0.mlp.fc1.weight",
            axis(0),
        ),
        _Check(
            (),
            ("max_latent_size",),
            config.max_latent_size,
            "latent_pos_embed.pos_embed",
            lambda shape: math.isqrt(shape[0]),
        ),
    )
    found = [line for check in checks if (line := _describe(check, raw, shapes))]
    latent = shapes.get("vae2llm.weight", ())
    if len(latent) == 2 and latent[1] != config.latent_channels:
        side, channels = config.latent_patch_size, config.vae.z_channels
        found.append(
            f"latent_patch_size is {side} and z_channels is {channels}, so a latent token has "
            f"{side}*{side}*{channels} numbers, but vae2llm.weight {list(latent)} gives {latent[1]}"
        )
    decoder_layers = count_layers(shapes, layers)
    vision_layers = count_layers(shapes, blocks)
    section, fields = _sections(raw, _LANGUAGE)
    found += _count(
        decoder.num_layers,
        decoder_layers,
        f"{section}num_hidden_layers",
        layers,
        "num_hidden_layers" not in fields,
    )
    section, fields = _sections(raw, _VISION)
    named = [name for name in ("layers", "num_hidden_layers") if name in fields]
    found += _count(
        vision.num_layers, vision_layers, f"{section}{(named or ['layers'])[0]}", blocks, not named
    )
    listed = dataclasses.replace(
        config,
        decoder=dataclasses.replace(
            decoder, num_layers=decoder_layers or min(decoder.num_layers, _MOST_LISTED)
        ),
        vision=dataclasses.replace(
            vision, num_layers=vision_layers or min(vision.num_layers, _MOST_LISTED)
        ),
    )
    return found, listed


# Layers listed as missing when the file has none at all.
_MOST_LISTED = 100


def vae_disagreements(
    vae: AutoencoderConfig, raw: Mapping[str, Any] | None, shapes: Mapping[str, Shape]
) -> tuple[list[str], AutoencoderConfig | None]:
    """As `unix_disagreements`, for `vae/config.yaml`; None if the levels cannot be compared."""
    section: Any = raw or {}
    for name in ("model", "params"):
        section = section.get(name) if isinstance(section, Mapping) else None
    fields = section if isinstance(section, Mapping) else {}
    blocks, levels = "encoder.down.0.block", "encoder.down"
    checks = (
        _Check(("ddconfig",), ("ch",), vae.ch, "encoder.conv_in.weight", axis(0)),
        _Check(("ddconfig",), ("in_channels",), vae.in_channels, "encoder.conv_in.weight", axis(1)),
        _Check(("ddconfig",), ("out_ch",), vae.out_ch, "decoder.conv_out.weight", axis(0)),
        _Check(("ddconfig",), ("z_channels",), vae.z_channels, "decoder.conv_in.weight", axis(1)),
        _Check((), ("embed_dim",), vae.embed_dim, "post_quant_conv.weight", axis(1)),
    )
    found = [line for check in checks if (line := _describe(check, fields, shapes))]
    have_blocks, have_levels = count_layers(shapes, blocks), count_layers(shapes, levels)
    _, ddconfig = _sections(fields, ("ddconfig",))
    found += _count(
        vae.num_res_blocks,
        have_blocks,
        "ddconfig.num_res_blocks",
        blocks,
        "num_res_blocks" not in ddconfig,
    )
    found += _count(
        len(vae.ch_mult),
        have_levels,
        "the length of ddconfig.ch_mult",
        levels,
        "ch_mult" not in ddconfig,
    )
    if have_levels and have_levels != len(vae.ch_mult):
        return found, None
    listed = min(vae.num_res_blocks, _MOST_LISTED)
    return found, dataclasses.replace(vae, num_res_blocks=have_blocks or listed)

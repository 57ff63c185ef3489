"""The three published forms of `config.json`, read into and written from `UniXConfig`.

(a) the explicit form, with every size; (b) Janus style, whose vision tower is only named;
(c) the code repository's `inference/config.json` (`llm_config`, `vit_config`, `vae_config`).
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
    read_instructions,
    typed,
)
from unix_jax.errors import ConfigError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that say nothing about the mathematics here (or are checked by name below).
_IGNORED_TOP = _words(
    "model_type architectures torch_dtype dtype transformers_version auto_map _name_or_path "
    "aligner_config gen_aligner_config gen_head_config gen_vision_config inference_config "
    "vae_config language_config vision_config llm_config vit_config special_token_ids "
    "visual_gen visual_und "
    # Ours: sentences for reports, read by themselves.
    "instructions"
)
_IGNORED_LANGUAGE = _words(
    "model_type torch_dtype dtype architectures hidden_act attention_bias attention_dropout "
    "mlp_bias initializer_range use_cache tie_word_embeddings rope_scaling pretraining_tp "
    "bos_token_id eos_token_id pad_token_id _attn_implementation _attn_implementation_internal "
    "transformers_version qk_norm layer_module freeze_und max_window_layers sliding_window "
    "use_sliding_window _name_or_path attention_implementation is_causal "
    "pack_attention_mask_type"
)
_IGNORED_VISION = _words(
    "cls model_type params model_name select_feature select_layer num_channels hidden_act "
    "attention_dropout rope torch_dtype dtype architectures transformers_version class_token "
    "global_pool ignore_head num_classes use_checkpoint weight_init"
)
# Published name -> ours. The first name that occurs wins.
_LANGUAGE = {
    "hidden_size": ("hidden_size", int),
    "intermediate_size": ("intermediate_size", int),
    "num_hidden_layers": ("num_layers", int),
    "num_attention_heads": ("num_heads", int),
    "num_key_value_heads": ("num_kv_heads", int),
    "head_dim": ("head_dim", int),
    "vocab_size": ("vocab_size", int),
    "max_position_embeddings": ("max_position_embeddings", int),
    "rms_norm_eps": ("rms_norm_eps", float),
    "rope_theta": ("rope_theta", float),
}
_VISION = {
    "image_size": ("image_size", int),
    "patch_size": ("patch_size", int),
    "width": ("width", int),
    "hidden_size": ("width", int),
    "layers": ("num_layers", int),
    "num_hidden_layers": ("num_layers", int),
    "heads": ("num_heads", int),
    "num_attention_heads": ("num_heads", int),
    "mlp_ratio": ("mlp_ratio", float),
    "intermediate_size": ("mlp_size", int),
    "layer_norm_eps": ("layer_norm_eps", float),
}
_TOP = {
    "latent_patch_size": ("latent_patch_size", int),
    "max_latent_size": ("max_latent_size", int),
    "vit_max_num_patch_per_side": ("vit_max_num_patch_per_side", int),
    "connector_act": ("connector_act", str),
    "interpolate_pos": ("interpolate_pos", bool),
    "timestep_shift": ("timestep_shift", float),
    "double_bos": ("double_bos", bool),
}
_SPECIAL = {
    "bos_token_id": ("bos", int),
    "eos_token_id": ("eos", int),
    "pad_token_id": ("pad", int),
    "start_of_image": ("start_of_image", int),
    "end_of_image": ("end_of_image", int),
}
_DDCONFIG = {
    "ch": ("ch", int),
    "ch_mult": ("ch_mult", tuple[int, ...]),
    "num_res_blocks": ("num_res_blocks", int),
    "attn_resolutions": ("attn_resolutions", tuple[int, ...]),
    "resolution": ("resolution", int),
    "in_channels": ("in_channels", int),
    "out_ch": ("out_ch", int),
    "z_channels": ("z_channels", int),
    # Ours: the published code always uses 32 and 0, and knows no fields for them.
    "norm_groups": ("norm_groups", int),
    "linear_window": ("linear_window", int),
}
_VAE_PARAMS = {
    "embed_dim": ("embed_dim", int),
    # Ours: the published code has two constants.
    "scale_factor": ("scale_factor", float),
    "shift_factor": ("shift_factor", float),
}
_VISION_MODELS = {"siglip_large_patch16_384": VisionConfig()}


def _section(values: Mapping[str, Any], names: tuple[str, ...], source: str) -> Mapping[str, Any]:
    """The first of the sections `names` that is present (null counts as absent)."""
    for name in names:
        section = values.get(name)
        if section is not None:
            if not isinstance(section, Mapping):
                raise ConfigError(f"{source}: {name}: expected an object, found {section!r}")
            return section
    return {}


def _pick(
    values: Mapping[str, Any],
    names: Mapping[str, tuple[str, Any]],
    ignored: frozenset[str],
    where: str,
    unknown: list[str],
) -> dict[str, Any]:
    """The known fields of a section under our names; unknown ones are appended to `unknown`."""
    picked: dict[str, Any] = {}
    for name, value in values.items():
        if name in names and value is not None:
            ours, kind = names[name]
            picked.setdefault(ours, typed(value, kind, f"{where}.{name}"))
        elif name not in names and name not in ignored:
            unknown.append(f"{where.rpartition(': ')[2]}.{name}")
    return picked


def _honoured(
    values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    """Fields that change the mathematics must have a supported value."""
    for name, accepted in allowed.items():
        if name in values and values[name] not in accepted:
            raise ConfigError(
                f"{where}.{name}: expected {' or '.join(map(repr, accepted))} "
                f"(nothing else is supported), found {values[name]!r}"
            )


def _read_language(section: Mapping[str, Any], where: str, unknown: list[str]) -> DecoderConfig:
    _honoured(
        section,
        {
            "hidden_act": ("silu", None),
            "tie_word_embeddings": (False, None),
            "rope_scaling": (None,),
            "mlp_bias": (False, None),
            "qk_norm": (True, None),
        },
        where,
    )
    picked = _pick(section, _LANGUAGE, _IGNORED_LANGUAGE, where, unknown)
    default = DecoderConfig()
    heads = picked.get("num_heads", default.num_heads)
    # transformers' convention: all heads are kv heads unless said otherwise.
    picked.setdefault("num_kv_heads", heads)
    if heads > 0:
        picked.setdefault("head_dim", picked.get("hidden_size", default.hidden_size) // heads)
    return dataclasses.replace(default, **picked)


def _read_vision(section: Mapping[str, Any], where: str, unknown: list[str]) -> VisionConfig:
    params = _section(section, ("params",), where)
    merged = {**section, **params}
    _honoured(
        merged,
        {
            "select_layer": (-1, None),
            "select_feature": ("same", None),
            "class_token": (False, None),
            "rope": (False, None),
        },
        where,
    )
    base = VisionConfig()
    name = merged.get("model_name")
    if name is not None:
        explicit = {"width", "layers", "heads"} <= merged.keys()
        if name not in _VISION_MODELS and not explicit:
            raise ConfigError(
                f"{where}.model_name: expected one of {sorted(_VISION_MODELS)} or explicit sizes, "
                f"found {name!r}"
            )
        base = _VISION_MODELS.get(name, base)
    picked = _pick(merged, _VISION, _IGNORED_VISION, where, unknown)
    mlp_size = picked.pop("mlp_size", None)
    if mlp_size is not None and "mlp_ratio" not in picked:
        picked["mlp_ratio"] = mlp_size / max(picked.get("width", base.width), 1)
    return dataclasses.replace(base, **picked)


def _read_vae(vae: Mapping[str, Any] | None, unknown: list[str]) -> AutoencoderConfig:
    where = "vae/config.yaml"
    if vae is not None and not isinstance(vae, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {vae!r}")
    params = _section(_section(vae or {}, ("model",), where), ("params",), where)
    ddconfig = _section(params, ("ddconfig",), where)
    _honoured(ddconfig, {"double_z": (True,), "attn_type": ("vanilla",)}, f"{where}: ddconfig")
    picked = _pick(
        ddconfig,
        _DDCONFIG,
        frozenset({"double_z", "dropout", "attn_type"}),
        f"{where}: ddconfig",
        unknown,
    )
    known = {name: params[name] for name in _VAE_PARAMS if name in params}
    rest = _pick(known, _VAE_PARAMS, frozenset(), f"{where}: params", unknown)
    return dataclasses.replace(AutoencoderConfig(), **picked, **rest)


def _check_aligner(config: Mapping[str, Any], source: str, width: int, hidden: int) -> None:
    where = f"{source}: aligner_config"
    params = _section(_section(config, ("aligner_config",), source), ("params",), where)
    _honoured(
        params,
        {
            "depth": (2,),
            "projector_type": ("mlp_gelu",),
            "input_dim": (width,),
            "n_embed": (hidden,),
        },
        f"{where}.params",
    )


def from_published(
    config: Mapping[str, Any],
    vae: Mapping[str, Any] | None = None,
    source: str = "config.json",
) -> UniXConfig:
    """Reads any of the three published forms of `config.json` (and `vae/config.yaml`).

    Fields that are missing fall back to the published preset; unknown ones are named in one
    warning. `double_bos` is on unless the file says otherwise.

    Raises:
      ConfigError: a value of the wrong kind, or an unsupported one.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source}: expected a JSON object, found {type(config).__name__}")
    unknown: list[str] = []
    language = _section(config, ("language_config", "llm_config"), source)
    vision = _section(config, ("vision_config", "vit_config"), source)
    try:
        decoder = _read_language(language, f"{source}: language_config", unknown)
        tower = _read_vision(vision, f"{source}: vision_config", unknown)
        special = _pick(
            _section(config, ("special_token_ids",), source),
            _SPECIAL,
            frozenset(),
            f"{source}: special_token_ids",
            unknown,
        )
        top = _pick(config, _TOP, _IGNORED_TOP, f"{source}: config", unknown)
        _check_aligner(config, source, tower.width, decoder.hidden_size)
        # The published table is square: without its own field it follows the tower.
        top.setdefault(
            "vit_max_num_patch_per_side", tower.image_size // max(tower.patch_size, 1) or 1
        )
        result = UniXConfig(
            decoder=decoder,
            vision=tower,
            vae=_read_vae(vae, unknown),
            special_tokens=SpecialTokens(**special),
            instructions=read_instructions(config, source),
            **({"double_bos": True} | top),
        )
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if source in message else f"{source}: {message}") from None
    if unknown:
        warnings.warn(f"{source}: unknown fields ignored: {sorted(unknown)}", stacklevel=3)
    return result


def to_published(config: UniXConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`config.json`, `vae/config.yaml`) in the explicit published form."""

    def renamed(part: Any, names: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for theirs, (ours, _) in names.items():
            if hasattr(part, ours) and ours not in {names[t][0] for t in written}:
                value = getattr(part, ours)
                written[theirs] = list(value) if isinstance(value, tuple) else value
        return written

    vision = renamed(config.vision, _VISION)
    vision.pop("intermediate_size", None)
    published = {
        "model_type": "unix",
        "architectures": ["UniX"],
        "language_config": renamed(config.decoder, _LANGUAGE) | {"model_type": "llama"},
        "vision_config": vision,
        "special_token_ids": renamed(config.special_tokens, _SPECIAL),
        **renamed(config, _TOP),
    }
    if config.instructions is not None:
        published["instructions"] = dataclasses.asdict(config.instructions)
    ddconfig = renamed(config.vae, _DDCONFIG) | {"double_z": True, "dropout": 0.0}
    for name in ("norm_groups", "linear_window"):
        usual = getattr(AutoencoderConfig(), name)
        if ddconfig[name] == usual:
            del ddconfig[name]
            continue
        warnings.warn(
            f"vae: {name} {ddconfig[name]}: the published code always uses {usual} and would "
            f"compute other images; written as ddconfig.{name}, which unix-jax reads back",
            stacklevel=3,
        )
    params: dict[str, Any] = {
        "embed_dim": config.vae.embed_dim,
        "ddconfig": ddconfig,
        # Of its training; the published code reads both, and builds the loss.
        "monitor": "val/rec_loss",
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    default, vae = AutoencoderConfig(), config.vae
    if (vae.scale_factor, vae.shift_factor) != (default.scale_factor, default.shift_factor):
        params |= {"scale_factor": vae.scale_factor, "shift_factor": vae.shift_factor}
        warnings.warn(
            f"vae: latents are {vae.scale_factor:g} * (z - {vae.shift_factor:g}): the published "
            f"code has always {default.scale_factor:g} and {default.shift_factor:g} and would "
            "compute other images; written as scale_factor and shift_factor, which unix-jax reads "
            "back",
            stacklevel=3,
        )
    return published, {"model": {"params": params}}

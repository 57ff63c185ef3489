"""Reads the `config.json` of the parts of a diffusers folder, strictly.

An unknown field is an error that names it, and so is a field that would change the computation and
is not supported. Missing fields have diffusers' own defaults.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from unix_jax.checkpoints.formats.tensor_source import note
from unix_jax.config import AutoencoderConfig, typed
from unix_jax.errors import ConfigError
from unix_jax.models.encoder_config import CLIP_ACTIVATIONS, BertConfig, ClipTextConfig
from unix_jax.models.unet_config import UNET_ACTIVATIONS, TextAttention, UNetConfig
from unix_jax.preprocessing.schedule_config import (
    BetaSchedule,
    FinalSigma,
    Prediction,
    Sampler,
    ScheduleConfig,
    Spacing,
)
from unix_jax.storage.json_file import read_json

_MAX_BYTES = 1 << 20
# Beyond any network of this kind; a table of a wrong number's length would fill the memory.
_MOST_LEVELS, _MOST_LAYERS, _MOST_TIMESTEPS = 12, 256, 100_000
# Fields of the libraries, which say nothing of the computation.
_NOTES = {"_class_name", "_diffusers_version", "_name_or_path", "_commit_hash"}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MIDDLE = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False, None: None}
# Field: the values that leave the function as it is here. `None` in the file is checked as well.
_UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1.0,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Read, and without effect here: softmax is float32 anyway; any size of image is taken; and what
# only `addition_embed_type` uses.
_UNET_FREE = {
    "sample_size", "upcast_attention", "addition_embed_type_num_heads", "addition_time_embed_dim",
}  # fmt: skip
_VAE_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    # The pipelines of Stable Diffusion read the scale alone.
    "shift_factor": (None, 0.0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
# For tiles of large images, and for float16.
_VAE_FREE = {"sample_size", "force_upcast"}


class Fields:
    """One JSON object whose fields are read one by one; unread fields are an error.

    Raises:
      ConfigError: the file is missing, broken or not a JSON object.
    """

    def __init__(self, raw: Any, source: str):
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{source}: expected a JSON object, found {type(raw).__name__}")
        self.source = source
        self._left = {name: value for name, value in raw.items() if name not in _NOTES}

    @classmethod
    def of_file(cls, path: Path, class_name: str | None = None) -> "Fields":
        """The file's fields; `class_name` is the required `_class_name`, if the file has one."""
        raw = read_json(path, max_bytes=_MAX_BYTES)
        fields = cls(raw, str(path))
        if class_name is not None and raw.get("_class_name", class_name) != class_name:
            raise fields.error("_class_name", repr(class_name), raw["_class_name"])
        return fields

    def error(self, name: str, expected: str, found: Any) -> ConfigError:
        return ConfigError(f"{self.source}: {name}: expected {expected}, found {found!r}")

    def take(self, name: str, default: Any = None) -> Any:
        """The raw value."""
        return self._left.pop(name, default)

    def typed(self, name: str, kind: Any, default: Any) -> Any:
        """The value as int, float, bool or str."""
        return typed(self.take(name, default), kind, f"{self.source}: {name}")

    def positive(self, name: str, default: Any, kind: Any = int, most: float = math.inf) -> Any:
        """A number above 0, of at most `most`."""
        value = self.typed(name, kind, default)
        if not 0 < value <= most:
            raise self.error(name, f"a positive number of at most {most}", value)
        return value

    def chosen(self, name: str, choices: Any, default: Any) -> Any:
        """One of the keys of `choices`."""
        value = self.take(name, default)
        if not isinstance(value, str | None) or value not in choices:
            raise self.error(name, f"one of {list(choices)}", value)
        return value

    def listed(
        self, name: str, default: Any, levels: int | None = None, most: float = math.inf
    ) -> tuple[int, ...]:
        """Positive integers up to `most`, one per level; a single number applies to all levels."""
        value = self.take(name, default)
        if levels is not None and not isinstance(value, Sequence | None):
            value = [value] * levels
        numbers = typed(value, tuple[int, ...], f"{self.source}: {name}")
        if not numbers or min(numbers) <= 0 or (levels is not None and len(numbers) != levels):
            many = "at least 1" if levels is None else str(levels)
            raise self.error(name, f"{many} positive integers", value)
        if max(numbers) > most:
            raise self.error(name, f"integers of at most {most}", max(numbers))
        return numbers

    def blocks(self, name: str, choices: Mapping[str, Any], default: Any) -> tuple[Any, ...]:
        """A list of block types, each mapped by `choices`."""
        value = self.take(name, default)
        known = isinstance(value, Sequence) and not isinstance(value, str)
        if not known or not 1 <= len(value) <= _MOST_LEVELS:
            raise self.error(name, f"a list of 1 to {_MOST_LEVELS} block types", value)
        for item in value:
            if not isinstance(item, str) or item not in choices:
                raise self.error(name, f"types of {list(choices)}", item)
        return tuple(choices[item] for item in value)

    def fixed(self, values: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses every existing field with an unsupported value."""
        for name, allowed in values.items():
            value = self.take(name, allowed[0])
            if not any(
                value == x and isinstance(value, bool) == isinstance(x, bool) for x in allowed
            ):
                raise self.error(name, " or ".join(map(repr, allowed)), value)

    def without_effect(self, names: set[str]) -> None:
        """Ignores fields without effect."""
        for name in names:
            self.take(name)

    def finish(self) -> None:
        """Raises ConfigError for fields that were not read."""
        if self._left:
            raise ConfigError(f"{self.source}: unknown fields: {sorted(map(str, self._left))}")


def read_unet_config(fields: Fields) -> tuple[UNetConfig, bool]:
    """(sizes of `unet/config.json`, whether the attention's projections are linear, not 1x1).

    Raises:
      ConfigError: a value of the wrong kind, an unsupported variant, or an unknown field.
    """
    down = fields.blocks("down_block_types", _DOWN, ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up = fields.blocks("up_block_types", _UP, ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    levels = len(down)
    if len(up) != levels:
        raise fields.error("up_block_types", f"{levels} types, as down_block_types", len(up))
    widths = fields.listed("block_out_channels", [320, 640, 1280, 1280])
    if len(widths) != levels:
        raise fields.error("block_out_channels", f"{levels} widths, one per level", list(widths))
    depths = fields.listed("transformer_layers_per_block", 1, levels, _MOST_LAYERS)
    up_depths = fields.take("reverse_transformer_layers_per_block")
    if up_depths is not None:
        up_depths = typed(
            up_depths, tuple[int, ...], f"{fields.source}: reverse_transformer_layers_per_block"
        )
        if len(up_depths) != levels or not 0 < min(up_depths) <= max(up_depths) <= _MOST_LAYERS:
            raise fields.error(
                "reverse_transformer_layers_per_block", f"{levels} positive integers", up_depths
            )
    context = set(fields.listed("cross_attention_dim", 1280, levels))
    if len(context) != 1:
        raise fields.error("cross_attention_dim", "one width for all levels", sorted(context))
    only_cross = fields.take("only_cross_attention", False)
    if only_cross not in (False, [False] * levels) or (only_cross == 0 and only_cross is not False):
        raise fields.error("only_cross_attention", "False", only_cross)
    time_width = fields.take("time_embedding_dim")
    where = f"{fields.source}: time_embedding_dim"
    groups = fields.positive("norm_num_groups", 32)
    config = UNetConfig(
        in_channels=fields.positive("in_channels", 4),
        out_channels=fields.positive("out_channels", 4),
        widths=widths,
        down_attention=down,
        up_attention=up,
        mid_attention=_MIDDLE[fields.chosen("mid_block_type", _MIDDLE, "UNetMidBlock2DCrossAttn")],
        layers=fields.listed("layers_per_block", 2, levels, _MOST_LAYERS),
        depths=depths,
        up_depths=depths[::-1] if up_depths is None else up_depths,
        # The name is an old mistake of diffusers: it is the number of heads.
        num_heads=fields.listed("attention_head_dim", 8, levels),
        context=TextAttention(context.pop()),
        time_width=4 * widths[0] if time_width is None else typed(time_width, int, where),
        norm_groups=groups,
        norm_eps=fields.positive("norm_eps", 1e-5, float),
        activation=fields.chosen("act_fn", UNET_ACTIVATIONS, "silu"),
        sines_first=not fields.typed("flip_sin_to_cos", bool, True),
        freq_shift=fields.typed("freq_shift", float, 0),
        scale_shift_norm=fields.chosen(
            "resnet_time_scale_shift", ("default", "scale_shift"), "default"
        )
        == "scale_shift",
        center_input=fields.typed("center_input_sample", bool, False),
        downsample_padding=fields.typed("downsample_padding", int, 1),
        conv_in_kernel=fields.positive("conv_in_kernel", 3),
        conv_out_kernel=fields.positive("conv_out_kernel", 3),
    )
    linear = fields.typed("use_linear_projection", bool, False)
    fields.fixed(_UNET_FIXED)
    fields.without_effect(_UNET_FREE)
    fields.finish()
    _check_unet(config, fields)
    return config, linear


def _check_unet(config: UNetConfig, fields: Fields) -> None:
    for i, width in enumerate(config.widths):
        if width % config.norm_groups or width % 2:
            expected = f"even multiples of norm_num_groups {config.norm_groups}"
            raise fields.error("block_out_channels", expected, width)
        attends = config.down_attention[i] or config.up_attention[::-1][i]
        middle = bool(config.mid_attention) and i == len(config.widths) - 1
        if (attends or middle) and width % config.num_heads[i]:
            expected = f"a divisor of the level's width {width}"
            raise fields.error("attention_head_dim", expected, config.num_heads[i])
    for name, size in (
        ("conv_in_kernel", config.conv_in_kernel),
        ("conv_out_kernel", config.conv_out_kernel),
    ):
        if size % 2 == 0:
            raise fields.error(name, "an odd size", size)
    if config.downsample_padding not in (0, 1):
        raise fields.error("downsample_padding", "0 or 1", config.downsample_padding)
    if config.freq_shift >= config.widths[0] // 2:
        raise fields.error("freq_shift", f"less than {config.widths[0] // 2}", config.freq_shift)
    if config.time_width <= 0:
        raise fields.error("time_embedding_dim", "a positive number", config.time_width)


def read_vae_config(fields: Fields) -> AutoencoderConfig:
    """Sizes of `vae/config.json`, an `AutoencoderKL`, as those of `Autoencoder`.

    Raises:
      ConfigError: as `read_unet_config`.
    """
    down = fields.blocks("down_block_types", {"DownEncoderBlock2D": True}, ["DownEncoderBlock2D"])
    up = fields.blocks("up_block_types", {"UpDecoderBlock2D": True}, ["UpDecoderBlock2D"])
    widths = fields.listed("block_out_channels", [64])
    if not len(down) == len(up) == len(widths):
        expected = f"as many levels as block_out_channels, {len(widths)}"
        raise fields.error("down_block_types, up_block_types", expected, (len(down), len(up)))
    if any(width % widths[0] for width in widths):
        raise fields.error("block_out_channels", "multiples of the first", list(widths))
    groups, latents = fields.positive("norm_num_groups", 32), fields.positive("latent_channels", 4)
    if widths[0] % groups:
        raise fields.error("norm_num_groups", f"a divisor of {widths[0]}", groups)
    config = AutoencoderConfig(
        ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=fields.positive("layers_per_block", 1, most=_MOST_LAYERS),
        attn_resolutions=(),
        in_channels=fields.positive("in_channels", 3),
        out_ch=fields.positive("out_channels", 3),
        z_channels=latents,
        embed_dim=latents,
        norm_groups=groups,
        scale_factor=fields.positive("scaling_factor", 0.18215, float),
        shift_factor=0.0,
    )
    fields.fixed(_VAE_FIXED)
    fields.without_effect(_VAE_FREE)
    fields.finish()
    return dataclasses.replace(config, resolution=2 ** (len(widths) - 1))


# What transformers writes beside the sizes; nothing of it changes the hidden states.
_TEXT_FREE = {
    "architectures", "attention_dropout", "attention_probs_dropout_prob", "auto_map",
    "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "dropout", "dtype",
    "eos_token_id", "gradient_checkpointing", "hidden_dropout_prob", "id2label",
    "initializer_factor", "initializer_range", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "projection_dim", "projection_size", "return_dict",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def read_text_config(fields: Fields) -> ClipTextConfig | BertConfig:
    """Sizes of `text_encoder/config.json`: CLIP's text encoder, or BERT.

    Raises:
      ConfigError: as `read_unet_config`, or another kind of model.
    """
    kind = fields.chosen("model_type", ("clip_text_model", "bert", "cxr-bert"), None)
    clip = kind == "clip_text_model"
    values = {
        "vocab_size": fields.positive("vocab_size", 49408 if clip else 30522),
        "hidden_size": fields.positive("hidden_size", 512 if clip else 768),
        "num_layers": fields.positive("num_hidden_layers", 12, most=_MOST_LAYERS),
        "num_heads": fields.positive("num_attention_heads", 8 if clip else 12),
        "intermediate_size": fields.positive("intermediate_size", 2048 if clip else 3072),
        "max_positions": fields.positive("max_position_embeddings", 77 if clip else 512),
        "layer_norm_eps": fields.positive("layer_norm_eps", 1e-5 if clip else 1e-12, float),
    }
    if values["hidden_size"] % values["num_heads"]:
        expected = f"a divisor of hidden_size {values['hidden_size']}"
        raise fields.error("num_attention_heads", expected, values["num_heads"])
    config: ClipTextConfig | BertConfig
    if clip:
        activation = fields.chosen("hidden_act", CLIP_ACTIVATIONS, "quick_gelu")
        config = ClipTextConfig(**values, activation=activation)
    else:
        fields.fixed(
            {
                "hidden_act": ("gelu",),
                "position_embedding_type": ("absolute",),
                "is_decoder": (False,),
                "add_cross_attention": (False,),
            }
        )
        config = BertConfig(**values, token_types=fields.positive("type_vocab_size", 2))
    # With it, the pipeline would hide padding from the encoder.
    fields.fixed({"use_attention_mask": (False, None)})
    fields.without_effect(_TEXT_FREE)
    fields.finish()
    return config


# Samplers by the class that a folder names. PNDM's fields are DDIM's, and diffusers' own way to
# another sampler, `from_config`, reads them so.
_SAMPLERS: dict[str, Sampler] = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
}
_SCHEDULER_FIXED: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
}
# Of thresholding and Karras' sigmas, which are off, and of PNDM's own first steps.
_SCHEDULER_FREE = {
    "dynamic_thresholding_ratio", "sample_max_value", "sigma_min", "sigma_max", "skip_prk_steps",
}  # fmt: skip


def read_schedule(path: Path) -> ScheduleConfig:
    """The noise schedule and sampler of `scheduler/scheduler_config.json`.

    A folder with PNDM is sampled with DDIM, with a note.

    Raises:
      ConfigError: as `read_unet_config`, or another sampler.
    """
    fields = Fields.of_file(path)
    name = read_json(path).get("_class_name", "DDIMScheduler")
    if name not in _SAMPLERS:
        raise fields.error("_class_name", f"one of {list(_SAMPLERS)}", name)
    if name == "PNDMScheduler":
        note(f"{path}: PNDMScheduler is not supported; sampling uses DDIM on its noise schedule")
    sampler = _SAMPLERS[name]
    euler = sampler == "euler"
    clip = fields.typed("clip_sample", bool, not euler)
    clip_range = fields.positive("clip_sample_range", 1.0, float)
    schedule = ScheduleConfig(
        sampler=sampler,
        num_train_timesteps=fields.positive("num_train_timesteps", 1000, most=_MOST_TIMESTEPS),
        beta_start=fields.positive("beta_start", 0.0001, float),
        beta_end=fields.positive("beta_end", 0.02, float),
        beta_schedule=fields.chosen("beta_schedule", get_args(BetaSchedule), "linear"),
        prediction_type=fields.chosen("prediction_type", get_args(Prediction), "epsilon"),
        timestep_spacing=fields.chosen(
            "timestep_spacing", get_args(Spacing), "linspace" if euler else "leading"
        ),
        steps_offset=fields.typed("steps_offset", int, 0),
        rescale_betas_zero_snr=fields.typed("rescale_betas_zero_snr", bool, False),
        set_alpha_to_one=fields.typed("set_alpha_to_one", bool, True),
        # Euler's sampler of diffusers has no such field.
        clip_sample_range=clip_range if clip and not euler else None,
        final_sigmas_type=fields.chosen("final_sigmas_type", get_args(FinalSigma), "zero"),
    )
    fields.fixed(_SCHEDULER_FIXED)
    fields.without_effect(_SCHEDULER_FREE)
    fields.finish()
    if schedule.steps_offset < 0 or max(schedule.beta_start, schedule.beta_end) >= 1:
        raise fields.error(
            "steps_offset, beta_start, beta_end",
            "an offset of at least 0 and betas below 1",
            (schedule.steps_offset, schedule.beta_start, schedule.beta_end),
        )
    return schedule

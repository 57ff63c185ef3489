"""Sizes of every part of the model: frozen dataclasses, presets, and the published `config.json`.

`UniXConfig` describes a model completely. It is read from this project's own `config.json`
(`from_dict`), from one of the three published forms (`from_published`), or from a preset
(`UniXConfig.preset("published")`).
"""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from unix_jax.errors import ConfigError
from unix_jax.instructions import DEFAULT as DEFAULT_INSTRUCTIONS
from unix_jax.instructions import Instructions

FORMAT = "unix-jax-1"
# Sinusoids of a time; the original's frequency_embedding_size.
TIME_FREQUENCIES = 256
_UNET_TYPE = "unet"


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Llama-shaped decoder; every size is that of one expert stream.

    `head_dim` is numbers per head, `rope_theta` the rotary base, `rms_norm_eps` added to the mean
    square. Queries have `num_heads` heads, keys and values `num_kv_heads` (GQA when fewer).
    """

    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_layers: int = 24
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 128
    vocab_size: int = 102400
    max_position_embeddings: int = 16384
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """SigLIP ViT in timm layout, no pooling head. `image_size` and `patch_size` in pixels."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6

    @property
    def mlp_size(self) -> int:
        # A ratio read from a published `intermediate_size` may fall short of it by a rounding.
        return int(self.width * self.mlp_ratio + 1e-6)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """CompVis KL autoencoder; latent = scale_factor * (z - shift_factor).

    norm_groups: number of groups of the group norms; CompVis uses 32. With ch = 32 each group has
      one channel, whose own mean and standard deviation over the image are lost in every norm.
    in_channels, out_ch: number of channels. With 1, the mean of the image's channels is encoded,
      and the decoded gray channel is repeated for each of them.
    linear_window: odd side, in blocks of downsample x downsample pixels, of a linear encoder and a
      linear decoder whose outputs are added to those of the networks; 0 for none. CompVis' layout
      has none.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 16
    embed_dim: int = 16
    norm_groups: int = 32
    linear_window: int = 0
    scale_factor: float = 0.238092
    shift_factor: float = -0.201906

    @property
    def downsample(self) -> int:
        """Pixels per latent along one side."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Ids of the control tokens; the defaults are Janus-Pro-1B's (REFERENCE of the original)."""

    bos: int = 100000
    eos: int = 100001
    pad: int = 100002
    start_of_image: int = 100003
    end_of_image: int = 100580


@dataclasses.dataclass(frozen=True)
class TransformerStream:
    """UniX's own generation backbone: the gen stream of the decoder, which is of the DiT type.

    Its sizes are those of the decoder. See docs/backbones.md.
    """


@dataclasses.dataclass(frozen=True)
class UNetBackbone:
    """A diffusion U-Net as the generation backbone, instead of the gen stream.

    Its transformer blocks use UniX's cross-modal attention, with heads as the decoder has them. It
    reads the latents as they are, not grouped into tokens. See docs/backbones.md.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels of each level, from the finest to the coarsest."""
    attention: tuple[bool, ...] = (True, True, True, False)
    """Whether a level has transformer blocks; the middle block always has them."""
    layers: tuple[int, ...] = (2, 2, 2, 2)
    """ResNet blocks of a level on the way down; there is one more on the way up."""
    depths: tuple[int, ...] = (1, 1, 1, 1)
    """Transformer blocks after each ResNet block."""
    norm_groups: int = 32
    """Groups of the group norms."""

    def __post_init__(self) -> None:
        _validate_unet(self)


Backbone = TransformerStream | UNetBackbone


@dataclasses.dataclass(frozen=True)
class UniXConfig:
    """The whole model. Defaults are the published size.

    `latent_patch_size` p groups p x p latents of the autoencoder into one token; `max_latent_size`
    is the side of the position table in tokens; `timestep_shift` is the shift used in training.
    `double_bos` reproduces the published inference code, whose prompt has the tokenizer's own bos
    after the split's bos; it is on only for converted published weights. `instructions` are those
    that the model was trained with; None means the project's. `generation` is the backbone that
    predicts the velocity of latents.
    """

    decoder: DecoderConfig = DecoderConfig()
    vision: VisionConfig = VisionConfig()
    vae: AutoencoderConfig = AutoencoderConfig()
    special_tokens: SpecialTokens = SpecialTokens()
    latent_patch_size: int = 1
    max_latent_size: int = 32
    vit_max_num_patch_per_side: int = 24
    connector_act: str = "gelu_pytorch_tanh"
    interpolate_pos: bool = False
    timestep_shift: float = 1.0
    double_bos: bool = False
    instructions: Instructions | None = None
    generation: Backbone = TransformerStream()

    def __post_init__(self) -> None:
        _validate(self)

    def __repr__(self) -> str:
        fields = [f"  {f.name}={getattr(self, f.name)!r},\n" for f in dataclasses.fields(self)]
        return f"{type(self).__name__}(\n{''.join(fields)})"

    @property
    def latent_channels(self) -> int:
        """Numbers in one latent token."""
        return self.vae.z_channels * self.latent_patch_size**2

    @property
    def latent_downsample(self) -> int:
        """Pixels per latent token along one side."""
        return self.vae.downsample * self.latent_patch_size

    @property
    def asked(self) -> Instructions:
        """The instructions for reports: the model's own, or the project's."""
        return self.instructions or DEFAULT_INSTRUCTIONS

    def check_special_tokens(self) -> None:
        """Raises ConfigError if a control token is outside the vocabulary."""
        for name, value in dataclasses.asdict(self.special_tokens).items():
            # The pad token is never fed to the model, so an absent one does no harm.
            if name != "pad" and not 0 <= value < self.decoder.vocab_size:
                raise ConfigError(
                    f"special_token_ids.{name}: expected an id below vocab_size "
                    f"{self.decoder.vocab_size}, found {value}"
                )

    @classmethod
    def preset(cls, name: str) -> "UniXConfig":
        """`published` (3.2 B parameters), `nano` (9 M, a laptop), `tiny` (the golden files).

        Raises:
          ConfigError: the name is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset: expected one of {sorted(PRESETS)}, found {name!r}")
        return PRESETS[name]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that `from_dict` reads back to an equal configuration."""
        values = {"format": FORMAT} | dataclasses.asdict(self)
        if self.instructions is None:
            del values["instructions"]
        if isinstance(self.generation, UNetBackbone):
            values["generation"] = {"type": _UNET_TYPE} | values["generation"]
        else:
            # Absent, as in the files of before there was another backbone.
            del values["generation"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config.json") -> "UniXConfig":
        """Reads `to_dict`'s output; missing fields keep their defaults.

        Raises:
          ConfigError: an unknown format or field, or a value of the wrong kind.
        """
        if values.get("format") != FORMAT:
            raise ConfigError(
                f"{source}: format: expected {FORMAT!r}, found {values.get('format')!r}"
            )
        apart = ("format", "instructions", "generation")
        built = build({k: v for k, v in values.items() if k not in apart}, cls, source)
        return dataclasses.replace(
            built,
            instructions=read_instructions(values, source),
            generation=_read_generation(values, source),
        )


def read_instructions(values: Mapping[str, Any], source: str) -> Instructions | None:
    """The field `instructions` of a configuration file; None where it is absent or null.

    Raises:
      ConfigError: it is not an object of lists of texts.
    """
    given = values.get("instructions")
    if given is None:
        return None
    return Instructions.from_dict(given, f"{source}: instructions")


def _read_generation(values: Mapping[str, Any], source: str) -> Backbone:
    """The field `generation` of a configuration file; UniX's own backbone where it is absent.

    Raises:
      ConfigError: it is no object, or of another type than `unet`.
    """
    if "generation" not in values:
        return TransformerStream()
    given, where = values["generation"], f"{source}: generation"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: expected a JSON object, found {given!r}")
    if given.get("type") != _UNET_TYPE:
        raise ConfigError(f"{where}: type: expected {_UNET_TYPE!r}, found {given.get('type')!r}")
    return build({k: v for k, v in given.items() if k != "type"}, UNetBackbone, where)


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, or a ConfigError that names `where`."""
    wrong = ConfigError(f"{where}: expected {getattr(kind, '__name__', kind)}, found {value!r}")
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if kind is int:
        integral = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not integral or abs(value) > 2**31:
            raise wrong
        return int(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong
        try:
            number = float(value)
        except OverflowError:
            raise wrong from None
        if not math.isfinite(number):
            raise wrong
        return number
    if kind is str:
        if not isinstance(value, str):
            raise wrong
        return value
    # The one compound kind: a tuple of any length.
    if not isinstance(value, list | tuple):
        raise wrong
    of_items = typing.get_args(kind)[0]
    return tuple(typed(item, of_items, f"{where}[{i}]") for i, item in enumerate(value))


def build(values: Any, kind: Any, where: str) -> Any:
    """A dataclass from a dictionary, field by field; unknown fields are an error."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a JSON object, found {values!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(str(name) for name in values if name not in fields)
    if unknown:
        raise ConfigError(f"{where}: unknown fields {unknown}; expected {sorted(fields)}")
    built = {
        name: (build if dataclasses.is_dataclass(fields[name].type) else typed)(
            value, fields[name].type, f"{where}: {name}"
        )
        for name, value in values.items()
    }
    return kind(**built)


def _require(condition: bool, field: str, expected: str, found: Any) -> None:
    if not condition:
        raise ConfigError(f"{field}: expected {expected}, found {found!r}")


def _validate(config: UniXConfig) -> None:
    decoder, vision, vae = config.decoder, config.vision, config.vae
    for part, name in ((decoder, "decoder"), (vision, "vision"), (vae, "vae"), (config, "config")):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                free = ("shift_factor", "timestep_shift", "linear_window")
                positive = value > 0 or field.name in free
                _require(positive, f"{name}.{field.name}", "a positive number", value)
    kv_heads = decoder.num_kv_heads
    _require(
        decoder.num_heads % kv_heads == 0,
        "decoder.num_kv_heads",
        f"a divisor of num_heads {decoder.num_heads}",
        kv_heads,
    )
    _require(decoder.head_dim % 2 == 0, "decoder.head_dim", "an even number", decoder.head_dim)
    _require(
        decoder.hidden_size % 4 == 0,
        "decoder.hidden_size",
        "a multiple of 4 (2-D sin-cos table)",
        decoder.hidden_size,
    )
    _require(
        vision.width % vision.num_heads == 0,
        "vision.width",
        f"a multiple of heads {vision.num_heads}",
        vision.width,
    )
    _require(
        vision.image_size % vision.patch_size == 0,
        "vision.image_size",
        f"a multiple of patch_size {vision.patch_size}",
        vision.image_size,
    )
    _require(bool(vae.ch_mult), "vae.ch_mult", "at least one level", vae.ch_mult)
    _require(vae.norm_groups >= 1, "vae.norm_groups", "at least 1", vae.norm_groups)
    _require(
        vae.linear_window == 0 or (vae.linear_window > 0 and vae.linear_window % 2 == 1),
        "vae.linear_window",
        "0 or an odd number",
        vae.linear_window,
    )
    for multiplier in vae.ch_mult:
        _require(
            multiplier > 0 and vae.ch * multiplier % vae.norm_groups == 0,
            "vae.ch * ch_mult",
            f"a multiple of norm_groups {vae.norm_groups}",
            vae.ch * multiplier,
        )
    _require(
        config.connector_act in CONNECTOR_ACTIVATIONS,
        "connector_act",
        f"one of {sorted(CONNECTOR_ACTIVATIONS)}",
        config.connector_act,
    )


def _validate_unet(unet: UNetBackbone) -> None:
    levels = len(unet.widths)
    _require(levels >= 1, "generation.widths", "at least one level", unet.widths)
    for name in ("attention", "layers", "depths"):
        values = getattr(unet, name)
        _require(len(values) == levels, f"generation.{name}", f"{levels} values", values)
    for name in ("layers", "depths"):
        values = getattr(unet, name)
        _require(min(values) >= 1, f"generation.{name}", "values of at least 1", values)
    _require(unet.norm_groups >= 1, "generation.norm_groups", "at least 1", unet.norm_groups)
    for width in unet.widths:
        _require(
            width > 0 and width % unet.norm_groups == 0,
            "generation.widths",
            f"multiples of norm_groups {unet.norm_groups}",
            width,
        )
    _require(
        unet.widths[0] % 2 == 0,
        "generation.widths",
        "an even first width (sines and cosines of the time)",
        unet.widths[0],
    )


CONNECTOR_ACTIVATIONS = frozenset({"gelu", "gelu_pytorch_tanh"})


PRESETS: dict[str, UniXConfig] = {
    "published": UniXConfig(),
    "nano": UniXConfig(
        decoder=DecoderConfig(256, 512, 5, 4, 4, 64, 2048, 2048),
        vision=VisionConfig(128, 16, 128, 4, 4),
        vae=AutoencoderConfig(
            ch=16,
            ch_mult=(1, 1, 2, 4),
            num_res_blocks=1,
            in_channels=1,
            out_ch=1,
            z_channels=8,
            embed_dim=8,
            norm_groups=4,
            linear_window=3,
        ),
        special_tokens=SpecialTokens(2040, 2041, 2042, 2043, 2044),
        latent_patch_size=2,
        max_latent_size=8,
        vit_max_num_patch_per_side=8,
    ),
    "tiny": UniXConfig(
        decoder=DecoderConfig(64, 176, 3, 4, 4, 16, 640, 512),
        vision=VisionConfig(48, 16, 32, 2, 4),
        vae=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 1, 2), num_res_blocks=1),
        special_tokens=SpecialTokens(600, 601, 602, 603, 608),
        max_latent_size=8,
        vit_max_num_patch_per_side=3,
    ),
}

"""Sizes of the diffusion U-Net, and its two kinds of context."""

import dataclasses

from unix_jax.config import DecoderConfig, UNetBackbone, UniXConfig

UNET_ACTIVATIONS = ("silu", "swish", "gelu", "mish", "relu")


@dataclasses.dataclass(frozen=True)
class TextAttention:
    """Each transformer block attends to itself, then to encoder hidden states of `width` numbers.

    That is cross-attention as in Stable Diffusion.
    """

    width: int = 768


@dataclasses.dataclass(frozen=True)
class JointAttention:
    """UniX's cross-modal attention, with heads as `decoder` has them.

    A block's own keys and values share one softmax with those that the und stream of a decoder of
    these sizes has cached.
    """

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes, by level from the finest to the coarsest; the defaults are those of SD 1.x.

    `up_attention` and `up_depths` count from the coarsest, as diffusers' `up_block_types`.
    `num_heads` are heads per level, `layers` resnets per level on the way down (one more on the way
    up), `depths` transformer blocks in each attention. `mid_attention` None: no middle block.
    `time_width` is that of the time embedding; `sines_first` and `freq_shift` are its sinusoid's.
    `scale_shift_norm`: time scales and shifts the second norm instead of being added before it.
    """

    in_channels: int = 4
    out_channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    mid_attention: bool | None = True
    layers: tuple[int, ...] = (2, 2, 2, 2)
    depths: tuple[int, ...] = (1, 1, 1, 1)
    up_depths: tuple[int, ...] = (1, 1, 1, 1)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    context: TextAttention | JointAttention = TextAttention()
    time_width: int = 1280
    norm_groups: int = 32
    norm_eps: float = 1e-5
    activation: str = "silu"
    sines_first: bool = False
    freq_shift: float = 0.0
    scale_shift_norm: bool = False
    center_input: bool = False
    downsample_padding: int = 1
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of the whole network: down, middle and up."""
        down = zip(self.down_attention, self.layers, self.depths, strict=True)
        up = zip(self.up_attention, self.layers[::-1], self.up_depths, strict=True)
        middle = self.depths[-1] if self.mid_attention else 0
        return sum(a * n * d for a, n, d in down) + middle + sum(a * (n + 1) * d for a, n, d in up)

    def matching_layer(self, block: int, num_layers: int) -> int:
        """The layer of a decoder whose cache transformer block `block` reads: both ends meet."""
        return round(block * (num_layers - 1) / max(self.num_blocks - 1, 1))


def backbone_config(config: UniXConfig) -> UNetConfig:
    """The U-Net of a model whose generation backbone is one."""
    backbone = config.generation
    assert isinstance(backbone, UNetBackbone)
    return UNetConfig(
        in_channels=config.vae.z_channels,
        out_channels=config.vae.z_channels,
        widths=backbone.widths,
        down_attention=backbone.attention,
        up_attention=backbone.attention[::-1],
        layers=backbone.layers,
        depths=backbone.depths,
        up_depths=backbone.depths[::-1],
        context=JointAttention(config.decoder),
        time_width=4 * backbone.widths[0],
        norm_groups=backbone.norm_groups,
        # Heads are the decoder's; these are of attention to texts.
        num_heads=(1,) * len(backbone.widths),
    )

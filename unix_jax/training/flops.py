"""Floating-point operations that a training step needs, and what a device could do.

Counts matrix products and convolutions of the model as written: forward once; backward twice more
where weights are trained, once more where only the gradient passes, not at all where frozen. The
frozen encoders of a generation stage, of the autoencoder and of REPA, count once. What
rematerialisation repeats and what padding wastes do not count. An attended pair is a pair of tokens
of one sample, und queries on und keys, gen queries on both; causality is not discounted (as in
PaLM's definition of model FLOPs utilisation, arXiv 2204.02311, appendix B).

Letters: B rows, U und tokens, G latent tokens, I ViT images and J VAE images of a row.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from unix_jax.config import AutoencoderConfig, UNetBackbone, UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.models.dinov2 import Dinov2Config, encoder_size
from unix_jax.models.unet_config import backbone_config

# Dense bfloat16 peak in FLOP/s by `device_kind`, from the makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}

Trained = Literal["understanding", "generation", "all"]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a batch holds, padding excluded. Pairs are (query, key) within one sample.

    vae_images, vae_size: what the autoencoder encodes in the step. latent_images: all images of
    latents, those encoded before the run too.
    """

    und_tokens: int
    gen_tokens: int
    und_pairs: int
    gen_und_pairs: int
    gen_gen_pairs: int
    vit_images: int
    vae_images: int
    vae_size: tuple[int, int]
    text_losses: int
    latent_images: int = 0

    @property
    def tokens(self) -> int:
        return self.und_tokens + self.gen_tokens


def count(batch: TrainingBatch, config: UniXConfig) -> Counts:
    """Counts of a batch on the host (numpy leaves)."""
    und = np.asarray(batch.und.segment)
    gen = np.zeros((len(und), 0), und.dtype) if batch.gen is None else np.asarray(batch.gen.segment)
    in_und, in_gen = _per_sample(und, gen), _per_sample(gen, und)
    vit_tokens = 0 if batch.vit_index is None else int((np.asarray(batch.vit_index) >= 0).sum())
    size: tuple[int, int] = (0, 0)
    vae_images = 0
    if batch.vae_pixels is not None and batch.latent_index is not None:
        size = (batch.vae_pixels.shape[2], batch.vae_pixels.shape[3])
        tokens = size[0] * size[1] // config.latent_downsample**2
        vae_images = int((np.asarray(batch.latent_index) >= 0).sum()) // tokens
    latent_images = 0
    if batch.latent_index is not None and batch.noised is not None:
        index = np.asarray(batch.latent_index)
        latent_images = int((index >= 0).sum()) // (index.shape[1] // batch.noised.shape[1])
    return Counts(
        und_tokens=int((und > 0).sum()),
        gen_tokens=int((gen > 0).sum()),
        und_pairs=int((in_und * in_und).sum()),
        gen_und_pairs=int((in_gen * in_und).sum()),
        gen_gen_pairs=int((in_gen * in_gen).sum()),
        vit_images=vit_tokens // config.vision.num_patches,
        vae_images=vae_images,
        vae_size=size,
        text_losses=int((np.asarray(batch.ce_weights) > 0).sum()),
        latent_images=latent_images,
    )


def _per_sample(segments: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Tokens of each (row, segment), up to the last segment of either stream."""
    number = int(max(segments.max(initial=0), others.max(initial=0)))
    return (segments[:, :, None] == np.arange(1, number + 1)).sum(axis=1, dtype=np.int64)


def step_flops(
    config: UniXConfig, counts: Counts, stage: Trained, *, weights_frozen: bool = False
) -> float:
    """FLOPs of one step over what `counts` holds.

    Args:
      stage: `understanding` trains the ViT, connector and und stream, `generation` the gen stream,
        with the ViT, the und stream and the autoencoder run forward only; `all` trains both
        streams.
      weights_frozen: LoRA: gradients pass through the decoder, its own weights have none.
    """
    per_token, pair = _layer_flops(config)
    layers, width = config.decoder.num_layers, config.decoder.hidden_size
    passed = 2 if weights_frozen else 3
    head = 2 * width * config.decoder.vocab_size * counts.text_losses
    vit = counts.vit_images * _vit_flops(config)
    und_trained = stage != "generation"
    und_passes, head_passes = (passed, passed) if und_trained else (1, 1)
    und: float = counts.und_tokens * per_token * und_passes
    und += counts.und_pairs * pair * (3 if und_trained else 1)
    images = vit * (3 if und_trained and not weights_frozen else 1)
    if stage == "understanding":
        return layers * und + head * head_passes + images
    encoder = counts.vae_images * encoder_flops(config.vae, counts.vae_size)
    if isinstance(config.generation, UNetBackbone):
        unet = 3 * unet_flops(config, counts)
        return layers * und + head * head_passes + images + unet + encoder
    # Of the backward's four products, those that give the gradients of keys and values reach the
    # keys of the gen stream only where the und stream is frozen.
    gen = counts.gen_tokens * per_token * passed
    gen += (counts.gen_und_pairs * (3 if und_trained else 2) + counts.gen_gen_pairs * 3) * pair
    latents = counts.gen_tokens * 2 * 2 * width * config.latent_channels * 3
    return layers * (und + gen) + head * head_passes + images + latents + encoder


def _layer_flops(config: UniXConfig) -> tuple[int, int]:
    """Forward FLOPs of one decoder layer: (per token, per attended pair)."""
    c = config.decoder
    heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    return 2 * c.hidden_size * (heads + 3 * c.intermediate_size), 4 * c.num_heads * c.head_dim


def unet_flops(config: UniXConfig, counts: Counts) -> float:
    """Forward FLOPs of the U-Net over all images of latents, each of which it reads once."""
    c, d = backbone_config(config), config.decoder
    if not counts.latent_images:
        return 0.0
    tokens = counts.gen_tokens // counts.latent_images
    # und tokens of the sample that an image is in.
    seen = counts.gen_und_pairs / counts.gen_tokens
    places = tokens * config.latent_patch_size**2

    def layer(inner: int, outer: int, depth: int) -> float:
        resnet = _resnet_flops(places, inner, outer) + 2 * c.time_width * outer
        heads = (2 * d.num_heads + 2 * d.num_kv_heads) * d.head_dim
        # to_q, to_k, to_v and to_out; the GEGLU's two layers.
        block: float = 2 * places * outer * (heads + 12 * outer)
        block += 4 * places * (places + seen) * d.num_heads * d.head_dim
        ends = 2 * places * 2 * outer**2 if depth else 0
        return resnet + depth * block + ends

    width = c.widths[0]
    total: float = 2 * places * 9 * width * (c.in_channels + c.out_channels)
    total += 2 * c.time_width * (width + c.time_width)
    skips, sizes = [width], [places]
    for i, outer in enumerate(c.widths):
        for _ in range(c.layers[i]):
            total += layer(width, outer, c.depths[i] * c.down_attention[i])
            width = outer
            skips.append(width)
        if i < len(c.widths) - 1:
            places = -(-places // 4)
            sizes.append(places)
            total += 2 * places * 9 * width**2
            skips.append(width)
    total += layer(width, width, c.depths[-1]) + layer(width, width, 0)
    for i, level in enumerate(reversed(range(len(c.widths)))):
        places = sizes[level]
        for _ in range(c.layers[level] + 1):
            outer = c.widths[level]
            total += layer(width + skips.pop(), outer, c.up_depths[i] * c.up_attention[i])
            width = outer
        if level:
            total += 2 * sizes[level - 1] * 9 * width**2
    return counts.latent_images * total


def _vit_flops(config: UniXConfig) -> int:
    """Forward FLOPs of one image through the ViT and the connector."""
    c, width = config.vision, config.decoder.hidden_size
    layer = 2 * (4 * c.width**2 + 2 * c.width * c.mlp_size) + 4 * c.num_patches * c.width
    ends = 2 * (3 * c.patch_size**2 * c.width + c.width * width + width**2)
    return c.num_patches * (c.num_layers * layer + ends)


def repa_flops(encoder: Dinov2Config, image_size: int, images: int, size: tuple[int, int]) -> float:
    """FLOPs of REPA's frozen encoder over `images` of `size` pixels, seen at `image_size`."""
    sides = encoder_size(*size, image_size, encoder.patch_size)
    patches = sides[0] * sides[1] // encoder.patch_size**2
    tokens, width = patches + 1, encoder.hidden_size
    layer = 2 * (4 * width**2 + 2 * width * encoder.mlp_size) + 4 * tokens * width
    embedding = patches * 2 * 3 * encoder.patch_size**2 * width
    return images * (tokens * encoder.num_layers * layer + embedding)


def encoder_flops(config: AutoencoderConfig, size: tuple[int, int]) -> int:
    """Forward FLOPs of the autoencoder's encoder over one image of `size` pixels."""
    places, inner, total = size[0] * size[1], config.ch, 2 * 9 * config.in_channels * config.ch
    total *= places
    for level, multiplier in enumerate(config.ch_mult):
        outer = config.ch * multiplier
        for _ in range(config.num_res_blocks):
            total += _resnet_flops(places, inner, outer)
            inner = outer
            if config.resolution // 2**level in config.attn_resolutions:
                total += _attention_flops(places, inner)
        if level != len(config.ch_mult) - 1:
            places //= 4
            total += 2 * places * 9 * inner**2
    total += 2 * _resnet_flops(places, inner, inner) + _attention_flops(places, inner)
    moments = 2 * config.z_channels
    block = config.downsample**2 * config.in_channels
    total += 2 * places * config.linear_window**2 * block * config.embed_dim
    return total + 2 * places * (9 * inner * moments + moments * 2 * config.embed_dim)


def _resnet_flops(places: int, inner: int, outer: int) -> int:
    shortcut = inner * outer if inner != outer else 0
    return 2 * places * (9 * inner * outer + 9 * outer**2 + shortcut)


def _attention_flops(places: int, width: int) -> int:
    return 2 * places * 4 * width**2 + 4 * places**2 * width


def peak_flops(device: jax.Device) -> float | None:
    """bfloat16 peak of a device in FLOP/s; None where it is not known, as of a CPU."""
    return PEAK_FLOPS.get(device.device_kind)


def utilisation(flops: float, seconds: float, devices: int, device: jax.Device) -> float | None:
    """Model FLOPs utilisation of `devices` equal devices, or None where the peak is not known."""
    peak = peak_flops(device)
    return None if peak is None or seconds <= 0 else flops / seconds / (peak * devices)

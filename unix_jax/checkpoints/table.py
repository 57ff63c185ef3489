"""The table between this project's parameters and the keys of the published files.

Each `Entry` maps a path of our tree to a key of the file (or, for stacked layers, to one key per
layer), with the shape and the transform. Import reads the table from right to left, export from
left to right. Keys are defined nowhere else.

Letters: L layers, D width, F MLP width, V vocabulary, N heads, K kv heads, H head dim, W ViT
width, P patch size, O output and I input channels.
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from unix_jax.config import (
    TIME_FREQUENCIES,
    AutoencoderConfig,
    TransformerStream,
    UniXConfig,
    VisionConfig,
)
from unix_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Transform:
    """A permutation of axes from the file's order to ours; its inverse goes back.

    `file_ones` axes of size 1 at the end of the file's tensor are none of ours, and `our_ones` at
    the start of ours are none of the file's: a 1x1 convolution and a linear layer are the same.
    """

    name: str
    axes: tuple[int, ...] | None
    file_ones: int = 0
    our_ones: int = 0

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """A view of a file's tensor with our axes."""
        tensor = tensor.reshape(tensor.shape[: tensor.ndim - self.file_ones])
        tensor = tensor if self.axes is None else tensor.transpose(self.axes)
        return tensor[(None,) * self.our_ones]

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """A view of our array with the file's axes."""
        array = array.reshape(array.shape[self.our_ones :])
        array = array if self.axes is None else array.transpose(np.argsort(self.axes))
        return array[(..., *(None,) * self.file_ones)]

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of an array that is `shape` here."""
        shape = shape[self.our_ones :]
        if self.axes is not None:
            shape = tuple(shape[axis] for axis in np.argsort(self.axes))
        return (*shape, *(1,) * self.file_ones)


SAME = Transform("same", None)
LINEAR = Transform("OI -> IO", (1, 0))
CONV = Transform("OIHW -> HWIO", (2, 3, 1, 0))
CONV_AS_LINEAR = Transform("OI11 -> IO", (1, 0), file_ones=2)
LINEAR_AS_CONV = Transform("OI -> 11IO", (1, 0), our_ones=2)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row: our `path`, the file's `key` (with `{layer}` if stacked), and the transform.

    `shape` is ours without the layer axis; `layers` is L, or None when not stacked.
    """

    path: str
    key: str
    shape: tuple[int, ...]
    transform: Transform = SAME
    layers: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The file's keys, in layer order."""
        if self.layers is None:
            return (self.key,)
        return tuple(self.key.format(layer=layer) for layer in range(self.layers))

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of each of `keys` in the file."""
        return self.transform.file_shape(self.shape)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape of our array, layer axis included."""
        return self.shape if self.layers is None else (self.layers, *self.shape)


# Tensors of the published file that the model does not use; they are kept and exported again.
UNUSED = re.compile(
    r"vit_model\.vision_tower\.attn_pool\.[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*"
    r"|vit_pos_embed\.pos_embed"
    r"|language_model\.model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"
)
# Training's leftovers in the autoencoder's file, which need not survive a round trip.
VAE_DROPPED = re.compile(r"loss\..*")


def linear(path: str, key: str, inputs: int, outputs: int, bias: bool = True) -> Iterator[Entry]:
    """The rows of a linear layer."""
    yield Entry(f"{path}/kernel", f"{key}.weight", (inputs, outputs), LINEAR)
    if bias:
        yield Entry(f"{path}/bias", f"{key}.bias", (outputs,))


def conv(path: str, key: str, inputs: int, outputs: int, size: int) -> Iterator[Entry]:
    """The rows of a square convolution."""
    yield Entry(f"{path}/kernel", f"{key}.weight", (size, size, inputs, outputs), CONV)
    yield Entry(f"{path}/bias", f"{key}.bias", (outputs,))


def norm(path: str, key: str, width: int, bias: bool = True) -> Iterator[Entry]:
    """The rows of a norm."""
    yield Entry(f"{path}/scale", f"{key}.weight", (width,))
    if bias:
        yield Entry(f"{path}/bias", f"{key}.bias", (width,))


def stacked(entries: Iterator[Entry], layers: int) -> Iterator[Entry]:
    """The same rows for keys that carry `{layer}`."""
    for entry in entries:
        yield dataclasses.replace(entry, layers=layers)


# --- UniX ------------------------------------------------------------------------------------


def _decoder_layer(config: UniXConfig, stream: str, suffix: str) -> Iterator[Entry]:
    sizes = config.decoder
    width, inner, head = sizes.hidden_size, sizes.intermediate_size, sizes.head_dim
    queries, keys = sizes.num_heads * head, sizes.num_kv_heads * head
    path, key = f"decoder/layers/{stream}", "language_model.model.layers.{layer}"
    attention, mlp = f"{key}.self_attn", f"{key}.mlp{suffix}"
    yield from norm(f"{path}/input_norm", f"{key}.input_layernorm{suffix}", width, bias=False)
    yield from linear(f"{path}/q_proj", f"{attention}.q_proj{suffix}", width, queries)
    yield from linear(f"{path}/k_proj", f"{attention}.k_proj{suffix}", width, keys)
    yield from linear(f"{path}/v_proj", f"{attention}.v_proj{suffix}", width, keys)
    yield from linear(f"{path}/o_proj", f"{attention}.o_proj{suffix}", queries, width, bias=False)
    yield from norm(f"{path}/q_norm", f"{attention}.q_norm{suffix}", head, bias=False)
    yield from norm(f"{path}/k_norm", f"{attention}.k_norm{suffix}", head, bias=False)
    yield from norm(
        f"{path}/post_attention_norm", f"{key}.post_attention_layernorm{suffix}", width, bias=False
    )
    yield from linear(f"{path}/gate_proj", f"{mlp}.gate_proj", width, inner, bias=False)
    yield from linear(f"{path}/up_proj", f"{mlp}.up_proj", width, inner, bias=False)
    yield from linear(f"{path}/down_proj", f"{mlp}.down_proj", inner, width, bias=False)


def _vision_block(vision: VisionConfig) -> Iterator[Entry]:
    width, inner = vision.width, vision.mlp_size
    path, key = "vision/blocks", "vit_model.vision_tower.blocks.{layer}"
    yield from norm(f"{path}/norm1", f"{key}.norm1", width)
    yield from linear(f"{path}/qkv", f"{key}.attn.qkv", width, 3 * width)
    yield from linear(f"{path}/proj", f"{key}.attn.proj", width, width)
    yield from norm(f"{path}/norm2", f"{key}.norm2", width)
    yield from linear(f"{path}/fc1", f"{key}.mlp.fc1", width, inner)
    yield from linear(f"{path}/fc2", f"{key}.mlp.fc2", inner, width)


def _unix(config: UniXConfig) -> Iterator[Entry]:
    decoder, vision = config.decoder, config.vision
    width, vocabulary = decoder.hidden_size, decoder.vocab_size
    model, tower = "language_model.model", "vit_model.vision_tower"
    yield Entry("embed_tokens/embedding", f"{model}.embed_tokens.weight", (vocabulary, width))
    yield from linear("lm_head", "language_model.lm_head", width, vocabulary, bias=False)
    for stream, suffix in (("und", ""), ("gen", "_moe_gen")):
        yield from stacked(_decoder_layer(config, stream, suffix), decoder.num_layers)
        yield from norm(f"decoder/norm/{stream}", f"{model}.norm{suffix}", width, bias=False)
    yield from conv(
        "vision/patch_embed", f"{tower}.patch_embed.proj", 3, vision.width, vision.patch_size
    )
    yield Entry("vision/pos_embed", f"{tower}.pos_embed", (1, vision.num_patches, vision.width))
    yield from stacked(_vision_block(vision), vision.num_layers)
    yield from norm("vision/norm", f"{tower}.norm", vision.width)
    yield from linear("connector/fc1", "connector.layers.0", vision.width, width)
    yield from linear("connector/fc2", "connector.layers.2", width, width)
    yield from linear("time_embedder/fc1", "time_embedder.mlp.0", TIME_FREQUENCIES, width)
    yield from linear("time_embedder/fc2", "time_embedder.mlp.2", width, width)
    yield from linear("vae2llm", "vae2llm", config.latent_channels, width)
    yield from linear("llm2vae", "llm2vae", width, config.latent_channels)
    yield Entry(
        "latent_pos_embed", "latent_pos_embed.pos_embed", (config.max_latent_size**2, width)
    )


def unix_table(config: UniXConfig) -> tuple[Entry, ...]:
    """The table of `model.safetensors` for these sizes.

    Raises:
      CheckpointError: the generation backbone is a U-Net, for which that file has no names.
    """
    if not isinstance(config.generation, TransformerStream):
        raise CheckpointError(
            "generation: expected UniX's own backbone, since the published layout has no other, "
            "found a U-Net: such a model is kept as a checkpoint of this project"
        )
    return tuple(_unix(config))


# --- Janus-Pro, from which stage 1 starts ----------------------------------------------------

# The published prefix and Janus-Pro's; the rest of each key is the same.
JANUS_RENAMES = (
    ("vit_model.vision_tower.", "vision_model.vision_tower."),
    ("connector.layers.", "aligner.layers."),
    ("language_model.", "language_model."),
)
# Janus-Pro's own image generator, which UniX replaces.
JANUS_DROPPED = re.compile(r"gen_[a-z_]+\..*")
_NOT_IN_JANUS = re.compile(r"_moe_gen\b|\.[qkv]_proj\.bias$|\.[qk]_norm\.")


def janus_key(key: str) -> str | None:
    """Janus-Pro's name for a published key, or None if Janus-Pro has no such tensor."""
    if _NOT_IN_JANUS.search(key):
        return None
    for published, janus in JANUS_RENAMES:
        if key.startswith(published):
            return janus + key.removeprefix(published)
    return None


def published_key(key: str) -> str:
    """The published name of a Janus-Pro key; unknown keys are returned as they are."""
    for published, janus in JANUS_RENAMES:
        if key.startswith(janus):
            return published + key.removeprefix(janus)
    return key


def janus_table(config: UniXConfig) -> tuple[Entry, ...]:
    """The rows of the table that a Janus-Pro file fills, under its own names."""
    renamed = ((entry, janus_key(entry.key)) for entry in _unix(config))
    return tuple(dataclasses.replace(entry, key=key) for entry, key in renamed if key)


# --- Autoencoder -----------------------------------------------------------------------------


def _residual(path: str, key: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield from norm(f"{path}/norm1", f"{key}.norm1", inputs)
    yield from conv(f"{path}/conv1", f"{key}.conv1", inputs, outputs, 3)
    yield from norm(f"{path}/norm2", f"{key}.norm2", outputs)
    yield from conv(f"{path}/conv2", f"{key}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        yield from conv(f"{path}/nin_shortcut", f"{key}.nin_shortcut", inputs, outputs, 1)


def _attention(path: str, key: str, width: int) -> Iterator[Entry]:
    yield from norm(f"{path}/norm", f"{key}.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        yield from conv(f"{path}/{name}", f"{key}.{name}", width, width, 1)


def _middle(part: str, width: int) -> Iterator[Entry]:
    yield from _residual(f"{part}/mid_block_1", f"{part}.mid.block_1", width, width)
    yield from _attention(f"{part}/mid_attn_1", f"{part}.mid.attn_1", width)
    yield from _residual(f"{part}/mid_block_2", f"{part}.mid.block_2", width, width)


def _encoder(config: AutoencoderConfig) -> Iterator[Entry]:
    yield from conv("encoder/conv_in", "encoder.conv_in", config.in_channels, config.ch, 3)
    width = config.ch
    for level, multiplier in enumerate(config.ch_mult):
        path, key, outputs = (
            f"encoder/down_{level}",
            f"encoder.down.{level}",
            config.ch * multiplier,
        )
        for block in range(config.num_res_blocks):
            yield from _residual(f"{path}_block_{block}", f"{key}.block.{block}", width, outputs)
            width = outputs
            if config.resolution // 2**level in config.attn_resolutions:
                yield from _attention(f"{path}_attn_{block}", f"{key}.attn.{block}", width)
        if level != len(config.ch_mult) - 1:
            yield from conv(f"{path}_downsample", f"{key}.downsample.conv", width, width, 3)
    yield from _middle("encoder", width)
    yield from norm("encoder/norm_out", "encoder.norm_out", width)
    # Mean and log-variance.
    yield from conv("encoder/conv_out", "encoder.conv_out", width, 2 * config.z_channels, 3)


def _decoder(config: AutoencoderConfig) -> Iterator[Entry]:
    width = config.ch * config.ch_mult[-1]
    yield from conv("decoder/conv_in", "decoder.conv_in", config.z_channels, width, 3)
    yield from _middle("decoder", width)
    for level, multiplier in reversed(tuple(enumerate(config.ch_mult))):
        path, key = f"decoder/up_{level}", f"decoder.up.{level}"
        outputs = config.ch * multiplier
        for block in range(config.num_res_blocks + 1):
            yield from _residual(f"{path}_block_{block}", f"{key}.block.{block}", width, outputs)
            width = outputs
            if config.resolution // 2**level in config.attn_resolutions:
                yield from _attention(f"{path}_attn_{block}", f"{key}.attn.{block}", width)
        if level != 0:
            yield from conv(f"{path}_upsample", f"{key}.upsample.conv", width, width, 3)
    yield from norm("decoder/norm_out", "decoder.norm_out", width)
    yield from conv("decoder/conv_out", "decoder.conv_out", width, config.out_ch, 3)


def vae_table(config: AutoencoderConfig) -> tuple[Entry, ...]:
    """The table of the autoencoder's `state_dict` for these sizes."""
    moments = 2 * config.z_channels, 2 * config.embed_dim
    linear: tuple[Entry, ...] = ()
    if config.linear_window:
        blocks, latents = config.downsample**2, config.embed_dim
        window = config.linear_window
        # Ours: CompVis' layout has no linear path.
        linear = (
            *conv("linear_encoder", "linear_encoder", blocks * config.in_channels, latents, window),
            *conv("linear_decoder", "linear_decoder", latents, blocks * config.out_ch, window),
        )
    return (
        *_encoder(config),
        *_decoder(config),
        *conv("quant_conv", "quant_conv", *moments, 1),
        *conv("post_quant_conv", "post_quant_conv", config.embed_dim, config.z_channels, 1),
        *linear,
    )

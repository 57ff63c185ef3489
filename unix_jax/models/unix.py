"""UniX: embeds the streams, runs the decoder, reads text logits and velocities.

Letters: B batch, U und tokens, G latent tokens, I images of a row, P patches of an image,
D width, V vocabulary, C numbers in a latent token.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.config import UniXConfig
from unix_jax.models.attention import Implementation
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.decoder import Decoder, DecoderOutput, Streams, unstack_layers
from unix_jax.models.embeddings import sincos_table_2d, timestep_sinusoid
from unix_jax.models.layers import Dtype, TwoLayerMLP, dense
from unix_jax.models.remat import RematPolicy
from unix_jax.models.shapes import traced_once
from unix_jax.models.vision import VisionTransformer

_ACTIVATION = ("batch", "length", "embed_act")


@struct.dataclass
class TwoStreamBatch:
    """Packed rows of fixed shape: the input of a training or scoring pass.

    token_ids [B, U]: ids of text and boundary tokens, arbitrary at ViT positions. und, gen:
    metadata of the streams. vit_pixels [B, I, H, W, 3]: normalised images, or None. vit_index [B,
    U]: image * P + patch at ViT positions, -1 elsewhere. latents [B, G, C]: x_t. timesteps [B, G]:
    t in [0, 1], 0 for clean images. latent_position_ids [B, G]. A stream may be None.
    """

    token_ids: Int[Array, "B U"]
    und: TokenMetadata
    vit_pixels: Float[Array, "B I H W 3"] | None = None
    vit_index: Int[Array, "B U"] | None = None
    gen: TokenMetadata | None = None
    latents: Float[Array, "B G C"] | None = None
    timesteps: Float[Array, "B G"] | None = None
    latent_position_ids: Int[Array, "B G"] | None = None


class UniX(nn.Module):
    """The model without its (frozen, separate) autoencoder.

    `dtype` is that of the computation; norms, RoPE, softmax, the time sinusoid and all outputs are
    float32. `remat_policy` trades memory for recomputation in the backward pass. `freeze_und` stops
    gradients on the whole und stream, and drops its backward pass. `unroll` is the number of layers
    per iteration of the compiled loop.
    """

    config: UniXConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"
    remat_policy: RematPolicy = "none"
    scan_layers: bool = True
    freeze_und: bool = False
    unroll: int = 1

    def setup(self) -> None:
        c, width = self.config, self.config.decoder.hidden_size
        self.embed_tokens = nn.Embed(
            c.decoder.vocab_size,
            width,
            dtype=self.dtype,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02), ("vocab", "embed")
            ),
        )
        self.lm_head = dense(
            c.decoder.vocab_size,
            ("embed", "vocab"),
            use_bias=False,
            dtype=self.dtype,
            transposed=not self.scan_layers,
        )
        self.decoder = Decoder(
            c.decoder, self.dtype, self.attention_implementation, self.remat_policy,
            self.scan_layers, self.freeze_und, self.unroll,
        )  # fmt: skip
        self.vision = VisionTransformer(
            c.vision, self.dtype, self.attention_implementation, self.remat_policy, self.unroll
        )
        self.connector = TwoLayerMLP(width, width, c.connector_act, self.dtype)
        self.time_embedder = TwoLayerMLP(width, width, "silu", self.dtype)
        self.vae2llm = dense(width, (None, "embed"), dtype=self.dtype)
        self.llm2vae = dense(
            c.latent_channels, ("embed", None), dtype=self.dtype, kernel_init=nn.initializers.zeros
        )
        table = sincos_table_2d(width, c.max_latent_size)
        self.latent_pos_embed: Any = self.param(
            "latent_pos_embed",
            nn.with_logical_partitioning(lambda *_: jnp.asarray(table), (None, "embed")),
            table.shape,
        )

    def embed_text(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """Token embeddings."""
        return self.embed_tokens(ids)

    def features(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B P W"]:
        """ViT features of normalised images, after the tower's final norm."""
        return self.vision(pixels)

    def embed_images(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """ViT features of normalised images, projected to the decoder's width."""
        return self.connector(self.vision(pixels))

    def embed_latents(
        self,
        latents: Float[Array, "B G C"],
        timesteps: Float[Array, "B G"],
        position_ids: Int[Array, "B G"],
    ) -> Float[Array, "B G D"]:
        """vae2llm(x_t) + time_embed(t) + latent_pos (BAGEL's latent input)."""
        # Fixed by design: never trained, whatever the optimiser is given.
        table = jax.lax.stop_gradient(self.latent_pos_embed)
        table = nn.with_logical_constraint(table, (None, "embed_act"))
        time = self.time_embedder(timestep_sinusoid(timesteps).astype(self.dtype))
        position = jnp.take(table, position_ids, axis=0).astype(self.dtype)
        return self.vae2llm(latents.astype(self.dtype)) + time + position

    def decode(
        self,
        streams: Streams,
        positions: tuple[Array | None, Array | None],
        metadata: TokenMetadata | None = None,
        cache: KVCache | None = None,
        write: Bool[Array, "B N"] | None = None,
    ) -> DecoderOutput:
        """The decoder and its final norms; see `Decoder`."""
        return self.decoder(streams, positions, metadata, cache, write)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Text logits of final und hidden states, float32."""
        return self.lm_head(hidden).astype(jnp.float32)

    def velocity(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch C"]:
        """Velocity (noise - data) of final gen hidden states, float32."""
        return self.llm2vae(hidden).astype(jnp.float32)

    def __call__(self, batch: TwoStreamBatch) -> Streams:
        """(und, gen) hidden states after the final norms, for packed rows.

        The losses are taken from these with `logits` and `velocity` where they are asked for.
        """
        return self.forward(batch, keep_keys=False).streams

    def forward(
        self,
        batch: TwoStreamBatch,
        hidden_after_layer: int | None = None,
        *,
        keep_keys: bool = True,
    ) -> DecoderOutput:
        """As `__call__`, with everything that the decoder returns; see `Decoder`."""
        return self.decoder(
            *self._embed(batch), hidden_after_layer=hidden_after_layer, keep_keys=keep_keys
        )

    def _embed(
        self, batch: TwoStreamBatch
    ) -> tuple[Streams, tuple[Array | None, Array | None], TokenMetadata]:
        """(streams, their rotary positions, the metadata of both)."""
        # Each device looks its part of the width up for several rows, and then trades parts for
        # whole rows: neither the table nor the batch is gathered.
        und = nn.with_logical_constraint(
            self.embed_text(batch.token_ids), ("lookup_batch", "length", "embed")
        )
        und = nn.with_logical_constraint(und, _ACTIVATION)
        if batch.vit_pixels is not None and batch.vit_index is not None:
            rows, images = batch.vit_pixels.shape[:2]
            features = self.embed_images(batch.vit_pixels.reshape(-1, *batch.vit_pixels.shape[2:]))
            features = features.reshape(rows, images * features.shape[1], -1)
            features = nn.with_logical_constraint(features, _ACTIVATION)
            gathered = jnp.take_along_axis(
                features, jnp.maximum(batch.vit_index, 0)[..., None], axis=1
            )
            und = jnp.where((batch.vit_index >= 0)[..., None], gathered, und)
        gen, metadata = None, batch.und
        if batch.gen is not None:
            assert batch.latents is not None
            assert batch.timesteps is not None
            assert batch.latent_position_ids is not None
            gen = self.embed_latents(batch.latents, batch.timesteps, batch.latent_position_ids)
            gen = nn.with_logical_constraint(gen, _ACTIVATION)
            metadata = TokenMetadata.concatenate([batch.und, batch.gen])
        positions = (batch.und.position, None if batch.gen is None else batch.gen.position)
        return (und, gen), positions, metadata

    def initialise(self, batch: TwoStreamBatch) -> Any:
        """Touches every parameter; the method to `init` with."""
        und, gen = self(batch)
        assert und is not None
        assert gen is not None
        return self.logits(und), self.velocity(gen)


def unroll_params(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The parameters for `scan_layers=False`, from stacked ones; takes `params` over.

    See `unstack_layers`; the head's kernel becomes [out, in] as well.
    """
    head = params["lm_head"]
    return params | {
        "decoder": unstack_layers(params["decoder"], num_layers),
        "lm_head": head | {"kernel": head["kernel"].T},
    }


def _probe(config: UniXConfig) -> TwoStreamBatch:
    """The smallest batch that touches every parameter."""
    side = config.vision.image_size
    zeros = jnp.zeros((1, 1), jnp.int32)
    tokens = TokenMetadata(zeros, zeros + 1, zeros, zeros, zeros)
    return TwoStreamBatch(
        token_ids=zeros,
        und=tokens,
        vit_pixels=jnp.zeros((1, 1, side, side, 3)),
        vit_index=zeros,
        gen=tokens,
        latents=jnp.zeros((1, 1, config.latent_channels)),
        timesteps=jnp.zeros((1, 1)),
        latent_position_ids=zeros,
    )


def init_params(config: UniXConfig, key: Array, *, boxed: bool = False) -> dict[str, Any]:
    """Fresh float32 parameters; `boxed` keeps the logical axes of each."""
    model = UniX(config)
    variables = model.init(key, _probe(config), method=UniX.initialise)
    return variables["params"] if boxed else nn.unbox(variables["params"])


@traced_once
def param_shapes(config: UniXConfig, *, boxed: bool = False) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves (layers stacked); see `init_params`."""
    return jax.eval_shape(lambda key: init_params(config, key, boxed=boxed), jax.random.key(0))

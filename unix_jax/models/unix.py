"""UniX: embeds the streams, runs the decoder, returns text logits and velocities.

The type of `UniXConfig.generation` selects what predicts the velocity of latents: the gen stream of
the decoder, a transformer of the DiT type (flow matching, conditioned in context, no adaLN), or a
diffusion U-Net whose cross-modal attention reads the und stream's keys and values. The two methods
that differ are `predict`, for packed rows, and `denoise`, for a cached prompt.

Letters: B batch, U und tokens, G latent tokens, I images of a row, J images of latents of a row,
P patches of an image, D width, V vocabulary, C numbers in a latent token.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.models.attention import Implementation
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.mask import TokenMetadata, may_attend
from unix_jax.models.attention.slots import SlotMetadata, Slots
from unix_jax.models.decoder import Decoder, DecoderOutput, Streams, unstack_layers
from unix_jax.models.embeddings import patchify, sincos_table_2d, timestep_sinusoid, unpatchify
from unix_jax.models.layers import Dtype, TwoLayerMLP, dense
from unix_jax.models.packed_images import PackedImages
from unix_jax.models.remat import RematPolicy
from unix_jax.models.shapes import initialisation_options, traced_once
from unix_jax.models.unet import JointContext, UNet
from unix_jax.models.unet_config import backbone_config
from unix_jax.models.vision import VisionTransformer

_ACTIVATION = ("batch", "length", "embed_act")
# The U-Net's times are steps of a noise schedule, as in diffusion models.
_UNET_TIMES = 1000.0


@struct.dataclass
class TwoStreamBatch:
    """Packed rows of fixed shape: the input of a training or scoring pass.

    token_ids [B, U]: ids of text and boundary tokens, arbitrary at ViT positions. und, gen:
    metadata of the streams. vit_pixels [B, I, H, W, 3]: normalised images, or None. vit_index [B,
    U]: image * P + patch at ViT positions, -1 elsewhere. latents [B, G, C]: x_t. timesteps [B, G]:
    t in [0, 1], 0 for clean images. latent_position_ids [B, G]. A stream may be None. images: which
    latents are of which image; the U-Net alone reads it. slots: where the und stream has its
    images, if they are in slots; None: in the order of their samples.
    """

    token_ids: Int[Array, "B U"]
    und: TokenMetadata
    vit_pixels: Float[Array, "B I H W 3"] | None = None
    vit_index: Int[Array, "B U"] | None = None
    gen: TokenMetadata | None = None
    latents: Float[Array, "B G C"] | None = None
    timesteps: Float[Array, "B G"] | None = None
    latent_position_ids: Int[Array, "B G"] | None = None
    images: PackedImages | None = None
    slots: Slots | None = struct.field(pytree_node=False, default=None)


class Prediction(NamedTuple):
    """What `UniX.predict` returns; None for what does not run.

    und [B, U, D], gen [B, G, D]: final hidden states; there is no gen with a U-Net. velocity [B, G,
    C]. hidden [B, G, D]: the gen stream after the layer that was asked for.
    """

    und: Array | None
    gen: Array | None
    velocity: Array | None
    hidden: Array | None


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
        if isinstance(c.generation, UNetBackbone):
            self.unet = UNet(
                backbone_config(c), self.dtype, self.attention_implementation, self.remat_policy
            )
            return
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
        # Fixed by design: never trained, also if an optimiser receives it.
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

    def predict(self, batch: TwoStreamBatch, hidden_after_layer: int | None = None) -> Prediction:
        """Final hidden states and the velocity of every latent, for packed rows.

        With a U-Net, the und stream runs alone. Each image then reads the keys and values of the
        und tokens that come before it in its sample.

        Raises:
          ValueError: latents without `images`, or a hidden state is asked for, with a U-Net.
        """
        if isinstance(self.config.generation, UNetBackbone):
            if hidden_after_layer is not None:
                raise ValueError("hidden_after_layer: expected None with a U-Net")
            return self._predict_by_unet(batch)
        output = self.forward(batch, hidden_after_layer, keep_keys=False)
        und, gen = output.streams
        velocity = None if gen is None else self.velocity(gen)
        return Prediction(und, gen, velocity, output.hidden)

    def _predict_by_unet(self, batch: TwoStreamBatch) -> Prediction:
        text = batch.replace(  # type: ignore[attr-defined]
            gen=None, latents=None, timesteps=None, latent_position_ids=None, images=None
        )
        output = self.forward(text, keep_keys=batch.gen is not None)
        und, _ = output.streams
        if batch.gen is None:
            return Prediction(und, None, None, None)
        images = batch.images
        if images is None or batch.latents is None or batch.timesteps is None:
            raise ValueError("batch: expected latents, timesteps and images with a U-Net")

        def of_images(x: Array) -> Array:
            """[B, G] -> [B, J]: the value of each image, that of all of its tokens."""
            return images.split(x[..., None])[:, :, 0, 0]

        count = images.images
        asking = jax.tree.map(of_images, batch.gen)
        # The boundary tokens of an image's own split read its latents in UniX's own backbone. The
        # U-Net has no queries for them, so they are hidden in turn.
        seen = may_attend(asking, batch.und) & (
            batch.und.split[:, None, :] < asking.split[:, :, None]
        )
        keys, values = (jnp.repeat(jnp.asarray(x), count, axis=1) for x in output.context)
        seen = seen.reshape(-1, seen.shape[-1])
        cache = KVCache(keys, values, seen, jnp.int32(seen.shape[-1]))
        rows = batch.latents.shape[0]
        tokens = images.split(batch.latents)
        velocity = self._unet_velocity(
            tokens.reshape(rows * count, *tokens.shape[2:]),
            of_images(batch.timesteps).reshape(-1),
            JointContext(cache, asking.position.reshape(-1)),
            images.grid,
        )
        return Prediction(und, None, images.packed(velocity.reshape(tokens.shape)), None)

    def denoise(
        self,
        latents: Float[Array, "B G C"],
        t: Float[Array, ""],
        cache: KVCache,
        positions: Int[Array, " B"],
        position_ids: Int[Array, "1 G"],
        grid: tuple[int, int],
    ) -> Float[Array, "B G C"]:
        """Velocity of one image per row against its cached context, which is not extended.

        No mask is formed: the tokens of an image see each other and every valid slot. UniX's own
        backbone runs [start, latents, end], the U-Net the latents alone.

        Args:
          t: the time of all rows, in [0, 1].
          cache: the und stream's keys and values of each row's prompt.
          positions: rotary position of the image in each row.
          position_ids: of the latents, the same for all rows.
          grid: (rows, columns) of the image in latent tokens.
        """
        rows, count = latents.shape[:2]
        if isinstance(self.config.generation, UNetBackbone):
            times = jnp.broadcast_to(t, (rows,))
            return self._unet_velocity(latents, times, JointContext(cache, positions), grid)
        special = self.config.special_tokens
        edges = jnp.array([special.start_of_image, special.end_of_image])
        ids = jnp.broadcast_to(position_ids, (rows, count))
        und = self.embed_text(jnp.broadcast_to(edges, (rows, 2)))
        gen = self.embed_latents(latents, jnp.broadcast_to(t, (rows, count)), ids)
        of_streams = tuple(jnp.broadcast_to(positions[:, None], (rows, n)) for n in (2, count))
        decoded = self.decode((und, gen), of_streams, None, cache)  # type: ignore[arg-type]
        return self.velocity(decoded.streams[1])  # type: ignore[arg-type]

    def _unet_velocity(
        self,
        tokens: Float[Array, "B G C"],
        times: Float[Array, " B"],
        context: JointContext,
        grid: tuple[int, int],
    ) -> Float[Array, "B G C"]:
        patch = self.config.latent_patch_size
        latents = unpatchify(tokens, *grid, patch)
        velocity = self.unet(latents, _UNET_TIMES * times.astype(jnp.float32), context)
        return patchify(velocity, patch)

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
    ) -> tuple[Streams, tuple[Array | None, Array | None], TokenMetadata | SlotMetadata]:
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
        if batch.slots is not None:
            return (und, gen), positions, SlotMetadata.create(batch.und, batch.slots)
        return (und, gen), positions, metadata

    def initialise(self, batch: TwoStreamBatch) -> Any:
        """Touches every parameter; the method to `init` with."""
        found = self.predict(batch)
        assert found.und is not None
        return self.logits(found.und), found.velocity


def unroll_params(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The parameters for `scan_layers=False`, from stacked ones; takes `params` over.

    See `unstack_layers`; the head's kernel becomes [out, in] as well.
    """
    head = params["lm_head"]
    return params | {
        "decoder": unstack_layers(params["decoder"], num_layers),
        "lm_head": head | {"kernel": head["kernel"].T},
    }


def probe_batch(config: UniXConfig) -> TwoStreamBatch:
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
        images=PackedImages(zeros, 1, (1, 1)),
    )


def init_params(config: UniXConfig, key: Array, *, boxed: bool = False) -> dict[str, Any]:
    """Fresh float32 parameters; `boxed` keeps the logical axes of each."""
    model = UniX(config)
    variables = model.init(key, probe_batch(config), method=UniX.initialise)
    return variables["params"] if boxed else nn.unbox(variables["params"])


def untrained_params(config: UniXConfig, key: Array) -> dict[str, Any]:
    """`init_params` as one program, which compiles much faster than its operations one by one."""
    options = initialisation_options()
    return jax.jit(init_params, static_argnums=0, compiler_options=options)(config, key)


@traced_once
def param_shapes(config: UniXConfig, *, boxed: bool = False) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves (layers stacked); see `init_params`."""
    return jax.eval_shape(lambda key: init_params(config, key, boxed=boxed), jax.random.key(0))

"""Mixture-of-Transformers decoder: two expert streams, one joint attention.

A batch holds two static streams, `und` (text, ViT and boundary tokens) and `gen` (latents). Each
is projected by its own weights; queries, keys and values are joined, attended once, and split
again. A stream that is None is not run. The layers are scanned over stacked weights, or unrolled
over separate ones (`scan_layers=False`, see `unstack_layers`), with the same numbers.

Letters: B batch, U und tokens, G latent tokens, S cache slots, N heads, K kv heads, H head_dim,
D width, L layers.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from unix_jax.config import DecoderConfig
from unix_jax.models.attention import Implementation, attention, preferred_multiple
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.attention.key_blocks import KeyBlock, MergedKeyBlock
from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.attention.rope import apply_rope, rope_angles
from unix_jax.models.attention.slots import Projected, SlotMetadata, attend_in_slots
from unix_jax.models.layers import Dtype, RMSNorm, dense
from unix_jax.models.remat import ATTENTION_INPUT, PRODUCT, RematPolicy, rematerialised

# Keys and values of a frozen und stream, which the backward pass of gen reads.
_FROZEN = "frozen_und"

Streams = tuple[Array | None, Array | None]


class DecoderOutput(NamedTuple):
    """What the decoder returns.

    streams: (und [B, U, D], gen [B, G, D]) after the final norms; None where a stream did not run.
    context: the cache with the new tokens if they were written; else the (keys, values) of the new
      tokens, und then gen, as `KVCache.append` takes them; None where they were not kept.
    hidden: the gen stream [B, G, D] after the layer that was asked for, else None.
    """

    streams: Streams
    context: Any
    hidden: Array | None


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gated(gate: Array, up: Array) -> Array:
    # Only its inputs are saved for the backward pass.
    return nn.silu(gate) * up


class Expert(nn.Module):
    """One stream's weights of one layer: norms, projections and the SiLU-gated MLP."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    transposed: bool = False

    def setup(self) -> None:
        c = self.config

        def norm(axis: str | None = "norm") -> RMSNorm:
            return RMSNorm(c.rms_norm_eps, self.dtype, axis)

        def projection(features: int, axes: tuple[str, str], *, use_bias: bool = False) -> Any:
            return dense(
                features, axes, use_bias=use_bias, dtype=self.dtype, transposed=self.transposed
            )

        self.input_norm = norm()
        self.q_proj = projection(c.num_heads * c.head_dim, ("embed", "heads"), use_bias=True)
        self.k_proj = projection(c.num_kv_heads * c.head_dim, ("embed", "kv_heads"), use_bias=True)
        self.v_proj = projection(c.num_kv_heads * c.head_dim, ("embed", "kv_heads"), use_bias=True)
        self.q_norm = norm(None)
        self.k_norm = norm(None)
        self.o_proj = projection(c.hidden_size, ("heads", "embed"))
        self.post_attention_norm = norm()
        self.gate_proj = projection(c.intermediate_size, ("embed", "mlp"))
        self.up_proj = projection(c.intermediate_size, ("embed", "mlp"))
        self.down_proj = projection(c.hidden_size, ("mlp", "embed"))

    def qkv(
        self, x: Float[Array, "B T D"], angles: tuple[Array, Array]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Queries and keys, normalised over head_dim and rotated, and values."""
        x = self.input_norm(x)

        def heads(y: Array) -> Array:
            return checkpoint_name(y, PRODUCT).reshape(*y.shape[:2], -1, self.config.head_dim)

        query = apply_rope(self.q_norm(heads(self.q_proj(x))), angles)
        key = apply_rope(self.k_norm(heads(self.k_proj(x))), angles)
        return checkpoint_name((query, key, heads(self.v_proj(x))), ATTENTION_INPUT)

    def finish(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]
    ) -> Float[Array, "B T D"]:
        """Output projection and MLP, each with its residual."""
        x = x + checkpoint_name(self.o_proj(attended.reshape(*attended.shape[:2], -1)), PRODUCT)
        y = self.post_attention_norm(x)
        gate, up = checkpoint_name((self.gate_proj(y), self.up_proj(y)), PRODUCT)
        # With them: a TPU would compute it again for each tile of the gradient of down_proj.
        y = checkpoint_name(_gated(gate, up), PRODUCT)
        y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
        return nn.with_logical_constraint(x + self.down_proj(y), ("batch", "length", "embed_act"))


class DecoderLayer(nn.Module):
    """One layer over both streams; returns the streams and the new keys and values.

    `freeze_und`: the und stream has no gradient, and gen reads its keys and values as constants.
    Attention of its queries is then computed separately, so that it has no backward pass.
    """

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"
    freeze_und: bool = False
    transposed: bool = False

    def setup(self) -> None:
        self.und = Expert(self.config, self.dtype, self.transposed)
        self.gen = Expert(self.config, self.dtype, self.transposed)

    def __call__(
        self,
        streams: Streams,
        angles: tuple[tuple[Array, Array] | None, ...],
        metadata: TokenMetadata | SlotMetadata | None,
        cached: KeyBlock | MergedKeyBlock | None,
    ) -> tuple[Streams, tuple[Array, Array]]:
        """See `Decoder`; with `metadata` None, all new tokens attend to each other."""
        experts = (self.und, self.gen)
        if self.freeze_und and streams[0] is not None:
            streams = (jax.lax.stop_gradient(streams[0]), streams[1])
        projected = [
            expert.qkv(x, a)  # type: ignore[arg-type]
            for expert, x, a in zip(experts, streams, angles, strict=True)
            if x is not None
        ]
        context = [] if cached is None else [cached]
        if isinstance(metadata, SlotMetadata):
            pieces: Sequence[Array | None] = self._attend_in_slots(projected, metadata)
            _, key, value = (jnp.concatenate(p, axis=1) for p in zip(*projected, strict=True))
        elif self.freeze_und and len(projected) == 2 and cached is None:
            pieces = self._attend_frozen(projected, metadata)
            query, key, value = (jnp.concatenate(p, axis=1) for p in zip(*projected, strict=True))
        else:
            query, key, value = (jnp.concatenate(p, axis=1) for p in zip(*projected, strict=True))
            key = nn.with_logical_constraint(key, ("batch", "length", "kv_heads_act", None))
            blocks = [*context, KeyBlock(key, value, metadata=metadata)]
            if isinstance(cached, MergedKeyBlock) and cached.slot is not None:
                written = cached.write(key, value).replace(metadata=metadata)  # type: ignore[attr-defined]
                key, value, blocks = written.key, written.value, [written]
            attended = self._attend(query, blocks, metadata)
            lengths = [0 if x is None else x.shape[1] for x in streams]
            pieces = jnp.split(attended, [lengths[0]], axis=1)
        und, gen = (
            None if x is None else expert.finish(x, piece)  # type: ignore[arg-type]
            for expert, x, piece in zip(experts, streams, pieces, strict=True)
        )
        return (und, gen), (key, value)

    def _attend(
        self,
        query: Float[Array, "B T N H"],
        blocks: Sequence[KeyBlock | MergedKeyBlock],
        metadata: TokenMetadata | None,
    ) -> Float[Array, "B T N H"]:
        query = nn.with_logical_constraint(query, ("batch", "length", "heads_act", None))
        return attention(query, blocks, metadata, implementation=self.attention_implementation)

    def _attend_in_slots(
        self, projected: Sequence[tuple[Array, Array, Array]], metadata: SlotMetadata
    ) -> tuple[Array, Array | None]:
        axes = ("batch", "length", "kv_heads_act", None)
        und, *gen = (
            Projected(query, nn.with_logical_constraint(key, axes), value)
            for query, key, value in projected
        )
        if self.freeze_und:
            kept = [checkpoint_name(jax.lax.stop_gradient(x), _FROZEN) for x in und[1:]]
            und = Projected(und.query, *kept)
        return attend_in_slots(
            und,
            gen[0] if gen else None,
            metadata,
            self._attend,
            freeze_und=self.freeze_und,
            multiple=preferred_multiple(self.config.head_dim, self.attention_implementation),
        )

    def _attend_frozen(
        self,
        projected: Sequence[tuple[Array, Array, Array]],
        metadata: TokenMetadata | None,
    ) -> list[Array]:
        """Both streams' attention, in which only gen's queries, keys and values are variables."""
        (und_query, *und), (gen_query, *gen) = projected
        und = [checkpoint_name(jax.lax.stop_gradient(x), _FROZEN) for x in und]
        length = und_query.shape[1]
        und_metadata = jax.tree.map(lambda x: x[:, :length], metadata)
        gen_metadata = jax.tree.map(lambda x: x[:, length:], metadata)
        # Two blocks that share a softmax: joined keys would all get gradients.
        blocks = [KeyBlock(und[0], und[1], und_metadata), KeyBlock(gen[0], gen[1], gen_metadata)]
        constant = jax.lax.stop_gradient((und_query, blocks))
        return [
            self._attend(*constant, und_metadata),
            self._attend(gen_query, blocks, gen_metadata),
        ]


# Inlined: XLA compiles a call of its own apart, which makes decoding a fifth slower on a CPU.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _traced_once(layer: DecoderLayer, params: Any, *arguments: Any) -> Any:
    """A layer of a stack without a scan, which is traced once for all of them."""
    return layer.apply({"params": params}, *arguments)


class FinalNorm(nn.Module):
    """The doubled final norm."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.und = RMSNorm(self.config.rms_norm_eps, self.dtype)
        self.gen = RMSNorm(self.config.rms_norm_eps, self.dtype)

    def __call__(self, streams: Streams) -> Streams:
        und, gen = streams
        return (
            None if und is None else self.und(und),
            None if gen is None else self.gen(gen),
        )


class Decoder(nn.Module):
    """The stack of layers and the final norms; `freeze_und` as in `DecoderLayer`.

    `unroll`: layers in one iteration of the scan; with all of them there is no loop.
    """

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"
    remat_policy: RematPolicy = "none"
    scan_layers: bool = True
    freeze_und: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "B U D"] | None, Float[Array, "B G D"] | None],
        positions: tuple[Int[Array, "B U"] | None, Int[Array, "B G"] | None],
        metadata: TokenMetadata | SlotMetadata | None = None,
        cache: KVCache | None = None,
        write: Bool[Array, "B N"] | None = None,
        *,
        hidden_after_layer: int | None = None,
        keep_keys: bool = True,
    ) -> DecoderOutput:
        """Runs the layers.

        Args:
          streams: embedded (und, gen) tokens; None = not run.
          positions: rotary positions of each stream that runs.
          metadata: of all new tokens, und then gen [B, U + G], for the mask rule; None if all new
            tokens of a row attend to each other (one image split, one token). `SlotMetadata` if the
            images of the rows are in slots, which needs the und stream and takes no cache.
          cache: context that every new token of the row attends to completely.
          write: which of the N new tokens are not padding, to write them into the cache; needs
            `cache`.
          hidden_after_layer: the layer, counted from 1, whose gen stream is returned as `hidden`.
          keep_keys: return the keys and values of the new tokens where nothing is written.

        Raises:
          ValueError: both streams are None, `remat_policy` is unknown, `write` comes without a
            cache, slots come with one, or there is no such layer or no gen stream to return.
        """
        c = self.config
        if hidden_after_layer is not None and not 1 <= hidden_after_layer <= c.num_layers:
            raise ValueError(
                f"hidden_after_layer: expected 1 to {c.num_layers}, found {hidden_after_layer}"
            )
        if hidden_after_layer is not None and streams[1] is None:
            raise ValueError("hidden_after_layer: expected a gen stream, found None")
        if write is not None and cache is None:
            raise ValueError("write: expected with a cache, found None")
        slot = None
        if write is not None and cache is not None and cache.merged:
            # Written before it is read: in the opposite order XLA copies the cache for every token.
            slot, cache = cache.index, cache.reserve(write)
        if isinstance(metadata, SlotMetadata) and (streams[0] is None or cache is not None):
            raise ValueError("metadata: expected slots with an und stream and without a cache")
        if all(x is None for x in streams):
            raise ValueError("streams: expected at least one stream, found (None, None)")
        angles = tuple(
            None if p is None else rope_angles(p, c.head_dim, c.rope_theta) for p in positions
        )
        layer = rematerialised(
            DecoderLayer,
            self.remat_policy,
            # XLA merges nothing across the iterations of a loop.
            prevent_cse=not self.scan_layers or self.unroll > 1,
            # Recomputing them would run und's projections a second time.
            kept_names=(_FROZEN,) if self.freeze_und else (),
        )
        arguments = (c, self.dtype, self.attention_implementation, self.freeze_und)
        hidden = None if hidden_after_layer is None else streams[1]

        def run(module: Any, carry: Any, index: Any, cached: Any) -> tuple[Any, Any]:
            """One layer. The hidden state is picked outside of what is rematerialised."""
            streams, hidden = carry
            streams, new = module(streams, angles, metadata, cached)
            if hidden is not None:
                hidden = jnp.where(index == hidden_after_layer, streams[1], hidden)
            return (streams, hidden), new if keep_keys else None

        if self.scan_layers:
            cached = None if cache is None else cache.block(cache.keys, cache.values)
            # Keys and values are scanned with the layers; their validity is common to all.
            cached_axes = None if cached is None else KeyBlock(0, 0, None, nn.broadcast)  # type: ignore[arg-type]
            stack = nn.scan(
                run,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, cached_axes),
                length=c.num_layers,
                unroll=self.unroll,
                metadata_params={nn.PARTITION_NAME: "layers"},
                # Otherwise each layer is traced twice.
                check_constancy_invariants=False,
            )
            indices = jnp.arange(1, c.num_layers + 1)
            (streams, hidden), new = stack(
                layer(*arguments, name="layers"), (streams, hidden), indices, cached
            )
        else:
            per_layer: list[Any] = []
            for i in range(c.num_layers):
                cached = (
                    None if cache is None else cache.block(cache.keys[i], cache.values[i], slot)
                )
                name = f"layers_{i}"
                if self.is_initializing():
                    module = layer(*arguments, transposed=True, name=name)
                else:
                    alone = layer(*arguments, transposed=True, parent=None)
                    params: Any = self.get_variable("params", name)
                    module = functools.partial(_traced_once, alone, params)
                (streams, hidden), pair = run(module, (streams, hidden), i + 1, cached)
                per_layer.append(pair)
            new = tuple(zip(*per_layer, strict=True)) if keep_keys else None
        final = FinalNorm(c, self.dtype, name="norm")(streams)
        if write is None or cache is None:
            return DecoderOutput(final, new, hidden)
        keys, values = new
        if slot is None:
            return DecoderOutput(final, cache.append(keys, values, write), hidden)
        written = cache.replace(keys=keys, values=values)  # type: ignore[attr-defined]
        return DecoderOutput(final, written, hidden)


@functools.partial(jax.jit, static_argnames="transposed")
def _layer_of(stacked: Array, index: Int[Array, ""], *, transposed: bool) -> Array:
    """One layer's array, by one program for each shape: each costs a start 10 ms."""
    layer = jax.lax.dynamic_index_in_dim(stacked, index, keepdims=False)
    return layer.T if transposed else layer


def unstack_layers(decoder_params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The decoder's parameters for `scan_layers=False`, from stacked ones: kernels are [out, in].

    Consumes `decoder_params["layers"]`: each stacked leaf is dropped from it once it is split, so
    that unstacking does not need memory for a second copy of the model.
    """
    layers: list[dict[str, Any]] = [{} for _ in range(num_layers)]

    def cut(stacked: dict[str, Any], targets: list[dict[str, Any]]) -> None:
        for name in list(stacked):
            value = stacked.pop(name)
            if isinstance(value, dict):
                inner: list[dict[str, Any]] = [target.setdefault(name, {}) for target in targets]
                cut(value, inner)
                continue
            for i, target in enumerate(targets):
                target[name] = _layer_of(value, np.int32(i), transposed=name == "kernel")

    cut(decoder_params["layers"], layers)
    rest = {name: value for name, value in decoder_params.items() if name != "layers"}
    return {f"layers_{i}": layer for i, layer in enumerate(layers)} | rest

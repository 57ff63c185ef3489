"""Mixture-of-Transformers decoder: two expert streams, one joint attention.

A batch holds two static streams, `und` (text, ViT and boundary tokens) and `gen` (latents). Each
is projected by its own weights; queries, keys and values are joined, attended once, and split
again. A stream that is None is not run. The layers are scanned over stacked weights, or unrolled
over separate ones (`scan_layers=False`, see `unstack_layers`), with the same numbers.

Letters: B batch, U und tokens, G latent tokens, S cache slots, N heads, K kv heads, H head_dim,
D width, L layers.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unix_jax.config import DecoderConfig
from unix_jax.models.attention import (
    Implementation,
    KeyBlock,
    MergedKeyBlock,
    TokenMetadata,
    apply_rope,
    attention,
    rope_angles,
)
from unix_jax.models.cache import KVCache
from unix_jax.models.layers import Dtype, RMSNorm, dense

STREAMS = ("und", "gen")
RematPolicy = Literal["none", "full", "dots", "dots_no_batch"]
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

Streams = tuple[Array | None, Array | None]


class Expert(nn.Module):
    """One stream's weights of one layer: norms, projections and the SiLU-gated MLP."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        c = self.config

        def norm(axis: str | None = "norm") -> RMSNorm:
            return RMSNorm(c.rms_norm_eps, self.dtype, axis)

        def projection(features: int, axes: tuple[str, str], *, use_bias: bool = False) -> nn.Dense:
            return dense(features, axes, use_bias=use_bias, dtype=self.dtype)

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
        """Queries and keys, normed over head_dim and rotated, and values."""
        x = self.input_norm(x)

        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], -1, self.config.head_dim)

        query = apply_rope(self.q_norm(heads(self.q_proj(x))), angles)
        key = apply_rope(self.k_norm(heads(self.k_proj(x))), angles)
        return query, key, heads(self.v_proj(x))

    def finish(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]
    ) -> Float[Array, "B T D"]:
        """Output projection and MLP, each with its residual."""
        x = x + self.o_proj(attended.reshape(*attended.shape[:2], -1))
        y = self.post_attention_norm(x)
        y = nn.silu(self.gate_proj(y)) * self.up_proj(y)
        y = nn.with_logical_constraint(y, ("batch", "length", "mlp"))
        return nn.with_logical_constraint(x + self.down_proj(y), ("batch", "length", "embed_act"))


class DecoderLayer(nn.Module):
    """One layer over both streams; returns the streams and the new keys and values."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "xla"

    def setup(self) -> None:
        self.und = Expert(self.config, self.dtype)
        self.gen = Expert(self.config, self.dtype)

    def __call__(
        self,
        streams: Streams,
        angles: tuple[tuple[Array, Array] | None, ...],
        metadata: TokenMetadata | None,
        cached: KeyBlock | MergedKeyBlock | None,
    ) -> tuple[Streams, tuple[Array, Array]]:
        """See `Decoder`; `metadata` None lets every new token see every other."""
        experts = (self.und, self.gen)
        projected = [
            expert.qkv(x, a)  # type: ignore[arg-type]
            for expert, x, a in zip(experts, streams, angles, strict=True)
            if x is not None
        ]
        query, key, value = (jnp.concatenate(p, axis=1) for p in zip(*projected, strict=True))
        query = nn.with_logical_constraint(query, ("batch", "length", "heads_act", None))
        key = nn.with_logical_constraint(key, ("batch", "length", "kv_heads_act", None))
        new = KeyBlock(key, value, metadata=metadata)
        blocks = [new] if cached is None else [cached, new]
        attended = attention(query, blocks, metadata, implementation=self.attention_implementation)
        lengths = [0 if x is None else x.shape[1] for x in streams]
        pieces = jnp.split(attended, [lengths[0]], axis=1)
        und, gen = (
            None if x is None else expert.finish(x, piece)
            for expert, x, piece in zip(experts, streams, pieces, strict=True)
        )
        return (und, gen), (key, value)


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
    """The stack of layers and the final norms."""

    config: DecoderConfig
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "xla"
    remat_policy: RematPolicy = "none"
    scan_layers: bool = True

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "B U D"] | None, Float[Array, "B G D"] | None],
        positions: tuple[Int[Array, "B U"] | None, Int[Array, "B G"] | None],
        metadata: TokenMetadata | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Streams, tuple[Any, Any]]:
        """Runs the layers.

        Args:
          streams: embedded (und, gen) tokens; None = not run.
          positions: rotary positions of each stream that runs.
          metadata: of all new tokens, und then gen [B, U + G], for the mask rule; None where all
            new tokens of a row see each other (one image split, one token).
          cache: context that every new token of the row sees in full.

        Returns:
          ((und, gen) after the final norms, (keys, values) of the new tokens in the cache's
          form, und then gen: to be passed to `KVCache.append`).

        Raises:
          ValueError: both streams are None, or `remat_policy` is unknown.
        """
        if all(x is None for x in streams):
            raise ValueError("streams: expected at least one stream, found (None, None)")
        if self.remat_policy != "none" and self.remat_policy not in _REMAT_POLICIES:
            raise ValueError(
                f"remat_policy: expected one of {['none', *_REMAT_POLICIES]}, "
                f"found {self.remat_policy!r}"
            )
        c = self.config
        angles = tuple(
            None if p is None else rope_angles(p, c.head_dim, c.rope_theta) for p in positions
        )
        layer: Any = DecoderLayer
        if self.remat_policy != "none":
            layer = nn.remat(
                layer, policy=_REMAT_POLICIES[self.remat_policy], prevent_cse=not self.scan_layers
            )
        arguments = (c, self.dtype, self.attention_implementation)
        if self.scan_layers:
            cached = None if cache is None else cache.block(cache.keys, cache.values)
            # Keys and values are scanned with the layers; their validity is common to all.
            cached_axes = None if cached is None else KeyBlock(0, 0, None, nn.broadcast)  # type: ignore[arg-type]
            stack = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, cached_axes),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(*arguments, name="layers")
            streams, new = stack(streams, angles, metadata, cached)
        else:
            per_layer: list[tuple[Array, Array]] = []
            for i in range(c.num_layers):
                cached = None if cache is None else cache.block(cache.keys[i], cache.values[i])
                streams, pair = layer(*arguments, name=f"layers_{i}")(
                    streams, angles, metadata, cached
                )
                per_layer.append(pair)
            new = tuple(zip(*per_layer, strict=True))
        return FinalNorm(c, self.dtype, name="norm")(streams), new


def unstack_layers(decoder_params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The decoder's parameters for `scan_layers=False`, from stacked ones.

    Takes `decoder_params["layers"]` over: each stacked leaf is dropped from it once it is cut up,
    so that a model of which memory holds only one copy can be unstacked.
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
                target[name] = value[i]

    cut(decoder_params["layers"], layers)
    rest = {name: value for name, value in decoder_params.items() if name != "layers"}
    return {f"layers_{i}": layer for i, layer in enumerate(layers)} | rest


def stack_layers(decoder_params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Inverse of `unstack_layers`."""
    layers: Sequence[Any] = [decoder_params[f"layers_{i}"] for i in range(num_layers)]
    rest = {k: v for k, v in decoder_params.items() if not k.startswith("layers_")}
    return {"layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)} | rest

"""CLIP's text encoder, from token ids to the hidden states that a U-Net attends to.

Pre-norm blocks with causal attention and learned positions. Source: transformers' `CLIPTextModel`.

Letters: B batch, T tokens, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unix_jax.models.attention import Implementation
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata
from unix_jax.models.encoder_block import BlockSizes, EncoderBlock, stacked
from unix_jax.models.encoder_config import ClipTextConfig
from unix_jax.models.layers import ACTIVATIONS, Dtype, layer_norm
from unix_jax.models.shapes import traced_once

_ACTIVATIONS = {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x), "gelu": ACTIVATIONS["gelu"]}


class ClipText(nn.Module):
    """Token ids to the hidden states after the final norm; padding is attended to, as in SD."""

    config: ClipTextConfig = ClipTextConfig()
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    def _table(self, name: str, rows: int) -> Any:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        return self.param(name, init, (rows, self.config.hidden_size))

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Raises ValueError for more tokens than the table of positions has rows."""
        c = self.config
        if ids.shape[1] > c.max_positions:
            raise ValueError(
                f"ids: expected at most {c.max_positions} tokens, found {ids.shape[1]}"
            )
        words = self._table("token_embedding", c.vocab_size)
        positions = self._table("position_embedding", c.max_positions)
        x = (words[ids] + positions[: ids.shape[1]]).astype(self.dtype)
        order = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        zeros = jnp.zeros_like(order)
        tokens = TokenMetadata(order, zeros + 1, zeros, order, zeros + CAUSAL)
        activation = _ACTIVATIONS[c.activation]
        sizes = BlockSizes(c.num_heads, c.intermediate_size, c.layer_norm_eps, activation)
        x, _ = stacked(EncoderBlock, c.num_layers)(
            sizes, self.dtype, self.attention_implementation, name="layers"
        )(x, tokens)
        return layer_norm(c.layer_norm_eps, self.dtype, "norm")(x)


@traced_once
def param_shapes(config: ClipTextConfig) -> dict[str, Any]:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves, boxed with their logical axes."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(ClipText(config).init, jax.random.key(0), ids)["params"]

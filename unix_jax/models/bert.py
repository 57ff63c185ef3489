"""BERT with CheXbert's heads on its first token, the labeller of reports.

A frozen encoder for metrics. Post-norm blocks, learned positions, exact GELU.

Letters: B batch, T tokens, D width, C the 14 conditions.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unix_jax.models.attention import Implementation
from unix_jax.models.encoder_block import BlockSizes, PostNormBlock, stacked
from unix_jax.models.layers import Dtype, dense, layer_norm
from unix_jax.models.shapes import traced_once

# CheXbert: 13 conditions with four classes, and "no finding" with two.
FOUR_CLASS_HEADS, CLASSES, NO_FINDING_CLASSES = 13, 4, 2
# The logit of the two classes that are absent for "no finding".
NO_CLASS = -1e9


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes; the defaults are those of bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    token_types: int = 2
    layer_norm_eps: float = 1e-12


class Bert(nn.Module):
    """Token ids to the hidden states after the last layer; all tokens are of the first type."""

    config: BertConfig = BertConfig()
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    def _table(self, name: str, rows: int) -> Any:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        return self.param(name, init, (rows, self.config.hidden_size))

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """Tokens that are not `valid` are padding and masked.

        Raises:
          ValueError: more tokens than the table of positions has rows.
        """
        c = self.config
        if ids.shape[1] > c.max_positions:
            raise ValueError(
                f"ids: expected at most {c.max_positions} tokens, found {ids.shape[1]}"
            )
        words = self._table("word_embeddings", c.vocab_size)
        positions = self._table("position_embeddings", c.max_positions)
        types = self._table("token_type_embeddings", c.token_types)
        x = (words[ids] + types[0] + positions[: ids.shape[1]]).astype(self.dtype)
        x = layer_norm(c.layer_norm_eps, self.dtype, "norm")(x)
        sizes = BlockSizes(c.num_heads, c.intermediate_size, c.layer_norm_eps)
        x, _ = stacked(PostNormBlock, c.num_layers)(
            sizes, self.dtype, self.attention_implementation, name="layers"
        )(x, None, valid)
        return x


class ReportLabeler(nn.Module):
    """CheXbert: BERT's first token to one linear head for each condition."""

    config: BertConfig = BertConfig()
    dtype: Dtype = jnp.float32
    attention_implementation: Implementation = "auto"

    def setup(self) -> None:
        self.bert = Bert(self.config, self.dtype, self.attention_implementation)
        self.no_finding = dense(NO_FINDING_CLASSES, ("embed", None), dtype=self.dtype)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed", None))
        shape = (FOUR_CLASS_HEADS, self.config.hidden_size, CLASSES)
        self.heads_kernel: Any = self.param("heads_kernel", init, shape)
        init = nn.with_logical_partitioning(nn.initializers.zeros, (None, None))
        self.heads_bias: Any = self.param("heads_bias", init, (FOUR_CLASS_HEADS, CLASSES))

    def __call__(
        self, ids: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B C 4"]]:
        """(hidden state of the first token, logits), both float32.

        "No finding" is last; its two missing classes have the logit `NO_CLASS`.
        """
        cls = self.bert(ids, valid)[:, 0]
        kernel, bias = (x.astype(self.dtype) for x in (self.heads_kernel, self.heads_bias))
        logits = jnp.einsum("bd,cdk->bck", cls, kernel) + bias
        last = self.no_finding(cls)[:, None]
        missing = ((0, 0), (0, 0), (0, CLASSES - NO_FINDING_CLASSES))
        last = jnp.pad(last.astype(jnp.float32), missing, constant_values=NO_CLASS)
        logits = jnp.concatenate([logits.astype(jnp.float32), last], axis=1)
        return cls.astype(jnp.float32), logits


@traced_once
def param_shapes(config: BertConfig) -> dict[str, Any]:
    """`ReportLabeler`'s parameters as `jax.ShapeDtypeStruct` leaves, boxed with logical axes."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    valid = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    return jax.eval_shape(ReportLabeler(config).init, jax.random.key(0), ids, valid)["params"]

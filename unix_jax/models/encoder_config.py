"""Sizes of the text encoders CLIP and BERT, without JAX."""

import dataclasses

CLIP_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Sizes; the defaults are those of SD 1.x's encoder (ViT-L/14)."""

    vocab_size: int = 49408
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 77
    layer_norm_eps: float = 1e-5
    activation: str = "quick_gelu"


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

"""The fixed-shape batch that a training step consumes: packed two-stream rows and loss weights.

Letters: B rows, U und tokens, G latent tokens, I ViT images of a row, J VAE images of a row,
P patches of a ViT image, T latent tokens of a VAE image, C channels of its pixels, 1 or 3.
"""

from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from unix_jax.models.attention.mask import TokenMetadata
from unix_jax.models.attention.slots import Slots


@struct.dataclass
class TrainingBatch:
    """Packed rows; every leaf has the leading axis B, so that all have the same sharding.

    A stream or an input that a stage does not use is None, never a dummy array. All images of a
    kind have one size (padded to it); absent ones are zeros that no index refers to.

    token_ids: ids of text and boundary tokens, arbitrary at ViT positions.
    und, gen: metadata of the streams; padding has segment 0.
    vit_pixels: 8-bit images, normalised by `unix_jax.preprocessing.pixels`; or floats, normalised
      already. vit_index: image * P + patch at ViT positions, -1 elsewhere.
    labels: the token that a position predicts. ce_weights: its weight, 0 where there is no loss.
    vae_pixels: likewise; or vae_moments: mean and log-variance of the encoder, precomputed.
    latent_index: image * T + token of each latent, -1 for padding.
    latent_position_ids: rows of the sin-cos table.
    noised: images to be generated (the others are clean conditions with t = 0).
    mse_weights: weight of each latent token in the loss, 0 for clean images and padding.
    slots: where the und stream has its images, if they are in slots; None: in the samples' order.
      Static: a run compiles for one of them.
    """

    token_ids: Int[Array, "B U"]
    und: TokenMetadata
    labels: Int[Array, "B U"]
    ce_weights: Float[Array, "B U"]
    vit_pixels: UInt8[Array, "B I H W C"] | Float[Array, "B I H W 3"] | None = None
    vit_index: Int[Array, "B U"] | None = None
    gen: TokenMetadata | None = None
    vae_pixels: UInt8[Array, "B J H W C"] | Float[Array, "B J H W 3"] | None = None
    vae_moments: Float[Array, "B J h w 2*z"] | None = None
    latent_index: Int[Array, "B G"] | None = None
    latent_position_ids: Int[Array, "B G"] | None = None
    noised: Bool[Array, "B J"] | None = None
    mse_weights: Float[Array, "B G"] | None = None
    slots: Slots | None = struct.field(pytree_node=False, default=None)

    @property
    def rows(self) -> int:
        return self.token_ids.shape[0]

    def map(self, function: Any) -> "TrainingBatch":
        """Applies `function` to every leaf."""
        return jax.tree.map(function, self)

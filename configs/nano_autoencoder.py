"""The autoencoder of the nano model, trained from scratch on the bundled X-rays.

    python train.py configs/nano_autoencoder.py --out runs/nano_autoencoder

Trains on crops of 64 x 64 pixels from images of 128 x 128, and at the end on complete images. The
export is a complete checkpoint with an untrained model, from which the next stage starts.

Time: about 40 minutes on 2 busy cores. Score: 29.7 dB (PSNR) on the validation split.
"""

from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.autoencoder import AutoencoderObjective
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="autoencoder",
    total_steps=3800,
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="generation",
        # The text is not needed: without it a row is one image and its two boundary tokens.
        caption_dropout=1.0,
        rows=4,
        und_tokens=2,
        vit_images=0,
        vae_images=1,
        vae_height=128,
        vae_width=128,
    ),
    model=ModelConfig(preset="nano", tokenizer=example("nano_tokenizer")),
    optimizer=OptimizerConfig(
        learning_rate=2e-3,
        warmup_steps=40,
        schedule="cosine",
        final_fraction=0.05,
        b2=0.99,
        eps=1e-8,
    ),
    autoencoder=AutoencoderObjective(kl_weight=1e-3, crop=64, crop_steps=3500),
    mesh="data=1",
    checkpoint_every=250,
    log_every=10,
    validate_every=250,
    preview_every=500,
    previews=PreviewConfig(count=6),
)

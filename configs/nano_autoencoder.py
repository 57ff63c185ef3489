"""The autoencoder of the nano model on the bundled X-rays.

    python examples/make_nano_start.py runs/nano_start
    python train.py configs/nano_autoencoder.py --init runs/nano_start --out runs/nano_autoencoder

The first command fits a linear encoder and decoder in a minute. The networks learn to correct their
result, on crops of 64 x 64 pixels from images of 128 x 128, and at the end on complete images. The
export is a complete checkpoint with an untrained model, from which the next stage starts. Without
`--init` the linear encoder and decoder start from random weights.

Time: about 14 minutes on 2 busy cores. Score with `--init runs/nano_start`: PSNR 34.9 dB on the
validation split, mean over images; docs/nano.md compares it with PCA. No run without it has been
completed.
"""

from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.autoencoder import AutoencoderObjective
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="autoencoder",
    total_steps=2500,
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="generation",
        # The text is not needed: without it a row is one image and its two boundary tokens.
        caption_dropout=1.0,
        rows=4,
        und_tokens=2,
        vit_images=0,
        vae_images=1,
        grayscale=True,
        vae_height=128,
        vae_width=128,
    ),
    model=ModelConfig(preset="nano", tokenizer=example("nano_tokenizer")),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=100,
        schedule="cosine",
        final_fraction=0.05,
        b2=0.99,
        eps=1e-8,
    ),
    autoencoder=AutoencoderObjective(kl_weight=1e-6, mse_weight=30.0, crop=64, crop_steps=2350),
    mesh="data=1",
    checkpoint_every=250,
    log_every=10,
    validate_every=500,
    preview_every=500,
    previews=PreviewConfig(count=6),
)

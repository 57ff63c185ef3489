"""Generation at 128 pixels with the nano model (9 M parameters) on the bundled X-rays.

    python examples/make_nano_images.py runs/nano_images
    unix-jax data moments manifest:runs/nano_images runs/nano_moments \\
        --height 128 --width 128 --checkpoint runs/nano_understanding/export
    python train.py configs/nano_generation.py --init runs/nano_understanding \\
        --data.source manifest:runs/nano_images --data.moments runs/nano_moments \\
        --out runs/nano_generation

The first command makes changed copies of the X-rays, the second encodes all of them once instead of
at every step. Without them the run reads the bundled X-rays.

Time: about 90 minutes on 2 busy cores. Score: docs/nano.md has the squared error of the bundled
model on the validation split, and generated images.
"""

from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=4200,
    trainable="(gen|time_embedder|vae2llm|llm2vae|repa)/.*",
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="generation",
        caption_dropout=0.1,
        rows=2,
        und_tokens=160,
        text_tokens=160,
        vit_images=0,
        vae_images=8,
        grayscale=True,
        vae_height=128,
        vae_width=128,
    ),
    model=ModelConfig(preset="nano", remat="none"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=50,
        schedule="cosine",
        final_fraction=0.02,
        eps=1e-8,
    ),
    losses=LossConfig(ce_weight=0.0),
    mesh="data=1",
    checkpoint_every=250,
    log_every=10,
    validate_every=250,
    preview_every=500,
    previews=PreviewConfig(count=8, num_steps=50),
)

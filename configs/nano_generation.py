"""Generation at 128 pixels with the nano model (9 M parameters) on the bundled X-rays.

    python train.py configs/nano_generation.py --init runs/nano_understanding \\
        --out runs/nano_generation

The images are augmented, so that they are encoded at every step: fewer are learned by heart.

Score: none, since no run of this configuration has been made to its end.
"""

from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=3000,
    data=DataConfig(
        source="manifest:examples/cxr",
        task="generation",
        caption_dropout=0.1,
        augmentation=AugmentationConfig(shift=0.03, scale=0.05, rotation=2.0, contrast=0.1),
        rows=2,
        und_tokens=160,
        vit_images=0,
        vae_images=8,
        vae_height=128,
        vae_width=128,
    ),
    model=ModelConfig(preset="nano", remat="none"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=50,
        schedule="cosine",
        total_steps=3000,
        final_fraction=0.05,
        eps=1e-8,
    ),
    losses=LossConfig(ce_weight=0.0),
    mesh="data=1",
    checkpoint_every=200,
    log_every=10,
    validate_every=200,
    preview_every=500,
    previews=PreviewConfig(count=8, num_steps=50),
)

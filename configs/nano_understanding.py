"""Understanding with the nano model (9 M parameters) on the bundled X-rays, on a laptop.

    python examples/make_nano_reports.py runs/nano_reports
    python examples/make_nano_vision.py runs/nano_autoencoder runs/nano_reports runs/nano_vision
    python train.py configs/nano_understanding.py --init runs/nano_vision \\
        --out runs/nano_understanding

The first command writes the reports in several wordings, the second teaches the ViT the labels.

Score: none, since no run of this configuration has been made to its end.
"""

from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="understanding",
    total_steps=1500,
    data=DataConfig(
        source="manifest:runs/nano_reports",
        task="understanding",
        augmentation=AugmentationConfig(
            shift=0.015, scale=0.02, rotation=1.5, contrast=0.1, noise=0.01
        ),
        rows=2,
        und_tokens=512,
        vit_images=5,
        vae_images=0,
    ),
    model=ModelConfig(preset="nano", tokenizer="examples/nano_tokenizer", remat="none"),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=40,
        schedule="cosine",
        total_steps=1500,
        final_fraction=0.05,
        eps=1e-8,
        weight_decay=0.05,
    ),
    losses=LossConfig(mse_weight=0.0),
    mesh="data=1",
    checkpoint_every=100,
    log_every=10,
    validate_every=100,
    preview_every=200,
    previews=PreviewConfig(count=4, max_new_tokens=64),
)

"""Understanding with the nano model (9 M parameters) on the bundled X-rays, on a laptop.

    python train.py configs/nano_understanding.py --init runs/nano_autoencoder \\
        --out runs/nano_understanding

Time: about 12 minutes on 2 busy cores. docs/nano.md has the recipe of the bundled model, which is
four times as long, on reports in three wordings, and starts from a ViT that knows the findings. It
states how many X-rays are reported correctly.
"""

from unix_jax.data.augmentation import AugmentationConfig
from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="understanding",
    total_steps=300,
    trainable="(und|embed_tokens|lm_head|vision|connector)/.*",
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="understanding",
        augmentation=AugmentationConfig(
            shift=0.015, scale=0.02, rotation=1.5, contrast=0.1, noise=0.01
        ),
        rows=2,
        und_tokens=576,
        text_tokens=320,
        vit_images=5,
        vae_images=0,
        grayscale=True,
    ),
    model=ModelConfig(preset="nano", tokenizer=example("nano_tokenizer"), remat="none"),
    optimizer=OptimizerConfig(
        name="muon",
        learning_rate=2e-3,
        warmup_steps=20,
        schedule="cosine",
        final_fraction=0.02,
        eps=1e-8,
        weight_decay=0.05,
    ),
    losses=LossConfig(mse_weight=0.0),
    mesh="data=1",
    checkpoint_every=100,
    log_every=10,
    validate_every=100,
    preview_every=100,
    previews=PreviewConfig(count=4, max_new_tokens=64),
)

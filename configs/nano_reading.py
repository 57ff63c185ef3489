"""Reading with the nano model (9 M parameters), learned again without changing what it generates.

    python train.py configs/nano_reading.py --init runs/nano_vision_small \\
        --data.source manifest:runs/nano_reports --out runs/nano_reading

Trains the ViT, the connector, the head and the und stream's final norm, which generation does not
use: the same seed gives the same image before and after. docs/nano.md has the recipe of the bundled
model, which uses this configuration several times.

Time: about 6 minutes on 2 busy cores. Score: docs/nano.md states how many X-rays are reported
correctly.
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
    trainable="(lm_head|vision|connector|decoder/norm/und)/.*",
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="understanding",
        # Unchanged X-rays are learned by heart; of changed ones only what all copies share is.
        augmentation=AugmentationConfig(
            shift=0.04, scale=0.08, rotation=4.0, contrast=0.2, noise=0.02, unchanged=0.8
        ),
        rows=2,
        und_tokens=576,
        text_tokens=320,
        vit_images=5,
        vae_images=0,
        grayscale=True,
    ),
    model=ModelConfig(preset="nano", remat="none"),
    optimizer=OptimizerConfig(
        name="muon",
        learning_rate=1.5e-3,
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

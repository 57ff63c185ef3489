"""Stage 3: generation at 512 pixels, at published size. Trains stage 2's weights, without REPA.

    python train.py configs/stage3_generation_hr.py --init runs/stage2 --out runs/stage3 \\
        --data.source "mimic:MIMIC_CXR_JPG?reports=clean.jsonl&views=PA,AP"

The published recipe: 256 images per step, learning rate 1e-4 from the first step, 5,000 steps,
AdamW(0.9, 0.95, eps 1e-15) without decay, clipping at 1.0, captions dropped with probability 0.1.
256 rows of one image. The table of 32 x 32 latent positions covers exactly 512 pixels.

Time and score: no run has been made with this code yet; the paper's scores are in its tables.
"""

from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=5000,
    trainable="(gen|time_embedder|vae2llm|llm2vae|repa)/.*",
    data=DataConfig(
        source="mimic:mimic-cxr-jpg?views=PA,AP",
        task="generation",
        caption_dropout=0.1,
        rows=256,
        und_tokens=160,
        text_tokens=160,
        vit_images=0,
        vae_images=1,
        grayscale=True,
        vae_height=512,
        vae_width=512,
    ),
    model=ModelConfig(preset="published", remat="full"),
    optimizer=OptimizerConfig(learning_rate=1e-4),
    losses=LossConfig(ce_weight=0.0),
    accumulation=2,
    checkpoint_every=250,
    log_every=10,
    validate_every=250,
    preview_every=500,
    previews=PreviewConfig(count=4),
)

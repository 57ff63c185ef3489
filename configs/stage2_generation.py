"""Stage 2: generation at 256 pixels, at published size. Trains the gen stream and its projections.

    python train.py configs/stage2_generation.py --init runs/stage1 --repa.encoder RAD_DINO \\
        --out runs/stage2 --data.source "mimic:MIMIC_CXR_JPG?reports=clean.jsonl&views=PA,AP"

The published recipe: 256 images per step, learning rate 2e-4 after 2,000 steps of warm-up, 75,000
steps, AdamW(0.9, 0.95, eps 1e-15) without decay, clipping at 1.0, REPA of weight 0.5 after the
eighth layer, captions dropped with probability 0.1. 128 rows of 2 images, all at once, because each
part of an accumulated step would gather the weights and sum the gradients again. One GPU needs 47
GiB by XLA's count, or 37 with `--accumulation 4`.

Time: one NVIDIA H200 took 1.7 s per step of random data, with `--model.remat dots --accumulation 2`
(benchmarks/accelerator_training.py) and 64 rows of 4 images, which is 35 hours; these rows have
not been timed. Score: no run has been made with this code yet; the paper's scores are in its
tables.
"""

from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig
from unix_jax.training.repa import RepaConfig

config = TrainConfig(
    stage="generation",
    total_steps=75_000,
    trainable="(gen|time_embedder|vae2llm|llm2vae|repa)/.*",
    data=DataConfig(
        source="mimic:mimic-cxr-jpg?views=PA,AP",
        task="generation",
        caption_dropout=0.1,
        rows=128,
        und_tokens=160,
        text_tokens=160,
        vit_images=0,
        vae_images=2,
        grayscale=True,
        vae_height=256,
        vae_width=256,
    ),
    model=ModelConfig(preset="published", remat="full"),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=2000),
    losses=LossConfig(ce_weight=0.0),
    repa=RepaConfig(encoder="rad-dino", weight=0.5, layer=8),
    checkpoint_every=1000,
    log_every=10,
    validate_every=1000,
    preview_every=2500,
    previews=PreviewConfig(count=8),
)

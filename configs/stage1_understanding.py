"""Stage 1: understanding, at published size. Trains the ViT, connector, und stream and lm_head.

    unix-jax convert import-janus JANUS_PRO_1B janus --vae KL_F16
    python train.py configs/stage1_understanding.py --init janus --out runs/stage1 \\
        --data.source "mimic:MIMIC_CXR_JPG?reports=clean.jsonl&views=PA,AP"

The published recipe: 256 samples per step, learning rate 1e-4 after 80 steps of warm-up, 3,840
steps, AdamW(0.9, 0.95, eps 1e-15) without decay, clipping at 1.0. 128 rows of 1,376 tokens hold
about 254 reports of usual length with their images. Longer rows require more attention and save
little padding.

Time: one NVIDIA H200 took 5.1 s per step of random data, with `--model.remat dots --accumulation 6`
(benchmarks/accelerator_training.py) and 96 rows of 2,048 tokens, which is 5.5 hours; these rows
have not been timed. Score: no run has been made with this code yet; the paper's scores are in its
tables.
"""

from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="understanding",
    total_steps=3840,
    trainable="(und|embed_tokens|lm_head|vision|connector)/.*",
    data=DataConfig(
        source="mimic:mimic-cxr-jpg?views=PA,AP",
        task="understanding",
        rows=128,
        und_tokens=1376,
        text_tokens=384,
        vit_images=2,
        vae_images=0,
        grayscale=True,
    ),
    model=ModelConfig(preset="published", remat="full"),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=80),
    # Every chunk adds to the gradient of the whole head: one, which holds a row's reports.
    losses=LossConfig(mse_weight=0.0, ce_chunk=512),
    accumulation=4,
    checkpoint_every=240,
    log_every=10,
    validate_every=240,
    preview_every=480,
)

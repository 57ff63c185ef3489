"""Stage 2 with a U-Net instead of the gen stream, at published size: an ablation.

    python train.py configs/stage2_generation_unet.py --init runs/stage1 --out runs/stage2_unet \\
        --data.source "mimic:MIMIC_CXR_JPG?reports=clean.jsonl&views=PA,AP"

The understanding branch, the data, the loss and the optimiser are those of stage2_generation.py.
REPA reads the gen stream, so there is none here. The U-Net has Stable Diffusion 1's widths and
868,281,232 parameters; the gen stream that it replaces has 1,240,266,768 and needs 12 times as many
FLOPs. For stage 3 the same file
takes --init runs/stage2_unet, --data.vae-height 512 and --data.vae-width 512.

Time and score: no run has been made with this configuration yet.
"""

from unix_jax.config import UNetBackbone
from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=75_000,
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
    model=ModelConfig(preset="published", remat="full", generation=UNetBackbone()),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=2000),
    losses=LossConfig(ce_weight=0.0),
    accumulation=4,
    checkpoint_every=1000,
    log_every=10,
    validate_every=1000,
    preview_every=2500,
    previews=PreviewConfig(count=8),
)

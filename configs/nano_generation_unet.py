"""Generation at 128 pixels with a U-Net instead of the nano model's gen stream: an ablation.

    python examples/make_nano_images.py runs/nano_images
    unix-jax data moments manifest:runs/nano_images runs/nano_moments \\
        --height 128 --width 128 --checkpoint runs/nano_understanding/export
    python train.py configs/nano_generation_unet.py --init runs/nano_understanding \\
        --data.source manifest:runs/nano_images --data.moments runs/nano_moments \\
        --out runs/nano_generation_unet

The understanding branch, the data and the loss are those of nano_generation.py. The U-Net has
3,409,464 parameters, the gen stream that it replaces 3,448,736. A step takes two to four times as
long on a CPU, so that this run is shorter; docs/backbones.md compares both after 600 steps.

Time: about 30 minutes on 2 busy cores. Score: squared error 0.604 on the validation split, where
the gen stream has 0.544 after as many steps.
"""

from unix_jax.config import UNetBackbone
from unix_jax.data.config import DataConfig
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=600,
    data=DataConfig(
        source="manifest:examples/cxr",
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
    model=ModelConfig(
        preset="nano",
        remat="none",
        generation=UNetBackbone(
            widths=(48, 64, 96),
            attention=(True, True, True),
            layers=(1, 1, 1),
            depths=(1, 1, 1),
            norm_groups=16,
        ),
    ),
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

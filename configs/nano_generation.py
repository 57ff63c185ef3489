"""Generation at 128 pixels with the nano model (9 M parameters) on the bundled X-rays.

    unix-jax data moments manifest:examples/cxr runs/nano_moments \\
        --height 128 --width 128 --checkpoint runs/nano_understanding/export
    python train.py configs/nano_generation.py --init runs/nano_understanding \\
        --data.moments runs/nano_moments --out runs/nano_generation

The first command only saves time: it encodes the images once instead of at every step.

Time: about 50 minutes on 2 busy cores. Score: squared error of the velocity 0.890 on the validation
split, and 0.820 at step 1200, for the bundled model, whose autoencoder was an earlier one. After
that step images still become clearer, but the model memorises some of them. docs/nano.md shows
generated images, and the options of a longer recipe.
"""

from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="generation",
    total_steps=2000,
    trainable="(gen|time_embedder|vae2llm|llm2vae|repa)/.*",
    data=DataConfig(
        source=f"manifest:{example('cxr')}",
        task="generation",
        caption_dropout=0.1,
        rows=4,
        und_tokens=256,
        text_tokens=256,
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
        final_fraction=0.1,
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

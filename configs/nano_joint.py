"""Reports and images in one step: joint training of the nano model (9 M parameters) on the bundled
X-rays, at 128 pixels.

    python train.py configs/nano_joint.py --init examples/nano --out runs/nano_joint

Both streams are trained, as in BAGEL's joint training; the other stages train one of them.

Time: the first 20 steps took 4 minutes on 2 busy cores. Score: none, since no run of this
configuration has been completed.
"""

from unix_jax.data.config import DataConfig
from unix_jax.storage.bundled import example
from unix_jax.training.config import ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.optimizer import OptimizerConfig

config = TrainConfig(
    stage="joint",
    total_steps=500,
    data=DataConfig(
        source=f"0.5*understanding:manifest:{example('cxr')}"
        f" + 0.5*generation:manifest:{example('cxr')}",
        rows=4,
        und_tokens=640,
        text_tokens=400,
        vit_images=4,
        vae_images=4,
        grayscale=True,
        vae_height=128,
        vae_width=128,
    ),
    model=ModelConfig(preset="nano", remat="none"),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        warmup_steps=50,
        schedule="cosine",
        final_fraction=0.1,
        eps=1e-8,
    ),
    mesh="data=1",
    checkpoint_every=100,
    log_every=10,
    validate_every=100,
    preview_every=250,
    previews=PreviewConfig(count=4, num_steps=50, max_new_tokens=64),
)

"""A run of `train.py` small enough for tests: one layer, a few pictures, a checkpoint to start."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

from support.paths import GOLDEN, ROOT
from unix_jax.checkpoints import native
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.models import autoencoder, unix
from unix_jax.training.metrics import METRICS_FILE, TIMING_FIELDS

TRAIN = ROOT / "train.py"
TOKENIZER = GOLDEN / "tiny" / "checkpoint"

MODEL = UniXConfig(
    decoder=DecoderConfig(16, 24, 1, 2, 2, 8, 640, 512),
    vision=VisionConfig(16, 8, 16, 1, 2, 2.0),
    vae=AutoencoderConfig(
        ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), z_channels=4, embed_dim=4
    ),
    special_tokens=SpecialTokens(600, 601, 602, 603, 608),
    latent_patch_size=2,
    max_latent_size=4,
    vit_max_num_patch_per_side=2,
)
REPORTS = ("No finding.", "Large right pleural effusion.", "Cardiomegaly. Mild edema.")

CONFIG = '''"""A toy."""
from unix_jax.data.config import DataConfig
from unix_jax.training.config import LoggingConfig, ModelConfig, PreviewConfig, TrainConfig
from unix_jax.training.config import ValidationConfig
from unix_jax.training.optimizer import OptimizerConfig

stage = {stage!r}
task = "understanding" if stage == "understanding" else "generation"
source = "manifest:{source}"
if stage == "joint":
    source = f"0.6*understanding:{{source}} + 0.4*generation:{{source}}"
config = TrainConfig(
    stage=stage,
    total_steps=8,
    data=DataConfig(
        source=source,
        task=task,
        rows=2,
        und_tokens=128 if stage != "autoencoder" else 2,
        caption_dropout=0.1 if stage != "autoencoder" else 1.0,
        vit_images=2 if stage in ("understanding", "joint") else 0,
        vae_images={{"understanding": 0, "generation": 2, "joint": 2, "autoencoder": 1}}[stage],
        vae_height=8,
        vae_width=8,
        threads=2,
        broken_after=4,
    ),
    model=ModelConfig(remat="none"),
    init={init!r},
    optimizer=OptimizerConfig(learning_rate=1e-2),
    ema_decay=0.9,
    mesh="data=1",
    checkpoint_every=3,
    log_every=2,
    logging=LoggingConfig(tensorboard=False),
    validation=ValidationConfig(batches=2),
    previews=PreviewConfig(count=2, num_steps=3, max_new_tokens=8),
)
'''


def write_pictures(directory, train=10, validate=4):
    """A manifest of random pictures with short reports."""
    rng = np.random.default_rng(0)
    (directory / "images").mkdir(parents=True)
    rows = []
    for number in range(train + validate):
        name = f"images/{number:03d}.png"
        pixels = rng.integers(0, 256, (16 + number, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / name)
        rows.append(
            {
                "image": name,
                "findings": "The lungs are clear. " * (number % 3),
                "impression": REPORTS[number % len(REPORTS)],
                "split": "train" if number < train else "validate",
            }
        )
    (directory / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return directory


def write_start(directory, vae=True):
    """A checkpoint with fresh weights, and the golden tokenizer."""
    files = [(file, file.name) for file in TOKENIZER.glob("*token*.json")]
    weights = [random_weights(shapes) for shapes in
               (unix.param_shapes(MODEL), autoencoder.param_shapes(MODEL.vae))]  # fmt: skip
    native.save(directory, MODEL, weights[0], weights[1] if vae else None, copies=files)
    return directory


def random_weights(shapes):
    """Numbers that keep activations near 1, without compiling anything."""
    rng = np.random.default_rng(7)

    def fill(leaf):
        scale = max(np.prod(leaf.shape[:-1]), 1) ** -0.5
        return np.asarray(rng.normal(size=leaf.shape) * scale, np.float32)

    return jax.tree.map(fill, shapes)


def make_toy(directory):
    """Pictures and a checkpoint to start from; gives stage -> configuration file."""
    source = write_pictures(directory / "data")
    init = write_start(directory / "init")
    return lambda stage: write_config(directory / f"{stage}.py", stage, source, init)


def write_config(path, stage, source, init):
    """A configuration file of a stage."""
    path.write_text(CONFIG.format(stage=stage, source=source, init=str(init)))
    return path


def load_train():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_script", TRAIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_error(train, capsys, *arguments):
    """The one line that a run which cannot go ahead ends with."""
    assert train.main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines(keepends=True)
    # A run that fails in its loop has said before what it will export.
    *started, error = lines
    assert all(line.startswith("the export will hold") for line in started), lines
    assert error.startswith("error: ")
    return error


def launch(arguments, devices=1, **environment):
    """Starts `python train.py ...`; compiled programs are shared as between the tests' workers."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            # Of a flag that comes twice, the last one holds.
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} "
            f"--xla_force_host_platform_device_count={devices}",
            **environment,
        },
    )


def launch_two(arguments):
    """Two processes of one device each, which find each other over the loopback."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    together = ["--distributed.coordinator", f"localhost:{port}", "--distributed.num-processes", 2]
    return [launch([*arguments, *together, "--distributed.process-id", rank]) for rank in range(2)]


def metrics(directory, timing=False):
    """The lines of metrics.jsonl, without the fields of time unless asked for."""
    lines = [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]
    return [{k: v for k, v in x.items() if timing or k not in TIMING_FIELDS} for x in lines]


def arrays(directory):
    """The parameters in a checkpoint by path."""
    leaves = native.open_leaves(directory, "params")
    return {name: leaf.read_all() for name, leaf in leaves.items()}


def exported(directory):
    """The arrays of a run's export."""
    return arrays(directory / "export")


def assert_same_run(one, other):
    """Metrics and final weights are equal to the bit."""
    assert metrics(one) == metrics(other)
    first, second = exported(one), exported(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)

"""MFU of the published training steps on one accelerator: whole steps, as `train.py` runs them.

    pip install '.[gpu,train,torch]'               # PyTorch: for the rate of a matrix product alone
    python benchmarks/accelerator_training.py
    python benchmarks/accelerator_training.py --steps stage1_understanding:dots:16:24 --profile
    JAX_PLATFORMS=cpu python benchmarks/accelerator_training.py --preset nano --rows 8 \\
        --steps nano_generation:full:4              # whether it runs, where there is no accelerator

Each step is `CONFIG:REMAT:ROWS:UNROLL`, with all rows of a file of configs/ in microbatches of ROWS
and `--model.unroll` UNROLL (1 if left out), full rows of random content and random weights, the
update of AdamW and the running mean included. MFU is the model's FLOPs (`unix_jax.training.flops`:
what is recomputed or padded does not count) over the bfloat16 peak of the maker's data sheet;
beside it, the rate of a large matrix product here. All steps are compiled first, at the same time;
that time is in no other figure. Memory is the compiler's own figure.
"""

import collections
import dataclasses
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import tyro
from common import interleaved, machine, matmul_rate, print_table, use_torch_device
from jax.sharding import NamedSharding, PartitionSpec

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.dry_run.dry_run import full_row
from unix_jax.models.attention import Implementation
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.models.remat import RematPolicy
from unix_jax.training.config import TrainConfig, load_config
from unix_jax.training.flops import count, utilisation
from unix_jax.training.stages import Stage, make_stage
from unix_jax.training.start import make_run_mesh

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclasses.dataclass
class Arguments:
    """What is timed."""

    steps: tuple[str, ...] = (
        "stage1_understanding:dots:16", "stage1_understanding:dots:16:24",
        "stage2_generation:dots:64", "stage2_generation:dots:64:24",
    )  # fmt: skip
    """CONFIG:REMAT:ROWS[:UNROLL] each."""
    rows: int | None = None
    """Rows of a step, instead of those of its configuration; und_tokens and images likewise."""
    und_tokens: int | None = None
    images: int | None = None
    """Of a row."""
    attention: Implementation = "auto"
    preset: str = "published"
    repeats: int = 5
    profile: bool = False
    """Print which kernels, and which kinds of them, take the time of one step on a GPU."""
    hlo: Path | None = None
    """Write the compiled programs into this folder."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One line of the table."""

    name: str
    remat: str
    at_once: int
    unroll: int

    @classmethod
    def parse(cls, text: str) -> "Step":
        number = r"([1-9]\d*)"
        policies = "|".join(get_args(RematPolicy))
        match = re.fullmatch(rf"(\w+):({policies}):{number}(?::{number})?", text)
        if match is None or not (CONFIGS / f"{match[1]}.py").is_file():
            sys.exit(f"error: --steps: expected CONFIG:REMAT:ROWS[:UNROLL], found {text!r}")
        return cls(match[1], match[2], int(match[3]), int(match[4] or 1))

    def config(self, a: Arguments) -> TrainConfig:
        config, _ = load_config(CONFIGS / f"{self.name}.py")
        rows = a.rows or config.data.rows
        if rows % self.at_once:
            sys.exit(f"error: --steps: expected a divisor of {rows} rows, found {self.at_once}")
        of_task = "vit_images" if config.data.task == "understanding" else "vae_images"
        given = {"rows": rows, "und_tokens": a.und_tokens, of_task: a.images}
        shape: Any = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, **shape),
            model=dataclasses.replace(
                config.model,
                preset=a.preset,
                remat=self.remat,
                attention=a.attention,
                unroll=self.unroll,
            ),
            accumulation=rows // self.at_once,
        )


def random_batch(config: TrainConfig, model_config: UniXConfig) -> TrainingBatch:
    """Full rows of random ids and pixels: zeros would run faster than data."""
    rng = np.random.default_rng(0)
    row = full_row(config.data, model_config)
    batch = row.map(lambda x: np.repeat(np.asarray(x), config.data.rows, axis=0))
    ids = rng.integers(0, model_config.decoder.vocab_size, batch.token_ids.shape, np.int32)
    # Boundary tokens stay.
    filled: dict[str, Any] = {"token_ids": np.where(batch.token_ids == 0, ids, batch.token_ids)}
    filled["labels"] = np.roll(filled["token_ids"], -1, axis=1)
    for name in ("vit_pixels", "vae_pixels"):
        pixels = getattr(batch, name)
        if pixels is not None:
            filled[name] = rng.integers(0, 256, pixels.shape, np.uint8)
    return dataclasses.replace(batch, **filled)


def fresh_state(stage: Stage) -> Any:
    """Random weights; llm2vae is not left at its zero start, which would make gradients zero."""
    state = stage.fresh({})
    head = state.trained["unix"].get("llm2vae")
    if head is not None:
        drawn = 0.02 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
        head["kernel"] = jax.device_put(drawn, head["kernel"].sharding)
    return state


class Prepared:
    """A step with its batch on the device; `compile` and `measure` are called in this order."""

    def __init__(self, a: Arguments, step: Step) -> None:
        self.step, self.config = step, step.config(a)
        model_config = UniXConfig.preset(self.config.model.preset)
        self.mesh = make_run_mesh(None, model_config, jax.devices()[:1])
        self.run = make_stage(
            self.config, model_config, self.mesh, 1_000,
            has_autoencoder=self.config.stage == "generation",
            encoder_config=Dinov2Config() if self.config.uses_repa else None,
        )  # fmt: skip
        batch = random_batch(self.config, model_config)
        self.counts, self.operations = count(batch, model_config), self.run.batch_flops(batch)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        self.batch = batch.map(lambda x: jax.device_put(x, replicated))
        self.key = jax.device_put(jax.random.key(0), replicated)

    def compile(self) -> "Prepared":
        begin = time.perf_counter()
        step = self.run.train_step(1)
        self.compiled = step.lower(self.run.target, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - begin
        return self

    def measure(self, a: Arguments) -> list[str]:
        state = fresh_state(self.run)
        jax.block_until_ready(state)

        def update() -> None:
            nonlocal state
            state, metrics = self.compiled(state, self.batch, self.key)
            assert np.isfinite(float(metrics["loss"])), metrics

        timing = interleaved({"step": update}, a.repeats)["step"]
        step = self.step
        if a.hlo is not None:
            name = f"{step.name}-{step.remat}-{step.at_once}-{step.unroll}.hlo.txt"
            (a.hlo / name).write_text(self.compiled.as_text())
        if a.profile:
            print_profile(
                f"{step.name}, remat {step.remat}, {step.at_once} rows at once, "
                f"unroll {step.unroll}", update,
            )  # fmt: skip
        stats, device = self.compiled.memory_analysis(), self.mesh.devices.flat[0]
        held = stats.argument_size_in_bytes + stats.temp_size_in_bytes
        held += stats.output_size_in_bytes - stats.alias_size_in_bytes
        mfu = utilisation(self.operations, timing.median, 1, device)
        return [
            step.name,
            step.remat,
            str(step.unroll),
            f"{self.config.data.rows} / {step.at_once}",
            f"{self.counts.und_tokens} + {self.counts.gen_tokens}",
            f"{timing.median:.2f} ({min(timing.seconds):.2f} to {max(timing.seconds):.2f})",
            f"{self.counts.tokens / timing.median:.0f}",
            f"{self.operations / timing.median / 1e12:.0f}",
            "unknown" if mfu is None else f"{mfu:.1%}",
            f"{held / 2**30:.0f}",
            f"{self.compile_seconds:.0f}",
        ]


# What the names of XLA's kernels on NVIDIA GPUs contain, by kind; the first that fits counts.
KINDS = {
    "attention": ("sdpa", "cudnn::fusion"), "convolutions": ("implicit_gemm",),
    "matrix products": ("nvjet", "gemm"), "copies": ("memcpy",),
}  # fmt: skip


def kind_of(kernel: str) -> str:
    fitting = (kind for kind, parts in KINDS.items() if any(part in kernel for part in parts))
    return next(fitting, "the rest")


def print_profile(title: str, update: Any, shown: int = 60) -> None:
    """Device time of one step by kernel and by kind of kernel, from JAX's profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            update()
        files = list(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(files[0]))
    spent: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                spent[event.name] += event.duration_ns
                calls[event.name] += 1
    total = sum(spent.values())
    print_table(
        f"Device time of one step, {total / 1e9:.3f} s: {title}",
        ["kernel", "share", "ms", "calls"],
        [
            [name[:90], f"{ns / total:.1%}", f"{ns / 1e6:.1f}", str(calls[name])]
            for name, ns in spent.most_common(shown)
        ],
    )
    kinds: collections.Counter[str] = collections.Counter()
    for name, ns in spent.items():
        kinds[kind_of(name)] += ns
    print_table(
        f"By kind: {title}",
        ["kind", "share", "ms"],
        [[kind, f"{ns / total:.1%}", f"{ns / 1e6:.0f}"] for kind, ns in kinds.most_common()],
    )


def main(a: Arguments) -> None:
    print(machine())
    use_torch_device()
    print(f"bfloat16 matrix product {matmul_rate('bfloat16') / 1e12:.0f} TFLOP/s")
    prepared = [Prepared(a, Step.parse(text)) for text in a.steps]
    with ThreadPoolExecutor() as pool:
        prepared = list(pool.map(Prepared.compile, prepared))
    rows = []
    for one in prepared:
        # The state of one is freed before the next is created.
        rows.append(one.measure(a))
        print(rows[-1], flush=True)
    print_table(
        "Training steps, bfloat16 with float32 masters",
        ["step", "remat", "unroll", "rows / at once", "und + latents", "s (spread)", "tokens/s",
         "TFLOP/s", "MFU", "GiB", "compile s"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

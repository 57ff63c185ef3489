"""Training steps against PyTorch, a frozen und stream against a full step, compile time by depth.

    pip install '.[train,torch]'
    python benchmarks/training.py
    python benchmarks/training.py --quick               # a quick look at small shapes
    python benchmarks/training.py --parts torch         # one part alone
    python benchmarks/training.py --parts slots --cpu-seconds     # on a busy machine

Slots: the step on rows whose images are in slots against the same rows in the order of their
samples; both must give the same loss and gradient norm first.

PyTorch: tokens per second of whole updates (gradients, clipping, AdamW, running mean) on one packed
batch, whose images are in slots on our side, against the eager step of `torch_training.py`; the two
sides must give the same loss and gradient norm from the same weights first. Frozen und: the
generation stage's step against one that trains everything, on the same batch, beside the ratio of
the FLOPs that both need. Depth: tracing and compiling a scanned step; nothing of it is run. float32
unless told otherwise; ratios are pairwise, with their spread. Compile time is that of the first
call, and part of no other figure. PyTorch runs on the device that JAX has; on a GPU the comparison
has not been made yet.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from common import interleaved, machine, matmul_rate, print_table, ratio, use_torch_device
from torch_training import TRAINABLE, Stage, TorchTrainer

from unix_jax.config import DecoderConfig, SpecialTokens, UniXConfig, VisionConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.config import DataConfig
from unix_jax.data.slots import in_slots, slots_of
from unix_jax.models.unix import UniX, init_params
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out
from unix_jax.training.cpu_settings import set_cpu_defaults
from unix_jax.training.draws import draw_flow
from unix_jax.training.flops import count, step_flops
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.state import abstract_state, create_state
from unix_jax.training.step import StepConfig, make_train_step

Part = Literal["slots", "torch", "frozen", "depth"]
OPTIMIZER = OptimizerConfig()
RUN_KEY = 5


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    parts: tuple[Part, ...] = ("slots", "torch", "frozen", "depth")
    width: int = 512
    """Width of the decoder."""
    mlp: int = 1408
    """Width of the MLP."""
    layers: int = 8
    heads: int = 8
    vocab: int = 8192
    vit_size: int = 192
    """Side of an X-ray in pixels, in patches of 16."""
    vit_width: int = 256
    vit_layers: int = 4
    rows: int = 2
    """Packed rows of a step."""
    reports: int = 2
    """X-rays of a row, each with a prompt and a report."""
    prompt: int = 24
    """Tokens of a prompt or a caption."""
    report: int = 176
    """Tokens of a report."""
    side: int = 16
    """Side of a generated image in latent tokens."""
    images: int = 4
    """Generated images per row, each with a caption, in the generation stage."""
    frozen_images: tuple[int, ...] = (1, 2, 4)
    """Generated images per row in addition to the reports, frozen against full."""
    depths: tuple[int, int] = (4, 24)
    """Layers of which compile times are compared."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; weights are float32. PyTorch's bfloat16 is autocast."""
    repeats: int = 7
    cpu_seconds: bool = False
    """Measure slots in CPU seconds instead of the time that passes."""
    quick: bool = False
    """Small shapes and 2 repeats, whatever the other options say."""


QUICK = {
    "width": 128, "mlp": 352, "layers": 2, "heads": 4, "vocab": 512, "vit_size": 64,
    "vit_width": 64, "vit_layers": 1, "report": 48, "side": 8, "images": 2,
    "frozen_images": (1,), "depths": (2, 6), "repeats": 2,
}  # fmt: skip


def configure(a: Arguments, layers: int | None = None) -> UniXConfig:
    return UniXConfig(
        decoder=DecoderConfig(
            a.width, a.mlp, layers or a.layers, a.heads, a.heads, a.width // a.heads, a.vocab, 4096
        ),
        vision=VisionConfig(a.vit_size, 16, a.vit_width, a.vit_layers, 4),
        special_tokens=SpecialTokens(0, 1, 2, 3, 4),
    )


def random_params(config: UniXConfig) -> dict[str, Any]:
    """As `init_params`, but llm2vae is not left at its zero start."""
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    shape = params["llm2vae"]["kernel"].shape
    params["llm2vae"]["kernel"] = 0.02 * jax.random.normal(jax.random.key(1), shape)
    return params


def make_batch(a: Arguments, config: UniXConfig, reports: int, images: int) -> TrainingBatch:
    """Rows of `reports` reports and `images` generated images each, packed without padding."""
    rng = np.random.default_rng(0)

    def text(length: int) -> TextSplit:
        return TextSplit([0, *rng.integers(5, a.vocab, length - 2).tolist(), 1])

    samples: list[list[Any]] = [
        [
            *[[VitSplit(), text(a.prompt), text(a.report)] for _ in range(reports)],
            *[[text(a.prompt), VaeSplit(a.side, a.side, noised=True)] for _ in range(images)],
        ]
        for _ in range(a.rows)
    ]
    layout = lay_out(samples, config)
    ids, split = layout.token_ids, np.asarray(layout.und.split)
    written = (split == 2) & (ids != 1)
    fields: dict[str, Any] = {}
    if reports:
        size = (a.rows, reports, a.vit_size, a.vit_size, 3)
        fields |= {
            "vit_pixels": rng.normal(size=size).astype(np.float32),
            "vit_index": layout.vit_index,
        }
    if images:
        latents = layout.gen.segment.shape[1]
        places = np.arange(latents, dtype=np.int32)
        size = (a.rows, images, a.side, a.side, 2 * config.vae.z_channels)
        fields |= {
            "gen": layout.gen,
            "vae_moments": rng.normal(size=size).astype(np.float32),
            "latent_index": np.broadcast_to(places, (a.rows, latents)).copy(),
            "latent_position_ids": layout.latent_position_ids,
            "noised": np.ones((a.rows, images), bool),
            "mse_weights": np.ones((a.rows, latents), np.float32),
        }
    return TrainingBatch(
        token_ids=ids,
        und=layout.und,
        labels=np.roll(ids, -1, axis=1),
        ce_weights=written.astype(np.float32),
        **fields,
    )


def slotted(a: Arguments, config: UniXConfig, batch: TrainingBatch) -> TrainingBatch:
    """The same rows with their images in slots, which leave no padding."""
    reports = 0 if batch.vit_pixels is None else batch.vit_pixels.shape[1]
    images = 0 if batch.noised is None else batch.noised.shape[1]
    data = DataConfig(
        task="understanding" if reports else "generation", und_tokens=batch.token_ids.shape[1],
        vit_images=reports, vae_images=images, text_tokens=1,
    )  # fmt: skip
    slots = slots_of(config, data)
    assert slots is not None
    return in_slots(batch, slots)


def step_config(stage: Stage) -> StepConfig:
    """A generation stage has no text loss: nothing that it trains could lower it."""
    return StepConfig(LossConfig(ce_weight=0.0 if stage == "generation" else 1.0))


def make_step(config: UniXConfig, stage: Stage, dtype: str = "float32") -> tuple[Any, Any]:
    """(the step, its optimiser), as `train.py` would make them."""
    tx, schedule = make_optimizer(OPTIMIZER)
    model = UniX(config, jnp.dtype(dtype), freeze_und=stage == "generation")
    return make_train_step(model, step_config(stage), tx, schedule), tx


class Ours:
    """The library's step on one batch; each call is an update."""

    def __init__(
        self, config: UniXConfig, params: dict[str, Any], stage: Stage, batch: TrainingBatch,
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        self.step, tx = make_step(config, stage, dtype)
        self.batch = batch.map(jnp.asarray)
        self.state = create_state(
            TRAINABLE[stage], tx, jax.random.key(0),
            init={"unix": lambda key: init_params(config, key, boxed=True)},
            given={"unix": params},
        )  # fmt: skip
        begin = time.perf_counter()
        self.first = self()
        self.first_seconds = time.perf_counter() - begin

    def __call__(self) -> dict[str, float]:
        self.state, metrics = self.step(self.state, self.batch, jax.random.key(RUN_KEY))
        jax.block_until_ready(self.state.trained)
        return {name: float(value) for name, value in metrics.items()}


def reference(
    config: UniXConfig, params: dict[str, Any], stage: Stage, batch: TrainingBatch, dtype: str
) -> TorchTrainer:
    """The PyTorch step with the noise and times of the library's first step."""
    step = step_config(stage)
    trainer = TorchTrainer(
        config, params, stage, OPTIMIZER, step.losses, step.ema_decay, getattr(torch, dtype)
    )
    key = jax.random.fold_in(jax.random.key(RUN_KEY), 0)
    draw = draw_flow(
        UniX(config), {"unix": params}, batch.map(jnp.asarray), key, jnp.arange(batch.rows)
    )
    trainer.load(batch, draw)
    return trainer


def check_equal(ours: dict[str, float], loss: float, norm: float, dtype: str) -> None:
    """Both sides do the same work."""
    # XLA's float32 products on a GPU are TF32 unless asked, as PyTorch's are not.
    exact = dtype == "float32" and jax.default_backend() == "cpu"
    for name, theirs in (("loss", loss), ("grad_norm", norm)):
        difference = abs(ours[name] - theirs) / abs(theirs)
        limit = 1e-4 if exact else 5e-2
        assert difference < limit, f"{name}: ours {ours[name]}, PyTorch's {theirs}"


def stage_batches(a: Arguments, config: UniXConfig) -> list[tuple[Stage, TrainingBatch]]:
    return [
        ("understanding", make_batch(a, config, a.reports, 0)),
        ("generation", make_batch(a, config, 0, a.images)),
    ]


def benchmark_slots(a: Arguments, config: UniXConfig, params: dict[str, Any]) -> list[list[str]]:
    rows = []
    clock = time.process_time if a.cpu_seconds else time.perf_counter
    for stage, batch in stage_batches(a, config):
        counts = count(batch, config)
        ordered = Ours(config, params, stage, batch, a.dtype)
        slots = Ours(config, params, stage, slotted(a, config, batch), a.dtype)
        check_equal(slots.first, ordered.first["loss"], ordered.first["grad_norm"], a.dtype)
        timings = interleaved({"order": ordered, "slots": slots}, a.repeats, clock)
        rows.append(
            [
                stage,
                f"{counts.und_tokens} + {counts.gen_tokens}",
                *(f"{timings[name].median:.2f}" for name in timings),
                ratio(timings["order"], timings["slots"]),
            ]
        )
    return rows


def benchmark_torch(a: Arguments, config: UniXConfig, params: dict[str, Any]) -> list[list[str]]:
    rows = []
    for stage, batch in stage_batches(a, config):
        counts = count(batch, config)
        ours = Ours(config, params, stage, slotted(a, config, batch), a.dtype)
        theirs = reference(config, params, stage, batch, a.dtype)
        check_equal(ours.first, *theirs.step(), a.dtype)
        timings = interleaved({"ours": ours, "torch": theirs.step}, a.repeats)
        rows.append(
            [
                stage,
                f"{counts.und_tokens} + {counts.gen_tokens}",
                *(f"{counts.tokens / timings[name].median:.0f}" for name in ("ours", "torch")),
                ratio(timings["torch"], timings["ours"]),
                f"{step_flops(config, counts, stage) / timings['ours'].median / 1e9:.0f}",
                f"{ours.first_seconds - timings['ours'].median:.1f}",
            ]
        )
    return rows


def full_flops(config: UniXConfig, batch: TrainingBatch) -> float:
    """Of a step that trains everything: three times the forward pass."""
    counts = count(batch, config)
    text = dataclasses.replace(counts, gen_tokens=0, gen_und_pairs=0, gen_gen_pairs=0)
    # und's share trained, gen's share trained, and gen's products with und's keys as well.
    drawn = dataclasses.replace(
        counts, und_tokens=0, und_pairs=0, vit_images=0, text_losses=0,
        gen_gen_pairs=counts.gen_gen_pairs + counts.gen_und_pairs, gen_und_pairs=0,
    )  # fmt: skip
    return step_flops(config, text, "understanding") + step_flops(config, drawn, "generation")


def frozen_flops(config: UniXConfig, batch: TrainingBatch) -> float:
    """Of a step that trains gen alone, without the head, with the ViT's forward pass."""
    counts = count(batch, config)
    images = dataclasses.replace(
        counts, und_tokens=0, gen_tokens=0, und_pairs=0, gen_und_pairs=0, gen_gen_pairs=0,
        text_losses=0,
    )  # fmt: skip
    vit = step_flops(config, images, "understanding") / 3
    return step_flops(config, dataclasses.replace(counts, text_losses=0), "generation") + vit


def benchmark_frozen(a: Arguments, config: UniXConfig, params: dict[str, Any]) -> list[list[str]]:
    rows = []
    for images in a.frozen_images:
        batch = make_batch(a, config, a.reports, images)
        counts = count(batch, config)
        full, frozen = (Ours(config, params, stage, batch) for stage in ("all", "generation"))
        timings = interleaved({"full": full, "frozen": frozen}, a.repeats)
        rows.append(
            [
                f"{counts.und_tokens} + {counts.gen_tokens}",
                *(f"{timings[name].median:.2f}" for name in ("full", "frozen")),
                ratio(timings["frozen"], timings["full"]),
                f"{frozen_flops(config, batch) / full_flops(config, batch):.2f}x",
            ]
        )
    return rows


def benchmark_depth(a: Arguments) -> list[list[str]]:
    """Traces and compiles the full step for arrays of which there are only the shapes."""
    seconds: dict[int, list[tuple[float, float]]] = {depth: [] for depth in a.depths}
    batch = make_batch(a, configure(a), a.reports, a.images)

    def build(depth: int) -> None:
        jax.clear_caches()
        config = configure(a, depth)
        step, tx = make_step(config, "all")
        state = abstract_state(
            TRAINABLE["all"], tx, init={"unix": lambda key: init_params(config, key, boxed=True)}
        )
        begin = time.perf_counter()
        lowered = step.lower(state, batch, jax.random.key(0))
        traced = time.perf_counter()
        lowered.compile()
        seconds[depth].append((traced - begin, time.perf_counter() - traced))

    shallow, deep = a.depths
    timings = interleaved(
        {str(depth): lambda depth=depth: build(depth) for depth in a.depths},  # type: ignore[misc]
        a.repeats,
    )
    rows = []
    for depth in a.depths:
        # The first is the warm-up.
        medians = np.median(np.array(seconds[depth][1:]), axis=0)
        against = ratio(timings[str(deep)], timings[str(shallow)]) if depth == deep else ""
        rows.append([str(depth), *(f"{x:.1f}" for x in medians), against])
    return rows


def main(a: Arguments) -> None:
    if a.quick:
        a = dataclasses.replace(a, **QUICK)
    settings = set_cpu_defaults()
    config = configure(a)
    params = random_params(config)
    device = use_torch_device()
    print(machine())
    print(f"set for both sides, as by train.py: {', '.join(settings) or 'nothing'}")
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads")
    print(f"{a.dtype} matrix product {matmul_rate(a.dtype) / 1e9:.0f} GFLOP/s")
    shapes = f"width {a.width}, {a.layers} layers, {a.heads} heads, MLP {a.mlp}, {a.rows} rows"
    if "slots" in a.parts:
        print_table(
            f"Training step in {a.dtype}, {'CPU ' if a.cpu_seconds else ''}s: {shapes}",
            ["stage", "und + latents", "in order", "in slots", "order / slots (spread)"],
            benchmark_slots(a, config, params),
        )
    if "torch" in a.parts:
        print_table(
            f"Training step in {a.dtype}, tokens/s: {shapes}, vocabulary {a.vocab}",
            ["stage", "und + latents", "ours", "PyTorch", "ratio (spread)", "GFLOP/s", "compile s"],
            benchmark_torch(a, config, params),
        )
    if "frozen" in a.parts:
        print_table(
            f"Frozen und stream against full step, s: {shapes}",
            ["und + latents", "full", "frozen", "frozen / full (spread)", "FLOPs"],
            benchmark_frozen(a, config, params),
        )
    if "depth" in a.parts:
        print_table(
            "Compile time of the full step by depth, s",
            ["layers", "trace", "compile", "ratio of the sums (spread)"],
            benchmark_depth(a),
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

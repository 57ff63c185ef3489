"""Compiles the steps of a run without running them, and reports the memory and time they need.

Nothing is allocated and only the sizes are read: the data, the tokenizer and the weights are not
needed, and with a topology the TPUs are not needed either.
Letters: B rows.
"""

import dataclasses
import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unix_jax.checkpoints.hub_files import configuration_files
from unix_jax.checkpoints.load import load_config
from unix_jax.checkpoints.rad_dino_files import load_dinov2_config
from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.collate import LoadedSample, collate
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import Task
from unix_jax.data.samples import Cost, TrainingSample
from unix_jax.data.slots import slots_of
from unix_jax.dry_run import hlo
from unix_jax.dry_run.topology import Chip, chip_of, topology_devices
from unix_jax.errors import ConfigError
from unix_jax.models.attention.slots import BOUNDARIES
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.preprocessing.layout import Split, TextSplit, VaeSplit, VitSplit, stream_lengths
from unix_jax.sharding import ShardingRules, slice_count
from unix_jax.storage.hub import located
from unix_jax.training.config import TrainConfig
from unix_jax.training.feed import validation_data
from unix_jax.training.flops import peak_flops
from unix_jax.training.stages import make_stage
from unix_jax.training.start import check_run_rows, make_run_mesh, with_backbone

_GIB = 2.0**30
# FLOP/s of kernels as a part of the peak: an assumption, XLA's cost model does not know them.
KERNEL_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device while the step runs; `aliased` outputs reuse the memory of arguments."""

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one device and one step.

    memory: of the training step. validation: of the evaluation step, during which the complete
    state stays on the device; None if the run does not validate.
    work: of the training step; a text that says why not, if the program's text cannot be read.
    model_flops: FLOPs of the model for a full batch (see `flops`), divided by the number of
    devices.
    compiler_flops: XLA's own figure, which counts the body of a loop once.
    """

    devices: int
    device: Any
    mesh: dict[str, int]
    seconds: float
    memory: Memory
    work: hlo.Work | str
    model_flops: float
    compiler_flops: float
    validation: Memory | None = None
    slices: int = 1

    @property
    def peak(self) -> int:
        """Bytes of the larger step."""
        steps = (self.memory, self.validation)
        return max(memory.total for memory in steps if memory is not None)

    @property
    def chip(self) -> Chip | None:
        return chip_of(self.device)

    @property
    def fits(self) -> bool | None:
        """None if the size of the memory is unknown."""
        return None if self.chip is None else self.peak <= self.chip.hbm

    def bounds(self) -> dict[str, float]:
        """Minimum seconds of the step, by the limiting resource; none if the work is unknown."""
        if isinstance(self.work, str):
            return {}
        peak, chip = peak_flops(self.device), self.chip
        bounds = {} if peak is None else {"compute": self.work.flops / peak}
        if chip is not None:
            bounds["HBM"] = self.work.hbm_bytes / chip.hbm_bandwidth
            bounds["ICI"] = self.work.sent_bytes / chip.ici_bandwidth
            if self.slices > 1:
                bounds["DCN"] = self.work.slice_bytes / chip.dcn_bandwidth
        return bounds

    def estimate(self) -> dict[str, float]:
        """Seconds that the step is estimated to take, by where; none without XLA's estimate.

        `XLA`: the cycles of its cost model, one instruction after the other. `kernels`, which that
        model does not know: their FLOPs at `KERNEL_RATE` of the peak. `waiting`: collectives that
        nothing runs beside, at the full speed of the links. Those that run beside other
        instructions are taken to be free.
        """
        peak, chip = peak_flops(self.device), self.chip
        if isinstance(self.work, str) or not self.work.cycles or peak is None or chip is None:
            return {}
        return {
            "XLA": self.work.cycles / chip.clock,
            "kernels": self.work.kernel_flops / (KERNEL_RATE * peak),
            "waiting": self.work.waiting_bytes / chip.ici_bandwidth,
        }

    def lines(self) -> list[str]:
        """The report as lines of text."""
        m = self.memory
        capacity = "" if self.chip is None else f" of {self.chip.hbm / _GIB:.2f} GiB"
        verdict = {None: "", True: ": fits", False: ": DOES NOT FIT"}[self.fits]
        axes = ",".join(f"{name}={size}" for name, size in self.mesh.items())
        slices = "" if self.slices == 1 else f" in {self.slices} slices"
        lines = [
            f"compiled for {self.devices} x {self.device.device_kind}{slices}, mesh {axes}, "
            f"in {self.seconds:.0f} s; figures are of one device and one step",
            f"memory       {_gib(self.peak)}{capacity}{verdict}",
            f"training     {_gib(m.total)}",
            f"  arguments  {_gib(m.arguments)}",
            f"  temporary  {_gib(m.temporaries)}",
            f"  outputs    {_gib(m.outputs)}, of which {_gib(m.aliased)} in place of arguments",
            f"  program    {_gib(m.program)}",
            _validation_line(self.validation),
        ]
        if isinstance(self.work, str):
            return [
                *lines,
                f"FLOPs        {self.model_flops / 1e12:.3f} T of the model; "
                f"{self.compiler_flops / 1e12:.3f} T by XLA, each loop's body once",
                f"no traffic and no bounds: the program cannot be read ({self.work}); the memory "
                "above is the compiler's own figure",
            ]
        return lines + self._work_lines(self.work) + self._bound_lines()

    def _work_lines(self, work: hlo.Work) -> list[str]:
        lines = [
            f"FLOPs        {work.flops / 1e12:.3f} T compiled; {self.model_flops / 1e12:.3f} T of "
            f"the model; {self.compiler_flops / 1e12:.3f} T by XLA, each loop's body once",
            f"HBM traffic  {_gib(work.hbm_bytes)}",
            f"sent         {_gib(work.sent_bytes)}",
            *_collective_lines(work.collectives),
        ]
        if self.slices > 1:
            lines.append(f"to slices    {_gib(work.slice_bytes)}, through the hosts' network (DCN)")
            lines += _collective_lines(work.between_slices)
        return lines

    def _bound_lines(self) -> list[str]:
        bounds, peak = self.bounds(), peak_flops(self.device)
        if peak is None:
            return [f"no bounds: the performance of a {self.device.device_kind} is unknown"]
        each = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in bounds.items())
        longest = max(bounds.values())
        bound = f"below {self.model_flops / peak / longest:.1%}, the bound of that time"
        estimate = self.estimate()
        if not estimate:
            return [
                f"step time    at least {longest * 1e3:.0f} ms ({each})",
                f"MFU          {bound}",
                "no estimate: XLA states no cycles for this program",
            ]
        expected = sum(estimate.values())
        parts = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in estimate.items())
        return [
            f"step time    estimated {expected * 1e3:.0f} ms ({parts})",
            f"             at least {longest * 1e3:.0f} ms ({each})",
            f"MFU          estimated {self.model_flops / peak / expected:.1%}; {bound}",
            *self._not_estimated_lines(),
        ]

    def _not_estimated_lines(self) -> list[str]:
        assert isinstance(self.work, hlo.Work)
        lines = [
            f"by assumption: kernels ({self.work.kernel_flops / 1e12:.3f} T) at "
            f"{KERNEL_RATE:.0%} of the peak, collectives that nothing runs beside "
            f"({_gib(self.work.waiting_bytes)}) at the links' full speed, all others at no cost"
        ]
        if self.work.silent:
            named = ", ".join(f"{count} x {name}" for name, count in self.work.silent.items())
            lines.append(f"not included: kernels that state no cost ({named})")
        return lines


def _collective_lines(collectives: dict[str, tuple[int, float]]) -> list[str]:
    kinds = [kind for kind in hlo.COLLECTIVES if kind in collectives]
    kinds += [kind for kind in collectives if kind not in hlo.COLLECTIVES]
    return [
        f"  {kind:<19}{collectives[kind][0]:>7} x  {_gib(collectives[kind][1])}" for kind in kinds
    ]


def dry_run(config: TrainConfig, topology: str | None) -> int:
    """Prints the report; returns the exit code: 1 if the step does not fit into the memory.

    Args:
      topology: TPU slices such as `v5e:4x4` or `2xv5e:4x4`; None: the devices of this machine.

    Raises:
      ConfigError, CheckpointError: settings that contradict each other, or an unknown topology.
    """
    devices = None
    if topology is not None:
        # The program is for devices elsewhere: those of this machine are left alone.
        jax.config.update("jax_platforms", "cpu")
        devices = topology_devices(topology)
    model_config, encoder_config = _sizes(config)
    mesh = make_run_mesh(config.mesh, model_config, devices)
    check_run_rows(config, mesh, model_config)
    report = compile_step(config, model_config, mesh, encoder_config)
    print("\n".join(report.lines()))
    return 1 if report.fits is False else 0


def _sizes(config: TrainConfig) -> tuple[UniXConfig, Dinov2Config | None]:
    """Sizes of the model and of REPA's encoder; the published RAD-DINO's without its directory."""
    model_config = UniXConfig.preset(config.model.preset)
    if config.init is not None:
        model_config, _ = load_config(located(config.init, configuration_files))
    if config.stage == "generation":
        model_config = with_backbone(model_config, config, config.init or "the preset")
    if not config.uses_repa:
        return model_config, None
    assert config.repa.encoder is not None
    present = Path(config.repa.encoder).is_dir()
    return model_config, load_dinov2_config(config.repa.encoder) if present else Dinov2Config()


def compile_step(
    config: TrainConfig,
    model_config: UniXConfig,
    mesh: Mesh,
    encoder_config: Dinov2Config | None = None,
) -> Report:
    """Compiles the step of a run for the devices of a mesh.

    Raises:
      ConfigError: settings that contradict each other, or a program that the compiler finds too
        large for the device.
    """
    stage = make_stage(
        config,
        model_config,
        mesh,
        # The program holds the schedule; its length changes neither memory nor time.
        config.total_steps or 1,
        # Validation encodes images also where the run reads moments.
        has_autoencoder=config.stage in ("generation", "joint")
        and (config.data.moments is None or config.validate_every > 0),
        encoder_config=encoder_config,
    )
    row = full_row(config.data, model_config)
    batch = _abstract_batch(row, config.data.rows, mesh)
    begin = time.monotonic()
    last = stage.train_step(config.total_steps or 1)
    compiled = _compile("training", last, stage.target, batch, mesh)
    memory, validation = _memory(compiled), None
    if config.validate_every:
        validated = _abstract_batch(
            full_row(validation_data(config), model_config), config.data.rows, mesh
        )
        evaluation = _memory(_compile("validation", stage.evaluate, stage.target, validated, mesh))
        # It reads a part of the state only; the rest stays on the device meanwhile.
        held = memory.arguments + _device_bytes(validated) - _device_bytes(batch)
        validation = dataclasses.replace(evaluation, arguments=max(held, evaluation.arguments))
    seconds = time.monotonic() - begin
    cost = compiled.cost_analysis() or {}
    slices = slice_count(list(mesh.devices.flat))
    return Report(
        devices=mesh.size,
        device=mesh.devices.flat[0],
        mesh=dict(mesh.shape),
        seconds=seconds,
        memory=memory,
        work=_work(compiled, mesh.size, slices),
        model_flops=stage.batch_flops(row) * config.data.rows / mesh.size,
        compiler_flops=cost.get("flops", 0.0),
        validation=validation,
        slices=slices,
    )


def _work(compiled: Any, devices: int, slices: int) -> hlo.Work | str:
    """What is read from the program's text, or why it cannot be read.

    The text is XLA's own affair: its form changes between versions, and for large programs there
    may be none. The memory does not depend on it.
    """
    try:
        text = compiled.as_text()
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if not text:
        return "the compiler returns no text"
    try:
        return hlo.analyse(text, devices, slices)
    except hlo.HloError as error:
        return " ".join(str(error).split())[:200]


def _memory(compiled: Any) -> Memory:
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def _validation_line(memory: Memory | None) -> str:
    if memory is None:
        return "validation   none: validate_every is 0"
    return (
        f"validation   {_gib(memory.total)}, of which temporary {_gib(memory.temporaries)}; the "
        "state stays on the device"
    )


def _compile(name: str, step: Any, state: Any, batch: TrainingBatch, mesh: Mesh) -> Any:
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    # A training step is jitted, and donates its state; an evaluation is a method around one.
    jitted = step if name == "training" else jax.jit(step)
    lowered = jitted.lower(state, batch, key)
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # The compiler's two ways of saying it.
        used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", str(error)) or re.search(
            r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error)
        )
        if used is None:
            raise
        raise ConfigError(
            f"memory: expected at most {used.group(2)}, found {used.group(1)}: the {name} step "
            "does not fit into a device; raise accumulation, lower data.rows, or set "
            "model.remat to full"
        ) from error


def _abstract_batch(row: TrainingBatch, rows: int, mesh: Mesh) -> TrainingBatch:
    sharding = NamedSharding(mesh, ShardingRules().spec(["batch"]))
    return row.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding))


def _device_bytes(batch: TrainingBatch) -> int:
    """Of one device's part."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(batch)
    )


def full_row(data: DataConfig, config: UniXConfig) -> TrainingBatch:
    """A batch of one row that is as full as possible: samples of all tasks in turn, up to the limit
    of their images, with equal texts.

    Raises:
      ConfigError: a row is too short for a sample.
    """
    capacity = Cost(data.und_tokens, data.vit_images, data.vae_images)
    shapes = {task: _image_splits(task, data, config) for task in data.tasks}
    costs = {task: _cost([*before, *after], config) for task, (before, after) in shapes.items()}
    chosen: list[Task] = []
    room = capacity
    while fitting := [task for task in data.tasks if costs[task].fits(room)]:
        # The one that has had the fewest.
        task = min(fitting, key=chosen.count)
        chosen.append(task)
        room = room.minus(costs[task])
    if not chosen:
        taken = min(cost.und for cost in costs.values())
        raise ConfigError(
            f"data.und_tokens: expected at least {taken}, which the images of a sample take, "
            f"found {data.und_tokens}"
        )
    tokens, slots = room.und, slots_of(config, data)
    if slots is not None:
        # Boundary tokens have their positions in rows of fewer VAE images, too.
        tokens = min(tokens - BOUNDARIES * room.vae, slots.text_tokens)
    text = [TextSplit([0] * (tokens // len(chosen)))] if tokens >= len(chosen) else []
    row = []
    for task in chosen:
        before, after = shapes[task]
        splits = (*before, *text, *after)
        losses = tuple(_has_loss(split, task) for split in splits)
        images = [_blank(split, data, config) for split in (*before, *after)]
        # The arrays are at hand: the loaders are not called.
        sample = TrainingSample("", splits, losses, (lambda: np.empty(0),) * len(images))
        row.append(LoadedSample(sample, tuple(images)))
    return collate([row], config, data)


def _image_splits(
    task: Task, data: DataConfig, config: UniXConfig
) -> tuple[list[Split], list[Split]]:
    """The image splits of a sample before and after its text."""
    if task == "understanding":
        return [VitSplit()], []
    grid = data.latent_grid(config)
    condition: list[Split] = [VaeSplit(*grid, noised=False), VitSplit()]
    return condition if task == "edit" else [], [VaeSplit(*grid, noised=True)]


def _cost(splits: list[Split], config: UniXConfig) -> Cost:
    vit = sum(isinstance(split, VitSplit) for split in splits)
    return Cost(stream_lengths([splits], config)[0], vit, len(splits) - vit)


def _has_loss(split: Split, task: Task) -> bool:
    if task == "understanding":
        return isinstance(split, TextSplit)
    return isinstance(split, VaeSplit) and split.noised


def _blank(split: Split, data: DataConfig, config: UniXConfig) -> np.ndarray:
    """An image of zeros in the shape that the split's loader returns."""
    channels = 1 if data.grayscale else 3
    if isinstance(split, VitSplit):
        return np.zeros((config.vision.image_size, config.vision.image_size, channels), np.uint8)
    if data.moments is None:
        return np.zeros((data.vae_height, data.vae_width, channels), np.uint8)
    side = config.vae.downsample
    shape = (data.vae_height // side, data.vae_width // side, 2 * config.vae.embed_dim)
    return np.zeros(shape, np.float32)


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"

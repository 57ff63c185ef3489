"""The fraction of a training step in which the device is idle, on one and on two processes.

    python benchmarks/loop_idle.py

Everything is the real loop of `train.py`, its data and its files; only the step is another: it sums
over the batch, which waits for the batch of every process, holds the device for `--milliseconds`
without using the processor, and notes when it begins and ends. That is a custom call in C++, which
g++ compiles first: in Python it would wait for the interpreter, which the loop holds. A device
has nothing to do from the end of a step until every process has enqueued the next one; the time
between two steps is longer, by what the runtime and a busy machine take to begin what is enqueued.
Two processes of one device each find each other over the loopback. The first steps, which compile,
do not count.
"""

import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import machine, print_table
from jax.sharding import Mesh, PartitionSpec
from PIL import Image

from unix_jax.commands import train
from unix_jax.training.stages import Stage

_ROOT = Path(__file__).resolve().parents[1]
_SKIPPED = 10


@dataclasses.dataclass
class Arguments:
    """What is measured."""

    milliseconds: float = 50.0
    """Length of a step."""
    steps: int = 100
    """Steps of each run."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes."""
    worker: str | None = None
    """Of a process that this script starts: the directory of the data and its own rank and port."""


CONFIG = """
from unix_jax.training import LoggingConfig, ModelConfig, TrainConfig
from unix_jax.data import DataConfig

config = TrainConfig(
    stage="understanding",
    data=DataConfig(source={source!r}, rows=4, und_tokens=128, vit_images=1, threads=2),
    total_steps={steps},
    model=ModelConfig(preset="nano", tokenizer={tokenizer!r}, remat="none"),
    logging=LoggingConfig(tensorboard=False),
    checkpoint_every=1000000,
)
"""


SOURCE = r"""
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
static std::vector<double> times;
static double now() {
  auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}
static ffi::Error Hold(int64_t nanoseconds, ffi::Buffer<ffi::S32> step,
                       ffi::ResultBuffer<ffi::S32> out) {
  times.push_back(now());
  std::this_thread::sleep_for(std::chrono::nanoseconds(nanoseconds));
  out->typed_data()[0] = step.typed_data()[0];
  times.push_back(now());
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(hold, Hold, ffi::Ffi::Bind()
    .Attr<int64_t>("nanoseconds").Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::Buffer<ffi::S32>>());
extern "C" int64_t count() { return times.size(); }
extern "C" double at(int64_t i) { return times[i]; }
"""


def compile_hold(directory: Path) -> None:
    """Compiles the custom call of the step."""
    (directory / "hold.cc").write_text(SOURCE)
    command = ["g++", "-std=c++17", "-O1", "-w", "-fPIC", "-shared", f"-I{jax.ffi.include_dir()}"]
    paths = [str(directory / "hold.cc"), "-o", str(directory / "hold.so")]
    subprocess.run([*command, *paths], check=True)


class Held:
    """A stage whose step holds the device instead of training."""

    def __init__(self, stage: Stage, mesh: Mesh, seconds: float) -> None:
        self._stage, self.enqueued = stage, []

        call = jax.ffi.ffi_call("hold", jax.ShapeDtypeStruct((), jnp.int32), has_side_effect=True)

        def on_device(step: Any) -> Any:
            return call(step, nanoseconds=np.int64(seconds * 1e9))

        on_each = jax.shard_map(
            on_device, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
            check_vma=False,
        )  # fmt: skip

        def train_step(state: Any, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
            tokens = batch.ce_weights.sum()
            # XLA runs a program of few operations within the call that enqueues it.
            square = jnp.full((64, 64), tokens)
            # A value that the sum decides, so that the step begins after it.
            done = on_each(state.step + jnp.where((square @ square).sum() < 0, 1, 0))
            one = jnp.float32(1)
            metrics = dict.fromkeys(("loss", "ce", "grad_norm", "learning_rate"), one)
            metrics |= {"mse": 0 * one, "repa": 0 * one}
            metrics |= {"ce_tokens": tokens, "mse_tokens": 0 * one}
            return state.replace(step=done + 1), metrics

        self._step = jax.jit(train_step, donate_argnums=0)

    def train_step(self, number: int) -> Any:
        return self._enqueue

    def _enqueue(self, state: Any, batch: Any, key: Any) -> Any:
        self.enqueued.append(time.perf_counter())
        return self._step(state, batch, key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


def run_worker(arguments: Arguments) -> None:
    """One process of a run; prints its times."""
    directory, rank, count, port = str(arguments.worker).rsplit(":", 3)
    library = ctypes.CDLL(f"{directory}/hold.so")
    library.at.restype = ctypes.c_double
    jax.ffi.register_ffi_target("hold", jax.ffi.pycapsule(library.hold), platform="cpu")
    held: list[Held] = []
    original = train.make_stage

    def make_stage(config: Any, model_config: Any, mesh: Mesh, *rest: Any, **more: Any) -> Any:
        stage = original(config, model_config, mesh, *rest, **more)
        held.append(Held(stage, mesh, arguments.milliseconds / 1e3))
        return held[0]

    train.make_stage = make_stage  # type: ignore[assignment]
    options = ["--out", f"{directory}/run{count}", "--mesh", f"data={count}"]
    if count != "1":
        options += ["--distributed.coordinator", f"localhost:{port}"]
        options += ["--distributed.num-processes", count, "--distributed.process-id", rank]
    code = train.main([f"{directory}/config.py", *options])
    if code:
        raise SystemExit(code)
    times = [library.at(ctypes.c_int64(i)) for i in range(library.count())]
    print("TIMES", json.dumps([times[::2], times[1::2], held[0].enqueued]))


def prepare(directory: Path, steps: int) -> None:
    """A manifest of small images with short reports, and a configuration."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(64):
        pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{number}.png")
        rows.append({"image": f"{number}.png", "impression": "No acute disease.", "split": "train"})
    (directory / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = str(_ROOT / "examples" / "nano_tokenizer")
    config = CONFIG.format(source=f"manifest:{directory}", steps=steps, tokenizer=tokenizer)
    (directory / "config.py").write_text(config)


def measure(arguments: Arguments, directory: Path, count: int) -> list[list[str]]:
    """A row of the table for each process of a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=1"
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--milliseconds",
                str(arguments.milliseconds),
                "--worker",
                f"{directory}:{rank}:{count}:{port}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        )
        for rank in range(count)
    ]
    found = []
    for rank, worker in enumerate(workers):
        output, errors = worker.communicate()
        if worker.returncode:
            raise SystemExit(f"process {rank}: {errors[-2000:]}")
        line = next(line for line in output.splitlines() if line.startswith("TIMES"))
        found.append(json.loads(line.removeprefix("TIMES "))[:3])
    # [processes, (begin, end, enqueued), steps], all of one clock.
    times = np.array(found)[:, :, _SKIPPED:]
    all_enqueued = times[:, 2].max(axis=0)
    rows = []
    for rank, (begin, end, _) in enumerate(times):
        period, between = np.diff(begin), begin[1:] - end[:-1]
        nothing = np.maximum(all_enqueued[1:] - end[:-1], 0)
        rows.append(
            [
                f"{count}", f"{rank}", f"{1e3 * np.median(period):.1f}",
                f"{1e3 * np.median(between):.2f}", f"{1e3 * nothing.mean():.3f}",
                f"{1e3 * nothing.max():.2f}", f"{nothing.sum() / period.sum():.2%}",
            ]
        )  # fmt: skip
    return rows


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.worker is not None:
        run_worker(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), arguments.steps)
        compile_hold(Path(folder))
        rows = [
            row for count in arguments.processes for row in measure(arguments, Path(folder), count)
        ]
    print(machine())
    header = [
        "processes", "process", "ms per step", "ms between steps, median",
        "ms with nothing to do, mean", "largest", "share",
    ]  # fmt: skip
    print_table("The loop of train.py", header, rows)


if __name__ == "__main__":
    main()

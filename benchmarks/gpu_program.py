"""What XLA makes of one decoded token for an NVIDIA H200, without one: its kernels.

    pip install '.[gpu]'
    JAX_PLATFORMS=cpu python benchmarks/gpu_program.py

Compiles the decoding loop of the published size, with unrolled layers and bfloat16 as the pipeline
has them on one GPU, without a device. Nothing runs, so there are no times: the table counts the
kernels of a token by what they compute, and says how many of them XLA records into CUDA graphs
(command buffers). Without a device XLA chooses the tiles of products by its cost model instead of
timing them, so kernels may be split differently on a real card.
"""

import collections
import dataclasses
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

# XLA reads its flags once, before JAX is imported. Timing tiles would need a device.
_DUMP = tempfile.TemporaryDirectory()
_FLAGS = f"--xla_gpu_autotune_level=0 --xla_dump_to={_DUMP.name}"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tyro  # noqa: E402
from common import decode_state, print_table  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from unix_jax.config import UniXConfig  # noqa: E402
from unix_jax.inference import decoding  # noqa: E402
from unix_jax.models.attention.cache import KVCache  # noqa: E402
from unix_jax.models.unix import UniX, param_shapes, unroll_params  # noqa: E402

# XLA's description of the card (GpuTargetConfigProto), as far as compilation needs it.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H200" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 threads_per_warp: 32
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}
"""

# What a kernel computes, by the name that JAX gave its last operation; the first that fits.
ROLES = (
    ("norms of the stream", r"input_norm|post_attention_norm|/norm/und"),
    ("q, k and v", r"[qkv]_proj"),
    ("norms of heads, rotary", r"[qk]_norm|und\.qkv|_attend/mul"),
    ("writing the cache", r"dynamic_update_slice"),
    ("attention", r"_attend"),
    ("output projection", r"o_proj"),
    ("gate and up", r"gate_proj|up_proj|checkpoint/mul"),
    ("down", r"down_proj|und\.finish|^$"),
    ("head", r"lm_head"),
)


@dataclasses.dataclass
class Arguments:
    """Shapes."""

    batches: tuple[int, ...] = (1, 8, 64)
    layers: int = 24
    context: int = 704
    """Slots of a context."""
    ring: int = 256
    """Slots for new tokens."""


def compiled(a: Arguments, batch: int, mesh: Mesh) -> str:
    """The text of the decoding loop's program."""
    published = UniXConfig.preset("published")
    decoder = dataclasses.replace(published.decoder, num_layers=a.layers)
    config = dataclasses.replace(published, decoder=decoder)

    def weights() -> dict[str, Any]:
        shapes = param_shapes(config)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), shapes)
        return unroll_params(zeros, a.layers)

    def state() -> decoding.DecodeState:
        cache = KVCache.create(decoder, batch, a.context + a.ring, jnp.bfloat16, merged=True)
        return decode_state(cache, a.context, a.ring)

    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (*jax.eval_shape(lambda: (weights(), state())), np.int32(0), np.int32(0)),
    )
    model = UniX(config, jnp.bfloat16, scan_layers=False)
    with jax.set_mesh(mesh):
        lowered = decoding.decode_until.lower(model, *arguments, choice="greedy")
        return lowered.compile().as_text() or ""


def kernels(program: str) -> collections.Counter[str]:
    """Kernels of the loop's body by what they compute."""
    body = re.search(r" while\(.*body=%?([\w.\-]+)", program)
    assert body is not None, "the program has no loop"
    start = program.index(f"\n%{body[1]} (")
    counts: collections.Counter[str] = collections.Counter()
    for line in program[start : program.index("\n}", start)].splitlines():
        if not re.search(r" (fusion|custom-call|copy)\(", line):
            continue
        named = re.search(r'op_name="([^"]*)"', line)
        name = named[1] if named else ""
        counts[next((role for role, form in ROLES if re.search(form, name)), "the loop")] += 1
    return counts


def graphs(directory: Path) -> str:
    """'kernels in CUDA graphs of kernels' from the list of what XLA starts, or '?'."""
    lists = sorted(directory.glob("*decode_until*thunk_sequence_after_thunk_passes.txt"))
    if not lists:
        return "?"
    lines = lists[-1].read_text(encoding="utf-8").splitlines()
    depth, inside, total = None, 0, 0
    for line in lines:
        if not re.match(r" *\d+: k", line):
            continue
        indent = len(line) - len(line.lstrip())
        if depth is not None and indent <= depth:
            depth = None
        if "kCommandBuffer" in line:
            depth = indent
        elif re.search(r": k\w*Kernel", line):
            total += 1
            inside += depth is not None
    return f"{inside} of {total}"


def main(a: Arguments) -> None:
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1"
        )
    except RuntimeError as error:
        sys.exit(f"error: expected JAX's plugin for CUDA (pip install '.[gpu]'): {error}")
    mesh = Mesh(np.array(topology.devices), ("x",), axis_types=(AxisType.Auto,))
    found, recorded = [], []
    for batch in a.batches:
        found.append(kernels(compiled(a, batch, mesh)))
        recorded.append(graphs(Path(_DUMP.name)))
    roles = [*(role for role, _ in ROLES), "the loop"]
    device: Any = topology.devices[0]
    print(f"jax {jax.__version__}, for {device.device_kind}")
    print_table(
        f"Kernels of a token: {a.layers} layers, {a.context + a.ring} slots",
        ["", *(f"batch {batch}" for batch in a.batches)],
        [
            *([role, *(str(counts[role]) for counts in found)] for role in roles),
            ["all", *(str(sum(counts.values())) for counts in found)],
            ["started by the program, in CUDA graphs", *recorded],
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

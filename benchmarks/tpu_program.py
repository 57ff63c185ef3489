"""What XLA expects a decoded token and a step of image generation to take on a TPU, without one.

    pip install '.[tpu]'
    JAX_PLATFORMS=cpu python benchmarks/tpu_program.py

Compiles programs of the published size in bfloat16 for one chip: with unrolled layers, as the
pipeline has them; the same with int8 weights; and with scanned layers, as on a mesh that splits the
weights. Nothing runs: the times are those of XLA's cost model, to which kernels are added, as in
the dry run (docs/dry_run.md). That model takes copies between the memories to be free, so the table
also has the time that it takes to read the weights and the cache once. No program is faster than
the larger of the two.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import decode_state, print_table
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unix_jax.config import UniXConfig
from unix_jax.dry_run import hlo
from unix_jax.dry_run.dry_run import KERNEL_RATE
from unix_jax.dry_run.topology import Chip, chip_of, topology_devices
from unix_jax.errors import UniXError
from unix_jax.inference import decoding
from unix_jax.inference.context import image_context
from unix_jax.inference.sampling import predict_velocity
from unix_jax.models.attention.cache import KVCache
from unix_jax.models.quantization import Quantization, quantize_kernels
from unix_jax.models.unix import UniX, param_shapes, unroll_params


@dataclasses.dataclass
class Arguments:
    """Shapes."""

    topology: str = "v5e:2x2"
    """A slice, of which one chip is used."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Reports that are decoded at once."""
    images: tuple[int, ...] = (1, 4)
    """Images that are generated at once."""
    layers: int = 24
    context: int = 704
    """Slots of a report's context."""
    ring: int = 256
    """Slots for new tokens."""
    side: int = 32
    """Side of an image in latent tokens; 32 are 512 px."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of the parameters and of further arguments, of which only the shapes are given."""

    run: Callable[..., Any]
    arguments: tuple[Any, ...]


def model_of(a: Arguments, scanned: bool) -> UniX:
    published = UniXConfig.preset("published")
    decoder = dataclasses.replace(published.decoder, num_layers=a.layers)
    config = dataclasses.replace(published, decoder=decoder)
    return UniX(config, jnp.bfloat16, scan_layers=scanned)


def weights(model: UniX, quantization: Quantization = "none") -> Any:
    shapes = param_shapes(model.config)

    def zeros() -> Any:
        stacked = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), shapes)
        if model.scan_layers:
            return stacked
        unrolled = unroll_params(stacked, model.config.decoder.num_layers)
        return unrolled if quantization == "none" else quantize_kernels(unrolled)

    return jax.eval_shape(zeros)


def decoded_token(a: Arguments, model: UniX, batch: int) -> Program:
    def state() -> decoding.DecodeState:
        cache = KVCache.create(
            model.config.decoder, batch, a.context + a.ring, jnp.bfloat16,
            merged=not model.scan_layers,
        )  # fmt: skip
        return decode_state(cache, a.context, a.ring)

    def run(params: Any, state: Any, steps: Any, ended: Any) -> Any:
        # The number of steps is not known, so the analysis counts the loop's body once.
        return decoding.decode_until(model, params, state, steps, ended, choice="greedy")

    return Program(run, (jax.eval_shape(state), np.int32(0), np.int32(0)))


def guided_step(a: Arguments, model: UniX, images: int) -> Program:
    """A step in the guidance interval: each image with its text and without."""
    tokens = (a.side, a.side)

    def context(params: Any) -> Any:
        return image_context(model, params, [list(range(40))] * images, tokens, guided=True)

    latents = jnp.zeros((2 * images, a.side**2, model.config.latent_channels))

    def run(params: Any, context: Any, latents: Any, t: Any) -> Any:
        return predict_velocity(model, params, context, latents, t)

    return Program(run, (jax.eval_shape(context, weights(model)), latents, jnp.float32(0)))


def estimate(
    model: UniX, program: Program, mesh: Mesh, chip: Chip, quantization: Quantization = "none"
) -> tuple[str, str]:
    """(estimated milliseconds, GiB of temporary memory), or why there is none."""
    sharding = NamedSharding(mesh, PartitionSpec())
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (weights(model, quantization), *program.arguments),
    )
    try:
        with jax.set_mesh(mesh):
            compiled = jax.jit(program.run, donate_argnums=1).lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "does not fit", ""
    work = hlo.analyse(compiled.as_text() or "", devices=1)
    seconds = work.cycles / chip.clock + work.kernel_flops / (KERNEL_RATE * chip.flops)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**30
    return f"{1e3 * seconds:.1f}", f"{memory:.2f}"


def least(
    model: UniX, program: Program, used: str, chip: Chip, quantization: Quantization = "none"
) -> str:
    """Milliseconds to read the weights of a stream's products and the cache once."""
    leaves = jax.tree_util.tree_leaves_with_path(weights(model, quantization))
    read = [
        leaf
        for path, leaf in leaves
        if used in (name := jax.tree_util.keystr(path)) or (used == "und" and "lm_head" in name)
    ]
    caches = [x for x in jax.tree.leaves(program.arguments[0]) if x.ndim in (3, 5)]
    size = sum(x.size * x.dtype.itemsize for x in [*read, *caches])
    return f"{1e3 * size / chip.hbm_bandwidth:.1f}"


def main(a: Arguments) -> None:
    try:
        device = topology_devices(a.topology)[0]
    except UniXError as error:
        sys.exit(f"error: {error}")
    chip = chip_of(device)
    assert chip is not None
    mesh = Mesh(np.array([device]), ("x",), axis_types=(AxisType.Auto,))
    rows = []
    cases: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("token of {} reports", decoded_token, "und", a.batches),
        ("guided step of {} images", guided_step, "gen", a.images),
    ]
    for name, make, used, counts in cases:
        for count in counts:
            found = []
            for scanned in (True, False):
                model = model_of(a, scanned)
                program = make(a, model, count)
                found.append(estimate(model, program, mesh, chip))
            (before, memory), (now, own) = found
            row = [name.format(count), before, now, least(model, program, used, chip)]
            small = ["", ""]
            if make is decoded_token:
                time, _ = estimate(model, program, mesh, chip, "int8")
                small = [time, least(model, program, used, chip, "int8")]
            rows.append([*row, *small, memory, own])
            print(f"compiled: {name.format(count)}", file=sys.stderr)
    print(f"jax {jax.__version__}, for one {device.device_kind}")
    print_table(
        f"Estimated ms: published size, bfloat16, {a.layers} layers, {a.context + a.ring} slots",
        [
            "",
            "scanned",
            "unrolled",
            "reading takes",
            "int8",
            "reading takes",
            "scanned, GiB",
            "unrolled, GiB",
        ],
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

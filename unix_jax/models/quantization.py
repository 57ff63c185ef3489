"""int8 weights for decoding: kernels of 8 bits with a float32 scale for each output.

A decoded token reads every weight of the und stream and computes little with it, so accelerators
spend its time on reading. XLA reads the int8 numbers and makes floats of them inside the product
(benchmarks/tpu_program.py). Activations, the cache and the sums keep their dtypes, and so does the
gen stream, whose steps are bound by their products.

Qwix quantises scanned layers (docs/nnx.md). In unrolled ones, whose kernels are [out, in], Qwix
0.1.8 finds no weights.

Letters: D inputs, E outputs.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

Quantization = Literal["none", "int8"]
_LARGEST = 127


def quantize_kernels(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `unroll_params` with int8 kernels in the und stream and in the head.

    A kernel [E, D] gets a neighbour `kernel_scale` [E], by which `TransposedDense` multiplies. The
    layers are changed in place, so that memory never holds the model twice.
    """

    def change(tree: dict[str, Any]) -> None:
        for name in list(tree):
            if isinstance(tree[name], dict):
                change(tree[name])
            elif name == "kernel":
                tree["kernel"], tree["kernel_scale"] = quantized(tree.pop("kernel"))

    head = dict(params["lm_head"])
    for name, layer in params["decoder"].items():
        if name.startswith("layers_"):
            change(layer["und"])
    change(head)
    return params | {"lm_head": head}


@jax.jit
def quantized(
    kernel: Float[Array, "E D"],
) -> tuple[Int8[Array, "E D"], Float[Array, " E"]]:
    """(int8 numbers, scales) whose products are nearest to the kernel; a scale is max |row| / 127.

    The scale of a row with a number that is not finite is not finite either.
    """
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=1) / _LARGEST
    steps = jnp.where(scale == 0, 1.0, scale)
    return jnp.round(wide / steps[:, None]).astype(jnp.int8), scale

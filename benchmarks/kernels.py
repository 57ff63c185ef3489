"""Choices for decoding on a CPU: order and dtype of matrices, and copies of the cache.

    python benchmarks/kernels.py

A few rows times many matrices, too many for the processor's caches, as in decoding: stored in x out
and out x in, in float32, bfloat16 and int8 (with a scale a matrix, made float32 in the program).
Then a loop that writes one place of a cache and reads all of it, in either order, with the bytes
that the compiled program holds besides its arguments: a copied cache shows in both.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import interleaved, machine, print_table, ratio


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    width: int = 1024
    """Rows and columns of a matrix."""
    matrices: int = 32
    rows: tuple[int, ...] = (1, 8)
    cache: tuple[int, int, int] = (8, 2048, 64)
    """Heads, places, head dim of a layer's cache."""
    layers: int = 8
    repeats: int = 7


def plain(x: Any, kernel: Any) -> Any:
    """Stored in x out."""
    return x @ kernel


def transposed(x: Any, kernel: Any) -> Any:
    """Stored out x in, and on the left: what `TransposedDense` does for a few rows."""
    return jax.lax.dot_general(kernel, x, (((1,), (1,)), ((), ()))).T


def chain(product: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """x through all matrices, one after the other."""

    @jax.jit
    def run(x: Any, kernels: list[Any]) -> Any:
        for kernel in kernels:
            if isinstance(kernel, tuple):
                values, scale = kernel
                y = product(x, values.astype(jnp.float32))
                x = y * scale
            else:
                x = product(x.astype(kernel.dtype), kernel).astype(jnp.float32)
        return x

    return run


def matrices(a: Arguments) -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    shape = (a.width, a.width)
    full = [
        jnp.asarray(rng.standard_normal(shape, np.float32) * a.width**-0.5)
        for _ in range(a.matrices)
    ]
    scale = [jnp.abs(kernel).max() / 127 for kernel in full]
    return {
        "float32": full,
        "bfloat16": [kernel.astype(jnp.bfloat16) for kernel in full],
        "int8": [
            (jnp.round(kernel / s).astype(jnp.int8), s)
            for kernel, s in zip(full, scale, strict=True)
        ],
    }


def blocked(run: Callable[[Any, Any], Any], x: Any, kernels: Any) -> None:
    run(x, kernels).block_until_ready()


def products(a: Arguments) -> list[list[str]]:
    kernels, found = matrices(a), []
    orders = {"in x out": chain(plain), "out x in": chain(transposed)}
    for rows in a.rows:
        x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, a.width), np.float32))
        timings = interleaved(
            {
                f"{name} {order}": functools.partial(blocked, run, x, kernels[name])
                for name in kernels
                for order, run in orders.items()
            },
            a.repeats,
        )
        base = timings["float32 out x in"]
        found += [
            [str(rows), name, f"{1e3 * timing.median:.2f}", ratio(timing, base)]
            for name, timing in timings.items()
        ]
    return found


def caches(a: Arguments) -> list[list[str]]:
    heads, places, dim = a.cache
    cache = tuple(jnp.ones((heads, places, dim)) for _ in range(a.layers))

    def loop(first: str) -> Any:
        def step(i: Any, state: Any) -> Any:
            x, layers = state
            after = []
            for layer in layers:
                new = jnp.broadcast_to(x, (heads, 1, dim))
                if first == "write":
                    layer = jax.lax.dynamic_update_slice(layer, new, (0, i, 0))
                    read = layer
                    weights = jax.nn.softmax(jnp.einsum("hd,hsd->hs", new[:, 0], read))
                    x = x + jnp.einsum("hs,hsd->hd", weights, read).mean(0)
                else:
                    # The old places, and the new one beside them.
                    logits = jnp.einsum("hd,hsd->hs", new[:, 0], layer)
                    own = jnp.einsum("hd,hd->h", new[:, 0], new[:, 0])[:, None]
                    weights = jax.nn.softmax(jnp.concatenate([logits, own], axis=1))
                    x = x + jnp.einsum("hs,hsd->hd", weights[:, :-1], layer).mean(0)
                    layer = jax.lax.dynamic_update_slice(layer, new, (0, i, 0))
                after.append(layer)
            return x / jnp.maximum(jnp.abs(x).max(), 1.0), tuple(after)

        def run(layers: Any) -> Any:
            return jax.lax.fori_loop(0, 64, step, (jnp.ones((dim,)), layers))

        return jax.jit(run).lower(cache).compile()

    compiled = {name: loop(name) for name in ("read", "write")}
    timings = interleaved(
        {
            f"{name} first": lambda run=run: jax.block_until_ready(run(cache))
            for name, run in compiled.items()
        },
        a.repeats,
    )
    size = sum(layer.nbytes for layer in cache)
    return [
        [
            f"{name} first",
            f"{1e3 * timings[f'{name} first'].median / 64:.2f}",
            f"{run.memory_analysis().temp_size_in_bytes / size:.2f}",
            ratio(timings[f"{name} first"], timings["write first"]),
        ]
        for name, run in compiled.items()
    ]


def main(a: Arguments) -> None:
    print(machine())
    print_table(
        f"{a.matrices} matrices of {a.width} x {a.width}, ms for all",
        ["rows", "matrix", "ms", "time / float32 out x in (spread)"],
        products(a),
    )
    print_table(
        f"{a.layers} layers' caches of {a.cache} float32, ms a token",
        ["the cache is", "ms", "temporaries / caches", "time / write first (spread)"],
        caches(a),
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

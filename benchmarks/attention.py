"""Memory and time of the attention implementations.

    python benchmarks/attention.py

Memory is the compiler's own figure for temporaries (`memory_analysis`), forward and backward, of
one layer's attention over N tokens under the mask rule; nothing of that size is run. Time is
measured at the shorter lengths, side by side.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from common import interleaved, machine, print_table, ratio

from unix_jax.models.attention import Implementation, attention
from unix_jax.models.key_blocks import KeyBlock
from unix_jax.models.mask import CAUSAL, TokenMetadata

NAMES: tuple[Implementation, ...] = ("xla", "blocked", "chunked")


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    heads: int = 16
    head_dim: int = 128
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """For memory."""
    timed: tuple[int, ...] = (1024, 2048)
    """For time."""
    repeats: int = 5


def attend(
    query: Any, key: Any, value: Any, metadata: TokenMetadata, implementation: Implementation
) -> Any:
    return attention(
        query, [KeyBlock(key, value, metadata=metadata)], metadata, implementation=implementation
    )


def gradient(*arguments: Any) -> Any:
    return jax.grad(lambda *x: attend(*x).sum(), argnums=(0, 1, 2))(*arguments)


def shapes(a: Arguments, length: int) -> tuple[Any, ...]:
    x = jax.ShapeDtypeStruct((1, length, a.heads, a.head_dim), jnp.float32)
    n = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return x, x, x, TokenMetadata(n, n, n, n, n)


def temporaries(function: Any, a: Arguments, length: int, implementation: str) -> float:
    """MB of temporaries that the compiled function holds."""
    compiled = (
        jax.jit(function, static_argnums=4).lower(*shapes(a, length), implementation).compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def arrays(a: Arguments, length: int) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(x, (1, length, a.heads, a.head_dim)) for x in keys)
    steps = jnp.arange(length)[None]
    ones, zeros = jnp.ones_like(steps), jnp.zeros_like(steps)
    return q, k, v, TokenMetadata(steps, ones, zeros, steps, zeros + CAUSAL)


def main(a: Arguments) -> None:
    print(machine())
    print_table(
        f"Temporaries in MB, {a.heads} heads of {a.head_dim}, float32 "
        "(an N x N float32 array of one head: N * N * 4 bytes)",
        ["N", "N x N, one head", *NAMES, *(f"{name}, gradient" for name in NAMES)],
        [
            [str(n), f"{n * n * 4 / 1e6:.0f}"]
            + [
                f"{temporaries(function, a, n, implementation):.0f}"
                for function in (attend, gradient)
                for implementation in NAMES
            ]
            for n in a.lengths
        ],
    )
    rows = []
    run = jax.jit(attend, static_argnums=4)
    for length in a.timed:
        x = arrays(a, length)
        timings = interleaved(
            {
                name: lambda name=name, x=x: run(*x, name).block_until_ready()  # type: ignore[misc]
                for name in NAMES
            },
            a.repeats,
        )
        rows.append(
            [
                str(length),
                *(f"{1e3 * timings[name].median:.0f}" for name in NAMES),
                *(ratio(timings["xla"], timings[name]) for name in NAMES[1:]),
            ]
        )
    print_table(
        "Time in ms, forward",
        ["N", *NAMES, *(f"xla / {name} (spread)" for name in NAMES[1:])],
        rows,
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

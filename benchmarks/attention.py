"""Memory and time of the attention implementations.

    python benchmarks/attention.py
    python benchmarks/attention.py --dtype bfloat16 --names xla chunked cudnn    # on a GPU

Memory is the compiler's own figure for temporaries (`memory_analysis`), forward and backward, of
one layer's attention over N tokens under the mask rule; nothing of that size is run. Time is
measured at the shorter lengths, side by side.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from common import interleaved, machine, print_table, ratio

from unix_jax.models.attention import Implementation, attention
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    heads: int = 16
    head_dim: int = 128
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """For memory."""
    timed: tuple[int, ...] = (1024, 2048)
    """For time."""
    names: tuple[Implementation, ...] = ("xla", "blocked", "chunked")
    dtype: Literal["float32", "bfloat16"] = "float32"
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
    x = jax.ShapeDtypeStruct((1, length, a.heads, a.head_dim), jnp.dtype(a.dtype))
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
    q, k, v = (jax.random.normal(x, (1, length, a.heads, a.head_dim), a.dtype) for x in keys)
    steps = jnp.arange(length)[None]
    ones, zeros = jnp.ones_like(steps), jnp.zeros_like(steps)
    return q, k, v, TokenMetadata(steps, ones, zeros, steps, zeros + CAUSAL)


def main(a: Arguments) -> None:
    print(machine())
    names = a.names
    print_table(
        f"Temporaries in MB, {a.heads} heads of {a.head_dim}, {a.dtype} "
        "(an N x N float32 array of one head: N * N * 4 bytes)",
        ["N", "N x N, one head", *names, *(f"{name}, gradient" for name in names)],
        [
            [str(n), f"{n * n * 4 / 1e6:.0f}"]
            + [
                f"{temporaries(function, a, n, implementation):.0f}"
                for function in (attend, gradient)
                for implementation in names
            ]
            for n in a.lengths
        ],
    )
    for title, function in (("forward", attend), ("forward and backward", gradient)):
        print_table(
            f"Time in ms, {title}",
            ["N", *names, *(f"{names[0]} / {name} (spread)" for name in names[1:])],
            [timed(a, function, length) for length in a.timed],
        )


def timed(a: Arguments, function: Any, length: int) -> list[str]:
    run, x = jax.jit(function, static_argnums=4), arrays(a, length)
    timings = interleaved(
        {name: lambda name=name: jax.block_until_ready(run(*x, name)) for name in a.names},  # type: ignore[misc]
        a.repeats,
    )
    return [
        str(length),
        *(f"{1e3 * timings[name].median:.3g}" for name in a.names),
        *(ratio(timings[a.names[0]], timings[name]) for name in a.names[1:]),
    ]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

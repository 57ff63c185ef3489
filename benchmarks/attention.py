"""Memory and time of the attention implementations.

    python benchmarks/attention.py
    python benchmarks/attention.py --dtype bfloat16 --names xla chunked cudnn    # on a GPU
    python benchmarks/attention.py --parts slots --cpu-seconds                   # on a busy machine

Memory is the compiler's own figure for temporaries (`memory_analysis`), forward and backward, of
one layer's attention over N tokens under the mask rule; nothing of that size is run. Time is
measured at the shorter lengths, side by side. Slots: the packed rows of the published stages in the
order of their samples and in slots, forward and backward, with what `auto` takes on this device;
both sides must give the same numbers first.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import interleaved, machine, print_table, ratio

from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.slots import slot_order, slots_of
from unix_jax.models.attention import Implementation, attention
from unix_jax.models.attention.key_blocks import KeyBlock
from unix_jax.models.attention.mask import CAUSAL, TokenMetadata
from unix_jax.models.attention.slots import Projected, SlotMetadata, attend_in_slots
from unix_jax.preprocessing.layout import Sample, TextSplit, VaeSplit, VitSplit, lay_out

Part = Literal["memory", "time", "slots"]


@dataclasses.dataclass
class Arguments:
    """Shapes and effort."""

    parts: tuple[Part, ...] = ("memory", "time", "slots")
    heads: int = 16
    head_dim: int = 128
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """For memory."""
    timed: tuple[int, ...] = (1024, 2048)
    """For time."""
    names: tuple[Implementation, ...] = ("xla", "blocked", "chunked")
    dtype: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 5
    cpu_seconds: bool = False
    """Measure CPU seconds instead of the time that passes."""

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.cpu_seconds else time.perf_counter


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
    if "memory" in a.parts:
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
    if "time" in a.parts:
        for title, function in (("forward", attend), ("forward and backward", gradient)):
            print_table(
                f"Time in ms, {title}",
                ["N", *names, *(f"{names[0]} / {name} (spread)" for name in names[1:])],
                [timed(a, function, length) for length in a.timed],
            )
    if "slots" in a.parts:
        print_table(
            f"{'CPU ' if a.cpu_seconds else ''}ms, forward and backward, one row, {a.dtype}",
            ["row", "und + latents", "in order", "in slots", "order / slots (spread)"],
            [slots_row(a, name, *stage) for name, stage in STAGES.items()],
        )


def timed(a: Arguments, function: Any, length: int) -> list[str]:
    run, x = jax.jit(function, static_argnums=4), arrays(a, length)
    timings = interleaved(
        {name: lambda name=name: jax.block_until_ready(run(*x, name)) for name in a.names},  # type: ignore[misc]
        a.repeats,
        a.clock,
    )
    return [
        str(length),
        *(f"{1e3 * timings[name].median:.3g}" for name in a.names),
        *(ratio(timings[a.names[0]], timings[name]) for name in a.names[1:]),
    ]


# ----------------------------------------------------------------------------- slots


def report(tokens: int) -> Sample:
    """An X-ray, with this number of tokens of text."""
    return [VitSplit(), TextSplit([0] * 20), TextSplit([0] * (tokens - 20))]


def image(side: int) -> Sample:
    """A caption and an image to generate, `side` latent tokens wide and high."""
    return [TextSplit([0] * 30), VaeSplit(side, side, noised=True)]


# Of the configurations in configs/: (data, the samples of a row, whether und is frozen). The mean
# text of the reports of Open-I has 91 tokens with its prompt.
STAGES: dict[str, tuple[DataConfig, list[Sample], bool]] = {
    "stage 1": (
        DataConfig(und_tokens=1376, text_tokens=384, vit_images=2),
        [report(91), report(91)],
        False,
    ),
    "stage 2": (
        DataConfig(
            task="generation", und_tokens=160, text_tokens=160, vit_images=0, vae_images=2
        ),
        [image(16), image(16)],
        True,
    ),
    "stage 3": (
        DataConfig(
            task="generation", und_tokens=160, text_tokens=160, vit_images=0, vae_images=1
        ),
        [image(32)],
        True,
    ),
}  # fmt: skip


def in_order(
    und: Projected, gen: Projected | None, und_metadata: Any, gen_metadata: Any, *, frozen: bool
) -> list[Any]:
    """What a decoder layer does with rows in the order of their samples."""
    if gen is None:
        return [attention(und.query, [KeyBlock(*und[1:], und_metadata)], und_metadata)]
    blocks = [KeyBlock(*und[1:], und_metadata), KeyBlock(*gen[1:], gen_metadata)]
    if not frozen:
        raise ValueError("expected a frozen und stream with latents")
    und_query, und_blocks = jax.lax.stop_gradient((und.query, blocks))
    blocks[0] = jax.lax.stop_gradient(blocks[0])
    return [
        attention(und_query, und_blocks, und_metadata),
        attention(gen.query, blocks, gen_metadata),
    ]


def in_slots(
    und: Projected, gen: Projected | None, metadata: SlotMetadata, *, frozen: bool
) -> list[Any]:
    found = attend_in_slots(und, gen, metadata, attention, freeze_und=frozen)
    return [x for x in found if x is not None]


def slots_row(
    a: Arguments, name: str, data: DataConfig, samples: Sequence[Sample], frozen: bool
) -> list[str]:
    config = UniXConfig.preset("published")
    slots = slots_of(config, data)
    assert slots is not None
    layout = lay_out([samples], config, data.und_tokens)
    order = slot_order(layout.und, slots)
    real = order >= 0
    und_metadata = jax.tree.map(jnp.asarray, layout.und)
    gen_metadata = jax.tree.map(jnp.asarray, layout.gen)
    slotted = jax.tree.map(
        lambda x: np.where(real, np.take_along_axis(x, np.maximum(order, 0), axis=1), 0), layout.und
    )
    lengths = [layout.und.segment.shape[1], layout.gen.segment.shape[1]]
    keys = jax.random.split(jax.random.key(0), 6)

    def random(key: Any, length: int) -> Any:
        return jax.random.normal(key, (1, length, a.heads, a.head_dim), a.dtype)

    und = Projected(*(random(key, lengths[0]) for key in keys[:3]))
    gen = Projected(*(random(key, lengths[1]) for key in keys[3:])) if lengths[1] else None
    und_in_slots = Projected(*(x[:, np.maximum(order[0], 0)] for x in und))

    def first(und: Projected, gen: Projected | None) -> list[Any]:
        return in_order(und, gen, und_metadata, gen_metadata, frozen=frozen)

    def second(und: Projected, gen: Projected | None) -> list[Any]:
        metadata = SlotMetadata.create(slotted, slots)
        return in_slots(und, gen, metadata, frozen=frozen)

    exact, found = jax.jit(first)(und, gen), jax.jit(second)(und_in_slots, gen)
    limit = 1e-5 if a.dtype == "float32" else 5e-2
    seen = (exact[0][0, order[0][real[0]]], *exact[1:]), (found[0][0, real[0]], *found[1:])
    for one, other in zip(*seen, strict=True):
        assert float(abs(one - other).max()) < limit, name

    def total(function: Any) -> Any:
        def summed(und: Projected, gen: Projected | None) -> Any:
            out = function(und, gen)
            # Padding has no loss.
            weights = (
                real[..., None, None]
                if function is second
                else layout.und.segment[..., None, None] > 0
            )
            return (out[0] * weights).sum() + sum(x.sum() for x in out[1:])

        return jax.jit(jax.grad(summed, argnums=(0,) if gen is None else (0, 1)))

    steps = {"order": total(first), "slots": total(second)}
    arguments = {"order": (und, gen), "slots": (und_in_slots, gen)}
    timings = interleaved(
        {key: lambda key=key: jax.block_until_ready(steps[key](*arguments[key])) for key in steps},  # type: ignore[misc]
        a.repeats,
        a.clock,
    )
    return [
        name,
        f"{lengths[0]} + {lengths[1]}",
        *(f"{1e3 * timings[key].median:.3g}" for key in ("order", "slots")),
        ratio(timings["order"], timings["slots"]),
    ]


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

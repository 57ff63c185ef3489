"""Low-rank adapters of the decoder's projections: W + (alpha / rank) A B, with W frozen.

Source: Hu et al. 2021, arXiv 2106.09685. Adapters are stacked over layers as the kernels are.

Letters: L layers, I in, O out, R rank.
"""

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.config import UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.models.unix import param_shapes

Target = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]  # fmt: skip
Stream = Literal["und", "gen"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters, trained instead of the decoder's own weights: the one place where they are
    turned on."""

    rank: int = 0
    """Rank of the product that is added to a kernel; 0 trains the weights themselves."""
    alpha: float = 32.0
    """Scale of the product: it counts alpha / rank."""
    targets: tuple[Target, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Kernels of each decoder layer that get adapters."""
    streams: tuple[Stream, ...] = ("und",)
    """Streams whose kernels get adapters."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ConfigError(f"rank: expected at least 0, found {self.rank}")
        for name, values, allowed in (
            ("targets", self.targets, get_args(Target)),
            ("streams", self.streams, get_args(Stream)),
        ):
            if not values or not set(values) <= set(allowed):
                raise ConfigError(f"{name}: expected some of {allowed}, found {values}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def kernels(self) -> list[str]:
        """Paths of the adapted kernels in the parameters of UniX."""
        return [
            f"decoder/layers/{stream}/{target}/kernel"
            for stream in self.streams
            for target in self.targets
        ]


def init_lora(lora: LoraConfig, config: UniXConfig, key: Array) -> dict[str, Any]:
    """Boxed adapters {.../q_proj: {a [L, I, R], b [L, R, O]}}: A random, B zero.

    The model they are merged into is thus the base at first.

    Raises:
      ConfigError: a rank of 0.
    """
    if not lora.rank:
        raise ConfigError("rank: expected at least 1 for adapters, found 0")
    shapes = flatten(param_shapes(config, boxed=True))
    adapters: dict[str, Any] = {}
    for index, path in enumerate(lora.kernels()):
        kernel = shapes[path]
        layers, inner, outer = kernel.value.shape
        names = kernel.names
        a = jax.random.normal(jax.random.fold_in(key, index), (layers, inner, lora.rank))
        module = path.removesuffix("/kernel")
        adapters[f"{module}/a"] = nn.LogicallyPartitioned(
            a * inner**-0.5, (names[0], names[1], None)
        )
        adapters[f"{module}/b"] = nn.LogicallyPartitioned(
            jnp.zeros((layers, lora.rank, outer)), (names[0], None, names[2])
        )
    return unflatten(adapters)


def merge_lora(params: dict[str, Any], adapters: dict[str, Any], lora: LoraConfig) -> Any:
    """UniX parameters with the adapters added to their kernels, in each kernel's own dtype."""
    flat, flat_adapters = flatten(params), flatten(adapters)
    for path in lora.kernels():
        module = path.removesuffix("/kernel")
        a, b = flat_adapters[f"{module}/a"], flat_adapters[f"{module}/b"]
        product = jnp.einsum("lir,lro->lio", a, b, preferred_element_type=jnp.float32)
        kernel = flat[path]
        flat[path] = (kernel.astype(jnp.float32) + lora.scale * product).astype(kernel.dtype)
    return unflatten(flat)

"""Small Linen layers shared by the decoder, the vision tower and the autoencoder.

Logical axis names (mapped to mesh axes by `unix_jax.sharding.ShardingRules`):
`batch`, `length`, `embed`, `heads`, `kv_heads`, `mlp`, `vocab`, `layers`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from unix_jax.sharding import (
    GatheredKernel,
    gathered_kernel,
    platform_in_use,
    rows_of_a_device,
)

Dtype = Any
LANES = 128  # of a TPU's vectors
_SUBLANES = 8  # rows of a TPU's vectors
_FEW_ROWS = 64  # up to this number of rows, reading the matrix bounds a product


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    *,
    use_bias: bool = True,
    dtype: Dtype = jnp.float32,
    kernel_init: nn.initializers.Initializer | None = None,
    transposed: bool = False,
    name: str | None = None,
) -> Any:
    """A linear layer [..., in] -> [..., features] whose kernel has the logical `axes`.

    `transposed` stores the kernel as [out, in], see `TransposedDense`.
    """
    init = kernel_init or nn.initializers.normal(0.02)
    if transposed:
        return TransposedDense(features, use_bias, dtype, init, axes, name=name)
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        dot_general=functools.partial(_product, axes),
        name=name,
    )


def _product(
    axes: tuple[str | None, str | None],
    x: Array,
    kernel: Array,
    dimension_numbers: Any,
    **options: Any,
) -> Array:
    """`lax.dot_general` as `nn.Dense` calls it: the last axis of x with the first of the kernel."""
    split = gathered_kernel(x.shape[0], kernel.shape, axes) if x.ndim > 1 else None
    if x.ndim < 3:
        return linear(split, x, kernel)
    return linear(split, whole_vectors(x, _rows(x)), kernel)[..., : x.shape[-2], :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(
    split: GatheredKernel | None, x: Float[Array, "*batch D"], kernel: Float[Array, "D E"]
) -> Float[Array, "*batch E"]:
    """x kernel, with the kernel's gradient as x^T dy.

    JAX's own rule writes (dy^T x)^T, and XLA's CPU backend then transposes dy, of an MLP the wider.

    With `split`, the kernel is gathered in each pass, and what leaves the backward pass is each
    device's part of the gradient, summed on the way. Left to itself, XLA writes products with
    split kernels as a ring of partial products, and sums whole gradients before it cuts them.
    """
    return _linear_forward(split, x, kernel)[0]


def _linear_forward(
    split: GatheredKernel | None, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    if split is None:
        return x @ kernel, (x, kernel)

    def product(x: Array, kernel: Array) -> Array:
        return x @ split.whole(kernel)

    return _on_each(split, product, (x, kernel)), (x, kernel)


def _linear_backward(
    split: GatheredKernel | None, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    batch = tuple(range(x.ndim - 1))

    def of_x(gradient: Array, kernel: Array) -> Array:
        kernel = kernel if split is None else split.whole(kernel)
        return jax.lax.dot_general(gradient, kernel, (((x.ndim - 1,), (1,)), ((), ())))

    def of_kernel(gradient: Array, x: Array) -> Array:
        own = jax.lax.dot_general(x, gradient, ((batch, batch), ((), ())))
        if split is None:
            return own
        own = split.part(own)
        return jax.lax.psum(own, split.others) if split.others else own

    if split is None:
        return of_x(gradient, kernel), of_kernel(gradient, x)
    # Otherwise XLA computes what the gradient comes from again for each tile of the products.
    gradient = jax.lax.optimization_barrier(gradient)
    return (
        _on_each(split, of_x, (gradient, kernel)),
        jax.shard_map(
            of_kernel, in_specs=PartitionSpec(split.batch), out_specs=split.spec,
            axis_names=set(split.batch),
        )(gradient, x),
    )  # fmt: skip


linear.defvjp(_linear_forward, _linear_backward)


def _on_each(split: GatheredKernel, product: Any, operands: tuple[Array, Array]) -> Array:
    """`product` of each device's rows and its part of the kernel."""
    rows = PartitionSpec(split.batch)
    return jax.shard_map(
        product, in_specs=(rows, split.spec), out_specs=rows, axis_names=set(split.batch)
    )(*operands)


def whole_vectors(
    x: Float[Array, "*batch R D"], rows: int | None = None
) -> Float[Array, "*batch S D"]:
    """On a TPU, x with zeros as further rows, so that a product has 8 rows; elsewhere x itself.

    XLA writes a product with a single row as multiplications and sums, which leave a TPU's matrix
    unit idle. Rows up to 8, as many as its vectors have, cost nothing (benchmarks/tpu_program.py).

    Args:
      rows: number of rows of the product on each device, if it is not R.
    """
    length = x.shape[-2]
    rows = rows or length
    if rows >= _SUBLANES or platform_in_use() != "tpu":
        return x
    missing = -(-(_SUBLANES - rows) * length // rows)
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (0, missing), (0, 0)])


def _rows(x: Array) -> int:
    """Rows of a product of x [B, ..., D] with weights, on each device."""
    return rows_of_a_device(x.shape[0]) * math.prod(x.shape[1:-1])


class TransposedDense(nn.Module):
    """`nn.Dense` with the kernel stored as [out, in].

    A few rows times a large matrix are bound by reading it. XLA's CPU backend is faster for several
    rows with the matrix on the left, contracted along its contiguous axis, than in the usual order
    (benchmarks/kernels.py). An int8 kernel has a `kernel_scale`, see `models/quantization.py`.
    """

    features: int
    use_bias: bool
    dtype: Dtype
    kernel_init: nn.initializers.Initializer
    axes: tuple[str | None, str | None]

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        init = nn.with_logical_partitioning(self.kernel_init, self.axes[::-1])
        kernel: Any = self.param("kernel", init, (self.features, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        batched = x.reshape(x.shape[0] if x.ndim > 2 else 1, -1, x.shape[-1])
        whole = whole_vectors(batched, _rows(batched))
        rows = whole.reshape(-1, x.shape[-1])
        if _rows(whole) <= _FEW_ROWS:
            y = jax.lax.dot_general(kernel, rows, (((1,), (1,)), ((), ()))).T
        else:
            y = jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())))
        y = y.reshape(*whole.shape[:2], -1)[:, : batched.shape[1]]
        if self.has_variable("params", "kernel_scale"):
            y = (y * self.get_variable("params", "kernel_scale")).astype(self.dtype)
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias: Any = self.param("bias", bias_init, (self.features,))
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32.

    Source: `LlamaRMSNorm`; the normalised value is cast back before it is scaled, as there.
    """

    eps: float
    dtype: Dtype = jnp.float32
    axis: str | None = "norm"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale: Any = self.param("scale", init, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(_mean_square(x32) + self.eps)
        return scale.astype(self.dtype) * normed.astype(self.dtype)


def _mean_square(x: Float[Array, "*batch D"]) -> Float[Array, "*batch #D"]:
    width = x.shape[-1]
    if platform_in_use() != "tpu" or width != LANES:
        return jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    # As a product every lane has the mean at once; sums over the lanes of a vector are slow.
    mean = np.full((width, width), 1 / width, np.float32)
    return jnp.matmul(jnp.square(x), mean, precision=jax.lax.Precision.HIGHEST)


def layer_norm(eps: float, dtype: Dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass one loses the parity tolerance."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


def group_norm(
    groups: int, dtype: Dtype, name: str | None = None, eps: float = 1e-6
) -> nn.GroupNorm:
    """GroupNorm with the two-pass variance, as `layer_norm`; the autoencoder's eps is 1e-6."""
    return nn.GroupNorm(
        num_groups=groups, epsilon=eps, dtype=dtype, use_fast_variance=False, name=name
    )


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Φ(x) by the error function, in float32 inside; the backward pass keeps x alone.

    Source: PyTorch's exact GELU. Flax's takes the complementary function, which XLA writes out as
    two series with a choice between them.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
}


class TwoLayerMLP(nn.Module):
    """fc1 -> activation -> fc2: the connector, the time embedding's tail, the ViT block."""

    hidden_features: int
    features: int
    activation: str
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.fc1 = dense(self.hidden_features, ("embed", "mlp"), dtype=self.dtype)
        self.fc2 = dense(self.features, ("mlp", "embed"), dtype=self.dtype)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch E"]:
        activation = nn.silu if self.activation == "silu" else ACTIVATIONS[self.activation]
        return self.fc2(activation(self.fc1(x)))

"""The state of a run: trained masters, frozen weights, EMA and optimiser state, each leaf sharded.

Parameters are one dictionary of parts (see `parameter_groups`). `init` names every part and creates
its fresh parameters, boxed with their logical axes. These define the shapes and shardings of all
other arrays, including the optimiser's moments and the EMA.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from unix_jax.checkpoints.fitting import check_leaves
from unix_jax.checkpoints.leaves import flatten
from unix_jax.errors import CheckpointError
from unix_jax.models.layers import Dtype
from unix_jax.models.shapes import initialisation_options
from unix_jax.sharding import param_shardings
from unix_jax.training.parameter_groups import merge_params, split_params

Init = Mapping[str, Callable[[Array], Any]]


@struct.dataclass
class TrainState:
    """step: updates made so far. trained: float32 masters. frozen: everything else, never
    differentiated. ema: running mean of `trained`, or None. opt_state: optax's, of `trained`.
    halted: a step was not finite, and since then no step changes anything; not in checkpoints."""

    step: Int[Array, ""]
    trained: dict[str, Any]
    frozen: dict[str, Any]
    ema: dict[str, Any] | None
    opt_state: Any
    halted: Bool[Array, ""]

    def params(self, *, ema: bool = False) -> dict[str, Any]:
        """All parts, with the trained ones as they are or as their running mean."""
        return merge_params(self.averaged().trained if ema else self.trained, self.frozen)

    def averaged(self) -> "TrainState":
        """The state with the running mean instead of the trained weights.

        Raises:
          ValueError: there is none.
        """
        if self.ema is None:
            raise ValueError("ema: expected a state with a running mean, found None")
        return self.replace(trained=self.ema)  # type: ignore[attr-defined]


def create_state(
    trainable: str,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    init: Init,
    given: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """A state at step 0; each device creates or receives only its own shards.

    Args:
      trainable: pattern over the names of parameters, see `parameter_groups`.
      init: for each part, key -> fresh parameters, boxed or not.
      given: existing parts (numpy or jax arrays), used instead of fresh ones.
      frozen_dtype: dtype of the model's frozen weights; None keeps their dtype.
      ema: keep a running mean.

    Raises:
      CheckpointError: a given part does not have the names or shapes of a fresh one.
      ConfigError: the pattern matches nothing.
    """
    given = dict(given or {})
    options = {"trainable": trainable, "tx": tx, "frozen_dtype": frozen_dtype, "ema": ema}
    shapes = {part: shape for part, shape in init_shapes(init).items() if part in given}
    _check_given(given, nn.unbox(shapes), init)
    shardings = None
    if mesh is not None:
        shardings = state_shardings(init=init, mesh=mesh, **options)
        given = jax.device_put(given, param_shardings(shapes, mesh))

    def make(key: Array, given: dict[str, Any]) -> TrainState:
        fresh = {part: fn for part, fn in init.items() if part not in given}
        return _assemble(nn.unbox(_fresh(fresh, key)) | given, **options)

    build = jax.jit(make, out_shardings=shardings, compiler_options=initialisation_options())
    return build(key, given)


def abstract_state(
    trainable: str,
    tx: optax.GradientTransformation,
    *,
    init: Init,
    mesh: Mesh | None = None,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """The state's shapes as `jax.ShapeDtypeStruct`, with shardings where a mesh is given."""
    options = {"trainable": trainable, "tx": tx, "frozen_dtype": frozen_dtype, "ema": ema}
    shapes = _shapes(init, **options)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(init=init, mesh=mesh, **options),
    )


def state_shardings(
    trainable: str,
    tx: optax.GradientTransformation,
    *,
    init: Init,
    mesh: Mesh,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """A `NamedSharding` for every leaf of the state."""
    shapes = _shapes(init, trainable=trainable, tx=tx, frozen_dtype=frozen_dtype, ema=ema)
    trained, frozen = split_params(init_shapes(init), trainable)
    of_trained = param_shardings(trained, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        step=whole,  # type: ignore[arg-type]
        trained=of_trained,
        frozen=param_shardings(frozen, mesh),
        ema=of_trained if ema else None,
        opt_state=_optimizer_shardings(shapes.opt_state, flatten(trained), mesh),
        halted=whole,  # type: ignore[arg-type]
    )


def _optimizer_shardings(opt_state: Any, trained: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shardings of an optimiser's state; its paths end with the names of the parameters.

    An array of the parameter's shape, such as a moment, is split as the parameter is; one that
    lacks one of its axes, such as a factored moment of Adafactor, along the others. The rest is
    replicated.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        ends = ("/".join(names[i:]) for i in range(len(names)))
        box = next((trained[end] for end in ends if end in trained), None)
        axes = _axes_of(leaf.shape, box)
        boxed = leaf if axes is None else nn.LogicallyPartitioned(leaf, axes)
        return param_shardings(boxed, mesh)

    return jax.tree_util.tree_map_with_path(one, opt_state)


def _axes_of(shape: tuple[int, ...], box: Any) -> tuple[str | None, ...] | None:
    """Logical axes of an array that belongs to a boxed parameter, None where it has none."""
    if not isinstance(box, nn.LogicallyPartitioned):
        return None
    whole, axes = box.value.shape, box.names
    if shape == whole:
        return axes
    for i in range(len(whole)):
        if shape == whole[:i] + whole[i + 1 :]:
            return axes[:i] + axes[i + 1 :]
    return None


def init_shapes(init: Init) -> dict[str, Any]:
    """The boxed shapes of every part's fresh parameters.

    A model is traced once, since JAX remembers the shapes of each function of `init`.
    """
    key = jax.random.key(0)
    return {part: jax.eval_shape(make, key) for part, make in init.items()}


def _shapes(init: Init, **options: Any) -> TrainState:
    """The state's shapes, from fresh parameters."""
    return jax.eval_shape(lambda parts: _assemble(parts, **options), nn.unbox(init_shapes(init)))


def _fresh(init: Init, key: Array) -> dict[str, Any]:
    # By name, so that a part's random numbers do not depend on the other parts.
    return {
        part: make(jax.random.fold_in(key, zlib.crc32(part.encode())))
        for part, make in init.items()
    }


def _assemble(
    parts: dict[str, Any],
    *,
    trainable: str,
    tx: optax.GradientTransformation,
    frozen_dtype: Dtype | None,
    ema: bool,
) -> TrainState:
    trained, frozen = split_params(parts, trainable)
    # Copies, since a step donates the state and its buffers must not be shared.
    trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained)
    frozen = jax.tree.map(jnp.copy, frozen)
    if frozen_dtype is not None and "unix" in frozen:
        frozen |= {"unix": jax.tree.map(lambda x: x.astype(frozen_dtype), frozen["unix"])}
    return TrainState(
        step=jnp.int32(0),
        trained=trained,
        frozen=frozen,
        ema=jax.tree.map(jnp.copy, trained) if ema else None,
        opt_state=tx.init(trained),
        halted=jnp.zeros((), jnp.bool_),
    )


def _check_given(given: Mapping[str, Any], shapes: Mapping[str, Any], init: Init) -> None:
    unknown = sorted(set(given) - set(init))
    if unknown:
        raise CheckpointError(f"given parts: expected some of {sorted(init)}, found {unknown}")
    check_leaves(flatten(given), flatten(shapes), "given parameters")

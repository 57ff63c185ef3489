"""The state of a run: trained masters, frozen weights, EMA and optimiser state, each leaf sharded.

Parameters are one dictionary of parts (see `groups`). `init` names every part and makes its fresh
parameters, boxed with their logical axes: these give the shapes and the shardings of everything
else, Adam's moments and the EMA included.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from unix_jax.checkpoints.fitting import check_leaves
from unix_jax.checkpoints.leaves import flatten
from unix_jax.errors import CheckpointError
from unix_jax.models.layers import Dtype
from unix_jax.sharding import ShardingRules, param_shardings
from unix_jax.training.parameter_groups import Stage, merge_params, split_params

Init = Mapping[str, Callable[[Array], Any]]


@struct.dataclass
class TrainState:
    """step: updates made so far. trained: float32 masters. frozen: everything else, never
    differentiated. ema: running mean of `trained`, or None. opt_state: optax's, of `trained`."""

    step: Int[Array, ""]
    trained: dict[str, Any]
    frozen: dict[str, Any]
    ema: dict[str, Any] | None
    opt_state: Any

    def params(self, *, ema: bool = False) -> dict[str, Any]:
        """All parts, with the trained ones as they are or as their running mean."""
        if ema and self.ema is None:
            raise ValueError("ema: expected a state with a running mean, found None")
        return merge_params(self.ema if ema and self.ema is not None else self.trained, self.frozen)


def create_state(
    stage: Stage,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    init: Init,
    given: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    lora: bool = False,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """A state at step 0, each device making or receiving its own shards alone.

    Args:
      init: for each part, key -> fresh parameters, boxed or not.
      given: parts that are known already (numpy or jax arrays), instead of fresh ones.
      lora: adapters (the part `lora`) are trained instead of the model.
      frozen_dtype: in which the frozen weights of the model are held; None keeps theirs.
      ema: keep a running mean.

    Raises:
      CheckpointError: a given part does not have the names or shapes of a fresh one.
    """
    given = dict(given or {})
    options = {"stage": stage, "tx": tx, "lora": lora, "frozen_dtype": frozen_dtype, "ema": ema}
    shapes = {part: _part_shapes(init[part]) for part in given if part in init}
    _check_given(given, nn.unbox(shapes), init)
    shardings = None
    if mesh is not None:
        shardings = state_shardings(init=init, mesh=mesh, rules=rules, **options)
        given = jax.device_put(given, param_shardings(shapes, mesh, rules))

    def make(key: Array, given: dict[str, Any]) -> TrainState:
        fresh = {part: fn for part, fn in init.items() if part not in given}
        return _assemble(nn.unbox(_fresh(fresh, key)) | given, **options)

    return jax.jit(make, out_shardings=shardings)(key, given)


def abstract_state(
    stage: Stage,
    tx: optax.GradientTransformation,
    *,
    init: Init,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    lora: bool = False,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """The state's shapes as `jax.ShapeDtypeStruct`, with shardings where a mesh is given."""
    boxed = _boxed_state(stage, tx, init, lora, frozen_dtype, ema)
    if mesh is None:
        return nn.unbox(boxed)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed),
        param_shardings(boxed, mesh, rules),
    )


def state_shardings(
    stage: Stage,
    tx: optax.GradientTransformation,
    *,
    init: Init,
    mesh: Mesh,
    rules: ShardingRules | None = None,
    lora: bool = False,
    frozen_dtype: Dtype | None = None,
    ema: bool = True,
) -> TrainState:
    """A `NamedSharding` for every leaf of the state."""
    return param_shardings(_boxed_state(stage, tx, init, lora, frozen_dtype, ema), mesh, rules)


def _boxed_state(
    stage: Stage,
    tx: optax.GradientTransformation,
    init: Init,
    lora: bool,
    frozen_dtype: Dtype | None,
    ema: bool,
) -> TrainState:
    """Shapes with logical axes. optax maps over the boxes, so its state inherits them."""
    assemble = functools.partial(
        _assemble, stage=stage, tx=tx, lora=lora, frozen_dtype=frozen_dtype, ema=ema
    )
    return jax.eval_shape(assemble, {part: _part_shapes(make) for part, make in init.items()})


@functools.lru_cache(maxsize=32)
def _part_shapes(make: Callable[[Array], Any]) -> Any:
    # Kept: the shapes are asked for several times at a start, and tracing a model takes seconds.
    return jax.eval_shape(make, jax.random.key(0))


def _fresh(init: Init, key: Array) -> dict[str, Any]:
    # By name: a part's numbers do not depend on which other parts there are.
    return {
        part: make(jax.random.fold_in(key, zlib.crc32(part.encode())))
        for part, make in init.items()
    }


def _assemble(
    parts: dict[str, Any],
    *,
    stage: Stage,
    tx: optax.GradientTransformation,
    lora: bool,
    frozen_dtype: Dtype | None,
    ema: bool,
) -> TrainState:
    trained, frozen = split_params(parts, stage, lora)
    # Copies: a step donates the masters and the mean, which must be no one else's buffers.
    trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained)
    if frozen_dtype is not None and "unix" in frozen:
        frozen |= {"unix": jax.tree.map(lambda x: x.astype(frozen_dtype), frozen["unix"])}
    return TrainState(
        step=jnp.int32(0),
        trained=trained,
        frozen=frozen,
        ema=jax.tree.map(jnp.copy, trained) if ema else None,
        opt_state=tx.init(trained),
    )


def _check_given(given: Mapping[str, Any], shapes: Mapping[str, Any], init: Init) -> None:
    unknown = sorted(set(given) - set(init))
    if unknown:
        raise CheckpointError(f"given parts: expected some of {sorted(init)}, found {unknown}")
    check_leaves(flatten(given), flatten(shapes), "given parameters")

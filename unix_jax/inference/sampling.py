"""Image sampling: steps along the flow, with classifier-free guidance as rows of a batch.

The run is one compiled program over a range of steps. Progress and previews call the same program
for a part of the range. With each solver, a step evaluates the network once:

- `euler`: x + h v, as in the original.
- `ab2`: the two-step Adams-Bashforth method for steps of varying length,
  x + h (v + h / (2 h') (v - v')), where v' and h' are those of the previous step.
- `pec`: predict with `ab2`, evaluate there, and correct the previous step by the trapezoidal rule,
  x' + h' / 2 (v' + v). The last step is not corrected.

The velocity jumps where guidance begins or ends. There `ab2` and `pec` restart with one Euler step,
and do not correct across the jump.

Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, III.5.

Letters: B images, R rows = branches x B, G latent tokens, C numbers in a latent token, T grid.
"""

import functools
import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from unix_jax.models.attention.cache import KVCache
from unix_jax.models.unix import UniX

Renorm = Literal["global", "channel", "text_channel"]
RENORMS = ("global", "channel", "text_channel")
Solver = Literal["euler", "ab2", "pec"]
SOLVERS: tuple[str, ...] = typing.get_args(Solver)
# Source of v_empty-image: not needed, equal to the conditional one, or its own rows.
ImageBranch = Literal["none", "conditional", "rows"]


@struct.dataclass
class Guidance:
    """Scales and limits of guidance, which is applied at times t in (low, high].

    All of them may vary without recompilation.

    text, image: guidance scales. renorm_min: lower bound of the renormalisation factor.
    """

    text: Float[Array, ""]
    image: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    renorm_min: Float[Array, ""]


@struct.dataclass
class ImageContext:
    """The context of a noised image: rows [conditional | empty text | empty image], B each.

    positions: rotary position of the image in each row. latent_position_ids: the same for all rows.
    grid: (rows, columns) of the image in latent tokens.
    """

    cache: KVCache
    positions: Int[Array, " R"]
    latent_position_ids: Int[Array, "1 G"]
    grid: tuple[int, int] = struct.field(pytree_node=False)


@struct.dataclass
class SamplingState:
    """The state of a sampling run between two steps.

    latents: x at the next grid point; for `pec` as predicted, before its correction.
    velocity: that of the last step; zeros before the first step.
    half: for `pec`, x before the last step plus half of that step; else None.
    """

    latents: Float[Array, "B G C"]
    velocity: Float[Array, "B G C"]
    half: Float[Array, "B G C"] | None


def initial_state(noise: Float[Array, "B G C"], solver: Solver = "euler") -> SamplingState:
    """The state before the first step, from x at grid[0]."""
    x = jnp.asarray(noise, jnp.float32)
    return SamplingState(x, jnp.zeros_like(x), x if solver == "pec" else None)


def predict_velocity(
    model: UniX,
    params: Any,
    context: ImageContext,
    latents: Float[Array, "R G C"],
    t: Float[Array, ""],
) -> Float[Array, "R G C"]:
    """Velocity of the rows' images against the cached context, see `UniX.denoise`."""
    return model.apply(  # type: ignore[return-value]
        {"params": params},
        latents,
        t,
        context.cache,
        context.positions,
        context.latent_position_ids,
        context.grid,
        method=UniX.denoise,
    )


def guide(
    conditional: Float[Array, "B G C"],
    empty_text: Float[Array, "B G C"],
    empty_image: Float[Array, "B G C"] | None,
    guidance: Guidance,
    renorm: Renorm,
) -> Float[Array, "B G C"]:
    """Classifier-free guidance with renormalisation, per image.

    Source: BAGEL's sampler, whose `global` norm is over the batch; here it is over each image.
    """

    def factor(guided: Array, axes: tuple[int, ...]) -> Array:
        def norm(v: Array) -> Array:
            return jnp.sqrt(jnp.sum(jnp.square(v), axis=axes, keepdims=True))

        return jnp.clip(norm(conditional) / (norm(guided) + 1e-8), guidance.renorm_min, 1.0)

    guided = empty_text + guidance.text * (conditional - empty_text)
    if renorm == "text_channel":
        guided = guided * factor(guided, (-1,))
    if empty_image is not None:
        guided = empty_image + guidance.image * (guided - empty_image)
    if renorm == "text_channel":
        return guided
    return guided * factor(guided, (-2, -1) if renorm == "global" else (-1,))


@functools.partial(jax.jit, static_argnames=("model", "guided", "image_branch", "renorm", "solver"))
def sample_latents(
    model: UniX,
    params: Any,
    context: ImageContext,
    state: SamplingState,
    grid: Float[Array, " T"],
    first: Int[Array, ""],
    last: Int[Array, ""],
    guidance: Guidance,
    *,
    guided: bool,
    image_branch: ImageBranch,
    renorm: Renorm,
    solver: Solver = "euler",
) -> SamplingState:
    """Runs steps `first` to `last` (exclusive) over `grid`.

    Args:
      context: rows of the requested branches, in the order of `ImageContext`.
      state: at grid[first]; `initial_state` of noise ~ N(0, I) if `first` is 0.
      grid: decreasing times, see `flow.timestep_grid`; times after grid[last] are not read.
      guided: whether text guidance is used at all (its scale above 1).
      image_branch: where image guidance, if any, takes its velocity from.
    """
    batch = state.latents.shape[0]
    conditional_context = ImageContext(
        cache=context.cache.first_rows(batch),
        positions=context.positions[:batch],
        latent_position_ids=context.latent_position_ids,
        grid=context.grid,
    )

    def plain(x: Array, t: Array) -> Array:
        return predict_velocity(model, params, conditional_context, x, t)

    def with_guidance(x: Array, t: Array) -> Array:
        rows = context.positions.shape[0] // batch
        v = predict_velocity(model, params, context, jnp.tile(x, (rows, 1, 1)), t)
        conditional, empty_text, *rest = jnp.split(v, rows)
        empty_image = {
            "none": None,
            "conditional": conditional,
            "rows": rest[0] if rest else None,
        }[image_branch]
        return guide(conditional, empty_text, empty_image, guidance, renorm)

    def inside(t: Array) -> Array:
        return (t > guidance.low) & (t <= guidance.high)

    def velocity(x: Array, t: Array) -> Array:
        if not guided:
            return plain(x, t)
        return jax.lax.cond(inside(t), with_guidance, plain, x, t)

    def euler(i: Array, state: SamplingState) -> SamplingState:
        v = velocity(state.latents, grid[i])
        return SamplingState(state.latents - v * (grid[i] - grid[i + 1]), v, None)

    def two_step(i: Array, state: SamplingState) -> SamplingState:
        t, before = grid[i], grid[jnp.maximum(i - 1, 0)]
        x, length = state.latents, t - grid[i + 1]
        v = velocity(x, t)
        # The previous step is not used at the start and after a jump of the velocity.
        starts = (i == 0) | (guided & (inside(t) != inside(before)))
        if state.half is not None:
            x = jnp.where(starts, x, state.half - v * ((before - t) / 2))
        ratio = jnp.where(starts, 0.0, length / (2 * jnp.where(starts, 1.0, before - t)))
        following = x - length * (v + ratio * (v - state.velocity))
        half = None if state.half is None else x - v * (length / 2)
        return SamplingState(following, v, half)

    step = euler if solver == "euler" else two_step
    return jax.lax.fori_loop(first, last, step, state)

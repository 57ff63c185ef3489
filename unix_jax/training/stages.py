"""What the loop of `train.py` needs of a stage, the same for the model and for the autoencoder.

Letters: B rows, J VAE images of a row, H W pixels.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from unix_jax.config import UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models import autoencoder as vae
from unix_jax.models.attention.cudnn_attention import has_cudnn_attention
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.models.unix import UniX, init_params
from unix_jax.training import flops
from unix_jax.training.accumulation import check_rows
from unix_jax.training.autoencoder import (
    AutoencoderState,
    init_autoencoder_state,
    make_autoencoder_evaluation,
    make_autoencoder_step,
    measure_latent_statistics,
    with_latent_statistics,
)
from unix_jax.training.config import Precision, TrainConfig, Weights
from unix_jax.training.lora import init_lora, merge_lora
from unix_jax.training.optimizer import make_optimizer
from unix_jax.training.repa import make_repa, repa_parts
from unix_jax.training.state import abstract_state, create_state
from unix_jax.training.step import StepConfig, make_eval_step, make_train_step

Scalars = Mapping[str, Float[Array, ""]]
Parts = dict[str, Any]
# How many images the scale and shift of latents are measured on.
_STATISTICS_BATCHES = 32
# Exported weights whose validation loss is higher by this part are worth a warning.


@dataclasses.dataclass(frozen=True)
class Run:
    """A stage, ready to run.

    fresh: makes the state of step 0 from loaded parts ("unix", "autoencoder", ...; none needed).
    target: the state's shapes and shardings.
    step: (state, batch, key) -> (state, metrics); the state is donated but for what is frozen.
    evaluate: (state, batch, key, ema=False) -> metrics; with `ema` those of the average.
    validated: the weights to validate; the first ones are the preferred.
    loss_weights: the loss is the sum of these metrics so weighted.
    batch_flops: of one step over a host's batch.
    weights: (state, which) -> weights for inference: (parameters, autoencoder's or None).
    final_config: (state, which, batches of training data) -> the configuration to export.
    """

    config: UniXConfig
    fresh: Callable[[Parts], Any]
    target: Any
    step: Callable[[Any, TrainingBatch, PRNGKeyArray], tuple[Any, Scalars]]
    evaluate: Callable[..., Scalars]
    validated: tuple[Weights, ...]
    loss_weights: Mapping[str, float]
    batch_flops: Callable[[TrainingBatch], float]
    weights: Callable[[Any, Weights], tuple[Any, Any | None]]
    final_config: Callable[[Any, Weights, Iterable[TrainingBatch]], UniXConfig]


def make_run(
    config: TrainConfig,
    model_config: UniXConfig,
    mesh: Mesh,
    *,
    has_autoencoder: bool = False,
    encoder_config: Dinov2Config | None = None,
) -> Run:
    """The stage that `config` names.

    Args:
      config: of the run.
      model_config: sizes of the model.
      mesh: where everything lives.
      has_autoencoder: there is one, frozen, beside the model.
      encoder_config: sizes of REPA's encoder, where REPA is used.

    Raises:
      ConfigError: settings that contradict each other.
    """
    if config.stage == "autoencoder":
        return _autoencoder_run(config, model_config, mesh)
    return _unix_run(config, model_config, mesh, has_autoencoder, encoder_config)


def compute_dtype(precision: Precision, mesh: Mesh) -> Any:
    """The type that `auto` stands for on these devices."""
    if precision == "auto":
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def _unix_run(
    config: TrainConfig,
    model_config: UniXConfig,
    mesh: Mesh,
    has_autoencoder: bool,
    encoder_config: Dinov2Config | None,
) -> Run:
    assert config.stage != "autoencoder"
    stage: Literal["understanding", "generation", "all"] = (
        "all" if config.stage == "joint" else config.stage
    )
    dtype = compute_dtype(config.model.dtype, mesh)
    _check_attention(config.model.attention, model_config, mesh, dtype)
    model = UniX(
        model_config,
        dtype,
        attention_implementation=config.model.attention,
        remat_policy=config.model.remat,
        unroll=config.model.unroll,
        freeze_und=stage == "generation",
    )
    init: dict[str, Callable[[Array], Any]] = {
        "unix": lambda key: init_params(model_config, key, boxed=True)
    }
    if has_autoencoder:
        init["autoencoder"] = lambda key: _init_autoencoder(model_config, key)
    if config.use_lora:
        init["lora"] = lambda key: init_lora(config.lora, model_config, key)
    repa = None
    if encoder_config is not None:
        repa = make_repa(model_config, encoder_config, config.repa, dtype)
        init |= repa_parts(model_config, encoder_config, config.repa)
    tx, schedule = make_optimizer(config.scheduled_optimizer)
    options: dict[str, Any] = {
        "init": init,
        "frozen_dtype": compute_dtype(config.model.frozen_dtype, mesh),
        "ema": config.average_decay is not None,
        "lora": config.use_lora,
        "mesh": mesh,
    }
    step_config = StepConfig(
        losses=config.losses,
        accumulation=config.accumulation,
        ema_decay=config.average_decay or 0.0,
        lora=config.lora if config.use_lora else None,
    )
    key = jax.random.key(config.seed)

    def weights(state: Any, which: Weights) -> tuple[Any, Any | None]:
        merged = state.params(ema=which == "average")
        unix = merged["unix"]
        if config.use_lora:
            unix = merge_lora(unix, merged["lora"], config.lora)
        return unix, merged.get("autoencoder")

    def batch_flops(batch: TrainingBatch) -> float:
        counts = flops.count(batch, model_config)
        total = flops.step_flops(model_config, counts, stage, weights_frozen=config.use_lora)
        if encoder_config is not None:
            total += flops.repa_flops(
                encoder_config, config.repa.image_size, counts.vae_images, counts.vae_size
            )
        return total

    losses = config.losses
    return Run(
        config=model_config,
        fresh=lambda given: create_state(
            stage, tx, jax.random.fold_in(key, 0), given=given, **options
        ),
        target=abstract_state(stage, tx, **options),
        step=make_train_step(model, step_config, tx, schedule, mesh=mesh, repa=repa),
        evaluate=make_eval_step(model, step_config, mesh=mesh, repa=repa),
        validated=_validated(config),
        loss_weights={
            "ce": losses.ce_weight,
            "mse": losses.mse_weight,
            "repa": losses.repa_weight,
        },
        batch_flops=batch_flops,
        weights=weights,
        final_config=lambda *_: model_config,
    )


def _validated(config: TrainConfig) -> tuple[Weights, ...]:
    if config.average_decay is None:
        return ("raw",)
    return ("average", "raw") if config.preferred == "average" else ("raw", "average")


def _check_attention(name: str, model_config: UniXConfig, mesh: Mesh, dtype: Any) -> None:
    """Raises ConfigError for a kernel that these devices do not have."""
    device, c = mesh.devices.flat[0], model_config.decoder
    if name == "pallas" and device.platform == "gpu":
        raise ConfigError("model.attention: pallas has kernels for TPUs, found gpu")
    query = jax.ShapeDtypeStruct((1, 1, c.num_heads, c.head_dim), dtype)
    if name == "cudnn" and not has_cudnn_attention(query, device):
        raise ConfigError(
            "model.attention: expected an NVIDIA GPU from Ampere on, 16-bit floats and a head_dim "
            f"that is a multiple of 8 up to 128 for cudnn, found {device.device_kind}, "
            f"{jnp.dtype(dtype).name} and {c.head_dim}"
        )


def _init_autoencoder(config: UniXConfig, key: Array) -> Any:
    side = 2 * config.vae.downsample
    pixels = jnp.zeros((1, side, side, config.vae.in_channels))
    return vae.Autoencoder(config.vae).init(key, pixels)["params"]


def _autoencoder_run(config: TrainConfig, model_config: UniXConfig, mesh: Mesh) -> Run:
    tx, schedule = make_optimizer(config.scheduled_optimizer)
    dtype = compute_dtype(config.model.dtype, mesh)
    objective = config.autoencoder
    decay, accumulation = config.average_decay, config.accumulation
    inner = make_autoencoder_step(
        model_config.vae,
        tx,
        objective,
        dtype=dtype,
        ema_decay=decay or 0.0,
        accumulation=accumulation,
    )
    evaluation = make_autoencoder_evaluation(model_config.vae, dtype, accumulation=accumulation)
    replicated = NamedSharding(mesh, PartitionSpec())
    key = jax.random.key(config.seed)

    def init(key: PRNGKeyArray) -> AutoencoderState:
        return init_autoencoder_state(model_config.vae, tx, key, ema=decay is not None)

    shapes = jax.eval_shape(lambda: init(key))

    def place(tree: Any) -> Any:
        return jax.device_put(tree, replicated)

    def fresh(given: Parts) -> AutoencoderState:
        state = init(jax.random.fold_in(key, 0))
        if "autoencoder" in given:
            params = jax.tree.map(jnp.asarray, given["autoencoder"])
            ema = None if decay is None else jax.tree.map(jnp.copy, params)
            state = state.replace(params=params, ema=ema)  # type: ignore[attr-defined]
        return place(state)

    @jax.jit
    def learning_rate(step: Array) -> Array:
        return jnp.asarray(schedule(step), jnp.float32)

    def step(state: Any, batch: TrainingBatch, key: PRNGKeyArray) -> tuple[Any, Scalars]:
        check_rows(batch.rows, accumulation, mesh)
        rate = learning_rate(state.step)
        state, metrics = inner(state, _images(batch), key)
        return state, {**metrics, "learning_rate": rate}

    def batch_flops(batch: TrainingBatch) -> float:
        assert batch.vae_pixels is not None
        rows, images, height, width, _ = batch.vae_pixels.shape
        # Of crops also where whole images follow them: a batch does not know its step.
        size = (height, width) if objective.crop is None else (objective.crop, objective.crop)
        # The decoder mirrors the encoder, with one block a level more.
        return 3 * 2 * rows * images * flops.encoder_flops(model_config.vae, size)

    def trained(state: Any, which: Weights) -> Any:
        return state.ema if which == "average" else state.params

    def evaluate(
        state: Any, batch: TrainingBatch, _: PRNGKeyArray, *, ema: bool = False
    ) -> Scalars:
        check_rows(batch.rows, accumulation, mesh)
        return evaluation(state.ema if ema else state.params, _images(batch))

    def final_config(state: Any, which: Weights, batches: Iterable[TrainingBatch]) -> UniXConfig:
        return measured_config(model_config, trained(state, which), batches, dtype)

    return Run(
        config=model_config,
        fresh=fresh,
        target=jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
        ),
        step=step,
        evaluate=evaluate,
        validated=_validated(config),
        loss_weights={"l1": 1.0, "mse": objective.mse_weight, "kl": objective.kl_weight},
        batch_flops=batch_flops,
        # A whole checkpoint, so that the next stage starts from it: the model is still untrained.
        weights=lambda state, which: (init_params(model_config, key), trained(state, which)),
        final_config=final_config,
    )


def measured_config(
    config: UniXConfig, vae_params: Any, batches: Iterable[TrainingBatch], dtype: Any
) -> UniXConfig:
    """`config` with the scale and shift of the latents of a trained autoencoder.

    They are measured on the first batches of training data.
    """
    pixels = (_images(b) for _, b in zip(range(_STATISTICS_BATCHES), batches, strict=False))
    measured = measure_latent_statistics(config.vae, vae_params, pixels, dtype)
    return dataclasses.replace(config, vae=with_latent_statistics(config.vae, *measured))


def _images(batch: TrainingBatch) -> Float[Array, "B*J H W 3"]:
    pixels = batch.vae_pixels
    assert pixels is not None
    return jnp.reshape(pixels, (-1, *pixels.shape[2:]))


def validate(
    run: Run, state: Any, batches: Iterable[TrainingBatch], key: PRNGKeyArray
) -> dict[str, float]:
    """The loss and its terms over all batches, each term weighted by its tokens.

    `loss`, `ce`, ... are of the weights that are exported. The other weights, where there are
    any, have the same numbers with their name before them: `raw/loss` or `average/loss`.

    Raises:
      ValueError: no batch.
    """
    sums: dict[str, dict[str, float]] = {weights: {} for weights in run.validated}
    totals: dict[str, float] = {}
    for number, batch in enumerate(batches):
        for weights, summed in sums.items():
            metrics = to_floats(
                run.evaluate(
                    state, batch, jax.random.fold_in(key, number), ema=weights == "average"
                )
            )
            for name, value in terms(run, metrics).items():
                weight = metrics.get(f"{name}_tokens", 1.0)
                summed[name] = summed.get(name, 0.0) + value * weight
                if weights == run.validated[0]:
                    totals[name] = totals.get(name, 0.0) + weight
    if not totals:
        raise ValueError("validation: expected at least one batch")
    found: dict[str, float] = {}
    for weights, summed in sums.items():
        means = {name: summed[name] / totals[name] for name in summed}
        means["loss"] = sum(
            weight * means.get(name, 0.0) for name, weight in run.loss_weights.items()
        )
        prefix = "" if weights == run.validated[0] else f"{weights}/"
        found |= {f"{prefix}{name}": value for name, value in means.items()}
    return found


def describe_validation(run: Run, step: int, scores: Mapping[str, float]) -> str:
    """The losses of `validate` in a line, with the weights that each is of."""
    preferred, *others = run.validated
    line = f"step {step}: validation loss {scores['loss']:.4g} ({preferred} weights)"
    return line + "".join(f", {scores[f'{name}/loss']:.4g} ({name})" for name in others)


def to_floats(metrics: Scalars) -> dict[str, float]:
    """Metrics on the host; waits for the devices."""
    return {name: float(np.asarray(value)) for name, value in metrics.items()}


def terms(run: Run, metrics: Mapping[str, float]) -> dict[str, float]:
    """Without the counts of tokens, and without terms that had none or have no weight."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.endswith("_tokens")
        and metrics.get(f"{name}_tokens", 1.0) > 0
        and run.loss_weights.get(name, 1.0) > 0
    }

"""The stages of training: each a class with its state, its step and its validation.

Letters: B rows, J VAE images of a row, H W pixels.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import ConfigError
from unix_jax.models import autoencoder as vae
from unix_jax.models.attention.cudnn_attention import has_cudnn_attention
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.models.unix import UniX, init_params, untrained_params
from unix_jax.preprocessing.pixels import vae_input
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
from unix_jax.training.losses import Alignment
from unix_jax.training.optimizer import make_optimizer
from unix_jax.training.parameter_groups import split_params, trains_und
from unix_jax.training.repa import make_repa, repa_parts
from unix_jax.training.state import abstract_state, create_state, init_shapes
from unix_jax.training.step import StepConfig, make_eval_step, make_train_step

Scalars = Mapping[str, Float[Array, ""]]
Parts = dict[str, Any]
# The number of batches that the scale and shift of latents are measured on.
_STATISTICS_BATCHES = 32


class Stage(abc.ABC):
    """What a run trains, ready to run.

    config: sizes of the model.
    target: the state's shapes and shardings.
    validated: the weights to validate; the first ones are those that `export` stands for.
    loss_weights: the loss is the sum of these metrics so weighted.
    """

    config: UniXConfig
    target: Any
    loss_weights: Mapping[str, float]

    def __init__(self, config: TrainConfig, model_config: UniXConfig, mesh: Mesh) -> None:
        self.config, self.mesh = model_config, mesh
        self.key = jax.random.key(config.seed)
        self.validated: tuple[Weights, ...] = ("raw",)
        if config.average_decay is not None:
            first = config.preferred
            self.validated = (first, "average" if first == "raw" else "raw")

    @abc.abstractmethod
    def fresh(self, given: Parts) -> Any:
        """The state of step 0 from loaded parts ("unix", "autoencoder", ...; none needed)."""

    @abc.abstractmethod
    def train_step(self, number: int) -> Any:
        """The jitted (state, batch, key) -> (state, metrics) of the step `number`, from 1.

        The state is donated.
        """

    @abc.abstractmethod
    def evaluate(
        self, state: Any, batch: TrainingBatch, key: PRNGKeyArray, *, ema: bool = False
    ) -> Scalars:
        """The metrics of a batch; with `ema` those of the average."""

    @abc.abstractmethod
    def batch_flops(self, batch: TrainingBatch) -> float:
        """FLOPs of one step over a host's batch."""

    @abc.abstractmethod
    def trained(self, state: Any) -> Any:
        """The trained parameters of a state, or of `target`."""

    @abc.abstractmethod
    def weights(self, state: Any, which: Weights) -> tuple[Any, Any | None]:
        """Weights for inference: (parameters, the autoencoder's or None)."""

    def final_config(
        self, state: Any, which: Weights, batches: Iterable[TrainingBatch]
    ) -> UniXConfig:
        """The configuration to export; `batches` are training data."""
        return self.config

    def validate(
        self, state: Any, batches: Iterable[TrainingBatch], key: PRNGKeyArray
    ) -> dict[str, float]:
        """The loss and its terms over all batches, each term weighted by its tokens.

        `loss`, `ce`, ... are of the weights that are exported. The other weights, where there are
        any, have the same numbers with their name before them: `raw/loss` or `average/loss`.

        Raises:
          ValueError: no batch.
        """
        sums: dict[str, dict[str, float]] = {weights: {} for weights in self.validated}
        totals: dict[str, float] = {}
        for number, batch in enumerate(batches):
            for weights, summed in sums.items():
                of_batch = jax.random.fold_in(key, number)
                metrics = to_floats(self.evaluate(state, batch, of_batch, ema=weights == "average"))
                for name, value in self.terms(metrics).items():
                    weight = metrics.get(f"{name}_tokens", 1.0)
                    summed[name] = summed.get(name, 0.0) + value * weight
                    if weights == self.validated[0]:
                        totals[name] = totals.get(name, 0.0) + weight
        if not totals:
            raise ValueError("validation: expected at least one batch")
        found: dict[str, float] = {}
        for weights, summed in sums.items():
            means = {name: summed[name] / totals[name] for name in summed}
            means["loss"] = sum(
                weight * means.get(name, 0.0) for name, weight in self.loss_weights.items()
            )
            prefix = "" if weights == self.validated[0] else f"{weights}/"
            found |= {f"{prefix}{name}": value for name, value in means.items()}
        return found

    def terms(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Without the counts of tokens, and without terms that had none or have no weight."""
        return {
            name: value
            for name, value in metrics.items()
            if not name.endswith("_tokens")
            and metrics.get(f"{name}_tokens", 1.0) > 0
            and self.loss_weights.get(name, 1.0) > 0
        }

    def describe_validation(self, step: int, scores: Mapping[str, float]) -> str:
        """The losses of `validate` in a line, with the weights that each is of."""
        preferred, *others = self.validated
        line = f"step {step}: validation loss {scores['loss']:.4g} ({preferred} weights)"
        return line + "".join(f", {scores[f'{name}/loss']:.4g} ({name})" for name in others)


def make_stage(
    config: TrainConfig,
    model_config: UniXConfig,
    mesh: Mesh,
    total_steps: int,
    *,
    has_autoencoder: bool = False,
    encoder_config: Dinov2Config | None = None,
) -> Stage:
    """The stage that `config` names.

    Args:
      config: of the run.
      model_config: sizes of the model.
      mesh: where everything lives.
      total_steps: length of the run, over which the learning rate is scheduled.
      has_autoencoder: there is one, frozen, beside the model.
      encoder_config: sizes of REPA's encoder, where REPA is used.

    Raises:
      ConfigError: settings that contradict each other.
    """
    # A run that is shorter than its warm-up ends during the warm-up.
    total_steps = max(total_steps, config.optimizer.warmup_steps + 1)
    if config.stage == "autoencoder":
        return AutoencoderStage(config, model_config, mesh, total_steps)
    return UniXStage(config, model_config, mesh, total_steps, has_autoencoder, encoder_config)


def compute_dtype(precision: Precision, mesh: Mesh) -> Any:
    """The type that `auto` stands for on these devices."""
    if precision == "auto":
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


class UniXStage(Stage):
    """Understanding, generation or both: trains what the pattern `trainable` names."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: UniXConfig,
        mesh: Mesh,
        total_steps: int,
        has_autoencoder: bool,
        encoder_config: Dinov2Config | None,
    ) -> None:
        super().__init__(config, model_config, mesh)
        dtype = compute_dtype(config.model.dtype, mesh)
        if isinstance(model_config.generation, UNetBackbone):
            _check_unet(config)
        _check_attention(config.model.attention, model_config, mesh, dtype)
        self._run, self._encoder = config, encoder_config
        init: dict[str, Callable[[Array], Any]] = {
            "unix": lambda key: init_params(model_config, key, boxed=True)
        }
        if has_autoencoder:
            init["autoencoder"] = lambda key: _init_autoencoder(model_config, key)
        if config.lora.rank:
            init["lora"] = lambda key: init_lora(config.lora, model_config, key)
        repa = None
        if encoder_config is not None:
            loss = make_repa(model_config, encoder_config, config.repa, dtype)
            repa = Alignment(loss, config.repa.weight, config.repa.layer)
            init |= repa_parts(model_config, encoder_config, config.repa)
        trained, _ = split_params(init_shapes(init), config.pattern)
        config.optimizer.check_names(flatten(trained))
        # Layers without trained parameters before them need no backward pass.
        self._frozen_und = config.stage == "generation" and not trains_und(trained)
        model = UniX(
            model_config,
            dtype,
            attention_implementation=config.model.attention,
            remat_policy=config.model.remat,
            unroll=config.model.unroll,
            freeze_und=self._frozen_und,
        )
        self._tx, schedule = make_optimizer(config.optimizer, total_steps)
        self._options: dict[str, Any] = {
            "init": init,
            "frozen_dtype": compute_dtype(config.model.frozen_dtype, mesh),
            "ema": config.average_decay is not None,
            "mesh": mesh,
        }
        self.target = abstract_state(config.pattern, self._tx, **self._options)
        step = StepConfig(
            losses=config.losses,
            accumulation=config.accumulation,
            ema_decay=config.average_decay or 0.0,
            lora=config.lora if config.lora.rank else None,
        )
        shardings = jax.tree.map(lambda x: x.sharding, self.target)
        self._step = make_train_step(
            model, step, self._tx, schedule, shardings=shardings, repa=repa
        )
        self._evaluate = make_eval_step(model, step, mesh=mesh, repa=repa)
        self.loss_weights = {
            "ce": config.losses.ce_weight,
            "mse": config.losses.mse_weight,
            "repa": 0.0 if repa is None else repa.weight,
        }

    def fresh(self, given: Parts) -> Any:
        key = jax.random.fold_in(self.key, 0)
        return create_state(self._run.pattern, self._tx, key, given=given, **self._options)

    def train_step(self, number: int) -> Any:
        return self._step

    def evaluate(
        self, state: Any, batch: TrainingBatch, key: PRNGKeyArray, *, ema: bool = False
    ) -> Scalars:
        return self._evaluate(state.averaged() if ema else state, batch, key)

    def batch_flops(self, batch: TrainingBatch) -> float:
        counts = flops.count(batch, self.config)
        kind: flops.Trained = "understanding" if self._run.stage == "understanding" else "all"
        if self._frozen_und:
            kind = "generation"
        adapters = self._run.lora.rank > 0
        total = flops.step_flops(self.config, counts, kind, weights_frozen=adapters)
        if self._encoder is not None:
            total += flops.repa_flops(
                self._encoder, self._run.repa.image_size, counts.vae_images, counts.vae_size
            )
        return total

    def trained(self, state: Any) -> Any:
        return state.trained

    def weights(self, state: Any, which: Weights) -> tuple[Any, Any | None]:
        merged = state.params(ema=which == "average")
        unix = merged["unix"]
        if self._run.lora.rank:
            unix = merge_lora(unix, merged["lora"], self._run.lora)
        return unix, merged.get("autoencoder")


def _check_unet(config: TrainConfig) -> None:
    """Raises ConfigError for settings that need a gen stream, which a model with a U-Net lacks."""
    if config.stage == "joint":
        raise ConfigError(
            "stage: expected understanding or generation for a model with a U-Net as its "
            "generation backbone, found 'joint'"
        )
    if config.lora.rank and "gen" in config.lora.streams:
        raise ConfigError(
            "lora.streams: expected ('und',) for a model with a U-Net as its generation backbone, "
            f"found {config.lora.streams}"
        )


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


class AutoencoderStage(Stage):
    """The small autoencoder; the model beside it stays untrained."""

    def __init__(
        self, config: TrainConfig, model_config: UniXConfig, mesh: Mesh, total_steps: int
    ) -> None:
        super().__init__(config, model_config, mesh)
        tx, schedule = make_optimizer(config.optimizer, total_steps)
        self._tx, self._dtype = tx, compute_dtype(config.model.dtype, mesh)
        self._objective, self._accumulation = config.autoencoder, config.accumulation
        self._ema = config.average_decay is not None
        self.loss_weights = {
            "l1": 1.0,
            "mse": self._objective.mse_weight,
            "kl": self._objective.kl_weight,
        }
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._replicated),
            jax.eval_shape(self._init, self.key),
        )
        config.optimizer.check_names(flatten(self.target.params))

        def step_on(objective: Any) -> Any:
            inner = make_autoencoder_step(
                model_config.vae, tx, objective, dtype=self._dtype,
                ema_decay=config.average_decay or 0.0, accumulation=self._accumulation,
            )  # fmt: skip

            def train_step(state: Any, batch: TrainingBatch, key: Array) -> tuple[Any, Any]:
                check_rows(batch.rows, self._accumulation, mesh)
                rate = jnp.asarray(schedule(state.step), jnp.float32)
                state, metrics = inner(state, _images(batch), key)
                return state, {**metrics, "learning_rate": rate}

            return jax.jit(train_step, donate_argnums=0)

        self._cropped = step_on(self._objective)
        # A separate program, so that training on crops does not need the memory of whole images.
        self._whole = step_on(dataclasses.replace(self._objective, crop=None, crop_steps=None))
        self._evaluation = make_autoencoder_evaluation(
            model_config.vae, self._dtype, accumulation=self._accumulation
        )

    def _init(self, key: PRNGKeyArray) -> AutoencoderState:
        return init_autoencoder_state(self.config.vae, self._tx, key, ema=self._ema)

    def fresh(self, given: Parts) -> AutoencoderState:
        state = self._init(jax.random.fold_in(self.key, 0))
        if "autoencoder" in given:
            params = jax.tree.map(jnp.asarray, given["autoencoder"])
            ema = jax.tree.map(jnp.copy, params) if self._ema else None
            state = state.replace(params=params, ema=ema)  # type: ignore[attr-defined]
        return jax.device_put(state, self._replicated)

    def train_step(self, number: int) -> Any:
        last = self._objective.crop_steps
        return self._cropped if last is None or number <= last else self._whole

    def evaluate(
        self, state: Any, batch: TrainingBatch, key: PRNGKeyArray, *, ema: bool = False
    ) -> Scalars:
        check_rows(batch.rows, self._accumulation, self.mesh)
        return self._evaluation(state.ema if ema else state.params, _images(batch))

    def batch_flops(self, batch: TrainingBatch) -> float:
        assert batch.vae_pixels is not None
        rows, images, height, width, _ = batch.vae_pixels.shape
        # Counted for crops even if whole images follow, since a batch does not know its step.
        crop = self._objective.crop
        size = (height, width) if crop is None else (crop, crop)
        # The decoder mirrors the encoder, with one more block per level.
        return 3 * 2 * rows * images * flops.encoder_flops(self.config.vae, size)

    def trained(self, state: Any) -> Any:
        return state.params

    def weights(self, state: Any, which: Weights) -> tuple[Any, Any | None]:
        # A complete checkpoint, from which the next stage starts; the model itself is untrained.
        return untrained_params(self.config, self.key), self._of(state, which)

    def final_config(
        self, state: Any, which: Weights, batches: Iterable[TrainingBatch]
    ) -> UniXConfig:
        return measured_config(self.config, self._of(state, which), batches, self._dtype)

    def _of(self, state: Any, which: Weights) -> Any:
        return state.ema if which == "average" else state.params


def measured_config(
    config: UniXConfig, vae_params: Any, batches: Iterable[TrainingBatch], dtype: Any
) -> UniXConfig:
    """`config` with the scale and shift of the latents of a trained autoencoder.

    They are measured on the first batches of training data.
    """
    pixels = (_images(b) for _, b in zip(range(_STATISTICS_BATCHES), batches, strict=False))
    measured = measure_latent_statistics(config.vae, vae_params, pixels, dtype)
    return dataclasses.replace(config, vae=with_latent_statistics(config.vae, *measured))


@jax.jit
def _images(batch: TrainingBatch) -> Float[Array, "B*J H W 3"]:
    """All images; absent ones are zeros, and those of weight infinity are infinite."""
    pixels = batch.vae_pixels
    assert pixels is not None
    images = vae_input(jnp.reshape(pixels, (-1, *pixels.shape[2:])))
    if batch.mse_weights is None:
        return images
    # Of the first latent token of each image: 1, or 0 for padding, or that of a process without a
    # batch (see `Feed`), whose images must not give a finite loss.
    weights = batch.mse_weights[:, :: batch.mse_weights.shape[1] // pixels.shape[1]]
    return images * weights.reshape(-1, 1, 1, 1)


def to_floats(metrics: Scalars) -> dict[str, float]:
    """Metrics on the host; waits for the devices."""
    return {name: float(np.asarray(value)) for name, value in metrics.items()}

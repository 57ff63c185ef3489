"""What a run starts from, and what of it is kept in its directory, so that it needs nothing else.

DIR/run.json     the settings and the sizes of the model, as the run was started
DIR/tokenizer/   tokenizer files
DIR/frozen/      weights that the run does not change
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unix_jax import checkpoint
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.files import atomic_directory, atomic_write
from unix_jax.json_file import read_json, write_json
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.models.unix import param_shapes
from unix_jax.sharding import check_mesh, make_mesh, param_shardings, parse_mesh
from unix_jax.text import Tokenizer
from unix_jax.training.average import start_share
from unix_jax.training.checkpoint import CheckpointStore
from unix_jax.training.config import TrainConfig
from unix_jax.training.distributed import agree, is_primary
from unix_jax.training.export import FOLDER as EXPORT

RUN_FILE = "run.json"
TOKENIZER = "tokenizer"
FROZEN = "frozen"

LoadConfig = Callable[[Path], tuple[UniXConfig, bool]]
LoadModel = Callable[..., tuple[UniXConfig, Any, Any]]
LoadEncoderConfig = Callable[[str], Dinov2Config]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weights come from.

    has_autoencoder: there is one beside the model.
    encoder_config: sizes of REPA's encoder, where REPA is used.
    init: directory of a checkpoint, or None for fresh weights.
    tokenizer: its directory or file.
    """

    model_config: UniXConfig
    has_autoencoder: bool
    encoder_config: Dinov2Config | None
    init: Path | None
    tokenizer: Path

    def load_tokenizer(self) -> Tokenizer:
        """Raises CheckpointError when it is no tokenizer, or one of another vocabulary."""
        self.model_config.check_special_tokens()
        tokenizer = Tokenizer.from_directory(self.tokenizer, self.model_config.special_tokens)
        tokenizer.check_vocab(self.model_config.decoder.vocab_size)
        return tokenizer


def find_origin(
    config: TrainConfig, load_config: LoadConfig, load_encoder_config: LoadEncoderConfig
) -> Origin:
    """What `config` says to start from.

    Args:
      config: of the run.
      load_config: see `convert.load.load_config`.
      load_encoder_config: see `convert.dinov2.load_dinov2_config`.

    Raises:
      CheckpointError, ConfigError: no checkpoint there, no tokenizer, or no autoencoder where the
        stage needs one.
    """
    init, model_config, has_autoencoder = None, UniXConfig.preset(config.model.preset), False
    if config.init is not None:
        init = Path(config.init)
        if checkpoint.is_checkpoint(init / EXPORT):
            init = init / EXPORT
        model_config, has_autoencoder = load_config(init)
    if config.stage == "generation" and config.data.moments is None and not has_autoencoder:
        raise ConfigError(
            f"init: expected a checkpoint with an autoencoder for the stage generation, "
            f"found {config.init or 'none'}; train one with configs/nano_autoencoder.py, or set "
            "data.moments"
        )
    encoder_config = None
    if config.uses_repa:
        assert config.rad_dino is not None
        encoder_config = load_encoder_config(config.rad_dino)
    tokenizer = Path(config.model.tokenizer) if config.model.tokenizer else init
    if tokenizer is None:
        raise ConfigError(
            "model.tokenizer: expected a directory with tokenizer.json where no --init is given, "
            "found none"
        )
    return Origin(model_config, has_autoencoder, encoder_config, init, tokenizer)


def load_parts(
    origin: Origin, mesh: Mesh, load_model: LoadModel, load_encoder: Callable[[], Any]
) -> dict[str, Any]:
    """The loaded parts in float32, each placed on the mesh as the run will hold it.

    Args:
      load_model: see `convert.load.load_model`.
      load_encoder: gives the weights of REPA's encoder.

    Raises:
      CheckpointError, ConfigError: files that are broken or do not fit each other.
    """
    parts: dict[str, Any] = {}
    if origin.init is not None:

        def shardings(config: UniXConfig) -> tuple[Any, Any]:
            boxed = param_shapes(config, boxed=True)
            return param_shardings(boxed, mesh), NamedSharding(mesh, PartitionSpec())

        _, parts["unix"], autoencoder = load_model(
            origin.init, dtype=jnp.float32, shardings=shardings
        )
        if autoencoder is not None:
            parts["autoencoder"] = autoencoder
    if origin.encoder_config is not None:
        parts["rad_dino"] = load_encoder()
    return parts


def make_run_mesh(
    text: str | None, model_config: UniXConfig, devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of `data=1,fsdp=8,tensor=1`, or all `devices` (default: all) along fsdp.

    One process may leave devices unused; of several, each must have its part.

    Raises:
      ConfigError: axes that do not fit the devices or the model.
    """
    if text is None:
        mesh = make_mesh(
            fsdp=jax.device_count() if devices is None else len(devices), devices=devices
        )
    else:
        mesh = parse_mesh(text, partial=jax.process_count() == 1, devices=devices)
    check_mesh(mesh, model_config)
    return mesh


# --- the run's directory -----------------------------------------------------------------------


def remember(out: Path, config: TrainConfig, origin: Origin) -> None:
    """Writes run.json and the tokenizer, whole or not at all.

    Raises:
      CheckpointError: they cannot be written.
    """
    if not is_primary():
        return
    tokenizer = origin.tokenizer
    files = [tokenizer] if tokenizer.is_file() else [
        tokenizer / name for name in checkpoint.TOKENIZER_FILES if (tokenizer / name).is_file()
    ]  # fmt: skip
    try:
        if tokenizer.absolute() != (out / TOKENIZER).absolute():
            shutil.rmtree(out / TOKENIZER, ignore_errors=True)
            with atomic_directory(out / TOKENIZER) as directory:
                for file in files:
                    shutil.copyfile(file, directory / file.name)
        with atomic_write(out / RUN_FILE) as temporary:
            write_json(
                temporary,
                {
                    "config": config.to_dict(),
                    "model": origin.model_config.to_dict(),
                    "autoencoder": origin.has_autoencoder,
                    "encoder": origin.encoder_config and dataclasses.asdict(origin.encoder_config),
                },
            )
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


def recall(out: Path, config: TrainConfig) -> Origin:
    """The origin of a run that continues; `--init` and the like were for its start.

    Raises:
      ConfigError: run.json is broken, or `config` is of another stage, seed or model.
    """
    file = out / RUN_FILE
    saved = agree(lambda: read_json(file))
    try:
        before = saved["config"]
        found = {name: before[name] for name in ("stage", "seed", "use_lora")}
        model_config = UniXConfig.from_dict(saved["model"], str(file))
        has_autoencoder = bool(saved["autoencoder"])
        encoder_config = saved["encoder"] and Dinov2Config(**saved["encoder"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{file}: expected what train.py wrote, {error!r}") from None
    for name, value in found.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name}: expected {value!r}, as the run in {out} was started with, "
                f"found {getattr(config, name)!r}; name another --out"
            )
    if (encoder_config is not None) != config.uses_repa:
        raise ConfigError(
            f"losses.repa_weight: the run in {out} was started {'' if encoder_config else 'not '}"
            f"using REPA, found {config.losses.repa_weight}; name another --out"
        )
    return Origin(model_config, has_autoencoder, encoder_config, None, out / TOKENIZER)


def keep_average(out: Path, config: TrainConfig) -> TrainConfig:
    """`config` for the run in `out`, whose checkpoints have an average of the weights or none.

    `ema_decay` auto is what the run was started with: earlier versions kept an average with LoRA
    as well.

    Raises:
      ConfigError: an average is asked for that the run does not have, or the other way round.
    """
    before = agree(lambda: read_json(out / RUN_FILE))["config"]
    if config.stage == "autoencoder" and "ema_decay" in before.get("autoencoder", {}):
        # As earlier versions wrote it.
        before = before["autoencoder"]
    decay = before.get("ema_decay")
    if config.ema_decay == "auto":
        return dataclasses.replace(config, ema_decay=decay)
    if (config.ema_decay is None) != (decay is None):
        raise ConfigError(
            f"ema_decay: expected {'None' if decay is None else 'a number'}, since the run in "
            f"{out} was started with {decay}, found {config.ema_decay}; name another --out"
        )
    return config


def recorded_share(progress: Mapping[str, Any], step: int) -> float:
    """The weight of a run's initial weights in the average of a checkpoint, see `average`.

    Checkpoints of earlier versions do not have it. There the decay acted without a ramp, except in
    the stage autoencoder.

    Args:
      progress: JSON of the checkpoint.
      step: of the checkpoint.
    """
    share = progress.get("start_share")
    if share is not None:
        return float(share)
    before = progress.get("config", {})
    if before.get("stage") == "autoencoder":
        decay = before.get("autoencoder", {}).get("ema_decay")
        return 1.0 if decay is None else start_share(decay, 0, step)
    decay = before.get("ema_decay")
    return 1.0 if decay is None else float(decay**step)


def without_frozen(state: Any) -> Any:
    """The state as checkpoints have it: what a run does not change is not written again."""
    return state.replace(frozen=None) if hasattr(state, "frozen") else state


def save_frozen(out: str | os.PathLike[str], state: Any) -> None:
    """Writes the frozen weights of a run that starts.

    Raises:
      CheckpointError: they cannot be written.
    """
    frozen = getattr(state, "frozen", None)
    if not jax.tree.leaves(frozen):
        return
    shutil.rmtree(Path(out) / FROZEN, ignore_errors=True)
    with CheckpointStore(Path(out) / FROZEN) as store:
        store.save(0, frozen, {})


def restore_frozen(out: str | os.PathLike[str], target: Any, state: Any) -> Any:
    """`state` with the frozen weights of its run.

    Raises:
      CheckpointError: they are damaged or absent.
    """
    frozen = getattr(target, "frozen", None)
    if not jax.tree.leaves(frozen):
        return state.replace(frozen=frozen) if hasattr(state, "frozen") else state
    with CheckpointStore(Path(out) / FROZEN) as store:
        restored = store.restore(frozen)
        if restored is None:
            reason = "; ".join(store.skipped) or "no such checkpoint"
            raise CheckpointError(f"{store.directory}: frozen weights: {reason}")
        return state.replace(frozen=restored.state)

"""What a run starts from, and what of it is kept in its directory, so that it needs nothing else.

DIR/run.json     the settings, how they changed, and the sizes of the model
DIR/tokenizer/   tokenizer files; in `source/` the other files of the start, for the export
DIR/frozen/      weights that the run does not change
"""

import contextlib
import dataclasses
import datetime
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unix_jax.checkpoints import native
from unix_jax.checkpoints.hub_files import tokenizer_files
from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.checkpoints.load import load_config, load_model
from unix_jax.checkpoints.published import verbatim_files
from unix_jax.checkpoints.rad_dino_files import load_dinov2, load_dinov2_config
from unix_jax.checkpoints.run_export import RUN_FILE, resolve_checkpoint
from unix_jax.config import UNetBackbone, UniXConfig
from unix_jax.data.records import RecordSource
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.instructions import Instructions
from unix_jax.models.dinov2 import Dinov2Config
from unix_jax.models.shapes import initialisation_options
from unix_jax.models.unix import init_params, param_shapes
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.sharding import check_mesh, make_mesh, param_shardings, parse_mesh, slice_count
from unix_jax.storage import bucket_cache
from unix_jax.storage.buckets import is_bucket
from unix_jax.storage.directory_lock import DirectoryLock
from unix_jax.storage.files import atomic_directory, atomic_write
from unix_jax.storage.json_file import read_json, write_json
from unix_jax.training.accumulation import check_rows
from unix_jax.training.average import start_share
from unix_jax.training.checkpoint_store import CheckpointStore
from unix_jax.training.config import TrainConfig, settings
from unix_jax.training.distributed import agree, is_primary
from unix_jax.training.export import recover as recover_export
from unix_jax.training.length import Length, run_length
from unix_jax.training.resuming import RULES, Change, Rule, changes, extended_history, upgraded
from unix_jax.training.run_directory import sweep

TOKENIZER = "tokenizer"
FROZEN = "frozen"
# Folded into the run's key for the fresh weights of a U-Net.
_UNET_KEY = 3


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


def find_origin(config: TrainConfig) -> Origin:
    """What `config` says to start from.

    Raises:
      CheckpointError, ConfigError: no checkpoint there, no tokenizer, or no autoencoder where the
        stage needs one.
    """
    init, model_config, has_autoencoder = None, UniXConfig.preset(config.model.preset), False
    if config.init is not None:
        init = resolve_checkpoint(config.init)
        model_config, has_autoencoder = load_config(init)
    draws = config.stage in ("generation", "joint")
    if draws and config.data.moments is None and not has_autoencoder:
        raise ConfigError(
            f"init: expected a checkpoint with an autoencoder for the stage {config.stage}, "
            f"found {config.init or 'none'}; train one with configs/nano_autoencoder.py, or set "
            "data.moments"
        )
    if config.stage == "generation":
        model_config = with_backbone(model_config, config, config.init or "the preset")
    model_config = with_instructions(model_config, config.stage, config.data.prompts)
    encoder_config = None
    if config.uses_repa:
        assert config.repa.encoder is not None
        encoder_config = load_dinov2_config(config.repa.encoder)
    tokenizer = _tokenizer(config.model.tokenizer) if config.model.tokenizer else init
    if tokenizer is None:
        raise ConfigError(
            "model.tokenizer: expected a directory with tokenizer.json where no --init is given, "
            "found none"
        )
    _warn_of_another_tokenizer(tokenizer, init)
    return Origin(model_config, has_autoencoder, encoder_config, init, tokenizer)


def _tokenizer(path: str) -> Path:
    """The local directory or file."""
    return bucket_cache.fetch(path, tokenizer_files) if is_bucket(path) else Path(path)


def _warn_of_another_tokenizer(tokenizer: Path, init: Path | None) -> None:
    """Warns of another tokenizer, with which the trained embeddings have no meaning."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    own = None if init is None else init / "tokenizer.json"
    if own is None or not own.is_file() or not file.is_file():
        return
    if own.read_bytes() != file.read_bytes():
        warnings.warn(
            f"model.tokenizer: {file} is not the tokenizer of --init, {own}: the embeddings of the "
            "initial weights belong to other tokens",
            stacklevel=3,
        )


def with_backbone(model_config: UniXConfig, config: TrainConfig, source: str) -> UniXConfig:
    """The model with the generation backbone that a run trains.

    A U-Net replaces UniX's own backbone. A U-Net that has been trained is not replaced.

    Args:
      source: where `model_config` comes from, for the error.

    Raises:
      ConfigError: the model has another U-Net than `model.generation` asks for.
    """
    found, asked = model_config.generation, config.model.generation
    if isinstance(found, UNetBackbone) and found != asked:
        raise ConfigError(
            f"model.generation: expected the backbone of {source}, {found}, found {asked}; "
            "configs/stage2_generation_unet.py shows how a U-Net is configured"
        )
    return dataclasses.replace(model_config, generation=asked)


def with_instructions(model_config: UniXConfig, stage: str, prompts: tuple[str, ...]) -> UniXConfig:
    """The model with the instructions that a run teaches it, for its export and its resumption.

    Only reports are asked for: other stages leave the model's own as they are.
    """
    if stage not in ("understanding", "joint"):
        return model_config
    asked = Instructions.same(prompts) if prompts else model_config.asked
    return dataclasses.replace(model_config, instructions=asked)


def load_parts(origin: Origin, config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """The loaded parts in float32, each placed on the mesh as the run will hold it.

    Raises:
      CheckpointError, ConfigError: files that are broken or do not fit each other.
    """
    parts: dict[str, Any] = {}
    if origin.init is not None:

        def shardings(config: UniXConfig) -> tuple[Any, Any]:
            boxed = param_shapes(config, boxed=True)
            return param_shardings(boxed, mesh), NamedSharding(mesh, PartitionSpec())

        loaded, parts["unix"], autoencoder = load_model(
            origin.init, dtype=jnp.float32, shardings=shardings
        )
        if loaded.generation != origin.model_config.generation:
            parts["unix"] = _replaced_backbone(parts["unix"], origin.model_config, config, mesh)
        if autoencoder is not None:
            parts["autoencoder"] = autoencoder
    if origin.encoder_config is not None:
        parts["rad_dino"] = load_dinov2(str(config.repa.encoder))[1]
    return parts


def _replaced_backbone(
    params: dict[str, Any], model_config: UniXConfig, config: TrainConfig, mesh: Mesh
) -> dict[str, Any]:
    """The loaded parameters without their gen stream, and with a fresh U-Net."""
    shapes = param_shapes(model_config, boxed=True)["unet"]
    key = jax.random.fold_in(jax.random.key(config.seed), _UNET_KEY)

    def fresh(key: Any) -> Any:
        return init_params(model_config, key)["unet"]

    unet = jax.jit(
        fresh,
        out_shardings=param_shardings(shapes, mesh),
        compiler_options=initialisation_options(),
    )(key)
    wanted = flatten(param_shapes(model_config))
    kept = {path: x for path, x in flatten(params).items() if path in wanted}
    return unflatten(kept) | {"unet": unet}


def backbone_note(origin: Origin) -> list[str]:
    """A line about a backbone that is not the checkpoint's."""
    if origin.init is None:
        return []
    loaded, _ = load_config(origin.init)
    if loaded.generation == origin.model_config.generation:
        return []
    own, other = (flatten(param_shapes(c)) for c in (loaded, origin.model_config))
    left = sum(math.prod(own[path].shape) for path in own.keys() - other.keys())
    fresh = sum(math.prod(other[path].shape) for path in other.keys() - own.keys())
    return [
        f"generation backbone: a U-Net with {fresh:,} fresh parameters replaces the gen stream of "
        f"{origin.init}, of which {left:,} parameters are left out"
    ]


def make_run_mesh(
    text: str | None, model_config: UniXConfig, devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of `data=1,fsdp=8,tensor=1` over all `devices` (default: all of JAX).

    Without text, a slice's devices are along fsdp, and several slices along data. One process may
    leave devices unused; of several, each must have its part.

    Raises:
      ConfigError: axes that do not fit the devices or the model.
    """
    available = jax.devices() if devices is None else list(devices)
    if text is None:
        slices = slice_count(available)
        mesh = make_mesh(data=slices, fsdp=len(available) // slices, devices=available)
    else:
        alone = len({device.process_index for device in available}) == 1
        mesh = parse_mesh(text, partial=alone, devices=available)
    check_mesh(mesh, model_config)
    return mesh


def check_run_rows(config: TrainConfig, mesh: Mesh, model_config: UniXConfig) -> None:
    """Refuses rows that do not divide over the mesh and `accumulation`, and says which do.

    Raises:
      ConfigError: the rows do not divide evenly.
    """
    decoder = model_config.decoder
    check_rows(
        config.data.rows,
        config.accumulation,
        mesh,
        heads=math.gcd(decoder.num_heads, decoder.num_kv_heads),
    )


def agreed_length(
    config: TrainConfig, records: RecordSource, tokenizer: Tokenizer, model_config: UniXConfig
) -> Length:
    """The length of a run, counted by the primary process for all of them; see `run_length`."""
    counted = agree(
        lambda: dataclasses.asdict(run_length(config, records, tokenizer, model_config))
    )
    return Length(**counted)


# --- the run's directory -----------------------------------------------------------------------


@contextlib.contextmanager
def locked(out: Path, break_lock: bool) -> Iterator[str]:
    """Holds the run's directory; the primary process does, for all. Yields a line to say, or "".

    Raises:
      UniXError: another run is writing the directory; in every process.
    """
    with contextlib.ExitStack() as stack:

        def acquire() -> str:
            lock = stack.enter_context(DirectoryLock(out, break_lock=break_lock))
            return lock.note

        yield agree(acquire)


def tidy(out: Path) -> None:
    """Removes what a killed run left half-written; for the holder of the directory's lock."""
    if is_primary():
        sweep(out)
        recover_export(out)


def remember(out: Path, config: TrainConfig, origin: Origin) -> None:
    """Writes run.json, then the tokenizer, each atomically.

    Raises:
      CheckpointError: they cannot be written.
    """
    if not is_primary():
        return
    tokenizer = origin.tokenizer
    files = _files_to_carry(origin)
    # Written first, so that all other files of a killed run are known to belong to a run.
    _write_record(
        out,
        {
            "config": config.to_dict(),
            "history": [],
            "started": _now(),
            "working_directory": str(Path.cwd()),
            "model": origin.model_config.to_dict(),
            "autoencoder": origin.has_autoencoder,
            "encoder": origin.encoder_config and dataclasses.asdict(origin.encoder_config),
        },
    )
    try:
        if tokenizer.absolute() != (out / TOKENIZER).absolute():
            shutil.rmtree(out / TOKENIZER, ignore_errors=True)
            with atomic_directory(out / TOKENIZER) as directory:
                for name, file in files.items():
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, directory / name)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


def _files_to_carry(origin: Origin) -> dict[str, Path]:
    """By name in a checkpoint: tokenizer files, and the other files of the start except weights."""
    start: list[tuple[Path, str]] = []
    if origin.init is not None:
        converted = native.is_checkpoint(origin.init)
        start = (native.carried_files if converted else verbatim_files)(origin.init)
    files = {name: file for file, name in start if name.startswith("source/")}
    return files | {name: file for file, name in native.carried_files(origin.tokenizer)}


def recall(out: Path, config: TrainConfig) -> tuple[Origin, list[Change]]:
    """(the origin of a run that resumes, what of its configuration changed).

    Raises:
      ConfigError: run.json is broken, or `config` has values with which the run cannot resume.
    """
    file = out / RUN_FILE
    saved = agree(lambda: read_json(file))
    try:
        model_config = UniXConfig.from_dict(saved["model"], str(file))
        generation = model_config.generation
        if config.stage == "generation" and generation != config.model.generation:
            raise ConfigError(
                f"model.generation: expected {generation}, with which the run in {out} was "
                f"started, found {config.model.generation}; for another name another --out"
            )
        if model_config.instructions is None:
            # A run of an earlier version, whose model had no instructions.
            prompts = tuple(saved["config"]["data"]["prompts"])
            model_config = with_instructions(model_config, saved["config"]["stage"], prompts)
        has_autoencoder = bool(saved["autoencoder"])
        encoder_config = saved["encoder"] and Dinov2Config(**saved["encoder"])
        started_in = saved.get("working_directory")
        found = changes(saved["config"], config, out, started_in and Path(started_in))
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: expected what train.py wrote, {error!r}") from None
    origin = Origin(model_config, has_autoencoder, encoder_config, None, out / TOKENIZER)
    return origin, found


def resumption(
    checkpoint_path: Path, total_steps: int, step: int, found: Sequence[Change]
) -> list[str]:
    """Lines about a run that resumes after `step`: from where, and with what other settings."""
    if step < total_steps:
        changed = [f"changed from step {step + 1}: {change}" for change in found]
        return [f"resuming from {checkpoint_path}", *changed]
    unused = [str(change) for change in found if change.option != "export"]
    note = f"; not used and not recorded: {', '.join(unused)}" if unused else ""
    return [f"the run ended at step {step}: nothing is left to train{note}"]


def update_record(out: Path, config: TrainConfig, step: int, found: Sequence[Change]) -> None:
    """Brings run.json up to date with the configuration of a run that resumes after `step`.

    Paths that were read at the start stay recorded: a resumed run needs none.

    Raises:
      CheckpointError: it cannot be written.
    """
    if not is_primary():
        return
    file = out / RUN_FILE
    saved = read_json(file)
    current = config.to_dict()
    before = dict(settings(upgraded(saved["config"])))
    for name, rule in RULES.items():
        if rule in (Rule.ORIGIN, Rule.ENCODER) and name in before:
            _set(current, name, before[name])
    history = extended_history(saved.get("history", []), step, list(found), _now())
    _write_record(out, saved | {"config": current, "history": history})


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        values = values[folder]
    values[last] = value


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _write_record(out: Path, values: Mapping[str, Any]) -> None:
    try:
        with atomic_write(out / RUN_FILE) as temporary:
            write_json(temporary, values)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror or error}") from error


def keep_average(out: Path, config: TrainConfig) -> TrainConfig:
    """`config` for the run in `out`, whose checkpoints have an average of the weights or none.

    `ema_decay` auto is what the run was started with: earlier versions kept an average with LoRA
    as well.

    Raises:
      ConfigError: an average is asked for that the run does not have, or the other way round.
    """
    before = agree(lambda: read_json(out / RUN_FILE))["config"]
    if config.stage == "autoencoder" and "ema_decay" in before.get("autoencoder", {}):
        # The form of earlier versions.
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
    """The state as checkpoints have it: what a run does not change is not written again, and a
    state that was halted is that of the last step that was finite."""
    state = state.replace(halted=None)
    return state.replace(frozen=None) if hasattr(state, "frozen") else state


def save_frozen(out: str | os.PathLike[str], state: Any, shared: bool = True) -> None:
    """Writes the frozen weights of a run that starts.

    Args:
      shared: as of `CheckpointStore`.

    Raises:
      CheckpointError: they cannot be written.
    """
    frozen = getattr(state, "frozen", None)
    if not jax.tree.leaves(frozen):
        return
    shutil.rmtree(Path(out) / FROZEN, ignore_errors=True)
    with CheckpointStore(Path(out) / FROZEN, shared=shared) as store:
        store.save(0, frozen, {})


def resumed(state: Any, target: Any) -> Any:
    """A state of a checkpoint with what checkpoints do not have except frozen weights."""
    going = jax.jit(lambda: jnp.zeros((), jnp.bool_), out_shardings=target.halted.sharding)()
    return state.replace(halted=going)


def restore_frozen(
    out: str | os.PathLike[str], target: Any, state: Any, shared: bool = True
) -> Any:
    """`state` with the frozen weights of its run.

    Args:
      shared: as of `CheckpointStore`.

    Raises:
      CheckpointError: they are damaged or absent.
    """
    frozen = getattr(target, "frozen", None)
    if not jax.tree.leaves(frozen):
        return state.replace(frozen=frozen) if hasattr(state, "frozen") else state
    with CheckpointStore(Path(out) / FROZEN, shared=shared) as store:
        restored = store.restore(frozen)
        if restored is None:
            raise CheckpointError(
                f"{store.directory}: the weights that the run does not change are missing. Restore "
                "the directory from a copy, or start a new run with another --out"
            )
        return state.replace(frozen=restored.state)

"""The weights of a kept checkpoint of a run as a checkpoint for inference.

Works on the directory of any run: finished, stopped, killed or still running. It is only read.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from unix_jax.checkpoints import run_files
from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.errors import CheckpointError, ConfigError, UniXError
from unix_jax.models.unix import untrained_params
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.sharding import make_mesh
from unix_jax.storage.bucket_path import BucketPath, any_path
from unix_jax.storage.json_file import read_json
from unix_jax.training import export
from unix_jax.training.average import to_export
from unix_jax.training.bucket_run import fetch_listings, fetch_step
from unix_jax.training.checkpoint_store import FOLDER, first_line
from unix_jax.training.config import Weights
from unix_jax.training.feed import Feed
from unix_jax.training.lora import LoraConfig, merge_lora
from unix_jax.training.parameter_groups import merge_params
from unix_jax.training.resuming import upgraded
from unix_jax.training.stages import compute_dtype, measured_config
from unix_jax.training.start import FROZEN, RUN_FILE, TOKENIZER, recorded_share

METRIC = "loss"


def find_step(
    run: str | os.PathLike[str], step: str, weights: Weights | Literal["auto"] = "auto"
) -> int:
    """The kept step that `step` names: `last`, `best` or a number.

    The best has the lowest validation loss of the `weights`; with auto, of those that the run
    prefers, as `keep_best` of the run does.

    Raises:
      CheckpointError: no checkpoint, none that was validated, or another step than the kept ones.
    """
    directory = Path(run) / FOLDER
    kept = run_files.steps(directory) if directory.is_dir() else []
    if not kept:
        raise CheckpointError(f"{directory}: expected checkpoints of a training run, found none")
    if step == "last":
        return kept[-1]
    metrics = {s: run_files.listing(directory / str(s)).get("metrics", {}) for s in kept}
    named = f"{weights}/{METRIC}"
    losses = {
        s: found[named] if named in found else found[METRIC]
        for s, found in metrics.items()
        if METRIC in found
    }
    if step == "best" and losses:
        return min(losses, key=lambda s: (losses[s], -s))
    if step.isdecimal() and int(step) in kept:
        return int(step)
    listed = ", ".join(
        f"{s} (validation loss {losses[s]:.4g})" if s in losses else str(s) for s in kept
    )
    expected = "a step that was validated" if step == "best" else "last, best or a kept step"
    raise CheckpointError(f"step: expected {expected}, found {step!r}; {directory} has {listed}")


def export_step(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    step: str = "last",
    weights: Weights | Literal["auto"] = "auto",
) -> tuple[Path, dict[str, Any]]:
    """Writes the weights of a kept checkpoint; returns the new directory and what it holds.

    Args:
      run: directory of a run of `train.py`.
      out: a new directory; `run`/export if None.
      step: see `find_step`.
      weights: auto takes those that the run would export at this step.

    Raises:
      UniXError: no such checkpoint, a damaged one, no average in it, or `out` exists already. For
        the stage autoencoder also data of the run that cannot be read: the scale of the latents is
        measured on them.
    """
    directory = any_path(run)
    target = any_path(out) if out is not None else directory / export.FOLDER
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UniXError(f"{target}: exists already; name a new directory with --out")
    if isinstance(directory, BucketPath):
        number = find_step(fetch_listings(directory), step, weights)
        directory = fetch_step(directory, number)
    else:
        number = find_step(directory, step, weights)
    path = directory / FOLDER / str(number)
    run_files.verify(path)
    file = directory / RUN_FILE
    model_config = UniXConfig.from_dict(_entry(file, "model"), str(file))
    progress = path / "progress" / "metadata"
    settings = upgraded(_entry(progress, "config"))
    names = _names(path / "state")
    has_average = any(name.startswith("ema/") for name in names)
    if weights == "auto":
        scores = run_files.listing(path).get("metrics", {})
        weights, _ = to_export(settings.get("export", "auto"), has_average, scores)
    if weights == "average" and not has_average:
        raise CheckpointError(
            f"{path}: expected an average of the weights, found none: the run has ema_decay None; "
            "take --weights raw"
        )
    tokenizer = directory / TOKENIZER
    if settings["stage"] == "autoencoder":
        part = "ema" if weights == "average" else "params"
        vae_params: Any = _read(path / "state", part)
        params: Any = untrained_params(model_config, jax.random.key(settings["seed"]))
        model_config = _measured(model_config, vae_params, settings, tokenizer)
    else:
        part = "ema" if weights == "average" else "trained"
        parts = merge_params(_read(path / "state", part), _read_frozen(directory))
        params, vae_params = parts["unix"], parts.get("autoencoder")
        if settings["lora"]["rank"]:
            params = merge_lora(params, parts["lora"], _dataclass(LoraConfig, settings["lora"]))
    record: dict[str, Any] = {"step": number, "weights": weights}
    if weights == "average":
        record["start_share"] = recorded_share(read_json(progress, CheckpointError), number)
    export.write(target, model_config, params, vae_params, tokenizer, record)
    return target, record


def _entry(file: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file that `train.py` wrote."""
    value = read_json(file, CheckpointError)
    entry = value.get(name) if isinstance(value, dict) else None
    if not isinstance(entry, dict):
        raise CheckpointError(f"{file}: {name}: expected an object, found {type(entry).__name__}")
    return entry


def _measured(
    config: UniXConfig, vae_params: Any, settings: Mapping[str, Any], tokenizer: Path
) -> UniXConfig:
    """The latent statistics on the run's own data, as after a run of the stage autoencoder."""
    data = _dataclass(DataConfig, settings["data"] | {"seed": settings["seed"]})
    mesh = make_mesh(devices=jax.devices()[:1])
    feed = Feed(data, config, Tokenizer.from_directory(tokenizer, config.special_tokens), mesh)
    try:
        dtype = compute_dtype(settings["model"]["dtype"], mesh)
        return measured_config(config, vae_params, (fed.batch for fed in feed), dtype)
    finally:
        feed.close()


def _dataclass(kind: Any, values: Mapping[str, Any]) -> Any:
    """A configuration from its JSON form, in which tuples are lists."""
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{RUN_FILE}: {kind.__name__}: {error}") from None


def _read_frozen(run: Path) -> dict[str, Any]:
    """The weights that the run does not change; none where it trains all of them."""
    path = run / FROZEN / FOLDER / "0"
    if not path.is_dir():
        return {}
    run_files.verify(path)
    return _read(path / "state", "")


def _names(state: Path) -> list[str]:
    return list(flatten(_opened(lambda handler, path: handler.metadata(path).tree, state)))


def _read(state: Path, part: str) -> dict[str, Any]:
    """The nested arrays below `part` of a training state, in the memory of the host."""
    prefix = f"{part}/" if part else ""
    wanted = {
        name: jax.ShapeDtypeStruct((), np.float32)
        for name in _names(state)
        if name.startswith(prefix)
    }
    restored = _opened(
        lambda handler, path: handler.restore(
            path,
            args=ocp.args.PyTreeRestore(
                unflatten(wanted),
                restore_args=unflatten(
                    {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
                ),
                partial_restore=True,
            ),
        ),
        state,
    )
    return restored[part] if part else restored


def _opened(read: Callable[[Any, Path], Any], state: Path) -> Any:
    """What `read` returns for Orbax's handler and the path, which Orbax expects to be absolute."""
    try:
        return read(ocp.PyTreeCheckpointHandler(), state.absolute())
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{state}: cannot be read: {first_line(error)}") from error

"""Reads Janus-Pro's layout as the initial weights of stage 1.

und is Janus-Pro, gen a copy of und. The q/k/v biases are 0 and the q/k norms 1, because Janus-Pro
has neither. The time embedding and `vae2llm` are initialised by the model, `llm2vae` is 0.
Janus-Pro's own image generator (`gen_*`) is dropped.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from unix_jax.checkpoints import native
from unix_jax.checkpoints.configurations import find_vae_weights, read_configurations
from unix_jax.checkpoints.file_leaves import infos, raw_leaf, table_leaves
from unix_jax.checkpoints.formats.readers import open_weights
from unix_jax.checkpoints.formats.tensor_source import TensorSource
from unix_jax.checkpoints.formats.weight_files import WeightFiles, find_weights
from unix_jax.checkpoints.formats.yaml_file import read_yaml
from unix_jax.checkpoints.hub_files import autoencoder_files, checkpoint_files
from unix_jax.checkpoints.leaves import Leaf, array_leaf, flatten
from unix_jax.checkpoints.prefixes import known_names, unwrapped
from unix_jax.checkpoints.published import (
    Progress,
    check_keys,
    check_vae,
    chosen_source,
    open_vae,
    parse_dtype,
    require_wanted,
    verbatim_files,
)
from unix_jax.checkpoints.published_config import from_published
from unix_jax.checkpoints.sizes import unix_disagreements
from unix_jax.checkpoints.source_files import refuse_links_out
from unix_jax.checkpoints.table import (
    JANUS_DROPPED,
    UNUSED,
    janus_table,
    published_key,
    unix_table,
    vae_table,
)
from unix_jax.config import TIME_FREQUENCIES, SpecialTokens, UniXConfig
from unix_jax.errors import CheckpointError
from unix_jax.models.embeddings import sincos_table_2d
from unix_jax.models.layers import TwoLayerMLP, dense
from unix_jax.storage.hub import located
from unix_jax.storage.json_file import read_json

_TOKENS = {
    "<｜begin▁of▁sentence｜>": "bos",
    "<｜end▁of▁sentence｜>": "eos",
    "<｜▁pad▁｜>": "pad",
    "<begin_of_image>": "start_of_image",
    "<end_of_image>": "end_of_image",
}

JANUS_NAMES = known_names(janus_table(UniXConfig()))


def import_janus(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str = "keep",
    *,
    vae: str | os.PathLike[str] | None = None,
    max_latent_size: int | None = None,
    latent_patch_size: int | None = None,
    seed: int = 0,
    allow_non_finite: bool = False,
    weights: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Converts a Janus-Pro directory to the initial checkpoint of stage 1.

    Args:
      source: a directory with `config.json`, weights (`pytorch_model.bin`, `model.safetensors`,
        or shards of either) and tokenizer files; or a weight file in it; or a name on the hub.
      out: a new directory.
      dtype: `keep`, or the floating-point dtype of the parameters.
      vae: the autoencoder's weight file, or a directory with it and its `config.yaml`; without
        it the checkpoint has no autoencoder.
      max_latent_size: side of the latent position table in tokens; by default the published one.
      latent_patch_size: latents along one side of a token; by default the published one.
      seed: random seed of the initialised parameters.
      allow_non_finite: write weights that are NaN or infinite.
      weights: `model`, `ema`, a name or a weight file, as of `import_published`; of the weights
        of Janus-Pro only.
      progress: called with (bytes since the last call, total bytes).

    Raises:
      UniXError: the source is broken or does not fit its configuration, or `out` exists.
    """
    source = located(source, functools.partial(checkpoint_files, wanted=weights))
    directory, file, average = chosen_source(source, weights)
    raw, _ = read_configurations(directory)
    raw_vae, vae_file = None, None
    if vae is not None:
        raw_vae, vae_file = _vae_files(located(vae, autoencoder_files, "--vae"))
    config = from_published(raw, raw_vae, source=str(directory / "config.json"))
    config = dataclasses.replace(
        config,
        max_latent_size=max_latent_size or config.max_latent_size,
        latent_patch_size=latent_patch_size or config.latent_patch_size,
        # The second bos belongs to the published weights' inference only.
        double_bos=False,
    )
    config = dataclasses.replace(config, special_tokens=_special_tokens(directory, raw, config))
    kind = parse_dtype(dtype)
    files = find_weights(directory, file or average)
    opened = open_weights(files, average, JANUS_NAMES)
    with unwrapped(opened, JANUS_NAMES, average, _has_own_name) as tensors:
        require_wanted(directory, average, (files, tensors))
        _check(config, raw, tensors, directory)
        leaves = _start(config, tensors, kind, seed)
        inside = [directory / "config.json", directory / "tokenizer.json"]
        if file is None:
            inside += [*files.paths, *(files.paths[0].parent / n for n, _ in tensors.files())]
        refuse_links_out(directory, inside)
        extras = {
            published: raw_leaf(tensors, key)
            for key in infos(tensors)
            if UNUSED.fullmatch(published := published_key(key))
        }
        save = functools.partial(
            native.save,
            out,
            config,
            leaves,
            extras=extras,
            allow_non_finite=allow_non_finite,
            copies=[(p, n) for p, n in verbatim_files(directory) if n in native.TOKENIZER_FILES],
        )
        total = sum(leaf.nbytes for group in (leaves, extras) for leaf in group.values())
        sources = {"params": str(tensors.path)}
        if vae_file is None:
            save(sources=sources, progress=_step(progress, total))
            return
        with open_vae(vae_file) as vae_tensors:
            check_vae(config, raw_vae, vae_tensors, vae_file.paths[0].parent / "config.yaml")
            vae_leaves = table_leaves(vae_table(config.vae), vae_tensors)
            total += sum(leaf.nbytes for leaf in vae_leaves.values())
            save(
                vae_params=vae_leaves,
                sources=sources | {"vae": str(vae_tensors.path)},
                progress=_step(progress, total),
            )


def _step(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(done, total)


def _has_own_name(key: str) -> Any:
    """Whether the table ignores a key of Janus-Pro."""
    return JANUS_DROPPED.fullmatch(key) or UNUSED.fullmatch(published_key(key))


def _vae_files(path: Path) -> tuple[dict[str, Any] | None, WeightFiles]:
    """The content of the `config.yaml` in the weights' directory, and the weights."""
    directory = path if path.is_dir() else path.parent
    if (path / "vae").is_dir():  # a whole published directory
        directory = path / "vae"
    weights = find_vae_weights(directory) if path.is_dir() else WeightFiles((path,), path.name)
    if weights is None or not weights.paths[0].is_file():
        raise CheckpointError(f"{path}: expected the autoencoder's weight file, found none")
    return read_yaml(directory / "config.yaml"), weights


def _special_tokens(directory: Path, raw: Mapping[str, Any], config: UniXConfig) -> SpecialTokens:
    """Ids by name from `tokenizer.json`, since they differ between Janus-Pro's sizes.

    Without that file, or where `config.json` states them, they are the configuration's.
    """
    file = directory / "tokenizer.json"
    if "special_token_ids" in raw or not file.is_file():
        return config.special_tokens
    tokenizer = read_json(file)
    added = tokenizer.get("added_tokens") if isinstance(tokenizer, dict) else None
    found = {
        _TOKENS[token["content"]]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and token["content"] in _TOKENS
        and isinstance(token.get("id"), int)
    }
    return dataclasses.replace(config.special_tokens, **found)


def _check(
    config: UniXConfig, raw: Mapping[str, Any], tensors: TensorSource, directory: Path
) -> None:
    shapes = {key: info.shape for key, info in infos(tensors).items()}
    lines, listed = unix_disagreements(config, raw, shapes, "vision_model.vision_tower")
    check_keys(
        tensors,
        janus_table(listed),
        _has_own_name,
        [f"{directory / 'config.json'}: {line}" for line in lines],
    )


def _start(
    config: UniXConfig, tensors: TensorSource, kind: np.dtype | None, seed: int
) -> dict[str, Leaf]:
    """Every parameter of the model: Janus-Pro's if it has one, else an initialised one."""
    known = table_leaves(janus_table(config), tensors, kind)
    fresh_kind = known["embed_tokens/embedding"].dtype
    fresh = {path: array_leaf(x.astype(fresh_kind)) for path, x in _fresh(config, seed).items()}
    leaves: dict[str, Leaf] = {}
    for entry in unix_table(config):
        und = entry.path.replace("/gen/", "/und/")
        if und in known:
            leaves[entry.path] = known[und]
        elif entry.path in fresh:
            leaves[entry.path] = fresh[entry.path]
        else:  # biases of q, k, v and scales of the q and k norms
            value = 1 if entry.path.endswith("/scale") else 0
            leaves[entry.path] = array_leaf(np.full(entry.stacked_shape, value, fresh_kind))
    return leaves


def _fresh(config: UniXConfig, seed: int) -> dict[str, np.ndarray]:
    """Parameters that Janus-Pro has no counterpart of, as the model initialises them."""
    width, channels = config.decoder.hidden_size, config.latent_channels
    time_key, latent_key = jax.random.split(jax.random.key(seed))
    time = TwoLayerMLP(width, width, "silu").init(time_key, jnp.zeros((1, TIME_FREQUENCIES)))
    latent = dense(width, (None, "embed")).init(latent_key, jnp.zeros((1, channels)))
    tree = {
        "time_embedder": nn.unbox(time["params"]),
        "vae2llm": nn.unbox(latent["params"]),
        "llm2vae": {"kernel": np.zeros((width, channels)), "bias": np.zeros(channels)},
        "latent_pos_embed": sincos_table_2d(width, config.max_latent_size),
    }
    return {path: np.asarray(value) for path, value in flatten(tree).items()}

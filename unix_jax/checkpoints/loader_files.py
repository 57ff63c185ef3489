"""Writes the files that the original's PyTorch code needs in addition to the weights.

Files from the source of the checkpoint are copied byte for byte, so an imported checkpoint is
exported unchanged. Files that the initial checkpoint of a training run did not have are written:
the original's loader needs `config.json`, `preprocessor_config.json`, `processor_config.json`,
`tokenizer_config.json` with its three control tokens, and in `vae/config.yaml` also `monitor` and
`lossconfig`. Source: github.com/ZrH42/UniX, `modeling/autoencoder.py` and
`modeling/unix_vlm_manager.py`.
"""

import dataclasses
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unix_jax.checkpoints import native, tokenizer_files
from unix_jax.checkpoints.formats.yaml_file import read_yaml
from unix_jax.checkpoints.published_config import from_published, to_published
from unix_jax.checkpoints.tokenizer_files import write_absent
from unix_jax.config import SpecialTokens, UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.preprocessing.transforms import SIGLIP_MEAN, SIGLIP_STD
from unix_jax.storage.json_file import read_json, write_json

# An index of shards describes weight files, which are written anew.
_SHARD_INDEX = ".index.json"


def write_loader_files(
    directory: Path, target: Path, config: UniXConfig, *, with_vae: bool, same_weights: bool
) -> None:
    """Writes everything of the published directory except the weights.

    Args:
      directory: a checkpoint of this project.
      target: the published directory.
      config: of the checkpoint. Where it differs from the source's config.json (a training changed
        it), the source's is completed with the new values.
      with_vae: whether the checkpoint has an autoencoder.
      same_weights: the weight files have the source's names and tensors (an import, not a
        training), so that its index of shards applies.

    Raises:
      ConfigError: a file of the source is broken.
      OSError: a file cannot be written.
    """
    for file, name in native.carried_files(directory):
        if same_weights or not name.endswith(_SHARD_INDEX):
            copy = target / name.removeprefix("source/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    _complete_configuration(directory / "source", target, config, with_vae, same_weights)
    if not same_weights:
        for name, values in _processor_files(config).items():
            write_absent(target / name, values)
        _complete_tokenizer(directory, target, config)


# --- config.json and vae/config.yaml -----------------------------------------------------------


def _complete_configuration(
    origin: Path, target: Path, config: UniXConfig, with_vae: bool, keep_yaml: bool
) -> None:
    json_file, yaml_file = target / "config.json", target / "vae" / "config.yaml"
    # The copies are equal, but an error has to name the file that the user has.
    source = read_json(origin / "config.json") if (origin / "config.json").exists() else None
    source_vae = read_yaml(origin / "vae" / "config.yaml")
    published, vae = to_published(config)
    pad, vocabulary = config.special_tokens.pad, config.decoder.vocab_size
    default_pad = pad == SpecialTokens().pad and pad >= vocabulary
    if default_pad:
        del published["special_token_ids"]["pad_token_id"]
    for raw, raw_vae in _candidates(source, source_vae, published, vae, keep_yaml):
        if _reads_as(raw, raw_vae, config, with_vae):
            break
    if raw != source:
        if default_pad and source is None:
            warnings.warn(
                f"config.json: pad_token_id: the default {pad} is outside the vocabulary of "
                f"{vocabulary} tokens: omitted from the export",
                stacklevel=5,
            )
        write_json(json_file, raw)
    if with_vae and raw_vae != source_vae:
        yaml_file.parent.mkdir(exist_ok=True)
        import yaml

        yaml_file.write_text(yaml.safe_dump(raw_vae), encoding="utf-8")


def _candidates(
    source: Any,
    source_vae: dict[str, Any] | None,
    published: dict[str, Any],
    vae: dict[str, Any],
    keep_yaml: bool,
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Candidates with as much of the source as possible first; the last one has nothing of it."""
    if isinstance(source, dict):
        yaml_values = source_vae or {}
        kept = yaml_values if keep_yaml and yaml_values else _merged(vae, yaml_values)
        yield source, kept
        changed, changed_vae = _changes(source, yaml_values, published, vae)
        yield _merged(source, changed), _merged(kept, changed_vae)
        yield _merged(source, published), _merged(yaml_values, vae)
    yield published, vae


def _changes(
    source: dict[str, Any],
    source_vae: dict[str, Any],
    published: dict[str, Any],
    vae: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that the source does not mean already, such as a training's instructions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_reads_as`
        try:
            before, before_vae = to_published(from_published(source, source_vae))
        except ConfigError:
            return published, vae
    return _difference(published, before), _difference(vae, before_vae)


def _difference(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `now` that are others in `before`, mapping by mapping."""
    changed: dict[str, Any] = {}
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and name != "instructions":
            if inner := _difference(value, old):
                changed[name] = inner
        elif value != old or name not in before:
            changed[name] = value
    return changed


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over`, mapping by mapping."""
    return {
        **under,
        **{
            name: _merged(under[name], value)
            if isinstance(value, Mapping) and isinstance(under.get(name), Mapping)
            else value
            for name, value in over.items()
        },
    }


def _reads_as(raw: dict[str, Any], raw_vae: Any, config: UniXConfig, with_vae: bool) -> bool:
    with warnings.catch_warnings():
        # They were said when the source was read.
        warnings.simplefilter("ignore")
        try:
            found = from_published(raw, raw_vae)
        except ConfigError:
            return False
    return config == found if with_vae else dataclasses.replace(found, vae=config.vae) == config


# --- processor and tokenizer -------------------------------------------------------------------


def _processor_files(config: UniXConfig) -> dict[str, dict[str, Any]]:
    """What the original's `VLChatProcessor` and `VLMImageProcessor` are built from."""
    vision = config.vision
    return {
        "preprocessor_config.json": {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": vision.image_size,
            "min_size": 14,
            "image_mean": [SIGLIP_MEAN] * 3,
            "image_std": [SIGLIP_STD] * 3,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
        },
        "processor_config.json": {
            "processor_class": "VLChatProcessor",
            "image_tag": "<image_placeholder>",
            "num_image_tokens": (vision.image_size // vision.patch_size) ** 2,
            "add_special_token": False,
            "sft_format": "deepseek",
            "mask_prompt": True,
            "ignore_id": -100,
        },
    }


def _complete_tokenizer(directory: Path, target: Path, config: UniXConfig) -> None:
    if all((target / name).exists() for name in tokenizer_files.COMPANIONS):
        return
    file = directory / tokenizer_files.TOKENIZER
    if not file.is_file():
        warnings.warn(
            f"{directory}: has no tokenizer.json, which the original's code needs", stacklevel=4
        )
        return
    named, missing = tokenizer_files.control_tokens(file, config.special_tokens)
    if missing:
        warnings.warn(
            f"{file}: no token has the id of {', '.join(missing)} "
            f"({', '.join(map(str, missing.values()))}): omitted from the export's tokenizer files",
            stacklevel=4,
        )
    tokenizer_files.write_companions(target, config, named)

"""What loaders of Hugging Face, such as `AutoTokenizer`, read beside tokenizer.json.

`tokenizer_config.json` and `special_tokens_map.json` name bos, eos and pad. A source's own files
are kept; those that it lacks are written from the ids of the configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unix_jax.config import SpecialTokens, UniXConfig
from unix_jax.storage.json_file import read_json, write_json

TOKENIZER = "tokenizer.json"
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json")


def control_tokens(file: Path, special: SpecialTokens) -> tuple[dict[str, str], dict[str, int]]:
    """(text of bos_token, eos_token and pad_token by tokenizer.json; the ids that no token has)."""
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    contents = _contents(read_json(file))
    named = {name: contents[number] for name, number in ids.items() if number in contents}
    return named, {name: ids[name] for name in sorted(ids.keys() - named)}


def write_companions(directory: Path, config: UniXConfig, named: Mapping[str, str]) -> None:
    """Writes those of `COMPANIONS` that the directory lacks."""
    write_absent(
        directory / COMPANIONS[0],
        {
            # The class that the original asks for; it reads tokenizer.json.
            "tokenizer_class": "LlamaTokenizerFast",
            "model_max_length": config.decoder.max_position_embeddings,
            # The original encodes a prompt with the tokenizer's own bos, and puts one before it.
            "add_bos_token": config.double_bos,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            **named,
        },
    )
    write_absent(directory / COMPANIONS[1], dict(named))


def complete(directory: Path, config: UniXConfig) -> None:
    """Writes what a directory with a tokenizer lacks, if its tokens have all of the ids.

    Otherwise nothing is written: `unix_jax.checkpoints.loader_files` says what is missing.
    """
    file = directory / TOKENIZER
    if file.is_file():
        named, missing = control_tokens(file, config.special_tokens)
        if not missing:
            write_companions(directory, config, named)


def write_absent(file: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON where there is no such file."""
    if not file.exists():
        write_json(file, values)


def _contents(tokenizer: Any) -> dict[int, str]:
    """Token texts by id."""
    tokenizer = tokenizer if isinstance(tokenizer, dict) else {}
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    found = {v: k for k, v in vocab.items()} if isinstance(vocab, dict) else {}
    added = tokenizer.get("added_tokens")
    return found | {
        token["id"]: token["content"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and {"id", "content"} <= token.keys()
    }

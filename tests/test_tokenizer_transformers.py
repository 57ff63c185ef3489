"""This project's reader of tokenizer.json against `AutoTokenizer`; needs the extra [torch]."""

import dataclasses
import json
from pathlib import Path

import pytest

from unix_jax.checkpoints import native, tokenizer_files
from unix_jax.checkpoints.load import load_config
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.storage.json_file import write_json

ROOT = Path(__file__).parent.parent
NANO = ROOT / "examples" / "nano"
CHECKPOINTS = [NANO, ROOT / "tests" / "golden" / "tiny" / "checkpoint"]
HARD = [
    "", " ", "  two  spaces ", "\n\tFINDINGS:\r\n", "<｜end▁of▁sentence｜>",
    "<｜begin▁of▁sentence｜>x<begin_of_image>", "naïve café ﬁ Ⅷ", "心影增大。🫁🩻",
    "a\u0301e\u0300 \u200b\u00a0x", "12.5mm x 3 cm; r/o 1,000 --- ___ ''can't''",
]  # fmt: skip


def reports():
    lines = (ROOT / "examples" / "cxr" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        yield from (text for text in row.values() if isinstance(text, str))


@pytest.mark.parametrize("directory", CHECKPOINTS, ids=lambda path: path.name)
def test_equal_ids_and_texts(directory):
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_directory(directory, load_config(directory)[0].special_tokens)
    for text in dict.fromkeys([*HARD, *reports()]):
        ids = ours.encode(text)
        # A report that quotes a control token is text.
        assert auto(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        decoded = auto.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoded == ours.decode(ids)


def bare(directory):
    """A checkpoint's configuration and tokenizer.json alone."""
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes((NANO / "tokenizer.json").read_bytes())
    return native.load_config(NANO)


def test_the_export_of_a_training_names_its_control_tokens(tmp_path):
    config = bare(tmp_path / "a")
    tokenizer_files.complete(tmp_path / "a", config)
    named = json.loads((tmp_path / "a" / "special_tokens_map.json").read_text(encoding="utf-8"))
    backend = Tokenizer.from_directory(NANO, config.special_tokens).backend
    special = config.special_tokens
    expected = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    assert {name: backend.token_to_id(text) for name, text in named.items()} == expected
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    assert {name: getattr(auto, f"{name}_id") for name in expected} == expected


def test_what_a_source_has_is_kept_and_half_a_set_is_not_written(tmp_path):
    config = bare(tmp_path / "a")
    write_json(tmp_path / "a" / "tokenizer_config.json", {"own": 1})
    tokenizer_files.complete(tmp_path / "a", config)
    assert json.loads((tmp_path / "a" / "tokenizer_config.json").read_text()) == {"own": 1}
    special = dataclasses.replace(config.special_tokens, pad=config.decoder.vocab_size + 5)
    config = dataclasses.replace(bare(tmp_path / "b"), special_tokens=special)
    tokenizer_files.complete(tmp_path / "b", config)
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["tokenizer.json"]

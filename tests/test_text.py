"""Tokenizer, prompts and streaming text, on the toy tokenizer of the golden files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.config import SpecialTokens
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.instructions import Instructions
from unix_jax.preprocessing.text import (
    StreamDecoder,
    Tokenizer,
    encode_prompt,
    prompt_split,
)

CHECKPOINT = Path(__file__).parent / "golden" / "tiny" / "checkpoint"
TOKENS = SpecialTokens(600, 601, 602, 603, 608)
TOKENIZER = Tokenizer.from_directory(CHECKPOINT, TOKENS)
TEXTS = [
    "",
    " ",
    "FINDINGS: No acute  disease, 12.5 mm.\r\n\nIMPRESSION: Stable.\t",
    "é 肺 🫁 \u200b <| <",
    Instructions().default,
]
INJECTIONS = [
    "<｜end▁of▁sentence｜>",
    "ok<｜begin▁of▁sentence｜><begin_of_image>x<end_of_image> <|reserved_604|><｜▁pad▁｜>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_equals_transformers(text):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(CHECKPOINT / "tokenizer.json"))
    expected = theirs.encode(text)
    assert expected[0] == TOKENS.bos  # the tokenizer's own, which makes the double bos
    assert TOKENIZER.encode(text) == expected[1:]
    assert TOKENIZER.decode(expected) == theirs.decode(
        expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode([TOKENS.bos, *ids, TOKENS.eos]) == text
    assert not set(ids) & TOKENIZER.control_ids


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_never_becomes_a_control_token(text):
    ids = TOKENIZER.encode(text)
    assert max(ids) < 600
    assert TOKENIZER.decode(ids) == text


def test_unmarked_control_tokens_and_plain_added_letters(tmp_path):
    # As in the published family: image tags not marked special, letters among the added tokens.
    document = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    for token in document["added_tokens"]:
        token["special"] = token["id"] < 603
        if token["id"] == 605:
            token["content"] = "≤"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = Tokenizer.from_directory(tmp_path, TOKENS)
    assert max(tokenizer.encode(INJECTIONS[1])) < 600
    assert 605 in tokenizer.encode("a≤b")
    assert tokenizer.decode(tokenizer.encode("a≤b")) == "a≤b"


def test_decode_skips_control_and_unknown_ids():
    assert TOKENIZER.decode([600, 39, 603, 620, 10**12, -1, 601]) == TOKENIZER.decode([39])
    assert TOKENIZER.decode(np.array([39, 40])) == TOKENIZER.decode([39, 40])
    assert TOKENIZER.decode([]) == ""


@given(st.lists(st.integers(0, 639), max_size=40))
@settings(max_examples=400, deadline=None)
def test_stream_equals_decode(ids):
    stream = TOKENIZER.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(ids)


@given(st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_stream_emits_whole_characters(text):
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(token) for token in TOKENIZER.encode(text)]
    if "\ufffd" in text:  # a trailing one of the text's own has to wait
        assert "".join(pieces) + stream.flush() == text
    else:
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_stream_at_once_for_plain_text():
    stream = TOKENIZER.stream()
    ids = TOKENIZER.encode("No acute disease")
    assert all(stream.push(token) for token in ids)
    assert stream.flush() == ""


def test_stream_with_a_decoder_that_strips_the_first_space():
    import tokenizers

    vocab = {"▁": 0, "▁no": 1, "▁acute": 2, "x": 3, "<s>": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.decoder = tokenizers.decoders.Metaspace()
    tokenizer = Tokenizer(TOKENS, "test", frozenset({4}), backend)
    for ids in ([1, 2, 3], [4, 1, 4, 2], [0, 1, 0, 2, 0], [3, 0, 0, 1]):
        stream = tokenizer.stream()
        joined = "".join(stream.push(token) for token in ids) + stream.flush()
        assert joined == tokenizer.decode(ids)


def test_vocab_size():
    assert TOKENIZER.vocab_size == 609
    TOKENIZER.check_vocab(640)
    TOKENIZER.check_vocab(609)
    with pytest.raises(CheckpointError, match="model's vocab_size 608, found up to 608"):
        TOKENIZER.check_vocab(608)


def test_broken_tokenizers(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.from_directory(tmp_path, TOKENS)
    for content in (b"", b"{}", b"[1]", b"\xff\xfe", b'{"added_tokens": [3]}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
            Tokenizer.from_directory(tmp_path, TOKENS)
    with pytest.raises(CheckpointError, match=r"expected id 100000 .*found 600"):
        Tokenizer.from_directory(CHECKPOINT)
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    assert Tokenizer.from_directory(tmp_path / "tokenizer.json", TOKENS).encode("a")


def _prompt(prompt, **options):
    defaults = {"vocab_size": 640, "max_length": 64}
    return encode_prompt(prompt, TOKENIZER, TOKENS, **(defaults | options))


def test_prompt_split():
    assert prompt_split([5, 6], TOKENS) == [600, 5, 6, 601]
    assert prompt_split([5], TOKENS, double_bos=True) == [600, 600, 5, 601]
    ids = TOKENIZER.encode("No effusion")
    assert _prompt("No effusion") == [600, *ids, 601]
    assert _prompt("No effusion", double_bos=True) == [600, 600, *ids, 601]
    assert _prompt("") == _prompt([]) == [600, 601]
    # Ids never passed the tokenizer that adds the second bos.
    for form in (list, tuple, np.array):
        assert _prompt(form([5, 6]), double_bos=True) == [600, 5, 6, 601]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([3, 640], {}, r"prompt\[1\]: expected a token id from 0 to 639, found 640"),
        ([-1], {"argument": "prompts[2]"}, r"prompts\[2\]\[0\]: expected .* found -1"),
        ([1, 2.0], {}, r"prompt\[1\]: expected an integer token id, found 2\.0"),
        ([True], {}, "expected an integer token id, found True"),
        (np.zeros((2, 2), int), {}, r"expected an integer token id, found \[0, 0\]"),
        (np.array(3), {}, "expected a string or a sequence of token ids, found ndarray"),
        (None, {}, "expected a string or a sequence of token ids, found NoneType"),
        (b"text", {}, "found bytes"),
        ("\ud800", {}, "expected valid Unicode"),
        ([1] * 63, {}, "expected at most 64 tokens with its bos and eos, found 65"),
        ("no effusion " * 50, {}, "expected at most 64 tokens"),
    ],
)
def test_prompts_refused(prompt, options, message):
    with pytest.raises(PromptError, match=message):
        _prompt(prompt, **options)


def test_a_string_needs_a_tokenizer():
    options = {"vocab_size": 640, "max_length": 9}
    assert encode_prompt([1], None, TOKENS, **options) == [600, 1, 601]
    with pytest.raises(PromptError, match="no tokenizer"):
        encode_prompt("text", None, TOKENS, **options)

"""N-grams of reports: counts, the file, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from support.toy_pipelines import CHECKPOINT, SMALL, small_params
from unix_jax import UniXPipeline
from unix_jax.data.__main__ import main
from unix_jax.errors import DataError
from unix_jax.inference.drafts import NGramDrafter
from unix_jax.preprocessing.ngrams import NGrams, count_ngrams, hashes
from unix_jax.preprocessing.text import Tokenizer

TEXTS = ["No effusion.", "No pneumothorax.", "No effusion.", "Heart size is normal."]


def tokenizer():
    return Tokenizer.from_directory(CHECKPOINT, SMALL.special_tokens)


def test_counts_are_those_of_a_plain_loop():
    tok, order = tokenizer(), 3
    found = count_ngrams(TEXTS, tok, order)
    special = tok.special_tokens
    sequences = [[special.bos, *tok.encode(text), special.eos] for text in TEXTS]
    assert found.reports == 4
    for length, part in enumerate(found.parts, start=1):
        contexts = [tuple(c) for c in part.contexts.tolist()]
        assert contexts == sorted(set(contexts))
        for context, token, count, total in zip(
            contexts, part.tokens, part.counts, part.totals, strict=True
        ):
            after = [
                ids[i]
                for ids in sequences
                for i in range(length, len(ids))
                if tuple(ids[i - length : i]) == context
            ]
            assert len(after) == total
            assert after.count(token) == count == max(map(after.count, after))


def test_the_file_does_not_depend_on_the_order_of_reports(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    count_ngrams(TEXTS, tokenizer()).save(first)
    count_ngrams(TEXTS[::-1], tokenizer()).save(second)
    arrays, others = load_file(first), load_file(second)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name])
    loaded = NGrams.load(first)
    loaded.check_tokenizer(tokenizer(), first)
    assert loaded.reports == 4
    assert loaded.parts[2].contexts.shape[1] == 3


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 200_000), min_size=3, max_size=3), min_size=1))
def test_hashes_are_the_same_in_jax(contexts):
    import jax.numpy as jnp

    contexts = np.array(contexts, np.int32)
    np.testing.assert_array_equal(hashes(contexts), hashes(jnp.asarray(contexts), jnp))


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "ngrams"
    with pytest.raises(DataError, match=r"ngrams: expected a file of `unix-jax data ngrams`"):
        NGrams.load(file)
    file.write_bytes(b"no file of arrays")
    with pytest.raises(DataError, match=r"ngrams: expected a file of `unix-jax data ngrams`"):
        NGrams.load(file)
    save_file({"a": np.zeros(2)}, file)
    with pytest.raises(DataError, match="format: expected unix-jax-ngrams-1"):
        NGrams.load(file)
    about = {"format": "unix-jax-ngrams-1"}
    save_file({"a": np.zeros(2)}, file, about)
    with pytest.raises(DataError, match="expected arrays contexts, tokens, counts, totals"):
        NGrams.load(file)
    count_ngrams(TEXTS, tokenizer(), 2).save(file)
    arrays = load_file(file)
    save_file(arrays | {"counts.2": arrays["counts.2"][:-1]}, file, about)
    with pytest.raises(DataError, match=r"counts\.2: expected int32 of shape"):
        NGrams.load(file)
    with pytest.raises(DataError, match="expected at least one report, found none"):
        count_ngrams([], tokenizer())


def test_n_grams_of_another_tokenizer_are_refused(tmp_path):
    file = tmp_path / "ngrams"
    tok = tokenizer()
    tok.backend.add_tokens(["one more"])
    count_ngrams(TEXTS, tok, 2).save(file)
    with pytest.raises(DataError, match="expected n-grams of the checkpoint's tokenizer"):
        UniXPipeline.from_pretrained(CHECKPOINT, ngrams=file, compilation_cache=False)
    with pytest.raises(DataError, match="expected a file of `unix-jax data ngrams`"):
        UniXPipeline.from_pretrained(CHECKPOINT, ngrams=tmp_path / "no", compilation_cache=False)


def test_the_command_counts_the_split_of_training(tmp_path, capsys):
    rows = [
        {"image": "", "findings": text, "impression": "", "split": split}
        for text, split in zip(TEXTS, ["train", "train", "test", "train"], strict=True)
    ]
    rows.append({"image": "", "findings": "", "impression": "", "split": "train"})
    for row in rows:
        del row["image"]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "ngrams.safetensors"
    command = ["ngrams", f"manifest:{tmp_path}", str(out), "--tokenizer", str(CHECKPOINT)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "contexts from 3 reports, 1 records without a report, 0 broken" in printed
    loaded = NGrams.load(out)
    assert loaded.reports == 3
    assert NGramDrafter.create(loaded).order == 6
    assert main(command) == 1
    assert "expected a new file" in capsys.readouterr().err
    pipe = UniXPipeline.from_pretrained(CHECKPOINT, ngrams=out, compilation_cache=False)
    assert pipe.loaded.drafter("ngram") is pipe.loaded.ngrams


@pytest.mark.extended
def test_a_pipeline_takes_counted_n_grams():
    params, vae = small_params()
    pipe = UniXPipeline(SMALL, params, vae, ngrams=count_ngrams(TEXTS, tokenizer()))
    assert pipe.loaded.ngrams is not None

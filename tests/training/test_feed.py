"""Moments on disk and the autoencoder of the run: they must be of each other."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_run import MODEL, TOKENIZER, write_pictures
from unix_jax.data.config import DataConfig
from unix_jax.data.moments import write_moments
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError
from unix_jax.models import autoencoder
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.sharding import make_mesh
from unix_jax.training import feed as feed_module
from unix_jax.training.config import TrainConfig, ValidationConfig
from unix_jax.training.feed import Feed, open_records


def test_moments_of_another_autoencoder(tmp_path):
    write_pictures(tmp_path / "source", train=3, validate=1)
    data = DataConfig(
        source=f"manifest:{tmp_path / 'source'}", task="generation", rows=1, und_tokens=32,
        vit_images=0, vae_images=1, vae_height=8, vae_width=8, threads=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        autoencoder.param_shapes(MODEL.vae),
    )
    write_moments(tmp_path / "moments", open_source(data.source, "train"), MODEL, params, data)
    data = dataclasses.replace(data, moments=str(tmp_path / "moments"))
    tokenizer = Tokenizer.from_directory(TOKENIZER, MODEL.special_tokens)
    mesh = make_mesh(data=1, devices=jax.devices()[:1])

    def feed(vae_params):
        with_weights = Feed(data, MODEL, tokenizer, mesh, None, vae_params)
        batch = next(with_weights).host
        with_weights.close()
        return batch

    assert feed(params).vae_moments is not None
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    with pytest.raises(DataError, match="moments of something else: weights: expected"):
        feed(other)
    # What is held in a narrower type cannot be told apart from it.
    assert feed(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), other)) is not None


def test_a_run_that_validates_on_its_training_records_is_told(tmp_path):
    def opened(source, split="train", **fields):
        data = DataConfig(source=f"manifest:{source}", split=split)
        run = {"stage": "understanding", "total_steps": 1, "validate_every": 1} | fields
        return open_records(TrainConfig(data=data, **run))

    write_pictures(tmp_path / "split", train=3, validate=2)
    found = opened(tmp_path / "split")
    assert (len(found.training), len(found.held_out), found.warning) == (3, 2, "")
    assert opened(tmp_path / "split", validate_every=0).held_out is None
    found = opened(tmp_path / "split", split="")
    assert len(found.training) == 5
    assert "data.split is '' and validation.split 'validate'" in found.warning
    file = tmp_path / "split" / "manifest.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    plain = tmp_path / "split" / "plain.jsonl"
    plain.write_text("".join(json.dumps(row | {"split": None}) + "\n" for row in rows))
    found = opened(plain)
    assert (len(found.training), len(found.held_out)) == (5, 5)
    assert "the source has no splits" in found.warning
    other = ValidationConfig(source=f"manifest:{tmp_path / 'split'}")
    assert opened(plain, validation=other).warning == ""
    with pytest.raises(DataError, match=r"expected rows of split 'dev', found splits"):
        opened(tmp_path / "split", split="dev")


def test_a_process_without_a_batch_goes_along_with_an_infinite_one(tmp_path, monkeypatch):
    """Nothing is asked of the other processes until all have seen the loss of the same step."""
    write_pictures(tmp_path / "source", train=6, validate=1)
    data = DataConfig(
        source=f"manifest:{tmp_path / 'source'}", rows=1, und_tokens=128, vit_images=1, threads=1
    )
    tokenizer = Tokenizer.from_directory(TOKENIZER, MODEL.special_tokens)
    feed = Feed(data, MODEL, tokenizer, make_mesh(data=1, devices=jax.devices()[:1]))
    asked = []

    def together(error):
        asked.append(error)
        if error is not None:
            raise error

    monkeypatch.setattr(feed_module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(feed_module, "raise_together", together)
    good = next(feed)
    second = next(feed)
    assert asked == [None]
    feed._iterator.close()
    original = feed._iterator

    class Broken:
        def __next__(self):
            raise DataError("data: too many broken images")

    feed._iterator = Broken()
    for _ in range(2):
        bad = next(feed)
        assert asked == [None]
        assert np.isinf(bad.batch.ce_weights).all()
        np.testing.assert_array_equal(bad.host.token_ids, second.host.token_ids)
        assert bad.batch.und.segment.shape == good.batch.und.segment.shape
    with pytest.raises(DataError, match="too many broken images"):
        feed.raise_errors()
    original.close()

"""Moments on disk: what the encoder gives, checked against what a run needs."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from support.toy_data import CONFIG, GENERATION, records, tokenizer
from unix_jax.data.loader import Loader
from unix_jax.data.mixture import MixedRecords
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.moments import FILE, INDEX, Moments, weights_fingerprint, write_moments
from unix_jax.data.samples import record_samples
from unix_jax.errors import ConfigError, DataError, UniXError
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.preprocessing.pixels import vae_input

COUNT = 7
MODEL = Autoencoder(CONFIG.vae)
SOME_BROKEN = dataclasses.replace(GENERATION, max_broken_fraction=0.3)


@pytest.fixture(scope="module")
def params():
    pixels = np.zeros((1, 8, 8, 3), np.float32)
    return jax.jit(MODEL.init)(jax.random.key(0), pixels)["params"]


def with_broken():
    source = records(COUNT)
    source[2] = dataclasses.replace(source[2], image=b"not an image")
    source[4] = "row 4: broken"
    return source


@pytest.fixture(scope="module")
def written(params, tmp_path_factory):
    """(directory, number of progress calls): record 2 has a broken picture, row 4 is broken."""
    out, calls = tmp_path_factory.mktemp("moments") / "m", []
    data = dataclasses.replace(SOME_BROKEN, source="here", split="train")
    found = write_moments(
        out, with_broken(), CONFIG, params, data, batch_size=3, on_record=lambda: calls.append(1)
    )
    assert (found.records, len(found.broken)) == (COUNT, 2)
    assert "r2" in found.broken[0]
    assert "row 4: broken" in found.broken[1]
    return out, len(calls)


def test_images_that_show_nothing_are_named(params, tmp_path):
    source = records(COUNT)
    file = io.BytesIO()
    Image.new("L", (24, 20), 255).save(file, "PNG")
    for index in (5, 1):
        source[index] = dataclasses.replace(source[index], image=file.getvalue())
    found = write_moments(tmp_path / "m", source, CONFIG, params, GENERATION)
    assert [line.partition(" (")[0] for line in found.image_warnings] == [
        "r1: nearly white",
        "r5: nearly white",
    ]
    assert json.loads((tmp_path / "m" / INDEX).read_text())["image_warnings"] == 2


def test_equal_the_encoder(params, written):
    directory, calls = written
    assert calls == COUNT
    assert {path.name for path in directory.iterdir()} == {FILE, INDEX}
    moments = Moments(directory, COUNT, CONFIG, GENERATION, params)
    source = records(COUNT)
    for index in (0, 1, 3, 5, 6):
        pixels = vae_input(vae_pixels(source[index], GENERATION))
        expected = MODEL.apply({"params": params}, pixels[None], method="moments")[0]
        found = moments(index, f"r{index}")
        assert found.dtype == np.float32
        assert found.shape == (6, 4, 8)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_float16(params, tmp_path, written):
    write_moments(
        tmp_path / "m", with_broken(), CONFIG, params, SOME_BROKEN, batch_size=3, dtype="float16"
    )
    half = Moments(tmp_path / "m", COUNT, CONFIG, GENERATION)(0, "r0")
    assert half.dtype == np.float32
    whole = Moments(written[0], COUNT, CONFIG, GENERATION)(0, "r0")
    np.testing.assert_allclose(half, whole, rtol=1e-3, atol=1e-4)
    assert (half != whole).any()


def test_broken_and_foreign_entries(written):
    moments = Moments(written[0], COUNT, CONFIG, GENERATION)
    for index in (2, 4):
        with pytest.raises(DataError, match=f"record {index}: r{index}: its image was broken"):
            moments(index, f"r{index}")
    with pytest.raises(DataError, match=r"record 3: expected the moments of r1, found those of r3"):
        moments(3, "r1")


def test_moments_of_the_generation_part_of_a_mixture(written):
    source = "understanding:csv:a + generation:csv:b"
    data = dataclasses.replace(
        GENERATION, source=source, vit_images=2, und_tokens=160, moments=str(written[0])
    )
    mixed = MixedRecords(data.parts, [records(3), records(COUNT)])
    samples = record_samples(mixed, tokenizer(), CONFIG, data)
    batches = [batch for batch, _ in Loader(samples, CONFIG, data, 0, 1)]
    assert all(batch.vae_pixels is None and batch.vit_pixels is not None for batch in batches)
    assert sum(int(batch.noised.sum()) for batch in batches) == COUNT - 2
    with pytest.raises(DataError, match="records: expected 3, found 7"):
        record_samples(MixedRecords(data.parts, [records(COUNT), records(3)]), tokenizer(),
                       CONFIG, data)  # fmt: skip


def test_loader_fills_moments(written):
    data = dataclasses.replace(GENERATION, moments=str(written[0]))
    samples = record_samples(records(COUNT), tokenizer(), CONFIG, data)
    moments = Moments(written[0], COUNT, CONFIG, data)
    ((batch, info),) = Loader(samples, CONFIG, data, 0, 1)
    assert info.broken == 2
    assert batch.vae_pixels is None
    assert batch.vae_moments.shape == (4, 3, 6, 4, 8)
    assert sorted(key for row in info.keys for key in row) == ["r0", "r1", "r3", "r5", "r6"]
    for row, keys in enumerate(info.keys):
        for place, key in enumerate(keys):
            expected = moments(int(key[1:]), key)
            np.testing.assert_array_equal(batch.vae_moments[row, place], expected)
        assert not batch.vae_moments[row, len(keys) :].any()


def test_differences_are_named(params, written):
    directory, _ = written

    def opened(config=CONFIG, count=COUNT, weights=params, **changes):
        return Moments(
            directory, count, config, dataclasses.replace(GENERATION, **changes), weights
        )

    with pytest.raises(
        DataError, match=r"moments of something else: height: expected 16, found 12"
    ):
        opened(vae_height=16)
    with pytest.raises(DataError, match=r"padding: expected 255, found 0"):
        opened(vae_padding=255)
    with pytest.raises(DataError, match=r"records: expected 8, found 7"):
        opened(count=8)
    wider = dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, ch=64))
    with pytest.raises(DataError, match=r"autoencoder: expected .*'ch': 64.*, found .*'ch': 32"):
        opened(config=wider)
    other = jax.tree.map(lambda x: x * 1.001, params)
    with pytest.raises(DataError, match=r"weights: expected [0-9a-f]{64}, found [0-9a-f]{64}"):
        opened(weights=other)
    # What turns moments into latents may change.
    opened(config=dataclasses.replace(CONFIG, vae=dataclasses.replace(CONFIG.vae, scale_factor=2)))


def test_fingerprint(params):
    assert weights_fingerprint(params) == weights_fingerprint(jax.tree.map(np.asarray, params))
    first = sorted(params)[0]
    renamed = {("other" if name == first else name): value for name, value in params.items()}
    assert weights_fingerprint(renamed) != weights_fingerprint(params)


def test_broken_directories(params, written, tmp_path):
    with pytest.raises(DataError, match=r"moments\.json: no such file"):
        Moments(tmp_path, COUNT, CONFIG, GENERATION)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(DataError, match=r"expected format 'unix-jax-moments-1'"):
        Moments(tmp_path, COUNT, CONFIG, GENERATION)
    index = json.loads((written[0] / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"{FILE}: "):
        Moments(tmp_path, COUNT, CONFIG, GENERATION)
    content = (written[0] / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{FILE}: "):
        Moments(tmp_path, COUNT, CONFIG, GENERATION)
    (tmp_path / INDEX).write_text(json.dumps(index | {"dtype": "int8"}))
    with pytest.raises(DataError, match=r"dtype: expected one of"):
        Moments(tmp_path, COUNT, CONFIG, GENERATION)


def test_writing_refuses(params, tmp_path, written):
    with pytest.raises(UniXError, match=r"exists already"):
        write_moments(written[0], records(2), CONFIG, params, GENERATION)
    with pytest.raises(DataError, match=r"dtype: expected one of"):
        write_moments(tmp_path / "m", records(2), CONFIG, params, GENERATION, dtype="int8")
    with pytest.raises(DataError, match=r"expected records in the source, found none"):
        write_moments(tmp_path / "m", records(0), CONFIG, params, GENERATION)
    with pytest.raises(ConfigError, match=r"data.vae_height"):
        write_moments(
            tmp_path / "m",
            records(2),
            CONFIG,
            params,
            dataclasses.replace(GENERATION, vae_height=7),
        )
    # Two of seven are broken: the fraction is of the whole source, however short it is.
    for allowed in (0.0, 0.2):
        strict = dataclasses.replace(GENERATION, max_broken_fraction=allowed)
        with pytest.raises(DataError, match=rf"at most {allowed:.2%} of 7 records to be broken"):
            write_moments(tmp_path / "m", with_broken(), CONFIG, params, strict)
    assert list(tmp_path.iterdir()) == []

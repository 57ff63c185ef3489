"""The start of stage 1: Janus-Pro's weights in both streams, the rest fresh."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from unix_jax.checkpoints import native
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.writers import write_safetensors
from unix_jax.checkpoints.janus import import_janus
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.published import export_published, load_published
from unix_jax.errors import CheckpointError
from unix_jax.models.embeddings import sincos_table_2d

GOLDEN = Path(__file__).parents[1] / "golden"
JANUS = GOLDEN / "tiny_janus"
TINY = GOLDEN / "tiny" / "checkpoint"


def janus_tensors():
    with open_tensors(JANUS) as tensors:
        keys = tensors.keys()
        return {key: np.array(tensors.read(key)) for key in keys}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("janus") / "c"
    import_janus(JANUS, path, max_latent_size=8)
    return path


@pytest.fixture(scope="module")
def params(start):
    return jax.tree.map(np.asarray, native.load_params(start))


def test_und_is_janus_and_gen_its_copy(params):
    # The toy Janus has the same weights as the toy UniX's und stream and tower.
    _, golden, _ = load_published(TINY)
    found, expected = flatten(params), flatten(golden)
    fresh = ("time_embedder", "vae2llm", "llm2vae", "_norm/scale", "_proj/bias")
    compared = 0
    for path, value in found.items():
        if path.startswith(fresh[:3]) or path == "latent_pos_embed":
            continue
        layer = path.startswith("decoder/layers")
        if layer and path.endswith("/bias"):
            np.testing.assert_array_equal(value, 0)
        elif layer and ("q_norm" in path or "k_norm" in path):
            np.testing.assert_array_equal(value, 1)
        else:
            np.testing.assert_array_equal(value, expected[path.replace("/gen/", "/und/")], path)
            compared += 1
    assert compared == 2 * 9 + 2 + 2 + 17 + 4


def test_fresh_parameters(params):
    np.testing.assert_array_equal(params["llm2vae"]["kernel"], 0)
    np.testing.assert_array_equal(params["llm2vae"]["bias"], 0)
    np.testing.assert_array_equal(params["latent_pos_embed"], sincos_table_2d(64, 8))
    with open_tensors(TINY) as tensors:
        table = np.array(tensors.read("latent_pos_embed.pos_embed"))
    np.testing.assert_allclose(params["latent_pos_embed"], table, atol=1e-6)
    for kernel in (params["vae2llm"]["kernel"], params["time_embedder"]["fc1"]["kernel"]):
        assert 0.015 < kernel.std() < 0.025
        assert abs(kernel.mean()) < 0.005
    np.testing.assert_array_equal(params["vae2llm"]["bias"], 0)


def test_seed_fixes_the_fresh_parameters(params, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        import_janus(JANUS, tmp_path / name, max_latent_size=8, seed=seed)
    same = native.load_params(tmp_path / "same")
    other = native.load_params(tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert not np.array_equal(other["vae2llm"]["kernel"], params["vae2llm"]["kernel"])
    np.testing.assert_array_equal(other["lm_head"]["kernel"], params["lm_head"]["kernel"])


def test_configuration(start, tmp_path):
    config = native.load_config(start)
    assert (config.decoder.hidden_size, config.vision.width, config.max_latent_size) == (64, 32, 8)
    assert not config.double_bos
    assert not native.has_vae(start)
    import_janus(JANUS, tmp_path / "c", latent_patch_size=2)
    config = native.load_config(tmp_path / "c")
    assert (config.max_latent_size, config.latent_patch_size) == (32, 2)
    assert native.load_params(tmp_path / "c")["vae2llm"]["kernel"].shape == (64, 64)


@pytest.mark.parametrize("vae", [TINY, TINY / "vae", TINY / "vae" / "kl-f16d16.ckpt"])
def test_with_an_autoencoder(tmp_path, vae):
    import_janus(JANUS, tmp_path / "c", vae=vae)
    _, _, expected = load_published(TINY)
    found = native.load_vae_params(tmp_path / "c")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert native.load_config(tmp_path / "c").vae.ch == 32


def test_exports_to_the_published_layout(start, tmp_path):
    export_published(start, tmp_path / "out")
    with open_tensors(tmp_path / "out") as found, open_tensors(TINY) as expected:
        assert {k: found.info(k).shape for k in list(found.keys())} == {
            k: expected.info(k).shape for k in list(expected.keys())
        }
    config, _, _ = load_published(tmp_path / "out")
    assert config == native.load_config(start)


def test_cast(tmp_path):
    import_janus(JANUS, tmp_path / "c", "bfloat16")
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(native.load_params(tmp_path / "c"))}
    assert kinds == {"bfloat16"}


def test_special_tokens_come_from_the_tokenizer(tmp_path):
    shutil.copytree(JANUS, tmp_path / "source")
    added = [
        {"id": 7, "content": "<begin_of_image>"},
        {"id": 9, "content": "<｜end▁of▁sentence｜>"},
        {"id": 11, "content": "other"},
        "broken",
    ]
    (tmp_path / "source" / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    import_janus(tmp_path / "source", tmp_path / "c")
    tokens = native.load_config(tmp_path / "c").special_tokens
    assert (tokens.start_of_image, tokens.eos, tokens.bos) == (7, 9, 100000)
    assert (tmp_path / "c" / "tokenizer.json").is_file()


def test_errors_list_keys_under_janus_names(tmp_path):
    (tmp_path / "source").mkdir()
    shutil.copy(JANUS / "config.json", tmp_path / "source")
    tensors = janus_tensors()
    del tensors["aligner.layers.2.bias"]
    tensors["vision_model.vision_tower.more"] = np.zeros((2,), np.float32)
    tensors["language_model.lm_head.weight"] = np.zeros((5, 6), np.float32)
    write_safetensors(tmp_path / "source" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        import_janus(tmp_path / "source", tmp_path / "c")
    for line in (
        "1 missing, 1 unexpected, 1 mis-shaped",
        "aligner.layers.2.bias: expected [64]",
        "vision_model.vision_tower.more: found [2]",
        "language_model.lm_head.weight: expected [640, 64], found [5, 6]",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_config_disagreement_names_both(tmp_path):
    shutil.copytree(JANUS, tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    raw = json.loads(file.read_text())
    raw["vision_config"]["params"]["layers"] = 5
    raw["language_config"]["intermediate_size"] = 64
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError) as caught:
        import_janus(tmp_path / "source", tmp_path / "c")
    assert "vision_config.layers is 5" in str(caught.value)
    assert "language_config.intermediate_size is 64" in str(caught.value)


def test_wrong_autoencoder_path(tmp_path):
    with pytest.raises(CheckpointError, match="expected the autoencoder's weight file"):
        import_janus(JANUS, tmp_path / "c", vae=tmp_path / "nowhere")

"""Reading a published DINOv2: every fault is named, all wrong keys at once."""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unix_jax.checkpoints.rad_dino_files import (
    dinov2_table,
    load_dinov2,
    load_dinov2_config,
    read_dinov2_config,
)
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.dinov2 import Dinov2Config, param_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny" / "rad_dino"
RAW = json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture
def copy(tmp_path):
    """copy(change of config.json, change of the tensors) -> a directory."""

    def make(fields=None, tensors=None):
        directory = tmp_path / "encoder"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(RAW | (fields or {})))
        if tensors is None:
            shutil.copy(GOLDEN / "model.safetensors", directory)
        else:
            save_file(
                tensors(load_file(GOLDEN / "model.safetensors")), directory / "model.safetensors"
            )
        return directory

    return make


def test_sizes_and_weights():
    config, params = load_dinov2(GOLDEN)
    assert config == Dinov2Config(56, 14, 32, 3, 4, 4.0, 1e-6, True)
    assert config == load_dinov2_config(GOLDEN)
    file = load_file(GOLDEN / "model.safetensors")
    np.testing.assert_array_equal(
        params["blocks"]["value"]["kernel"][2],
        file["encoder.layer.2.attention.attention.value.weight"].T,
    )
    kernel = file["embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(params["patch_embed"]["kernel"], kernel.transpose(2, 3, 1, 0))
    half = load_dinov2(GOLDEN, dtype=jnp.bfloat16)[1]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


@pytest.mark.parametrize(
    "config", [Dinov2Config(), Dinov2Config(70, 7, 24, 2, 3, 2.5, 1e-5, qkv_bias=False)]
)
def test_the_table_covers_the_model(config):
    shapes = nn.unbox(param_shapes(config))
    ours = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert {entry.path: entry.stacked_shape for entry in dinov2_table(config)} == ours


def test_all_wrong_keys_are_listed_at_once(copy):
    def change(tensors):
        del tensors["layernorm.bias"], tensors["encoder.layer.1.mlp.fc1.weight"]
        tensors["head.weight"] = np.zeros((2, 3), np.float32)
        tensors["embeddings.cls_token"] = np.zeros((1, 1, 31), np.float32)
        tensors["layernorm.weight"] = np.zeros(32, np.int32)
        return tensors

    with pytest.raises(CheckpointError) as error:
        load_dinov2(copy(tensors=change))
    for part in (
        "layernorm.bias: expected [32]",
        "encoder.layer.1.mlp.fc1.weight: expected [128, 32]",
        "head.weight: found [2, 3]",
        "embeddings.cls_token: expected [1, 1, 32], found [1, 1, 31]",
        "layernorm.weight is int32",
    ):
        assert part in str(error.value)
    assert "mask_token" not in str(error.value)


@pytest.mark.parametrize("layers", [2, 5, 2_000_000_000])
def test_another_number_of_layers_names_both(copy, layers):
    """The listing stays short, however large the number."""
    with pytest.raises(CheckpointError, match=f"is {layers}, but encoder.layer.* has 3") as error:
        load_dinov2(copy({"num_hidden_layers": layers}))
    assert len(str(error.value)) < 500


def test_another_width_is_mis_shaped(copy):
    with pytest.raises(CheckpointError, match=r"layernorm.weight: expected \[64\], found \[32\]"):
        load_dinov2(copy({"hidden_size": 64}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn: expected False, found True"),
        ({"hidden_act": "relu"}, "hidden_act: expected 'gelu'"),
        ({"model_type": "dinov3_vit"}, "model_type: expected 'dinov2'"),
        ({"hidden_size": "32"}, "hidden_size: expected int"),
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple of 5, found 32"),
        ({"patch_size": 0}, "patch_size: expected a positive number, found 0"),
        ({"image_size": 57}, "image_size: expected a multiple of 14, found 57"),
    ],
)
def test_configurations_that_are_refused(copy, fields, message):
    directory = copy(fields)
    with pytest.raises(ConfigError, match=message) as error:
        load_dinov2(directory)
    assert str(directory / "config.json") in str(error.value)


def test_missing_fields_are_those_of_rad_dino():
    assert read_dinov2_config({}) == Dinov2Config()


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_dinov2(tmp_path)
    shutil.copy(GOLDEN / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"expected one of model.safetensors"):
        load_dinov2(tmp_path)


def test_a_truncated_file(copy):
    directory = copy()
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        load_dinov2(directory)

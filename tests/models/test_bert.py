"""BERT and CheXbert's heads: against PyTorch at other sizes, and the files they are read from.

The golden toy is in tests/evaluation/test_golden_metrics.py.
"""

import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from unix_jax.checkpoints.chexbert_files import chexbert_table, load_chexbert
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.bert import NO_CLASS, Bert, BertConfig, ReportLabeler, param_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny" / "chexbert"
RAW = json.loads((GOLDEN / "config.json").read_text())
SMALL = BertConfig(50, 24, 3, 3, 40, 20, 2, 1e-5)


def golden_tensors():
    with open_tensors(GOLDEN / "chexbert.pth") as tensors:
        return {key: np.array(tensors.read(key)) for key in tensors.keys()}  # noqa: SIM118


@pytest.fixture
def copy(tmp_path):
    """copy(change of config.json, change of the tensors) -> a directory."""

    def make(fields=None, tensors=None):
        (tmp_path / "config.json").write_text(json.dumps(RAW | (fields or {})))
        if tensors is None:
            shutil.copy(GOLDEN / "chexbert.pth", tmp_path)
        else:
            save_file(tensors(golden_tensors()), tmp_path / "model.safetensors")
        return tmp_path

    return make


def test_bert_is_transformers_bert(assert_close):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=20,
            layer_norm_eps=1e-5,
        ),
        add_pooling_layer=False,
    ).eval()
    state = {f"bert.{key}": value.numpy() for key, value in theirs.state_dict().items()}
    params = {}
    for entry in chexbert_table(SMALL):
        if entry.path.startswith("bert/"):
            arrays = [entry.transform.to_ours(state[key] + 0.1) for key in entry.keys]
            array = arrays[0] if entry.layers is None else np.stack(arrays)
            *parents, name = entry.path.removeprefix("bert/").split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = array
    theirs.load_state_dict({k: v + 0.1 for k, v in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    ids, valid = rng.integers(0, 50, (2, 17)), np.ones((2, 17), bool)
    valid[1, 11:] = False
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(valid.astype(int))
        ).last_hidden_state.numpy()
    found = np.asarray(jax.jit(Bert(SMALL).apply)({"params": params}, ids, valid))
    assert_close(found[valid], expected[valid])


def test_padding_is_not_seen():
    model = ReportLabeler(SMALL)
    ids, valid = jnp.arange(12).reshape(2, 6), jnp.ones((2, 6), bool)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), ids, valid))
    apply = jax.jit(model.apply)
    cls, logits = apply(params, ids, valid)
    padded = jnp.pad(ids, ((0, 0), (0, 9)), constant_values=7), jnp.pad(valid, ((0, 0), (0, 9)))
    for ours, expected in zip(apply(params, *padded), (cls, logits), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert logits.shape == (2, 14, 4)
    np.testing.assert_array_equal(logits[:, 13, 2:], NO_CLASS)
    with pytest.raises(ValueError, match="expected at most 20 tokens, found 21"):
        model.apply(params, jnp.zeros((1, 21), int), jnp.ones((1, 21), bool))


@pytest.mark.parametrize("config", [BertConfig(), SMALL])
def test_the_table_covers_the_model(config):
    ours = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(nn.unbox(param_shapes(config)))
    }
    assert {entry.path: entry.stacked_shape for entry in chexbert_table(config)} == ours


def test_chexbert_has_the_published_size():
    shapes = param_shapes(BertConfig())
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
    # bert-base-uncased is 109,482,240 with its pooler of 590,592; the heads are 41,526.
    assert count == 109_482_240 - 590_592 + 41_526
    assert shapes["bert"]["layers"]["query"]["kernel"].names == ("layers", "embed", "heads")


def test_sizes_and_weights():
    config, params = load_chexbert(GOLDEN)
    assert config == BertConfig(120, 32, 2, 4, 64, 64, 2, 1e-12)
    file = golden_tensors()
    np.testing.assert_array_equal(params["heads_kernel"][7], file["module.linear_heads.7.weight"].T)
    np.testing.assert_array_equal(
        params["bert"]["layers"]["fc2"]["kernel"][1],
        file["module.bert.encoder.layer.1.output.dense.weight"].T,
    )
    half = load_chexbert(GOLDEN / "chexbert.pth", dtype=jnp.bfloat16)[1]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))


def test_names_without_the_prefix(copy):
    directory = copy(tensors=lambda t: {k.removeprefix("module."): v for k, v in t.items()})
    ours, expected = load_chexbert(directory), load_chexbert(GOLDEN)
    jax.tree.map(np.testing.assert_array_equal, ours[1], expected[1])


def test_all_wrong_keys_are_listed_at_once(copy):
    def change(tensors):
        del tensors["module.linear_heads.5.bias"]
        tensors["module.extra"] = np.zeros((2, 3), np.float32)
        tensors["module.bert.embeddings.LayerNorm.weight"] = np.zeros(31, np.float32)
        tensors["module.bert.embeddings.LayerNorm.bias"] = np.zeros(32, np.int32)
        tensors["module.bert.embeddings.position_ids"] = np.zeros((1, 64), np.int64)
        return tensors

    with pytest.raises(CheckpointError) as error:
        load_chexbert(copy(tensors=change))
    for part in (
        "module.linear_heads.5.bias: expected [4]",
        "module.extra: found [2, 3]",
        "module.bert.embeddings.LayerNorm.weight: expected [32], found [31]",
        "module.bert.embeddings.LayerNorm.bias is int32",
    ):
        assert part in str(error.value)
    assert "position_ids" not in str(error.value)


@pytest.mark.parametrize("layers", [1, 2_000_000_000])
def test_another_number_of_layers_names_both(copy, layers):
    with pytest.raises(CheckpointError, match=f"is {layers}, but bert.encoder.layer.* has 2") as e:
        load_chexbert(copy({"num_hidden_layers": layers}))
    assert len(str(e.value)) < 2500


def test_without_a_configuration_the_sizes_are_bert_bases(tmp_path):
    shutil.copy(GOLDEN / "chexbert.pth", tmp_path)
    with pytest.raises(CheckpointError, match=r"num_hidden_layers is 12, but .* has 2"):
        load_chexbert(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: expected 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "expected 'absolute'"),
        ({"hidden_size": "32"}, "hidden_size: expected int"),
        ({"num_attention_heads": 5}, "hidden_size: expected a multiple of 5, found 32"),
        ({"vocab_size": 0}, "vocab_size: expected a positive number, found 0"),
    ],
)
def test_configurations_that_are_refused(copy, fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_chexbert(copy(fields))
    assert "config.json" in str(error.value)

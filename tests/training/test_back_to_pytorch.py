"""From published files through a training back to files that the original's code opens."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from support import toy_run
from unix_jax.checkpoints import native
from unix_jax.checkpoints.cast import cast
from unix_jax.checkpoints.export import export_published
from unix_jax.checkpoints.janus import import_janus
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.published import import_published, load_published
from unix_jax.parity.check import run_checks

GOLDEN = Path(__file__).parents[1] / "golden"
NANO = Path(__file__).parents[2] / "examples" / "nano"
# What a published folder has beside its weights; none of it is what we would write ourselves.
BESIDE = {
    "generation_config.json": {"eos_token_id": 601},
    "preprocessor_config.json": {"image_processor_type": "VLMImageProcessor", "image_size": 48},
    "processor_config.json": {"processor_class": "VLChatProcessor", "sft_format": "deepseek"},
}
TOKENS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad"}


class Config:
    """Access by attributes, as OmegaConf gives it: a key that is absent is an error."""

    def __init__(self, values):
        self.__dict__.update(
            {k: Config(v) if isinstance(v, dict) else v for k, v in values.items()}
        )


def open_as_the_original(path, ids, image_size=48):
    """The accesses of the original's `load_ae`, processor and tokenizer loaders."""
    params = Config(yaml.safe_load((path / "vae" / "config.yaml").read_text())).model.params
    ddconfig = params.ddconfig
    for name in ("resolution", "in_channels", "ch", "out_ch", "ch_mult", "num_res_blocks",
                 "z_channels", "double_z", "attn_resolutions", "dropout"):  # fmt: skip
        assert hasattr(ddconfig, name), name
    assert params.embed_dim == ddconfig.z_channels
    assert params.monitor == "val/rec_loss"
    # `instantiate_from_config(lossconfig)`: a class that is built without arguments.
    assert params.lossconfig.target == "torch.nn.Identity"
    assert (path / "vae" / "kl-f16d16.ckpt").is_file()
    assert (path / "model.safetensors").is_file()
    language = json.loads((path / "config.json").read_text())["language_config"]
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads", "vocab_size", "max_position_embeddings"):  # fmt: skip
        assert language[name]
    processor = json.loads((path / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "VLMImageProcessor"
    assert processor["image_size"] == image_size
    chat = json.loads((path / "processor_config.json").read_text())
    assert chat["processor_class"] == "VLChatProcessor"
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        named = json.loads((path / file).read_text())
        assert {k: tokenizer.token_to_id(named[k]) for k in TOKENS} == ids
    assert json.loads((path / "tokenizer_config.json").read_text())["tokenizer_class"]
    try:
        from transformers import AutoTokenizer
    except ImportError:  # in the extra [torch]
        return
    auto = AutoTokenizer.from_pretrained(path)
    assert {k: getattr(auto, f"{k}_id") for k in TOKENS} == ids
    text = "FINDINGS: No pleural effusion."
    found = auto.encode(text)
    assert (
        found[found[0] == auto.bos_token_id :]
        == tokenizer.encode(text, add_special_tokens=False).ids
    )


def beside_the_weights(path):
    weights = (".safetensors", ".ckpt", ".bin")
    files = (f for f in path.rglob("*") if f.is_file() and f.suffix not in weights)
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def assert_files_of_the_source(exported, source):
    """To the byte; only config.json has the instructions that the run taught besides."""
    found, expected = beside_the_weights(exported), beside_the_weights(source)
    config = json.loads(found.pop("config.json"))
    assert config.pop("instructions")["findings"]
    # As texts: 4 is not 4.0.
    assert json.dumps(config) == json.dumps(json.loads(expected.pop("config.json")))
    assert found == expected


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("back")


@pytest.fixture(scope="module")
def source(base):
    """The golden checkpoint with the files of a published folder."""
    path = Path(shutil.copytree(GOLDEN / "tiny" / "checkpoint", base / "source"))
    for name, values in BESIDE.items():
        (path / name).write_text(json.dumps(values))
    return path


def train(base, name, init, *options):
    """A run of three steps; gives its directory."""
    data = base / "data"
    if not data.exists():
        toy_run.write_pictures(data)
    config = toy_run.write_config(base / f"{name}.py", "understanding", data, init)
    out = base / name
    arguments = [str(config), "--out", str(out), "--total-steps", "3"]
    assert toy_run.load_train().main([*arguments, "--validate-every", "0", *options]) == 0
    return out


@pytest.fixture(scope="module")
def trained(base, source):
    import_published(source, base / "jax")
    return train(base, "run", base / "jax")


@pytest.fixture(scope="module")
def exported(base, trained):
    export_published(trained / "export", base / "out")
    return base / "out"


@pytest.mark.extended
def test_every_file_of_the_source_is_in_the_export(source, trained, exported):
    assert_files_of_the_source(exported, source)
    # On the way: the run's directory needs nothing outside of itself.
    assert (trained / "tokenizer" / "source" / "preprocessor_config.json").is_file()


@pytest.mark.extended
def test_the_original_opens_the_export_of_a_trained_run(exported):
    # The toy's config.json has no pad, and its tokenizer files do.
    open_as_the_original(exported, {"bos_token": 600, "eos_token": 601, "pad_token": 602})


@pytest.mark.extended
def test_the_export_computes_what_the_run_computes(base, trained, exported, tmp_path):
    """`convert check` gives the same differences, digit by digit."""
    same = [load_model(path) for path in (trained / "export", exported)]
    assert same[0][0] == same[1][0]
    jax.tree.map(np.testing.assert_array_equal, same[0][1:], same[1][1:])
    assert not np.array_equal(
        same[0][1]["lm_head"]["kernel"], load_model(base / "jax")[1]["lm_head"]["kernel"]
    )
    # A part of the golden file, since the rest takes long.
    golden = load_file(GOLDEN / "tiny" / "golden.safetensors")
    save_file(
        {k: v for k, v in golden.items() if k.startswith(("und.", "vae."))},
        tmp_path / "golden.safetensors",
    )
    shutil.copy(GOLDEN / "tiny" / "golden.json", tmp_path)
    results = [run_checks(path, tmp_path) for path in (trained / "export", exported)]
    assert results[0] == results[1]
    assert any(r.passed is False for r in results[0])  # it is another model than the golden one
    assert all(r.passed for r in results[0] if r.tensor.startswith("vae.") and r.passed is not None)


@pytest.mark.extended
def test_a_cast_carries_the_files_too(trained, source, tmp_path):
    cast(trained / "export", tmp_path / "half", "bfloat16")
    export_published(tmp_path / "half", tmp_path / "out")
    assert_files_of_the_source(tmp_path / "out", source)


@pytest.mark.extended
def test_an_index_of_shards_does_not_outlive_its_shards(base, source, tmp_path):
    """A training writes one weight file; the index of the source's shards would hide it."""
    sharded = Path(shutil.copytree(source, tmp_path / "source"))
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    placed = {key: f"model-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for name in set(placed.values()):
        save_file({k: tensors[k] for k in tensors if placed[k] == name}, sharded / name)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    import_published(sharded, tmp_path / "jax")
    cast(tmp_path / "jax", tmp_path / "half", "bfloat16")
    export_published(tmp_path / "half", tmp_path / "out")
    assert beside_the_weights(tmp_path / "out") == beside_the_weights(source)
    load_published(tmp_path / "out")


@pytest.mark.slow
def test_a_run_that_starts_from_published_files_themselves(base, source, tmp_path):
    export_published(train(base, "direct", source) / "export", tmp_path / "out")
    assert_files_of_the_source(tmp_path / "out", source)


# --- starts without such files -----------------------------------------------------------------


def test_the_nano_model_gets_what_the_original_asks_for(tmp_path):
    with pytest.warns(UserWarning, match="latents are 1.2197") as warned:
        export_published(NANO, tmp_path / "out")
    assert any("norm_groups" in str(w.message) for w in warned)
    ids = {"bos_token": 2040, "eos_token": 2041, "pad_token": 2042}
    open_as_the_original(tmp_path / "out", ids, image_size=128)
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.555895] * 3
    assert processor["image_std"] == [0.336385] * 3
    chat = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert chat["num_image_tokens"] == 64
    # Scale and shift of the latents come back: without them images are others.
    assert load_published(tmp_path / "out")[0] == native.load_config(NANO)


@pytest.mark.filterwarnings("error")
def test_a_start_from_janus_gets_what_the_original_asks_for(source, tmp_path):
    janus = Path(shutil.copytree(GOLDEN / "tiny_janus", tmp_path / "janus"))
    shutil.copy(source / "tokenizer.json", janus)
    import_janus(janus, tmp_path / "jax", vae=source / "vae")
    config = native.load_config(tmp_path / "jax")
    export_published(tmp_path / "jax", tmp_path / "out")
    special = config.special_tokens
    ids = {"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}
    open_as_the_original(tmp_path / "out", ids)
    # The sequence that the model was trained on has one bos, which the original's code adds.
    assert not json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["add_bos_token"]
    assert load_published(tmp_path / "out")[0] == config


@pytest.mark.extended
def test_tokens_without_an_id_are_said(source, tmp_path):
    config, params, vae = load_published(GOLDEN / "tiny" / "checkpoint")
    files = [(source / "tokenizer.json", "tokenizer.json")]
    native.save(tmp_path / "jax", config, params, vae, copies=files)
    with pytest.warns(UserWarning, match=r"no token has the id of pad_token \(100002\)") as warned:
        export_published(tmp_path / "jax", tmp_path / "out")
    assert any(
        "pad_token_id: the default 100002 is outside the vocabulary of 640 tokens" in str(w.message)
        for w in warned
    )
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["special_token_ids"].keys() == {
        "bos_token_id", "eos_token_id", "start_of_image", "end_of_image",
    }  # fmt: skip
    assert load_published(tmp_path / "out")[0] == config
    named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert named["bos_token"]
    assert "pad_token" not in named


@pytest.mark.extended
def test_a_configuration_that_training_changed_is_written(base, source, tmp_path):
    """The source's config.json and yaml are completed, not copied, where they would be wrong."""
    config, params, vae = load_published(source)
    jax_config = type(config).from_dict(
        json.loads(json.dumps(config.to_dict())) | {"timestep_shift": 2.5, "double_bos": False}
    )
    copies = native.carried_files(base / "jax")
    native.save(tmp_path / "jax", jax_config, params, vae, copies=copies)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_published(tmp_path / "jax", tmp_path / "out")
    assert load_published(tmp_path / "out")[0] == jax_config
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    before = (source / "config.json").read_text()
    changed = json.loads(before) | {"timestep_shift": 2.5, "double_bos": False}
    # As texts: 4 is not rewritten as 4.0, and no default is added.
    assert json.dumps(raw) == json.dumps(changed)
    files = beside_the_weights(tmp_path / "out")
    assert {k: v for k, v in files.items() if k != "config.json"} == {
        k: v for k, v in beside_the_weights(source).items() if k != "config.json"
    }

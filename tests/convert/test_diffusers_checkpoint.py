"""`import-diffusers` and back: every bit, every file, and what is refused or left out."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from unix_jax.checkpoints import native
from unix_jax.checkpoints.diffusers import DiffusersFolder
from unix_jax.checkpoints.diffusers_checkpoint import (
    DiffusersCheckpoint,
    export_diffusers,
    import_diffusers,
)
from unix_jax.checkpoints.diffusers_sizes import read_sizes
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.commands.convert import main
from unix_jax.errors import CheckpointError, ConfigError, SourceNote, UniXError
from unix_jax.preprocessing.prompt_tokenizer import PromptTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP, BERT = (GOLDEN / name / "checkpoint" for name in ("unet_clip", "unet_bert"))


def files_of(directory):
    return {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}


def tensors_of(path):
    with open_tensors(path) as source:
        return {key: np.array(source.read(key)) for key in source.keys()}  # noqa: SIM118


@pytest.fixture
def folder(tmp_path):
    """A copy of a small folder, whose files may be changed."""
    return Path(shutil.copytree(CLIP, tmp_path / "folder"))


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "source",
    [
        CLIP,
        pytest.param(BERT, marks=pytest.mark.extended),
        pytest.param(GOLDEN / "diffusers_epsilon" / "checkpoint", marks=pytest.mark.extended),
    ],
)
def test_export_returns_every_bit(source, tmp_path, capsys):
    assert main(["import-diffusers", str(source), str(tmp_path / "jax")]) == 0
    assert main(["export", str(tmp_path / "jax"), str(tmp_path / "back")]) == 0
    capsys.readouterr()
    counts = [read_sizes(path).parameter_counts() for path in (source, tmp_path / "jax")]
    assert counts[0] == counts[1]
    ours, theirs = files_of(tmp_path / "back"), files_of(source)
    assert ours.keys() == theirs.keys()
    for name, file in theirs.items():
        if name.endswith(".bin"):  # pickles have the tensors, in the same order
            found, expected = tensors_of(ours[name]), tensors_of(file)
            assert list(found) == list(expected)
            for key in expected:
                assert found[key].dtype == expected[key].dtype
                np.testing.assert_array_equal(found[key], expected[key])
        else:
            assert ours[name].read_bytes() == file.read_bytes(), name


def test_an_imported_folder_computes_the_same(tmp_path, capsys):
    import_diffusers(CLIP, tmp_path / "jax")
    assert main(["check", str(tmp_path / "jax"), str(GOLDEN / "unet_clip")]) == 0
    assert "5 passed, 0 failed" in capsys.readouterr().out


@pytest.mark.extended
def test_another_type(tmp_path):
    import_diffusers(CLIP, tmp_path / "jax", "bfloat16")
    kinds = {
        part: {info.dtype for info in infos}
        for part in ("params", "vae", "text_encoder")
        if (infos := [native.tensor_infos(tmp_path / "jax")[name]
                      for name in native.tensor_infos(tmp_path / "jax")
                      if name.startswith(f"{part}/")])
    }  # fmt: skip
    half = {np.dtype(jnp.bfloat16)}
    assert kinds == {"params": half, "vae": {np.dtype(np.float32)}, "text_encoder": half}
    export_diffusers(tmp_path / "jax", tmp_path / "back")
    found = tensors_of(tmp_path / "back" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = tensors_of(CLIP / "unet" / "diffusion_pytorch_model.safetensors")
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor.astype(jnp.bfloat16))
    text = tensors_of(tmp_path / "back" / "text_encoder" / "model.safetensors")
    assert text["text_model.embeddings.position_ids"].dtype == np.int64


def test_half_precision_files_and_shards(folder, tmp_path):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {key: x.astype(np.float16) for key, x in load_file(file).items()}
    file.unlink()
    names = sorted(tensors)
    parts = {
        f"diffusion_pytorch_model.fp16-0000{i + 1}-of-00002.safetensors": names[i::2]
        for i in (0, 1)
    }
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / "unet" / name, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
        "weight_map": {key: name for name, keys in parts.items() for key in keys},
    }
    index_file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index_file.write_text(json.dumps(index))
    import_diffusers(folder, tmp_path / "jax")
    export_diffusers(tmp_path / "jax", tmp_path / "back")
    for name in parts:
        assert (tmp_path / "back" / "unet" / name).read_bytes() == (
            folder / "unet" / name
        ).read_bytes()
    assert json.loads((tmp_path / "back" / "unet" / index_file.name).read_text()) == index
    params = DiffusersCheckpoint(tmp_path / "jax").unet
    np.testing.assert_array_equal(params["conv_in"]["bias"], tensors["conv_in.bias"])


def test_a_safety_checker_is_left_out_and_said(folder, tmp_path):
    change_json(folder / "model_index.json", safety_checker=["stable_diffusion", "Checker"])
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"x")
    with pytest.warns(SourceNote, match="not copied: safety_checker"):
        import_diffusers(folder, tmp_path / "jax")
    with pytest.warns(SourceNote, match="safety_checker: null"):
        export_diffusers(tmp_path / "jax", tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"in_channels": 9}, ["in_channels", "expected 4", "found 9"]),
        ("unet/config.json", {"cross_attention_dim": 32}, ["cross_attention_dim", "24"]),
        ("text_encoder/config.json", {"vocab_size": 40}, ["vocab_size", "at least"]),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 20}, ["max_position", "20"]),
        ("tokenizer/tokenizer_config.json", {"pad_token": "<pad>"}, ["pad_token", "<pad>"]),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, ["model_max_length"]),
        ("scheduler/scheduler_config.json", {"thresholding": True}, ["thresholding"]),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, ["layers.2", "missing"]),
        ("vae/config.json", {"layers_per_block": 2}, ["missing", "resnets.1"]),
    ],
)
def test_folders_that_are_refused(file, changes, words, folder, tmp_path):
    change_json(folder / file, **changes)
    with pytest.raises(UniXError) as error:
        import_diffusers(folder, tmp_path / "jax")
    assert all(word in error.value.details for word in [*words, str(folder)])
    assert not (tmp_path / "jax").exists()


@pytest.mark.extended
def test_weights_that_are_not_finite(folder, tmp_path):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = np.inf
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight"):
        import_diffusers(folder, tmp_path / "jax")
    assert not (tmp_path / "jax").exists()
    import_diffusers(folder, tmp_path / "jax", allow_non_finite=True)


def test_a_link_that_leaves_the_folder(folder, tmp_path):
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    (folder / "unet" / "more.json").symlink_to(outside)
    with pytest.raises(CheckpointError, match="links that leave it"):
        import_diffusers(folder, tmp_path / "jax")


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"model_index\.json: no such file"):
        import_diffusers(GOLDEN / "unet_joint" / "checkpoint", tmp_path / "jax")


@pytest.mark.extended
def test_another_command_says_what_it_found(tmp_path):
    import_diffusers(CLIP, tmp_path / "jax")
    with pytest.raises(ConfigError, match="found 'unix-jax-diffusers-1'"):
        native.load_config(tmp_path / "jax")


def test_a_damaged_checkpoint(tmp_path):
    import_diffusers(CLIP, tmp_path / "jax")
    index = json.loads((tmp_path / "jax" / "index.json").read_text())
    del index["params"]["conv_in/bias"], index["crc32"]
    (tmp_path / "jax" / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="conv_in/bias"):
        DiffusersCheckpoint(tmp_path / "jax").unet  # noqa: B018
    with pytest.raises(CheckpointError, match="conv_in/bias"):
        export_diffusers(tmp_path / "jax", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_a_changed_file_of_a_checkpoint_is_named_and_can_be_accepted(tmp_path, capsys, name):
    import_diffusers(CLIP, tmp_path / "jax")
    file = tmp_path / "jax" / "source" / name
    file.write_text(file.read_text() + "\n")
    with pytest.raises(CheckpointError, match="content changed since it was written") as error:
        DiffusersCheckpoint(tmp_path / "jax")
    assert str(file) in str(error.value)
    assert main(["accept", str(tmp_path / "jax")]) == 0
    assert f"{file}: recorded as changed" in capsys.readouterr().err
    DiffusersCheckpoint(tmp_path / "jax").check()


def test_prompts_become_ids_of_one_length():
    tokenizer = DiffusersFolder(CLIP).tokenizer
    ids, cut = tokenizer.encode(["", "left", "<|endoftext|>", "left " * 40])
    assert ids.shape == (4, 12)
    assert ids[0].tolist() == [tokenizer.start, tokenizer.end, *[tokenizer.pad] * 10]
    assert len(set(ids[2].tolist())) > 4
    assert cut == [0, 0, cut[2], 30]


@pytest.mark.parametrize("source", [CLIP, BERT], ids=["clip", "bert"])
def test_a_tokenizer_as_transformers_5_writes_it(source, tmp_path):
    old = PromptTokenizer.from_directory(source / "tokenizer")
    old.backend.save(str(tmp_path / "tokenizer.json"))
    names = ("bos_token", "eos_token", "pad_token") if source is CLIP else (
        "cls_token", "sep_token", "pad_token")  # fmt: skip
    tokens = map(old.backend.id_to_token, (old.start, old.end, old.pad))
    config = dict(zip(names, tokens, strict=True)) | {"model_max_length": 12}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    new = PromptTokenizer.from_directory(tmp_path)
    texts = ["Large  left effusion.", "", "é LEFT 12 don't", "no " * 30]
    np.testing.assert_array_equal(new.encode(texts)[0], old.encode(texts)[0])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        PromptTokenizer.from_directory(tmp_path)


# What transformers 5.24 makes of these texts.
TEXTS = ["LEFT left left left left left left left no", "é left 12 don't"]
IDS = {
    CLIP: [
        [61, 58, 58, 58, 58, 58, 58, 58, 58, 15, 44, 62],
        [61, 62, 62, 58, 62, 62, 5, 16, 43, 62, 49, 62],
    ],
    BERT: [[2, 6, 6, 6, 6, 6, 6, 6, 6, 4, 3, 0], [2, 1, 6, 1, 1, 1, 1, 3, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("source", [CLIP, BERT], ids=["clip", "bert"])
def test_ids_are_those_of_transformers(source):
    tokenizer = PromptTokenizer.from_directory(source / "tokenizer")
    assert tokenizer.encode(TEXTS)[0].tolist() == IDS[source]


def test_the_map_of_special_tokens_comes_last(folder):
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "."}')
    tokenizer = PromptTokenizer.from_directory(folder / "tokenizer")
    assert tokenizer.pad == tokenizer.backend.token_to_id(".")
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt: no such file"):
        PromptTokenizer.from_directory(folder / "tokenizer")

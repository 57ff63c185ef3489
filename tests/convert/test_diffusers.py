"""Diffusers folders: parity through `convert check`; configurations and files that are refused."""

import json
import math
import shutil
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from unix_jax.checkpoints.diffusers import DiffusersFolder
from unix_jax.checkpoints.diffusers_config import (
    Fields,
    read_text_config,
    read_unet_config,
    read_vae_config,
)
from unix_jax.checkpoints.diffusers_table import bert_table, clip_table, kl_table, unet_table
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.table import Entry
from unix_jax.commands.convert import main
from unix_jax.config import AutoencoderConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models import autoencoder, clip, unet
from unix_jax.models.encoder_config import CLIP_ACTIVATIONS, BertConfig, ClipTextConfig
from unix_jax.models.unet_config import UNET_ACTIVATIONS, TextAttention, UNetConfig

GOLDEN = Path(__file__).parents[1] / "golden"
EPSILON = GOLDEN / "diffusers_epsilon" / "checkpoint"
UNET = json.loads((EPSILON / "unet" / "config.json").read_text())
VAE = json.loads((EPSILON / "vae" / "config.json").read_text())
TEXT = json.loads((EPSILON / "text_encoder" / "config.json").read_text())


def rows_of(tmp_path, checkpoint, golden):
    code = main(["check", str(checkpoint), str(golden), "--json", str(tmp_path / "rows.json")])
    return code, {row["tensor"]: row for row in json.loads((tmp_path / "rows.json").read_text())}


@pytest.mark.extended
@pytest.mark.parametrize(
    ("name", "passed", "inputs"),
    [
        ("diffusers_epsilon", 8, 5),
        ("unet_mixed", 458, 4),
        ("unet_joint", 233, 12),
        ("unet_bert", 5, 2),
        ("unet_clip", 5, 2),
    ],
)
def test_every_tensor_passes(name, passed, inputs, tmp_path, capsys):
    code, rows = rows_of(tmp_path, GOLDEN / name / "checkpoint", GOLDEN / name)
    assert code == 0
    assert f"{passed} passed, 0 failed, {inputs} inputs, 0 unchecked" in capsys.readouterr().out
    for tensor, row in rows.items():
        if row["passed"]:
            loose = tensor.startswith(("sample.", "unet.grad."))
            assert row["tolerance"] == (0 if tensor == "text.ids" else 1e-4 if loose else 2e-5)


def test_a_changed_weight_fails(tmp_path, capsys):
    copy = Path(shutil.copytree(GOLDEN / "unet_joint" / "checkpoint", tmp_path / "copy"))
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["mid_block.attentions.0.transformer_blocks.0.attn1.norm_k.weight"][3] += 0.5
    save_file(tensors, file, {"format": "pt"})
    golden = tmp_path / "golden"
    golden.mkdir()
    kept = {
        name: tensor
        for name, tensor in load_file(GOLDEN / "unet_joint" / "golden.safetensors").items()
        if not name.startswith("unet.grad.")
    }
    save_file(kept, golden / "golden.safetensors")
    shutil.copy(GOLDEN / "unet_joint" / "golden.json", golden)
    code, rows = rows_of(tmp_path, copy, golden)
    assert code == 1
    assert rows["unet.out.t3"]["passed"] is False
    capsys.readouterr()


# ------------------------------------------------------------------------- configurations


def unet_config(**changes):
    return read_unet_config(Fields(UNET | changes, "config.json"))


def test_unet_sizes():
    config, linear = unet_config()
    assert config.widths == (32, 64, 64)
    assert config.num_heads == (4, 4, 4)
    assert config.context == TextAttention(48)
    assert not linear
    # What the oldest folders lack has diffusers' defaults, which are SD's except for the context.
    config, linear = read_unet_config(Fields({"cross_attention_dim": 768}, "config.json"))
    assert config == UNetConfig()
    assert not linear


@pytest.mark.parametrize(
    "changes",
    [
        {"addition_embed_type": "text_time"},
        {"attention_type": "gated"},
        {"class_embed_type": "timestep"},
        {"cross_attention_norm": "layer_norm"},
        {"dropout": 0.1},
        {"dual_cross_attention": True},
        {"encoder_hid_dim": 4},
        {"encoder_hid_dim_type": "text_proj"},
        {"mid_block_only_cross_attention": True},
        {"mid_block_scale_factor": 1.4},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"num_attention_heads": 4},
        {"num_class_embeds": 1000},
        {"only_cross_attention": True},
        {"only_cross_attention": [True, False, False]},
        {"resnet_out_scale_factor": 2.0},
        {"resnet_skip_time_act": True},
        {"resnet_time_scale_shift": "spatial"},
        {"time_cond_proj_dim": 256},
        {"time_embedding_act_fn": "silu"},
        {"time_embedding_type": "fourier"},
        {"timestep_post_act": "silu"},
        {"act_fn": "geglu"},
        {"act_fn": None},
        {"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]},
        {"down_block_types": []},
        {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
        {"block_out_channels": [32, 64]},
        {"block_out_channels": [32, 40, 64]},
        {"block_out_channels": "32"},
        {"attention_head_dim": [4, 5, 4]},
        {"attention_head_dim": [4, 4]},
        {"cross_attention_dim": [48, 48, 32]},
        {"layers_per_block": 0},
        {"layers_per_block": 10**6},
        {"transformer_layers_per_block": 10**6},
        {"down_block_types": ["DownBlock2D"] * 13},
        {"layers_per_block": [1, 1]},
        {"transformer_layers_per_block": [[1], [1], [1]]},
        {"reverse_transformer_layers_per_block": [1]},
        {"norm_num_groups": None},
        {"norm_eps": "small"},
        {"downsample_padding": 2},
        {"conv_in_kernel": 2},
        {"freq_shift": 16},
        {"flip_sin_to_cos": 1},
        {"center_input_sample": None},
        {"time_embedding_dim": 0},
        {"in_channels": True},
        {"flash": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_unsupported_fields_are_named(changes):
    with pytest.raises(ConfigError) as error:
        unet_config(**changes)
    assert str(error.value).startswith("config.json: ")
    assert next(iter(changes)) in str(error.value)


@pytest.mark.parametrize(
    ("read", "raw", "changes"),
    [
        (read_vae_config, VAE, {"use_quant_conv": False}),
        (read_vae_config, VAE, {"mid_block_add_attention": False}),
        (read_vae_config, VAE, {"latents_mean": [0.0] * 4}),
        (read_vae_config, VAE, {"shift_factor": 0.1}),
        (read_vae_config, VAE, {"act_fn": "relu"}),
        (read_vae_config, VAE, {"block_out_channels": [32, 48]}),
        (read_vae_config, VAE, {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}),
        (read_vae_config, VAE, {"norm_num_groups": 5}),
        (read_vae_config, VAE, {"scaling_factor": 0}),
        (read_vae_config, VAE, {"tiles": 2}),
        (read_vae_config, VAE, {"layers_per_block": 10**9}),
        (read_text_config, TEXT, {"num_hidden_layers": 10**9}),
        (read_text_config, TEXT, {"model_type": "t5"}),
        (read_text_config, TEXT, {"hidden_act": "relu"}),
        (read_text_config, TEXT, {"num_attention_heads": 5}),
        (read_text_config, TEXT, {"use_attention_mask": True}),
        (read_text_config, TEXT, {"rope": True}),
        (read_text_config, TEXT, {"model_type": "bert", "is_decoder": True, "hidden_act": "gelu"}),
    ],
)
def test_other_parts_are_as_strict(read, raw, changes):
    with pytest.raises(ConfigError) as error:
        read(Fields(raw | changes, "config.json"))
    names = set(changes) - ({"model_type", "hidden_act"} if len(changes) > 1 else set())
    assert names.pop() in str(error.value)


LEVELS = st.integers(1, 3)


# Each example traces a U-Net.
@pytest.mark.extended
@settings(max_examples=5, deadline=None)
@given(st.data(), LEVELS)
def test_any_supported_sizes_have_a_table(data, levels):
    def per_level(*values):
        return data.draw(st.lists(st.sampled_from(values), min_size=levels, max_size=levels))

    down = per_level("CrossAttnDownBlock2D", "DownBlock2D")
    up = per_level("CrossAttnUpBlock2D", "UpBlock2D")
    config, linear = unet_config(
        down_block_types=down,
        up_block_types=up,
        mid_block_type=data.draw(
            st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None])
        ),
        block_out_channels=per_level(16, 32),
        layers_per_block=per_level(1, 2),
        transformer_layers_per_block=per_level(1, 2),
        attention_head_dim=per_level(1, 2, 8),
        use_linear_projection=data.draw(st.booleans()),
        resnet_time_scale_shift=data.draw(st.sampled_from(["default", "scale_shift"])),
    )
    table = unet_table(config, linear)
    keys = [entry.key for entry in table]
    assert len(set(keys)) == len(keys)
    first = [k for k in keys if k.endswith("attentions.0.proj_in.weight")]
    attends = [x.startswith("Cross") for x in (*down, *up)]
    assert len(first) == sum(attends) + (config.mid_attention is True)
    for entry in table:
        assert entry.transform.file_shape(entry.shape) == entry.file_shape
        array = np.zeros(entry.file_shape, np.int8)
        assert entry.transform.to_ours(array).shape == entry.shape
        assert entry.transform.to_file(entry.transform.to_ours(array)).shape == entry.file_shape


def shapes_of(table: tuple[Entry, ...]):
    return {entry.path: entry.stacked_shape for entry in table}


def test_tables_cover_the_models():
    vae = AutoencoderConfig(
        ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(), z_channels=4, embed_dim=4,
        norm_groups=4,
    )  # fmt: skip
    ours = {path: leaf.shape for path, leaf in flatten(autoencoder.param_shapes(vae)).items()}
    assert shapes_of(kl_table(vae)) == ours
    assert len({e.key for e in (*kl_table(vae), *kl_table(vae, True))}) == len(ours) + 16
    small = ClipTextConfig(50, 24, 3, 3, 40, 20)
    found = flatten(nn.unbox(clip.param_shapes(small)))
    assert shapes_of(clip_table(small)) == {path: leaf.shape for path, leaf in found.items()}
    assert {e.path for e in bert_table(BertConfig())} >= {"word_embeddings", "layers/fc1/kernel"}
    # SD 1.x's autoencoder and text encoder, without the counter of positions.
    sd = AutoencoderConfig(
        ch_mult=(1, 2, 4, 4), attn_resolutions=(), z_channels=4, embed_dim=4, resolution=8
    )
    assert sum(math.prod(e.shape) for e in kl_table(sd)) == 83_653_863
    sizes = clip_table(ClipTextConfig())
    assert sum(math.prod(e.stacked_shape) for e in sizes) == 123_060_480


# ------------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    """A copy of a small folder, whose files may be changed."""
    return Path(shutil.copytree(GOLDEN / "unet_clip" / "checkpoint", tmp_path / "folder"))


def change_json(file, **changes):
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "FluxPipeline"}, ["_class_name", "StableDiffusionPipeline", "Flux"]),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, ["unet", "UNet3DConditionModel"]),
        ({"vae": [None, None]}, ["vae", "AutoencoderKL"]),
    ],
)
def test_another_pipeline(folder, changes, words):
    change_json(folder / "model_index.json", **changes)
    with pytest.raises(ConfigError) as error:
        DiffusersFolder(folder)
    assert all(word in str(error.value) for word in ["model_index.json", *words])


def test_another_class_of_a_part(folder):
    change_json(folder / "unet" / "config.json", _class_name="UNet2DModel")
    with pytest.raises(ConfigError, match="_class_name: expected 'UNet2DConditionModel'"):
        DiffusersFolder(folder).unet_config  # noqa: B018


def test_all_wrong_keys_are_listed_at_once(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.bias"]
    tensors["extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["conv_out.bias"] = np.zeros(5, np.float32)
    save_file(tensors, file)
    with pytest.raises(CheckpointError) as error:
        DiffusersFolder(folder).unet  # noqa: B018
    for part in ("conv_in.bias", "extra.weight: found [2, 3]", "conv_out.bias", str(file)):
        assert part in str(error.value)


def test_missing_parts(folder, tmp_path, capsys):
    shutil.rmtree(folder / "vae")
    assert main(["check", str(folder), str(GOLDEN / "unet_clip")]) == 1
    assert str(folder / "vae") in capsys.readouterr().err


def test_weights_that_are_not_finite(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv_in.weight"][0, 0] = np.nan
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="finite"):
        DiffusersFolder(folder).vae  # noqa: B018


@pytest.mark.parametrize(
    ("name", "info", "tensors", "words"),
    [
        ("unet_clip", {"sample": [1]}, {}, "sample: expected an object"),
        ("unet_clip", {"sample": {"num_inference_steps": "4"}}, {}, "guidance_scale"),
        ("unet_clip", {"prompts": [1]}, {}, "prompts: expected texts"),
        ("unet_clip", {}, {"text.ids": np.full((1, 4), 999)}, "text.ids: expected ids below 63"),
        ("unet_clip", {}, {"text.ids": np.zeros((1, 20), int)}, "at most 16 tokens, found 20"),
        ("unet_clip", {}, {"sample.noise": np.zeros((3, 5, 6, 8), "f")}, "sample.noise: expected"),
        ("unet_mixed", {}, {"text.hidden": np.zeros((2, 7, 9), "f")}, "text.hidden: expected"),
        pytest.param(
            "unet_mixed",
            {"gradients": {"timestep": "x"}},
            {},
            "gradients.timestep",
            marks=pytest.mark.extended,
        ),
        ("unet_joint", {}, {"joint.keys.1": np.zeros((2, 4, 2, 8), "f")}, "joint.keys.1"),
        ("unet_joint", {}, {"joint.position": np.zeros(3, int)}, "joint.position: expected"),
        ("unet_joint", {"joint": 3}, {}, "joint: expected a JSON object"),
    ],
)
def test_golden_files_that_do_not_fit(name, info, tensors, words, tmp_path, capsys):
    raw = json.loads((GOLDEN / name / "golden.json").read_text()) | info
    (tmp_path / "golden.json").write_text(json.dumps(raw))
    kept = load_file(GOLDEN / name / "golden.safetensors") | tensors
    save_file(kept, tmp_path / "golden.safetensors")
    assert main(["check", str(GOLDEN / name / "checkpoint"), str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def test_a_run_that_is_not_supported(tmp_path, capsys):
    golden = Path(shutil.copytree(GOLDEN / "unet_clip", tmp_path / "golden"))
    change_json(golden / "golden.json", sample={"num_inference_steps": 4, "eta": 0.5})
    assert main(["check", str(golden / "checkpoint"), str(golden)]) == 1
    assert "eta 0" in capsys.readouterr().err


def test_a_wrong_decoder(tmp_path, capsys):
    golden = Path(shutil.copytree(GOLDEN / "unet_joint", tmp_path / "golden"))
    change_json(golden / "golden.json", joint={"num_layers": 4, "heads": 2})
    assert main(["check", str(golden / "checkpoint"), str(golden)]) == 1
    assert "unknown fields ['heads']" in capsys.readouterr().err


def test_the_model_has_the_files_own_paths():
    config, linear = unet_config()
    paths = set(flatten(nn.unbox(unet.param_shapes(config))))
    assert {entry.path for entry in unet_table(config, linear)} == paths


@pytest.mark.parametrize("name", ["diffusers_epsilon", "unet_bert", "unet_clip"])
def test_counted_parameters_are_those_of_the_tables(name):
    folder = DiffusersFolder(GOLDEN / name / "checkpoint")
    counts = folder.parameter_counts()
    assert counts
    for part, count in counts.items():
        table = folder.table(part, ())
        assert count == sum(math.prod(entry.stacked_shape) for entry in table), part


def test_activations_by_name_are_those_of_the_models():
    assert set(UNET_ACTIVATIONS) == set(unet.ACTIVATIONS)
    assert set(CLIP_ACTIVATIONS) == set(clip._ACTIVATIONS)

"""Configuration: presets, round trips, the three published forms, and refusals."""

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path

import jax
import pytest
import yaml

from unix_jax.checkpoints.published_config import from_published, to_published
from unix_jax.commands.checkpoint_table import parameter_counts
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.errors import ConfigError
from unix_jax.models import unix

CHECKPOINT = Path(__file__).parent / "golden" / "tiny" / "checkpoint"
PUBLISHED = UniXConfig.preset("published")

JANUS = {
    "model_type": "multi_modality",
    "architectures": ["MultiModalityCausalLM"],
    "aligner_config": {
        "cls": "MlpProjector",
        "model_type": "aligner",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 2048, "projector_type": "mlp_gelu"},
    },
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384}},
    "language_config": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 16,
        "torch_dtype": "bfloat16",
        "vocab_size": 102400,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "vision_config": {
        "cls": "CLIPVisionTower",
        "model_type": "vision",
        "params": {
            "image_size": 384,
            "model_name": "siglip_large_patch16_384",
            "select_feature": "same",
            "select_layer": -1,
        },
    },
}
REPOSITORY = {
    "llm_config": {
        "hidden_size": 96,
        "intermediate_size": 200,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 700,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000,
        "qk_norm": True,
        "layer_module": "Qwen2MoTDecoderLayer",
    },
    "vit_config": {
        "hidden_size": 176,
        "intermediate_size": 240,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "layer_norm_eps": 1e-5,
        "rope": False,
    },
    "vae_config": {"z_channels": 16, "downsample": 16},
    "latent_patch_size": 2,
    "max_latent_size": 16,
    "timestep_shift": 3.0,
    "interpolate_pos": True,
    "connector_act": "gelu",
    "inference_config": {"num_timesteps": 50},
}


def read(config, vae=None):
    """Without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_published(config, vae)


def changed(config, value, *path):
    config = copy.deepcopy(config)
    section = config
    for name in path[:-1]:
        section = section.setdefault(name, {})
    section[path[-1]] = value
    return config


# ----------------------------------------------------------------------------- presets


def test_published_parameter_counts():
    counts = parameter_counts(PUBLISHED)
    parts = ("decoder, und", "decoder, gen", "embeddings and lm_head")
    assert sum(counts[name] for name in parts) == 2_886_189_056
    assert round(counts["vision tower"] / 1e6, 1) == 303.7
    assert round(counts["model"] / 1e9, 2) == 3.20
    # What the und stages train, and the gen stages (the position table is fixed).
    understanding = sum(counts[k] for k in (parts[0], parts[2], "vision tower", "connector"))
    generation = counts[parts[1]] + counts["time and latent projections"] - 32 * 32 * 2048
    assert round(understanding / 1e9, 2) == 1.96
    assert round(generation / 1e9, 2) == 1.24


@pytest.mark.parametrize("name", ["nano", "tiny", "published"])
def test_presets(name):
    config = UniXConfig.preset(name)
    config.check_special_tokens()
    counts = parameter_counts(config)
    assert counts["model"] == sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(unix.param_shapes(config))
    )
    if name == "nano":
        assert counts["model"] <= 12_000_000
    assert config.latent_downsample == 16
    assert config.vision.num_patches == config.vit_max_num_patch_per_side**2


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"expected one of .*'nano'.* found 'huge'"):
        UniXConfig.preset("huge")


def test_tiny_is_the_golden_checkpoint():
    config = json.loads((CHECKPOINT / "config.json").read_text())
    vae = yaml.safe_load((CHECKPOINT / "vae" / "config.yaml").read_text())
    found = read(config, vae)
    # The toy file names no pad token.
    special = dataclasses.replace(found.special_tokens, pad=602)
    found = dataclasses.replace(found, special_tokens=special, double_bos=False)
    assert found == UniXConfig.preset("tiny")


def test_derived_sizes():
    config = dataclasses.replace(PUBLISHED, latent_patch_size=2)
    assert (config.latent_channels, config.latent_downsample) == (64, 32)
    assert (PUBLISHED.latent_channels, PUBLISHED.latent_downsample) == (16, 16)
    assert PUBLISHED.vision.mlp_size == 4096


# ----------------------------------------------------------------------------- round trips

ODD = UniXConfig(
    DecoderConfig(20, 28, 2, 4, 2, 6, 40, 64, 1e-3, 300.0),
    VisionConfig(8, 4, 176, 1, 2, 240 / 176, 1e-2),
    AutoencoderConfig(32, (1, 2), 3, (8, 4), 16, 3, 3, 2, 2),
    SpecialTokens(1, 2, 3, 4, 5),
    latent_patch_size=2,
    max_latent_size=5,
    vit_max_num_patch_per_side=9,
    connector_act="gelu",
    interpolate_pos=True,
    timestep_shift=2.5,
    double_bos=True,
)


@pytest.mark.filterwarnings("ignore:vae. (norm_groups 4|linear_window 3)")
@pytest.mark.parametrize("config", [ODD, PUBLISHED, UniXConfig.preset("nano")])
def test_round_trips_through_json(config):
    assert UniXConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    published, vae = to_published(config)
    published, vae = json.loads(json.dumps(published)), yaml.safe_load(yaml.safe_dump(vae))
    assert read(published, vae) == config


def test_what_the_published_autoencoder_lacks():
    with pytest.warns(UserWarning, match="would compute other images") as warned:
        _, vae = to_published(UniXConfig.preset("nano"))
    messages = [str(warning.message) for warning in warned]
    for name, value, usual in (("norm_groups", 4, 32), ("linear_window", 3, 0)):
        assert vae["model"]["params"]["ddconfig"][name] == value
        expected = f"vae: {name} {value}: the published code always uses {usual} and would"
        assert any(message.startswith(expected) for message in messages)
    _, vae = to_published(PUBLISHED)
    assert not {"norm_groups", "linear_window"} & set(vae["model"]["params"]["ddconfig"])


def test_from_dict_keeps_defaults():
    config = UniXConfig.from_dict({"format": "unix-jax-1", "decoder": {"num_layers": 3}})
    assert config == dataclasses.replace(PUBLISHED, decoder=DecoderConfig(num_layers=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"c.json: format: expected 'unix-jax-1', found None"),
        ({"format": "unix-jax-1", "decoder": 3}, r"c.json: decoder: expected a JSON object"),
        ({"format": "unix-jax-1", "depth": 3}, r"c.json: unknown fields \['depth'\]"),
        ({"format": "unix-jax-1", "vae": {"chs": 3}}, r"c.json: vae: unknown fields \['chs'\]"),
        ({"format": "unix-jax-1", "interpolate_pos": 1}, r"interpolate_pos: expected bool"),
        ({"format": "unix-jax-1", "vae": {"ch_mult": "12"}}, r"vae: ch_mult: expected tuple"),
        ({"format": "unix-jax-1", "vae": {"ch_mult": [1, "2"]}}, r"ch_mult\[1\]: expected int"),
        ({"format": "unix-jax-1", "decoder": {"num_layers": True}}, r"num_layers: expected int"),
        ({"format": "unix-jax-1", "decoder": {"num_layers": 2.5}}, r"num_layers: expected int"),
        ({"format": "unix-jax-1", "decoder": {"rope_theta": "1"}}, r"rope_theta: expected float"),
        ({"format": "unix-jax-1", "decoder": {"rope_theta": float("nan")}}, r"expected float"),
        ({"format": "unix-jax-1", "decoder": {"rope_theta": 10**400}}, r"expected float"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        UniXConfig.from_dict(values, source="c.json")


@pytest.mark.parametrize(
    ("part", "change", "field"),
    [
        ("decoder", {"num_layers": 0}, "decoder.num_layers"),
        ("decoder", {"num_kv_heads": 3}, "decoder.num_kv_heads"),
        ("decoder", {"head_dim": 7}, "decoder.head_dim"),
        ("decoder", {"hidden_size": 6}, "decoder.hidden_size"),
        ("decoder", {"rms_norm_eps": -1e-6}, "decoder.rms_norm_eps"),
        ("vision", {"num_heads": 7}, "vision.width"),
        ("vision", {"patch_size": 7}, "vision.image_size"),
        ("vision", {"mlp_ratio": 0.0}, "vision.mlp_ratio"),
        ("vae", {"ch": 40}, "vae.ch"),
        ("vae", {"norm_groups": 0}, "vae.norm_groups"),
        ("vae", {"norm_groups": 48}, "vae.ch"),
        ("vae", {"ch_mult": ()}, "vae.ch_mult"),
        ("vae", {"ch_mult": (1, -1)}, "vae.ch"),
        ("vae", {"scale_factor": 0.0}, "vae.scale_factor"),
        (None, {"latent_patch_size": 0}, "config.latent_patch_size"),
        (None, {"connector_act": "relu"}, "connector_act"),
    ],
)
def test_contradictions(part, change, field):
    if part:
        change = {part: dataclasses.replace(getattr(PUBLISHED, part), **change)}
    with pytest.raises(ConfigError, match=f"{field}.*: expected .* found"):
        dataclasses.replace(PUBLISHED, **change)


def test_special_tokens_outside_the_vocabulary():
    config = dataclasses.replace(PUBLISHED, decoder=DecoderConfig(vocab_size=100001))
    with pytest.raises(ConfigError, match="eos: expected an id below vocab_size 100001"):
        config.check_special_tokens()


# ----------------------------------------------------------------------------- published forms


def test_janus_form():
    config = read(JANUS)
    assert config == dataclasses.replace(PUBLISHED, double_bos=True)


def test_janus_form_with_eps_and_theta():
    config = changed(JANUS, 1e-5, "language_config", "rms_norm_eps")
    config = changed(config, 5e5, "language_config", "rope_theta")
    decoder = read(config).decoder
    assert (decoder.rms_norm_eps, decoder.rope_theta) == (1e-5, 5e5)


def test_repository_form():
    config = read(REPOSITORY)
    assert config.decoder == DecoderConfig(96, 200, 5, 6, 2, 16, 700, 16384, 1e-5, 500000.0)
    assert config.vision == VisionConfig(64, 8, 176, 3, 4, 240 / 176, 1e-5)
    assert config.vision.mlp_size == 240
    assert (config.latent_patch_size, config.max_latent_size) == (2, 16)
    assert (config.timestep_shift, config.interpolate_pos) == (3.0, True)
    assert config.connector_act == "gelu"
    assert config.vit_max_num_patch_per_side == 8
    assert config.vae == AutoencoderConfig()


def test_empty_file_is_the_published_preset():
    assert read({}) == dataclasses.replace(PUBLISHED, double_bos=True)


def test_null_counts_as_absent():
    config = changed(JANUS, None, "language_config", "rope_theta")
    config = changed(config, None, "special_token_ids")
    assert read(config) == read(JANUS)


def test_kv_heads_default_to_all_heads():
    config = {"language_config": {"num_attention_heads": 8, "hidden_size": 64}}
    decoder = read(config).decoder
    assert (decoder.num_kv_heads, decoder.head_dim) == (8, 8)


def test_unknown_fields_are_named_in_one_warning():
    config = changed(JANUS, 1, "language_config", "moe_experts")
    config = changed(config, 2, "flux_capacitor")
    config = changed(config, 3, "vision_config", "params", "register_tokens")
    vae = {"model": {"params": {"ddconfig": {"swirl": 4}}}}
    with pytest.warns(UserWarning, match="unknown fields ignored") as record:
        found = from_published(config, vae)
    assert len(record) == 1
    for name in ("moe_experts", "flux_capacitor", "register_tokens", "swirl"):
        assert name in str(record[0].message)
    assert found == read(JANUS)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("language_config",), [1], "language_config: expected an object"),
        (("language_config", "hidden_size"), "big", "language_config.hidden_size: expected int"),
        (("language_config", "intermediate_size"), -4, "intermediate_size: expected a positive"),
        (("language_config", "num_attention_heads"), 0, "num_heads: expected a positive"),
        (("language_config", "num_key_value_heads"), 0, "num_kv_heads: expected a positive"),
        (("language_config", "hidden_act"), "gelu", "hidden_act: expected 'silu'"),
        (("language_config", "rope_scaling"), {"factor": 2}, "rope_scaling: expected None"),
        (("language_config", "tie_word_embeddings"), True, "tie_word_embeddings: expected False"),
        (("vision_config", "params"), 3, "params: expected an object"),
        (("vision_config", "params", "model_name"), "vit_h", "model_name: expected one of"),
        (("vision_config", "params", "select_layer"), -2, "select_layer: expected -1"),
        (("vision_config", "params", "patch_size"), 0, "vision.patch_size: expected a positive"),
        (("aligner_config", "params", "depth"), 3, "depth: expected 2"),
        (("aligner_config", "params", "n_embed"), 4096, "n_embed: expected 2048"),
        (("special_token_ids",), {"bos_token_id": "x"}, "bos_token_id: expected int"),
        (("timestep_shift",), "3", "timestep_shift: expected float"),
    ],
)
def test_published_refusals_name_the_field(path, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_published(changed(JANUS, value, *path), source="x/config.json")
    assert "x/config.json" in str(error.value)


@pytest.mark.parametrize("vae", [[1], {"model": 3}, {"model": {"params": {"ddconfig": "x"}}}])
def test_broken_vae_configuration(vae):
    with pytest.raises(ConfigError, match=r"vae/config\.yaml"):
        from_published(JANUS, vae)


@pytest.mark.parametrize(
    ("field", "value"), [("double_z", False), ("attn_type", "linear"), ("ch", "128")]
)
def test_vae_fields_that_cannot_be_honoured(field, value):
    vae = {"model": {"params": {"embed_dim": 16, "ddconfig": {field: value}}}}
    with pytest.raises(ConfigError, match=f"ddconfig.{field}"):
        from_published(JANUS, vae)


@pytest.mark.parametrize("config", [[], "x", 3, None])
def test_config_that_is_no_object(config):
    with pytest.raises(ConfigError, match="expected a JSON object"):
        from_published(config)

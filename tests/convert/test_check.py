"""`unix-jax convert check`: what passes, what fails, and that any settings of this kind work."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from support.published_folder import write_configurations
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.load import load_model
from unix_jax.checkpoints.table import unix_table, vae_table
from unix_jax.commands.convert import main
from unix_jax.config import (
    AutoencoderConfig,
    DecoderConfig,
    SpecialTokens,
    UniXConfig,
    VisionConfig,
)
from unix_jax.errors import CheckpointError
from unix_jax.parity.check import Result, compare, run_checks
from unix_jax.parity.golden import (
    Golden,
    autoencoder_tensors,
    edit_tensors,
    generation_tensors,
    understanding_tensors,
)
from unix_jax.parity.golden_training import training_tensors

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny"
TINY = GOLDEN / "checkpoint"
INPUTS = (
    "vae.pixels", "vae.sample_noise", "und.pixel_values", "und.prompt_ids", "gen.prompt_ids",
    "gen.init_noise", "edit.vae_pixels", "train.vit_pixels.", "train.vae_pixels.",
    "train.packed_timesteps", "train.noise",
)  # fmt: skip
KEYS = {"tensor", "shape", "max_relative_difference", "tolerance", "passed", "note"}


def golden_directory(path: Path, tensors, info=None) -> Path:
    path.mkdir()
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()},
              path / "golden.safetensors")  # fmt: skip
    info = json.loads((GOLDEN / "golden.json").read_text()) if info is None else info
    (path / "golden.json").write_text(json.dumps(info))
    return path


def tiny(*prefixes: str) -> dict[str, np.ndarray]:
    tensors = load_file(GOLDEN / "golden.safetensors")
    return {name: value for name, value in tensors.items() if name.startswith(prefixes)}


# The quickest group that runs the model: ViT, decoder, decoding.
QUICK = ("und.pixel_values", "und.prompt_ids", "und.greedy_tokens", "und.vit_features",
         "und.text_hidden", "und.key_cache.1")  # fmt: skip


def table_of(path: Path, golden: Path, tmp_path: Path) -> tuple[int, dict[str, dict]]:
    """(exit code, rows of the JSON by name)."""
    code = main(["check", str(path), str(golden), "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert isinstance(rows, list)
    assert all(set(row) == KEYS for row in rows)
    return code, {row["tensor"]: row for row in rows}


# ------------------------------------------------------------------------- golden/tiny


@pytest.mark.extended
def test_every_tensor_passes(tmp_path, capsys):
    code, rows = table_of(TINY, GOLDEN, tmp_path)
    assert code == 0
    tensors = load_file(GOLDEN / "golden.safetensors")
    assert rows.keys() == tensors.keys()
    for name, row in rows.items():
        assert row["shape"] == list(tensors[name].shape)
        if name.startswith(INPUTS):
            assert row["passed"] is None
            assert row["note"] == "input"
            assert row["max_relative_difference"] is None
            continue
        assert row["passed"] is True
        exact = tensors[name].dtype.kind in "iub"
        loose = name.startswith(("gen.sample.", "edit.sample.", "train.grad."))
        assert row["tolerance"] == (0 if exact else 1e-4 if loose else 2e-5)
        assert 0 <= row["max_relative_difference"] <= row["tolerance"]
    printed = capsys.readouterr().out
    assert "184 passed, 0 failed, 16 inputs, 0 unchecked" in printed


def test_an_imported_checkpoint_passes(tmp_path, capsys):
    assert main(["import", str(TINY), str(tmp_path / "jax")]) == 0
    golden = golden_directory(tmp_path / "golden", tiny(*QUICK))
    code, rows = table_of(tmp_path / "jax", golden, tmp_path)
    assert code == 0
    assert sum(row["passed"] is True for row in rows.values()) == 4
    capsys.readouterr()


def test_a_changed_weight_fails(tmp_path, capsys):
    copied = Path(shutil.copytree(TINY, tmp_path / "copy"))
    tensors = load_file(copied / "model.safetensors")
    tensors["language_model.model.layers.1.self_attn.k_proj.weight"][3, 5] += 0.05
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    shutil.rmtree(copied / "vae")  # not needed for und.*
    golden = golden_directory(tmp_path / "golden", tiny(*QUICK))
    code, rows = table_of(copied, golden, tmp_path)
    assert code == 1
    assert rows["und.key_cache.1"]["passed"] is False
    assert rows["und.text_hidden"]["passed"] is False
    assert rows["und.vit_features"]["passed"] is True
    assert "FAIL" in capsys.readouterr().out


def test_changed_golden_tensors_fail(tmp_path, capsys):
    tensors = tiny(*QUICK)
    tensors["und.key_cache.1"] = tensors["und.key_cache.1"] * np.float32(1 + 1e-4)
    tensors["und.greedy_tokens"] = tensors["und.greedy_tokens"].copy()
    tensors["und.greedy_tokens"][-1] += 1
    tensors["und.vit_features"] = tensors["und.vit_features"][:, :-1]
    tensors["und.novel"] = np.zeros(3, np.float32)
    tensors["other"] = np.zeros((2, 2), np.int64)
    code, rows = table_of(TINY, golden_directory(tmp_path / "golden", tensors), tmp_path)
    assert code == 1
    assert {name for name, row in rows.items() if row["passed"] is False} == {
        "und.key_cache.1", "und.greedy_tokens", "und.vit_features",
    }  # fmt: skip
    assert rows["und.greedy_tokens"]["tolerance"] == 0
    assert rows["und.vit_features"]["max_relative_difference"] is None
    assert "shape" in rows["und.vit_features"]["note"]
    for name in ("und.novel", "other"):
        assert rows[name]["passed"] is None
        assert rows[name]["note"] == "unchecked"
    printed = capsys.readouterr().out
    assert "1 passed, 3 failed, 2 inputs, 2 unchecked" in printed
    assert "und.novel" in printed


def test_only_the_autoencoder(tmp_path, capsys):
    golden = golden_directory(tmp_path / "golden", tiny("vae."), info={})
    code, rows = table_of(TINY, golden, tmp_path)
    assert code == 0
    assert sum(row["passed"] is True for row in rows.values()) == 4
    capsys.readouterr()


def test_nothing_to_check(tmp_path, capsys):
    golden = golden_directory(tmp_path / "golden", {"x": np.zeros(2, np.float32)}, info={})
    code, rows = table_of(TINY, golden, tmp_path)
    assert code == 0
    assert rows["x"]["note"] == "unchecked"
    capsys.readouterr()


# ------------------------------------------------------------------------- comparing


def test_compare_relative_to_the_largest():
    golden = np.array([0.0, -4.0, 2.0], np.float32)
    result = compare("x", golden, golden + np.float32(1e-4))
    assert result.max_relative_difference == pytest.approx(2.5e-5, rel=1e-2)
    assert result.passed is False
    assert compare("gen.sample.0.latent", golden, golden + np.float32(1e-4)).passed is True
    assert compare("x", golden, golden) == Result("x", [3], 0.0, 2e-5, True)


def test_compare_zeros_and_empty_and_exact():
    zeros = np.zeros(3, np.float32)
    assert compare("x", zeros, zeros).passed is True
    assert compare("x", zeros, zeros + np.float32(1e-3)).passed is False
    assert compare("x", zeros[:0], zeros[:0]).passed is True
    ids = np.array([1, 2**40], np.int64)
    assert compare("x", ids, ids).passed is True
    assert compare("x", ids, ids + np.array([0, 1])).passed is False
    assert compare("x", ids.astype(bool), np.array([True, False])).passed is False
    assert compare("x", ids, ids[None]).passed is False


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_compare_never_passes_what_is_no_number(value):
    golden = np.ones(3, np.float32)
    broken = golden.copy()
    broken[1] = value
    for result in (compare("x", golden, broken), compare("x", broken, golden),
                   compare("x", broken, broken)):  # fmt: skip
        assert result.passed is False
        # Strict JSON knows neither.
        json.dumps(dataclasses.asdict(result), allow_nan=False)


# ------------------------------------------------------------------------- errors


def message_of(capsys, arguments) -> str:
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_missing_files(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for directory in (empty, tmp_path / "nowhere"):
        assert "golden.safetensors" in message_of(capsys, ["check", TINY, directory])
    golden = golden_directory(tmp_path / "golden", tiny("vae."))
    assert "nowhere" in message_of(capsys, ["check", tmp_path / "nowhere", golden])
    (golden / "golden.json").unlink()
    assert "golden.json" in message_of(capsys, ["check", TINY, golden])
    (golden / "golden.json").write_text("{")
    assert "golden.json" in message_of(capsys, ["check", TINY, golden])
    (golden / "golden.json").write_text("[]")
    assert "golden.json" in message_of(capsys, ["check", TINY, golden])


def test_truncated_tensors(tmp_path, capsys):
    golden = golden_directory(tmp_path / "golden", tiny("vae."))
    file = golden / "golden.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert "golden.safetensors" in message_of(capsys, ["check", TINY, golden])


@pytest.mark.parametrize(
    ("prefix", "entry"),
    [("gen.", "generation_image_hw"), ("gen.", "generation_samples"), ("edit.", "edit_sample"),
     ("train.", "train")],
)  # fmt: skip
def test_missing_entry(tmp_path, capsys, prefix, entry):
    info = json.loads((GOLDEN / "golden.json").read_text())
    del info[entry]
    names = [prefix, "gen.prompt_ids", "gen.init_noise", "und.pixel_values"]
    golden = golden_directory(
        tmp_path / "golden", tiny(*names[: 3 if prefix == "gen." else 1]), info
    )
    line = message_of(capsys, ["check", TINY, golden])
    assert entry in line
    assert "golden.json" in line


def test_missing_input(tmp_path, capsys):
    tensors = tiny("und.")
    del tensors["und.pixel_values"]
    line = message_of(capsys, ["check", TINY, golden_directory(tmp_path / "golden", tensors)])
    assert "und.pixel_values" in line


def test_autoencoder_that_is_needed_but_absent(tmp_path, capsys):
    copied = Path(shutil.copytree(TINY, tmp_path / "copy"))
    shutil.rmtree(copied / "vae")
    golden = golden_directory(tmp_path / "golden", tiny("vae."))
    assert "autoencoder" in message_of(capsys, ["check", copied, golden])


# ------------------------------------------------------------------------- another model

OTHER = UniXConfig(
    decoder=DecoderConfig(48, 80, 2, 6, 2, 8, 96, 256, 3e-5, 777.0),
    vision=VisionConfig(40, 8, 24, 1, 3, 2.0, 1e-4),
    vae=AutoencoderConfig(
        ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(128,), z_channels=6, embed_dim=6
    ),
    special_tokens=SpecialTokens(90, 91, 95, 93, 94),
    latent_patch_size=2,
    max_latent_size=5,
    vit_max_num_patch_per_side=5,
    connector_act="gelu",
    interpolate_pos=True,
    timestep_shift=1.7,
)
# Pixels; a latent token is 4 x 4 of them.
HEIGHT, WIDTH = 12, 28
SCALES = {
    "num_timesteps": 4,
    "timestep_shift": 1.7,
    "cfg_text_scale": 1.0,
    "cfg_img_scale": 1.0,
    "cfg_interval": [0.4, 1.0],
    "cfg_renorm_type": "global",
    "cfg_renorm_min": 0.0,
}
TEXT = {"type": "text", "loss": 0}
OTHER_INFO = {
    "generation_image_hw": [HEIGHT, WIDTH],
    "vit_image_hw": [40, 40],
    "generation_samples": [
        SCALES,
        SCALES | {"cfg_text_scale": 2.5, "cfg_img_scale": 1.4, "cfg_renorm_type": "text_channel"},
    ],
    "edit_sample": SCALES | {"cfg_text_scale": 2.0, "cfg_img_scale": 1.5, "cfg_renorm_min": 0.2},
    "train": {
        "samples": [
            {"plan": [{"type": "vit_image", "loss": 0}, TEXT | {"loss": 1}],
             "images": [["vit", 0]], "texts": [[1, 2, 3]]},
            {"plan": [{"type": "vae_image", "loss": 0}, {"type": "vit_image", "loss": 0}, TEXT,
                      {"type": "vae_image", "loss": 1}],
             "images": [["vae", 0], ["vit", 1], ["vae", 1]], "texts": [[4, 5]]},
        ]
    },
}  # fmt: skip


def write_other(directory: Path) -> None:
    """Random weights of OTHER in the published layout."""
    rng = np.random.default_rng(0)

    def tensors(table) -> dict[str, np.ndarray]:
        found = {}
        for entry in table:
            for key in entry.keys:
                shape = entry.file_shape
                value = rng.normal(size=shape)
                if len(shape) > 1:
                    value /= np.sqrt(np.prod(shape[1:]))
                elif key.endswith("weight"):
                    value = 1 + 0.1 * value
                else:
                    value *= 0.1
                found[key] = value.astype(np.float32)
        return found

    write_configurations(directory, OTHER)
    write_torch_zip(directory / "vae" / "kl-f16d16.ckpt", tensors(vae_table(OTHER.vae)))
    write_safetensors(directory / "model.safetensors", tensors(unix_table(OTHER)), {"format": "pt"})


def other_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    latents = (HEIGHT // 4) * (WIDTH // 4)
    clean_tokens = 3 * 5
    inputs = {
        "vae.pixels": normal(2, 3, HEIGHT, WIDTH),
        "vae.sample_noise": normal(2, 6, HEIGHT // 2, WIDTH // 2),
        "und.pixel_values": normal(1, 3, 40, 40),
        "und.prompt_ids": np.array([3, 1, 4, 1, 5]),
        "und.greedy_tokens": np.zeros(7, np.int64),
        "gen.prompt_ids": np.array([9, 2, 6]),
        "gen.init_noise": normal(latents, 24),
        "gen.velocity.t0.5": normal(latents, 24),
        "edit.vae_pixels": normal(1, 3, 20, 12),
        "train.vit_pixels.0": normal(3, 40, 40),
        "train.vit_pixels.1": normal(3, 40, 40),
        # Of two sizes: the smaller one is padded for the autoencoder.
        "train.vae_pixels.0": normal(3, 12, 20),
        "train.vae_pixels.1": normal(3, HEIGHT, WIDTH),
        "train.noise": normal(clean_tokens + latents, 24),
        "train.packed_timesteps": np.concatenate(
            [np.full(clean_tokens, -np.inf), np.full(latents, 0.3)]
        ).astype(np.float32),
    }
    return inputs


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """(a checkpoint of other settings, golden tensors that are our own outputs)."""
    directory = tmp_path_factory.mktemp("other") / "checkpoint"
    write_other(directory)
    config, params, vae_params = load_model(directory, dtype=jnp.float32)
    assert config == OTHER
    tensors = other_inputs()
    groups = (autoencoder_tensors, understanding_tensors, generation_tensors, edit_tensors,
              training_tensors)  # fmt: skip
    outputs: dict[str, np.ndarray] = {}
    for compute in groups:
        # Decoding is forced along the golden tokens, so ours go in first.
        golden = Golden(config, params, vae_params, tensors | outputs, OTHER_INFO)
        outputs |= {name: np.asarray(value) for name, value in compute(golden).items()}
        if compute is understanding_tensors:
            tensors["und.greedy_tokens"] = outputs["und.greedy_tokens"]
            golden = Golden(config, params, vae_params, tensors, OTHER_INFO)
            outputs |= {k: np.asarray(v) for k, v in compute(golden).items()}
    return directory, tensors | outputs


@pytest.mark.extended
def test_other_settings_pass(other, tmp_path, capsys):
    directory, tensors = other
    shapes = {
        "und.key_cache.1": (27 + 7, 2, 8),
        "und.vit_features": (1, 25, 24),
        "und.greedy_logits": (7, 96),
        "gen.sample.1.latent": (21, 24),
        "edit.sample.latent": (21, 24),
        "edit.key_cache.0": (17 + 27 + 5, 2, 8),
        "train.last_hidden": (27 + 5 + 17 + 27 + 4 + 23, 48),
        "train.attention_mask.1": (71, 71),
        "train.mse": (21, 24),
        "train.ce": (4,),
        "vae.decoded_from_latent_mode": (2, 3, HEIGHT, WIDTH),
    }
    assert {name: tensors[name].shape for name in shapes} == shapes
    code, rows = table_of(
        directory, golden_directory(tmp_path / "g", tensors, OTHER_INFO), tmp_path
    )
    failed = {name: row for name, row in rows.items() if row["passed"] is False}
    assert failed == {}
    assert code == 0
    unchecked = {name for name, row in rows.items() if row["note"] == "unchecked"}
    assert unchecked == set()
    # What passes is not trivial: numbers of all tensors differ from zero.
    constants = [n for n, t in tensors.items() if t.dtype.kind == "f" and t.size and not t.any()]
    assert constants == []
    capsys.readouterr()


@pytest.mark.extended
@pytest.mark.parametrize(
    ("section", "change", "groups", "fails"),
    [
        ("language_config", {"rope_theta": 10000.0}, "und.", "und.key_cache.0"),
        ("language_config", {"rms_norm_eps": 1e-2}, "und.", "und.image_hidden"),
        ("vision_config", {"layer_norm_eps": 1e-2}, "und.", "und.vit_features"),
        (None, {"connector_act": "gelu_pytorch_tanh"}, "und.", "und.connector_out"),
        (None, {"interpolate_pos": False, "max_latent_size": 5}, "train.", None),
        (None, {"timestep_shift": 1.0}, "train.", "train.mse"),
    ],
)
def test_every_setting_is_used(other, tmp_path, section, change, groups, fails):
    directory, tensors = other
    copied = Path(shutil.copytree(directory, tmp_path / "copy"))
    values = json.loads((copied / "config.json").read_text())
    (values if section is None else values[section]).update(change)
    (copied / "config.json").write_text(json.dumps(values))
    chosen = {name: value for name, value in tensors.items() if name.startswith(groups)}
    golden = golden_directory(tmp_path / "g", chosen, OTHER_INFO)
    if fails is None:
        # 7 tokens a row do not fit a table of 5 x 5: said in one error, not a traceback.
        with pytest.raises(CheckpointError, match="max_latent_size"):
            run_checks(copied, golden)
        return
    results = {result.tensor: result for result in run_checks(copied, golden)}
    assert results[fails].passed is False

"""What conversion meets in the field: wrappers' prefixes, averages, shards, links, other tables."""

import json
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from support.published_folder import write_nested
from unix_jax.checkpoints import native
from unix_jax.checkpoints.chexbert_files import CHEXBERT_NAMES, load_chexbert
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.safetensors_file import MAX_HEADER_BYTES
from unix_jax.checkpoints.formats.weight_files import find_weights, weight_files
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.formats.yaml_file import MAX_YAML_BYTES, read_yaml
from unix_jax.checkpoints.janus import import_janus
from unix_jax.checkpoints.prefixes import unwrapped
from unix_jax.checkpoints.published import (
    UNIX_NAMES,
    VAE_NAMES,
    export_published,
    import_published,
    load_published,
)
from unix_jax.checkpoints.rad_dino_files import DINOV2_NAMES, load_dinov2
from unix_jax.commands.convert import main
from unix_jax.errors import CheckpointError, ConfigError, SourceNote, UniXError, shortened
from unix_jax.models.embeddings import latent_position_ids, sincos_table_2d

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny" / "checkpoint"
TENSORS = load_file(TINY / "model.safetensors")
WRAPPERS = ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."]


@pytest.fixture
def source(tmp_path):
    """A copy of the toy directory."""
    shutil.copytree(TINY, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture(scope="module")
def expected():
    return load_published(TINY)[1:]


def notes(action):
    """(result, the notes) of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    assert all(issubclass(w.category, SourceNote) for w in caught), [str(w.message) for w in caught]
    return result, [str(w.message) for w in caught]


def assert_loads(source, expected, said=(), **options):
    (_, params, vae), lines = notes(lambda: load_published(source))
    jax.tree.map(np.testing.assert_array_equal, (params, vae), expected)
    for part in said:
        assert any(part in line for line in lines), lines
    return lines


def renamed(rename):
    return {rename(key): value for key, value in TENSORS.items()}


def vae_tensors():
    with open_tensors(TINY / "vae" / "kl-f16d16.ckpt") as tensors:
        return {key: np.array(tensors.read(key)) for key in tensors}


# --- prefixes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [*WRAPPERS, "model.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "unix."],
)
def test_a_common_prefix_is_removed(source, expected, prefix):
    save_file(renamed(lambda key: prefix + key), source / "model.safetensors")
    count = len(TENSORS)
    lines = assert_loads(source, expected, [f"removed '{prefix}' from {count} of {count} keys"])
    assert len(lines) == 1


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("outer", ["", "module.", "model."])
def test_wrappers_inside_a_key_are_removed(source, expected, wrapper, outer):
    def rename(key):
        for part in ("language_model.", "vision_tower.", "layers.1."):
            key = key.replace(part, part + wrapper, 1)
        return outer + key

    save_file(renamed(rename), source / "model.safetensors")
    assert_loads(source, expected, ["removed", wrapper])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([*WRAPPERS, "model.", "net."]), max_size=4),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(WRAPPERS)), max_size=3),
)
def test_any_wrapping_is_undone(tmp_path_factory, outer, inner):
    """Each key may be wrapped at its start, as all others, and anywhere inside."""

    def rename(key):
        parts = key.split(".")
        for position, wrapper in inner:
            parts.insert(position % len(parts), wrapper.rstrip("."))
        return "".join(outer) + ".".join(parts)

    path = tmp_path_factory.mktemp("wrapped") / "model.safetensors"
    write_safetensors(path, {rename(k): np.zeros(1, np.float32) for k in TENSORS})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SourceNote)
        with unwrapped(open_tensors(path), UNIX_NAMES) as tensors:
            found = set(tensors.keys())
    assert {key for key in TENSORS if key in found} >= {
        key for key in TENSORS if not key.startswith("vit_pos_embed") and "attn_pool" not in key
    }


def test_keys_that_collide_are_refused(source):
    tensors = TENSORS | {"module.llm2vae.bias": TENSORS["llm2vae.bias"]}
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"collide.*\n.*'llm2vae.bias'.*module.llm2vae.bias"):
        load_published(source)


def test_names_keep_what_belongs_to_them(source):
    own = "vit_model.vision_tower.attn_pool.module.weight"
    save_file(TENSORS | {own: np.ones(3, np.float32)}, source / "model.safetensors")
    _, lines = notes(lambda: import_published(source, source.parent / "out"))
    assert lines == []
    assert f"extras/{own}" in native.tensor_infos(source.parent / "out")


def test_an_unknown_key_is_still_unexpected(source):
    tensors = renamed(lambda key: f"module.{key}") | {"module.other": np.ones(3, np.float32)}
    save_file(tensors, source / "model.safetensors")
    with pytest.warns(SourceNote), pytest.raises(CheckpointError, match="other: found"):
        load_published(source)


def test_export_writes_the_original_names(source):
    save_file(renamed(lambda key: f"module.{key}"), source / "model.safetensors")
    notes(lambda: import_published(source, source.parent / "jax"))
    export_published(source.parent / "jax", source.parent / "out")
    found = load_file(source.parent / "out" / "model.safetensors")
    assert set(found) == set(TENSORS)
    for key, value in TENSORS.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "model.first_stage_model.", "module."])
def test_an_autoencoder_inside_a_larger_model(source, expected, prefix):
    tensors = {prefix + key: value for key, value in vae_tensors().items()}
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": np.ones(3, np.float32),
        "cond_stage_model.transformer.weight": np.ones(3, np.float32),
        "betas": np.ones(3, np.float32),
    }
    if "first" in prefix:
        tensors |= others
    write_torch_zip(source / "vae" / "kl-f16d16.ckpt", tensors)
    lines = assert_loads(source, expected, [f"removed '{prefix}'"])
    assert ("first" in prefix) == any("not 3 others" in line for line in lines)


def test_other_models(tmp_path):
    for make, name, rename in (
        (load_dinov2, "rad_dino", lambda key: f"model._orig_mod.{key}"),
        (load_chexbert, "chexbert", lambda key: f"_orig_mod.{key}"),
    ):
        directory = tmp_path / name
        shutil.copytree(GOLDEN / "metrics_tiny" / name, directory)
        with open_tensors(next(p for p in directory.iterdir() if p.suffix != ".json")) as opened:
            tensors = {rename(key): np.array(opened.read(key)) for key in opened}
        for path in directory.iterdir():
            if path.suffix != ".json":
                path.unlink()
        save_file(tensors, directory / "model.safetensors")
        (_, params), lines = notes(lambda make=make, directory=directory: make(directory))
        assert len(lines) == 1
        assert "removed" in lines[0]
        reference = make(GOLDEN / "metrics_tiny" / name)[1]
        jax.tree.map(np.testing.assert_array_equal, params, reference)
    _, lines = notes(lambda: load_chexbert(GOLDEN / "metrics_tiny" / "chexbert"))
    assert lines == []


@pytest.mark.extended
def test_janus_behind_a_prefix(tmp_path):
    shutil.copytree(GOLDEN / "tiny_janus", tmp_path / "janus")
    with open_tensors(tmp_path / "janus" / "pytorch_model.bin") as opened:
        tensors = {f"module.{key}": np.array(opened.read(key)) for key in opened}
    write_torch_zip(tmp_path / "janus" / "pytorch_model.bin", {"x": np.ones(1, np.float32)})
    write_torch_zip(tmp_path / "janus" / "pytorch_model.bin", tensors, under="model")
    _, lines = notes(lambda: import_janus(tmp_path / "janus", tmp_path / "a", max_latent_size=8))
    assert any("removed 'module.'" in line for line in lines)
    import_janus(GOLDEN / "tiny_janus", tmp_path / "b", max_latent_size=8)
    jax.tree.map(
        np.testing.assert_array_equal,
        native.load_params(tmp_path / "a"),
        native.load_params(tmp_path / "b"),
    )


def test_no_name_of_a_table_ends_with_another():
    for names in (UNIX_NAMES, VAE_NAMES, DINOV2_NAMES, CHEXBERT_NAMES):
        for name in names:
            parts = name.split(".")
            assert not {".".join(parts[i:]) for i in range(1, len(parts))} & names


# --- weights and averages --------------------------------------------------------------------


def changed(tensors):
    return {key: (value + 1).astype(value.dtype) for key, value in tensors.items()}


def head(params):
    return np.asarray(params["lm_head"]["kernel"], np.float32)


HEAD = np.asarray(TENSORS["language_model.lm_head.weight"], np.float32).T


@pytest.fixture
def no_autoencoder(source):
    """Most of the time of an import is that of the autoencoder's many arrays."""
    shutil.rmtree(source / "vae")


def import_head(source, *arguments):
    out = source.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    assert main(["import", str(source), str(out), *arguments]) == 0
    return head(native.load_params(out))


@pytest.mark.extended
@pytest.mark.usefixtures("no_autoencoder")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_average_in_a_file_of_its_own(source, capsys, suffix):
    name = f"ema{suffix}"
    average = changed(TENSORS)
    if suffix == ".pt":
        write_torch_zip(source / name, average, under=None)
    else:
        save_file(average, source / name)
    np.testing.assert_array_equal(import_head(source), HEAD)
    assert f"used the weights of model.safetensors, not those of {name}" in capsys.readouterr().err
    for arguments in (["--weights", "ema"], ["--weights", name], ["--weights", str(source / name)]):
        np.testing.assert_array_equal(import_head(source, *arguments), HEAD + 1)
    np.testing.assert_array_equal(import_head(source, "--weights", "model"), HEAD)
    np.testing.assert_array_equal(import_head(source / name), HEAD + 1)
    (source / "model.safetensors").unlink()
    np.testing.assert_array_equal(import_head(source), HEAD + 1)
    assert main(["import", str(source), str(source.parent / "x"), "--weights", "model"]) == 1
    assert "expected weights that are not an average" in capsys.readouterr().err


@pytest.mark.extended
@pytest.mark.usefixtures("no_autoencoder")
@pytest.mark.parametrize(
    ("names", "kept", "prefix"),
    [
        (("model", "ema"), "`ema`", ""),
        (("model_state_dict", "ema_state_dict"), "`ema_state_dict`", "module."),
        (("module", "model_ema"), "`model_ema`", "module."),
        (("state_dict", "ema_model"), "`ema_model`", ""),
    ],
)
def test_an_average_in_the_same_pickle(source, capsys, names, kept, prefix):
    (source / "model.safetensors").unlink()
    plain = {prefix + key: value for key, value in TENSORS.items()}
    average = {prefix + key: value for key, value in changed(TENSORS).items()}
    file = {"optimizer": {"state": {0: {"step": 1}}}, names[0]: plain, names[1]: average}
    write_nested(source / "model.pt", file)
    np.testing.assert_array_equal(import_head(source), HEAD)
    said = capsys.readouterr().err
    assert f"used `{names[0]}` ({len(TENSORS)} tensors), not {kept}" in said
    assert ("removed" in said) == bool(prefix)
    np.testing.assert_array_equal(import_head(source, "--weights", "ema"), HEAD + 1)
    np.testing.assert_array_equal(import_head(source / "model.pt", "--weights", "ema"), HEAD + 1)
    np.testing.assert_array_equal(import_head(source / "model.pt"), HEAD)


@pytest.mark.extended
@pytest.mark.usefixtures("no_autoencoder")
def test_an_average_one_level_deeper(source):
    (source / "model.safetensors").unlink()
    file = {"model": {"state_dict": TENSORS}, "ema": {"decay": 0.9, "shadow": changed(TENSORS)}}
    write_nested(source / "model.pt", file)
    np.testing.assert_array_equal(import_head(source), HEAD)
    np.testing.assert_array_equal(import_head(source, "--weights", "ema"), HEAD + 1)


@pytest.mark.extended
@pytest.mark.usefixtures("no_autoencoder")
def test_an_average_behind_another_prefix(source, capsys):
    both = {f"model.{key}": value for key, value in TENSORS.items()}
    both |= {f"ema_model.{key}": value for key, value in changed(TENSORS).items()}
    save_file(both, source / "model.safetensors")
    np.testing.assert_array_equal(import_head(source), HEAD)
    said = capsys.readouterr().err
    assert "removed 'model.'" in said
    assert f"used {len(TENSORS)} tensors, not {len(TENSORS)} others" in said
    np.testing.assert_array_equal(import_head(source, "--weights", "ema"), HEAD + 1)
    save_file({k: v for k, v in both.items() if k.startswith("ema")}, source / "model.safetensors")
    np.testing.assert_array_equal(import_head(source), HEAD + 1)


def test_two_sets_without_a_sign_which_is_meant(source):
    both = {f"{name}.{key}": value for key, value in TENSORS.items() for name in ("one", "two")}
    save_file(both, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"under one prefix.*'one\.', 'two\.'"):
        load_published(source)


@pytest.mark.extended
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_average_of_latent_diffusion_code(source, capsys, prefix):
    """`LitEma` keeps its copies under names without dots."""
    tensors = vae_tensors()
    average = {f"model_ema.{key.replace('.', '')}": value + 1 for key, value in tensors.items()}
    average |= {
        "model_ema.decay": np.array(0.9, np.float32),
        "model_ema.num_updates": np.array(3, np.int32),
    }
    tensors = {prefix + key: value for key, value in tensors.items()}
    write_torch_zip(source / "vae" / "kl-f16d16.ckpt", tensors | average)

    def kernel(*arguments):
        import_head(source, *arguments)
        return native.load_vae_params(source.parent / "out")["quant_conv"]["bias"]

    plain = vae_tensors()["quant_conv.bias"]
    np.testing.assert_array_equal(kernel(), plain)
    assert f"not {len(average)} others: 'model_ema." in capsys.readouterr().err
    np.testing.assert_array_equal(kernel("--weights", "ema"), plain + 1)


OPTIMIZER = {
    "state": {0: {"exp_avg": np.ones(3, np.float32)}, 1: {"step": np.ones((), np.float32)}},
    "param_groups": [{"lr": 0.1, "params": [0, 1]}],
}


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("params", "params_ema"),
        ("net", "ema_model"),
        ("generator", "averaged"),
        ("model", "swa"),
        ("G", "G_ema"),
        ("weights", "modelEMA"),
        ("student", "polyak_avg"),
        ("anything", "shadow"),
    ],
)
@pytest.mark.parametrize("start", ["", "checkpoint.inner."])
def test_weights_under_any_name_precede_an_average(tmp_path, plain, average, start):
    few = dict(list(TENSORS.items())[:9])
    file = {average: changed(few), plain: few, "opt": OPTIMIZER, "epoch": 3}
    for name in reversed(start.split(".")[:-1]):
        file = {name: file}
    path = tmp_path / "model.pt"
    write_nested(path, file)
    used = f"used `{start}{plain}` (9 tensors), not `{start}{average}` (9 tensors)"
    key = next(iter(few))

    def read(wanted):
        opened, lines = notes(lambda: open_tensors(path, wanted, UNIX_NAMES))
        with opened:
            return np.array(opened.read(key)), lines, (opened.averaged, opened.named)

    for wanted, offset, named in (
        (None, 0, False),
        ("model", 0, False),
        ("ema", 1, False),
        (f"{start}{plain}", 0, plain != "model" or bool(start)),
        (average, 1, True),
        (f"{start}{average}", 1, True),
    ):
        found, lines, signs = read(wanted)
        np.testing.assert_array_equal(found, (few[key] + offset).astype(found.dtype))
        assert signs == (bool(offset), named)
        assert len(lines) == 1
        assert offset or lines == [f"{path}: {used}"]


@pytest.mark.usefixtures("no_autoencoder")
def test_an_average_alone_is_said(source, capsys):
    (source / "model.safetensors").unlink()
    write_nested(source / "model.pt", {"swa": changed(TENSORS)})
    np.testing.assert_array_equal(import_head(source), HEAD + 1)
    used = f"used `swa` ({len(TENSORS)} tensors), an average; found no other state dict"
    assert used in capsys.readouterr().err
    assert main(["import", str(source), str(source.parent / "x"), "--weights", "model"]) == 1
    assert "expected weights that are not an average" in capsys.readouterr().err


@pytest.mark.usefixtures("no_autoencoder")
def test_sets_that_fit_equally_are_named_and_chosen_by_name(source, capsys):
    (source / "model.safetensors").unlink()
    file = {
        "student": TENSORS,
        "teacher": changed(TENSORS),
        "discriminator": {f"layer{i}": np.ones(2, np.float32) for i in range(500)},
        "optim": {"exp_avg": changed(TENSORS)},
    }
    write_nested(source / "model.pt", file)
    for arguments in ([], ["--weights", "model"]):
        assert main(["import", str(source), str(source.parent / "x"), *arguments]) == 1
        said = capsys.readouterr().err
        count = len(TENSORS)
        assert f"found 2 that match equally well: `student` ({count} tensors), `teacher`" in said
        assert "--weights NAME" in said
        assert "discriminator" not in said
    np.testing.assert_array_equal(import_head(source, "--weights", "teacher"), HEAD + 1)
    assert f"used `teacher` ({count} tensors), not `student`" in capsys.readouterr().err
    assert main(["import", str(source), str(source.parent / "x"), "--weights", "other"]) == 1
    assert "match equally well" in capsys.readouterr().err


@pytest.mark.parametrize("known", [frozenset(), UNIX_NAMES])
def test_weights_in_lists_and_under_integers(tmp_path, known):
    few = dict(list(TENSORS.items())[:9])
    path = tmp_path / "model.pt"
    for entries, name in (
        ({"epochs": {7: few}}, "epochs.0"),  # its position
        ({"models": [3, few]}, "models.1"),
        ({"all": [{"net": few}]}, "all.0.net"),
    ):
        write_nested(path, {"ema": changed(few), "opt": OPTIMIZER, **entries})
        opened, lines = notes(lambda: open_tensors(path, known=known))
        with opened:
            assert not opened.averaged
            assert lines == [f"{path}: used `{name}` (9 tensors), not `ema` (9 tensors)"]


@pytest.mark.usefixtures("no_autoencoder")
def test_several_averages_are_chosen_by_name(source, capsys):
    (source / "model.safetensors").unlink()
    write_nested(
        source / "model.pt", {"net": TENSORS, "ema_1": changed(TENSORS), "ema_2": changed(TENSORS)}
    )
    np.testing.assert_array_equal(import_head(source), HEAD)
    assert main(["import", str(source), str(source.parent / "x"), "--weights", "ema"]) == 1
    assert "found 2 that match equally well: `ema_1`" in capsys.readouterr().err
    np.testing.assert_array_equal(import_head(source, "--weights", "ema_2"), HEAD + 1)


@pytest.mark.usefixtures("no_autoencoder")
def test_a_prefix_is_chosen_by_its_name(source, capsys):
    both = {f"one.{key}": value for key, value in TENSORS.items()}
    both |= {f"two.net.{key}": value for key, value in changed(TENSORS).items()}
    save_file(both, source / "model.safetensors")
    np.testing.assert_array_equal(import_head(source, "--weights", "one"), HEAD)
    np.testing.assert_array_equal(import_head(source, "--weights", "two.net"), HEAD + 1)
    assert f"not {len(TENSORS)} others" in capsys.readouterr().err


def test_a_name_that_nothing_has(source, capsys):
    arguments = ["import", str(source), str(source.parent / "x"), "--weights"]
    assert main([*arguments, "teacher"]) == 1
    said = capsys.readouterr().err
    assert "found 'teacher', which is in none of model.safetensors, kl-f16d16.ckpt" in said
    for where in ("gs://bucket/x.pt", "s3://b/teacher"):
        assert main([*arguments, where]) == 1
        assert "remote paths are not supported yet" in capsys.readouterr().err
        with pytest.raises(UniXError, match=r"--weights: .*remote paths are not supported"):
            import_published(source, source.parent / "x", weights=where)


def test_an_average_that_is_not_there(source, capsys):
    assert main(["import", str(source), str(source.parent / "out"), "--weights", "ema"]) == 1
    assert "expected an average of the weights (--weights ema)" in capsys.readouterr().err
    assert main(["import", str(source), str(source.parent / "out"), "--weights", "x.pt"]) == 1
    said = capsys.readouterr().err
    assert "found 'x.pt'; the directory has model.safetensors" in said


# --- choice of files -------------------------------------------------------------------------

OTHERS = [
    "training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin",
    "rng_state.pth", "rng_state_0.pth", "random_states_0.pkl", "trainer_state.json", "scaler.pt",
    "optimizer.00000-of-00008.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "optimizer_1.bin", "data_status.pt", "sampler.bin",
]  # fmt: skip


def test_what_a_training_leaves_is_no_weights(source, capsys):
    for name in OTHERS:
        (source / name).write_bytes(b"cos\nsystem\n")
    (source / "model.safetensors").rename(source / "anything.safetensors")
    np.testing.assert_array_equal(import_head(source), HEAD)
    assert "used the weights" not in capsys.readouterr().err
    assert [files.name for files in weight_files(source)] == ["anything.safetensors"]


@pytest.mark.extended
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("first", [0, 1])
def test_shards_without_an_index(source, expected, suffix, first):
    (source / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    keys = sorted(TENSORS)
    names = [f"{stem}-{number + first:05}-of-00003{suffix}" for number in range(3)]
    for number, name in enumerate(names):
        part = {key: TENSORS[key] for key in keys[number::3]}
        if suffix == ".bin":
            write_torch_zip(source / name, part, under=None)
        else:
            save_file(part, source / name)
    assert_loads(source, expected)
    assert_loads(source / names[1], expected)
    import_published(source, source.parent / "jax")
    export_published(source.parent / "jax", source.parent / "back")
    assert_loads(source.parent / "back", expected)
    (source / names[1]).unlink()
    with pytest.raises(CheckpointError, match=f"found 2; missing: {names[1]}"):
        find_weights(source)


def test_a_tensor_in_two_shards(source):
    for number in (1, 2):
        save_file(TENSORS, source / f"model-0000{number}-of-00002.safetensors")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="as well, expected it in one shard"):
        load_published(source)


@pytest.mark.extended
def test_an_index_of_wrapped_keys(source, expected):
    (source / "model.safetensors").unlink()
    tensors = renamed(lambda key: f"_orig_mod.{key}")
    placed = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(placed.values()):
        save_file({k: tensors[k] for k in tensors if placed[k] == name}, source / name)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"x": 1}, "weight_map": placed}))
    notes(lambda: import_published(source, source.parent / "jax"))
    export_published(source.parent / "jax", source.parent / "back")
    assert assert_loads(source.parent / "back", expected) == []


def test_long_lists_are_shortened(source, capsys):
    tensors = {k: v for k, v in TENSORS.items() if not k.startswith("language_model.model.layers")}
    save_file(tensors, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config))
    arguments = ["import", str(source), str(source.parent / "out")]
    count = len(TENSORS) - len(tensors)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"missing ({count}):" in said
    assert f"... {count - 20} more ..." in said
    assert len(said.splitlines()) < 35
    assert "--verbose" in said
    assert main([*arguments, "--verbose"]) == 1
    said = capsys.readouterr().err
    assert all(f"{key}: expected" in said for key in set(TENSORS) - set(tensors))


@given(st.integers(0, 60), st.integers(1, 12))
def test_shortened(count, ends):
    lines = [str(number) for number in range(count)]
    short = shortened(lines, ends)
    assert len(short) <= 2 * ends + 1
    if count <= 2 * ends + 1:
        assert short == lines
    else:
        assert short[:ends] + short[-ends:] == lines[:ends] + lines[-ends:]
        assert f"{count - 2 * ends} more" in short[ends]


# --- latent positions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [np.float32, pytest.param(ml_dtypes.bfloat16, marks=pytest.mark.extended)]
)
def test_missing_positions_are_computed(source, kind):
    tensors = {key: value.astype(kind) for key, value in TENSORS.items()}
    table = tensors.pop("latent_pos_embed.pos_embed")
    save_file(tensors, source / "model.safetensors")
    (_, params, _), lines = notes(lambda: load_published(source))
    assert "computed its formula for 8 x 8 positions" in lines[0]
    assert params["latent_pos_embed"].dtype == kind
    np.testing.assert_array_equal(params["latent_pos_embed"], table)
    notes(lambda: import_published(source, source.parent / "jax"))
    export_published(source.parent / "jax", source.parent / "back")
    found = load_file(source.parent / "back" / "model.safetensors")
    np.testing.assert_array_equal(found["latent_pos_embed.pos_embed"], table)


@pytest.mark.extended
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [8, 9, 64])
def test_more_positions(source, capsys, kind, size):
    save_file({k: v.astype(kind) for k, v in TENSORS.items()}, source / "model.safetensors")
    import_head(source, "--max-latent-size", str(size))
    out = source.parent / "out"
    said = capsys.readouterr().err
    assert (f"from 8 x 8 to {size} x {size} positions" in said) == (size > 8)
    assert native.load_config(out).max_latent_size == size
    table = np.asarray(native.load_params(out)["latent_pos_embed"]).reshape(size, size, -1)
    assert table.dtype == kind
    width = table.shape[-1]
    formula = sincos_table_2d(width, size).astype(kind).reshape(size, size, width)
    np.testing.assert_array_equal(table, formula)
    old = TENSORS["latent_pos_embed.pos_embed"].astype(kind).reshape(8, 8, width)
    np.testing.assert_array_equal(table[:8, :8], old)
    export_published(out, source.parent / "back")
    assert load_published(source.parent / "back")[0].max_latent_size == size


@pytest.mark.extended
def test_a_larger_table_changes_no_smaller_image(source):
    """The rows' numbers change; what the model adds to each latent does not."""
    for size in (8, 20):
        import_published(source, source.parent / f"out{size}", max_latent_size=size)
    rows = [
        np.asarray(native.load_params(source.parent / f"out{size}")["latent_pos_embed"])[
            latent_position_ids(5, 7, size)
        ]
        for size in (8, 20)
    ]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("size", "fields", "words"),
    [
        ("7", {}, "expected at least 8"),
        ("9", {"interpolate_pos": True}, "expected a checkpoint without interpolate_pos"),
        ("5000", {}, "expected at most 1024"),
    ],
)
def test_positions_that_cannot_be_enlarged(source, capsys, size, fields, words):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    arguments = ["import", str(source), str(source.parent / "out"), "--max-latent-size", size]
    assert main(arguments) == 1
    assert words in capsys.readouterr().err
    assert not (source.parent / "out").exists()


def test_a_trained_table_is_not_enlarged(source):
    tensors = dict(TENSORS)
    tensors["latent_pos_embed.pos_embed"] = tensors["latent_pos_embed.pos_embed"] + 0.01
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"differs by 0\.01"):
        import_published(source, source.parent / "out", max_latent_size=9)
    import_published(source, source.parent / "out")


# --- copies and links ------------------------------------------------------------------------


def test_only_wanted_files_are_copied(source, capsys):
    for name in ("preprocessor_config.json", "processor_config.json", "generation_config.json"):
        (source / name).write_text("{}")
    for name in ("README.md", "LICENSE", "notes.txt", "keys.json", ".netrc", "trainer_state.json"):
        (source / name).write_text("x")
    (source / "logs").mkdir()
    (source / "vae" / "secret.txt").write_text("x")
    import_head(source)
    said = capsys.readouterr().err
    assert "not copied: keys.json, logs/, notes.txt, trainer_state.json, vae/secret.txt" in said
    out = source.parent / "out"
    names = {str(p.relative_to(out / "source")) for p in (out / "source").rglob("*") if p.is_file()}
    assert names == {
        "config.json", "preprocessor_config.json", "processor_config.json",
        "generation_config.json", "README.md", "LICENSE", "vae/config.yaml",
    }  # fmt: skip


def test_any_file_is_kept_on_request(source, capsys):
    (source / "notes.txt").write_text("made by hand")
    (source / "vae" / "notes.txt").write_text("more")
    import_head(source, "--keep-file", "notes.txt", "--keep-file", "vae/notes.txt")
    assert "not copied" not in capsys.readouterr().err
    out = source.parent / "out"
    assert main(["export", str(out), str(source.parent / "back")]) == 0
    assert (source.parent / "back" / "notes.txt").read_text() == "made by hand"
    assert (source.parent / "back" / "vae" / "notes.txt").read_text() == "more"


@pytest.mark.parametrize("name", ["missing.txt", "model.safetensors", "../other.txt", "vae"])
def test_what_cannot_be_kept_is_named(source, capsys, name):
    (source.parent / "other.txt").write_text("x")
    out = source.parent / "out"
    assert main(["import", str(source), str(out), "--keep-file", name]) == 1
    assert "--keep-file: expected names of files in this folder" in capsys.readouterr().err
    assert not out.exists()


def test_a_kept_file_does_not_leave_the_source(source, capsys):
    (source.parent / "private.txt").write_text("secret")
    (source / "notes.txt").symlink_to(source.parent / "private.txt")
    out = source.parent / "out"
    assert main(["import", str(source), str(out), "--keep-file", "notes.txt"]) == 1
    assert "leave" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "name",
    ["README.md", "tokenizer.json", "config.json", "model.safetensors", "vae/config.yaml",
     "vae/kl-f16d16.ckpt", "vae"],
)  # fmt: skip
@pytest.mark.parametrize("chain", [False, True])
def test_links_that_leave_the_source(tmp_path, source, name, chain):
    private = tmp_path / "private"
    if (source / name).exists():
        (source / name).rename(private)
    else:
        private.write_text("secret")
    target = private
    if chain:  # by way of a link inside
        (source / "inside").symlink_to(private)
        target = source / "inside"
    (source / name).symlink_to(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SourceNote)
        with pytest.raises(CheckpointError, match=r"links that leave it: .*private") as caught:
            import_published(source, tmp_path / "out")
    links = str(caught.value).partition("leave it: ")[2].partition("; ")[0].split(", ")
    assert len(set(links)) == len(links)
    assert "or name a weight file with --weights FILE" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_links_inside_the_source_and_to_unwanted_files(tmp_path, source, expected):
    (tmp_path / "private").write_text("secret")
    (source / "notes.txt").symlink_to(tmp_path / "private")
    (source / "weights").mkdir()
    (source / "model.safetensors").rename(source / "weights" / "x.safetensors")
    (source / "model.safetensors").symlink_to(Path("weights") / "x.safetensors")
    notes(lambda: import_published(source, tmp_path / "out"))
    np.testing.assert_array_equal(head(native.load_params(tmp_path / "out")), HEAD)
    assert not any("secret" in p.read_text("latin1") for p in tmp_path.glob("out/**/*.txt"))


def test_a_weight_file_that_is_named_may_lie_anywhere(tmp_path, source):
    (source / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    out = import_head(source, "--weights", str(tmp_path / "elsewhere.safetensors"))
    np.testing.assert_array_equal(out, HEAD)


@pytest.mark.parametrize(
    "file", ["", pytest.param("model.safetensors", marks=pytest.mark.extended)]
)
def test_the_cache_of_hugging_face(tmp_path, file):
    """snapshots/REVISION holds links to blobs/HASH."""
    repository = tmp_path / "models--user--unix"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in TINY.rglob("*") if p.is_file())):
        shutil.copy(path, repository / "blobs" / f"hash{number}")
        link = snapshot / path.relative_to(TINY)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = os.path.relpath(repository / "blobs" / f"hash{number}", link.parent)
        link.symlink_to(up)
    _, lines = notes(lambda: import_published(snapshot / file, tmp_path / "out"))
    assert lines == []
    np.testing.assert_array_equal(head(native.load_params(tmp_path / "out")), HEAD)
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    # A blob that is a link itself leads out.
    (tmp_path / "private").write_text("secret")
    (snapshot / "README.md").symlink_to("../../blobs/evil")
    (repository / "blobs" / "evil").symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match="links that leave it"):
        import_published(snapshot, tmp_path / "again")


# --- limits ----------------------------------------------------------------------------------


def _yaml_bombs():
    deep = 20_000
    return {
        "long": b"a: b\n" * 20_000,
        "aliases": b"a: &a [x]\nb: &b [*a, *a]\nmodel: *b\n",
        "lists": b"a: " + b"[" * deep + b"]" * deep,
        "mappings": b"{a: " * deep,
        "indented": b"".join(b" " * i + b"a:\n" for i in range(300)),
        "digits": b"a: " + b"9" * 60_000,
        "hexadecimal": b"a: 0x" + b"f" * 60_000,
        "sixties": b"a: 1" + b":59" * 20_000,
        "binary": b"a: !!binary x",
        "date": b"a: 2020-99-99",
        "keys": b"{[a]: b}",
        "set": b"? [a, {b: c}]\n: d\n",
        "merge": b"<<: [a]\n",
        "python": b"a: !!python/object/apply:os.system [ls]",
        "question": b"? " * 20_000,
        "dashes": b"- " * 20_000,
        "text": b"a: '" + b"x" * 60_000 + b"'",
        "null": b"\x00",
    }


@pytest.mark.parametrize("name", _yaml_bombs())
def test_yaml_is_bounded(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_bytes(_yaml_bombs()[name])
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert time.monotonic() - start < 5
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    if name == "long":
        assert f"at most {MAX_YAML_BYTES} bytes, found 100000" in str(caught.value)


def test_fuzzed_yaml_is_bounded(tmp_path):
    """Random pieces of the syntax, up to the limit: a mapping or a ConfigError, in bounded time."""
    rng = random.Random(3)
    pieces = [
        b"a", b": ", b"- ", b"\n", b"  ", b"[", b"]", b"{", b"}", b",", b"? ", b"&a ",
        b"*a", b"!!int ",
        b"!!float ", b"!!timestamp ", b"!!omap ", b"!!set ", b"!!binary ", b"<<: ", b"'", b'"',
        b"|\n",
        b">\n", b"#", b"0x1f", b"1:2:3", b"2020-01-01", b".inf", b"1e999", b"\xff", b"\t", b"---\n",
        b"%TAG ! x\n", b"=",
    ]  # fmt: skip
    path = tmp_path / "config.yaml"
    for number in range(300):
        text = b"".join(rng.choices(pieces, k=rng.randrange(1, 40)))
        if number % 10 == 0:
            text = (text * 60_000)[:60_000]
        path.write_bytes(text)
        start = time.monotonic()
        message = str(path)
        try:
            assert isinstance(read_yaml(path), dict)
        except ConfigError as error:
            message = str(error)
        assert str(path) in message
        assert time.monotonic() - start < 10, text[:200]


def test_fuzzed_keys_and_entries(tmp_path):
    """Any mix of prefixes and entries is read or refused; what is read has each key once."""
    rng = random.Random(4)
    words = [
        "module", "model", "ema", "_orig_mod", "model_ema", "state_dict", "", "llm2vae", "bias",
        "vae2llm.weight", "llm2vae.weight", "language_model.lm_head.weight", "llm2vaeweight",
        "x" * 300,
    ]  # fmt: skip

    def entries(depth):
        result = {}
        for _ in range(rng.randrange(1, 8)):
            name = ".".join(rng.choices(words, k=rng.randrange(1, 5)))
            nested = depth and rng.random() < 0.4
            result[rng.choice(words) if nested else name] = (
                entries(depth - 1) if nested else rng.choice([np.zeros(2, np.float32), 3, None])
            )
        return result

    path, opened = tmp_path / "x.pt", 0
    for _ in range(400):
        write_nested(path, entries(3))
        wanted = rng.choice([None, "model", "ema"])
        message = str(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SourceNote)
            try:
                with unwrapped(open_tensors(path, wanted), UNIX_NAMES, wanted) as tensors:
                    keys = tensors.keys()
                    assert len(set(keys)) == len(keys)
                    assert all(tensors.read(key).shape == (2,) for key in keys)
                    assert [key for _, part in tensors.files() for key in part] == keys
                    opened += 1
            except CheckpointError as error:
                message = str(error)
        assert str(path) in message
        assert len(message) < 8000
    assert opened > 100


def test_a_prefix_for_each_key_takes_no_quadratic_time(tmp_path):
    tensors = {f"p{number}.llm2vae.weight": np.zeros(0, np.float32) for number in range(20_000)}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        unwrapped(open_tensors(tmp_path / "x.safetensors"), UNIX_NAMES)
    assert time.monotonic() - start < 10
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("body", [b"[],", b'"":{},', b"1e5,", b'"a",'])
def test_large_headers_are_not_parsed(tmp_path, body):
    size = 50_000_000
    text = b'{"x":[' + body * (size // len(body))
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=f"{len(text)}, expected at most {MAX_HEADER_BYTES}"):
        open_tensors(path)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
def test_large_json_is_not_parsed(source, name):
    (source / "model.safetensors").unlink()
    with (source / name).open("wb") as file:
        file.truncate(100_000_000)
    start = time.monotonic()
    with pytest.raises(UniXError, match=f"{name}: expected .* at most [0-9]+ bytes, found 1000000"):
        load_published(source)
    assert time.monotonic() - start < 5

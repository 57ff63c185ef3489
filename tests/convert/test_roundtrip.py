"""Import, export, and what happens when a source is not what it says."""

import dataclasses
import json
import random
import shutil
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

from support.published_folder import GQA, write_published
from unix_jax.checkpoints import native
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip
from unix_jax.checkpoints.published import export_published, import_published, load_published
from unix_jax.errors import CheckpointError, ConfigError, UniXError

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny" / "checkpoint"
FLOATS = [np.dtype(kind) for kind in (ml_dtypes.bfloat16, "float32", "float16", "float64")]


def read_all(path):
    with open_tensors(path) as tensors:
        keys = tensors.keys()
        return {key: np.array(tensors.read(key)) for key in keys}


def assert_same_tensors(found, expected):
    assert list(found) == list(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype, key
        assert found[key].shape == expected[key].shape, key
        assert found[key].tobytes() == expected[key].tobytes(), key


def files_below(path):
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def golden_round_trip(tmp_path_factory):
    base = tmp_path_factory.mktemp("golden")
    import_published(GOLDEN, base / "jax")
    export_published(base / "jax", base / "out")
    return base


def test_golden_round_trip_is_bit_exact(golden_round_trip):
    out = golden_round_trip / "out"
    assert files_below(out) == files_below(GOLDEN)
    for name in files_below(GOLDEN) - {"vae/kl-f16d16.ckpt"}:
        assert (out / name).read_bytes() == (GOLDEN / name).read_bytes(), name
    expected = read_all(GOLDEN / "vae" / "kl-f16d16.ckpt")
    kept = {key: value for key, value in expected.items() if not key.startswith("loss.")}
    assert_same_tensors(read_all(out / "vae" / "kl-f16d16.ckpt"), kept)


def test_original_code_loads_the_exported_autoencoder(golden_round_trip):
    torch = pytest.importorskip("torch")
    path = golden_round_trip / "out" / "vae" / "kl-f16d16.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert state["encoder.conv_in.weight"].shape == (32, 3, 3, 3)


def test_loading_directly_equals_loading_the_import(golden_round_trip):
    config, params, vae = load_published(GOLDEN)
    assert config == native.load_config(golden_round_trip / "jax")
    stored = native.load_params(golden_round_trip / "jax")
    stored_vae = native.load_vae_params(golden_round_trip / "jax")
    jax.tree.map(np.testing.assert_array_equal, (params, vae), (stored, stored_vae))
    _, half, _ = load_published(GOLDEN, "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_import_is_what_the_table_says(golden_round_trip):
    params = native.load_params(golden_round_trip / "jax")
    tensors = read_all(GOLDEN / "model.safetensors")
    q = np.stack(
        [
            tensors[f"language_model.model.layers.{i}.self_attn.q_proj_moe_gen.weight"].T
            for i in range(3)
        ]
    )
    np.testing.assert_array_equal(params["decoder"]["layers"]["gen"]["q_proj"]["kernel"], q)
    patch = tensors["vit_model.vision_tower.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["vision"]["patch_embed"]["kernel"], patch)


@pytest.mark.parametrize("shards", [1, 3])
def test_any_mix_of_types_survives(tmp_path, shards):
    write_published(tmp_path / "source", GQA, lambda n: FLOATS[n * n % 4], shards)
    import_published(tmp_path / "source", tmp_path / "jax")
    export_published(tmp_path / "jax", tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "source")
    for name in files_below(tmp_path / "source"):
        if name.endswith(("safetensors", "ckpt")):
            assert_same_tensors(
                read_all(tmp_path / "out" / name), read_all(tmp_path / "source" / name)
            )
        else:
            same = (tmp_path / "out" / name).read_bytes() == (
                tmp_path / "source" / name
            ).read_bytes()
            assert same, name
    assert native.load_config(tmp_path / "jax") == GQA


def test_not_a_number_keeps_its_bits_in_a_mixed_stack(tmp_path):
    tensors = write_published(tmp_path / "source", GQA)
    layers = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    signalling = np.full(tensors[layers[0]].shape, 0x7C01, np.uint16)
    tensors[layers[0]] = signalling.view(np.float16)
    write_safetensors(tmp_path / "source" / "model.safetensors", tensors)
    import_published(tmp_path / "source", tmp_path / "jax", allow_non_finite=True)
    export_published(tmp_path / "jax", tmp_path / "out", allow_non_finite=True)
    found = read_all(tmp_path / "out" / "model.safetensors")
    assert (found[layers[0]].view(np.uint16) == 0x7C01).all()


def test_pickled_weights_round_trip(tmp_path):
    tensors = write_published(tmp_path / "source", GQA)
    (tmp_path / "source" / "model.safetensors").unlink()
    write_torch_zip(tmp_path / "source" / "pytorch_model.bin", tensors, under=None)
    import_published(tmp_path / "source", tmp_path / "jax")
    export_published(tmp_path / "jax", tmp_path / "out")
    assert_same_tensors(read_all(tmp_path / "out" / "pytorch_model.bin"), tensors)


def test_cast_on_import(tmp_path):
    tensors = write_published(tmp_path / "source", GQA, shards=2)
    import_published(tmp_path / "source", tmp_path / "jax", "bfloat16")
    infos = native.tensor_infos(tmp_path / "jax")
    kinds: dict[str, set[str]] = {name.partition("/")[0]: set() for name in infos}
    for name, info in infos.items():
        kinds[name.partition("/")[0]].add(info.dtype.name)
    assert kinds == {"params": {"bfloat16"}, "vae": {"float32"}, "extras": {"float32"}}
    export_published(tmp_path / "jax", tmp_path / "out")
    found = read_all(tmp_path / "out")
    key = "language_model.lm_head.weight"
    np.testing.assert_array_equal(found[key], tensors[key].astype(ml_dtypes.bfloat16))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in found.values())
    with pytest.raises(ConfigError, match="int8"):
        import_published(tmp_path / "source", tmp_path / "other", "int8")


def test_a_checkpoint_without_a_source_exports_too(tmp_path):
    config, params, vae = load_published(GOLDEN)
    native.save(tmp_path / "jax", config, params, vae)
    export_published(tmp_path / "jax", tmp_path / "out")
    again, again_params, again_vae = load_published(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, (params, vae), (again_params, again_vae))
    assert "vit_pos_embed.pos_embed" in read_all(tmp_path / "out" / "model.safetensors")


# --- errors ----------------------------------------------------------------------------------


def test_one_error_lists_everything_grouped(tmp_path):
    tensors = write_published(tmp_path / "source", GQA)
    del tensors["connector.layers.0.bias"], tensors["llm2vae.weight"]
    tensors["language_model.model.layers.1.mlp.down_proj.weight"] = np.zeros((80, 48), np.float32)
    tensors["language_model.extra"] = np.zeros((7,), np.float32)
    write_safetensors(tmp_path / "source" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        import_published(tmp_path / "source", tmp_path / "jax")
    message = str(caught.value)
    assert "2 missing, 1 unexpected, 1 mis-shaped" in message
    assert "connector.layers.0.bias: expected [48]" in message
    assert "llm2vae.weight: expected [64, 48]" in message
    assert "language_model.extra: found [7]" in message
    assert "layers.1.mlp.down_proj.weight: expected [48, 80], found [80, 48]" in message
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    ("section", "field", "value", "said", "found"),
    [
        ("language_config", "hidden_size", 64, "is 64", "gives 48"),
        ("language_config", "intermediate_size", 96, "is 96", "gives 80"),
        ("language_config", "num_hidden_layers", 3, "is 3", "has 2"),
        ("language_config", "num_hidden_layers", 2**31, f"is {2**31}", "has 2"),
        ("language_config", "num_attention_heads", 12, "is 12", "gives 6"),
        ("language_config", "num_key_value_heads", 6, "is 6", "gives 2"),
        ("language_config", "head_dim", 16, "is 16", "gives 8"),
        ("language_config", "vocab_size", 97, "is 97", "gives 96"),
        ("vision_config", "width", 48, "is 48", "gives 24"),
        ("vision_config", "layers", 2, "is 2", "has 3"),
        ("vision_config", "patch_size", 16, "is 16", "gives 8"),
        ("vision_config", "image_size", 64, "is 64", "gives 32"),
        ("vision_config", "mlp_ratio", 4, "is 96", "gives 48"),
        (None, "max_latent_size", 8, "is 8", "gives 5"),
        (None, "latent_patch_size", 1, "is 1", "gives 64"),
    ],
)
def test_config_disagreement_names_both(tmp_path, section, field, value, said, found):
    write_published(tmp_path / "source", GQA)
    path = tmp_path / "source" / "config.json"
    raw = json.loads(path.read_text())
    (raw[section] if section else raw)[field] = value
    path.write_text(json.dumps(raw))
    for run in (
        lambda: import_published(tmp_path / "source", tmp_path / "jax"),
        lambda: load_published(tmp_path / "source"),
    ):
        with pytest.raises(CheckpointError) as caught:
            run()
        line = next(x for x in str(caught.value).splitlines() if f"{field} is" in x)
        assert "config.json" in line
        assert said in line
        assert found in line


def test_missing_field_says_that_it_is_a_default(tmp_path):
    write_published(tmp_path / "source", GQA)
    path = tmp_path / "source" / "config.json"
    raw = json.loads(path.read_text())
    del raw["max_latent_size"]
    path.write_text(json.dumps(raw))
    expected = r"max_latent_size is 32 \(not in the file: the published default\).* gives 5"
    with pytest.raises(CheckpointError, match=expected):
        import_published(tmp_path / "source", tmp_path / "jax")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ch", 64, "ddconfig.ch is 64"),
        ("num_res_blocks", 2**31, "num_res_blocks is"),
        ("ch_mult", [1, 2, 2], "ch_mult is 3"),
        ("ch_mult", [1, 4], "mis-shaped"),
        ("z_channels", 8, "ddconfig.z_channels is 8"),
        ("attn_resolutions", [16], "unexpected"),
    ],
)
def test_vae_disagreement(tmp_path, field, value, words):
    write_published(tmp_path / "source", GQA)
    path = tmp_path / "source" / "vae" / "config.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["model"]["params"]["ddconfig"][field] = value
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(CheckpointError) as caught:
        import_published(tmp_path / "source", tmp_path / "jax")
    assert words in str(caught.value)


def test_without_an_autoencoder(tmp_path):
    write_published(tmp_path / "source", GQA)
    shutil.rmtree(tmp_path / "source" / "vae")
    with pytest.warns(UserWarning, match="no autoencoder"):
        import_published(tmp_path / "source", tmp_path / "jax")
    assert not native.has_vae(tmp_path / "jax")
    assert native.load_vae_params(tmp_path / "jax") is None
    assert load_published(tmp_path / "source")[2] is None
    export_published(tmp_path / "jax", tmp_path / "out")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "source")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full"), CheckpointError("x")])
def test_an_interrupted_run_leaves_nothing(tmp_path, golden_round_trip, error):
    def stop(done, total):
        raise error

    for run, source in (
        (import_published, GOLDEN),
        (export_published, golden_round_trip / "jax"),
    ):
        with pytest.raises((KeyboardInterrupt, OSError, CheckpointError)):
            run(source, tmp_path / "out", progress=stop)
        assert list(tmp_path.iterdir()) == []


def test_refuses_an_existing_target_and_wrong_sources(tmp_path, golden_round_trip):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(UniXError, match="exists already"):
        import_published(GOLDEN, tmp_path / "out")
    with pytest.raises(CheckpointError, match="a checkpoint of this project"):
        import_published(golden_round_trip / "jax", tmp_path / "new")
    with pytest.raises(CheckpointError, match="no such directory"):
        import_published(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(CheckpointError, match="found another file"):
        import_published(Path(__file__), tmp_path / "new")
    with pytest.raises(CheckpointError, match="import-janus"):
        import_published(GOLDEN.parents[1] / "tiny_janus", tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"index\.json"):
        export_published(GOLDEN, tmp_path / "new")


def test_integers_are_no_parameters(tmp_path):
    tensors = write_published(tmp_path / "source", GQA)
    tensors["llm2vae.bias"] = tensors["llm2vae.bias"].astype(np.int8)
    write_safetensors(tmp_path / "source" / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"llm2vae\.bias is int8, expected a floating type"):
        import_published(tmp_path / "source", tmp_path / "jax")


def test_yaml_may_not_expand(tmp_path):
    write_published(tmp_path / "source", GQA)
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nmodel: {params: *b}\n"
    (tmp_path / "source" / "vae" / "config.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match="aliases are not accepted"):
        import_published(tmp_path / "source", tmp_path / "jax")


def test_large_sizes_transpose_exactly(tmp_path):
    """Sizes beyond one tile of the transposing copy, not multiples of it."""
    config = dataclasses.replace(
        GQA, decoder=dataclasses.replace(GQA.decoder, vocab_size=1037, hidden_size=1028)
    )
    tensors = write_published(tmp_path / "source", config, lambda n: FLOATS[0])
    _, params, _ = load_published(tmp_path / "source")
    head = tensors["language_model.lm_head.weight"].T
    np.testing.assert_array_equal(params["lm_head"]["kernel"], head)
    up = tensors["language_model.model.layers.1.mlp_moe_gen.up_proj.weight"].T
    np.testing.assert_array_equal(params["decoder"]["layers"]["gen"]["up_proj"]["kernel"][1], up)


# --- fuzz ------------------------------------------------------------------------------------

_VALUES: tuple[object, ...] = (
    None, True, "", "x", "64", 0, 1, -1, 3, 7.5, 1e308, float("nan"), float("inf"), 2**31, 2**70,
    [], [1], {}, {"a": 1}, [[]], "\udc80",
)  # fmt: skip


def _mutate(value, rng):
    """One random change somewhere in a JSON value."""
    spots = []

    def walk(node):
        if isinstance(node, dict | list):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            for key, child in items:
                spots.append((node, key))
                walk(child)

    walk(value)
    node, key = rng.choice(spots)
    action = rng.randrange(3)
    if action == 0 and isinstance(node, dict):
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(["new", "hidden_size", "layers", "params", key + "x"])] = node.pop(key)
    else:
        node[key] = rng.choice(_VALUES)


def _mutate_text(text, rng):
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        spot = rng.randrange(len(data))
        data[spot : spot + rng.randint(0, 9)] = rng.choice(
            [b"", b"{", b'"', b"9" * 5000, b"\xff", b"[" * 3000, b"null", b"-", b"NaN"]
        )
    return bytes(data)


@pytest.mark.extended
def test_fuzzed_config_gives_clear_errors_only(tmp_path):
    write_published(tmp_path / "source", GQA)
    path = tmp_path / "source" / "config.json"
    original, survived = path.read_text(), 0
    messages: list[str] = []
    rng = random.Random(7)
    for number in range(300):
        if number % 3:
            raw = json.loads(original)
            for _ in range(rng.randint(1, 3)):
                _mutate(raw, rng)
            path.write_bytes(json.dumps(raw).encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(_mutate_text(original, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_published(tmp_path / "source")
                survived += 1
            except UniXError as error:
                messages.append(str(error))
    assert all("config.json" in text or "safetensors" in text for text in messages)
    assert 0 < survived < 290
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


@pytest.mark.extended
def test_fuzzed_vae_config_gives_clear_errors_only(tmp_path):
    write_published(tmp_path / "source", GQA)
    path = tmp_path / "source" / "vae" / "config.yaml"
    original = path.read_text()
    rng = random.Random(8)
    for number in range(120):
        if number % 3:
            raw = yaml.safe_load(original)
            _mutate(raw, rng)
            path.write_text(json.dumps(raw))
        else:
            path.write_bytes(_mutate_text(original, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_published(tmp_path / "source")
            except UniXError:
                continue

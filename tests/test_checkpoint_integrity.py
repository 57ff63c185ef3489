"""A flipped bit is found on load, weights that are not finite are refused, trees must fit."""

import json
import re
import shutil
import warnings
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unix_jax import cli
from unix_jax.checkpoints import native, orbax_tree, zarr_arrays
from unix_jax.checkpoints.cast import cast
from unix_jax.checkpoints.export import export_published
from unix_jax.checkpoints.leaves import FiniteCheck, array_leaf, flatten, non_finite_count
from unix_jax.checkpoints.leaves import cast as cast_leaf
from unix_jax.checkpoints.load import load_model, load_vae
from unix_jax.checkpoints.published import import_published
from unix_jax.checkpoints.run_files import verify as verify_checkpoint
from unix_jax.checkpoints.verification import verify
from unix_jax.config import UniXConfig
from unix_jax.errors import CheckpointError, UniXError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.models import autoencoder, unix
from unix_jax.training.checkpoint_store import CheckpointStore
from unix_jax.training.export import export

GOLDEN = Path(__file__).parent / "golden" / "tiny" / "checkpoint"
NANO = Path(__file__).parents[1] / "examples" / "nano"
CONFIG = UniXConfig.preset("tiny")
PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_tree(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def trees():
    return (
        random_tree(unix.param_shapes(CONFIG)),
        random_tree(autoencoder.param_shapes(CONFIG.vae), 1),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory, trees):
    """A checkpoint by every way in which this project writes one."""
    base = tmp_path_factory.mktemp("written")
    import_published(GOLDEN, base / "import")
    cast(base / "import", base / "cast", "bfloat16")
    native.save(base / "save", CONFIG, *trees)
    export(base, CONFIG, *trees, None)
    return base


KINDS = ("import", "cast", "save", "export")


def array_files(path):
    """Every file of every array, the header that says how to read it included: (part, array)."""
    index = native.read_index(path)
    return {
        path / part / name.replace("/", ".") / file: (part, name)
        for part in native.PARTS
        for name, entry in index.get(part, {}).items()
        for file in entry["crc32"]
    }


def read_everything(path):
    for part in native.PARTS:
        for leaf in native.open_leaves(path, part).values():
            leaf.read_all()


def flip(file, bit):
    data = bytearray(file.read_bytes())
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


class flipped:
    """A file with one bit changed, within the block."""

    def __init__(self, file, bit):
        self.file, self.bit = file, bit

    def __enter__(self):
        self.before = self.file.read_bytes()
        flip(self.file, self.bit)

    def __exit__(self, *_):
        self.file.write_bytes(self.before)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.extended) if kind == "import" else kind
        for kind in KINDS
    ],
)
@PROPERTY
@given(data=st.data())
def test_one_flipped_bit_in_any_array_file_is_found(kind, written, data):
    files = array_files(written / kind)
    file = data.draw(st.sampled_from(sorted(files)))
    bit = data.draw(st.integers(0, 2**40))
    part, name = files[file]
    with flipped(file, bit), pytest.raises(CheckpointError, match=re.escape(file.parent.name)):
        native.open_leaves(written / kind, part)[name].read_all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_array_of_every_checkpoint_has_checksums_and_is_read(kind, written):
    path = written / kind
    files = array_files(path)
    found = {f for part in native.PARTS for f in (path / part).glob("*/*") if f.is_file()}
    assert set(files) == found
    assert native.has_checksums(path)
    read_everything(path)


def test_loading_finds_it_in_the_model_and_in_the_autoencoder(written, tmp_path):
    path = Path(shutil.copytree(written / "save", tmp_path / "c"))
    with flipped(path / "vae" / "encoder.conv_in.kernel" / "0.0.0.0", 77):
        for load in (lambda: load_model(path), lambda: load_vae(path)):
            with pytest.raises(CheckpointError, match=r"encoder\.conv_in\.kernel/0\.0\.0\.0: cont"):
                load()
    with (
        flipped(path / "params" / "vision.pos_embed" / "0.0.0", 77),
        pytest.raises(CheckpointError, match=r"vision\.pos_embed/0\.0\.0: content changed"),
    ):
        UniXPipeline.from_pretrained(path, compilation_cache=False)


@PROPERTY
@given(step=st.sampled_from([1, 2]), number=st.integers(0, 2**20), bit=st.integers(0, 2**40))
def test_one_flipped_bit_in_a_training_checkpoint_is_found(store_directory, step, number, bit):
    directory, _ = store_directory
    root = directory / "checkpoints" / str(step)
    files = sorted(f for item in ("state", "progress") for f in (root / item).rglob("*"))
    files = [file for file in files if file.is_file() and file.stat().st_size]
    file = files[number % len(files)]
    copy = directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    flip(copy / file.relative_to(directory), bit)
    with CheckpointStore(copy) as store:
        if step == 2:
            # The newest: it was moved aside.
            assert store.steps() == [1]
            assert file.name in store.skipped[0]
            return
        # An older one is verified when it is exported.
        with pytest.raises(CheckpointError, match=file.name):
            verify_checkpoint(store.path(1))


@pytest.fixture(scope="module")
def store_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store") / "run"
    state = {"a": np.arange(600, dtype=np.float32), "b": {"c": np.ones((3, 5), np.float32)}}
    state = jax.tree.map(jax.numpy.asarray, state)
    with CheckpointStore(directory) as store:
        store.save(1, state, {"x": 1})
        store.save(2, state, {"x": 2})
    return directory, state


def test_frozen_weights_of_a_run_are_verified(store_directory, tmp_path):
    """`frozen/` is such a store with one checkpoint."""
    from unix_jax.training.start import restore_frozen, save_frozen

    class State:
        frozen = store_directory[1]

        def replace(self, frozen):
            return frozen

    save_frozen(tmp_path, State)
    state = tmp_path / "frozen" / "checkpoints" / "0" / "state"
    file = max((f for f in state.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    flip(file, 8000)
    with pytest.raises(CheckpointError, match=file.name):
        restore_frozen(tmp_path, State, State())


# --- the files beside the arrays ---------------------------------------------------------------

DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "flipped": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
    "missing": None,
}


def damaged(file, damage):
    if DAMAGE[damage] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGE[damage](file.read_bytes()))


def beside(path):
    arrays = {"params", "vae", "extras", "index.json"}
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return {file.as_posix() for file in files if file.parts[0] not in arrays}


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_file_is_recorded(kind, written):
    listed = native.read_index(written / kind)["files"]
    assert set(listed) == beside(written / kind)
    if kind in ("import", "cast"):
        assert {"tokenizer.json", "source/config.json", "source/vae/config.yaml"} <= set(listed)


@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        *(pytest.param(x, marks=pytest.mark.extended) for x in ("missing", "truncated", "empty")),
    ],
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "source/config.json",
        *(
            pytest.param(name, marks=pytest.mark.extended)
            for name in ("tokenizer.json", "source/vae/config.yaml")
        ),
    ],
)
def test_a_damaged_file_is_named_wherever_it_is_used(written, tmp_path, name, damage):
    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    damaged(path / name, damage)
    match = re.escape(f"{path / name}: ") + "(content changed|expected a file that)"
    with pytest.raises(CheckpointError, match=match):
        export_published(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match=match) as caught:
        cast(path, tmp_path / "out", "bfloat16")
    assert f"`unix-jax convert accept {path}`" in str(caught.value)
    if not name.startswith("source"):
        with pytest.raises(CheckpointError, match=match):
            UniXPipeline.from_pretrained(path, compilation_cache=False)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    first, *others = verify(path)
    assert [str(path / name) in line for line in first.problems] == [True]
    assert not any(part.problems for part in others)


@pytest.mark.parametrize("field", ["vae", "files", "layout", "crc32"])
def test_a_field_of_the_index_that_lost_its_name_is_named(written, tmp_path, field):
    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    text = (path / "index.json").read_text()
    # The last one of this name is that of the index itself.
    head, tail = text.rsplit(f'"{field}":', 1)
    for start in ("x", chr(ord(field[0]) ^ 1)):
        (path / "index.json").write_text(f'{head}"{start}{field[1:]}":{tail}')
        for load in (native.load_params, native.load_vae_params, lambda p: list(verify(p))):
            with pytest.raises(CheckpointError, match=r"index\.json: (content|unknown field)"):
                load(path)


def test_a_changed_value_of_the_index_is_named(written, tmp_path):
    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    index = json.loads((path / "index.json").read_text())
    # Another order and indentation is the same content.
    (path / "index.json").write_text(json.dumps(dict(reversed(index.items())), indent=3))
    assert native.read_index(path) == index
    index["layout"]["kept"] = not index["layout"]["kept"]
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: content changed"):
        native.read_index(path)


def test_an_edit_is_accepted_by_a_command(written, tmp_path, capsys):
    from unix_jax.commands.convert import main

    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"timestep_shift": 2.5}))
    (path / "added_tokens.json").write_text("{}")
    (path / "source" / "vae" / "config.yaml").unlink()
    assert main(["cast", str(path), str(tmp_path / "no")]) == 1
    capsys.readouterr()
    assert main(["accept", str(path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{path}/config.json: recorded as changed",
        f"{path}/added_tokens.json: recorded as added",
        f"{path}/source/vae/config.yaml: recorded as removed",
    ]
    assert native.load_config(path).timestep_shift == 2.5
    assert not any(part.problems for part in verify(path))
    assert main(["accept", str(path)]) == 0
    assert "no file changed" in capsys.readouterr().err
    before = (path / "index.json").read_bytes()
    for name in ("config.json", "tokenizer.json"):
        kept = (path / name).read_bytes()
        (path / name).write_text("{")
        assert main(["accept", str(path)]) == 1
        assert f"{path / name}: expected JSON" in capsys.readouterr().err
        (path / name).write_bytes(kept)
    assert (path / "index.json").read_bytes() == before


@pytest.mark.parametrize(
    "files",
    [[], {"config.json": 3}, {"../x": {"size": 1, "crc32": 1}}, {"x": {"size": 1}},
     {"/x": {"size": 1, "crc32": 1}}, {"x": {"size": True, "crc32": 1}}],
)  # fmt: skip
def test_a_broken_list_of_files_is_named(written, tmp_path, files):
    path = Path(shutil.copytree(written / "save", tmp_path / "c"))
    index = json.loads((path / "index.json").read_text())
    del index["crc32"]
    (path / "index.json").write_text(json.dumps(index | {"files": files}))
    for load in (native.load_config, native.load_params, native.carried_files):
        with pytest.raises(CheckpointError, match=r"index\.json: files: "):
            load(path)


@pytest.mark.parametrize("name", ["config.json", "vae/config.yaml", "model.safetensors.index.json"])
def test_a_broken_file_of_an_old_checkpoint_is_named_on_export(written, tmp_path, name):
    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    without_checksums(path)
    index = json.loads((path / "index.json").read_text())
    index["layout"]["kept"] = False
    index.pop("crc32", None)
    (path / "index.json").write_text(json.dumps(index))
    (path / "source" / name).write_text("{ [")
    match = re.escape(f"{path}/source/{name}: ")
    with pytest.raises(UniXError, match=match):
        export_published(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("name", ["index.json", "params"])
def test_a_part_of_a_checkpoint_that_is_missing_is_named(written, tmp_path, name):
    path = Path(shutil.copytree(written / "import", tmp_path / "c"))
    shutil.rmtree(path / name) if name == "params" else (path / name).unlink()
    for load in (
        lambda: UniXPipeline.from_pretrained(path, compilation_cache=False),
        lambda: load_vae(path) if name == "index.json" else load_model(path),
        lambda: export_published(path, tmp_path / "out"),
        lambda: cast(path, tmp_path / "out", "bfloat16"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(str(path / name))) as caught:
            load()
        assert "model.safetensors" not in str(caught.value)


# --- old checkpoints ---------------------------------------------------------------------------


def without_checksums(path, keep=()):
    index = json.loads((path / "index.json").read_text())
    del index["files"], index["crc32"]
    for part in native.PARTS:
        for name, entry in index.get(part, {}).items():
            if name not in keep:
                entry.pop("crc32")
    (path / "index.json").write_text(json.dumps(index))


def test_checkpoints_of_earlier_versions_load_and_are_said_to_have_none(written, tmp_path, capsys):
    path = Path(shutil.copytree(written / "save", tmp_path / "old"))
    without_checksums(path)
    assert not native.has_checksums(path)
    read_everything(path)
    load_model(path)
    assert cli.main(["info", str(path)]) == 0
    assert "no checksums" in capsys.readouterr().out
    assert cli.main(["info", "--verify", str(path)]) == 0
    assert "no checksums" in capsys.readouterr().out
    # A copy has them.
    cast(path, tmp_path / "new", "keep")
    assert native.has_checksums(tmp_path / "new")


def test_one_entry_without_checksums_is_damage(written, tmp_path):
    path = Path(shutil.copytree(written / "save", tmp_path / "c"))
    without_checksums(path, keep=("lm_head/kernel",))
    with pytest.raises(CheckpointError, match=r"index\.json: params\..*: crc32: expected"):
        native.load_params(path)


def test_the_bundled_checkpoint_has_checksums():
    assert native.has_checksums(NANO)
    assert set(native.read_index(NANO)["files"]) == {
        "config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [part.problems for part in verify(NANO)] == [[], [], []]


# --- reading -----------------------------------------------------------------------------------


@settings(PROPERTY, max_examples=20)
@given(
    shape=st.lists(st.integers(1, 9), max_size=4),
    kind=st.sampled_from(["float32", "bfloat16", "int8", "float64"]),
    chunk=st.integers(1, 300),
    stacked=st.booleans(),
    data=st.data(),
)
def test_any_box_of_any_array_is_read_as_it_was_written(
    tmp_path_factory, shape, kind, chunk, stacked, data
):
    dtype = np.dtype(jax.numpy.dtype(kind))
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    name = "layers/x" if stacked else "x"
    directory = tmp_path_factory.mktemp("box") / "tree"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_tree, "CHUNK_BYTES", chunk * dtype.itemsize)
        (entry,) = orbax_tree.save_tree(directory, {name: array_leaf(array)}, None).values()
    leaf = zarr_arrays.open_leaf(directory, name, array.shape, dtype, entry["crc32"])
    index = []
    for size in shape:
        start = data.draw(st.integers(0, size))
        index.append(slice(start, data.draw(st.integers(start, size))))
    np.testing.assert_array_equal(leaf.read(tuple(index)), array[tuple(index)])
    np.testing.assert_array_equal(leaf.read_all(), array)


def test_a_file_that_shrinks_after_it_was_opened_is_named(written, tmp_path):
    path = Path(shutil.copytree(written / "save", tmp_path / "c"))
    leaf = native.open_leaves(path, "params")["vision/pos_embed"]
    file = path / "params" / "vision.pos_embed" / "0.0.0"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"expected {size} bytes, found 100"):
        leaf.read_all()
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        leaf.read_all()


# --- numbers that are not finite ---------------------------------------------------------------


@given(
    kind=st.sampled_from(["float32", "bfloat16", "float16", "float64", "float8_e4m3fn"]),
    size=st.integers(1, 300_000),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_non_finite_numbers_are_counted(kind, size, data):
    dtype = np.dtype(jax.numpy.dtype(kind))
    largest = np.array(float(jax.numpy.finfo(dtype).max), np.float64).astype(dtype)
    array = np.full(size, largest)
    array[::2] = -array[::2]
    values = [np.nan, -np.nan] + ([] if "fn" in kind else [np.inf, -np.inf])
    indices = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    for index in indices:
        array[index] = np.float32(data.draw(st.sampled_from(values))).astype(dtype)
    assert non_finite_count(array) == len(indices)
    assert non_finite_count(array.reshape(1, -1).T) == len(indices)
    assert non_finite_count(np.arange(5)) == non_finite_count(np.zeros((0, 3))) == 0


def test_a_long_list_of_arrays_is_capped():
    check = FiniteCheck()
    for number in range(100):
        check.watch(f"array{number:02}", array_leaf(np.full(3, np.nan, np.float32))).read_all()
    with pytest.raises(CheckpointError) as caught:
        check.require("file")
    lines = str(caught.value).splitlines()
    assert "100 arrays" in lines[0]
    assert lines[1] == "  array00: 3 numbers"
    assert lines[11] == "  ... 80 more arrays ..."
    assert lines[-1] == "  array99: 3 numbers"


def published_with(directory, value, key="language_model.lm_head.weight"):
    from unix_jax.checkpoints.formats.readers import open_tensors
    from unix_jax.checkpoints.formats.writers import write_safetensors

    shutil.copytree(GOLDEN, directory)
    with open_tensors(directory / "model.safetensors") as source:
        tensors = {name: np.array(source.read(name)) for name in source.keys()}  # noqa: SIM118
    tensors[key][(0,) * tensors[key].ndim] = value
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    return directory


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, pytest.param(-np.inf, marks=pytest.mark.extended)]
)
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    source = published_with(tmp_path / "source", value)
    names, refused = r"language_model\.lm_head\.weight: 1 numbers$", tmp_path / "refused"
    for read in (lambda: import_published(source, refused), lambda: load_model(source)):
        with pytest.raises(CheckpointError, match=names):
            read()
    assert not refused.exists()


@pytest.mark.parametrize(
    "value", [np.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.inf, -np.inf))]
)
@pytest.mark.extended
def test_every_way_in_names_weights_that_are_not_finite(tmp_path, value):
    source = published_with(tmp_path / "source", value)
    names = rf"(?s)^{source}/model\.safetensors: .*\n  language_model\.lm_head\.weight: 1 numbers$"
    with pytest.raises(CheckpointError, match=names):
        import_published(source, tmp_path / "refused")
    with pytest.raises(CheckpointError, match=names):
        UniXPipeline.from_pretrained(source, compilation_cache=False)
    names = rf"(?s)^{tmp_path}/jax.*lm_head/kernel: 1 numbers$"
    import_published(source, tmp_path / "jax", allow_non_finite=True)
    with pytest.raises(CheckpointError, match=names):
        UniXPipeline.from_pretrained(tmp_path / "jax", compilation_cache=False)
    with pytest.raises(CheckpointError, match=names):
        cast(tmp_path / "jax", tmp_path / "refused", "bfloat16")
    with pytest.raises(CheckpointError, match=names):
        export_published(tmp_path / "jax", tmp_path / "refused")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "jax"}
    for path in (source, tmp_path / "jax"):
        pipe = UniXPipeline.from_pretrained(path, compilation_cache=False, allow_non_finite=True)
        assert pipe.config.decoder.vocab_size
    problems = [line for part in verify(tmp_path / "jax") for line in part.problems]
    assert problems == ["params/lm_head/kernel: 1 numbers are NaN or infinite"]
    cast(tmp_path / "jax", tmp_path / "cast", "bfloat16", allow_non_finite=True)
    export_published(tmp_path / "jax", tmp_path / "out", allow_non_finite=True)


UP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.mark.extended
def test_layers_that_are_not_finite_are_named(tmp_path):
    source = published_with(tmp_path / "source", np.nan, UP)
    for run in (
        lambda: import_published(source, tmp_path / "refused"),
        lambda: import_published(source, tmp_path / "refused", "bfloat16"),
        lambda: load_model(source),
    ):
        with pytest.raises(CheckpointError, match=rf"\n  {re.escape(UP)}: 1 numbers$") as caught:
            run()
        assert str(caught.value).startswith(f"{source}/model.safetensors: expected finite")
        assert "1 array holds" in str(caught.value)
    assert [part.checksums for part in verify(source)] == [False, True]
    assert [line for part in verify(source) for line in part.problems] == [
        f"{UP}: 1 numbers are NaN or infinite"
    ]
    import_published(source, tmp_path / "jax", allow_non_finite=True)
    ours = "decoder/layers/und/up_proj/kernel, layer 1: 1 numbers"
    for run, start in (
        (lambda: cast(tmp_path / "jax", tmp_path / "refused", "bfloat16"), "/params: "),
        (lambda: export_published(tmp_path / "jax", tmp_path / "refused"), ": "),
        (lambda: load_model(tmp_path / "jax"), "/params: "),
    ):
        with pytest.raises(CheckpointError, match=f"{ours}$") as caught:
            run()
        assert str(caught.value).startswith(f"{tmp_path}/jax{start}expected finite")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "jax"}


@pytest.mark.extended
def test_the_shard_and_the_autoencoder_are_named(tmp_path):
    from unix_jax.checkpoints.formats.readers import open_tensors
    from unix_jax.checkpoints.formats.writers import write_safetensors, write_torch_zip

    source = published_with(tmp_path / "source", np.inf, UP)
    with open_tensors(source / "model.safetensors") as opened:
        tensors = {key: np.array(opened.read(key)) for key in opened}
    names = {key: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(tensors)}
    for name in set(names.values()):
        write_safetensors(source / name, {k: tensors[k] for k in tensors if names[k] == name})
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"\n  {names[UP]}: {UP}: 1 numbers")):
        import_published(source, tmp_path / "refused")
    shutil.rmtree(source)
    shutil.copytree(GOLDEN, source)
    file = source / "vae" / "kl-f16d16.ckpt"
    with open_tensors(file) as opened:
        tensors = {key: np.array(opened.read(key)) for key in opened}
    tensors["encoder.conv_in.weight"][0] = np.nan
    write_torch_zip(file, tensors)
    with pytest.raises(
        CheckpointError, match=r"\n  encoder\.conv_in\.weight: 27 numbers"
    ) as caught:
        import_published(source, tmp_path / "refused")
    assert str(caught.value).startswith(f"{file}: expected finite")


def test_unused_tensors_may_be_what_they_like(tmp_path):
    source = published_with(tmp_path / "source", np.nan, "vit_pos_embed.pos_embed")
    import_published(source, tmp_path / "jax")
    UniXPipeline.from_pretrained(tmp_path / "jax", compilation_cache=False)


def test_a_number_too_large_for_the_type_is_found(tmp_path, trees):
    flat = {name: np.array(value) for name, value in flatten(trees[0]).items()}
    flat["lm_head/kernel"][0, 0] = np.finfo(np.float32).max
    native.save(tmp_path / "c", CONFIG, flat)
    with pytest.raises(CheckpointError, match="lm_head/kernel: 1 numbers"):
        cast(tmp_path / "c", tmp_path / "half", "bfloat16")
    with pytest.raises(CheckpointError, match="lm_head/kernel: 1 numbers"):
        native.load_params(tmp_path / "c", dtype="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaf = cast_leaf(array_leaf(flat["lm_head/kernel"]), ml_dtypes.bfloat16)
        assert np.isinf(leaf.read_all()[0, 0].astype(np.float32))


@pytest.mark.extended
def test_the_command_line_says_it_and_takes_the_option(tmp_path, capsys):
    from unix_jax.commands.convert import main

    source = published_with(tmp_path / "source", np.nan)
    assert main(["import", str(source), str(tmp_path / "jax")]) == 1
    assert "language_model.lm_head.weight: 1 numbers" in capsys.readouterr().err
    assert main(["import", str(source), str(tmp_path / "jax"), "--allow-non-finite"]) == 0
    assert main(["cast", str(tmp_path / "jax"), str(tmp_path / "half")]) == 1
    assert main(["export", str(tmp_path / "jax"), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "half").exists()
    assert not (tmp_path / "out").exists()
    assert main(["export", str(tmp_path / "jax"), str(tmp_path / "out"), "--allow-non-finite"]) == 0


# --- the tree that is saved --------------------------------------------------------------------


def test_the_tree_of_a_pipeline_is_saved_stacked(tmp_path, trees):
    copies = jax.tree.map(jax.numpy.asarray, trees[0])
    unrolled = unix.unroll_params(copies, CONFIG.decoder.num_layers)
    assert "layers_0" in unrolled["decoder"]
    native.save(tmp_path / "c", CONFIG, unrolled)
    jax.tree.map(np.testing.assert_array_equal, native.load_params(tmp_path / "c"), trees[0])
    pipe = UniXPipeline.from_pretrained(tmp_path / "c", compilation_cache=False)
    native.save(tmp_path / "again", CONFIG, pipe.params)
    found = native.load_params(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, found, trees[0])


@pytest.mark.parametrize("change", ["layer", "shape", "vae", "config"])
def test_a_tree_that_does_not_fit_is_one_error_and_nothing_is_written(tmp_path, trees, change):
    copies = jax.tree.map(jax.numpy.asarray, trees[0])
    params, vae, config = unix.unroll_params(copies, 3), trees[1], CONFIG
    if change == "layer":
        del params["decoder"]["layers_1"]
    elif change == "shape":
        params["lm_head"]["kernel"] = params["lm_head"]["kernel"][:5]
    elif change == "vae":
        vae = {"encoder": vae["encoder"]}
    else:
        config = UniXConfig.preset("nano")
    with pytest.raises(CheckpointError, match="to save: tensors do not fit the configuration"):
        native.save(tmp_path / "c", config, params, vae)
    assert list(tmp_path.iterdir()) == []


# --- info --verify -----------------------------------------------------------------------------


def test_info_verify_names_every_damaged_array(written, tmp_path, capsys):
    path = Path(shutil.copytree(written / "save", tmp_path / "c"))
    assert cli.main(["info", "--verify", str(path)]) == 0
    assert capsys.readouterr().out.count("good") == 3
    first = path / "params" / "vision.pos_embed" / "0.0.0"
    second = path / "vae" / "encoder.conv_in.bias" / "0"
    with flipped(first, 5), flipped(second, 6):
        assert cli.main(["info", "--verify", str(path)]) == 1
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert "params/vision/pos_embed" in error
    assert "vae/encoder/conv_in/bias" in error
    assert cli.main(["info", "--verify", "--json", str(path)]) == 1


@pytest.mark.extended
def test_info_verify_reads_a_run(store_directory, written, tmp_path, capsys):
    run = Path(shutil.copytree(store_directory[0], tmp_path / "run"))
    (run / "run.json").write_text("{}")
    shutil.copytree(written / "save", run / "export")
    assert cli.main(["info", "--verify", str(run)]) == 0
    assert capsys.readouterr().out.count("good") == 5
    state = run / "checkpoints" / "1" / "state"
    file = max((f for f in state.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    with flipped(file, 99):
        assert cli.main(["info", "--verify", str(run)]) == 1
    assert file.name in capsys.readouterr().err

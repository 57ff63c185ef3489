"""A URL never becomes a local path: the rule itself, and every path option of every command.

Buckets are read and written where `tests/storage` and `tests/training/test_bucket_runs.py` show it.
Every other URL is refused everywhere, and a bucket is where an option is for local files alone.
"""

import dataclasses
import os
import re
import runpy
import types
import typing
from pathlib import Path

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from tyro.constructors import PrimitiveConstructorSpec

import unix_jax.commands.convert as converting
import unix_jax.commands.data as data_command
from unix_jax import UniXPipeline, cli
from unix_jax.checkpoints import native
from unix_jax.commands import app, clean, evaluate, export
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.sources import open_source
from unix_jax.errors import StorageError
from unix_jax.storage.files import atomic_directory, atomic_write
from unix_jax.storage.paths import local_path
from unix_jax.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
URL = "https://host/x"
BUCKET = "gs://bucket/x"
TRAIN = runpy.run_path(str(ROOT / "train.py"))["main"]

# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [URL, "gs://bucket/x", "s3://b", "hf://user/model",
     "https://host/x.png", "file:///tmp/x", "GS://B", " gs://b",
     "simplecache::gs://b/x", "memory://a", "gs:/bucket/x", Path("gs://bucket/x"),
     Path("s3://bucket")],
)  # fmt: skip
def test_urls_are_refused_in_one_line(path):
    with pytest.raises(StorageError, match=r"remote paths are not supported yet; ") as error:
        local_path(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["a/b", "a:b", "12:30:00/run", "C:\\models", "C:/models", "C://models", "gs:bucket", "gs",
     "data:/x", "run 1: second", Path("x") / "y:z"],
)  # fmt: skip
def test_names_with_a_colon_are_paths(path):
    assert local_path(path) == Path(path)


@pytest.mark.parametrize("path", ["", "a\0b", None, 3, ["a"]])
def test_what_is_no_path(path):
    with pytest.raises(StorageError, match="--out: expected a path"):
        local_path(path, "--out")


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_any_text_is_a_path_or_refused(text):
    try:
        assert os.fspath(local_path(text)) == os.fspath(Path(text))
    except StorageError:
        assert ":/" in text


@given(st.from_regex(r"[a-z][a-z0-9+.-]{1,8}", fullmatch=True), st.text("abc/.?*", max_size=8))
def test_any_scheme_is_refused(scheme, rest):
    with pytest.raises(StorageError):
        local_path(f"{scheme}://{rest}")


# --- the library -------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [URL, Path(URL)], ids=["text", "path"])
def test_the_library_neither_reads_nor_writes_urls(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_directory():
        with atomic_directory(url):
            pass

    def write_file():
        with atomic_write(url):
            pass

    for use in (
        lambda: UniXPipeline.from_pretrained(url),
        lambda: native.save(url, UniXConfig.preset("tiny"), {}),
        write_directory,
        write_file,
    ):
        with pytest.raises(StorageError):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [f"manifest:{URL}", f"parquet:{URL}/*.parquet", f"conversations:a.jsonl?images={URL}",
     "conversations:a.jsonl?images=https%3A%2F%2Fhost", f"mimic:d?views=PA&reports={URL}",
     f"tfds:name?data_dir={URL}", "manifest:simplecache::gs://bucket/x",
     "manifest:a?images=file:///x"],
)  # fmt: skip
def test_sources_with_a_url(source):
    for use in (open_source, lambda text: DataConfig(source=text)):
        with pytest.raises(StorageError, match="remote paths are not supported yet"):
            use(source)


@pytest.mark.parametrize("source", [f"tfds:name?data_dir={BUCKET}", f"hf:{BUCKET}"])
def test_sources_that_are_not_in_buckets(source):
    with pytest.raises(StorageError, match="remote paths are not supported yet"):
        open_source(source)


# --- the commands ------------------------------------------------------------------------------

# Texts that are no paths. An option of type `str` or `Path` that is neither here nor has one of the
# types of `unix_jax.storage.arguments` fails the test: it must be sorted into one of the two.
TEXTS = frozenset(
    {"mesh", "dtype", "prompt", "prompts", "host", "split", "renorm", "endpoint", "model"}
    | {"judge_model", "key_variable", "text_field", "chexbert_cut", "prediction_field"}
    | {"reference_field", "key_field", "format", "vae_dtype", "resize", "weights", "step"}
    | {"train_split", "radgraph_model", "radgraph_level", "keep_file"}
    | {"push", "license", "training_data", "allow_host"}
)


# Options and arguments that name local files alone.
LOCAL = frozenset(
    {"rewrite_prompt", "again_prompt", "judge_prompt", "radgraph_path", "generated", "inception"}
    | {"generated_root", "radiomics_real", "radiomics_generated", "reid", "weights"}
)


def strings_of(annotation):
    """Whether it is a path, for every text that an option of this annotation may hold."""
    metadata, origin = getattr(annotation, "__metadata__", ()), typing.get_origin(annotation)
    if any(isinstance(item, PrimitiveConstructorSpec) for item in metadata):
        return {True}
    if metadata:
        return strings_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, list, tuple):
        return set().union(*(strings_of(inner) for inner in typing.get_args(annotation)))
    return {False} if annotation in (str, Path) else set()


def command_cases():
    """(function, arguments, the URL in them that is refused) of every path option."""
    commands = [
        *((cli.main, [name], kind) for name, kind in (
            ("report", cli.Report), ("generate", cli.Generate), ("info", cli.Info),
            ("clean", clean.Clean), ("export", export.Export), ("app", app.App))),
        *((cli.main, ["evaluate", name], kind) for name, kind in (
            ("reports", evaluate.EvaluateReports), ("images", evaluate.EvaluateImages),
            ("score", evaluate.EvaluateScore))),
        *((converting.main, [name], kind) for name, kind in (
            ("import", converting.Import), ("import-janus", converting.ImportJanus),
            ("export", converting.Export), ("cast", converting.Cast),
            ("inspect", converting.Inspect), ("check", converting.Check))),
        *((data_command.main, [name], kind) for name, kind in (
            ("inspect", data_command.Inspect), ("write", data_command.Write),
            ("moments", data_command.Moments))),
    ]  # fmt: skip
    for main, words, kind in commands:
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = dataclasses.fields(kind)
        paths = []
        for field in fields:
            found = strings_of(hints[field.name])
            assert found in (set(), {True}, {False}), field.name
            assert found != {False} or field.name in TEXTS, (
                f"{kind.__name__}.{field.name}: a path? then a type of storage.arguments"
            )
            if found == {True}:
                paths.append(field.name)
        for path, url in [
            *((path, URL) for path in paths),
            *((path, BUCKET) for path in paths if path in LOCAL),
        ]:
            arguments = list(words)
            for field in fields:
                value = url if field.name == path else "x"
                if field.name != path and not _required(field):
                    continue
                option = [] if _positional(hints[field.name]) else [_option(field.name)]
                arguments += [*option, value]
            name = "-".join([*words, path, *(["bucket"] if url == BUCKET else [])])
            yield pytest.param(main, arguments, url, id=name)


def _required(field):
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _positional(annotation):
    return tyro.conf.Positional in getattr(annotation, "__metadata__", ())


def _option(name):
    return f"--{name.replace('_', '-')}"


def refused(main, arguments, capsys, directory, url=URL):
    """Exit code 1, one line that names the URL, and nothing in the working directory."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert re.match(rf"error: .*{url}: remote paths are not supported yet; ", captured.err)
    assert not list(directory.iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    return tmp_path


@pytest.mark.parametrize(("main", "arguments", "url"), command_cases())
def test_every_path_of_every_command(main, arguments, url, capsys, here):
    refused(main, arguments, capsys, here, url)


def training_paths(kind=TrainConfig, prefix=""):
    """The options of `train.py` that hold a text, nested ones with their dots."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from training_paths(hints[field.name], f"{prefix}{field.name}.")
        elif strings_of(hints[field.name]):
            yield prefix + field.name


TRAINING_TEXTS = frozenset(
    {"data.split", "data.prompts", "mesh", "model.preset", "validation.split", "previews.prompts"}
    | {"logging.wandb_project", "distributed.coordinator", "trainable"}
    | {"optimizer.learning_rate_factors", "optimizer.weight_decay_on"}
)


@pytest.mark.parametrize("name", ["out", *sorted(set(training_paths()) - TRAINING_TEXTS)])
def test_every_path_of_training(name, capsys, here):
    config = str(ROOT / "configs" / "nano_understanding.py")
    value = f"manifest:{URL}" if name.endswith("source") else URL
    arguments = [config, *(["--out", "run"] if name != "out" else []), _option(name), value]
    refused(TRAIN, arguments, capsys, here)


@pytest.mark.parametrize("url", [URL, BUCKET])
def test_the_configuration_of_training(url, capsys, here):
    refused(TRAIN, [url, "--out", "run"], capsys, here, url)

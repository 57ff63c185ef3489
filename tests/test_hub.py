"""Names on the Hugging Face hub: a stub of it on loopback, and all that reads checkpoints."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from support import hub_server
from unix_jax import UniXPipeline
from unix_jax.checkpoints import native
from unix_jax.checkpoints.chexbert_files import find_chexbert
from unix_jax.checkpoints.hub_files import (
    autoencoder_files,
    checkpoint_files,
    configuration_files,
    encoder_files,
    labeller_files,
)
from unix_jax.checkpoints.index import write_index
from unix_jax.checkpoints.janus import import_janus
from unix_jax.checkpoints.load import load_config
from unix_jax.checkpoints.model_card import model_card
from unix_jax.checkpoints.published import import_published
from unix_jax.checkpoints.rad_dino_files import load_dinov2_config
from unix_jax.errors import CheckpointError, StorageError, UniXError
from unix_jax.storage.hub import HubName, located, parse_name

TINY = Path(__file__).parent / "golden" / "tiny" / "checkpoint"
JANUS = Path(__file__).parent / "golden" / "tiny_janus"
XRAY = next((Path(__file__).parent.parent / "examples" / "cxr" / "images").glob("*.jpg"))

# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ZrH42/UniX", HubName("ZrH42/UniX")),
        ("ZrH42/UniX@v1.0", HubName("ZrH42/UniX", "v1.0")),
        ("ZrH42/UniX@refs/pr/1", HubName("ZrH42/UniX", "refs/pr/1")),
        ("hf://ZrH42/UniX", HubName("ZrH42/UniX")),
        ("hf:/ZrH42/UniX", HubName("ZrH42/UniX")),
        ("hf://models/a/b@main/sub/model.bin", HubName("a/b", "main", "sub/model.bin")),
        ("hf://datasets/a/b", HubName("a/b", kind="dataset")),
        ("hf://a/b@refs/pr/2/x", HubName("a/b", "refs/pr/2", "x")),
        ("hf://a/b@feature%2Fx/y/", HubName("a/b", "feature/x", "y")),
        *((text, None) for text in (
            "UniX", "/a/b", "./a/b", "../b", "a/b/c", "a/b/", "~/b", "a//b", "weights/model.bin",
            "runs/x.safetensors", "a b/c", "", "C:/models", "a/b@")),
    ],
)  # fmt: skip
def test_what_has_the_form_of_a_name(text, name):
    assert parse_name(text) == name


@pytest.mark.parametrize("text", ["hf://", "hf://a", "hf://a/b/../c", "hf:// a/b c", "hf://a/b@"])
def test_what_is_no_name(text):
    with pytest.raises(StorageError, match=r"--init: expected hf://OWNER/NAME"):
        parse_name(text, "--init")


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_refused(text):
    try:
        name = parse_name(text)
    except StorageError:
        assert text.strip().lower().startswith("hf:/")
    else:
        assert (
            name is None
            or parse_name(str(name)) == name
            or "%" in text
            or "/" in (name.revision or "")
        )


# --- what is needed ----------------------------------------------------------------------------

PUBLISHED = [
    ".gitattributes", "README.md", "config.json", "images/figure.png", "model.safetensors",
    "optimizer.pt", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json",
    "vae/config.yaml", "vae/kl-f16d16.ckpt", "vae/last.ckpt",
]  # fmt: skip


def test_files_of_the_published_layout():
    kept = ["README.md", "config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "vae/config.yaml", "vae/kl-f16d16.ckpt"]  # fmt: skip
    assert checkpoint_files(PUBLISHED) == kept
    other = [*(set(kept) - {"model.safetensors"}), "pytorch_model.bin"]
    assert checkpoint_files(PUBLISHED, "pytorch_model.bin") == sorted(other)
    assert checkpoint_files(PUBLISHED, wanted="pytorch_model.bin") == sorted(other)
    assert autoencoder_files(PUBLISHED) == ["vae/kl-f16d16.ckpt", "vae/config.yaml"]
    assert configuration_files(PUBLISHED) == [n for n in kept if not n.endswith(("s", "ckpt"))]


def test_shards_come_with_their_index():
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    names = ["config.json", "model.safetensors.index.json", *shards, "pytorch_model.bin"]
    assert checkpoint_files(names) == sorted(names[:-1])
    names = ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"]
    assert checkpoint_files(names) == sorted(names)


def test_the_average_is_downloaded_where_it_is_asked_for():
    names = ["config.json", "ema.safetensors", "model.safetensors"]
    assert checkpoint_files(names, wanted="ema") == ["config.json", "ema.safetensors"]
    assert checkpoint_files(names) == ["config.json", "model.safetensors"]


def test_files_of_this_project():
    names = ["README.md", "config.json", "index.json", "params/a/0", "source/config.json",
             "tensorboard/events", "tokenizer.json", "vae/b/0"]  # fmt: skip
    kept = ["config.json", "index.json", "params/a/0", "source/config.json", "tokenizer.json"]
    assert checkpoint_files(names) == [*kept, "vae/b/0"]
    assert configuration_files(names) == [n for n in kept if not n.startswith("params")]


def test_files_of_a_diffusers_folder():
    stem = "diffusion_pytorch_model"
    names = ["model_index.json", "v1-5-pruned.ckpt", "scheduler/scheduler_config.json",
             *(f"{part}/{name}" for part in ("unet", "vae") for name in
               ("config.json", f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin")),
             "text_encoder/config.json", "text_encoder/model.safetensors", "safety_checker/x.bin",
             "tokenizer/vocab.json", "tokenizer/merges.txt"]  # fmt: skip
    left = ("v1-5-pruned.ckpt", "fp16.safetensors", ".bin")
    assert checkpoint_files(names) == sorted(n for n in names if not n.endswith(left))


def test_files_of_the_encoders():
    names = ["config.json", "model.safetensors", "backbone_compatible.safetensors", "x.md"]
    assert encoder_files(names) == ["config.json", "model.safetensors"]
    names = ["CheXbert/a", "chexbert.pth", "vocab.txt", "model.safetensors"]
    assert labeller_files(names) == ["chexbert.pth", "vocab.txt"]


@pytest.mark.parametrize(
    ("select", "names", "message"),
    [
        (checkpoint_files, ["README.md"], r"expected config\.json of a checkpoint .*README\.md"),
        (checkpoint_files, ["config.json"], r"expected one of model\.safetensors, .*config\.json"),
        (encoder_files, ["config.json"], "expected one of"),
        (labeller_files, ["a/b", "a/c"], r"expected one of chexbert\.pth.* found a$"),
    ],
)
def test_what_is_missing_is_named(select, names, message):
    with pytest.raises(CheckpointError, match=message):
        select(names)


# --- the stub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "hub" / "o" / "tiny")
    (tmp_path / "hub" / "o" / "tiny" / "notes.pdf").write_bytes(b"not needed")
    monkeypatch.chdir(tmp_path)
    with hub_server.serving(tmp_path / "hub") as server:
        hub_server.use(monkeypatch, server.url, tmp_path / "cache")
        yield server


@pytest.mark.extended
def test_a_report_from_a_name_and_offline(hub, tmp_path):
    """From the command line: the first time from the hub, the second time without it."""
    where = (hub.url, tmp_path / "cache")
    words = ["report", XRAY, "--checkpoint", "o/tiny@v1", "--max-new-tokens", "4"]
    first = hub_server.command(words, *where)
    assert first.returncode == 0, first.stderr
    (line,) = [line for line in first.stderr.splitlines() if "downloading" in line]
    assert line.startswith("hf://o/tiny@v1: downloading 7 files, 5.9 MB, from http://127.0.0.1:")
    fetched = {path.rpartition("/")[2] for method, path in hub.requests if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert "notes.pdf" not in fetched
    hub.requests.clear()
    again = hub_server.command(words, *where, HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert "downloading" not in again.stderr
    assert not hub.requests


def test_from_pretrained(hub, capsys):
    pipe = UniXPipeline.from_pretrained("o/tiny")
    assert pipe.config == load_config(TINY)[0]
    assert "downloading 7 files" in capsys.readouterr().err
    assert UniXPipeline.from_pretrained("hf://o/tiny@main").config == pipe.config
    assert "downloading" not in capsys.readouterr().err


def test_a_local_path_wins(hub, tmp_path):
    shutil.copytree(TINY, tmp_path / "o" / "tiny")
    assert load_config("o/tiny") == load_config(TINY)
    assert not hub.requests
    # The owner is a folder here: a slip in a path asks nobody.
    with pytest.raises(CheckpointError, match="o/tyni: expected a checkpoint directory"):
        load_config("o/tyni")
    assert not hub.requests
    assert load_config("hf://o/tiny") == load_config(TINY)
    assert hub.requests


def test_a_folder_and_a_file_of_a_repository(hub, tmp_path):
    shutil.copytree(TINY, tmp_path / "hub" / "o" / "many" / "runs" / "tiny")
    assert load_config("hf://o/many/runs/tiny") == load_config(TINY)
    file = located("hf://o/many/runs/tiny/model.safetensors", checkpoint_files)
    assert file.is_file()
    import_published("hf://o/many/runs/tiny/model.safetensors", tmp_path / "imported")
    assert native.load_config(tmp_path / "imported") == load_config(TINY)[0]


@pytest.mark.extended
def test_imports(hub, tmp_path):
    shutil.copytree(JANUS, tmp_path / "hub" / "o" / "janus")
    import_published("o/tiny", tmp_path / "imported")
    assert native.load_config(tmp_path / "imported") == load_config(TINY)[0]
    shutil.copytree(tmp_path / "imported", tmp_path / "hub" / "o" / "converted")
    assert load_config("o/converted") == (native.load_config(tmp_path / "imported"), True)
    with pytest.raises(CheckpointError, match="expected the published layout"):
        import_published("o/converted", tmp_path / "again")
    import_janus("o/janus", tmp_path / "start", max_latent_size=4)
    assert native.is_checkpoint(tmp_path / "start")


def test_kept_files_of_an_import_are_downloaded(hub, tmp_path):
    for name in ("notes.txt", "other.txt", "vae/notes.txt"):
        (tmp_path / "hub" / "o" / "tiny" / name).write_text(name)
    import_published("o/tiny", tmp_path / "out", keep_file=("notes.txt", "vae/notes.txt"))
    found = {
        file.relative_to(tmp_path / "out") for file in (tmp_path / "out" / "source").rglob("*.txt")
    }
    assert found == {Path("source/notes.txt"), Path("source/vae/notes.txt")}
    assert not [path for _, path in hub.requests if path.endswith("other.txt")]
    with pytest.raises(CheckpointError, match=r"--keep-file: expected .*, found absent\.txt"):
        import_published("o/tiny", tmp_path / "other", keep_file=("absent.txt",))


def test_encoders(hub, tmp_path):
    folder = tmp_path / "hub" / "o" / "dino"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(StorageError, match=r"o/dino: expected one of model\.safetensors"):
        load_dinov2_config("o/dino")
    (folder / "model.safetensors").write_bytes(b"x" * 8)
    hub_server.hub_cache_clear()
    assert load_dinov2_config("o/dino").num_layers == 12
    labeller = tmp_path / "hub" / "o" / "labeller"
    labeller.mkdir()
    for name in ("chexbert.pth", "model.safetensors", "vocab.txt"):
        (labeller / name).write_bytes(b"x")
    weights = find_chexbert("o/labeller")
    assert {file.name for file in weights.parent.iterdir()} == {"chexbert.pth", "vocab.txt"}
    assert find_chexbert("hf://o/labeller/model.safetensors").name == "model.safetensors"


# --- one line for each thing that goes wrong -----------------------------------------------------


def refused(name, match, select=checkpoint_files):
    with pytest.raises(StorageError, match=match) as error:
        located(name, select)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_repository_that_is_not_there(hub):
    line = refused("o/absent", r"^o/absent: no such local file or directory; hf://o/absent: there")
    assert f"no model repository {hub.url}/o/absent; if it is private, log in" in line
    refused("hf://o/absent", r"^hf://o/absent: there is no model repository")


def test_a_revision_that_is_not_there(hub):
    refused("o/tiny@v9", r"hf://o/tiny@v9: .* has no revision 'v9'")


def test_a_gated_and_a_private_repository(hub):
    hub.gated.add("o/tiny")
    refused("o/tiny", r"access is restricted; accept its terms on http.*/o/tiny, and log in with")
    hub.gated.clear()
    hub.private.add("o/tiny")
    refused("o/tiny", r"no model repository .*; if it is private, log in with `hf auth login`")


def test_a_missing_file(hub, tmp_path):
    (tmp_path / "hub" / "o" / "tiny" / "config.json").unlink()
    refused("o/tiny", r"expected config\.json of a checkpoint in the repository, found model")
    refused("hf://o/tiny/sub", r"hf://o/tiny/sub: expected a file that can be used here, found mod")


def test_a_file_that_is_listed_and_not_served(hub):
    hub.broken.add("model.safetensors")
    refused("o/tiny", r"model\.safetensors")


def test_no_network(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    hub_server.use(monkeypatch, url, tmp_path / "cache")
    line = refused("o/tiny", rf"hf://o/tiny: is not in .*cache, and the hub cannot .* \({url}: ")
    assert "download it with `hf download o/tiny` where the hub can be reached" in line


def test_offline_without_a_copy_and_with_half_of_one(hub, tmp_path, monkeypatch):
    hub_server.use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    refused("o/tiny", r"is not in .*HF_HUB_OFFLINE is set\); download it with `hf download o/tiny`")
    hub_server.use(monkeypatch, hub.url, tmp_path / "cache")
    located("o/tiny", configuration_files)
    hub_server.use(monkeypatch, hub.url, tmp_path / "cache", offline=True)
    refused("o/tiny", r"lacks model\.safetensors, vae/kl-f16d16\.ckpt, and the hub cannot be rea")
    assert located("o/tiny", configuration_files).is_dir()


def test_the_hub_is_down_after_a_download(hub, tmp_path, monkeypatch):
    folder = located("o/tiny", checkpoint_files)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.down = True
    hub_server.hub_cache_clear()
    assert located("o/tiny", checkpoint_files) == folder


def test_a_dry_run_downloads_no_weights(hub):
    located("o/tiny", configuration_files)
    assert not [path for _, path in hub.requests if path.endswith((".safetensors", ".ckpt"))]


def test_edits_are_not_accepted_on_the_hub(hub, capsys):
    from unix_jax.commands import convert

    assert convert.main(["accept", "o/tiny"]) == 1
    assert "o/tiny: expected a local directory, found none" in capsys.readouterr().err
    assert not hub.requests


def test_the_tokenizer_of_a_name_comes_without_weights(hub):
    from unix_jax.commands.data import _tokenizer

    tokenizer, config = _tokenizer("o/tiny")
    assert (tokenizer.encode("x"), config) == (
        _tokenizer(str(TINY))[0].encode("x"),
        load_config(TINY)[0],
    )
    assert not [path for _, path in hub.requests if path.endswith((".safetensors", ".ckpt"))]


def test_names_are_not_looked_up_before_they_are_used(hub, capsys):
    from unix_jax import cli

    assert cli.main(["report", "absent.png", "--checkpoint", "o/tiny"]) == 1
    assert "absent.png" in capsys.readouterr().err
    assert cli.main(["report", "absent.png", "--checkpoint", "hf://tiny"]) == 1
    assert "expected hf://OWNER/NAME" in capsys.readouterr().err
    assert not hub.requests


# --- uploads -----------------------------------------------------------------------------------


def front_of(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def push(arguments, hub, monkeypatch, *, token="hf_writer"):
    from unix_jax.commands import convert

    monkeypatch.setenv("HF_TOKEN", token)
    return convert.main(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "tiny"
    import_published(TINY, out)
    return out


def test_an_export_is_pushed_with_a_card(hub, imported, tmp_path, monkeypatch, capsys):
    arguments = [imported, "out", "--push", "me/unix", "--license", "cc-by-nc-4.0"]
    assert push([*arguments, "--training-data", "Toy weights."], hub, monkeypatch) == 0
    assert f"pushed {hub.url}/me/unix/commit/" in capsys.readouterr().err
    pushed = tmp_path / "hub" / "me" / "unix"
    names = {file.relative_to(pushed) for file in pushed.rglob("*") if file.is_file()}
    out = tmp_path / "out"
    assert names == {file.relative_to(out) for file in out.rglob("*") if file.is_file()}
    assert (pushed / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    front, body = front_of((pushed / "README.md").read_text())
    assert front["license"] == "cc-by-nc-4.0"
    assert front["library_name"] == "unix-jax"
    assert "- Training data: Toy weights." in body
    assert "unix-jax report xray.png --checkpoint me/unix" in body
    # It is what it came from, also by way of the hub.
    assert load_config("me/unix") == load_config(TINY)


def test_an_earlier_content_is_replaced_in_one_commit(hub, imported, tmp_path, monkeypatch, capsys):
    old = tmp_path / "hub" / "me" / "unix" / "old.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x")
    arguments = [imported, "out", "--push", "me/unix", "--license", "mit"]
    assert push(arguments, hub, monkeypatch) == 0
    assert "; 1 earlier files are in its history" in capsys.readouterr().err
    assert not old.exists()
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["--push", "me/unix"], "hf_writer", "--license: expected the licence of the weights"),
        (["--push", "me/unix", "--license", " "], "hf_writer", "--license: expected the licence"),
        (["--push", "unix", "--license", "mit"], "hf_writer", "--push: expected OWNER/NAME, found"),
        (["--push", "me/unix", "--license", "mit"], "", "expected to be logged in; run `hf auth"),
        (["--license", "mit"], "hf_writer", "--license: has no effect without --push"),
        (["--private"], "hf_writer", "--private: has no effect without --push"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    hub, imported, tmp_path, monkeypatch, capsys, arguments, token, message
):
    assert push([imported, "out", *arguments], hub, monkeypatch, token=token) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not hub.requests


def test_a_token_that_may_not_write(hub, imported, tmp_path, monkeypatch, capsys):
    arguments = [imported, "out", "--push", "me/unix", "--license", "mit"]
    assert push(arguments, hub, monkeypatch, token="hf_reader") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out is complete, but was not pushed: " in error
    assert "answered 401; log in with `hf auth login`, or set HF_TOKEN" in error
    assert not (tmp_path / "hub" / "me").exists()


def test_the_card_of_a_run(imported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(imported, run / "export")
    index = json.loads((run / "export" / "index.json").read_text())
    index["training"] = {"step": 20, "weights": "average"}
    write_index(run / "export", index)
    source = "0.5*mimic:/home/ann/mimic-cxr-jpg?views=PA + 0.5*csv:../x/own.csv?images=/home/i"
    settings = {"stage": "joint", "total_steps": 30, "data": {"source": source, "rows": 4}}
    (run / "run.json").write_text(json.dumps({"config": settings}))
    rows = [{"step": s, "ce": 1 / s, "mse": None, "average_ce": 2 / s} for s in (10, 20, 30)]
    (run / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = model_card(run, "me/unix", "mit", source_card="---\na: b\n---\nOld card")
    front, body = front_of(card)
    assert front["license"] == "mit"
    assert "`0.5*mimic:mimic-cxr-jpg?views=PA + 0.5*csv:own.csv?images=i`" in body
    assert "/home" not in body
    assert "- Steps: 20 of 30" in body
    assert "moving average" in body
    assert "at step 20:\n\n| | |\n|---|---|\n| ce | 0.05 |\n| average_ce | 0.1 |" in body
    assert body.rstrip().endswith("imported from\n\nOld card")
    assert "not recorded" in model_card(imported, "me/unix", "mit")
    with pytest.raises(UniXError, match="--license"):
        model_card(run, "me/unix", "")

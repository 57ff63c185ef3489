"""`unix-jax convert`: exit codes, one message for an error, nothing left after Ctrl-C."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from unix_jax.checkpoints import native
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.load import load_model
from unix_jax.commands.convert import main

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny" / "checkpoint"


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_import_and_export(tmp_path, capsys):
    assert main(["import", str(TINY), str(tmp_path / "jax")]) == 0
    assert main(["export", str(tmp_path / "jax"), str(tmp_path / "out")]) == 0
    exported = tmp_path / "out" / "model.safetensors"
    assert exported.read_bytes() == (TINY / "model.safetensors").read_bytes()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [f"wrote {tmp_path / 'jax'}", f"wrote {tmp_path / 'out'}"]


def test_import_with_dtype(tmp_path):
    assert main(["import", str(TINY), str(tmp_path / "jax"), "--dtype", "bfloat16"]) == 0
    infos = native.tensor_infos(tmp_path / "jax")
    assert infos["params/lm_head/kernel"].dtype == "bfloat16"


def test_import_janus(tmp_path):
    arguments = ["--max-latent-size", "8", "--vae", str(TINY / "vae"), "--seed", "3"]
    source, out = str(GOLDEN / "tiny_janus"), str(tmp_path / "jax")
    assert main(["import-janus", source, out, *arguments]) == 0
    assert native.load_config(out).max_latent_size == 8
    assert native.has_vae(out)


def test_inspect(tmp_path, capsys):
    assert main(["inspect", str(TINY)]) == 0
    assert main(["import", str(TINY), str(tmp_path / "jax")]) == 0
    assert main(["inspect", str(tmp_path / "jax")]) == 0
    printed = capsys.readouterr().out
    assert "embed_tokens" in printed
    with open_tensors(TINY) as tensors:
        assert "connector.layers.0.bias" in tensors.keys()  # noqa: SIM118


@pytest.mark.parametrize("command", ["import", "import-janus", "export"])
def test_error_is_one_line(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "nowhere" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_usage_error_exits_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["import"])
    assert caught.value.code == 2
    capsys.readouterr()


_SLOW = """
import sys, time
import unix_jax.checkpoints.leaves as leaves
plain = leaves.Leaf.read_all
def slow(self):
    print("reading", flush=True)
    time.sleep(0.05)
    return plain(self)
leaves.Leaf.read_all = slow
from unix_jax.commands.convert import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.extended
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interruption_leaves_nothing(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, "import", str(TINY), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["interrupted: nothing was written"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.extended
@pytest.mark.parametrize("vae_dtype", ["keep", "bfloat16"])
def test_cast(tmp_path, vae_dtype):
    """Half the size, each number rounded once; the copy loads, and exports."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert main(["import", str(TINY), str(whole), "--dtype", "float32"]) == 0
    assert main(["cast", str(whole), str(half), "--vae-dtype", vae_dtype]) == 0
    config, params, vae = load_model(whole, vae_dtype=None)
    found_config, found, found_vae = load_model(half, vae_dtype=None)
    assert found_config == config
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert a.dtype == jnp.bfloat16
        assert bool((a == b.astype(jnp.bfloat16)).all())
    kind = jnp.bfloat16 if vae_dtype == "bfloat16" else jax.tree.leaves(vae)[0].dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(found_vae)} == {jnp.dtype(kind)}
    assert (half / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    assert main(["export", str(half), str(tmp_path / "published")]) == 0
    assert main(["cast", str(whole), str(half)]) == 1

"""`unix-jax app`: what is refused before anything is served; what the repository brings."""

import shutil
import socket
import sys

import pytest

from unix_jax.app import bundled
from unix_jax.app.style import require_gradio
from unix_jax.commands.app import App
from unix_jax.errors import UniXError
from unix_jax.storage.bundled import ROOT
from unix_jax.web.addresses import free_port


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder instead of that of the bundled files."""
    monkeypatch.setattr(bundled, "ROOT", tmp_path)
    return tmp_path


def test_a_checkpoint_given(elsewhere):
    assert bundled.checkpoint_path("mine") == "mine"


def test_the_bundled_model(elsewhere):
    with pytest.raises(UniXError, match=r"--checkpoint: expected a directory; found no bundled"):
        bundled.checkpoint_path(None)
    (elsewhere / "examples" / "nano").mkdir(parents=True)
    assert bundled.checkpoint_path(None) == str(elsewhere / "examples" / "nano")


def test_examples_of_the_repository():
    found = bundled.example_xrays()
    assert len(found) == 6
    assert {e.name for e in found} > {"X-ray 1", "No Finding"}
    assert all(e.data[:2] == b"\xff\xd8" for e in found)
    assert "No acute finding." in bundled.example_texts()


def test_labels_of_the_single_files():
    """Those of the table that states their origin."""
    text = (ROOT / "examples" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`"): tuple(row[3].split(", ")) for row in rows} == bundled.LABELS


def test_a_package_without_examples(elsewhere):
    assert bundled.example_xrays() == []
    assert bundled.example_texts()


def test_some_examples_only(elsewhere):
    (elsewhere / "examples").mkdir()
    shutil.copy(next((ROOT / "examples").glob("*.jpg")), elsewhere / "examples")
    assert [e.name for e in bundled.example_xrays()] == ["X-ray 1"]


@pytest.mark.parametrize("option", ["max_upload_mb", "max_megapixels", "max_waiting"])
def test_bad_limits(option):
    with pytest.raises(UniXError, match=f"--{option.replace('_', '-')}: expected at least 1"):
        App(**{option: 0}).run()


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UniXError, match=r"pip install 'unix-jax\[app\]'"):
        require_gradio()
    with pytest.raises(UniXError, match=r"pip install 'unix-jax\[app\]'"):
        App(checkpoint="nowhere").run()


def test_no_such_checkpoint(tmp_path):
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    with pytest.raises(UniXError, match="nowhere"):
        App(checkpoint=str(tmp_path / "nowhere")).run()


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UniXError, match=f"--port {port}: Address already in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0
    for port in (-1, 70000):
        with pytest.raises(UniXError, match="--port: expected 0 to 65535"):
            free_port("127.0.0.1", port)
    with pytest.raises(UniXError, match=r"--host 192\.0\.2\.1"):
        free_port("192.0.2.1", 0)

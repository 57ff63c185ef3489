"""What comes with the package: configurations by their names, examples, toy golden files."""

import re
import runpy
from pathlib import Path

import pytest

from unix_jax.commands import convert
from unix_jax.errors import ConfigError
from unix_jax.storage import bundled
from unix_jax.training.config import load_config

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "setup.py"


def test_a_clone_uses_its_own_files():
    assert bundled.ROOT == ROOT
    assert set(bundled.configurations()) == {file.stem for file in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("name", ["nano_joint", "nano_joint.py", "configs/nano_joint.py"])
def test_a_configuration_by_its_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    inside, text = load_config(name)
    assert "manifest:examples/cxr" in inside.data.source
    monkeypatch.chdir(tmp_path)
    outside, same_text = load_config(name)
    assert text == same_text
    assert f"manifest:{ROOT}/examples/cxr" in outside.data.source
    (tmp_path / "nano_joint.py").write_text("config = 1")
    if name == "nano_joint.py":
        with pytest.raises(ConfigError, match="config: expected `config = TrainConfig"):
            load_config(name)


@pytest.mark.parametrize("name", ["nano_none", "other/nano_joint", "configs/a/nano_joint.py"])
def test_a_configuration_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no such file; expected .*, or one of nano_autoencoder,"
    ):
        load_config(name)


def test_check_without_arguments(capsys, monkeypatch):
    checked = []
    monkeypatch.setattr("unix_jax.parity.check.check", lambda *given: checked.append(given) or 0)
    assert convert.main(["check"], "unix-jax") == 0
    golden = ROOT / "tests" / "golden" / "tiny"
    assert checked == [(golden / "checkpoint", golden, None)]
    captured = capsys.readouterr()
    assert "tests/golden/tiny/checkpoint is checked, a bundled one of toy size" in captured.err
    assert convert.main(["check", "somewhere"], "unix-jax") == 1
    assert "GOLDEN-DIR: expected a directory" in capsys.readouterr().err


@pytest.fixture(scope="module")
def build():
    """setup.py, whose call of `setup` does nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        return runpy.run_path(str(SETUP))


def test_every_pattern_of_the_wheel_finds_files(build):
    for pattern in build["BUNDLED"]:
        assert any(file.is_file() for file in ROOT.glob(pattern)), pattern


def test_the_description_has_no_relative_links(build):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for address in (None, "https://example.org/a/b/"):
        found = build["description"](text, address)
        targets = re.findall(r"\]\(([^)]*)\)", found)
        targets += re.findall(r'(?:src|srcset|href)="([^"]*)"', found)
        assert all(re.match("https?://|#", target) for target in targets)
        assert ("<picture>" in found) == (address is not None)
    assert 'src="https://example.org/a/b/raw/main/docs/images/showcase_light.png"' in found
    assert "](https://example.org/a/b/blob/main/docs/nano.md)" in found

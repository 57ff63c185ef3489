"""`unix-jax serve`: what is refused before a model is loaded, and compilation at the start."""

import sys

import pytest

from support.toy_pipelines import CHECKPOINT
from unix_jax.commands.serve import Serve
from unix_jax.errors import UniXError

KEY = "UNIX_JAX_API_KEY"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY, raising=False)


def refused(**options):
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    with pytest.raises(UniXError) as raised:
        Serve(**{"checkpoint": str(CHECKPOINT), "port": 0} | options).run()
    return str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_waiting": -1}, "--max-waiting: expected at least 0"),
        ({"timeout": 0}, "--timeout: expected at least 1"),
        ({"timeout": float("nan")}, "--timeout: expected at least 1"),
        ({"max_body_mb": 0}, "--max-body-mb: expected at least 1"),
        ({"batch_sizes": ()}, "--batch-sizes: expected different integers"),
        ({"batch_sizes": (4, 2)}, "--batch-sizes: expected different integers"),
        ({"port": 70000}, "--port: expected 0 to 65535"),
        ({"host": "192.0.2.1"}, "--host 192.0.2.1: other machines can connect"),
        ({"host": "0.0.0.0"}, "UNIX_JAX_API_KEY is not set"),
        ({"allow_host": ("http://x",)}, "--allow-host: expected a host name"),
        ({"model_name": " "}, "--model-name: expected a name"),
        ({"checkpoint": "/nowhere"}, "nowhere"),
        ({"max_new_tokens": 257}, "--max-new-tokens: expected at most 256"),
    ],
)
def test_refused_at_the_start(options, message):
    assert message in refused(**options)


@pytest.mark.parametrize("key", ["", "two words", "ä", "a\n"])
def test_bad_keys(monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    message = refused()
    assert message.startswith("UNIX_JAX_API_KEY: expected printable ASCII characters")
    assert key.strip() == "" or key not in message


def test_keys(monkeypatch):
    from unix_jax.serving.server import api_key

    assert api_key("127.0.0.1", False) is None
    assert api_key("0.0.0.0", True) is None
    monkeypatch.setenv(KEY, "secret")
    assert api_key("0.0.0.0", False) == "secret"


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UniXError, match=r"the API server needs .* pip install 'unix-jax\[serve\]'"):
        Serve().run()


def test_warming_up(pipe):
    from unix_jax.inference.warming import warm_up

    said = []
    warm_up(pipe, (1,), 24, said.append)
    assert [line.partition(" (")[0] for line in said] == ["reports: ready", "images: ready"]

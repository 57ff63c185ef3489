"""Previews on several processes: an error of the one that writes ends all of them."""

from types import SimpleNamespace

from unix_jax.errors import DataError
from unix_jax.training import previews


def test_an_error_of_the_first_process_is_told_to_all(monkeypatch, tmp_path):
    stage = SimpleNamespace(config=None, weights=lambda state, which: (None, None))
    config = SimpleNamespace(stage="autoencoder", preferred="raw")
    told = []

    def fails(*_):
        raise DataError("images/000.png: expected an image, found a broken file")

    def make():
        return previews.make(stage, config, None, None, None, tmp_path, 4, {"generation": []})

    monkeypatch.setattr(previews, "raise_together", told.append)
    monkeypatch.setattr(previews, "_reconstructions", fails)
    assert make() == []
    monkeypatch.setattr(previews, "is_primary", lambda: False)
    assert make() == []
    first, other = told
    assert isinstance(first, DataError)
    assert other is None

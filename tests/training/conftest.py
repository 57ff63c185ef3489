"""Runs of `train.py` that many tests look at, made once per worker."""

import functools

import pytest

from support import toy_run


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """stage -> a configuration file."""
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def train():
    """`train.py` as a module."""
    return toy_run.load_train()


@pytest.fixture(scope="session")
def whole(toy, train, tmp_path_factory):
    """stage -> the directory of a finished run of 8 steps; it is not to be changed.

    It holds checkpoints of the steps 6 and 8, and the export.
    """

    @functools.cache
    def run(stage):
        out = tmp_path_factory.mktemp("whole")
        assert train.main([str(toy(stage)), "--out", str(out)]) == 0
        return out

    return run

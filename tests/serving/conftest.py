"""A toy model, served once."""

import pytest

from support.api_server import served
from support.toy_pipelines import small_writing_pipe


@pytest.fixture(scope="session")
def pipe():
    """The smallest model with a tokenizer."""
    return small_writing_pipe()


@pytest.fixture(scope="session")
def limits():
    from unix_jax.serving.limits import ServeLimits

    return ServeLimits(batch_sizes=(1, 2), new_tokens=24, waiting=8, body_bytes=2**20, window=0.05)


@pytest.fixture(scope="session")
def url(pipe, limits):
    """The root of the server."""
    with served(pipe, limits) as server:
        yield server.url

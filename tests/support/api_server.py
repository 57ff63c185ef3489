"""Requests to the API server, and a running one of the toy model."""

import base64
import contextlib
import io

import numpy as np
import pytest
from PIL import Image


def xray(seed=0):
    """The bytes of a small image of random gray levels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat(data=None, text="", **fields):
    """The body of a request for a report."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(data or xray())}}]
    parts += [{"type": "text", "text": text}] if text else []
    return {"model": "toy", "messages": [{"role": "user", "content": parts}], **fields}


@contextlib.contextmanager
def served(pipe, limits, **options):
    """A running server of the toy model."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason="the extra [serve] is not installed")
    from unix_jax.serving.server import serving

    with serving(pipe, "toy", port=0, limits=limits, **options) as server:
        yield server

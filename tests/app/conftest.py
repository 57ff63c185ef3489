"""A toy model, a page served once, and a browser; each skips with a reason where it cannot be."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKPOINT = Path(__file__).parent.parent / "golden" / "tiny" / "checkpoint"


@pytest.fixture(scope="session")
def pipe():
    """The golden model."""
    from unix_jax.inference.pipeline import UniXPipeline

    return UniXPipeline.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="session")
def diffusers_folder() -> Path:
    """A golden folder of `StableDiffusionPipeline`, whose texts have at most 10 tokens."""
    return CHECKPOINT.parent.parent / "unet_clip" / "checkpoint"


@pytest.fixture(scope="session")
def diffusion_pipe(diffusers_folder):
    """The model of `diffusers_folder`."""
    from unix_jax.inference.diffusion import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(diffusers_folder)


@pytest.fixture(scope="session")
def xray_png() -> bytes:
    """The bytes of a small image."""
    ramp = np.add.outer(np.arange(120), np.arange(90)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def bomb_png() -> bytes:
    """A small file of 144 million black pixels."""
    file = io.BytesIO()
    Image.new("1", (12000, 12000)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def address(pipe):
    """Where the page is served."""
    pytest.importorskip("gradio", reason="the extra [app] is not installed")
    from unix_jax.app.server import serving

    with serving(pipe, port=0) as found:
        yield found.rstrip("/")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; its event loop must be gone before tests of other modules run theirs."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with api.sync_playwright() as running:
        if program is None and not os.path.exists(running.chromium.executable_path):
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        # Root has no sandbox.
        options = {"executable_path": program, "args": ["--no-sandbox"]}
        found = running.chromium.launch(**options)
        yield found
        found.close()

"""Batches: padding to a size, equal rows of several clients, and cancelled jobs."""

import numpy as np
import pytest

from unix_jax.inference.image_latents import LatentStep
from unix_jax.inference.programs import ProgramBudget
from unix_jax.inference.settings import ImageSettings

pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from unix_jax.serving import batches
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.metrics import Metrics
from unix_jax.serving.requests import ImageRequest
from unix_jax.serving.scheduler import Job

SIZES = (1, 2, 4)


@pytest.fixture
def computed(pipe, monkeypatch):
    """(run, rows): `run` computes jobs; `rows` lists the (prompt, seed) of each batch."""
    rows = []

    def generate(loaded, prompts, settings, images, noise, seeds, stride):
        assert len(prompts) == len(seeds)
        rows.append(list(zip(prompts, seeds, strict=True)))
        latents = np.asarray(seeds, np.float32)[:, None, None]
        return seeds, (LatentStep(i + 1, 3, latents, latents) for i in range(3))

    def decode(loaded, latents, size):
        return np.full((len(latents), 4, 4, 3), latents[0, 0, 0] / 255)

    monkeypatch.setattr(batches, "generate_latents", generate)
    monkeypatch.setattr(batches, "decode_latents", decode)
    limits = ServeLimits(batch_sizes=SIZES)
    run = batches.BatchRunner(pipe, limits, Metrics(SIZES), lambda: False, ProgramBudget(8))
    return run, rows


def job(prompt, *seeds):
    found = []
    request = ImageRequest(prompt=prompt, seeds=seeds, settings=ImageSettings(), prompt_tokens=3)
    return Job(request, found.append), found


def levels(found):
    """The gray level of each image of a job."""
    return [image.getpixel((0, 0)) for image in found[0].images]


def test_equal_rows_are_computed_once_and_padding_differs(computed):
    run, rows = computed
    (first, of_first), (second, of_second) = job("a", 0, 1), job("a", 1)
    run([first, second])
    assert rows == [[("a", 0), ("a", 1)]]
    assert levels(of_first) == [0, 1]
    assert levels(of_second) == [1]

    (third, _), (fourth, _) = job("a", 0, 1), job("b", 1)
    run([third, fourth])
    assert rows[1] == [("a", 0), ("a", 1), ("b", 1), ("b", 0)]


def test_a_cancelled_job_gets_nothing_and_the_others_do(computed):
    run, _ = computed
    (left, of_left), (stays, of_stays) = job("a", 7), job("b", 9)
    left.cancel()
    run([left, stays])
    assert of_left == []
    assert of_stays[0].images[0].getpixel((0, 0)) == 9
    assert b"unix_jax_cancelled_requests_total 1.0" in run.metrics.text()
    assert b"unix_jax_generated_images_total 1.0" in run.metrics.text()

"""Batches: padding to a size, equal rows of several clients, and cancelled jobs."""

import numpy as np
import pytest
from PIL import Image

from unix_jax.inference import decoding
from unix_jax.inference.image_latents import LatentStep
from unix_jax.inference.programs import ProgramBudget
from unix_jax.inference.reports import compile_reports
from unix_jax.inference.settings import ImageSettings, ReportSettings

pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from unix_jax.serving import batches
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.metrics import Metrics
from unix_jax.serving.requests import ImageRequest, ReportRequest
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


def nobody(fits):
    """No further job waits."""


def levels(found):
    """The gray level of each image of a job."""
    return [image.getpixel((0, 0)) for image in found[0].images]


def test_equal_rows_are_computed_once_and_padding_differs(computed):
    run, rows = computed
    (first, of_first), (second, of_second) = job("a", 0, 1), job("a", 1)
    run([first, second], nobody)
    assert rows == [[("a", 0), ("a", 1)]]
    assert levels(of_first) == [0, 1]
    assert levels(of_second) == [1]

    (third, _), (fourth, _) = job("a", 0, 1), job("b", 1)
    run([third, fourth], nobody)
    assert rows[1] == [("a", 0), ("a", 1), ("b", 1), ("b", 0)]


def test_a_cancelled_job_gets_nothing_and_the_others_do(computed):
    run, _ = computed
    (left, of_left), (stays, of_stays) = job("a", 7), job("b", 9)
    left.cancel()
    run([left, stays], nobody)
    assert of_left == []
    assert of_stays[0].images[0].getpixel((0, 0)) == 9
    assert b"unix_jax_cancelled_requests_total 1.0" in run.metrics.text()
    assert b"unix_jax_generated_images_total 1.0" in run.metrics.text()


def report_job(level, new_tokens=24):
    found = []
    request = ReportRequest(
        images=(Image.new("L", (32, 32), level),), prompt="Describe it.", max_new_tokens=new_tokens,
        temperature=0.0, top_p=1.0, seed=0, stream=False, stream_usage=False, context_tokens=48,
        warnings=(),
    )  # fmt: skip
    return Job(request, found.append), found


@pytest.mark.filterwarnings("ignore::unix_jax.errors.ImageWarning")
def test_a_row_that_ended_is_given_to_a_job_that_waits(pipe):
    """Seven jobs in four rows: each report is the one that its image gets alone."""
    limits = ServeLimits(batch_sizes=SIZES, new_tokens=24)
    metrics = Metrics(SIZES)
    run = batches.BatchRunner(pipe, limits, metrics, lambda: False, ProgramBudget(8))
    jobs = [report_job(30 * i) for i in range(7)]
    waiting, asked = [job for job, _ in jobs[4:]], []

    def join(fits):
        asked.append(len(waiting))
        if not waiting or not fits(waiting[0].request, len(waiting)):
            return None
        return waiting.pop(0)

    run([job for job, _ in jobs[:4]], join)
    # The batch has four rows, so it ends when two would do, and the rest begins a new batch.
    assert len(waiting) <= 2
    joined = 3 - len(waiting)
    assert joined >= 1
    assert f"unix_jax_joined_reports_total {joined:.1f}".encode() in metrics.text()
    for job, found in jobs[: 4 + joined]:
        (alone,) = pipe.generate_report(
            [job.request.images[0]],
            prompts="Describe it.",
            max_new_tokens=limits.report_tokens(pipe.config),
        )
        assert [item.text for item in found] == [alone]


@pytest.mark.filterwarnings("ignore::unix_jax.errors.ImageWarning")
@pytest.mark.parametrize("why", ["its own limit", "cancelled"])
def test_a_row_that_needs_no_more_tokens_is_given_away_at_once(pipe, why):
    """While the other rows are still being written."""
    limits = ServeLimits(batch_sizes=SIZES, new_tokens=64)
    metrics = Metrics(SIZES)
    run = batches.BatchRunner(pipe, limits, metrics, lambda: False, ProgramBudget(8))
    first, of_first = report_job(40, 3 if why == "its own limit" else 64)
    others = [report_job(90, 64) for _ in range(3)]
    late, of_late = report_job(40, 64)
    ended = []

    def join(fits):
        if why == "cancelled":
            first.cancel()
        if ended or not fits(late.request, 1):
            return None
        ended.append([len(found) for _, found in others])
        return late

    run([first, *(job for job, _ in others)], join)
    assert ended == [[0, 0, 0]]
    reports = [found[0] for _, found in others]
    assert reports[0].tokens == 64  # the test's model does not end this report itself
    if why == "cancelled":
        assert of_first == []
        assert b"unix_jax_cancelled_requests_total 1.0" in metrics.text()
    else:
        (cut,) = of_first
        assert (cut.tokens, cut.finish_reason) == (3, "length")
        assert of_late[0].text.startswith(cut.text)
    alone = [
        pipe.generate_report([job.request.images[0]], prompts="Describe it.", max_new_tokens=64)
        for job in (others[0][0], late)
    ]
    assert [[reports[0].text], [of_late[0].text]] == alone


def test_a_small_batch_takes_nobody_when_a_larger_one_is_needed(pipe):
    limits = ServeLimits(batch_sizes=SIZES, new_tokens=24)
    run = batches.BatchRunner(pipe, limits, Metrics(SIZES), lambda: False, ProgramBudget(8))
    (first, of_first), (other, of_other) = report_job(40), report_job(90)
    found = []

    def join(fits):
        found.append(fits(other.request, 2))

    run([first], join)
    assert len(of_first) == 1
    assert of_other == []
    assert found
    assert not any(found[:-1])  # at the last look, no row of the batch is active


@pytest.mark.filterwarnings("ignore::unix_jax.errors.ImageWarning")
def test_nothing_is_compiled_after_the_warm_up(pipe):
    limits = ServeLimits(batch_sizes=SIZES, new_tokens=24)
    run = batches.BatchRunner(pipe, limits, Metrics(SIZES), lambda: False, ProgramBudget(8))
    settings = ReportSettings(max_new_tokens=limits.report_tokens(pipe.config))
    programs = (decoding.decode_until, decoding.replace_rows, decoding.slots_needed)
    for rows in SIZES:
        compile_reports(pipe.loaded, rows, settings, together=False)
    compiled = [program._cache_size() for program in programs]
    for rows in SIZES:
        jobs = [report_job(30 * i) for i in range(rows)]
        run([job for job, _ in jobs], nobody)
        assert all(len(found) == 1 for _, found in jobs)
    # A client leaves while another waits.
    (first, _), (other, _), (late, of_late) = [report_job(30 * i) for i in range(3)]
    waiting = [late]

    def join(fits):
        first.cancel()
        return waiting.pop() if waiting and fits(late.request, 1) else None

    run([first, other], join)
    assert len(of_late) == 1
    assert [program._cache_size() for program in programs] == compiled

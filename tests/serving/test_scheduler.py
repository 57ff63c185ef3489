"""Which jobs are computed together, in which order, and which are not computed."""

import threading
import time
from dataclasses import dataclass

import pytest

from unix_jax.errors import UniXError
from unix_jax.serving.limits import ServeLimits
from unix_jax.serving.refusals import RequestError
from unix_jax.serving.scheduler import Scheduler


@dataclass(frozen=True)
class Wish:
    """Stands for a request."""

    name: str
    key: str = "a"
    rows: int = 1


class Runs:
    """Records batches; the first one blocks until `go` is set."""

    def __init__(self):
        self.batches, self.go, self.began = [], threading.Event(), threading.Event()

    def __call__(self, batch, join):
        self.join = join
        self.batches.append([job.request.name for job in batch])
        self.began.set()
        assert self.go.wait(10)
        for job in batch:
            if job.request.name == "bad":
                raise ValueError("oops")
            job.deliver("done")


@pytest.fixture
def running():
    runs = Runs()
    scheduler = Scheduler(runs, ServeLimits(batch_sizes=(1, 2, 4), window=0))
    scheduler.start()
    yield runs, scheduler
    runs.go.set()
    scheduler.close()


def submitted(scheduler, wishes):
    found = []
    done = [threading.Event() for _ in wishes]

    def receiver(i):
        def deliver(item):
            found.append((wishes[i].name, item))
            done[i].set()

        return deliver

    return [scheduler.submit(wish, receiver(i)) for i, wish in enumerate(wishes)], found, done


def test_jobs_collect_while_the_model_computes(running):
    runs, scheduler = running
    submitted(scheduler, [Wish("first")])
    assert runs.began.wait(5)
    wishes = [Wish("1"), Wish("2", "b"), Wish("3"), Wish("4", rows=2), Wish("5"), Wish("6", "b")]
    _, found, done = submitted(scheduler, wishes)
    assert scheduler.waiting == 6
    runs.go.set()
    assert all(event.wait(5) for event in done)
    assert runs.batches == [["first"], ["1", "3", "4"], ["2", "6"], ["5"]]
    assert len(found) == 6


def test_a_cancelled_job_does_not_begin(running):
    runs, scheduler = running
    submitted(scheduler, [Wish("first")])
    assert runs.began.wait(5)
    jobs, _, done = submitted(scheduler, [Wish("1"), Wish("2")])
    jobs[0].cancel()
    assert scheduler.waiting == 1
    runs.go.set()
    assert done[1].wait(5)
    assert runs.batches == [["first"], ["2"]]


def test_an_error_fails_its_batch_only(running, caplog):
    runs, scheduler = running
    runs.go.set()
    _, found, done = submitted(scheduler, [Wish("bad")])
    assert done[0].wait(5)
    assert isinstance(found[0][1], ValueError)
    _, found, done = submitted(scheduler, [Wish("good")])
    assert done[0].wait(5)
    assert found == [("good", "done")]
    assert "a batch of 1 jobs failed" in caplog.text


def test_closing_fails_what_waits(running):
    runs, scheduler = running
    submitted(scheduler, [Wish("first")])
    assert runs.began.wait(5)
    _, found, _ = submitted(scheduler, [Wish("1")])
    threading.Timer(0.1, runs.go.set).start()
    scheduler.close()
    assert isinstance(found[0][1], RequestError)
    assert found[0][1].status == 503
    assert not scheduler.alive
    with pytest.raises(RequestError, match="stopping"):
        scheduler.submit(Wish("2"), print)


def test_the_window_collects_when_the_model_is_idle():
    runs = Runs()
    runs.go.set()
    scheduler = Scheduler(runs, ServeLimits(batch_sizes=(1, 2, 4), window=0.5))
    scheduler.start()
    began = time.monotonic()
    _, _, done = submitted(scheduler, [Wish(str(i)) for i in range(4)])
    assert all(event.wait(5) for event in done)
    # A full batch does not wait for the end of the window.
    assert time.monotonic() - began < 0.4
    assert [len(batch) for batch in runs.batches] == [4]
    _, _, done = submitted(scheduler, [Wish("alone")])
    assert done[0].wait(5)
    assert time.monotonic() - began >= 0.5
    scheduler.close()


@pytest.mark.parametrize("sizes", [(), (0, 1), (2, 1), (1, 1)])
def test_bad_batch_sizes(sizes):
    with pytest.raises(UniXError, match="--batch-sizes: expected different integers"):
        ServeLimits(batch_sizes=sizes)


def test_buckets():
    limits = ServeLimits(batch_sizes=(1, 2, 4))
    assert [limits.bucket(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 4]


def test_the_oldest_job_may_join_a_running_batch(running):
    runs, scheduler = running
    submitted(scheduler, [Wish("first")])
    assert runs.began.wait(5)
    jobs, *_ = submitted(scheduler, [Wish("1"), Wish("2", "b"), Wish("bad")])
    asked = []

    def fits(request, waiting):
        asked.append((request.name, waiting))
        return True

    assert runs.join(lambda *_: False) is None
    assert runs.join(fits) is jobs[0]
    assert asked == [("1", 2)]
    # The next one has another key, and the one behind it does not overtake it.
    assert runs.join(fits) is None
    jobs[1].cancel()
    assert runs.join(fits) is jobs[2]
    assert runs.join(fits) is None
    assert scheduler.waiting == 0


def test_jobs_that_joined_get_the_error_of_their_batch(running):
    runs, scheduler = running
    submitted(scheduler, [Wish("bad")])
    assert runs.began.wait(5)
    _, found, done = submitted(scheduler, [Wish("1")])
    assert runs.join(lambda *_: True) is not None
    runs.go.set()
    assert done[0].wait(5)
    assert isinstance(found[0][1], ValueError)

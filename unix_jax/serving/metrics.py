"""Metrics in Prometheus' form."""

import time
from collections.abc import Callable

from unix_jax.extras import needed

with needed("prometheus_client", "the API server", "unix-jax[serve]"):
    import prometheus_client as prometheus

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server.

    Args:
      batch_sizes: the buckets of the batch histogram.
    """

    def __init__(self, batch_sizes: tuple[int, ...]) -> None:
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self._requests = prometheus.Counter(
            "unix_jax_requests", "Responses by path and status.", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = prometheus.Histogram(
            "unix_jax_request_seconds", "Seconds from a request to the end of its response.",
            ["path"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._waited = prometheus.Histogram(
            "unix_jax_waiting_seconds", "Seconds that a request waited for the model.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._rows = prometheus.Histogram(
            "unix_jax_batch_rows", "Rows of a batch that were requested.", ["kind"],
            buckets=batch_sizes, registry=registry,
        )  # fmt: skip
        self._padding = prometheus.Counter(
            "unix_jax_padding_rows", "Rows that fill batches up to their size.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self._joined = prometheus.Counter(
            "unix_jax_joined_reports", "Reports that were given a row of a running batch.",
            registry=registry,
        )  # fmt: skip
        self._tokens = prometheus.Counter(
            "unix_jax_generated_tokens", "Tokens of reports.", registry=registry
        )
        self._images = prometheus.Counter(
            "unix_jax_generated_images", "Generated images.", registry=registry
        )
        self._cancelled = prometheus.Counter(
            "unix_jax_cancelled_requests", "Requests whose computation ended early.",
            registry=registry,
        )  # fmt: skip
        self._gauges = {
            name: prometheus.Gauge(f"unix_jax_{name}", text, registry=registry)
            for name, text in (
                ("waiting_requests", "Requests that wait for the model."),
                ("open_requests", "Requests that are received, wait or are computed."),
            )
        }

    def watch(self, *, waiting: Callable[[], float], opened: Callable[[], float]) -> None:
        """Sets the functions that return the present numbers of requests."""
        self._gauges["waiting_requests"].set_function(waiting)
        self._gauges["open_requests"].set_function(opened)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a response."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def began(self, arrived: float) -> None:
        """Counts a job that arrived at this time of `time.monotonic`, and is now computed."""
        self._waited.observe(time.monotonic() - arrived)

    def joined(self, arrived: float) -> None:
        """Counts a job as `began`, which was given a row of a running batch."""
        self.began(arrived)
        self._joined.inc()

    def batch(self, kind: str, rows: int, size: int) -> None:
        """Counts a batch of `rows` that was padded to `size`."""
        self._rows.labels(kind).observe(rows)
        self._padding.labels(kind).inc(size - rows)

    def tokens(self, count: int) -> None:
        """Counts tokens of reports."""
        self._tokens.inc(count)

    def images(self, count: int) -> None:
        """Counts generated images."""
        self._images.inc(count)

    def cancelled(self) -> None:
        """Counts a job that was cancelled while it was computed."""
        self._cancelled.inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return prometheus.generate_latest(self._registry)

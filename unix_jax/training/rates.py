"""How fast a run is: tokens per second and the utilisation of the devices, between two lines."""

import contextlib
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from unix_jax.training import flops
from unix_jax.training.feed import Fed
from unix_jax.training.stages import Stage


class Rates:
    """Counts work and time since the last line; validation, previews and checkpoints are no part
    of either."""

    def __init__(self, stage: Stage, mesh: Mesh) -> None:
        self._stage, self._mesh = stage, mesh
        self.start()

    def start(self) -> None:
        """Begins to count."""
        self._tokens, self._flops, self._since = 0, 0.0, time.monotonic()

    def add(self, fed: Fed) -> None:
        """Counts a step over this batch."""
        self._tokens += fed.info.und_tokens + fed.info.gen_tokens
        self._flops += self._stage.batch_flops(fed.host) * jax.process_count()

    def take(self) -> dict[str, float | None]:
        """`tokens_per_second` and `mfu` since the last call."""
        seconds = time.monotonic() - self._since
        device = self._mesh.devices.flat[0]
        found = {
            "tokens_per_second": self._tokens / seconds,
            "mfu": flops.utilisation(self._flops, seconds, self._mesh.size, device),
        }
        self.start()
        return found

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        begin = time.monotonic()
        yield
        self._since += time.monotonic() - begin

"""Limits of a server and of its requests."""

import dataclasses

from unix_jax.config import UniXConfig
from unix_jax.errors import UniXError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Limits of a server.

    Attributes:
      batch_sizes: the numbers of rows that are computed together, ascending. A smaller batch is
        padded to the next one.
      window: seconds that the first request waits for others when the model is idle.
      waiting: requests that may wait or be received, in addition to the largest batch; further ones
        are refused.
      seconds: of a request, from its first byte to its last result.
      body_bytes: of a request.
      pixels: of each image in a request.
      images: X-rays of one report.
      new_tokens: of a report, and the default; None is half of the model's positions, at most 500.
      steps: of a generated image.
      prompt_letters: characters of a text.
      programs: shapes of batches whose compiled programs stay in memory.
    """

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    window: float = 0.01
    waiting: int = 64
    seconds: float = 120.0
    body_bytes: int = 64 * 2**20
    pixels: int = 50_000_000
    images: int = 4
    new_tokens: int | None = None
    steps: int = 200
    prompt_letters: int = 4000
    programs: int = 24

    def __post_init__(self) -> None:
        sizes = tuple(sorted(set(self.batch_sizes)))
        if not sizes or sizes[0] < 1 or sizes != self.batch_sizes:
            raise UniXError(
                "--batch-sizes: expected different integers of at least 1, the smallest first, "
                f"found {' '.join(map(str, self.batch_sizes)) or 'none'}"
            )

    @property
    def largest_batch(self) -> int:
        """Rows of the largest batch."""
        return self.batch_sizes[-1]

    def bucket(self, rows: int) -> int:
        """The smallest batch size of at least `rows`."""
        return next(size for size in self.batch_sizes if size >= rows)

    def report_tokens(self, config: UniXConfig) -> int:
        """Maximum tokens of a report: half of the positions are kept for X-rays and prompt.

        Raises:
          UniXError: more tokens than that.
        """
        most = config.decoder.max_position_embeddings // 2
        if self.new_tokens is None:
            return min(500, most)
        if self.new_tokens > most:
            raise UniXError(
                f"--max-new-tokens: expected at most {most}, half of the model's positions, "
                f"found {self.new_tokens}"
            )
        return self.new_tokens

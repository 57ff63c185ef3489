"""The command `unix-jax serve`: the API server."""

import dataclasses
import signal
import sys
import warnings
from pathlib import Path

from unix_jax.commands.model import Model, Quantized
from unix_jax.commands.terminal import say
from unix_jax.errors import ImageWarning, UniXError
from unix_jax.storage.arguments import require_least


@dataclasses.dataclass
class Serve(Quantized, Model):
    """Serve reports and generated X-rays by OpenAI's protocol, with dynamic batching.

    POST /v1/chat/completions takes an X-ray as a data URL and returns a report, on request as a
    stream. POST /v1/images/generations takes a text and returns X-rays. GET /v1/models, /health and
    /metrics describe the server. By default only this machine can connect. The environment variable
    UNIX_JAX_API_KEY sets the API key.

    For example:
        unix-jax serve
        unix-jax serve --checkpoint CHECKPOINT --port 8080 --batch-sizes 1 4 16
        UNIX_JAX_API_KEY=SECRET unix-jax serve --host 0.0.0.0 --allow-host xrays.example.org
    """

    host: str = "127.0.0.1"
    """Address to listen on. Another than this machine's own requires UNIX_JAX_API_KEY."""
    port: int = 8000
    """Port to listen on; 0 selects a free one."""
    allow_host: tuple[str, ...] = ()
    """Further host names in the Host header of requests, for example that of a reverse proxy."""
    without_key: bool = False
    """Allow requests without a key from other machines, where a proxy checks them already."""
    model_name: str | None = None
    """The model's name in the protocol. The default is the name of the checkpoint's directory."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of requests that are computed together, the smallest first. A smaller batch is padded
    to the next size. Each size is compiled once."""
    window_ms: float = 10.0
    """Milliseconds that the first request waits for others while the model is idle."""
    max_waiting: int = 64
    """Number of requests that may wait in addition to the largest batch; further ones are refused
    with status 429."""
    timeout: float = 120.0
    """Maximum seconds of a request, including the time that it waits."""
    max_body_mb: int = 64
    """Maximum size of a request in MB."""
    max_megapixels: int = 50
    """Maximum size of a decoded image in megapixels."""
    max_new_tokens: int | None = None
    """Maximum number of tokens per report. The default is half of the model's positions, at most
    500."""
    warm_up: bool = True
    """Compile every batch size before the first request."""

    def run(self) -> None:
        require_least(
            self,
            window_ms=0,
            max_waiting=0,
            timeout=1,
            max_body_mb=1,
            max_megapixels=1,
            max_new_tokens=1,
        )
        from unix_jax.serving.server import api_key, require_packages, serving

        require_packages()
        from unix_jax.inference.warming import warm_up
        from unix_jax.serving.limits import ServeLimits
        from unix_jax.web.addresses import free_port
        from unix_jax.web.hosts import AllowedHosts

        limits = ServeLimits(
            batch_sizes=self.batch_sizes,
            window=self.window_ms / 1000,
            waiting=self.max_waiting,
            seconds=self.timeout,
            body_bytes=self.max_body_mb * 2**20,
            pixels=self.max_megapixels * 1_000_000,
            new_tokens=self.max_new_tokens,
        )
        # Before the model is loaded, so that a mistake is reported immediately.
        key = api_key(self.host, self.without_key)
        AllowedHosts.of(self.host, self.allow_host)
        free_port(self.host, self.port)
        if self.model_name is not None and not self.model_name.strip():
            raise UniXError("--model-name: expected a name, found an empty text")
        name = self.model_name or Path(self.checkpoint or self.directory).name
        pipe = self.load(quantization=self.quantization)
        limits.report_tokens(pipe.config)
        if self.warm_up:
            say("Compiling ...")
            most = limits.report_tokens(pipe.config)
            warm_up(pipe, self.batch_sizes, most, say, together=False)
        with serving(
            pipe,
            name,
            self.host,
            self.port,
            limits=limits,
            key=key,
            allow_hosts=self.allow_host,
        ) as server:
            protection = "without a key" if key is None else "with the key of UNIX_JAX_API_KEY"
            print(f"Serving {name} at {server.url}/v1 {protection} (Ctrl-C stops)", flush=True)
            # The response names an image with almost no content.
            warnings.simplefilter("ignore", ImageWarning)
            # Service managers stop a server this way.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            server.wait()

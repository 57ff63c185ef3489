"""The server: uvicorn on a thread of its own, so that the caller keeps the signals."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterable, Iterator

from unix_jax.errors import UniXError
from unix_jax.extras import require
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.serving.limits import ServeLimits
from unix_jax.web.addresses import is_loopback, listening_socket, url_of
from unix_jax.web.hosts import AllowedHosts

HOST, PORT = "127.0.0.1", 8000
KEY_VARIABLE = "UNIX_JAX_API_KEY"
_EXTRA = ("the API server", "unix-jax[serve]")
_LAST_SECONDS = 5  # that running requests have when the server stops


@dataclasses.dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
      url: its root, without a slash at its end.
    """

    url: str
    _thread: threading.Thread

    def wait(self) -> None:
        """Waits until the server has stopped by itself, which is an error.

        Raises:
          UniXError: it has stopped.
        """
        self._thread.join()
        raise UniXError("the server stopped; its log names the reason")


def require_packages() -> None:
    """Raises UniXError if a package of the extra is not installed."""
    for module in ("starlette", "uvicorn", "prometheus_client"):
        require(module, *_EXTRA)


def api_key(host: str, unprotected: bool) -> str | None:
    """The key that `UNIX_JAX_API_KEY` holds; None if clients need none.

    Args:
      host: the address to listen on.
      unprotected: whether other machines may connect without a key.

    Raises:
      UniXError: the key cannot be sent in a header, or other machines can connect and none is set.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UniXError(
                f"{KEY_VARIABLE}: expected printable ASCII characters without spaces, found "
                f"{'an empty text' if not key else 'others'}"
            )
        return key
    if not is_loopback(host) and not unprotected:
        raise UniXError(
            f"--host {host}: other machines can connect, and {KEY_VARIABLE} is not set; set it to "
            "a secret, or allow requests without a key with --without-key"
        )
    return None


@contextlib.contextmanager
def serving(
    pipe: UniXPipeline,
    name: str,
    host: str = HOST,
    port: int = PORT,
    *,
    limits: ServeLimits | None = None,
    key: str | None = None,
    allow_hosts: Iterable[str] = (),
) -> Iterator[RunningServer]:
    """Serves the API until the block ends.

    Args:
      pipe: the model, which only the server's model thread uses.
      name: its name in the protocol.
      host: the address to listen on; with 127.0.0.1 only this machine can connect.
      port: the port; 0 selects a free one.
      limits: limits of requests.
      key: the API key; None requires none.
      allow_hosts: further names in the Host header, such as that of a reverse proxy.

    Raises:
      UniXError: a package is not installed, a limit does not fit the model, or the host or port
        cannot be used.
    """
    require_packages()
    import uvicorn

    from unix_jax.serving.application import Application

    limits = limits or ServeLimits()
    limits.report_tokens(pipe.config)
    pipe.loaded.require_tokenizer()
    hosts = AllowedHosts.of(host, allow_hosts)
    application = Application(pipe, limits, name).starlette(hosts, key)
    opened = listening_socket(host, port)
    config = uvicorn.Config(
        application,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
        # A client that sends its headers slowly occupies one connection, not a request.
        timeout_keep_alive=30,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([opened],), name="server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise UniXError("the server did not start; its log names the reason")
            time.sleep(0.01)
        yield RunningServer(url_of(host, int(opened.getsockname()[1])), thread)
    finally:
        server.should_exit = True
        thread.join()
        opened.close()

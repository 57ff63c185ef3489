"""The web server: a queue before the model, no requests to other hosts, nothing left on disk."""

import contextlib
import logging
import os
import sys
import tempfile
import traceback
import types
from collections.abc import Iterable, Iterator
from typing import Any

from unix_jax.app.choices import Limits
from unix_jax.app.request_limits import Guard, log_failure
from unix_jax.app.style import require_gradio
from unix_jax.app.upload_budget import UploadBudget
from unix_jax.inference.diffusion import DiffusionPipeline
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.web.addresses import free_port
from unix_jax.web.guard import HostGuard
from unix_jax.web.hosts import AllowedHosts

HOST, PORT = "127.0.0.1", 7860


@contextlib.contextmanager
def serving(
    pipe: UniXPipeline | DiffusionPipeline,
    host: str = HOST,
    port: int = PORT,
    limits: Limits | None = None,
    allow_hosts: Iterable[str] = (),
    model: str = "",
) -> Iterator[str]:
    """Serves the page until the block ends; yields its address.

    Args:
      pipe: the model, shared by all visitors, one request at a time. With a `DiffusionPipeline`
        the page generates images only, and uploads are refused.
      host: the address to listen on; with 127.0.0.1 only this machine can connect.
      port: the port; 0 selects a free one.
      limits: limits of visitors' requests.
      model: the model's name on the page.
      allow_hosts: further names in the Host header, such as that of a reverse proxy.

    Raises:
      UniXError: Gradio is not installed, or the port or host cannot be used.
    """
    limits = limits or Limits()
    hosts = AllowedHosts.of(host, allow_hosts)
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="unix-jax-app-") as folder, _environment(folder):
        require_gradio()
        # Imported here: it reads the environment above.
        from starlette.middleware import Middleware

        from unix_jax.app import page as page_module
        from unix_jax.app.style import HEAD, theme

        page = page_module.build_page(pipe, limits, model)
        uploads = None
        if isinstance(pipe, UniXPipeline):
            uploads = UploadBudget(
                limits.visitor_bytes,
                limits.uploads_bytes,
                page_module.FILE_SECONDS + 2 * page_module.SWEEP_SECONDS,
            )
        page.queue(
            max_size=limits.waiting,
            default_concurrency_limit=2,
            status_update_rate=2,
            # Events that use the queue must not be callable without it.
            api_open=False,
        )
        with contextlib.ExitStack() as stack:
            stack.callback(page.close, verbose=False)
            stack.enter_context(_short_log())
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                inbrowser=False,
                share=False,
                quiet=True,
                show_error=False,
                allowed_paths=[],
                blocked_paths=[],
                max_file_size=limits.upload_bytes,
                max_threads=16,
                state_session_capacity=limits.sessions,
                enable_monitoring=False,
                run_history=False,
                mcp_server=False,
                pwa=False,
                ssr_mode=False,
                footer_links=[],
                app_kwargs={
                    "middleware": [
                        Middleware(HostGuard, hosts=hosts),
                        Middleware(
                            Guard,
                            upload_bytes=limits.upload_bytes,
                            uploads=uploads,
                            waiting=lambda session: _open_requests(page, session),
                            session_waiting=limits.session_waiting,
                        ),
                    ],
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                },
                theme=theme(),
                head=HEAD,
            )
            yield address


def _open_requests(page: Any, session: str) -> int:
    """The number of a session's requests that wait, are computed, or whose result is not read."""
    return len(page._queue.pending_event_ids_session.get(session, ()))


@contextlib.contextmanager
def _short_log() -> Iterator[None]:
    """Replaces the tracebacks that Gradio prints, which contain visitors' values, with one line."""
    import gradio

    modules: list[Any] = [gradio.queueing, gradio.routes, gradio.route_utils]
    before = [module.traceback for module in modules]

    class Short(types.ModuleType):
        def print_exc(self, *_: Any, **__: Any) -> None:
            log_failure(sys.exception())

    short = Short("traceback")
    short.__dict__.update({k: v for k, v in vars(traceback).items() if k != "print_exc"})
    for module in modules:
        module.traceback = short
    try:
        yield
    finally:
        for module, plain in zip(modules, before, strict=True):
            module.traceback = plain


@contextlib.contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Sets Gradio's options that only environment variables control; restored afterwards."""
    values = {
        "GRADIO_TEMP_DIR": folder,
        "GRADIO_EXAMPLES_CACHE": os.path.join(folder, "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    # httpx logs a line for every request to Gradio's own server.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

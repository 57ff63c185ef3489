"""The web server: a queue before the model, no requests to other hosts, nothing left on disk."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator

from unix_jax.app.choices import Limits
from unix_jax.app.style import require_gradio
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.web.addresses import free_port

HOST, PORT = "127.0.0.1", 7860


@contextlib.contextmanager
def serving(
    pipe: UniXPipeline, host: str = HOST, port: int = PORT, limits: Limits | None = None
) -> Iterator[str]:
    """Serves the page until the block ends; yields its address.

    Args:
      pipe: the model, shared by all visitors, one request at a time.
      host: the address to listen on; with 127.0.0.1 only this machine can connect.
      port: the port; 0 selects a free one.
      limits: limits of visitors' requests.

    Raises:
      UniXError: Gradio is not installed, or the port or host cannot be used.
    """
    limits = limits or Limits()
    port = free_port(host, port)
    with tempfile.TemporaryDirectory(prefix="unix-jax-app-") as folder, _environment(folder):
        require_gradio()
        # Imported here: it reads the environment above.
        from starlette.middleware import Middleware

        from unix_jax.app.page import build_page
        from unix_jax.app.request_limits import Guard
        from unix_jax.app.style import HEAD, theme

        page = build_page(pipe, limits)
        page.queue(
            max_size=limits.waiting,
            default_concurrency_limit=2,
            status_update_rate=2,
            # Events that use the queue must not be callable without it.
            api_open=False,
        )
        try:
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
                    "middleware": [Middleware(Guard, upload_bytes=limits.upload_bytes)],
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                },
                theme=theme(),
                head=HEAD,
            )
            yield address
        finally:
            page.close(verbose=False)


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

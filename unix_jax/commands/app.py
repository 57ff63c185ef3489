"""The command `unix-jax app`: the web page."""

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Literal

from unix_jax.storage.arguments import CheckpointText, refuse_without_effect, require_least


@dataclasses.dataclass
class App:
    """Serve a web page for reports of uploaded X-rays and for X-rays generated from text.

    By default the server listens only on this machine. It has no authentication: put a reverse
    proxy with authentication in front of it before others can reach it.

    For example:
        unix-jax app
        unix-jax app --checkpoint CHECKPOINT --port 8080 --max-upload-mb 20
    """

    checkpoint: CheckpointText | None = None
    """Converted checkpoint, directory in the published layout, diffusers folder or a checkpoint
    imported from one, or a name on the Hugging Face hub. The default is the bundled nano model.
    With a diffusers checkpoint the page generates images only."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of parameters and computation; a CPU always uses float32."""
    mesh: str | None = None
    """Devices that share the work, for example data=2,tensor=4. The default is one device."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on; 0 selects a free one."""
    allow_host: tuple[str, ...] = ()
    """Further host names in the Host header of requests, for example that of a reverse proxy."""
    max_upload_mb: int = 64
    """Maximum size of an uploaded file in MB."""
    max_visitor_mb: int = 256
    """Maximum size of the uploads of one address within twelve minutes, in MB."""
    max_uploads_mb: int = 512
    """Maximum size of the uploads of all visitors within twelve minutes, in MB. They are on disk
    for this time."""
    max_megapixels: int = 50
    """Maximum size of a decoded image in megapixels."""
    max_waiting: int = 32
    """Number of requests that may wait for the model; further ones are refused."""
    max_session_waiting: int = 4
    """Number of requests of one session that may wait or be computed; further ones are refused."""

    warm_up: bool = True
    """Compile the default settings before the page is served."""

    def run(self) -> None:
        require_least(self, max_upload_mb=1, max_megapixels=1, max_waiting=1, max_session_waiting=1)
        # A visitor can upload one file of the largest size, and so can the visitors together.
        require_least(self, max_visitor_mb=self.max_upload_mb, max_uploads_mb=self.max_visitor_mb)
        from unix_jax.app.bundled import checkpoint_path
        from unix_jax.app.choices import Limits, default_tokens
        from unix_jax.app.server import serving
        from unix_jax.app.style import require_gradio
        from unix_jax.checkpoints.configurations import is_diffusers
        from unix_jax.checkpoints.run_export import resolve_checkpoint
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.inference.pipeline import UniXPipeline
        from unix_jax.inference.warming import warm_up, warm_up_diffusion
        from unix_jax.sharding import parse_mesh
        from unix_jax.web.hosts import AllowedHosts

        require_gradio()
        AllowedHosts.of(self.host, self.allow_host)
        path = checkpoint_path(self.checkpoint)
        print(f"Loading {path} ...", flush=True)
        mesh = None if self.mesh is None else parse_mesh(self.mesh)
        directory = resolve_checkpoint(path)
        kind = DiffusionPipeline if is_diffusers(directory) else UniXPipeline
        if kind is DiffusionPipeline:
            uploading = ("max_upload_mb", "max_visitor_mb", "max_uploads_mb", "max_megapixels")
            where = f"with a diffusers checkpoint, {directory}: its page takes no uploads"
            refuse_without_effect(self, uploading, where)
        pipe = kind.from_pretrained(directory, dtype=self.dtype, mesh=mesh)
        if self.warm_up:
            print("Compiling ...", flush=True)
            if isinstance(pipe, UniXPipeline):
                warm_up(pipe, (1,), default_tokens(pipe.config, Limits()), print)
            else:
                warm_up_diffusion(pipe, print)
        limits = Limits(
            upload_bytes=self.max_upload_mb * 2**20,
            pixels=self.max_megapixels * 1_000_000,
            visitor_bytes=self.max_visitor_mb * 2**20,
            uploads_bytes=self.max_uploads_mb * 2**20,
            waiting=self.max_waiting,
            session_waiting=self.max_session_waiting,
        )
        with serving(
            pipe, self.host, self.port, limits, self.allow_host, Path(path).name
        ) as address:
            print(f"Open {address} (Ctrl-C stops the server)", flush=True)
            # Service managers stop a server this way; uploaded files must be deleted then, too.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            while True:
                time.sleep(3600)

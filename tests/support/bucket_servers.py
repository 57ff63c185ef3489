"""Servers of buckets on loopback: gcp-storage-emulator for `gs://`, moto for `s3://`.

Clients talk to a proxy before the server. It adds delays and faults, and refuses to overwrite an
object where `ifGenerationMatch=0` asks for that, which the emulator does not know.
"""

import contextlib
import http.client
import os
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from unix_jax.storage import buckets

BUCKET = "bucket"


class Proxy:
    """Forwards requests to a server.

    Attributes:
      address: http://HOST:PORT.
      delay: seconds before each answer.
      fault: called with (method, path); returns a status to answer with, "reset" to close the
        connection in the middle of the answer, "silence" to answer nothing for a second, or None.
      requests: (method, path) of each request.
      most: the largest number of requests that were under way at the same time.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        self.fault: Callable[[str, str], int | str | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self.most = self._under_way = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def forward(self) -> None:
                proxy._count(1)
                try:
                    self._forward()
                finally:
                    proxy._count(-1)

            def _forward(self) -> None:
                proxy.requests.append((self.command, self.path))
                body = self._body()
                time.sleep(proxy.delay)
                fault = proxy.fault(self.command, self.path)
                if isinstance(fault, int):
                    self._answer(fault, [("Retry-After", "0")], b"{}")
                    return
                if fault == "silence":
                    time.sleep(1.0)
                    self.close_connection = True
                    return
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                if query.get("ifGenerationMatch") == ["0"] and self.command == "POST":
                    with proxy._lock:
                        if proxy._exists(host, port, query, self.path, body):
                            self._answer(412, [], b"{}")
                            return
                        self._answer(*self._asked(host, port, body))
                    return
                self._answer(*self._asked(host, port, body), reset=fault == "reset")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = forward

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def _asked(
                self, host: str, port: int, body: bytes
            ) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(host, port)
                headers = {k: v for k, v in self.headers.items() if k != "Transfer-Encoding"}
                headers["Content-Length"] = str(len(body))
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                return answer.status, answer.getheaders(), content

            def _answer(
                self, status: int, headers: list[tuple[str, str]], content: bytes,
                reset: bool = False,
            ) -> None:  # fmt: skip
                self.send_response_only(status)
                kept = ("transfer-encoding", "content-length", "connection")
                length = str(len(content))
                for name, value in headers:
                    if name.lower() not in kept:
                        self.send_header(name, value)
                    elif name.lower() == "content-length" and self.command == "HEAD":
                        length = value
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content[: len(content) // 2] if reset else content)
                if reset:
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _count(self, change: int) -> None:
        with self._lock:
            self._under_way += change
            self.most = max(self.most, self._under_way)

    def _exists(self, host: str, port: int, query: dict, path: str, body: bytes) -> bool:
        bucket = path.partition("/b/")[2].partition("/")[0]
        name = query.get("name", [""])[0]
        if not name:
            start = body.find(b'"name": "') + len(b'"name": "')
            name = body[start : body.find(b'"', start)].decode()
        connection = http.client.HTTPConnection(host, port)
        quoted = urllib.parse.quote(name, safe="")
        connection.request("GET", f"/storage/v1/b/{bucket}/o/{quoted}")
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status == 200

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of this process, and file systems that read them anew."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    buckets._system.cache_clear()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
        buckets._system.cache_clear()


@contextlib.contextmanager
def gcs() -> Iterator[Proxy]:
    """Google Cloud Storage with an empty bucket, to which `gs://` leads meanwhile."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    proxy = Proxy("127.0.0.1", server._api._httpd.socket.getsockname()[1])
    try:
        with environment(
            {
                "STORAGE_EMULATOR_HOST": proxy.address,
                "TENSORSTORE_GCS_HTTP_URL": proxy.address,
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
        ):
            yield proxy
    finally:
        proxy.close()
        server.stop()


@contextlib.contextmanager
def s3() -> Iterator[Proxy]:
    """Amazon S3 with an empty bucket, to which `s3://` leads meanwhile."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(*server.get_host_and_port())
    # Its buckets outlive a server within one process.
    reset = urllib.request.Request(f"{proxy.address}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    try:
        with environment(
            {
                "AWS_ENDPOINT_URL": proxy.address,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION": "us-east-1",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        ):
            buckets._system("s3").mkdir(BUCKET)
            yield proxy
    finally:
        proxy.close()
        server.stop()

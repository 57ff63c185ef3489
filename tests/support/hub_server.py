"""A stub of the Hugging Face hub on loopback: the endpoints that downloads and uploads use.

`serving(folder)` publishes every folder `folder/OWNER/NAME` as a model repository and every
`folder/datasets/OWNER/NAME` as a data set. Large files are pushed by LFS, as on the hub.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"
LFS_FROM = 1000  # bytes
_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<rest>.*))?")
_FILE = re.compile(
    r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<sha>[^/]+)/(?P<file>.*)"
)


class Hub(http.server.ThreadingHTTPServer):
    """`requests`: (method, path) of every request. `gated`, `private`: repositories that refuse.

    `broken`: paths of files that are listed and cannot be had; `token`: that which may write.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = Path(folder)
        self.requests, self.uploads, self.commits = [], {}, []
        self.gated, self.private, self.broken = set(), set(), set()
        self.token = "hf_writer"
        self.down = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, kind, name):
        folder = (
            self.folder / "datasets" / name if kind.startswith("datasets") else self.folder / name
        )
        return folder if folder.is_dir() else None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def _answer(self, code, body=b"", **headers):
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, code, kind):
        self._answer(code, {"error": kind}, X_Error_Code=kind, X_Error_Message=kind)

    def _begin(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        if self.server.down:
            self._answer(503, {"error": "down"})
            return None
        return path

    def _repository(self, match):
        name = match["name"]
        if name in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif name in self.server.private:
            self._refuse(401, "RepoNotFound")
        elif folder := self.server.repository(match["kind"] or "models", name):
            return folder
        else:
            self._refuse(404, "RepoNotFound")
        return None

    def do_GET(self):
        path = self._begin()
        if path is None:
            return
        if match := _API.fullmatch(path):
            folder = self._repository(match)
            if folder is not None:
                self._api(folder, match["name"], match["rest"] or "")
        elif match := _FILE.fullmatch(path):
            folder = self._repository(match)
            if folder is not None:
                self._file(folder, match["file"])
        else:
            self._answer(404)

    do_HEAD = do_GET

    def _api(self, folder, name, rest):
        what, _, revision = rest.partition("/")
        if revision not in ("", "main", "v1", SHA):
            self._refuse(404, "RevisionNotFound")
        elif what == "tree":
            files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
            self._answer(200, [_entry(f, f.relative_to(folder).as_posix()) for f in files])
        else:
            self._answer(200, {"id": name, "sha": SHA, "siblings": [], "tags": []})

    def _file(self, folder, name):
        file = folder / name
        if not file.is_file() or name in self.server.broken:
            self._refuse(404, "EntryNotFound")
            return
        data = file.read_bytes()
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        headers = {"ETag": etag, "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
        if ranged := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(ranged[1]), int(ranged[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            self._answer(206, data[start : end + 1], **headers)
        else:
            self._answer(200, data, **headers)

    # --- uploads ---------------------------------------------------------------------------------

    def do_POST(self):
        path, body = self._begin(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        if path is None:
            return
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self._answer(200, {"objects": objects, "transfer": "basic"})
        elif match := _API.fullmatch(path):
            folder = self._repository(match)
            if folder is not None and match["rest"].startswith("preupload/"):
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            elif folder is not None:
                self._commit(folder, match["name"], body)
        else:
            self._answer(404)

    def do_PUT(self):
        path = self._begin()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if path is not None:
            self.server.uploads[path.rpartition("/")[2]] = data
            self._answer(200)

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        known = self.server.repository("models", name) is not None
        (self.server.folder / name).mkdir(parents=True, exist_ok=True)
        url = f"{self.server.url}/{name}"
        self._answer(
            409 if known else 200, {"url": url, "error": "exists"} if known else {"url": url}
        )

    def _commit(self, folder, name, body):
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                self.server.commits.append(value["summary"])
                continue
            if item["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                continue
            if item["key"] == "file":
                data = base64.b64decode(value["content"])
            else:
                data = self.server.uploads[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(data)
        url = f"{self.server.url}/{name}/commit/{SHA}"
        self._answer(200, {"commitUrl": url, "commitOid": SHA, "pullRequestUrl": None})

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _entry(file, name):
    data = file.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextlib.contextmanager
def serving(folder):
    """The hub, answering in threads of its own."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def use(monkeypatch, url, cache, *, offline=False):
    """Points the client of this process at a hub: it read the environment when it was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(Path(cache) / "no-token"))
    hub_cache_clear()


def hub_cache_clear():
    """Forgets which commit a name means, as a new process does."""
    from unix_jax.storage import hub

    hub._listing.cache_clear()


def command(arguments, url, cache, **environment):
    """`unix-jax ARGUMENTS` in a process of its own, as a user of this hub runs it."""
    return subprocess.run(
        [sys.executable, "-m", "unix_jax", *map(str, arguments)],
        # The page of other tests sets HF_HUB_OFFLINE.
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        | {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )

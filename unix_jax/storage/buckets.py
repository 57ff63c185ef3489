"""Objects of Google Cloud Storage (`gs://BUCKET/NAME`) and Amazon S3 (`s3://BUCKET/NAME`).

The packages gcsfs and s3fs do the work, with the credentials that they find themselves. They are
imported when the first URL comes. What they raise becomes a StorageError of one line. Requests that
fail for a passing reason (503, timeouts, resets) are repeated with increasing delays.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from unix_jax.errors import StorageError, UniXError
from unix_jax.extras import needed

_URL = re.compile(r"\s*(?P<scheme>gs|s3):/+(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}")
# scheme -> (name in fsspec, package, extra)
_SYSTEMS = {"gs": ("gcs", "gcsfs", "gcs"), "s3": ("s3", "s3fs", "s3")}
_ADVICE = {
    "gs": "log in with `gcloud auth application-default login`, or set "
    "GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in with `aws configure`",
}
# The libraries repeat a request up to six times themselves. After this time and this number of
# attempts none is added.
_PATIENCE = 60.0
_ATTEMPTS = 3
# Seconds without a byte after which a connection counts as broken. A download as a whole may take
# any time.
_SILENCE = 60.0
_THREADS = 8
_SMALL = 1 << 23

T = TypeVar("T")


class MissingError(StorageError):
    """There is no such object or bucket."""


class ExistsError(StorageError):
    """An object that was to be created exists already."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object: its size in bytes, a tag of its content, and the time of its last change."""

    size: int
    tag: str
    time: float


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a text or path is a URL of a bucket, also after `pathlib` has removed a slash."""
    return isinstance(path, str | os.PathLike) and bool(_URL.match(os.fsdecode(path)))


def bucket_url(path: str | os.PathLike[str], argument: str | None = None) -> str:
    """The URL in its usual form: `gs://BUCKET/NAME`, without a final slash.

    Raises:
      StorageError: no name of a bucket, or a name with `..` in it.
    """
    text = os.fsdecode(path)
    match = _URL.match(text)
    front = f"{argument}: " if argument else ""
    parts = [part for part in match["rest"].split("/") if part not in ("", ".")] if match else []
    if match is None or not parts or not _BUCKET.fullmatch(parts[0]) or ".." in parts:
        raise StorageError(f"{front}expected gs://BUCKET/NAME or s3://BUCKET/NAME, found {text}")
    return f"{match['scheme'].lower()}://{'/'.join(parts)}"


def join(url: str, name: str) -> str:
    """The URL of a name below another one."""
    return f"{url.rstrip('/')}/{name}" if name else url


# --- reading -------------------------------------------------------------------------------------


def entries(url: str) -> dict[str, Entry]:
    """The objects below a URL by their names relative to it; {"": ...} where it is one itself.

    Raises:
      StorageError: no such bucket, no permission, or it cannot be reached.
    """
    path = _path(url)
    missing = f"no such bucket {_front(url)}"
    found = _call(url, lambda system: system.find(path, detail=True), missing)
    start = f"{path}/"
    return {
        name.removeprefix(start) if name != path else "": _entry(info)
        for name, info in sorted(found.items())
        if not name.endswith("/") and (name == path or name.startswith(start))
    }


def entry(url: str) -> Entry | None:
    """The object of a URL, or None; a name that only other names begin with is none."""
    info = _info(url)
    return _entry(info) if info and info.get("type") == "file" else None


def is_folder(url: str) -> bool:
    """Whether there are objects below a URL."""
    info = _info(url)
    return info is not None and info.get("type") == "directory"


def _info(url: str) -> Mapping[str, Any] | None:
    try:
        return _call(url, lambda system: system.info(_path(url)))
    except MissingError:
        return None


def children(url: str) -> dict[str, bool]:
    """The names directly below a URL, each with whether it is an object; {} if there are none."""
    path = _path(url)
    try:
        found = _call(url, lambda system: system.ls(path, detail=True))
    except MissingError:
        return {}
    names = {info["name"].rstrip("/"): info.get("type") == "file" for info in found}
    start = f"{path}/"
    return {n.removeprefix(start): kind for n, kind in names.items() if n.startswith(start)}


def read(url: str, limit: int | None = None) -> bytes:
    """The content of an object, or its first `limit` bytes.

    Raises:
      MissingError: there is none. StorageError: it cannot be read.
    """

    def request(system: Any) -> bytes:
        span = {} if limit is None else {"start": 0, "end": limit}
        try:
            return system.cat_file(_path(url), **span)
        except OSError as error:
            # An empty object has no range of bytes.
            if limit is not None and error.errno == errno.EINVAL:
                return b""
            raise

    return _call(url, request)


def download(url: str, target: Path, expected: Entry) -> None:
    """Writes an object into a file, atomically, with the time of its last change."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")

    def fetch(system: Any) -> None:
        system.get_file(_path(url), str(temporary))
        if temporary.stat().st_size != expected.size:
            raise OSError(
                errno.EIO, f"expected {expected.size} bytes, found {temporary.stat().st_size}"
            )

    try:
        _call(url, fetch)
        os.utime(temporary, (expected.time, expected.time))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def download_all(url: str, wanted: Mapping[str, Entry], folder: Path) -> None:
    """Writes objects below a URL into a folder, several at a time."""
    run_all(
        functools.partial(download, join(url, name), folder / name, found)
        for name, found in wanted.items()
    )


# --- writing -------------------------------------------------------------------------------------


def write(url: str, data: bytes) -> None:
    """Writes an object in one request: it has the old content or the new."""
    _call(url, lambda system: _put(system, url, data), f"no such bucket {_front(url)}")


def create(url: str, data: bytes) -> bool:
    """Writes an object only if it does not exist, atomically; returns whether it was written."""
    try:
        _call(
            url,
            lambda system: _put(system, url, data, mode="create"),
            f"no such bucket {_front(url)}",
        )
    except ExistsError:
        # A repeated request may have met its own first attempt.
        return read(url) == data
    return True


def _put(system: Any, url: str, data: bytes, mode: str = "overwrite") -> None:
    if not data or not url.startswith("gs://"):
        system.pipe_file(_path(url), data, mode=mode)
        return
    # gcsfs sends small objects as multipart with bare line feeds, where a carriage return at the
    # end of the data may be taken for a part of the boundary. This form has no boundaries.
    bucket, _, name = _path(url).partition("/")
    condition = {"ifGenerationMatch": "0"} if mode == "create" else {}
    try:
        written = system.call(
            "POST", f"{system._location}/upload/storage/v1/b/{bucket}/o", uploadType="media",
            name=name, headers={"Content-Type": "application/octet-stream"}, data=data,
            json_out=True, **condition,
        )  # fmt: skip
    except Exception as error:
        if str(getattr(error, "code", "")) == "412":
            raise FileExistsError(url) from error
        raise
    if int(written["size"]) != len(data):
        raise OSError(errno.EIO, f"expected {len(data)} bytes written, found {written['size']}")


def upload(file: Path, url: str) -> None:
    """Writes a local file as an object.

    Raises:
      FileNotFoundError: the file has gone meanwhile.
      StorageError: it cannot be written.
    """
    if file.stat().st_size < _SMALL:
        write(url, file.read_bytes())
        return

    def send(system: Any) -> None:
        system.put_file(str(file), _path(url))

    _call(url, send, f"no such bucket {_front(url)}")


def delete(url: str) -> None:
    """Deletes an object, if it exists."""
    with contextlib.suppress(MissingError):
        _call(url, lambda system: system.rm_file(_path(url)))


def run_all(actions: Iterable[Callable[[], Any]]) -> None:
    """Calls all of them, several at a time; raises the first error after all have ended."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(action) for action in actions]
    for future in futures:
        future.result()


# --- the libraries -------------------------------------------------------------------------------


@functools.cache
def _system(scheme: str) -> Any:
    name, package, extra = _SYSTEMS[scheme]
    # Its look-up of hierarchical buckets needs another service and other permissions.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    with needed(package, f"{scheme}://", f"unix-jax[{extra}]"):
        import fsspec

        kind = fsspec.get_filesystem_class(name)
    # Their own records say again, with tracebacks, what is raised.
    for logger in ("gcsfs", "s3fs", "botocore", "aiobotocore"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return kind(use_listings_cache=False, skip_instance_cache=True, **_timeouts(scheme))


def _timeouts(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        return {"config_kwargs": {"connect_timeout": _SILENCE, "read_timeout": _SILENCE}}
    import aiohttp

    limit = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"requests_timeout": limit}


def _path(url: str) -> str:
    return url.partition("://")[2]


def _front(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _call(url: str, request: Callable[[Any], T], missing: str = "no such object") -> T:
    """The result of a request, which is repeated where it fails for a passing reason.

    Raises:
      MissingError, ExistsError, StorageError: in one line that names the URL.
      FileNotFoundError: a local file.
    """
    scheme = url.partition("://")[0]
    start, delay = time.monotonic(), 0.5
    for attempt in itertools.count(1):
        try:
            return request(_system(scheme))
        except UniXError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                if error.errno == errno.ENOENT and error.filename:  # a local one
                    raise
                raise MissingError(f"{url}: {missing}") from error
            if isinstance(error, FileExistsError):
                raise ExistsError(f"{url}: exists already") from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if (problem := _refusal(error, scheme)) is not None:
                raise StorageError(f"{url}: {problem}") from error
            if attempt >= _ATTEMPTS and time.monotonic() - start > _PATIENCE:
                raise StorageError(f"{url}: cannot be reached: {_one_line(error)}") from error
        time.sleep(delay * (1 + random.random()))
        delay = min(2 * delay, 16.0)
    raise AssertionError


def _refusal(error: BaseException, scheme: str) -> str | None:
    """Why a request is refused, which repeating it does not change; None for a passing reason."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    names = {kind.__name__ for found in chain for kind in type(found).__mro__}
    code = str(getattr(error, "code", "") or "")
    text = _one_line(error)
    if names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"} or (
        code == "401" or "nonymous caller" in text
    ):
        return f"no credentials; {_ADVICE[scheme]}"
    if names & {"RefreshError", "CredentialRetrievalError", "TokenRetrievalError"} or any(
        word in text for word in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
    ):
        return f"the credentials are not valid ({text}); {_ADVICE[scheme]}"
    if isinstance(error, PermissionError) or code == "403" or text.startswith("Forbidden"):
        return f"no permission ({text}); {_ADVICE[scheme]}"
    if isinstance(error, ValueError | TypeError | NotImplementedError) or code == "400":
        return f"the request was refused: {text}"
    return None


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _entry(info: Mapping[str, Any]) -> Entry:
    tag = next(
        (info[key] for key in ("crc32c", "md5Hash", "ETag", "etag", "generation") if info.get(key)),
        "",
    )
    changed = info.get("LastModified") or info.get("updated") or info.get("mtime") or 0.0
    if isinstance(changed, str):
        changed = datetime.datetime.fromisoformat(changed.replace("Z", "+00:00"))
    if isinstance(changed, datetime.datetime):
        changed = changed.timestamp()
    return Entry(int(info.get("size") or 0), str(tag).strip('"'), float(changed))

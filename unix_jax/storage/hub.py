"""Repositories of the Hugging Face hub as sources of files.

A name is `OWNER/NAME`, `OWNER/NAME@REVISION`, or `hf://OWNER/NAME@REVISION/FOLDER_OR_FILE`, where
revision and path may be absent. A local path wins over a name without `hf://`. Files are downloaded
into the hub's own cache; `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` act as in every
program that uses `huggingface_hub`.
"""

import contextlib
import dataclasses
import functools
import glob
import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from unix_jax.errors import StorageError, UniXError
from unix_jax.storage import bucket_cache
from unix_jax.storage.buckets import bucket_url, is_bucket
from unix_jax.storage.paths import is_url, local_path

Kind = Literal["model", "dataset"]
# (names of the files in the folder that is meant, file of it that is meant or None) -> those needed
Select = Callable[[Sequence[str], str | None], Sequence[str]]

_REPOSITORY = r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
_NAME = re.compile(rf"{_REPOSITORY}(@(?P<revision>[^@\s]+))?")
_URL = re.compile(
    r"hf:/+(?P<kind>models/|datasets/)?"
    rf"{_REPOSITORY}(@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?(/(?P<inside>.*))?"
)
# `weights/model.bin` is a file that is not there rather than a repository.
_FILE = re.compile(
    r".*\.(safetensors|bin|ckpt|pth?|json|jsonl|csv|parquet|txt|ya?ml|png|jpe?g|dcm)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository, or a folder or file in one.

    Attributes:
      repository: OWNER/NAME.
      revision: a branch, tag or commit; None for the default branch.
      inside: path of the folder or file in the repository, "" for all of it.
      kind: `model` or `dataset`.
    """

    repository: str
    revision: str | None = None
    inside: str = ""
    kind: Kind = "model"

    def __str__(self) -> str:
        kind = "datasets/" if self.kind == "dataset" else ""
        revision = "" if self.revision is None else f"@{self.revision}"
        inside = f"/{self.inside}" if self.inside else ""
        return f"hf://{kind}{self.repository}{revision}{inside}"


def parse_name(text: str | os.PathLike[str], argument: str | None = None) -> HubName | None:
    """The name that a text has the form of, or None; the form alone counts.

    Raises:
      StorageError: it begins with `hf://` and has not the form of a name.
    """
    text = os.fsdecode(text)
    front = "" if argument is None else f"{argument}: "
    if re.match(r"\s*hf:/", text, re.IGNORECASE):
        match = _URL.fullmatch(text.strip())
        inside = (match["inside"] or "").strip("/") if match else ""
        if match is None or ".." in inside.split("/"):
            raise StorageError(
                f"{front}expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION or "
                f"hf://OWNER/NAME/FOLDER_OR_FILE, found {text}"
            )
        kind: Kind = "dataset" if match["kind"] == "datasets/" else "model"
        revision = match["revision"] and urllib.parse.unquote(match["revision"])
        return HubName(match["repository"], revision, inside, kind)
    match = _NAME.fullmatch(text)
    if match is None or _FILE.fullmatch(match["repository"]):
        return None
    return HubName(match["repository"], match["revision"])


def path_or_name(path: str | os.PathLike[str], argument: str | None = None) -> str:
    """The text of a local path, a URL of a bucket or a name on the hub; nothing is looked up.

    Raises:
      StorageError: another URL, an empty text, or no path at all.
    """
    if is_bucket(path):
        return bucket_url(path, argument)
    if isinstance(path, str | os.PathLike) and _is_hub_url(os.fsdecode(path)):
        parse_name(path, argument)
        return os.fsdecode(path)
    return os.fspath(local_path(path, argument))


def located(path: str | os.PathLike[str], select: Select, argument: str | None = None) -> Path:
    """A local path as it is; what is on the hub or in a bucket is downloaded if it is not cached.

    Args:
      path: a local path, a name, or a URL of a bucket (`unix_jax.storage.bucket_cache`).
      select: chooses the files that are needed.
      argument: what errors call the path, such as `--checkpoint`.

    Returns:
      The local path. A path that does not exist and cannot be a name is returned, too.

    Raises:
      StorageError: another URL; a repository or file that is not there, is restricted, or cannot be
        reached. What `select` raises.
    """
    text = path_or_name(path, argument)
    if is_bucket(text):
        return bucket_cache.fetch(text, select)
    name = parse_name(text, argument)
    if _is_hub_url(text):
        assert name is not None
        return fetch(name, select)
    # A name whose owner is a local folder is a path with a slip in it.
    if name is None or os.path.lexists(text) or os.path.lexists(text.partition("/")[0]):
        return Path(text)
    return fetch(name, select, f"{text}: no such local file or directory; ")


def _is_hub_url(text: str) -> bool:
    return bool(re.match(r"\s*hf:/", text, re.IGNORECASE)) and is_url(text)


def fetch(name: HubName, select: Select, front: str = "") -> Path:
    """The local copy of a folder or file of a repository, with the files that are needed.

    Args:
      name: what is meant.
      select: as of `located`.
      front: what the text of an error begins with.

    Raises:
      StorageError: as `located`.
    """
    import huggingface_hub
    from huggingface_hub import constants

    with _in_one_line(name, front):
        sizes, revision = _listing(
            name, constants.ENDPOINT, constants.HF_HUB_CACHE, constants.is_offline_mode()
        )
        options: dict[str, Any] = {
            "repo_id": name.repository,
            "repo_type": name.kind,
            "revision": revision,
            "local_files_only": constants.is_offline_mode(),
            "endpoint": constants.ENDPOINT,
            "tqdm_class": _bar(),
        }
        if sizes is None:
            # Cached by another program that kept no listing: what is there is all that is known.
            folder = huggingface_hub.snapshot_download(**options)
        else:
            chosen = _chosen(name, sizes, select, front)
            _announce(name, chosen, sizes, revision)
            folder = huggingface_hub.snapshot_download(
                **options, allow_patterns=[glob.escape(file) for file in chosen]
            )
    return Path(folder) / name.inside


@functools.cache
def _listing(
    name: HubName, endpoint: str, cache: str, offline: bool
) -> tuple[Mapping[str, int] | None, Any]:
    """(size in bytes by name of every file, or None if unknown; the revision).

    One process reads one commit, also where the repository changes meanwhile.
    """
    from huggingface_hub import HfApi, RepoFile, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    from unix_jax import __version__

    api = HfApi(endpoint, library_name="unix-jax", library_version=__version__)
    where: dict[str, Any] = {"repo_id": name.repository, "repo_type": name.kind}
    revision = api.resolve_revision(**where, revision=name.revision, local_files_only=offline)
    entries: Any
    try:
        entries = get_cached_repo_tree(**where, revision=revision)
    except CachedRepoTreeNotFoundError:
        if offline:
            return None, revision
        entries = api.list_repo_tree(**where, revision=revision.resolved, recursive=True)
    return {file.path: file.size for file in entries if isinstance(file, RepoFile)}, revision


def _chosen(name: HubName, sizes: Mapping[str, int], select: Select, front: str) -> list[str]:
    """The files of the repository that are needed.

    Raises:
      StorageError: the folder or file is not in the repository, or nothing of it is needed.
    """
    inside = name.inside
    folder, file = inside, None
    if inside in sizes:
        folder, _, file = inside.rpartition("/")
    start = f"{folder}/" if folder else ""
    below = sorted(path.removeprefix(start) for path in sizes if path.startswith(start))
    try:
        chosen = [start + path for path in select(below, file)] if below else []
    except UniXError as error:
        raise StorageError(f"{front}{name}: {error}") from error
    if not chosen:
        found = ", ".join(sorted({path.partition("/")[0] for path in below or sizes})[:20])
        raise StorageError(
            f"{front}{name}: expected a file that can be used here, found {found or 'no files'}"
        )
    return chosen


def _announce(name: HubName, files: Sequence[str], sizes: Mapping[str, int], revision: Any) -> None:
    """Says on standard error what is going to be downloaded, if anything is."""
    from huggingface_hub import constants, try_to_load_from_cache

    missing = [
        file
        for file in files
        if not isinstance(
            try_to_load_from_cache(
                name.repository, file, revision=revision.resolved, repo_type=name.kind
            ),
            str,
        )
    ]
    if missing and not constants.is_offline_mode():
        size = sum(sizes[file] for file in missing)
        amount = f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
        count = f"{len(missing)} file" + ("s" if len(missing) > 1 else "")
        print(
            f"{name}: downloading {count}, {amount}, from {constants.ENDPOINT} to "
            f"{constants.HF_HUB_CACHE}",
            file=sys.stderr,
        )


@contextlib.contextmanager
def _in_one_line(name: HubName, front: str = "") -> Iterator[None]:
    """Raises what the hub's client raises as a StorageError that says what to do."""
    from huggingface_hub import constants, errors

    address, kind = constants.ENDPOINT, "" if name.kind == "model" else "--repo-type dataset "
    page = f"{address}/{'' if name.kind == 'model' else 'datasets/'}{name.repository}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    revision = "" if name.revision is None else f" --revision {name.revision}"
    advice = (
        f"download it with `hf download {kind}{name.repository}{revision}` where the hub can be "
        "reached, or name a local directory"
    )

    def failed(text: str) -> StorageError:
        return StorageError(front + " ".join(text.split()))

    try:
        yield
    except errors.IncompleteSnapshotError as error:
        reason = " ".join(str(error).split())
        files = re.search(r"file\(s\) are missing \((.*?)\)\. ", reason)
        raise failed(
            f"{name}: the copy in {constants.HF_HUB_CACHE} lacks "
            f"{files[1] if files else 'files'}, and the hub cannot be reached "
            f"({_why(error)}); {advice}"
        ) from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError) as error:
        raise failed(
            f"{name}: is not in {constants.HF_HUB_CACHE}, and the hub cannot be reached "
            f"({_why(error)}); {advice}"
        ) from error
    except errors.GatedRepoError as error:
        raise failed(
            f"{name}: access is restricted; accept its terms on {page}, and {login}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise failed(f"{name}: {page} has no revision {name.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise failed(
            f"{name}: there is no {name.kind} repository {page}; if it is private, {login}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise failed(f"{name}: a file of the repository is not there: {error}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = f"; {login}" if status in (401, 403) else ""
        raise failed(f"{name}: {address} answered {status}{hint}: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise failed(f"{name}: is no name on the hub: {error}") from error
    except errors.HTTPError as error:
        raise failed(f"{name}: {address} cannot be reached: {error or type(error).__name__}") from (
            error
        )
    except OSError as error:
        raise failed(
            f"{name}: cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror or error}"
        ) from error
    except UniXError:
        raise
    except Exception as error:  # of threads whose connection another one closed, and the like
        raise failed(f"{name}: cannot be downloaded from {address}: {error!r}") from error


def _bar() -> Any:
    """The progress bar, on a terminal alone."""
    from huggingface_hub.utils import tqdm

    if sys.stderr.isatty():
        return tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})

    return Silent


def _why(error: BaseException) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    cause = error.__cause__ or error
    return f"{constants.ENDPOINT}: {_first_line(cause)}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# --- uploads -------------------------------------------------------------------------------------


def check_push(repository: str) -> HubName:
    """The repository to push to, before anything is written or sent.

    Raises:
      StorageError: no name of a repository, no token, or offline.
    """
    import huggingface_hub
    from huggingface_hub import constants

    name = parse_name(repository, "--push")
    if name is None or name.inside or name.revision or name.kind != "model":
        raise StorageError(f"--push: expected OWNER/NAME, found {repository}")
    if constants.is_offline_mode():
        raise StorageError(f"--push {repository}: HF_HUB_OFFLINE is set; unset it to push")
    if huggingface_hub.get_token() is None:
        raise StorageError(
            f"--push {repository}: expected to be logged in; run `hf auth login`, or set HF_TOKEN "
            "to a token that may write"
        )
    return name


def push(folder: Path, name: HubName, message: str, *, private: bool) -> tuple[str, int]:
    """Uploads a folder as one commit, in the place of what the repository has.

    Files of earlier commits stay in the repository's history.

    Args:
      folder: its files.
      name: the repository, which is created if it does not exist.
      message: of the commit.
      private: whether a new repository is private.

    Returns:
      The address of the commit, and the number of files that it removed or replaced.

    Raises:
      StorageError: the hub refuses it or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi, RepoFile, constants

    from unix_jax import __version__

    front = f"{folder} is complete, but was not pushed: "
    with _in_one_line(name, front):
        api = HfApi(constants.ENDPOINT, library_name="unix-jax", library_version=__version__)
        api.create_repo(name.repository, private=private, exist_ok=True)
        entries = api.list_repo_tree(name.repository, recursive=True)
        before = [file for file in entries if isinstance(file, RepoFile)]
        replaced = [file for file in before if file.path != ".gitattributes"]
        commit = api.upload_folder(
            repo_id=name.repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=["*"],
        )
    return str(commit.commit_url), len(replaced)

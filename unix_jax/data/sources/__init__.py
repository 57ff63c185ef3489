"""Sources of records, one module per format, and `open_source`, which opens them by a spec.

    manifest:DIR                        DIR/manifest.jsonl and images
    csv:FILE?images=DIR&image=COLUMN    CSV or JSON lines, and image folders of Hugging Face
    conversations:FILE?images=DIR       questions and answers, JSON lines or a JSON list
    parquet:DIR_OR_FILE_OR_GLOB         `image` and `captions` or a report; columns by options
    hf:OWNER/NAME?split=NAME            the same of the Parquet files of a data set on the hub
    mimic:DIR?reports=WHERE&views=PA,AP MIMIC-CXR-JPG as published; with pairs=previous images that
                                        follow an earlier study of their patient
    array_record:DIR                    what `unix-jax data write` wrote
    tfds:NAME?data_dir=DIR              a tensorflow-datasets data set of `UnixRecords`

`images=DIR` says where image paths start, for every kind that has paths.

A path is local, or `gs://BUCKET/NAME` or `s3://BUCKET/NAME`, except for `tfds`. Tables, lines and
whole record files are copied into the cache (`unix_jax.storage.bucket_cache`); images and single
reports are read when they are needed.
"""

import re
import urllib.parse
from pathlib import Path

from unix_jax.data.records import RecordSource
from unix_jax.errors import DataError
from unix_jax.storage.bucket_path import any_path
from unix_jax.storage.buckets import is_bucket
from unix_jax.storage.paths import refuse_url

_CSV_COLUMNS = (
    "image", "findings", "impression", "report", "captions", "labels", "view", "patient", "split",
    "key", "prompt", "answer",
)  # fmt: skip
_PARQUET_COLUMNS = (
    "image", "captions", "findings", "impression", "report", "key", "labels", "view", "patient",
)  # fmt: skip
_OPTIONS = {
    "manifest": {"images"},
    "csv": {"images", *_CSV_COLUMNS},
    "conversations": {"images"},
    "parquet": {"images", "split", *_PARQUET_COLUMNS},
    "hf": {"split", "config", *_PARQUET_COLUMNS},
    "mimic": {"images", "reports", "views", "pairs"},
    "array_record": set(),
    "tfds": {"data_dir"},
}

_IN_BUCKETS = {"manifest", "csv", "conversations", "parquet", "mimic", "array_record"}

KINDS = tuple(_OPTIONS)
"""The kinds of sources."""

# The beginning of a part of a mixture (`unix_jax.data.mixture`), which is not a source by itself.
_PART = re.compile(r"[^\s:*]*\s*\*|(?:understanding|generation|edit):")
# A glob pattern may also contain "?"; only one before a list of options is a separator.
_SPEC = re.compile(r"(?P<kind>\w+):(?P<path>.+?)(?:\?(?P<options>\w+=.*))?", re.DOTALL)


def open_source(
    spec: str, split: str | None = None, image_root: str | Path | None = None
) -> RecordSource:
    """Opens a source of records.

    Args:
      spec: KIND:PATH?OPTION=VALUE&..., as above; values may be percent-encoded.
      split: selects the records of one split, such as train; all if None or "". A file in which no
        row has a split belongs to every split.
      image_root: overrides the option `images`.

    Raises:
      DataError: another kind or option, a missing file, or no records of this split.
    """
    kind, path, options = parse_spec(spec)
    split = split or None
    images = image_root if image_root is not None else options.get("images")
    # Imported by kind, since each needs a library that the others do not.
    if kind == "manifest":
        from unix_jax.data.sources.manifest import ManifestSource

        return ManifestSource(path, split, images)
    if kind == "csv":
        from unix_jax.data.sources.csv_file import CsvSource

        columns = {name: options[name] for name in _CSV_COLUMNS if name in options}
        return CsvSource(path, split, images, columns)
    if kind == "conversations":
        from unix_jax.data.sources.conversations import ConversationsSource

        return ConversationsSource(path, split, images)
    if kind == "parquet":
        from unix_jax.data.sources.parquet import ParquetSource

        names = (*_PARQUET_COLUMNS, "split")
        columns = {name: options[name] for name in names if name in options}
        return ParquetSource(path, split, images, columns)
    if kind == "hf":
        from unix_jax.data.sources.hub_dataset import open_hub_dataset

        columns = {name: options[name] for name in _PARQUET_COLUMNS if name in options}
        wanted = options.get("split", split)
        return open_hub_dataset(path, wanted, options.get("config"), columns)
    if kind == "mimic":
        from unix_jax.data.sources.mimic import MimicSource

        asked = (view.strip() for view in options.get("views", "").split(","))
        views = tuple(view for view in asked if view)
        pairs = options.get("pairs", "")
        if pairs not in ("", "previous"):
            raise DataError(f"source {spec!r}: pairs: expected previous, found {pairs!r}")
        return MimicSource(path, split, images, options.get("reports"), views, bool(pairs))
    if kind == "array_record":
        from unix_jax.data.sources.array_records import ArrayRecordSource

        return ArrayRecordSource(path, split)
    from unix_jax.data.sources.tfds import TfdsSource

    return TfdsSource(path, split, options.get("data_dir"))


def parse_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """(kind, path, options) of a spec.

    Raises:
      DataError: not of the form, or a kind or option that does not exist.
      StorageError: the path or an option is a URL.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or match["kind"] not in _OPTIONS:
        raise DataError(
            f"source: expected KIND:PATH with KIND one of {', '.join(_OPTIONS)}, found {spec!r}"
            + ("; weights and tasks are for data.source of training" if _PART.match(spec) else "")
        )
    known = _OPTIONS[match["kind"]]
    options = {}
    for option in (match["options"] or "").split("&") if match["options"] else []:
        name, _, value = option.partition("=")
        if name not in known or not value:
            expected = " or ".join(f"{known_name}=..." for known_name in sorted(known))
            raise DataError(
                f"source {spec!r}: expected {expected or 'no options'}, found {option!r}"
            )
        if name in options:
            raise DataError(f"source {spec!r}: expected {name}=... once, found it twice")
        options[name] = urllib.parse.unquote(value)
        _check_path(match["kind"], options[name], name)
    _check_path(match["kind"], match["path"], match["kind"])
    return match["kind"], match["path"], options


def _check_path(kind: str, text: str, name: str) -> None:
    if kind in _IN_BUCKETS and is_bucket(text):
        any_path(text, f"source {name}")
    else:
        refuse_url(text, f"source {name}")


def overlap(
    spec: str, split: str | None, source: RecordSource, other_spec: str, other_split: str | None
) -> bool:
    """Whether two openings of the same files certainly share records.

    Args:
      spec, split: of the one, such as a run's training data; `source`: what was opened for it.
      other_spec, other_split: of the other, such as its validation data.
    """
    (kind, path, options), (other_kind, other_path, others) = (
        parse_spec(spec),
        parse_spec(other_spec),
    )
    if kind == "hf":
        from unix_jax.data.sources.hub_dataset import canonical_split

        split = canonical_split(options.get("split", split) or "")
        other_split = canonical_split(others.get("split", other_split) or "")
        if options.get("config") != others.get("config"):
            return False
    if kind != other_kind or any_path(path).resolve() != any_path(other_path).resolve():
        return False
    return (
        split == other_split
        or not split
        or not other_split
        or bool(getattr(source, "unsplit", False))
    )

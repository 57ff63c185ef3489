"""Sources of records, one module a format, and `open_source`, the way in by a short text.

    manifest:DIR                        DIR/manifest.jsonl and images
    conversations:FILE?images=DIR       JSON lines of questions and answers
    parquet:DIR_OR_FILE_OR_GLOB         `image` and `captions`
    mimic:DIR?reports=DIR&views=PA,AP   MIMIC-CXR-JPG as published
    array_record:DIR                    what `python -m unix_jax.data write` wrote
    tfds:NAME?data_dir=DIR              a tensorflow-datasets data set of `UnixRecords`

`images=DIR` says where image paths start, for every kind that has paths.
"""

import re
import urllib.parse
from pathlib import Path

from unix_jax.data.records import RecordSource
from unix_jax.errors import DataError
from unix_jax.storage import refuse_url

_OPTIONS = {
    "manifest": {"images"},
    "conversations": {"images"},
    "parquet": {"images"},
    "mimic": {"images", "reports", "views"},
    "array_record": set(),
    "tfds": {"data_dir"},
}

# A glob pattern may hold "?" too: only one that begins a list of options separates them.
_SPEC = re.compile(r"(?P<kind>\w+):(?P<path>.+?)(?:\?(?P<options>\w+=.*))?", re.DOTALL)


def open_source(
    spec: str, split: str | None = None, image_root: str | Path | None = None
) -> RecordSource:
    """Opens a source of records.

    Args:
      spec: KIND:PATH?OPTION=VALUE&..., as above; values may be percent-encoded.
      split: keeps the records of one split, such as train; all if absent.
      image_root: as the option `images`, which it overrides.

    Raises:
      DataError: another kind or option, a missing file, or no records of this split.
    """
    kind, path, options = parse_spec(spec)
    images = image_root if image_root is not None else options.get("images")
    # Imported by kind: each brings a library that the others do without.
    if kind == "manifest":
        from unix_jax.data.sources.manifest import ManifestSource

        return ManifestSource(path, split, images)
    if kind == "conversations":
        from unix_jax.data.sources.conversations import ConversationsSource

        return ConversationsSource(path, split, images)
    if kind == "parquet":
        from unix_jax.data.sources.parquet import ParquetSource

        return ParquetSource(path, split, images)
    if kind == "mimic":
        from unix_jax.data.sources.mimic import MimicSource

        views = tuple(view for view in options.get("views", "").split(",") if view)
        return MimicSource(path, split, images, options.get("reports"), views)
    if kind == "array_record":
        from unix_jax.data.array_records import ArrayRecordSource

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
        options[name] = urllib.parse.unquote(value)
        refuse_url(options[name], f"source {name}")
    refuse_url(match["path"], f"source {match['kind']}")
    return match["kind"], match["path"], options

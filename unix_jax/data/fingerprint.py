"""Fingerprint of a source, which detects changed records or another order."""

import hashlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from unix_jax.data.mixture import MixedRecords
from unix_jax.data.records import RecordSource
from unix_jax.errors import UniXError

# The number of records that are read if reading keys also reads images.
_SAMPLED = 256


@typing.runtime_checkable
class KeyedSource(typing.Protocol):
    """A source whose keys are available without reading images."""

    def keys(self) -> Iterator[str]:
        """The keys of all records, in their order."""


def fingerprint(records: RecordSource) -> dict[str, Any]:
    """{records: their number, keys: a hash of their keys in order, first, last}; JSON.

    For a mixture: {records, parts: the fingerprint of each}.

    All keys are hashed if the source has `keys`. In other sources (ArrayRecord, tfds), whose
    records contain their images, 256 evenly spaced records are read, including the first and the
    last.
    """
    length = len(records)
    if isinstance(records, MixedRecords):
        return {"records": length, "parts": [fingerprint(source) for source in records.sources]}
    if isinstance(records, KeyedSource):
        keys: Iterable[str] = records.keys()
    else:
        chosen = sorted({i * (length - 1) // max(_SAMPLED - 1, 1) for i in range(_SAMPLED)})
        keys = (_key(records, index) for index in chosen)
    digest, first, last = hashlib.blake2b(digest_size=16), "", ""
    for number, key in enumerate(keys):
        encoded = key.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
        first, last = (key, key) if number == 0 else (first, key)
    return {"records": length, "keys": digest.hexdigest(), "first": first, "last": last}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two fingerprints in words; "" for equal ones."""
    parts, parts_now = before.get("parts", []), now.get("parts", [])
    if len(parts) != len(parts_now):
        return f"expected {_sources(parts)}, found {_sources(parts_now)}"
    if parts_now:
        changed = [difference(*pair) for pair in zip(parts, parts_now, strict=True)]
        return "; ".join(f"part {i}: {text}" for i, text in enumerate(changed, 1) if text)
    if before.get("keys") == now["keys"] and before.get("records") == now["records"]:
        return ""
    text = f"expected {before.get('records')} records, found {now['records']}"
    if before.get("records") == now["records"]:
        text = f"the {now['records']} records differ, or are in another order"
    shown = [
        f"the {name} was {before.get(name)!r} and is {now[name]!r}"
        for name in ("first", "last")
        if before.get(name) != now[name]
    ]
    return "; ".join([text, *shown])


def _sources(parts: Sequence[Any]) -> str:
    return f"a mixture of {len(parts)} sources" if parts else "one source"


def _key(records: RecordSource, index: int) -> str:
    try:
        return records[index].key
    except UniXError:
        return ""

"""VAE moments computed once: the encoder's mean and log-variance of every image of a source.

A directory holds `moments.array_record`, one entry for each record of the source in its order, and
`moments.json`, which records what they were computed from. An entry is the length of the record's
key (4 bytes, little-endian), the key, and the numbers, row by row; none if the image was broken.

h, w: latents of an image; C: channels of the autoencoder's embedding.
"""

import dataclasses
import functools
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.records import RecordSource
from unix_jax.errors import DataError, UniXError
from unix_jax.extras import require
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.preprocessing.pixels import vae_input
from unix_jax.storage.bucket_path import any_path, local_file
from unix_jax.storage.files import atomic_directory
from unix_jax.storage.json_file import read_json, write_json

FORMAT = "unix-jax-moments-1"
INDEX = "moments.json"
FILE = "moments.array_record"

# One entry per group, so that a read only decompresses the entry.
_WRITER_OPTIONS = "group_size:1"
_KEY_LENGTH = struct.Struct("<I")
_DTYPES: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
# They convert moments to latents, and do not affect the moments.
_LATENT_ONLY = ("scale_factor", "shift_factor")


def _array_record(part: str) -> Any:
    return require(f"array_record.python.array_record_{part}", "data.moments", "unix-jax[data]")


class Written(NamedTuple):
    """The number of entries that `write_moments` wrote.

    broken: why an entry has no moments, one message for each broken row or image.
    image_warnings: one for each image that shows almost nothing, sorted; it has moments.
    """

    records: int
    broken: tuple[str, ...] = ()
    image_warnings: tuple[str, ...] = ()


def weights_fingerprint(vae_params: Mapping[str, Any]) -> str:
    """SHA-256 of an autoencoder's weights in float32, by their paths."""
    digest = hashlib.sha256()
    for path, array in sorted(flatten(vae_params).items()):
        values = np.asarray(array, "<f4")
        digest.update(f"{path} {list(values.shape)}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def write_moments(
    out: str | Path,
    records: RecordSource,
    config: UniXConfig,
    vae_params: Mapping[str, Any],
    data: DataConfig,
    *,
    batch_size: int = 8,
    dtype: str = "float32",
    on_record: Callable[[], None] = lambda: None,
) -> Written:
    """Encodes every image of a source and writes the moments atomically.

    Args:
      out: a new directory, for `data.moments`.
      records: all records, including those that training will skip.
      config: sizes of the autoencoder.
      vae_params: its weights.
      data: size and padding of the images, threads, and the fraction of the records that may be
        broken (`max_broken_fraction`; `broken_after` does not count here).
      batch_size: images encoded together.
      dtype: of the numbers on disk: float32, or float16 at half the size.
      on_record: called after each record, for a progress bar.

    Raises:
      DataError: no records, too many broken images, an unknown dtype, or the moments cannot be
        written.
      UniXError: `out` exists.
    """
    if dtype not in _DTYPES:
        raise DataError(f"dtype: expected one of {sorted(_DTYPES)}, found {dtype!r}")
    if not len(records):
        raise DataError(f"data: expected records in {data.source or 'the source'}, found none")
    about = _description(config, data) | {"weights": weights_fingerprint(vae_params)}
    seen, broken, warned = 0, list[str](), list[str]()
    with atomic_directory(out) as directory:
        try:
            writer = _array_record("module").ArrayRecordWriter(
                str(directory / FILE), _WRITER_OPTIONS
            )
            try:
                for key, moments in _encoded(records, config, vae_params, data, batch_size, warned):
                    seen += 1
                    if isinstance(moments, str):
                        broken.append(moments)
                        _check_broken(broken, len(records), data.max_broken_fraction)
                    writer.write(_entry(key, moments, _DTYPES[dtype]))
                    on_record()
            finally:
                writer.close()
            counts = {
                "dtype": dtype,
                "records": seen,
                "broken": len(broken),
                "image_warnings": len(warned),
            }
            origin = {"source": data.source, "split": data.split}
            write_json(directory / INDEX, {"format": FORMAT} | counts | about | origin)
        except (OSError, RuntimeError) as error:  # the library's C++ errors are RuntimeError
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{out}: cannot be written: {reason}") from error
    return Written(seen, tuple(broken), tuple(sorted(warned)))


def _check_broken(broken: Sequence[str], total: int, allowed: float) -> None:
    """Checks the number of broken images against the length of the source."""
    if len(broken) > allowed * total:
        raise DataError(
            f"expected at most {allowed:.2%} of {total} records to be broken (--max-broken), "
            f"found {len(broken)} so far; the last: {broken[-1]}"
        )


def _description(config: UniXConfig, data: DataConfig) -> dict[str, Any]:
    """The settings that moments depend on, besides the weights and the images; JSON."""
    data.latent_grid(config)
    sizes = dataclasses.asdict(config.vae)
    return {
        "height": data.vae_height,
        "width": data.vae_width,
        "padding": data.vae_padding,
        "autoencoder": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in sizes.items()
            if name not in _LATENT_ONLY
        },
    }


def _encoded(
    records: RecordSource,
    config: UniXConfig,
    vae_params: Mapping[str, Any],
    data: DataConfig,
    batch_size: int,
    warned: list[str],
) -> Iterator[tuple[str, np.ndarray | str]]:
    """(key, moments, or why the image is broken) of every record, in order.

    Images with almost no content are added to `warned`.
    """
    model = Autoencoder(config.vae)

    def read(index: int) -> tuple[str, np.ndarray | str]:
        key = ""
        try:
            record = records[index]
            key = record.key
            return key, vae_pixels(record, data, lambda it: warned.append(f"{key}: {it}"))
        except UniXError as error:
            return key, str(error)

    with ThreadPoolExecutor(data.threads) as pool:

        def submit(start: int) -> list[Future[tuple[str, np.ndarray | str]]]:
            stop = min(start + batch_size, len(records))
            return [pool.submit(read, index) for index in range(start, stop)]

        ahead = submit(0)
        for start in range(0, len(records), batch_size):
            futures, ahead = ahead, submit(start + batch_size)
            images = [future.result() for future in futures]
            pixels = np.zeros((batch_size, data.vae_height, data.vae_width, 3), np.uint8)
            for index, (_, image) in enumerate(images):
                if not isinstance(image, str):
                    pixels[index] = image
            moments = np.asarray(_encode(model, vae_params, pixels))
            for (key, image), values in zip(images, moments, strict=False):
                yield key, image if isinstance(image, str) else values


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    model: Autoencoder, params: Mapping[str, Any], pixels: UInt8[Array, "B H W C"]
) -> Float[Array, "B h w 2*C"]:
    moments: Any = model.apply({"params": params}, vae_input(pixels), method="moments")
    return moments


def _entry(key: str, moments: np.ndarray | str, dtype: np.dtype) -> bytes:
    name = key.encode()
    numbers = b"" if isinstance(moments, str) else moments.astype(dtype).tobytes()
    return _KEY_LENGTH.pack(len(name)) + name + numbers


class Moments:
    """Moments of a directory that `write_moments` wrote, by the index of the record."""

    def __init__(
        self,
        directory: str | Path,
        records: int,
        config: UniXConfig,
        data: DataConfig,
        vae_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Compares what the moments were computed from with what is needed.

        Args:
          directory: as in `write_moments`.
          records: the source's length.
          config, data: as of the run that uses them.
          vae_params: the autoencoder's weights, if they are to be compared too.

        Raises:
          DataError: no such directory, a broken file, or moments of other images, another
            autoencoder or another source; it names every difference.
        """
        self._root = any_path(directory)
        index = self._root / INDEX
        found = read_json(index, DataError)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise DataError(f"{index}: expected format {FORMAT!r}, found {str(found)[:60]!r}")
        expected = _description(config, data) | {"records": records}
        if vae_params is not None:
            expected["weights"] = weights_fingerprint(vae_params)
        differences = [
            f"{name}: expected {value}, found {found.get(name)}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
        if found.get("dtype") not in _DTYPES:
            differences.append(f"dtype: expected one of {sorted(_DTYPES)}")
        if differences:
            raise DataError(f"{index}: moments of something else: {'; '.join(differences)}")
        self._dtype = _DTYPES[found["dtype"]]
        side = config.vae.downsample
        self._shape = (
            data.vae_height // side,
            data.vae_width // side,
            2 * config.vae.embed_dim,
        )
        try:
            # Reads each file's index now, and records on demand.
            self._reader = _array_record("data_source").ArrayRecordDataSource(
                str(local_file(self._root / FILE))
            )
            count = len(self._reader)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self._root / FILE}: cannot be read: {reason}") from error
        if count != records:
            raise DataError(f"{self._root / FILE}: expected {records} records, found {count}")

    def __call__(self, index: int, key: str) -> Float[np.ndarray, "h w 2*C"]:
        """The moments of a record, in float32.

        Raises:
          DataError: the image was broken, or the entry is another record's.
        """
        where = f"{self._root / FILE}: record {index}"
        try:
            entry = self._reader[index]
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{where}: cannot be read: {reason}") from error
        if len(entry) < _KEY_LENGTH.size:
            raise DataError(f"{where}: expected moments, found {len(entry)} bytes")
        end = _KEY_LENGTH.size + _KEY_LENGTH.unpack_from(entry)[0]
        name = entry[_KEY_LENGTH.size : end].decode("utf-8", "replace")
        if end == len(entry):
            raise DataError(f"{where}: {key}: its image was broken when the moments were made")
        if name != key:
            raise DataError(f"{where}: expected the moments of {key}, found those of {name}")
        numbers = entry[end:]
        if len(numbers) != self._dtype.itemsize * int(np.prod(self._shape)):
            raise DataError(
                f"{where}: expected {list(self._shape)} numbers, found {len(numbers)} bytes"
            )
        return np.frombuffer(numbers, self._dtype).reshape(self._shape).astype(np.float32)

"""Locates the members of a zip in a memory-mapped file.

`zipfile` reads the central directory. The bytes are taken from the mapping, so a member that is
stored without compression is never copied.
"""

import dataclasses
import struct
import zipfile
import zlib

from unix_jax.checkpoints.formats.tensor_source import MappedFile, quoted
from unix_jax.errors import CheckpointError

ZIP_START = b"PK\x03\x04"
# Torch never compresses. A file that somebody packed anew may be, but not to unpack to anything.
MAX_UNPACKED_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class ByteRange:
    """Where a storage's bytes are.

    Attributes:
      offset, size: the byte range in the file.
      member: set when they are compressed: the zip's record of them.
      crc32: their CRC-32 as the zip states it; None where there is none.
    """

    offset: int
    size: int
    member: zipfile.ZipInfo | None = None
    crc32: int | None = None


def zip_members(file: MappedFile) -> dict[str, zipfile.ZipInfo]:
    """The zip's members by name.

    Raises:
      CheckpointError: the file is not a complete zip, or a name occurs twice.
    """
    path = file.path
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    # What zipfile raises on a broken central directory, as fuzzing found.
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(
            f"{path}: is not a complete zip file (truncated?): {str(error)[:200]}"
        ) from error
    result: dict[str, zipfile.ZipInfo] = {}
    for member in members:
        if member.filename in result:
            raise CheckpointError(f"{path}: member {quoted(member.filename)} occurs twice")
        result[member.filename] = member
    return result


def locate(file: MappedFile, member: zipfile.ZipInfo) -> ByteRange:
    """Byte range of a zip member, from its local header.

    Raises:
      CheckpointError: it is encrypted, packed by another method, or not wholly in the file.
    """
    name = f"{file.path}: member {quoted(member.filename)}"
    if member.flag_bits & 0x1:
        raise CheckpointError(f"{name}: is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"{name}: compression {member.compress_type} is not supported")
    header = file.bytes(member.header_offset, 30) if member.header_offset >= 0 else b""
    if len(header) < 30 or not header.startswith(ZIP_START):
        raise CheckpointError(f"{name}: its header is missing")
    name_size, extra_size = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + 30 + name_size + extra_size
    if offset + member.compress_size > file.size:
        raise CheckpointError(
            f"{name}: truncated: expected {member.compress_size} bytes at {offset}, "
            f"but the file ends at {file.size}"
        )
    if member.compress_type == zipfile.ZIP_STORED:
        if member.compress_size != member.file_size:
            raise CheckpointError(
                f"{name}: stored without compression, yet {member.compress_size} bytes "
                f"stand for {member.file_size}"
            )
        return ByteRange(offset, member.file_size, None, member.CRC)
    return ByteRange(offset, member.file_size, member, member.CRC)


def require_crc(name: str, expected: int, found: int) -> None:
    """Raises a CheckpointError that names the member or tensor if its CRC-32 differs."""
    if expected != found:
        raise CheckpointError(
            f"{name}: content changed since the file was written: expected CRC-32 {expected} (in "
            f"the zip), found {found}; download the file again"
        )


def member_bytes(file: MappedFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """The bytes of a small member.

    Raises:
      CheckpointError: it is longer than `limit`, cannot be read, or its CRC-32 differs.
    """
    if member.file_size > limit:
        raise CheckpointError(
            f"{file.path}: member {quoted(member.filename)}: {member.file_size} bytes, "
            f"expected at most {limit}"
        )
    place = locate(file, member)
    if place.member is not None:
        return inflate(file, member)
    data = file.bytes(place.offset, place.size)
    _require_member(file, member, data)
    return data


def _require_member(file: MappedFile, member: zipfile.ZipInfo, data: bytes) -> None:
    # A CRC-32 of 0 is what a writer leaves that computes none.
    if member.CRC:
        name = f"{file.path}: member {quoted(member.filename)}"
        require_crc(name, member.CRC, zlib.crc32(data))


def inflate(file: MappedFile, member: zipfile.ZipInfo) -> bytes:
    """Unpacks a compressed member, and never more of it than the zip announces.

    Raises:
      CheckpointError: it is too large, broken, or not of the announced size or CRC-32.
    """
    name = f"{file.path}: member {quoted(member.filename)}"
    if member.file_size > MAX_UNPACKED_BYTES:
        raise CheckpointError(
            f"{name}: unpacks to {member.file_size} bytes, expected at most {MAX_UNPACKED_BYTES}"
        )
    place = locate(file, member)
    packed = file.bytes(place.offset, member.compress_size)
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)
    except zlib.error as error:
        raise CheckpointError(f"{name}: cannot be unpacked: {error}") from error
    if len(unpacked) != member.file_size:
        raise CheckpointError(
            f"{name}: unpacks to {len(unpacked)} bytes or more, expected {member.file_size}"
        )
    _require_member(file, member, unpacked)
    return unpacked

"""What a directory holds, for tests that compare it with what it held before."""

from pathlib import Path


def content(directory: Path) -> dict[str, bytes | None]:
    """Every path below a directory, and the bytes of files."""
    return {
        str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None
        for p in directory.rglob("*")
    }

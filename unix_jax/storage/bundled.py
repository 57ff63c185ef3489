"""Files of the repository that an installed package has as well.

The wheel carries them in `unix_jax/bundled` (setup.py), under the paths that they have in a clone:
`configs/`, the examples and `tests/golden/tiny`. A clone, also one that is installed as editable,
has no such folder, and its own files are used.
"""

from pathlib import Path

_PACKAGED = Path(__file__).parent.parent / "bundled"
ROOT = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent
"""The folder with `configs/`, `examples/` and `tests/golden/tiny`."""


def example(name: str) -> str:
    """The path of `examples/NAME`: relative in a clone's own folder, elsewhere absolute."""
    relative = Path("examples") / name
    return str(relative if relative.exists() else ROOT / relative)


def configurations() -> dict[str, Path]:
    """The files of `configs/` by their names without `.py`."""
    return {file.stem: file for file in sorted((ROOT / "configs").glob("*.py"))}


def golden() -> tuple[Path, Path] | None:
    """(checkpoint, golden directory) of toy size, or None where an installation has none."""
    directory = ROOT / "tests" / "golden" / "tiny"
    return (directory / "checkpoint", directory) if directory.is_dir() else None

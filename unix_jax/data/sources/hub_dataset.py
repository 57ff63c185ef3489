"""`hf:OWNER/NAME@REVISION?split=NAME&config=NAME&image=COLUMN&...`: Parquet files on the hub.

A data set of the Hugging Face hub, in the form that the package `datasets` publishes: Parquet files
whose names contain their split, such as `data/train-00000-of-00002.parquet` or
`CONFIG/validation/0000.parquet`. The files of the split that is asked for are downloaded into the
hub's cache and read as `parquet:` reads them, with the same options for columns. If no name
contains a split, the column `split` is used, or the files belong to every split. Patterns that a
README states for its files are not read.

`split` overrides the split that a command asks for; `config` is one of several folders of a data
set. See `unix_jax.storage.hub` for the cache, and for use offline.
"""

import re
from collections.abc import Mapping, Sequence

from unix_jax.data.sources.parquet import ParquetSource
from unix_jax.errors import DataError
from unix_jax.storage.hub import HubName, fetch, parse_name

# The words of the hub for one split, each as a part of a file's path.
_SPLITS = {
    "train": ("train", "training"),
    "validate": ("validate", "validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SUFFIX = ".parquet"


def open_hub_dataset(
    path: str, split: str | None, config: str | None, columns: Mapping[str, str]
) -> ParquetSource:
    """Downloads what is not cached, and opens it.

    Args:
      path: OWNER/NAME or OWNER/NAME@REVISION.
      split: train, validate, test, another word of the files' names, or that of a column; None for
        all files.
      config: folder of the repository, where it has several data sets.
      columns: as of `ParquetSource`.

    Raises:
      DataError: no name, no Parquet files, or none of this split or configuration.
      StorageError: the hub cannot be reached, or refuses the data set.
    """
    name = parse_name(path)
    if name is None:
        raise DataError(f"source hf: expected OWNER/NAME or OWNER/NAME@REVISION, found {path!r}")
    chosen: list[str] = []

    def select(names: Sequence[str], _: str | None) -> list[str]:
        chosen[:] = parquet_files(names, split, config)
        return chosen

    folder = fetch(HubName(name.repository, name.revision, kind="dataset"), select)
    if not chosen:  # offline, with a copy whose listing is not known
        select([file.relative_to(folder).as_posix() for file in folder.rglob("*")], None)
    by_column = split is not None and all(split_of(file) is None for file in chosen)
    files = [folder / file for file in chosen]
    return ParquetSource(files, split if by_column else None, None, columns)


def parquet_files(
    names: Sequence[str], split: str | None = None, config: str | None = None
) -> list[str]:
    """The Parquet files of a split and a configuration among a repository's files.

    Files whose names tell no split are those of every split, if that holds for all of them.

    Raises:
      DataError: there are none; names what there is.
    """
    files = sorted(name for name in names if name.endswith(_SUFFIX))
    if not files:
        raise DataError(f"expected files *{_SUFFIX}, found {', '.join(names[:20])}")
    configs = {file: _config_of(file) for file in files}
    known = sorted({found for found in configs.values() if found})
    if config is not None:
        files = [file for file in files if configs[file] == config]
        if not files:
            raise DataError(f"config: expected one of {known or 'none'}, found {config!r}")
    elif len(set(configs.values())) > 1:
        raise DataError(f"expected config=NAME, one of {', '.join(known)}, found none")
    splits = {file: split_of(file) for file in files}
    if split is None or not any(splits.values()):
        return files
    wanted = canonical_split(split)
    kept = [file for file in files if splits[file] == wanted]
    if not kept:
        found = sorted({found for found in splits.values() if found})
        raise DataError(f"expected files of split {split!r}, found splits {found}")
    return kept


def split_of(file: str) -> str | None:
    """train, validate or test, as a file's name or else a folder of it says; None if none does."""
    for part in reversed(file.removesuffix(_SUFFIX).split("/")):
        for word in re.split(r"[^a-z]+", part.lower()):
            if (split := canonical_split(word)) in _SPLITS:
                return split
    return None


def canonical_split(word: str) -> str:
    """train, validate or test for the hub's words for them; another word as it is."""
    return next((split for split, words in _SPLITS.items() if word in words), word)


def _config_of(file: str) -> str:
    """The first folder, "" for the usual ones."""
    folder, slash, _ = file.partition("/")
    return folder if slash and folder != "data" and split_of(folder) is None else ""

"""The values that a pickle may contain: references to tensors, and inert placeholders."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of something in a module. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        name = f"{self.module}.{self.name}"[:160]
        return name if name.isprintable() else repr(name)


class Opaque:
    """An object whose type and state are ignored."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to a run of bytes outside the pickle.

    Attributes:
      type_name: the torch storage class, as `FloatStorage`.
      key: the name of its bytes.
      count: its number of elements, as stated in the pickle (not checked).
    """

    type_name: str
    key: str
    count: Any


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, as stated in the pickle (nothing is checked).

    Attributes:
      storage: the storage, if it is one.
      offset, shape, stride: in elements.
      dtype: a torch type's name where the storage has none of its own.
    """

    storage: Any
    offset: Any
    shape: Any
    stride: Any
    dtype: str | None = None


# Calls found in checkpoints of PyTorch and Lightning beside the weights. None of them is made:
# to be on this list means that the file is not refused for it.
HARMLESS = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.bytes",
        "builtins.complex",
        "builtins.dict",
        "builtins.frozenset",
        "builtins.list",
        "builtins.object",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "builtins.tuple",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "copyreg.__newobj__",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "datetime.timezone",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "numpy.dtype",
        "numpy.ndarray",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        # What Python 3.13 calls them.
        "pathlib._local.Path",
        "pathlib._local.PosixPath",
        "pathlib._local.PurePosixPath",
        "pathlib._local.PureWindowsPath",
        "pathlib._local.WindowsPath",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "torch.Generator",
        "torch.device",
        "torch.serialization._get_layout",
    }
)

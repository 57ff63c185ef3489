"""Reads user-supplied weights of a PyTorch network without executing anything in them."""

import os
from typing import Any

import numpy as np


def load_weights(
    network: Any, path: str | os.PathLike[str], torch: Any, unused: tuple[str, ...] = ()
) -> None:
    """Reads a file's tensors into a module of torch; its keys and shapes are checked first.

    Args:
      network: the module.
      path: a file or directory that `unix_jax.checkpoints.formats.readers.open_tensors` reads.
      torch: the package.
      unused: prefixes of additional keys that the file or the module may have.

    Raises:
      CheckpointError: the file is missing or broken, or its keys or shapes are not the module's.
    """
    from unix_jax.checkpoints.file_leaves import infos
    from unix_jax.checkpoints.fitting import raise_listing
    from unix_jax.checkpoints.formats.readers import open_tensors

    expected = {
        key: tuple(tensor.shape)
        for key, tensor in network.state_dict().items()
        if not key.startswith(unused)
    }
    with open_tensors(os.fspath(path)) as tensors:
        found = {key: info.shape for key, info in infos(tensors).items()}
        raise_listing(
            str(tensors.path),
            {key: shape for key, shape in expected.items() if key not in found},
            {
                key: shape
                for key, shape in found.items()
                if key not in expected and not key.startswith(unused)
            },
            {
                key: (shape, found[key])
                for key, shape in expected.items()
                if key in found and found[key] != shape
            },
            [],
        )
        state = {key: torch.from_numpy(np.array(tensors.read(key))) for key in expected}
    network.load_state_dict(state, strict=False)

"""The table covers the model and the files, exactly, at every size."""

from pathlib import Path

import numpy as np
import pytest

from support.published_folder import GQA
from unix_jax.checkpoints.formats.readers import open_tensors
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.table import (
    CONV,
    JANUS_DROPPED,
    LINEAR,
    SAME,
    UNUSED,
    VAE_DROPPED,
    janus_key,
    janus_table,
    published_key,
    unix_table,
    vae_table,
)
from unix_jax.config import UniXConfig
from unix_jax.models import autoencoder, unix

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = {name: UniXConfig.preset(name) for name in ("tiny", "published", "nano")} | {"gqa": GQA}


@pytest.mark.parametrize("name", CONFIGS)
def test_paths_and_shapes_are_the_models_own(name):
    config = CONFIGS[name]
    pairs = (
        (unix_table(config), unix.param_shapes(config)),
        (vae_table(config.vae), autoencoder.param_shapes(config.vae)),
    )
    for table, shapes in pairs:
        expected = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        assert {entry.path: entry.stacked_shape for entry in table} == expected
        assert len(table) == len(expected)
        keys = [key for entry in table for key in entry.keys]
        assert len(keys) == len(set(keys))


def test_covers_the_published_files():
    config = UniXConfig.preset("tiny")
    files = (
        (unix_table(config), "model.safetensors", UNUSED),
        (vae_table(config.vae), "vae/kl-f16d16.ckpt", VAE_DROPPED),
    )
    for table, name, ignored in files:
        with open_tensors(GOLDEN / "tiny" / "checkpoint" / name) as tensors:
            keys = tensors.keys()
            used = {key: tensors.info(key).shape for key in keys if not ignored.fullmatch(key)}
        assert {key: entry.file_shape for entry in table for key in entry.keys} == used


def test_covers_the_janus_file():
    with open_tensors(GOLDEN / "tiny_janus" / "pytorch_model.bin") as tensors:
        keys = tensors.keys()
    used = {
        key
        for key in keys
        if not JANUS_DROPPED.fullmatch(key) and not UNUSED.fullmatch(published_key(key))
    }
    table = janus_table(UniXConfig.preset("tiny"))
    assert {key for entry in table for key in entry.keys} == used
    assert all(janus_key(published_key(key)) == key for key in used)


@pytest.mark.parametrize("transform", [SAME, LINEAR, CONV], ids=lambda t: t.name)
def test_transforms_have_inverses(transform):
    rank = len(transform.axes or (0, 1, 2))
    tensor = np.arange(np.prod(range(2, 2 + rank))).reshape(range(2, 2 + rank))
    ours = transform.to_ours(tensor)
    np.testing.assert_array_equal(transform.to_file(ours), tensor)
    assert transform.file_shape(ours.shape) == tensor.shape

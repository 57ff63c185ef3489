"""Which parameters a stage trains."""

import jax
import numpy as np
import pytest

from support.toy_batches import CONFIG
from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.models.unix import param_shapes
from unix_jax.training.parameter_groups import is_trained, merge_params, split_params


@pytest.fixture(scope="module")
def params():
    return {
        "unix": param_shapes(CONFIG),
        "autoencoder": {"encoder": {"kernel": 1}},
        "rad_dino": {"norm": {"scale": 2}},
        "repa": {"fc1": {"kernel": 3}},
    }


def modules(tree):
    """Names of the parts, and of the modules of `unix` with their stream."""
    names = set()
    for path in flatten(tree):
        part, *rest = path.split("/")
        stream = [name for name in rest if name in ("und", "gen")]
        names.add("/".join([part, *rest[:1], *stream]) if part == "unix" else part)
    return names


UNDERSTANDING = {
    "unix/embed_tokens", "unix/lm_head", "unix/vision", "unix/connector", "unix/decoder/und",
}  # fmt: skip
GENERATION = {"unix/time_embedder", "unix/vae2llm", "unix/llm2vae", "unix/decoder/gen", "repa"}
NEVER = {"unix/latent_pos_embed", "autoencoder", "rad_dino"}


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("understanding", UNDERSTANDING),
        ("generation", GENERATION),
        ("all", UNDERSTANDING | GENERATION),
    ],
)
def test_stages(params, stage, expected):
    trained, frozen = split_params(params, stage)
    assert modules(trained) == expected
    assert modules(frozen) == (UNDERSTANDING | GENERATION | NEVER) - expected
    merged = merge_params(trained, frozen)
    assert flatten(merged) == flatten(params)
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_both_streams_have_their_final_norm(params):
    for stage, stream in (("understanding", "und"), ("generation", "gen")):
        norm = split_params(params, stage)[0]["unix"]["decoder"]["norm"]
        assert list(norm) == [stream]


def test_published_counts():
    """As the paper: 1.96 B trainable in understanding, 1.24 B in generation stages."""
    params = {"unix": param_shapes(UniXConfig.preset("published"))}

    def billions(stage):
        leaves = jax.tree.leaves(split_params(params, stage)[0])
        return sum(np.prod(x.shape, dtype=np.int64) for x in leaves) / 1e9

    assert round(billions("understanding"), 2) == 1.96
    assert round(billions("generation"), 2) == 1.24


def test_adapters_stand_in_for_the_model(params):
    trained, frozen = split_params(params | {"lora": {"a": 1}}, "generation", lora=True)
    assert modules(trained) == {"lora", "repa"}
    assert modules(frozen) == (UNDERSTANDING | GENERATION | NEVER) - {"repa"}


def test_unknown_names():
    with pytest.raises(ConfigError, match="stage: expected one of"):
        is_trained("unix/lm_head/kernel", "finetuning")
    with pytest.raises(ValueError, match="unix/lm_head2/kernel: expected a parameter of a known"):
        is_trained("unix/lm_head2/kernel", "all")
    with pytest.raises(ValueError, match="head/kernel: expected a parameter of a known part"):
        is_trained("head/kernel", "all")

"""Which parameters a stage trains."""

import jax
import numpy as np
import pytest

from support.toy_batches import CONFIG
from unix_jax.checkpoints.leaves import flatten
from unix_jax.config import UniXConfig
from unix_jax.errors import ConfigError
from unix_jax.models.unix import param_shapes
from unix_jax.training import parameter_groups
from unix_jax.training.parameter_groups import merge_params, split_params, trains_und


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
    ("trainable", "expected"),
    [
        (parameter_groups.UNDERSTANDING, UNDERSTANDING),
        (parameter_groups.GENERATION, GENERATION),
        (parameter_groups.JOINT, UNDERSTANDING | GENERATION),
        (".*", UNDERSTANDING | GENERATION),
        ("(vision|connector)/.*", {"unix/vision", "unix/connector"}),
        ("fc1/kernel", {"unix/connector", "unix/time_embedder", "unix/vision", "repa"}),
    ],
)
def test_patterns(params, trainable, expected):
    trained, frozen = split_params(params, trainable)
    assert modules(trained) == expected
    assert modules(frozen) >= (UNDERSTANDING | GENERATION | NEVER) - expected
    merged = merge_params(trained, frozen)
    assert flatten(merged) == flatten(params)
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_both_streams_have_their_final_norm(params):
    for trainable, stream in (
        (parameter_groups.UNDERSTANDING, "und"), (parameter_groups.GENERATION, "gen"),
    ):  # fmt: skip
        norm = split_params(params, trainable)[0]["unix"]["decoder"]["norm"]
        assert list(norm) == [stream]


def test_published_counts():
    """As the paper: 1.96 B trainable in understanding, 1.24 B in generation stages."""
    params = {"unix": param_shapes(UniXConfig.preset("published"))}

    def billions(trainable):
        leaves = jax.tree.leaves(split_params(params, trainable)[0])
        return sum(np.prod(x.shape, dtype=np.int64) for x in leaves) / 1e9

    assert round(billions(parameter_groups.UNDERSTANDING), 2) == 1.96
    assert round(billions(parameter_groups.GENERATION), 2) == 1.24


def test_adapters_stand_in_for_the_model(params):
    trained, frozen = split_params(params | {"lora": {"a": 1}}, parameter_groups.GENERATION)
    assert modules(trained) == {"lora", "repa"}
    assert modules(frozen) == (UNDERSTANDING | GENERATION | NEVER) - {"repa"}


def test_a_frozen_stream_is_one_that_nothing_trained_feeds(params):
    for trainable, expected in (
        (parameter_groups.GENERATION, False), ("lm_head/.*", False), ("vision/.*", True),
        ("layers/und/.*", True), ("embed_tokens/.*", True), ("norm/und/.*", True),
    ):  # fmt: skip
        assert trains_und(split_params(params, trainable)[0]) == expected, trainable


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ("lm_head2/.*", r"at least one of \d+ parameters \(such as unix/.*, which matches none"),
        ("gen", "which matches none"),
        ("(autoencoder|rad_dino|latent_pos_embed).*", "which matches none"),
        ("(gen", "a regular expression over parameter names, found"),
    ],
)
def test_patterns_that_match_nothing_are_refused(params, trainable, message):
    with pytest.raises(ConfigError, match=f"trainable: expected .*{message}"):
        split_params(params, trainable)

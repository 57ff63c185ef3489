"""The original's losses and gradients, through training batches split in every way.

`convert check` compares all samples in one row of one device (tests/convert/test_check.py); here
each sample has a row of its own, on a mesh, and in two microbatches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unix_jax.data.batch import TrainingBatch
from unix_jax.models.unix import UniX, param_shapes
from unix_jax.parity.check import read_golden_directory
from unix_jax.parity.golden import Golden
from unix_jax.parity.golden_training import (
    _gradient_tensors,
    _latent_tokens,
    _numbered,
    plan_samples,
)
from unix_jax.preprocessing.flow import shift_timestep
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out, stream_lengths
from unix_jax.sharding import make_mesh, param_shardings, shard_batch, use_mesh
from unix_jax.training.draws import FlowDraw
from unix_jax.training.losses import LossConfig, count_totals, loss_and_terms

GOLDEN = "tests/golden/tiny"
ROWS = 8  # five samples and three empty rows, so that the mesh divides them
CONFIG = LossConfig(ce_chunk=8)


@pytest.fixture(scope="module")
def expected(tiny, request):
    tensors, info = read_golden_directory(request.config.rootpath / GOLDEN)
    return Golden(tiny.config, tiny.params, tiny.vae_params, tensors, info)


@pytest.fixture(scope="module")
def inputs(expected):
    """(batch, latents, noise, timesteps) with one sample a row."""
    config = expected.config
    samples, flags = plan_samples(expected)
    samples += [[]] * (ROWS - len(samples))
    flags += [[]] * (ROWS - len(flags))
    layout = lay_out([[sample] if sample else [] for sample in samples], config)
    labels = np.zeros(layout.token_ids.shape, np.int32)
    ce_weights = np.zeros(layout.token_ids.shape, np.float32)
    mse_weights = np.zeros(layout.latent_position_ids.shape, np.float32)
    vit = iter(_numbered(expected, "train.vit_pixels"))
    side = config.vision.image_size
    vit_pixels = np.zeros((ROWS, 1, side, side, 3), np.float32)
    for row, (sample, losses) in enumerate(zip(samples, flags, strict=True)):
        und = gen = 0
        for split, loss in zip(sample, losses, strict=True):
            und_length, gen_length = stream_lengths([[split]], config)
            if isinstance(split, TextSplit) and loss:
                labels[row, und : und + und_length - 1] = split.ids[1:]
                ce_weights[row, und : und + und_length - 1] = 1
            if isinstance(split, VitSplit):
                vit_pixels[row, 0] = next(vit)
            if isinstance(split, VaeSplit) and loss:
                mse_weights[row, gen : gen + gen_length] = 1
            und, gen = und + und_length, gen + gen_length

    def rows_of(packed):
        """Values of the packed latents, by row."""
        out = np.zeros((*mse_weights.shape, *packed.shape[1:]), np.float32)
        out[layout.gen.segment > 0] = packed
        return out

    images = _numbered(expected, "train.vae_pixels")
    latents = expected.vae("encode", np.stack(images))
    times = jax.nn.sigmoid(jnp.asarray(expected["train.packed_timesteps"]))
    batch = TrainingBatch(
        token_ids=layout.token_ids,
        und=layout.und,
        labels=labels,
        ce_weights=ce_weights,
        vit_pixels=vit_pixels,
        vit_index=layout.vit_index,
        gen=layout.gen,
        latent_position_ids=layout.latent_position_ids,
        mse_weights=mse_weights,
    )
    return (
        batch,
        rows_of(_latent_tokens(expected, latents, images)[0]),
        rows_of(expected["train.noise"]),
        rows_of(np.asarray(shift_timestep(times, config.timestep_shift))),
    )


@functools.partial(jax.jit, static_argnames="config")
def gradients_of(params, inputs, totals, config):
    def total(params):
        batch, latents, noise, timesteps = inputs
        drawn = FlowDraw(latents, noise, timesteps)
        loss, _, terms = loss_and_terms(
            UniX(config), {"unix": params}, batch, drawn, totals, CONFIG
        )
        return loss, (terms.ce, terms.squared_error)

    return jax.value_and_grad(total, has_aux=True)(params)


def check(expected, inputs, loss, ce, error, gradients, assert_close):
    batch = inputs[0]
    assert_close(loss, expected.info["train"]["loss_value"])
    assert_close(np.asarray(ce)[batch.ce_weights > 0], expected["train.ce"])
    assert_close(np.asarray(error)[batch.mse_weights > 0], expected["train.mse"])
    ours = _gradient_tensors(expected, gradients)
    names = [name for name in expected.tensors if name.startswith("train.grad.")]
    assert len(names) > 100
    for name in names:
        assert_close(ours[name], expected[name], 1e-4)


@pytest.mark.slow
def test_rows_on_a_mesh(expected, inputs, assert_close):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    boxed = param_shapes(expected.config, boxed=True)
    placed = jax.device_put(expected.params, param_shardings(boxed, mesh))
    with use_mesh(mesh):
        totals = count_totals(inputs[0])
        (loss, (ce, error)), gradients = gradients_of(
            placed, shard_batch(inputs, mesh), totals, expected.config
        )
    check(expected, inputs, loss, ce, error, gradients, assert_close)


@pytest.mark.extended
def test_microbatches(expected, inputs, assert_close):
    totals = count_totals(inputs[0])
    parts = [
        gradients_of(
            expected.params, jax.tree.map(lambda x, i=i: x[i::2], inputs), totals, expected.config
        )
        for i in range(2)
    ]
    # Rows 0, 2, 4, 6 and rows 1, 3, 5, 7: their shares add up.
    loss = sum(part[0][0] for part in parts)
    gradients = jax.tree.map(jnp.add, parts[0][1], parts[1][1])
    whole = []
    for halves in zip(*(part[0][1] for part in parts), strict=True):
        joined = np.zeros((ROWS, *halves[0].shape[1:]), np.float32)
        joined[0::2], joined[1::2] = halves
        whole.append(joined)
    check(expected, inputs, loss, *whole, gradients, assert_close)

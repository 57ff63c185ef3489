"""int8 weights: how near they are, and that a pipeline computes with them and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from support.toy_pipelines import PROMPTS, SMALL, pictures, small_params
from unix_jax import UniXPipeline
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.models.quantization import quantized
from unix_jax.sharding import make_mesh

# A scale that is no normal number may be 0 to XLA.
NUMBERS = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (3, 5), elements=NUMBERS))
def test_the_nearest_of_255_numbers(kernel):
    numbers, scale = map(np.asarray, quantized(kernel))
    assert numbers.dtype == np.int8
    assert numbers.min() >= -127
    np.testing.assert_allclose(scale, np.abs(kernel).max(axis=1) / 127, rtol=1e-6)
    error = np.abs(numbers * scale[:, None] - kernel)
    assert (error <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(wrong):
    kernel = np.ones((2, 4), np.float32)
    kernel[0, 1] = wrong
    _, scale = quantized(kernel)
    assert not np.isfinite(scale[0])
    assert np.isfinite(scale[1])


def of_reports(path):
    """Whether a leaf is a kernel of the und stream or of the head."""
    names = [part.key for part in path]
    return names[-1] == "kernel" and ("und" in names or names[0] == "lm_head")


def rounded(params):
    """Stacked params with the kernels that int8 stands for."""

    def one(path, x):
        if not of_reports(path):
            return x
        numbers, scale = quantized(np.swapaxes(x, -1, -2).reshape(-1, x.shape[-2]))
        back = (numbers * scale[:, None]).reshape(*x.shape[:-2], x.shape[-1], x.shape[-2])
        return jnp.swapaxes(back, -1, -2)

    return jax.tree_util.tree_map_with_path(one, params)


def test_a_pipeline_computes_with_the_rounded_weights():
    params, vae = small_params()
    expected = UniXPipeline(SMALL, rounded(params), vae)
    ours = UniXPipeline(SMALL, *small_params(), quantization="int8")
    kinds = {
        str(leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours.params)
        if of_reports(path)
    }
    assert kinds == {"int8"}
    assert "float32 with int8 weights on" in repr(ours)
    how = {"prompts": PROMPTS, "max_new_tokens": 12}
    images = pictures(len(PROMPTS))
    assert ours.generate_report_ids(images, **how) == expected.generate_report_ids(images, **how)
    draw = {"height": 12, "width": 20, "num_inference_steps": 3, "output_type": "latent"}
    np.testing.assert_allclose(
        ours.generate_image([[5, 6]], **draw), expected.generate_image([[5, 6]], **draw), atol=2e-5
    )


def test_what_int8_cannot_do(tmp_path):
    with pytest.raises(PromptError, match="quantization: expected none with a mesh that"):
        UniXPipeline(SMALL, *small_params(), mesh=make_mesh(fsdp=8), quantization="int8")
    with pytest.raises(PromptError, match="quantization: expected one of"):
        UniXPipeline(SMALL, *small_params(), quantization="int4")
    pipe = UniXPipeline(SMALL, *small_params(), quantization="int8")
    with pytest.raises(CheckpointError, match="load the checkpoint without quantization"):
        pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()

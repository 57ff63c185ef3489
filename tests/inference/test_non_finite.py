"""Numbers that are not finite stop an inference, and the error says where they arose."""

import functools

import jax
import numpy as np
import pytest

from support.toy_pipelines import PROMPTS, SMALL, pictures, small_params, small_writing_pipe
from unix_jax.checkpoints.leaves import flatten, unflatten
from unix_jax.errors import NonFiniteError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.inference.settings import ImageSettings

SIZE = {"height": 12, "width": 20, "num_inference_steps": 3}
# Every attention implementation's own way of masking would do with these.
UND = [
    "vision/patch_embed/kernel",
    "vision/blocks/fc1/kernel",
    "connector/fc2/bias",
    "decoder/layers/und/q_proj/kernel",
    "decoder/layers/und/k_norm/scale",
    "decoder/layers/und/v_proj/bias",
    "decoder/layers/und/down_proj/kernel",
    "decoder/norm/und/scale",
    "lm_head/kernel",
]
GEN = [
    "decoder/layers/gen/q_norm/scale",
    "decoder/layers/gen/k_proj/bias",
    "decoder/layers/gen/up_proj/kernel",
    "decoder/norm/gen/scale",
    "llm2vae/bias",
    "time_embedder/fc1/kernel",
]


@functools.cache
def damaged(name, value=np.nan, part=0):
    """A pipeline with one array of which one number is `value`."""
    trees = [flatten(tree) for tree in small_params()]
    array = np.array(trees[part][name])
    array[(-1,) * array.ndim] = value
    trees[part][name] = jax.numpy.asarray(array)
    tokenizer = small_writing_pipe().tokenizer
    return UniXPipeline(SMALL, unflatten(trees[0]), unflatten(trees[1]), tokenizer)


@pytest.mark.parametrize("name", UND)
def test_a_report_of_damaged_weights_is_an_error(name):
    images = pictures(2)
    with pytest.raises(NonFiniteError, match=r"^images\[0\], images\[1\]: .*2 of 2 rows"):
        damaged(name).generate_report_ids(images, prompts=[5, 6, 7], max_new_tokens=6)
    with pytest.raises(NonFiniteError, match=r"^images\[0\]: "):
        next(damaged(name).stream_report(images[:1], prompts=[5, 6, 7], max_new_tokens=6))


def test_logits_say_the_token():
    with pytest.raises(NonFiniteError, match=r"logits, first of new token 1, are NaN or infinite"):
        damaged("lm_head/kernel").generate_report_ids(pictures(1), prompts=[5], max_new_tokens=6)
    # An infinite logit alone would win every greedy choice.
    with pytest.raises(NonFiniteError, match="logits"):
        damaged("lm_head/kernel", np.inf).generate_report_ids(
            pictures(1), prompts=[5], max_new_tokens=6
        )


def test_only_the_rows_that_are_not_finite_are_named():
    """A token whose embedding is damaged spoils the rows that hold it."""
    pipe = damaged("embed_tokens/embedding")
    last = SMALL.decoder.vocab_size - 1
    with pytest.raises(NonFiniteError, match=r"^images\[1\]: .* 1 of 3 rows"):
        pipe.generate_report_ids(pictures(3), prompts=[[5], [last], [6]], max_new_tokens=3)
    with pytest.raises(NonFiniteError, match=r"^prompts\[2\]: keys or values of the context"):
        pipe.generate_image([[5], [6], [last]], output_type="latent", **SIZE)
    assert len(pipe.generate_report_ids(pictures(2), prompts=[5], max_new_tokens=3)) == 2
    prompts = [[5], [6], [7], [last], [8]]
    with pytest.raises(NonFiniteError, match=r"^images\[3\]: "):
        pipe.generate_report_ids(pictures(5), prompts=prompts, max_new_tokens=3, batch_size=2)


@pytest.mark.parametrize("name", GEN)
def test_an_image_of_damaged_weights_is_an_error(name):
    with pytest.raises(NonFiniteError, match=r"^prompts\[0\].*latents .* by step 3 of 3"):
        damaged(name).generate_image(PROMPTS, output_type="latent", **SIZE)
    steps = damaged(name).stream_image([5], settings=ImageSettings(**SIZE), every=1)
    with pytest.raises(NonFiniteError, match="by step 1 of 3"):
        next(steps)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_pixels_of_a_damaged_autoencoder_are_an_error(output_type):
    pipe = damaged("decoder/conv_out/bias", part=1)
    with pytest.raises(NonFiniteError, match=r"^prompts\[0\], prompts\[1\]: decoded pixels"):
        pipe.generate_image([[5], [6]], output_type=output_type, **SIZE)
    with pytest.raises(NonFiniteError, match="decoded pixels"):
        next(pipe.stream_image([5], settings=ImageSettings(**SIZE), every=1))


@pytest.mark.extended
def test_condition_images_are_named_by_their_prompt():
    pipe = damaged("encoder/conv_in/kernel", part=1)
    with pytest.raises(NonFiniteError, match=r"^prompts\[\d\]"):
        pipe.generate_image([[5], [6]], images=pictures(2), output_type="latent", **SIZE)

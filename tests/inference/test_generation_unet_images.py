"""Images of a model whose generation backbone is a U-Net: solvers, rows, meshes, files."""

import jax
import numpy as np
import pytest

from support.toy_pipelines import PROMPTS
from support.toy_unet import CONFIG, unet_params, unet_pipe
from unix_jax import UniXPipeline
from unix_jax.errors import CheckpointError, PromptError
from unix_jax.models import autoencoder
from unix_jax.sharding import make_mesh

# models/test_generation_unet.py has the backbone itself.
pytestmark = pytest.mark.extended

OPTIONS = {"height": 12, "width": 20, "num_inference_steps": 4, "output_type": "latent"}
GUIDED = {"guidance_scale": 3.0, "guidance_interval": (0.3, 1.0), "renorm": "channel"}


def generate(prompts, pipe=None, **options):
    return np.asarray((pipe or unet_pipe()).generate_image(prompts, **(OPTIONS | options)))


# The guided runs have steps outside of the interval, which are as those of the plain one.
@pytest.mark.parametrize(
    ("solver", "guided"),
    [
        ("euler", {}),
        ("euler", GUIDED),
        ("ab2", GUIDED),
        ("pec", GUIDED),
    ],
    ids=["plain-euler", "guided-euler", "guided-ab2", "guided-pec"],
)
def test_a_row_alone_equals_its_row_of_a_batch(solver, guided):
    seeds = [1, 2, 3]
    whole = generate(PROMPTS[:3], seed=seeds, solver=solver, **guided)
    assert np.isfinite(whole).all()
    alone = generate(PROMPTS[2:3], seed=3, solver=solver, **guided)
    np.testing.assert_allclose(alone[0], whole[2], atol=2e-5)


def test_text_guidance_and_renormalisation_act():
    plain = generate([[5, 6, 7]], seed=1, guidance_scale=1.0)
    guided = generate([[5, 6, 7]], seed=1, **GUIDED)
    other = generate([[5, 6, 7]], seed=1, **(GUIDED | {"renorm": "global"}))
    assert np.abs(guided - plain).max() > 1e-3
    assert np.abs(guided - other).max() > 1e-4


def test_a_stream_ends_in_the_image():
    options = {name: value for name, value in OPTIONS.items() if name != "output_type"}
    *_, last = unet_pipe().stream_image([[5, 6, 7]], seed=1, every=2, **options)
    np.testing.assert_allclose(np.asarray(last.latents), generate([[5, 6, 7]], seed=1), atol=1e-6)


def test_condition_images_are_refused():
    image = np.zeros((16, 16), np.uint8)
    with pytest.raises(PromptError, match="images: expected None for a model with a U-Net"):
        generate([[5, 6, 7]], images=[image])


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
def test_a_mesh_makes_one_devices_images():
    from support.toy_pipelines import random_params

    vae_params = random_params(autoencoder.param_shapes(CONFIG.vae), 1)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = UniXPipeline(CONFIG, unet_params(), vae_params, mesh=mesh)
    ours = generate(PROMPTS[:3], sharded, seed=[1, 2, 3], **GUIDED)
    np.testing.assert_allclose(ours, generate(PROMPTS[:3], seed=[1, 2, 3], **GUIDED), atol=2e-5)


def test_a_saved_model_is_the_same(tmp_path):
    unet_pipe().save_pretrained(tmp_path / "saved")
    loaded = UniXPipeline.from_pretrained(
        tmp_path / "saved", dtype="float32", compilation_cache=False
    )
    assert loaded.config == CONFIG
    np.testing.assert_array_equal(
        generate([[5, 6, 7]], loaded, seed=1), generate([[5, 6, 7]], seed=1)
    )
    with pytest.raises(CheckpointError, match="the published layout has no other, found a U-Net"):
        unet_pipe().save_pretrained(tmp_path / "published", layout="published")
    assert not (tmp_path / "published").exists()

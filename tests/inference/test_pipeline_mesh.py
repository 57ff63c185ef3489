"""Meshes of eight devices give one device's results, whatever the number of rows."""

import re

import jax
import numpy as np
import pytest

from support.toy_pipelines import SMALL, pictures, small_params, small_pipe, tiny_pipe
from unix_jax import UniXPipeline
from unix_jax.errors import ConfigError
from unix_jax.inference import decoding
from unix_jax.sharding import make_mesh

PROMPTS = [[5, 6, 7], [8], list(range(40))]
DRAW = {"height": 12, "width": 20, "num_inference_steps": 2, "seed": [1, 2, 3]}
MESHES = [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            mesh,
            id=",".join(f"{axis}{size}" for axis, size in mesh.items()),
            marks=[pytest.mark.extended] * (mesh is not MESHES[-1]),
        )
        for mesh in MESHES
    ],
)
def sharded(request):
    assert len(jax.devices()) == 8, "conftest.py asks for eight virtual devices"
    return UniXPipeline(SMALL, *small_params(), mesh=make_mesh(**request.param))


def test_reports_are_one_devices(sharded):
    # Three rows: no mesh here splits them evenly.
    images = pictures(3)
    options = {"prompts": PROMPTS, "max_new_tokens": 10}
    expected = small_pipe().generate_report_ids(images, **options)
    assert sharded.generate_report_ids(images, **options) == expected
    # One row alone runs the same program: rows are filled up to the shards.
    (alone,) = sharded.generate_report_ids(images[:1], prompts=PROMPTS[:1], max_new_tokens=10)
    assert alone == expected[0]


@pytest.mark.extended
def test_replaced_rows_are_one_devices(sharded):
    images = pictures(11)
    options = {"prompts": [PROMPTS[i % 3] for i in range(11)], "max_new_tokens": 6}
    expected = small_pipe().generate_report_ids(images, **options)
    assert sharded.generate_report_ids(images, batch_size=5, **options) == expected


@pytest.mark.extended
def test_images_are_one_devices(sharded):
    expected = small_pipe().generate_image(PROMPTS, **DRAW, output_type="latent")
    ours = sharded.generate_image(PROMPTS, **DRAW, output_type="latent")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_devices_with_all_weights_decode_their_rows_alone(monkeypatch):
    """As one device does, with unrolled layers, and nothing is sent for a token."""
    pipe = UniXPipeline(SMALL, *small_params(), mesh=make_mesh(data=8))
    assert not pipe.model.scan_layers
    images = pictures(32)
    options = {"prompts": [5, 6, 7], "max_new_tokens": 6}
    expected = small_pipe().generate_report_ids(images, **options)
    programs = {"decode_until": [], "replace_rows": []}
    decode = decoding.decode_until

    def recording(name):
        program = getattr(decoding, name)

        def recorded(*arguments, **options):
            programs[name].append(program.lower(*arguments, **options))
            return program(*arguments, **options)

        return recorded

    for name in programs:
        monkeypatch.setattr(decoding, name, recording(name))
    compiled = decode._cache_size()
    assert pipe.generate_report_ids(images, batch_size=16, **options) == expected
    assert decode._cache_size() == compiled + 1  # one program for every call

    def sent(name):
        program = programs[name][0].compile().as_text()
        return re.findall(r" = (\S+) (all-\w+|collective-permute|reduce-scatter)\(", program)

    # The number of rows that have ended, and of slots that are needed.
    assert sent("decode_until") == [("s32[]", "all-reduce")] * 2
    # The eight new rows, not the sixteen of the state, each with two heads.
    assert not [
        shape for shape, _ in sent("replace_rows") if shape.startswith(("f32[32", "f32[16,2"))
    ]


@pytest.mark.extended
def test_sampled_reports_decoded_images_and_edits():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded, single = UniXPipeline(SMALL, *small_params(), mesh=mesh), small_pipe()
    options = {"prompts": PROMPTS, "max_new_tokens": 10, "temperature": 1.5, "top_p": 0.9,
               "seed": [3, 4, 5]}  # fmt: skip
    assert sharded.generate_report_ids(pictures(3), **options) == single.generate_report_ids(
        pictures(3), **options
    )
    edit = DRAW | {"images": [np.full((16, 16), 9 * i, np.uint8) for i in range(3)],
                   "image_guidance_scale": 1.5, "output_type": "np"}  # fmt: skip
    ours, expected = (pipe.generate_image(PROMPTS, **edit) for pipe in (sharded, single))
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_checkpoint_loads_onto_the_mesh():
    from support.toy_pipelines import CHECKPOINT

    mesh = make_mesh(fsdp=4, tensor=2)
    pipe = UniXPipeline.from_pretrained(
        CHECKPOINT, dtype="float32", mesh=mesh, compilation_cache=False
    )
    kernel = pipe.params["decoder"]["layers"]["und"]["q_proj"]["kernel"]  # [L, D, N*H]
    assert kernel.shape == (3, 64, 64)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 16, 32)}
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(pipe.params)} == {8}
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(pipe.vae_params)} == {8}
    single = tiny_pipe()
    unstacked = single.params["decoder"]["layers_1"]["und"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[1].T, unstacked)


def test_meshes_that_do_not_fit():
    with pytest.raises(ConfigError, match="tensor=8 does not divide"):
        UniXPipeline(SMALL, *small_params(), mesh=make_mesh(tensor=8))
    with pytest.raises(ConfigError, match="tensor=4 does not divide num_kv_heads 2"):
        UniXPipeline(SMALL, *small_params(), mesh=make_mesh(fsdp=2, tensor=4))
    with pytest.raises(ConfigError, match="Auto axes"):
        UniXPipeline(SMALL, *small_params(), mesh=jax.make_mesh((8,), ("data",)))
    with pytest.raises(ConfigError, match="multiply to 8 devices"):
        make_mesh(data=3)

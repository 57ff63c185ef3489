"""Training of the U-Net as the generation backbone: the step, meshes, runs, what is refused."""

import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest

from support import toy_run
from support.toy_batches import named
from support.toy_unet import BACKBONE, CONFIG, init_unix, make_batch, unet_params
from unix_jax.checkpoints import native
from unix_jax.checkpoints.export import export_published
from unix_jax.commands.checkpoint_table import parameter_counts
from unix_jax.config import TransformerStream, UNetBackbone
from unix_jax.data.config import DataConfig
from unix_jax.errors import CheckpointError, ConfigError
from unix_jax.models.unix import UniX
from unix_jax.sharding import make_mesh, shard_batch
from unix_jax.training.config import ModelConfig, TrainConfig
from unix_jax.training.lora import LoraConfig
from unix_jax.training.losses import LossConfig
from unix_jax.training.optimizer import OptimizerConfig, make_optimizer
from unix_jax.training.parameter_groups import GENERATION_UNET
from unix_jax.training.repa import RepaConfig
from unix_jax.training.stages import make_stage
from unix_jax.training.state import create_state
from unix_jax.training.step import StepConfig, make_train_step

KEY = jax.random.key(3)
STEPS = 6


@functools.cache
def run(*axes):
    """(losses of the steps, frozen parameters before, final state) on a mesh of these axes."""
    mesh = make_mesh(**dict(axes)) if axes else None
    tx, schedule = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup_steps=1))
    state = create_state(
        GENERATION_UNET, tx, KEY, init={"unix": init_unix}, given={"unix": unet_params()}, mesh=mesh
    )
    frozen = jax.tree.map(np.asarray, state.frozen)
    batch = make_batch(16)
    shardings = None
    if mesh is not None:
        batch, shardings = shard_batch(batch, mesh), jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(
        UniX(CONFIG, freeze_und=True, remat_policy="full"),
        StepConfig(LossConfig(ce_weight=0.0), accumulation=2), tx, schedule, shardings=shardings,
    )  # fmt: skip
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch, KEY)
        losses.append(float(metrics["loss"]))
    return np.array(losses), frozen, state


@pytest.mark.extended
def test_the_unet_learns_and_nothing_else_changes():
    losses, frozen, state = run()
    assert losses[-1] < 0.8 * losses[0]
    assert {path.split("/")[1] for path in named(state.trained)} == {"unet"}
    after = named(state.frozen)
    for path, value in named(frozen).items():
        np.testing.assert_array_equal(after[path], value)


@pytest.mark.extended
@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 (virtual) devices")
@pytest.mark.parametrize(
    "axes",
    [
        (("data", 2), ("fsdp", 2), ("tensor", 2)),
        *(
            pytest.param(axes, marks=pytest.mark.slow)
            for axes in ((("data", 8),), (("fsdp", 8),), (("fsdp", 4), ("tensor", 2)))
        ),
    ],
    ids=lambda axes: ",".join(f"{name}{size}" for name, size in axes),
)
def test_meshes_make_the_same_losses(axes):
    losses, _, state = run(*axes)
    np.testing.assert_allclose(losses, run()[0], rtol=1e-4)
    kernel = state.trained["unix"]["unet"]["mid_block_resnets_0"]["conv1"]["kernel"]
    split = kernel.size // kernel.addressable_shards[0].data.size
    assert split == math.prod(size for name, size in axes if name != "data")


# ------------------------------------------------------------------------- runs of train.py


def unet_config(toy, directory):
    """A configuration file of a run that trains a U-Net."""
    text = toy("generation").read_text()
    text = text.replace(
        'ModelConfig(remat="none")',
        'ModelConfig(remat="none", generation=UNetBackbone(widths=(8, 16), attention=(True, True), '
        "layers=(1, 1), depths=(1, 1), norm_groups=4))",
    )
    assert "UNetBackbone" in text
    directory.mkdir(exist_ok=True)
    path = directory / "config.py"
    path.write_text(text.replace('"""A toy."""', "from unix_jax.config import UNetBackbone", 1))
    return path


@pytest.fixture(scope="module")
def finished(toy, train, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unet")
    config = unet_config(toy, directory)
    assert train.main([str(config), "--out", str(directory / "run"), "--preview-every", "4"]) == 0
    return config, directory / "run"


@pytest.mark.extended
def test_a_run_replaces_the_gen_stream_and_exports(finished):
    _, run_directory = finished
    names = toy_run.exported(run_directory)
    assert any(name.startswith("unet/") for name in names)
    assert not any("/gen/" in name or name.startswith("vae2llm") for name in names)
    config = native.load_config(run_directory / "export")
    assert config.generation == UNetBackbone((8, 16), (True, True), (1, 1), (1, 1), 4)
    counts = parameter_counts(config)
    assert counts["U-Net"] == sum(x.size for n, x in names.items() if n.startswith("unet/"))
    assert "decoder, gen" not in counts
    assert list((run_directory / "previews").glob("*.png"))


@pytest.mark.extended
def test_a_crash_and_a_resumption_make_the_same_run(finished, train, tmp_path, monkeypatch):
    from unix_jax.training import feed

    config, whole = finished
    arguments = [str(config), "--out", str(tmp_path), "--preview-every", "4"]
    asked, original = [], feed.Feed.__next__

    def counted(self):
        asked.append(1)
        if len(asked) == 6:
            raise SystemExit("killed")
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(feed.Feed, "__next__", counted)
        with pytest.raises(SystemExit):
            train.main(arguments)
    assert train.main(arguments) == 0
    toy_run.assert_same_run(whole, tmp_path)


@pytest.mark.extended
def test_another_backbone_does_not_resume(finished, toy, train, capsys):
    _, out = finished
    error = toy_run.one_error(train, capsys, toy("generation"), "--out", out)
    assert re.search(r"model.generation: expected UNetBackbone\(.*found TransformerStream", error)


@pytest.mark.extended
def test_a_trained_unet_is_not_replaced(finished, toy, train, capsys, tmp_path):
    _, run_directory = finished
    arguments = (toy("generation"), "--init", run_directory, "--out", tmp_path / "other")
    error = toy_run.one_error(train, capsys, *arguments)
    assert "model.generation: expected the backbone of" in error
    assert not (tmp_path / "other" / "run.json").exists()


@pytest.mark.extended
def test_a_unet_starts_from_its_own_checkpoint(finished, train, tmp_path):
    config, run_directory = finished
    arguments = [str(config), "--init", str(run_directory), "--out", str(tmp_path / "next")]
    assert train.main([*arguments, "--total-steps", "1"]) == 0
    record = json.loads((tmp_path / "next" / "run.json").read_text())
    assert record["model"]["generation"]["type"] == "unet"


@pytest.mark.extended
def test_the_published_layout_is_refused(finished, tmp_path):
    _, run_directory = finished
    with pytest.raises(CheckpointError, match="generation: expected UniX's own backbone"):
        export_published(run_directory, tmp_path / "published")
    assert not (tmp_path / "published").exists()


# ------------------------------------------------------------------------- what is refused


DATA = DataConfig(source="nowhere", task="generation", vit_images=0, vae_images=2)


def config_of(**fields):
    values = {"stage": "generation", "data": DATA, "total_steps": 2}
    return TrainConfig(**(values | {"model": ModelConfig(generation=BACKBONE)} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": LoraConfig(rank=2)}, "lora.rank: expected 0 with a U-Net"),
        ({"repa": RepaConfig(encoder="x")}, "repa.encoder: expected None with a U-Net"),
        (
            {"data": dataclasses.replace(DATA, task="edit", vit_images=1)},
            "data.task: expected 'generation' with a U-Net",
        ),
    ],
)
def test_what_the_unet_does_not_support(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**fields)


def test_the_pattern_follows_the_backbone():
    assert config_of().pattern == "unet/.*"
    assert config_of(model=ModelConfig()).pattern != "unet/.*"
    assert "generation" not in config_of().to_dict()["model"]


def test_a_stage_without_generation_does_not_read_the_backbone():
    data = DataConfig(source="nowhere")
    unread = config_of(stage="understanding", data=data).unread()
    assert ("model.generation", BACKBONE, TransformerStream(), "in the stage understanding") in [
        (name, value, usual, why) for name, value, usual, why in unread
    ]


@pytest.mark.extended
def test_adapters_of_the_gen_stream_need_one():
    config = TrainConfig(
        stage="understanding", data=DataConfig(source="nowhere"), total_steps=2,
        lora=LoraConfig(rank=2, streams=("und", "gen")),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"lora.streams: expected \('und',\) for a model with"):
        make_stage(config, CONFIG, make_mesh(devices=jax.devices()[:1]), 2)

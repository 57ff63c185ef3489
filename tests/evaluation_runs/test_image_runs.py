"""X-rays drawn by the toy model from a data set, and measured by a toy RAD-DINO."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import toy_pipelines
from unix_jax.commands import evaluate
from unix_jax.data.sources import open_source
from unix_jax.errors import CheckpointError, PromptError, UniXError
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.finding_groups import shard_mean
from unix_jax.evaluation.image import frechet_distance, prdc
from unix_jax.evaluation_runs import image_scores
from unix_jax.evaluation_runs.image_runs import item_seed
from unix_jax.evaluation_runs.image_scores import DISTANCES
from unix_jax.preprocessing.transforms import save_png, to_pil

RAD_DINO = Path(__file__).parents[1] / "golden" / "metrics_tiny" / "rad_dino"
SOME = 14
OPTIONS = {"batch_size": 4, "size": 16, "num_inference_steps": 2, "resamples": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    rows = []
    for index, picture in enumerate(toy_pipelines.pictures(SOME)):
        save_png(directory / f"{index}.png", to_pil(picture))
        labels = ["Edema"] if index % 2 else ["Nodule"] if index == 0 else []
        rows.append({"image": f"{index}.png", "impression": f"Text {index}.", "labels": labels})
    (directory / "5.png").write_bytes(b"no picture")
    rows.append({"image": "0.png"})
    (directory / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"manifest:{directory}"


def command(data, out, **options):
    options = {"split": "", **OPTIONS, **options}
    return evaluate.EvaluateImages(
        checkpoint=str(toy_pipelines.CHECKPOINT), data=data, out=str(out), **options
    )


@pytest.fixture(scope="module")
def drawn(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.OverData, "_load", lambda self: toy_pipelines.small_writing_pipe())
        command(data, out).run()
    return out


def results_of(out):
    return json.loads((out / "results.json").read_text())


@pytest.mark.extended
def test_without_an_encoder_images_alone_are_made_and_it_is_said(drawn):
    results = results_of(drawn)
    assert results["counts"] == {
        "items": SOME + 1, "scored": SOME - 1, "failed": 2, "not_comparable": 0,
    }  # fmt: skip
    assert results["metrics"] == {}
    assert "--rad-dino PATH" in results["not_computed"][DISTANCES]
    assert [failure["index"] for failure in results["failures"]] == [5, SOME]
    names = sorted(path.name for path in (drawn / "images").iterdir())
    assert names == [f"{index:06d}.png" for index in range(SOME) if index != 5]
    with Image.open(drawn / "images" / "000003.png") as picture:
        assert picture.size == (16, 16)
        assert picture.text == {"prompt": "Text 3.", "seed": str(item_seed(0, 3))}
    assert (drawn / "contact_sheet.png").exists()
    assert "Samples" in (drawn / "report.html").read_text()


@pytest.mark.extended
def test_an_image_depends_on_its_item_alone(drawn):
    prompts = ["Text 9.", "Text 6.", "Other.", "Text 1."]
    seeds = [1, item_seed(0, 6), 2, 3]
    others = toy_pipelines.small_writing_pipe().generate_image(
        prompts, height=16, width=16, num_inference_steps=2, seed=seeds
    )
    with Image.open(drawn / "images" / "000006.png") as picture:
        np.testing.assert_allclose(np.asarray(picture, int), np.asarray(others[1], int), atol=1)
    assert len({item_seed(seed, index) for seed in range(20) for index in range(20)}) == 400


@pytest.mark.extended
def test_with_an_encoder_the_distances_are_those_of_the_library(data, drawn):
    command(data, drawn, rad_dino=str(RAD_DINO), by_pathology=True).run()  # draws nothing again
    results = results_of(drawn)
    source = open_source(data)
    done = [index for index in range(SOME) if index != 5]
    encoder = RadDino.from_pretrained(RAD_DINO)
    real = encoder.features(source[index].image for index in done)
    fake = encoder.features(drawn / "images" / f"{index:06d}.png" for index in done)
    value = {name: metric["value"] for name, metric in results["metrics"].items()}
    assert value["FD"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert {name: value[name] for name in prdc(real, fake)} == pytest.approx(prdc(real, fake))
    assert results["metrics"]["pair similarity"]["low"] <= value["pair similarity"]
    assert results["scoring"]["distances"] == "all rows"
    groups = results["groups"]["FD by pathology"]
    odd = [place for place, index in enumerate(done) if index % 2]
    expected = frechet_distance(real[odd], fake[odd])
    assert groups["Edema"]["value"] == pytest.approx(expected, rel=1e-6)
    assert groups["Nodule"] == {"value": None, "real_rows": 1, "fake_rows": 1}
    assert list(results["not_computed"]) == [
        "alignment", "Inception FID, KID and score", "Fréchet radiomics distance",
        "nearest training images",
    ]  # fmt: skip
    page = (drawn / "report.html").read_text()
    assert "FD by pathology" in page
    assert "Worst cases, by similarity to the real image" in page


def test_prompts_without_images(data, tmp_path, monkeypatch):
    """The original's table: images are generated, and later compared with other records."""
    monkeypatch.setattr(evaluate.OverData, "_load", lambda self: toy_pipelines.small_writing_pipe())
    table = tmp_path / "prompts.csv"
    lines = [f"Text {index}.,{index}.jpg" for index in (1, 2, 1)]
    table.write_text("\n".join(["annotated_prompt,synthetic_filename", *lines]) + "\n")
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="1 of 3 rows have an annotated_prompt"):
        command(f"csv:{table}", out, split="test", rad_dino=str(RAD_DINO)).run()
    results = results_of(out)
    assert results["counts"]["scored"] == 2
    assert "found 0 real and 2 generated" in results["not_computed"][DISTANCES]
    with (out / "generations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "annotated_prompt": "Text 2.", "synthetic_filename": "images/000001.png", "key": "2.jpg",
    }  # fmt: skip
    measured = tmp_path / "measured"
    evaluate.EvaluateImages(
        generated=out, data=data, split="", out=str(measured), train=data, train_split=""
    ).run()
    results = results_of(measured)
    assert "2 of 2" in results["notes"][0]
    assert results["metrics"]["pixel distance, smallest"]["value"] > 0


def test_the_figures_of_shards(data, drawn, monkeypatch):
    class Encoder:
        """Features of the right number of rows."""

        def features(self, images):
            count = len(list(images))
            return np.random.default_rng(count).normal(size=(count, 3))

    monkeypatch.setattr(RadDino, "from_pretrained", lambda path: Encoder())
    command(data, drawn, rad_dino="any", shards=4).run()
    reason = results_of(drawn)["not_computed"][DISTANCES]
    assert "--shards 4: expected at least 24 images" in reason
    monkeypatch.setattr(image_scores, "_NEIGHBOURS", 2)
    command(data, drawn, rad_dino="any", shards=4).run()
    results = results_of(drawn)
    assert results["scoring"]["distances"] == "mean over 4 contiguous shards"
    features = Encoder().features(range(SOME - 1))
    assert results["metrics"]["FD"]["value"] == pytest.approx(
        shard_mean(frechet_distance, features, features, shards=4), abs=1e-9
    )


def test_arguments_are_checked_before_anything_runs(data, tmp_path):
    for options, error, message in (
        ({"size": 17}, PromptError, "height: expected a positive multiple"),
        ({"num_inference_steps": 0}, UniXError, "num_inference_steps"),
        ({"by_pathology": True}, UniXError, "--by-pathology: expected --rad-dino, "),
        ({"rad_dino": "nowhere"}, UniXError, "nowhere"),
        ({"biovil_t": "nowhere"}, UniXError, "nowhere"),
    ):
        with pytest.raises(error, match=message):
            command(data, tmp_path / "out", **options).run()
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_draw_ends_the_run(data, tmp_path, monkeypatch):
    pipe = toy_pipelines.UniXPipeline(
        toy_pipelines.SMALL,
        toy_pipelines.small_params()[0],
        None,
        toy_pipelines.small_writing_pipe().tokenizer,
    )
    monkeypatch.setattr(evaluate.OverData, "_load", lambda self: pipe)
    with pytest.raises(CheckpointError, match="autoencoder"):
        command(data, tmp_path).run()
    assert (tmp_path / "items-0.jsonl").read_bytes() == b""


# ------------------------------------------------------------------------- diffusers checkpoints

DIFFUSERS = Path(__file__).parents[1] / "golden" / "unet_clip" / "checkpoint"


@pytest.mark.extended
def test_a_diffusers_checkpoint(data, tmp_path):
    def run(out, **options):
        options = {
            "split": "",
            "batch_size": 4,
            "num_inference_steps": 2,
            "resamples": 20,
            "limit": 6,
        } | options
        evaluate.EvaluateImages(
            checkpoint=str(DIFFUSERS), data=data, out=str(tmp_path / out), **options
        ).run()
        return results_of(tmp_path / out)

    results = run("a", guidance_rescale=0.5)
    assert results["settings"]["size"] == 16
    assert results["settings"]["guidance_scale"] == 7.5
    assert results["settings"]["guidance_rescale"] == 0.5
    assert len(list((tmp_path / "a" / "images").iterdir())) == 5
    # The same images, whatever the batch.
    run("b", guidance_rescale=0.5, batch_size=3)
    run("c")
    first, same, other = (
        np.asarray(Image.open(tmp_path / name / "images" / "000001.png"), int) for name in "abc"
    )
    assert np.abs(first - same).max() <= 1
    assert np.abs(first - other).max() > 1
    with pytest.raises(UniXError, match="--timestep-shift: has no effect with a diffusers"):
        run("d", timestep_shift=2.0)
    with pytest.raises(PromptError, match="height: expected a positive multiple of 2"):
        run("d", size=15)
    assert not (tmp_path / "d").exists()


def test_options_of_diffusers_checkpoints_only(data, tmp_path):
    with pytest.raises(UniXError, match="--sampler: has no effect with a checkpoint of UniX"):
        command(data, tmp_path / "out", sampler="ddim").run()

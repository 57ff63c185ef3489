"""Images made elsewhere, beside a data set: pairing, metrics, nearest training images, tables."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import linalg

from unix_jax import cli
from unix_jax.commands import evaluate
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError, UniXError
from unix_jax.evaluation.alignment import BioViLT
from unix_jax.evaluation.features import RadDino
from unix_jax.evaluation.finding_groups import shard_mean
from unix_jax.evaluation.image import frechet_distance, inception_score, kernel_distance
from unix_jax.evaluation.inception import Inception, softmax
from unix_jax.evaluation.nearest import gray_pixels, pair_image
from unix_jax.evaluation.radiomics import radiomics_distance
from unix_jax.evaluation.reid import Reidentification
from unix_jax.evaluation_runs.image_set import images_of_files
from unix_jax.preprocessing.transforms import save_png, to_pil

COUNT = 12
NAMES = [f"study{index}" for index in range(COUNT)]
# COVID is on every second record, a nodule on one.
LABELS = [["COVID"] if i % 2 else ["Nodule"] if i == 0 else [] for i in range(COUNT)]


def picture(seed, side=48):
    """Smooth, so that small versions tell pictures apart, and of the whole range of gray levels."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest of real images, and generated ones: a folder and two tables."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "real").mkdir()
    (folder / "made" / "sub").mkdir(parents=True)
    rows = []
    for index, name in enumerate(NAMES):
        save_png(folder / "real" / f"{name}.png", picture(index))
        save_png(folder / "made" / "sub" / f"{name}.png", picture(100 + index, 32))
        rows.append(
            {"image": f"real/{name}.png", "captions": [f"Text {index}."],
             "labels": LABELS[index], "split": "test"}
        )  # fmt: skip
    write_jsonl(folder / "manifest.jsonl", rows)
    write_csv(
        folder / "benchmark.csv",
        [
            {"annotated_prompt": f"Text {i}.", "synthetic_filename": f"sub/{name}.png",
             "path": f"real/{name}.png", "chexpert_labels": str({"COVID": i % 2, "Edema": 0})}
            for i, name in enumerate(NAMES)
        ],
    )  # fmt: skip
    (folder / "train").mkdir()
    training = [(f"other{i}", picture(200 + i)) for i in range(6)]
    # Two generated images are copies of training images.
    training += [(f"copy{i}", picture(100 + i, 32)) for i in (3, 8)]
    for name, image in training:
        save_png(folder / "train" / f"{name}.png", image)
    write_jsonl(
        folder / "train" / "manifest.jsonl",
        [
            {"image": f"{name}.png", "captions": ["Text 5." if name == "other2" else name]}
            for name, _ in training
        ],
    )
    return folder


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def measured(data, folder, source=None, **options):
    """results.json of a run over these images."""
    source = f"manifest:{data}" if source is None else source
    options = {"data": source, "resamples": 20, "out": str(folder), **options}
    evaluate.EvaluateImages(**options).run()
    return json.loads((folder / "results.json").read_text())


class Gray:
    """An encoder of few numbers, that stands for RAD-DINO."""

    def features(self, images, squash=299):
        return np.stack([gray_pixels(self.open(image), 3) / 50 for image in images])

    def open(self, image):
        return image if isinstance(image, Image.Image) else Image.open(image)


@pytest.fixture
def gray_encoder(monkeypatch):
    monkeypatch.setattr(RadDino, "from_pretrained", lambda path: Gray())


def features_of(paths):
    return Gray().features(paths)


# --- pairing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "benchmark", "keys", "jsonl"])
def test_images_find_their_records(data, tmp_path, gray_encoder, kind):
    options = {"generated": data / "made"}
    if kind == "benchmark":
        options = {"generated": data / "benchmark.csv", "generated_root": data / "made"}
    elif kind == "keys":
        table = data / "made" / "keys.csv"
        rows = [{"key": f"real/{n}.png", "file_name": f"sub/{n}.png"} for n in NAMES[::-1]]
        write_csv(table, rows)
        options = {"generated": table}
    elif kind == "jsonl":
        table = data / "made" / "rows.jsonl"
        rows = [{"image": f"sub/{n}.png", "prompt": f"Text {i}."} for i, n in enumerate(NAMES)]
        write_jsonl(table, rows)
        options = {"generated": table}
    results = measured(data, tmp_path, rad_dino="any", by_pathology=True, **options)
    assert results["kind"] == "generated"
    assert results["counts"]["scored"] == results["counts"]["items"] == COUNT
    real = features_of(data / "real" / f"{name}.png" for name in NAMES)
    fake = features_of(data / "made" / "sub" / f"{name}.png" for name in NAMES)
    assert results["metrics"]["FD"]["value"] == pytest.approx(frechet_distance(real, fake))
    assert results["metrics"]["KD"]["value"] == pytest.approx(kernel_distance(real, fake))
    by = results["groups"]["FD by pathology"]
    assert by["COVID"]["value"] == pytest.approx(frechet_distance(real[1::2], fake[1::2]))
    assert by["Nodule"] == {"value": None, "real_rows": 1, "fake_rows": 1}
    way = "file name" if kind == "folder" else "key, text or file name"
    assert f"generated images whose record was found, by {way}: 12 of 12" in results["notes"]
    assert "real images that they are compared with: 12" in results["notes"]


def test_the_benchmarks_table_is_both_sides(data, tmp_path, gray_encoder):
    """Labels of a Python dict, paths of real images, repeated prompts left out."""
    source = f"csv:{data / 'benchmark.csv'}?images={data}"
    results = measured(
        data, tmp_path, source, generated=data / "benchmark.csv",
        generated_root=data / "made", rad_dino="any", by_pathology=True,
    )  # fmt: skip
    assert results["groups"]["FD by pathology"]["COVID"]["real_rows"] == COUNT // 2
    row = read_csv(tmp_path / "image_generation_metrics.csv")[0]
    assert float(row["FID (RadDino)"]) == round(results["metrics"]["FD"]["value"], 3)
    assert row["FID"] == row["FRD"] == row["Alignment_score"] == ""
    rows = read_csv(tmp_path / "conditional_image_generation_metrics.csv")
    assert [row["Pathology"] for row in rows] == ["COVID"]
    assert float(rows[0]["Precision"]) >= 0


def write_repeats(folder, captions, keys=None):
    """Records real0..., with these texts, and a table of generated images of the same names."""
    (folder / "real").mkdir(parents=True)
    rows, table = [], []
    for index, text in enumerate(captions):
        for name in (f"real/x{index}.png", f"x{index}.png"):
            save_png(folder / name, picture(index))
        row = {"image": f"real/x{index}.png", "captions": [text]}
        rows.append(row | ({"key": keys[index]} if keys else {}))
        table.append({"file_name": f"x{index}.png", "prompt": text})
    write_jsonl(folder / "manifest.jsonl", rows)
    return table


def paired(folder, table):
    write_jsonl(folder / "made.jsonl", table)
    source = open_source(f"manifest:{folder}")
    found = images_of_files(folder / "made.jsonl", source)
    return [image.record for image in found.images], found.notes


def test_a_text_of_several_records_leaves_it_to_the_name(tmp_path):
    table = write_repeats(tmp_path, ["Same."] * 4)
    assert paired(tmp_path, table[::-1])[0] == [3, 2, 1, 0]
    (tmp_path / "x0.png").rename(tmp_path / "other.png")
    records, notes = paired(tmp_path, [{"file_name": "other.png", "prompt": "Same."}, table[2]])
    assert records == [None, 2]
    assert any("several records have their text: 1 of 2" in note for note in notes)


def test_a_repeated_key_tells_nothing(tmp_path):
    table = write_repeats(tmp_path, ["A.", "B.", "C."], keys=["k", "k", "l"])
    table = [row | {"key": key, "prompt": ""} for row, key in zip(table, "klk", strict=True)]
    assert paired(tmp_path, table)[0] == [0, 2, 2]


def test_a_name_against_the_only_text_is_counted(tmp_path):
    table = write_repeats(tmp_path, ["A.", "B."])
    table[0]["prompt"], table[1]["prompt"] = "B.", "A."
    records, notes = paired(tmp_path, [*table, table[0]])
    assert records == [1, 0, 1]
    assert any("the name was not used: 3 of 3" in note for note in notes)
    assert "rows with an image that an earlier row has: 1 of 3" in notes


def test_images_of_no_record_are_compared_as_a_set(data, tmp_path, gray_encoder):
    folder = tmp_path / "made"
    for index in range(7):
        save_png(folder / f"a{index}.png", picture(300 + index))
    save_png(folder / "study3.png", picture(310))
    (folder / "notes.txt").write_text("no image")
    (folder / "a9.png").write_bytes(b"no image")
    results = measured(data, tmp_path / "out", generated=folder, rad_dino="any")
    assert results["counts"] == {"items": 9, "scored": 8, "failed": 1, "not_comparable": 0}
    assert results["failures"][0]["key"] == "a9.png"
    assert results["notes"] == [
        "generated images whose record was found, by file name: 1 of 8",
        "records without a generated image: 11 of 12",
        "real images that they are compared with: 12",
    ]
    assert "FD" in results["metrics"]
    assert (tmp_path / "out" / "contact_sheet.png").exists()


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_any_number_of_shards(data, tmp_path, gray_encoder, monkeypatch, shards):
    monkeypatch.setattr("unix_jax.evaluation_runs.image_scores._NEIGHBOURS", 1)
    results = measured(data, tmp_path, generated=data / "made", rad_dino="any", shards=shards)
    real = features_of(data / "real" / f"{name}.png" for name in NAMES)
    fake = features_of(data / "made" / "sub" / f"{name}.png" for name in NAMES)
    expected = shard_mean(frechet_distance, real, fake, shards=shards)
    assert results["metrics"]["FD"]["value"] == pytest.approx(expected)
    assert results["scoring"]["distances"] == f"mean over {shards} contiguous shards"


def test_alignment_by_pathology(data, tmp_path, monkeypatch):
    class Networks:
        def scores(self, images, texts):
            assert [Path(image).stem for image in images] == NAMES
            assert list(texts) == [f"Text {index}." for index in range(COUNT)]
            return np.arange(COUNT) / COUNT

    monkeypatch.setattr(BioViLT, "from_pretrained", lambda path: Networks())
    results = measured(data, tmp_path, generated=data / "made", biovil_t="any", by_pathology=True)
    assert results["metrics"]["alignment"]["value"] == pytest.approx(np.arange(12).mean() / 12)
    by = results["groups"]["alignment by pathology"]
    assert by["COVID"] == {"value": pytest.approx(0.5), "fake_rows": 6}
    assert by["Nodule"] == {"value": 0.0, "fake_rows": 1}
    rows = read_csv(tmp_path / "conditional_image_generation_metrics.csv")
    assert {row["Pathology"]: row["Alignment_score"] for row in rows} == {
        "COVID": "0.5", "Nodule": "0.0",
    }  # fmt: skip
    assert "Worst cases, by alignment with the text" in (tmp_path / "report.html").read_text()


def test_inception(data, tmp_path, monkeypatch):
    class Network:
        def features(self, images):
            pooled = features_of(images)
            return pooled, pooled[:, :5]

    monkeypatch.setattr(Inception, "from_pretrained", lambda path: Network())
    results = measured(
        data, tmp_path, generated=data / "made", inception=Path("any"), by_pathology=True
    )
    real = features_of(data / "real" / f"{name}.png" for name in NAMES)
    fake = features_of(data / "made" / "sub" / f"{name}.png" for name in NAMES)
    value = {name: figure["value"] for name, figure in results["metrics"].items()}
    assert value["FID (Inception)"] == pytest.approx(frechet_distance(real, fake))
    assert value["KID (Inception)"] == pytest.approx(kernel_distance(real, fake))
    assert value["Inception score"] == pytest.approx(inception_score(softmax(fake[:, :5])))
    pooled = shard_mean(lambda rows: inception_score(softmax(rows)), fake, shards=10)
    assert value["Inception score of pooled features"] == pytest.approx(pooled)
    by = results["groups"]["FID (Inception) by pathology"]
    assert by["COVID"]["value"] == pytest.approx(frechet_distance(real[1::2], fake[1::2]))
    row = read_csv(tmp_path / "image_generation_metrics.csv")[0]
    assert float(row["Inception Score"]) == round(pooled, 3)


# --- the nearest training images ---------------------------------------------------------------


def test_copies_of_training_images_come_first(data, tmp_path):
    """Without any weights."""
    results = measured(data, tmp_path, generated=data / "made", train=f"manifest:{data / 'train'}")
    rows = {Path(row["item"]).stem: row for row in read_csv(tmp_path / "nearest.csv")}
    assert len(rows) == COUNT
    for name in ("study3", "study8"):
        assert rows[name]["pixel distance"] == "0.0"
        assert rows[name]["pixel distance: training image"] == f"copy{name[-1]}.png"
    others = [float(row["pixel distance"]) for name, row in rows.items() if name[-1] not in "38"]
    assert min(others) > 20
    made = gray_pixels(Image.open(data / "made" / "sub" / "study1.png").convert("RGB"))
    distances = {
        path.name: np.sqrt(np.mean((gray_pixels(Image.open(path)) - made.astype(float)) ** 2))
        for path in (data / "train").glob("*.png")
    }
    assert rows["study1"]["pixel distance: training image"] == min(distances, key=distances.get)
    assert float(rows["study1"]["pixel distance"]) == pytest.approx(
        min(distances.values()), abs=1e-3
    )
    value = {name: figure["value"] for name, figure in results["metrics"].items()}
    assert value["pixel distance, smallest"] == 0
    assert value["pixel distance: share nearer than 95 % of real images"] == pytest.approx(
        2 / 12, abs=0.1
    )
    assert "number of compared training images: 8" in results["notes"]
    assert "generated images that are equal to a training image: 2" in results["notes"]
    assert not any(note.startswith("real images that are equal") for note in results["notes"])
    page = (tmp_path / "nearest.html").read_text()
    assert re.findall(r"training: (\S+?)<", page)[:2] == [
        "copy3.png", "copy8.png",
    ]  # fmt: skip
    assert page.count("<img") == 2 * COUNT
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_every_space_has_its_own_nearest(data, tmp_path, gray_encoder, monkeypatch):
    class Siamese(Reidentification):
        def embeddings(self, images):
            return np.stack([gray_pixels(image, 2) / 255 for image in images])

    network = Siamese(None, -np.ones(4), 3.0)
    monkeypatch.setattr(Reidentification, "from_pretrained", lambda path: network)
    results = measured(
        data, tmp_path, generated=data / "made", train=f"manifest:{data / 'train'}",
        rad_dino="any", reid=Path("any"),
    )  # fmt: skip
    rows = {Path(row["item"]).stem: row for row in read_csv(tmp_path / "nearest.csv")}
    copy = 1 / (1 + np.exp(-3))
    for space, value in (("latent distance", 0), ("re-identification score", copy)):
        assert float(rows["study8"][space]) == pytest.approx(value, abs=1e-3)
        assert rows["study8"][f"{space}: training image"] == "copy8.png"
    assert results["metrics"]["re-identification score, highest"]["value"] == pytest.approx(copy)
    assert results["metrics"]["latent distance, smallest"]["value"] == pytest.approx(0)
    # The benchmark compares an image with the training image of its text.
    (row,) = read_csv(tmp_path / "privacy_metrics.csv")
    assert (row["Real Path"], row["Prompt"]) == (str(data / "train" / "other2.png"), "Text 5.")
    ours, its = (
        np.asarray(pair_image(Image.open(path)), float)
        for path in (data / "made" / "sub" / "study5.png", data / "train" / "other2.png")
    )
    expected = np.linalg.norm(ours - its) / np.sqrt(ours.size)
    assert float(row["Mean_pixel_distance"]) == pytest.approx(expected)
    assert float(row["Min_pixel_distance"]) == pytest.approx(expected)
    assert 0 < float(row["Max_reid_scores"]) < copy
    # Without them the next time, nothing of it stays.
    again = measured(data, tmp_path, generated=data / "made")
    assert "--train SOURCE" in again["not_computed"]["nearest training images"]
    assert not list(tmp_path.glob("nearest.*")) + list(tmp_path.glob("privacy*"))


def test_real_images_that_are_training_images_are_no_baseline(data, tmp_path):
    results = measured(
        data, tmp_path, generated=data / "made", train=f"manifest:{data}", train_split=""
    )
    assert "pixel distance of real images" not in results["metrics"]
    assert any("may be training images themselves" in note for note in results["notes"])


def test_broken_records_are_named(data, tmp_path, gray_encoder):
    folder = tmp_path / "data"
    save_png(folder / "fine.png", picture(1))
    (folder / "broken.png").write_bytes(b"no image")
    write_jsonl(
        folder / "manifest.jsonl",
        [{"image": "fine.png"}, {"image": "broken.png"}, {"image": 3}, {"findings": "Text."}],
    )
    results = measured(
        data, tmp_path / "out", f"manifest:{folder}", generated=data / "made",
        train=f"manifest:{folder}", rad_dino="any",
    )  # fmt: skip
    assert "at least 6 images" in results["not_computed"][next(iter(results["not_computed"]))]
    errors = [entry["error"] for entry in results["unreadable_records"]]
    assert len(errors) == 4  # two of the data set, which are also those of the training images
    assert any("broken.png" in error for error in errors)
    assert results["counts"]["failed"] == 0


# --- radiomics ---------------------------------------------------------------------------------


def features_table(path, rows):
    """As the benchmark writes it: names, texts, shape features, and an empty cell."""
    header = ["img_fname", "diagnostics", "original_shape2D_Area", "a", "b", "constant"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for index, (a, b) in enumerate(rows):
            writer.writerow([f"{index}.png", "v3.0", 7, a, b, 4])
        writer.writerow(["last.png", "v3.0", 7, "", 1, 4])


def test_radiomics_as_the_benchmark_defines_it(data, tmp_path):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(30, 2)), rng.normal(0.5, 2, (20, 2))
    features_table(tmp_path / "real.csv", real)
    features_table(tmp_path / "fake.csv", fake)
    results = measured(
        data, tmp_path / "out", generated=data / "made",
        radiomics_real=tmp_path / "real.csv", radiomics_generated=tmp_path / "fake.csv",
    )  # fmt: skip
    np.random.seed(42)  # noqa: NPY002 - the benchmark's own way
    chosen = real[np.random.choice(30, 20, replace=False)]  # noqa: NPY002
    mean, std = chosen.mean(0), chosen.std(0)
    a, b = (chosen - mean) / std, (fake - mean) / std
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    root = linalg.sqrtm(first @ second).real
    expected = np.log(shift @ shift + np.trace(first + second - 2 * root))
    assert results["metrics"]["FRD"]["value"] == pytest.approx(expected)
    assert sum("1 of " in note and "skipped" in note for note in results["notes"]) == 2
    assert results["scoring"]["radiomics"]["real"]["rows"] == 30
    np.save(tmp_path / "real.npy", real)
    np.save(tmp_path / "fake.npy", fake)
    arrays = measured(
        data, tmp_path / "arrays", generated=data / "made",
        radiomics_real=tmp_path / "real.npy", radiomics_generated=tmp_path / "fake.npy",
    )  # fmt: skip
    assert arrays["metrics"]["FRD"]["value"] == pytest.approx(expected)


def test_radiomics_by_pathology(data, tmp_path):
    rng = np.random.default_rng(0)
    sets = {}
    for kind in ("real", "fake"):
        sets[kind] = rng.normal(size=(COUNT, 2))
        rows = [
            {"img_fname": f"{name}.png", "a": a, "b": b}
            for name, (a, b) in zip(NAMES, sets[kind], strict=True)
        ]
        write_csv(tmp_path / f"{kind}.csv", rows)
    results = measured(
        data, tmp_path / "out", generated=data / "made", by_pathology=True,
        radiomics_real=tmp_path / "real.csv", radiomics_generated=tmp_path / "fake.csv",
    )  # fmt: skip
    by = results["groups"]["FRD by pathology"]
    expected = radiomics_distance(sets["real"][1::2], sets["fake"][1::2])
    assert by["COVID"] == {"value": pytest.approx(expected), "real_rows": 6, "fake_rows": 6}
    assert by["Nodule"] == {"value": None, "real_rows": 1, "fake_rows": 1}
    rows = read_csv(tmp_path / "out" / "conditional_image_generation_metrics.csv")
    assert float(rows[0]["FRD"]) == round(expected, 3)


def test_radiomics_that_cannot_be_read(data, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object))
    np.save(tmp_path / "a.npy", np.eye(3))
    (tmp_path / "a.csv").write_text("img_fname,a\nx.png,1\ny.png,2\n")
    (tmp_path / "b.csv").write_text("img_fname,b\nx.png,1\ny.png,2\n")
    (tmp_path / "texts.csv").write_text("img_fname,a\nx.png,one\n")
    for real, fake, message in (
        ("objects.npy", "a.npy", "objects.npy: cannot be read"),
        ("absent.npy", "a.npy", "absent.npy: cannot be read"),
        ("a.csv", "b.csv", "b.csv: expected the columns of .*a.csv"),
        ("a.csv", "a.npy", "a.npy: expected a file of the same kind"),
        ("texts.csv", "a.csv", "texts.csv: expected columns of numbers"),
        ("a.parquet", "a.csv", "a.parquet: expected a .npy or .csv file"),
    ):
        with pytest.raises(DataError, match=message):
            measured(
                data, tmp_path / "out", generated=data / "made",
                radiomics_real=tmp_path / real, radiomics_generated=tmp_path / fake,
            )  # fmt: skip
    with pytest.raises(UniXError, match="--radiomics-real and --radiomics-generated together"):
        measured(data, tmp_path, generated=data / "made", radiomics_real=tmp_path / "a.npy")


# --- errors ------------------------------------------------------------------------------------


def test_what_is_refused(data, tmp_path):
    made, out = data / "made", tmp_path / "out"
    (tmp_path / "no_column.csv").write_text("annotated_prompt,path\nText 1.,a.png\n")
    (tmp_path / "short.csv").write_text("annotated_prompt,synthetic_filename\nText 1.\n")
    (tmp_path / "empty.csv").write_text("annotated_prompt,synthetic_filename\nText 1.,\n")
    (tmp_path / "lost.csv").write_text("annotated_prompt,synthetic_filename\nText 1.,a.png\n")
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({}, "expected either --checkpoint PATH or --generated PATH"),
        ({"generated": made, "checkpoint": "c"}, "expected either --checkpoint"),
        (
            {"generated": made, "num_inference_steps": 20},
            "--num-inference-steps: has no effect without --checkpoint",
        ),
        ({"generated": made, "batch_size": 2}, "--batch-size: has no effect without --checkpoint"),
        ({"generated": made, "generated_root": data}, "expected --generated-root only"),
        ({"checkpoint": "c", "generated_root": data}, "--generated-root: has no effect without"),
        ({"generated": made, "out": str(made / "x")}, "--out .*: expected a directory outside"),
        ({"generated": made, "reid": data}, "--reid: has no effect without --train SOURCE"),
        ({"generated": made, "train_split": "val"}, "--train-split: has no effect without --train"),
        ({"generated": made, "shards": 0}, "--shards: expected at least 1, found 0"),
        ({"generated": tmp_path / "absent"}, "absent: expected a folder, or a .csv"),
        ({"generated": tmp_path / "absent.csv"}, "absent.csv: cannot be read: No such file"),
        ({"generated": tmp_path / "empty"}, "empty: expected images .png.*found none"),
        ({"generated": tmp_path / "no_column.csv"}, "expected a column synthetic_filename or"),
        ({"generated": tmp_path / "short.csv"}, "short.csv: line 2: expected 2 cells, found 1"),
        ({"generated": tmp_path / "empty.csv"}, "line 2: synthetic_filename: expected a file"),
        ({"generated": tmp_path / "lost.csv"}, "lost.csv: expected images that can be read, found"),
        ({"generated": made, "train": f"manifest:{data}/absent"}, "absent"),
        ({"generated": made, "inception": tmp_path / "absent.pth"}, "absent.pth|torch"),
    ):
        with pytest.raises(UniXError, match=message):
            measured(data, out, **options)
        assert not out.exists(), options


def test_the_command_line(data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["evaluate", "images", "--generated", str(data / "made"), "--data", f"manifest:{data}",
             "--train", f"manifest:{data / 'train'}", "--out", str(out)]  # fmt: skip
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "12 of 12 items measured" in printed
    assert str(out / "nearest.html") in printed.replace("\n", "")
    assert cli.main([*words[:-1], str(out), "--limit", "3"]) == 1
    assert "was started with items 12 (now 3)" in capsys.readouterr().err.replace("\n", " ")


def test_near_black_images_are_warned_of(data, tmp_path):
    folder = tmp_path / "made"
    save_png(folder / "study0.png", picture(1))
    save_png(folder / "study1.png", to_pil(np.zeros((40, 40), np.uint8)))
    results = measured(data, tmp_path / "out", generated=folder)
    (warning,) = results["image_warnings"]
    assert (warning["key"], warning["index"]) == ("study1.png", 1)
    assert "nearly black" in warning["warning"]

"""What is read from buckets equals what is read from local files: checkpoints and data sources."""

import dataclasses
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from support import bucket_servers
from support.toy_data import CONFIG, UNDERSTANDING, tokenizer
from unix_jax import cli
from unix_jax.checkpoints.leaves import flatten
from unix_jax.checkpoints.load import load_config, load_model
from unix_jax.data.loader import Loader
from unix_jax.data.records import image_bytes, record_image
from unix_jax.data.samples import record_samples
from unix_jax.data.sources import open_source
from unix_jax.errors import DataError, ImageError, StorageError
from unix_jax.preprocessing.images import check_image, load_image
from unix_jax.storage import buckets

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"
CXR = ROOT / "examples" / "cxr"


@pytest.fixture(scope="module")
def server():
    with bucket_servers.gcs() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, server):
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    assert not (tmp_path / "work" / "gs:").exists()


def upload(folder, url):
    buckets.run_all(
        lambda file=file: buckets.upload(file, f"{url}/{file.relative_to(folder).as_posix()}")
        for file in folder.rglob("*")
        if file.is_file()
    )
    return url


@pytest.fixture(scope="module")
def checkpoint(server):
    return upload(TINY, "gs://bucket/tiny")


def test_a_checkpoint(checkpoint, capsys):
    assert load_config(checkpoint) == load_config(TINY)
    local, remote = (flatten(load_model(path)[1]) for path in (TINY, checkpoint))
    assert local.keys() == remote.keys()
    assert all(np.array_equal(local[name], remote[name]) for name in local)
    assert cli.main(["info", checkpoint]) == 0
    assert checkpoint in capsys.readouterr().out


def test_what_is_no_checkpoint(server, capsys):
    assert cli.main(["info", "gs://bucket/none"]) == 1
    assert capsys.readouterr().err == "error: gs://bucket/none: no such object or folder\n"
    buckets.write("gs://bucket/odd/notes.txt", b"")
    assert cli.main(["info", "gs://bucket/odd"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: gs://bucket/odd: expected config.json of a checkpoint")


@pytest.fixture(scope="module")
def sources(server, tmp_path_factory):
    """A manifest, the same as CSV, conversations, Parquet and ArrayRecord; (folder, URL)."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(CXR, folder / "cxr")
    files = sorted(p.name for p in (folder / "cxr").rglob("*.jpg"))[:2]
    images = [next((folder / "cxr").rglob(name)).relative_to(folder) for name in files]
    (folder / "table.csv").write_text(
        "image,findings\n" + "".join(f"{image},Clear {i}.\n" for i, image in enumerate(images))
    )
    (folder / "talk.jsonl").write_text(
        "".join(
            f'{{"image": "{image}", "conversations": [{{"from": "human", "value": "<image>Read."}},'
            f' {{"from": "gpt", "value": "Clear."}}]}}\n'
            for image in images
        )
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"image": [str(i) for i in images], "findings": ["a", "b"]}),
        folder / "part.parquet",
    )
    assert cli.main(["data", "write", f"manifest:{folder}/cxr", str(folder / "records")]) == 0
    return folder, upload(folder, "gs://bucket/data")


@pytest.mark.parametrize(
    "spec",
    ["manifest:{}/cxr", "manifest:{}/cxr/manifest.jsonl", "csv:{}/table.csv",
     "csv:{}/table.csv?images={}",
     "conversations:{}/talk.jsonl", "parquet:{}/part.parquet", "parquet:{}/*.parquet",
     "array_record:{}/records"],
)  # fmt: skip
def test_sources(sources, spec):
    folder, url = sources
    local, remote = (open_source(spec.format(root, root)) for root in (folder, url))
    assert len(local) == len(remote) > 0
    for index in (0, len(local) - 1):
        ours, theirs = local[index], remote[index]
        assert (ours.key, ours.findings, ours.answer) == (
            theirs.key,
            theirs.findings,
            theirs.answer,
        )
        assert image_bytes(ours) == image_bytes(theirs)
        if ours.image is not None:
            assert record_image(ours).tobytes() == record_image(theirs).tobytes()


@pytest.mark.extended
def test_many_images_are_read_at_the_same_time(sources, server):
    folder, url = sources
    data = dataclasses.replace(UNDERSTANDING, epochs=1, threads=1)
    batches = {}
    for root in (folder, url):
        config = dataclasses.replace(data, source=f"manifest:{root}/cxr")
        samples = record_samples(open_source(config.source), tokenizer(), CONFIG, config)
        server.most = 0
        batches[root] = list(Loader(samples, CONFIG, config))
    assert server.most > 2
    assert len(batches[folder]) == len(batches[url])
    for (ours, our_info), (theirs, their_info) in zip(*batches.values(), strict=True):
        assert our_info == their_info
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_mimic(server, tmp_path):
    from support.mimic_folder import make_mimic

    folder = tmp_path / "mimic"
    make_mimic(folder, 3)
    url = upload(folder, "gs://bucket/mimic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        local, remote = (
            open_source(f"mimic:{root}/mimic-cxr-jpg?reports={root}/mimic-cxr")
            for root in (folder, url)
        )
    assert [local[i].findings for i in range(len(local))] == [
        remote[i].findings for i in range(len(remote))
    ]
    assert image_bytes(local[0]) == image_bytes(remote[0])


def test_errors_of_sources(sources):
    _, url = sources
    with pytest.raises(StorageError, match=f"{url}/none.jsonl: no such object"):
        open_source(f"manifest:{url}/none.jsonl")
    record = open_source(f"csv:{url}/table.csv?images={url}/elsewhere")[0]
    with pytest.raises(DataError, match="no such file") as caught:
        record_image(record)
    assert f"{url}/elsewhere" in str(caught.value)
    with pytest.raises(StorageError, match="remote paths are not supported yet"):
        open_source(f"tfds:name?data_dir={url}")


def test_an_image(sources):
    folder, url = sources
    image = next(name for name in buckets.entries(f"{url}/cxr") if name.endswith(".jpg"))
    check_image(f"{url}/cxr/{image}")
    assert (
        load_image(f"{url}/cxr/{image}").tobytes() == load_image(folder / "cxr" / image).tobytes()
    )
    for read in (check_image, load_image):
        with pytest.raises(ImageError) as caught:
            read(f"{url}/cxr/none.jpg")
        assert str(caught.value) == f"{url}/cxr/none.jpg: no such file"

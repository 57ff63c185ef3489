"""Commands that write into buckets: what they write equals what they write locally."""

import json
import os
import shutil
from pathlib import Path

import pytest

from support import bucket_servers
from unix_jax import cli
from unix_jax.storage import buckets

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"
CXR = ROOT / "examples" / "cxr"


# The schemes differ in tests/storage/test_buckets.py; one of them is enough here by default.
@pytest.fixture(scope="module", params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def server(request):
    with {"gs": bucket_servers.gcs, "s3": bucket_servers.s3}[request.param]() as proxy:
        proxy.scheme = request.param
        yield proxy


@pytest.fixture
def root(server, tmp_path, monkeypatch, request):
    """A URL for this test. The working directory stays empty."""
    monkeypatch.setenv("UNIX_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield f"{server.scheme}://{bucket_servers.BUCKET}/{request.node.name.partition('[')[0]}"
    assert not os.listdir(tmp_path / "work")


def upload(folder, url):
    for file in folder.rglob("*"):
        if file.is_file():
            buckets.upload(file, f"{url}/{file.relative_to(folder).as_posix()}")
    return url


def contents(url):
    return {name: buckets.read(f"{url}/{name}") for name in buckets.entries(url)}


def local_contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def run(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


def fails(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_import_export_and_cast(root, tmp_path, capsys):
    upload(TINY, f"{root}/tiny")
    for source, place in ((TINY, tmp_path), (f"{root}/tiny", root)):
        run("convert", "import", source, f"{place}/back")
        run("convert", "export", f"{place}/back", f"{place}/published")
    assert contents(f"{root}/published") == local_contents(tmp_path / "published")
    assert set(contents(f"{root}/back")) == set(local_contents(tmp_path / "back"))
    assert f"wrote {root}/back" in capsys.readouterr().err
    run("convert", "cast", f"{root}/back", tmp_path / "half")
    run("info", f"{root}/back", "--verify")
    error = fails(capsys, "convert", "cast", f"{root}/back", f"{root}/back")
    assert error == f"error: {root}/back: exists already; name a new directory"
    buckets.write(f"{root}/back/config.json", b"{")
    error = fails(capsys, "info", f"{root}/back")
    assert f"{root}/back/config.json: " in error
    error = fails(
        capsys, "convert", "export", "any", f"{root}/x", "--push", "a/b", "--license", "mit"
    )
    assert error == f"error: --push: expected a local OUT, found {root}/x"


def test_records(root, tmp_path, capsys):
    source = f"manifest:{CXR}"
    run("data", "write", source, tmp_path / "records", "--max-side", "64")
    run("data", "write", source, f"{root}/records", "--max-side", "64")
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{root}/records: ")
    assert contents(f"{root}/records") == local_contents(tmp_path / "records")
    run("data", "inspect", f"array_record:{root}/records", "--out", f"{root}/sheet.png", "--json")
    assert buckets.read(f"{root}/sheet.png").startswith(b"\x89PNG")


def test_clean(root, tmp_path, capsys):
    lines = "".join(
        json.dumps({"id": i, "findings": f"Lungs are clear {i}.", "impression": "Normal."}) + "\n"
        for i in range(3)
    )
    (tmp_path / "in.jsonl").write_text(lines)
    buckets.write(f"{root}/in.jsonl", lines.encode())
    run("clean", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    run("clean", f"{root}/in.jsonl", f"{root}/out.jsonl")
    said = capsys.readouterr().out
    assert f"3 reports -> {root}/out.jsonl" in said
    assert f"-> {root}/out.rejected.jsonl" in said
    names = ("out.jsonl", "out.rejected.jsonl")
    assert [buckets.read(f"{root}/{n}") for n in names] == [
        (tmp_path / n).read_bytes() for n in names
    ]
    error = fails(capsys, "clean", f"{root}/in.jsonl", f"{root}/out.jsonl")
    assert error == f"error: {root}/out.jsonl: exists already; name a new file"
    error = fails(capsys, "clean", f"{root}/in.jsonl", f"{root}/in.jsonl")
    assert error.startswith("error: OUT: expected a file other than IN")


def test_score(root, tmp_path, capsys):
    text = "prediction,reference\nClear lungs.,The lungs are clear.\nEdema.,Mild edema.\n"
    (tmp_path / "reports.csv").write_text(text)
    buckets.write(f"{root}/reports.csv", text.encode())
    for place in (tmp_path, root):
        run("evaluate", "score", "--predictions", f"{place}/reports.csv", "--out", f"{place}/out",
            "--resamples", "10")  # fmt: skip
    assert f"{root}/out/report.html" in capsys.readouterr().out
    theirs, ours = (
        json.loads(text)
        for text in (
            (tmp_path / "out/results.json").read_text(),
            buckets.read(f"{root}/out/results.json"),
        )
    )
    assert ours["settings"]["predictions"] == f"{root}/reports.csv"
    assert {k: v for k, v in ours.items() if k != "settings"} == {
        k: v for k, v in theirs.items() if k != "settings"
    }


@pytest.mark.slow
def test_an_evaluation_resumes(root, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(CXR, data)
    url = upload(data, f"{root}/data")
    upload(TINY, f"{root}/tiny")
    arguments = ("--max-new-tokens", "4", "--split", "", "--resamples", "10", "--batch-size", "2")
    for place, out in ((f"{root}/tiny", f"{root}/out"), (TINY, tmp_path / "out")):
        for limit in (2, 3):
            source = f"manifest:{url if place != TINY else data}"
            run("evaluate", "reports", "--checkpoint", place, "--data", source, "--out", out,
                "--limit", limit, *arguments)  # fmt: skip
    settings = json.loads(buckets.read(f"{root}/out/settings.json"))
    assert settings["checkpoint"] == f"{root}/tiny"
    items = buckets.read(f"{root}/out/items-0.jsonl")
    assert items == (tmp_path / "out/items-0.jsonl").read_bytes()
    assert len(items.splitlines()) == 3


@pytest.mark.slow
def test_generated_images(root, tmp_path, capsys):
    options = ("--checkpoint", TINY, "--num-inference-steps", "2")
    for _ in range(2):
        run("generate", "Edema.", *options, "--out", f"{root}/images")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"{root}/images/000_edema_seed0.png"] * 2
    assert f"{root}/images/000_edema_seed0.png: replaced an earlier file" in captured.err
    run("generate", "Edema.", *options, "--out", tmp_path / "images")
    assert contents(f"{root}/images") == local_contents(tmp_path / "images")

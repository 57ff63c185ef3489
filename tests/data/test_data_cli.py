"""`unix-jax data`: what it prints and writes, and one line for every error."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unix_jax.checkpoints.load import load_vae
from unix_jax.commands.convert import main as convert
from unix_jax.commands.data import main
from unix_jax.data.config import DataConfig
from unix_jax.data.inspection import percentiles
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.moments import Moments
from unix_jax.data.sources import open_source
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.preprocessing.pixels import vae_input

ROOT = Path(__file__).parents[2]
CXR = f"manifest:{ROOT / 'examples' / 'cxr'}"
TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"


def error_of(capsys, arguments: list[str]) -> str:
    """The one line of an error."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_inspect_prints_tables(capsys):
    assert main(["inspect", CXR]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("train AP", "broken rows │ 0", "patients in several splits │ 0", "in words"):
        assert text in printed


def test_inspect_json_with_tokens(capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert main(["inspect", CXR, "--split", "test", "--tokenizer", str(TINY), "--json",
                 "--out", str(sheet), "--images", "4"]) == 0  # fmt: skip
    values = json.loads(capsys.readouterr().out)
    assert values["records"] == 34
    assert values["unit"] == "tokens"
    assert sum(row["records"] for row in values["views"]) == 34
    assert values["report_lengths"]["0"] <= values["report_lengths"]["50"]
    assert values["missing_images"] == values["broken"] == 0
    with Image.open(sheet) as picture:
        assert picture.width > 400


def test_inspect_counts_what_is_missing(capsys, tmp_path):
    rows = [
        {"image": "a.png", "impression": "One two.", "split": "train", "patient": "p"},
        {"image": "gone.png", "labels": ["Mass"], "split": "test", "patient": "p"},
        {"id": "x", "split": "test", "patient": "q"},
        {"image": 3},
    ]
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inspect = ["inspect", f"manifest:{tmp_path}"]
    assert main([*inspect, "--json", "--out", str(tmp_path / "s.png")]) == 1
    captured = capsys.readouterr()
    assert "expected at most 0.00% of 4 rows" in captured.err
    assert "found 1 broken rows and 1 missing image files" in captured.err
    values = json.loads(captured.out)
    counted = {name: value for name, value in values.items() if isinstance(value, int)}
    assert counted == {
        "records": 3, "broken": 1, "missing_files": 1, "missing_images": 2, "missing_reports": 2,
        "reports_without_sections": 0, "missing_captions": 1, "patients": 2, "crossing_patients": 1,
    }  # fmt: skip
    assert "gone.png: no such file" in values["errors"][0]
    assert "line 4: image" in values["errors"][1]
    assert values["report_lengths"]["100"] == 3
    assert (tmp_path / "s.png").is_file()
    assert main([*inspect, "--max-broken", "0.5"]) == 0
    assert "broken: " in capsys.readouterr().err
    assert main([*inspect, "--max-broken", "0.49"]) == 1


WET_READ = " WET READ: 5:10 PM\n Large left pneumothorax.\n"


def test_a_report_without_findings_and_impression_is_counted_and_named(capsys, tmp_path):
    """Such a study is no sample of training: nothing may leave it out silently."""
    rows = ["image,report", f'a.png,"{WET_READ}"', "a.png,FINDINGS: Clear lungs.", "a.png,"]
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("\n".join(rows))
    spec = f"csv:{tmp_path / 'a.csv'}"
    assert main(["inspect", spec]) == 0
    captured = capsys.readouterr()
    assert "without report" in captured.out
    assert 'findings and no impression; "5:10 PM Large left pneumothorax." is no' in captured.err
    assert main(["inspect", spec, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["missing_reports"], values["reports_without_sections"]) == (2, 1)
    assert len(values["report_problems"]) == 1
    for kind in ("array_record", "tfds"):
        assert main(["write", spec, str(tmp_path / kind), "--format", kind]) == 0
        assert "1 records are written without a report" in capsys.readouterr().err
    written = open_source(f"array_record:{tmp_path / 'array_record'}")
    assert [bool(record.report_problem) for record in written] == [True, False, False]


def test_inspect_tells_how_many_samples_fit_a_row(capsys):
    nano = str(ROOT / "examples/nano")
    arguments = ["inspect", CXR, "--split", "test", "--tokenizer", nano, "--json", "--und-tokens"]
    found = {}
    for tokens in ("20", "108", "1000"):
        assert main([*arguments, tokens]) == 0
        found[tokens] = json.loads(capsys.readouterr().out)["rows"]
    assert [found["20"][name] for name in ("samples", "too_long", "rows")] == [0, 34, 0]
    assert found["1000"]["samples"] == 34
    assert found["1000"]["samples_per_row"] > 4
    assert found["108"]["samples"] + found["108"]["too_long"] == 34
    assert main([*arguments[:4], "--tokenizer", nano, "--und-tokens", "99"]) == 0
    assert "samples per row, mean" in capsys.readouterr().out


def test_percentiles_occur():
    assert percentiles([]) == []
    assert percentiles([5]) == [5] * 6
    assert percentiles(range(1, 101)) == [1, 50, 90, 95, 99, 100]


@pytest.mark.parametrize("kind", ["array_record", "tfds"])
def test_write(capsys, tmp_path, kind):
    out = tmp_path / "out"
    assert main(["write", CXR, str(out), "--split", "test", "--max-side", "64", "--workers", "2",
                 "--format", kind]) == 0  # fmt: skip
    assert capsys.readouterr().out == f"{out}: 34 records, 0 broken rows skipped\n"
    written = (
        f"array_record:{out}" if kind == "array_record" else f"tfds:unix_records?data_dir={out}"
    )
    assert [r.key for r in open_source(written)] == [r.key for r in open_source(CXR, "test")]
    assert "exists already" in error_of(capsys, ["write", CXR, str(out), "--format", kind])


def test_write_leaves_broken_rows_out(capsys, tmp_path):
    rows = [{"image": "a.png"}] * 9 + [{"image": "gone.png"}]
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["write", f"manifest:{tmp_path}", str(tmp_path / "out")]
    line = error_of(capsys, arguments)
    assert "expected at most 1.00% of 10 rows to be broken" in line
    assert "gone.png" in line
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--max-broken", "0.1"]) == 0
    captured = capsys.readouterr()
    assert "9 records, 1 broken rows skipped" in captured.out
    assert "skipped: gone.png" in captured.err


@pytest.mark.extended
@pytest.mark.parametrize("converted", [False, True])
def test_moments(capsys, tmp_path, converted):
    """What a run over the same source reads, from either layout of the weights."""
    checkpoint = TINY
    if converted:
        checkpoint = tmp_path / "checkpoint"
        assert convert(["import", str(TINY), str(checkpoint)]) == 0
        capsys.readouterr()
    source = small_source(tmp_path, 3)
    out = tmp_path / "moments"
    assert main(["moments", source, str(out), "--checkpoint", str(checkpoint),
                 "--height", "32", "--width", "48", "--dtype", "float32"]) == 0  # fmt: skip
    assert capsys.readouterr().out == f"{out}: moments of 3 records, 0 broken\n"
    config, vae_params = load_vae(checkpoint)
    data = DataConfig(task="generation", vae_images=1, vae_height=32, vae_width=48)
    moments = Moments(out, 3, config, data, vae_params)
    records = open_source(source, "train")
    expected = Autoencoder(config.vae).apply(
        {"params": vae_params}, vae_input(vae_pixels(records[1], data))[None], method="moments"
    )
    np.testing.assert_allclose(moments(1, records[1].key), expected[0], atol=1e-4)
    line = error_of(capsys, ["moments", source, str(out), "--checkpoint", str(checkpoint),
                             "--height", "32", "--width", "48"])  # fmt: skip
    assert "exists" in line
    with (tmp_path / "source/manifest.jsonl").open("a") as opened:
        opened.write(json.dumps({"image": records[0].key, "split": "test"}) + "\n")
    arguments = ["--checkpoint", str(checkpoint), "--height", "32", "--width", "48"]
    assert main(["moments", source, str(tmp_path / "all"), *arguments, "--split", ""]) == 0
    assert "moments of 4 records" in capsys.readouterr().out
    # Broken rows are named; more of them than allowed are an error, and nothing is written.
    with (tmp_path / "source/manifest.jsonl").open("a") as opened:
        opened.write(json.dumps({"image": "gone.png", "split": "train"}) + "\n")
    strict = ["moments", source, str(tmp_path / "one"), *arguments]
    line = error_of(capsys, strict)
    assert "at most 1.00% of 4 records to be broken (--max-broken), found 1 so far" in line
    assert "gone.png" in line
    assert not (tmp_path / "one").exists()
    assert main([*strict, "--max-broken", "0.25"]) == 0
    captured = capsys.readouterr()
    assert "moments of 4 records, 1 broken" in captured.out
    assert "gone.png" in captured.err
    # The split's error comes first: no checkpoint is looked for.
    arguments = ["moments", source, "OUT", "--checkpoint", "/nowhere", "--split", "dev"]
    assert "expected rows of split 'dev'" in error_of(capsys, arguments)


def small_source(directory: Path, count: int) -> str:
    """The first training images of the bundled set, as a manifest of their own."""
    root = directory / "source"
    (root / "images").mkdir(parents=True)
    lines = (ROOT / "examples/cxr/manifest.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"][:count]
    for row in rows:
        shutil.copy(ROOT / "examples/cxr" / row["image"], root / row["image"])
    (root / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return f"manifest:{root}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inspect", "nonsense"], "expected KIND:PATH"),
        (["inspect", CXR, "--split", "dev"], "expected rows of split 'dev'"),
        (["inspect", CXR, "--images", "0"], "--images: expected at least 1"),
        (["inspect", CXR, "--tokenizer", "/nowhere"], "/nowhere"),
        (
            ["inspect", CXR, "--und-tokens", "9"],
            "--und-tokens: expected --tokenizer DIR together with it",
        ),
        (["inspect", CXR, "--max-broken", "2"], "--max-broken: expected 0 to 1"),
        (["write", CXR, "OUT", "--max-side", "0"], "--max-side: expected at least"),
        (["write", CXR, "OUT", "--max-broken", "2"], "--max-broken: expected 0 to 1"),
        (["moments", CXR, "OUT", "--checkpoint", "C", "--max-broken", "2"], "--max-broken: "),
        (["write", CXR, "OUT", "--workers", "0"], "--workers: expected at least 1"),
        (["write", "manifest:/nowhere", "OUT"], "/nowhere"),
        (["write", CXR, "FILE/out"], "cannot be created"),
        (["write", CXR, "FILE/out", "--format", "tfds"], "FILE/out"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    Path("FILE").touch()
    assert expected in error_of(capsys, arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


def test_help_is_quick_and_loads_no_jax():
    code = "import sys; from unix_jax.commands.data import main\n"
    code += "try: main(['write', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(3 if {'jax', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules) else 0)"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    assert "--max-side" in started.stdout


_SLOW = """
import sys, time
from unix_jax.data.sources import preparation
plain = preparation.prepared
def slow(record, max_side):
    print("row", flush=True)
    time.sleep(0.05)
    return plain(record, max_side)
preparation.prepared = slow
from unix_jax.commands.data import main
sys.exit(main(sys.argv[1:]))
"""


def test_interruption_leaves_nothing(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "-c", _SLOW, "write", CXR, str(tmp_path / "out"), "--workers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert started.stdout is not None
    for _ in range(4):
        assert started.stdout.readline() == "row\n"
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert errors.splitlines() == ["interrupted"]
    assert list(tmp_path.iterdir()) == []


def test_the_script_of_the_sample_set(tmp_path):
    """Rows of other origins are left out, labels unified, and reports follow the rule."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    shared = {"view": "PA", "license": "l", "split": "train", "patient": "p", "upstream": "u"}
    labels = {"nih_a": ["Effusion", "Cardiomegaly"], "hann_b": ["No Finding"], "iu_c": ["Mass"]}
    rows = []
    for name, found in labels.items():
        Image.new("RGB", (640, 400), (7, 7, 7)).save(source / "images" / f"{name}.jpg")
        rows.append({"image": f"images/{name}.jpg", "labels": found, "source": name, **shared})
    write = (source / "manifest.jsonl").write_text
    write("".join(json.dumps(row) + "\n" for row in rows))
    script = [sys.executable, str(ROOT / "examples" / "make_sample_set.py"), str(source)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "env": environment}
    out = tmp_path / "out"
    assert subprocess.run([*script, str(out)], **options).returncode == 0
    normal, sick = open_source(f"manifest:{out}")
    assert sick.labels == ("Cardiomegaly", "Pleural Effusion")
    assert sick.findings == "The heart is enlarged. There is a pleural effusion."
    assert sick.impression == "Cardiomegaly and pleural effusion."
    assert normal.impression == "No acute finding."
    with Image.open(sick.image) as picture:
        assert (picture.size, picture.mode) == ((320, 200), "L")
    assert "`hann_b.jpg`" in (out / "ATTRIBUTION.md").read_text(encoding="utf-8")
    shutil.rmtree(out)
    write(json.dumps(rows[0] | {"labels": ["Novel"]}))
    failed = subprocess.run([*script, str(out)], **options)
    assert failed.returncode == 1
    assert "found ['Novel']" in failed.stderr
    assert not out.exists()

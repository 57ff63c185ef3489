"""The command line: what it prints, what it writes, and one line for every error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from unix_jax.cli import main

GOLDEN = Path(__file__).parent / "golden" / "tiny"
TINY = GOLDEN / "checkpoint"
DIFFUSERS = GOLDEN.parent / "diffusers_epsilon" / "checkpoint"
ON_TINY = ["--checkpoint", str(TINY), "--dtype", "float32"]
QUICK_REPORT = ["--prompt", "Report:", "--max-new-tokens", "6"]
QUICK_IMAGE = ["--height", "32", "--width", "32", "--num-inference-steps", "3"]


@pytest.fixture(autouse=True)
def compiled(tmp_path_factory, monkeypatch):
    """Compiled programs go beside the test's files, not to the user's cache."""
    directory = tmp_path_factory.getbasetemp().parent / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    before = jax.config.jax_compilation_cache_dir
    yield directory
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="session")
def xray(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("images") / "xray.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 50), dtype=np.uint8)).save(file)
    return str(file)


def run(arguments: list[str]) -> int:
    return main([str(a) for a in arguments])


def error_of(capsys, arguments: list[str]) -> str:
    """The one line of an error."""
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert captured.out == ""
    return lines[0]


# ------------------------------------------------------------------------- report


def test_report_text_and_json(capsys, xray, tmp_path):
    other = tmp_path / "Röntgen 2.png"
    Image.fromarray(np.full((30, 30), 200, np.uint8)).save(other)
    assert run(["report", xray, str(other), *ON_TINY, *QUICK_REPORT, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [xray, str(other)]
    assert all(set(row) == {"image", "report", "warning", "finish_reason"} for row in rows)
    assert [bool(row["warning"]) for row in rows] == [False, True]
    texts = [row["report"] for row in rows]
    assert any(texts)

    assert run(["report", xray, str(other), *ON_TINY, *QUICK_REPORT]) == 0
    assert capsys.readouterr().out == f"== {xray}\n{texts[0]}\n\n== {other}\n{texts[1]}\n\n"

    # One image streams its text alone.
    assert run(["report", xray, *ON_TINY, *QUICK_REPORT]) == 0
    assert capsys.readouterr().out == texts[0] + "\n"


def test_a_report_of_several_images(capsys, xray, tmp_path):
    other = tmp_path / "other.png"
    Image.open(xray).transpose(Image.Transpose.ROTATE_180).save(other)
    together = ["report", xray, str(other), *ON_TINY, *QUICK_REPORT, "--images-per-report", "2"]
    assert run(together) == 0
    text = capsys.readouterr().out
    assert run([*together[:1], xray, str(other), *together[1:], "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [[xray, str(other)]] * 2
    assert [row["report"] + "\n" for row in rows] == [text] * 2
    assert [row["warning"] for row in rows] == [[None, None]] * 2
    for each in ("0", "3"):
        line = error_of(capsys, [*together[:-1], each])
        assert f"a divisor of the number of image files, which is 2, found {each}" in line


def test_an_image_that_shows_nothing_is_warned_of(capsys, xray, tmp_path):
    dark = tmp_path / "dark.png"
    Image.fromarray(np.asarray(Image.open(xray)) // 16).save(dark)
    assert run(["report", str(dark), *ON_TINY, *QUICK_REPORT]) == 0
    assert capsys.readouterr().err.startswith(f"warning: {dark}: the image is nearly black (")
    assert run(["report", xray, str(dark), *ON_TINY, *QUICK_REPORT, "--json"]) == 0
    captured = capsys.readouterr()
    good, bad = json.loads(captured.out)
    assert good["warning"] is None
    assert bad["warning"].startswith("nearly black (")
    assert captured.err.count("warning:") == 1


def test_a_frame_of_several(capsys, xray, tmp_path):
    film = tmp_path / "film.tiff"
    frames = [Image.open(xray), Image.open(xray).transpose(Image.Transpose.ROTATE_180)]
    frames[0].save(film, save_all=True, append_images=frames[1:])
    report = ["report", str(film), *ON_TINY, *QUICK_REPORT]
    assert "film.tiff: expected one frame, found 2; choose one" in error_of(capsys, report)
    assert "frame: expected 1 to 2, found 3" in error_of(capsys, [*report, "--frame", "3"])
    assert "frame: expected 1 to 1, found 2" in error_of(
        capsys, ["report", xray, *ON_TINY, *QUICK_REPORT, "--frame", "2"]
    )
    assert run([*report, "--frame", "1"]) == 0
    of_frame = capsys.readouterr().out
    assert run(["report", xray, *ON_TINY, *QUICK_REPORT]) == 0
    assert capsys.readouterr().out == of_frame


def test_report_options(capsys, xray):
    sampled = ["report", xray, *ON_TINY, *QUICK_REPORT, "--temperature", "2", "--top-p", "0.95"]
    outputs = []
    for seed in ("1", "1", "2"):
        assert run([*sampled, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_empty_prompt_is_legal(capsys, xray):
    assert run(["report", xray, *ON_TINY, "--prompt", "", "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------- generate


def test_generate_writes_images_and_a_sheet(capsys, tmp_path):
    out = tmp_path / "new" / "pictures"
    prompts = ["Large right pleural effusion.", "心 / ../x"]
    assert run(["generate", *prompts, *ON_TINY, *QUICK_IMAGE, "--out", str(out),
                "--seed", "3", "--num-images", "2"]) == 0  # fmt: skip
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(printed) == sorted(out.iterdir())
    assert [p.name for p in printed] == [
        "000_large-right-pleural-effusion_seed3.png",
        "001_large-right-pleural-effusion_seed4.png",
        "002_x_seed5.png",
        "003_x_seed6.png",
        "contact_sheet.png",
    ]
    for i, file in enumerate(printed[:4]):
        with Image.open(file) as picture:
            assert picture.size == (32, 32)
            assert picture.text["prompt"] == prompts[i // 2]
            assert picture.text["seed"] == str(3 + i)
            assert picture.text["num_inference_steps"] == "3"
    with Image.open(printed[4]) as sheet:
        assert sheet.width > 64


@pytest.mark.extended
def test_generate_says_what_it_replaces(capsys, tmp_path):
    arguments = ["generate", "Clear.", *ON_TINY, *QUICK_IMAGE, "--out", str(tmp_path / "o")]
    assert run(arguments) == 0
    assert "replaced" not in capsys.readouterr().err
    assert run(arguments) == 0
    assert "clear_seed0.png: replaced an earlier file" in "".join(
        capsys.readouterr().err.splitlines()
    )


@pytest.mark.extended
def test_one_image_has_no_sheet_and_the_seed_repeats(capsys, tmp_path):
    arguments = ["generate", "Edema.", *ON_TINY, *QUICK_IMAGE]
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert run([*arguments, "--out", str(tmp_path / name), "--seed", seed]) == 0
    a, b, c = (list((tmp_path / name).iterdir()) for name in "abc")
    assert [len(files) for files in (a, b, c)] == [1, 1, 1]
    assert a[0].read_bytes() == b[0].read_bytes() != c[0].read_bytes()
    capsys.readouterr()


def test_empty_text_generates_an_unconditional_image(capsys, tmp_path):
    assert run(["generate", "", *ON_TINY, *QUICK_IMAGE, "--out", str(tmp_path)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["000_image_seed0.png"]
    assert "PROMPT: a text is empty" in capsys.readouterr().err
    capsys.readouterr()


# ------------------------------------------------------------------------- info


def test_info(capsys, tmp_path):
    assert run(["info", str(TINY)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "hidden_size 64" in printed
    assert "autoencoder" in printed
    assert run(["info", str(TINY), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decoder"]["hidden_size"] == 64
    copied = copy_of(tmp_path)
    shutil.rmtree(copied / "vae")
    assert run(["info", str(copied)]) == 0
    assert "absent: only reports are supported" in capsys.readouterr().out


# ------------------------------------------------------------------------- errors


def copy_of(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "copy"))


def truncated(path: Path) -> Path:
    file = copy_of(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return file.parent


def wrong_key(path: Path) -> Path:
    file = copy_of(path) / "model.safetensors"
    data = file.read_bytes()
    key = b"llm2vae.weight"
    assert key in data
    file.write_bytes(data.replace(key, b"llm2vaf.weight"))
    return file.parent


def broken_json(path: Path) -> Path:
    file = copy_of(path) / "config.json"
    file.write_text(file.read_text()[:-20])
    return file.parent


def other_size(path: Path) -> Path:
    file = copy_of(path) / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 64', '"hidden_size": 128'))
    return file.parent


def broken_tokenizer(path: Path) -> Path:
    file = copy_of(path) / "tokenizer.json"
    file.write_text("{}")
    return file.parent


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path / "nowhere", "nowhere"),
        (lambda path: path, "config.json"),
        (lambda path: TINY / "config.json", "found a file"),
        (truncated, "model.safetensors"),
        (broken_json, "config.json"),
        (broken_tokenizer, "tokenizer.json"),
    ],
    ids=["missing", "empty", "file", "truncated", "broken-json", "broken-tokenizer"],
)
def test_bad_checkpoints(capsys, tmp_path, xray, make, expected):
    directory = make(tmp_path)
    line = error_of(capsys, ["report", xray, "--checkpoint", str(directory)])
    assert expected in line


@pytest.mark.parametrize(("make", "expected"), [(wrong_key, "llm2vae.weight"), (other_size, "64")])
def test_checkpoints_that_do_not_fit(capsys, tmp_path, make, expected):
    """The one error that lists everything, so one message rather than one line."""
    assert (
        run(["generate", "x", "--checkpoint", str(make(tmp_path)), "--out", str(tmp_path / "o")])
        == 1
    )
    captured = capsys.readouterr()
    first, *rest = captured.err.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  ") for line in rest)
    assert expected in captured.err
    assert "Traceback" not in captured.err


def test_info_of_no_checkpoint(capsys, tmp_path):
    assert "config.json" in error_of(capsys, ["info", str(tmp_path)])
    assert "nowhere" in error_of(capsys, ["info", str(tmp_path / "nowhere")])


def test_bad_images(capsys, tmp_path, xray):
    cases = {
        "pixel.png": "at least 16 pixels",
        "text.png": "expected an image",
        "cut.png": "truncated",
        "empty.png": "empty file",
        "nowhere.png": "no such file",
    }
    Image.new("L", (1, 1)).save(tmp_path / "pixel.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(Path(xray).read_bytes()[:1500])
    (tmp_path / "empty.png").touch()
    for name, expected in cases.items():
        line = error_of(capsys, ["report", str(tmp_path / name), *ON_TINY, *QUICK_REPORT])
        assert name in line
        assert expected in line
    # One bad picture among good ones is named, and nothing is printed for the others.
    assert "cut.png" in error_of(
        capsys, ["report", xray, str(tmp_path / "cut.png"), *ON_TINY, *QUICK_REPORT]
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report"], "IMAGE"),
        (["report", "XRAY", "--prompt", "pneumonia " * 20000], "prompt: expected at most"),
        (["report", "XRAY", "--max-new-tokens", "0"], "max_new_tokens"),
        (["report", "XRAY", "--temperature", "-1"], "temperature"),
        (["report", "XRAY", *QUICK_REPORT, "--seed", "-1"], "seed"),
        (["report", "XRAY", "--mesh", "data=3"], "multiply to 8 devices"),
        (["report", "XRAY", "--mesh", "tensor=8"], "tensor=8 does not divide"),
        (["report", "XRAY", "--mesh", "rows=8"], "mesh: expected for example"),
        (["generate"], "PROMPT"),
        (["generate", "x" * 100000, "--height", "64", "--width", "64"], "prompt: expected at most"),
        (["generate", "x", "--height", "100"], "height: expected a positive multiple of 16"),
        (["generate", "x", "--height", "64", "--width", "0"], "width: expected a positive"),
        (
            ["generate", "x", "--num-inference-steps", "0", "--height", "32", "--width", "32"],
            "num_inference_steps",
        ),
        (["generate", "x", "--steps", "50"], "--steps: this option is now --num-inference-steps"),
        (["generate", "x", "--steps=50"], "--steps=50: this option is now --num-inference-steps"),
        (["report", "XRAY", "--batch-size", "0"], "--batch-size: expected at least 1"),
        (["generate", "x", "--seed", "-1", "--height", "32", "--width", "32"], "seed"),
        (["generate", "x", "--num-images", "0"], "--num-images"),
        (["generate", "x", "--out", "FILE/x"], "--out"),
        (["generate", "x", "--out", "FILE"], "--out"),
    ],
)
def test_bad_arguments(capsys, tmp_path, xray, arguments, expected):
    (tmp_path / "file").touch()
    found = [a.replace("XRAY", xray).replace("FILE", str(tmp_path / "file")) for a in arguments]
    if found[0] == "generate" and "--out" not in found:
        found += ["--out", str(tmp_path / "out")]
    assert expected in error_of(capsys, [*found, *ON_TINY])
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_directory(capsys, tmp_path):
    tmp_path.chmod(0o500)
    try:
        line = error_of(capsys, ["generate", "x", *ON_TINY, "--out", str(tmp_path)])
    finally:
        tmp_path.chmod(0o700)
    assert "expected a writable directory" in line


def test_checkpoint_without_autoencoder(capsys, tmp_path, xray):
    copied = copy_of(tmp_path)
    shutil.rmtree(copied / "vae")
    out = ["--out", str(tmp_path / "out")]
    assert "autoencoder" in error_of(
        capsys, ["generate", "x", *QUICK_IMAGE, "--checkpoint", str(copied), *out]
    )
    assert run(["report", xray, "--checkpoint", str(copied), *QUICK_REPORT]) == 0
    capsys.readouterr()


def test_names_are_not_read_as_markup(capsys, tmp_path, xray):
    """Rich reads [/x] as a tag that was never opened."""
    directory = tmp_path / "[" / "x]" / "[bold]"
    line = error_of(capsys, ["report", xray, "--checkpoint", str(directory)])
    assert str(directory) in line
    assert str(directory) in error_of(capsys, ["info", str(directory)])
    directory.parent.mkdir(parents=True)
    shutil.copytree(TINY, directory)
    assert run(["info", str(directory)]) == 0
    assert "[bold]" in "".join(capsys.readouterr().out.split())


def test_unknown_fields_are_one_warning(capsys, tmp_path):
    file = copy_of(tmp_path) / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"[/novel]": 1, "[bold]": 2}))
    assert run(["info", str(file.parent)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "[/novel]" in line
    assert "[bold]" in line


# ------------------------------------------------------------------------- processes


def process(arguments: list[str], **options) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, *options.pop("program", ["-m", "unix_jax.cli"]), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def test_a_process_reports(xray):
    started = process(["report", xray, *ON_TINY, *QUICK_REPORT])
    out, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert out.strip()
    assert errors == ""


@pytest.mark.extended
def test_a_narrow_terminal_encoding(xray):
    """Toy weights write replacement characters; a report is printed whatever the terminal takes."""
    started = process(["report", xray, *ON_TINY, *QUICK_REPORT], env={"PYTHONIOENCODING": "ascii"})
    out, errors = started.communicate(timeout=300)
    assert started.returncode == 0, errors
    assert out.strip()


def test_a_process_fails_in_one_line(tmp_path):
    started = process(["generate", "x", "--checkpoint", str(tmp_path / "nowhere"),
                       "--out", str(tmp_path / "out")])  # fmt: skip
    out, errors = started.communicate(timeout=300)
    assert started.returncode == 1
    assert out == ""
    assert len(errors.splitlines()) == 1
    assert errors.startswith("error: ")


@pytest.mark.parametrize("size", ["1", "2", pytest.param("16", marks=pytest.mark.extended)])
def test_reports_in_batches(capsys, xray, tmp_path, size, monkeypatch):
    """Three reports, whatever the batch; no more images in memory than those of a batch."""
    from unix_jax.preprocessing import images

    paths = [xray]
    for turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180):
        paths.append(str(tmp_path / f"{turn}.png"))
        Image.open(xray).transpose(turn).save(paths[-1])
    order, plain = [], images.load_levels

    def watched(source, **options):
        if isinstance(source, str):
            order.append(source)
        return plain(source, **options)

    monkeypatch.setattr(images, "load_levels", watched)
    report = ["report", *paths, *ON_TINY, *QUICK_REPORT, "--json", "--batch-size", size]
    assert run(report) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == paths
    assert {row["finish_reason"] for row in rows} <= {"eos", "length"}
    assert order == paths
    alone = []
    for path in paths:
        assert run(["report", path, *ON_TINY, *QUICK_REPORT]) == 0
        alone.append(capsys.readouterr().out.removesuffix("\n"))
    assert [row["report"] for row in rows] == alone


def test_a_file_without_an_image_is_refused_before_the_model_loads(capsys, tmp_path, xray):
    (tmp_path / "text.png").write_text("no image")
    for name, expected in (("text.png", "expected an image"), ("nowhere.png", "no such file")):
        arguments = ["report", xray, str(tmp_path / name), "--checkpoint", str(tmp_path / "none")]
        assert expected in error_of(capsys, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["report", "--help"],
        ["info", str(TINY)],
        ["info", str(TINY), "--json"],
        ["info", str(DIFFUSERS)],
    ],
    ids=" ".join,
)
def test_quick_commands_import_no_jax(arguments):
    code = "import sys; from unix_jax.cli import main\n"
    code += "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "sys.exit(3 if {'jax', 'pydicom'} & set(sys.modules) else 0)"
    started = process(arguments, program=["-c", code])
    out, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    assert out


@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"], ["--version"]])
def test_a_reader_of_help_that_goes_away(arguments):
    started = process(arguments)
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    assert started.stderr.read() == ""
    assert started.wait(timeout=60) == 0


@pytest.mark.parametrize(("word", "meant"), [("generte", "generate"), ("reports", "report")])
def test_a_mistyped_subcommand(capsys, word, meant):
    line = error_of(capsys, [word, "x"])
    assert f"{word}: expected one of report, generate, info" in line
    assert line.endswith(f"did you mean {meant}?")


def test_info_of_the_bundled_model(capsys):
    assert run(["info"]) == 0
    captured = capsys.readouterr()
    assert "hidden_size 256" in " ".join(captured.out.split())
    assert "examples/nano, a small demonstration model" in captured.err


def test_help_is_quick_and_loads_no_model():
    code = "import sys; from unix_jax.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(3 if 'jax' in sys.modules else 0)"
    started = process([], program=["-c", code])
    out, errors = started.communicate(timeout=120)
    assert started.returncode == 0, errors
    assert "not a medical device" in " ".join(out.split())


_ANNOUNCED = """
import sys
from unix_jax.inference import image_latents
plain = image_latents.sample_latents
def announced(*arguments, **options):
    print("step", flush=True)
    return plain(*arguments, **options)
image_latents.sample_latents = announced
from unix_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.extended
def test_interruption_leaves_no_image(tmp_path):
    out = tmp_path / "out"
    started = process(
        ["generate", "x", *ON_TINY, "--height", "64", "--width", "64",
         "--num-inference-steps", "100000", "--out", str(out)],
        program=["-c", _ANNOUNCED],
    )  # fmt: skip
    assert started.stdout is not None
    for _ in range(3):
        assert started.stdout.readline() == "step\n", started.communicate()[1]
    time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert errors.splitlines() == ["interrupted"]
    assert list(out.iterdir()) == []


@pytest.mark.extended
def test_reader_that_goes_away(xray, tmp_path):
    started = process(["report", xray, *ON_TINY, "--prompt", "Report:", "--max-new-tokens", "60"])
    assert started.stdout is not None
    started.stdout.close()
    assert started.stderr is not None
    errors = started.stderr.read()
    # `| head` has what it wanted.
    assert started.wait(timeout=300) == 0
    assert "Traceback" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "command",
    [["-m", "unix_jax.cli", "info", str(TINY), "--json"], ["-m", "convert", "inspect", str(TINY)]],
    ids=["unix-jax", "convert"],
)
def test_a_full_disk_is_one_line(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: No space left on device"
    assert "Traceback" not in done.stderr

"""Reports of a data set by the toy model: killed on the way, with broken items, then measured."""

import csv
import json
from pathlib import Path

import pytest

from support import toy_pipelines
from unix_jax.commands import evaluate
from unix_jax.data.sources import open_source
from unix_jax.errors import UniXError
from unix_jax.evaluation_runs import items
from unix_jax.evaluation_runs.evaluation_files import read_entries
from unix_jax.evaluation_runs.report_runs import ReportSettings, write_reports
from unix_jax.preprocessing.transforms import save_png, to_pil
from unix_jax.storage.journal import Journal

SOME = 7
BROKEN = 3


class Killed(BaseException):
    """As if the process were killed: nothing catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest of pictures, one broken and one without a report."""
    directory = tmp_path_factory.mktemp("data")
    rows = []
    for index, picture in enumerate(toy_pipelines.pictures(SOME)):
        name = f"{index}.png"
        save_png(directory / name, to_pil(picture))
        findings = f"Report <script>{index}</script> of the lungs."
        rows.append({"image": name, "findings": findings, "split": "test"})
    (directory / f"{BROKEN}.png").write_bytes(b"no picture")
    rows.append({"image": "0.png", "findings": "", "split": "test"})
    rows.append({"image": "0.png", "findings": "", "split": "train"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "manifest.jsonl").write_text(lines)
    return f"manifest:{directory}"


@pytest.fixture(autouse=True)
def toy_model(monkeypatch):
    monkeypatch.setattr(
        evaluate.OverData, "_load", lambda self, **_: toy_pipelines.small_writing_pipe()
    )


def command(data, out, **options):
    options = {"batch_size": 2, "max_new_tokens": 6, "resamples": 20, **options}
    return evaluate.EvaluateReports(
        checkpoint=str(toy_pipelines.CHECKPOINT), data=data, out=str(out), **options
    )


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The results of a run that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate.OverData, "_load", lambda self, **_: toy_pipelines.small_writing_pipe()
        )
        out = tmp_path_factory.mktemp("whole")
        command(data, out).run()
    return out


def test_killed_twice_it_ends_as_if_it_had_not_been(data, whole, tmp_path, monkeypatch):
    append = Journal.append
    writes = 0

    def torn(journal, entries):
        """Every second write is torn in its last line, and ends the process."""
        nonlocal writes
        writes += 1
        append(journal, entries)
        if writes in (2, 4):
            journal.path.write_bytes(journal.path.read_bytes()[:-5])
            raise Killed

    monkeypatch.setattr(Journal, "append", torn)
    for _ in range(2):
        with pytest.raises(Killed):
            command(data, tmp_path).run()
        assert not (tmp_path / "results.json").exists()
    command(data, tmp_path).run()
    lines = (tmp_path / "items-0.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(SOME + 1))
    for name in ("results.json", "predictions.jsonl", "report.html"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_failures_are_recorded_and_the_rest_is_measured(whole):
    results = json.loads((whole / "results.json").read_text())
    assert results["counts"] == {
        "items": SOME + 1, "scored": SOME - 1, "failed": 1, "not_comparable": 1,
    }  # fmt: skip
    (broken,) = results["failures"]
    assert broken["index"] == BROKEN
    assert "3.png" in broken["key"] + broken["error"]
    assert set(results["metrics"]) == {"BLEU1", "BLEU2", "BLEU3", "BLEU4", "ROUGE_L"}
    assert results["settings"]["max_new_tokens"] == 6
    assert len((whole / "predictions.jsonl").read_text().splitlines()) == SOME


def test_the_original_scripts_can_read_the_reports(whole, tmp_path):
    with (whole / "understanding_results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["Image Path", "Report Impression", "Ground Truth"]
    assert len(rows) == SOME - 1
    assert Path(rows[0]["Image Path"]).name == "0.png"
    table = str(whole / "understanding_results.csv")
    evaluate.EvaluateScore(table, out=str(tmp_path), resamples=20).run()
    again, first = (
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (tmp_path, whole)
    )
    assert again == first
    with (whole / "metrics_summary.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["BLEU4"]) == first["BLEU4"]["value"]
    assert (row["f1-radgraph"], len(row)) == ("", 13)


def test_an_image_that_shows_nothing_is_counted_and_named(tmp_path, capsys):
    images = [(picture * 255).astype("uint8") for picture in toy_pipelines.pictures(3)]
    images[1] = images[1] // 16
    for index, image in enumerate(images):
        save_png(tmp_path / f"{index}.png", to_pil(image))
    rows = [{"image": f"{i}.png", "findings": "Clear lungs.", "split": "test"} for i in range(3)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command(f"manifest:{tmp_path}", tmp_path / "out").run()
    captured = capsys.readouterr()
    assert "warning: 1 of the images show almost nothing: " in captured.out
    assert "ImageWarning" not in captured.err
    (warned,) = json.loads((tmp_path / "out" / "results.json").read_text())["image_warnings"]
    assert (warned["index"], warned["warning"].partition(" (")[0]) == (1, "nearly black")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Images with almost no content" in page
    assert "nearly black (" in page


def test_the_page_runs_nothing_and_shows_the_images(whole):
    page = (whole / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/jpeg;base64,") == SOME - 1
    assert "http://" not in page
    assert "https://" not in page


def test_reports_do_not_depend_on_the_batch_or_the_process(data, whole, tmp_path):
    source = open_source(data, "test")
    for process in range(2):
        write_reports(
            toy_pipelines.small_writing_pipe(), source, tmp_path, ReportSettings("", 6),
            batch_size=2, share=items.Share(process, 2),
        )  # fmt: skip
    found = {index: entry.values for index, entry in read_entries(tmp_path).items()}
    assert found == {index: entry.values for index, entry in read_entries(whole).items()}


def test_other_settings_are_refused_and_metrics_may_change(data, whole, capsys, monkeypatch):
    for options, message in (
        ({"max_new_tokens": 7}, r"max_new_tokens 6 \(now 7\)"),
        ({"prompt": "Other."}, r'prompt "" \(now "Other."\)'),
        ({"limit": 3}, r"items 8 \(now 3\)"),
    ):
        with pytest.raises(UniXError, match=f"was started with {message}"):
            command(data, whole, **options).run()
    monkeypatch.setattr(
        evaluate.OverData, "_load", lambda self, **_: pytest.fail("nothing is left")
    )
    before = json.loads((whole / "results.json").read_text())
    command(data, whole, resamples=7, batch_size=5).run()
    after = json.loads((whole / "results.json").read_text())
    assert before["metrics"]["BLEU1"]["value"] == after["metrics"]["BLEU1"]["value"]
    command(data, whole).run()
    assert json.loads((whole / "results.json").read_text()) == before


def test_a_larger_limit_resumes_with_the_further_records(data, whole, tmp_path):
    for limit in (2, 5):
        command(data, tmp_path, limit=limit).run()
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["counts"]["items"] == limit
    lines = (tmp_path / "items-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 3, 2, 4]  # 3 is broken
    with pytest.raises(UniXError, match=r"items 5 \(now 4\)"):
        command(data, tmp_path, limit=4).run()
    command(data, tmp_path).run()
    for name in ("results.json", "predictions.jsonl", "report.html"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_of_which_every_item_failed_is_an_error(tmp_path, capsys):
    rows = [{"image": f"{name}.png", "findings": "Clear.", "split": "test"} for name in "ab"]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    # A second run has nothing left to do, and says the same.
    for _ in range(2):
        with pytest.raises(UniXError, match=r"all 2 failed; the first: .*a\.png"):
            command(f"manifest:{tmp_path}", tmp_path / "out").run()
    assert "2 failed" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/results.json").read_text())["counts"]["failed"] == 2


def test_arguments_are_checked_before_anything_runs(data, tmp_path):
    for options, message in (
        ({"batch_size": 0}, "--batch-size: expected at least 1, found 0"),
        ({"limit": 0}, "--limit: expected at least 1, found 0"),
        ({"max_new_tokens": 10**6}, "--max-new-tokens: expected at most"),
        ({"chexbert": "nowhere"}, "nowhere"),
    ):
        with pytest.raises(UniXError, match=message):
            command(data, tmp_path / "out", **options).run()
    assert not (tmp_path / "out").exists()


def test_a_conversation_is_asked_its_first_question_with_all_its_images(data, tmp_path):
    directory = Path(data.removeprefix("manifest:"))
    turns = ["<image><image>Both views?", "Clear.", "And then?", "Nothing."]
    row = {
        "image": ["0.png", "1.png"],
        "conversations": [
            {"from": ("human", "gpt")[number % 2], "value": text}
            for number, text in enumerate(turns)
        ],
    }
    file = directory / "talk.jsonl"
    file.write_text(json.dumps(row) + "\n")
    source = open_source(f"conversations:{file}")
    pipe = toy_pipelines.small_writing_pipe()
    write_reports(pipe, source, tmp_path, ReportSettings(max_new_tokens=6))
    (entry,) = read_entries(tmp_path).values()
    images = [str(directory / f"{number}.png") for number in (0, 1)]
    (expected,) = pipe.generate_report([images], prompts="Both views?", max_new_tokens=6)
    assert entry.values["prediction"] == expected
    assert (entry.values["prompt"], entry.values["reference"]) == ("Both views?", "Clear.")


def test_int8_weights_are_another_run(whole, data):
    with pytest.raises(UniXError, match="quantization"):
        command(data, whole, quantization="int8").run()


def test_a_mesh_that_int8_refuses_leaves_nothing(data, tmp_path):
    with pytest.raises(UniXError, match="a mesh that splits the weights, found int8"):
        command(data, tmp_path / "new", quantization="int8", mesh="fsdp=8").run()
    assert not (tmp_path / "new").exists()

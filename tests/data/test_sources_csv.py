"""`csv:`: columns by name, image folders, the original's CSV of prompts, and broken rows."""

import contextlib
import gzip
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.source_files import error_of, lines_file, read_or_error
from unix_jax.data.records import Record, RecordSource
from unix_jax.data.sources import open_source
from unix_jax.data.sources.csv_file import CsvSource
from unix_jax.errors import DataError


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_columns_by_option(tmp_path):
    file = table(
        tmp_path / "a.csv",
        'Bild,Befund,Fazit,Teil,Pat\na.png,"Clear, both\nlungs.",Normal.,train,7\nb.png,,,test,8\n',
    )
    spec = (
        f"csv:{file}?images=/i&image=Bild&findings=Befund&impression=Fazit&split=Teil&patient=Pat"
    )
    source = open_source(spec)
    assert isinstance(source, RecordSource)
    assert source[0] == Record(
        "a.png", Path("/i/a.png"), "Clear, both\nlungs.", "Normal.", patient="7", split="train"
    )
    assert [r.key for r in open_source(spec, "test")] == ["b.png"]
    assert list(pickle.loads(pickle.dumps(source))) == list(source)
    with pytest.raises(DataError, match=r"expected rows of split 'dev', found splits \['test'"):
        open_source(spec, "dev")
    with pytest.raises(DataError, match=r"no column for findings=X, view=Y; its columns are \['Bi"):
        open_source(f"csv:{file}?image=Bild&findings=X&view=Y")
    with pytest.raises(DataError, match=r"expected a column of images or texts, found \['Bild'"):
        open_source(f"csv:{file}")
    with pytest.raises(DataError, match=r"expected answer=\.\.\. or .* found 'colour=x'"):
        open_source(f"csv:{file}?colour=x")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_known_columns(tmp_path, name):
    text = (
        "\ufeffpath,report,captions,labels\n"
        "a.png,FINDINGS: A. IMPRESSION: B.,one,Mass|Edema\n"
        'b.png,Plain text.,"[""c"", ""d""]","{\'Mass\': 1.0, \'Edema\': nan}"\n'
    )
    if name == "a.tsv":
        text = text.replace('"[""c"", ""d""]"', '["c", "d"]').replace('"{', "{").replace('}"', "}")
        text = text.replace(",", "\t").replace('"c"\t ', '"c", ').replace("1.0\t", "1.0,")
    first, second = open_source(f"csv:{table(tmp_path / name, text)}", "train")
    assert first == Record(
        "a.png", tmp_path / "a.png", "A.", "B.", captions=("one",), labels=("Mass", "Edema")
    )
    assert (second.findings, second.captions, second.labels) == (
        "Plain text.",
        ("c", "d"),
        ("Mass",),
    )


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_image_folders(tmp_path, name):
    if name.endswith("csv"):
        table(tmp_path / name, "file_name,text\nx/a.png,Impression: Edema.\n")
    else:
        lines_file(tmp_path / name, [{"file_name": "x/a.png", "text": "Impression: Edema."}])
    expected = [Record("x/a.png", tmp_path / "x/a.png", impression="Edema.")]
    assert list(open_source(f"csv:{tmp_path}")) == list(open_source(f"csv:{tmp_path}/{name}"))
    assert list(open_source(f"csv:{tmp_path}", "validate")) == expected
    with pytest.raises(DataError, match=rf"found {name}; read it as csv:{tmp_path}"):
        open_source(f"manifest:{tmp_path}")
    with pytest.raises(DataError, match=r"x\.csv: expected JSON lines, found CSV .* as csv:x\.csv"):
        open_source("manifest:x.csv")


def test_prompts_of_the_original(tmp_path):
    """Repeated prompts are left out and counted; the dict of labels is read, not executed."""
    head = "annotated_prompt,synthetic_filename,chexpert_labels"
    row = "\"{'Edema': 1, 'Mass': 0}\""
    file = table(tmp_path / "p.csv", f"{head}\nA,1.png,{row}\nB,2.png,{row}\nA,3.png,{row}\n")
    with pytest.warns(UserWarning, match="1 of 3 rows have an annotated_prompt that an earlier"):
        source = open_source(f"csv:{file}")
    assert list(source) == [
        Record("1.png", captions=("A",), labels=("Edema",)),
        Record("2.png", captions=("B",), labels=("Edema",)),
    ]
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        assert open_source(f"csv:{file}?images=/s")[0].image == Path("/s/1.png")
    table(file, f"path,{head}\nreal.png,A,1.png,__import__('os')\n")
    table(tmp_path / "q.csv", f"path,{head}\nreal.png,A,1.png,[__import__('os')]\n")
    assert open_source(f"csv:{file}")[0].image == tmp_path / "real.png"
    assert "labels: expected a list or a dict" in error_of(open_source(f"csv:{tmp_path}/q.csv"), 0)


@pytest.mark.parametrize(("header", "column"), [("key,image", "key"), ("image,findings", "image")])
def test_repeated_keys_are_told(tmp_path, header, column):
    file = table(tmp_path / "a.csv", f"{header}\na.png,x\nb.png,y\na.png,z\n")
    with pytest.warns(UserWarning, match=rf"1 of 3 rows have the {column} .* line 4: 'a.png'"):
        assert len(open_source(f"csv:{file}")) == 3


def test_questions_share_an_image(tmp_path, recwarn):
    file = table(tmp_path / "a.csv", "image,prompt,answer\na.png,x,y\na.png,z,w\n")
    assert len(open_source(f"csv:{file}")) == 2
    assert not recwarn


@pytest.mark.parametrize("cell", ["nan", "NaN"])
def test_cells_without_a_value(tmp_path, cell):
    file = table(tmp_path / "a.csv", f"image,findings,impression\na.png,{cell},Clear.\n")
    record = open_source(f"csv:{file}")[0]
    assert (record.findings, record.impression) == ("", "Clear.")


def test_another_separator_is_named(tmp_path):
    file = table(tmp_path / "a.csv", "image;findings\na.png;Clear.\n")
    with pytest.raises(DataError, match=r"separated by commas .*found one column with ';'"):
        open_source(f"csv:{file}")


def test_rows_without_a_split_are_counted(tmp_path):
    file = table(tmp_path / "a.csv", "image,split\na,train\nb,\nc,train\n")
    with pytest.warns(UserWarning, match=r"1 of 3 rows have no split and are not in split"):
        assert [r.key for r in open_source(f"csv:{file}", "train")] == ["a", "c"]
    assert len(open_source(f"csv:{file}", "")) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,view\na,PA\nb\nc,AP\n", "line 3: expected 2 cells, found 1"),
        ("image,view\na,PA\nb,AP,x\nc,AP\n", "line 3: expected 2 cells, found 3"),
        ("image,captions\na,x\nb,[1\nc,y\n", "line 3: captions: expected JSON"),
    ],
)
def test_broken_rows(tmp_path, text, expected):
    source = CsvSource(table(tmp_path / "a.csv", text))
    assert [source[0].key, source[2].key] == ["a", "c"]
    assert expected in error_of(source, 1)


def test_broken_files(tmp_path):
    for name, data, expected in (
        ("a.csv", b"image,image\n", "expected each column once"),
        ("a.csv", b"image\n", "expected rows, found none"),
        ("a.csv", b"", "expected rows, found none"),
        ("a.csv", "image,ä\nx,y\n".encode("latin-1"), "expected CSV in UTF-8"),
        ("a.csv.gz", b"no gzip", "cannot be read"),
        ("a.txt", b"", r"expected a .csv, .tsv or .jsonl file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=expected):
            open_source(f"csv:{tmp_path / name}")
    (tmp_path / "a.csv").write_bytes("image,view\nx,\xe4\n".encode("latin-1"))
    assert "expected Unicode" in error_of(open_source(f"csv:{tmp_path}/a.csv"), 0)
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read: No such file"):
        open_source("csv:/nowhere.csv")
    with pytest.raises(
        DataError, match=r"expected metadata\.csv or metadata\.jsonl, found neither"
    ):
        open_source(f"csv:{tmp_path}")


@given(st.binary(max_size=120) | st.text("aimge,\n\"'[]{}1|é", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_table_is_records_or_an_error(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzz.csv"
    file.write_bytes(b"image,captions,labels,split\n" + data)
    for split in (None, "train"):
        with contextlib.suppress(DataError):
            source = CsvSource(file, split)
            for index in range(len(source)):
                message = read_or_error(source, index)
                assert message is None or message.startswith(f"{file}: line ")

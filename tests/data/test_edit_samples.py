"""Image-conditioned samples: pairs of images from manifests and MIMIC-CXR, packed for editing."""

import csv
import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.toy_data import CONFIG, GENERATION, ListSource, picture, tokenizer
from unix_jax.data.collate import collate, load
from unix_jax.data.config import DataConfig
from unix_jax.data.fingerprint import fingerprint
from unix_jax.data.model_images import vae_pixels, vit_pixels
from unix_jax.data.records import Record, with_image_bytes
from unix_jax.data.samples import Cost, Skip, record_samples
from unix_jax.data.sources import open_source
from unix_jax.data.sources.array_records import decode_record, encode_record
from unix_jax.data.sources.mimic import _Row, previous_images, study_time
from unix_jax.errors import ConfigError, DataError
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit

EDIT = dataclasses.replace(
    GENERATION, task="edit", und_tokens=160, vit_images=3, vae_images=4,
    caption_dropout=0.0, condition_dropout=0.0,
)  # fmt: skip
GRID = EDIT.latent_grid(CONFIG)


def pair(key="p", **fields):
    return Record(key, picture(1), impression="Larger.", condition=picture(2), **fields)


def samples(source, data=EDIT):
    return record_samples(ListSource(source), tokenizer(), CONFIG, data)


def test_a_sample():
    built = samples([pair()]).build(0, 0)
    text = built.splits[2]
    assert built.splits[:2] == (VaeSplit(*GRID, noised=False), VitSplit())
    assert built.splits[3:] == (VaeSplit(*GRID, noised=True),)
    assert isinstance(text, TextSplit)
    assert tokenizer().decode(text.ids) == "Larger."
    assert built.losses == (False, False, False, True)
    before = dataclasses.replace(pair(), image=pair().condition)
    expected = (
        vae_pixels(before, EDIT), vit_pixels(before, CONFIG), vae_pixels(pair(), EDIT),
    )  # fmt: skip
    for image, found in zip(expected, load(built).images, strict=True):
        np.testing.assert_array_equal(image, found)


@pytest.mark.parametrize("text", [0.0, 1.0])
@pytest.mark.parametrize("condition", [0.0, 1.0])
def test_costs_of_what_is_dropped(text, condition):
    data = dataclasses.replace(EDIT, caption_dropout=text, condition_dropout=condition)
    found = samples([pair()], data)
    built = found.build(0, 0)
    assert len(built.splits) == 1 + (text == 0) + 2 * (condition == 0)
    assert found.cost(0, 0) == built.cost(CONFIG)
    assert built.losses[-1]
    collate([[load(built)]], CONFIG, data)


def test_dropouts_are_independent():
    data = dataclasses.replace(EDIT, caption_dropout=0.3, condition_dropout=0.4)
    found = samples([pair()], data)
    costs = [found.cost(0, epoch) for epoch in range(2000)]
    without_condition = np.array([cost.vae == 1 for cost in costs])
    smallest = {True: 2, False: 2 + 4 + CONFIG.vision.num_patches}
    without_text = np.array([c.und == smallest[c.vae == 1] for c in costs])
    for dropped, share in ((without_condition, 0.4), (without_text, 0.3)):
        assert abs(dropped.mean() - share) < 0.06
    both = (without_condition & without_text).mean()
    assert abs(both - 0.12) < 0.05


def test_packed():
    """Two samples in a row: clean images have neither noise nor loss."""
    built = samples([pair(), pair("q")])
    batch = collate([[load(built.build(i, 0)) for i in (0, 1)]], CONFIG, EDIT)
    np.testing.assert_array_equal(batch.noised, [[False, True, False, True]])
    tokens = GRID[0] * GRID[1]
    np.testing.assert_array_equal(batch.mse_weights[0], np.repeat([0, 1, 0, 1], tokens))
    assert not batch.ce_weights.any()


def test_left_out():
    source = [
        dataclasses.replace(pair(), condition=None),
        dataclasses.replace(pair(), image=None),
        dataclasses.replace(pair(), impression=""),
    ]
    found = samples(source)
    assert found.cost(0, 0) == Skip("no_image", "it has no condition")
    assert found.cost(1, 0) == Skip("no_image", "it has no image")
    assert found.cost(2, 0) == Skip("no_text")
    assert samples([pair()]).cost(0, 0).vae == 2


def test_settings():
    with pytest.raises(ConfigError, match="vae_images: expected at least 2 for the task edit"):
        dataclasses.replace(EDIT, vae_images=1)
    with pytest.raises(ConfigError, match="vit_images: expected at least 1 for the task edit"):
        dataclasses.replace(EDIT, vit_images=0)
    with pytest.raises(ConfigError, match=r"data.moments: expected none with the task edit"):
        dataclasses.replace(EDIT, moments="m")
    with pytest.raises(ConfigError, match="condition_dropout: expected 0 to 1, found 2"):
        dataclasses.replace(EDIT, condition_dropout=2)
    mixed = "0.5*understanding:csv:a + 0.5*edit:csv:b"
    assert DataConfig(source=mixed, vae_images=2).tasks == ("understanding", "edit")


def test_manifests_and_records(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(picture(ord(name)))
    rows = [{"image": "b.png", "condition": "a.png", "impression": "Larger."}, {"condition": 3}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(f"manifest:{tmp_path}")
    assert source[0].condition == tmp_path / "a.png"
    with pytest.raises(DataError, match="line 2: condition: expected a string, found 3"):
        source[1]
    stored = decode_record(encode_record(source[0]), "here")
    assert stored == with_image_bytes(source[0])
    alone = dataclasses.replace(source[0], image=None)
    assert decode_record(encode_record(alone), "here").condition == stored.condition


# --- MIMIC-CXR ---------------------------------------------------------------------------------

# dicom, subject, study, view, StudyDate, StudyTime
IMAGES = [
    ("a1", "10000001", "50000001", "PA", "21800506", "213014.531"),
    ("a2", "10000001", "50000001", "LATERAL", "21800506", "213014.531"),
    ("b1", "10000001", "50000002", "AP", "21800626", "91204.5"),
    ("c1", "10000001", "50000003", "AP", "21800626", "165500.312"),
    ("c2", "10000001", "50000003", "LATERAL", "21800626", "165500.312"),
    ("d1", "10000001", "50000004", "PA", "", ""),
    ("e1", "10000002", "50000005", "PA", "21500101", "1"),
]


def mimic(root, images=IMAGES):
    header = ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]
    tables = {
        "metadata": [header, *images],
        "split": [["dicom_id", "split"], *([image[0], "train"] for image in images)],
    }
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (root / f"mimic-cxr-2.0.0-{name}.csv").open("w", newline="") as opened:
            csv.writer(opened).writerows(rows)
    return root


def test_pairs_of_previous_studies(tmp_path):
    root = mimic(tmp_path)
    with pytest.warns(UserWarning, match=r"pairs: 4 of 7 images have no image .*\(1 have no val"):
        source = open_source(f"mimic:{root}?reports=none&pairs=previous")
    # c2 finds its lateral view two studies before.
    assert [record.key for record in source] == ["b1 after a1", "c1 after b1", "c2 after a2"]
    folder = root / "files/p10/p10000001"
    assert source[2].image == folder / "s50000003/c2.jpg"
    assert source[2].condition == folder / "s50000001/a2.jpg"
    assert list(source.keys()) == [record.key for record in source]
    assert fingerprint(source)["last"] == "c2 after a2"
    with pytest.raises(DataError, match=r"found none among 3 images, 1 of them without a valid"):
        open_source(f"mimic:{root}?reports=none&pairs=previous&views=PA")


def test_pairs_of_a_view(tmp_path):
    root = mimic(tmp_path)
    with pytest.warns(UserWarning, match=r"pairs: 1 of 2 images"):
        source = open_source(f"mimic:{root}?reports=none&pairs=previous&views=AP")
    assert [record.key for record in source] == ["c1 after b1"]


def test_pairs_that_cannot_be_made(tmp_path):
    root = mimic(tmp_path)
    with pytest.raises(DataError, match="pairs: expected previous, found 'next'"):
        open_source(f"mimic:{root}?pairs=next")
    with pytest.raises(DataError, match=r"pairs: expected patients with an earlier study, found"):
        open_source(f"mimic:{mimic(tmp_path / 'one', IMAGES[-1:])}?reports=none&pairs=previous")
    metadata = root / "mimic-cxr-2.0.0-metadata.csv"
    metadata.write_text(metadata.read_text().replace("StudyTime", "Time"))
    with pytest.raises(DataError, match=r"metadata.csv: expected columns .*'StudyTime'"):
        open_source(f"mimic:{root}?pairs=previous")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(f"mimic:{root}?reports=none")


def test_times():
    assert study_time("21800506", "213014.531") == (21800506, 213014.531)
    assert study_time("21800506", "1") < study_time("21800506", "91204.5")
    for date, time in (("", "1"), ("21800506", ""), ("x", "1"), ("21800506", "nan"), ("0", "1"),
                       ("21800506", "240000")):  # fmt: skip
        assert study_time(date, time) is None


rows_of = st.lists(
    st.tuples(
        st.sampled_from("pq"), st.integers(1, 5), st.sampled_from(["PA", "AP", "LATERAL", ""]),
        st.one_of(st.none(), st.tuples(st.integers(1, 3), st.integers(1, 2))),
    ),
    max_size=14,
)  # fmt: skip


@given(rows_of)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_partner_is_of_the_same_patient_and_earlier(drawn):
    rows = [_Row(i, f"d{i}", p, f"{p}{s}", v, "") for i, (p, s, v, _) in enumerate(drawn)]
    times = {i: time for i, (*_, time) in enumerate(drawn)}
    starts = {
        row.study: min((times[r.line] for r in rows if r.study == row.study and times[r.line]),
                       default=None)
        for row in rows
    }  # fmt: skip

    def fits(row, other):
        frontal = {"PA", "AP"}
        return (
            other.subject == row.subject
            and times[other.line] is not None
            and times[row.line] is not None
            and starts[other.study] < starts[row.study]
            and (other.view == row.view or {other.view, row.view} <= frontal)
        )

    found = previous_images(rows, times)
    for row in rows:
        candidates = [other for other in rows if fits(row, other)]
        partner = found.get(row.line)
        assert (partner is not None) == bool(candidates)
        if partner is not None:
            assert partner in candidates
            assert starts[partner.study] == max(starts[c.study] for c in candidates)


def test_joined_reports_are_those_of_the_later_study(tmp_path):
    root = mimic(tmp_path)
    reports = tmp_path / "clean.jsonl"
    reports.write_text(json.dumps({"study_id": "50000003", "impression": "Larger."}) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(f"mimic:{root}?reports={reports}&pairs=previous&views=PA,AP")
    (record,) = source
    assert (record.key, record.impression) == ("c1 after b1", "Larger.")
    assert samples([record]).cost(0, 0) == Cost(
        4 + CONFIG.vision.num_patches + 2 + len(tokenizer().encode("Larger.")) + 2, 1, 2
    )

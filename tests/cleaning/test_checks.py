"""The checks of a rewrite: what may not be brought in, and the format."""

import pytest

from unix_jax.cleaning.checks import problems

ORIGINAL = (
    "FINDINGS: 1.5 cm nodule in the right upper lobe. Left PICC tip in the SVC. Two leads of a "
    "pacemaker. Old seventh rib fracture. T12 deformity. IMPRESSION: Right nodule."
)
REWRITE = (
    "FINDINGS: 1.5 cm nodule in the right upper lobe. Left PICC tip in the SVC. 2 leads of a "
    "pacemaker. Old 7th rib fracture. T12 deformity. IMPRESSION: Right nodule."
)


def test_what_is_taken_out_or_spelled_otherwise_is_no_problem():
    assert problems(ORIGINAL, ORIGINAL) == []
    assert problems(ORIGINAL, REWRITE) == []
    assert problems(ORIGINAL, "FINDINGS: Nodule. IMPRESSION: 1. Right nodule. 2. PICC line.") == []
    assert problems("FINDINGS: Bilateral effusions.", "FINDINGS: Right and left effusions.") == []


@pytest.mark.parametrize(("old", "new", "found"), [
    ("1.5 cm", "2.5 cm", '"2.5cm"'),
    ("1.5 cm", "1.5 mm", '"1.5mm"'),
    ("T12", "T11", '"t11"'),
    ("T12", "L12", '"l12"'),
    ("2 leads", "three leads", '"three"'),
    ("Old 7th", "Old 8th", '"8"'),
    ("T12 deformity", "Bibasilar and bilateral T12 deformity", None),
    ("right upper lobe", "left upper lobe", 'side of "left upper"'),
    ("pacemaker", "defibrillator", "defibrillator"),
    ("PICC", "port", '"port"'),
    ("PICC", "Swan-Ganz catheter", "pulmonary artery catheter"),
    ("Old", "Chest tube. Old", "chest tube"),
    ("T12", "___ T12", "de-identification"),
])  # fmt: skip
def test_what_is_brought_in(old, new, found):
    assert old in REWRITE
    wrong = problems(ORIGINAL, REWRITE.replace(old, new))
    assert wrong == [] if found is None else any(found in problem for problem in wrong)


def test_sides():
    assert problems("FINDINGS: Effusion.", "FINDINGS: Left effusion.") == [
        'Do not add the side "left".'
    ]
    assert problems("FINDINGS: Right effusion.", "FINDINGS: Bilateral effusions.") == [
        'Do not add the side "bilateral".'
    ]
    assert problems("FINDINGS: Bilateral effusions.", "FINDINGS: Left effusion.") == [
        'Do not add the side "left".'
    ]
    assert problems("FINDINGS: RLL opacity.", "FINDINGS: Right lower lobe opacity.") == []


@pytest.mark.parametrize("rewrite", [
    "", "...", "Clear lungs.", "I cannot help with that.", "Sure! FINDINGS: a. IMPRESSION: b.",
    "FINDINGS: IMPRESSION: b.", "FINDINGS: a. IMPRESSION:", "FINDINGS: a.", "IMPRESSION: b.",
    "FINDINGS: a. FINDINGS: c. IMPRESSION: b.", "IMPRESSION: b. FINDINGS: a.",
    "FINDINGS: . IMPRESSION: b.",
])  # fmt: skip
def test_format(rewrite):
    assert problems("FINDINGS: a. IMPRESSION: b.", rewrite)


def test_only_the_sections_of_the_original_are_needed():
    assert problems("IMPRESSION: b.", "IMPRESSION: b.") == []
    assert problems("FINDINGS: a.", "FINDINGS: a. IMPRESSION: a.") == []
    assert problems("Clear lungs without headings.", "FINDINGS: Clear lungs.")

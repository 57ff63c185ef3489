"""Sections of reports: the cases from the field, and more of each kind."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.data.report_sections import (
    dropped_sections,
    report_sections,
    split_report,
    split_written,
)

FIELD = [json.loads(line) for line in (Path(__file__).parent / "sections.jsonl").open()]


@pytest.mark.parametrize("case", FIELD, ids=range(len(FIELD)))
def test_cases_from_the_field(case):
    assert report_sections(case["report"]) == (case["findings"], case["impression"])


CASES = [
    # ---- the examination as a heading
    ("PORTABLE AP CHEST, 5:10 PM ON ___:  Edema.", "Edema.", ""),
    ("LEFT RIBS, TWO VIEWS:  No fracture.", "No fracture.", ""),
    ("CHEST AND RIBS, BONE WINDOW:  Fracture.", "Fracture.", ""),
    ("Frontal and lateral views of the chest:  Mild edema.", "Mild edema.", ""),
    ("CHEST, PA LATERAL:\n\n INDICATION:  Cough.\n\n FINDINGS:  Clear.", "Clear.", ""),
    ("CHEST:  Lungs clear.\n IMPRESSION:  Normal.", "Lungs clear.", "Normal."),
    # ---- names of the two sections
    ("FINDNGS AND IMPRESION:  Clear.", "Clear.", ""),
    ("FINDINGS:  Clear.\n IMPRESSION AND RECOMMENDATIONS:  CT.", "Clear.", "CT."),
    ("FINDINGS\n Clear.\n IMPRESSION\n Normal.", "Clear.", "Normal."),
    ("FINDINGS:  Clear.\n CONCULSION:  Normal.", "Clear.", "Normal."),
    ("findings: Clear.\n impression: Normal.", "Clear.", "Normal."),
    ("FINDINGS: A.\n IMPRESSION: B.\n FINDINGS: C.", "A. C.", "B."),
    # ---- labels and sentences inside a section
    (
        "FINDINGS:  Clear.\n CHEST TUBE: in place.\n FEEDING TUBE: in the stomach.\n"
        " MEDICAL DEVICES: none.\n IMPRESSION:\n AP chest compared to ___:\n\n Cardiomegaly.",
        "Clear. CHEST TUBE: in place. FEEDING TUBE: in the stomach. MEDICAL DEVICES: none.",
        "AP chest compared to ___: Cardiomegaly.",
    ),
    (
        "FINDINGS: Edema.\n Findings were discussed with Dr. ___ at\n 10:20 AM by telephone: yes.",
        "Edema. Findings were discussed with Dr. ___ at 10:20 AM by telephone: yes.",
        "",
    ),
    ("FINDINGS: A.\n RIGHT RIBS, TWO VIEWS: B.", "A. RIGHT RIBS, TWO VIEWS: B.", ""),
    ("COMPARISON: None.\n LUNGS: Clear.\n HEART: Normal.", "LUNGS: Clear. HEART: Normal.", ""),
    # ---- what is no reading of the final report
    ("FINDINGS: A.\n\n IMPRESSION: B.\n\n RECOMMENDATION: CT.", "A.", "B."),
    ("PROVISIONAL FINDINGS IMPRESSION (PFI): Edema?\n\n FINDINGS: Clear.", "Clear.", ""),
    ("FINDINGS: A.\n NOTIFICATION OF CRITICAL FINDINGS: B.", "A.", ""),
    ("FINDINGS: A. COMPARISON: None. IMPRESSION: B. NOTIFICATION: C.", "A.", "B."),
    # ---- an addendum is one
    ("FINDINGS: A.\n\n IMPRESSION: B.\n\n RECOMMENDATION: CT.\n\n ADDENDUM: x.", "A. x.", "B."),
    ("FINDINGS: A.\n IMPRESSION: B.\n\n ADDENDUM\n\n Mass.", "A. Mass.", "B."),
    ("FINDINGS: A. Attending addendum: Mass. IMPRESSION: B.", "A. Mass.", "B."),
    # ---- other names, where there is no heading of a reading
    ("F/I: Left pneumothorax.", "Left pneumothorax.", ""),
    ("COMMENT: Left pneumothorax.", "Left pneumothorax.", ""),
    ("COMMENT: None.\n FINDINGS: A.", "A.", ""),
    # ---- the last paragraph
    ("INDICATION:  Cough.\n \n Edema.\n \n NOTIFICATION:  Dr. ___ paged.", "Edema.", ""),
    ("COMPARISON:  ___.\n \n Edema.\n \n No effusion.", "Edema. No effusion.", ""),
    ("FINDINGS:\n\n IMPRESSION:\n\n", "", ""),
    ("EXAMINATION: Chest.\n HISTORY: Cough.", "", ""),
    ("TWO FRONTAL VIEWS OF THE CHEST ___\n\n HISTORY:  Cough.\n\n IMPRESSION:  A.", "", "A."),
    # ---- a body without a heading, and an impression
    ("HISTORY: Cough.\n\n COMPARISON: None.\n\n Mass.\n\n IMPRESSION: B.", "Mass.", "B."),
    ("CHEST RADIOGRAPH\n\n Mass.\n\n IMPRESSION: B.", "Mass.", "B."),
    ("HISTORY: Cough.\n\n PORTABLE CHEST\n\n Mass.\n\n IMPRESSION: B.", "Mass.", "B."),
    ("COMPARISON: None.\n\n Edema.\n\n ADDENDUM: Mass.", "Edema. Mass.", ""),
    ("HISTORY: x.\n\n PA and lateral views were obtained.\n\n IMPRESSION: B.", "", "B."),
    ("HISTORY: Cough.\n\n Comparison is made to ___.\n\n IMPRESSION: B.", "", "B."),
    ("INDICATION:\n\n Known mass.\n\n IMPRESSION:\n\n B.", "", "B."),
    ("Hospital\nDept. of Radiology\n\n IMPRESSION: B.", "", "B."),
    # ---- technique and comparison within a section
    ("FINDINGS:\n COMPARISON: ___.\n\n Mass.\n\n IMPRESSION: B.", "Mass.", "B."),
    ("FINDINGS: A.\n\n Technique: AP.\n\n Mass.\n\n IMPRESSION: B.", "A. Mass.", "B."),
    ("FINDINGS: A.\n IMPRESSION: B.\n\n COMPARISON: ___.\n\n Mass.", "A.", "B. Mass."),
    # ---- an addendum without a colon, and one with an author
    ("IMPRESSION: B.\n\n ADDENDUM by Dr. ___ on ___: Mass.", "Mass.", "B."),
    ("IMPRESSION: B.\n\n Addendum by Dr. ___ at 5:10 PM: Mass.", "Mass.", "B."),
    ("IMPRESSION: B.\n\n ADDENDUM  A 6 mm nodule.", "A 6 mm nodule.", "B."),
    ("IMPRESSION: B.\n\n ***ADDENDUM***\n Mass.", "Mass.", "B."),
    ("IMPRESSION: B.\n SEE ADDENDUM BELOW.", "", "B. SEE ADDENDUM BELOW."),
    # ---- other names of the impression
    ("FINDINGS: A.\n\n DIAGNOSIS: Mass.", "A.", "Mass."),
    ("FINDINGS: A. Final diagnosis: Mass.", "A.", "Mass."),
    ("DIAGNOSIS: Asthma.\n FINDINGS: A.", "A.", ""),
    ("FINDINGS: A.\n ASSESSMENT: Mass.", "A.", "Mass."),
    ("FINDINGS: A.\n Assessment and plan: Mass.", "A.", "Mass."),
    ("Findings: A.\n Impression and plan: Mass.", "A.", "Mass."),
    # ---- labels in mixed case below a history
    ("History: Cough.\n Lungs: Mass.\n Impression: B.", "Lungs: Mass.", "B."),
    # ---- sentences that are no headings
    ("FINDINGS: A.\n Impression on the trachea.", "A. Impression on the trachea.", ""),
    ("IMPRESSION:\n NO ACUTE FINDINGS\n", "", "NO ACUTE FINDINGS"),
    ("IMPRESSION: NO ACUTE\n FINDINGS. CLEAR.", "", "NO ACUTE FINDINGS. CLEAR."),
    ("IMPRESSION: Discussion of Findings: yes.", "", "Discussion of Findings: yes."),
    ("FINDINGS: A *contrast*.\n [Patient] has a mass.", "A *contrast*. [Patient] has a mass.", ""),
]  # fmt: skip


@pytest.mark.parametrize("preliminary", ["", " WET READ: ___ 5:10 PM\n  LUNGS: Bad.\n" + "_" * 70])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("body", "findings", "impression"), CASES)
def test_kinds(body, findings, impression, line_end, preliminary):
    text = f"{preliminary}\n{' ' * 30}FINAL REPORT\n {body}\n"
    assert report_sections(text.replace("\n", line_end)) == (findings, impression)


@pytest.mark.parametrize("text", [
    "F I N D I N G S: A.\n I M P R E S S I O N: B.",
    "FINDINGS\N{FULLWIDTH COLON} A.\nIMPRESSION\N{FULLWIDTH COLON}B.",
    "# FINDINGS\nA.\n## Impression\nB.",
    "**FINDINGS:** A. **Impression**: B.",
    "[FINDINGS] A.\n[IMPRESSION]\nB.",
    "<FINDINGS>A.</FINDINGS>\n<impression>\nB.\n</impression>",
    "== Findings ==\nA.\n== Impression ==\nB.",
    "1. TECHNIQUE: AP.\n 2. FINDINGS: A.\n 3. IMPRESSION: B.",
    "- FINDINGS: A.\n - IMPRESSION: B.",
    "FINDINGS.  A.\n IMPRESSION.  B.",
    "Findings\n A.\n\n Impression\n B.",
    "findings: A. impression: B.",
    "Findings: A.  Impression: B.",
    "Indication: Positive TB test  Findings: A.  Impression: B.",
    "Indication: Positive TB test Findings: A. Impression: B.",
])  # fmt: skip
def test_forms_of_headings(text):
    assert report_sections(text) == split_report(text) == ("A.", "B.")


@pytest.mark.parametrize("addendum", [
    "FINAL ADDENDUM\n ADDENDUM: Mass.",
    "ADDENDUM  Mass.",
    "WET READ: Edema.\n" + "_" * 70 + "\n FINAL ADDENDUM\n\n Mass.",
])  # fmt: skip
@pytest.mark.parametrize("heading", ["FINDINGS:", "COMPARISON: None.\n\n"])
def test_an_addendum_above_the_report(addendum, heading):
    text = f"{addendum}\n{'_' * 70}\n FINAL REPORT\n {heading} Clear.\n IMPRESSION: B.\n"
    assert report_sections(text) == ("Clear. Mass.", "B.")


ABOVE = "HISTORY: Cough.\n\n COMPARISON: None.\n\n Right mass.\n\n IMPRESSION: No edema."


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        # What no heading claims, above an impression and within a reading.
        (ABOVE, "Right mass.", "No edema."),
        ("CHEST RADIOGRAPH\n\n Right mass.\n\n IMPRESSION: No edema.", "Right mass.", "No edema."),
        (
            "FINDINGS:\n COMPARISON: ___.\n\n Left mass.\n\n IMPRESSION: No edema.",
            "Left mass.",
            "No edema.",
        ),
        ("FINDINGS: Clear.\n\n TECHNIQUE: AP.\n\n IMPRESSION: Normal.", "Clear.", "Normal."),
        (
            "FINAL ADDENDUM\n ADDENDUM: Left mass.\n____________\n FINAL REPORT\n FINDINGS: Clear.",
            "Clear. Left mass.",
            "",
        ),
        ("WET READ: Mass.\n FINDINGS: Mass.\n FINAL REPORT\n FINDINGS: Clear.", "Clear.", ""),
        # A conclusion, and what the referring doctor concluded.
        ("FINDINGS: Clear.\n\n DIAGNOSIS: Left mass.", "Clear.", "Left mass."),
        ("FINDINGS: Clear.\n\n Assessment: Left mass.", "Clear.", "Left mass."),
        # Headings in other signs.
        ("F I N D I N G S: Clear.\n I M P R E S S I O N: Normal.", "Clear.", "Normal."),
        ("FINDINGS\uff1a Clear.\nIMPRESSION\uff1a Normal.", "Clear.", "Normal."),
        ("## Findings\nClear.\n## Impression\nNormal.", "Clear.", "Normal."),
        ("**FINDINGS:** Clear.\n**IMPRESSION**: Normal.", "Clear.", "Normal."),
        ("<FINDINGS>Clear.</FINDINGS>\n[IMPRESSION] Normal.", "Clear.", "Normal."),
        ("1. FINDINGS: Clear.\n 2. IMPRESSION: Normal.", "Clear.", "Normal."),
        ("FINDINGS. Clear.\nIMPRESSION.\nNormal.", "Clear.", "Normal."),
        ("findings: clear. impression: normal.", "clear.", "normal."),
        (
            "Indication: TB test  Findings: Clear lungs  Impression: Normal.",
            "Clear lungs",
            "Normal.",
        ),
        # No headings.
        (
            "FINDINGS: A mass, in my\nimpression\na lipoma.",
            "A mass, in my impression a lipoma.",
            "",
        ),
        ("FINDINGS:\n 1. Findings of edema.", "1. Findings of edema.", ""),
    ],
)
def test_other_forms(text, findings, impression):
    assert report_sections(text) == (findings, impression)
    assert dropped_sections(text) == []


def test_what_a_heading_may_claim_is_not_left_out_in_silence():
    text = "FINDINGS:\n TECHNIQUE: AP.\n Left mass.\n\n IMPRESSION: No edema."
    assert report_sections(text) == ("", "No edema.")
    assert dropped_sections(text) == ["AP. Left mass."]


def test_text_without_headings():
    """A report in a field of its own is all findings; only headings count for `split_report`."""
    assert report_sections("The lungs are clear.\n\nNo effusion.") == (
        "The lungs are clear. No effusion.", "",
    )  # fmt: skip
    assert split_report("The lungs are clear.") == ("", "")
    assert report_sections("") == report_sections(" \n ___ \n") == ("", "")


def test_what_is_left_out():
    text = "FINDINGS: A. Reason: Mass. IMPRESSION: B.\n NOTIFICATION: Nodule.\n"
    assert dropped_sections(f"INDICATION: Cough. HISTORY: Fever.\n {text}") == ["Mass.", "Nodule."]
    assert dropped_sections(f"WET READ: Edema.\n FINAL REPORT\n {text}") == ["Mass.", "Nodule."]


@pytest.mark.parametrize("text", [
    "COMMENT: Mass.\n IMPRESSION: B.",
    "Mass.\n\n FINDINGS: A.",
    "HISTORY: Cough.\n\n Mass.\n\n FINDINGS: A.",
    "DIAGNOSIS: Mass.\n FINDINGS: A.",
    "COMPARISON: None. Mass.\n\n IMPRESSION: B.",
    "COMPARISON:\n Mass.\n IMPRESSION: B.",
    "FINDINGS:\n COMPARISON: Mass.\n\n IMPRESSION: B.",
    "FINDINGS: A.\n HISTORY: Cough.\n Mass.\n IMPRESSION: B.",
    "FINDINGS: A.\n COMPARISON: None\n COMMENT: Mass.",
    "IMPRESSION: B.\n" + "_" * 70 + "\n Mass.",
])  # fmt: skip
def test_doubtful_text_is_reported(text):
    assert "Mass" not in " ".join(report_sections(text))
    assert "Mass." in dropped_sections(text)


@pytest.mark.parametrize(("text", "expected"), [
    ("FINDINGS: A. IMPRESSION: B.", ("A.", "B.")),
    ("FINDINGS: A. Addendum: x. History: y.", ("A. Addendum: x. History: y.", "")),
    ("IMPRESSION: B. NOTIFICATION: z.", ("", "B. NOTIFICATION: z.")),
    ("Lungs clear.", ("", "")),
    ("", ("", "")),
])  # fmt: skip
def test_the_written_form_has_two_headings_only(text, expected):
    assert split_written(text) == expected


WORDS = st.sampled_from(
    ["FINDINGS", "IMPRESSION:", "FINDINGS:", "Findings: ", "CHEST, PA:", "WET READ: ", "LUNGS: ",
     "A. ", "clear", "\n", "\n \n", " ", ":", "_" * 20, "FINAL REPORT", "5:10", "AND "]
)  # fmt: skip


@given(st.lists(WORDS | st.text(max_size=5), max_size=20).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_two_folded_texts_of_its_own_words(text):
    for parse in (split_report, report_sections):
        for found in parse(text):
            assert found == " ".join(found.split())
            # Headings are taken out, and nothing is put in.
            assert all(word in text for word in found.split())


@pytest.mark.parametrize(
    "text",
    [
        "FINDINGS:" * 5000,
        "**FINDINGS** Findings:" * 5000,
        "A " * 50_000 + ":",
        "FINDINGS AND " * 5000,
        "\n \n" * 30_000,
    ],
)
def test_long_texts_take_no_long_time(text):
    report_sections(text)

"""The guard: a lost or new negation, number, side, finding or word is refused, in both modes."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.cleaning.clean_reports import clean_with_rules, rejected_path
from unix_jax.cleaning.endpoint import Completion, Tokens
from unix_jax.cleaning.guard import broken, refusal, rewriting_problems
from unix_jax.cleaning.report_files import open_reports
from unix_jax.cleaning.rewriting import Rewriting, rewrite_report
from unix_jax.cleaning.rules import clean_sections
from unix_jax.cleaning.templates import load_prompts

FINDINGS = st.sampled_from([
    "effusion", "pneumothorax", "opacity", "consolidation", "nodule", "atelectasis", "edema",
    "rib fracture", "mass", "granuloma", "hydropneumothorax", "endotracheal tube", "PICC",
    "pacemaker", "clips", "scoliosis",
])  # fmt: skip
SIDES = st.sampled_from(["left", "right", "bilateral"])
DEGREES = st.sampled_from(["small", "large", "2 cm", "12 mm", "mild"])
STATEMENTS = st.builds(
    lambda negation, degree, side, finding: f"{negation}{degree} {side} {finding}",
    st.sampled_from(["", "", "no ", "possible ", "without "]), DEGREES, SIDES, FINDINGS,
)  # fmt: skip
SENTENCES = st.lists(STATEMENTS, min_size=1, max_size=3, unique=True).map(
    lambda parts: "There is " + ", and there is ".join(parts) + "."
)


@pytest.mark.parametrize(("before", "after", "word"), [
    ("No effusion.", "Effusion.", "negative finding"),
    ("Effusion.", "No effusion.", "finding"),
    ("Left effusion.", "Effusion.", "left"),
    ("Effusion.", "Left effusion.", "left"),
    ("3 cm mass.", "Mass.", "3 cm"),
    ("Mass.", "3 cm mass.", "3 cm"),
    ("Possible pneumonia.", "Pneumonia.", "doubt"),
    ("Large hydropneumothorax.", "", "hydropneumothorax"),
    ("The pericardium is wavy.", "The pericardium.", "wavy"),
    ("Lungs are clear.", "", "normal"),
    ("The spicules are stable.", "", "spicules"),
    ("Heart size is stable.", "", ""),
    ("Stable effusion since ___.", "Effusion.", ""),
    ("No change in the effusion.", "Effusion.", ""),
    ("The mass has increased from 3 cm to 4 cm.", "Mass measures 4 cm.", ""),
    ("Mild edema.", "Edema.", "mild"),
    ("Small rib fracture.", "Small fracture.", "rib"),
])  # fmt: skip
def test_refusal(before, after, word):
    reason = refusal(before, after)
    assert (word in reason and reason.startswith("would ")) if word else reason == ""


@settings(max_examples=100, deadline=None)
@given(sentence=SENTENCES, data=st.data())
def test_a_sentence_without_one_of_its_words_is_refused(sentence, data):
    tokens = sentence.rstrip(".").split()
    telling = [i for i, token in enumerate(tokens) if token.lower() not in {"there", "is", "and"}]
    index = data.draw(st.sampled_from(telling))
    assert refusal(sentence, " ".join(tokens[:index] + tokens[index + 1 :]) + ".")
    assert refusal(sentence, "")
    assert not refusal(sentence, sentence)


@settings(max_examples=75, deadline=None)
@given(sentences=st.lists(SENTENCES, min_size=1, max_size=4))
def test_no_rule_changes_what_a_report_states(sentences):
    text = " ".join(sentences)
    cleaned = clean_sections(text, "")
    assert cleaned.refused or not rewriting_problems(text, cleaned.findings)


@settings(max_examples=50, deadline=None)
@given(sentences=st.lists(SENTENCES, min_size=2, max_size=4, unique=True), data=st.data())
def test_a_rewrite_without_one_statement_is_a_problem(sentences, data):
    lost = data.draw(st.sampled_from(["pleural plaque", "azygos fissure mass", "tension"]))
    full = " ".join([*sentences, f"There is an aneurysm on the left with {lost}."])
    assert rewriting_problems(f"FINDINGS: {full}", f"FINDINGS: {' '.join(sentences)}")
    assert rewriting_problems(f"FINDINGS: {' '.join(sentences)}", f"FINDINGS: {full}")
    assert not rewriting_problems(f"FINDINGS: {full}", f"FINDINGS: {full}")


@pytest.mark.parametrize(("original", "rewrite"), [
    ("No effusion. No pneumothorax.", "No effusion or pneumothorax."),
    ("Stable mild cardiomegaly compared to ___. The left effusion has increased.",
     "Mild cardiomegaly. Left effusion."),
    ("The pneumothorax has resolved.", "No pneumothorax."),
    ("3 cm nodule, previously 2 cm.", "3 cm nodule."),
    ("Left effusion and right nodule.", "Right nodule and left effusion."),
    ("Opacity in the left base.", "Left base opacity."),
    ("Dr. ___ was notified of the left pneumothorax at 5 pm.", "Left pneumothorax."),
    ("Left opacity, likely atelectasis, and small effusion.",
     "Left opacity, likely atelectasis. Small effusion."),
    ("Cardiomegaly is mild and the left effusion is large.",
     "Mild cardiomegaly. Large left effusion."),
    ("Moderate interval improvement of the small left effusion.", "Small left effusion."),
    ("The small effusion has slightly increased.", "Small effusion."),
    ("The large left effusion has resolved.", "No left effusion."),
    ("Two views of the chest show two rib fractures.", "There are two rib fractures."),
    ("Compared to old films, a remote rib fracture.", "Old rib fracture."),
    ("Right opacity. Left opacity.", "Right and left opacities."),
    ("Pneumonia may be present.", "Possible pneumonia."),
    ("The ETT is in good position.", "The ETT is well positioned."),
    ("Opacity in the lower lobe, probably atelectasis.",
     "Lower lobe opacity, likely atelectasis."),
])  # fmt: skip
def test_a_rewrite_that_says_the_same(original, rewrite):
    assert rewriting_problems(f"FINDINGS: {original}", f"FINDINGS: {rewrite}") == []


@pytest.mark.parametrize(("original", "rewrite", "problem"), [
    ("No effusion.", "Effusion.", 'Keep the negative finding "effusion".'),
    ("Effusion.", "No effusion.", 'Do not add the negative finding "effusion".'),
    ("Left effusion and right nodule.", "Left nodule and right effusion.", 'the side "left"'),
    ("Left effusion.", "Effusion.", 'Keep the side "left" of "effusion".'),
    ("Possible pneumonia.", "Pneumonia.", 'Keep the possible finding "pneumonia".'),
    ("3 cm mass.", "Mass.", 'Keep the number "3 cm".'),
    ("Tension pneumothorax. Small mass.", "Small mass.", 'Keep the finding "pneumothorax".'),
    ("Large heart.", "Large heart. Lungs are clear.", "something is normal"),
    ("Heart is not wide.", "Heart is wide.", "Keep the negations."),
    ("Effusion is unlikely.", "Effusion.", 'Keep the possible finding "effusion".'),
    ("Pneumonia unlikely.", "Pneumonia possible.", 'Keep "unlikely" of "pneumonia".'),
    ("Pneumonia likely.", "Pneumonia possible.", 'Do not add "possible" of "pneumonia".'),
    ("Suspected nodule.", "Probable nodule.", 'Keep "suspected" of "nodul'),
    ("There is air under the diaphragm.", "The diaphragm is seen.", "air under the diaphragm"),
    ("Subdiaphragmatic gas.", "Gas.", "subdiaphragmatic gas"),
    ("The tube is too low.", "The tube is in good position.", 'Keep "too low" of "tube".'),
    ("ETT too high.", "ETT in place.", 'Keep "too high"'),
    ("ETT is high.", "ETT is in place.", 'Keep "high"'),
    ("Borderline cardiomegaly.", "Cardiomegaly.", 'Keep "borderline"'),
    ("Anterior nodule.", "Posterior nodule.", 'Do not add "posterior" of "nodule".'),
    ("Deep sulcus on the left.", "Left.", 'Keep "deep sulcus".'),
    ("NG tube in the esophagus.", "NG tube in the stomach.", 'Keep "esophagus"'),
    ("Tip below the diaphragm.", "Tip above the diaphragm.", 'Keep "below".'),
    ("The tip is in the subclavian vein.", "The tip is in the jugular vein.", '"subclavian"'),
    ("Two fractures of ribs.", "Fracture of a rib.", 'Keep "two" of "fractures".'),
    ("Three nodules.", "Two nodules.", 'Do not add "two" of "nodules".'),
    ("Multiple nodules.", "A nodule.", 'Keep "multiple" of "nodules".'),
    ("Nodules.", "A nodule.", 'Keep the plural "nodules".'),
    ("A nodule.", "Nodules.", 'Do not add the plural "nodules".'),
    ("Left upper lobe nodule.", "Left lower lobe nodule.", 'Keep "upper" of "nodule".'),
    ("RUL nodule.", "RLL nodule.", 'Do not add "rll" of "nodule".'),
    ("Left apical opacity.", "Left basal opacity.", 'Keep "apical" of "opacity".'),
    ("Small left pneumothorax.", "Large left pneumothorax.", 'Do not add "large"'),
    ("No large effusion.", "No effusion.", 'Keep "large" of "effusion".'),
    ("Mild cardiomegaly.", "Severe cardiomegaly.", 'Keep "mild" of "cardiomegaly".'),
    ("Mild edema. Large effusion.", "Large edema. Mild effusion.", 'Do not add "large" of "edema"'),
    ("Old healed rib fracture.", "Acute rib fracture.", 'Keep "healed" of "fracture".'),
    ("Chronic fracture.", "Fracture.", 'Keep "chronic" of "fracture".'),
])  # fmt: skip
def test_a_rewrite_that_says_something_else(original, rewrite, problem):
    found = rewriting_problems(f"FINDINGS: {original}", f"FINDINGS: {rewrite}")
    assert any(problem in one for one in found), found


class Model:
    """Returns one rewrite, and says yes to everything as the judge."""

    def __init__(self, rewrite):
        self.rewrite, self.asked = rewrite, []

    async def complete(self, model, messages):
        self.asked.append(messages[-1]["content"])
        return Completion("yes" if model == "judge" else self.rewrite, Tokens(1, 1))


def test_a_model_that_turns_a_finding_round_is_told_and_then_set_aside():
    model = Model("FINDINGS: Effusion.")
    how = Rewriting(load_prompts(), "writer", "judge", max_tries=2)
    result = asyncio.run(rewrite_report(model, "FINDINGS: No effusion.", how))
    assert result.report == ""
    assert 'Keep the negative finding "effusion".' in result.reason
    assert any('Keep the negative finding "effusion".' in asked for asked in model.asked)


def test_what_a_sentence_needs():
    assert broken("The heart is stable.", "The heart is.")
    assert broken("Stable contours XXXX over the lung.", "Contours of over the lung.")
    assert not broken("Stable effusion.", "Effusion.")


def test_a_report_that_would_lose_a_finding_is_set_aside_with_the_reason(tmp_path):
    reports, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"id": "a", "findings": "XXXX are osteopenic, XXXX mass XXXX the hilum.", "impression": ""},
        {"id": "b", "findings": "Effusion.", "impression": "Opacity XXXX the left XXXX margin."},
        {"id": "c", "findings": "Clear lungs.", "impression": "Clear."},
    ]
    reports.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = clean_with_rules(open_reports(reports), out)
    aside = [json.loads(line) for line in rejected_path(out).open(encoding="utf-8")]
    assert summary.done + summary.rejected == 3
    assert aside[0]["id"] == "a"
    assert "mass" in aside[0]["reason"]

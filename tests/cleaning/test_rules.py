"""The rules: what each takes out, and what no rule may ever do."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unix_jax.cleaning.checks import problems
from unix_jax.cleaning.placeholders import drop_placeholders
from unix_jax.cleaning.priors import drop_priors
from unix_jax.cleaning.rules import (
    RULES,
    clean_sections,
    drop_markup,
    drop_notes,
    drop_views,
    tidy_space,
)
from unix_jax.data.records import Record, report_text
from unix_jax.data.report_sections import split_report

# Words that a rule may set in so that a sentence holds.
SET_IN = set(
    re.findall(
        r"\w+",
        "is are there a an seen other present possible possibly may likely device place nodes angle"
        " aorta made view"
        " changes structures structure of ray x the vena cava",
    )
)


@pytest.mark.parametrize(("text", "expected"), [
    ("Mass in the left lung, discussed with Dr. Smith at 5 pm.", "Mass in the left lung."),
    ("Clear lungs. Findings were conveyed to Dr. ___ by telephone at 10:15.", "Clear lungs."),
    ("Critical result notification documented. Effusion.", "Effusion."),
    ("Thank you for this referral. 1. Effusion. 2. Edema.", "1. Effusion. 2. Edema."),
    ("Nodular opacities as discussed below.", "Nodular opacities as discussed below."),
    ("No informed decision about the nodule.", "No informed decision about the nodule."),
])  # fmt: skip
def test_notes(text, expected):
    assert drop_notes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("PA and lateral views of the chest were obtained. No effusion.", "No effusion."),
    ("Single portable AP view of the chest. Edema.", "Edema."),
    ("Two views of the chest. Clear.", "Clear."),
    ("Frontal and lateral views of the chest show a small effusion.", "A small effusion."),
    ("Frontal view of the chest with overlying monitor leads shows edema.",
     "Overlying monitor leads. Edema."),
    ("Lateral view reveals kyphosis.", "Kyphosis."),
    ("The opacity is seen on the lateral view only.",
     "The opacity is seen on the lateral view only."),
    ("Increased AP diameter of the chest.", "Increased AP diameter of the chest."),
])  # fmt: skip
def test_views(text, expected):
    assert drop_views(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Stable mild cardiomegaly compared to ___.", "Mild cardiomegaly."),
    ("An unchanged right effusion is present.", "A right effusion is present."),
    ("There is a nodule, which has increased since the prior study.", "There is a nodule."),
    ("The mediastinum is stable.", ""),
    ("No interval change.", ""),
    ("The lungs remain clear.", "The lungs are clear."),
    ("Heart size is stable and normal.", "Heart size is normal."),
    ("Interval development of left lower lobe pneumonia.", "Left lower lobe pneumonia."),
    ("In comparison with the study of ___, there is a small effusion.",
     "There is a small effusion."),
    ("Since the prior radiograph, the PICC tip projects over the SVC.",
     "The PICC tip projects over the SVC."),
    ("Right PICC in unchanged position with its tip in the SVC.",
     "Right PICC with its tip in the SVC."),
    ("Endotracheal tube tip 4 cm above the carina, unchanged.",
     "Endotracheal tube tip 4 cm above the carina."),
    ("Interval removal of the chest tube.", "No chest tube."),
    ("The pneumothorax has resolved.", "No pneumothorax."),
    ("No new infiltrate.", "No other infiltrate."),
    ("No pleural effusion, unchanged from prior study.", "No pleural effusion."),
    ("Old rib fractures are again seen.", "Old rib fractures are seen."),
    ("Prior sternotomy and clips from previous surgery.",
     "Prior sternotomy and clips from previous surgery."),
    ("Increased opacity at the right base compared to the left.",
     "Increased opacity at the right base compared to the left."),
    ("Follow up in a short interval.", "Follow up in a short interval."),
    ("1. Stable. 2. Persistent edema. 3. Clear.", "2. Edema. 3. Clear."),
    ("The tracheostomy tube is in stable position.", "The tracheostomy tube is present."),
])  # fmt: skip
def test_priors(text, expected):
    assert drop_priors(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Nodule as on ___, seen by Dr. ___.", "Nodule, seen."),
    ("XXXX are normal. Clear lungs.", "Clear lungs."),
    ("Opacities XXXX representing scarring.", "Opacities possibly representing scarring."),
    ("Left base opacity, XXXX atelectasis.", "Left base opacity, possibly atelectasis."),
    ("There is XXXX evidence of pneumothorax.", ""),
    ("There are no XXXX of a pleural effusion.", "There are no signs of a pleural effusion."),
    ("Normal chest x-XXXX.", "Normal chest x-ray."),
    ("Calcified lymph XXXX.", "Calcified lymph nodes."),
    ("The normal heart size XXXX.", "The normal heart size."),
    ("There is a XXXX 10 XXXX nodule.", "There is a nodule."),
    ("There is a XXXX on the left with its catheter tip in the SVC.",
     "There is a structure on the left with its catheter tip in the SVC."),
    ("Tip in the superior XXXX XXXX.", "Tip in the superior vena cava."),
    ("___-year-old woman with edema.", "Woman with edema."),
    ("Effusion on [**2101-2-3**] at the base.", "Effusion at the base."),
    ("There is a XXXX effusion.", "There is an effusion."),
    ("The heart may XXXX edema.", ""),
    ("No marks: X-ray, XX.", "No marks: X-ray, XX."),
])  # fmt: skip
def test_placeholders(text, expected):
    assert drop_placeholders(text) == expected


def test_markup():
    text = "Clear lungs.No effusion.<br/>Size &lt; 2 cm."
    assert drop_markup(text) == "Clear lungs. No effusion. Size < 2 cm."


@pytest.mark.parametrize(("text", "expected"), [
    ("clear  lungs ..  No effusion , no edema .", "Clear lungs. No effusion, no edema."),
    ("2. Edema. 3. Effusion.", "1. Edema. 2. Effusion."),
    ("1. Edema.", "Edema."),
    ("1. Low volumes 2. Edema 3. Clear", "1. Low volumes 2. Edema 3. Clear"),
    ("The T 8. vertebra is 1.5 cm.", "The T 8. vertebra is 1.5 cm."),
])  # fmt: skip
def test_space(text, expected):
    assert tidy_space(text) == expected


def test_what_nothing_is_left_of_is_empty_and_says_why():
    cleaned = clean_sections("The mediastinum is stable.", "XXXX.")
    assert (cleaned.findings, cleaned.impression) == ("", "")
    assert cleaned.applied == ("priors", "placeholders")


PIECES = st.sampled_from([
    "no", "the", "a", "right", "left", "bilateral", "effusion", "opacity", "heart", "lungs",
    "stable", "unchanged", "compared to", "prior study", "since", "XXXX", "___", "Dr. ___", "is",
    "telephone", "are", "has resolved", "interval", "again", "seen", "1.5 cm", "T12", "PICC",
    "tube", "tip", "PA and lateral views", "of the chest", "show", "new", "remains", "normal", ".",
    ".", ",", "1.", "2.", "[**1**]", "and", "with", "<br>", "no longer", "which", "(", ")",
    "persistent", "may", "represent", "there is",
])  # fmt: skip
TEXTS = st.one_of(st.lists(PIECES, max_size=24).map(" ".join), st.text(max_size=80))


def words(text):
    return re.findall(r"[^\W\d_]+", text.lower())


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example(text="The tracheostomy tube is in stable position.")
@example(text="1. 2. 3.")
@example(text="again compared to prior study")
def test_a_rule_brings_nothing_in(name, text):
    rule = RULES[name]
    cleaned = rule(text)
    assert "\n" not in cleaned or cleaned == text
    if name != "markup":
        assert set(words(cleaned)) <= set(words(text)) | SET_IN
        if name != "space":
            assert set(re.findall(r"\d+", cleaned)) <= set(re.findall(r"\d+", text))
    for side in ("left", "right", "bilateral", "tube", "picc"):
        assert words(cleaned).count(side) <= words(text).count(side)


@pytest.mark.parametrize("name", ["markup", "notes", "views", "placeholders", "space"])
@settings(max_examples=60, deadline=None)
@given(text=st.lists(PIECES, max_size=24).map(" ".join))
def test_a_rule_applied_twice_is_applied_once(name, text):
    once = RULES[name](text)
    assert RULES[name](once) == once


@settings(max_examples=100, deadline=None)
@given(findings=TEXTS, impression=TEXTS)
def test_all_rules_pass_the_checks_and_leave_no_marks(findings, impression):
    cleaned = clean_sections(findings, impression)
    if cleaned.refused:
        return
    for before, after in ((findings, cleaned.findings), (impression, cleaned.impression)):
        assert after == after.strip()
        assert "___" not in after
        assert "XXXX" not in after
        if after and not re.search("FINDINGS:|IMPRESSION:", before + after):
            # Words of this salad may meet as "chest tube" when what stood between them goes.
            wrong = problems(f"FINDINGS: {before}", f"FINDINGS: {after}")
            assert all(p.startswith(("Do not add a device", "The side of")) for p in wrong)


def test_long_text_takes_linear_time():
    text = "The heart is stable compared to the prior study of ___ and , " * 100
    assert len(clean_sections(text, text).findings) < len(text)
    clean_sections("no changes in " * 500, "XXXX " * 750)


def test_the_ten_pairs_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "cleaning.md").read_text(encoding="utf-8")
    pairs = re.findall(r"^- (FINDINGS: .*)\n\+ (FINDINGS: .*)$", text, re.MULTILINE)
    assert len(pairs) == 10
    for before, after in pairs:
        cleaned = clean_sections(*split_report(before))
        record = Record("", findings=cleaned.findings, impression=cleaned.impression)
        assert report_text(record) == after


def test_what_is_stated_is_not_denied_by_a_hidden_word():
    cleaned = clean_sections("Right lower lobe infiltrates. No XXXX infiltrates.", "")
    assert cleaned.findings == "Right lower lobe infiltrates. No other infiltrates."
    assert clean_sections("No XXXX infiltrates.", "").findings == "No infiltrates."


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "Opacity in the left base XXXX atelectasis.",
            "Opacity in the left base, possibly atelectasis.",
        ),
        (
            "Density in the right base XXXX corresponding to a hiatal hernia.",
            "Density in the right base possibly corresponding to a hiatal hernia.",
        ),
        (
            "Calcified nodes are XXXX the sequela of prior infection.",
            "Calcified nodes are possibly the sequela of prior infection.",
        ),
        (
            "Calcified hilar lymph XXXX XXXX sequela of granulomatous disease.",
            "Calcified hilar lymph nodes, possibly sequela of granulomatous disease.",
        ),
        (
            "Pneumoperitoneum, XXXX postoperative.",
            "Pneumoperitoneum, possibly postoperative.",
        ),
        (
            "Foreign body over the breast (XXXX nipple piercing).",
            "Foreign body over the breast (possibly nipple piercing).",
        ),
        (
            "Bibasilar opacities seen on lateral XXXX XXXX be atelectasis.",
            "Bibasilar opacities seen on lateral view may be atelectasis.",
        ),
        (
            "Retrocardiac opacity XXXX due at XXXX in part to atelectasis.",
            "Retrocardiac opacity possibly due at least in part to atelectasis.",
        ),
        (
            "Round opacity is XXXX on lateral view to represent atelectasis.",
            "Round opacity is thought on lateral view to represent atelectasis.",
        ),
        (
            "Rib deformity, also XXXX chronic.",
            "Rib deformity, also possibly chronic.",
        ),
        (
            "Heart size XXXX borderline enlarged.",
            "Heart size possibly borderline enlarged.",
        ),
        (
            "The cardiac silhouette is XXXX borderline in size.",
            "The cardiac silhouette is possibly borderline in size.",
        ),
    ],
)
def test_hidden_hedges_stay_doubt(before, after):
    assert clean_sections(before, "").findings == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "Pacemaker generator with a XXXX terminating in the right ventricle.",
            "Pacemaker generator with a device terminating in the right ventricle.",
        ),
        (
            "There are 2 XXXX masses in the right lung.",
            "There are 2 masses in the right lung.",
        ),
        (
            "Density over the left posterior rib 8 XXXX callus.",
            "Density over the left posterior rib 8, possibly callus.",
        ),
        (
            "Confluent and XXXX opacities in the left base.",
            "Confluent opacities in the left base.",
        ),
        (
            "Fractures of at XXXX the right 5th through 9th ribs.",
            "Fractures of at least the right 5th through 9th ribs.",
        ),
        ("Blunted costophrenic XXXX.", "Blunted costophrenic angles."),
        ("The central airway is midline and is XXXX.", "The central airway is midline."),
        ("Inferior sternotomy XXXX is disrupted.", "Inferior sternotomy changes are disrupted."),
        (
            "There is XXXX visualization of the diaphragms, which may be due to atelectasis.",
            "There is limited visualization of the diaphragms, which may be due to atelectasis.",
        ),
        (
            "The lungs are relatively clear with XXXX sulci.",
            "The lungs are relatively clear.",
        ),
        (
            "The lungs are clear with granulomas and XXXX sulci.",
            "The lungs are clear with granulomas.",
        ),
        (
            "Slightly XXXX inspiratory effort is noted.",
            "Slightly limited inspiratory effort is noted.",
        ),
        (
            "There is XXXX inspiration. No effusion.",
            "No effusion.",
        ),
        (
            "XXXX, XXXX spaces, and soft tissues are normal.",
            "Soft tissues are normal.",
        ),
        (
            "Bones, XXXX spaces, and soft tissues are normal.",
            "Bones and soft tissues are normal.",
        ),
        (
            "AICD with intact XXXX replacement.",
            "AICD with intact replacement device.",
        ),
        (
            "Left lower lobe XXXX segment pneumonia.",
            "Left lower lobe pneumonia.",
        ),
        (
            "Opacity in the XXXX segment of the left lower lobe.",
            "Opacity in a segment of the left lower lobe.",
        ),
        (
            "Opacity in the superior segment XXXX the left lower lobe.",
            "Opacity in the superior segment of the left lower lobe.",
        ),
        (
            "Fracture is possible, if high energy XXXX was localized here.",
            "Fracture is possible, if high energy injury was localized here.",
        ),
        (
            "Hyperinflated lungs. This may be secondary to XXXX voluntary",
            "Hyperinflated lungs.",
        ),
    ],
)
def test_hidden_nouns_leave_no_gap(before, after):
    assert clean_sections(before, "").findings == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Improved lung volumes, left base opacities.", "Left base opacities."),
        (
            "Cardiomegaly with small but increasing right pleural effusion.",
            "Cardiomegaly with small right pleural effusion.",
        ),
        (
            "There has been interval placement of a left chest tube.",
            "There is a left chest tube.",
        ),
        (
            "There is improvement in bilateral pulmonary edema with mild residual.",
            "Mild residual bilateral pulmonary edema.",
        ),
        (
            "Lungs clear and stable/unremarkable mediastinal contour.",
            "Lungs clear and unremarkable mediastinal contour.",
        ),
        (
            "This may represent resolving or developing pneumonia.",
            "This may represent pneumonia.",
        ),
        ("Note is made of an unchanged hiatal hernia.", "Note is made of a hiatal hernia."),
        (
            "Density in the left lower lobe, consistent worsening of known tumor.",
            "Density in the left lower lobe, consistent with known tumor.",
        ),
        (
            "COPD. There does appear to be progression of changes since XXXX.",
            "COPD.",
        ),
        (
            "There appears to be worsening of the effusion.",
            "There appears to be effusion.",
        ),
        (
            "Right XXXX-a-XXXX has been inserted since the previous study.",
            "Right device is in place.",
        ),
        (
            "Two chest tubes have been placed in the interval.",
            "Two chest tubes are in place.",
        ),
        (
            "A stent has been inserted in the aorta.",
            "A stent is present in the aorta.",
        ),
    ],
)
def test_change_leaves_no_gap(before, after):
    assert clean_sections(before, "").findings == after


@pytest.mark.parametrize(
    "sentence",
    [
        "No stable cardiomegaly, without effusion.",
        "There is no unchanged effusion.",
        "Without evidence of a stable nodule.",
        "No effusion and stable cardiomegaly.",
        "There does not appear to be progression of the effusion.",
    ],
)
def test_a_denied_change_does_not_deny_the_finding(sentence):
    assert clean_sections(sentence, "").refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A clause after "unchanged and" keeps a verb before it.
        (
            "The effusion is stable and there is no pneumothorax.",
            "The effusion is present and there is no pneumothorax.",
        ),
        (
            "The ETT is unchanged and ends 4 cm above the carina.",
            "The ETT ends 4 cm above the carina.",
        ),
        (
            "Cardiomegaly is stable but there is edema.",
            "Cardiomegaly is present but there is edema.",
        ),
        ("The effusion is unchanged and small.", "The effusion is small."),
        (
            "The right effusion has slightly increased and is now moderate.",
            "The right effusion is moderate.",
        ),
        (
            "In comparison with the study of ___, there is little change and no evidence of edema.",
            "There is no evidence of edema.",
        ),
        (
            "The pneumothorax has increased and there is now mediastinal shift.",
            "The pneumothorax is present and there is mediastinal shift.",
        ),
        (
            "Bibasilar opacities have worsened, and the heart is enlarged.",
            "Bibasilar opacities are present, and the heart is enlarged.",
        ),
        # Other words of change.
        ("The known right mass is constant in size.", "The known right mass is present."),
        ("Newly appeared is a left pleural effusion.", "There is a left pleural effusion."),
        ("Better seen on today's exam is a left nodule.", "There is a left nodule."),
        ("Slowly resolving right pneumonia.", "Right pneumonia."),
        # A hidden word in a list of what is denied.
        (
            "No pneumothorax, XXXX effusion, or consolidation.",
            "No pneumothorax, effusion, or consolidation.",
        ),
        # A denial does not become wider.
        ("Right effusion. No large new effusion.", "Right effusion. No other large effusion."),
        ("Left opacity. No interval opacity.", "Left opacity. No other opacity."),
        # The place stays with the finding.
        (
            "Better aeration of the right lung with persistent consolidation.",
            "In the right lung, consolidation.",
        ),
        # What follows a comparing title.
        ("AP chest compared to ___: Right effusion is small.", "Right effusion is small."),
        ("Left mass. Posted to the critical results dashboard at 2:15.", "Left mass."),
        ("Left mass. I agree with the above.", "Left mass."),
    ],
)
def test_what_a_removed_word_leaves_behind(text, expected):
    cleaned = clean_sections(text, "")
    assert (cleaned.findings, cleaned.refused) == (expected, ())


@pytest.mark.parametrize(
    "text",
    [
        "Cardiomegaly XXXX pulmonary edema.",
        "Hyperexpanded lungs XXXX COPD.",
        "Concern XXXX pneumonia.",
        "Pneumonia is XXXX likely.",
        "Small right effusion XXXX be present.",
        "No focal XXXX, pneumothorax or effusion.",
        "Nodule measures XXXX x 12 mm.",
        "Compression of T___ and L1.",
        "Case discussed with surgery: large volume of free air.",
        "Right effusion is unchanged whereas the left has increased.",
        "Neither the effusion nor the edema has changed.",
        "Stable granuloma over 5 years.",
        "No pneumothorax, XXXX effusion.",
        "There is a 5 mm XXXX in the left lung.",
        "Increased right and decreased left pleural effusion.",
        "The right effusion has improved, although a moderate effusion remains.",
        "The effusion was not present on the prior study, with no pneumothorax.",
        "A chest tube was placed, and the pneumothorax has nearly resolved.",
        "The left pneumothorax has yet to clear.",
        "Hardly any change in severe edema.",
    ],
)
def test_what_no_rule_can_mend_is_set_aside(text):
    assert clean_sections(f"The trachea is midline. {text}", "").refused

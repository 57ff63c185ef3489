"""Sentences that cannot be cleaned: left out only where the rest of the report says no less."""

import pytest

from unix_jax.cleaning.dispensable import is_dispensable
from unix_jax.cleaning.rules import clean_sections

NODULE = "There is a 1 cm nodule in the left lung. The lungs are otherwise clear."


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        ("XXXX chest radiograph is recommended if XXXX is not XXXX.", NODULE),
        ("If there is concern for bony abnormality of the thorax, XXXX.", NODULE),
        ("Comparison to interval outside film would be helpful to assess this nodule.", NODULE),
        ("CT scan is the XXXX XXXX to determine if there is any adenopathy.", "No adenopathy."),
        ("Does this patient have known XXXX factors for malignancy?", "Suspicious for malignancy."),
        (
            "There is stable cardiomegaly with XXXX vascular congestion and probable mild edema.",
            "Cardiomegaly, vascular congestion and probable mild edema.",
        ),
    ],
)
def test_what_is_repeated_or_mere_advice_is_left_out(sentence, rest):
    assert is_dispensable(sentence, rest)
    cleaned = clean_sections(f"The trachea is midline. {sentence}", rest)
    assert not cleaned.refused
    assert cleaned.findings == "The trachea is midline."
    assert cleaned.impression == rest


@pytest.mark.parametrize(
    ("sentence", "rest"),
    [
        # It states a finding, its side, degree, size or number that the rest does not.
        ("XXXX pneumothorax.", NODULE),
        ("There is a XXXX nodule in the right lung.", NODULE),
        ("XXXX large nodule.", NODULE),
        ("Two XXXX nodules.", NODULE),
        ("There is a 2 cm XXXX nodule.", NODULE),
        ("There is XXXX nodule, calcified.", NODULE),
        # The rest doubts or denies it.
        ("XXXX effusion.", "Possible effusion."),
        ("XXXX effusion.", "No effusion."),
        ("Possible XXXX effusion.", "Effusion."),
        # It says that something is normal, or nothing that is understood.
        ("The heart is XXXX normal.", NODULE),
        ("Central airways are XXXX.", NODULE),
        # Advice that states a finding, or that names one that nothing else speaks of.
        ("Consider XXXX for the left apical mass.", NODULE),
        ("Recommend XXXX for the 2 cm left nodule.", NODULE),
        ("If the left pneumothorax grows, XXXX.", NODULE),
        ("If patient high XXXX for malignancy, consider imaging.", NODULE),
        ("Correlate for possible exposure XXXX as tuberculosis could look so.", NODULE),
        ("Consider XXXX, there is a large mass in the apex.", NODULE),
        ("Consider XXXX of the meningioma.", NODULE),
    ],
)
def test_what_says_more_stays(sentence, rest):
    assert not is_dispensable(sentence, rest)


def test_a_section_that_would_vanish_stays():
    cleaned = clean_sections("XXXX nodule is seen.", "XXXX pneumothorax is seen.")
    assert len(cleaned.refused) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Degenerative disease is seen in the thoracic spine and left XXXX XXXX.",
         "Degenerative disease is seen in the thoracic spine and on the left."),
        ("Arthritic changes are seen throughout the spine and both XXXX.",
         "Arthritic changes are seen throughout the spine and bilaterally."),
        ("These may represent XXXX on end or alternatively, calcified granulomas.",
         "These may represent calcified granulomas."),
        ("There is a small lucency that may be a vascular XXXX.", "There is a small lucency."),
        ("Calcific densities which are unchanged from prior exam and XXXX represent old disease.",
         "Calcific densities which may represent old disease."),
        ("Interval increase in size and number of innumerable bilateral nodules.",
         "Innumerable bilateral nodules."),
        ("Bilateral nodules have increased in size and number XXXX compared to prior study.",
         "Bilateral nodules."),
        ("This has developed in the interval, and may represent pneumonia.",
         "This may represent pneumonia."),
        ("These were not present on the prior study and may represent infection.",
         "These may represent infection."),
        ("Stable postop changes with mild cardiomegaly.", "Postop changes with mild cardiomegaly."),
        ("Considering technical factors heart size XXXX within normal limits.",
         "Considering technical factors heart size is possibly within normal limits."),
        ("There is no prevertebral soft tissue XXXX.",
         "There is no prevertebral soft tissue swelling."),
        ("Costophrenic XXXX are blunted, XXXX corresponding to small effusions.",
         "Costophrenic angles are blunted, possibly corresponding to small effusions."),
        ("Air-fluid level at the apex, XXXX within the pleural space.",
         "Air-fluid level at the apex, possibly within the pleural space."),
        ("Low lung volumes with opacities, XXXX infectious etiology.",
         "Low lung volumes with opacities, possibly infectious etiology."),
        ("Paratracheal density dating back to exams in XXXX, XXXX confluence of shadows.",
         "Paratracheal density, possibly confluence of shadows."),
        ("Slight interval increase in XXXX loss of T11.", "Height loss of T11."),
        ("The effusion is not XXXX to be significantly different in shape.",
         "The effusion is not thought to be significantly different in shape."),
        ("Low volumes XXXX XXXX for the opportunity to assist in the care of your patient.",
         "Low volumes."),
    ],
)  # fmt: skip
def test_sentences_that_are_cleaned(before, after):
    cleaned = clean_sections(before, "")
    assert (cleaned.findings, cleaned.refused) == (after, ())


@pytest.mark.parametrize(
    "sentence",
    [
        "Heart size XXXX within normal limits.",
        "The heart is XXXX normal in size.",
        "Considering technical factors heart size XXXX enlarged.",
        "There are XXXX opacities which appear to XXXX XXXX above the right XXXX fissure.",
        "Soft tissue XXXX around the ankle.",
        "Upper lobe XXXX and emphysema.",
        "XXXX bilateral effusions.",
        "Low lung volumes with XXXX bilateral pleural effusions.",
        "No XXXX of the pleural effusions.",
        "The right upper lobe mass is not seen in XXXX study.",
        "Mediastinal shift, suggesting XXXX physiology.",
        "XXXX right costophrenic XXXX, right lung free of focal consolidation.",
    ],
)
def test_sentences_that_set_the_report_aside(sentence):
    assert clean_sections(f"The trachea is midline. {sentence}", "No edema.").refused

"""The wordings that the nano model learns, and the way back from a report to findings.

Each finding has several sentences that say the same; a report keeps to one style. Images that are
no radiograph have reports of their own.
"""

import re
from collections.abc import Sequence

NORMAL = "No Finding"

# Finding, in the order in which a report mentions them: its noun with its article.
NOUNS = {
    "Cardiomegaly": "cardiomegaly",
    "COVID-19": "COVID-19 pneumonia",
    "Pneumonia": "pneumonia",
    "Consolidation": "consolidation",
    "Infiltration": "an infiltrate",
    "Edema": "pulmonary edema",
    "Atelectasis": "atelectasis",
    "Pleural Effusion": "a pleural effusion",
    "Pneumothorax": "a pneumothorax",
    "Pleural Thickening": "pleural thickening",
    "Mass": "a mass",
    "Nodule": "a nodule",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "a hernia",
}
STYLES = 3
_NORMAL_FINDINGS = (
    "The heart is normal in size. The lungs are clear. There is no pleural effusion. "
    "There is no pneumothorax.",
    "The heart size is normal. Both lungs are clear. "
    "No pleural effusion or pneumothorax is present.",
    "The image shows clear lungs. The image shows no pleural effusion and no pneumothorax.",
)
_NORMAL_IMPRESSION = ("No acute finding.", "No acute abnormality.", "Normal chest X-ray.")

# Images that are no radiograph: what is the matter, and the finding's sentence.
UNREADABLE = {
    "blank": "The image is blank.",
    "noise": "The image shows only noise.",
    "inverted": "The gray levels of the image are inverted.",
}
UNREADABLE_IMPRESSION = "The image cannot be read."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def sentence(finding: str, style: int) -> str:
    """The sentence that names a finding, in one of `STYLES` styles."""
    noun = NOUNS[finding]
    if finding == "Cardiomegaly":
        return (
            "The heart is enlarged.",
            "Cardiomegaly is present.",
            "The image shows cardiomegaly.",
        )[style]
    return (f"There is {noun}.", f"{_capital(noun)} is present.", f"The image shows {noun}.")[style]


def report(labels: Sequence[str], style: int) -> tuple[str, str]:
    """(findings, impression) of a radiograph with these labels, in one style."""
    if list(labels) == [NORMAL]:
        return _NORMAL_FINDINGS[style], _NORMAL_IMPRESSION[style]
    found = [finding for finding in NOUNS if finding in labels]
    nouns = [re.sub(r"^an? ", "", NOUNS[finding]) for finding in found]
    listed = " and ".join([", ".join(nouns[:-1]), nouns[-1]] if nouns[1:] else nouns)
    impression = (_capital(f"{listed}."), f"Signs of {listed}.", _capital(f"{listed}."))[style]
    return " ".join(sentence(finding, style) for finding in found), impression


_KNOWN = {sentence(finding, style): {finding} for finding in NOUNS for style in range(STYLES)}
_KNOWN |= {
    f"{part}.": {NORMAL} for text in _NORMAL_FINDINGS for part in text.rstrip(".").split(". ")
}
_KNOWN |= {text: {name} for name, text in UNREADABLE.items()}


def findings_of(text: str) -> frozenset[str]:
    """The findings that a report's FINDINGS name; a sentence that is not known counts as itself.

    Without FINDINGS the set is empty.
    """
    section = re.search(r"FINDINGS:(.*?)(?:IMPRESSION:|$)", text, re.DOTALL)
    found: set[str] = set()
    for part in re.split(r"(?<=\.)\s+", section[1].strip()) if section else []:
        if part:
            found |= _KNOWN.get(part, {part})
    return frozenset(found)

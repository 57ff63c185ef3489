"""What the rules of `unix-jax clean` do to a corpus of reports, counted without the rules' patterns.

    python benchmarks/cleaning.py reports_only.jsonl
    python benchmarks/cleaning.py reports_only.jsonl --show 100 --seed 1

The reports go through `clean_with_rules`, as the command does. The counters know plain word lists
only, which are in this file; no pattern of `unix_jax.cleaning` is used. They are blunt on purpose:
each of their hits is printed by --hits, for a reader to judge.
"""

import argparse
import json
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

from unix_jax.cleaning.run import clean_with_rules, rejected_path
from unix_jax.cleaning.sources import open_reports

FINDINGS = """
pneumothorax pneumothoraces tension hemothorax pneumomediastinum pneumoperitoneum effusion effusions
opacity opacities opacification consolidation consolidations edema atelectasis atelectatic nodule
nodules nodular mass masses cardiomegaly enlarged enlargement fracture fractures infiltrate infiltrates
pneumonia lesion lesions airspace congestion granuloma granulomas granulomatous calcified calcification
calcifications fibrosis scarring scar thickening adenopathy lymphadenopathy hernia scoliosis kyphosis
dextroscoliosis levoscoliosis spondylosis osteophytes osteophyte degenerative arthritic osteopenia
osteoporosis emphysema emphysematous copd hyperinflated hyperinflation hyperexpanded hyperexpansion
bronchiectasis bulla bullae blunting tortuous tortuosity ectasia atherosclerotic atherosclerosis
aneurysm elevated elevation eventration collapse cavitary cavitation metastatic metastasis neoplasm
malignancy tuberculosis sarcoidosis deformity deformities dislocation subluxation pacemaker catheter
picc tube lead leads wires clips stent valve prosthesis port defibrillator sternotomy cabg
cholecystectomy mastectomy plate screws rods bullet
""".split()
DENIALS = {"no", "not", "without", "negative", "free", "resolved", "cleared", "removed", "removal",
           "resolution", "absence", "absent", "longer", "nor", "never"}  # fmt: skip
CHANGE = """
compared comparison comparisons unchanged stable interval previously persistent persists remains
again redemonstrated redemonstration worsened worsening improved improvement improving resolving
resolved since newly
""".split()
CHANGE_PAIRS = re.compile(
    r"\bno (?:significant |interval )*changes?\b|\bprior (?:exam|stud|film|radiograph|chest|ct|x-ray)"
    r"|\bprevious (?:exam|stud|film|radiograph|chest|ct|x-ray)|\bthan previously\b"
    r"|\bha(?:s|ve) (?:\w+ )?(?:developed|cleared|increased|decreased|progressed)\b|\bnew\b",
    re.IGNORECASE,
)
ALLOWED_CHANGE = re.compile(r"short[ -]interval|interval follow|clinically stable", re.IGNORECASE)
VERBS = set("""
is are was were has have had may might could can cannot should would will appear appears seem seems
show shows demonstrate demonstrates reveal reveals overlie overlies overlying project projects terminate terminates
represent represents reflect reflects suggest suggests obscure obscures measure measures extend extends
recommend recommended consider correlate limits lies ends seen noted identified present visualized
""".split())
TELEGRAPHIC = set(FINDINGS) | set("""
no clear normal unremarkable intact negative disease abnormality abnormalities prominent prominence
changes process markings density densities volumes volume limits low borderline mild moderate severe
small large calcific chronic acute shift curvature interstitial lucency failure crowding hypoinflation
arthritis fusion lobe lobectomy resection amputation stimulator generator coils deviation widening
unfolding wedging arch border pattern angle nodes node syndesmophyte syndesmophytes retrolisthesis
engorgement capping obscuration infection enchondroma enthesophyte goiter hypertension contrast
hypoinflated postsurgical postoperative postop surgical status lines line device monitor tip fluid
""".split())
CANNOT_START = set("is are was were has have had of from by than which that who and or but nor due to "
                   "into since versus be been".split())  # fmt: skip
CANNOT_END = set("and or with of to in on at by from for the a an as is are was were be been has have "
                 "had may which that than but since per via into over versus appears no mildly slightly "
                 "significantly without".split())  # fmt: skip
# Adjectives that need their noun: before a verb, a preposition or the end they are a broken joint.
ADJECTIVES = set("""
pulmonary mediastinal hilar thoracic cardiac osseous bony vascular humeral renal cervical lumbar aortic
costophrenic vertebral degenerative moderate severe mild round punctate implantable surgical pleural
""".split())
AFTER_NO_ADJECTIVE = set("is are was were of in on at over seen noted identified may has have".split())
ARTICLES = {"the", "a", "an"}
AFTER_NO_ARTICLE = set("is are was were of in on at and or with the a an to from has have may".split())
AFTER_NO_PREPOSITION = set("and or of is are was were has have may from".split())
HIDDEN = re.compile(r"XXXX|_{2,}|\[\*\*")


def words(text):
    return re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())


def sentences(text):
    return [s.strip() for s in re.split(r"(?<=[.!?;])\s+(?=[A-Z0-9])", text) if s.strip()]


def bare(sentence):
    return re.sub(r"^\d+[.)]\s*", "", sentence).strip(" .")


def present_findings(text):
    """Finding words with no denial in the six words before them in their sentence."""
    found = Counter()
    for sentence in sentences(text):
        tokens = words(sentence)
        for i, token in enumerate(tokens):
            denied = DENIALS & set(tokens[max(0, i - 8) : i])
            if token in FINDINGS_SET and not denied and "resolved" not in tokens:
                found[token] += 1
    return found


FINDINGS_SET = set(FINDINGS)


def lost_findings(before, after):
    """Finding words of the original, present or denied, that the whole cleaned report lacks."""
    had = set(words(before)) & FINDINGS_SET
    return sorted(had - set(words(after)))


def prior_left(text):
    for sentence in sentences(text):
        plain = ALLOWED_CHANGE.sub(" ", sentence)
        if set(words(plain)) & set(CHANGE) or CHANGE_PAIRS.search(plain):
            yield sentence


def is_fragment(sentence):
    """No verb and no word that a report's telegraphic style allows alone, or a broken joint."""
    tokens = words(bare(sentence))
    if not tokens:
        return False
    if tokens[0] in CANNOT_START or tokens[-1] in CANNOT_END:
        return True
    if tokens[-1] in ADJECTIVES and not set(tokens) & {"is", "are"}:
        return True
    for first, second in zip(tokens, tokens[1:]):
        if first in ARTICLES and second in AFTER_NO_ARTICLE:
            return True
        if first in ADJECTIVES and second in AFTER_NO_ADJECTIVE:
            return True
        if first in {"of", "with", "in"} and second in AFTER_NO_PREPOSITION:
            return True
    return not (set(tokens) & VERBS or set(tokens) & TELEGRAPHIC)


def fragments(before, after):
    """Sentences that the rules wrote, which are not the original's, and are none."""
    known = {bare(s).lower() for s in sentences(before)}
    return [s for s in sentences(after) if bare(s).lower() not in known and is_fragment(s)]


def text_of(row):
    return f"{row['findings']} {row['impression']}".strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", help="JSON lines with id, findings and impression")
    parser.add_argument("--show", type=int, default=0, help="number of changed reports to print")
    parser.add_argument("--seed", type=int, default=1, help="which ones are printed")
    parser.add_argument("--hits", action="store_true", help="print every hit of every counter")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "clean.jsonl"
        clean_with_rules(open_reports(arguments.reports), out)
        cleaned = {row["id"]: row for row in map(json.loads, out.open(encoding="utf-8"))}
        aside = [json.loads(line) for line in rejected_path(out).open(encoding="utf-8")]
    raw = {row["id"]: row for row in map(json.loads, open(arguments.reports, encoding="utf-8"))}
    empty = sum(not text_of(raw[row["id"]]) for row in aside if row["id"] in raw)
    counts, hits, changed = Counter(), [], []
    for key, row in cleaned.items():
        before, after = text_of(raw[key]), text_of(row)
        if before != after:
            changed.append(key)
        found = {
            "findings lost": lost_findings(before, after),
            "turned normal": ["yes"] if present_findings(before) and not present_findings(after) else [],
            "priors left": list(prior_left(after)),
            "fragments": fragments(before, after),
            "hidden words left": HIDDEN.findall(after),
        }
        for name, what in found.items():
            counts[name] += bool(what)
            hits += [(name, key, before, after, what)] if what else []
    total = len(raw)
    set_aside = len(aside) - empty
    print(f"{total} reports: {len(cleaned)} cleaned, of them {len(changed)} changed;")
    print(f"{set_aside} set aside with a reason ({set_aside / total:.1%}), {empty} were empty")
    for name, how in {
        "findings lost": "a finding word of the original is nowhere in the cleaned report",
        "turned normal": "a finding that is not denied before, none after",
        "priors left": "a word of change or of an earlier examination after",
        "fragments": "a new sentence without a verb or telegraphic word, or with a broken joint",
        "hidden words left": "XXXX, ___ or [** **] after",
    }.items():
        print(f"{counts[name]:5d} {counts[name] / total:6.2%}  {name}: {how}")
    if arguments.hits:
        for name, key, before, after, what in hits:
            print(f"\n[{name}] {key} {what}\n- {before}\n+ {after}")
    for key in random.Random(arguments.seed).sample(sorted(changed), arguments.show):
        print(f"\n[{key}]\n- {text_of(raw[key])}\n+ {text_of(cleaned[key])}")


if __name__ == "__main__":
    main()

"""Effect of `unix-jax clean --rules-only` on a corpus, counted without the patterns of the rules.

    python benchmarks/cleaning.py reports_only.jsonl
    python benchmarks/cleaning.py reports_only.jsonl --hits
    python benchmarks/cleaning.py reports_only.jsonl --show 100 --seed 1

The reports go through `clean_with_rules`, as the command does. The counters use the plain word
lists of this file and no pattern of `unix_jax.cleaning`: the guard cannot confirm itself. They are
blunt on purpose. `--hits` prints each hit for a reader to judge.
"""

import argparse
import itertools
import json
import random
import re
import tempfile
from collections import Counter
from pathlib import Path

from unix_jax.cleaning.clean_reports import clean_with_rules, rejected_path
from unix_jax.cleaning.report_files import open_reports


def word_set(text):
    return frozenset(text.split())


FINDINGS = word_set("""
pneumothorax pneumothoraces tension hemothorax pneumomediastinum pneumoperitoneum effusion
effusions opacity opacities opacification consolidation consolidations edema atelectasis
atelectatic nodule nodules nodular mass masses cardiomegaly enlarged enlargement fracture
fractures infiltrate infiltrates pneumonia lesion lesions airspace congestion granuloma granulomas
granulomatous calcified calcification calcifications fibrosis scarring scar thickening adenopathy
lymphadenopathy hernia scoliosis kyphosis dextroscoliosis levoscoliosis spondylosis osteophytes
osteophyte degenerative arthritic osteopenia osteoporosis emphysema emphysematous copd
hyperinflated hyperinflation hyperexpanded hyperexpansion bronchiectasis bulla bullae blunting
tortuous tortuosity ectasia atherosclerotic atherosclerosis aneurysm elevated elevation
eventration collapse cavitary cavitation metastatic metastasis neoplasm malignancy tuberculosis
sarcoidosis deformity deformities dislocation subluxation pacemaker catheter picc tube lead leads
wires clips stent valve prosthesis port defibrillator sternotomy cabg cholecystectomy mastectomy
plate screws rods bullet
""")
DENIALS = {"no", "not", "without", "negative", "free", "resolved", "cleared", "removed", "removal",
           "resolution", "absence", "absent", "longer", "nor", "never"}  # fmt: skip
CHANGE = word_set("""
compared comparison comparisons unchanged stable interval previously persistent persists remains
again redemonstrated redemonstration worsened worsening improved improvement improving resolving
resolved since newly
""")
CHANGE_PAIRS = re.compile(
    r"\bno (?:significant |interval )*changes?\b"
    r"|\bprior (?:exam|stud|film|radiograph|chest|ct|x-ray)"
    r"|\bprevious (?:exam|stud|film|radiograph|chest|ct|x-ray)|\bthan previously\b"
    r"|\bha(?:s|ve) (?:\w+ )?(?:developed|cleared|increased|decreased|progressed)\b|\bnew\b",
    re.IGNORECASE,
)
# Advice, history that the film shows, and the other side are no comparison with an earlier film.
ALLOWED_CHANGE = re.compile(
    r"short[ -]interval|interval follow|clinically stable|compared to (?:the )?(?:left|right)"
    r"|prior chest surgery",
    re.IGNORECASE,
)
GONE = word_set("resolved cleared removed removal resolution longer")
# What grew, did not change or is nearly gone is the finding itself.
GROWTH = re.compile(
    r"\binterval enlargement of\b|\bno (?:significant |interval )*changes?(?: in)?\b"
    r"|\b(?:without|no) significant change\b|\balmost completely resolved\b",
    re.IGNORECASE,
)
VERBS = word_set("""
is are was were has have had may might could can cannot should would will appear appears seem
seems show shows demonstrate demonstrates reveal reveals overlie overlies overlying project
projects terminate terminates represent represents reflect reflects suggest suggests obscure
obscures measure measures extend extends recommend recommended consider correlate limits lies ends
seen noted identified present visualized
""")
TELEGRAPHIC = set(FINDINGS) | word_set("""
no clear normal unremarkable intact negative disease abnormality abnormalities prominent
prominence changes process markings density densities volumes volume limits low borderline mild
moderate severe small large calcific chronic acute shift curvature interstitial lucency failure
crowding hypoinflation arthritis fusion lobe lobectomy resection amputation stimulator generator
coils deviation widening unfolding wedging arch border pattern angle nodes node syndesmophyte
syndesmophytes retrolisthesis engorgement capping obscuration infection enchondroma enthesophyte
goiter hypertension contrast hypoinflated postsurgical postoperative postop surgical status lines
line device monitor tip fluid
""")
CANNOT_START = word_set("""
is are was were has have had of from by than which that who and or but nor due to into since
versus be been
""")
CANNOT_END = word_set("""
and or with of to in on at by from for the a an as is are was were be been has have had may which
that than but since per via into over versus appears no mildly slightly significantly without
""")
# Adjectives that need their noun: before a verb, a preposition or the end they are a broken joint.
ADJECTIVES = word_set("""
pulmonary mediastinal hilar thoracic cardiac osseous bony vascular humeral renal cervical lumbar
aortic costophrenic vertebral degenerative moderate severe mild round punctate implantable
surgical pleural
""")
AFTER_NO_ADJECTIVE = word_set("is are was were of in on at over seen noted identified may has have")
ARTICLES = {"the", "a", "an"}
AFTER_NO_ARTICLE = word_set("is are was were of in on at and or with the a an to from has have may")
AFTER_NO_PREPOSITION = word_set("and or of is are was were has have may from")
HIDDEN = re.compile(r"XXXX|_{2,}|\[\*\*")


def words(text):
    return re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower())


def sentences(text):
    return [s.strip() for s in re.split(r"(?<=[.!?;])\s+(?=[A-Za-z0-9])", text) if s.strip()]


def bare(sentence):
    return re.sub(r"^\d+[.)]\s*", "", sentence).strip(" .")


def findings_by_polarity(text):
    """(finding words that are stated, finding words that are denied)."""
    stated, denied = set(), set()
    for sentence in sentences(GROWTH.sub(" ", text)):
        tokens = words(sentence)
        gone = GONE & set(tokens)
        for i, token in enumerate(tokens):
            if token in FINDINGS:
                is_denied = gone or DENIALS & set(tokens[max(0, i - 8) : i])
                (denied if is_denied else stated).add(token)
    return stated, denied


def lost_findings(before, after):
    """Finding words of the original, stated or denied, that the whole cleaned report lacks."""
    had = set(words(GROWTH.sub(" ", before))) & FINDINGS
    return sorted(had - set(words(after)))


def reversed_findings(before, after):
    """Finding words that were only stated and are only denied now, or the other way round."""
    (stated, denied), (still, now) = findings_by_polarity(before), findings_by_polarity(after)
    return sorted(((stated - denied) & (now - still)) | ((denied - stated) & (still - now)))


def turned_normal(before, after):
    """Stated findings before, and none after."""
    stated, _ = findings_by_polarity(before)
    return sorted(stated) if stated and not findings_by_polarity(after)[0] else []


def prior_left(text):
    for sentence in sentences(text):
        plain = ALLOWED_CHANGE.sub(" ", sentence)
        if set(words(plain)) & CHANGE or CHANGE_PAIRS.search(plain):
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
    for first, second in itertools.pairwise(tokens):
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
    with open(arguments.reports, encoding="utf-8") as lines:
        raw = {row["id"]: row for row in map(json.loads, lines)}
    empty = sum(not text_of(raw[row["id"]]) for row in aside if row["id"] in raw)
    counts, hits, changed = Counter(), [], []
    for key, row in cleaned.items():
        before, after = text_of(raw[key]), text_of(row)
        if before != after:
            changed.append(key)
        found = {
            "findings lost": lost_findings(before, after),
            "findings reversed": reversed_findings(before, after),
            "turned normal": turned_normal(before, after),
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
        "findings reversed": "a finding word that was only stated is only denied, or vice versa",
        "turned normal": "a finding word that is not denied before, none after",
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

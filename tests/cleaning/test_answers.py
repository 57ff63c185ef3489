"""Replies of language models: the report or the verdict is read, and nothing else is lost."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unix_jax.cleaning.answers import plain_answer, why_unusable
from unix_jax.cleaning.verdicts import verdict

FIELD = Path(__file__).parents[1] / "field" / "answers.jsonl"
REPORT = "FINDINGS: The lungs are clear. IMPRESSION: No acute finding."
TWO_LINES = "FINDINGS:\nThe lungs are clear.\n\nIMPRESSION:\nNo acute finding."


def told(reply):
    found = verdict(reply)
    return None if found is None else found[0]


@pytest.mark.parametrize("case", map(json.loads, FIELD.read_text("utf-8").splitlines()))
def test_field_cases(case):
    if "report" in case:
        assert plain_answer(case["reply"]) == case["report"]
        assert why_unusable(case["reply"]) == ""
    else:
        assert told(case["reply"]) == case["verdict"]


OBJECT = json.dumps({"report": REPORT})
READ = [
    f"Output: {OBJECT}", f"Here is the JSON:\n{OBJECT}", f"[{OBJECT}]", f"{OBJECT}\n\nDone.",
    json.dumps({"rewritten": REPORT}), json.dumps({"report": REPORT, "status": "ok"}),
    json.dumps({"chain_of_thought": "FINDINGS: draft", "report": REPORT}), str({"report": REPORT}),
    f"Output: {[{'report': REPORT}]}", f"{REPORT} (No changes were needed.)",
    f"{REPORT}\n\n✅ All rules followed.", f"{REPORT}\nRemoved the date.", f"{REPORT}\n\nDone.",
    f"```\n{REPORT}\n```\nDone.", f"```\n{REPORT}\n```\nThe comparison was removed.",
    f"````markdown\n{REPORT}\n````", f"```\n{REPORT}\n```\n```\n{REPORT}\n```",
    f"<explanation>The date is gone.</explanation><report>{REPORT}</report>",
    f"<explanation>FINDINGS: draft</explanation>\n{REPORT}", REPORT.replace(" IMP", "\\n\\nIMP"),
    f"Let me think step by step.\n1. Drop the prior.\n\nFinal answer:\n{REPORT}",
    "**FINDINGS** The lungs are clear. **IMPRESSION** No acute finding.",
    "FINDINGS - The lungs are clear. IMPRESSION - No acute finding.",
    "FINDINGS The lungs are clear.\nIMPRESSION No acute finding.", f"{REPORT}\n\n{REPORT}",
    f"Here is the report:\n{REPORT}\n\nFinal version:\n{REPORT}", f"json\n{OBJECT}",
    f"```\n{REPORT}\n```\nI dropped the date.",
]  # fmt: skip


@pytest.mark.parametrize("reply", READ)
def test_what_stands_around_a_report_is_removed(reply):
    assert plain_answer(reply) == REPORT
    assert why_unusable(reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps({"report": REPORT, "devices": "ETT"}),
        f"Output: {json.dumps({'report': REPORT, 'devices': 'ETT'})}",
        json.dumps({"findings": {"lungs": "clear"}, "impression": "Clear."}),
        json.dumps([REPORT, "Left effusion."]),
        f'Output: {{"report": "{REPORT}',
        f'"report": "{REPORT}"',
        f'{REPORT}"}}',
        f'{REPORT}", "status": "ok"',
        f"{REPORT} }}",
        f'{REPORT}\\"',
    ],
)
def test_remains_of_json_are_no_report(reply):
    assert why_unusable(reply)


REASONING = [
    "{}",
    "<thinking>\nFINDINGS: draft\n</thinking>\n\n{}",
    "<reasoning>x</reasoning>{}",
    "<thought>x\n\ny</thought>\n\n{}",
    "<THINK time='3'>a</THINK>{}",
    "<seed:think>a</seed:think>{}",
    "<scratchpad>x</scratchpad>\n{}",
    "<details><summary>Reasoning</summary>abc</details>\n{}",
    "[THINK]a[/THINK]{}",
    "◁think▷a◁/think▷{}",
    "&lt;think&gt;a&lt;/think&gt;{}",
    "a\n</reasoning>\n{}",
    "</think>{}",
    "<think></think>\n\n{}",
    "<think>I close it by </think> soon\n</think>\n{}",
    "<think>the tag <think> opens</think>\n{}",
    "<think>a</thinking>{}",
    "<think>a</think>\n<think>b</think>\n{}",
    "{}\n<think>b</think>",
    "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>{}<|end_of_solution|>",
    "<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<unused94>thought\nx<unused95>{}",
    "<|channel>thought\nx<channel|>{}",
    "Thinking...\nfoo\n...done thinking.\n\n{}",
    "```thinking\nFINDINGS: draft\n```\n{}",
    "<|channel|>analysis<|message|>We need FINDINGS: a<|end|><|start|>assistant<|channel|>final"
    "<|message|>{}<|return|>",
    "We need<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "analysisWe need to write FINDINGS: foo.assistantfinal{}",
    "Reasoning: the report tells of a prior.\n\nFinal answer:\n{}",
    "Here is my thought process: blah.\n\nHere is my response:\n{}",
    "**Reasoning**\nblah\n\n**Answer**\n{}",
    "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\nthanks",
    "{}</s>",
    "\ufeff{}\u200b",
]
AROUND = [
    "{}",
    "```\n{}\n```",
    "```text\n{}\n```",
    "```{}```",
    "```\n{}",
    "~~~\n{}\n~~~",
    "<report>{}</report>",
    "<cleaned_report>\n{}\n</cleaned_report>",
    "<answer>{}",
    "{}</report>",
    "```xml\n<report>\n{}\n</report>\n```",
    '"{}"',
    "“{}”",
    "\\boxed{{{}}}",
]
TALK = [
    "{}",
    "Here is the cleaned report:\n\n{}",
    "Here is the cleaned report: {}",
    "Sure! Here's the rewritten report:\n\n{}",
    "Sure, here you go!\n{}",
    "Sure thing — here is the report: {}",
    "Certainly. Below is the cleaned report in the requested format:\n\n{}",
    "Of course! Here is the rewritten chest X-ray report, formatted as requested:\n{}",
    "Okay, I have rewritten the report.\n\n{}",
    "Based on the instructions, here is the report:\n{}",
    "**Cleaned Report:**\n\n{}",
    "# Cleaned Report\n{}",
    "Final Answer: {}",
    "Rewritten:\n{}",
    "assistant\n{}",
    "{}\n\nLet me know if you need anything else!",
    "{} I hope this helps!",
    "{}\n\nNote: I removed the comparison to the prior study.",
    "{}\n\n(Note: References to prior studies were removed as instructed.)",
    "{}\n\n**Changes:** Removed the comparison and the name.",
    "{}\n\nIf you have any questions, ask.",
    "{}\n\n**Changes made:**\n- Removed the comparison.\n- Removed Dr. ___.",
    "{}\n\n---\n\nI removed the mention of the phone call. The rest was kept.",
]
FORMS = [
    REPORT,
    TWO_LINES,
    "**FINDINGS**: The lungs are clear.\n**IMPRESSION**: No acute finding.",
    "***FINDINGS:*** The lungs are clear. ***IMPRESSION:*** No acute finding.",
    "__FINDINGS:__ The lungs are clear. __IMPRESSION:__ No acute finding.",
    "*FINDINGS:* The lungs are clear.\n\n*IMPRESSION:* No acute finding.",
    "**FINDINGS:** **The lungs are clear.** **IMPRESSION:** **No acute finding.**",
    "## FINDINGS\nThe lungs are clear.\n\n## IMPRESSION\nNo acute finding.",
    "### Findings:\n- The lungs are clear\n\n### Impression:\n- No acute finding",
    "- **FINDINGS:** The lungs are clear.\n- **IMPRESSION:** No acute finding.",
    "1. FINDINGS: The lungs are clear.\n2. IMPRESSION: No acute finding.",
    "> FINDINGS: The lungs are clear.\n> IMPRESSION: No acute finding.",
    "Findings: The lungs are clear. Impression: No acute finding.",
    "FINDINGS：The lungs are clear. IMPRESSION：No acute finding.",
    "FIND\u200bINGS:The lungs\u00a0are\u2060 clear. IMPRESSION:No acute\u202ffinding.",
    "FINDINGS: The lungs are clear.\n\n---\n\nIMPRESSION: No acute finding.",
    "<b>FINDINGS:</b> The lungs are clear.<br><b>IMPRESSION:</b> No acute finding.",
    "<findings>The lungs are clear.</findings><impression>No acute finding.</impression>",
]


@pytest.mark.parametrize("reasoning", REASONING)
@pytest.mark.parametrize("around", ["{}", "```\n{}\n```", "Here is the report:\n{}"])
@pytest.mark.parametrize("form", [REPORT, "**FINDINGS:** The lungs are clear.\n**IMPRESSION:** "
                                  "No acute finding."])  # fmt: skip
def test_reasoning_is_removed(reasoning, around, form):
    reply = reasoning.replace("{}", around.replace("{}", form))
    assert plain_answer(reply) == REPORT
    assert why_unusable(reply) == ""


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("form", FORMS)
def test_fences_tags_quotes_and_forms(around, form):
    reply = around.format(form)
    assert plain_answer(reply) == REPORT
    assert why_unusable(reply) == ""


@pytest.mark.parametrize("talk", TALK)
@pytest.mark.parametrize("form", FORMS)
def test_prefaces_and_remarks(talk, form):
    if "{} " in talk or " {}" in talk:
        # On one line with the talk, no Markdown begins and no list ends.
        form = form if form[0] in "F*_<" and "#" not in form and "- " not in form else REPORT
    reply = talk.format(form)
    assert plain_answer(reply) == REPORT
    assert why_unusable(reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        'Output: {"report": "FINDINGS: Left mass."}',
        'Here is the JSON:\n{"rewritten": "FINDINGS: Left mass."}',
        '[{"report": "FINDINGS: Left mass."}]',
        "{'report': 'FINDINGS: Left mass.'}",
        '{"chain_of_thought": "The date goes.", "report": "FINDINGS: Left mass."}',
        "````\nFINDINGS: Left mass.\n````",
        "```\nFINDINGS: Left mass.\n```\nThe comparison was removed.",
        "FINDINGS: Left mass.\n(No changes were needed.)",
        "FINDINGS: Left mass.\n\u2705 All rules followed.",
        "**FINDINGS** Left mass.",
    ],
)
def test_one_report_in_many_forms(reply):
    assert plain_answer(reply) == "FINDINGS: Left mass."
    assert why_unusable(reply) == ""


@pytest.mark.parametrize(
    "reply",
    [
        '{"report": "FINDINGS: Left mass.", "devices": "ETT."}',
        'The report: {"report": "FINDINGS: Left mass.", "extra": "IMPRESSION: Right mass."}',
        "{'report': 'FINDINGS: a.', 'report': 'FINDINGS: b.'}",
    ],
)
def test_remains_of_json_are_refused(reply):
    assert "without markup" in why_unusable(reply)


def test_a_sentence_in_brackets_is_no_reasoning():
    report = "FINDINGS: [Details limited by rotation.] Left effusion."
    assert plain_answer(report) == report


def test_json_reports():
    whole = {"report": REPORT}
    parts = {"findings": "The lungs are clear.", "impression": "No acute finding."}
    for value in (whole, parts, {"Findings": ["The lungs are clear."], "IMPRESSION": "No acute "
                  "finding."}, parts | {"notes": "x"}, {"report": parts}):  # fmt: skip
        for reply in (json.dumps(value), f"Here is the report:\n```json\n{json.dumps(value)}\n```"):
            assert plain_answer(reply) == REPORT
    # A field that is neither a section nor a remark would be lost.
    assert "{" in why_unusable(json.dumps(parts | {"devices": "ETT 4 cm above the carina."}))
    assert "{" in why_unusable('{"findings": "a.", "findings": "b."}')


@pytest.mark.parametrize(
    "text",
    [
        "Left effusion. FINDINGS: Clear. IMPRESSION: None.",
        "The final report shows a left effusion. FINDINGS: Clear. IMPRESSION: None.",
        "FINDINGS: A nodule <5 mm. 1. Stable. 2. [**Name**] ___ saw it. IMPRESSION: > 5 cm.",
        "FINDINGS: Clear. IMPRESSION: None. Note: the left costophrenic angle is excluded.",
        "FINDINGS: Clear. IMPRESSION: None. Note: the chest tube has been removed.",
        "FINDINGS: Clear. IMPRESSION: None. This limits the report.",
        "FINDINGS: [Details limited by rotation.] Clear. IMPRESSION: [Plan: CT] None.",
        "FINDINGS: Clear. IMPRESSION: No change is needed in the position of the tube.",
        "FINDINGS: Clear. IMPRESSION: None. Comparison: chest tube removed.",
        "FINDINGS: Clear. IMPRESSION: None. The guidelines are met for follow-up of the nodule.",
        "FINDINGS: Clear. IMPRESSION: None. The report of the CT is pending.",
        "FINDINGS: Clear. IMPRESSION: None. Comparison was made; the effusion remains.",
        "FINDINGS: Clear. IMPRESSION: None. Changes: mild spondylosis.",
        "FINDINGS: Clear. IMPRESSION: None. If you have concern for a nodule, CT is next.",
    ],
)
def test_what_may_be_part_of_the_report_stays(text):
    assert plain_answer(text) == text
    assert plain_answer(text.replace(". ", ".\n")) == text


@pytest.mark.parametrize(
    "reply",
    [
        "<think>The report says",
        "<think>FINDINGS: The lungs are clear. IMPRESSION: No acute finding.",
        f"{REPORT} <think>But",
        "<|channel|>analysis<|message|>We need to write FINDINGS: a. IMPRESSION: b.",
        "analysisWe need to write FINDINGS: a. IMPRESSION: b.",
    ],
)
def test_reasoning_without_an_end_is_no_report(reply):
    assert plain_answer(reply) == ""
    assert "no end" in why_unusable(reply)
    assert verdict(reply.replace("FINDINGS", "yes")) is None


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("<think>a</think>", "Nothing but reasoning"),
        (f"```\n{REPORT}\n```\n```\n{REPORT} Left effusion.\n```", "```"),
        ("FINDINGS: <mystery>Clear. IMPRESSION: None.", "<mystery>"),
        ("FINDINGS: Clear. IMPRESSION: None. I removed the date. A left effusion is there.",
         "I removed"),
        (f"{REPORT} {'x' * 100_000}", "characters"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_said(reply, named):
    assert named in why_unusable(reply)


YES = [
    "Yes", "yes.", "**Yes**", "Answer: Yes", "**Answer:** **yes**", "Answer:\nyes", "A: yes",
    "Final answer: yes", "The answer is yes.", "So, my verdict is: Yes.", "Judgment: yes",
    "<answer>yes</answer>", "<verdict>yes</verdict><reason>ok</reason>", "```\nyes\n```", "- yes",
    '{"answer": "yes"}', '```json\n{"answer": "Yes", "reason": ""}\n```', '{"verdict": true}',
    "{'answer': 'yes'}", '[{"answer": "yes", "reason": "nothing is missing"}]', "\\boxed{yes}",
    "Everything is kept.\n\nAnswer: yes", "Let me check.\nyes", "Answer (yes/no): yes", "\u200byes",
    "Yes. No finding is missing.", "Yes, no errors.", "Yes - all kept, but the wording differs.",
    "Yes. The comparison was omitted.", "✅ Yes", "Yes. Nothing is missing, added or changed.",
    "Yes. Nothing is missing or added to the report.", "Yes. Neither missing nor added findings.",
    "Yes, the rewrite is faithful.", "Yes. All findings, sides and numbers are preserved.",
    "Yes. The rewrite keeps every finding and no finding is added.", "Yes. Nothing was lost.",
    "Yes, it is accurate.", "Yes. Prior examinations and dates are removed.",
    "Yes. The meaning is unchanged.", "Yes. No negative findings are lost.",
    '{"answer": "yes", "reason": "All findings are kept."}',
    "Let me compare the rewrite with the original. All findings are kept. Answer: yes",
    "The rewrite keeps all findings. Verdict: yes", "Nothing is missing or added.\nyes",
    "Verdict: yes\nReason: all findings kept.", "Missing: none.\nAnswer: yes", "Yes, definitely.",
    "Is the rewrite faithful? Yes.", "Everything is kept. Yes.", "I would say yes.",
    "No finding is missing.\nAnswer: yes", "**Errors:** none\n**Verdict:** yes",
    '{"answer": ["yes"]}', '{"is_faithful": true}', '{"answer": "yes", "missing": []}',
    '{"answer": "yes", "errors": "none"}', '{"faithful": "yes", "complete": "yes"}',
    "Analysis: all findings are kept.\n\nVerdict: yes", "Nothing was lost. So yes.",
    "Q: Is it faithful?\nA: Yes", "The answer is clearly yes.",
    '{"answer": true, "nothing_missing": true}',
    "- Missing: none\n- Added: none\n**Answer: yes**",
    "Is everything kept? Yes.\nAnswer: yes", "<answer>yes</answer><missing>none</missing>",
]  # fmt: skip
NO = [
    "No", "NO.", "no: a tip is missing", "No - lost", "No\nThe effusion is lost", "**No.** x",
    "No, the side differs.", "no because it lost the tip", "Answer: no", "So the answer is **no**.",
    "<answer>no</answer><reason>tip</reason>", '{"answer": false}',
    '{"reason": "x", "answer": "no"}', '{"answer": "no", "reason": "it',
    "{'verdict': 'No', 'reason': 'x'}", "No. No effusion is told.",
    "The effusion is lost.\nVerdict: No", "Is the rewrite faithful? No.", "I would say no.",
    "The rewrite lost the effusion. No.", '{"answer": ["no"]}', '{"is_faithful": "no"}',
    '{"answer": "no", "missing": ["effusion"]}', "Missing: effusion.\nAnswer: no",
    "No, definitely.", "Is the rewrite faithful?\nAnswer: no", "Clearly no.",
    "No, everything is kept but the effusion.", "Two findings were lost. So no.",
]  # fmt: skip
NEITHER = [
    "", "Maybe", "Yes and no", "No and yes", "Yes/No", "yes or no", "Yes, no.", "Yes; no",
    "yes\nno", "Neither yes nor no.", "Answer: yes and no", '{"answer": "yes and no"}',
    '{"answer": "maybe"}', '{"answer": "yes", "verdict": "no"}',
    '{"answer": "yes", "answer": "no"}',
    "{}", "Yes. Answer: no", "No. Final answer: yes", "yes?", "Yes, but the tip is missing.",
    "Yes, except the tip.", "Yes, partially.", "Yes, with reservations", "Yes. The tip is missing.",
    '{"answer": "yes", "reason": "The tip is missing."}', "Mostly yes", "Yesterday", "None",
    "No finding is missing.", "No issues found.", "Nothing is missing", "The report says yes",
    "Yes. It adds an effusion.", "Yes, it changes meaning.", "Yes. Only the side differs.",
    "Yes: effusion changed from left to right", "yes (the tube was changed to a line)",
    "Yes, the report is unfaithful", "Yes, not faithful.", "Yes. Not all findings are kept.",
    "Yes. The rewrite says 'no effusion' while the original says 'effusion'.",
    "Yes. Nothing is kept.", "Yes. The comparison changed sides.", "Yes. A finding was removed.",
    "Yes. The prior finding was removed.", "Yes. The rewrite is not without errors.",
    "Yes. Nothing but errors.", "Yes. The left effusion is now right.", "Yes. One number is off.",
    "Yes. All kept, sides changed.", "Yes. Nothing is missing, sides are moved.",
    "Yes. Nothing is missing and sides are moved.", "Yes. Only the sides are kept.",
    "Yes. The doubt is certainty.", "Yes. No longer accurate.", "Answer: yes. The tube moved.",
    '{"answer": "yes", "reason": "It adds an effusion."}', '{"answer": "yes, side differs"}',
    "The tip moved.\nAnswer: yes. It is a different tip.",
    "Effusion added. Answer: yes", "The effusion was moved to the right. Answer: yes",
    "The rewrite drops the effusion. Verdict: yes", "Something is missing.\nyes",
    "Left effusion became right. The answer is yes.", "The tip is missing, answer: yes",
    "The rewrite says no effusion while the original says effusion. Final answer: yes",
    "Fault: the side.\n\nFinal answer: yes", "Missing: tip\n**Answer:** yes",
    "The tip is missing. <answer>yes</answer>", "One finding was lost. \\boxed{yes}",
    'The tip is missing. {"answer": "yes"}', "The side differs; verdict: yes\nyes",
    '{"answer": "yes", "missing": ["effusion"]}', '{"answer": "yes", "errors": "side changed"}',
    '{"faithful": "yes", "complete": "no"}', "Analysis: effusion missing.\n\nVerdict: yes",
    "<answer>yes</answer><missing>tip</missing>", '{"answer": true, "nothing_missing": false}',
    "Is it faithful? Yes. Is it complete? No.", '{"answer": "yes", "confidence": "low"}',
    "Reason: none of the findings are kept.\nAnswer: yes", "I would not say yes.",
    "Analysis: sides are swapped.\nVerdict: yes", "Is the effusion lost? Yes.",
    "Reasoning: the effusion is now right.\nVerdict: yes", "Verdict: yes\nMissing: tip",
    "No, everything is kept.", "No, nothing is missing, so yes.", "Answer: no, wait: yes",
    '{"answer": "no", "reason": "Everything is kept."}', "Is anything missing? No.",
    "The tip is missing. Is the rewrite faithful? Yes.", '{"answer": ["yes", "no"]}',
    '{"x": {"answer": "yes"}, "errors": "side"}', "{'answer': 'yes', 'missing': ['tip']}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(r, e) for replies, e in ((YES, True), (NO, False), (NEITHER, None)) for r in replies],
)
def test_verdicts(reply, expected):
    assert told(reply) is expected


@pytest.mark.parametrize("reasoning", [r for r in REASONING if r != "{}"])
def test_verdicts_after_reasoning(reasoning):
    assert told(reasoning.replace("{}", "yes")) is True
    assert told(reasoning.replace("{}", "No. A tip is missing.")) is False
    assert told(reasoning.replace("{}", "Yes and no.")) is None


def test_the_reason_of_a_no():
    why = "The tip is missing."
    replies = [f"No. {why}", f"No: {why}", f"**No** - {why}", f"Lost.\nAnswer: no. {why}"]
    for reply in [*replies, json.dumps({"answer": "no", "reason": why})]:
        assert verdict(reply) == (False, why)


SENTENCES = st.lists(
    st.sampled_from(
        [
            "The lungs are clear.",
            "Left effusion of 12 mm.",
            "ETT 4 cm above the carina.",
            "No pneumothorax.",
            "T12 fracture (old).",
            "Possible right-sided mass, < 3 cm.",
            "Note is made of sternal wires.",
            "Removed chest tube.",
        ]
    ),
    min_size=1,
    max_size=5,
)


@given(SENTENCES, SENTENCES, st.sampled_from(REASONING), st.sampled_from(AROUND + TALK))
def test_every_sentence_of_a_report_comes_through(findings, impression, reasoning, around):
    report = f"FINDINGS: {' '.join(findings)} IMPRESSION: {' '.join(impression)}"
    reply = reasoning.replace("{}", around.format(report))
    assert plain_answer(reply) == report


@given(st.text(st.sampled_from('<>/|[]{}*_#`": \n.,-aFthinkyesno\u200b'), max_size=300))
def test_any_reply_is_read(reply):
    plain_answer(reply), why_unusable(reply), verdict(reply)


def test_long_replies_are_read_in_short_time():
    start = time.process_time()
    for unit in ("<a>", "{", '{"a":', "*", "\n", "_a", "FINDINGS: ", " ", "<think>", "```", "yes ",
                 "answer: ", "[", "- a\n", "sure, ", "< ", "references ", "{'a':",
                 "a? yes. ", "Missing: none\n", "**FINDINGS** "):  # fmt: skip
        reply = unit * (30_000 // len(unit))
        plain_answer(reply), why_unusable(reply), verdict(reply)
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"answer": "yes", "missing": ["effusion"]}', None),
        ('{"answer": "yes", "errors": "side changed"}', None),
        ('{"faithful": "yes", "complete": "no"}', None),
        ('{"answer": "yes", "hallucination": true}', None),
        ('{"answer": "yes", "hallucination": false}', True),
        ('{"answer": "yes", "missing": [], "confidence": 0.9}', True),
        ('{"faithful": true, "complete": true}', True),
        ('{"reasoning": "Both tell of a right effusion.", "answer": "yes"}', True),
        ('{"answer": "yes", "complete": false}', None),
        ('{"answer": "no", "missing": ["effusion"]}', False),
        ('{"is_faithful": ["no"]}', False),
        ("Verdict: yes\nReason: all findings kept.", True),
        ("Missing: none.\nAnswer: yes", True),
        ("Yes, definitely.", True),
        ("Is the rewrite faithful? Yes.", True),
        ("Is the rewrite faithful? No.", False),
        ("Is any finding missing? No.", None),
        ("The rewrite lost the effusion. No.", False),
        ("I would say no.", False),
        ("No, everything is kept.", None),
        ("No, nothing is missing, so yes.", None),
        ("Answer: no, wait: yes", None),
    ],
)
def test_what_stands_beside_a_verdict(reply, expected):
    found = verdict(reply)
    assert (found if found is None else found[0]) is expected

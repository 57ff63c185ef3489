"""The words of documentation, help and docstrings: the field's own, in plain English.

The list holds wordings that native readers stumbled over, as narrow patterns with the words to use.
Code, link targets and quotations are not looked at. A legitimate use that a pattern meets gets an
exception here, next to the pattern.
"""

import ast
import inspect
import re
import typing

import pytest

import unix_jax
from support.documentation import NAMES, PAGES, ROOT
from support.helps import HELPS

PAGES, NAMES = [*PAGES, ROOT / "CHANGELOG.md"], [*NAMES, "CHANGELOG.md"]

_UNITS = (
    "cards?|channels?|images?|items?|latents?|lines?|milliseconds?|numbers?|objects?|pixels?|px|"
    "records?|reports?|rows?|samples?|seconds?|steps?|tasks?|times?|tokens?"
)
_WHOLES = (
    "batch|card|channel|group|image|item|latent|line|page|process|prompt|query|record|report|row|"
    "sample|second|side|stack|step|token"
)


class Wording(typing.NamedTuple):
    """A pattern, what to write instead, and a pattern of the legitimate uses around a match."""

    wrong: str
    right: str
    except_for: str = "(?!)"


WORDINGS = [
    Wording(
        r"\b(?:draws?|drew|drawn|drawing|drawings)\b",
        "generate (an image), sample (a random number)",
        r"\b(?:normal|random) draws?\b|\bdrawn (?:at random|with|without|from)\b"
        r"|\bdraw\w* (?:attention|conclusions?)\b",
    ),
    Wording(r"\bpictures?\b", "image"),
    Wording(
        r"\b(?:its|the|this|that|which|same|each|every|fewer|of|all) places?\b"
        r"|\b(?:\d+|ViT|VAE|token|packed|free) places\b",
        "position, index",
        r"\bplaces (?:a|an|the|it|them|arrays|every|each|more|no)\b",
    ),
    Wording(r"\bin the place of\b", "instead of"),
    Wording(rf"\b(?:{_UNITS}) an? (?:{_WHOLES})\b", 'per ("tokens per row")'),
    Wording(
        r"\bbehind\b", "after, at, with", r"\bbehind an? (?:\w+ )?(?:proxy|firewall|balancer)\b"
    ),
    Wording(r"\bbut for\b", "except for", r"\bnot\b[^.]{1,80}\bbut for\b"),
    Wording(r"\bso many\b", "the number of, at most N", r"\bso many \w+ that\b"),
    Wording(r"\b(?:go|goes|going|went|gone) on\b", "resume, continue", r"\bgo(?:es)? on to\b"),
    Wording(
        r"\bcontinu\w+ (?:(?:a|the|any) run|from the (?:last|newest)|to the bit|where)\b", "resume"
    ),
    Wording(r"\bgiv\w+ back\b|\bgave back\b|\bhand(?:s|ed)? (?:out|in|back)\b", "return, restore"),
    Wording(r"\bto the bit\b", "bitwise identical"),
    Wording(
        r"\bwhole or not at all\b|\b(?:is|are) whole\b",
        "atomically, complete",
    ),
    Wording(
        r"\b(?:is|are|be|was|were) (?:not )?(?:yet )?there\b(?! (?:is|are|was|were|a|an|any|no)\b)",
        "supported, installed, exist",
    ),
    Wording(r"[.!?|] (?-i:Of) (?:the|an?) \w+", "a sentence that begins with its subject"),
    Wording(r"\bwhich is said\b|\b(?:is|are) told\b", "a note says so, a warning states it"),
    Wording(r"\bmade elsewhere\b", "from other software"),
    Wording(r"\bnext to nothing\b", "almost nothing"),
    Wording(r"\banew\b", "again"),
    Wording(r"\bfor want of\b", "without"),
    Wording(r"\b(?:is|are|was|were) no (?:JSON|multiple|object|number|size|mapping)\b", "is not a"),
]


def masked(text):
    """The text with code, links' targets and quotations blanked; positions stay."""
    blank = r"^```.*?^```|`[^`]*`|\]\([^)]*\)|<!--.*?-->|</?picture>|\"[^\"]{0,300}\"|^\s*:::.*?$"
    return re.sub(
        blank, lambda m: re.sub(r"[^\n]", "\0", m[0]), text, flags=re.DOTALL | re.MULTILINE
    )


def complaints(name, text):
    found = []
    for wording in WORDINGS:
        # A line's end is a space between two words.
        pattern = wording.wrong.replace(" ", r"\s+")
        for match in re.finditer(pattern, text, re.IGNORECASE):
            around = text[max(match.start() - 90, 0) : match.end() + 40]
            at = match.start() - max(match.start() - 90, 0)
            uses = re.finditer(wording.except_for.replace(" ", r"\s+"), around)
            if not any(use.start() <= at < use.end() for use in uses):
                line = text.count("\n", 0, match.start()) + 1
                words = " ".join(match[0].split())
                found.append(f"{name}:{line}: '{words}': write {wording.right}")
    return found


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("It draws a chest X-ray for a text.", "generate"),
        ("Pictures that can be read", "image"),
        ("in rows of 512 places", "position"),
        ("128 samples a\nstep", "per"),
        ("keys behind a prefix", "after"),
        ("equal but for rounding", "except for"),
        ("So many of the newest.", "the number of"),
        ("The run goes on where it was.", "resume"),
        ("which continues to the bit", "bitwise"),
        ("QLoRA is not there.", "supported"),
        ("It is copied. Of the same source.", "subject"),
        ("it appears when it is whole", "atomically"),
        ("problems are told in one error", "note"),
    ],
)
def test_wordings_are_found(text, right):
    assert any(right in complaint for complaint in complaints("text", text)), text


@pytest.mark.parametrize(
    "text",
    [
        "Run it behind a reverse proxy.",
        "`draw` is a name, and so is [this](draw.md).",
        "ε is a standard normal draw; rows are drawn without replacement.",
        "It places the arrays on a mesh, in place of torch.",
        'It writes "Dr. ___ was told of the picture".',
        "not for one run but for all of them",
        "Whether there is a file, and there are two.",
    ],
)
def test_legitimate_uses_pass(text):
    assert complaints("text", masked(text)) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_words_of_the_documentation(page):
    found = complaints(page.name, masked(page.read_text(encoding="utf-8")))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", HELPS)
def test_words_of_the_help(name, capsys):
    show, arguments = HELPS[name]
    with pytest.raises(SystemExit):
        show(arguments)
    captured = capsys.readouterr()
    # Frames of the table of options, and its indentation.
    text = re.sub(r"[│╭╮╰╯─]", " ", captured.out)
    assert len(text) > 200, captured.err
    found = complaints(f"{name} --help", masked(text))
    assert not found, "\n".join(found)


def public_docstrings():
    """(dotted name, docstring) of the public names, and of their public methods and properties."""
    for package in (unix_jax, unix_jax.data, unix_jax.evaluation, unix_jax.training):
        yield package.__name__, package.__doc__
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.ismodule(value) or not hasattr(value, "__module__"):
                continue
            yield f"{package.__name__}.{name}", value.__doc__
            for member in vars(value) if inspect.isclass(value) else ():
                if not member.startswith("_"):
                    text = getattr(inspect.getattr_static(value, member), "__doc__", None)
                    yield f"{package.__name__}.{name}.{member}", text


def test_words_of_the_public_docstrings():
    texts = {name: text for name, text in public_docstrings() if text}
    assert {"unix_jax.UniXPipeline.generate_report", "unix_jax.make_mesh"} <= texts.keys()
    found = [line for name, text in texts.items() for line in complaints(name, masked(text))]
    assert not found, "\n".join(found)


FOLDERS = ("unix_jax", "convert", "configs", "benchmarks", "examples")
MODULES = [ROOT / "train.py", *(file for name in FOLDERS for file in (ROOT / name).rglob("*.py"))]


def test_titles_of_the_modules():
    """Each module says what it is in its first line, a sentence or phrase that ends there."""
    found = []
    for file in MODULES:
        name = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        title, _, _ = (ast.get_docstring(tree) or "").partition("\n\n")
        found += complaints(name, masked(title))
        if tree.body and not title:
            found.append(f"{name}: expected a docstring")
        elif tree.body and not re.search(r"[.:]$", title):
            found.append(f"{name}: expected a title that ends with a full stop, found {title!r}")
    assert not found, "\n".join(found)

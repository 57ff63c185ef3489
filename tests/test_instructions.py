"""Instructions: their form, which of them is asked, and where a checkpoint keeps its own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unix_jax.checkpoints.published_config import from_published, to_published
from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.records import Record, instructions_for
from unix_jax.data.samples import UnderstandingSamples
from unix_jax.errors import ConfigError
from unix_jax.instructions import DEFAULT, Instructions
from unix_jax.preprocessing.text import Tokenizer, prompt_split
from unix_jax.training.start import with_instructions

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests" / "golden" / "tiny" / "checkpoint"
CONFIG = UniXConfig.preset("tiny")
OWN = Instructions(("Both?", "Both."), ("Found?",), ("So?",))
RECORDS = [
    Record("both", b"x", findings="Clear.", impression="Normal."),
    Record("findings", b"x", findings="Clear.", impression=" "),
    Record("impression", b"x", impression="Normal."),
    Record("neither", b"x", answer="A text."),
    Record("own", b"x", findings="Clear.", prompt="Mine?"),
]


def test_the_words_of_the_sections_stand_in_capitals():
    lists = dataclasses.asdict(DEFAULT)
    assert {name: len(sentences) for name, sentences in lists.items()} == dict.fromkeys(lists, 5)
    for name, sentences in lists.items():
        assert len(set(sentences)) == 5
        for sentence in sentences:
            assert ("FINDINGS" in sentence) == ("findings" in name)
            assert ("IMPRESSION" in sentence) == ("impression" in name)
    assert "FINDINGS and IMPRESSION" in DEFAULT.default


def test_which_list_is_asked():
    asked = [instructions_for(record, OWN) for record in RECORDS]
    assert asked == [("Both?", "Both."), ("Found?",), ("So?",), ("Both?", "Both."), ("Mine?",)]


def samples(config, data=None):
    tokenizer = Tokenizer.from_directory(TINY, config.special_tokens)
    data = data or DataConfig(und_tokens=400)
    return UnderstandingSamples(RECORDS, tokenizer, config, data), tokenizer


@pytest.mark.parametrize("prompts", [(), ("Any?", "Any.")])
@pytest.mark.parametrize("instructions", [None, OWN])
def test_training_draws_from_the_fitting_list(prompts, instructions):
    config = dataclasses.replace(CONFIG, instructions=instructions)
    made, tokenizer = samples(config, DataConfig(und_tokens=400, prompts=prompts))
    for index, record in enumerate(RECORDS):
        fitting = instructions_for(record, instructions or DEFAULT)
        fitting = prompts if prompts and not record.prompt else fitting
        splits = {text: prompt_split(tokenizer.encode(text), config.special_tokens)
                  for text in fitting}  # fmt: skip
        met = []
        for epoch in range(40):
            sample = made.build(index, epoch)
            met.append(list(sample.splits[1].ids))
            assert sample.cost(config) == made.cost(index, epoch)
            assert sample.splits == made.build(index, epoch).splits
        assert sorted(map(tuple, splits.values())) == sorted({tuple(ids) for ids in met})


def test_a_checkpoint_carries_its_own():
    config = dataclasses.replace(CONFIG, instructions=OWN)
    assert UniXConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.asked == OWN
    published, vae = to_published(config)
    assert from_published(json.loads(json.dumps(published)), vae).instructions == OWN
    # Absent: the project's, and nothing is written.
    assert CONFIG.asked == DEFAULT
    assert "instructions" not in CONFIG.to_dict()
    assert "instructions" not in to_published(CONFIG)[0]
    assert UniXConfig.from_dict(CONFIG.to_dict() | {"instructions": None}) == CONFIG


def test_a_list_that_is_absent_is_the_projects():
    values = CONFIG.to_dict() | {"instructions": {"findings": ["F?"]}}
    assert UniXConfig.from_dict(values).asked == dataclasses.replace(DEFAULT, findings=("F?",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected a JSON object"),
        ("text", "expected a JSON object"),
        ({"finding": ["a"]}, "expected lists named .*found 'finding'"),
        ({"findings": "a"}, "findings: expected a list of texts, found 'a'"),
        ({"findings": []}, "findings: expected a list of texts, at least one"),
        ({"findings": ["a", " "]}, "findings: expected a list of texts"),
        ({"impression": [1]}, "impression: expected a list of texts"),
        ({"findings": None}, "findings: expected a list of texts"),
    ],
)
@pytest.mark.parametrize("form", ["own", "published"])
def test_broken_lists_are_refused(given, message, form):
    values = CONFIG.to_dict() if form == "own" else to_published(CONFIG)[0]
    read = UniXConfig.from_dict if form == "own" else from_published
    with pytest.raises(ConfigError, match=rf"config\.json: instructions.*{message}"):
        read(values | {"instructions": given})


def test_a_run_hands_on_what_it_taught():
    trained = with_instructions(CONFIG, "understanding", ())
    assert trained.instructions == DEFAULT
    assert with_instructions(trained, "understanding", ("A?", "B?")).instructions == (
        Instructions.same(("A?", "B?"))
    )
    own = dataclasses.replace(CONFIG, instructions=OWN)
    assert with_instructions(own, "understanding", ()).instructions == OWN
    assert with_instructions(own, "generation", ()).instructions == OWN
    assert with_instructions(CONFIG, "generation", ("A?",)).instructions is None


def test_the_bundled_model_is_asked_what_it_learned():
    values = json.loads((ROOT / "examples" / "nano" / "config.json").read_text())
    asked = UniXConfig.from_dict(values).asked
    assert asked.default == (
        "Describe this chest X-ray in a report with the sections FINDINGS and IMPRESSION."
    )
    # Each section has instructions of its own, which it follows.
    assert asked.findings[0] == "Describe this chest X-ray in a report with the section FINDINGS."


def test_reports_ask_the_checkpoints_default(monkeypatch):
    from unix_jax.inference import reports as module
    from unix_jax.inference.pipeline import UniXPipeline

    asked = []

    class Stop(Exception):
        pass

    def encode_prompts(self, prompts, rows, longest):
        asked.append(prompts)
        raise Stop

    monkeypatch.setattr(module.LoadedModel, "encode_prompts", encode_prompts)
    pipe = UniXPipeline.from_pretrained(TINY, compilation_cache=False)
    xray = Image.fromarray(np.zeros((20, 20), np.uint8))
    with pytest.raises(Stop):
        pipe.generate_report_ids(xray, max_new_tokens=4)
    assert asked == [DEFAULT.default]

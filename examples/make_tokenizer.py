"""Creates the nano model's tokenizer: a byte-level BPE over the texts of the bundled sample set.

    python examples/make_tokenizer.py examples/cxr examples/nano_tokenizer

The control tokens stand at the ids of the preset `nano`; ids between the last word piece and them
are free. Any text can be encoded: all 256 bytes are in the vocabulary.
"""

import dataclasses
import json
from pathlib import Path

import tokenizers
import tyro
from tokenizers import decoders, models, pre_tokenizers, trainers

from unix_jax.checkpoints.native import load_config
from unix_jax.config import UniXConfig
from unix_jax.data.records import captions_of, report_text
from unix_jax.data.sources import open_source
from unix_jax.storage.files import atomic_write

CONTROL = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "start_of_image": "<begin_of_image>",
    "end_of_image": "<end_of_image>",
}


@dataclasses.dataclass
class Arguments:
    """Where from and where to."""

    samples: tyro.conf.Positional[Path]
    """A directory in the manifest layout."""
    out: tyro.conf.Positional[Path]
    """Directory of the new tokenizer.json."""
    words: int = 1024
    """Maximum number of entries, including the 256 bytes."""


def main(a: Arguments) -> None:
    source = open_source(f"manifest:{a.samples}")
    # Those that the nano model was trained with: the file comes out as it lies in the repository.
    asked = load_config(Path(__file__).parent / "nano").asked
    texts = [asked.default, *asked.findings_and_impression]
    for i in range(len(source)):
        texts += [report_text(source[i]), *captions_of(source[i])]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=a.words,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    document = json.loads(trained.to_str())
    special = UniXConfig.preset("nano").special_tokens
    document["model"]["vocab"] |= {text: getattr(special, name) for name, text in CONTROL.items()}
    document["added_tokens"] = [
        {"id": getattr(special, name), "content": text, "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for name, text in CONTROL.items()
    ]  # fmt: skip
    with atomic_write(a.out / "tokenizer.json") as file:
        file.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{a.out}: {len(document['model']['vocab'])} entries")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))

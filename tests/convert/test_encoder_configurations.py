"""config.json of the encoders, fuzzed: sizes that fit each other, or one clear error."""

import json
import random
from pathlib import Path

import pytest

from unix_jax.checkpoints.chexbert_files import read_bert_config
from unix_jax.checkpoints.rad_dino_files import read_dinov2_config
from unix_jax.errors import UniXError

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny"
VALUES = (
    None, True, -1, 0, 3, 2**80, 1e400, 0.5, "x", "", [], [1], {}, {"a": 1}, float("nan"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "read"), [("chexbert", read_bert_config), ("rad_dino", read_dinov2_config)]
)
def test_a_result_or_a_unix_error(encoder, read):
    fields = json.loads((GOLDEN / encoder / "config.json").read_text())
    rng = random.Random(0)
    for _ in range(600):
        raw = dict(fields)
        for name in rng.sample(sorted(fields), rng.randint(1, 4)):
            if rng.random() < 0.3:
                del raw[name]
            else:
                raw[name] = rng.choice(VALUES)
        try:
            config = read(rng.choice([raw, raw, raw, list(raw), None]))
        except UniXError:
            continue
        assert config.hidden_size % config.num_heads == 0

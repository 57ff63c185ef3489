"""Drafts: n-grams, prompt lookup, and that no report depends on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.toy_pipelines import PROMPTS, SMALL, pictures, small_params, small_pipe
from unix_jax import UniXPipeline
from unix_jax.errors import PromptError
from unix_jax.inference import context as context_module
from unix_jax.inference import decoding, drafts
from unix_jax.inference.drafts import DRAFTED, Drafts, NGramDrafter, PromptDrafter
from unix_jax.preprocessing.ngrams import count_ids

BOS, EOS = SMALL.special_tokens.bos, SMALL.special_tokens.eos


def counted(sequences, order=4):
    return count_ids(sequences, "", order)


def propose(drafter, reports, prompts=None, buffer=32):
    """(drafted tokens, expected number of tokens) after the new tokens of each row."""
    tokens = np.full((len(reports), buffer), EOS, np.int32)
    for row, ids in enumerate(reports):
        tokens[row, : len(ids)] = ids
    count = jnp.array([len(ids) for ids in reports])
    history = np.full((len(reports), 8), -1, np.int32)
    for row, ids in enumerate(prompts or [[]] * len(reports)):
        if ids:
            history[row, -len(ids) :] = ids
    state = Drafts.create(jnp.asarray(history), DRAFTED)
    found = jax.jit(type(drafter).propose, static_argnames="bos")(
        drafter, state, jnp.asarray(tokens), count, bos=BOS
    )
    return np.asarray(found.tokens).tolist(), np.asarray(found.expected)


def test_ngrams_follow_the_longest_known_context():
    sequences = [
        [BOS, 1, 2, 3, 4, EOS], [BOS, 1, 2, 3, 4, EOS], [BOS, 9, 2, 3, 5, 6, EOS],
        [BOS, 9, 2, 3, 5, 6, EOS], [7, 7, 7, 7],
    ]  # fmt: skip
    drafter = NGramDrafter.create(counted(sequences))
    found, expected = propose(drafter, [[], [9, 2], [8, 3], [40], [7, 7, 7]])
    assert found[0][:5] == [1, 2, 3, 4, EOS]
    assert found[1][:4] == [3, 5, 6, EOS]  # 2, 3 alone is followed by either
    assert found[2][0] in (4, 5)
    assert found[3] == [-1] * DRAFTED
    assert found[4][:3] == [7, 7, 7]
    assert expected[3] == 1
    assert 1 < expected[2] < expected[0]


def test_a_table_of_many_contexts_loses_few():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 500, 40).tolist() for _ in range(60)]
    ngrams = counted(sequences, order=3)
    drafter = NGramDrafter.create(ngrams)
    longest = ngrams.parts[-1]
    found, _ = propose(drafter, longest.contexts.tolist())
    right = np.array(found)[:, 0] == longest.tokens
    assert right.mean() > 0.99


def test_prompt_lookup_copies_what_followed():
    reports = [[1, 2, 3, 4, 5, 9, 2, 3], [6, 5], [7, 8], [4]]
    prompts = [[], [], [5, 7, 8, 1, 2, 3], [BOS, 4, 4, 4]]
    found, expected = propose(PromptDrafter(), reports, prompts)
    assert found[0] == [4, 5, 9, 2, 3, -1, -1]
    assert found[1] == [-1] * DRAFTED
    assert found[2] == [1, 2, 3, BOS, 7, 8, -1]
    assert found[3] == [4, 4, BOS, 4, -1, -1, -1]
    assert expected[1] == 1
    assert (expected[[0, 2, 3]] > 2).all()


def test_trust_falls_while_drafts_are_wrong():
    state = Drafts.create(jnp.zeros((1, 0), jnp.int32), DRAFTED)
    drafter = NGramDrafter.create(counted([[BOS, *[3] * 12]] * 9))
    tokens, active = jnp.full((1, 32), 3), jnp.ones(1, bool)
    expected, propose = [], jax.jit(NGramDrafter.propose, static_argnames="bos")
    for actual in [9] * 12 + [3] * 20:
        state = propose(drafter, state, tokens, jnp.array([20]), bos=BOS)
        expected.append(float(state.expected[0]))
        state = state.checked(jnp.array([actual]), active)
    assert expected[0] > 5
    assert expected[12] < 1.5
    assert expected[-1] > 4
    assert not bool(drafter.worthwhile(state.replace(expected=jnp.array([1.0])), active))
    assert bool(drafter.worthwhile(state.replace(expected=jnp.array([7.0])), active))
    assert not bool(drafter.worthwhile(state, ~active))


# ------------------------------------------------------------------------- reports


def ids(pipe, images, prompts, **options):
    return pipe.generate_report_ids(images, prompts=prompts, **({"max_new_tokens": 40} | options))


def early_eos_params():
    params, vae = small_params()
    kernel = np.array(params["lm_head"]["kernel"])
    kernel[:, EOS] *= 3.0
    params["lm_head"]["kernel"] = jnp.asarray(kernel)
    return params, vae


@pytest.fixture(scope="module")
def plain():
    """The reports without drafts, each alone."""
    pipe = UniXPipeline(SMALL, *early_eos_params())
    images, prompts = pictures(5, seed=1), PROMPTS
    found = [ids(pipe, [i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert len({len(row) for row in found}) > 1
    return images, prompts, found


def drafting(sequences):
    return UniXPipeline(SMALL, *early_eos_params(), ngrams=counted(sequences))


@pytest.mark.extended
@pytest.mark.parametrize(("fit", "batch_size"), [("some", 2), ("misleading", None)])
def test_reports_do_not_depend_on_drafts(plain, fit, batch_size, monkeypatch):
    images, prompts, expected = plain
    monkeypatch.setattr(context_module, "_BUCKETS", (16, 32, 48, 64, 80, 128, 256))
    sequences = [[BOS, *row, EOS] for row in expected]
    if fit == "some":
        sequences = [[*row[: len(row) // 2], 5, 6] for row in sequences]
    if fit == "misleading":
        rng = np.random.default_rng(0)
        sequences = [[BOS, *rng.permutation(row).tolist()] for row in expected] * 9
    pipe = drafting(sequences)
    assert ids(pipe, images, prompts, draft="ngram", batch_size=batch_size) == expected
    # Every limit cuts the same report.
    cut = ids(pipe, images, prompts, draft="ngram", batch_size=batch_size, max_new_tokens=3)
    assert cut == [row[:3] for row in expected]


def test_prompt_lookup_does_not_change_reports(plain):
    images, prompts, expected = plain
    pipe = UniXPipeline(SMALL, *early_eos_params())
    asked = [[*prompt, *row] for prompt, row in zip(prompts, expected, strict=True)]
    assert ids(pipe, images, prompts, draft="prompt") == expected
    without = ids(pipe, images, asked)
    assert ids(pipe, images, asked, draft="prompt", batch_size=2) == without


def test_drafts_save_steps_and_stream_token_by_token(plain, monkeypatch):
    images, prompts, expected = plain
    longest = max(range(5), key=lambda i: len(expected[i]))
    pipe = drafting([[BOS, *expected[longest], EOS]] * 20)
    steps = []
    run = decoding.decode_until

    def watched(*arguments, **options):
        steps.append(int(arguments[3]))
        return run(*arguments, **options)

    monkeypatch.setattr(decoding, "decode_until", watched)
    seen = []
    options = {"draft": "ngram", "callback": seen.append}
    found = ids(pipe, [images[longest]], [prompts[longest]], **options)
    assert found == [expected[longest]]
    assert len(steps) < len(expected[longest]) / 2
    tokens = [step.token_ids[0] for step in seen[:-1]]
    assert [token for token in tokens if token != EOS] == expected[longest]
    assert [step.step for step in seen[:-1]] == list(range(1, len(tokens) + 1))


def test_drafts_that_cannot_be_used():
    pipe = small_pipe()
    with pytest.raises(PromptError, match="draft: ngram needs n-grams"):
        ids(pipe, pictures(1), [5], draft="ngram")
    with pytest.raises(PromptError, match=r"draft: expected one of .*found 'table'"):
        ids(pipe, pictures(1), [5], draft="table")
    for batch_size in (None, 1):
        with pytest.raises(PromptError, match="draft: expected none with a temperature above 0"):
            ids(pipe, pictures(2), [5], draft="prompt", temperature=0.5, batch_size=batch_size)
    request = pipe.report_request(pictures(1)[0], prompt=[5], temperature=1.0)
    with pytest.raises(PromptError, match="draft: expected none with a temperature"):
        list(pipe.iterate_reports([request], draft="prompt"))


def test_more_must_be_expected_of_a_longer_step_on_a_cpu():
    costs = [drafts.step_cost(rows, "cpu") for rows in (1, 2, 8, 64)]
    assert costs == sorted(costs)
    assert costs[0] < costs[2] == costs[3]
    assert drafts.step_cost(1, "tpu") == drafts.step_cost(64, "gpu") < costs[0]

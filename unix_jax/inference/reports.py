"""From pictures and prompts to the tokens of reports, a row each.

Letters: B rows, M tokens so far.
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from unix_jax import sharding
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, bucket, prefill
from unix_jax.inference.inputs import Images, Prompts, image_list, require, row_keys
from unix_jax.inference.loaded import LoadedModel
from unix_jax.layout import Split, TextSplit, VitSplit, lay_out, stream_lengths
from unix_jax.text import Tokenizer
from unix_jax.transforms import to_model_image

States = Iterator[tuple[int, np.ndarray]]


def decode_reports(
    loaded: LoadedModel,
    images: Images,
    prompts: Prompts | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | Sequence[int],
    stride: int | None,
) -> States:
    """Yields (rows, token ids so far [rows, M]) every `stride` tokens, or when a cache is full.

    A finished row is filled with eos. Arguments and errors are those of
    `UniXPipeline.generate_report`.
    """
    config = loaded.config
    limit_positions = config.decoder.max_position_embeddings
    require(max_new_tokens >= 1, "max_new_tokens", "at least 1", max_new_tokens)
    require(temperature >= 0, "temperature", "at least 0", temperature)
    require(0 < top_p <= 1, "top_p", "a number in (0, 1]", top_p)
    pictures = image_list(images)
    rows = len(pictures)
    longest = limit_positions - max_new_tokens - 2
    require(longest >= 2, "max_new_tokens", f"at most {limit_positions - 4}", max_new_tokens)
    texts = loaded.encode_prompts(
        config.asked.default if prompts is None else prompts, rows, longest
    )
    keys = row_keys(seed, rows)
    pixels = np.stack([to_model_image(p, config.vision.image_size) for p in pictures])
    texts, keys, pixels = loaded.whole_shards(texts, keys, pixels)
    samples: list[list[list[Split]]] = [[[VitSplit(), TextSplit(ids)]] for ids in texts]
    length = bucket(max(stream_lengths(row, config)[0] for row in samples))
    layout = lay_out(samples, config, und_length=length)
    buffer = -(-max_new_tokens // 64) * 64
    with sharding.use_mesh(loaded.mesh):
        batch = loaded.place(as_batch(layout, pixels[:, None]))
        cache, _ = prefill(loaded.model, loaded.params, batch, bucket(length + 1))
        special = config.special_tokens
        state = decoding.start(
            cache, loaded.place(layout.next_position), special.bos, special.eos, buffer
        )
        keys = loaded.place(keys)
    step = 0
    while step < max_new_tokens:
        room = state.cache.capacity - length - step
        if room == 0:
            with sharding.use_mesh(loaded.mesh):
                state = decoding.grow(state, bucket(state.cache.capacity + 1))
            continue
        limit = min(max_new_tokens, step + min(room, stride or room))
        with sharding.use_mesh(loaded.mesh):
            state = decoding.decode_until(
                loaded.model,
                loaded.params,
                state,
                jnp.int32(limit),
                keys,
                jnp.float32(temperature or 1.0),
                jnp.float32(top_p),
                greedy=temperature == 0,
            )
        step = int(state.step)
        yield rows, np.asarray(state.tokens)[:, :step]
        if bool(np.asarray(state.done)[:rows].all()):
            return


def last_rows(states: States, eos: int) -> list[list[int]]:
    """The finished rows: ids up to the eos, without it."""
    rows, tokens = 0, np.zeros((0, 0), np.int32)
    for rows, tokens in states:  # noqa: B007
        pass
    return [_until(row, eos) for row in tokens[:rows]]


def stream_text(tokenizer: Tokenizer, states: States) -> Iterator[list[str]]:
    """The new text of every row at each state; joined, a row's pieces are its report."""
    streams = None
    done = 0
    for rows, tokens in states:
        if streams is None:
            streams = [tokenizer.stream() for _ in range(rows)]
        new, done = tokens[:rows, done:], tokens.shape[1]
        # The stream drops control tokens, the eos that fills a finished row among them.
        yield [
            "".join(stream.push(token) for token in row)
            for stream, row in zip(streams, new, strict=True)
        ]
    yield [stream.flush() for stream in streams or []]


def _until(row: np.ndarray, eos: int) -> list[int]:
    ends = np.flatnonzero(row == eos)
    return row[: ends[0] if len(ends) else None].tolist()

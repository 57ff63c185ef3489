"""From pictures and prompts to the tokens of reports, a row each.

Letters: B rows, M tokens so far; pixels are [B, images of a row, H, W, 3].
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from unix_jax import sharding
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, bucket, finite_rows, prefill, require_finite
from unix_jax.inference.inputs import (
    TINY,
    ImageRows,
    Prompts,
    choice,
    image_rows,
    number,
    row_keys,
    whole,
)
from unix_jax.inference.loaded import LoadedModel
from unix_jax.preprocessing.layout import Split, TextSplit, VitSplit, lay_out, stream_lengths
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import RESIZES, Resize, to_model_image

States = Iterator[tuple[int, np.ndarray]]


def decode_reports(
    loaded: LoadedModel,
    images: ImageRows,
    prompts: Prompts | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | Sequence[int],
    stride: int | None,
    resize: Resize = "letterbox",
) -> States:
    """Yields (rows, token ids so far [rows, M]) every `stride` tokens, or when a cache is full.

    A finished row is filled with eos. Arguments and errors are those of
    `UniXPipeline.generate_report`; they are checked by the call itself, before the first item is
    asked for.

    Raises:
      NonFiniteError: a context or logits that are NaN or infinite.
    """
    config = loaded.config
    positions = config.decoder.max_position_embeddings
    most = positions - 4
    expected = f"an integer from 1 to {most} ({positions} positions)"
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 1, most, expected)
    temperature = number("temperature", temperature, "a finite number of at least 0", 0)
    top_p = number("top_p", top_p, "a number in (0, 1]", TINY, 1)
    choice("resize", resize, RESIZES)
    pictures = image_rows(images)
    rows = len(pictures)
    most_images = max(len(row) for row in pictures)
    # An image takes one position, and the report's bos another.
    longest = positions - max_new_tokens - 1 - most_images
    texts = loaded.encode_prompts(
        config.asked.default if prompts is None else prompts, rows, longest
    )
    keys = row_keys(seed, rows)
    side = config.vision.image_size
    # Rows of fewer images have zeros that no token refers to.
    pixels = np.zeros((rows, most_images, side, side, 3), np.float32)
    for row, found in enumerate(pictures):
        for i, picture in enumerate(found):
            pixels[row, i] = to_model_image(picture, side, resize)
    counts = [len(found) for found in pictures]
    return _decode(loaded, texts, counts, keys, pixels, max_new_tokens, temperature, top_p, stride)


def _decode(
    loaded: LoadedModel,
    texts: list[list[int]],
    counts: list[int],
    keys: Any,
    pixels: np.ndarray,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    stride: int | None,
) -> States:
    config, rows = loaded.config, len(texts)
    texts, counts, keys, pixels = loaded.whole_shards(texts, counts, keys, pixels)
    samples: list[list[list[Split]]] = [
        [[*(VitSplit() for _ in range(count)), TextSplit(ids)]]
        for ids, count in zip(texts, counts, strict=True)
    ]
    length = bucket(max(stream_lengths(row, config)[0] for row in samples))
    layout = lay_out(samples, config, und_length=length)
    buffer = -(-max_new_tokens // 64) * 64
    with sharding.use_mesh(loaded.mesh):
        batch = loaded.place(as_batch(layout, pixels))  # type: ignore[arg-type]
        cache, _ = prefill(loaded.model, loaded.params, batch, bucket(length + 1))
        context_finite = finite_rows(cache)
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
        # The loop has ended: these are read without another wait.
        require_finite(
            np.asarray(context_finite)[:rows],
            "images",
            "keys or values of the context (image and prompt)",
        )
        broken = np.asarray(state.non_finite_step)[:rows]
        first = broken[broken >= 0].min(initial=step) + 1
        require_finite(broken < 0, "images", f"logits, first of new token {first},")
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

"""Tokens of reports, one row each, from images and prompts.

Letters: B rows, M tokens so far; pixels are [B, images of a row, H, W, 3].
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from unix_jax import sharding
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, bucket, finite_rows, prefill, require_finite
from unix_jax.inference.inputs import ImageRows, Prompts, image_rows, row_keys, row_seeds
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.results import ReportResult, ReportStep
from unix_jax.inference.settings import ReportSettings
from unix_jax.preprocessing.layout import Split, TextSplit, VitSplit, lay_out, stream_lengths
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import to_model_image

States = Iterator[tuple[int, np.ndarray]]


def decode_reports(
    loaded: LoadedModel,
    images: ImageRows,
    prompts: Prompts | None,
    settings: ReportSettings,
    seed: int | Sequence[int],
    stride: int | None,
) -> tuple[list[int], States]:
    """Returns (the seed of each row, states).

    Each state is (number of rows, token ids so far [rows, M]), every `stride` tokens, or when a
    cache is full. A finished row is filled with eos. Arguments and errors are those of
    `UniXPipeline.generate_report`. They are checked by the call itself, before the first state is
    requested.

    Raises:
      NonFiniteError: a context or logits that are NaN or infinite.
    """
    config = loaded.config
    settings = settings.checked(config)
    found = image_rows(images)
    rows = len(found)
    most_images = max(len(row) for row in found)
    longest = _longest_prompt(loaded, settings.max_new_tokens, most_images)
    texts = loaded.encode_prompts(
        config.asked.default if prompts is None else prompts, rows, longest
    )
    seeds = row_seeds(seed, rows)
    side = config.vision.image_size
    # Rows with fewer images have zeros that no token refers to.
    pixels = np.zeros((rows, most_images, side, side, 3), np.float32)
    for row, of_row in enumerate(found):
        for i, image in enumerate(of_row):
            pixels[row, i] = to_model_image(image, side, settings.resize)
    counts = [len(row) for row in found]
    return seeds, _decode(loaded, texts, counts, row_keys(seeds), pixels, settings, stride)


def context_tokens(loaded: LoadedModel, prompt: str, images: int, settings: ReportSettings) -> int:
    """Number of tokens of a report's images and its prompt.

    Raises:
      PromptError: a prompt that cannot be used, or is too long.
    """
    longest = _longest_prompt(loaded, settings.max_new_tokens, images)
    (ids,) = loaded.encode_prompts([prompt], 1, longest)
    return stream_lengths([[*[VitSplit()] * images, TextSplit(ids)]], loaded.config)[0]


def _longest_prompt(loaded: LoadedModel, new_tokens: int, images: int) -> int:
    # An image occupies one position, and the report's bos another.
    return loaded.config.decoder.max_position_embeddings - new_tokens - 1 - images


def compile_reports(loaded: LoadedModel, rows: int, settings: ReportSettings) -> None:
    """Compiles the programs that `rows` reports of one image with the default prompt need.

    The decoding loop has a program for each capacity of the cache up to `max_new_tokens`.
    """
    config = loaded.config
    settings = settings.checked(config)
    prompt, side = config.asked.default, config.vision.image_size
    longest = _longest_prompt(loaded, settings.max_new_tokens, 1)
    texts = loaded.encode_prompts(prompt, rows, longest)
    pixels = np.zeros((rows, 1, side, side, 3), np.float32)
    texts, counts, keys, pixels = loaded.whole_shards(
        texts, [1] * rows, row_keys([0] * rows), pixels
    )
    state, length, _ = _start(loaded, texts, counts, pixels, settings.max_new_tokens)
    # The loop ends at once when all rows are finished.
    state = state.replace(done=jnp.ones_like(state.done))  # type: ignore[attr-defined]
    keys = loaded.place(keys)
    while True:
        state = _advance(loaded, state, 0, keys, settings)
        if state.cache.capacity >= length + settings.max_new_tokens:
            return
        state = _grow(loaded, state)


def _decode(
    loaded: LoadedModel,
    texts: list[list[int]],
    counts: list[int],
    keys: Any,
    pixels: np.ndarray,
    settings: ReportSettings,
    stride: int | None,
) -> States:
    rows, most = len(texts), settings.max_new_tokens
    texts, counts, keys, pixels = loaded.whole_shards(texts, counts, keys, pixels)
    state, length, context_finite = _start(loaded, texts, counts, pixels, most)
    keys = loaded.place(keys)
    step = 0
    while step < most:
        room = state.cache.capacity - length - step
        if room == 0:
            state = _grow(loaded, state)
            continue
        state = _advance(loaded, state, min(most, step + min(room, stride or room)), keys, settings)
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


def _start(
    loaded: LoadedModel,
    texts: list[list[int]],
    counts: list[int],
    pixels: np.ndarray,
    new_tokens: int,
) -> tuple[decoding.DecodeState, int, Any]:
    """(the state before the first token, slots of the context, whether each row is finite)."""
    config = loaded.config
    samples: list[list[list[Split]]] = [
        [[*(VitSplit() for _ in range(count)), TextSplit(ids)]]
        for ids, count in zip(texts, counts, strict=True)
    ]
    length = bucket(max(stream_lengths(row, config)[0] for row in samples))
    layout = lay_out(samples, config, und_length=length)
    buffer = -(-new_tokens // 64) * 64
    special = config.special_tokens
    with sharding.use_mesh(loaded.mesh):
        batch = loaded.place(as_batch(layout, pixels))  # type: ignore[arg-type]
        cache, _ = prefill(loaded.model, loaded.params, batch, bucket(length + 1))
        context_finite = finite_rows(cache)
        state = decoding.start(
            cache, loaded.place(layout.next_position), special.bos, special.eos, buffer
        )
    return state, length, context_finite


def _grow(loaded: LoadedModel, state: decoding.DecodeState) -> decoding.DecodeState:
    with sharding.use_mesh(loaded.mesh):
        return decoding.grow(state, bucket(state.cache.capacity + 1))


def _advance(
    loaded: LoadedModel,
    state: decoding.DecodeState,
    limit: int,
    keys: Any,
    settings: ReportSettings,
) -> decoding.DecodeState:
    with sharding.use_mesh(loaded.mesh):
        return decoding.decode_until(
            loaded.model,
            loaded.params,
            state,
            jnp.int32(limit),
            keys,
            jnp.float32(settings.temperature or 1.0),
            jnp.float32(settings.top_p),
            greedy=settings.temperature == 0,
        )


def results(
    tokenizer: Tokenizer | None, seeds: Sequence[int], tokens: np.ndarray, eos: int
) -> list[ReportResult]:
    """One result per row of the last state's tokens [rows, M]."""
    found = []
    for seed, row in zip(seeds, tokens, strict=True):
        ends = np.flatnonzero(row == eos)
        ids = row[: ends[0] if len(ends) else None].tolist()
        text = None if tokenizer is None else tokenizer.decode(ids)
        found.append(ReportResult(text, ids, seed, "eos" if len(ends) else "length"))
    return found


def steps(
    tokenizer: Tokenizer | None, states: States, total: int, eos: int
) -> Iterator[tuple[ReportStep, np.ndarray]]:
    """Yields (step, tokens so far [rows, M]) for each new token of `states`, whose stride is 1.

    A last step without new tokens has the remaining text, if a character was incomplete.
    """
    streams: list[Any] = []
    tokens = np.zeros((0, 0), np.int32)
    for rows, tokens in states:
        if tokenizer is not None and not streams:
            streams = [tokenizer.stream() for _ in range(rows)]
        tokens = tokens[:rows]
        new = tokens[:, -1].tolist()
        # The stream drops control tokens, the eos that fills a finished row among them.
        pieces = [stream.push(token) for stream, token in zip(streams, new, strict=bool(streams))]
        over = (tokens[:, :-1] == eos).any(axis=1)
        ids = [None if ended else token for ended, token in zip(over, new, strict=True)]
        yield ReportStep(tokens.shape[1], total, ids, pieces or [""] * rows), tokens
    rest = [stream.flush() for stream in streams] or [""] * len(tokens)
    yield ReportStep(tokens.shape[1], total, [None] * len(tokens), rest), tokens

"""Tokens of reports, one row each, from images and prompts.

A fixed number of rows is decoded together. A row whose report has ended is given the next request
at once: its context is prefilled into the row, and the other rows continue.

Letters: B rows, M tokens so far; pixels are [B, images of a row, H, W, 3].
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from unix_jax import sharding
from unix_jax.config import UniXConfig
from unix_jax.errors import PromptError
from unix_jax.inference import decoding
from unix_jax.inference.context import as_batch, bucket, finite_rows, prefill, require_finite
from unix_jax.inference.drafts import DRAFTED, Drafter, PromptDrafter
from unix_jax.inference.inputs import Prompts, row_keys, row_seeds
from unix_jax.inference.loaded import LoadedModel
from unix_jax.inference.results import FinishReason, ReportResult, ReportStep
from unix_jax.inference.settings import ReportSettings
from unix_jax.preprocessing.layout import Split, TextSplit, VitSplit, lay_out, stream_lengths
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import to_model_image

# Part of the rows that may be idle until their replacements are prefilled together.
_IDLE = 8
# Slots that a smaller ring must have left, so that it does not grow again at once.
_SPARE = 16
_WITHOUT_LIMIT = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class ReportRequest:
    """A report to generate, whose arguments are checked; see `UniXPipeline.report_request`.

    Attributes:
      text: token ids of the prompt's split, including bos and eos.
      pixels: the images, normalised for the ViT [I, H, W, 3].
      seed: random seed of the sampling.
      settings: settings of this report.
    """

    text: Sequence[int] = dataclasses.field(repr=False)
    pixels: Float[np.ndarray, "I H W 3"] = dataclasses.field(repr=False)
    seed: int
    settings: ReportSettings


class Rows(NamedTuple):
    """The rows after some steps.

    requests: each row's request and its index; None for an idle row. tokens [B, M]: its new tokens,
    filled with eos. counts [B]: number of new tokens. done [B]: whether the report has ended.
    """

    requests: list[tuple[int, ReportRequest] | None]
    tokens: Int[np.ndarray, "B M"]
    counts: Int[np.ndarray, " B"]
    done: Bool[np.ndarray, " B"]


def report_requests(
    loaded: LoadedModel,
    rows: list[list[Image.Image]],
    prompts: Prompts | None,
    settings: ReportSettings,
    seed: int | Sequence[int],
) -> tuple[list[int], Iterator[ReportRequest]]:
    """Returns (the seed of each row, its request).

    `rows` are those of `image_rows`. The other arguments and the errors are those of
    `UniXPipeline.generate_report`. They are checked by the call itself. The model's input is made
    from a row's images when its request is taken.
    """
    config = loaded.config
    settings = settings.checked(config)
    most_images = max(len(row) for row in rows)
    longest = _longest_prompt(loaded, settings.max_new_tokens, most_images)
    prompts = config.asked.default if prompts is None else prompts
    texts = loaded.encode_prompts(prompts, len(rows), longest)
    seeds = row_seeds(seed, len(rows))
    return seeds, (
        ReportRequest(text, _pixels(loaded, row, settings), row_seed, settings)
        for text, row, row_seed in zip(texts, rows, seeds, strict=True)
    )


def context_tokens(loaded: LoadedModel, prompt: str, images: int, settings: ReportSettings) -> int:
    """Number of tokens of a report's images and its prompt.

    Raises:
      PromptError: a prompt that cannot be used, or is too long.
    """
    longest = _longest_prompt(loaded, settings.max_new_tokens, images)
    (ids,) = loaded.encode_prompts([prompt], 1, longest)
    return stream_lengths([[*[VitSplit()] * images, TextSplit(ids)]], loaded.config)[0]


def compile_reports(
    loaded: LoadedModel, rows: int, settings: ReportSettings, *, together: bool = True
) -> None:
    """Compiles the greedy programs of `decode_reports` in `rows` rows, with the default prompt.

    The decoding loop has a program for each size of the ring up to `max_new_tokens`.
    """
    shards = 1 if loaded.mesh is None else sharding.batch_shards(loaded.mesh)
    rows = -(-rows // shards) * shards
    group = rows if together else _group_size(rows, shards)
    special, side = loaded.config.special_tokens, loaded.config.vision.image_size
    gray = Image.new("L", (side, side), 128)
    longest = _longest_prompt(loaded, settings.max_new_tokens, 1)
    (text,) = loaded.encode_prompts(loaded.config.asked.default, 1, longest)
    request = ReportRequest(text, _pixels(loaded, [gray], settings), 0, settings)
    shape = _Shape().fitting(loaded.config, [request], None)
    ends = {"bos": special.bos, "eos": special.eos}
    new = _prefilled(loaded, [request] * group, group, rows, shape)
    with sharding.use_mesh(loaded.mesh):
        finite_rows(new.cache)
        # No row is used: the loop ends before its first step.
        state = _started(new, 0, rows, shape, 0, **ends)
        while True:
            decoding.slots_needed(state)
            if not together:
                # With another group in none of the rows.
                new = _prefilled(loaded, [request] * group, group, rows, shape)
                state = decoding.replace_rows(
                    state, np.zeros(group, np.int32), np.int32(0), new, **ends
                )
            state = decoding.decode_until(
                loaded.model,
                loaded.params,
                state,
                np.int32(1),
                np.int32(rows),
                None,  # as `decode_reports` calls it: an argument left out is another program
                choice="greedy",
            )
            if shape.ring >= settings.max_new_tokens:
                return
            shape = shape.with_slots_for(shape.ring + 1)
            state = _resized(state, shape, special.eos)


def _longest_prompt(loaded: LoadedModel, new_tokens: int, images: int) -> int:
    # An image occupies one position, and the report's bos another.
    return loaded.config.decoder.max_position_embeddings - new_tokens - 1 - images


def _pixels(
    loaded: LoadedModel, images: Sequence[Image.Image], settings: ReportSettings
) -> Float[np.ndarray, "I H W 3"]:
    side = loaded.config.vision.image_size
    return np.stack([to_model_image(image, side, settings.resize) for image in images])


def decode_reports(
    loaded: LoadedModel,
    requests: Iterable[ReportRequest | None],
    rows: int,
    *,
    together: bool = False,
    stride: int | Callable[[], int] | None = None,
    drafter: Drafter | None = None,
    new_tokens: int = 0,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Rows]:
    """Decodes the requests in `rows` rows, or in a few more if the mesh requires it.

    Yields the rows every `stride` steps; without it when rows have ended, or when the cache is
    full. A row whose report has ended is given to another request after it was yielded. Requests
    are taken when they are needed, a few in advance. A `stride` that is a function is called before
    each run of steps.

    Args:
      requests: the requests. None instead of one: none is waiting, and the next one is asked for
        after the next step. Without an active row, the call ends there.
      rows: number of rows.
      together: whether all requests, of which there are at most `rows`, begin together. Otherwise
        rows are prefilled in small groups, whose shape is compiled once.
      drafter: drafts the next tokens, so that a step may write several; see
        `unix_jax.inference.drafts`.
      new_tokens: least number of new tokens that a row has space for. The compiled programs depend
        on the space, so with the largest number of all requests they do not depend on each one's.
      wanted: whether anybody still waits for the report of request i. It is called after each
        yield; a row whose report is not wanted is given to another request.

    Raises:
      PromptError: a drafter, and a request with a temperature above 0.
      NonFiniteError: a context or logits that are NaN or infinite; it names images[i] of request i.
    """
    shards = 1 if loaded.mesh is None else sharding.batch_shards(loaded.mesh)
    rows = -(-rows // shards) * shards
    group = rows if together else _group_size(rows, shards)
    special = loaded.config.special_tokens
    ends = {"bos": special.bos, "eos": special.eos}
    source = _Source(iter(requests))
    waiting = source.take(rows)
    held: list[tuple[int, ReportRequest] | None] = [None] * rows
    state: decoding.DecodeState | None = None
    shape = _Shape(buffer=_buffer(new_tokens))
    while True:
        finite: list[tuple[list[int], Array]] = []
        idle = [row for row in range(rows) if held[row] is None]
        while waiting and len(idle) >= group:
            taken, waiting = waiting[:group], waiting[group:]
            into, idle = idle[: len(taken)], idle[group:]
            chosen = [request for _, request in taken]
            if drafter is not None:
                require_greedy(chosen)
            shape = shape.fitting(loaded.config, chosen, drafter)
            new = _prefilled(loaded, chosen, group, rows, shape)
            with sharding.use_mesh(loaded.mesh):
                finite.append(([index for index, _ in taken], finite_rows(new.cache)))
                if state is None:
                    drafted = 0 if drafter is None else DRAFTED
                    state = _started(new, len(taken), rows, shape, drafted, **ends)
                else:
                    state = _resized(state, shape, special.eos)
                    filled = np.asarray(into + into[-1:] * (group - len(into)), np.int32)
                    state = decoding.replace_rows(
                        state,
                        filled,
                        np.int32(len(into)),
                        new,
                        **ends,
                    )
            for row, item in zip(into, taken, strict=True):
                held[row] = item
        active = [(row, *item) for row, item in enumerate(held) if item is not None]
        if state is None or not active:
            return
        ended = rows
        if waiting:
            ended = group  # fewer are idle
        elif source.open:
            ended = min(rows - len(active) + group, rows)
        with sharding.use_mesh(loaded.mesh):
            shape = shape.with_slots_for(int(decoding.slots_needed(state)))
            state = _resized(state, shape, special.eos)
            state = decoding.decode_until(
                loaded.model,
                loaded.params,
                state,
                np.int32((stride() if callable(stride) else stride) or _WITHOUT_LIMIT),
                np.int32(ended),
                drafter,
                choice=_choice([request.settings for _, _, request in active]),
            )
        # Images of further requests are prepared while the device decodes.
        waiting = waiting + source.take(max(0, 2 * group - len(waiting)))
        for members, of_contexts in finite:
            require_finite(
                np.asarray(of_contexts)[: len(members)],
                "images",
                "keys or values of the context (image and prompt)",
                members,
            )
        at, members = [row for row, _, _ in active], [index for _, index, _ in active]
        broken = np.asarray(state.non_finite_step)[at]
        first = broken[broken >= 0].min(initial=_WITHOUT_LIMIT) + 1
        require_finite(broken < 0, "images", f"logits, first of new token {first},", members)
        done = np.asarray(state.done)
        yield Rows(held, np.asarray(state.tokens), np.asarray(state.count), done)
        left = [row for row, index, _ in active if wanted is not None and not wanted(index)]
        if not done[left].all():
            done = done.copy()
            done[left] = True
            # Placed as it was, or every program would be compiled again.
            where = state.done.sharding if state.done.committed else None
            placed = jax.device_put(done, where)
            state = state.replace(done=placed)  # type: ignore[union-attr]
        held = [None if done[row] else item for row, item in enumerate(held)]


@dataclasses.dataclass
class _Source:
    """Requests with their numbers, as long as there may be more of them (`open`)."""

    requests: Iterator[ReportRequest | None]
    taken: int = 0
    open: bool = True

    def take(self, count: int) -> list[tuple[int, ReportRequest]]:
        """The next ones, at most `count`; fewer if no more are waiting."""
        found: list[tuple[int, ReportRequest]] = []
        while len(found) < count:
            request = next(self.requests, self)
            if request is self:
                self.open = False
            if request is self or request is None:
                break
            found.append((self.taken, request))  # type: ignore[arg-type]
            self.taken += 1
        return found


def require_greedy(requests: Iterable[ReportRequest]) -> None:
    """Raises PromptError unless every request is decoded greedily, which drafts require."""
    for request in requests:
        if request.settings.temperature > 0:
            raise PromptError(
                "draft: expected none with a temperature above 0, because a drafted token is only "
                f"verified against the most probable one, found {request.settings.temperature:g}"
            )


def _group_size(rows: int, shards: int) -> int:
    """Number of rows that are prefilled together: a multiple of the shards, a divisor of `rows`."""
    most = max(rows // _IDLE, shards)
    return max(size for size in range(shards, most + 1, shards) if rows % size == 0)


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Sizes that compiled programs depend on; all but the ring only increase during a run.

    context: slots of a context. images: images of a row. buffer: new tokens of a row. ring: slots
    for the tokens of all rows; 0 until the first prefill. prompt: tokens of a prompt, if the
    drafter reads it.
    """

    context: int = 0
    images: int = 0
    buffer: int = 0
    ring: int = 0
    prompt: int = 0

    def fitting(
        self, config: UniXConfig, requests: Sequence[ReportRequest], drafter: Drafter | None
    ) -> "_Shape":
        """The same with space for the requests."""
        lengths = [stream_lengths([_splits(request)], config)[0] for request in requests]
        context = max(self.context, bucket(max(lengths)))
        most = max(request.settings.max_new_tokens for request in requests)
        prompt = 0
        if isinstance(drafter, PromptDrafter):
            prompt = bucket(max(len(request.text) for request in requests))
        return _Shape(
            context,
            max(self.images, *(len(request.pixels) for request in requests)),
            max(self.buffer, _buffer(most)),
            self.ring or bucket(context + 1 + DRAFTED) - context,
            max(self.prompt, prompt),
        )

    def with_slots_for(self, needed: int) -> "_Shape":
        """The same with a ring that has `needed` slots.

        The time of a step depends on the ring, so after the end of a long report it is smaller.
        """
        if needed > self.ring:
            ring = bucket(self.context + needed) - self.context
        else:
            ring = min(bucket(self.context + needed + _SPARE) - self.context, self.ring)
        return dataclasses.replace(self, ring=ring)


def _buffer(new_tokens: int) -> int:
    return -(-new_tokens // 64) * 64


def _splits(request: ReportRequest) -> list[Split]:
    return [*(VitSplit() for _ in request.pixels), TextSplit(request.text)]


def _prefilled(
    loaded: LoadedModel, requests: Sequence[ReportRequest], group: int, rows: int, shape: _Shape
) -> decoding.NewRows:
    """The contexts of the requests, the last of which is repeated to fill the group."""
    requests = [*requests, *[requests[-1]] * (group - len(requests))]
    layout = lay_out([[_splits(request)] for request in requests], loaded.config, shape.context)
    # Rows with fewer images have zeros that no token refers to.
    pixels = np.zeros((group, shape.images, *requests[0].pixels.shape[1:]), np.float32)
    for row, request in enumerate(requests):
        pixels[row, : len(request.pixels)] = request.pixels
    settings = [request.settings for request in requests]
    prompts = np.full((group, shape.prompt), -1, np.int32)
    if shape.prompt:
        for row, request in enumerate(requests):
            prompts[row, -len(request.text) :] = request.text
    # A group that is a whole batch needs no copy if it has the slots of the ring already.
    capacity = shape.context + (shape.ring if group == rows else 0)
    with sharding.use_mesh(loaded.mesh):
        batch = loaded.place(as_batch(layout, pixels))  # type: ignore[arg-type]
        cache, _ = prefill(loaded.model, loaded.params, batch, capacity)
        return decoding.NewRows(
            cache,
            *loaded.place(
                (
                    layout.next_position,
                    row_keys([request.seed for request in requests]),
                    np.asarray([x.max_new_tokens for x in settings], np.int32),
                    np.asarray([x.temperature for x in settings], np.float32),
                    np.asarray([x.top_p for x in settings], np.float32),
                    prompts,
                )
            ),
        )


def _started(
    new: decoding.NewRows,
    used: int,
    rows: int,
    shape: _Shape,
    drafted: int,
    *,
    bos: int,
    eos: int,
) -> decoding.DecodeState:
    """The first group of rows; idle rows are copies of it whose reports have ended."""
    group = new.position.shape[0]
    copies = rows // group
    if copies > 1:
        cache = new.cache.repeat([new.cache.valid] * copies)
        rest = jax.tree.map(lambda x: jnp.concatenate([x] * copies), new.replace(cache=None))  # type: ignore[attr-defined]
        new = rest.replace(cache=cache)
    state = decoding.start(
        new, used, context=shape.context, bos=bos, eos=eos, buffer=shape.buffer, drafted=drafted
    )
    return _resized(state, shape, eos)


def _resized(state: decoding.DecodeState, shape: _Shape, eos: int) -> decoding.DecodeState:
    """The state with the sizes of `shape`."""
    prompt = 0 if state.drafts is None else state.drafts.prompts.shape[1]
    sizes = (state.context, state.ring, state.tokens.shape[1], prompt)
    if sizes == (shape.context, shape.ring, shape.buffer, shape.prompt):
        return state
    return decoding.resize(
        state,
        context=shape.context,
        ring=shape.ring,
        buffer=shape.buffer,
        prompt=shape.prompt,
        eos=eos,
    )


def _choice(settings: Sequence[ReportSettings]) -> decoding.Choice:
    """The fastest program that supports the settings of all rows."""
    if all(x.temperature == 0 for x in settings):
        return "greedy"
    return "sample" if all(x.temperature == 0 or x.top_p == 1 for x in settings) else "nucleus"


def ended_reports(
    rows: Rows, tokenizer: Tokenizer | None, eos: int
) -> list[tuple[int, ReportResult]]:
    """(index of the request, its result) of each report that has ended in these steps."""
    found = []
    for item, tokens, count, done in zip(*rows, strict=True):
        if item is None or not done:
            continue
        index, request = item
        ids = tokens[:count].tolist()
        complete = eos in ids
        ids = ids[: ids.index(eos)] if complete else ids
        text = None if tokenizer is None else tokenizer.decode(ids)
        reason: FinishReason = "eos" if complete else "length"
        found.append((index, ReportResult(text, ids, request.seed, reason)))
    return found


class ReportStream:
    """The steps of reports that are decoded together from the first token on."""

    def __init__(self, tokenizer: Tokenizer | None, rows: int, total: int, eos: int) -> None:
        """`rows` reports of at most `total` tokens."""
        self._streams = [] if tokenizer is None else [tokenizer.stream() for _ in range(rows)]
        self._rows, self._total, self._eos, self._step = rows, total, eos, 0

    def push(self, rows: Rows) -> Iterator[ReportStep]:
        """The steps that every row has reached or ended before."""
        tokens, counts, done = (x[: self._rows] for x in rows[1:])
        reached = int(counts.max() if done.all() else counts[~done].min())
        for step in range(self._step, reached):
            new = tokens[:, step].tolist()
            # The stream drops control tokens, the eos that fills a finished row among them.
            pieces = [s.push(token) for s, token in zip(self._streams, new, strict=False)]
            over = (tokens[:, :step] == self._eos).any(axis=1)
            ids = [None if ended else token for ended, token in zip(over, new, strict=True)]
            self._step = step + 1
            yield ReportStep(self._step, self._total, ids, pieces or [""] * self._rows)

    def flush(self) -> ReportStep:
        """A last step without new tokens: the remaining text, if a character was incomplete."""
        rest = [stream.flush() for stream in self._streams] or [""] * self._rows
        return ReportStep(self._step, self._total, [None] * self._rows, rest)

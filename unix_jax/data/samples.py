"""Training samples: ordered splits with their losses, and their cost, known without decoding.

Every choice (prompt, caption, dropped text) is a function of (seed, epoch, index) alone, so that
all processes plan the same rows from lengths and each builds its own rows later.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from unix_jax.config import UniXConfig
from unix_jax.data.augmentation import augment
from unix_jax.data.config import DataConfig
from unix_jax.data.mixture import MixedRecords, Part, located, part_seed
from unix_jax.data.model_images import Change, unchanged, vae_pixels, vit_pixels
from unix_jax.data.moments import Moments
from unix_jax.data.records import (
    Record,
    RecordSource,
    Turn,
    captions_of,
    images_read_ahead,
    instructions_for,
    report_text,
)
from unix_jax.errors import UniXError
from unix_jax.instructions import Instructions
from unix_jax.preprocessing.layout import Split, TextSplit, VaeSplit, VitSplit, stream_lengths
from unix_jax.preprocessing.text import Tokenizer, prompt_split

LoadImage = Callable[[], np.ndarray]

# Separates the random numbers of the augmentation from those of `draw`.
_AUGMENTATION = 0xA46
_BOS_EOS = 2
_BOUNDARIES = 2


class Cost(NamedTuple):
    """Cost of a sample in a row: und tokens, ViT images, VAE images."""

    und: int
    vit: int
    vae: int

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.und + other.und, self.vit + other.vit, self.vae + other.vae)

    def minus(self, other: "Cost") -> "Cost":
        return Cost(self.und - other.und, self.vit - other.vit, self.vae - other.vae)

    def fits(self, room: "Cost") -> bool:
        und, vit, vae = self
        return und <= room[0] and vit <= room[1] and vae <= room[2]


@dataclasses.dataclass(frozen=True)
class Skip:
    """Why a sample is not used. `detail`, for the log: error of the row, problem of its report."""

    reason: Literal["too_long", "no_text", "no_image", "broken"]
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingSample:
    """Ordered splits with a loss flag each, and one loader for each image split, in order.

    A loader returns the input of its split: 8-bit pixels for the ViT or the VAE, or VAE moments; it
    raises a UniXError when the image is broken. Images may be anywhere: a conditioned sample is
    [clean VAE image, ViT image, text, noised VAE image].

    The loaders add the `gray_level_problem` of the images that they read to `problems`.
    """

    key: str
    splits: tuple[Split, ...]
    losses: tuple[bool, ...]
    images: tuple[LoadImage, ...] = ()
    problems: list[str] = dataclasses.field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        needed = sum(not isinstance(split, TextSplit) for split in self.splits)
        if len(self.losses) != len(self.splits) or len(self.images) != needed:
            raise ValueError(
                f"{self.key}: expected {len(self.splits)} loss flags and {needed} image loaders, "
                f"found {len(self.losses)} and {len(self.images)}"
            )
        for split, loss in zip(self.splits, self.losses, strict=True):
            noised = isinstance(split, VaeSplit) and split.noised
            if loss and not noised and not isinstance(split, TextSplit):
                raise ValueError(f"{self.key}: expected a loss on text and noised images only")

    def cost(self, config: UniXConfig) -> Cost:
        """The cost of the sample in a row."""
        und, _ = stream_lengths([self.splits], config)
        vit = sum(isinstance(split, VitSplit) for split in self.splits)
        vae = sum(isinstance(split, VaeSplit) for split in self.splits)
        return Cost(und, vit, vae)


class SampleSource(Protocol):
    """Random access to samples; `build` is safe to call from several threads."""

    def __len__(self) -> int: ...

    def cost(self, index: int, epoch: int) -> Cost | Skip:
        """The cost of `build` with the same arguments; decodes no image."""

    def key(self, index: int) -> str:
        """The name of the sample in logs."""

    def build(self, index: int, epoch: int) -> TrainingSample:
        """The sample; raises a UniXError when its record is broken."""


class Draw(NamedTuple):
    """Independent uniform numbers in [0, 1)."""

    prompt: float
    caption: float
    dropout: float
    condition: float


def draw(seed: int, epoch: int, index: int) -> Draw:
    """The random numbers of one sample in one epoch."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(4, np.uint64)
    # 53 bits, so that no rounding reaches 1.
    return Draw(*(float(word >> np.uint64(11)) * 2.0**-53 for word in words))


class RecordSamples(abc.ABC):
    """Samples of a source of records, one from each.

    Text lengths are measured on first use and cached, a few integers per record.

    uses: the fields of `Cost` that a sample may take from.
    """

    uses: ClassVar[tuple[str, ...]]

    def __init__(
        self, records: RecordSource, tokenizer: Tokenizer, config: UniXConfig, data: DataConfig
    ) -> None:
        self.records = records
        self._tokenizer = tokenizer
        self._config = config
        self._data = data
        self._measured: dict[int, tuple[int, ...] | Skip] = {}

    def __len__(self) -> int:
        return len(self.records)

    def cost(self, index: int, epoch: int) -> Cost | Skip:
        lengths = self._measured.get(index)
        if lengths is None:
            try:
                lengths = self._measure(index, self.records[index])
            except UniXError as error:
                lengths = Skip("broken", str(error))
            self._measured[index] = lengths
        if isinstance(lengths, Skip):
            return lengths
        return self._cost(lengths, draw(self._data.seed, epoch, index))

    def key(self, index: int) -> str:
        try:
            return self.records[index].key
        except UniXError:
            return f"record {index}"

    def build(self, index: int, epoch: int) -> TrainingSample:
        numbers = draw(self._data.seed, epoch, index)
        record = self.records[index]
        if self._reads_images:
            record = images_read_ahead(record)
        return self._build(index, record, numbers, self._change(epoch, index))

    @property
    def _reads_images(self) -> bool:
        return True

    def _change(self, epoch: int, index: int) -> Change:
        """The augmentation of the sample, the same for each of its images."""
        config = self._data.augmentation
        if not config:
            return unchanged
        seed = (self._data.seed, epoch, index, _AUGMENTATION)
        return lambda image: augment(image, config, np.random.default_rng(seed))

    @abc.abstractmethod
    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        """Lengths of the record's texts, in tokens without bos and eos."""

    @abc.abstractmethod
    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost: ...

    @abc.abstractmethod
    def _build(
        self, index: int, record: Record, numbers: Draw, change: Change
    ) -> TrainingSample: ...

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _split(self, text: str) -> TextSplit:
        return TextSplit(prompt_split(self._tokenizer.encode(text), self._config.special_tokens))


class UnderstandingSamples(RecordSamples):
    """[ViT image, prompt, report], the loss on the report.

    The prompt is the record's own, or a random one of `data.prompts`, or, without these, of the
    model's instructions for the sections of the report.

    A conversation of several images or turns is [the question's ViT images and texts in their
    order, the answer] for each turn, the loss on the answers. With `data.text_tokens`, it may have
    one image, in the first question.
    """

    uses = ("und", "vit")

    def __init__(
        self, records: RecordSource, tokenizer: Tokenizer, config: UniXConfig, data: DataConfig
    ) -> None:
        super().__init__(records, tokenizer, config, data)
        prompts = data.prompts
        self._instructions = Instructions.same(prompts) if prompts else config.asked
        lists = dataclasses.astuple(self._instructions)
        self._prompt_lengths = {text: self._length(text) for texts in lists for text in texts}

    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        report = report_text(record)
        if not report.strip():
            return Skip("no_text", record.report_problem)
        if record.image is None:
            return Skip("no_image")
        turns = record.turns or (Turn((0,), report),)
        if self._data.text_tokens is not None and (problem := _outside_slots(turns)):
            return Skip("too_long", problem)
        texts = [text for turn in turns for text in _texts(turn)]
        fixed = sum(self._length(text) + _BOS_EOS for text in texts)
        if _asks(record):
            return len(record.images), fixed
        prompts = instructions_for(record, self._instructions)
        known = self._prompt_lengths
        lengths = [known[p] if p in known else self._length(p) for p in prompts]
        return (len(record.images), fixed + _BOS_EOS, *lengths)

    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost:
        """Of (number of images, tokens of what is always there, those of each possible prompt)."""
        images, fixed, *prompts = lengths
        prompt = prompts[int(numbers.prompt * len(prompts))] if prompts else 0
        image = self._config.vision.num_patches + _BOUNDARIES
        return Cost(images * image + fixed + prompt, images, 0)

    def _build(self, index: int, record: Record, numbers: Draw, change: Change) -> TrainingSample:
        turns = record.turns or (Turn((0,), report_text(record)),)
        if not _asks(record):
            prompts = instructions_for(record, self._instructions)
            prompt = prompts[int(numbers.prompt * len(prompts))]
            turns = (Turn((*turns[0].question, prompt), turns[0].answer),)
        problems: list[str] = []
        splits, losses, images = list[Split](), list[bool](), list[LoadImage]()
        for turn in turns:
            for part in turn.question:
                if isinstance(part, str):
                    splits.append(self._split(part))
                else:
                    splits.append(VitSplit())
                    images.append(
                        functools.partial(
                            vit_pixels,
                            record,
                            self._config,
                            problems.append,
                            number=part,
                            change=change,
                            jpeg_draft=self._data.jpeg_draft,
                            grayscale=self._data.grayscale,
                        )
                    )
            splits.append(self._split(turn.answer))
            losses += [False] * len(turn.question) + [True]
        return TrainingSample(record.key, tuple(splits), tuple(losses), tuple(images), problems)


def _asks(record: Record) -> bool:
    """Whether the record has its questions' texts; an only question may consist of images."""
    return len(record.turns) > 1 or any(turn.text for turn in record.turns)


def _outside_slots(turns: Sequence[Turn]) -> str:
    """Why the images of a conversation do not fit the slots of a row; "" if they do."""
    images = sum(len(turn.images) for turn in turns)
    first = turns[0].question[:1]
    if images == 1 and first and isinstance(first[0], int):
        return ""
    return (
        f"{images} image(s), but rows with data.text_tokens take samples of one, at the beginning; "
        "--data.text-tokens None takes all"
    )


def _texts(turn: Turn) -> list[str]:
    return [*(part for part in turn.question if isinstance(part, str)), turn.answer]


class EditSamples(RecordSamples):
    """[clean VAE image, ViT image, caption, noised VAE image], the loss on the last.

    The first two are the record's condition, for both encoders as in inference. They are dropped
    together, and the text independently, so that each kind of guidance has its branch.
    """

    uses = ("und", "vit", "vae")

    def __init__(
        self, records: RecordSource, tokenizer: Tokenizer, config: UniXConfig, data: DataConfig
    ) -> None:
        super().__init__(records, tokenizer, config, data)
        grid = data.latent_grid(config)
        self._clean, self._noised = VaeSplit(*grid, noised=False), VaeSplit(*grid, noised=True)

    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        captions = _captions(record)
        if not captions:
            return Skip("no_text", record.report_problem)
        if record.image is None or record.condition is None:
            absent = "image" if record.image is None else "condition"
            return Skip("no_image", f"it has no {absent}")
        return tuple(self._length(caption) for caption in captions)

    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost:
        total = Cost(_BOUNDARIES, 0, 1)
        if not self._drops_condition(numbers):
            vit = self._config.vision.num_patches + _BOUNDARIES
            total = total.plus(Cost(vit + _BOUNDARIES, 1, 1))
        if not _drops_caption(numbers, self._data):
            text = lengths[int(numbers.caption * len(lengths))] + _BOS_EOS
            total = total.plus(Cost(text, 0, 0))
        return total

    def _build(self, index: int, record: Record, numbers: Draw, change: Change) -> TrainingSample:
        captions = _captions(record)
        splits: list[Split] = [self._noised]
        problems: list[str] = []
        warn = problems.append
        images: list[LoadImage] = [lambda: vae_pixels(record, self._data, warn, change)]
        if not _drops_caption(numbers, self._data):
            splits = [self._split(captions[int(numbers.caption * len(captions))]), *splits]
        if not self._drops_condition(numbers):
            shown = dataclasses.replace(record, image=record.condition)
            splits = [self._clean, VitSplit(), *splits]
            images = [
                lambda: vae_pixels(shown, self._data, warn, change),
                # A warning about this image has already been given.
                lambda: vit_pixels(
                    shown,
                    self._config,
                    change=change,
                    jpeg_draft=self._data.jpeg_draft,
                    grayscale=self._data.grayscale,
                ),
                *images,
            ]
        losses = (False,) * (len(splits) - 1) + (True,)
        return TrainingSample(record.key, tuple(splits), losses, tuple(images), problems)

    def _drops_condition(self, numbers: Draw) -> bool:
        return numbers.condition < self._data.condition_dropout


def _drops_caption(numbers: Draw, data: DataConfig) -> bool:
    return numbers.dropout < data.caption_dropout


class GenerationSamples(RecordSamples):
    """[caption, noised VAE image], the loss on the image; or the image alone (dropped text).

    `moments(index, key)` replaces the record's image by precomputed VAE moments.
    """

    uses = ("und", "vae")

    def __init__(
        self,
        records: RecordSource,
        tokenizer: Tokenizer,
        config: UniXConfig,
        data: DataConfig,
        moments: Callable[[int, str], np.ndarray] | None = None,
    ) -> None:
        super().__init__(records, tokenizer, config, data)
        self._image_split = VaeSplit(*data.latent_grid(config), noised=True)
        self._moments = moments

    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        captions = _captions(record)
        if not captions:
            return Skip("no_text", record.report_problem)
        if record.image is None and self._moments is None:
            return Skip("no_image")
        return tuple(self._length(caption) for caption in captions)

    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost:
        text = lengths[int(numbers.caption * len(lengths))] + _BOS_EOS
        return Cost(_BOUNDARIES + (0 if _drops_caption(numbers, self._data) else text), 0, 1)

    def _build(self, index: int, record: Record, numbers: Draw, change: Change) -> TrainingSample:
        captions = _captions(record)
        caption = captions[int(numbers.caption * len(captions))]
        texts = () if _drops_caption(numbers, self._data) else (self._split(caption),)
        problems: list[str] = []
        return TrainingSample(
            record.key,
            (*texts, self._image_split),
            (*(False for _ in texts), True),
            (lambda: self._image(index, record, problems, change),),
            problems,
        )

    @property
    def _reads_images(self) -> bool:
        return self._moments is None

    def _image(self, index: int, record: Record, problems: list[str], change: Change) -> np.ndarray:
        if self._moments is not None:
            return self._moments(index, record.key)
        return vae_pixels(record, self._data, problems.append, change)


def _captions(record: Record) -> Sequence[str]:
    return [caption for caption in captions_of(record) if caption.strip()]


def record_samples(
    records: RecordSource,
    tokenizer: Tokenizer,
    config: UniXConfig,
    data: DataConfig,
    vae_params: Mapping[str, Any] | None = None,
) -> "RecordSamples | MixedSamples":
    """The samples of the task, or of all parts with theirs, with the moments of `data.moments`.

    Args:
      records: what `open_mixture` opened for `data.source`.
      vae_params: the autoencoder's weights; given, the moments must be of them.

    Raises:
      DataError: the moments cannot be read, or are of something else.
    """

    def of_task(records: RecordSource, data: DataConfig) -> RecordSamples:
        if data.task == "understanding":
            return UnderstandingSamples(records, tokenizer, config, data)
        if data.task == "edit":
            return EditSamples(records, tokenizer, config, data)
        moments = None
        if data.moments is not None:
            moments = Moments(data.moments, len(records), config, data, vae_params)
        return GenerationSamples(records, tokenizer, config, data, moments)

    if not isinstance(records, MixedRecords):
        return of_task(records, dataclasses.replace(data, task=data.parts[0].task))
    return MixedSamples(
        records.parts,
        [
            of_task(source, _data_of_part(data, part, number))
            for number, (part, source) in enumerate(
                zip(records.parts, records.sources, strict=True)
            )
        ],
    )


def _data_of_part(data: DataConfig, part: Part, number: int) -> DataConfig:
    return dataclasses.replace(
        data,
        source=part.spec,
        task=part.task,
        seed=part_seed(data.seed, number),
        moments=None if part.task == "understanding" else data.moments,
    )


class MixedSamples:
    """The samples of all parts of a mixture: indices count through the parts one after the other.

    `unix_jax.data.packing` plans the order of the parts.
    """

    def __init__(self, parts: Sequence[Part], samples: Sequence[RecordSamples]) -> None:
        self.parts, self.samples = tuple(parts), tuple(samples)
        self._ends = list(itertools.accumulate(len(s) for s in samples))

    def __len__(self) -> int:
        return self._ends[-1]

    def cost(self, index: int, epoch: int) -> Cost | Skip:
        """See `SampleSource`; the epoch is that of the part."""
        part, inner = located(self._ends, index)
        return self.samples[part].cost(inner, epoch)

    def key(self, index: int) -> str:
        """The record's key, with the number of its source from 1."""
        part, inner = located(self._ends, index)
        return f"source {part + 1}: {self.samples[part].key(inner)}"

    def build(self, index: int, epoch: int) -> TrainingSample:
        """See `SampleSource`."""
        part, inner = located(self._ends, index)
        return self.samples[part].build(inner, epoch)

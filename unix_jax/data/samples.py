"""Training samples: ordered splits with their losses, and what they cost, known without decoding.

Every choice (prompt, caption, dropped text) is a function of (seed, epoch, index) alone, so that
all processes plan the same rows from lengths and each builds its own rows later.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from unix_jax.config import UniXConfig
from unix_jax.data.config import DataConfig
from unix_jax.data.moments import Moments
from unix_jax.data.pictures import vae_pixels, vit_pixels
from unix_jax.data.records import Record, RecordSource, captions_of, report_text
from unix_jax.errors import UniXError
from unix_jax.layout import Split, TextSplit, VaeSplit, VitSplit, stream_lengths
from unix_jax.text import Tokenizer, prompt_split

LoadImage = Callable[[], np.ndarray]

_BOS_EOS = 2
_BOUNDARIES = 2


class Cost(NamedTuple):
    """What a sample takes of a row: und tokens, ViT images, VAE images."""

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
    """Why a sample is not used. `detail` is for the log: a broken row's error."""

    reason: Literal["too_long", "no_text", "no_image", "broken"]
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class TrainingSample:
    """Ordered splits with a loss flag each, and one loader for each image split, in order.

    A loader gives what its split needs: normalised ViT pixels, or VAE pixels in [-1, 1] (or VAE
    moments); it raises a UniXError when the image is broken. Images may be anywhere: a conditioned
    sample is [clean VAE image, ViT image, text, noised VAE image].

    The loaders add to `problems` what `gray_level_problem` says of the images that they read.
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
        """What the sample takes of a row."""
        und, _ = stream_lengths([self.splits], config)
        vit = sum(isinstance(split, VitSplit) for split in self.splits)
        vae = sum(isinstance(split, VaeSplit) for split in self.splits)
        return Cost(und, vit, vae)


class SampleSource(Protocol):
    """Random access to samples; `build` is safe to call from several threads."""

    def __len__(self) -> int: ...

    def cost(self, index: int, epoch: int) -> Cost | Skip:
        """What `build` of the same arguments will take; decodes no image."""

    def build(self, index: int, epoch: int) -> TrainingSample:
        """The sample; raises a UniXError when its record is broken."""


class Draw(NamedTuple):
    """Three independent uniform numbers in [0, 1)."""

    prompt: float
    caption: float
    dropout: float


def draw(seed: int, epoch: int, index: int) -> Draw:
    """The random numbers of one sample in one epoch."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(3, np.uint64)
    # 53 bits, so that no rounding reaches 1.
    return Draw(*(float(word >> np.uint64(11)) * 2.0**-53 for word in words))


def _choose(number: float, count: int) -> int:
    return int(number * count)


class RecordSamples(abc.ABC):
    """Samples of a source of records, one from each.

    Text lengths are measured when first asked for and remembered, a few integers a record.
    """

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

    def build(self, index: int, epoch: int) -> TrainingSample:
        return self._build(index, self.records[index], draw(self._data.seed, epoch, index))

    @abc.abstractmethod
    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        """Lengths of the record's texts, in tokens without bos and eos."""

    @abc.abstractmethod
    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost: ...

    @abc.abstractmethod
    def _build(self, index: int, record: Record, numbers: Draw) -> TrainingSample: ...

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _split(self, text: str) -> TextSplit:
        return TextSplit(prompt_split(self._tokenizer.encode(text), self._config.special_tokens))


class UnderstandingSamples(RecordSamples):
    """[ViT image, prompt, report], the loss on the report.

    The prompt is the record's own, or drawn from `data.prompts`.
    """

    def __init__(
        self, records: RecordSource, tokenizer: Tokenizer, config: UniXConfig, data: DataConfig
    ) -> None:
        super().__init__(records, tokenizer, config, data)
        self._prompt_lengths = [self._length(prompt) for prompt in data.prompts]

    def _measure(self, index: int, record: Record) -> tuple[int, ...] | Skip:
        report = report_text(record)
        if not report.strip():
            return Skip("no_text")
        if record.image is None:
            return Skip("no_image")
        own = (self._length(record.prompt),) if record.prompt else ()
        return (self._length(report), *own)

    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost:
        report, *own = lengths
        prompts = own or self._prompt_lengths
        prompt = prompts[_choose(numbers.prompt, len(prompts))]
        image = self._config.vision.num_patches + _BOUNDARIES
        return Cost(image + prompt + report + 2 * _BOS_EOS, 1, 0)

    def _build(self, index: int, record: Record, numbers: Draw) -> TrainingSample:
        prompts = self._data.prompts
        prompt = record.prompt or prompts[_choose(numbers.prompt, len(prompts))]
        problems: list[str] = []
        return TrainingSample(
            record.key,
            (VitSplit(), self._split(prompt), self._split(report_text(record))),
            (False, False, True),
            (lambda: vit_pixels(record, self._config, problems.append),),
            problems,
        )


class GenerationSamples(RecordSamples):
    """[caption, noised VAE image], the loss on the image; or the image alone (dropped text).

    `moments(index, key)` replaces the record's picture by precomputed VAE moments.
    """

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
            return Skip("no_text")
        if record.image is None and self._moments is None:
            return Skip("no_image")
        return tuple(self._length(caption) for caption in captions)

    def _cost(self, lengths: tuple[int, ...], numbers: Draw) -> Cost:
        text = lengths[_choose(numbers.caption, len(lengths))] + _BOS_EOS
        return Cost(_BOUNDARIES + (0 if self._dropped(numbers) else text), 0, 1)

    def _build(self, index: int, record: Record, numbers: Draw) -> TrainingSample:
        captions = _captions(record)
        caption = captions[_choose(numbers.caption, len(captions))]
        texts = () if self._dropped(numbers) else (self._split(caption),)
        problems: list[str] = []
        return TrainingSample(
            record.key,
            (*texts, self._image_split),
            (*(False for _ in texts), True),
            (lambda: self._image(index, record, problems),),
            problems,
        )

    def _dropped(self, numbers: Draw) -> bool:
        return numbers.dropout < self._data.caption_dropout

    def _image(self, index: int, record: Record, problems: list[str]) -> np.ndarray:
        if self._moments is not None:
            return self._moments(index, record.key)
        return vae_pixels(record, self._data, problems.append)


def _captions(record: Record) -> Sequence[str]:
    return [caption for caption in captions_of(record) if caption.strip()]


def record_samples(
    records: RecordSource,
    tokenizer: Tokenizer,
    config: UniXConfig,
    data: DataConfig,
    vae_params: Mapping[str, Any] | None = None,
) -> RecordSamples:
    """The samples of `data.task`, with the moments of `data.moments` if that is set.

    Args:
      vae_params: the autoencoder's weights; given, the moments must be of them.

    Raises:
      DataError: the moments cannot be read, or are of something else.
    """
    if data.task == "understanding":
        return UnderstandingSamples(records, tokenizer, config, data)
    moments = None
    if data.moments is not None:
        moments = Moments(data.moments, len(records), config, data, vae_params)
    return GenerationSamples(records, tokenizer, config, data, moments)

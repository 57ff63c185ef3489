"""Samples, as ordered splits, laid out as two static streams with their metadata.

Runs on the host in numpy. The same layout is used for inference contexts (one sample per row) and
packed training rows (several). Rotary positions and modes follow the original's rules: the position
of text increases by one per token; all tokens of an image share one position and advance it by one;
a noised image does not advance it; each sample starts at 0.

Letters: B rows, U und tokens, G latent tokens, P patches of a ViT image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from unix_jax.config import UniXConfig
from unix_jax.models.attention.mask import CAUSAL, FULL, NOISE, TokenMetadata
from unix_jax.models.embeddings import latent_position_ids


@dataclasses.dataclass(frozen=True)
class TextSplit:
    """Causal text; `ids` carry their bos and eos already."""

    ids: Sequence[int]


@dataclasses.dataclass(frozen=True)
class VitSplit:
    """An image to be understood: [start, patches, end]."""


@dataclasses.dataclass(frozen=True)
class VaeSplit:
    """An image of `height` x `width` latent tokens: [start, latents, end].

    `noised` images are to be generated: no token outside attends to them.
    """

    height: int
    width: int
    noised: bool


Split = TextSplit | VitSplit | VaeSplit
Sample = Sequence[Split]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Two-stream rows on the host, int32; padding has segment 0.

    und_sequence [B, U] and gen_sequence [B, G] are each token's index in the row's packed sequence,
    in which an image's tokens are between its boundaries. next_position [B] is the rotary position
    after the row's last sample. und_split, gen_split are in the metadata.
    """

    token_ids: Int[np.ndarray, "B U"]
    und: TokenMetadata
    vit_index: Int[np.ndarray, "B U"]
    gen: TokenMetadata
    latent_position_ids: Int[np.ndarray, "B G"]
    und_sequence: Int[np.ndarray, "B U"]
    gen_sequence: Int[np.ndarray, "B G"]
    next_position: Int[np.ndarray, " B"]


def stream_lengths(samples: Sequence[Sample], config: UniXConfig) -> tuple[int, int]:
    """Number of (und, gen) tokens of these samples in one row."""
    und = gen = 0
    for split in (s for sample in samples for s in sample):
        if isinstance(split, TextSplit):
            und += len(split.ids)
        elif isinstance(split, VitSplit):
            und += config.vision.num_patches + 2
        else:
            und += 2
            gen += split.height * split.width
    return und, gen


def lay_out(
    rows: Sequence[Sequence[Sample]],
    config: UniXConfig,
    und_length: int | None = None,
    gen_length: int | None = None,
) -> Layout:
    """Lays out rows of samples, padded to the given lengths (default: the longest row).

    ViT and VAE images of a row are numbered in order of appearance: `vit_index` is
    image * P + patch, -1 elsewhere, and latents follow one another in the gen stream.

    Raises:
      ValueError: a row does not fit.
    """
    needed = [stream_lengths(row, config) for row in rows]
    longest = tuple(max((n[i] for n in needed), default=0) for i in (0, 1))
    und_length = longest[0] if und_length is None else und_length
    gen_length = longest[1] if gen_length is None else gen_length
    if longest[0] > und_length or longest[1] > gen_length:
        raise ValueError(
            f"rows: expected at most {und_length} und and {gen_length} gen tokens, "
            f"found {longest[0]} and {longest[1]}"
        )
    und = np.zeros((len(rows), und_length, 8), np.int32)
    gen = np.zeros((len(rows), gen_length, 8), np.int32)
    next_position = np.zeros(len(rows), np.int32)
    for index, samples in enumerate(rows):
        row = _row(samples, config)
        next_position[index] = row.position
        for stream, tables in ((und[index], row.und), (gen[index], row.gen)):
            if tables:
                filled = np.concatenate(tables)
                stream[: len(filled)] = filled
    und_columns = [np.ascontiguousarray(und[..., i]) for i in range(8)]
    gen_columns = [np.ascontiguousarray(gen[..., i]) for i in range(8)]
    return Layout(
        token_ids=und_columns[6],
        und=TokenMetadata(*und_columns[:5]),  # type: ignore[arg-type]
        # Stored shifted by one, so that padding (zeros) means "not a patch".
        vit_index=und_columns[7] - 1,
        gen=TokenMetadata(*gen_columns[:5]),  # type: ignore[arg-type]
        latent_position_ids=gen_columns[6],
        und_sequence=und_columns[5],
        gen_sequence=gen_columns[5],
        next_position=next_position,
    )


@dataclasses.dataclass
class _Row:
    """A row under construction: tables of position, segment, split, order, mode, sequence, id,
    vit_index + 1."""

    und: list[np.ndarray] = dataclasses.field(default_factory=list)
    gen: list[np.ndarray] = dataclasses.field(default_factory=list)
    sequence: int = 0
    position: int = 0
    vit_images: int = 0


def _tokens(
    position: int | np.ndarray,
    segment: int,
    split: int,
    order: int | np.ndarray,
    mode: int,
    sequence: int | np.ndarray,
    ids: int | np.ndarray,
    vit_index: int | np.ndarray = -1,
) -> np.ndarray:
    columns = np.broadcast_arrays(
        position, segment, split, order, mode, sequence, ids, np.asarray(vit_index) + 1
    )
    return np.stack(columns, axis=-1).reshape(-1, 8).astype(np.int32)


def _row(samples: Sequence[Sample], config: UniXConfig) -> _Row:
    row = _Row()
    special = config.special_tokens
    boundary = np.array([special.start_of_image, special.end_of_image])
    for segment, sample in enumerate(samples, start=1):
        row.position = 0
        begin = row.sequence
        for index, split in enumerate(sample):
            order = row.sequence - begin
            if isinstance(split, TextSplit):
                steps = np.arange(len(split.ids))
                row.und.append(
                    _tokens(
                        row.position + steps,
                        segment,
                        index,
                        order + steps,
                        CAUSAL,
                        row.sequence + steps,
                        np.asarray(split.ids, np.int64),
                    )
                )
                row.position += len(split.ids)
                row.sequence += len(split.ids)
                continue
            noised = isinstance(split, VaeSplit) and split.noised
            mode = NOISE if noised else FULL
            if isinstance(split, VitSplit):
                count = config.vision.num_patches
            else:
                count = split.height * split.width
            inner = np.arange(1, count + 1)
            ends = np.array([0, count + 1])
            edges = _tokens(
                row.position, segment, index, order + ends, mode, row.sequence + ends, boundary
            )
            if isinstance(split, VitSplit):
                patches = _tokens(
                    row.position,
                    segment,
                    index,
                    order + inner,
                    mode,
                    row.sequence + inner,
                    0,
                    row.vit_images * count + inner - 1,
                )
                row.und += [edges[:1], patches, edges[1:]]
                row.vit_images += 1
            else:
                ids = latent_position_ids(
                    split.height, split.width, config.max_latent_size, config.interpolate_pos
                )
                row.und.append(edges)
                row.gen.append(
                    _tokens(
                        row.position,
                        segment,
                        index,
                        order + inner,
                        mode,
                        row.sequence + inner,
                        ids,
                    )
                )
            row.sequence += count + 2
            row.position += 0 if noised else 1
    return row

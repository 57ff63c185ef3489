"""Layouts against a slow statement token by token, and against the golden pack."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unix_jax.config import UniXConfig, VisionConfig
from unix_jax.models.attention.mask import CAUSAL, FULL, NOISE, may_attend
from unix_jax.preprocessing.layout import TextSplit, VaeSplit, VitSplit, lay_out, stream_lengths

CONFIG = dataclasses.replace(
    UniXConfig.preset("tiny"), vision=VisionConfig(image_size=32, patch_size=16, width=32)
)
PATCHES = 4

texts = st.lists(st.integers(0, 599), max_size=5).map(TextSplit)
images = st.builds(VaeSplit, st.integers(1, 3), st.integers(1, 3), st.booleans())
samples = st.lists(st.one_of(texts, images, st.just(VitSplit())), max_size=5)
rows_of_samples = st.lists(st.lists(samples, max_size=3), min_size=1, max_size=3)


def plain_row(row):
    """(und tokens, gen tokens, next position): one dict a token, in sequence order."""
    und, gen, place, vit_images, position = [], [], 0, 0, 0
    for segment, sample in enumerate(row, start=1):
        position = order = 0
        for index, split in enumerate(sample):
            common = {"segment": segment, "split": index}
            if isinstance(split, TextSplit):
                for token in split.ids:
                    und.append(
                        common
                        | {"position": position, "order": order, "mode": CAUSAL}
                        | {"sequence": place, "id": token, "vit": -1}
                    )
                    position, order, place = position + 1, order + 1, place + 1
                continue
            noised = isinstance(split, VaeSplit) and split.noised
            count = PATCHES if isinstance(split, VitSplit) else split.height * split.width
            for inner in range(-1, count + 1):
                token = common | {
                    "position": position,
                    "order": order,
                    "mode": NOISE if noised else FULL,
                    "sequence": place,
                }
                if inner in (-1, count):
                    edge = CONFIG.special_tokens
                    edge = edge.start_of_image if inner < 0 else edge.end_of_image
                    und.append(token | {"id": edge, "vit": -1})
                elif isinstance(split, VitSplit):
                    und.append(token | {"id": 0, "vit": vit_images * PATCHES + inner})
                else:
                    i, j = divmod(inner, split.width)
                    gen.append(token | {"id": i * CONFIG.max_latent_size + j, "vit": -1})
                order, place = order + 1, place + 1
            vit_images += isinstance(split, VitSplit)
            position += 0 if noised else 1
    return und, gen, position


@given(rows_of_samples, st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_layout_matches_token_by_token(rows, und_padding, gen_padding):
    plain = [plain_row(row) for row in rows]
    for row, (und, gen, _) in zip(rows, plain, strict=True):
        assert stream_lengths(row, CONFIG) == (len(und), len(gen))
    longest = [
        max(len(p[i]) for p in plain) + pad for i, pad in ((0, und_padding), (1, gen_padding))
    ]
    layout = lay_out(rows, CONFIG, *longest)
    tight = lay_out(rows, CONFIG)
    assert layout.next_position.tolist() == [p[2] for p in plain]

    def check(arrays, stream):
        for r, tokens in enumerate(p[stream] for p in plain):
            for name, array in arrays.items():
                assert array.dtype == np.int32
                assert array.shape == (len(rows), longest[stream])
                assert array[r, : len(tokens)].tolist() == [t[name] for t in tokens], name
            assert not arrays["segment"][r, len(tokens) :].any()
            if "vit" in arrays:
                assert (arrays["vit"][r, len(tokens) :] == -1).all()

    fields = ("position", "segment", "split", "order", "mode")
    und = {name: getattr(layout.und, name) for name in fields}
    gen = {name: getattr(layout.gen, name) for name in fields}
    check(
        und | {"sequence": layout.und_sequence, "id": layout.token_ids, "vit": layout.vit_index}, 0
    )
    check(gen | {"sequence": layout.gen_sequence, "id": layout.latent_position_ids}, 1)
    # The default lengths are those of the longest row, and change nothing else.
    assert tight.token_ids.shape[1] == longest[0] - und_padding
    np.testing.assert_array_equal(tight.token_ids, layout.token_ids[:, : tight.token_ids.shape[1]])


def test_worked_example():
    """By hand: [text of 3, noised 1x2, text of 1] then [ViT, text of 2]."""
    row = [
        [TextSplit([5, 6, 7]), VaeSplit(1, 2, noised=True), TextSplit([8])],
        [VitSplit(), TextSplit([9, 9])],
    ]
    layout = lay_out([row], CONFIG)
    assert layout.und.position[0].tolist() == [0, 1, 2, 3, 3, 3, 0, 0, 0, 0, 0, 0, 1, 2]
    assert layout.und.segment[0].tolist() == [1] * 6 + [2] * 8
    assert layout.und_sequence[0].tolist() == [0, 1, 2, 3, 6, *range(7, 16)]
    assert layout.gen_sequence[0].tolist() == [4, 5]
    assert layout.gen.position[0].tolist() == [3, 3]
    assert layout.token_ids[0].tolist() == [5, 6, 7, 603, 608, 8, 603, 0, 0, 0, 0, 608, 9, 9]
    assert layout.vit_index[0].tolist() == [-1] * 7 + [0, 1, 2, 3] + [-1] * 3
    assert layout.next_position.tolist() == [3]


def test_boundaries_and_latents_share_one_split():
    """Across the streams: boundaries see the latents and the reverse; later text sees neither."""
    row = [[TextSplit([1]), VaeSplit(1, 1, noised=True), TextSplit([2])]]
    layout = lay_out([row], CONFIG)
    und_to_gen = may_attend(layout.und, layout.gen)[0, :, 0]
    assert und_to_gen.tolist() == [False, True, True, False]
    assert may_attend(layout.gen, layout.und)[0, 0].tolist() == [True, True, True, False]


def test_empty():
    layout = lay_out([[[]]], CONFIG)
    assert layout.token_ids.shape == layout.latent_position_ids.shape == (1, 0)
    layout = lay_out([[[TextSplit([])]]], CONFIG, 2, 1)
    assert layout.und.segment.tolist() == [[0, 0]]


def test_too_long():
    with pytest.raises(ValueError, match="at most 2 und and 0 gen tokens, found 3 and 0"):
        lay_out([[[TextSplit([1, 2, 3])]]], CONFIG, 2)
    with pytest.raises(ValueError, match="at most 2 und and 1 gen tokens, found 2 and 2"):
        lay_out([[[VaeSplit(1, 2, noised=False)]]], CONFIG, 2, 1)


def test_golden_pack(golden, golden_info, tiny):
    """Ids, places and positions of the five packed samples."""
    special, pack = tiny.config.special_tokens, []
    for sample in golden_info["train"]["samples"]:
        given_texts, splits = iter(sample["texts"]), []
        for part in sample["plan"]:
            if part["type"] == "text":
                splits.append(TextSplit([special.bos, *next(given_texts), special.eos]))
            elif part["type"] == "vit_image":
                splits.append(VitSplit())
            else:
                splits.append(VaeSplit(4, 4, noised=bool(part["loss"])))
        pack.append(splits)
    layout = lay_out([pack], tiny.config)
    text = layout.vit_index[0] < 0
    for found, name in (
        (layout.token_ids[0][text], "packed_text_ids"),
        (layout.und_sequence[0][text], "packed_text_indexes"),
        (layout.und_sequence[0][~text], "packed_vit_token_indexes"),
        (layout.gen_sequence[0], "packed_vae_token_indexes"),
        (layout.latent_position_ids[0], "packed_latent_position_ids"),
    ):
        np.testing.assert_array_equal(found, golden[f"train.{name}"], err_msg=name)
    positions = np.full(172, -1)
    positions[layout.und_sequence[0]] = layout.und.position[0]
    positions[layout.gen_sequence[0]] = layout.gen.position[0]
    np.testing.assert_array_equal(positions, golden["train.packed_position_ids"])
    lengths = np.bincount(np.concatenate([layout.und.segment[0], layout.gen.segment[0]]))[1:]
    assert lengths.tolist() == golden_info["train"]["sample_lens"]

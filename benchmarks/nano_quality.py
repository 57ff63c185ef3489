"""Quality of the bundled nano model on its held-out X-rays.

    python benchmarks/nano_quality.py --out benchmarks/results/nano_quality.txt

Reports: how often the findings, and their kind (nothing, COVID-19, other), are those of the labels,
beside the answer that is commonest in training, and beside the one that is commonest among the
training images of the same hospital: whoever tells the two hospitals apart can give it.

Images: Fréchet distances to the held-out X-rays of images generated for their captions, next to
those of real X-rays of the training split, of the same held-out ones through the autoencoder, and
of noise; always of equally many images, since the distance falls with their number. Features are
the nano model's own ViT's, mean over patches, and gray levels at 8 x 8: RAD-DINO, which the field
compares with, cannot be bundled. So these distances can be compared with each other only.

Memory: the correlation of each generated X-ray with the training image that is most like it, beside
that of the held-out ones, at 16 x 16 gray levels. A model that copies is above them.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from unix_jax import UniXPipeline
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.records import Record, captions_of, record_image
from unix_jax.data.sources import open_source
from unix_jax.evaluation.bootstrap import mean_interval
from unix_jax.evaluation.image import frechet_distance
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.transforms import contact_sheet, save_png, to_model_image, to_pil

ROOT = Path(__file__).parents[1]


def records(source: str, *splits: str) -> list[Record]:
    opened = [open_source(source, split) for split in splits]
    return [part[i] for part in opened for i in range(len(part))]


def findings(text: str) -> frozenset[str]:
    """The sentences of the findings, as a set."""
    section = re.sub(r"IMPRESSION:.*", "", text.replace("FINDINGS:", ""), flags=re.DOTALL)
    return frozenset(s.strip() for s in section.split(".") if s.strip())


def kind(sentences: frozenset[str]) -> str:
    if "There is COVID-19 pneumonia" in sentences:
        return "COVID-19"
    return "nothing" if "The lungs are clear" in sentences else "other"


def share(name: str, correct: list[bool]) -> str:
    found = mean_interval(np.array(correct, float))
    return f"{name:44s} {found.value:6.1%}  (95 %: {found.low:.1%} to {found.high:.1%})"


def hospital(record: Record) -> str:
    """Where a record of the bundled set comes from: its findings go with it."""
    return record.key.rpartition("/")[2].partition("_")[0]


def commonest(values: list[Any]) -> Any:
    # In the order in which they appear: a set's own order would decide a tie by chance.
    return max(dict.fromkeys(values), key=values.count)


def judge_reports(pipe: UniXPipeline, held_out: list[Record], train: list[Record]) -> list[str]:
    written = []
    for start in range(0, len(held_out), 8):
        part = held_out[start : start + 8]
        written += pipe.generate_report([record_image(r) for r in part], max_new_tokens=96)
    truths = [findings(record.findings) for record in held_out]
    answers = [findings(report) for report in written]
    known = [findings(record.findings) for record in train]
    lines = [f"reports of {len(held_out)} held-out X-rays"]
    for name, of in (
        ("all findings right", lambda sentences: sentences),
        ("kind right (nothing, COVID-19, other)", kind),
    ):
        seen = [of(sentences) for sentences in known]
        true = [of(sentences) for sentences in truths]
        at = {
            place: commonest([s for s, r in zip(seen, train, strict=True) if hospital(r) == place])
            for place in {hospital(record) for record in train}
        }
        guesses = {
            f"  {name}": [of(sentences) for sentences in answers],
            "    always the commonest": [commonest(seen)] * len(true),
            "    the commonest of its hospital": [at[hospital(record)] for record in held_out],
        }
        lines += [
            share(title, [a == b for a, b in zip(guess, true, strict=True)])
            for title, guess in guesses.items()
        ]
    return lines


def features(pipe: UniXPipeline, images: list[Image.Image]) -> dict[str, np.ndarray]:
    side = pipe.config.vision.image_size

    @jax.jit
    def pooled(params, pixels):
        found = pipe.model.apply({"params": params}, pixels, method=UniX.features)
        return found.mean(axis=1)

    pixels = np.stack([to_model_image(image, side) for image in images])
    gray = [np.asarray(i.convert("L").resize((8, 8), Image.Resampling.BOX)) for i in images]
    return {
        "ViT": np.asarray(pooled(pipe.params, pixels)),
        "8 x 8": np.stack(gray).reshape(len(images), -1) / 255.0,
    }


def nearest(images: list[Image.Image], train: list[Image.Image]) -> np.ndarray:
    """Of each image, the largest correlation with one of `train`."""

    def normalised(group: list[Image.Image]) -> np.ndarray:
        gray = [np.asarray(i.convert("L").resize((16, 16), Image.Resampling.BOX)) for i in group]
        levels = np.stack(gray).reshape(len(group), -1).astype(np.float64)
        levels -= levels.mean(axis=1, keepdims=True)
        return levels / np.linalg.norm(levels, axis=1, keepdims=True)

    return (normalised(images) @ normalised(train).T).max(axis=1)


def judge_images(
    pipe: UniXPipeline, held_out: list[Record], train: list[Record], size: int, sheet: Path | None
) -> list[str]:
    data = DataConfig(task="generation", vae_images=1, vae_height=size, vae_width=size)

    def shown(chosen: list[Record]) -> list[Image.Image]:
        return [to_pil(vae_pixels(record, data) / 2 + 0.5) for record in chosen]

    rng = np.random.default_rng(0)
    count = len(held_out)
    prompts = [captions_of(record)[0] for record in held_out]
    drawn: list[Image.Image] = []
    for start in range(0, count, 8):
        seeds = list(range(start, min(start + 8, count)))
        drawn += pipe.generate_image(
            prompts[start : start + 8], height=size, width=size, seed=seeds
        )
    real = shown(held_out)
    pixels = np.stack([vae_pixels(record, data) for record in held_out])
    passed = pipe.loaded.autoencode(pipe.loaded.autoencode(pixels, "encode"), "decode")
    groups = {
        "real, of the training split": shown(
            [train[i] for i in rng.permutation(len(train))[:count]]
        ),
        "the held-out ones through the autoencoder": [
            to_pil(np.clip(x / 2 + 0.5, 0, 1)) for x in passed
        ],
        "drawn for their captions": drawn,
        "noise": [to_pil(rng.uniform(size=(size, size, 3))) for _ in range(count)],
    }
    target = features(pipe, real)
    lines = [
        f"Fréchet distance to {count} held-out X-rays at {size} x {size}",
        f"{'':44s} " + " ".join(f"{name:>10s}" for name in target),
    ]
    for name, images in groups.items():
        found = features(pipe, images)
        distances = [frechet_distance(target[key], found[key]) for key in target]
        lines.append(f"  {name:42s} " + " ".join(f"{distance:10.4f}" for distance in distances))
    known = shown(train)
    lines += ["", "correlation with the nearest training image       5 %   median     95 %"]
    for name, images in (("drawn for their captions", drawn), ("the held-out ones", real)):
        low, middle, high = np.percentile(nearest(images, known), (5, 50, 95))
        lines.append(f"  {name:42s} {low:8.2f} {middle:8.2f} {high:8.2f}")
    if sheet is not None:
        save_png(sheet, contact_sheet(drawn[:16], prompts[:16]))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=str(ROOT / "examples" / "nano"))
    parser.add_argument("--source", default=f"manifest:{ROOT / 'examples' / 'cxr'}")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG of the first 16 generated images")
    arguments = parser.parse_args()
    pipe = UniXPipeline.from_pretrained(arguments.checkpoint)
    train = records(arguments.source, "train")
    held_out = records(arguments.source, "validate", "test")
    lines = judge_reports(pipe, held_out, train)
    lines += ["", *judge_images(pipe, held_out, train, arguments.size, arguments.sheet)]
    text = "\n".join(lines)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(f"$ python benchmarks/nano_quality.py\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Quality of the bundled nano model on its held-out X-rays.

    python benchmarks/nano_quality.py --out benchmarks/results/nano_quality.txt

Autoencoder: PSNR, SSIM and the error of gray-level gradients of held-out X-rays after encoding and
decoding, compared with a PCA of blocks with the same number of components, and with downscaling to
the same number of pixels. A channel is dead if the posterior's spread exceeds that of its means.

Reports: how often the findings, and their kind (nothing, COVID-19, other), are those of the labels,
compared with the most common answer in training, with the most common one among the training images
of the same hospital (a baseline that only recognises the hospital), and with the answer of the
nearest training image. Then the share of the findings that are named (macro sensitivity), the
training X-rays reported correctly, whether instructions are followed, and the reports of images
that are not radiographs.

Images: Fréchet distances to the held-out X-rays of images generated for their captions, next to
those of real X-rays of the training split, of the same held-out ones through the autoencoder, and
of noise. The distance falls with the number of images, and that of few depends on which they are:
the images of four sets of seeds are given, alone and together, and many random choices of equally
many real X-rays, with the same captions where the training split has them. Features are the nano
model's own ViT's, mean over patches, and gray levels at 8 x 8: RAD-DINO, which the field compares
with, cannot be bundled. So these distances can be compared with each other only. A classifier of
gray levels, trained on real X-rays, recognises the three most common captions.

Memory: the correlation of each generated X-ray with the training image that is most like it, beside
that of the held-out ones, at 16 x 16 gray levels. A model that copies is above them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from PIL import Image, ImageOps
from scipy.ndimage import uniform_filter

from unix_jax import UniXPipeline
from unix_jax.data.config import DataConfig
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.records import Record, captions_of, record_image
from unix_jax.data.sources import open_source
from unix_jax.evaluation.bootstrap import intervals, mean_interval
from unix_jax.evaluation.image import frechet_distance
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.models.unix import UniX
from unix_jax.preprocessing.pixels import vae_input
from unix_jax.preprocessing.transforms import contact_sheet, save_png, to_model_image, to_pil
from unix_jax.training.linear_path import block_components

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from nano_texts import NORMAL, NOUNS, findings_of  # noqa: E402  (beside the training data)

BATCH = 8
GENERATED_PER_CAPTION = 20
SUBSETS = 10
# Random choices of real X-rays of the training split.
REAL_SETS = 200
# First seeds of the sets of generated images; the sheet and the pairs are of the first set.
SEEDS = (0, 10000, 20000, 30000)


def records(source: str, *splits: str) -> list[Record]:
    opened = [open_source(source, split) for split in splits]
    return [part[i] for part in opened for i in range(len(part))]


def kind(found: frozenset[str]) -> str:
    if "COVID-19" in found:
        return "COVID-19"
    return "nothing" if found == {NORMAL} else "other"


def line(name: str, values: Sequence[float], form: str = "6.1%") -> str:
    found = mean_interval(np.array(values, float))
    low, high = (f"{x:{form}}".strip() for x in (found.low, found.high))
    return f"{name:44s} {found.value:{form}}  (95 %: {low} to {high})"


def share(name: str, correct: Sequence[bool]) -> str:
    return line(name, [float(c) for c in correct])


def hospital(record: Record) -> str:
    """Where a record of the bundled set comes from: its findings go with it."""
    return record.key.rpartition("/")[2].partition("_")[0]


def commonest(values: list[Any]) -> Any:
    # In the order in which they appear: a set's own order would decide a tie by chance.
    return max(dict.fromkeys(values), key=values.count)


# --- autoencoder -------------------------------------------------------------------------------


def gray(chosen: list[Record], size: int) -> np.ndarray:
    """[N, size, size] in [-1, 1]."""
    data = DataConfig(task="generation", vae_images=1, vae_height=size, vae_width=size)
    return np.asarray(vae_input(np.stack([vae_pixels(record, data) for record in chosen])))[..., 0]


def as_images(chosen: list[Record], size: int) -> list[Image.Image]:
    return [to_pil(x / 2 + 0.5) for x in gray(chosen, size)]


def structural_similarity(ours: np.ndarray, target: np.ndarray) -> float:
    """SSIM of two images in [-1, 1], windows of 7 x 7 pixels (Wang et al. 2004)."""

    def local(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x.astype(np.float64), 7)

    a, b = local(ours), local(target)
    variances = local(ours**2) - a**2, local(target**2) - b**2
    covariance = local(ours * target) - a * b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    top = (2 * a * b + c1) * (2 * covariance + c2)
    return float((top / ((a**2 + b**2 + c1) * (sum(variances) + c2))).mean())


def gradient_error(ours: np.ndarray, target: np.ndarray) -> float:
    """Root mean square of the difference of neighbouring pixels' differences."""
    error = ours - target
    return float(np.sqrt(sum((np.diff(error, axis=axis) ** 2).mean() for axis in (0, 1))))


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """Each image at `side` x `side` pixels and back."""
    size = pixels.shape[1:]
    small = [Image.fromarray(x).resize((side, side), Image.Resampling.LANCZOS) for x in pixels]
    return np.stack([np.asarray(x.resize(size, Image.Resampling.BICUBIC)) for x in small])


def block_pca(train: np.ndarray, pixels: np.ndarray, side: int, count: int) -> np.ndarray:
    def blocks(x: np.ndarray) -> np.ndarray:
        return rearrange(x, "n (h i) (w j) -> n h w (i j)", i=side, j=side)

    mean, components, _ = block_components(blocks(train).reshape(-1, side * side), count)
    found = (blocks(pixels) - mean) @ components.T @ components + mean
    return rearrange(found, "n h w (i j) -> n (h i) (w j)", i=side)


def passed_through(pipe: UniXPipeline, pixels: np.ndarray) -> np.ndarray:
    colours = np.repeat(pixels[..., None], 3, axis=-1)
    latents = pipe.loaded.autoencode(colours, "encode")
    return np.asarray(pipe.loaded.autoencode(latents, "decode"), np.float32).mean(axis=-1)


def judge_autoencoder(
    pipe: UniXPipeline, held_out: list[Record], train: list[Record], size: int
) -> list[str]:
    config = pipe.config.vae
    truth, known = gray(held_out, size), gray(train, size)
    side, channels = config.downsample, config.embed_dim
    pixels = int((size // side) * channels**0.5)
    candidates = {
        "the autoencoder": passed_through(pipe, truth),
        f"PCA of blocks, {channels} numbers": block_pca(known, truth, side, channels),
        f"shrunk to {pixels} x {pixels} pixels": shrunk(truth, pixels),
    }
    lines = [
        f"{len(truth)} held-out X-rays of {size} x {size} through {channels} numbers for each "
        f"{side} x {side} pixels",
        f"{'':44s} {'PSNR, dB':>9s} {'of all':>7s} {'SSIM':>7s} {'gradients':>9s}",
    ]
    psnr = []
    for name, found in candidates.items():
        found = found.clip(-1, 1)
        errors = ((found - truth) ** 2).mean(axis=(1, 2))
        each = 10 * np.log10(4 / errors)
        psnr.append(each)
        similar = np.mean([structural_similarity(a, b) for a, b in zip(found, truth, strict=True)])
        steep = np.mean([gradient_error(a, b) for a, b in zip(found, truth, strict=True)])
        lines.append(
            f"  {name:42s} {each.mean():9.2f} {10 * np.log10(4 / errors.mean()):7.2f} "
            f"{similar:7.4f} {steep:9.4f}"
        )
    lines.append(line("  the autoencoder's PSNR", psnr[0], "6.2f"))
    lines.append(line("    its gain over the PCA", psnr[0] - psnr[1], "6.2f"))
    moments = jax.jit(
        lambda params, x: Autoencoder(config).apply({"params": params}, x, method="moments")
    )(pipe.loaded.vae_params, np.repeat(truth[..., None], 3, axis=-1))
    mean, logvar = np.split(np.asarray(moments, np.float32), 2, axis=-1)
    ratio = mean.std(axis=(0, 1, 2)) / np.sqrt(np.exp(logvar).mean(axis=(0, 1, 2)))
    lines.append(
        f"  channels: {sum(ratio < 1)} of {channels} dead; spread of the means over the "
        f"posterior's {ratio.min():.1f} to {ratio.max():.1f}"
    )
    return lines


# --- reports -----------------------------------------------------------------------------------


def write(pipe: UniXPipeline, images: list[Image.Image], prompt: str | None = None) -> list[str]:
    written = []
    for start in range(0, len(images), BATCH):
        written += pipe.generate_report(
            images[start : start + BATCH], prompts=prompt, max_new_tokens=96
        )
    return written


def macro_sensitivity(answers: np.ndarray, truths: np.ndarray) -> dict[str, float]:
    """The mean over findings of the share of their X-rays in which they are named."""
    present = truths.sum(axis=0)
    named = (answers & truths).sum(axis=0)
    return {"sensitivity": float((named[present > 0] / present[present > 0]).mean())}


def judge_reports(pipe: UniXPipeline, held_out: list[Record], train: list[Record]) -> list[str]:
    images = [record_image(record) for record in held_out]
    written = write(pipe, images)
    answers = [findings_of(report) for report in written]
    truths = [frozenset(record.labels) for record in held_out]
    known = [frozenset(record.labels) for record in train]
    near = nearest(images, [record_image(record) for record in train])[1]
    lines = [
        f"reports of {len(held_out)} held-out X-rays: {len(set(written))} different texts, "
        f"{len(set(answers))} different sets of findings"
    ]
    answer_of: list[tuple[str, Callable[[frozenset[str]], Any]]] = [
        ("all findings right", lambda found: found),
        ("kind right (nothing, COVID-19, other)", kind),
    ]
    for name, of in answer_of:
        seen, true = [of(found) for found in known], [of(found) for found in truths]
        at = {
            place: commonest([s for s, r in zip(seen, train, strict=True) if hospital(r) == place])
            for place in {hospital(record) for record in train}
        }
        guesses = {
            f"  {name}": [of(found) for found in answers],
            "    always the commonest": [commonest(seen)] * len(true),
            "    the commonest of its hospital": [at[hospital(record)] for record in held_out],
            "    that of the nearest training image": [seen[i] for i in near],
        }
        lines += [
            share(title, [a == b for a, b in zip(guess, true, strict=True)])
            for title, guess in guesses.items()
        ]

    def table(sets: list[frozenset[str]]) -> np.ndarray:
        return np.array([[name in found for name in (NORMAL, *NOUNS)] for found in sets])

    for title, guess in (
        ("  macro sensitivity over findings", answers),
        ("    that of the nearest training image", [known[i] for i in near]),
    ):
        found = intervals(macro_sensitivity, table(guess), table(truths))["sensitivity"]
        lines.append(f"{title:44s} {found.value:6.1%}  (95 %: {found.low:.1%} to {found.high:.1%})")
    read = [findings_of(report) for report in write(pipe, [record_image(r) for r in train])]
    right = [a == b for a, b in zip(read, known, strict=True)]
    lines += [
        "",
        f"reports of the {len(train)} training X-rays",
        share("  all findings right", right),
        share(
            "    of those with findings other than COVID-19",
            [r for r, found in zip(right, known, strict=True) if kind(found) == "other"],
        ),
        "",
        "instructions, on the held-out X-rays",
    ]
    asked = pipe.config.asked
    for title, prompts, wanted in (
        ("both sections", asked.findings_and_impression, (True, True)),
        ("FINDINGS alone", asked.findings, (True, False)),
        ("IMPRESSION alone", asked.impression, (False, True)),
    ):
        texts = written if prompts[0] == asked.default else write(pipe, images, prompts[0])
        obeyed = [("FINDINGS:" in text, "IMPRESSION:" in text) == wanted for text in texts]
        lines.append(share(f"  {title}: just these are there", obeyed))
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 256, (200, 180)).astype(np.uint8) for _ in range(8)]
    odd = {
        "blank": [
            Image.new("L", size, level)
            for size in ((200, 220), (256, 256), (256, 250))
            for level in range(0, 256, 36)
        ],
        "noise": [Image.fromarray(levels) for levels in noise],
        "inverted": [ImageOps.invert(image.convert("L")) for image in images],
    }
    lines += ["", "images that are no radiograph: the report says so"]
    for name, given in odd.items():
        said = [findings_of(text) for text in write(pipe, [i.convert("RGB") for i in given])]
        lines.append(share(f"  {name}, {len(given)} images", [found == {name} for found in said]))
    unreadable = [bool(found & set(odd)) for found in answers]
    lines.append(share("  held-out X-rays of which it is said, wrongly", unreadable))
    return lines + learning_curve(held_out, train)


def learning_curve(held_out: list[Record], train: list[Record]) -> list[str]:
    """How the kind of held-out X-rays is told from gray levels, by the number of training images.

    No model of ours: what more images of this set bring, whoever learns from them.
    """
    kinds = ["nothing", "COVID-19", "other"]

    def table(chosen: list[Record]) -> tuple[np.ndarray, np.ndarray]:
        levels = gray_levels([record_image(record) for record in chosen], 16)
        return levels, np.array([kinds.index(kind(frozenset(r.labels))) for r in chosen])

    (rows, classes), (new, truth) = table(train), table(held_out)
    rng, lines = np.random.default_rng(0), list[str]()
    for count in (31, 62, 124, 248):
        right = np.zeros(len(held_out))
        for _ in range(SUBSETS):
            chosen = rng.permutation(len(train))[:count]
            right += ridge_classifier(rows[chosen], classes[chosen])(new) == truth
        lines.append(line(f"  {count} training images", list(right / SUBSETS)))
    return ["", f"kind right by a linear classifier of gray levels, {SUBSETS} subsets each", *lines]


# --- images ------------------------------------------------------------------------------------


def features(pipe: UniXPipeline, images: list[Image.Image]) -> dict[str, np.ndarray]:
    side = pipe.config.vision.image_size

    @jax.jit
    def pooled(params, pixels):
        found = pipe.model.apply({"params": params}, pixels, method=UniX.features)
        return found.mean(axis=1)

    pixels = np.stack([to_model_image(image, side) for image in images])
    return {
        "ViT": np.asarray(pooled(pipe.params, pixels)),
        "8 x 8": gray_levels(images, 8),
    }


def gray_levels(images: list[Image.Image], side: int) -> np.ndarray:
    """[N, side * side] in [0, 1]."""
    small = [i.convert("L").resize((side, side), Image.Resampling.BOX) for i in images]
    return np.stack([np.asarray(i, np.float64) for i in small]).reshape(len(images), -1) / 255.0


def nearest(images: list[Image.Image], train: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(the largest correlation of each image with one of `train`, the index of that one)."""

    def normalised(group: list[Image.Image]) -> np.ndarray:
        levels = gray_levels(group, 16)
        levels -= levels.mean(axis=1, keepdims=True)
        return levels / np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-9)

    found = normalised(images) @ normalised(train).T
    return found.max(axis=1), found.argmax(axis=1)


def ridge_classifier(
    rows: np.ndarray, classes: np.ndarray, penalty: float = 3.0
) -> Callable[[np.ndarray], np.ndarray]:
    """A linear classifier of standardised rows by least squares, each class of equal weight."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    weight = (1 / np.bincount(classes)[classes])[:, None]

    def standard(x: np.ndarray) -> np.ndarray:
        return np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], axis=1)

    x, y = standard(rows), np.eye(classes.max() + 1)[classes]
    normal = x.T @ (weight * x) + penalty * np.eye(x.shape[1]) / x.shape[1]
    solution = np.linalg.solve(normal, x.T @ (weight * y))
    return lambda new: (standard(new) @ solution).argmax(axis=1)


def judge_captions(
    pipe: UniXPipeline, held_out: list[Record], train: list[Record], size: int, shown: Any
) -> list[str]:
    """Whether generated images of the three commonest captions can be told apart."""
    captions = [captions_of(record)[0] for record in train]
    top = sorted(dict.fromkeys(captions), key=captions.count, reverse=True)[:3]

    def of(chosen: list[Record]) -> tuple[list[Image.Image], np.ndarray]:
        kept = [record for record in chosen if captions_of(record)[0] in top]
        return shown(kept), np.array([top.index(captions_of(record)[0]) for record in kept])

    images, classes = of(train)
    classify = ridge_classifier(gray_levels(images, 16), classes)
    real, real_classes = of(held_out)
    wanted = np.repeat(np.arange(3), GENERATED_PER_CAPTION)
    made = generate(pipe, [top[i] for i in wanted], size, first_seed=1000)

    def balanced(right: np.ndarray, classes: np.ndarray) -> dict[str, float]:
        return {"value": float(np.mean([right[classes == k].mean() for k in set(classes)]))}

    lines = ["", "told apart: " + " / ".join(top)]
    for name, group, truth in (
        ("  generated images", made, wanted),
        ("  held-out X-rays", real, real_classes),
    ):
        right = classify(gray_levels(group, 16)) == truth
        found = intervals(balanced, right, truth)["value"]
        lines.append(
            f"{name + ', mean over captions (chance 33.3 %)':44s} {found.value:6.1%}  "
            f"(95 %: {found.low:.1%} to {found.high:.1%})"
        )
    return lines


def generate(
    pipe: UniXPipeline, prompts: list[str], size: int, first_seed: int = 0, **settings: Any
) -> list[Image.Image]:
    made: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = list(range(first_seed + start, first_seed + start + len(part)))
        made += pipe.generate_image(part, height=size, width=size, seed=seeds, **settings)
    return made


def with_captions(prompts: list[str], train: list[Record], rng: np.random.Generator) -> np.ndarray:
    """Indices of as many training records, none twice, with these captions as far as possible.

    Captions that are not left in the training split are replaced by any.
    """
    left = list(rng.permutation(len(train)))
    chosen: list[int] = []
    for prompt in prompts:
        same = [index for index in left if captions_of(train[index])[0] == prompt][:1]
        chosen += same
        left = [index for index in left if index not in same]
    return np.array(chosen + left[: len(prompts) - len(chosen)])


def judge_images(
    pipe: UniXPipeline,
    held_out: list[Record],
    train: list[Record],
    size: int,
    sheet: Path | None,
    pairs: Path | None,
) -> list[str]:
    def shown(chosen: list[Record]) -> list[Image.Image]:
        return as_images(chosen, size)

    rng = np.random.default_rng(0)
    count = len(held_out)
    prompts = [captions_of(record)[0] for record in held_out]
    sets = [generate(pipe, prompts, size, first_seed) for first_seed in SEEDS]
    generated = sets[0]
    real, known = shown(held_out), shown(train)
    passed = passed_through(pipe, gray(held_out, size))
    of_seeds = {f"generated, seeds from {first}": x for first, x in zip(SEEDS, sets, strict=True)}
    groups = {
        "the held-out ones": real,
        "the held-out ones through the autoencoder": [
            to_pil(np.clip(x / 2 + 0.5, 0, 1)) for x in passed
        ],
        **of_seeds,
        f"generated, the {len(sets) * count} of all seeds": [
            image for images in sets for image in images
        ],
        f"real, the {len(train)} of the training split": known,
        "noise": [to_pil(rng.uniform(size=(size, size, 3))) for _ in range(count)],
    }
    found = {
        name: features(pipe, [image.convert("RGB") for image in images])
        for name, images in groups.items()
    }
    target = found["the held-out ones"]
    of_train = found[f"real, the {len(train)} of the training split"]

    def row(rows: dict[str, np.ndarray]) -> list[float]:
        """The distance by each kind of features, and the mean gray level."""
        return [*(frechet_distance(target[key], rows[key]) for key in rows), rows["8 x 8"].mean()]

    generated_rows = [row(found[name]) for name in of_seeds]
    choices = [with_captions(prompts, train, rng) for _ in range(REAL_SETS)]
    real_rows = [row({key: x[chosen] for key, x in of_train.items()}) for chosen in choices]
    chosen_real = f"real, {count} of the training split, captions as above"
    table = {
        **{name: row(rows) for name, rows in found.items()},
        f"generated, {count} images, mean of {len(sets)} sets": np.mean(generated_rows, axis=0),
        f"{chosen_real}, mean of {REAL_SETS} choices": np.mean(real_rows, axis=0),
        "  smallest of these without the lowest 5 %": np.percentile(real_rows, 5, axis=0),
        "  largest of these without the highest 5 %": np.percentile(real_rows, 95, axis=0),
    }
    lines = [
        f"Fréchet distance to {count} held-out X-rays at {size} x {size}",
        f"{'':72s} " + " ".join(f"{name:>10s}" for name in (*target, "mean gray")),
        *(
            f"  {name:70s} " + " ".join(f"{number:10.4f}" for number in numbers)
            for name, numbers in table.items()
        ),
    ]
    lines += judge_captions(pipe, held_out, train, size, shown)
    lines += ["", "correlation with the nearest training image       5 %   median     95 %"]
    for name, images in (("generated for their captions", generated), ("the held-out ones", real)):
        low, middle, high = np.percentile(nearest(images, known)[0], (5, 50, 95))
        lines.append(f"  {name:42s} {low:8.2f} {middle:8.2f} {high:8.2f}")
    if sheet is not None:
        save_png(sheet, contact_sheet(generated[:16], prompts[:16]))
    if pairs is not None:
        values, places = nearest(generated, known)
        worst = np.argsort(-values)[:8]
        both = [image for i in worst for image in (generated[i], known[places[i]])]
        titles = [text for i in worst for text in (f"generated {i}", f"training, {values[i]:.2f}")]
        save_png(pairs, contact_sheet(both, titles, columns=4))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default=str(ROOT / "examples" / "nano"))
    parser.add_argument("--source", default=f"manifest:{ROOT / 'examples' / 'cxr'}")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["autoencoder", "reports", "images"],
        choices=["autoencoder", "reports", "images"],
        help="what to judge",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG of the first 16 generated images")
    parser.add_argument(
        "--pairs", type=Path,
        help="PNG of the 8 generated images that are most like a training image, next to it",
    )  # fmt: skip
    arguments = parser.parse_args()
    pipe = UniXPipeline.from_pretrained(arguments.checkpoint)
    train = records(arguments.source, "train")
    held_out = records(arguments.source, "validate", "test")
    size, parts = arguments.size, list[list[str]]()
    if "autoencoder" in arguments.parts:
        parts.append(judge_autoencoder(pipe, held_out, train, size))
    if "reports" in arguments.parts:
        parts.append(judge_reports(pipe, held_out, train))
    if "images" in arguments.parts:
        sheet, pairs = arguments.sheet, arguments.pairs
        parts.append(judge_images(pipe, held_out, train, size, sheet, pairs))
    text = "\n\n".join("\n".join(lines) for lines in parts)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(f"$ python benchmarks/nano_quality.py\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Samples of a model in training: reports of held-out X-rays, or a sheet of generated ones.

Uses both `training` and `inference`; `train.py` calls it at intervals.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from unix_jax.checkpoints.leaves import unflatten
from unix_jax.config import UniXConfig
from unix_jax.data.mixture import Task
from unix_jax.data.model_images import vae_pixels
from unix_jax.data.records import (
    Record,
    captions_of,
    instructions_for,
    question_images,
    record_image,
    report_text,
)
from unix_jax.errors import CheckpointError, UniXError
from unix_jax.inference.pipeline import UniXPipeline
from unix_jax.models.autoencoder import Autoencoder
from unix_jax.preprocessing.pixels import vae_input
from unix_jax.preprocessing.text import Tokenizer
from unix_jax.preprocessing.transforms import contact_sheet, pad_to_fit, save_png, to_gray_pil
from unix_jax.storage.files import atomic_write
from unix_jax.training.config import TrainConfig
from unix_jax.training.distributed import is_primary, raise_together
from unix_jax.training.export import gather
from unix_jax.training.feed import validation_data
from unix_jax.training.metrics import Metrics
from unix_jax.training.stages import Stage, compute_dtype

FOLDER = "previews"


@dataclasses.dataclass(frozen=True)
class Preview:
    """The file of a preview, and its image or its text."""

    path: Path
    image: Image.Image | None = None
    text: str | None = None

    def report(self, metrics: Metrics, step: int) -> None:
        """Writes it to the reporters of metrics, such as TensorBoard."""
        name = self.path.stem.partition("_")[2]
        if self.image is not None:
            metrics.image(step, name, np.asarray(self.image.convert("RGB")))
        if self.text is not None:
            metrics.text(step, name, self.text)


def make(
    run: Stage,
    config: TrainConfig,
    state: Any,
    tokenizer: Tokenizer,
    mesh: Mesh,
    out: Path,
    step: int,
    records: Mapping[Task, Sequence[Record]],
) -> list[Preview]:
    """Reports and images of held-out records by the weights of an export, written to DIR/previews.

    All processes call it; the first one writes.

    Raises:
      UniXError: an image that cannot be read, or a file that cannot be written; in every process.
    """
    directory = out / FOLDER
    if config.stage == "autoencoder":
        _, vae_params = local(run.weights(state, config.preferred))

        def write() -> list[Preview]:
            shown = records["generation"]
            return [_reconstructions(run.config, vae_params, config, directory, step, shown)]

    else:
        pipe = run_pipeline(run, config, state, tokenizer, mesh)

        def write() -> list[Preview]:
            return [
                _OF_TASK[task](pipe, config, directory, step, shown)
                for task, shown in records.items()
            ]

    made: list[Preview] = []
    error: UniXError | None = None
    if is_primary():
        try:
            made = write()
        except UniXError as failed:
            error = failed
    # The other processes would wait in the next step for one that has ended.
    raise_together(error)
    return made


def run_pipeline(
    run: Stage, config: TrainConfig, state: Any, tokenizer: Tokenizer, mesh: Mesh
) -> UniXPipeline | None:
    """The exported weights of a state, ready to generate; None in all but the first process.

    All processes call it.
    """
    params, vae_params = local(run.weights(state, config.preferred))
    if not is_primary():
        return None
    one_device = mesh.size == 1 or jax.process_count() > 1
    return UniXPipeline(
        run.config,
        params,
        vae_params,
        tokenizer,
        dtype=compute_dtype(config.model.dtype, mesh),
        mesh=None if one_device else mesh,
    )


def local(trees: Sequence[Any]) -> list[Any]:
    """New containers around arrays that this process can use alone; None stays None.

    The pipeline modifies its containers. The arrays are shared with the run, unless several
    processes hold them.
    """
    if jax.process_count() == 1:
        return [jax.tree.map(lambda leaf: leaf, tree) for tree in trees]
    return [None if tree is None else unflatten(gather(tree)) for tree in trees]


def _reports(
    pipe: UniXPipeline,
    config: TrainConfig,
    directory: Path,
    step: int,
    records: Sequence[Record],
) -> Preview:
    """Greedy reports next to the references."""
    reports = pipe.generate_report(
        [question_images(record) for record in records],
        prompts=[instructions_for(record, pipe.config.asked)[0] for record in records],
        max_new_tokens=config.previews.max_new_tokens,
    )
    text = "\n\n".join(
        f"{record.key}\n  model:     {report}\n  reference: {report_text(record)}"
        for record, report in zip(records, reports, strict=True)
    )
    path = directory / f"{step:08d}_reports.txt"
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
    return Preview(path, text=text)


def _generated(
    pipe: UniXPipeline,
    config: TrainConfig,
    directory: Path,
    step: int,
    records: Sequence[Record],
) -> Preview:
    """One image for each prompt, seeds 0, 1, ..., on one sheet."""
    prompts = list(config.previews.prompts) or [captions_of(record)[0] for record in records]
    images = pipe.generate_image(
        prompts,
        height=config.data.vae_height,
        width=config.data.vae_width,
        num_inference_steps=config.previews.num_steps - 1,
        seed=list(range(len(prompts))),
    )
    return _write_sheet(directory / f"{step:08d}_images.png", contact_sheet(images, prompts))


def _edited(
    pipe: UniXPipeline,
    config: TrainConfig,
    directory: Path,
    step: int,
    records: Sequence[Record],
) -> Preview:
    """A sheet of three rows: conditions, generated images, and true images."""
    shape = config.data.vae_height, config.data.vae_width, config.data.vae_padding
    before, after = (
        [pad_to_fit(record_image(r), *shape) for r in chosen]
        for chosen in ([dataclasses.replace(r, image=r.condition) for r in records], records)
    )
    prompts = [captions_of(record)[0] for record in records]
    images = pipe.generate_image(
        prompts,
        height=config.data.vae_height,
        width=config.data.vae_width,
        num_inference_steps=config.previews.num_steps - 1,
        images=before,
        seed=list(range(len(prompts))),
    )
    sheet = contact_sheet([*before, *images, *after], columns=len(records))
    return _write_sheet(directory / f"{step:08d}_edited.png", sheet)


_OF_TASK: dict[Task, Callable[..., Preview]] = {
    "understanding": _reports, "generation": _generated, "edit": _edited,
}  # fmt: skip


def _reconstructions(
    model_config: UniXConfig,
    vae_params: Any,
    config: TrainConfig,
    directory: Path,
    step: int,
    records: Sequence[Record],
) -> Preview:
    """A sheet of two rows: held-out images and their reconstructions."""
    data = validation_data(config)
    pixels = np.asarray(vae_input(np.stack([vae_pixels(record, data) for record in records])))
    decoded = _reconstruct(Autoencoder(model_config.vae), vae_params, pixels)
    both = [to_gray_pil(np.clip(x / 2 + 0.5, 0, 1)) for x in (*pixels, *np.asarray(decoded))]
    sheet = contact_sheet(both, columns=len(pixels))
    return _write_sheet(directory / f"{step:08d}_reconstructions.png", sheet)


@functools.partial(jax.jit, static_argnums=0)
def _reconstruct(autoencoder: Autoencoder, params: Any, pixels: Any) -> Any:
    return autoencoder.apply({"params": params}, pixels)


def _write_sheet(path: Path, sheet: Image.Image) -> Preview:
    save_png(path, sheet)
    return Preview(path, image=sheet)

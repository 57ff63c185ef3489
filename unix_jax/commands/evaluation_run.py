"""What the evaluations of `unix-jax evaluate` share: a run of a model over a data set.

Its items are divided over the processes; its journal lets a repeated command resume it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unix_jax.storage.arguments import AnyPathText, CheckpointText, SourceText
from unix_jax.storage.shown import shown

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from unix_jax.data.records import RecordSource
    from unix_jax.evaluation_runs.items import Progress, Share
    from unix_jax.evaluation_runs.results import Results
    from unix_jax.inference.pipeline import UniXPipeline

T = TypeVar("T")


@dataclasses.dataclass(kw_only=True)
class Resampled:
    """Options of metrics with intervals."""

    resamples: int = 1000
    """Number of bootstrap resamples."""


@dataclasses.dataclass(kw_only=True)
class OverData(Resampled):
    """Options of a run of a model over a data set. Repeating the command resumes a stopped run."""

    checkpoint: CheckpointText
    """Converted checkpoint, directory in the published layout, or directory of a training run; or a
    name on the Hugging Face hub."""
    data: SourceText
    """Source of the records, KIND:PATH, for example manifest:DIR or
    mimic:DIR?reports=clean.jsonl&views=PA,AP."""
    out: AnyPathText
    """Directory for the results: a new one, or that of a run to resume."""
    split: str = "test"
    """Split to evaluate; "" for all records."""
    limit: int | None = None
    """Number of records to evaluate, from the first. The default is all. A directory that was
    started with a smaller number is resumed with the further records."""
    batch_size: int = 16
    """Number of items per batch, over all devices of a process."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of parameters and computation; a CPU always uses float32."""
    mesh: str | None = None
    """Devices of each process that share its work, for example data=2,tensor=4. By default, the
    batch is divided over all accelerators of the process."""

    @functools.cached_property
    def _directory(self) -> Path:
        """The checkpoint's local directory; a name on the hub is downloaded, once per machine."""
        from unix_jax.checkpoints.run_export import resolve_checkpoint

        return resolve_checkpoint(self.checkpoint)

    def _open(self) -> "RecordSource":
        """The records, opened before a model is loaded, since opening may find an error."""
        from unix_jax.data.records import Subset
        from unix_jax.data.sources import open_source

        source = open_source(self.data, self.split)
        if self.limit is not None:
            source = Subset(source, range(min(self.limit, len(source))))
        return source

    def _begin(self, source: "RecordSource", own: dict[str, Any], out: Path) -> dict[str, Any]:
        """The settings, compared with those of the first run in the directory."""
        from unix_jax.evaluation_runs.evaluation_files import remember
        from unix_jax.training.distributed import agree

        settings = {
            "checkpoint": shown(self._directory.resolve()),
            "checkpoint_written": _written(self._directory),
            "dtype": self.dtype,
            **self._of_data(source),
            **own,
        }
        agree(lambda: remember(out, settings))
        return settings

    def _of_data(self, source: "RecordSource") -> dict[str, Any]:
        """The settings that identify the records: the source, and the numbers of its records."""
        from unix_jax.data.records import Subset

        records = len(source.source) if isinstance(source, Subset) else len(source)
        return {
            "data": self.data,
            "split": self.split,
            "records": records,
            "items": len(source),
        }

    def _load(self, **options: Any) -> Any:
        """The pipeline of the checkpoint's kind; `options` are those of `from_pretrained`."""
        from unix_jax.checkpoints.configurations import is_diffusers
        from unix_jax.inference.diffusion import DiffusionPipeline
        from unix_jax.inference.pipeline import UniXPipeline

        kind: Any = DiffusionPipeline if is_diffusers(self._directory) else UniXPipeline
        return kind.from_pretrained(self._directory, dtype=self.dtype, mesh=self._mesh(), **options)

    def _mesh(self) -> "Mesh | None":
        import jax

        from unix_jax.sharding import make_mesh, parse_mesh

        # Only the process's own devices: processes share only the directory.
        devices = jax.local_devices()
        if self.mesh is not None:
            return parse_mesh(self.mesh, devices=devices)
        if len(devices) == 1 or devices[0].platform == "cpu":
            return None
        return make_mesh(data=len(devices), devices=devices)


def finish(
    out: Path,
    total: int,
    unit: str,
    load: Callable[[], "UniXPipeline"],
    work: Callable[["UniXPipeline", "Share", "Progress"], None],
    summarise: Callable[[], "Results"],
) -> None:
    """Processes this process's share; computes metrics when all processes have finished."""
    import jax

    from unix_jax.commands.progress import ProgressLine
    from unix_jax.evaluation_runs.evaluation_files import read_entries
    from unix_jax.evaluation_runs.items import Share, wait_for_all
    from unix_jax.evaluation_runs.results import print_table, require_result
    from unix_jax.training.distributed import agree

    share = Share(jax.process_index(), jax.process_count())
    items = share.items(total)
    done = read_entries(out)
    before = sum(index in done for index in items)
    if before < len(items):
        pipe = load()
        line = ProgressLine(unit=unit)
        after = before

        def progress(count: int) -> None:
            nonlocal after
            after += count
            line.update(after, {})

        try:
            with line.over(before, len(items)):
                work(pipe, share, progress)
        except KeyboardInterrupt:
            line.say(f"finished work is kept in {out}; run the same command to resume")
            raise
    wait_for_all(out, total)

    def measure() -> None:
        results = summarise()
        print_table(results)
        print_pages(out)
        require_result(results)

    agree(measure)


def print_pages(out: Path) -> None:
    from unix_jax.evaluation_runs.image_results import NEAREST_PAGE, PAGE

    for name in (PAGE, NEAREST_PAGE):
        if (out / name).exists():
            print(shown(out / name))


def with_progress(items: Sequence[Any], unit: str) -> Iterator[Any]:
    """The items, with a progress line."""
    from unix_jax.commands.progress import ProgressLine

    line = ProgressLine(unit=unit)
    with line.over(0, len(items)):
        for done, item in enumerate(items, 1):
            yield item
            line.update(done, {})


def on_primary(load: Callable[[], T]) -> T | None:
    """The result of `load` in the primary process, None in the others; all raise its error."""
    from unix_jax.training.distributed import agree

    loaded: list[T] = []
    agree(lambda: loaded.append(load()))
    return loaded[0] if loaded else None


def _written(checkpoint: Path) -> int:
    """Time of the last write to a checkpoint in seconds, since its path may have another model."""
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    return max((int(path.stat().st_mtime) for path in files), default=0)

"""Training from the command line to the export: one script, read from top to bottom.

`train.py` and `unix-jax train` run it; `train.py` says what a run writes.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from unix_jax.checkpoints.run_files import listing
from unix_jax.commands.progress import ProgressLine
from unix_jax.commands.terminal import run_command
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.mixture import Task
from unix_jax.data.records import Record
from unix_jax.dry_run.dry_run import dry_run
from unix_jax.errors import ConfigError
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.training import average, distributed, flops, previews, start
from unix_jax.training.checkpoint_store import FOLDER, CheckpointStore
from unix_jax.training.config import TrainConfig, parse_arguments
from unix_jax.training.distributed import agree
from unix_jax.training.export import export
from unix_jax.training.feed import (
    Feed,
    describe_sources,
    open_records,
    preview_records,
    source_counts,
    training_data,
    validation_batches,
    validation_data,
)
from unix_jax.training.metrics import Metrics, Window, make_reporters
from unix_jax.training.preemption import StopRequest
from unix_jax.training.profiler import Profiler
from unix_jax.training.resuming import Change
from unix_jax.training.run_directory import is_resumable
from unix_jax.training.skipped import SkippedSamples
from unix_jax.training.stages import describe_validation, make_run, terms, to_floats, validate
from unix_jax.training.watch import is_finite, not_finite

ON_THE_LINE = ("loss", "ce", "mse", "learning_rate", "tokens_per_second", "mfu")


def train(arguments: Sequence[str]) -> int:
    """One run, from the command line to the export; gives the exit code."""

    # ============================================================================ parse
    invocation = parse_arguments(arguments)
    config, out = invocation.config, invocation.out
    if invocation.dry_run:
        return dry_run(config, invocation.topology)

    # ====================================================================== distributed
    distributed.initialise(
        config.distributed.coordinator,
        config.distributed.num_processes,
        config.distributed.process_id,
    )
    enable_compilation_cache()
    progress = ProgressLine(shown=distributed.is_primary())

    with start.locked(out, invocation.break_lock) as note:
        if note:
            progress.say(note)
        return run_in(out, config, progress, restart_data=invocation.restart_data)


def run_in(out: Path, config: TrainConfig, progress: ProgressLine, *, restart_data: bool) -> int:
    """The run in its locked directory; returns the exit code."""
    primary = distributed.is_primary()

    # ================================================================== sources of the data
    opened = open_records(config)
    if opened.warning:
        progress.warn(opened.warning)

    # ================================================= what the directory holds already
    resuming = distributed.agree(lambda: is_resumable(out))
    start.tidy(out)
    changed: list[Change] = []
    if resuming:
        config = start.keep_average(out, config)
        origin, changed = start.recall(out, config)
    else:
        origin = start.find_origin(config)
    checkpoints = CheckpointStore(
        out, keep_last=config.checkpoints.keep_last, keep_best=config.checkpoints.keep_best
    )
    for line in checkpoints.skipped:
        progress.warn(line)
    model_config, tokenizer = origin.model_config, origin.load_tokenizer()

    # ============================================================================= mesh
    mesh = start.make_run_mesh(config.mesh, model_config)

    # ================================================================== model and state
    run = make_run(
        config,
        model_config,
        mesh,
        has_autoencoder=origin.has_autoencoder,
        encoder_config=origin.encoder_config,
    )
    if resuming:
        restored = checkpoints.restore(start.without_frozen(run.target))
        assert restored is not None
        first, data_state = restored.step, restored.progress["data"]
        window = Window(restored.progress["window"])
        state = start.restore_frozen(out, run.target, restored.state)
        share = start.recorded_share(restored.progress, first)
        if config.total_steps < first:
            raise ConfigError(
                f"total_steps: expected at least {first}, which the run in {out} has reached, "
                f"found {config.total_steps}; `unix-jax export` exports an earlier step"
            )
    else:
        first, data_state, window, share = 0, None, Window(), 1.0
        start.remember(out, config, origin)
        given = start.load_parts(origin, config, mesh)
        state = run.fresh(given)
        del given
        start.save_frozen(out, state)

    # ============================================================================= data
    vae_params = run.weights(state, config.preferred)[1] if config.data.moments else None
    feed = Feed(
        training_data(config), model_config, tokenizer, mesh, data_state, vae_params,
        opened.training, restart=restart_data,
    )  # fmt: skip
    for line in [*describe_sources(feed.records, config.data), *feed.notes]:
        progress.say(line)
    if feed.restarted:
        progress.say(f"the order of the data begins anew: {feed.restarted}")
        data_state = None
        changed.append(Change("order of the data", "as it was", f"anew: {feed.restarted}"))
    validation: Iterable[TrainingBatch] = ()
    shown: Mapping[Task, Sequence[Record]] = {}
    if config.validate_every or config.preview_every:
        held_out = Feed(
            validation_data(config), model_config, tokenizer, mesh, records=opened.held_out
        )
        validation = validation_batches(held_out, config) if config.validate_every else ()
        shown = preview_records(held_out.records, config) if config.preview_every else {}
        held_out.close()
        for line in held_out.notes:
            progress.say(line)

    if resuming:
        for line in start.resumption(checkpoints.path(first), config, first, changed):
            progress.say(line)
        if first < config.total_steps:
            start.update_record(out, config, first, changed)

    # ============================================================================= loop
    key = jax.random.key(config.seed)
    noise_key, validation_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    metrics = Metrics(out, first, make_reporters(config, out, first) if primary else [], primary)
    profiler = Profiler(out, config.logging.profile_start, config.logging.profile_steps)
    stop = StopRequest()
    skipped = SkippedSamples()

    def save(step: int, data: Any, scores: Mapping[str, float] | None = None) -> None:
        kept = {
            "data": feed.saved(data),
            "window": window.get_state(),
            "config": config.to_dict(),
            "start_share": average.share_after(config.average_decay, share, first, step),
        }
        checkpoints.save(step, start.without_frozen(state), kept, scores)

    if first < config.total_steps:
        for line in average.describe(
            config.export, config.average_decay, share, first, config.total_steps
        ):
            progress.say(line)

    with checkpoints, metrics, progress.over(first, config.total_steps), profiler, stop:
        upcoming = next(feed, None) if first < config.total_steps else None
        tokens, operations, since = 0, 0.0, time.monotonic()
        for step in range(first + 1, config.total_steps + 1):
            if upcoming is None:
                progress.say(f"the data ended after step {step - 1}")
                break

            # --- the step, and meanwhile the next batch
            profiler.before(step)
            current = upcoming
            state, device_metrics = run.step(state, current.batch, noise_key)
            upcoming = next(feed, None) if step < config.total_steps else None
            values = to_floats(device_metrics)
            profiler.after(step)
            if not is_finite(values):
                if int(state.step) < step:
                    # The step left the state as it was: a run that continues repeats the fault.
                    save(step - 1, data_state)
                raise not_finite(step, values, current.info.keys, checkpoints)
            data_state = current.state
            last = upcoming is None
            for line in skipped.add(current.info):
                progress.say(line)

            # --- numbers
            window.add(terms(run, values) | {"padding_fraction": current.info.padding_fraction})
            tokens += current.info.und_tokens + current.info.gen_tokens
            operations += run.batch_flops(current.host) * jax.process_count()
            logged = None
            if step % config.log_every == 0 or last:
                seconds = time.monotonic() - since
                logged = window.means() | {
                    "step": step,
                    "learning_rate": values["learning_rate"],
                    "tokens_per_second": tokens / seconds,
                    "mfu": flops.utilisation(operations, seconds, mesh.size, mesh.devices.flat[0]),
                    "image_warnings": current.info.image_warnings,
                    **skipped.values,
                    **source_counts(current.info),
                }
                metrics.training(logged)
                tokens, operations, since = 0, 0.0, time.monotonic()
            left_out = {"left_out": skipped.total} if skipped.total else {}
            progress.update(
                step, logged and {name: logged.get(name) for name in ON_THE_LINE} | left_out
            )

            # --- validation, previews, checkpoint
            paused = time.monotonic()
            scores: dict[str, float] = {}
            if validation and (step % config.validate_every == 0 or last):
                scores = validate(run, state, validation, validation_key)
                metrics.validation({"step": step, **scores})
                progress.say(describe_validation(run, step, scores))
            if shown and (step % config.preview_every == 0 or last):
                for preview in previews.make(run, config, state, tokenizer, mesh, out, step, shown):
                    progress.say(f"step {step}: wrote {preview.path}")
                    preview.report(metrics, step)
            stopped = stop.reached(step)
            if stopped or last or step % config.checkpoint_every == 0:
                save(step, data_state, scores)
            since += time.monotonic() - paused
            if stopped and not last:
                checkpoints.wait()
                progress.say(f"stopped by {stop.name}; to continue, run the same command again")
                return stop.exit_code
    feed.close()
    for line in skipped.summary(len(feed.records)):
        progress.say(line)

    # =========================================================================== export
    done = int(state.step)
    scores = agree(lambda: listing(out / FOLDER / str(done)).get("metrics", {}))
    exported, why = average.to_export(config.export, config.average_decay is not None, scores)
    if why:
        progress.say(why)
    fresh_feed = Feed(training_data(config), model_config, tokenizer, mesh, records=opened.training)
    final_config = run.final_config(state, exported, (fed.batch for fed in fresh_feed))
    fresh_feed.close()
    record: dict[str, Any] = {"step": done, "weights": exported}
    if exported == "average":
        record["start_share"] = average.share_after(config.average_decay, share, first, done)
    params = run.weights(state, exported)
    written = export(out, final_config, *params, out / start.TOKENIZER, record=record)
    progress.say(f"wrote {written}: {exported} weights of step {done}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 (an error, in one line), 2 (usage) or 130 (Ctrl-C)."""
    return run_command(lambda: train(sys.argv[1:] if arguments is None else arguments))

"""The command `unix-jax train`: a training run, from the command line to the export.

It is one script, to be read from top to bottom. `train.py` runs it too, and documents the files of
a run.
"""

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from unix_jax.checkpoints.run_files import listing
from unix_jax.commands.progress import ProgressLine, describe_numbers
from unix_jax.commands.terminal import run_command
from unix_jax.data.batch import TrainingBatch
from unix_jax.data.mixture import Task
from unix_jax.data.records import Record
from unix_jax.dry_run.dry_run import dry_run
from unix_jax.errors import ConfigError
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.training import average, distributed, previews, start
from unix_jax.training.bucket_run import LocalRun, local_run
from unix_jax.training.checkpoint_store import FOLDER, CheckpointStore
from unix_jax.training.config import TrainConfig, parse_arguments
from unix_jax.training.cpu_settings import set_cpu_defaults
from unix_jax.training.distributed import agree
from unix_jax.training.evaluators import make_evaluators
from unix_jax.training.export import export
from unix_jax.training.feed import (
    Fed,
    Feed,
    describe_sources,
    open_records,
    shown_records,
    source_counts,
    training_data,
    validation_batches,
    validation_data,
)
from unix_jax.training.gpu_settings import set_gpu_defaults
from unix_jax.training.liveness import ending_together
from unix_jax.training.metrics import Metrics, Window, make_reporters
from unix_jax.training.overview import overview, write_parameters
from unix_jax.training.preemption import StopRequest
from unix_jax.training.profiler import Profiler
from unix_jax.training.rates import Rates
from unix_jax.training.resuming import Change
from unix_jax.training.run_directory import is_resumable
from unix_jax.training.skipped import SkippedSamples
from unix_jax.training.stages import make_stage, to_floats
from unix_jax.training.watch import is_finite, not_finite

ON_THE_LINE = ("loss", "ce", "mse", "learning_rate", "tokens_per_second", "mfu")


def train(arguments: Sequence[str]) -> int:
    """One run, from the command line to the export; returns the exit code."""

    # ============================================================================ parse
    invocation = parse_arguments(arguments)
    config, out = invocation.config, invocation.out
    if invocation.dry_run:
        return dry_run(config, invocation.topology)

    # ====================================================================== devices
    set_for = {"GPU": set_gpu_defaults(), "CPU": set_cpu_defaults()}
    distributed.initialise(
        config.distributed.coordinator,
        config.distributed.num_processes,
        config.distributed.process_id,
    )
    enable_compilation_cache()
    progress = ProgressLine(shown=distributed.is_primary())

    with (
        ending_together(),
        local_run(out, invocation.break_lock) as local,
        start.locked(local.directory, invocation.break_lock) as note,
    ):
        for device, settings in set_for.items():
            if settings:
                progress.say(f"set for the {device}: {', '.join(settings)}")
        for line in filter(None, (local.note, note)):
            progress.say(line)
        return run_in(local, config, progress, restart_data=invocation.restart_data)


def run_in(
    local: LocalRun, config: TrainConfig, progress: ProgressLine, *, restart_data: bool
) -> int:
    """The run in its locked directory; returns the exit code."""
    out = local.directory
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
        out,
        keep_last=config.checkpoints.keep_last,
        keep_best=config.checkpoints.keep_best,
        upload=local.upload,
        shared=local.shared,
    )
    for line in checkpoints.skipped:
        progress.warn(line)
    model_config, tokenizer = origin.model_config, origin.load_tokenizer()

    # =================================================================== mesh and length
    mesh = start.make_run_mesh(config.mesh, model_config)
    start.check_run_rows(config, mesh, model_config)
    length = start.agreed_length(config, opened.training, tokenizer, model_config)
    total = length.steps

    # =================================================================== stage and state
    stage = make_stage(
        config,
        model_config,
        mesh,
        total,
        has_autoencoder=origin.has_autoencoder,
        encoder_config=origin.encoder_config,
    )
    if resuming:
        restored = checkpoints.restore(start.without_frozen(stage.target))
        assert restored is not None
        first, data_state = restored.step, restored.progress["data"]
        window = Window(restored.progress["window"])
        state = start.restore_frozen(out, stage.target, restored.state, local.shared)
        state = start.resumed(state, stage.target)
        share = start.recorded_share(restored.progress, first)
        if total < first:
            raise ConfigError(
                f"total_steps: expected at least {first}, which the run in {out} has reached, "
                f"found {total}; `unix-jax export` exports an earlier step"
            )
    else:
        first, data_state, window, share = 0, None, Window(), 1.0
        for line in start.backbone_note(origin):
            progress.say(line)
        start.remember(out, config, origin)
        given = start.load_parts(origin, config, mesh)
        state = stage.fresh(given)
        del given
        start.save_frozen(out, state, local.shared)

    # ============================================================================= data
    vae_params = stage.weights(state, config.preferred)[1] if config.data.moments else None
    feed = Feed(
        training_data(config), model_config, tokenizer, mesh, data_state, vae_params,
        opened.training, restart=restart_data,
    )  # fmt: skip
    for line in [*describe_sources(feed.records, config.data), *feed.notes]:
        progress.say(line)
    if feed.restarted:
        progress.say(f"the order of the data restarts: {feed.restarted}")
        data_state = None
        changed.append(Change("order of the data", "as it was", f"restarted: {feed.restarted}"))
    validation: Iterable[TrainingBatch] = ()
    shown: Mapping[Task, Sequence[Record]] = {}
    if opened.held_out is not None and config.validate_every:
        held_out = Feed(
            validation_data(config), model_config, tokenizer, mesh, records=opened.held_out
        )
        validation = validation_batches(held_out, config)
        held_out.close()
        for line in held_out.notes:
            progress.say(line)
    if opened.held_out is not None and config.preview_every:
        shown = shown_records(opened.held_out, config, config.previews.count)
    evaluators = make_evaluators(config, opened.held_out)

    if resuming:
        for line in start.resumption(checkpoints.path(first), total, first, changed):
            progress.say(line)
        if first < total:
            start.update_record(out, config, first, changed)

    # ============================================================================= loop
    key = jax.random.key(config.seed)
    noise_key, validation_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    metrics = Metrics(out, first, make_reporters(config, out, first) if primary else [], primary)
    profiler = Profiler(out, config.logging.profile_start, config.logging.profile_steps)
    stop = StopRequest()
    skipped = SkippedSamples()
    rates = Rates(stage, mesh)

    def save(step: int, scores: Mapping[str, float] | None = None) -> None:
        kept = {
            "data": feed.saved(data_state),
            "window": window.get_state(),
            "config": config.to_dict(),
            "start_share": average.share_after(config.average_decay, share, first, step),
        }
        checkpoints.save(step, start.without_frozen(state), kept, scores)

    def look(step: int, fed: Fed, device_metrics: Any, *, last: bool = False) -> None:
        """Looks at the numbers of a step, for which it waits."""
        nonlocal data_state
        values = to_floats(device_metrics)
        profiler.after(step)
        if not is_finite(values):
            feed.raise_errors()
            if int(state.step) < step:
                # The state is that of the step before: a run that resumes repeats the fault.
                save(step - 1)
            raise not_finite(step, values, fed.info.keys, checkpoints)
        data_state = fed.state
        for line in skipped.add(fed.info):
            progress.say(line)
        window.add(stage.terms(values) | {"padding_fraction": fed.info.padding_fraction})
        rates.add(fed)
        logged = None
        if step % config.log_every == 0 or last:
            logged = window.means() | {
                "step": step,
                "learning_rate": values["learning_rate"],
                **rates.take(),
                "image_warnings": fed.info.image_warnings,
                **skipped.values,
                **source_counts(fed.info),
            }
            metrics.training(logged)
        left_out = {"left_out": skipped.total} if skipped.total else {}
        progress.update(
            step, logged and {name: logged.get(name) for name in ON_THE_LINE} | left_out
        )

    if first < total:
        for line in average.describe(
            config.export, config.average_decay, share, first, total, compared=bool(validation)
        ):
            progress.say(line)

    with checkpoints, metrics, progress.over(first, total), profiler, stop:
        upcoming = next(feed, None) if first < total else None
        if primary and upcoming is not None:
            write_parameters(out, stage)
            print(*overview(stage, config, mesh, length, first, upcoming), sep="\n", flush=True)
        running: tuple[int, Fed, Any] | None = None
        rates.start()
        for step in range(first + 1, total + 1):
            if upcoming is None:
                progress.say(f"the data ended after step {step - 1}")
                break

            # --- the step; while it runs, the numbers of the one before, and the next batch
            profiler.before(step)
            current = upcoming
            state, device_metrics = stage.train_step(step)(state, current.batch, noise_key)
            if running is not None:
                look(*running)
            running = step, current, device_metrics
            upcoming = next(feed, None) if step < total else None
            last, stopped = upcoming is None, stop.reached(step)
            due = [
                name
                for name, every, wanted in (
                    ("validation", config.validate_every, validation),
                    ("previews", config.preview_every, shown),
                    *((e.name, e.every, True) for e in evaluators),
                    ("checkpoint", config.checkpoint_every, True),
                )
                if wanted and every and (last or step % every == 0)
            ]
            if not (due or last or stopped):
                continue

            # --- this step's numbers, then validation, previews, checkpoint
            look(*running, last=last)
            running = None
            scores: dict[str, float] = {}
            with rates.paused():
                if "validation" in due:
                    scores = stage.validate(state, validation, validation_key)
                    metrics.validation({"step": step, **scores})
                    progress.say(stage.describe_validation(step, scores))
                if "previews" in due:
                    for preview in previews.make(
                        stage, config, state, tokenizer, mesh, out, step, shown
                    ):
                        progress.say(f"step {step}: wrote {preview.path}")
                        preview.report(metrics, step)
                for evaluator in evaluators:
                    if evaluator.name not in due:
                        continue
                    pipe = previews.run_pipeline(stage, config, state, tokenizer, mesh)
                    found = agree(functools.partial(evaluator.named_scores, pipe))
                    metrics.evaluation({"step": step, **found})
                    progress.say(f"step {step}: {describe_numbers(found)}")
                if "checkpoint" in due or stopped:
                    save(step, scores)
            if stopped and not last:
                checkpoints.wait()
                progress.say(f"stopped by {stop.name}; to resume, run the same command again")
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
    final_config = stage.final_config(state, exported, (fed.batch for fed in fresh_feed))
    fresh_feed.close()
    record: dict[str, Any] = {"step": done, "weights": exported}
    if exported == "average":
        record["start_share"] = average.share_after(config.average_decay, share, first, done)
    params = stage.weights(state, exported)
    written = export(out, final_config, *params, out / start.TOKENIZER, record=record)
    progress.say(f"wrote {written}: {exported} weights of step {done}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 (an error, on one line), 2 (usage) or 130 (Ctrl-C)."""
    return run_command(lambda: train(sys.argv[1:] if arguments is None else arguments))

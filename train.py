"""Trains UniX: one script, read from top to bottom.

    python train.py configs/NAME.py --out DIR [--total-steps N] [--seed S] [--checkpoint-every K]
        [--mesh data=1,fsdp=8,tensor=1] [--init CHECKPOINT] [any field of TrainConfig]
    python train.py configs/NAME.py --dry-run [--topology v5e:4x4] [--mesh ...]

DIR afterwards holds
    run.json          what was run: settings, sizes of the model
    tokenizer/        its files
    metrics.jsonl     one object a logged step; validation.jsonl: one a validation
    checkpoints/      state, averaged weights, place in the data; the run continues from the newest;
                      `unix-jax export DIR` exports any of them
    frozen/           weights that the run does not change, written once
    tensorboard/ previews/ profile/
    export/           weights for inference, and for the --init of the next stage: the average
                      where there is one, or those of the last step with `--export raw`

SIGTERM and Ctrl-C finish the step and write a checkpoint (exit code 0 and 130). An error that an
input caused is one line on standard error, exit code 1.
"""

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from convert.dinov2 import load_dinov2, load_dinov2_config
from convert.load import load_config, load_model
from unix_jax import previews
from unix_jax.data.batch import TrainingBatch
from unix_jax.errors import UniXError
from unix_jax.inference.compilation import enable_compilation_cache
from unix_jax.training import average, distributed, flops, start
from unix_jax.training.checkpoint import CheckpointStore
from unix_jax.training.config import parse_arguments
from unix_jax.training.dry_run import dry_run
from unix_jax.training.export import export
from unix_jax.training.feed import (
    Feed,
    open_records,
    preview_records,
    training_data,
    validation_batches,
    validation_data,
)
from unix_jax.training.metrics import Metrics, Window, make_reporters
from unix_jax.training.preemption import INTERRUPTED, StopRequest
from unix_jax.training.profiler import Profiler
from unix_jax.training.progress import ProgressLine
from unix_jax.training.run import describe_validation, make_run, terms, to_floats, validate
from unix_jax.training.watch import is_finite, not_finite

ON_THE_LINE = ("loss", "ce", "mse", "learning_rate", "tokens_per_second", "mfu")


def train(arguments: Sequence[str]) -> int:
    """One run, from the command line to the export; gives the exit code."""

    # ============================================================================ parse
    invocation = parse_arguments(arguments)
    config, out = invocation.config, invocation.out
    if invocation.dry_run:
        return dry_run(config, invocation.topology, load_config, load_dinov2_config)

    # ====================================================================== distributed
    distributed.initialise(
        config.distributed.coordinator,
        config.distributed.num_processes,
        config.distributed.process_id,
    )
    enable_compilation_cache()
    primary = distributed.is_primary()
    progress = ProgressLine(shown=primary)

    # ================================================================== sources of the data
    opened = open_records(config)
    if opened.warning:
        progress.say(f"warning: {opened.warning}")

    # ================================================= what the directory holds already
    checkpoints = CheckpointStore(
        out, keep_last=config.checkpoints.keep_last, keep_best=config.checkpoints.keep_best
    )
    for line in checkpoints.skipped:
        progress.say(f"warning: {line}")
    resuming = bool(checkpoints.steps())
    origin = (
        start.recall(out, config)
        if resuming
        else start.find_origin(config, load_config, load_dinov2_config)
    )
    if resuming:
        config = start.keep_average(out, config)
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
        progress.say(f"continuing from {checkpoints.path(first)}")
    else:
        first, data_state, window, share = 0, None, Window(), 1.0
        start.remember(out, config, origin)
        given = start.load_parts(
            origin, mesh, load_model, lambda: load_dinov2(str(config.rad_dino))[1]
        )
        state = run.fresh(given)
        del given
        start.save_frozen(out, state)

    # ============================================================================= data
    vae_params = run.weights(state)[1] if config.data.moments else None
    feed = Feed(
        training_data(config), model_config, tokenizer, mesh, data_state, vae_params,
        opened.training,
    )  # fmt: skip
    validation: Iterable[TrainingBatch] = ()
    shown = []
    if config.validate_every or config.preview_every:
        held_out = Feed(
            validation_data(config), model_config, tokenizer, mesh, records=opened.held_out
        )
        validation = validation_batches(held_out, config) if config.validate_every else ()
        shown = preview_records(held_out.records, config) if config.preview_every else []
        held_out.close()

    # ============================================================================= loop
    key = jax.random.key(config.seed)
    noise_key, validation_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    metrics = Metrics(out, first, make_reporters(config, out, first) if primary else [], primary)
    profiler = Profiler(out, config.logging.profile_start, config.logging.profile_steps)
    stop = StopRequest()

    def save(step: int, data: Any, scores: Mapping[str, float] | None = None) -> None:
        kept = {
            "data": data,
            "window": window.get_state(),
            "config": config.to_dict(),
            "start_share": average.share_after(config.average_decay, share, first, step),
        }
        checkpoints.save(step, start.without_frozen(state), kept, scores)

    for line in average.describe(
        config.exported, config.average_decay, share, first, config.total_steps
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
                }
                metrics.training(logged)
                tokens, operations, since = 0, 0.0, time.monotonic()
            progress.update(step, logged and {name: logged.get(name) for name in ON_THE_LINE})

            # --- validation, previews, checkpoint
            paused = time.monotonic()
            scores: dict[str, float] = {}
            if validation and (step % config.validate_every == 0 or last):
                scores = validate(run, state, validation, validation_key)
                metrics.validation({"step": step, **scores})
                for line in describe_validation(run, step, scores, last=last):
                    progress.say(line)
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

    # =========================================================================== export
    fresh_feed = Feed(training_data(config), model_config, tokenizer, mesh, records=opened.training)
    final_config = run.final_config(state, (fed.batch for fed in fresh_feed))
    fresh_feed.close()
    done = int(state.step)
    record: dict[str, Any] = {"step": done, "weights": config.exported}
    if config.exported == "average":
        record["start_share"] = average.share_after(config.average_decay, share, first, done)
    written = export(out, final_config, *run.weights(state), out / start.TOKENIZER, record=record)
    progress.say(f"wrote {written}: {config.exported} weights of step {done}")
    return 0


def one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Prints a warning without the line of code that it comes from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 (an error, in one line), 2 (usage) or 130 (Ctrl-C)."""
    warnings.showwarning = one_line_warning
    try:
        return train(sys.argv[1:] if arguments is None else arguments)
    except UniXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    sys.exit(main())

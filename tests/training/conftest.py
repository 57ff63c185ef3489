"""Runs of `train.py` that many tests look at, made once per worker."""

import contextlib
import dataclasses
import functools
import io

import pytest

from support import toy_run


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """stage -> a configuration file."""
    return toy_run.make_toy(tmp_path_factory.mktemp("toy"))


# Settings that a stage does not read.
AROUND_THE_STAGE = {
    "total_steps", "total_epochs", "total_samples", "data", "init", "distributed", "logging",
    "checkpoint_every", "log_every", "validate_every", "preview_every", "checkpoints",
    "validation", "previews", "evals",
}  # fmt: skip


@pytest.fixture(scope="session")
def train():
    """`train.py` as a module. Runs with equal stages share one, and with it its programs."""
    from unix_jax.commands import train as command

    made, make_stage = {}, command.make_stage

    def shared(config, model_config, mesh, total_steps, **options):
        read = dataclasses.asdict(config)
        for name in AROUND_THE_STAGE:
            del read[name]
        # Only the schedule of the learning rate depends on the length.
        length = None if config.optimizer.schedule == "constant" else total_steps
        key = mesh, repr((read, model_config.to_dict(), length, options))
        if key not in made:
            made[key] = make_stage(config, model_config, mesh, total_steps, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "make_stage", shared)
        yield toy_run.load_train()


@pytest.fixture(scope="session")
def whole(toy, train, tmp_path_factory):
    """stage -> the directory of a finished run of 8 steps; it is not to be changed.

    It holds checkpoints of the steps 6 and 8, and the export.
    """

    @functools.cache
    def run(stage):
        out, said = tmp_path_factory.mktemp("whole"), io.StringIO()
        # Whichever test is the first captures its own run alone.
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            assert train.main([str(toy(stage)), "--out", str(out)]) == 0, said.getvalue()
        return out

    return run

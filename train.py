"""Trains UniX: one script, read from top to bottom.

    python train.py configs/NAME.py --out DIR [--total-steps N] [--seed S] [--checkpoint-every K]
        [--mesh data=1,fsdp=8,tensor=1] [--init CHECKPOINT] [any field of TrainConfig]
        [--break-lock] [--restart-data]
    python train.py configs/NAME.py --dry-run [--topology v5e:4x4] [--mesh ...]

DIR afterwards holds
    run.json          what is run: settings and their history, sizes of the model
    tokenizer/        its files; source/ in it has those that go back to PyTorch
    metrics.jsonl     one object a logged step; validation.jsonl: one a validation
    checkpoints/      state, averaged weights, place in the data; the run continues from the newest;
                      `unix-jax export DIR` exports any of them
    frozen/           weights that the run does not change, written once
    tensorboard/ previews/ profile/
    export/           weights for inference, and for the --init of the next stage: the average
                      where there is one and it validates as well, or those of the last step

SIGTERM and Ctrl-C finish the step and write a checkpoint (exit code 0 and 130). An error that an
input caused is one line on standard error, exit code 1.
"""

import sys
from collections.abc import Sequence

from unix_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `unix-jax train`."""
    return cli.main(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())

"""Training of UniX from a configuration file; the same as `unix-jax train`.

    python train.py configs/NAME.py --out DIR [--total-steps N] [--seed S] [--checkpoint-every K]
        [--mesh data=1,fsdp=8,tensor=1] [--init CHECKPOINT] [any field of TrainConfig]
        [--break-lock] [--restart-data]
    python train.py configs/NAME.py --dry-run [--topology v5e:4x4] [--mesh ...]

The run writes these files into DIR:
    run.json          settings and their history, and the sizes of the model
    tokenizer/        the tokenizer; source/ in it has the files for exports to PyTorch
    metrics.jsonl     one object per logged step; validation.jsonl: one per validation
    checkpoints/      state, averaged weights, position in the data; the run resumes from the
                      newest; `unix-jax export DIR` exports any of them
    frozen/           weights that the run does not change, written once
    tensorboard/ previews/ profile/
    export/           weights for inference, and for the --init of the next stage: the average if
                      there is one and it validates as well, or the weights of the last step

SIGTERM and Ctrl-C finish the step and write a checkpoint (exit codes 0 and 130). An error caused by
an input is one line on standard error with exit code 1.
"""

import sys
from collections.abc import Sequence

from unix_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `unix-jax train`."""
    return cli.main(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())

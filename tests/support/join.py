"""One of several processes on one machine that find each other as a scheduler's variables say.

    python -m support.join [tpu]

Prints one line of JSON: this process's index, the number of processes, and what all of them sent.
`tpu`: as on a machine with TPUs, of which JAX has found the chips.
"""

import json
import os
import sys

import jax

from unix_jax.training import distributed


def main() -> None:
    if "tpu" in sys.argv[1:]:
        from jax._src.clusters import cloud_tpu_cluster

        cloud_tpu_cluster.running_in_cloud_tpu_vm = True
        # Set by JAX on machines without chips.
        os.environ.pop("TPU_SKIP_MDS_QUERY", None)
        # The chips' files and libtpu; JAX itself computes on the CPU here.
        distributed._has_tpu = lambda *_: True
    distributed.initialise()
    sent = distributed.collect(jax.process_index())
    print(json.dumps([jax.process_index(), jax.process_count(), sent]), flush=True)


if __name__ == "__main__":
    main()

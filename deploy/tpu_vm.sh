#!/bin/bash
# Installs and runs unix-jax on all machines of a TPU slice (Cloud TPU VMs).
#
#   export TPU=my-slice ZONE=us-west4-a
#   deploy/tpu_vm.sh install                              # copies this clone, installs it
#   deploy/tpu_vm.sh train stage1_understanding --init=/mnt/shared/janus --out=/mnt/shared/stage1 \
#       --data.source=array_record:/mnt/shared/mimic
#   deploy/tpu_vm.sh stop                                 # finish the step, write a checkpoint
#
# `--init`, `--out` and the data are paths that all machines share. The run ends with the ssh
# connections: start the script in tmux, or under nohup.
#
# NOT TRIED on TPUs. Checked by shellcheck; tests/deploy runs it with a stand-in for gcloud. The
# options exist in gcloud 528.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${TPU:?expected the name of the TPU slice}" "${ZONE:?expected the zone of the TPU slice}"
folder=unix-jax

everywhere() { # COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  install)
    # Without what git does not track.
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git ls-files -z | tar --null --files-from=- -czf "$archive"
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:unix-jax.tar.gz" --zone="$ZONE" --worker=all
    everywhere "mkdir -p $folder && tar -xzf unix-jax.tar.gz -C $folder && cd $folder &&
      ${PYTHON:-python3.11} -m venv .venv && .venv/bin/pip install -q -c constraints.txt '.[tpu,train,data]'"
    ;;
  train)
    shift
    if [ "$#" -eq 0 ]; then
      echo "error: expected a configuration, for example stage1_understanding, found none" >&2
      exit 2
    fi
    everywhere "cd $folder && exec .venv/bin/unix-jax train$(printf ' %q' "$@")"
    ;;
  stop)
    # Any one process tells the others.
    everywhere "pkill -TERM -f '[u]nix-jax train' || true"
    ;;
  *)
    echo "error: expected install, train or stop, found ${1:-nothing}" >&2
    exit 2
    ;;
esac

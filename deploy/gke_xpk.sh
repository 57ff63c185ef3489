#!/bin/bash
# The same as gke_jobset_tpu.yaml by XPK, which writes the JobSet itself.
#
#   export CLUSTER=my-cluster ZONE=us-west4-a PROJECT=my-project IMAGE=REGISTRY/unix-jax:tpu
#   deploy/gke_xpk.sh stage1_understanding --init=/shared/janus --out=/shared/runs/stage1 \
#       --data.source=array_record:/shared/mimic
#
# TPU_TYPE (v5litepod-16) and NUM_SLICES (1) choose the slices. A shared volume is attached to the
# cluster once with `xpk storage attach`.
#
# NOT TRIED on a cluster. Checked by shellcheck; its options exist in xpk 1.16.
set -euo pipefail

: "${CLUSTER:?expected the name of the cluster}" "${ZONE:?expected its zone}"
: "${PROJECT:?expected the Google Cloud project}" "${IMAGE:?expected an image with TARGET=tpu}"
if [ "$#" -eq 0 ]; then
  echo "error: expected a configuration, for example stage1_understanding, found none" >&2
  exit 2
fi

exec xpk workload create \
  --cluster="$CLUSTER" \
  --zone="$ZONE" \
  --project="$PROJECT" \
  --workload="${WORKLOAD:-unix-jax}" \
  --tpu-type="${TPU_TYPE:-v5litepod-16}" \
  --num-slices="${NUM_SLICES:-1}" \
  --docker-image="$IMAGE" \
  --max-restarts=20 \
  --termination-grace-period-seconds=300 \
  --command="unix-jax train$(printf ' %q' "$@")"

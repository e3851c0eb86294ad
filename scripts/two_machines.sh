#!/bin/bash
# Train on two machines: give the same command on both, with the address of one of them and a name for the run.
#     bash scripts/two_machines.sh 10.0.0.1 NAME --depth=20 --data=fineweb
# PROCESSES on each machine (without: its GPUs); PROGRAM: another than the training of a base model.
# Both machines have to see the same $NANOCHAT_BASE_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
usage="bash scripts/two_machines.sh ADDRESS NAME [flags]: the address of one of the two, and the run's name"
first=${1:?$usage} name=${2:?$usage}
shift 2
exec .venv/bin/python -m scripts.several --nnodes=2 --nproc-per-node="${PROCESSES:-gpu}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:${PORT:-29400}" --rdzv-id="$name" \
    --max-restarts="${RESTARTS:-3}" ${AGENT_FLAGS:-} -m "${PROGRAM:-scripts.base_train}" "$@"

#!/bin/bash
# Train under Slurm: sbatch --nodes=8 scripts/slurm.sh --depth=32 --data=fineweb
#SBATCH --job-name=nanochat
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=TERM@180
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun --kill-on-bad-exit=1 .venv/bin/python -m scripts.several \
    --nnodes="$SLURM_NNODES" --nproc-per-node="${PROCESSES:-gpu}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first:${PORT:-29400}" --rdzv-id="$SLURM_JOB_ID" \
    --max-restarts="${RESTARTS:-3}" -m "${PROGRAM:-scripts.base_train}" "$@"

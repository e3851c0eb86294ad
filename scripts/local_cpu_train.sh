#!/bin/bash
# The full pipeline on a CPU, as far as it exists: corpus, tokenizer, base model with evaluation and samples.
# Further flags are passed on to the training: bash scripts/local_cpu_train.sh --time_limit=600
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || make environment
.venv/bin/python -m nanochat.dataset
.venv/bin/python -m scripts.tok_train
exec .venv/bin/python -m scripts.base_train \
    --depth=4 \
    --max_seq_len=512 \
    --device_batch_size=8 \
    --total_batch_size=16384 \
    --time_limit=5400 \
    --num_iterations=1000 \
    --eval_tokens=-1 \
    --core_metric_every=-1 \
    --sample_every=250 \
    --save_every=250 \
    --device_type=cpu \
    "$@"

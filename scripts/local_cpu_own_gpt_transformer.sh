#!/bin/bash
# One quick iteration on the CPU: does the model still build, train a step, evaluate and sample?
# The model is yours, if there is a workshop (`make learn` makes one), and the book's if not.
# From a fresh clone the first call also makes the environment, the corpus and the tokenizer.
# Further flags are passed on: bash scripts/local_cpu_own_gpt_transformer.sh --num_iterations=20
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || make environment
.venv/bin/python -m nanochat.dataset >&2
.venv/bin/python -m scripts.tok_train >&2
whose=book
[ ! -e workshop/normans_gpt.py ] || whose=mine
exec .venv/bin/python -m scripts.base_train \
    --gpt="$whose" \
    --depth=4 \
    --max_seq_len=512 \
    --device_batch_size=1 \
    --eval_tokens=512 \
    --core_metric_every=-1 \
    --total_batch_size=512 \
    --num_iterations=1 \
    --device_type=cpu \
    --save_every=-1 \
    "$@"

#!/bin/bash
# One quick iteration on the CPU: does the model still build, train a step, evaluate and sample?
# The model is yours, workshop/normans_gpt.py, at first a copy of the skeleton; the first gap in it ends the script.
# Another one: GPT=book bash scripts/local_cpu_own_gpt_transformer.sh, or --gpt=book behind it.
# In a fresh clone a complete model's first call also makes the corpus and the tokenizer.
# Further flags are passed on: bash scripts/local_cpu_own_gpt_transformer.sh --num_iterations=20
set -euo pipefail
cd "$(dirname "$0")/.."

whose=${GPT:-mine} before=
for argument in "$@"; do
    case $argument in --gpt=*) whose=${argument#--gpt=} ;; esac
    [ "$before" != --gpt ] || whose=$argument
    before=$argument
done

[ -x .venv/bin/python ] || make environment
[ "$whose" != mine ] || .venv/bin/python -m scripts.learn run --then-train
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

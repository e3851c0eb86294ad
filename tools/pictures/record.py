"""Keep what a training run wrote, so that pictures and sentences can quote it: results/train-cpu.json.

    python -m tools.pictures.record RUN --command="python -m scripts.quickstart"

RUN is the run's folder or its tag. Of several, as of three seeds, the first is kept whole, and of all of them
the numbers and the median. Run it on the machine that trained.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import find_run, last_save, read_record, saved_steps
from nanochat.common import write_atomically
from nanochat.run_log import read_metrics
from nanochat.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
RECORD = "results/train-cpu.json"
SENTENCE = "In 1936 America's unemployed didn't need a naïve tokenizer."
ATTENDED = "The people of the United States elected the President of the United"
COLUMNS = {"step": 0, "loss": 4, "smooth_loss": 4, "lrm": 4, "grad_norm": 4, "seconds": 1}  # digits kept


def record_of(folder: Path, command: str, code: str = "", note: str = "") -> dict[str, Any]:
    """What a finished run was and wrote, as one JSON object."""
    from nanochat.records import describe_machine

    step = saved_steps(folder)[-1]
    meta = read_record(folder, step)["meta"]
    metrics = read_metrics(folder)
    steps = [line for line in metrics if "loss" in line]
    scores = [line for line in metrics if "val_bpb" in line]
    tokenizer = Tokenizer.load(folder / "tokenizer")
    samples = (folder / "samples.txt").read_text(encoding="utf-8").split(f"--- step {step}\n")[1]
    machine = describe_machine("cpu")
    config = meta["config"]
    return {
        "format": 1,
        "date": datetime.fromtimestamp(last_save(folder)[0], UTC).isoformat(timespec="seconds"),
        "command": command,
        "note": note,
        "machine": machine | ({"code": code} if code else {}),
        "config": config,
        "model": meta["model"],
        "numbers": numbers_of(folder),
        "metrics": {name: [round(line[name], digits) for line in steps] for name, digits in COLUMNS.items()},
        "validation": [{**line, "val_bpb": round(line["val_bpb"], 4)} for line in scores],
        "samples": cut_samples(samples),
        "sentence": [[token, tokenizer.tokens[token].hex()] for token in tokenizer.encode(SENTENCE)],
        **look_inside(folder, tokenizer),
    }


def numbers_of(folder: Path) -> dict[str, float]:
    """What a finished run came to."""
    step = saved_steps(folder)[-1]
    meta, metrics = read_record(folder, step)["meta"], read_metrics(folder)
    steps = [line for line in metrics if "loss" in line]
    scores = [line for line in metrics if "val_bpb" in line]
    tokens, progress = step * meta["config"]["total_batch_size"], meta["progress"]
    numbers = {
        "seconds": round(progress["seconds"], 1),
        "minutes": round(progress["seconds"] / 60, 2),
        "training-share": round(progress["train_seconds"] / progress["seconds"], 3),
        "steps": step,
        "tokens": tokens,
        "parameters": meta["parameters"],
        "untrained-loss": round(steps[0]["loss"], 4),
        "loss": round(steps[-1]["smooth_loss"], 4),
        "bpb": round(scores[-1]["val_bpb"], 4),
        "tokens-per-second": round(tokens / progress["train_seconds"]),
    }
    return numbers | ({"untrained-bpb": round(scores[0]["val_bpb"], 4)} if scores[0]["step"] == 0 else {})


def look_inside(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Where the trained heads look in a sentence, what the model expects next, and how surely."""
    import torch

    from nanochat.checkpoint_manager import load_checkpoint
    from nanochat.normans_gpt import GPT, GPTConfig
    from tools.pictures.attention import watching_attention

    saved = load_checkpoint(folder, weights_only=True)
    model = GPT(GPTConfig(**saved.meta["model"]))
    model.load_state_dict(saved.model)
    ids = tokenizer.encode(ATTENDED, prepend=tokenizer.bos)
    with torch.no_grad(), watching_attention() as seen:
        logits = model(torch.tensor([ids]))[0]
    best = logits.softmax(-1).max(-1)
    after_one_word = logits[1]
    likeliest = after_one_word.topk(8).indices.tolist()
    heads = {
        f"{b}.{h}": [[round(weight, 2) for weight in row] for row in head.tolist()]
        for b, block in enumerate(seen)
        for h, head in enumerate(block)
    }
    return {
        "attention": {
            "tokens": ["bos", *(tokenizer.decode([token]) for token in ids[1:])],
            "heads": heads,
            "next": [
                [tokenizer.decode([token]), round(sure, 2)]
                for token, sure in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ],
        },
        "temperature": {
            "prompt": tokenizer.decode(ids[1:2]),
            "tokens": [tokenizer.decode([token]) for token in likeliest],
            "shares": {
                f"{t}": [round(share, 4) for share in (after_one_word / t).softmax(-1)[likeliest].tolist()]
                for t in (0.5, 1.0, 2.0)
            },
        },
    }


def cut_samples(text: str) -> list[str]:
    """One sample for each prompt, on one line; a sample may have paragraphs of its own."""
    from nanochat.looks import PROMPTS

    starts = [text.index(prompt) for prompt in PROMPTS]
    ends = [*starts[1:], len(text)]
    return [" ".join(text[start:end].split()) for start, end in zip(starts, ends, strict=True)]


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(prog="python -m tools.pictures.record", description="Keep a run.")
    parser.add_argument("run", nargs="+", help="a run's folder, or its tag; several: other seeds")
    parser.add_argument("--command", required=True, help="what was typed to train")
    parser.add_argument("--code", default="", help="the commit that trained, if it is not the present one")
    parser.add_argument("--note", default="", help="what else a reader should know")
    parser.add_argument("--out", default=RECORD)
    options = parser.parse_args()
    folders = [Path(run) if Path(run).is_dir() else find_run(run) for run in options.run]
    record = record_of(folders[0], options.command, options.code, options.note)
    if len(folders) > 1:
        record["seeds"] = [numbers_of(folder) for folder in folders]
        record["median-bpb"] = statistics.median(numbers["bpb"] for numbers in record["seeds"])
    text = json.dumps(record, ensure_ascii=False, indent=1)
    write_atomically(ROOT / options.out, compact(text) + "\n")
    print(f"wrote {options.out}: {record['numbers']}")


def compact(text: str) -> str:
    """JSON with lists of plain values on one line each."""
    inner = re.compile(r"\[\s*([^\[\]{}]*?)\s*\]")
    return inner.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)


if __name__ == "__main__":
    main()

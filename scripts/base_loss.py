"""Bits per byte on both splits, and a few texts: python -m scripts.base_loss, or with --hf_path=FOLDER."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import (
    Ranks,
    UserError,
    init_ranks,
    leave_ranks,
    pick_device,
    print0,
    run_program,
    write_atomically,
)
from nanochat.flags import LARGEST_TEMPERATURE, flag, keep_in_range, parse_flags
from nanochat.machine import autocast_dtype
from nanochat.opened import ModelChoice, Opened, free_name, open_model, with_autocast

if TYPE_CHECKING:
    import torch

WEIGHTS = ("", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class LossConfig(ModelChoice):
    """The flags of scripts.base_loss."""

    data: str = flag("", "name of the corpus (without: the run's)")
    eval_tokens: int = flag(2**19, "tokens of each split, at most; -1: as the validation text has")
    device_batch_size: int = flag(16, "sequences in one pass")
    max_tokens: int = flag(48, "tokens to add to each prompt; 0: write nothing")
    temperature: float = flag(0.8, "0 takes the likeliest token, 1 samples as is")
    weights: str = flag("", "round the matrices as for decoding (without: as they are)", choices=WEIGHTS)

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        super().__post_init__()
        if self.eval_tokens == 0 or self.eval_tokens < -1:
            raise UserError(f"--eval_tokens={self.eval_tokens}: at least 1, or -1 for all there are")
        keep_in_range(self, ("device_batch_size",), 1)
        keep_in_range(self, ("max_tokens",), 0)
        keep_in_range(self, ("temperature",), 0, LARGEST_TEMPERATURE)


class ForeignTokenizer:
    """What the loader and the measure need, from a byte-level tokenizer of the library transformers."""

    def __init__(self, theirs: Any, vocab_size: int, name: str) -> None:
        """`vocab_size` is the model's, which may be larger. Raises UserError for another kind."""
        first = theirs.bos_token_id if theirs.bos_token_id is not None else theirs.eos_token_id
        if first is None:
            raise UserError(f"--hf_path={name}: the tokenizer has no token that begins a document")
        self.bos, self._theirs = int(first), theirs
        self._sizes = self._count_bytes(vocab_size, name)

    def _count_bytes(self, vocab_size: int, name: str) -> list[int]:
        from nanochat.hf_format import ALPHABET

        spelt = set(ALPHABET.values())
        sizes = [0] * vocab_size
        for number, token in enumerate(self._theirs.convert_ids_to_tokens(range(len(self._theirs)))):
            added = self._theirs.added_tokens_decoder.get(number)
            if added is not None:
                sizes[number] = 0 if added.special else len(added.content.encode())
            elif token is not None:
                if not spelt.issuperset(token):
                    raise UserError(
                        f"--hf_path={name}: token {number}, {token!r}, is not spelt in bytes, so how many it "
                        "stands for is not known; only byte-level tokenizers can be measured"
                    )
                sizes[number] = len(token)
        return sizes

    def encode(self, texts: list[str], prepend: int) -> list[list[int]]:
        """Token ids of each text, after `prepend`."""
        rows: list[list[int]] = self._theirs(texts, add_special_tokens=False)["input_ids"]
        return [[prepend, *row] for row in rows]

    def fingerprint(self) -> str:
        """What tells it from others: a checksum over its tokens."""
        return hashlib.sha256(json.dumps(self._theirs.get_vocab(), sort_keys=True).encode()).hexdigest()

    def token_bytes(self) -> torch.Tensor:
        """The number of bytes of each token, int64 of shape (V,); 0 for special tokens."""
        import torch

        return torch.tensor(self._sizes, dtype=torch.int64)


def losses_of(opened: Opened, foreign: bool, dtype: torch.dtype | None) -> Callable[..., torch.Tensor]:
    """A function as evaluate_bpb wants it: inputs and targets (B, T) to the loss of each target, (B·T,)."""
    import torch.nn.functional as F

    def theirs(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        logits = opened.subject.logits(inputs).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=loss_reduction)

    def ours(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        def losses(ids: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = opened.model(ids, targets, loss_reduction=loss_reduction)
            return found

        return with_autocast(losses, inputs.device, dtype)(inputs)

    return theirs if foreign else ours


class Counted:
    """Passes up to `most` batches on (None: all), and counts them and their targets."""

    def __init__(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], most: int | None) -> None:
        self.batches, self.most = batches, most
        self.passes = self.targets = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for inputs, targets in itertools.islice(self.batches, self.most):
            self.passes += 1
            self.targets += int((targets >= 0).sum())
            yield inputs, targets


def measure(
    config: LossConfig, opened: Opened, tokenizer: Any, data: str, ranks: Ranks, device: torch.device
) -> dict[str, float]:
    """Bits per byte of both splits, and the tokens that were predicted in each."""
    import torch

    from nanochat.dataloader import TokenLoader
    from nanochat.loss_eval import evaluate_bpb

    losses = losses_of(opened, bool(config.hf_path), autocast_dtype(device, config.dtype))
    size, length = config.device_batch_size, opened.subject.context
    most = -(-config.eval_tokens // (size * length * ranks.world_size)) if config.eval_tokens > 0 else None
    token_bytes = tokenizer.token_bytes().to(device)
    found: dict[str, float] = {}
    for split in ("val", "train"):
        loader = TokenLoader(data, split, tokenizer, size, length, ranks, device=device, shuffle_window=1)
        batches = Counted(loader, most)
        try:
            found[split] = evaluate_bpb(losses, batches, 0, token_bytes, ranks)
        finally:
            loader.close()
        most = batches.passes  # of the training text as many as there were of the other
        targets = torch.tensor(batches.targets, device=device)
        if ranks.world_size > 1:
            torch.distributed.all_reduce(targets)
        found[f"{split}_tokens"] = int(targets)
    return found


def write_texts(config: LossConfig, opened: Opened, tokenizer: Any) -> list[str]:
    """Continuations of the prompts of training."""
    import torch

    from nanochat.looks import PROMPTS

    if not config.max_tokens:
        return []
    prompts = tokenizer.encode(list(PROMPTS), prepend=tokenizer.bos)
    if not config.hf_path:
        from nanochat.engine import Engine

        stop = {tokenizer.bos}
        added = Engine(opened.model).complete(prompts, config.max_tokens, config.temperature, 50, stop=stop)
        return [tokenizer.decode([*prompt[1:], *new]) for prompt, new in zip(prompts, added, strict=True)]
    torch.manual_seed(42)
    how = {"do_sample": True, "temperature": config.temperature, "top_k": 50} if config.temperature else {}
    texts = []
    for prompt in prompts:
        row = torch.tensor([prompt], device=opened.subject.device)
        mask = torch.ones_like(row)
        made = opened.model.generate(
            row, attention_mask=mask, max_new_tokens=config.max_tokens, pad_token_id=tokenizer.bos, **how
        )
        texts.append(opened.tokenizer.decode(made[0, 1:], skip_special_tokens=True))
    return texts


def main() -> None:
    """Measure, write, report."""
    about = "Bits per byte on both splits, and a few texts."
    config = parse_flags(LossConfig, sys.argv[1:], "python -m scripts.base_loss", about)
    ranks = init_ranks(config.device_type)
    device = pick_device(config.device_type, ranks)
    from nanochat.decoding import round_weights
    from nanochat.records import describe_machine

    opened = open_model(config, device)
    if config.weights:
        round_weights(opened.model, config.weights)
    tokenizer = opened.tokenizer
    if config.hf_path:
        tokenizer = ForeignTokenizer(tokenizer, opened.subject.vocab_size, config.hf_path)
    data = config.data or str(opened.about.get("data", ""))
    if not data:
        raise UserError("which text? Give the name of a corpus with --data, such as --data=sotu")
    found = measure(config, opened, tokenizer, data, ranks, device)
    for split in ("train", "val"):
        print0(f"{split} bpb: {found[split]:.4f} ({found[f'{split}_tokens']:,} tokens of {data})")
    if ranks.first:
        texts = write_texts(config, opened, tokenizer)
        for text in texts:
            print0(" ".join(text.split()))
        record = {
            "format": 1,
            "command": shlex.join(["python", "-m", "scripts.base_loss", *sys.argv[1:]]),
            "data": data,
            "context": opened.subject.context,
            "model": opened.about,
            "weights": config.weights,
            "machine": describe_machine(device.type),
            "samples": texts,
            "numbers": found,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        folder = Path(config.out).expanduser() if config.out else opened.folder
        path = free_name(folder, opened.stem.replace("core", "loss"))
        write_atomically(path, text)
        if config.record:
            write_atomically(Path(config.record), text)
        print0(f"kept in {path}")
    leave_ranks()


if __name__ == "__main__":
    run_program(main)

"""Open a run: its newest checkpoint, in its model, with its tokenizer. Imports no PyTorch before that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanochat.common import UserError

if TYPE_CHECKING:
    import torch

    from nanochat.checkpoint_manager import Checkpoint
    from nanochat.normans_gpt import GPT
    from nanochat.tokenizer import Tokenizer


def load_trained(tag: str, device: torch.device, gpt: str = "") -> tuple[GPT, Tokenizer, Checkpoint]:
    """The newest good checkpoint of a run, in the model it was trained with or another, and its tokenizer.

    All weights are float32, none rounded. Raises UserError if they are not there or do not belong together.
    """
    from nanochat.checkpoint_manager import find_run, load_checkpoint
    from nanochat.models import load_gpt
    from nanochat.step import empty_model
    from nanochat.tokenizer import Tokenizer

    folder = find_run(tag)
    checkpoint = load_checkpoint(folder, weights_only=True)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint() != checkpoint.meta["tokenizer"]:
        raise UserError(f"{folder / 'tokenizer'} is not the one this model was trained with; restore it")
    shape = checkpoint.meta["model"]
    if tokenizer.vocab_size != shape["vocab_size"]:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, the model "
            f"{shape['vocab_size']:,}: they do not belong together"
        )
    name = gpt or checkpoint.meta.get("gpt", {"name": "book"})["name"]
    model = empty_model(load_gpt(name), shape, device)
    model.init_weights()  # for the rotary tables, which no checkpoint holds
    model.float()  # before the weights come: init_weights leaves the embedding in bfloat16 on CUDA
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:  # names or shapes of tensors that differ, one a line
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint in {folder} is of another architecture than --gpt={name} ({reason} …): choose "
            "the model that it was trained with"
        ) from error
    return model, tokenizer, checkpoint


def load_model(tag: str, device: torch.device, gpt: str = "") -> tuple[GPT, Tokenizer]:
    """The same to write texts with: without the checkpoint, and on CUDA rounded to bfloat16."""
    model, tokenizer, _ = load_trained(tag, device, gpt)
    return (model.bfloat16() if device.type == "cuda" else model), tokenizer

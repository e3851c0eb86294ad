"""Make a folder of transformers' NanoChat a run: python -m scripts.import_hf --folder=my-model."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.common import UserError, in_short, run_program
from nanochat.flags import REQUIRED, flag, parse_flags

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImportConfig:
    """The flags of scripts.import_hf."""

    folder: str = flag(REQUIRED, "the folder to read: config.json, safetensors, tokenizer.json")
    model_tag: str = flag("", "the new run's tag (without: the folder's name)")


def file_of_each_tensor(index: Path) -> dict[str, str]:
    """What an index of several files says; all of them lie in its folder. Raises UserError."""
    from nanochat.hf_format import read_json

    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not wanted:
        raise UserError(f"{index}: weight_map is {in_short(wanted)}, wanted a file for each tensor")
    for name, file in wanted.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", file):
            raise UserError(
                f"{index}: {in_short(name)} is to be in {in_short(file)}, "
                "wanted a .safetensors file of this folder"
            )
    return wanted


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A folder's tensors under this book's names, from one safetensors file or several. Raises UserError."""
    from safetensors import SafetensorError, safe_open

    from nanochat.hf_format import our_name

    index = folder / "model.safetensors.index.json"
    wanted: dict[str, str] = {}
    if index.exists():
        wanted = file_of_each_tensor(index)
    elif not (folder / "model.safetensors").exists():
        if any(folder.glob("pytorch_model*.bin")):
            raise UserError(f"{folder} has its weights in pytorch_model.bin, a program, which is not run")
        raise UserError(f"{folder} has no model.safetensors and no index of several: half downloaded?")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted({folder / name for name in wanted.values()} or {folder / "model.safetensors"}):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if not name.endswith("rotary_emb.inv_freq"):  # a table that older versions stored
                        tensors[our_name(name)] = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{path} can not be read, perhaps half downloaded: {error}") from None
    lost = [name for name in wanted if our_name(name) not in tensors and not name.endswith("inv_freq")]
    if lost:
        raise UserError(f"{index} promises {lost[0]} in {wanted[lost[0]]}, where it is not")
    return tensors


def import_folder(folder: Path, tag: str) -> tuple[Path, list[str]]:
    """Make a folder in transformers' format a new run; returns its folder, and remarks on what will differ.

    Raises UserError, before anything is created, for what is not a whole model of this architecture.
    """
    import torch

    from nanochat import hf_format
    from nanochat.checkpoint_manager import new_run, save_checkpoint
    from nanochat.models import choose_gpt
    from nanochat.normans_gpt import GPT, GPTConfig

    if not folder.is_dir():
        raise UserError(f"--folder={folder} is no folder")
    shape, remarks = hf_format.read_shape(folder / "config.json")
    try:
        config = GPTConfig(**shape)
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    tokenizer = hf_format.read_tokenizer(folder)
    hf_format.refuse_another_cut(tokenizer, folder)
    if tokenizer.vocab_size != shape["vocab_size"]:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens and the model "
            f"{shape['vocab_size']:,}: they do not belong together"
        )
    tensors = read_weights(folder)
    hf_format.refuse_other_tensors(tensors, hf_format.expected_shapes(shape), folder)
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(tensors, assign=True)

    default = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._") or "imported"
    run = new_run(tag, default)
    tokenizer.save(run / "tokenizer", trained_on=f"imported from {folder.name}")
    meta = {
        "imported": {"folder": str(folder.resolve()), "remarks": remarks},
        "gpt": choose_gpt("book").record(),
        "model": shape,
        "tokenizer": tokenizer.fingerprint(),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
    }
    save_checkpoint(run, 0, model, [], meta)
    return run, remarks


def main() -> None:
    """Import the folder that the flags name and say how to use it."""
    about = "Make a folder of transformers a run."
    config = parse_flags(ImportConfig, sys.argv[1:], "python -m scripts.import_hf", about)
    run, remarks = import_folder(Path(config.folder).expanduser(), config.model_tag)
    for remark in remarks:
        print(f"remark: {remark}")
    print(f"the model is now run {run.name}, in {run}")
    print(f"let it write: python -m scripts.sample --run={run.name}")


if __name__ == "__main__":
    run_program(main)

"""Checkpoints: safetensors and JSON, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanochat.common import UserError, base_dir, cannot_write, one_at_a_time, write_atomically

FORMAT = 1  # to be raised when what is written changes meaning
META_NAME = re.compile(r"meta_(\d{6,})\.json")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def file_name(kind: str, step: int) -> str:
    """`model_000123.safetensors`, `optim_000123.safetensors` or `meta_000123.json`."""
    return f"{kind}_{step:06d}.{'json' if kind == 'meta' else 'safetensors'}"


def digest(record: dict[str, Any]) -> str:
    """SHA-256 of a JSON-able record in one fixed spelling: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def flatten_optimizers(
    optimizers: Sequence[torch.optim.Optimizer],
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Split the optimizers' state_dicts into what JSON can hold and a flat dictionary of tensors."""
    described: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for i, optimizer in enumerate(optimizers):
        state_dict = optimizer.state_dict()
        numbers: dict[str, dict[str, Any]] = {}
        for parameter, entries in state_dict["state"].items():
            numbers[str(parameter)] = {}
            for name, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{i}.{parameter}.{name}"] = value
                else:
                    numbers[str(parameter)][name] = value
        described.append({"state": numbers, "param_groups": state_dict["param_groups"]})
    return described, tensors


def rebuild_optimizers(
    described: list[dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> list[dict[str, Any]]:
    """The inverse of flatten_optimizers: state_dicts that `optimizer.load_state_dict` takes."""
    state_dicts: list[dict[str, Any]] = []
    for description in described:
        groups = [
            {key: tuple(v) if isinstance(v, list) and key != "params" else v for key, v in group.items()}
            for group in description["param_groups"]
        ]
        state = {int(parameter): dict(entries) for parameter, entries in description["state"].items()}
        state_dicts.append({"state": state, "param_groups": groups})
    for key, tensor in tensors.items():
        i, parameter, name = key.split(".", 2)
        state_dicts[int(i)]["state"][int(parameter)][name] = tensor
    return state_dicts


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    meta: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write everything needed to go on from `step` into `folder`; returns the path of the JSON, written last.

    meta: anything JSON can hold, returned as it is by load_checkpoint. tensors: further tensors of any dtype
    (random generators). Raises OSError if the disk is full; then no checkpoint of this step exists.
    """
    from safetensors.torch import save

    described, optimizer_tensors = flatten_optimizers(optimizers)
    optimizer_tensors.update({f"extra.{name}": tensor for name, tensor in (tensors or {}).items()})
    files = {}
    for kind, content in (("model", model.state_dict()), ("optim", optimizer_tensors)):
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()})
        write_atomically(folder / file_name(kind, step), data)
        files[file_name(kind, step)] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record = {"format": FORMAT, "step": step, "files": files, "optimizers": described, "meta": meta}
    path = folder / file_name("meta", step)
    write_atomically(path, json.dumps({"sha256": digest(record), **record}, indent=1) + "\n")
    return path


class Damaged(UserError):
    """A checkpoint that exists but can not be trusted; the message names the file and what is wrong."""


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The JSON of one checkpoint, after checking its own checksum. Raises Damaged."""
    path = folder / file_name("meta", step)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop("sha256")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise Damaged(f"{path} can not be read ({error.__class__.__name__}: {error})") from error
    if digest(record) != expected:
        raise Damaged(f"{path} was changed after it was written: its checksum does not match")
    if record["format"] != FORMAT:
        raise Damaged(f"{path} has format {record['format']}; this version reads format {FORMAT}")
    if record["step"] != step:
        raise Damaged(f"{path} was renamed: it describes step {record['step']}")
    return dict(record)


def read_tensors(path: Path, expected: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, after checking its length and checksum. Raises Damaged."""
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} can not be read ({error.strerror or error})") from error
    if len(data) != expected["bytes"]:
        raise Damaged(f"{path} has {len(data):,} bytes, expected {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path} was changed after it was written: its checksum does not match")
    return dict(load(data))


@dataclass(frozen=True)
class Checkpoint:
    """What save_checkpoint was given, read back: tensors are on the CPU."""

    folder: Path
    step: int
    model: dict[str, torch.Tensor]
    optimizers: list[dict[str, Any]]
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a complete (though perhaps since damaged) checkpoint in `folder`, ascending."""
    return sorted(int(m[1]) for path in folder.glob("meta_*.json") if (m := META_NAME.fullmatch(path.name)))


def load_checkpoint(folder: Path, step: int | None = None, weights_only: bool = False) -> Checkpoint:
    """Read the checkpoint of `step`, or the newest good one; a damaged one passed over is named on stderr.

    weights_only: leave `optimizers` and `tensors` empty and their file unread. Raises UserError.
    """
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: it saved none (--save_every=-1) or was stopped before")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}: there are {', '.join(map(str, steps))}")
    for candidate in [step] if step is not None else reversed(steps):
        try:
            return read_checkpoint(folder, candidate, weights_only)
        except Damaged as error:
            if step is not None:
                raise
            if os.environ.get("RANK", "0") == "0":
                print(f"warning: passing over a damaged checkpoint: {error}", file=sys.stderr)
    raise UserError(f"all {len(steps)} checkpoints in {folder} are damaged (see the warnings): train again")


def read_checkpoint(folder: Path, step: int, weights_only: bool) -> Checkpoint:
    """Read and verify one checkpoint. Raises Damaged."""
    record = read_record(folder, step)

    def tensors_of(kind: str) -> dict[str, torch.Tensor]:
        name = file_name(kind, step)
        return read_tensors(folder / name, record["files"][name])

    model = tensors_of("model")
    if weights_only:
        return Checkpoint(folder, step, model, [], {}, record["meta"])
    optimizer_tensors = tensors_of("optim")
    extra = {
        name.removeprefix("extra."): optimizer_tensors.pop(name)
        for name in list(optimizer_tensors)
        if name.startswith("extra.")
    }
    optimizers = rebuild_optimizers(record["optimizers"], optimizer_tensors)
    return Checkpoint(folder, step, model, optimizers, extra, record["meta"])


def runs_folder() -> Path:
    """Where all runs lie: `base_dir()/base_checkpoints`."""
    return base_dir() / "base_checkpoints"


def new_run(tag: str, default_tag: str) -> Path:
    """Create the folder of a fresh run: `tag`, or without one the first free of `default_tag`, `-2`, `-3`, …

    Raises UserError if `tag` is taken, or is no plain name, or the folder cannot be made.
    """
    if tag and not TAG.fullmatch(tag):
        raise UserError(f"--model_tag={tag}: use letters and digits, with '.', '_' and '-' only between them")
    names = [tag] if tag else (default_tag if n == 1 else f"{default_tag}-{n}" for n in itertools.count(1))
    for name in names:
        folder = runs_folder() / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(folder, error) from error
        return folder
    raise UserError(f"--model_tag={tag}: {folder} already holds a run; use --resume={tag} or another tag")


def find_run(tag: str = "latest") -> Path:
    """The folder of run `tag`, or of the run that saved last. Raises UserError naming the runs there are."""
    candidates = [path for path in runs_folder().glob("*/") if saved_steps(path)]
    if tag == "latest":
        if not candidates:
            raise UserError(f"no checkpoint yet in {runs_folder()}: train first (make train)")
        return max(candidates, key=last_save)
    folder = runs_folder() / tag
    if not TAG.fullmatch(tag) or not folder.is_dir():
        known = ", ".join(sorted(path.name for path in candidates)) or "none yet"
        raise UserError(f"no run {tag!r} in {runs_folder()}; runs with a checkpoint: {known}")
    return folder


def last_save(folder: Path) -> float:
    """When the run in `folder` last completed a checkpoint, in seconds since 1970."""
    return max((folder / file_name("meta", step)).stat().st_mtime for step in saved_steps(folder))


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """The block in which this process alone trains in a run's folder. Raises UserError naming another."""
    return one_at_a_time(folder / ".lock", f"trains in {folder}", wait=False)

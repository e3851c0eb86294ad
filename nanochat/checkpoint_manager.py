"""Checkpoints: safetensors and JSON, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from nanochat import system
from nanochat.common import (
    CannotWrite,
    UserError,
    base_dir,
    cannot_write,
    make_folder,
    one_at_a_time,
    refuse_without_space,
    remove_drafts,
    typed,
    write_atomically,
    write_together,
)

Result = TypeVar("Result")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


FORMAT = 1  # to be raised when what is written changes meaning
META_NAME = re.compile(r"meta_(\d{6,})\.json")
FILE_NAME = re.compile(r"(model|optim)_\d{6,}(-\d+)?\.safetensors")
MARGIN = 2**20  # bytes: more than the JSON and the headers take


def file_name(kind: str, step: int) -> str:
    """`model_000123.safetensors`, `optim_000123.safetensors` or `meta_000123.json`."""
    return f"{kind}_{step:06d}.{'json' if kind == 'meta' else 'safetensors'}"


def digest(record: dict[str, Any]) -> str:
    """SHA-256 of a JSON-able record in one fixed spelling: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def signed(record: dict[str, Any]) -> str:
    """The record as text, with its checksum as the first entry."""
    return json.dumps({"sha256": digest(record), **record}, indent=1) + "\n"


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
    """Write everything needed to go on from `step` into `folder`; returns the path of the JSON, named last.

    meta: anything JSON can hold, returned as it is by load_checkpoint. tensors: further tensors of any dtype
    (random generators). When it returns, the checkpoint survives a power cut; until then an older one of the
    same step does. Raises CannotWrite, and nothing has changed, if the disk is full or may not be written.
    """
    described, optimizer_tensors = flatten_optimizers(optimizers)
    optimizer_tensors.update({f"extra.{name}": tensor for name, tensor in (tensors or {}).items()})
    parts = {"model": model.state_dict(), "optim": optimizer_tensors}
    size = sum(tensor.nbytes for content in parts.values() for tensor in content.values())
    path = folder / file_name("meta", step)
    refuse_without_space(folder, size + MARGIN)
    names = {kind: unused_name(folder, kind, step) for kind in parts}

    def contents() -> Iterator[tuple[Path, bytes | str]]:
        from safetensors.torch import save

        files = {}
        for kind, content in parts.items():
            data = save({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()})
            files[names[kind]] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            yield folder / names[kind], data
        record = {"format": FORMAT, "step": step, "files": files, "optimizers": described, "meta": meta}
        yield path, signed(record)

    write_together(contents())
    remove_unnamed(folder, step, names.values())
    return path


def unused_name(folder: Path, kind: str, step: int) -> str:
    """The usual name of a file, or where that one is taken the first free one with a number."""
    usual = Path(file_name(kind, step))
    names = itertools.chain([usual.name], (f"{usual.stem}-{n}{usual.suffix}" for n in itertools.count(2)))
    return next(name for name in names if not (folder / name).exists())


def remove_unnamed(folder: Path, step: int, named: Collection[str]) -> None:
    """Remove files of this step's checkpoint that its JSON does not name; what resists stays."""
    for path in folder.glob(f"*_{step:06d}*.safetensors"):
        if path.name not in named and FILE_NAME.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def change_meta(folder: Path, step: int, meta: dict[str, Any]) -> None:
    """Replace what a checkpoint says of itself; its weights stay. Raises Damaged or CannotWrite."""
    record = read_record(folder, step)
    write_atomically(folder / file_name("meta", step), signed({**record, "meta": meta}))


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove a checkpoint, its JSON first; none of that step is fine. Raises CannotWrite."""
    path = folder / file_name("meta", step)
    try:
        path.unlink(missing_ok=True)
        system.flush_folder(folder)
    except OSError as error:
        raise cannot_write(path, error) from error
    remove_unnamed(folder, step, ())


WAITS = (15.0, 30.0, 60.0, 120.0, 240.0)  # seconds


def save_patiently(save: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """Call `save` until the disk takes it, with a line and a wait between; raises the last CannotWrite."""
    for wait in WAITS:
        try:
            return save()
        except CannotWrite as error:
            say(f"not saved yet: {error}. Trying again in {wait:.0f} s")
            time.sleep(wait)
    return save()


class Damaged(UserError):
    """A checkpoint that exists but can not be trusted; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Written:
    """What the JSON of a checkpoint holds, its checksum aside."""

    format: int
    step: int
    files: dict[str, Any]
    optimizers: list[dict[str, Any]]
    meta: dict[str, Any]


@dataclass(frozen=True)
class File:
    """What the JSON says of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Meta:
    """What more than one program reads from a checkpoint; a run may say more."""

    model: dict[str, int] = field(default_factory=dict)  # the arguments of GPTConfig
    tokenizer: str = ""  # its fingerprint
    parameters: int = 0
    gpt: dict[str, str] = field(default_factory=dict)  # whose code
    config: dict[str, Any] = field(default_factory=dict)  # flags
    progress: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] | None = None
    decisions: dict[str, Any] = field(default_factory=dict)


KNOWN = [one.name for one in fields(Meta)]


def read_record(folder: Path, step: int) -> dict[str, Any]:
    """The JSON of one checkpoint, after checking its own checksum. Raises Damaged."""
    path = folder / file_name("meta", step)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        expected = record.pop("sha256")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise Damaged(f"{path} can not be read ({error.__class__.__name__}: {error})") from error
    if digest(record) != expected:
        raise Damaged(f"{path} was changed after it was written: its checksum does not match")
    if record.get("format") != FORMAT:
        raise Damaged(f"{path} has format {record.get('format')}; this version reads format {FORMAT}")
    try:
        written = typed(Written, record, str(path))
        files = {name: typed(File, about, f"{path}: {name}") for name, about in written.files.items()}
        typed(Meta, {key: written.meta[key] for key in KNOWN if key in written.meta}, f"{path}: meta")
    except UserError as error:
        raise Damaged(str(error)) from None
    kinds = [name.partition("_")[0] for name in files if FILE_NAME.fullmatch(name)]
    if sorted(kinds) != ["model", "optim"] or len(files) != 2:
        raise Damaged(
            f"{path} names the files {', '.join(files)[:100]}, wanted {file_name('model', step)} and …"
        )
    if any(size < 1 or size > 2**40 for size in written.meta.get("model", {}).values()):
        raise Damaged(f"{path}: meta: model holds {written.meta['model']}, wanted positive sizes")
    if written.step != step:
        raise Damaged(f"{path} was renamed: it describes step {written.step}")
    return dict(record)


def read_tensors(path: Path, expected: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, after checking its length and checksum. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} can not be read ({error.strerror or error})") from error
    if len(data) != expected["bytes"]:
        raise Damaged(f"{path} has {len(data):,} bytes, expected {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path} was changed after it was written: its checksum does not match")
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Damaged(f"{path} is no safetensors file that can be read ({error})") from error


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
        name = next(name for name in record["files"] if name.startswith(f"{kind}_"))
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
    try:
        optimizers = rebuild_optimizers(record["optimizers"], optimizer_tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{folder}: the optimizers of step {step} do not fit together ({error!r})") from error
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
            make_folder(folder.parent)
            folder.mkdir()
            system.flush_folder(folder.parent)
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
    if Path(tag).name != tag or not folder.is_dir():
        known = ", ".join(sorted(path.name for path in candidates)) or "none yet"
        raise UserError(f"no run {tag!r} in {runs_folder()}; runs with a checkpoint: {known}")
    return folder


def last_save(folder: Path) -> tuple[float, bool]:
    """When the newest checkpoint in `folder` was written, in seconds since 1970, and whether in this folder.

    Both by its own account; one that says nothing, or is damaged, has the time of its file.
    """
    step = saved_steps(folder)[-1]
    try:
        run = read_record(folder, step)["meta"]["run"]
        return float(run["saved"]), run["tag"] == folder.name
    except (Damaged, KeyError, TypeError, ValueError):
        return (folder / file_name("meta", step)).stat().st_mtime, True


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """The block in which this process alone trains in a run's folder. Raises UserError naming another.

    What killed processes have left half written there is removed.
    """
    with one_at_a_time(folder / ".lock", f"trains in {folder}", wait=False):
        remove_drafts(folder)
        yield

"""Checkpoints: safetensors and JSON, written whole or not at all, verified when read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from nanochat import system
from nanochat.agreement import from_the_first
from nanochat.common import (
    CannotWrite,
    Ranks,
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
from nanochat.parallel import Kept, begin_to_write, read_into, read_shapes, read_whole

Result = TypeVar("Result")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


FORMAT = 1  # to be raised when what is written changes meaning
META_NAME = re.compile(r"meta_(\d{6,})\.json")
FILE_NAME = re.compile(r"(model|optim)_\d{6,}(-\d+)?\.safetensors")
PIECE_NAME = re.compile(r"(pieces_\d{6,}(?:-\d+)?)/shard-\d{5}-model-00001-of-00001\.safetensors")
MARGIN = 2**20  # bytes: more than the JSON and the headers take


def file_name(kind: str, step: int) -> str:
    """`model_000123.safetensors`, likewise "optim"; `meta_000123.json`; the folder `pieces_000123`."""
    return f"{kind}_{step:06d}" + {"meta": ".json", "pieces": ""}.get(kind, ".safetensors")


def digest(record: dict[str, Any]) -> str:
    """SHA-256 of a JSON-able record in one fixed spelling: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def signed(record: dict[str, Any]) -> str:
    """The record as text, with its checksum as the first entry."""
    return json.dumps({"sha256": digest(record), **record}, indent=1) + "\n"


def flatten_optimizers(
    optimizers: Sequence[Kept],
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
    model: Kept,
    optimizers: Sequence[Kept],
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
    in_use = {name.partition("/")[0] for name in named}
    for path in folder.glob(f"pieces_{step:06d}*"):
        if path.name not in in_use and re.fullmatch(rf"pieces_{step:06d}(-\d+)?", path.name):
            shutil.rmtree(path, ignore_errors=True)


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
    folders = {found[1] for name in files if (found := PIECE_NAME.fullmatch(name))}
    in_pieces = len(folders) == 1 and all(PIECE_NAME.fullmatch(name) for name in files)
    if not in_pieces and (sorted(kinds) != ["model", "optim"] or len(files) != 2):
        raise Damaged(
            f"{path} names the files {', '.join(files)[:100]}, wanted {file_name('model', step)} and …"
        )
    if any(size < 1 or size > 2**40 for size in written.meta.get("model", {}).values()):
        raise Damaged(f"{path}: meta: model holds {written.meta['model']}, wanted positive sizes")
    if written.step != step:
        raise Damaged(f"{path} was renamed: it describes step {written.step}")
    return dict(record)


def read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    """The bytes of a file, after checking its length and checksum. Raises Damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} can not be read ({error.strerror or error})") from error
    if len(data) != expected["bytes"]:
        raise Damaged(f"{path} has {len(data):,} bytes, expected {expected['bytes']:,}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(f"{path} was changed after it was written: its checksum does not match")
    return data


def read_tensors(path: Path, expected: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, after checking its length and checksum. Raises Damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_verified(path, expected)
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
    pieces: Path | None = None  # where they lie that are still to be read, by `fill`


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a complete (though perhaps since damaged) checkpoint in `folder`, ascending."""
    return sorted(int(m[1]) for path in folder.glob("meta_*.json") if (m := META_NAME.fullmatch(path.name)))


def load_checkpoint(
    folder: Path, step: int | None = None, weights_only: bool = False, leave_pieces: bool = False
) -> Checkpoint:
    """Read the checkpoint of `step`, or the newest good one; a damaged one passed over is named on stderr.

    weights_only: leave `optimizers` and `tensors` empty and their file unread. leave_pieces: one that lies in
    pieces is verified and left to `fill`. Raises UserError.
    """
    steps = saved_steps(folder)
    if not steps:
        raise UserError(f"no checkpoint in {folder}: it saved none (--save_every=-1) or was stopped before")
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint of step {step} in {folder}: there are {', '.join(map(str, steps))}")
    for candidate in [step] if step is not None else reversed(steps):
        try:
            return read_checkpoint(folder, candidate, weights_only, leave_pieces)
        except Damaged as error:
            if step is not None:
                raise
            if os.environ.get("RANK", "0") == "0":
                print(f"warning: passing over a damaged checkpoint: {error}", file=sys.stderr)
    raise UserError(f"all {len(steps)} checkpoints in {folder} are damaged (see the warnings): train again")


def read_checkpoint(folder: Path, step: int, weights_only: bool, leave_pieces: bool = False) -> Checkpoint:
    """Read and verify one checkpoint. Raises Damaged."""
    record = read_record(folder, step)
    if any(PIECE_NAME.fullmatch(name) for name in record["files"]):
        return read_pieces(folder, record, weights_only, leave_pieces)

    def tensors_of(kind: str) -> dict[str, torch.Tensor]:
        name = next(name for name in record["files"] if name.startswith(f"{kind}_"))
        return read_tensors(folder / name, record["files"][name])

    model = tensors_of("model")
    if weights_only:
        return Checkpoint(folder, step, model, [], {}, record["meta"])
    return assemble(folder, record, model, tensors_of("optim"))


def assemble(
    folder: Path,
    record: dict[str, Any],
    model: dict[str, torch.Tensor],
    optimizer_tensors: dict[str, torch.Tensor],
) -> Checkpoint:
    """The checkpoint of these tensors, which the record describes. Raises Damaged."""
    step = record["step"]
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


class InPieces:
    """A checkpoint that is being written, by each process its own part, in the background."""

    def __init__(
        self,
        folder: Path,
        step: int,
        model: Kept,
        optimizers: Sequence[Kept],
        tensors: dict[str, torch.Tensor],
        group: Any,
    ) -> None:
        """Begin; all must call this, in a folder that all of them see. group: see begin_to_write."""
        self.folder, self.step = folder, step
        self.described, state = named_tensors(model, optimizers)
        state.update({f"extra.{name}": tensor for name, tensor in tensors.items()})
        self.ranks = Ranks()
        if group is not None:
            rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
            self.ranks = Ranks(rank, world_size=world)
        self.place = folder / from_the_first(lambda: unused_name(folder, "pieces", step), self.ranks)
        done = begin_to_write(state, self.place, group)
        pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.own: Future[dict[str, Any]] = pool.submit(self.describe_own, done)
        pool.shutdown(wait=False)

    def describe_own(self, done: Future[None]) -> dict[str, Any]:
        """Wait, then compute length and checksum of this process's file; or say what went wrong."""
        try:
            done.result()
            files = {}
            for path in self.place.glob(f"shard-{self.ranks.rank + 1:05d}-*.safetensors"):
                data = path.read_bytes()
                about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                files[f"{self.place.name}/{path.name}"] = about
            return {"files": files}
        except Exception as error:  # of the disk, or of another process
            return {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}

    def busy(self) -> bool:
        """Whether this process is still writing."""
        return not self.own.done()

    def finish(self, meta: dict[str, Any]) -> None:
        """Name the files in the JSON; the first process alone. All must call this, and all wait for all.

        Raises CannotWrite in all of them if one could not write; then the older checkpoint is the newest.
        """
        said = [self.own.result()] * self.ranks.world_size
        if self.ranks.world_size > 1:
            torch.distributed.all_gather_object(said, self.own.result())
        errors = [f"process {rank}: {one['error']}" for rank, one in enumerate(said) if "error" in one]
        if not errors:
            files = {name: about for one in said for name, about in one["files"].items()}
            errors = from_the_first(lambda: self.name_files(files, meta), self.ranks)
        if errors:
            raise CannotWrite(f"{self.place} is not whole, and nothing names it: {errors[0]}")

    def name_files(self, files: dict[str, Any], meta: dict[str, Any]) -> list[str]:
        """Write the JSON; in the first process. Gives what went wrong, to be told to the others."""
        record = {"format": FORMAT, "step": self.step, "files": files, "optimizers": self.described}
        try:
            system.flush_folder(self.place)
            system.flush_folder(self.folder)
            write_atomically(self.folder / file_name("meta", self.step), signed({**record, "meta": meta}))
        except (CannotWrite, OSError) as error:
            return [f"process {self.ranks.rank}: {error}"]
        remove_unnamed(self.folder, self.step, files)
        return []


def named_tensors(
    model: Kept, optimizers: Sequence[Kept]
) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What JSON can hold of the optimizers, and all tensors, each under one name, as pieces have them."""
    described, tensors = flatten_optimizers(optimizers)
    named = {f"optim.{name}": tensor for name, tensor in tensors.items()}
    return described, named | {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def read_pieces(folder: Path, record: dict[str, Any], weights_only: bool, leave: bool) -> Checkpoint:
    """A checkpoint in pieces, made whole; or with leave verified, and left to `fill`. Raises Damaged."""
    for name, expected in record["files"].items():
        read_verified(folder / name, expected)
    place = folder / next(iter(record["files"])).partition("/")[0]
    if leave:
        return Checkpoint(folder, record["step"], {}, record["optimizers"], {}, record["meta"], pieces=place)
    try:
        model, optim = sorted_out(read_whole(place))
    except Exception as error:  # whatever a library raises for files that nobody has written so
        raise Damaged(f"{place} holds no pieces that can be read ({error!r})"[:300]) from error
    if weights_only:
        return Checkpoint(folder, record["step"], model, [], {}, record["meta"])
    return assemble(folder, record, model, optim)


def sorted_out(
    tensors: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a folder of pieces, by the two files in which they would otherwise lie."""
    model = {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.")}
    return model, {name.removeprefix("optim."): tensor for name, tensor in rest.items()}


def fill(saved: Checkpoint, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Checkpoint:
    """The checkpoint whose pieces were left unread, divided as this model is. All must call this."""
    assert saved.pieces is not None
    weights = model.state_dict()
    parameters = [[p for group in one.param_groups for p in group["params"]] for one in optimizers]
    state: dict[str, torch.Tensor] = {}
    for name, empty in read_shapes(saved.pieces).items():
        kind, _, rest = name.partition(".")
        pattern = weights[rest] if kind == "model" else torch.empty_like(empty, device="cpu")
        if kind == "optim":
            number, parameter, _ = rest.split(".", 2)
            owner = parameters[int(number)][int(parameter)]
            pattern = owner.detach() if owner.shape == empty.shape else pattern
        state[name] = torch.empty_like(pattern, dtype=empty.dtype)
    read_into(state, saved.pieces)
    record = {"step": saved.step, "optimizers": saved.optimizers, "meta": saved.meta}
    return assemble(saved.folder, record, *sorted_out(state))


class Plain:
    """A state that is there already."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        return self.state


def convert(folder: Path, step: int, kind: Literal["files", "pieces"]) -> None:
    """Write a checkpoint as two files, or as a folder with one piece, in place of what it is."""
    saved = load_checkpoint(folder, step)
    model, optimizers = Plain(saved.model), [Plain(state) for state in saved.optimizers]
    if kind == "files":
        save_checkpoint(folder, step, model, optimizers, saved.meta, saved.tensors)
    else:
        InPieces(folder, step, model, optimizers, saved.tensors, None).finish(saved.meta)


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
            if this_launch():
                (folder / LAUNCH).write_text(this_launch(), encoding="utf-8")
            system.flush_folder(folder.parent)
        except FileExistsError:
            if begun_here(folder) and not saved_steps(folder):
                return folder  # of this launch, and killed before its first checkpoint
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


LAUNCH = "launch.txt"


def this_launch() -> str:
    """The program and the name of its start, the same in all restarts; "" where torchrun has no name."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # so torchrun spells that it was given none
    return "" if name == "none" else f"{Path(sys.argv[0]).stem} {name}"


def begun_here(folder: Path) -> bool:
    """Whether the run in this folder was begun by this launch."""
    try:
        return bool(this_launch()) and (folder / LAUNCH).read_text(encoding="utf-8") == this_launch()
    except (OSError, ValueError):
        return False


def run_of_this_launch() -> str:
    """The tag of the run that this launch has begun and saved; "" if there is none.

    Raises UserError if torchrun may start this program again and has no name for the launch.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not this_launch():
        raise UserError(
            "torchrun may start this run again (--max-restarts), and would not know which one it was:"
            " add --rdzv-id=NAME, another for each run"
        )
    own = [folder for folder in runs_folder().glob("*/") if begun_here(folder) and saved_steps(folder)]
    return max(own, key=last_save).name if own else ""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """The block in which this process alone trains in a run's folder. Raises UserError naming another.

    What killed processes have left half written there is removed.
    """
    with one_at_a_time(folder / ".lock", f"trains in {folder}", wait=False):
        remove_drafts(folder)
        yield

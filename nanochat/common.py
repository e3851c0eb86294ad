"""The ground every program of this book stands on: errors, files, processes, devices.

Importing this module does not import torch; the functions that need it do.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import os
import platform
import re
import shutil
import sys
import time
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nanochat import provenance, system

if TYPE_CHECKING:
    import torch


class UserError(Exception):
    """A situation the person at the keyboard can mend; its text is one line that says how."""


def nearest(name: str, names: Iterable[str]) -> str:
    """For an error about a name: "; did you mean X?", X being the most similar of `names`; or nothing."""
    spelled = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]}?" if near else ""


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def run_program(main: Callable[[], object]) -> None:
    """Call `main`; turn a UserError into `error: …` on stderr and exit status 2, Ctrl-C into status 130.

    A package that is not installed is such an error, too, and so is an OSError that says that the system
    refuses to write. A reader that goes away ends the program quietly.
    """
    provenance.install()
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if (Path(__file__).parents[1] / package).is_dir():
            raise  # a part of this project: that is a bug
        where = f"in {sys.executable}; `make environment` installs what requirements.txt lists"
        print(f"error: the package {package} is not installed {where}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        sys.exit(141)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        print(f"error: {cannot_write(str(error.filename or base_dir()), error)}", file=sys.stderr)
        sys.exit(2)


Record = TypeVar("Record")


def typed(kind: type[Record], said: object, where: str) -> Record:
    """The dataclass `kind` from what JSON said, each field of exactly the declared type.

    where: what to call the source in an error. Fields with a default may be missing. Raises UserError naming
    the field, the value and the type wanted.
    """
    if not isinstance(said, dict):
        raise UserError(f"{where} is {in_short(said)}, wanted an object")
    wanted = typing.get_type_hints(kind)
    for name, value in said.items():
        if name not in wanted:
            raise UserError(f"{where} says {in_short(name)}, which it cannot; it can say {', '.join(wanted)}")
        if not fits(value, wanted[name]):
            shown = getattr(wanted[name], "__name__", wanted[name])
            raise UserError(f"{where}: {name} is {in_short(value)}, wanted {shown}")
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in said and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where} does not say {field.name}")
    return kind(**said)


def fits(value: object, kind: Any) -> bool:
    """Whether a value that JSON holds is of a declared type; a truth value is no number."""
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in inner)
    if kind is Any or kind is None or kind is types.NoneType:
        return kind is Any or value is None
    if outer is list:
        return isinstance(value, list) and all(fits(part, inner[0]) for part in value)
    if outer is dict:
        return isinstance(value, dict) and all(fits(part, inner[1]) for part in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, outer or kind) and isinstance(value, bool) == (kind is bool)


def in_short(value: object) -> str:
    """A value as an error shows it, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def base_dir() -> Path:
    """The folder of all corpora, tokenizers and checkpoints: $NANOCHAT_BASE_DIR, or ~/.cache/nanochat.

    Raises UserError where there is no home folder, as for a user without an account in a container.
    """
    chosen = os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UserError(f"{chosen}: {error} Set NANOCHAT_BASE_DIR to a folder, or HOME") from error


class CannotWrite(UserError):
    """The operating system refuses to write; what was there before is there still. Trying again may help."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (a str as UTF-8) to `path`, creating its folder; the file is never seen half written.

    When this returns, contents and name survive a power cut. Raises CannotWrite when the operating system
    refuses; `path` then holds what it held before.
    """
    write_together([(path, data)])


def write_together(contents: Iterable[tuple[Path, bytes | str]]) -> None:
    """Write several files, all of them complete on the disk before the first gets its name.

    They get their names in the order given, each one durable before the next; so a file that is found after
    a power cut means that those before it are there. Raises CannotWrite; unless it was a rename that failed,
    nothing has changed then.
    """
    path = Path()
    try:
        with ExitStack() as drafts:
            ready = []
            for path, data in contents:
                draft = drafts.enter_context(draft_of(path))
                with open(draft, "wb") as file:
                    file.write(data.encode("utf-8") if isinstance(data, str) else data)
                    file.flush()
                    system.flush_file(file.fileno())
                ready.append((draft, path))
            for draft, path in ready:
                os.replace(draft, path)
                system.flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def place_whole(file: Path, path: Path) -> None:
    """Give a file that is complete, in the same file system, the name `path`, and make both durable.

    Raises CannotWrite.
    """
    try:
        with open(file, "rb") as contents:
            system.flush_file(contents.fileno())
        make_folder(path.parent)
        os.replace(file, path)
        system.flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, so that they survive a power cut; one that is there is no error."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        system.flush_folder(path.parent)


def cannot_write(path: Path | str, error: OSError) -> CannotWrite:
    """What to raise when the operating system refuses to write."""
    return CannotWrite(
        f"cannot write {path}: {error.strerror or error}; free space, fix the permissions, "
        "or set NANOCHAT_BASE_DIR to another folder"
    )


DRAFT = re.compile(r"\..+\.\d+-\d+\.tmp")
_numbers = itertools.count()
_swept: set[Path] = set()  # folders in which this process has removed what others left


@contextmanager
def draft_of(path: Path, folder: bool = False) -> Iterator[Path]:
    """A hidden file, or folder, beside `path`, to fill and rename; what is still there at the end is removed.

    The first draft in a folder removes what killed processes have left in it.
    """
    make_folder(path.parent)
    if path.parent not in _swept:
        _swept.add(path.parent)
        remove_drafts(path.parent)
    claim: int | None = None
    for number in _numbers:
        draft = path.with_name(f".{path.name}.{os.getpid()}-{number}.tmp")
        with suppress(FileExistsError, BlockingIOError):  # left under this name; taken for one that was
            draft.mkdir() if folder else draft.touch(exist_ok=False)
            if (claim := system.claim(draft)) != system.GONE:
                break
    try:
        yield draft
    finally:
        with suppress(OSError):
            _remove(draft)
        system.give_up(claim)


def remove_drafts(folder: Path) -> list[str]:
    """Remove what killed processes left half written in `folder`; returns the names. What is in use stays."""
    removed = []
    with suppress(OSError):  # a folder that cannot be read, or may not be changed, keeps what it has
        for path in sorted(folder.iterdir()):
            if not DRAFT.fullmatch(path.name):
                continue
            with suppress(OSError):  # in use
                claim = system.claim(path)
                if claim is not None and claim != system.GONE:
                    _remove(path)
                    removed.append(path.name)
                system.give_up(claim)
    return removed


def _remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; none there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_without_space(folder: Path, need: int) -> None:
    """Raise CannotWrite unless the disk that holds `folder` has `need` bytes free, as far as it tells."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < need:
        raise CannotWrite(
            f"cannot write into {folder}: it takes {need / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free; "
            "free some space, or set NANOCHAT_BASE_DIR to another folder"
        )


@contextmanager
def one_at_a_time(lock: Path, doing: str, wait: bool = True) -> Iterator[None]:
    """Run the block in one process at a time, of all that name the same file `lock`.

    doing: what the holder does, as in "trains this tokenizer". A second process waits after a line that names
    the first, or, without `wait`, gets it as a UserError. Raises UserError if `lock` cannot be written.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        first = f"{_holder(lock)} {doing}"
        if not wait:
            raise UserError(f"{first}: wait until it has ended, or end it") from None
        print0(f"waiting: {first}")
        held.acquire()
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        with suppress(OSError):  # only the message to others depends on it
            lock.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        held.release()


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        return lock.read_text(encoding="utf-8") or "another process"
    return "another process"


@dataclass(frozen=True)
class Ranks:
    """Which of the processes this is: 0 ≤ rank < world_size; local_rank counts on this machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and saves."""
        return self.rank == 0


def print0(*parts: object, end: str = "\n") -> None:
    """Print in the first process only, and at once: a pipe must not hold back the progress of a run."""
    if os.environ.get("RANK", "0") == "0":
        print(*parts, end=end, flush=True)


def store_of_this_start(ranks: Ranks) -> Any:
    """torchrun's store, under a name that only the processes of this start know. All must call this."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = TCPStore(*where, is_master=False, timeout=timedelta(minutes=15))
    word = uuid.uuid4().hex
    if not ranks.first:
        store.set(f"asks/{ranks.rank}", word)
        own: Any = PrefixStore(store.get(f"answer/{word}").decode(), store)
        own.set(f"here/{ranks.rank}", "yes")
        return own
    own, others = PrefixStore(word, store), range(1, ranks.world_size)
    while not own.check([f"here/{rank}" for rank in others]):
        for asks in (f"asks/{rank}" for rank in others):
            if store.check([asks]):
                store.set(f"answer/{store.get(asks).decode()}", word)
        time.sleep(0.05)
    return own


def init_ranks(device_type: str = "") -> Ranks:
    """Read what torchrun says and join the other processes: over nccl for CUDA, over gloo otherwise.

    Raises UserError when only some of RANK, LOCAL_RANK and WORLD_SIZE are set, or not to numbers that fit.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    seen = {name: os.environ[name] for name in names if name in os.environ}
    if not seen:
        return Ranks()
    whole = len(seen) == len(names) and all(value.isdecimal() for value in seen.values())
    if not whole or int(seen["RANK"]) >= int(seen["WORLD_SIZE"]):
        raise UserError(
            f"the environment says {seen}, but RANK, LOCAL_RANK and WORLD_SIZE are needed as numbers, "
            "RANK below WORLD_SIZE: unset them, or start with torchrun --nproc_per_node=N"
        )
    ranks = Ranks(*(int(seen[name]) for name in names))
    if ranks.world_size == 1:
        return ranks
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        cuda = device_type == "cuda" or (not device_type and torch.cuda.is_available())
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # the store is torchrun's own
        about: dict[str, Any] = {}
        if kept:
            about = {"store": store_of_this_start(ranks), "rank": ranks.rank, "world_size": ranks.world_size}
        dist.init_process_group("nccl" if cuda else "gloo", **about)
    return ranks


def leave_ranks() -> None:
    """Undo `init_ranks` at the end of a program; nothing to undo is fine."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def pick_device(device_type: str = "", ranks: Ranks | None = None) -> torch.device:
    """The device to compute on: the one named (cuda, mps or cpu), or the first of these three that is there.

    Raises UserError for a name that is unknown or a device that is absent.
    """
    if device_type not in ("", "cuda", "mps", "cpu"):
        raise UserError(f"--device_type is {device_type!r}; give cuda, mps or cpu, or leave it out")
    import torch

    ranks = ranks or Ranks()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device_type and not there[device_type]:
        raise UserError(
            f"--device_type={device_type}, but this PyTorch ({torch.__version__}) sees no such device; "
            "leave the flag out to use what there is"
        )
    if device_type == "mps" and ranks.world_size > 1:
        raise UserError(f"MPS is for one process, not {ranks.world_size}: start without torchrun")
    there["mps"] = there["mps"] and ranks.world_size == 1
    kind = device_type or next(kind for kind, is_there in there.items() if is_there)
    if kind != "cuda":
        return torch.device(kind)
    if ranks.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {ranks.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            "start torchrun with at most that --nproc_per_node"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far, in bytes; 0 where the system does not tell.

    By tensors on CUDA, by the process on CPU; on MPS what the driver holds now, for want of a record.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return system.peak_process_bytes()

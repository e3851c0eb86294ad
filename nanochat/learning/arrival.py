"""Import a learner's file as it is, in a process of its own, and say what happened."""

import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from nanochat import loss, system
from nanochat.common import UserError
from nanochat.learning.court import Arrival
from nanochat.learning.hybrid import PACKAGE
from nanochat.learning.steps import SECOND_ROUND
from nanochat.models import import_file, shown

MEMORY_LIMIT = 8 * 2**30  # bytes
FILE_LIMIT = 2**28  # bytes of one file
PRINTED = 500  # characters of what was printed that are shown
MAIN = "put what shall only run by itself below if __name__ == '__main__':"


class ModelRuns(BaseException):
    """A model is run where none should be; no `except Exception` of the file catches it."""


def refuse_to_run(*_: Any) -> None:
    """A hook for what comes before a forward pass."""
    raise ModelRuns


def settings() -> dict[str, str]:
    """What a file may have changed for everybody."""
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "recording of gradients": "on" if torch.is_grad_enabled() else "off",
    }


def import_watched(path: Path) -> ModuleType:
    """Import a file as it is. Raises UserError, naming the line, for whatever it should not do meanwhile."""
    before = settings()
    hook = register_module_forward_pre_hook(refuse_to_run)
    try:
        module = import_file(path)
    except (SystemExit, KeyboardInterrupt, ModelRuns) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"{shown(path)}:{lines[-1]}" if lines else shown(path)
        if isinstance(error, ModelRuns):
            raise UserError(f"{place}: the file runs a model while it is imported; {MAIN}") from None
        raise UserError(
            f"{place}: importing the file ends in {type(error).__name__}, and with it the program; {MAIN}"
        ) from None
    finally:
        hook.remove()
    for name, value in settings().items():
        if value != before[name]:
            raise UserError(
                f"{shown(path)}: importing the file changes PyTorch's {name} from {before[name]} to {value}, "
                "for everything that is computed afterwards; leave it as it is"
            )
    return module


def arrive(path: Path, time_limit: float) -> Arrival:
    """Import a file in a child process and report what happened. Never raises for what the file does."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="arrival-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        code = _send_a_child(path, folder, time_limit)
        notes, printed = (_text_of(folder / name) for name in ("notes.txt", "printed.txt"))
        try:
            says = json.loads(_text_of(folder / "says.json"))["says"]
        except ValueError:
            says = _explain_end(path, code, notes, time_limit)
    if len(printed) > PRINTED:
        printed = printed[:PRINTED] + " …"
    return Arrival(says, printed.strip(), round(time.monotonic() - began, 3))


def _send_a_child(path: Path, folder: Path, time_limit: float) -> int | None:
    code = system.run_in_a_fork(lambda: visit(path, folder, time_limit))
    if code is not None:
        return code
    command = [sys.executable, "-m", "nanochat.learning.arrival", str(path), str(folder), str(time_limit)]
    process = subprocess.Popen(command, start_new_session=True)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=60 + system.CLOCK * time_limit)
    code = process.poll()
    system.end_with_children(process)
    return code


def visit(path: Path, folder: Path, time_limit: float) -> NoReturn:
    """The child: import the file, write into the folder what happened, and end."""
    says = ""
    try:
        target = os.open(folder / "printed.txt", os.O_CREAT | os.O_WRONLY)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdin = io.StringIO()
        notes = (folder / "notes.txt").open("w", encoding="utf-8")
        system.limit_memory(MEMORY_LIMIT)
        system.limit_file_size(FILE_LIMIT)
        system.limit_time(time_limit, notes)
        with guarded():
            import_watched(path)
    except UserError as error:
        says = str(error)
    except BaseException as error:
        says = f"{shown(path)}: importing the file ends in {type(error).__name__}: {error}"
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            (folder / "says.json").write_text(json.dumps({"says": says}), encoding="utf-8")
        os._exit(0)


def _text_of(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4 * PRINTED)
    return ""


def _explain_end(path: Path, code: int | None, notes: str, time_limit: float) -> str:
    lines = system.lines_noted(notes, path)
    place = f"{shown(path)}:{lines[0]}" if lines else shown(path)
    if system.was_out_of_time(code, notes):
        return (
            f"{place}: importing the file was still running after {time_limit:g} s: a loop that never ends, "
            f"or a training? {MAIN}"
        )
    if code is not None and code < 0:
        return f"{place}: importing the file was ended by {signal.Signals(-code).name}"
    return f"{place}: importing the file ends the process, with exit status {code}; {MAIN}"


def call_at_once(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """In place of torch's checkpoint, which imports the compiler to ask for a setting; saves no memory."""
    return function(*arguments)


def leave_the_compiler_out() -> None:
    """Let optimizers, meta tensors and losses do without torch._dynamo, where nothing is compiled."""
    vars(loss)["checkpoint"] = call_at_once
    for wrapper in gc.get_objects():
        code = wrapper.__code__ if type(wrapper) is FunctionType else None
        if code and code.co_filename.endswith("_compile.py") and "fn" in code.co_freevars:
            plain = wrapper.__closure__[code.co_freevars.index("fn")].cell_contents
            if isinstance(plain, FunctionType):
                plain.__dict__.setdefault("__dynamo_disable", plain)


STARTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
)
SOLUTIONS = (
    "nanochat.normans_gpt",
    "nanochat.gpt",
    "nanochat.learning.by_hand",
    "nanochat.learning.mistakes",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
looking = [False]
writable: list[str] = []  # folders in which a file that is graded may write


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: refuse what a file that is graded must not do."""
    if not looking[0]:
        return
    if event in STARTS:
        raise PermissionError("a file that is graded starts no process")
    if event == "import" and arguments[0] in SOLUTIONS and not is_needed():
        raise PermissionError(f"a file that is graded does not import {arguments[0]}")
    if event == "open" and isinstance(arguments[0], str | bytes):
        name = os.fsdecode(arguments[0]).replace(os.sep, ".")
        if any(name.endswith(f"{module}.py") for module in SOLUTIONS) and not is_needed():
            raise PermissionError("a file that is graded does not read the solution")
        if isinstance(arguments[2], int) and arguments[2] & WRITING and not name.endswith((".pyc", "null")):
            if os.path.dirname(os.path.realpath(os.fsdecode(arguments[0]))) in writable:
                return
            raise PermissionError("a file that is graded writes no file")


def is_needed() -> bool:
    """Whether this package imports for itself, or imports what a file of the second round needs."""
    frame, files = sys._getframe(2), list[str]()
    while frame is not None and frame.f_back is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    files = [file for file in files if not file.startswith("<")]
    other = next((n for n, file in enumerate(files) if not file.startswith(str(PACKAGE))), None)
    return other is None or (other > 0 and Path(files[other]).name == SECOND_ROUND.file)


@contextmanager
def folder_to_write_in() -> Iterator[Path]:
    """A folder that is gone afterwards, the only place where a graded file may write."""
    with tempfile.TemporaryDirectory() as name:
        writable.append(os.path.realpath(name))
        try:
            yield Path(name)
        finally:
            writable.remove(os.path.realpath(name))


@contextmanager
def guarded() -> Iterator[None]:
    """While active, the audit hook looks; without effect where none was set."""
    looking[0] = True
    try:
        yield
    finally:
        looking[0] = False


if __name__ == "__main__":
    visit(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))

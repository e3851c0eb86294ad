"""Choose whose GPT is built: the book's, the learner's, a reference, or any file's. Imports no PyTorch."""

from __future__ import annotations

import ast
import codecs
import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
import sys
import tokenize
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nanochat.common import UserError, nearest

ROOT = Path(__file__).resolve().parents[1]
BUILT_IN = {"book": "normans_gpt", "reference": "gpt"}  # name: module in nanochat/


def workshop_folder() -> Path:
    """Where the learner's file lives: $NANOCHAT_WORKSHOP, or workshop/ beside the book."""
    chosen = os.environ.get("NANOCHAT_WORKSHOP")
    return Path(chosen).expanduser() if chosen else ROOT / "workshop"


@dataclass(frozen=True)
class Choice:
    """Whose model: the name as given to --gpt, and the file it stands for."""

    name: str
    path: Path

    def record(self) -> dict[str, str]:
        """What a checkpoint keeps of it: the name, and the checksum of the file as it was."""
        return {"name": self.name, "sha256": hashlib.sha256(self.path.read_bytes()).hexdigest()}


def choose_gpt(name: str) -> Choice:
    """The file that --gpt names. Raises UserError if there is none, or if it is no model. Imports nothing."""
    if name in BUILT_IN:
        path = ROOT / "nanochat" / f"{BUILT_IN[name]}.py"
    elif name == "mine":
        path = workshop_folder() / "normans_gpt.py"
    elif name.endswith(".py") or os.sep in name:
        path = Path(name).expanduser()
    else:
        names = (*BUILT_IN, "mine")
        hint = nearest(name, names)
        raise UserError(f"--gpt={name} is none of {', '.join(names)}, and no path of a .py file{hint}")
    if not path.is_file():
        advice = "make learn puts a skeleton there" if name == "mine" else "give the path of a file"
        raise UserError(f"--gpt={name}: {shown(path)} does not exist; {advice}")
    refuse_what_is_no_model(path)
    return Choice(name, path.absolute())


def decode(raw: bytes, name: str) -> str:
    """The text of a Python file. Raises UserError, with its name, if Python itself could not read it."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw:
        raise UserError(
            f"{name} has null bytes: saved as UTF-16, which Python does not read? Save it as UTF-8"
        )
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        return io.TextIOWrapper(io.BytesIO(raw), encoding).read()
    except SyntaxError as error:
        raise UserError(f"{name}: {error.msg}; save it as UTF-8") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{name}:{line}: there is a byte ({raw[error.start]:#x}) that is not UTF-8; the file seems to be "
            "saved in another encoding, such as latin-1. Save it as UTF-8"
        ) from None


def refuse_what_is_no_model(path: Path) -> None:
    """Raise UserError unless the file can be parsed and defines, or imports, GPT and GPTConfig."""
    try:
        tree = ast.parse(decode(path.read_bytes(), shown(path)), filename=str(path))
    except SyntaxError as error:
        text = f" ({error.text.strip()})" if error.text else ""
        raise UserError(
            f"{shown(path)}:{error.lineno}: Python cannot read this line{text}: {error.msg}"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{shown(path)} is not a Python file: {error}") from None
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    missing = [name for name in ("GPT", "GPTConfig") if name not in names]
    if missing:
        raise UserError(
            f"{shown(path)} has no {' and no '.join(missing)}; its classes are "
            f"{', '.join(sorted(names)) or 'none'}. A model file needs both, as in skeleton/normans_gpt.py"
        )


def shown(path: Path) -> str:
    """A path as a person would type it: relative, where it lies below the current folder."""
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    return str(path)


def load_gpt(name: str) -> ModuleType:
    """The module that --gpt names, with GPT and GPTConfig. Raises UserError if it cannot be imported."""
    choice = choose_gpt(name)
    if name in BUILT_IN:
        return importlib.import_module(f"nanochat.{BUILT_IN[name]}")
    return import_file(choice.path)


def import_file(path: Path) -> ModuleType:
    """Run a file as a fresh module. Raises UserError, naming the line, for whatever goes wrong in it."""
    spec = importlib.util.spec_from_file_location("gpt_from_a_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{shown(path)}:{lines[-1]}" if lines else shown(path)
        raise UserError(f"{place}: importing the file ends in {type(error).__name__}: {error}") from error
    return module


@dataclass(frozen=True)
class Frame:
    """A line of a model's file that took part in an exception."""

    function: str
    line: int


def frames_in(error: BaseException, path: Path) -> list[Frame]:
    """The frames of a traceback that lie in a file, from the outermost to the innermost."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename) == path:
            found.append(Frame(frame.f_code.co_qualname, line))
    return found


def gap_of(error: BaseException, path: Path) -> Frame | None:
    """Where a NotImplementedError was raised, if it was raised in this file itself."""
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    own = innermost and Path(innermost[0].f_code.co_filename) == path
    return frames_in(error, path)[-1] if own and isinstance(error, NotImplementedError) else None


@contextlib.contextmanager
def gaps_named(name: str) -> Iterator[None]:
    """While active, a NotImplementedError raised in the file that --gpt names becomes a UserError."""
    try:
        yield
    except NotImplementedError as error:
        path = choose_gpt(name).path
        gap = gap_of(error, path)
        if gap is None:
            raise
        raise UserError(
            f"{shown(path)}:{gap.line}: {gap.function} is not written: {error}. "
            "`make learn` says what it is for, and where to read"
        ) from error

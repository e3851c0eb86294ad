"""Bring the tangled files on the disk in line with the book, without losing a byte that a person wrote.

A file may be overwritten or removed only if its present content can be had back: git has it (see git.py), or
it is word for word what an earlier tangle wrote. The second needs a record, kept in git's folder as a list of
checksums. A lost record costs nothing but a refusal: it can only ever permit what it recognises.

Which files are stale needs no record at all: below nanochat/ and scripts/ every file comes from the book. So
a file that no block claims is either left over from a deleted or renamed target, or somebody wrote it in the
wrong place.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.diff import describe
from tools.git import Git
from tools.lint import FOLDERS
from tools.problems import Problem, Refused
from tools.skeleton import FOLDER as SKELETON
from tools.tangle import Output

RECORD = "tangled"
RECORD_LENGTH = 2000


@dataclass
class Plan:
    """What would have to be done, and what forbids it."""

    write: list[Output] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    forbidden: dict[str, Problem] = field(default_factory=dict)  # by the path that may not be touched
    edited: dict[str, str] = field(default_factory=dict)  # by path: what a hand changed, and git has

    @property
    def problems(self) -> list[Problem]:
        return list(self.forbidden.values())

    def is_empty(self) -> bool:
        return not (self.write or self.remove)


def mode(path: str) -> int:
    """Scripts for a shell can be executed; everything else is only read."""
    return 0o755 if path.endswith(".sh") else 0o644


def is_up_to_date(root: Path, output: Output) -> bool:
    """Whether the file on the disk is what the book says, to the byte and to the right to execute it."""
    place = root / output.path
    if not place.is_file() or place.read_bytes() != output.text.encode():
        return False
    return os.name != "posix" or bool(place.stat().st_mode & 0o100) == bool(mode(output.path) & 0o100)


def make_plan(root: Path, outputs: dict[str, Output]) -> Plan:
    """Compare the disk with the book. Reads only."""
    git, plan = Git(root), Plan()
    written = read_record(git)
    for output in outputs.values():
        if is_up_to_date(root, output):
            continue
        plan.write.append(output)
        place = root / output.path
        if not place.is_file() or place.read_bytes() == output.text.encode():
            continue
        if not recoverable(git, output.path, written):
            plan.forbidden[output.path] = describe_edit(root, output)
        elif checksum(place.read_bytes()) not in written and not git.has_committed(output.path):
            origin, difference = describe(root, output)
            plan.edited[output.path] = f"at {origin.chapter}:{origin.line}\n{difference}"
    for path in stale_files(root, git, outputs):
        plan.remove.append(path)
        if not recoverable(git, path, written):
            text = (
                "no block of the book writes this file, and git has no copy of it, so it is not removed. "
                "Move it into a chapter (a block with file=), out of nanochat/ and scripts/, or commit it."
            )
            plan.forbidden[path] = Problem(path, 0, text)
    return plan


def describe_edit(root: Path, output: Output) -> Problem:
    """A file that somebody edited by hand, with the lines of the chapters that the edit belongs to."""
    place, difference = describe(root, output)
    text = (
        f"{output.path} was edited by hand, and git has no copy of it, so it is not overwritten. Move the "
        f"edit into the chapter as shown below; or keep a copy with git (git add {output.path}); or give it "
        f"up (rm {output.path}). Then tangle again.\n{difference}"
    )
    return Problem(place.chapter, place.line, text)


def recoverable(git: Git, path: str, written: set[str]) -> bool:
    """Whether the present content of a file would survive its removal."""
    return checksum((git.root / path).read_bytes()) in written or git.has(path)


def stale_files(root: Path, git: Git, outputs: dict[str, Output]) -> list[str]:
    """Files below the book's folders that no block claims. What git ignores is not looked at."""
    found = []
    for folder in (*FOLDERS, SKELETON):
        for place, folders, names in os.walk(root / folder):
            folders[:] = sorted(
                name for name in folders if name != "__pycache__" and not name.startswith(".")
            )
            for name in sorted(names):
                path = (Path(place) / name).relative_to(root).as_posix()
                if path not in outputs and not name.startswith(".") and not git.ignores(path):
                    found.append(path)
    return found


def apply(root: Path, plan: Plan) -> None:
    """Do all of it, or nothing. Raises Refused if something forbids it."""
    if plan.problems:
        raise Refused(plan.problems)
    if not plan.write and not plan.remove:
        return
    # Everything is first written beside its place, on the same file system: what can fail fails before any
    # file changes.
    store = Path(tempfile.mkdtemp(prefix=".tangle-", dir=root))
    try:
        ready: list[tuple[Path, Path]] = []
        for number, output in enumerate(plan.write):
            new, place = store / str(number), root / output.path
            new.write_bytes(output.text.encode())
            new.chmod(mode(output.path))
            place.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(place.parent, os.W_OK):
                raise Refused(
                    [Problem(output.path, 0, "its folder may not be written to. Change its permissions.")]
                )
            ready.append((new, place))
        extend_record(Git(root), [checksum(output.text.encode()) for output in plan.write])
        for new, place in ready:
            os.replace(new, place)
        for path in plan.remove:
            remove(root, path)
    finally:
        shutil.rmtree(store, ignore_errors=True)


def remove(root: Path, path: str) -> None:
    """Remove a file, and the folders it leaves empty."""
    place = root / path
    place.unlink()
    for folder in place.parents:
        if folder.parent == root or any(folder.iterdir()):
            break
        folder.rmdir()


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_record(git: Git) -> set[str]:
    """The checksums of what earlier tangles wrote."""
    place = git.private(RECORD)
    if place is None or not place.is_file():
        return set()
    return set(place.read_text(encoding="ascii", errors="replace").split())


def extend_record(git: Git, checksums: list[str]) -> None:
    """Remember what is about to be written, newest last."""
    place = git.private(RECORD)
    if place is None:
        return
    old = place.read_text(encoding="ascii", errors="replace").split() if place.is_file() else []
    lines = [line for line in old if line not in checksums] + checksums
    new = place.with_name(f"{place.name}.new")
    new.write_text("".join(line + "\n" for line in lines[-RECORD_LENGTH:]), encoding="ascii")
    os.replace(new, place)

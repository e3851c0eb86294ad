"""Bring the tangled files on the disk in line with the book, without losing a byte that a person wrote.

A file may be written over or removed only if its present content is the tangler's own (see record.py), or git
has it under this name (see git.py). Everything else is refused, with the lines of the chapters it belongs to.
Whatever is replaced is copied to .tangle/replaced/ first: of the tangler's own files the last version, of
anything else every one, also of what git has, since a stash can be dropped and an index overwritten.

Which files are stale needs no record at all: below nanochat/ and scripts/ every file comes from the book. So
a file that no block claims is either left over from a deleted or renamed target, or somebody wrote it in the
wrong place.

The order of a tangle, so that it can be stopped anywhere: hold the lock, read the chapters, compare, write
all drafts, copy what will be replaced, note in the record what is about to be written beside what is there,
put the drafts into their places one after the other, remove what is stale, strike from the record what is
gone. Each file is at any moment the old one or the new one, and the record has both.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.diff import describe
from tools.git import Git
from tools.lint import FOLDERS
from tools.markup import merge_marks
from tools.pages import is_left_over
from tools.problems import Problem, Refused
from tools.record import MANIFEST, PRIVATE, Record, keep, line_of, manifest_of, write_whole
from tools.skeleton import FOLDER as SKELETON
from tools.tangle import Output


@dataclass
class Plan:
    """What would have to be done, and what forbids it."""

    write: list[Output] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    forbidden: dict[str, Problem] = field(default_factory=dict)  # by the path that may not be touched
    edited: dict[str, str] = field(default_factory=dict)  # by path: what a hand changed, and git has
    manifest: str = ""  # the committed record as it should be
    recorded: bool = True  # whether it is so already

    @property
    def problems(self) -> list[Problem]:
        return list(self.forbidden.values())

    def is_empty(self) -> bool:
        return not (self.write or self.remove) and self.recorded


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
    git, record = Git(root), Record(root)
    plan = Plan(manifest=manifest_of([line_of(o.path, o.text.encode()) for o in outputs.values()]))
    plan.recorded = record.manifest == plan.manifest
    for output in outputs.values():
        if is_up_to_date(root, output):
            continue
        plan.write.append(output)
        place = root / output.path
        if not place.is_file() or (data := place.read_bytes()) == output.text.encode():
            continue
        if record.has(output.path, data):
            continue
        if not git.has(output.path):
            plan.forbidden[output.path] = describe_edit(root, output, git, record)
        elif not git.has_committed(output.path):
            origin, difference = describe(root, output)
            plan.edited[output.path] = f"at {origin.chapter}:{origin.line}\n{difference}"
    for path in stale_files(root, git, record, outputs):
        plan.remove.append(path)
        if not record.has(path, content(root, path)) and not git.has(path):
            commit = ", or commit it" if git.answers() else ""
            text = (
                f"no block of the book writes this file, and {git.why_not()}, so it is not removed. Move it "
                f"into a chapter (a block with file=), or out of nanochat/ and scripts/{commit}."
            )
            plan.forbidden[path] = Problem(path, 0, text)
    return plan


def describe_edit(root: Path, output: Output, git: Git, record: Record) -> Problem:
    """A file that somebody edited by hand, with the lines of the chapters that the edit belongs to."""
    path = output.path
    text = content(root, path).decode("utf-8", errors="replace")
    if marks := merge_marks(path, text):
        return Problem(
            path,
            marks[0].line,
            "a merge is not resolved in this file, which is tangled. Resolve it in the chapters, give this "
            f"file up (rm {path}), and tangle again.",
        )
    edited = (
        "was edited by hand" if record.knows(path) else f"is not in {MANIFEST}, so a hand may have edited it"
    )
    copy = f"git add {path}" if git.answers() else f"mv {path} {path}.orig"
    place, difference = describe(root, output)
    text = (
        f"{path} {edited}, and {git.why_not()}, so it is not overwritten. Move the edit into the chapter as "
        f"shown below; or keep a copy ({copy}); or give it up (rm {path}). Then tangle again.\n{difference}"
    )
    return Problem(place.chapter, place.line, text)


def stale_files(root: Path, git: Git, record: Record, outputs: dict[str, Output]) -> list[str]:
    """Files below the book's folders that no block claims.

    What git ignores is not looked at, unless a tangle has written a file there: a repository around the
    project may ignore everything.
    """
    found = []
    for folder in (*FOLDERS, SKELETON):
        for place, folders, names in os.walk(root / folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__" and not is_left_over(name))
            for name in sorted(names):
                path = (Path(place) / name).relative_to(root).as_posix()
                if path in outputs or is_left_over(name):
                    continue
                if record.knows(path) or not git.ignores(path):
                    found.append(path)
    return found


def apply(root: Path, plan: Plan) -> dict[str, str]:
    """Do all of it, or nothing. Raises Refused if something forbids it.

    Gives back where a copy is kept of each file that was not the tangler's own, by path.
    """
    if plan.problems:
        raise Refused(plan.problems)
    if plan.is_empty():
        return {}
    record, kept = Record(root), dict[str, str]()
    with drafts_folder(root) as drafts:
        ready = [prepare(root, output, drafts / str(number)) for number, output in enumerate(plan.write)]
        for path in [output.path for output in plan.write] + plan.remove:
            kept |= keep_what_is_there(root, path, record, drafts)
        record.announce([line_of(output.path, output.text.encode()) for output in plan.write], drafts)
        for output, new in zip(plan.write, ready, strict=True):
            kept |= keep_what_is_there(root, output.path, record, drafts)  # it may have been saved meanwhile
            os.replace(new, root / output.path)
        for path in plan.remove:
            kept |= keep_what_is_there(root, path, record, drafts)
            remove(root, path)
        write_whole(root / MANIFEST, plan.manifest.encode(), drafts)
    return kept


@contextmanager
def drafts_folder(root: Path) -> Iterator[Path]:
    """A folder for what is about to be put in place, on the same file system: what can fail fails there."""
    (root / PRIVATE).mkdir(exist_ok=True)
    drafts = Path(tempfile.mkdtemp(prefix="drafts-", dir=root / PRIVATE))
    try:
        yield drafts
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


def prepare(root: Path, output: Output, new: Path) -> Path:
    """Write a draft of a file and make its folder. Raises Refused if it could not be put there."""
    new.write_bytes(output.text.encode())
    new.chmod(mode(output.path))
    folder = (root / output.path).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise Refused([Problem(output.path, 0, "its folder may not be written to. Change its permissions.")])
    return new


def content(root: Path, path: str) -> bytes:
    """What a file holds; nothing, where there is none, or a link that leads nowhere."""
    place = root / path
    return place.read_bytes() if place.is_file() else b""


def keep_what_is_there(root: Path, path: str, record: Record, drafts: Path) -> dict[str, str]:
    """Copy a file that will be replaced. Its path and the copy's, if it is not the tangler's own."""
    if not (root / path).is_file():
        return {}
    data = content(root, path)
    own = record.has(path, data)
    copy = keep(root, path, data, own, drafts)
    return {} if own else {path: copy}


def remove(root: Path, path: str) -> None:
    """Remove a file, and the folders it leaves empty."""
    place = root / path
    place.unlink()
    for folder in place.parents:
        if folder.parent == root or any(folder.iterdir()):
            break
        folder.rmdir()

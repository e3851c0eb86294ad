"""After every operation of a save, and whatever the disk has made of it, there is a complete checkpoint."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nanochat import checkpoint_manager as cm
from nanochat import common, dataset, system
from nanochat.common import CannotWrite, UserError
from scripts import base_train, tok_train
from tests.crash import Disk, Recorder, build, contents_of, every_state
from tests.programs import answer
from tests.test_checkpoint import save, tiny

CHAPTER = (Path(__file__).parents[1] / "lit" / "65-checkpoints.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Story:
    """What is done on a folder with checkpoints; which (step, seed, tag) may be found, or must at last."""

    before: tuple[tuple[int, int], ...]  # (step, seed) of the checkpoints that are there
    act: Callable[[Path], object]
    allowed: tuple[tuple[int, int, str], ...]
    final: tuple[int, int, str]


def change(folder: Path) -> None:
    cm.change_meta(folder, 1, {"tag": "changed"})


STORIES = {
    "a new step": Story(
        ((1, 1),), lambda at: save(at, 2, seed=2), ((1, 1, "d4"), (2, 2, "d4")), (2, 2, "d4")
    ),
    "the same step again": Story(
        ((1, 1),), lambda at: save(at, 1, seed=2), ((1, 1, "d4"), (1, 2, "d4")), (1, 2, "d4")
    ),
    "a changed JSON": Story(((1, 1),), change, ((1, 1, "d4"), (1, 1, "changed")), (1, 1, "changed")),
    "the removal of the older one": Story(
        ((1, 1), (2, 2)), lambda at: cm.remove_checkpoint(at, 1), ((2, 2, "d4"),), (2, 2, "d4")
    ),
}
WEIGHTS = {seed: tiny(seed)[0].state_dict() for seed in (1, 2)}


def found(folder: Path) -> tuple[int, int, str]:
    """Step, seed and tag of the checkpoint that a program finds; the seed is known by the weights' bits.

    Raises UserError if one that seems to be there is damaged, though an older one would do.
    """
    for step in cm.saved_steps(folder):
        cm.load_checkpoint(folder, step)
    loaded = cm.load_checkpoint(folder)
    for seed, weights in WEIGHTS.items():
        if all(torch.equal(loaded.model[name], tensor) for name, tensor in weights.items()):
            return loaded.step, seed, loaded.meta["tag"]
    raise AssertionError("weights that nobody saved")


def play(story: Story, folder: Path) -> tuple[Disk, Recorder]:
    """Do what a story tells, and note the operations."""
    folder.mkdir()
    for step, seed in story.before:
        save(folder, step, seed=seed)
    before, recorder = contents_of(folder), Recorder(folder)
    with recorder.watching():
        story.act(folder)
    return before, recorder


def examine(story: Story, before: Disk, recorder: Recorder, scratch: Path) -> int:
    """Look into every folder that may be left; returns their number. An AssertionError names the moment."""
    count = 0
    for moment, disk in every_state(before, recorder.operations):
        count += 1
        after = f"behind {moment} operations ({recorder.operations[moment - 1] if moment else 'none'})"
        try:
            seen = found(build(scratch, disk))
        except UserError as error:
            raise AssertionError(f"{after}: {error}") from error
        assert seen in story.allowed, f"{after}: {seen}"
        if moment == len(recorder.operations):
            assert seen == story.final, f"{after}: {seen}"
    return count


@pytest.mark.parametrize("name", STORIES)
def test_a_complete_checkpoint_is_always_found(name: str, tmp_path: Path) -> None:
    before, recorder = play(STORIES[name], tmp_path / "run")
    count = examine(STORIES[name], before, recorder, tmp_path / "after")
    assert f"| {name} | {len(recorder.operations)} | {count} |" in CHAPTER
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]


def without_file_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "note", forgetting("sync"))


def without_folder_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "note", forgetting("sync folder"))


def forgetting(kind: str) -> Callable[..., None]:
    note = Recorder.note

    def partly(self: Recorder, what: str, *arguments: object) -> None:
        if what != kind:
            note(self, what, *arguments)  # type: ignore[arg-type]

    return partly


def json_first(patch: pytest.MonkeyPatch) -> None:
    write = cm.write_together
    patch.setattr(cm, "write_together", lambda contents: write(list(contents)[::-1]))


def written_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cm, "unused_name", lambda folder, kind, step: cm.file_name(kind, step))


@pytest.mark.parametrize(
    ("break_it", "name"),
    [
        (without_file_sync, "a new step"),
        (without_folder_sync, "a new step"),
        (json_first, "a new step"),
        (written_over, "the same step again"),
        (without_folder_sync, "the removal of the older one"),
    ],
)
def test_a_save_that_is_almost_right_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_it(patch)
        before, recorder = play(STORIES[name], tmp_path / "run")
    with pytest.raises(AssertionError):
        examine(STORIES[name], before, recorder, tmp_path / "after")


# --- what killed processes leave ---------------------------------------


def drafts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.tmp"))


KILLED = """
import os, signal, sys
from pathlib import Path
from nanochat import common, system
system.flush_file = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
common.write_atomically(Path(sys.argv[1]) / "file", "half")
"""
BUSY = """
import sys
from pathlib import Path
from nanochat.common import draft_of
with draft_of(Path(sys.argv[1]) / "file"), draft_of(Path(sys.argv[1]) / "folder", folder=True):
    print("busy", flush=True)
    sys.stdin.readline()
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=Path(__file__).parents[1], **pipes)  # type: ignore[call-overload, no-any-return]


def test_a_killed_writers_draft_is_removed_and_a_live_ones_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = start(KILLED, tmp_path)
    assert killed.wait(timeout=60) == -9
    busy = start(BUSY, tmp_path)
    try:
        assert busy.stdout
        assert busy.stdout.readline() == "busy\n"
        mine = {name for name in drafts(tmp_path) if f".{busy.pid}-" in name}
        assert len(mine) == 2  # the second process has already removed what the killed one left
        assert set(drafts(tmp_path)) == mine
        (tmp_path / f".file.{killed.pid}-0.tmp").write_text("half")
        (tmp_path / f".folder.{killed.pid}-1.tmp").mkdir()
        (tmp_path / f".folder.{killed.pid}-1.tmp" / "inner").write_text("half")
        (tmp_path / ".mine.tmp").write_text("not one of ours")
        assert common.remove_drafts(tmp_path) == [f".file.{killed.pid}-0.tmp", f".folder.{killed.pid}-1.tmp"]
        assert set(drafts(tmp_path)) == {*mine, ".mine.tmp"}
    finally:
        busy.communicate("\n", timeout=60)
    assert drafts(tmp_path) == [".mine.tmp"]


def test_a_writer_whose_draft_was_taken_for_a_dead_ones_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = system.claim, 0

    def claim(path: Path) -> int | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()  # between making and locking
        elif calls == 2:
            raise BlockingIOError  # somebody looks at it
        return real(path)

    monkeypatch.setattr(system, "claim", claim)
    common.write_atomically(tmp_path / "file", "whole")
    assert calls == 3
    assert (tmp_path / "file").read_text() == "whole"


def test_where_there_are_no_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / ".file.123-0.tmp").write_text("perhaps somebody's")
    common.write_atomically(tmp_path / "file", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.123-0.tmp", "file"]


def test_a_training_begins_with_a_clean_folder(tmp_path: Path) -> None:
    (tmp_path / ".model_000002.safetensors.123-0.tmp").write_bytes(bytes(1000))
    with cm.only_writer(tmp_path):
        assert drafts(tmp_path) == []


# --- disks that are full, folders that may not be written -----------------


def full_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """Let the disk be full at the sync of this file, as a late allocation tells."""
    flush, left = system.flush_file, iter(range(writes - 1, -1, -1))

    def full(descriptor: int) -> None:
        if next(left) == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    patch.setattr(system, "flush_file", full)


@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_changes_nothing(
    writes: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, seed=1)
    before = contents_of(tmp_path)
    with monkeypatch.context() as patch:
        full_after(writes, patch)
        with pytest.raises(CannotWrite, match=r"cannot write .*: No space left on device; free space"):
            save(tmp_path, step, seed=2)
    assert contents_of(tmp_path) == before
    save(tmp_path, step, seed=2)
    assert found(tmp_path) == (step, 2, "d4")


def test_too_little_space_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, seed=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    monkeypatch.setattr(cm, "write_together", lambda contents: pytest.fail("it writes"))
    with pytest.raises(CannotWrite, match=r"takes 1\.1 MB and 0\.5 MB are free; free some space"):
        save(tmp_path, 2, seed=2)


def test_the_last_save_is_tried_again_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(cm.time, "sleep", slept.append)
    full = CannotWrite("cannot write x: full")
    answers: Iterator[CannotWrite | str] = iter([full, full, "saved"])

    def attempt() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert cm.save_patiently(attempt, said.append) == "saved"
    assert slept == [15, 30]
    assert said[1] == "not saved yet: cannot write x: full. Trying again in 30 s"

    def never() -> None:
        raise CannotWrite("full")

    with pytest.raises(CannotWrite):
        cm.save_patiently(never, said.append)
    minutes = {7: "seven", 8: "eight"}[int(sum(cm.WAITS) // 60)]
    assert f"has more than {minutes} minutes to make room" in " ".join(CHAPTER.split())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of our own, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "run").mkdir()
    save(small_disk / "run", 1, seed=1)
    before = contents_of(small_disk / "run")
    (small_disk / "others").write_bytes(bytes(1_800_000))
    with pytest.raises(CannotWrite, match=r"cannot write into .*disk.run: it takes 1\.\d MB and"):
        save(small_disk / "run", 2, seed=2)
    monkeypatch.setattr(cm, "MARGIN", 0)  # too little is asked for, and the write itself fails
    (small_disk / "others").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 + 1_800_000 - 8192))
    with pytest.raises(CannotWrite, match="No space left on device"):
        save(small_disk / "run", 2, seed=2)
    assert contents_of(small_disk / "run") == before
    (small_disk / "others").unlink()
    save(small_disk / "run", 2, seed=2)
    assert found(small_disk / "run") == (2, 2, "d4")


def test_a_folder_that_may_not_be_written_is_one_line(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(small_disk))
    tiny_flags = ["--depth=1", "--num_iterations=1", "--eval_tokens=-1"]
    for main, flags in ((dataset.main, []), (tok_train.main, []), (base_train.main, tiny_flags)):
        said = answer(main, *flags)
        assert said.returncode == 2, said
        assert said.stderr.count("\n") == 1, said
        refused = rf"error: cannot write {small_disk}.*Read-only file system.*NANOCHAT_BASE_DIR"
        assert re.match(refused, said.stderr)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM])
def test_a_refusal_of_the_system_is_one_line_in_every_program(number: int) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "/some/where")

    said = answer(main)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: cannot write /some/where: {os.strerror(number)}; free space")
    assert said.stderr.count("\n") == 1


def test_another_error_of_the_system_keeps_its_traceback() -> None:
    def main() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    with pytest.raises(ConnectionResetError):
        answer(main)

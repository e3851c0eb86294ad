"""Two tangles at once, each in a process of its own: one waits for the other, and nothing is damaged."""

from __future__ import annotations

import errno
import fcntl
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT, PYTHON, Project
from tests.book.test_record import REPLACED
from tests.book.test_work_is_kept import FIRST, SECOND, TARGET
from tools.lock import WAITING, alone

# A program that runs one command of the tools as often as its standard input has lines.
COMMANDED = """
import sys
from pathlib import Path
from tools.__main__ import main
print("ready", flush=True)
for line in sys.stdin:
    print("status", main(["tangle"], Path(sys.argv[1])), flush=True)
"""


@contextmanager
def started(root: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the test, whatever happens."""
    with subprocess.Popen(
        [PYTHON, *command],
        cwd=PROJECT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def tangler(root: Path) -> tuple[str, ...]:
    return "-c", COMMANDED, str(root)


def test_one_waits_for_the_other_and_reads_the_newest(project: Project) -> None:
    """What is saved while it waits is in what it writes."""
    with started(project.root, *tangler(project.root)) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        with alone(project.root):
            project.change(FIRST, "x += 1", "x += 2")
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == f"{WAITING}\n"
            project.change(FIRST, "x += 2", "x += 3")
        out, _ = process.communicate()
    assert out == f"wrote {TARGET}\nstatus 0\n"
    assert "x += 3" in project.read(TARGET)


def test_a_killed_process_holds_nothing(project: Project) -> None:
    hold = "import sys; from pathlib import Path; from tools.lock import alone\n"
    hold += "with alone(Path(sys.argv[1])): print('held', flush=True); input()"
    with started(project.root, "-c", hold, str(project.root)) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
    project.change(FIRST, "x += 1", "x += 2")
    answer = project.run("tangle")
    assert (answer.status, answer.out, answer.err) == (0, f"wrote {TARGET}\n", "")


def test_a_file_system_without_locks(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    project.change(FIRST, "x += 1", "x += 2")
    assert project.run("tangle").out == f"wrote {TARGET}\n"


def save(project: Project, name: str, old: str, new: str) -> None:
    """As an editor that lets nobody see a half-written chapter."""
    draft = project.root.parent / "draft"
    draft.write_text(project.read(name).replace(old, new))
    draft.replace(project.path(name))


def test_two_tangle_beside_a_watch_while_chapters_are_saved(project: Project) -> None:
    """Without git, so that only the record allows to write. Nobody is refused, and the last one is right."""
    shutil.rmtree(project.path(".git"))
    rounds = 8
    watch = "import sys; from pathlib import Path; from tools.__main__ import main\n"
    watch += "main(['watch'], Path(sys.argv[1]))"
    with (
        started(project.root, *tangler(project.root)) as one,
        started(project.root, *tangler(project.root)) as two,
        started(project.root, "-c", watch, str(project.root)) as watching,
    ):
        for process in one, two, watching:
            assert process.stdout
            assert process.stdout.readline() in ("ready\n", "watching lit/; Ctrl-C ends it\n")
        for n in range(1, rounds + 1):
            save(project, FIRST, f"x += {n}", f"x += {n + 1}")
            print(file=one.stdin, flush=True)
            print(file=two.stdin, flush=True)
            save(project, SECOND, 'echo "' + "it" * n, 'echo "' + "it" * (n + 1))
        said = [process.communicate()[0] for process in (one, two)]
        watching.send_signal(signal.SIGINT)
        seen = watching.communicate()[0]
    for text in said:
        statuses = [line for line in text.splitlines() if line.startswith("status")]
        assert statuses == ["status 0"] * rounds, text
    assert "waiting for the next save" not in seen.lower(), seen
    assert project.run("tangle").status == 0
    assert project.run("check").status == 0
    assert f"x += {rounds + 1}" in project.read(TARGET)
    kept = [path for path in project.path(REPLACED).rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"alpha.py", "run.sh"}  # nothing was taken for a hand's
    assert not list(project.path(".tangle").glob("drafts-*"))

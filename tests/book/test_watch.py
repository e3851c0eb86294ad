"""`make watch` tangles on every save and outlives every mistake."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tools.watch
from tests.book.conftest import PYTHON, Project
from tests.book.test_bad_books import BAD
from tools.__main__ import tangle
from tools.watch import follow, is_of_the_book, saves

FIRST, TARGET = "lit/10-first.md", "nanochat/alpha.py"


def test_it_survives_every_bad_book(project: Project) -> None:
    """One mistake after the other, then a good save: that one is tangled."""
    good = {chapter: project.read(chapter) for chapter in ("lit/10-first.md", "lit/20-second.md")}

    def saves() -> Iterator[None]:
        for _, chapter, old, new, _, _ in BAD:
            for name, text in good.items():
                project.write(name, text)
            project.change(chapter, old, new)
            yield
        for name, text in good.items():
            project.write(name, text)
        project.change(FIRST, "x += 1", "x += 2")
        yield

    project.capsys.readouterr()
    assert follow(project.root, tangle, saves()) == 0
    out, err = project.capsys.readouterr()
    assert err.count("nothing was written; waiting for the next save") == len(BAD)
    assert out.endswith(f"wrote {TARGET}\n")
    assert "x += 2" in project.read(TARGET)


def test_it_survives_a_mistake_of_its_own(project: Project) -> None:
    tried = []

    def broken(root: Path) -> int:
        tried.append(root)
        raise RuntimeError("broken")

    assert follow(project.root, broken, iter([None, None])) == 0
    assert len(tried) == 3
    assert "RuntimeError: broken" in project.capsys.readouterr().err


def test_what_the_system_refuses_is_one_line(project: Project) -> None:
    def refused(root: Path) -> int:
        raise PermissionError(13, "Permission denied", "/x")

    assert follow(project.root, refused, iter([None])) == 0
    lines = project.capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "error: Permission denied: /x. Nothing more was written. Change the permissions"
    )
    assert lines[0].endswith("Waiting for the next save")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        *[(path, True) for path in ("lit/a.md", "entangled.toml", "lit")],
        *[(path, False) for path in ("lit/a.png", "a.md", "lit/._a.md", "lit/.#a.md", "lit/a.md~")],
    ],
)
def test_what_is_watched(path: str, answer: bool) -> None:
    assert is_of_the_book(Path("/x"), f"/x/{path}") is answer


@pytest.mark.parametrize("before", ["absent", "there"])
def test_a_folder_that_comes_while_the_watch_is_set_up_is_seen(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event tells of it, neither of one that comes nor of one that takes the other's place."""
    lit, away = tmp_path / "lit", tmp_path / "away"
    away.mkdir()
    if before == "there":
        lit.mkdir()
    watched: list[tuple[Path, ...]] = []

    def watch(*folders: Path, **given: object) -> Iterator[set[object]]:
        watched.append(folders)
        assert given.get("yield_on_timeout"), "nothing is heard, so it waits for ever"
        assert len(watched) < 2, "the change was not seen"
        if before == "there":
            lit.rmdir()
        away.rename(lit)
        yield set()

    monkeypatch.setattr(tools.watch, "watch", watch)
    seen = saves(tmp_path)
    next(seen)

    def watch_again(*folders: Path, **_: object) -> Iterator[set[object]]:
        watched.append(folders)
        yield {"a change"}

    monkeypatch.setattr(tools.watch, "watch", watch_again)
    next(seen)
    assert watched[1:] == [(tmp_path, lit)]


def test_for_real(standalone: Project) -> None:
    """In a process of its own: a good save, a bad one, lit/ moved away and back, a good one, Ctrl-C."""
    log = standalone.root.parent / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [PYTHON, "-m", "tools", "watch"], cwd=standalone.root, stdout=output, stderr=output
        ) as process,
    ):

        def wait(words: str, times: int = 1) -> None:
            """Until the log has the words; the chapter is saved again now and then, for a busy machine."""
            for tenths in range(400):
                if log.read_text().count(words) >= times:
                    return
                assert process.poll() is None, log.read_text()
                if tenths % 20 == 19 and standalone.path(FIRST).exists():
                    standalone.path(FIRST).touch()
                time.sleep(0.1)
            raise AssertionError(f"{words!r} did not come: {log.read_text()}")

        try:
            wait("up to date")
            time.sleep(0.5)  # until the watch is set up
            standalone.change(FIRST, "x += 1", "x += 2")
            wait(f"wrote {TARGET}")
            standalone.change(FIRST, "<<gamma>>", "<<gama>>")
            wait(f"{FIRST}:18: no block is named #gama")
            standalone.path("lit").rename(standalone.path("away"))
            wait("there is no chapter here")
            standalone.path("away").rename(standalone.path("lit"))
            wait(f"{FIRST}:18: no block is named #gama", 2)
            time.sleep(0.5)
            standalone.write(
                FIRST, standalone.read(FIRST).replace("gama", "gamma").replace("x += 2", "x += 3")
            )
            wait(f"wrote {TARGET}", 2)
            process.send_signal(2)
            assert process.wait(20) == 0
        finally:
            process.kill()  # if it has not ended by itself, the test has failed
    assert "x += 3" in standalone.read(TARGET)
    assert "Traceback" not in log.read_text()

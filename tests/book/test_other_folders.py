"""The tools in folders unlike their own: with strange names, and where nothing may be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.exceptions import BuildError

from nanochat import provenance
from tests.book.conftest import ALPHA, PROJECT, PYTHON, Answer, Project, run
from tests.book.test_work_is_kept import EDITED, FIRST, SECOND, TARGET, kept
from tools import check
from tools.weave import site

NAMES = ["with blanks", "Käse und Brød", "本", "[1] #2 %41 {x}", "$HOME & 'more' \"still\"", "-n", "a\\b;c"]


@pytest.fixture(params=NAMES)
def elsewhere(request: pytest.FixtureRequest, project: Project, tmp_path: Path) -> Project:
    """The small project in a folder of this name."""
    root = tmp_path / request.param
    project.root.rename(root)
    return Project(root, project.capsys)


def test_whatever_the_folder_is_called(elsewhere: Project) -> None:
    """Tangling, refusing, asking git, and finding the way back to the chapter."""
    elsewhere.change(FIRST, "x += 1", "x += 2")
    assert elsewhere.run("tangle").out == f"wrote {TARGET}\n"
    assert elsewhere.run("check").status == 0
    elsewhere.write(TARGET, ALPHA.replace("x += 1", "x += 3"))
    kept(elsewhere, f"{FIRST}:25: {TARGET} was edited by hand", "git has no copy of it")
    elsewhere.git("add", TARGET)
    assert elsewhere.run("tangle").status == 0
    assert elsewhere.read(TARGET) == EDITED
    elsewhere.write("scripts/a.ignored", "x")
    elsewhere.path(SECOND).unlink()
    assert elsewhere.run("tangle").status == 0
    assert [path.name for path in elsewhere.path("scripts").iterdir()] == ["a.ignored"]
    place = provenance.locate(elsewhere.path(TARGET), 11, elsewhere.root)
    assert str(place) == f"{FIRST}:25 (gamma)"


def test_make_in_a_folder_with_a_strange_name(standalone: Project, tmp_path: Path) -> None:
    """Through make, in the plainest language; .venv-book is there already, as far as make can tell."""
    root = tmp_path / NAMES[4]
    standalone.root.rename(root)
    python = root / ".venv-book/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    shutil.copy(root / "requirements-book.txt", root / ".venv-book/installed-requirements.txt")
    moved = Project(root, standalone.capsys)
    moved.change(FIRST, "x += 1", "x += 2")
    answer = run(root, "make", "tangle", LC_ALL="C")
    assert (answer.status, answer.out, answer.err) == (0, f"wrote {TARGET}\n", "")
    answer = run(root, "make", "where", f"AT={TARGET}:11", LC_ALL="C")
    assert (answer.status, answer.out) == (0, f"{FIRST}:25 (gamma)\n")


def read_only(root: Path, *commands: str) -> list[Answer]:
    """Commands of the tools in the project, mounted so that nothing in it can be written."""
    program = (
        "import sys; from pathlib import Path; from tools import check; from tools.__main__ import main\n"
    )
    program += "check.quality = lambda root, outputs: []; sys.exit(main(sys.argv[2:], Path(sys.argv[1])))"
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$1" && shift && exec "$@"'
    probe = run(root, "unshare", "-rm", "sh", "-c", mount, str(root), str(PROJECT), "true")
    if probe.status:
        pytest.skip(f"no folder can be mounted here: {probe.err.strip()}")
    return [
        run(
            root,
            "unshare",
            "-rm",
            "sh",
            "-c",
            mount,
            str(root),
            str(PROJECT),
            PYTHON,
            "-c",
            program,
            str(root),
            c,
        )
        for c in commands
    ]


def test_where_nothing_may_be_written(project: Project) -> None:
    """What needs no writing works; what does is one line with what is wanted, and changes nothing."""
    shutil.rmtree(project.path(".tangle"))
    for answer in read_only(project.root, "tangle", "check"):
        assert answer.status == 0, answer.err
        assert answer.err == ""
    project.change(FIRST, "x += 1", "x += 2")
    before = project.snapshot()
    (answer,) = read_only(project.root, "tangle")
    assert answer.status == 1
    assert answer.err.startswith("error: Read-only file system: ")
    assert answer.err.endswith("work in a copy of the project that you may write to.\n")
    assert len(answer.err.splitlines()) == 1
    assert project.snapshot() == before


def test_the_caches_of_ruff_and_mypy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put where they can be written, if the project is no such place."""
    with check.environment_of_tools(tmp_path) as environment:
        assert environment == dict(os.environ)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with check.environment_of_tools(tmp_path) as environment:
        for name in ("RUFF_CACHE_DIR", "MYPY_CACHE_DIR"):
            folder = Path(environment[name]).parent
            assert folder.is_dir()
            assert not folder.is_relative_to(tmp_path)
    assert not folder.exists()


def test_a_site_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = SimpleNamespace(site_dir=str(tmp_path / "site"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(BuildError, match=r"site cannot be written to\. Build elsewhere"):
        site.read_book(config, False, None)

"""The tangler's own record: a downloaded archive can be changed like a clone, and no edit is lost there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.book.conftest import ALPHA, Project
from tests.book.test_work_is_kept import EDITED, FIRST, SECOND, TARGET, kept
from tools import disk, record
from tools.git import Git

RECORD, HISTORY, REPLACED = "tangled.sha256", ".tangle/history", ".tangle/replaced"


@pytest.fixture
def archive(project: Project) -> Project:
    """The small project as it is downloaded: what was committed, and nothing else."""
    shutil.rmtree(project.path(".git"))
    shutil.rmtree(project.path(".tangle"))
    return project


def tangled(project: Project, *wrote: str) -> None:
    """Tangling writes these files, and has nothing else to say."""
    answer = project.run("tangle")
    assert answer.status == 0, answer.err
    assert answer.out == "".join(f"wrote {path}\n" for path in wrote)


def named(data: str) -> str:
    """The name under which a copy of TARGET with another content than the tangler's is kept."""
    return f"{REPLACED}/{TARGET}.{hashlib.sha256(data.encode()).hexdigest()[:8]}"


# without git


@pytest.fixture(
    params=["no repository", "no program", "another owner", "in another", "in one that ignores it"]
)
def silent(
    request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Project, str]:
    """A project of which git knows nothing, for each reason, and what git says."""
    shutil.rmtree(project.path(".tangle"))
    if request.param == "no program":
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        return project, "there is no git to ask for a copy"
    if request.param == "another owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        return project, "git cannot be asked for a copy (detected dubious ownership"
    shutil.rmtree(project.path(".git"))
    if request.param == "no repository":
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        return project, "git cannot be asked for a copy (not a git repository"
    project.git("init", "-q", str(tmp_path))
    if "ignores" in request.param:
        (tmp_path / ".gitignore").write_text("*\n")
    return project, "git has no copy of it"


def test_chapters_are_edited_without_git(silent: tuple[Project, str]) -> None:
    project, _ = silent
    for n in range(2, 5):
        project.change(FIRST, f"x += {n - 1}", f"x += {n}")
        tangled(project, TARGET)
        assert project.run("check").status == 0
    assert "x += 4" in project.read(TARGET)
    project.path(SECOND).unlink()
    assert project.run("tangle").status == 0
    assert not project.path("scripts/run.sh").exists()


def test_edits_by_hand_are_kept_without_git(silent: tuple[Project, str]) -> None:
    """Also one that is older than the first tangle here."""
    project, reason = silent
    project.write(TARGET, EDITED)
    project.change(SECOND, 'echo "it"', 'echo "other"')
    kept(project, f"{FIRST}:25: {TARGET} was edited by hand, and {reason}")
    project.write(TARGET, ALPHA)
    tangled(project, "scripts/run.sh")
    project.write(TARGET, EDITED)
    project.change(FIRST, "x += 1", "x += 3")
    kept(project, f"{FIRST}:25: {TARGET} was edited by hand, and {reason}")
    project.write("scripts/run.sh", "echo mine\n")
    project.path(SECOND).unlink()
    kept(project, "scripts/run.sh: no block of the book writes this file", reason)


def test_what_the_message_advises(archive: Project) -> None:
    """Putting the edit aside, where it disturbs nobody, or giving it up."""
    archive.write(TARGET, EDITED)
    kept(archive, TARGET, f"keep a copy (mv {TARGET} {TARGET}.orig)", f"give it up (rm {TARGET})")
    archive.path(TARGET).rename(archive.path(f"{TARGET}.orig"))
    tangled(archive, TARGET)
    assert archive.run("check").status == 0
    assert archive.read(f"{TARGET}.orig") == EDITED


def test_a_copy_under_another_name_is_somebodys(archive: Project) -> None:
    archive.write("nanochat/alpha_before.py", ALPHA)
    kept(archive, "nanochat/alpha_before.py: no block of the book writes this file")


# what may happen to the record


def test_its_lines_are_the_checksums_of_the_files(project: Project) -> None:
    project.change(FIRST, "x += 1", "x += 2")
    assert project.run("tangle").status == 0
    lines = [line.split("  ") for line in project.read(RECORD).splitlines() if not line.startswith("#")]
    assert [path for _, path in lines] == [TARGET, "scripts/run.sh"]
    for checksum, path in lines:
        assert checksum == hashlib.sha256(project.path(path).read_bytes()).hexdigest()


HAPPENS = {
    "deleted": None,
    "empty": b"",
    "not text": bytes(range(256)),
    "a folder less": b"0123  nanochat\n",
}


@pytest.mark.parametrize("what", HAPPENS)
@pytest.mark.parametrize("lost", [RECORD, HISTORY])
def test_one_of_two_records_suffices(project: Project, lost: str, what: str) -> None:
    shutil.rmtree(project.path(".git"))
    project.change(FIRST, "x += 1", "x += 2")
    tangled(project, TARGET)
    project.path(lost).unlink()
    if HAPPENS[what] is not None:
        project.write(lost, HAPPENS[what] or b"")
    project.change(FIRST, "x += 2", "x += 3")
    tangled(project, TARGET)
    assert project.run("check").status == 0


def test_the_record_is_written_anew(project: Project) -> None:
    good = project.read(RECORD)
    for text in ("", good + "x\n", good.replace("\n", "\r\n"), good.replace("0", "1")):
        project.write(RECORD, text)
        answer = project.run("check")
        assert answer.status == 1
        assert answer.err.startswith(f"{RECORD}: it is not what make tangle writes")
        answer = project.run("tangle")
        assert (answer.status, answer.out) == (0, f"wrote {RECORD}: it was not what the files are\n")
        assert project.read(RECORD) == good
        assert project.run("check").status == 0


def test_without_any_record(archive: Project) -> None:
    """Nothing is known then, and that is said; files that fit the book are known again at once."""
    archive.path(RECORD).unlink()
    archive.change(FIRST, "x += 1", "x += 2")
    kept(archive, f"{FIRST}:25: {TARGET} is not in tangled.sha256, so a hand may have edited it")
    archive.change(FIRST, "x += 2", "x += 1")
    assert archive.run("tangle").status == 0
    archive.change(FIRST, "x += 1", "x += 2")
    tangled(archive, TARGET)


def test_git_knows_what_the_records_have_lost(project: Project) -> None:
    project.path(RECORD).unlink()
    shutil.rmtree(project.path(".tangle"))
    project.change(FIRST, "x += 1", "x += 2")
    answer = project.run("tangle")
    assert answer.status == 0
    assert (
        f"{TARGET} was not as an earlier tangle left it; as it was, it is kept in {named(ALPHA)}"
        in answer.out
    )
    assert project.read(named(ALPHA)) == ALPHA


def test_a_record_with_the_marks_of_a_merge(archive: Project) -> None:
    """Each side's line counts, and nothing else does."""
    good = archive.read(RECORD)
    other = record.line_of(TARGET, EDITED.encode())
    archive.write(RECORD, f"<<<<<<< HEAD\n{other}\n=======\n{good}>>>>>>> other\n")
    archive.change(FIRST, "x += 1", "x += 3")
    for content in (ALPHA, EDITED):
        archive.write(TARGET, content)
        shutil.rmtree(archive.path(".tangle"), ignore_errors=True)
        archive.write(RECORD, f"<<<<<<< HEAD\n{other}\n=======\n{good}>>>>>>> other\n")
        tangled(archive, TARGET)
    archive.write(TARGET, ALPHA.replace("x += 1", "x += 4"))
    kept(archive, TARGET)


def merged(project: Project, other: tuple[str, str], own: tuple[str, str]) -> bool:
    """Change the first chapter in another branch and in this one, tangle both; whether git merges them."""
    project.git("checkout", "-qb", "other")
    for change in (other, own):
        project.change(FIRST, *change)
        assert project.run("tangle").status == 0
        project.commit()
        if change == other:
            project.git("checkout", "-q", "-")
    merge = subprocess.run(
        ["git", "merge", "-q", "other"], cwd=project.root, capture_output=True, check=False
    )
    return merge.returncode == 0


@pytest.mark.parametrize("attributes", [True, False])
def test_two_branches_are_merged(project: Project, attributes: bool) -> None:
    """Each changes another fragment of one file. With .gitattributes the record does not conflict."""
    if not attributes:
        project.path(".gitattributes").unlink()
        project.commit()
    changes = ('"""Alpha."""', '"""The first."""'), ("x += 1", "x += 2")
    assert merged(project, *changes) == attributes
    both = ALPHA.replace("Alpha", "The first").replace("x += 1", "x += 2")
    assert project.read(TARGET) == both
    answer = project.run("tangle")
    assert (answer.status, answer.out) == (0, f"wrote {RECORD}: it was not what the files are\n")
    assert project.run("check").status == 0
    shutil.rmtree(project.path(".git"))
    shutil.rmtree(project.path(".tangle"))
    project.change(FIRST, "x += 2", "x += 3")
    tangled(project, TARGET)


def test_a_merge_that_is_not_resolved(project: Project) -> None:
    """Chapter and file conflict alike: first the chapter's line is named, then what to do with the file."""
    assert not merged(project, ("x += 1", "x += 2"), ("x += 1", "x += 3"))
    kept(project, f"{FIRST}:25: this line is git's mark of a merge that is not resolved")
    project.write(FIRST, project.git("show", f"other:{FIRST}") + "\n")
    kept(project, f"{TARGET}:11: a merge is not resolved in this file", f"rm {TARGET}")
    project.path(TARGET).unlink()
    tangled(project, TARGET)
    assert project.run("check").status == 0


def test_the_history_stays_small(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "HISTORY_LENGTH", 3)
    for n in range(2, 8):
        project.change(FIRST, f"x += {n - 1}", f"x += {n}")
        assert project.run("tangle").status == 0
    assert len(project.read(HISTORY).splitlines()) == 3


def test_the_history_knows_every_version_written_here(archive: Project) -> None:
    """Somebody puts back a file as an earlier tangle, or the archive, had it."""
    versions = [ALPHA]
    for n in range(2, 5):
        archive.change(FIRST, f"x += {n - 1}", f"x += {n}")
        tangled(archive, TARGET)
        versions.append(archive.read(TARGET))
    for version in versions[:-1]:
        archive.write(TARGET, version)
        tangled(archive, TARGET)


# what is replaced is kept


def test_the_last_version_is_kept(archive: Project) -> None:
    for n in range(2, 5):
        archive.change(FIRST, f"x += {n - 1}", f"x += {n}")
        tangled(archive, TARGET)
        assert f"x += {n - 1}" in archive.read(f"{REPLACED}/{TARGET}")
    assert len(list(archive.path(f"{REPLACED}/nanochat").iterdir())) == 1


def test_every_version_of_somebody_else_is_kept(project: Project) -> None:
    """Though git has it: an index is overwritten by the next `git add`."""
    edits = [ALPHA.replace("x += 1", f"x += {n}") for n in (5, 6)]
    for edit in edits:
        project.write(TARGET, edit)
        project.git("add", TARGET)
        answer = project.run("tangle")
        assert answer.status == 0
        assert f"it is kept in {named(edit)}\n" in answer.out
    assert [project.read(named(edit)) for edit in edits] == edits
    project.path(SECOND).unlink()
    project.write("scripts/run.sh", "echo mine\n")
    project.git("add", "scripts")
    assert project.run("tangle").status == 0
    assert [path.read_text() for path in project.path(f"{REPLACED}/scripts").iterdir()] == ["echo mine\n"]


def test_an_edit_saved_while_tangling_is_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the comparison has allowed to write, and before the file is written."""
    project.change(FIRST, "x += 1", "x += 2")
    edit = ALPHA.replace("x += 1", "x += 7")
    announce = record.Record.announce

    def and_save(self: record.Record, lines: list[str], drafts: Path) -> None:
        announce(self, lines, drafts)
        project.write(TARGET, edit)

    monkeypatch.setattr(record.Record, "announce", and_save)
    answer = project.run("tangle")
    assert answer.status == 0
    assert f"it is kept in {named(edit)}\n" in answer.out
    assert project.read(named(edit)) == edit
    assert project.read(TARGET) == EDITED


class Stopped(BaseException):
    """Power, or SIGKILL: nothing is tidied up on purpose, and no handler knows it."""


def test_stopped_anywhere(archive: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each change to the disk in turn: every file is whole, and the next tangle completes.

    It does so with only the committed record, as on another machine.
    """
    archive.change(FIRST, "x += 1", "x += 2")
    archive.change(SECOND, "file=scripts/run.sh", "file=scripts/go.sh")
    old_and_new = {ALPHA, EDITED}
    replace, unlink = os.replace, Path.unlink
    steps = 0

    def stop_at(wanted: int) -> bool:
        nonlocal steps
        steps = 0
        root = tmp_path / f"stopped-{wanted}"
        shutil.copytree(archive.root, root)

        def counted() -> None:
            nonlocal steps
            steps += 1
            if steps > wanted:
                raise Stopped

        def count_replace(source: Path, target: Path) -> None:
            counted()
            replace(source, target)

        def count_unlink(self: Path, missing_ok: bool = False) -> None:
            counted()
            unlink(self, missing_ok)

        project = Project(root, archive.capsys)
        with monkeypatch.context() as broken:
            broken.setattr(os, "replace", count_replace)
            broken.setattr(Path, "unlink", count_unlink)
            broken.setattr(disk.shutil, "rmtree", lambda *_, **__: None)
            try:
                project.run("tangle")
                done = True
            except Stopped:
                done = False
        assert project.read(TARGET) in old_and_new
        shutil.rmtree(project.path(".tangle"))
        answer = project.run("tangle")
        assert answer.status == 0, (wanted, answer.err)
        assert project.read(TARGET) == EDITED
        assert {path.name for path in project.path("scripts").iterdir()} == {"go.sh"}
        assert project.run("check").status == 0
        return done

    number = 0
    while not stop_at(number):
        number += 1
    # two copies, two records, a copy again and its file put in place, a new file, a copy again and its file
    # removed, the record
    assert number == 2 + 2 + 2 + 1 + 2 + 1


def test_a_private_folder_that_cannot_be_made(archive: Project) -> None:
    """Before anything is written."""
    archive.write(".tangle", "a file\n")
    archive.change(FIRST, "x += 1", "x += 2")
    answer = archive.run("tangle")
    assert answer.status == 1
    assert "File exists" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert archive.read(TARGET) == ALPHA


def test_why_git_is_silent(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Git(project.root).answers()
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert Git(project.root).why_not() == "git has no copy of it"

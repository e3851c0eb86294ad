"""Tangling overwrites and removes only what can be had back, all of it or nothing."""

from __future__ import annotations

import os
import stat
import tempfile

import pytest

from nanochat import provenance
from tests.book.conftest import ALPHA, Project
from tools.watch import is_of_the_book

FIRST, SECOND, TARGET = "lit/10-first.md", "lit/20-second.md", "nanochat/alpha.py"
EDITED = ALPHA.replace("x += 1", "x += 2")


def kept(project: Project, path: str, *words: str) -> None:
    """Tangling refuses, says these words, and leaves every byte as it was. So does checking."""
    before = project.snapshot()
    for command in ("tangle", "check"):
        answer = project.run(command)
        assert answer.status == 1
        assert path in answer.err
        for word in words:
            assert word in answer.err, answer.err
        assert project.snapshot() == before


def test_the_small_book_is_tangled(project: Project) -> None:
    assert project.read(TARGET) == ALPHA
    assert project.read("scripts/run.sh") == '#!/usr/bin/env bash\nset -eu\necho "it"\n'
    for command in ("tangle", "check"):
        before = project.snapshot()
        assert project.run(command).status == 0
        assert project.snapshot() == before


def test_edit_by_hand_is_shown_and_kept(project: Project) -> None:
    project.write(TARGET, EDITED)
    kept(
        project,
        f"{FIRST}:25: {TARGET} was edited by hand",
        f"{TARGET}:11 belongs to {FIRST}:25 (gamma)",
        "book |         x += 1",
        "file |         x += 2",
        "git has no copy",
        "Move the edit into the chapter",
    )


def test_one_edit_forbids_all_writing(project: Project) -> None:
    project.write(TARGET, EDITED)
    project.change(SECOND, 'echo "it"', 'echo "other"')
    kept(project, f"{FIRST}:25")


def test_lines_added_and_removed_by_hand(project: Project) -> None:
    edited = ALPHA.replace('"""Alpha."""\n', '"""Alpha."""\nimport os\n').replace("    return x\n", "")
    project.write(TARGET, edited)
    kept(
        project,
        f"{TARGET}:2 belongs after {FIRST}:4 (alpha)",
        "file | import os",
        "book |     return x",
        f"{FIRST}:19 (beta)",
    )


def test_an_edit_across_fragments(project: Project) -> None:
    project.write(TARGET, ALPHA.replace("        x += 1\n    return x\n", "        x += 3\n    return -x\n"))
    kept(project, f"{TARGET}:11 belongs to {FIRST}:25 (gamma), {FIRST}:19 (beta)\n")
    project.write(TARGET, ALPHA.replace("Beta.", "B.").replace("Over several", "Over many"))
    kept(project, f"{TARGET}:5 belongs to {FIRST}:14 (beta)\n", f"{TARGET}:7 belongs to {FIRST}:16 (beta)\n")


def test_edit_moved_into_the_chapter(project: Project) -> None:
    """Once the chapter says the same, nothing is in the way."""
    project.write(TARGET, EDITED)
    project.change(FIRST, "x += 1", "x += 2")
    assert project.run("tangle").status == 0
    assert project.read(TARGET) == EDITED


@pytest.mark.parametrize("how", ["committed", "staged", "stashed", "in an old commit", "on another branch"])
def test_what_git_has_is_overwritten(project: Project, how: str) -> None:
    project.write(TARGET, EDITED)
    if how == "staged":
        project.git("add", TARGET)
    elif how == "stashed":
        project.git("stash")
        project.write(TARGET, EDITED)
    elif how == "on another branch":
        project.git("checkout", "-qb", "other")
        project.commit()
        project.git("checkout", "-q", "-")
        project.write(TARGET, EDITED)
    else:
        project.commit()
    if how == "in an old commit":
        project.write(TARGET, ALPHA)
        project.commit()
        project.write(TARGET, EDITED)
    checked = project.run("check")
    assert checked.status == 1
    assert checked.err.startswith(f"{FIRST}:25: {TARGET} is not what the book says")
    assert "book |         x += 1" in checked.err
    assert project.read(TARGET) == EDITED
    tangled = project.run("tangle")
    assert tangled.status == 0
    shown = f"over an edit by hand that git has a copy of, at {FIRST}:25" in tangled.out
    assert shown == (how != "committed")  # then it is the last commit's text and nobody's news
    assert ("file |         x += 2" in tangled.out) == shown
    assert project.read(TARGET) == ALPHA
    assert project.run("check").status == 0


def test_a_copy_that_git_may_forget_does_not_count(project: Project) -> None:
    """An object that nothing refers to is thrown away some day."""
    project.write(TARGET, EDITED)
    project.git("add", TARGET)
    project.git("reset", "-q", "--mixed")
    kept(project, TARGET, "git has no copy")


def test_the_same_content_elsewhere_does_not_count(project: Project) -> None:
    """A person looks for the history of a file under its name."""
    project.write("notes.txt", EDITED)
    project.commit()
    project.write(TARGET, EDITED)
    kept(project, TARGET, "git has no copy")


def test_a_chapter_is_edited_again_and_again(project: Project) -> None:
    """What an earlier tangle wrote is no work of anybody's, though git has never seen it."""
    for n in range(2, 6):
        project.change(FIRST, f"x += {n - 1}", f"x += {n}")
        answer = project.run("tangle")
        assert answer.status == 0, answer.err
        assert answer.out == f"wrote {TARGET}\n"
    assert "x += 5" in project.read(TARGET)


def test_a_file_in_the_way_of_a_new_target(project: Project) -> None:
    project.write("nanochat/new.py", "mine = 1\n")
    project.change(SECOND, "```python\n", "```python #delta file=nanochat/new.py\n")
    kept(project, f"{SECOND}:14: nanochat/new.py is not in tangled.sha256, so a hand may have edited it")


def test_a_missing_file_is_written(project: Project) -> None:
    project.path(TARGET).unlink()
    answer = project.run("check")
    assert answer.status == 1
    assert answer.err.startswith(f"{FIRST}:3: {TARGET} is missing")
    assert project.run("tangle").out == f"wrote {TARGET}\n"
    assert project.read(TARGET) == ALPHA


def test_a_renamed_target(project: Project) -> None:
    project.change(FIRST, "file=nanochat/alpha.py", "file=nanochat/sub/omega.py")
    answer = project.run("check")
    assert answer.status == 1
    assert "nanochat/alpha.py: no block of the book writes this file" in answer.err
    assert project.run("tangle").status == 0
    assert not project.path(TARGET).exists()
    assert project.read("nanochat/sub/omega.py") == ALPHA
    # and back, though git has never seen the new name: the folder goes too
    project.change(FIRST, "file=nanochat/sub/omega.py", "file=nanochat/alpha.py")
    assert project.run("tangle").status == 0
    assert not project.path("nanochat/sub").exists()
    assert project.read(TARGET) == ALPHA


def test_a_deleted_target(project: Project) -> None:
    project.path(SECOND).unlink()
    assert project.run("tangle").status == 0
    assert not project.path("scripts/run.sh").exists()
    assert project.run("check").status == 0


def test_a_deleted_target_that_was_edited(project: Project) -> None:
    project.write("scripts/run.sh", "echo mine\n")
    project.path(SECOND).unlink()
    kept(project, "scripts/run.sh: no block of the book writes this file", "git has no copy")


def test_a_file_of_somebody_else(project: Project) -> None:
    project.write("scripts/mine.py", "print(1)\n")
    kept(project, "scripts/mine.py: no block of the book writes this file", "Move it")


def test_what_git_ignores_and_hidden_files_stay(project: Project) -> None:
    for name in ("scripts/a.ignored", "nanochat/__pycache__/alpha.cpython-313.pyc", "scripts/.run.sh.swp"):
        project.write(name, "x")
    before = project.snapshot()
    assert project.run("tangle").status == 0
    assert project.run("check").status == 0
    assert project.snapshot() == before


def test_modes(project: Project) -> None:
    def executable(path: str) -> bool:
        return bool(project.path(path).stat().st_mode & stat.S_IXUSR)

    assert executable("scripts/run.sh")
    assert not executable(TARGET)
    project.path("scripts/run.sh").chmod(0o644)
    assert project.run("check").status == 1
    assert project.run("tangle").status == 0
    assert executable("scripts/run.sh")


@pytest.mark.parametrize("form", ["CRLF", "BOM", "no final newline"])
def test_other_forms_of_text_give_the_same_code(project: Project, form: str) -> None:
    text = project.read(FIRST)
    changed = {
        "CRLF": text.replace("\n", "\r\n"),
        "BOM": "\ufeff" + text.removeprefix("# First\n\n"),
        "no final newline": text.rstrip("\n"),
    }[form]
    project.write(FIRST, changed)
    assert project.run("tangle").status == 0
    assert project.read(TARGET) == ALPHA
    assert project.read(FIRST) == changed


def test_prose_that_only_looks_like_markup(project: Project) -> None:
    harmless = "\n".join(
        [
            "A fence ```` ```python #name ```` in a sentence, `<!--` too, and <!-- a comment --> in one.",
            "```python inside a sentence``` and a << b >> c, <<not-a-reference>> in prose.",
            "~~~markdown",
            "```python #shown file=nanochat/shown.py",
            "x",
            "```",
            "~~~",
            "<!-- a comment",
            "over lines -->",
            "- a list",
            "  ```text",
            "  shown",
            "  ```",
            "",
        ]
    )
    project.write(FIRST, project.read(FIRST).replace("Some prose.\n", harmless))
    answer = project.run("tangle")
    assert answer.status == 0, answer.err
    assert project.read(TARGET) == ALPHA
    assert not project.path("nanochat/shown.py").exists()


@pytest.mark.parametrize(
    "code",
    [
        ("python", "shifted = (\n    1\n    << 2\n    >> 1\n) << len('>>')"),
        ("python", "text = 'a <b> c'\nn = 1 <<2\nmany = 1 << n >> 2"),
        ("bash", "cat <<END >>file\nit\nEND\ntrue >> file"),
        ("yaml", "base: &base\n  a: 1\nmore:\n  <<: *base"),
        ("bash", "echo ======= ; echo '<<<<<<<'"),
    ],
)
def test_code_that_only_looks_like_half_a_reference(project: Project, code: tuple[str, str]) -> None:
    language, text = code
    suffix = {"python": "py", "bash": "sh", "yaml": "yml"}[language]
    project.write(
        "lit/30-third.md", f"Third\n=======\n\n```{language} file=scripts/third.{suffix}\n{text}\n```\n"
    )
    answer = project.run("tangle")
    assert answer.status == 0, answer.err
    assert project.read(f"scripts/third.{suffix}") == f"{text}\n"


# What systems and editors leave beside a file x, and what it then holds.
LEFT_OVER = [
    "._x",
    ".#x",
    ".x",
    "x~",
    "#x#",
    "x.orig",
    "x.rej",
    "x.bak",
    ".x.swp",
    "x___jb_tmp___",
    ".other/x",
]


@pytest.mark.parametrize("form", LEFT_OVER)
@pytest.mark.parametrize("beside", ["lit/10-first.md", "lit/how-to/do-it.md", "nanochat/alpha.py"])
def test_what_systems_and_editors_leave(project: Project, form: str, beside: str) -> None:
    """It is neither read nor removed, and nobody has to do anything about it."""
    folder, _, name = beside.rpartition("/")
    project.write(f"{folder}/{form.replace('x', name)}", b"\x00\x05\xff\n```python #alpha\nx = 1\n```\n")
    before = project.snapshot()
    for command in ("tangle", "check"):
        answer = project.run(command)
        assert answer.status == 0, answer.err
        assert project.snapshot() == before
    assert not is_of_the_book(project.root, str(project.path(f"lit/{form.replace('x', name)}")))
    fragments = provenance.read_book(project.root).fragments.values()
    assert {place.chapter for lines in fragments for _, place in lines} == {FIRST, SECOND}


def test_a_lock_of_emacs(project: Project) -> None:
    """A link to no file, whose name says who edits where."""
    project.path("lit/.#10-first.md").symlink_to("somebody@somewhere.4711:1700000000")
    project.path("nanochat/.#alpha.py").symlink_to("somebody@somewhere.4711:1700000000")
    assert project.run("tangle").status == 0
    assert project.run("check").status == 0


def test_interrupted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    project.change(FIRST, "x += 1", "x += 2")
    with monkeypatch.context() as broken:
        broken.setattr(tempfile, "mkdtemp", interrupt)
        answer = project.run("tangle")
    assert (answer.status, answer.err) == (130, "interrupted; the same command completes it\n")
    assert project.run("tangle").out == f"wrote {TARGET}\n"


@pytest.mark.parametrize("call", ["mkdtemp", "replace"])
def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """What fails before the first file is in place changes nothing, and the next try completes."""
    project.change(FIRST, "x += 1", "x += 2")
    before = project.snapshot()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    with monkeypatch.context() as broken:
        broken.setattr(tempfile if call == "mkdtemp" else os, call, fail)
        answer = project.run("tangle")
        assert answer.status == 1
        assert "No space left on device" in answer.err
    after = {name: state for name, state in project.snapshot().items() if not name.startswith(".tangle")}
    assert after == {name: state for name, state in before.items() if not name.startswith(".tangle")}
    assert not list(project.root.glob(".tangle/drafts-*"))
    assert project.run("tangle").status == 0
    assert project.read(TARGET) == EDITED

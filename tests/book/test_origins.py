"""Every line of code knows its line in a chapter, for Entangled and for the program itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanochat import provenance
from tests.book.conftest import PROJECT, PYTHON, Project, run
from tools.book import outputs_of, read_book
from tools.check import annotate
from tools.tangle import Origin, tangle

FIRST, TARGET = "lit/10-first.md", "nanochat/alpha.py"


def check_every_line(root: Path) -> int:
    """Compare each line of each output with the chapter, and with what the program finds by itself."""
    chapters = {path.name: path.read_text().split("\n") for path in (root / "lit").glob("*.md")}
    book = provenance.read_book(root)
    outputs = tangle(read_book(root))  # without what is derived from them
    lines = 0
    assert book.files.keys() == outputs.keys()
    for path, output in outputs.items():
        texts = output.text.split("\n")[:-1]
        assert len(texts) == len(output.origins)
        for text, origin in zip(texts, output.origins, strict=True):
            assert chapters[origin.chapter.removeprefix("lit/")][origin.line - 1].strip() == text.strip()
        theirs = list(provenance.tangled(book, book.files[path]))
        assert [text for text, _ in theirs] == texts
        assert [(p.chapter, p.line, p.fragment) for _, p in theirs] == [
            (origin.chapter, origin.line, origin.name) for origin in output.origins
        ]
        lines += len(texts)
    return lines


def test_every_line_of_this_book() -> None:
    assert check_every_line(PROJECT) > 100


def test_every_line_of_a_hard_book(project: Project) -> None:
    """References to references, a fragment used twice, appended, empty, with another's indent, in other
    languages.
    """
    project.write(
        "lit/30-third.md",
        "\n".join(
            [
                "```python #third file=nanochat/sub/third.py",
                "<<twice>>",
                "if True:",
                "    <<twice>>",
                "    if True:",
                "        <<nothing>>",
                "        <<twice>>",
                "<<last>>",
                "```",
                "~~~markdown",
                "```python #twice",
                "shown = 0",
                "```",
                "~~~",
                "```python #twice",
                "",
                "a = 1",
                "",
                "```",
                "prose",
                "```python #nothing",
                "```",
                "```python #last",
                "    <<deep>>",
                "b = 2",
                "```",
                "```python #last",
                "c = 3",
                "```",
                "```python file=nanochat/unnamed.py",
                "d = 4",
                "<<last>>",
                "```",
                "```python #deep",
                "# deep",
                "```",
                "```toml file=scripts/settings.toml",
                "e = 5",
                "```",
                "",
            ]
        ),
    )
    assert check_every_line(project.root) > 30
    assert project.run("tangle").status == 0
    assert project.read("nanochat/unnamed.py") == "d = 4\n    # deep\nb = 2\nc = 3\n"


def test_where(project: Project) -> None:
    """Prose may move, code may change since it was tangled, the file may have been edited: no answer is
    wrong.
    """
    place = project.path(TARGET)

    def where(line: int) -> str:
        return str(provenance.locate(place, line, project.root))

    assert where(1) == f"{FIRST}:4 (alpha)"
    assert where(9) == f"{FIRST}:23 (gamma)"
    assert where(12) == f"{FIRST}:19 (beta)"
    assert where(13) == where(0) == where(-1) == "None"
    project.change(FIRST, "Some prose.", "Some\nmore\nprose.")
    assert where(9) == f"{FIRST}:25 (gamma)"
    project.change(FIRST, "    return x\n", "    x = -x\n    return x\n")
    assert where(12) == f"{FIRST}:22 (beta)"
    project.change(FIRST, "x += 1", "x += 2")
    assert where(11) == "None"
    project.write(TARGET, "import os\n" + project.read(TARGET))
    assert where(1) == "None"
    assert where(2) == f"{FIRST}:4 (alpha)"


def test_where_knows_nothing_of_other_files(project: Project) -> None:
    project.write("tests/test_x.py", "x\n")
    for path in ("tests/test_x.py", "nanochat/none.py", "nanochat", "/usr/bin/env"):
        assert provenance.locate(project.root / path, 1, project.root) is None
    for chapter in project.path("lit").iterdir():
        chapter.unlink()
    assert provenance.locate(project.path(TARGET), 1, project.root) is None


def test_a_book_that_is_being_edited_does_not_hang(project: Project) -> None:
    project.change(FIRST, "    x += 1", "    <<gamma>>\n    <<beta>>\n    <<missing>>")
    assert provenance.locate(project.path(TARGET), 1, project.root) is not None


def test_make_where(standalone: Project) -> None:
    def where(*arguments: str) -> tuple[int, str, str]:
        answer = run(standalone.root, PYTHON, "-m", "nanochat.provenance", *arguments)
        return answer.status, answer.out, answer.err

    assert where(f"{TARGET}:9") == (0, f"{FIRST}:23 (gamma)\n", "")
    assert where(f"{TARGET}:9:4: E501 Line too long")[0] == 0
    for arguments, status, words in (
        ([], 2, "which line?"),
        ([TARGET], 2, "which line?"),
        (["nanochat/none.py:1"], 2, "no file nanochat/none.py"),
        ([f"{TARGET}:99"], 1, f"{TARGET} has 12 lines, and no line 99"),
        ([f"{TARGET}:0"], 1, "and no line 0"),
        (["entangled.toml:1"], 1, "entangled.toml is not tangled: no chapter writes it"),
    ):
        told = where(*arguments)
        assert told[0] == status
        assert told[2].startswith("error: ")
        assert words in told[2]
    assert where("--help")[0] == 0
    assert "make where AT=" in where("--help")[1]
    standalone.write(TARGET, standalone.read(TARGET).replace("x += 1", "x += 2"))
    assert where(f"{TARGET}:11")[2].startswith(f"error: no chapter has line 11 of {TARGET}; `make check`")
    answer = run(standalone.root, "make", "where", f"AT={TARGET}:9")
    assert (answer.status, answer.out) == (0, f"{FIRST}:23 (gamma)\n")


FAILING = """# Third

```python #fail file=scripts/fail.py
from nanochat import provenance

provenance.install()
provenance.install()


def fail() -> None:
    try:
        raise ValueError("one")
    except ValueError as error:
        raise KeyError("two") from error


fail()
```
"""


def test_a_traceback_names_the_chapter(standalone: Project) -> None:
    standalone.write("lit/30-third.md", FAILING)
    assert standalone.run("tangle").status == 0
    answer = run(standalone.root, PYTHON, "-m", "scripts.fail")
    assert answer.status == 1
    traceback, _, book = answer.err.partition("\n\nIn the book (raised in the last of these lines):\n")
    assert traceback.endswith("KeyError: 'two'")
    assert book.splitlines() == [
        "  scripts/fail.py:9 was written in lit/30-third.md:12 (fail)",
        "  scripts/fail.py:14 was written in lit/30-third.md:17 (fail)",
        "  scripts/fail.py:11 was written in lit/30-third.md:14 (fail)",
    ]
    # without the book, only Python's own
    shutil.rmtree(standalone.path("lit"))
    answer = run(standalone.root, PYTHON, "-m", "scripts.fail")
    assert answer.err.rstrip() == traceback


def test_a_syntax_error_names_the_chapter(project: Project) -> None:
    project.change(FIRST, "x += 1", "x +=")
    assert project.run("tangle").status == 0
    with pytest.raises(SyntaxError) as caught:
        compile(project.read(TARGET), str(project.path(TARGET)), "exec")
    lines = provenance.explain(caught.value, project.root)
    assert lines == [f"{TARGET}:11 was written in {FIRST}:25 (gamma)"]


def test_a_syntax_error_names_nothing_else(standalone: Project) -> None:
    """Not the files that imported the one Python cannot read."""
    importing = "from nanochat import provenance\n\nprovenance.install()\nfrom nanochat import alpha\n"
    standalone.write("lit/30-third.md", f"```python #fail file=scripts/fail.py\n{importing}```\n")
    standalone.change(FIRST, "x += 1", "x +=")
    assert standalone.run("tangle").status == 0
    answer = run(standalone.root, PYTHON, "-m", "scripts.fail")
    assert answer.err.endswith(f"\n\nIn the book:\n  {TARGET}:11 was written in {FIRST}:25 (gamma)\n")


def test_a_failing_test_names_the_chapter(standalone: Project) -> None:
    standalone.change(FIRST, "x += 1", "x += 1 // 0")
    assert standalone.run("tangle").status == 0
    for path in ("tests/__init__.py", "tests/conftest.py", "tests/slowest.py"):
        if (PROJECT / path).exists():
            standalone.write(path, (PROJECT / path).read_bytes())
    test = "from nanochat.alpha import beta\n\n\ndef test() -> None:\n    beta(1)\n"
    standalone.write("tests/test_alpha.py", test)
    answer = run(standalone.root, PYTHON, "-m", "pytest", "-p", "no:cacheprovider", "tests")
    assert answer.status == 1
    section = answer.out.split(" in the book -")[1]
    assert f"{TARGET}:11 was written in {FIRST}:25 (gamma)\n" in section


def test_complaints_of_other_tools_name_the_chapter(project: Project) -> None:
    outputs = outputs_of(project.root)
    told = annotate(
        f"{TARGET}:11:5: E501 Line too long\ntests/x.py:1: error\n--- {TARGET}\n+++ {TARGET}\n@@ -9,3 +9,2 "
        f"@@\n"
        "--- tests/x.py\n@@ -1 +1 @@\n",
        outputs,
    ).splitlines()
    assert told[0] == f"{TARGET}:11:5: E501 Line too long  [{FIRST}:25 (gamma)]"
    assert told[1] == "tests/x.py:1: error"
    assert told[4] == f"@@ -9,3 +9,2 @@  [{FIRST}:23 (gamma) to {FIRST}:25 (gamma)]"
    assert told[6] == "@@ -1 +1 @@"


def test_an_origin_past_the_end(project: Project) -> None:
    project.write("lit/30-third.md", "```python #empty file=nanochat/empty.py\n```\n")
    output = outputs_of(project.root)["nanochat/empty.py"]
    assert output.text == ""
    assert output.origin(1) == Origin("lit/30-third.md", 1, "empty")


def test_ruff_of_this_project(standalone: Project) -> None:
    """The whole command, with the tools it calls, on a file that is not formatted."""
    if not (PROJECT / ".venv/bin/python").exists():
        pytest.skip("needs .venv for ruff")
    standalone.path(".venv").symlink_to((PROJECT / ".venv").resolve())
    standalone.write("pyproject.toml", (PROJECT / "pyproject.toml").read_text())
    standalone.change(FIRST, "x += 1", "x  +=  1; import os")
    assert standalone.run("tangle").status == 0
    standalone.commit()
    before = standalone.snapshot()
    only_ruff = (
        "import tools.check as c; c.COMMANDS = c.COMMANDS[:2]; "
        "from tools.__main__ import main; raise SystemExit(main(['check']))"
    )
    answer = run(standalone.root, PYTHON, "-B", "-c", only_ruff)
    assert answer.status == 1
    assert f"{FIRST}:25 (gamma)]" in answer.out
    assert "check failed: ruff check, ruff format" in answer.err
    shutil.rmtree(standalone.path(".ruff_cache"), ignore_errors=True)
    assert standalone.snapshot() == before

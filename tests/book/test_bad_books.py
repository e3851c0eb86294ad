"""What a chapter can do wrong is refused, with one message that names the place, and not a byte is changed."""

# ruff: noqa: E501
from __future__ import annotations

import pytest

from tests.book.conftest import Project

FIRST, SECOND = "lit/10-first.md", "lit/20-second.md"

# What is wrong | in which chapter | what is replaced | by what | the place named | words of the message
BAD = [
    ("missing reference", FIRST, "<<gamma>>", "<<gama>>", 18, "Did you mean <<gamma>>?"),
    ("missing reference, nothing near", FIRST, "<<gamma>>", "<<zzz>>", 18, "```python #zzz"),
    ("comment behind a reference", FIRST, "<<gamma>>", "<<gamma>>  # here", 18, "must stand alone on its line"),
    ("code before a reference", FIRST, "    <<gamma>>", "    x = <<gamma>>", 18, "must stand alone on its line"),
    ("two references on a line", FIRST, "<<gamma>>", "<<gamma>> <<gamma>>", 18, "must stand alone"),
    ("a reference with spaces", FIRST, "<<gamma>>", "<<gam ma>>", 18, "must stand alone"),
    ("a reference not closed", FIRST, "<<gamma>>", "<<gamma", 18, "half a reference, <<gamma: it"),
    ("a reference closed once", FIRST, "<<gamma>>", "<<gamma>", 18, "half a reference"),
    ("a reference not opened", FIRST, "<<gamma>>", "gamma>>", 18, "half a reference, gamma>>: it"),
    ("a reference opened once", FIRST, "<<gamma>>", "<gamma>>", 18, "half a reference"),
    ("a reference not closed, behind code", FIRST, "<<gamma>>", "x = <<gamma", 18, "half a reference"),
    ("a reference with blanks behind code", FIRST, "<<gamma>>", "x = << gamma >>", 18, "half a reference"),
    ("a reference not closed, as an argument", FIRST, "<<gamma>>", "print(x, <<gamma)", 18, "half a reference"),
    ("a reference not closed, in a script", SECOND, "<<say-it>>", "<<say-it", 6, "half a reference"),
    ("a reference with too much", FIRST, "<<gamma>>", "<<<gamma>>>", 18, "must stand alone on its line"),
    ("a reference to nothing", FIRST, "<<gamma>>", "<<>>", 18, "must stand alone on its line"),
    ("a reference in other letters", FIRST, "<<gamma>>", "<<größe>>", 18, "in letters, digits and dashes"),
    ("a reference that begins with a digit", FIRST, "<<gamma>>", "<<2-gamma>>", 18, "in letters, digits"),
    ("a merge begun in code", FIRST, "    x += 1", "<<<<<<< HEAD\n    x += 1", 25, "a merge that is not resolved"),
    ("a merge ended in code", FIRST, "    x += 1", "    x += 1\n>>>>>>> 1a2b3c4 (words)", 26, "not resolved"),
    ("a merge ended without a name", FIRST, "    x += 1", "    x += 1\n>>>>>>>", 26, "not resolved"),
    ("a merge's base in code", FIRST, "    x += 1", "||||||| 1a2b3c4\n    x += 1", 25, "not resolved"),
    ("a merge's middle in code", FIRST, "    x += 1", "=======\n    x += 1", 25, "seven = in a block of code"),
    ("a merge in prose", FIRST, "Some prose.", "<<<<<<< HEAD\nSome prose.", 10, "not resolved"),
    ("a merge in a shown block", SECOND, 'shown = "only"', '>>>>>>> main', 14, "not resolved"),
    ("a cycle", FIRST, "    x += 1", "    <<beta>>", 25, "beta -> gamma -> beta"),
    ("a fragment in itself", FIRST, "    x += 1", "    <<gamma>>", 25, "gamma -> gamma"),
    ("unclosed at the end", FIRST, "x += 1\n```\n", "x += 1\n", 22, "never closed"),
    ("unclosed in the middle", FIRST, "<<beta>>\n```\n", "<<beta>>\n", 3, "not closed before another stands in line 11"),
    ("closed with an indent", FIRST, "<<beta>>\n```\n", "<<beta>>\n  ```\n", 3, "another stands in line 8"),
    ("closed with four backticks", FIRST, "<<beta>>\n```\n", "<<beta>>\n````\n", 3, "another stands in line 8"),
    ("shown block unclosed", SECOND, '"only"\n```', '"only"', 13, "never closed"),
    ("shown block unclosed in the middle", FIRST, "Some prose.", "```text\nSome", 10, "another opens in line 13"),
    ("braces", FIRST, "```python #beta", "```{.python #beta}", 12, "braces"),
    ("braces behind a space", FIRST, "```python #beta", "``` {.python #beta}", 12, "braces"),
    ("tildes", FIRST, "```python #gamma\nif x:\n\n    x += 1\n```", "~~~python #gamma\nx\n~~~", 22, "tildes"),
    ("four backticks", FIRST, "```python #gamma\nif x:\n\n    x += 1\n```", "````python #gamma\nx\n````", 22, "three"),
    ("a tab in the fence", FIRST, "```python #beta", "```python\t#beta", 12, "followed by a space"),
    ("no space in the fence", FIRST, "```python #beta", "```python#beta", 12, "followed by a space"),
    ("a space before the language", FIRST, "```python #beta", "``` python #beta", 12, "take it away"),
    ("no language", FIRST, "```python #beta", "```#beta", 12, "#name or file="),
    ("only file= and a comma", FIRST, "```python #beta", "```python, #beta", 12, "#name or file="),
    ("todo before the name", FIRST, "```python #beta", '```python todo="x" #beta', 12, "#name or file="),
    ("a title on a shown block", SECOND, "```python\n", '```python title="x"\n', 13, "one form"),
    ("two words on a shown block", SECOND, "```python\n", "```python foo\n", 13, "one form"),
    ("indented fence", FIRST, "```python #gamma", "  ```python #gamma", 22, "left margin"),
    ("fence in a quotation", FIRST, "Some prose.", "> ```python #delta\n> x\n> ```", 10, "left margin"),
    ("fence in a list", FIRST, "Some prose.", "- ```python #delta", 10, "left margin"),
    ("backtick in the fence", FIRST, "```python #beta", "```python #beta`", 12, "cannot read"),
    ("upper case language", FIRST, "```python #beta", "```Python #beta", 12, "in lower case"),
    ("unknown language with a file", SECOND, "```python\n", "```cobol file=nanochat/x.py\n", 13, "'cobol' is no"),
    ("unknown language", FIRST, "```python #gamma", "```pyhton #gamma", 22, "'pyhton' is no language"),
    ("one file twice", SECOND, "```python\n", "```python #d file=nanochat/alpha.py\n", 13, f"{FIRST}:3"),
    ("one file in two cases", SECOND, "```python\n", "```python #d file=nanochat/Alpha.py\n", 13, "already claimed"),
    ("file inside a file", SECOND, "```python\n", "```python #d file=nanochat/alpha.py/b.py\n", 13, "lies inside"),
    ("unused block", SECOND, "```python\n", "```python #delta\n", 13, "used by no file"),
    ("name taken elsewhere", SECOND, "```bash #say-it", "```bash #beta", 9, f"{FIRST}:12"),
    ("name twice, with todo", FIRST, "#gamma\n", '#beta todo="x"\n', 22, "must be whole"),
    ("name twice, with file", SECOND, "#say-it\n", "#run-it file=scripts/b.sh\n", 9, "must be whole"),
    ("unknown attribute", FIRST, "#alpha file=", "#alpha fiel=", 3, "'fiel=' is no attribute"),
    ("attribute twice", FIRST, "#alpha file=", "#alpha file=nanochat/b.py file=", 3, "given twice"),
    ("empty attribute", FIRST, "```python #beta", '```python #beta todo=""', 12, "empty"),
    ("quoted file", FIRST, "file=nanochat/alpha.py", 'file="nanochat/alpha.py"', 3, "without quotes"),
    ("braces in a todo", FIRST, "```python #beta", '```python #beta todo="{x}"', 12, "cannot read"),
    ("a space around =", FIRST, "```python #beta", '```python #beta todo = "x"', 12, "cannot read"),
    ("two names", FIRST, "```python #beta", "```python #beta #more", 12, "given twice"),
    ("parent folder", FIRST, "file=nanochat/alpha.py", "file=../alpha.py", 3, "outside the project"),
    ("parent folder inside", FIRST, "file=nanochat/alpha.py", "file=nanochat/../../a.py", 3, "outside the project"),
    ("absolute path", FIRST, "file=nanochat/alpha.py", "file=/tmp/alpha.py", 3, "outside the project"),
    ("home folder", FIRST, "file=nanochat/alpha.py", "file=~/alpha.py", 3, "outside the project"),
    ("drive letter", FIRST, "file=nanochat/alpha.py", "file=C:/alpha.py", 3, "outside the project"),
    ("hidden file", FIRST, "file=nanochat/alpha.py", "file=nanochat/.alpha.py", 3, "not a plain path"),
    ("doubled slash", FIRST, "file=nanochat/alpha.py", "file=nanochat//alpha.py", 3, "not a plain path"),
    ("tests", FIRST, "file=nanochat/alpha.py", "file=tests/test_alpha.py", 3, "not product code"),
    ("top level", FIRST, "file=nanochat/alpha.py", "file=Makefile", 3, "not product code"),
    ("a folder of the book", FIRST, "file=nanochat/alpha.py", "file=nanochat", 3, "not product code"),
    ("wrong ending", FIRST, "file=nanochat/alpha.py", "file=nanochat/alpha.sh", 3, "does not end as"),
    ("block in a comment", FIRST, "Some prose.", "<!-- no:\n```python #d\n```\n-->", 11, "HTML comment"),
    ("comment without end", FIRST, "Some prose.", "<!-- no", 10, "never closed"),
    ("block shown in a block", FIRST, "Some prose.", "````text\n```python #d\n```\n````", 11, "~~~markdown"),
    ("a tab in code", FIRST, "    <<gamma>>", "\tpass\n    <<gamma>>", 18, "a tab"),
    ("Entangled's mark", FIRST, "    x += 1", "    # ~/~ end", 25, "Entangled's own mark"),
    ("string in an indent", FIRST, "    x += 1", '    print("""a\n    b""")', 25, "over several lines"),
    ("f-string in an indent", FIRST, "    x += 1", '    print(f"""a\n    {x}b""")', 25, "over several lines"),
    ("stray CR", FIRST, "Some prose.", "Some\rprose.", 10, "control character"),
    ("settings in a chapter", FIRST, "# First", "---\nentangled:\n  version: '2'\n---\n", 1, "entangled.toml"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("chapter", "old", "new", "line", "words"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD]
)
def test_refused(project: Project, chapter: str, old: str, new: str, line: int, words: str) -> None:
    project.change(chapter, old, new)
    refused(project, f"{chapter}:{line}", words)


def refused(project: Project, place: str, words: str) -> None:
    """Both commands refuse, with one message, and change nothing."""
    before = project.snapshot()
    for command in ("tangle", "check"):
        answer = project.run(command)
        assert answer.status == 1
        assert len(answer.err.splitlines()) == 1, answer.err
        assert answer.err.startswith(f"{place}: "), answer.err
        assert words in answer.err
        assert project.snapshot() == before


def test_here_document_in_an_indent(project: Project) -> None:
    project.change("lit/20-second.md", "<<say-it>>", "if true; then\n    <<say-it>>\nfi")
    project.change("lit/20-second.md", 'echo "it"', "cat <<END\nit\nEND")
    refused(project, "lit/20-second.md:12", "over several lines")


def test_not_utf8(project: Project) -> None:
    project.write("lit/30-third.md", b"# Third\n\ncaf\xe9\n")
    refused(project, "lit/30-third.md:3", "Save the chapter as UTF-8")


def test_a_guide_is_a_page_without_code(project: Project) -> None:
    page = project.root / "lit" / "how-to" / "do-it.md"
    page.parent.mkdir()
    page.write_text("# Do it\n\n```console\n$ make\n```\n\n~~~markdown\n```python #shown\nx\n```\n~~~\n")
    assert project.run("tangle").status == 0
    page.write_text("# Do it\n\n```python #delta file=nanochat/delta.py\nx = 1\n```\n")
    answer = project.run("tangle")
    assert answer.status == 1
    assert "lit/how-to/do-it.md:3: nothing here is tangled" in answer.err
    assert not (project.root / "nanochat" / "delta.py").exists()


@pytest.mark.parametrize("name", ["lit/part/30-third.md", "lit/30-third.markdown", "lit/30-third.MD"])
def test_a_chapter_that_nobody_reads(project: Project, name: str) -> None:
    project.write(name, "# Third\n")
    refused(project, name, "Move or rename it")


def test_both_sides_of_a_merge(project: Project) -> None:
    """Each mark is named; the fences of both sides, which do not fit together, are not talked about."""
    ours = "```python #gamma\nif x:\n"
    project.change(
        "lit/10-first.md", "```python #gamma\nif x:\n", f"<<<<<<< HEAD\n{ours}=======\n{ours}>>>>>>> other\n"
    )
    before = project.snapshot()
    answer = project.run("tangle")
    assert answer.status == 1
    assert [line.split(": ")[0] for line in answer.err.splitlines()] == [
        "lit/10-first.md:22",
        "lit/10-first.md:28",
    ]
    assert project.snapshot() == before


def test_a_merge_in_a_guide(project: Project) -> None:
    project.write("lit/how-to/do-it.md", "# Do it\n\n<<<<<<< HEAD\nSo.\n")
    refused(project, "lit/how-to/do-it.md:3", "not resolved")


@pytest.mark.parametrize("name", ["10-first copy.md", "10-first (1).md", "10-first-old.md"])
def test_a_copy_of_a_chapter(project: Project, name: str) -> None:
    """Said once, not once for each of its blocks."""
    project.write(f"lit/{name}", project.read("lit/10-first.md"))
    places = sorted([f"lit/{name}", "lit/10-first.md"])
    refused(project, places[1], f"it repeats every block of {places[0]}. If it is a copy, move it out")


def test_a_link_to_nothing(project: Project) -> None:
    """A chapter that is gone would otherwise take its files with it."""
    project.path("lit/20-second.md").rename(project.path("elsewhere.md"))
    project.path("lit/20-second.md").symlink_to(project.path("elsewhere.md"))
    assert project.run("tangle").status == 0
    project.path("elsewhere.md").unlink()
    answer = project.run("tangle")
    assert answer.status == 1
    assert answer.err == "lit/20-second.md: this link leads nowhere. Bring its file back or delete it.\n"


def test_no_chapters(project: Project) -> None:
    """Without chapters every file would be stale. That cannot be what was meant."""
    for chapter in project.path("lit").iterdir():
        chapter.unlink()
    refused(project, "lit", "no chapter")
    project.path("lit").rmdir()
    refused(project, "lit", "no chapter")


def test_chapters_without_code(project: Project) -> None:
    for chapter in project.path("lit").iterdir():
        chapter.write_text("# Prose\n")
    refused(project, "lit", "nothing to tangle")


def test_a_link_in_the_way(project: Project) -> None:
    elsewhere = project.root.parent / "elsewhere"
    elsewhere.mkdir()
    project.path("nanochat/sub").symlink_to(elsewhere)
    project.change("lit/10-first.md", "file=nanochat/alpha.py", "file=nanochat/sub/alpha.py")
    refused(project, "lit/10-first.md:3", "goes through the link nanochat/sub")
    assert not list(elsewhere.iterdir())


def test_a_target_that_is_a_link(project: Project) -> None:
    other = project.root.parent / "other.py"
    other.write_text("mine\n")
    project.path("nanochat/alpha.py").unlink()
    project.path("nanochat/alpha.py").symlink_to(other)
    refused(project, "lit/10-first.md:3", "goes through the link nanochat/alpha.py")
    assert other.read_text() == "mine\n"


def test_a_target_that_is_a_folder(project: Project) -> None:
    project.write("nanochat/gamma.py/notes.ignored", "mine\n")
    project.change("lit/10-first.md", "file=nanochat/alpha.py", "file=nanochat/gamma.py")
    refused(project, "lit/10-first.md:3", "is a folder")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("watch_list", "watchlist", "no setting 'watchlist'"),
        ('comment = { open = "<!--"', 'comment = { opne = "<!--"', "no setting 'opne'"),
        ("close = '^", "closed = '^", "no setting 'closed'"),
        ("identifiers =", "identifier =", "no setting 'identifier'"),
        ('watch_list = ["lit/*.md"]', "watch_list = 3", "Expected `array | null`, got `int`"),
        (', close = "-->" }', ", close = 3 }", "`$.languages[0].comment.close`"),
        ('name = "HTML"\n', "", "missing required field `name`"),
        ("version =", "version", "not readable as TOML"),
    ],
)
def test_settings(project: Project, old: str, new: str, words: str) -> None:
    project.change("entangled.toml", old, new)
    refused(project, "entangled.toml", words)


def test_no_settings(project: Project) -> None:
    project.path("entangled.toml").unlink()
    refused(project, "entangled.toml", "Bring it back")


@pytest.mark.parametrize(
    ("markers", "place", "words"),
    [
        ("(file=)", "lit/10-first.md:12", "Entangled does not see this block"),
        ("(#|file=|$)", "lit/20-second.md:13", "Entangled reads this block otherwise"),
    ],
)
def test_other_markers_than_ours(project: Project, markers: str, place: str, words: str) -> None:
    """If entangled.toml and markup.py do not agree on what a block is, nothing is tangled."""
    project.change("entangled.toml", " +(#|file=)", f" *{markers}")
    before = project.snapshot()
    answer = project.run("tangle")
    assert answer.status == 1
    assert f"{place}: {words}" in answer.err
    assert project.snapshot() == before


def test_several_mistakes_are_all_told(project: Project) -> None:
    project.change("lit/10-first.md", "<<gamma>>", "<<gama>>")
    project.change("lit/20-second.md", "<<say-it>>", "<<say-i>>")
    answer = project.run("tangle")
    assert [line.split(": ")[0] for line in answer.err.splitlines()] == [
        "lit/10-first.md:18",
        "lit/20-second.md:6",
    ]

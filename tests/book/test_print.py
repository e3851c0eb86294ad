"""The book to take along: what stands in the EPUB and the PDF, and what keeps them from being made."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zipfile
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT, Project
from tests.book.machine import program
from tools.answers import OPENING
from tools.numbers import without_code
from tools.print.code import highlight
from tools.print.make import make_book, stem
from tools.print.pages import navigation, read_pages
from tools.weave.model import Fragment, Woven, weave

PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><path d="M0 0h20v10z"/></svg>\n'


VOLUMES = tuple(dict.fromkeys(page.volume for page in read_pages(PROJECT)))


@dataclass
class Made:
    """A volume of the project's own book."""

    volume: str
    epub: Path
    pdf: Path
    woven: Woven
    text: str = ""  # of the PDF, if there is a pdftotext

    def fragments(self) -> list[Fragment]:
        here = {page.path for page in read_pages(PROJECT) if page.volume == self.volume}
        return [fragment for fragment in self.woven.fragments if fragment.chapter in here]

    def pages(self) -> dict[str, str]:
        with zipfile.ZipFile(self.epub) as archive:
            return {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".xhtml")}


@pytest.fixture(scope="session")
def both() -> dict[str, Made]:
    make_book(PROJECT, say=lambda _: None)
    woven, build = weave(PROJECT), PROJECT / "build"
    return {v: Made(v, build / f"{stem(v)}.epub", build / f"{stem(v)}.pdf", woven) for v in VOLUMES}


@pytest.fixture(params=VOLUMES, ids=stem)
def made(both: dict[str, Made], request: pytest.FixtureRequest) -> Made:
    return both[request.param]


def test_each_fragment_stands_in_one_volume(both: dict[str, Made]) -> None:
    one, two = both.values()
    assert len(one.fragments()) + len(two.fragments()) == len(one.woven.fragments)


def titles(volume: str) -> list[str]:
    """The first heading of every chapter, without markup."""
    found = []
    for page in (page for page in read_pages(PROJECT) if page.volume == volume):
        heading = re.search(r"^# (.+)$", page.text, re.M)
        assert heading, page.path
        found.append(heading[1].replace("`", ""))
    return found


def test_the_epub_passes_epubcheck(made: Made) -> None:
    jar = os.path.realpath(program("epubcheck"))
    command = ["java", "-jar", jar] if jar.endswith(".jar") else [jar]
    done = subprocess.run(
        [*command, "--failonwarnings", made.epub], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_epub_has_every_chapter_in_its_contents(made: Made) -> None:
    with zipfile.ZipFile(made.epub) as archive:
        nav = archive.read("EPUB/nav.xhtml").decode()
    entries = re.findall(r'<a href="text/ch\d+\.xhtml#([^"]+)">(.+?)</a>', nav)
    chapters = [unescape(re.sub(r"<[^>]+>", "", text)) for id, text in entries if "--" not in id]
    pages = [page for page in read_pages(PROJECT) if page.volume == made.volume]
    answers = ["Answers"] if any(OPENING.search(without_code(page.text)) for page in pages) else []
    assert chapters == [*titles(made.volume), *answers, "Index of fragments"]


def test_each_part_opens_with_its_name(made: Made) -> None:
    pages = [page for page in read_pages(PROJECT) if page.volume == made.volume]
    parts = list(dict.fromkeys(page.part for page in pages if page.part))
    assert len(parts) > 3
    with zipfile.ZipFile(made.epub) as archive:
        nav = archive.read("EPUB/nav.xhtml").decode()
    assert [unescape(name) for name in re.findall(r'#part--[^"]+">(.+?)</a>', nav)] == parts
    opened = [text for text in made.pages().values() if 'class="level1 part"' in text]
    assert len(opened) == len(parts)


def test_the_epub_has_formulas_as_mathml_and_no_script(made: Made) -> None:
    text = "".join(made.pages().values())
    assert text.count("<math") > (500 if "one" in made.volume else 100)
    assert "<script" not in text
    assert not re.search(r'class="math', text)


def test_the_epub_links_fragments_across_its_files(made: Made) -> None:
    pages = made.pages()
    ids = {name.rpartition("/")[2]: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in pages.items()}
    assert {f.anchor for f in made.fragments()} <= set.union(*ids.values())
    across = 0
    for name, text in pages.items():
        here = name.rpartition("/")[2]
        for target in re.findall(r'<a\b[^>]*?\shref="([^":]*#[^"]+)"', text):
            page, _, anchor = target.partition("#")
            assert anchor in ids[page.rpartition("/")[2] or here], f"{name}: {target}"
            across += bool(page)
    assert across > 150
    text = re.sub(r"<[^>]+>", "", "".join(pages.values()))
    assert "⟨" in text
    assert f"(volume {'two' if 'one' in made.volume else 'one'})" in text


def test_the_pdf_has_the_titles_contents_and_fragments(made: Made) -> None:
    text = subprocess.run(
        [program("pdftotext"), "-layout", made.pdf, "-"], capture_output=True, text=True, check=True
    ).stdout
    pages = text.split("\f")
    assert 100 < len(pages) < 600
    assert "Contents" in pages[1]
    flat = re.sub(r"\s+", " ", text)
    for title in titles(made.volume):
        assert title in flat
    if "one" in made.volume:  # a number of four digits and more in a formula, a link that looks like an item
        assert re.search(r"= 65,536 this gives 33,554,432 ?\+ ?3,145,728 ?= ?36,700,160\b", flat)
        assert "1. Its parts · 2. Its first weights" in flat
        assert "<mn>65</mn><mo>,</mo>" not in "".join(made.pages().values())
    missing = [f.title for f in made.fragments() if f"⟨{f.title}⟩" not in flat]
    assert not missing
    *_, last = (page for page in pages if "Index of fragments" in page)
    assert re.search(r"\n\s+(\d+)\s*$", last), "no page number"


def test_the_pdf_brings_its_fonts(made: Made) -> None:
    lines = subprocess.run(
        [program("pdffonts"), made.pdf], capture_output=True, text=True, check=True
    ).stdout.splitlines()[2:]
    assert {"DejaVuSansMono", "LibertinusSerif"} <= {re.split(r"[+\s-]", line)[1] for line in lines}
    assert all(re.search(r"\byes +(yes|no) +yes\b", line) for line in lines), lines


def test_code_of_full_width_is_not_broken(made: Made) -> None:
    """book.typ chooses page and type for lines of 110 characters: each of them comes out as one line."""
    text = subprocess.run(
        [program("pdftotext"), "-layout", made.pdf, "-"], capture_output=True, text=True, check=True
    ).stdout
    printed = {re.sub(r"\s+", "", line) for line in text.splitlines()}
    wide = [line for f in made.fragments() for line in f.code if 105 <= len(line) <= 110]
    assert len(wide) > 20
    broken = [line for line in wide if re.sub(r"\s+", "", line) not in printed]
    assert not broken


# The small project: quick to make, and broken in every way.


@pytest.fixture
def printable(project: Project) -> Project:
    project.write("mkdocs.yml", "site_name: Small\nnav:\n  - 20-second.md\n  - Rest: [10-first.md]\n")
    project.write("lit/pictures/a.svg", PICTURE)
    project.change(
        "lit/10-first.md",
        "Some prose.",
        "See [Beta](#fragment-beta), [the second](20-second.md), [it](20-second.md#fragment-say-it), $x^2$,\n"
        "[7 ms](../results/a.json#a;ms).\n\n![A triangle](pictures/a.svg)\n",
    )
    project.write("results/a.json", '{"a": 0.007}')
    project.commit()
    return project


def test_the_small_book_is_made_twice_alike(printable: Project) -> None:
    assert printable.run("book").status == 0
    first = {name: printable.path(f"build/{name}").read_bytes() for name in ("book.epub", "book.pdf")}
    assert printable.run("book").status == 0
    for name, data in first.items():
        assert printable.path(f"build/{name}").read_bytes() == data
    with zipfile.ZipFile(printable.path("build/book.epub")) as archive:
        pages = {n: archive.read(n).decode() for n in archive.namelist() if n.endswith(".xhtml")}
        cover = archive.read(next(n for n in archive.namelist() if n.endswith(".png")))
        assert any(name.endswith(".svg") for name in archive.namelist())
    assert struct.unpack(">II", cover[16:24]) > (600, 900)
    assert '<h1 class="part">Rest</h1>' in pages["EPUB/text/ch002.xhtml"]
    text = pages["EPUB/text/ch003.xhtml"]  # the navigation puts the second chapter first
    assert ">First</h1>" in text
    assert re.search(r'<a href="(ch003.xhtml)?#fragment-beta"[^>]*>Beta</a>', text)
    assert re.search(r'<a href="ch001.xhtml#fragment-say-it"[^>]*>it</a>', text)
    assert "7 ms" in text
    assert "results/" not in text
    assert "used in" in text
    assert 'alt="A triangle"' in text
    assert "<math" in text


def test_the_time_of_the_files_can_be_given(printable: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert printable.run("book").status == 0
    with zipfile.ZipFile(printable.path("build/book.epub")) as archive:
        assert {info.date_time[:3] for info in archive.infolist()} == {(2001, 9, 9)}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("(20-second.md)", "(20-third.md)", "lit/10-first.md:10: there is no lit/20-third.md."),
        (
            "#fragment-say-it",
            "#fragment-sing-it",
            "lit/10-first.md:10: lit/20-second.md has no heading or fragment",
        ),
        (
            "#fragment-beta",
            "#nowhere",
            "lit/10-first.md:10: lit/10-first.md has no heading or fragment #nowhere",
        ),
        ("pictures/a.svg", "pictures/b.svg", "lit/10-first.md:13: there is no picture lit/pictures/b.svg"),
        ("A triangle", "", "lit/10-first.md:13: this picture says nothing"),
        (
            "../results/a.json#a;ms",
            "../results/b.json#a;ms",
            "lit/10-first.md:11: there is no results/b.json",
        ),
        ("$x^2$", r"$\nosuch{x}$", "lit/10-first.md:10: pandoc cannot convert this formula"),
        ("<<gamma>>", "<<delta>>", "no block is named #delta"),
    ],
)
def test_what_is_broken_is_named_with_its_line(printable: Project, old: str, new: str, told: str) -> None:
    printable.change("lit/10-first.md", old, new)
    answer = printable.run("book")
    assert answer.status == 1
    assert told in answer.err
    assert not printable.path("build/book.epub").exists()


def test_pages_come_in_the_order_of_the_navigation(printable: Project) -> None:
    printable.write("lit/index.md", "# Home\n")
    assert [page.path for page in read_pages(printable.root)] == [
        "lit/20-second.md",
        "lit/10-first.md",
        "lit/index.md",
    ]
    printable.write("mkdocs.yml", "site_name: Small\nnot: !!python/name:os.system\n")
    assert read_pages(printable.root)[0].path == "lit/index.md"
    known = ["a.md", "b.md", "c.md", "10-x.md", "11-x.md", "d/10-x.md"]
    entries = [
        "a.md",
        {"B": ["b.md", "11*.md", "1*.md", {"C": "c.md"}]},
        {"D": ["*.md", "d/*.md", "gone.md"]},
    ]
    assert list(navigation(entries, known).items()) == [
        ("a.md", ""),
        ("b.md", "B"),
        ("11-x.md", "B"),
        ("10-x.md", "B"),
        ("c.md", "B"),
        ("d/10-x.md", "D"),
    ]


def test_every_line_is_set_once() -> None:
    code = ['"""One', "", 'two"""', "x = 1"]
    lines = highlight(code, "python", {}).split('<span class="line">')[1:]
    assert [re.sub(r"<[^>]+>", "", line) for line in lines] == [line + "\n" for line in code]

"""Answers: the one form they have, folded on the site, at the back of the printed book."""

from __future__ import annotations

import re
import subprocess
import zipfile
from html import unescape
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT, Project
from tests.book.machine import program
from tests.book.test_weave_site import build, small_site
from tools.answers import misfolded, misfolded_in
from tools.print.answers import move_to_the_back
from tools.print.code import Setter
from tools.print.pages import Page
from tools.print.pandoc import Element, plain
from tools.print.reader import read_page
from tools.weave.model import Woven

OPEN = '<details markdown="1"><summary>Answer</summary>'
ASKED = f"""
## Exercises

**Question 1.** How much is $2^3$?

{OPEN}

$2^3$ is `8`, as [the second](20-second.md#second) chapter says:

```python
assert 2**3 == 8
```

</details>

**Question 2** (easy). And a table of powers:

| $n$ | $2^n$ |
|---|---|
| 1 | ? |

{OPEN.replace("Answer", "Hint")}

Double 1.

</details>

{OPEN}

2

</details>

Some prose after it.
"""


def test_the_book_has_answers_of_the_one_form() -> None:
    assert [str(problem) for problem in misfolded_in(PROJECT)] == []


def test_the_form_is_taken() -> None:
    assert misfolded("lit/a.md", ASKED) == []
    shown = f"~~~markdown\n{OPEN}\n~~~\n\nWrite `<details>`.\n"
    assert misfolded("lit/a.md", shown) == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (f"**Q.** x\n\n{OPEN}\n\ny\n", 3, "is never closed"),
        (f"**Q.** x\n\n{OPEN}\ny\n\n</details>\n", 3, "an empty line must stand above and below"),
        (f"**Q.** x\n{OPEN}\n\ny\n\n</details>\n", 2, "an empty line must stand above and below"),
        (f"**Q.** x\n\n{OPEN}\n\ny\n</details>\n", 6, "an empty line must stand above and below"),
        (f"**Q.** x\n\n{OPEN}\n\ny\n\n{OPEN}\n\nz\n\n</details>\n", 7, "the answer of line 3 is still open"),
        ("**Q.** x\n\n</details>\n", 3, "nothing is open here"),
        (f"x\n\n{OPEN}\n\ny\n\n</details>\n", 3, "no question stands"),
        (f"**Q.** x\n\n# H\n\n{OPEN}\n\ny\n\n</details>\n", 5, "no question stands"),
        ("**Q.** x\n\n<details>\n\ny\n\n</details>\n", 3, "this is not how an answer opens"),
        (f"**Q.** x\n\n  {OPEN}\n\ny\n\n</details>\n", 3, "this is not how an answer opens"),
        (f"**Q.** x\n\n{OPEN} y\n\ny\n\n</details>\n", 3, "this is not how an answer opens"),
        (f"**Q.** x\n\n{OPEN}\n\ny\n\n</details> z\n", 7, "this is not how an answer opens or closes"),
    ],
)
def test_another_form_is_named_with_its_line(text: str, line: int, said: str) -> None:
    problem = misfolded("lit/a.md", text)[0]
    assert (problem.file, problem.line) == ("lit/a.md", line)
    assert said in problem.text


def test_check_names_it_and_print_refuses_it(project: Project) -> None:
    project.change("lit/10-first.md", "Some prose.", f"**Q.** x\n\n{OPEN}\n\ny")
    for command in ("check", "book"):
        answer = project.run(command)
        assert answer.status == 1
        assert "lit/10-first.md:12: what is folded here is never closed" in answer.err
    assert project.run("tangle").status == 0


def test_the_site_folds_an_answer_with_all_that_is_in_it(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    small_site(template, root)
    chapter = root / "lit/10-first.md"
    chapter.write_text(chapter.read_text() + ASKED)
    built = build(root)
    assert built.status == 0, built.err
    page = (root / "site/10-first.html").read_text()
    folded = re.findall(r"<details>\s*<summary>(\w+)</summary>(.*?)</details>", page, re.S)
    assert [word for word, _ in folded] == ["Answer", "Hint", "Answer"]
    inside = folded[0][1]
    assert "<math" in inside
    assert "<code>8</code>" in inside
    assert 'href="20-second.html#second"' in inside
    assert re.search(r'<div class="[^"]*highlight', inside)
    assert "</details>\n<p>Some prose after it.</p>" in page


def blocks_of(*texts: str) -> list[list[Element]]:
    """The trees of pages with these texts, answers moved."""
    pages = [Page(f"lit/{number}.md", f"# Page {number}\n{text}") for number, text in enumerate(texts)]
    return [reading.blocks for reading in move_to_the_back([read_page(p, Setter(Woven())) for p in pages])]


def test_without_answers_there_is_no_last_chapter() -> None:
    assert len(blocks_of("\nNothing.\n", "\nNothing.\n")) == 2


def test_answers_stand_at_the_back_in_the_order_of_the_chapters() -> None:
    asked = f"\n**A.** x\n\n{OPEN}\n\nFirst.\n\n</details>\n"
    *chapters, back = blocks_of(asked, "\nNothing.\n", asked.replace("First", "Third"))
    assert "First" not in str(chapters)
    said = [plain(block["c"][2]) if block["t"] == "Header" else block["t"] for block in back]
    assert said == ["Answers", "Page 0", "Div", "Page 2", "Div"]
    assert "First" in str(back[2])
    assert "Third" in str(back[4])


def test_print_has_the_answers_at_the_back_and_links_both_ways(project: Project) -> None:
    project.write("mkdocs.yml", "site_name: Small\nnav:\n  - 10-first.md\n  - 20-second.md\n")
    project.write("lit/10-first.md", project.read("lit/10-first.md") + ASKED)
    project.commit()
    made = project.run("book")
    assert made.status == 0, made.err
    with zipfile.ZipFile(project.path("build/book.epub")) as archive:
        pages = {n.rpartition("/")[2]: archive.read(n).decode() for n in archive.namelist() if ".xhtml" in n}
    asked = next(text for text in pages.values() if "How much is" in text)
    (name, back), *_ = [(n, text) for n, text in pages.items() if ">Answers</h1>" in text]
    assert "assert" not in asked
    assert "details" not in asked
    assert "Some prose after it" in asked
    assert re.findall(rf'<a href="{name}#([^"]+)">(\w+)</a>', asked) == [
        ("question-1-at-10-first-answer-1", "Answer"),
        ("question-2-at-10-first-answer-1", "Hint"),
        ("question-2-at-10-first-answer-2", "Answer"),
    ]
    order = ["Question 1.", "is 8, as the second chapter says", "assert", "Question 2.", "Hint:", "Double 1."]
    flat = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", "", back)))
    places = [flat.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)
    for question in ("question-1-at-10-first", "question-2-at-10-first"):
        assert f'id="{question}"' in asked
        assert re.search(rf'<a href="ch\d+.xhtml#{question}">', back)


def test_the_pdf_has_them_too(project: Project) -> None:
    project.write("mkdocs.yml", "site_name: Small\nnav:\n  - 10-first.md\n  - 20-second.md\n")
    project.write("lit/10-first.md", project.read("lit/10-first.md") + ASKED)
    project.commit()
    assert project.run("book").status == 0
    command = [program("pdftotext"), "-layout", str(project.path("build/book.pdf")), "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    asked, back = re.split(r"^\f?Answers$", text, flags=re.M)
    assert "How much is" in asked
    assert "Double 1." not in asked
    assert "Double 1." in back

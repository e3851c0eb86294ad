"""What stands on the pages of the site: chapters, files and indexes, without MkDocs."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import markdown
import pytest

from tests.book.conftest import PROJECT, Project
from tests.book.test_weave_model import MODEL, AStep
from tools.problems import Problem
from tools.weave.chapter import Page, Weaver
from tools.weave.code import highlighted
from tools.weave.indexes import (
    code_of,
    file_page,
    fragments_page,
    generated_pages,
    json_lines,
    questions_of,
    questions_page,
    section_of,
    shapes_of,
    symbols_page,
)
from tools.weave.model import learners_steps, weave

EXTENSIONS = ["tables", "toc", "pymdownx.superfences", "pymdownx.highlight"]


class Outline(HTMLParser):
    """Text of a page, with the stack of details that each piece is folded in."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.folded: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("details", "summary"):
            self.stack.append(dict(attrs).get("class") or tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("details", "summary"):
            self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.folded.append((data, tuple(self.stack)))


def text_of(page: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page))


def folds_of(page: str, text: str) -> set[tuple[str, ...]]:
    """In which details a text lies, wherever it occurs."""
    outline = Outline()
    outline.feed(page)
    found = {stack for data, stack in outline.folded if text in data}
    assert found, f"{text!r} is not on the page"
    return found


@pytest.fixture
def weaver(project: Project) -> Weaver:
    project.write("lit/30-model.md", MODEL)
    record = {"date": "2026-01-02T03:04", "command": "python -m scripts.x", "numbers": {"step": 0.276}}
    project.write("results/x.json", json.dumps(record))
    project.write("lit/pictures/map.svg", "<svg/>")
    project.write("lit/pictures/map.dark.svg", "<svg/>")
    return Weaver(project.root, weave(project.root, [AStep()]))


def show(weaver: Weaver, path: str, text: str | None = None) -> str:
    """A page as the site shows it."""
    page = Page(weaver, path, lambda other: other.replace(".md", ".html"))
    source = (weaver.root / "lit" / path).read_text() if text is None else text
    return page.finish(markdown.markdown(page.read(source), extensions=EXTENSIONS))


def test_a_fragment_has_a_title_a_place_and_users_but_no_markup(weaver: Weaver) -> None:
    page = show(weaver, "10-first.md")
    assert '<div class="fragment" id="fragment-beta">' in page
    assert ">Beta</a>" in page
    assert '<a href="files/nanochat/alpha.py.html#L4">nanochat/alpha.py, line 4</a>' in page
    assert 'used in <a href="#fragment-alpha">⟨Alpha⟩</a>' in page
    assert "```" not in page
    assert "file=" not in page
    assert "<<" not in unescape(page)


def test_a_reference_leads_to_its_fragment_and_the_rest_stays_highlighted(weaver: Weaver) -> None:
    page = show(weaver, "10-first.md")
    assert '\n    <a class="reference" href="#fragment-gamma">⟨Gamma⟩</a>\n' in page
    fragment = weaver.book["fragment-beta"]
    before = highlighted("python", fragment.code[:5])
    assert "".join(line + "\n" for line in before) in page
    assert '<span class="k">return</span>' in page


def test_a_reference_leads_to_another_chapter(weaver: Weaver) -> None:
    page = Page(weaver, "20-second.md", lambda other: other.replace(".md", ".html"))
    assert page.link_to("fragment-beta") == '<a href="10-first.html#fragment-beta">⟨Beta⟩</a>'


def test_several_blocks_of_one_name_lead_to_each_other(weaver: Weaver) -> None:
    page = show(weaver, "30-model.md")
    assert 'continued in <a href="#fragment-helper-of-all-2">' in page
    assert 'continues <a href="#fragment-helper-of-all">' in page


def test_no_answer_stands_in_the_open(weaver: Weaver) -> None:
    page = show(weaver, "30-model.md")
    assert folds_of(page, "One step.") == {("answer",)}
    assert folds_of(page, "⟨Add one⟩") == {("answer",)}
    part = page[page.index('id="fragment-add-one"') :].split('class="fragment"')[0]
    assert part.index('<details class="answer">') < part.index("<pre>") < part.index("</details>")
    assert folds_of(page, "helper") >= {()}


def test_the_turn_is_offered_before_the_answer_with_hints_in_order(weaver: Weaver) -> None:
    page = show(weaver, "30-model.md")
    assert page.index("Your turn") < page.index('class="answer"')
    order = [page.index(text) for text in ("A question", "What?", "A pointer", "There.", "first this")]
    assert order == sorted(order)
    assert folds_of(page, "What?") == {("your-turn", "details")}
    assert "<li>first this</li><li>then that</li>" in page
    assert "To write: Write the step." in page


def test_the_switch_stands_below_the_heading_where_there_is_something_to_switch(weaver: Weaver) -> None:
    assert re.search(
        r'</h1><div class="answers-switch" data-functions="1"></div>', show(weaver, "30-model.md")
    )
    assert "answers-switch" not in show(weaver, "10-first.md")


def test_a_measured_number_names_its_record(weaver: Weaver) -> None:
    page = show(weaver, "index.md", "takes [276 ms](../results/x.json#numbers/step;ms).")
    assert re.search(
        r'<a class="live-number" href="records/x.json.html#at-numbers/step" title="[^"]*">276 ms</a>', page
    )
    for part in ("results/x.json", "0.276", "in ms", "2026-01-02", "python -m scripts.x"):
        assert part in page


def test_a_picture_has_a_sibling_for_the_dark(weaver: Weaver) -> None:
    page = show(weaver, "index.md", "![the map](pictures/map.svg) ![other](pictures/other.svg)")
    assert '<img alt="the map" src="pictures/map.svg#only-light" />' in page
    assert '<img alt="the map" src="pictures/map.dark.svg#only-dark" />' in page
    assert page.count("<img") == 3


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[`alpha`](../nanochat/alpha.py)", '<a href="files/nanochat/alpha.py.md"><code>alpha</code></a>'),
        ("[record](../results/x.json)", '<a href="records/x.json.md">record</a>'),
        ("[a test](../tests/test_x.py)", '<span class="in-project" title="in the project">a test</span>'),
        ("[add-one](30-model.md)", '<a href="30-model.md#fragment-add-one">⟨Add one⟩</a>'),
        ("[gamma](10-first.md)", '<a href="10-first.md#fragment-gamma">gamma</a>'),
        ("[alpha](10-first.md)", '<a href="10-first.md">alpha</a>'),
        ("[add-one](10-first.md)", '<a href="10-first.md">add-one</a>'),
        ("[x](https://example.org/#y)", '<a href="https://example.org/#y">x</a>'),
    ],
)
def test_a_link_leads_where_the_site_has_something(weaver: Weaver, link: str, shown: str) -> None:
    assert shown in show(weaver, "index.md", link)


def test_a_page_in_a_folder_links_from_there(weaver: Weaver) -> None:
    page = show(weaver, "how-to/x.md", "[a](../../nanochat/alpha.py)")
    assert 'href="../files/nanochat/alpha.py.md"' in page


def test_a_mistake_is_shown_at_its_place_and_on_top_of_every_page(weaver: Weaver) -> None:
    weaver.problems = [Problem("lit/10-first.md", 15, "no block is named <<x>>.")]
    page = show(weaver, "10-first.md")
    box = page.index('id="problem-1"')
    assert page.index('id="fragment-alpha"') < box < page.index('id="fragment-beta"')
    assert "lit/10-first.md:15" in page
    assert "&lt;&lt;x&gt;&gt;" in page
    assert '<a href="10-first.html#problem-1">lit/10-first.md:15: no block' in show(weaver, "20-second.md")


def test_what_is_being_written_is_shown_before_the_book_knows_it(weaver: Weaver) -> None:
    page = show(
        weaver, "10-first.md", "# New\n\n```python #brand-new\nx = 1\n<<beta>>\n<<nothing-yet>>\n```\n"
    )
    assert ">Brand new</a>" in page
    assert "⟨Beta⟩" in page
    assert "&lt;&lt;nothing-yet&gt;&gt;" in page


def test_a_formula_that_cannot_be_read_does_not_take_the_page_with_it(weaver: Weaver) -> None:
    assert r'<code class="unreadable" title=' in show(weaver, "index.md", r"$\nonsense{x}$")


# ---- generated pages


def make(weaver: Weaver, made: Any) -> str:
    page = Page(weaver, "files.md", lambda other: other.replace(".md", ".html"))
    return page.finish(markdown.markdown(page.read(made(page), generated=True), extensions=EXTENSIONS))


def test_a_file_is_whole_and_every_line_leads_to_its_fragment(weaver: Weaver) -> None:
    file = weaver.book.files["nanochat/alpha.py"]
    page = make(weaver, lambda page: file_page(page, file))
    rows = re.findall(
        r'<span class="row" id="L(\d+)"><a class="number" href="([^"]+)"[^>]*></a>(.*)\n</span>', page
    )
    assert "\n".join(text_of(text) for *_, text in rows) + "\n" == file.text
    links = {int(number): link for number, link, _ in rows}
    assert links[1] == "10-first.html#fragment-alpha"
    assert links[4] == "10-first.html#fragment-beta"
    assert links[9] == "10-first.html#fragment-gamma"
    labels = re.findall(r'class="run-from"[^>]*>([^<]+)</a>', page)
    assert labels == ["Alpha", "Beta", "Gamma", "Beta"]


@pytest.fixture(scope="module")
def whole() -> Weaver:
    return Weaver(PROJECT, weave(PROJECT))


def test_every_fragment_is_in_the_index(whole: Weaver) -> None:
    page = make(whole, fragments_page)
    for fragment in whole.book.fragments:
        if not fragment.number:
            assert f'#{fragment.anchor}"' in page


def test_every_file_and_record_has_a_page(whole: Weaver) -> None:
    made = generated_pages(PROJECT, whole.book)
    assert {f"files/{path}.md" for path in whole.book.files} <= set(made)
    assert {f"records/{path.name}.md" for path in (PROJECT / "results").glob("*.json")} <= set(made)


def test_the_twelve_questions_know_their_answers_and_their_code() -> None:
    questions = questions_of((PROJECT / "lit/index.md").read_text(), learners_steps())
    assert len(questions) == 12
    for question in questions:
        assert re.search(r"\]\(\d\d-[\w-]+\.md", question.answers), question
        assert len(question.steps) == 1, question


def test_the_code_of_a_question_is_what_its_answer_is_about(whole: Weaver) -> None:
    questions = questions_of((PROJECT / "lit/index.md").read_text(), learners_steps())
    code = {question.text: [f.name for f in code_of(question, whole)] for question in questions}
    assert code["How does gradient accumulation simulate larger batches?"] == ["accumulate-gradients"]
    assert code["What does softcapping prevent?"] == ["gpt-forward"]
    assert all(code.values())
    assert make(whole, questions_page).count("93-twelve-answers") == 12


def test_a_section_begins_and_ends_at_headings_of_the_second_level() -> None:
    text = "# A\n\n## B\n\n### C of B\n\n## D\n"
    assert section_of(text, "c-of-b") == range(3, 7)
    assert section_of(text, "d") == range(7, 8)
    assert section_of(text, "e") == range(0)


def test_shapes_are_read_from_docstrings_and_comments(whole: Weaver) -> None:
    file = whole.book.files["nanochat/normans_gpt.py"]
    found = {(shape.shape, shape.owner) for shape in shapes_of(file, {"B", "T", "C", "V", "head_dim"})}
    assert ("(B, T, C)", "CausalSelfAttention.forward") in found
    assert ("(V, C)", "Transformer") in found
    assert ("(1, seq_len, 1, head_dim / 2)", "GPT._precompute_rotary_embeddings") in found


def test_the_symbols_are_those_of_the_chapter_that_fixes_them(whole: Weaver) -> None:
    page = make(whole, symbols_page)
    assert "key and value heads" in page
    assert re.search(r'<a href="30-the-forward-pass.html#fragment-attention-forward"><code>CausalSelf', page)


def test_a_record_keeps_every_value_and_names_its_place() -> None:
    value = {"a": [1, 2.5, None], "b": {"c d": "x<y"}, "e": [{"f": True}, []], "g": {}}
    lines = list(json_lines(value))
    assert json.loads("\n".join(text_of(text) for _, text in lines)) == value
    assert {"a", "b/c d", "e/0/f", "e/1", "g"} <= {at for at, _ in lines}

"""Chapters of volume one close alike: a run that a test repeats, questions on lines of code, exercises."""

from __future__ import annotations

import re

import pytest

from tests.book.conftest import PROJECT
from tools.answers import CLOSING, OPENING
from tools.print.pages import read_pages

CLOSED = [
    *("03-a-table-of-what-follows-what", "04-what-you-need", "90-one-tokens-journey"),
    *("10-the-parts-of-a-gpt", "20-weight-initialization", "30-the-forward-pass", "40-optimization"),
    *("50-generation", "64-bits-per-byte", "35-the-loss-in-chunks", "51-decoding-speed"),
    *("36-compile-and-reuse", "66-the-training-loop", "62-tokenizer", "63-the-loader"),
]
PAGES = {page.path.removeprefix("lit/").removesuffix(".md"): page for page in read_pages(PROJECT)}
RUN_BY_A_TEST = {  # an exercise whose answer has no session: the test that does what it asks for
    ("03-a-table-of-what-follows-what", 6): "tests/test_bigram.py::test_numbers_of_the_exercises",
    ("03-a-table-of-what-follows-what", 8): "tests/test_bigram.py::test_numbers_of_the_steepest_valley",
}
RUN = r"\n```pycon\n|<!-- printed by: "
ITEM = re.compile(r"^\*\*(?P<kind>Question|Exercise) (?P<number>\d+)\.?\*\*(?: \((?P<mark>[^)]*)\)\.)?", re.M)
MARK = re.compile(r"(?:easy|medium|hard), (?:paper|computer|paper and computer)")


def items(name: str, kind: str) -> list[tuple[int, str, str]]:
    """Number, mark and text of each question or exercise, with its answer, up to the next or a heading."""
    text = PAGES[name].text
    found = list(ITEM.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        (int(match["number"]), match["mark"] or "", re.split(r"\n## ", text[match.start() : end])[0])
        for match, end in zip(found, ends, strict=True)
        if match["kind"] == kind
    ]


@pytest.mark.parametrize("name", CLOSED)
def test_a_chapter_shows_a_run_that_is_repeated(name: str) -> None:
    text = PAGES[name].text.split("## You can now explain")[0]
    assert re.search(RUN, text)


@pytest.mark.parametrize("name", CLOSED)
def test_a_chapter_asks_what_can_now_be_explained(name: str) -> None:
    asked = items(name, "Question")
    assert [number for number, *_ in asked] == list(range(1, len(asked) + 1))
    assert 5 <= len(asked) <= 10
    for _, _, text in asked:
        assert OPENING.search(text)
        assert CLOSING in text


@pytest.mark.parametrize("name", CLOSED)
def test_exercises_have_marks_and_answers_and_a_third_needs_no_computer(name: str) -> None:
    given = items(name, "Exercise")
    assert [number for number, *_ in given] == list(range(1, len(given) + 1))
    assert len(given) >= 4
    for number, mark, text in given:
        assert MARK.fullmatch(mark), f"{name}, exercise {number}: {mark}"
        assert OPENING.search(text), f"{name}, exercise {number} has no answer"
    assert 3 * sum("paper" in mark for _, mark, _ in given) >= len(given)


@pytest.mark.parametrize("name", CLOSED)
def test_what_an_exercise_asks_to_run_is_run(name: str) -> None:
    for number, mark, text in items(name, "Exercise"):
        if "computer" not in mark or re.search(RUN, text):
            continue
        path, _, test = RUN_BY_A_TEST[name, number].partition("::")
        assert f"def {test}(" in (PROJECT / path).read_text(encoding="utf-8")


def test_every_chapter_of_volume_one_closes_so() -> None:
    volume = {
        name for name, page in PAGES.items() if page.volume.startswith("Volume one") and name[:1].isdigit()
    }
    assert {name for name in volume if PAGES[name].part != "Before you start"} <= {*CLOSED}
    assert {"10-the-parts-of-a-gpt", "66-the-training-loop"} < volume


TERMS = """
activations, attention, autocast, backpropagation, bigram, bits per byte, broadcasting, causal mask, chain
rule, checkpoint, contiguous, cross-entropy, derivative, eager, eigenvalue, embedding, epoch, gradient,
greedy, kernel, key-value cache, learning rate, logit, loss, meta device, MLP, momentum, one-hot, optimizer,
orthogonal, page fault, pinned, query, rank, residual stream, row group, schedule, seed, singular value,
smoothing, softmax, spectral norm, stride, temperature, tile, validation, variance, warmup
"""
EXPLAINED = r"(?<!\*)(\*{1,2})(?!\*)(?:(?!\*|\n\n).)*?"  # where a term stands in italics, or bold


def said_in_prose(text: str) -> str:
    """A chapter without code, pictures, headings and links: its sentences and tables."""
    for pattern in (r"^(```|~~~).*?^\1\s*$", r"!\[.*?\]\([^)]*\)", r"<!--.*?-->", r"^#.*?$"):
        text = re.sub(pattern, "", text, flags=re.S | re.M)
    return re.sub(r"\[[^\]]*\]\([^)]*\)|`[^`]*`", "", text)


@pytest.mark.parametrize("term", " ".join(TERMS.split()).split(", "))
def test_a_term_is_explained_where_it_is_first_used(term: str) -> None:
    """In italics in the paragraph that uses it first, in the reading order, or in the table of words."""
    volume = [
        page for page in PAGES.values() if page.volume.startswith("Volume one") and page.path[4].isdigit()
    ]
    assert [page.path[4:6] for page in volume[:2]] == ["02", "01"]  # the table stands in the second
    _, words = volume[1].text.split("## Look up a word\n")
    rows = " ".join(re.findall(r"^\| ([^|]*) \|", words, re.M))
    paragraphs = [(page, part) for page in volume for part in re.split(r"\n\s*\n", said_in_prose(page.text))]
    page, first = next(one for one in paragraphs if re.search(rf"\b{term}(?:s|es)?\b", one[1], re.I))
    if page is not volume[0] and re.search(rf"\b{term}", rows, re.I):
        return
    assert re.search(rf"{EXPLAINED}\b{term}(?:(?!\*).)*?\1", first, re.I | re.S), (
        f"{page.path}: {term} is used before it is explained: {first[:300]}"
    )

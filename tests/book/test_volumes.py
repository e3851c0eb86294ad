"""The home page lists the volumes, the parts and the chapters that the navigation has, in its order."""

from __future__ import annotations

import re
from itertools import groupby

from tests.book.conftest import PROJECT
from tools.print.make import stem
from tools.print.pages import VOLUME, Page, read_pages, settings_of, volumes

CHAPTER = re.compile(r"lit/(\d\w*-[\w-]+\.md)")


def chapters() -> list[tuple[str, str, list[str]]]:
    """Volume, part and chapters, as the navigation orders them."""
    pages = [page for page in read_pages(PROJECT) if CHAPTER.fullmatch(page.path)]

    def place(page: Page) -> tuple[str, str]:
        return page.volume, page.part

    return [
        (*key, [page.path.removeprefix("lit/") for page in group]) for key, group in groupby(pages, place)
    ]


def listed() -> list[tuple[str, str, list[str]]]:
    """The same, as the home page's tables have it."""
    found, volume = [], ""
    for line in (PROJECT / "lit/index.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            volume = line.lstrip("# ") if line.lstrip("# ").startswith(VOLUME) else ""
        elif volume and (row := re.match(r"\| ([^|]+) \| (.*\.md.*) \|$", line)):
            found.append((volume, row[1], re.findall(r"\]\(([^)#]+)", row[2])))
    return found


def test_the_home_page_has_the_order_of_the_navigation() -> None:
    assert listed() == chapters()


def test_every_chapter_has_a_part_of_its_own_kind() -> None:
    assert not [page for volume, part, page in chapters() if not volume or part in ("Reference", "")]
    assert len(dict.fromkeys(volume for volume, *_ in chapters())) == 2


def test_the_learner_meets_the_phases_in_their_order() -> None:
    (phases,) = (pages for _, part, pages in chapters() if "five phases" in part)
    assert [page[:2] for page in phases] == ["10", "20", "30", "40", "50"]
    order = [page for *_, pages in chapters() for page in pages]
    assert order.index("90-one-tokens-journey.md") < order.index(phases[0])


KEPT = """
01-reading-this-book 02-five-minutes 10-the-parts-of-a-gpt 20-weight-initialization
30-the-forward-pass 35-the-loss-in-chunks 40-optimization 50-generation 60-common-ground 61-data
62-tokenizer 63-the-loader 64-bits-per-byte 65-checkpoints 66-the-training-loop 67-two-commands
68-benchmarks 69-where-a-line-comes-from 70-equal-to-the-reference 71-core 73-into-the-ecosystem
80-learning-by-rewriting 81-steps-and-checks 82-named-mistakes 83-the-trace 84-the-learn-command
90-one-tokens-journey 92-evidence 93-twelve-answers index
"""


def test_pages_keep_their_addresses() -> None:
    """Links from elsewhere to the book of one volume lead to the same chapters."""
    assert not [name for name in KEPT.split() if not (PROJECT / "lit" / f"{name}.md").is_file()]


def test_what_stands_before_a_volume_belongs_to_it() -> None:
    nav = ["a.md", {"Volume one: X": [{"P": ["b.md"]}]}, {"Volume two: Y": ["*.md"]}]
    assert volumes(nav, ["a.md", "b.md", "c.md"]) == {
        "a.md": "Volume one: X",
        "b.md": "Volume one: X",
        "c.md": "Volume two: Y",
    }
    assert volumes(["a.md", {"P": ["b.md"]}], ["a.md", "b.md"]) == {"a.md": "", "b.md": ""}
    assert [stem(volume) for volume in ("Volume one: X", "")] == ["volume-one", "book"]
    assert settings_of(PROJECT)["nav"][0] == "index.md"

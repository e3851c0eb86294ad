"""The site as MkDocs builds it, from a small book."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.exceptions import BuildError

from tests.book.conftest import PROJECT, PYTHON, Answer, Project, run
from tests.book.test_weave_model import MODEL
from tools.weave import site
from tools.weave.model import Woven

HOME = "# Home\n\nA $B$, see [First](10-first.md) and [its end](10-first.md#why-sqrtd-counts).\n"


def small_site(template: Path, root: Path) -> None:
    """The small book with the project's own settings and tools."""
    shutil.copytree(template, root)
    # Without what describes the real program, and is slow.
    ignored = shutil.ignore_patterns("__pycache__", "reference.py")
    shutil.copytree(PROJECT / "tools", root / "tools", ignore=ignored)
    shutil.copytree(PROJECT / "lit/assets", root / "lit/assets")
    shutil.copy(PROJECT / "mkdocs.yml", root)
    (root / "results").mkdir()
    (root / "results/x.json").write_text('{"numbers": {"step": 0.276}}')
    (root / "lit/index.md").write_text(HOME)
    (root / "lit/30-model.md").write_text(MODEL)
    chapter = root / "lit/10-first.md"
    end = "\n## Why $\\sqrt{D}$ counts\n\nIt takes [276 ms](../results/x.json#numbers/step;ms).\n"
    chapter.write_text(chapter.read_text() + end)


@pytest.fixture(scope="module")
def built(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A site, and what building it said."""
    root = tmp_path_factory.mktemp("site") / "project"
    small_site(template, root)
    return root, build(root)


def build(root: Path) -> Answer:
    return run(root, PYTHON, "-m", "mkdocs", "build", "--strict", NO_MKDOCS_2_WARNING="1")


def test_a_good_book_builds_without_a_warning(built: tuple[Path, Answer]) -> None:
    assert built[1].status == 0, built[1].err
    assert "WARNING" not in built[1].err


class Requests(HTMLParser):
    """Every address that a browser would ask for by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset", "poster", "data") or (tag == "link" and name == "href")):
                self.asked.append(value)


def test_no_page_asks_another_host(built: tuple[Path, Answer]) -> None:
    folder = built[0] / "site"
    for path in folder.rglob("*.html"):
        requests = Requests()
        requests.feed(path.read_text())
        assert requests.asked
        assert not [address for address in requests.asked if re.match(r"(https?:)?//", address)]
    for path in folder.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", path.read_text())


def test_a_heading_with_a_formula_has_the_forges_id_and_is_drawn_in_the_contents(
    built: tuple[Path, Answer],
) -> None:
    page = (built[0] / "site/10-first.html").read_text()
    assert '<h2 id="why-sqrtd-counts">Why <math' in page
    assert re.search(r'href="#why-sqrtd-counts" class="md-nav__link">\s*<span[^>]*>\s*Why <math', page)
    assert not re.search("[\ue000\ue001]", page)


def test_the_search_finds_a_fragment_by_its_title(built: tuple[Path, Answer]) -> None:
    index = json.loads((built[0] / "site/search/search_index.json").read_text())
    found = [entry for entry in index["docs"] if entry["title"] == "Add one"]
    assert [entry["location"] for entry in found] == ["30-model.html#fragment-add-one"]
    assert not [entry for entry in index["docs"] if entry["location"].startswith(("files/", "records/"))]


def test_what_to_do_is_found_before_what_lists_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "made", {"fragments.md": str})
    order = ["how-to/train-on-a-gpu.md", "10-the-parts-of-a-gpt.md", "fragments.md"]
    assert sorted(order, key=site.weight, reverse=True) == order
    assert (
        site.weight("02-five-minutes.md") > site.weight("10-first.md") > site.weight("82-named-mistakes.md")
    )


def test_the_file_of_a_fragment_is_linked_and_there(built: tuple[Path, Answer]) -> None:
    page = (built[0] / "site/30-model.html").read_text()
    link = re.search(r'href="(files/nanochat/model.py.html)#L10"', page)
    assert link
    assert 'id="L10"' in (built[0] / "site" / link[1]).read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<<gamma>>", "<<gama>>", "lit/10-first.md:{line}: no block is named #gama"),
        (
            "[276 ms]",
            "[277 ms]",
            "lit/10-first.md:{line}: the text says '277 ms', results/x.json says '276 ms'",
        ),
        (r"\sqrt{D}", r"\sqqrt{D}", "lit/10-first.md:{line}: pandoc cannot read the formula"),
        ("## Why", "[x](nowhere.md)\n\n## Why", "'nowhere.md'"),
    ],
)
def test_a_mistake_fails_the_build(built: tuple[Path, Answer], old: str, new: str, said: str) -> None:
    chapter = built[0] / "lit/10-first.md"
    good = chapter.read_text()
    assert good.count(old) == 1
    try:
        chapter.write_text(bad := good.replace(old, new))
        answer = build(built[0])
    finally:
        chapter.write_text(good)
    assert answer.status == 1
    assert said.format(line=bad[: bad.index(new)].count("\n") + 1) in answer.err
    assert "Traceback" not in answer.err


def read(project: Project, monkeypatch: pytest.MonkeyPatch, serving: bool) -> Woven:
    monkeypatch.setattr(site, "ROOT", project.root)
    config: Any = SimpleNamespace(mdx_configs={}, site_dir=str(project.root / "site"))
    last_good = site.read_book(config, serving, None)
    project.change("lit/10-first.md", "<<gamma>>", "<<gama>>")
    return site.read_book(config, serving, last_good)


def test_serving_survives_a_mistake_with_the_last_good_book(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = read(project, monkeypatch, serving=True)
    assert book.named("gamma")
    assert [problem.line for problem in site.weaver.problems] == [18]


def test_building_does_not(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BuildError, match="no block is named #gama"):
        read(project, monkeypatch, serving=False)


def test_a_chapter_finds_its_place_by_its_number() -> None:
    nav = [
        "index.md",
        {"A": ["10-*.md", "1*.md", "missing.md"]},
        {"B": ["2*.md"]},
        {"C": ["how-to/*.md", "*.md"]},
    ]
    known = ["index.md", "12-b.md", "10-a.md", "how-to/x.md", "files/10-x.md", "z.md"]
    assert site.expand(nav, known, set()) == [
        "index.md",
        {"A": ["10-a.md", "12-b.md"]},
        {"C": ["how-to/x.md", "z.md"]},
    ]

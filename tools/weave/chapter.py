"""One page of the book: its Markdown with the fragments, formulas, numbers and problems put in as HTML.

`Weaver` holds what all pages share, `Page` what one page needs from its Markdown to its HTML:

    page = Page(weaver, "30-the-forward-pass.md", url_of)
    markdown = page.read(source)        # convert it with any Markdown converter, then
    shown = page.finish(converted)

A learner who comes to a function that she may write herself must not have read it before she decides. Such a
fragment, and every fragment that is a part of it, is folded; first comes what to write and the three hints,
folded too. One switch keeps all of them open for readers who came to read.
"""

import html
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tools import numbers
from tools.markup import Fence, scan
from tools.problems import Problem
from tools.weave import formulas
from tools.weave.code import with_links
from tools.weave.model import Fragment, Reference, Woven, anchor_of, title_of
from tools.weave.prose import Aside, Formula, Link, replace_in

FILES, RECORDS = "files", "records"  # folders of generated pages, beside the chapters

_UNITS = {
    "ms": "in ms",
    "us": "in µs",
    "%": "in %",
    "k": "in thousands",
    "M": "in millions",
    "min": "in minutes",
}


@dataclass
class Weaver:
    """What all pages share. `problems` are shown where they are; the strict build has none."""

    root: Path
    book: Woven
    problems: Sequence[Problem] = ()
    records: numbers.Records = field(init=False)

    def __post_init__(self) -> None:
        self.records = numbers.Records(self.root)


class Page:
    """A page named by its path in lit/. `url_of` gives the address of another page, relative to this one."""

    def __init__(self, weaver: Weaver, path: str, url_of: Callable[[str], str | None]) -> None:
        self.weaver = weaver
        self.path = path
        self.url_of = url_of
        self.aside = Aside()
        self.anchors: set[str] = set()
        self.found: list[Problem] = []  # what is wrong with the formulas; the rest is known before

    # ---- reading

    def read(self, source: str, generated: bool = False) -> str:
        """The page's Markdown, ready to be converted."""
        text = source.replace("\r\n", "\n").removeprefix("\ufeff")
        if not generated:
            text = self.put_fragments(text)
        return replace_in(text, self.put_formula, self.put_link)

    def put_fragments(self, text: str) -> str:
        """The chapter with a mark in place of each block that becomes code, and a box for each problem."""
        chapter = f"lit/{self.path}"
        lines = text.split("\n")
        fences = scan(chapter, text)[0]
        counts: dict[str, int] = {}
        marks: dict[int, tuple[int, str]] = {}  # line where a block begins: where it ends, and its mark
        for fence in fences:
            name = fence.name or fence.file or ""
            number = counts[name] = counts.get(name, -1) + 1
            fragment = self.known_as(chapter, name, number, fence, tuple(lines[fence.line : fence.end - 1]))
            self.anchors.add(fragment.anchor)
            marks[fence.line] = fence.end, self.aside.put(partial(self.fragment, fragment))
        boxes = self.boxes(chapter, len(lines), [(start, end) for start, (end, _) in marks.items()])
        out: list[str] = []
        line = 1
        while line <= len(lines):
            out += [f"\n{box}\n" for box in boxes.get(line, ())]
            if line in marks:
                end, mark = marks[line]
                # As many lines as before, so that what is complained about later keeps its line.
                out += ["", mark, *[""] * (end - line - 1)]
                line = end
            else:
                out.append(lines[line - 1])
            line += 1
        return "\n".join(out)

    def known_as(self, chapter: str, name: str, number: int, fence: Fence, code: tuple[str, ...]) -> Fragment:
        """The fragment as the book knows it, with the text that it has on this page now."""
        known = self.weaver.book.named(name, number)
        if known is None or known.chapter != chapter:
            known = Fragment(
                name,
                title_of(name),
                chapter,
                line=0,
                end=0,
                language=fence.language,
                code=(),
                number=number,
                file=fence.file,
                todo=fence.todo,
            )
        references = []
        for row, line in enumerate(code):
            if match := re.fullmatch(r"(\s*)<<([\w.-]+)>>\s*", line):
                references.append(Reference(row, match[1], match[2]))
        return replace(
            known,
            line=fence.line,
            end=fence.end,
            language=fence.language,
            code=code,
            references=tuple(references),
        )

    def boxes(self, chapter: str, length: int, blocks: list[tuple[int, int]]) -> dict[int, list[str]]:
        """The marks of the problems of this page, each by the line above which it is to stand."""
        boxes: dict[int, list[str]] = {}
        for number, problem in enumerate(p for p in self.weaver.problems if p.file == chapter):
            line = max(1, min(problem.line, length))
            line = next((start for start, end in blocks if start <= line <= end), line)
            mark = self.aside.put(problem_box(problem, f"problem-{number + 1}"))
            boxes.setdefault(line, []).append(mark)
        return boxes

    def put_formula(self, formula: Formula) -> str:
        """The mark of a formula; of a box that says what is wrong, if it is no TeX."""

        def make() -> str:
            try:
                return formulas.mathml(formula)
            except formulas.Unreadable as error:
                self.found.append(Problem(f"lit/{self.path}", formula.line, str(error)))
                why, tex = html.escape(str(error)), html.escape(formula.tex)
                return f'<code class="unreadable" title="{why}">{tex}</code>'

        return self.aside.put(make, formula.tex)

    def put_link(self, link: Link) -> str:
        """A link as the site needs it: numbers into their record, pictures in pairs, files to their pages."""
        if re.match(r"[a-z][a-z0-9+.-]*:|//|#|/", link.url, re.IGNORECASE):
            return str(link)
        url, hash_, rest = link.url.partition("#")
        place = os.path.normpath(PurePosixPath("lit", self.path).parent / url)
        if link.image:
            return self.picture(link, place)
        if place.startswith("lit/"):
            return self.into_chapter(link, place, hash_ + rest)
        if place.startswith("results/") and place.endswith(".json"):
            if rest:
                return self.number(link, place, unquote(rest))
            return self.to_page(link, f"{RECORDS}/{PurePosixPath(place).name}.md", "")
        if place in self.weaver.book.files:
            return self.to_page(link, f"{FILES}/{place}.md", hash_ + rest)
        # A file of the project that is no page: the text names it, and there is nothing to follow.
        return (
            self.aside.put('<span class="in-project" title="in the project">')
            + link.text
            + self.aside.put("</span>")
        )

    def to_page(self, link: Link, page: str, anchor: str) -> str:
        """The link to another page of the site."""
        way = os.path.relpath(page, PurePosixPath(self.path).parent)
        return str(replace(link, url=f"{way}{anchor}"))

    def picture(self, link: Link, place: str) -> str:
        """A picture; where it has a dark sibling, both, of which the theme shows one."""
        dark = place.removesuffix(".svg") + ".dark.svg"
        if not place.endswith(".svg") or not (self.weaver.root / dark).is_file():
            return str(link)
        light = replace(link, url=f"{link.url}#only-light")
        return f"{light}{replace(link, url=link.url.removesuffix('.svg') + '.dark.svg#only-dark')}"

    def into_chapter(self, link: Link, place: str, anchor: str) -> str:
        """A link whose text names a fragment of the chapter that it leads to, leads to the fragment."""
        fragment = self.weaver.book.named(link.text.strip("`"))
        if anchor or fragment is None or fragment.chapter != place:
            return str(link)
        if "-" not in fragment.name:
            # A single word may be meant as a word. The root of a file is what its chapter is about.
            return str(link) if fragment.file else str(replace(link, url=f"{link.url}#{fragment.anchor}"))
        return str(replace(link, text=f"⟨{fragment.title}⟩", url=f"{link.url}#{fragment.anchor}"))

    def number(self, link: Link, record: str, rest: str) -> str:
        """A number of the prose, tied to the record that it was measured in."""
        path, _, unit = rest.partition(";")
        try:
            value: Any = self.weaver.records.value(record, path)
            about = self.weaver.records.get(record)
        except numbers.Unquotable:
            return link.text  # there is a box that says so, or the build has failed
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        about = about if isinstance(about, dict) else {}
        told = [f"{record}, {path}: {shown}" + (f", shown {_UNITS.get(unit, f'in {unit}')}" if unit else "")]
        if date := about.get("date"):
            told.append(f"recorded {str(date)[:10]}")
        if command := about.get("command"):
            told.append(f"by {command}")
        href = self.url_of(f"{RECORDS}/{PurePosixPath(record).name}.md")
        if href is None:
            return link.text
        title = html.escape(", ".join(told))
        opening = f'<a class="live-number" href="{href}#{html.escape(path_id(path))}" title="{title}">'
        return self.aside.put(opening) + link.text + self.aside.put("</a>")

    # ---- finishing

    def finish(self, converted: str) -> str:
        """The page's HTML, from what the converter made of its Markdown."""
        head, heading, body = converted.partition("</h1>") if "</h1>" in converted else ("", "", converted)
        return self.banner() + self.aside.restore(head + heading + self.switch() + body)

    def banner(self) -> str:
        """On every page, what is wrong with the book, while it is being written."""
        if not self.weaver.problems:
            return ""
        rows = []
        numbers_: dict[str, int] = {}
        for problem in self.weaver.problems:
            count = numbers_[problem.file] = numbers_.get(problem.file, 0) + 1
            url = self.url_of(problem.file.removeprefix("lit/")) if problem.file.startswith("lit/") else None
            text = html.escape(str(problem))
            rows.append(f'<li><a href="{url}#problem-{count}">{text}</a></li>' if url else f"<li>{text}</li>")
        return (
            '<div class="admonition failure book-problems" role="alert"><p class="admonition-title">The book '
            "has mistakes; places and links are those of its last state without</p>"
            f"<ul>{''.join(rows)}</ul></div>"
        )

    def switch(self) -> str:
        """What a chapter with functions to write says about them, once."""
        fragments = self.weaver.book.in_chapter(f"lit/{self.path}")
        count = sum(bool(fragment.todo) and self.is_folded(fragment) for fragment in fragments)
        if not count:
            return ""
        return f'<div class="answers-switch" data-functions="{count}"></div>'

    # ---- fragments

    def fragment(self, fragment: Fragment) -> str:
        """A fragment with its bar above and its neighbours below."""
        code = self.code(fragment)
        if self.is_folded(fragment):
            whose = fragment if fragment.todo else self.weaver.book[fragment.answer_to or ""]
            name = html.escape(whose.title)
            label = f"How the book writes <code>{name}</code>"
            if not fragment.todo:
                label = f"How the book writes this part of <code>{name}</code>"
            code = f'<details class="answer"><summary>{label}</summary>\n{code}</details>'
        return (
            f'<div class="fragment" id="{fragment.anchor}">{self.bar(fragment)}'
            f"{self.your_turn(fragment)}{code}{self.foot(fragment)}</div>"
        )

    def is_folded(self, fragment: Fragment) -> bool:
        """Whether the code is an answer that a learner should not meet by chance."""
        whose = fragment if fragment.todo else self.weaver.book.by_anchor.get(fragment.answer_to or "")
        return whose is not None and (whose.step is None or whose.step.folded)

    def bar(self, fragment: Fragment) -> str:
        title = html.escape(fragment.title)
        if fragment.todo:
            title = f"<code>{title}</code>"
        sign = "+≡" if fragment.number else "≡"
        meaning = "continues" if fragment.number else "is defined as"
        place = html.escape(fragment.place)
        if fragment.lands:
            landing = fragment.lands[0]
            if url := self.url_of(f"{FILES}/{landing.path}.md"):
                place = f'<a href="{url}#L{landing.first}">{place}</a>'
        return (
            f'<div class="fragment-bar"><a class="fragment-title" href="#{fragment.anchor}">{title}</a>'
            f'<span class="fragment-sign" title="{meaning}" aria-hidden="true">{sign}</span>'
            f'<span class="fragment-place">{place}</span></div>'
        )

    def code(self, fragment: Fragment) -> str:
        links = {
            r.row: (r, self.link_to(anchor_of(r.name), "reference", r.name)) for r in fragment.references
        }
        lines = with_links(fragment.language, fragment.code, links)
        text = "".join(f"{line}\n" for line in lines)
        return f'<div class="highlight"><pre><code>{text}</code></pre></div>'

    def link_to(self, anchor: str, kind: str = "", name: str = "") -> str:
        """⟨Title⟩, leading to the fragment, on whatever page it is."""
        fragment = self.weaver.book.by_anchor.get(anchor)
        if fragment is None:
            return f"&lt;&lt;{html.escape(name)}&gt;&gt;"
        page = fragment.chapter.removeprefix("lit/")
        url = "" if page == self.path else self.url_of(page) or ""
        attribute = f' class="{kind}"' if kind else ""
        return f'<a{attribute} href="{url}#{anchor}">⟨{html.escape(fragment.title)}⟩</a>'

    def your_turn(self, fragment: Fragment) -> str:
        """What a learner writes here, and the hints, each folded."""
        step = fragment.step
        if not fragment.todo:
            return ""
        task = re.sub(r"^Implement \S+ - ", "", fragment.todo)
        rows = [f"<p>To write: {html.escape(task)}.</p>"]
        if step:
            question, pointer, plan = step.hints
            lines = "".join(f"<li>{html.escape(line)}</li>" for line in plan.split("\n"))
            rows.append(f"<p>{html.escape(step.why)}</p>")
            for label, hint in (
                ("A question", f"<p>{html.escape(question)}</p>"),
                ("A pointer", f"<p>{html.escape(pointer)}</p>"),
                ("A plan in words", f"<ol>{lines}</ol>" if "\n" in plan else f"<p>{html.escape(plan)}</p>"),
            ):
                rows.append(f"<details><summary>{label}</summary>{hint}</details>")
            guide = self.url_of("80-learning-by-rewriting.md")
            begin = f'<a href="{guide}">begins</a>' if guide else "begins"
            rows.append(
                f"<p><code>make learn</code> {begin} your own copy; in <code>.venv</code>, "
                f"<code>python -m scripts.learn check {html.escape(step.id)}</code> judges it.</p>"
            )
        return (
            f'<details class="your-turn"><summary>Your turn: write <code>{html.escape(fragment.title)}</code>'
            f"</summary>{''.join(rows)}</details>"
        )

    def foot(self, fragment: Fragment) -> str:
        parts = []
        if fragment.continues:
            parts.append(f"continues {self.link_to(fragment.continues)}")
        if fragment.continued_in:
            parts.append(f"continued in {self.link_to(fragment.continued_in)}")
        if fragment.used_in:
            parts.append("used in " + ", ".join(self.link_to(anchor) for anchor in fragment.used_in))
        return f'<div class="fragment-foot">{" · ".join(parts)}</div>' if parts else ""


def problem_box(problem: Problem, anchor: str) -> str:
    """A problem at its place."""
    place = html.escape(f"{problem.file}:{problem.line}" if problem.line else problem.file)
    return (
        f'<div class="admonition failure" id="{anchor}"><p class="admonition-title">{place}</p>'
        f"<p>{html.escape(problem.text)}</p></div>"
    )


def path_id(path: str) -> str:
    """The id of a value on the page of its record."""
    return "at-" + re.sub(r"[^A-Za-z0-9_./-]+", "-", path)

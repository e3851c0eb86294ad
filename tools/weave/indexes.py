"""The pages that nobody writes: files, records, and the indexes of fragments, files, questions and symbols.

Each is a function from a `Page` to its Markdown. HTML in it goes through the page's marks, as everywhere.
"""

import ast
import html
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path, PurePosixPath
from typing import Any

from tools.pages import files_in
from tools.weave.chapter import FILES, RECORDS, Page, Weaver, path_id
from tools.weave.code import highlighted
from tools.weave.model import File, Fragment, Step, Woven, learners_steps
from tools.weave.prose import heading_id

Made = Callable[[Page], str]

SHAPE = re.compile(r"\((?:[\w.·*/+\- ]+,)+[\w.·*/+\- ]*\)")
NOTATION, HOME, VERDICTS = "01-reading-this-book.md", "index.md", "93-twelve-answers.md"


def generated_pages(root: Path, book: Woven) -> dict[str, Made]:
    """All pages that are made from the book and its records, by their path in lit/."""
    pages: dict[str, Made] = {
        "fragments.md": fragments_page,
        "files.md": files_page,
        "questions.md": questions_page,
        "symbols.md": symbols_page,
        "records.md": records_page,
    }
    for file in book.files.values():
        pages[f"{FILES}/{file.path}.md"] = _file_maker(file)
    for record in files_in(root / "results", "*.json"):
        pages[f"{RECORDS}/{record.name}.md"] = _record_maker(record)
    return pages


def _file_maker(file: File) -> Made:
    return lambda page: file_page(page, file)


def _record_maker(record: Path) -> Made:
    return lambda page: record_page(page, record)


def chapter_name(root: Path, chapter: str) -> str:
    """A chapter's heading; its path if it has none."""
    try:
        match = re.search(r"^# (.+)$", (root / chapter).read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        match = None
    return match[1].strip() if match else chapter


# ---- files


def file_page(page: Page, file: File) -> str:
    """A file as it is written, each line with its number, which leads to where it is explained."""
    lines = highlighted(file.language, tuple(file.text.split("\n")[:-1]))
    runs = []
    for run in file.runs:
        fragment = page.weaver.book[run.anchor]
        url = f"{page.url_of(fragment.chapter.removeprefix('lit/')) or ''}#{run.anchor}"
        title = html.escape(fragment.title)
        rows = "".join(
            f'<span class="row" id="L{number}"><a class="number" href="{url}" data-line="{number}" '
            f'tabindex="-1" aria-hidden="true"></a>{lines[number - 1]}\n</span>'
            for number in range(run.first, run.last + 1)
        )
        empty = not any(lines[number - 1].strip() for number in range(run.first, run.last + 1))
        label = "" if empty else f'<a class="run-from" href="{url}">{title}</a>'
        runs.append(f'<div class="run">{label}<code>{rows}</code></div>')
    root = page.weaver.book[file.root]
    body = whole(file.path, "".join(runs))
    origin = page.aside.put(page.link_to(root.anchor))
    chapter = page.url_of(root.chapter.removeprefix("lit/"))
    named = html.escape(chapter_name(page.weaver.root, root.chapter))
    where = page.aside.put(f'<a href="{chapter}">{named}</a>' if chapter else named)
    count = file.text.count("\n")
    return (
        f"# `{file.path}`\n\n{count} lines, put together by {origin} in {where}. Above each piece stands the "
        f"fragment that it comes from; the numbers lead there too.\n{page.aside.put_block(body)}"
    )


def whole(name: str, body: str) -> str:
    """A file's lines in a box that scrolls, also by keyboard."""
    return f'<div class="highlight whole-file" tabindex="0" role="region" aria-label="{name}">{body}</div>'


def files_page(page: Page) -> str:
    """The index of files."""
    rows = ["# Files", "", "Every file that the chapters write, whole.", ""]
    for folder, files in itertools.groupby(
        sorted(page.weaver.book.files.values(), key=lambda f: (str(PurePosixPath(f.path).parent), f.path)),
        key=lambda f: str(PurePosixPath(f.path).parent),
    ):
        rows += [f"## `{folder}/`", "", "| file | what it is | lines | from |", "|---|---|---:|---|"]
        for file in files:
            chapters = dict.fromkeys(page.weaver.book[run.anchor].chapter for run in file.runs)
            links = ", ".join(f"[{short_name(c)}]({c.removeprefix('lit/')})" for c in sorted(chapters))
            name = PurePosixPath(file.path).name
            link, count = f"[`{name}`]({FILES}/{file.path}.md)", len(file.text.splitlines())
            rows.append(f"| {link} | {escaped(summary(file))} | {count} | {links} |")
        rows.append("")
    return "\n".join(rows)


def short_name(chapter: str) -> str:
    """A chapter's name in a table: what its file is called, without the number."""
    return re.sub(r"^\d+-", "", PurePosixPath(chapter).stem).replace("-", " ")


def summary(file: File) -> str:
    """The first sentence of what a file says about itself."""
    text = ""
    if file.language == "python":
        try:
            text = ast.get_docstring(ast.parse(file.text)) or ""
        except SyntaxError:
            text = ""
    else:
        comments = itertools.takewhile(lambda line: line.startswith("#"), file.text.split("\n"))
        text = "\n".join(line.lstrip("# ") for line in comments if not line.startswith("#!"))
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", first)[0]


def escaped(text: str) -> str:
    """Plain text, safe in a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|$])", r"\\\1", text)


# ---- fragments


def fragments_page(page: Page) -> str:
    """The index of fragments, in the order of the alphabet."""

    def key(fragment: Fragment) -> str:
        return re.sub(r"[^a-z0-9 ]", "", fragment.title.lower()).strip()

    book = page.weaver.book
    ordered = sorted((f for f in book.fragments if not f.number), key=key)
    out = [
        "# Fragments",
        f"The {len(ordered)} pieces that the program is written in, by title. Functions that a learner "
        "writes are listed under their own names.",
    ]
    for letter, group in itertools.groupby(ordered, key=lambda f: key(f)[:1].upper()):
        items = []
        for fragment in group:
            url = page.url_of(fragment.chapter.removeprefix("lit/")) or ""
            title = html.escape(fragment.title)
            title = f"<code>{title}</code>" if fragment.todo else title
            place = html.escape(fragment.place)
            if fragment.lands and (to := page.url_of(f"{FILES}/{fragment.lands[0].path}.md")):
                place = f'<a href="{to}#L{fragment.lands[0].first}">{place}</a>'
            link = f'<a href="{url}#{fragment.anchor}">{title}</a>'
            items.append(f'<li>{link} <span class="fragment-place">{place}</span></li>')
        block = page.aside.put_block(f'<ul class="fragment-index">{"".join(items)}</ul>')
        out.append(f"## {letter}\n{block}")
    return "\n\n".join(out)


# ---- questions


@dataclass(frozen=True)
class Question:
    """One of the twelve: its wording on the home page, the links that answer it, the steps that ask it."""

    text: str
    answers: str
    steps: tuple[Step, ...]


def questions_of(home: str, steps: Sequence[Step]) -> list[Question]:
    """The rows of the home page's table of questions, each with the learner's steps that ask the same."""
    section = home.partition("## Twelve questions")[2].split("\n## ")[0]
    rows = re.findall(r"^\| *(.+?\?) *\| *(.+?) *\|$", section, re.MULTILINE)
    asked = [(question, step) for step in steps for question in step.questions]

    def likeness(one: str, other: str) -> float:
        return SequenceMatcher(None, one.lower(), other.lower()).ratio()

    by_row: dict[int, list[Step]] = {}
    for question, step in asked:
        best = max(range(len(rows)), key=lambda n: likeness(plain_link(rows[n][0]), question), default=None)
        if best is not None and step not in by_row.setdefault(best, []):
            by_row[best].append(step)
    return [
        Question(plain_link(text), answers, tuple(by_row.get(n, ())))
        for n, (text, answers) in enumerate(rows)
    ]


def plain_link(text: str) -> str:
    """The text of a cell, whether it is a link or not."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).strip()


def code_of(question: Question, weaver: Weaver) -> list[Fragment]:
    """The code that a question is about: its steps, or else what the section of the answer writes.

    A step of another chapter only asks the question in the learner's log. An experiment is no part of it.
    """
    targets = re.findall(r"\]\(([^)#\s]+\.md)#([^)\s]+)\)", question.answers)
    chapters = {f"lit/{path}" for path, _ in targets}
    steps = [f for s in question.steps if (f := weaver.book.named(s.fragment)) and f.chapter in chapters]
    if steps:
        return steps
    found = []
    for path, anchor in targets:
        section = section_of((weaver.root / "lit" / path).read_text(encoding="utf-8"), anchor)
        found += [
            f
            for f in weaver.book.fragments
            if f.chapter == f"lit/{path}"
            and f.line in section
            and not any(land.path.startswith("nanochat/evidence/") for land in f.lands)
        ]
    return found


def section_of(text: str, anchor: str) -> range:
    """The lines of the chapter's section (##) that holds the heading with this id."""
    first = 1
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        after = first + section.count("\n")
        if anchor in map(heading_id, re.findall(r"^#+ (.+)$", section, re.MULTILINE)):
            return range(first, after)
        first = after
    return range(0)


def questions_page(page: Page) -> str:
    """The twelve questions: where each is answered, and who writes the code that it is about."""
    try:
        home = (page.weaver.root / "lit" / HOME).read_text(encoding="utf-8")
    except OSError:
        home = ""
    questions = questions_of(home, learners_steps())
    measured = f" Measured: [claim and verdict]({VERDICTS})." if page.url_of(VERDICTS) else ""
    out = [
        "# Twelve questions",
        "Somebody who rewrites the model meets these decisions and wants to know why. Each is answered where "
        "the code stands that it concerns.",
    ]
    for number, question in enumerate(questions, 1):
        fragments = code_of(question, page.weaver)
        about = ", ".join(page.aside.put(page.link_to(fragment.anchor)) for fragment in fragments)
        out.append(f"## {number}. {question.text}")
        out.append(f"Answered in {question.answers}." + (f" The code: {about}." if about else "") + measured)
    return "\n\n".join(out)


# ---- symbols and shapes


@dataclass(frozen=True)
class Shape:
    """A shape as a docstring or a comment names it, and the class or function that does."""

    shape: str
    owner: str
    path: str
    line: int


def shapes_of(file: File, symbols: set[str]) -> Iterator[Shape]:
    """Every shape made of the book's symbols that the docstrings, and the comments of classes, name."""
    if file.language != "python":
        return
    lines = file.text.split("\n")
    try:
        tree = ast.parse(file.text)
    except SyntaxError:
        return

    def visit(node: ast.AST, prefix: str) -> Iterator[Shape]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            owner = f"{prefix}{child.name}"
            texts = [ast.get_docstring(child) or ""]
            if isinstance(child, ast.ClassDef):
                own = [n for n in child.body if isinstance(n, ast.AnnAssign | ast.Assign)]
                texts += [lines[n.lineno - 1].partition("#")[2] for n in own]
            for shape in dict.fromkeys(SHAPE.findall("\n".join(texts))):
                if set(re.findall(r"[A-Za-z_]+", shape)) & symbols:
                    yield Shape(" ".join(shape.split()), owner, file.path, child.lineno)
            yield from visit(child, f"{owner}.")

    yield from visit(tree, "")


def notation_of(text: str) -> list[tuple[str, str, str]]:
    """Symbol, name in code and meaning, from the table of the chapter that fixes them."""
    section = text.partition("## Fix the notation once")[2].split("\n## ")[0]
    return [
        (symbol.strip(), code.strip(), meaning.strip())
        for symbol, code, meaning in re.findall(
            r"^\|\s*(\$[^|]+\$)\s*\|([^|]*)\|([^|]*)\|.*$", section, re.MULTILINE
        )
    ]


def symbols_page(page: Page) -> str:
    """The notation, and every shape that the code names, each with the place."""
    try:
        text = (page.weaver.root / "lit" / NOTATION).read_text(encoding="utf-8")
    except OSError:
        text = ""
    notation = notation_of(text)
    symbols = {name for _, code, _ in notation for name in re.findall(r"\w+", code)}
    symbols |= {re.sub(r"[${}]", "", symbol) for symbol, _, _ in notation}
    shapes = [s for file in page.weaver.book.files.values() for s in shapes_of(file, symbols)]
    fixed = f"The letters are fixed in [how to read this book]({NOTATION}#fix-the-notation-once). " * bool(
        text
    )
    out = [
        "# Symbols and shapes",
        f"{fixed}A shape is written with its outermost dimension first.",
        "## Symbols",
        "\n".join(
            [
                "| symbol | in code | meaning |",
                "|---|---|---|",
                *(f"| {s} | {c} | {m} |" for s, c, m in notation),
            ]
        ),
        "## Shapes",
    ]
    by_shape: dict[str, list[Shape]] = {}
    for shape in shapes:
        by_shape.setdefault(shape.shape, []).append(shape)
    rows = ["| shape | named by |", "|---|---|"]
    for name, found in sorted(by_shape.items(), key=lambda item: (item[0].count(","), item[0].lower())):
        owners = ", ".join(page.aside.put(owner_link(page, shape)) for shape in found)
        rows.append(f"| `{name}` | {owners} |")
    out.append("\n".join(rows))
    return "\n\n".join(out)


def owner_link(page: Page, shape: Shape) -> str:
    """The function or class that names a shape, leading to the fragment that it is written in."""
    runs = page.weaver.book.files[shape.path].runs
    run = next(run for run in runs if run.first <= shape.line <= run.last)
    chapter = page.weaver.book[run.anchor].chapter.removeprefix("lit/")
    return f'<a href="{page.url_of(chapter) or ""}#{run.anchor}"><code>{html.escape(shape.owner)}</code></a>'


# ---- records


def records_page(page: Page) -> str:
    """The index of records: what was measured, when, by which command."""
    rows = [
        "# Records",
        "",
        "Dotted numbers in the text were measured, not typed: each is tied to its place in one of these "
        "records, and the build fails when the two differ.",
        "",
        "| record | recorded | by |",
        "|---|---|---|",
    ]
    for path in files_in(page.weaver.root / "results", "*.json"):
        about = read_record(path)
        about = about if isinstance(about, dict) else {}
        command = f"`{about['command']}`" if about.get("command") else ""
        rows.append(
            f"| [`{path.name}`]({RECORDS}/{path.name}.md) | {str(about.get('date', ''))[:10]} | {command} |"
        )
    return "\n".join(rows)


def record_page(page: Page, path: Path) -> str:
    """A record, with an id for each value."""
    lines = list(json_lines(read_record(path)))
    body = "".join(
        f'<span class="row" id="{html.escape(path_id(at or f"line-{number}"))}">{text}\n</span>'
        for number, (at, text) in enumerate(lines, 1)
    )
    name = f"results/{path.name}"
    block = page.aside.put_block(whole(name, f"<code>{body}</code>"))
    return f"# `{name}`\n\nA record, as it was measured.\n{block}"


def read_record(path: Path) -> Any:
    """The content of a record; what is wrong with it, if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def json_lines(
    value: Any, at: str = "", indent: str = "", before: str = "", after: str = ""
) -> Iterator[tuple[str, str]]:
    """A record's lines as HTML, each with the path of the value that begins there; short lists whole."""
    flat = json.dumps(value, ensure_ascii=False)
    nested = isinstance(value, dict | list) and any(isinstance(v, dict | list) for v in _values(value))
    if (
        not isinstance(value, dict | list)
        or (not nested and len(flat) < 90 and isinstance(value, list))
        or not value
    ):
        kind = "mi" if isinstance(value, int | float) else "s2" if isinstance(value, str) else "p"
        shown = html.escape(flat, quote=False)
        if value and isinstance(value, list):  # a number within the line can be quoted too
            items_shown = []
            for n, item in enumerate(value):
                place = html.escape(path_id(f"{at}/{n}" if at else str(n)))
                text = html.escape(json.dumps(item, ensure_ascii=False), quote=False)
                items_shown.append(f'<span id="{place}">{text}</span>')
            shown = f"[{', '.join(items_shown)}]"
        yield at, f'{indent}{before}<span class="{kind}">{shown}</span>{after}'
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    yield at, f"{indent}{before}{opening}"
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for n, (key, below) in enumerate(items):
        label = f'<span class="nt">"{html.escape(str(key))}"</span>: ' if isinstance(value, dict) else ""
        comma = "," if n + 1 < len(items) else ""
        yield from json_lines(below, f"{at}/{key}" if at else str(key), indent + "  ", label, comma)
    yield "", f"{indent}{closing}{after}"


def _values(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)

"""Refuse a book that Entangled would tangle into something else than its author meant."""

import ast
import difflib
import io
import re
import tokenize
from pathlib import Path, PurePosixPath

from tools.chapters import MARKER_COMMENT, Block, Book
from tools.markup import NAME
from tools.problems import Problem
from tools.tangle import Output

FOLDERS = ("nanochat", "scripts", "tasks")  # where the book writes, and nobody else does
GATHERED = "skeleton"  # a block may also gather fragments here; what is written is derived: skeleton.py
SUFFIXES = {
    "python": (".py",),
    "bash": (".sh",),
    "sh": (".sh",),
    "c": (".c",),
    "html": (".html",),
    "css": (".css",),
    "javascript": (".js",),
    "toml": (".toml",),
    "yaml": (".yml", ".yaml"),
}

_REFERENCE = re.compile(rf"^\s*<<(?P<name>{NAME})>>\s*$")
# What was meant as a reference and is none: among other things, or alone but with another name than a
# fragment has. With blanks inside, `1 << n >> 2` and `cat <<END >>file` are meant as they stand.
_MISPLACED = re.compile(r"<<[^\W\d_](?:[\w :/.-]*\w)?>>|^\s*<<.*>>\s*$")
# Half a reference: << without a left operand (a line may begin with Python's shift, but a blank follows), or
# a name before >> without a right one.
_HALF = re.compile(r"^\s*<<[^\W\d_]|[=(\[{,]\s*<<\s*[^\W\d_]|^\s*<?[^\W\d_][\w.-]*>>\s*$")
_MERGE_MIDDLE = re.compile(r"^={7}$")
_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)\w+\1(?!>)")


def lint(book: Book, root: Path) -> list[Problem]:
    """Everything wrong with the blocks and their references; nothing, if the book can be tangled.

    In stages: a misspelt reference would otherwise also be reported as a block that nothing uses.
    """
    if names := lint_names(book):
        return names
    blocks = [problem for block in book.blocks for problem in lint_code(block)]
    if wrong := lint_targets(book, root) + blocks + lint_references(book):
        return sorted(set(wrong))
    return lint_cycles(book) or lint_use(book)


def references_of(block: Block) -> list[tuple[int, str]]:
    """The fragments a block refers to, each with the line of the chapter."""
    found = []
    for number, line in enumerate(block.code, block.line + 1):
        if match := _REFERENCE.match(line):
            found.append((number, match["name"]))
    return found


def lint_code(block: Block) -> list[Problem]:
    """Lines of a block that would not come out as they stand."""
    problems = []
    for number, line in enumerate(block.code, block.line + 1):
        if wrong := wrong_reference(line):
            problems.append(Problem(block.chapter, number, wrong))
        if _MERGE_MIDDLE.match(line):
            text = (
                "seven = in a block of code are what is left of a merge that is not resolved. Choose between "
                "the two sides; or, if they are meant, write more or fewer."
            )
            problems.append(Problem(block.chapter, number, text))
        if MARKER_COMMENT in line:
            text = f"'{MARKER_COMMENT}' is Entangled's own mark and would be lost. Write it otherwise."
            problems.append(Problem(block.chapter, number, text))
        if "\t" in line:
            problems.append(
                Problem(block.chapter, number, r"a tab in a block of code. Write spaces, or \t in a string.")
            )
    return problems


def wrong_reference(line: str) -> str | None:
    """What is wrong with a line that was meant to refer to a fragment, and does not."""
    if _REFERENCE.match(line):
        return None
    if match := _MISPLACED.search(line):
        return (
            f"the reference {match[0].strip()} must stand alone on its line, its name in letters, digits and "
            "dashes. Move what else is on the line to a line of its own."
        )
    if _HALF.search(line):
        return (
            f"half a reference, {line.strip()}: it would become code as it stands. Write <<name>>, alone on "
            "its line."
        )
    return None


def lint_names(book: Book) -> list[Problem]:
    """Blocks of one name are appended to each other, silently.

    That is only safe where a reader sees them together.
    """
    problems = []
    first: dict[str, Block] = {}
    for block in book.blocks:
        first.setdefault(block.name, block)
    copies = copies_of_chapters(book, first)
    for chapter, original in copies.items():
        text = f"it repeats every block of {original}. If it is a copy, move it out of lit/."
        problems.append(Problem(chapter, 0, text))
    for block in book.blocks:
        earlier = first[block.name]
        if earlier is block or block.chapter in copies:
            continue
        place = f"{earlier.chapter}:{earlier.line}"
        if earlier.chapter != block.chapter:
            text = (
                f"#{block.name} is already the name of a block in {place}. Names hold in all chapters: "
                "choose another."
            )
            problems.append(Problem(block.chapter, block.line, text))
        elif block.fence.file or block.fence.todo or earlier.fence.todo:
            text = (
                f"#{block.name} is already a block in {place}, and one with file= or todo= must be whole. "
                "Rename one."
            )
            problems.append(Problem(block.chapter, block.line, text))
    return problems


def copies_of_chapters(book: Book, first: dict[str, Block]) -> dict[str, str]:
    """Chapters that have every block of an earlier one, with that one: "10-x copy.md", "10-x (1).md"."""
    names: dict[str, list[str]] = {}
    for block in book.blocks:
        names.setdefault(block.chapter, []).append(block.name)
    copies = {}
    for chapter, own in names.items():
        original = first[own[0]].chapter
        if original != chapter and len(own) > 1 and own == names[original]:
            copies[chapter] = original
    return copies


def lint_targets(book: Book, root: Path) -> list[Problem]:
    """Every file is claimed once, and lies where only the book writes."""
    problems = []
    first: dict[str, Block] = {}
    for block in book.blocks:
        path = block.fence.file
        if not path:
            continue
        if wrong := wrong_target(path, block.fence.language, root):
            problems.append(Problem(block.chapter, block.line, f"file={path} {wrong}"))
            continue
        earlier = first.setdefault(path.casefold(), block)
        if earlier is not block:
            text = (
                f"file={path} is already claimed in {earlier.chapter}:{earlier.line}. A file is written by "
                "one block."
            )
            problems.append(Problem(block.chapter, block.line, text))
    for path, block in first.items():
        for folder in map(str, PurePosixPath(path).parents):
            if folder in first:
                text = (
                    f"file={block.fence.file} lies inside file={first[folder].fence.file}. Rename one of "
                    "them."
                )
                problems.append(Problem(block.chapter, block.line, text))
    if not first and not problems:
        problems.append(
            Problem("lit", 0, "no block has a file=, so there is nothing to tangle. Bring the chapters back.")
        )
    return problems


def wrong_target(path: str, language: str, root: Path) -> str | None:
    """What is wrong with a target, if anything."""
    parts = path.split("/")
    if path.startswith(("/", "~")) or ".." in parts or "\\" in path or ":" in path:
        return "lies outside the project. Write a path below nanochat/, scripts/ or tasks/."
    if not all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", part) for part in parts):
        return "is not a plain path. Use letters, digits, '_', '-', '.', and '/' between them."
    if parts[0] not in (*FOLDERS, GATHERED) or len(parts) < 2:
        return (
            "is not product code. The book writes only below nanochat/, scripts/ and tasks/; tests and tools "
            "are plain files."
        )
    if not path.endswith(SUFFIXES[language]):
        return (
            f"does not end as a file of {language} does: {' or '.join(SUFFIXES[language])}. Correct one of "
            "them."
        )
    place = root
    for part in parts:
        place /= part
        if place.is_symlink():
            return (
                f"goes through the link {place.relative_to(root)}, which may lead anywhere. Replace the link."
            )
    if place.is_dir():
        return "is a folder. Choose another name or move the folder."
    return None


def lint_references(book: Book) -> list[Problem]:
    """Every reference names a fragment."""
    names = {block.name for block in book.blocks}
    problems = []
    for block in book.blocks:
        for number, name in references_of(block):
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                meant = (
                    f"Did you mean <<{near[0]}>>? Otherwise write" if near else "Correct the name, or write"
                )
                text = f"no block is named #{name}. {meant} a block ```python #{name}"
                problems.append(Problem(block.chapter, number, text))
    return problems


def lint_cycles(book: Book) -> list[Problem]:
    """No fragment contains itself. Each cycle is named once, at the reference that closes it."""
    problems: list[Problem] = []
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        for block in book.named(name):
            for number, below in references_of(block):
                if below in path:
                    chain = " -> ".join((*path[path.index(below) :], below))
                    text = (
                        f"this reference makes #{below} contain itself: {chain}. Take one of the references "
                        "out."
                    )
                    problems.append(Problem(block.chapter, number, text))
                elif below not in done:
                    visit(below, (*path, below))
        done.add(name)

    for block in book.blocks:
        if block.name not in done:
            visit(block.name, (block.name,))
    return problems


def lint_use(book: Book) -> list[Problem]:
    """Every block lands in some file."""
    used: set[str] = set()
    waiting = [block.name for block in book.targets().values()]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += [below for block in book.named(name) for _, below in references_of(block)]
    problems = []
    for block in book.blocks:
        if block.name not in used:
            text = (
                f"#{block.name} is used by no file. Refer to it with <<{block.name}>>, give it a file=, or "
                "take #name away if it is only shown."
            )
            problems.append(Problem(block.chapter, block.line, text))
    return problems


def lint_indented_strings(output: Output) -> list[Problem]:
    """A string over several lines takes the reference's indent into its value, unless it is a docstring."""
    rows = strings_over_lines(output) if output.path.endswith(".py") else here_documents(output)
    problems = []
    for first, last in rows:
        origin = next((o for o in output.origins[first:last] if o.indent), None)
        if origin:
            text = (
                "this text over several lines stands in a fragment that is referred to with an indent, "
                "which would become part of its value. Move it to a fragment at the left margin, or join "
                "lines with \\n."
            )
            problems.append(Problem(origin.chapter, output.origins[first - 1].line, text))
    return problems


def strings_over_lines(output: Output) -> list[tuple[int, int]]:
    """First and last row of each multi-line string in Python code whose white space counts."""
    try:
        tree = ast.parse(output.text)
        tokens = list(tokenize.generate_tokens(io.StringIO(output.text).readline))
    except (SyntaxError, tokenize.TokenError):
        return []  # ruff and Python will say so
    harmless = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            harmless.add(node.value.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("dedent", "cleandoc")):
            harmless |= {argument.lineno for argument in node.args}
    pieces = (tokenize.STRING, tokenize.FSTRING_MIDDLE)
    found = ((token.start[0], token.end[0]) for token in tokens if token.type in pieces)
    return [(first, last) for first, last in found if last > first and first not in harmless]


def here_documents(output: Output) -> list[tuple[int, int]]:
    """First and last row of what may be a here-document of a shell script."""
    lines = output.text.split("\n")
    return [(n, n + 1) for n, line in enumerate(lines[:-2], 1) if _HERE_DOCUMENT.search(line)]

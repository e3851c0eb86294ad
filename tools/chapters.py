"""Load the chapters through Entangled's API, from memory, and make sure it has read what a reader reads."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from entangled.config import AnnotationMethod
from entangled.config.config_update import ConfigUpdate
from entangled.errors.user import UserError
from entangled.interface import Document
from entangled.interface.context import Context
from entangled.io import Transaction
from entangled.io.filedb import new_db
from entangled.io.virtual import VirtualFS
from entangled.model import ReferenceMap
from msgspec import inspect

from tools.markup import Fence, merge_marks, scan
from tools.pages import FOLDER as LIT
from tools.pages import is_left_over
from tools.problems import Problem, Refused

SETTINGS = "entangled.toml"
GUIDES = "how-to"  # pages without code of the program
MARKER_COMMENT = "~/~"  # how Entangled's own comments begin; see tangle.py


@dataclass(frozen=True)
class Block:
    """A piece of code as it stands in a chapter.

    `line` is its opening fence, so its first code line is line + 1.
    """

    chapter: str
    line: int
    name: str
    fence: Fence
    code: tuple[str, ...]


@dataclass(frozen=True)
class Book:
    """All chapters: Entangled's view to tangle from, and the blocks in reading order to reason about."""

    references: ReferenceMap
    blocks: tuple[Block, ...]

    def named(self, name: str) -> list[Block]:
        """The blocks of a fragment, in reading order."""
        return [block for block in self.blocks if block.name == name]

    def targets(self) -> dict[str, Block]:
        """For each file the book writes, the block that claims it."""
        return {block.fence.file: block for block in self.blocks if block.fence.file}


def read_sources(root: Path) -> dict[str, str]:
    """The text of every chapter and of Entangled's settings, by path relative to the project.

    Hidden files and what editors leave are passed over. Raises Refused for a folder without chapters, a
    chapter that is not UTF-8, and one in a place nobody reads.
    """
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    folder = root / LIT
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in (".md", ".markdown") or any(
            map(is_left_over, path.relative_to(folder).parts)
        ):
            continue
        if not path.is_file():
            if path.is_symlink():
                problems.append(
                    Problem(name, 0, "this link leads nowhere. Bring its file back or delete it.")
                )
            continue
        if path.parent == folder / GUIDES and path.suffix == ".md":
            text = path.read_text(encoding="utf-8", errors="replace")
            problems += merge_marks(name, text) or code_in_a_guide(name, text)
            continue
        if path.parent != folder or path.suffix != ".md":
            problems.append(
                Problem(name, 0, "chapters are lit/NAME.md, and nothing else is tangled. Move or rename it.")
            )
            continue
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            problems.append(Problem(name, line, "this line is not UTF-8. Save the chapter as UTF-8."))
            continue
        for line, content in enumerate(text.split("\n"), 1):
            if "\r" in content or "\0" in content:
                problems.append(Problem(name, line, "a stray control character (CR or NUL). Delete it."))
        sources[name] = text if text.endswith("\n") else text + "\n"
    if not sources and not problems:
        problems.append(
            Problem("lit", 0, "there is no chapter here, so there is nothing to tangle. Bring lit/*.md back.")
        )
    settings = root / SETTINGS
    if not settings.is_file():
        problems.append(Problem(SETTINGS, 0, "it is missing. Bring it back from git or the archive."))
    if problems:
        raise Refused(problems)
    sources[SETTINGS] = settings.read_text(encoding="utf-8")
    check_settings(sources[SETTINGS])
    return sources


def code_in_a_guide(name: str, text: str) -> list[Problem]:
    """A mistake for each block that looks as if it were tangled: those of lit/how-to/ are only shown."""
    problems, shown = [], False
    for line, content in enumerate(text.split("\n"), 1):
        shown ^= content.startswith("~~~")
        if not shown and re.match(r"\s*```\w+ +(#|file=)", content):
            advice = "nothing here is tangled. Move the block to a chapter, or take its name away."
            problems.append(Problem(name, line, advice))
    return problems


def check_settings(text: str) -> None:
    """Entangled ignores a setting whose name it does not know: refuse it instead."""
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused([Problem(SETTINGS, 0, f"not readable as TOML: {error}.")]) from error
    unknown = sorted(unknown_settings(settings, inspect.type_info(ConfigUpdate)))
    if unknown:
        raise Refused(
            [Problem(SETTINGS, 0, f"Entangled knows no setting '{unknown[0]}'. Correct or delete it.")]
        )
    try:
        msgspec.convert(settings, ConfigUpdate)
    except msgspec.ValidationError as error:
        raise Refused([Problem(SETTINGS, 0, f"Entangled cannot use it: {error}. Correct it.")]) from error


def unknown_settings(said: object, kind: inspect.Type) -> Iterator[str]:
    """The names in `said`, at any depth, that the type which Entangled makes of it does not have."""
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from unknown_settings(said, one)
    elif isinstance(kind, inspect.ListType) and isinstance(said, list):
        for item in said:
            yield from unknown_settings(item, kind.item_type)
    elif isinstance(kind, inspect.StructType | inspect.DataclassType) and isinstance(said, dict):
        known = {field.encode_name: field.type for field in kind.fields}
        for name, value in said.items():
            if name in known:
                yield from unknown_settings(value, known[name])
            else:
                yield name


def load(sources: dict[str, str]) -> Book:
    """Read the chapters twice, as Markdown and through Entangled.

    Raises Refused if either complains or the two differ.
    """
    problems: list[Problem] = []
    fences: dict[tuple[str, int], Fence] = {}
    chapters = sorted(name for name in sources if name != SETTINGS)
    for chapter in chapters:
        found, wrong = scan(chapter, sources[chapter])
        problems += wrong
        fences |= {(chapter, fence.line): fence for fence in found}
    if problems:
        raise Refused(problems)

    document = read_with_entangled(sources, chapters)
    blocks = []
    for reference, block in document.reference_map.items():
        chapter, line = block.origin.filename.as_posix(), block.origin.line_number
        fence = fences.pop((chapter, line), None)
        code = tuple(block.source.split("\n")[:-1])
        if (
            fence is None
            or fence.end != line + 1 + len(code)
            or str(reference.name) != (fence.name or fence.file)
        ):
            problems.append(
                Problem(chapter, line, "Entangled reads this block otherwise than Markdown does. Rewrite it.")
            )
            continue
        blocks.append(Block(chapter, line, str(reference.name), fence, code))
    for chapter, line in fences:
        problems.append(Problem(chapter, line, "Entangled does not see this block. Rewrite its fence."))
    if problems:
        raise Refused(problems)
    return Book(document.reference_map, tuple(blocks))


def read_with_entangled(sources: dict[str, str], chapters: list[str]) -> Document:
    """Entangled's own reading of the chapters, from a file system in memory."""
    files = VirtualFS.from_dict(sources)
    problems = []
    try:
        document = Document(Context(fs=files))
        # No hooks: the one for shebang lines would move them out of the block they stand in.
        document.config = replace(document.config, hooks=set(), annotation=AnnotationMethod.STANDARD)
        transaction = Transaction(new_db(), files)
        for chapter in chapters:
            if document.load_source(transaction, Path(chapter)) is not None:
                problems.append(
                    Problem(chapter, 1, f"a header may not change Entangled's settings. Use {SETTINGS}.")
                )
    except UserError as error:
        raise Refused([Problem("lit", 0, f"Entangled cannot read the chapters: {error}.")]) from error
    if problems:
        raise Refused(problems)
    return document

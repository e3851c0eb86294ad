"""Highlight code line by line, so that single lines can be links or carry their numbers."""

import html
from functools import lru_cache

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from tools.weave.model import Reference


@lru_cache(maxsize=4096)
def highlighted(language: str, code: tuple[str, ...]) -> tuple[str, ...]:
    """The lines as HTML. No element goes over the end of a line."""
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=True)
    text = highlight("".join(line + "\n" for line in code), lexer, HtmlFormatter(nowrap=True))
    lines = text.split("\n")[:-1]
    return tuple(lines[: len(code)]) if len(lines) >= len(code) else tuple(map(html.escape, code))


def with_links(
    language: str, code: tuple[str, ...], references: dict[int, tuple[Reference, str]]
) -> list[str]:
    """The lines of a fragment as HTML, each reference replaced by the link given for its row.

    The highlighter never sees the reference: a bare word stands for it, which leaves the lines around it as
    they would be in the program.
    """
    plain = tuple(
        f"{references[row][0].indent}reference" if row in references else line
        for row, line in enumerate(code)
    )
    lines = list(highlighted(language, plain))
    for row, (reference, link) in references.items():
        lines[row] = f"{reference.indent}{link}"
    return lines

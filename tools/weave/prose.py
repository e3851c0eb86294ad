"""The text between fragments: find formulas and links in Markdown, but none in code.

What becomes HTML of our own is put aside, and a mark stands for it until the Markdown has been converted. The
usual way, an extension of the Markdown converter, cannot do it: tables are cut at each | before any extension
sees the formula that it stands in, and headings make their ids from what is left.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_OPEN, _CLOSE = "\ue000", "\ue001"  # of the private use area: no chapter has them
MARK = re.compile(rf"{_OPEN}(\d+){_CLOSE}")
# With a formula what follows it without a space, so that no line begins with a full stop.
_PUNCTUATED = re.compile(r'(<math display="inline"(?:(?!</math>).)*</math>)([.,;:!?)]+)', re.S)

# One expression, so that whatever opens first wins: code hides formulas, and formulas hide links. A formula
# follows pandoc's rule: no blank inside next to either dollar, no digit after the second.
_WITHIN = r"(?:(?!\n[ \t]*\n).)"  # anything that does not leave the paragraph
_THINGS = re.compile(
    r"(?P<fence>^[ \t]*(?P<ticks>`{3,}|~{3,})(?![^\n]*`)[^\n]*\n.*?(?:^[ \t]*(?P=ticks)[`~]*[ \t]*$|\Z))"
    r"|(?P<comment><!--.*?-->)"
    rf"|(?P<code>(?P<tick>`+)(?!`){_WITHIN}+?(?<!`)(?P=tick)(?!`))"
    r"|(?P<escaped>\\[\\$`\[])"
    rf"|\$\$(?P<display>{_WITHIN}+?)\$\$"
    rf"|\$(?![\s$])(?P<inline>(?:\\.|(?!\n[ \t]*\n)[^$\\])+?)(?<!\s)\$(?!\d)"
    r"|(?P<image>!?)\[(?P<text>(?:`[^`\n]*`|\\.|[^\[\]`\\])*)\]"
    r"\((?P<url>[^\s()]+)(?P<title>[ \t]+\"[^\"\n]*\")?\)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Formula:
    """A formula in TeX, and the line of the page that it begins in."""

    tex: str
    display: bool
    line: int = 0


@dataclass(frozen=True)
class Link:
    """A link or, with `image`, a picture, as Markdown has it."""

    text: str
    url: str
    image: bool
    title: str = ""

    def __str__(self) -> str:
        return f"{'!' * self.image}[{self.text}]({self.url}{self.title})"


@dataclass
class Aside:
    """What has been put aside for one page: HTML, and the same as plain text for ids, titles and tooltips."""

    kept: list[tuple[Callable[[], str], str]] = field(default_factory=list)

    def put(self, html_text: str | Callable[[], str], plain: str = "") -> str:
        """The mark that stands for this HTML. Made late if it is a function."""
        make = html_text if callable(html_text) else (lambda: html_text)
        self.kept.append((make, plain))
        return f"{_OPEN}{len(self.kept) - 1}{_CLOSE}"

    def put_block(self, html_text: str | Callable[[], str]) -> str:
        """The same for a block: the mark is a paragraph of its own."""
        return f"\n\n{self.put(html_text)}\n\n"

    def plain(self, text: str) -> str:
        """The text with each mark replaced by what it is in plain words."""
        return MARK.sub(lambda match: self.kept[int(match[1])][1], text)

    def restore(self, page: str) -> str:
        """The converted page with everything in its place again. Within a tag there is only plain text."""

        def tag(match: re.Match[str]) -> str:
            return MARK.sub(lambda mark: html.escape(self.kept[int(mark[1])][1]), match[0])

        page = re.sub(rf"<p>\s*({_OPEN}\d+{_CLOSE})\s*</p>", r"\1", page)
        page = re.sub(rf"<[^<>{_OPEN}]*{_OPEN}[^<>]*>", tag, page)
        for _ in range(3):  # a link may hold a formula
            page = MARK.sub(lambda mark: self.kept[int(mark[1])][0](), page)
        return _PUNCTUATED.sub(r'<span class="unbroken">\1\2</span>', page)


def heading_id(text: str) -> str:
    """The id of a heading, as a forge makes it, so that links hold here and there. A formula is its TeX."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def replace_in(
    text: str, formula: Callable[[Formula], str], link: Callable[[Link], str], first_line: int = 1
) -> str:
    """The Markdown with each formula and each inline link replaced by what the two functions make of it."""

    def replaced(match: re.Match[str]) -> str:
        kind = match.lastgroup
        line = first_line + text.count("\n", 0, match.start())
        if match["display"] is not None:
            return formula(Formula(match["display"].strip(), True, line))
        if match["inline"] is not None:
            return formula(Formula(match["inline"], False, line))
        if match["url"] is not None:
            inner = match["text"]
            if not match["image"]:
                inner = replace_in(inner, formula, lambda inner_link: str(inner_link), line)
            return link(Link(inner, match["url"], bool(match["image"]), match["title"] or ""))
        assert kind
        return match[0]

    return _THINGS.sub(replaced, text)


def formulas_of(text: str) -> list[Formula]:
    """All formulas of a page, in order."""
    found: list[Formula] = []

    def keep(formula: Formula) -> str:
        found.append(formula)
        return ""

    replace_in(text, keep, str)
    return found

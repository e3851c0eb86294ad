"""Set code for the EPUB and for the PDF: fragments with title, place and links, and what is only shown.

Both forms are written here and not left to pandoc, whose highlighter takes a block as one text, so that no
line of it could be a link.
"""

import json
import re
from functools import cache
from html import escape

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES, _TokenType
from pygments.util import ClassNotFound

from tools.print.pandoc import Element, raw
from tools.weave.model import Fragment, Woven


class Setter:
    """Sets the blocks of code of one book, of which a volume is given out by itself.

    `volumes` has the volume of each chapter. A reference to a fragment of another one leads nowhere.
    """

    def __init__(self, woven: Woven, volumes: dict[str, str] | None = None) -> None:
        self.woven = woven
        self.volumes = volumes or {}
        self.fragments = tuple(woven.fragments)

    def within(self, volume: str) -> "Setter":
        """The same with the `fragments` of one volume."""
        own = Setter(self.woven, self.volumes)
        own.fragments = tuple(f for f in self.fragments if self.volume_of(f) == volume)
        return own

    def volume_of(self, fragment: Fragment) -> str:
        """The volume that a fragment stands in; "" without volumes."""
        return self.volumes.get(fragment.chapter, "")

    def fragment(self, fragment: Fragment) -> list[Element]:
        """A fragment, for either format."""
        return [raw("html", self.fragment_html(fragment)), raw("typst", self.fragment_typst(fragment))]

    def shown(self, text: str, language: str) -> list[Element]:
        """A block that does not become code."""
        lines = highlight(text.split("\n"), language, {})
        html = f'<pre class="code"><code>{lines}</code></pre>'
        typst = f"#shown({typst_string(language)}, {typst_string(text)})"
        return [raw("html", html), raw("typst", typst)]

    def fragment_html(self, fragment: Fragment) -> str:
        """The fragment as XHTML."""
        links = {r.row: (r.indent, self.link_html(fragment, self.named(r.name))) for r in fragment.references}
        place = f'<span class="place">{escape(fragment.place)}</span>' if fragment.place else ""
        parts = [
            f'<div class="fragment" id="{fragment.anchor}">',
            f'<p class="title">⟨{escape(fragment.title)}⟩ {sign(fragment)} {place}</p>',
        ]
        if fragment.todo:
            parts.append(f'<p class="todo"><b>Your turn.</b> {escape(fragment.todo)}.</p>')
        parts.append(
            f'<pre class="code"><code>{highlight(fragment.code, fragment.language, links)}</code></pre>'
        )
        if notes := self.notes(fragment):
            told = "; ".join(
                f"{word} {', '.join(self.link_html(fragment, other) for other in to)}" for word, to in notes
            )
            parts.append(f'<p class="notes">{told}</p>')
        return "\n".join([*parts, "</div>"])

    def fragment_typst(self, fragment: Fragment) -> str:
        """The fragment as a call of the function that book.typ defines."""
        code = list(fragment.code)
        for reference in fragment.references:
            code[reference.row] = (
                f"{reference.indent}⟨{self.name_typst(fragment, self.named(reference.name))}⟩"
            )
        notes = ", ".join(
            f"({typst_string(word)}, ({', '.join(typst_string(self.name_typst(fragment, f)) for f in to)},))"
            for word, to in self.notes(fragment)
        )
        fields = [fragment.anchor, fragment.title, sign(fragment), fragment.place, fragment.todo or ""]
        fields += [fragment.language, "\n".join(code)]
        return f"#fragment({', '.join(map(typst_string, fields))}, ({notes}{',' if notes else ''}))"

    def titles_typst(self) -> str:
        """The titles of all fragments, for the links and the index of the PDF."""
        titles = ", ".join(f"{typst_string(f.anchor)}: {typst_string(f.title)}" for f in self.fragments)
        return f"#let titles = ({titles})\n"

    def notes(self, fragment: Fragment) -> list[tuple[str, list[Fragment]]]:
        """What is said below a fragment: a word, and the fragments it concerns."""
        notes = [
            ("continues", [fragment.continues] if fragment.continues else []),
            ("continued in", [fragment.continued_in] if fragment.continued_in else []),
            ("used in", [anchor for anchor in fragment.used_in if not fragment.continues]),
        ]
        return [(word, [self.woven[anchor] for anchor in anchors]) for word, anchors in notes if anchors]

    def named(self, name: str) -> Fragment:
        """The fragment a reference stands for; the book has been checked, so there is one."""
        found = self.woven.named(name)
        assert found, name
        return found

    def link_html(self, here: Fragment, there: Fragment) -> str:
        """A reference from one fragment to another; no link where that stands in another volume."""
        if self.volume_of(here) != self.volume_of(there):
            return f'<span class="reference">⟨{escape(there.title)}⟩</span>'
        return f'<a class="reference" href="#{there.anchor}">⟨{escape(there.title)}⟩</a>'

    def name_typst(self, here: Fragment, there: Fragment) -> str:
        """What book.typ finds the title and place of a fragment by; for another volume's, its title."""
        return there.anchor if self.volume_of(here) == self.volume_of(there) else there.title


def sign(fragment: Fragment) -> str:
    """≡ where a fragment begins, +≡ where it goes on."""
    return "+≡" if fragment.continues else "≡"


def highlight(code: tuple[str, ...] | list[str], language: str, links: dict[int, tuple[str, str]]) -> str:
    """Lines of code as XHTML, each in an element of its own; `links` replace lines by (indent, markup)."""
    lines = tokens("\n".join(code), language)
    out = []
    for row, _ in enumerate(code):
        if row in links:
            indent, link = links[row]
            content = indent + link
        else:
            content = "".join(
                f'<span class="{kind}">{escape(text, quote=False)}</span>'
                if kind
                else escape(text, quote=False)
                for kind, text in (lines[row] if row < len(lines) else [])
            )
        out.append(f'<span class="line">{content}\n</span>')
    return "".join(out)


def tokens(text: str, language: str) -> list[list[tuple[str, str]]]:
    """The lines of a text as pairs of Pygments' short class ("" for plain text) and text."""
    lines: list[list[tuple[str, str]]] = [[]]
    for kind, value in lexer(language).get_tokens(text):
        for number, part in enumerate(value.split("\n")):
            if number:
                lines.append([])
            if part:
                lines[-1].append((short(kind) if part.strip() else "", part))
    return lines


def short(kind: _TokenType) -> str:
    """Pygments' CSS class of a token."""
    while kind not in STANDARD_TYPES:
        kind = kind.parent
    return str(STANDARD_TYPES[kind])


@cache
def lexer(language: str) -> Lexer:
    """The lexer for a language; plain text for what Pygments does not know. Nothing is stripped or added."""
    options = {"stripnl": False, "ensurenl": False}
    try:
        return get_lexer_by_name(language or "text", **options)
    except ClassNotFound:
        return get_lexer_by_name("text", **options)


def typst_string(text: str) -> str:
    """A string literal of Typst."""
    return json.dumps(re.sub(r"[\x00-\x08\x0b-\x1f]", "", text), ensure_ascii=False).replace("\\/", "/")

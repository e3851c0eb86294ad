"""Talk to pandoc: Markdown in, its document tree out; a tree in, a format out. No warning is passed over.

The tree is pandoc's JSON: every element is {"t": type, "c": content}.
"""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pypandoc

Element = dict[str, Any]
# What GitHub reads, for the chapters are read there too; `:word:` stays as it is.
MARKDOWN = "gfm-emoji-gfm_auto_identifiers"


class Failed(Exception):
    """Pandoc has refused or warned; the message is its own."""


def pandoc(text: str | bytes, *arguments: str, epoch: int = 0) -> bytes:
    """Run pandoc. Raises Failed for warnings too: a formula that it cannot convert is only a warning."""
    done = subprocess.run(
        [pypandoc.get_pandoc_path(), "--fail-if-warnings", *arguments],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        env={"LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "SOURCE_DATE_EPOCH": str(epoch)},
        check=False,
    )
    if done.returncode:
        raise Failed(done.stderr.decode(errors="replace").strip())
    return done.stdout


def parse(markdown: str) -> list[Element]:
    """The blocks of a page."""
    document = json.loads(pandoc(markdown, "--from", MARKDOWN, "--to", "json"))
    blocks: list[Element] = document["blocks"]
    return blocks


def document(blocks: list[Element]) -> str:
    """A tree as pandoc reads it."""
    return json.dumps({"pandoc-api-version": API, "meta": {}, "blocks": blocks})


API: list[int] = json.loads(pandoc("", "--from", "markdown", "--to", "json"))["pandoc-api-version"]


def walk(tree: Any, change: Callable[[Element], list[Element] | None]) -> Any:
    """The tree with elements changed from the leaves up.

    `change` gives what an element is replaced by, or None to keep it.
    """
    if isinstance(tree, list):
        out: list[Any] = []
        for item in tree:
            item = walk(item, change)
            if isinstance(item, dict) and "t" in item and (instead := change(item)) is not None:
                out += instead
            else:
                out.append(item)
        return out
    if isinstance(tree, dict):
        return {key: walk(value, change) for key, value in tree.items()}
    return tree


def plain(inlines: Any) -> str:
    """The text of inline elements without their markup."""
    if isinstance(inlines, list):
        return "".join(plain(item) for item in inlines)
    if not isinstance(inlines, dict):
        return ""
    kind: str = inlines["t"]
    content: Any = inlines.get("c")
    if kind in ("Str", "Code", "Math", "RawInline"):
        return str(content if isinstance(content, str) else content[1])
    if kind in ("Space", "SoftBreak", "LineBreak"):
        return " "
    if kind in ("Link", "Image", "Span", "Quoted"):
        return plain(content[1])
    return plain(content) if kind != "Note" else ""


def string(text: str) -> Element:
    """Plain text as an element."""
    return {"t": "Str", "c": text}


def raw(form: str, text: str) -> Element:
    """A block that only one format sees."""
    return {"t": "RawBlock", "c": [form, text]}


def sticking(block: Element) -> list[Element]:
    """A block that a page of the PDF does not end with."""
    return [raw("typst", "#block(sticky: true)["), block, raw("typst", "]")]

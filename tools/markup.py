"""Read one chapter as Markdown, strictly: which fences it has, and which of them a reader would misjudge.

The book has one form of block that becomes code:

    ```python #fragment-name file=nanochat/x.py todo="what a learner writes here"

Entangled takes it by the regular expression in entangled.toml and silently passes over everything else. So
this module reads the chapter a second time, by Markdown's own rules, and complains about each fence for which
the two could differ. It knows nothing of Entangled: `chapters.py` compares.
"""

import re
from dataclasses import dataclass

from tools.problems import Problem

# Entangled knows more languages. These have a use in nanochat/ and scripts/.
LANGUAGES = ("python", "bash", "sh", "c", "toml", "yaml", "html", "css", "javascript")
ATTRIBUTES = ("file", "todo")

NAME = r"[A-Za-z][A-Za-z0-9_.-]*"
FORM = '```python #fragment-name file=nanochat/x.py todo="…"'

_FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})(?P<info>.*)$")
_QUOTED_FENCE = re.compile(r"^[\s>*+-]*(?:\d+[.)]\s*)?(?:`{3,}|~{3,})(?P<info>.*)$")
_TAKEN = re.compile(r"^\s*```\w+ +(#|file=)")  # what entangled.toml's marker takes
_PLAIN = re.compile(r"^[A-Za-z0-9_+.-]*$")  # a block that is only shown: one word or none
_HEADER = re.compile(r"^```(?P<language>\S+) +(?P<attributes>.*\S)\s*$")
_ATTRIBUTE = re.compile(
    rf"\s*(?:#(?P<name>{NAME})|(?P<key>[A-Za-z_-]+)="
    r'(?:"(?P<quoted>[^"\\{}]*)"|(?P<bare>[^\s"{}]+)))(?=\s|$)'
)
_MERGE_MARK = re.compile(r"^(<{7,}|\|{7,}|>{7,})( |$)")
_INLINE_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")


@dataclass(frozen=True)
class Fence:
    """A block that becomes code. `line` and `end` are the lines of its two fences, counted from 1."""

    line: int
    end: int
    language: str
    name: str | None
    file: str | None
    todo: str | None


def scan(chapter: str, text: str) -> tuple[list[Fence], list[Problem]]:
    """All blocks of a chapter that become code, and everything in it that only looks like one."""
    return _Scanner(chapter, text).scan()


def merge_marks(chapter: str, text: str) -> list[Problem]:
    """The lines by which git marks a merge that is not resolved, wherever in the text they stand.

    Seven = are not among them: in Markdown such a line makes a heading. lint.py finds those within code.
    """
    advice = "this line is git's mark of a merge that is not resolved. Choose between the two sides."
    return [
        Problem(chapter, number, advice)
        for number, line in enumerate(text.split("\n"), 1)
        if _MERGE_MARK.match(line)
    ]


def is_meant_for_code(info: str) -> bool:
    """Whether what stands behind a fence names a fragment or a file."""
    return bool(re.search(r"#[A-Za-z]|\b\w+\s*=|\{", info))


class _Scanner:
    def __init__(self, chapter: str, text: str) -> None:
        self.chapter = chapter
        self.lines = text.split("\n")
        self.fences: list[Fence] = []
        self.problems: list[Problem] = []

    def complain(self, line: int, text: str) -> None:
        self.problems.append(Problem(self.chapter, line, text))

    def scan(self) -> tuple[list[Fence], list[Problem]]:
        if marks := merge_marks(self.chapter, "\n".join(self.lines)):
            return [], marks  # both sides' fences stand here, so whatever else is wrong follows from it
        number = 1
        while number <= len(self.lines):
            line = self.lines[number - 1]
            match = _FENCE.match(line)
            if match and match["ticks"][0] == "`" and "`" in match["info"] and not _TAKEN.match(line):
                match = None  # three backticks, but code within a sentence
            if match:
                number = self.read_fence(number, match)
            elif self.opens_comment(line):
                number = self.read_comment(number)
            else:
                self.read_prose(number, line)
            number += 1
        return self.fences, self.problems

    def read_prose(self, number: int, line: str) -> None:
        hidden = _QUOTED_FENCE.match(line)
        if _TAKEN.match(line) or (hidden and is_meant_for_code(hidden["info"])):
            self.complain(
                number,
                "this fence is not at the left margin, or not a fence for Markdown, so it would not become "
                f"code. Write it at the start of a line of its own: {FORM}",
            )

    def opens_comment(self, line: str) -> bool:
        bare = _INLINE_CODE.sub("", line)
        return "<!--" in bare and "-->" not in bare[bare.rindex("<!--") :]

    def read_comment(self, start: int) -> int:
        before = len(self.problems)
        for number in range(start + 1, len(self.lines) + 1):
            line = self.lines[number - 1]
            if _TAKEN.match(line):
                self.complain(
                    number,
                    "this block stands in an HTML comment, where no reader sees it, yet Entangled would "
                    "tangle it. Take it out of the comment or delete it.",
                )
            if "-->" in line:
                return number
        del self.problems[before:]  # they only follow from this one:
        self.complain(start, "this HTML comment is never closed. End it with -->.")
        return len(self.lines)

    def read_fence(self, start: int, match: re.Match[str]) -> int:
        """Read the block that opens at line `start`; give back the line of its closing fence."""
        info = match["info"].strip()
        if _TAKEN.match(self.lines[start - 1]) and not match["indent"]:
            end = self.end_of_code(start)
            if fence := self.parse(start, end):
                self.fences.append(fence)
            return end
        if is_meant_for_code(info) or " " in info:
            self.complain(start, self.why_unseen(match, info))
        elif not _PLAIN.match(info):
            self.complain(
                start,
                f"'{info}' is no language. A block that is only shown has one word behind its fence; a "
                f"block that becomes code: {FORM}",
            )
        return self.end_of_shown(start, match)

    def why_unseen(self, match: re.Match[str], info: str) -> str:
        if match["indent"]:
            reason = "it is indented: move it to the left margin"
        elif match["ticks"][0] == "~":
            reason = "it is made of tildes, which Entangled passes over: write three backticks"
        elif len(match["ticks"]) > 3:
            reason = "it has more than three backticks, and Entangled passes over it: write three"
        elif "{" in info:
            reason = "it has braces: leave them and the dot away"
        elif match["info"][:1].isspace():
            reason = "a space stands before the language: take it away"
        else:
            reason = "the language must be followed by a space and #name or file="
        return (
            f"this fence names a fragment or a file, but would not tangle as it stands: {reason}. The one "
            f"form: {FORM}"
        )

    def end_of_code(self, start: int) -> int:
        for number in range(start + 1, len(self.lines) + 1):
            line = self.lines[number - 1]
            if re.match(r"^```\s*$", line):
                return number
            if line.lstrip().startswith("```"):
                self.complain(
                    start,
                    f"this fence is not closed before another stands in line {number}. Close the block with "
                    "three backticks alone on a line at the left margin (and keep such lines out of its "
                    "code).",
                )
                return number - 1 if re.match(r"^\s*```+ *[^`\s]", line) else number
        self.complain(
            start, "this fence is never closed. End the block with three backticks alone on a line."
        )
        return len(self.lines)

    def end_of_shown(self, start: int, opening: re.Match[str]) -> int:
        ticks = opening["ticks"]
        closing = re.compile(rf"^\s*{ticks[0]}{{{len(ticks)},}}\s*$")
        skipped_by_entangled = self.lines[start - 1].strip() == "~~~markdown"
        for number in range(start + 1, len(self.lines) + 1):
            line = self.lines[number - 1]
            if closing.match(line):
                return number
            if ticks == "```" and re.match(r"^\s*```[^`]+$", line):
                self.complain(
                    start,
                    f"this fence is not closed before another opens in line {number}. Close the block with "
                    "three backticks (a line of three backticks inside the block above would have ended it "
                    "early).",
                )
                return number - 1
            if _TAKEN.match(line) and not skipped_by_entangled:
                self.complain(
                    number,
                    "this block stands inside another that is only shown, yet Entangled would tangle it. "
                    "Show examples of the markup between ~~~markdown and ~~~.",
                )
        self.complain(
            start,
            "this fence is never closed. End the block with the same fence alone on a line (a line of three "
            "backticks inside a block above would have ended that one early).",
        )
        return len(self.lines)

    def parse(self, start: int, end: int) -> Fence | None:
        """The attributes of a block that becomes code, or a complaint."""
        header = _HEADER.match(self.lines[start - 1])
        assert header, "the caller has matched it"
        found: dict[str, str] = {}
        position, attributes = 0, header["attributes"]
        while position < len(attributes):
            match = _ATTRIBUTE.match(attributes, position)
            if not match:
                self.complain(
                    start,
                    f"cannot read '{attributes[position:].strip()}'. Write #name (letters, digits, dashes), "
                    'file=path, or todo="text without quotes, backslashes or braces".',
                )
                return None
            key = match["key"] or "name"
            if match["key"] and key not in ATTRIBUTES:
                self.complain(
                    start, f"'{key}=' is no attribute of a block. Known are #name, file= and todo=."
                )
                return None
            if key == "file" and match["quoted"] is not None:
                self.complain(start, "write file=path without quotes.")
                return None
            if key in found:
                self.complain(start, f"'{key}' is given twice. Keep one.")
                return None
            found[key] = match["name"] or match["quoted"] or match["bare"] or ""
            if not found[key]:
                self.complain(start, f"'{key}=' is empty. Give it a value or take it away.")
                return None
            position = match.end()
        if header["language"] not in LANGUAGES:
            self.complain(
                start,
                f"'{header['language']}' is no language that tangles. Write one of {', '.join(LANGUAGES)}, "
                "in lower case, or leave #name and file= away if the block is only shown.",
            )
            return None
        return Fence(start, end, header["language"], found.get("name"), found.get("file"), found.get("todo"))

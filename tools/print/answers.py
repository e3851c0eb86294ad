"""Take the answers out of the chapters, and put them at the back of the book, with links both ways."""

from dataclasses import dataclass

from tools.answers import CLOSING, OPENING
from tools.print.pages import Page
from tools.print.pandoc import Element, plain, sticking, string
from tools.print.reader import Reading

TITLE = "Answers"


@dataclass
class _Asked:
    """The question that answers belong to: where its paragraph stands among the new blocks."""

    at: int
    name: list[Element]
    id: str
    answers: int = 0


def move_to_the_back(readings: list[Reading]) -> list[Reading]:
    """The chapters without their answers, and after them a last one that has them all, if there are any.

    Links must lead to their ids already: in the last chapter they could not be told apart any more.
    """
    back: list[Element] = []
    for reading in readings:
        blocks, answers = _parted(reading)
        reading.blocks = blocks
        if answers:
            back += [_heading(2, f"answers--{reading.page.id}", _title(reading)), *answers]
    if not back:
        return readings
    return [*readings, Reading(Page(TITLE, "", TITLE), [_heading(1, "answers", [string(TITLE)]), *back])]


def _parted(reading: Reading) -> tuple[list[Element], list[Element]]:
    """The blocks of a chapter that stay, and its answers. The form has been checked (tools/answers.py)."""
    stay: list[Element] = []
    back: list[Element] = []
    asked: _Asked | None = None
    opened = lead = None
    questions = 0
    for block in reading.blocks:
        tag = block["c"][1].strip() if block["t"] == "RawBlock" and block["c"][0] == "html" else ""
        if opening := OPENING.fullmatch(tag):
            assert asked, "an answer without a question has been refused"
            asked.answers += 1
            opened = f"{asked.id}-answer-{asked.answers}"
            _point(stay, asked, _link(opened, [string(opening["word"])]))
            word = [] if opening["word"] == "Answer" else [string(f" {opening['word']}:")]
            stop = [] if plain(asked.name).endswith((".", "?")) else [string(".")]
            lead = [_link(asked.id, asked.name), *stop, *word]
        elif opened and tag == CLOSING:
            opened = None
        elif opened:
            if lead:  # the answer's first line begins with whose answer it is
                runs_in = block["t"] == "Para"
                inlines = [*lead, *([{"t": "Space"}, *block["c"]] if runs_in else [])]
                first = _div(opened, [{"t": "Para", "c": inlines}])
                back += [first] if runs_in else [*sticking(first), block]
                lead = None
            else:
                back.append(block)
        else:
            if block["t"] == "Header":
                asked = None
            elif block["t"] == "Para" and block["c"][0]["t"] == "Strong":
                questions += 1
                asked = _Asked(len(stay), [block["c"][0]], f"question-{questions}-{reading.page.id}")
            stay.append(block)
    return stay, back


def _point(stay: list[Element], asked: _Asked, link: Element) -> None:
    """Let a question lead to one more answer. The first one gives its paragraph a name to lead back to."""
    if asked.answers == 1:
        stay[asked.at] = _div(asked.id, [stay[asked.at]])
    last = stay[-1]
    paragraph = last["c"][1][-1] if last["t"] == "Div" else last
    if paragraph["t"] == "Para":
        paragraph["c"] += [{"t": "Space"}, link]
    else:
        stay.append({"t": "Para", "c": [link]})


def _title(reading: Reading) -> list[Element]:
    """The inlines of a chapter's first heading."""
    found: list[Element] = next(block["c"][2] for block in reading.blocks if block["t"] == "Header")
    return [string(plain(found))]


def _heading(level: int, id: str, inlines: list[Element]) -> Element:
    return {"t": "Header", "c": [level, [id, [], []], inlines]}


def _link(id: str, inlines: list[Element]) -> Element:
    return {"t": "Link", "c": [["", [], []], inlines, [f"#{id}", ""]]}


def _div(id: str, blocks: list[Element]) -> Element:
    return {"t": "Div", "c": [[id, [], []], blocks]}

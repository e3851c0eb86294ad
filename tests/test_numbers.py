"""Numbers and tables in the chapters are what the records say, and the check that says so can fail."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from tools import numbers
from tools.problems import Refused

ROOT = Path(__file__).resolve().parents[1]
RECORD = {
    "numbers": {"step": 0.27649, "share": 0.4213, "bytes": 1387000000, "tokens": 19010, "drop": -0.0123},
    "list": [{"tiny": 3.26e-6}],
    "verdict": "no effect at this scale",
    "whole": True,
}


def test_the_book_says_what_its_records_say() -> None:
    assert numbers.check(ROOT) == []


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "lit").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text(json.dumps(RECORD))
    return tmp_path


def quote(text: str, path: str) -> str:
    return f"[{text}](../results/x.json#{path})"


def chapter(book: Path, *lines: str) -> Path:
    path = book / "lit" / "10-a.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "path", "new"),
    [
        ("1 ms", "numbers/step;ms", "276 ms"),
        ("1.00 s", "numbers/step", "0.28 s"),
        ("about 10.0 % of it", "numbers/share;%", "about 42.1 % of it"),
        ("5 MB", "numbers/bytes;MB", "1,387 MB"),
        ("1234 MB", "numbers/bytes;MB", "1387 MB"),
        ("20,000", "numbers/tokens", "19,010"),
        ("−0.1", "numbers/drop", "−0.0"),
        ("0.001", "numbers/drop", "−0.012"),
        ("-0.001", "numbers/drop", "-0.012"),
        ("+0.11", "numbers/share", "+0.42"),
        ("9.9e-1", "list/0/tiny", "3.3e-06"),
        ("a large effect", "verdict", "no effect at this scale"),
    ],
)
def test_a_number_is_written_as_the_text_writes_it(book: Path, old: str, path: str, new: str) -> None:
    place = chapter(book, "# A", "", f"It takes {quote(old, path)}, no more.")
    assert len(numbers.check(book)) == 1
    assert numbers.write(book) == [place]
    assert place.read_text(encoding="utf-8") == f"# A\n\nIt takes {quote(new, path)}, no more.\n"
    assert numbers.check(book) == []
    assert numbers.write(book) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (quote("1 s", "numbers/stop"), "has no 'numbers/stop'; there is ['step'"),
        (quote("1 s", "list/1/tiny"), "has no 'list/1'; there is range(0, 1)"),
        (quote("1 s", "numbers/step/median"), "has no 'numbers/step/median'"),
        (quote("1 s", "numbers/step;parsec"), "'parsec' is no unit"),
        (quote("1 of 2", "numbers/step"), "must hold one number, and holds 2"),
        (quote("fast", "numbers/step"), "must hold one number, and holds 0"),
        (quote("1", "numbers"), "neither a number nor a text"),
        (quote("1", "whole"), "neither a number nor a text"),
        ("[1 s](../results/y.json#a)", "there is no results/y.json"),
        ("[`1 s`](../results/x.json#numbers/step)", "must hold one number, and holds 0"),
        ("[1 s](results/x.json#numbers/step)", "quotes nothing"),
    ],
)
def test_what_cannot_be_quoted_is_named_and_nothing_is_written(book: Path, line: str, complaint: str) -> None:
    text = f"{quote('7 ms', 'numbers/step;ms')}\n\n{line}"
    place = chapter(book, text)
    messages = [str(problem) for problem in numbers.check(book)]
    assert messages[0].startswith("lit/10-a.md:1: the text says '7 ms', results/x.json says '276 ms'")
    assert messages[1].startswith("lit/10-a.md:3: ")
    assert complaint in messages[1]
    with pytest.raises(Refused, match=r"10-a\.md:3"):
        numbers.write(book)
    assert place.read_text(encoding="utf-8") == text + "\n"


def test_a_damaged_record_is_named(book: Path) -> None:
    (book / "results" / "x.json").write_text("{")
    chapter(book, quote("1 s", "numbers/step"))
    assert "results/x.json cannot be read" in str(numbers.check(book)[0])


def test_code_and_plain_links_are_left_alone(book: Path) -> None:
    chapter(
        book,
        "```text",
        quote("1 s", "numbers/stop"),
        "```",
        "~~~markdown",
        quote("1 s", "numbers/stop"),
        "```",
        "~~~",
        f"`{quote('1 s', 'numbers/stop')}` and [the record](../results/x.json)",
    )
    assert numbers.check(book) == []


def test_a_quotation_may_run_over_the_end_of_a_line(book: Path) -> None:
    lines = "It is by {0} and\nso {1}.\n"
    split = "9\nms"
    place = chapter(
        book, lines.format(quote("9", "numbers/step;ms"), quote(split, "numbers/step;ms")).strip()
    )
    numbers.write(book)
    new = [quote("276", "numbers/step;ms"), quote("276\nms", "numbers/step;ms")]
    assert place.read_text() == lines.format(*new)
    chapter(book, quote("no effect\nat this scale", "verdict"))
    assert numbers.check(book) == []


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("made_up")
    module.tables = lambda record: {"a": f"| {record['list'][0]['tiny']} |\n", "b": "| b |"}
    monkeypatch.setitem(sys.modules, "made_up", module)
    return module


def test_tables_are_made_from_the_record(book: Path, maker: types.ModuleType) -> None:
    around = [
        "before",
        "<!-- table: results/x.json#a by made_up -->",
        "stale",
        "<!-- end of table -->",
        "after 7",
    ]
    place = chapter(book, *around, quote("1 ms", "numbers/step;ms"))
    messages = [str(problem) for problem in numbers.check(book)]
    assert [message[:14] for message in messages] == ["lit/10-a.md:2:", "lit/10-a.md:6:"]
    numbers.write(book)
    assert place.read_text().split("\n")[1:8] == [
        around[1],
        "",
        "| 3.26e-06 |",
        "",
        around[3],
        "after 7",
        quote("276 ms", "numbers/step;ms"),
    ]
    assert numbers.check(book) == []
    maker.tables = lambda record: "| one |"
    assert "has no table 'a'; there is one table without a name" in str(numbers.check(book)[0])


def test_a_table_can_be_made_from_a_folder_of_toml(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = types.ModuleType("made_up")
    made_up.tables = lambda files: f"| {files['A.b']['list'][0]['name']} |"
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    (book / "lit" / "data").mkdir()
    (book / "lit" / "data" / "A.b.toml").write_text('[[list]]\nname = "first"\n', encoding="utf-8")
    place = chapter(book, "<!-- table: lit/data by made_up -->", "<!-- end of table -->")
    numbers.write(book)
    assert "\n| first |\n" in place.read_text()
    (book / "lit" / "data" / "A.b.toml").write_text('[[list]]\nname = "second"\n', encoding="utf-8")
    assert "not what lit/data gives" in str(numbers.check(book)[0])
    (book / "lit" / "data" / "A.b.toml").write_text("[[list", encoding="utf-8")
    assert "lit/data cannot be read" in str(numbers.check(book)[0])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("<!-- table: results/x.json#c by made_up -->", "has no table 'c'; there is a, b"),
        ("<!-- table: results/y.json#a by made_up -->", "there is no results/y.json"),
        ("<!-- table: results/x.json by no_such_module -->", "ModuleNotFoundError"),
        ("<!-- table: results/x.json by json -->", "AttributeError"),
        ("<!-- table: results/x.json -->", "this table cannot be read"),
    ],
)
def test_a_table_that_cannot_be_made_is_named(
    book: Path, maker: types.ModuleType, line: str, complaint: str
) -> None:
    chapter(book, line, "", "<!-- end of table -->")
    assert [complaint in str(problem) for problem in numbers.check(book)] == [True]
    chapter(book, "<!-- table: results/x.json by made_up -->", "and no end")
    assert ["cannot be read" in str(problem) for problem in numbers.check(book)] == [True]


def test_the_command(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chapter(book, quote("1 ms", "numbers/step;ms"))
    assert numbers.main(["--check"], book) == 1
    assert "lit/10-a.md:1: the text says '1 ms'" in capsys.readouterr().err
    assert numbers.main([], book) == 0
    assert capsys.readouterr().out == "wrote lit/10-a.md\n"
    assert numbers.main(["--check"], book) == 0

"""Numbers in prose that come from a recorded result, and tables that are made from one.

    python -m tools.numbers           writes into the chapters what the records say
    python -m tools.numbers --check   changes nothing; status 1 if a chapter says something else

A quoted number is a link into its record, so that the text stays readable wherever it is shown:

    a step takes [276 ms](../results/bench-cpu-bfloat16.json#groups/steps/4/seconds/median;ms)

The address is a path of keys and indices; what follows a semicolon says in which unit the text counts. The
text holds one number, and its decimals say how far it is rounded. A string of the record can be quoted too.
A table stands between two comments, and is made by the function `tables` of the module that they name:

    <!-- table: results/bench-cpu-bfloat16.json by scripts.bench -->
    <!-- end of table -->

What a table is made from can also be data that the book keeps in TOML: a folder of such files, by name.

The rejected alternative is a placeholder that the build fills in. It cannot fall behind, but the chapter then
cannot be read without a build, and a change of a number does not show in the history of the sentence that it
may refute.
"""

import argparse
import importlib
import json
import os
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tools.pages import pages_of
from tools.problems import Problem, Refused

ROOT = Path(__file__).resolve().parents[1]

SCALES = {
    "": 1.0,
    "ms": 1e3,
    "us": 1e6,
    "%": 1e2,
    "k": 1e-3,
    "M": 1e-6,
    "MB": 1e-6,
    "GB": 1e-9,
    "min": 1 / 60,
}

LINK = re.compile(r"\(((?:\.\./)*results/[^)#\s]+\.json)#")
QUOTE = re.compile(
    r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?:\.\./)+(?P<record>results/[^)#\s]+\.json)#(?P<path>[^)\s]+)\)"
)
TABLE = re.compile(
    r"^<!-- table: (?P<record>results/\S+?\.json|lit/[\w/-]+)(?:#(?P<name>\S+))? by (?P<module>[\w.]+) -->\n"
    r"(?P<body>.*?)^<!-- end of table -->$",
    re.MULTILINE | re.DOTALL,
)
WRITE_IT = "Write it: make numbers"

_FENCED = re.compile(r"^(?P<ticks>`{3,}|~{3,}).*?^(?P=ticks)[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_NUMBER = re.compile(r"[-−+]?\d[\d,]*(?:\.\d+)?(?:e[-−+]?\d+)?")


class Unquotable(Exception):
    """What the record, or the text, lacks."""


def read(path: Path) -> Any:
    """What a JSON file holds, or what each TOML file of a folder does, by its name without the suffix."""
    if path.is_dir():
        return {file.stem: tomllib.loads(file.read_text("utf-8")) for file in sorted(path.glob("*.toml"))}
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Records:
    """The records that chapters quote, each read once."""

    root: Path
    read: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The content of results/x.json. Raises Unquotable."""
        if name not in self.read:
            try:
                self.read[name] = read(self.root / name)
            except FileNotFoundError:
                raise Unquotable(
                    f"there is no {name}. Record it with the program that the chapter describes"
                ) from None
            except (ValueError, OSError) as error:
                raise Unquotable(
                    f"{name} cannot be read: {error}. Take it from git, or record it again"
                ) from None
        return self.read[name]

    def value(self, name: str, path: str) -> Any:
        """What stands in a record at a path of keys and indices. Raises Unquotable."""
        here, walked = self.get(name), ""
        for key in path.split("/"):
            try:
                here = here[int(key)] if isinstance(here, list) else here[key]
            except (KeyError, IndexError, ValueError, TypeError):
                known = list(here) if isinstance(here, dict | list) else here
                known = range(len(known)) if isinstance(here, list) else known
                raise Unquotable(f"{name} has no '{walked}{key}'; there is {str(known)[:300]}") from None
            walked += f"{key}/"
        return here


def quoted(text: str, value: Any, unit: str) -> str:
    """The text with the record's value for its number, written as the text writes it. Raises Unquotable."""
    if isinstance(value, str):
        return text if " ".join(text.split()) == value else value  # it may run over the end of a line
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unquotable(f"the record has {str(value)[:60]} there, which is neither a number nor a text")
    if unit not in SCALES:
        raise Unquotable(f"'{unit}' is no unit; known are {', '.join(filter(None, SCALES))}")
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        raise Unquotable(f"'{text}' must hold one number, and holds {len(found)}")
    old = found[0][0]
    mantissa, power, _ = old.partition("e")
    decimals = len(mantissa.partition(".")[2])
    new = f"{value * SCALES[unit]:{',' if grouped(mantissa) else ''}.{decimals}{'e' if power else 'f'}}"
    if old.startswith("+") and not new.startswith("-"):
        new = "+" + new
    if "−" in old or "-" not in old:
        new = new.replace("-", "−")
    return text[: found[0].start()] + new + text[found[0].end() :]


def grouped(old: str) -> bool:
    """Whether thousands get a comma: where the text has one, and where it had no occasion to show."""
    return "," in old or len(re.sub(r"\D", "", old.partition(".")[0])) < 4


def without_code(text: str) -> str:
    """The text of a chapter with blanks in place of its code, everything else where it was."""
    for pattern in (_FENCED, _CODE):
        text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def refresh(root: Path, chapter: Path, records: Records) -> tuple[str, list[Problem]]:
    """A chapter as its records would have it, and each place that differs or cannot be had."""
    name = chapter.relative_to(root).as_posix()
    text = chapter.read_text(encoding="utf-8")
    visible = without_code(text)
    problems: list[Problem] = []
    changes: list[tuple[int, int, str]] = []

    def complain(position: int, what: str) -> None:
        problems.append(Problem(name, text.count("\n", 0, position) + 1, what))

    tables = list(TABLE.finditer(visible))
    for match in tables:
        try:
            new = f"\n{made(records, match)}\n\n"
        except Unquotable as error:
            complain(match.start(), f"{error}.")
            continue
        if text[match.start("body") : match.end("body")] != new:
            complain(match.start(), f"this table is not what {match['record']} gives. {WRITE_IT}")
            changes.append((match.start("body"), match.end("body"), new))
    for match in re.finditer("<!-- table:", visible):
        if match.start() not in [table.start() for table in tables]:
            complain(
                match.start(),
                "this table cannot be read. It opens with <!-- table: results/x.json by scripts.y --> and "
                "closes with <!-- end of table -->, each alone on its line.",
            )

    def in_table(position: int) -> bool:
        return any(table.start() <= position < table.end() for table in tables)

    quotes = [match for match in QUOTE.finditer(visible) if not in_table(match.start())]
    for match in quotes:
        path, _, unit = unquote(match["path"]).partition(";")
        try:
            new = quoted(match["text"], records.value(match["record"], path), unit)
        except Unquotable as error:
            complain(match.start(), f"{error}.")
            continue
        if new != match["text"]:
            complain(
                match.start(), f"the text says '{match['text']}', {match['record']} says '{new}'. {WRITE_IT}"
            )
            changes.append((match.start("text"), match.end("text"), new))
    for match in LINK.finditer(visible):
        if not any(q.start() < match.start() < q.end() for q in quotes) and not in_table(match.start()):
            complain(
                match.start(),
                "this link into a record quotes nothing. Write [276 ms](../results/x.json#path;ms), without "
                "code or brackets in its text.",
            )
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text, sorted(problems)


def made(records: Records, match: re.Match[str]) -> str:
    """The table that a comment asks for. Raises Unquotable."""
    record = records.get(match["record"])
    try:
        module = importlib.import_module(match["module"])
        tables: str | dict[str, str] = module.tables(record)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise Unquotable(f"{match['module']}.tables makes no table of {match['record']}: {why}") from None
    if match["name"] is None:
        return "\n\n".join(tables.values()).strip() if isinstance(tables, dict) else tables.strip()
    if isinstance(tables, str) or match["name"] not in tables:
        known = "one table without a name" if isinstance(tables, str) else ", ".join(tables)
        raise Unquotable(f"{match['record']} has no table '{match['name']}'; there is {known}")
    return tables[match["name"]].strip()


def check(root: Path) -> list[Problem]:
    """Every number and table of the book that is not what its record says."""
    records = Records(root)
    return [problem for path in pages_of(root) for problem in refresh(root, path, records)[1]]


def write(root: Path) -> list[Path]:
    """Bring all chapters up to date; which changed. Raises Refused, having written nothing."""
    records, new = Records(root), dict[Path, str]()
    refused: list[Problem] = []
    for path in pages_of(root):
        text, problems = refresh(root, path, records)
        refused += [problem for problem in problems if not problem.text.endswith(WRITE_IT)]
        if text != path.read_text(encoding="utf-8"):
            new[path] = text
    if refused:
        raise Refused(refused)
    for path, text in new.items():
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    return list(new)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; exit status 1 if something cannot be quoted, or with --check if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.numbers", allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing, and name what differs")
    if parser.parse_args(arguments).check:
        if problems := check(root):
            print(*problems, sep="\n", file=sys.stderr)
            return 1
        print("numbers and tables are what the records say")
        return 0
    try:
        changed = write(root)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    for path in changed:
        print(f"wrote {path.relative_to(root).as_posix()}")
    if not changed:
        print("numbers and tables are what the records say")
    return 0


if __name__ == "__main__":
    sys.exit(main())

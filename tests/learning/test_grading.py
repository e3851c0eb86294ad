"""A teacher's folder: each file by itself, whatever the others do."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.learning.court import Judge
from nanochat.learning.grading import COLUMNS, Grade, find_files, grade_file, grade_folder, write_tables
from nanochat.learning.judge import Verdict
from nanochat.learning.mistakes import mistakes_of
from nanochat.learning.steps import STEPS
from tests.learning.rewriting import BOOK, SECOND_BOOK, with_function, with_mistakes

HOSTILE = {  # what norm does: the words that its verdict has
    "import os; os.system('true')": "starts no process",
    "import subprocess; subprocess.run(['true'])": "starts no process",
    "import os; os.fork()": "starts no process",
    "open('big', 'w')": "writes no file",
    "import pathlib; pathlib.Path('x').write_text('x')": "writes no file",
    "import nanochat.normans_gpt as n; return n.norm(x)": "does not import nanochat.normans_gpt",
    "import nanochat.step": "does not import nanochat.normans_gpt",
    "from nanochat import loss; open(loss.__file__[:-7] + 'normans_gpt.py')": "does not read the solution",
}  # fmt: skip


OWN_SAVE = """
def save(path, model, optimizers, step):
    kept = [optimizer.state_dict() for optimizer in optimizers]
    state = {"step": step, "random": torch.get_rng_state(), "optimizers": kept, "model": model.state_dict()}
    with open(f"{path}.new", "wb") as file:
        torch.save(state, file)
    os.replace(f"{path}.new", path)
"""


def handed_in(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def court() -> Iterator[Judge]:
    with Judge(guarded=True) as made:
        yield made


@pytest.mark.parametrize(("body", "words"), HOSTILE.items())
def test_what_a_graded_file_must_not_do(court: Judge, tmp_path: Path, body: str, words: str) -> None:
    source = with_function("norm", f"def norm(x):\n    {body}\n    return x")
    folder = handed_in(tmp_path / "in", ada=source.text)
    (verdict,) = court.judge(folder / "ada.py", ["norm"])
    assert verdict.status == "error"
    assert words in (verdict.difference or "")
    assert sorted(p.name for p in folder.iterdir()) == ["ada.py"]


def test_a_file_that_does_it_at_its_top_is_not_judged(tmp_path: Path) -> None:
    folder = handed_in(tmp_path, eve=f"{BOOK.text}\nfrom nanochat.normans_gpt import *\n")
    grade = grade_file(folder / "eve.py", "eve.py")
    assert {verdict.status for verdict in grade.verdicts} == {"not judged"}
    assert "does not import nanochat.normans_gpt" in grade.row()["why not judged"]


def test_a_folder_becomes_a_table(tmp_path: Path) -> None:
    folder = handed_in(
        tmp_path / "in",
        ada=BOOK.text,
        zoe=with_mistakes([mistakes_of("encode")[0]], with_function("save", OWN_SAVE, SECOND_BOOK)).text,
        bob=with_function("norm", "def norm(x):\n    return x * 1.0").text,
        eve=f"{BOOK.text}\nimport sys\nsys.exit(0)\n",
    )
    (folder / "kurt").mkdir()
    (folder / "kurt" / "normans_gpt.py").write_bytes(BOOK.text.encode("utf-16"))
    grades = list(grade_folder(folder))
    made = write_tables(grades, folder / "grades")
    with made[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["ada.py", "bob.py", "eve.py", "kurt/normans_gpt.py", "zoe.py"]
    assert [row["round"] for row in rows] == ["1", "1", "1", "1", "2"]
    assert [row["passed"] for row in rows] == ["18", "17", "0", "0", "14"]
    assert [row["not judged"] for row in rows] == ["0", "0", "18", "18", "0"]
    assert rows[1]["mistakes"] == "norm: not-normed"
    assert rows[4]["mistakes"] == f"encode: {mistakes_of('encode')[0].name}"
    assert "SystemExit" in rows[2]["why not judged"]
    assert "UTF-16" in rows[3]["why not judged"]
    lines = made[1].read_text().splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert len(lines) == 7
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines)


def test_a_file_that_takes_too_long_keeps_the_verdicts_it_has(tmp_path: Path) -> None:
    folder = handed_in(tmp_path, ada=BOOK.text)
    grade = grade_file(folder / "ada.py", "ada.py", limit=0.0)
    assert [verdict.status for verdict in grade.verdicts] == ["passed"]
    row = grade.row()
    assert (row["passed"], row["not judged"]) == ("1", str(len(STEPS) - 1))
    assert "longer than 0 s" in row["why not judged"]


def test_no_cell_is_a_formula_and_none_breaks_the_table(tmp_path: Path) -> None:
    verdict = Verdict(STEPS[0].id, "not judged", "", "", difference="a | b")
    made = write_tables([Grade("=HYPERLINK(1).py", [verdict])], tmp_path / "grades")
    assert "\n'=HYPERLINK" in made[0].read_text()
    assert made[1].read_text().splitlines()[2].count("|") == len(COLUMNS) + 1


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Python file"):
        find_files(tmp_path)

"""The reference pages have every flag, as the programs tell them, and every public name of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT
from tools.reference import Constants, Sources, escaped, flags_of, make_targets, pages, programs
from tools.weave.model import weave

TRAINING = PROJECT / ".venv" / "bin" / "python"  # the programs run in the other environment
MADE = pages(PROJECT)
PROGRAMS = dict(programs(Sources(PROJECT)))


def section(program: str) -> str:
    text = MADE["reference/programs.md"].split(f"\n## python -m {program}\n")[1]
    return text.split("\n## ")[0]


def test_the_programs_are_those_that_there_are() -> None:
    assert {
        "scripts.base_train",
        "scripts.export_hf",
        "nanochat.dataset",
        "scripts.quickstart",
    } <= PROGRAMS.keys()
    headings = set(re.findall(r"^## python -m (\S+)$", MADE["reference/programs.md"], re.M))
    assert headings == {"scripts.learn", "scripts.experiment", *PROGRAMS}
    assert "--again" in section("scripts.experiment")
    assert "### check\n" in section("scripts.learn")
    assert "--then_train" in section("scripts.learn")


@pytest.mark.parametrize(
    ("program", "command"), [(program, command) for program in PROGRAMS for command in PROGRAMS[program]]
)
def test_flags_and_defaults_are_those_that_help_prints(program: str, command: str) -> None:
    done = subprocess.run(
        [TRAINING, "-m", program, *filter(None, [command]), "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env={"COLUMNS": "1000"},
    )
    assert done.returncode == 0, done.stderr
    spoken = {}
    for entry in re.findall(r"^  (.*)$", done.stdout, re.M):
        name = re.match(r"-?-?\w+(?=:)|-?-\w+", entry)
        default = re.search(r"\[default: (.*)\]$", entry)
        assert name, entry
        spoken[name[0]] = default[1].replace('""', "").replace("()", "") if default else ""
    spoken.pop("--help", None)
    _, flags = flags_of(Sources(PROJECT), program, PROGRAMS[program][command])
    assert [max(flag.names, key=len) for flag in flags] == list(spoken)
    for flag in flags:
        if flag.default != "*required*":
            assert flag.default.lower() == spoken[max(flag.names, key=len)].lower()
        assert flag.help, f"{flag.names} does not say what it is"
        assert escaped(flag.help) in section(program)
        assert f"`{flag.names[-1]}`" in section(program)


def test_every_public_name_has_its_place() -> None:
    text = "\n".join(page for name, page in MADE.items() if "modules" in name)
    for folder in ("nanochat", "scripts"):
        for path in (PROJECT / folder).rglob("*.py"):
            if not (names := re.findall(r"^(?:def|class) ([A-Za-z]\w*)", path.read_text(), re.M)):
                continue
            module = path.relative_to(PROJECT).with_suffix("").as_posix().replace("/", ".")
            part = text.split(f"\n## {module.removesuffix('.__init__')}\n")[1].split("\n## ")[0]
            assert re.findall(r"^### (\w+)$", part, re.M) == names
    assert "def norm(x: Tensor) -> Tensor" in text


def test_every_place_is_a_fragment_of_the_book() -> None:
    book = weave(PROJECT)
    links = {link for page in MADE.values() for link in re.findall(r"\]\(\.\./([^)]+)\)", page)}
    known = {f"{Path(part.chapter).name}#{part.anchor}" for part in book.fragments}
    assert len(links) > 100
    assert (
        "Written in [The loss, a chunk at a time](../35-the-loss-in-chunks.md#"
        in MADE["reference/modules.md"]
    )
    assert links <= known


def test_targets_are_those_that_make_lists() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=PROJECT, capture_output=True, text=True
    ).stdout
    assert [line.split()[1] for line in listed.splitlines()] == [name for name, _ in make_targets(PROJECT)]


def test_a_new_flag_appears(tmp_path: Path) -> None:
    for folder in ("nanochat", "scripts", "tasks", "lit"):
        shutil.copytree(PROJECT / folder, tmp_path / folder)
    path = tmp_path / "nanochat" / "train_config.py"
    old, new = "    depth: int", '    taste: str = flag("sweet", "or <sour>")\n    depth: int'
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    page = pages(tmp_path)["reference/programs.md"]
    assert "| `--taste` | TEXT | <code>sweet</code> | or &lt;sour&gt; |" in page


def test_constants_are_computed() -> None:
    constants = Constants(Sources(PROJECT), "nanochat.train_config")
    assert constants["SHUFFLE_WINDOW"] == 1024
    assert constants["SMALLEST_VOCAB_SIZE"] == 265  # from another module
    sides = Constants(Sources(PROJECT), "scripts.compare")["SIDES"]  # records of a class of their own
    assert "reference" in [side.key for side in sides]
    with pytest.raises(KeyError):
        constants["nothing"]


def test_words_mean_nothing_to_markdown() -> None:
    text = escaped("a*b* <bos> [x](y) `<|bos|>` | # $x$")
    assert text == r"a\*b\* &lt;bos&gt; \[x\](y) <code>&lt;&#124;bos&#124;&gt;</code> \| \# \$x\$"

"""The layers of lit/60-common-ground.md hold: imports go down, programs are strangers, functions small."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tools.house import (
    LAYERS,
    LONGEST,
    MOST_PLACES,
    RECORD,
    arrows,
    circles,
    functions,
    layer_of,
    long_calls,
    measure,
    read_modules,
    upward,
)

ROOT = Path(__file__).resolve().parents[1]
MODULES = read_modules(ROOT)
TRAINING_PROGRAMS = {f"scripts.{name}" for name in ("base_train", "quickstart", "mid_train", "chat_sft")}


def test_every_module_has_a_layer() -> None:
    homeless = [name for name in MODULES if "." in name and layer_of(name) is None]
    assert not homeless, f"give {homeless} a place in LAYERS of tools/house.py"
    there = {name.split(".")[0 if name.startswith("scripts") else 1] for name in MODULES if "." in name}
    gone = {name for names in LAYERS.values() for name in names} - there
    assert not gone, f"take {gone} out of LAYERS of tools/house.py"


def test_nobody_imports_upwards_and_no_program_another() -> None:
    assert not upward(arrows(MODULES))


def test_no_imports_lead_back() -> None:
    found = arrows(MODULES)
    assert not circles(found)
    assert circles(found | {("nanochat.looks", "nanochat.run")}) == [("nanochat.looks", "nanochat.run")]
    longer = {("nanochat.common", "nanochat.trace"), ("nanochat.trace", "nanochat.flags")}
    assert circles(found | longer) == [("nanochat.common", "nanochat.flags", "nanochat.trace")]


def test_the_training_program_does_not_know_the_books_machinery() -> None:
    machinery = list(LAYERS).index("machinery")
    found = {(a, b) for a, b in arrows(MODULES) if a in TRAINING_PROGRAMS and layer_of(b) == machinery}
    assert not found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("nanochat.normans_gpt", "from nanochat.dataset import documents"),
        ("nanochat.common", "import nanochat.muon"),
        ("nanochat.dataset", "def late():\n    from nanochat.plans import PLANS"),
        ("nanochat.models", "if True:\n    from nanochat import turns"),
        ("nanochat.step", "from nanochat.learning import steps"),
        ("nanochat.evidence.runs", "from scripts import quickstart"),
        ("nanochat.tokenizer", "from scripts.sample import main"),
        ("scripts.sample", "def late():\n    import scripts.bench"),
    ],
)
def test_a_planted_arrow_is_found(module: str, line: str) -> None:
    planted = ast.parse(f"{ast.unparse(MODULES[module])}\n{line}\n")
    more = set(upward(arrows({**MODULES, module: planted}))) - set(upward(arrows(MODULES)))
    assert [name for name, _ in more] == [module]


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_small(name: str) -> None:
    too_large = [entry for entry in functions(MODULES[name]) if entry[1] > LONGEST or entry[2] > MOST_PLACES]
    assert not too_large
    assert not list(long_calls(MODULES[name])), "name the arguments"


def test_functions_of_the_tools_are_small() -> None:
    for path in (ROOT / "tools").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        large = [entry for entry in functions(tree) if entry[1] > LONGEST or entry[2] > MOST_PLACES]
        assert not large, path
        assert not list(long_calls(tree)), path


def test_large_functions_are_found() -> None:
    body = "\n".join(["    x = 1"] * LONGEST)
    tree = ast.parse(
        f"def f(a, b, c, d, e, g, h):\n{body}\nP(1, 2, 3, 4, 5, 6, 7)\nclass C:\n  def m(self, a, *, b): pass"
    )
    assert list(functions(tree)) == [("f", LONGEST + 1, 7), ("m", 1, 1)]
    assert list(long_calls(tree)) == [("P", 7)]


def test_the_chapter_draws_the_layers_as_they_are() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["layers"] == {name: list(names) for name, names in LAYERS.items()}
    assert record["after"] == measure(ROOT), f"write it anew: {record['command']}"
    chapter = (ROOT / "lit" / "60-common-ground.md").read_text(encoding="utf-8")
    for i, (name, names) in enumerate(LAYERS.items()):
        assert re.search(rf"^\| {i} {name} +\| {', '.join(names)} +\|", chapter, re.M), name

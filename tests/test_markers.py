"""What the machine decides is tested twice: on the machine as it is, and playing the least."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# Who imports one of these can compute with a model.
COMPUTE = {
    *("nanochat.normans_gpt", "nanochat.muon", "nanochat.loss", "nanochat.engine", "nanochat.sampling"),
    *("nanochat.gpt", "nanochat.models", "nanochat.run", "nanochat.core_eval", "nanochat.loss_eval"),
    *("nanochat.evidence.variations", "nanochat.evidence.trials", "nanochat.learning.judge"),
    *("scripts.base_train", "scripts.sample", "scripts.base_eval", "scripts.bench", "scripts.compare"),
}
# Files that do, and no test of which need be run on the least machine. Each with its reason.
ONCE = {
    "test_base_eval.py": "that batches, padding and formats do not matter is tested in test_core_eval.py",
    "test_base_loss.py": "compares the program with itself and with transformers, as test_export_hf.py does",
    "test_bench.py": "what it counts does not depend on the machine, and what it measures is not tested",
    "test_book_claims.py": "tests sentences by numbers that hold by far",
    "test_book_numbers.py": "tests sentences by numbers that hold by far",
    "test_book_numbers_40_50.py": "tests sentences by numbers that hold by far",
    "test_chat_template.py": "renders, and computes nothing",
    "test_chat_training.py": "tests what is read and in which order; the steps are tested in test_step.py",
    "test_common.py": "its sums are of two numbers",
    "test_compare.py": "the models are compared in test_parity.py",
    "test_conversation.py": "renders, and computes nothing",
    "test_crash.py": "tests files",
    "test_exercises.py": "repeats answers for paper, which hold by far",
    "test_flops.py": "counts, and computes nothing",
    "test_gpu.py": "needs a CUDA device",
    "test_how_to.py": "tests that commands run",
    "test_journey.py": "looks at which lines run",
    "test_loss_eval.py": "its model is a table of five numbers",
    "test_muon_format.py": "plays both kinds of machine itself",
    "test_quickstart.py": "plays both kinds of machine itself",
    "test_search_plans.py": "its trials are made up",
    "test_sample_script.py": "tests the program; what it writes is tested in test_engine.py",
    "test_side_by_side.py": "tests programs that meet",
    "test_system.py": "tests the operating system",
    "learning/test_arrival.py": "looks at what an import does",
    "learning/test_grading.py": "judges as test_judge.py does",
    "learning/test_learn_command.py": "judges as test_judge.py does",
    "learning/test_progress.py": "judges as test_judge.py does",
    "learning/test_scripted_learner.py": "judges as test_judge.py does",
    "learning/test_second_round.py": "judges as test_judge.py does, and compares in fp32 on one thread",
}


def imported(tree: ast.Module) -> set[str]:
    """The modules that a file names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_marked(tree: ast.Module) -> bool:
    """Whether the whole file or one of its tests has the marker."""
    marks = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "numerics"]
    return any(ast.unparse(mark) == "pytest.mark.numerics" for mark in marks)


FILES = {
    path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in [*FOLDER.glob("test_*.py"), *FOLDER.glob("learning/test_*.py")]
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_computes_is_run_on_the_least_machine_or_says_why_not(name: str) -> None:
    computes, marked = bool(imported(FILES[name]) & COMPUTE), is_marked(FILES[name])
    assert marked or not computes or name in ONCE, "mark it pytest.mark.numerics, or say in ONCE why not"
    assert not (marked and name in ONCE), "it is marked, and ONCE says that it need not be"


def test_only_files_that_are_there_are_excused() -> None:
    assert not ONCE.keys() - FILES.keys()


def test_every_module_that_computes_is_there() -> None:
    for name in COMPUTE:
        assert (FOLDER.parent / (name.replace(".", "/") + ".py")).is_file(), name


def test_make_test_runs_them_as_both_machines() -> None:
    makefile = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test: .*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe
    runs = [line for line in recipe[1].splitlines() if "$(PYTEST)" in line]
    assert [("NANOCHAT_MACHINE=least" in run, "-m numerics" in run) for run in runs] == [
        (False, False),
        (True, True),
    ]


def test_the_least_machine_is_played_in_tests_too(tmp_path: Path) -> None:
    """A test file may import PyTorch first: what is given up must be given up before."""
    test = tmp_path / "test_played.py"
    test.write_text(
        "import torch\nfrom nanochat.machine import this_machine\n\n\ndef test_it():\n"
        "    here = this_machine(torch.device('cpu'))\n"
        "    assert (here.played, here.bfloat16, here.threads) == ('least', False, 1)\n"
        "    assert here.vector in ('AVX2', 'DEFAULT')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(test)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    done = subprocess.run(
        command,
        cwd=FOLDER.parent,
        env=environment | {"NANOCHAT_MACHINE": "least"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The two guides that change the book, followed on a copy of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT, PYTHON

TRAINING = PROJECT / ".venv" / "bin" / "python"
GUIDES = PROJECT / "lit" / "how-to"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All that tangling needs, as an archive of the project would have it."""
    root = tmp_path / "clone"
    for folder in ("lit", "nanochat", "scripts", "skeleton", "tools"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("entangled.toml", "pyproject.toml", "tangled.sha256"):
        shutil.copy(PROJECT / name, root / name)
    (root / ".venv").symlink_to(PROJECT / ".venv")
    return root


def tangle(root: Path) -> str:
    done = subprocess.run(
        [PYTHON, "-m", "tools", "tangle"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply(root: Path, diff: str) -> None:
    """Make the change that a guide shows, where its chapter has the old lines, once."""
    head, *lines = diff.rstrip("\n").split("\n")
    path = root / head.removeprefix("diff ")
    old = "\n".join(line[1:] for line in lines if line[0] in " -")
    new = "\n".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} has not this once:\n{old}"
    path.write_text(text.replace(old, new))


def test_change_the_architecture(copy: Path, tmp_path: Path) -> None:
    guide = (GUIDES / "change-the-architecture.md").read_text()
    diffs = re.findall(r"^```diff\n(.*?)^```$", guide, re.M | re.S)
    assert len(diffs) == 2
    for diff in diffs:
        apply(copy, diff)
    assert "wrote nanochat/normans_gpt.py" in tangle(copy)
    program = """
import torch
from nanochat.normans_gpt import GPT, GPTConfig
model = GPT(GPTConfig(sequence_len=8, vocab_size=16, n_layer=2, n_head=2, n_kv_head=2, n_embd=8))
model.init_weights()
optimizers = model.setup_optimizers()
before = {name: p.detach().clone() for name, p in model.named_parameters()}
for _ in range(3):
    model(torch.arange(8)[None], torch.arange(8)[None]).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
for name, parameter in model.named_parameters():
    assert not torch.equal(parameter, before[name]), name
print(sum("c_gate" in name for name in before), model.estimate_flops())
"""
    done = subprocess.run([TRAINING, "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights = 2 * (4 * 8 * 8 + 3 * 4 * 8 * 8) + 16 * 8  # blocks with three matrices in the MLP, and the head
    assert done.stdout.split() == ["2", str(6 * weights + 12 * 2 * 8 * 8)]


def test_write_a_chapter(copy: Path) -> None:
    (chapter,) = re.findall(
        r"^~~~markdown\n(.*?)^~~~$", (GUIDES / "write-a-chapter.md").read_text(), re.M | re.S
    )
    (copy / "lit" / "89-counting.md").write_text(chapter)
    assert "wrote nanochat/counting.py" in tangle(copy)
    for command in (["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"]):
        done = subprocess.run(
            [TRAINING, *command, "nanochat/counting.py"], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    program = (
        "from torch import nn; from nanochat.counting import *; print(count_parameters(nn.Linear(3, 2)))"
    )
    done = subprocess.run([TRAINING, "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    assert done.stdout == "8\n", done.stderr


def test_the_change_of_the_tutorial(copy: Path) -> None:
    page = (PROJECT / "lit" / "02-five-minutes.md").read_text()
    match = re.search(
        r"Open\s+`(\S+)` in an editor, find\s+`(\S+)` in the code of\s+`(\S+)`, and\s+remove it", page
    )
    assert match
    path, word, fragment = copy / match[1], match[2], match[3].lower().replace(".", "-")
    head, body = path.read_text().split(f"#{fragment} ")
    assert body.split("\n```\n")[0].count(word) == 1
    path.write_text(f"{head}#{fragment} {body.replace(word, '', 1)}")
    assert "wrote nanochat/normans_gpt.py" in tangle(copy)
    assert word not in (copy / "nanochat" / "normans_gpt.py").read_text()

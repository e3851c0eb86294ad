"""Chapter 90 names every fragment that a token passes from its id to the loss and back, and no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from nanochat import loss, normans_gpt, provenance

CHAPTER = Path(__file__).resolve().parents[1] / "lit/90-one-tokens-journey.md"
FILES = {normans_gpt.__file__: "nanochat/normans_gpt.py", loss.__file__: "nanochat/loss.py"}


def lines_passed() -> set[tuple[str, int]]:
    """Which lines of the model run in one training step of the quick script's model, a little smaller."""
    torch.manual_seed(0)
    shape = normans_gpt.GPTConfig(sequence_len=16, vocab_size=64, n_layer=4, n_head=2, n_kv_head=2, n_embd=32)
    model = normans_gpt.GPT(shape)
    model.init_weights()
    idx = torch.randint(64, (1, 16))
    passed: set[tuple[str, int]] = set()

    def follow(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            passed.add((FILES[frame.f_code.co_filename], frame.f_lineno))
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        model(idx, idx.roll(-1, 1)).backward()
    finally:
        sys.settrace(before)
    return passed


def fragments_passed() -> set[str]:
    book, passed = provenance.read_book(), lines_passed()
    places = {name: provenance.places(book, provenance.ROOT / name, provenance.ROOT) for name, _ in passed}
    return {places[name][line].fragment for name, line in passed if line in places[name]}


def named_in_the_chapter() -> set[str]:
    """Links whose text is a fragment's name, which is written as code nowhere else."""
    book = "\n".join(path.read_text() for path in CHAPTER.parent.glob("*.md"))
    fragments = set(re.findall(r"^```python #([\w.-]+)", book, re.M))
    return set(re.findall(r"\[([\w.-]+)\]\([^)]*\.md", CHAPTER.read_text())) & fragments


def test_the_journey_leaves_out_no_fragment_and_invents_none() -> None:
    passed = fragments_passed()
    assert len(passed) > 10
    assert named_in_the_chapter() == passed


def test_the_journeys_numbers() -> None:
    import math

    text = " ".join(CHAPTER.read_text().split())
    assert f"{math.log(4096):.3f}" == "8.318"
    assert "$\\ln 4096 = 8.318$" in text
    assert "$\\ln 2 = 0.693$" in text
    slowest = 7 * 10000 ** (-126 / 128)  # radians that pair 63 of 64 turns at position 7
    assert slowest < 1e-3
    assert "less than a thousandth of a radian" in text
    assert 1 < 7 / (2 * math.pi) < 1.2  # the fastest pair: a little more than once around

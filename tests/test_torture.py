"""A training killed again and again ends as one that was not; `make torture` does it a hundred times."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.records import read_record
from tests.tiny_run import own_base
from tests.torture import torture

KILLS = 4


@pytest.mark.slow
def test_some_kills(tmp_path: Path) -> None:
    with own_base(tmp_path):
        count = torture(tmp_path, KILLS, steps=30)
    assert count.problems == []
    assert count.kills == KILLS
    assert count.runs == count.identical >= 1
    assert count.damaged == 0


def test_the_record_lost_nothing() -> None:
    record = read_record(Path("results/torture-cpu.json"), ["kills", "runs"], "run make torture")
    assert record["kills"] >= 100
    assert record["runs"] == record["identical"] >= 10
    assert (record["damaged"], record["problems"]) == (0, [])
    assert record["in_a_save"] > 0, "no kill fell into a save"

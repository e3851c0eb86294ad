"""A training killed again and again ends as one that was not; `make torture` does it a hundred times."""

from __future__ import annotations

from pathlib import Path

import pytest

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

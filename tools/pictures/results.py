"""Recorded results, for pictures that quote them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "results"


@functools.cache
def record(name: str) -> dict[str, Any]:
    """results/NAME.json."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))

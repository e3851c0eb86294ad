"""For all tests: failures name the chapter; what needs a GPU or the other environment steps aside."""

from __future__ import annotations

import signal
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest

# The tests of the book's tools run in .venv-book, where Entangled is.
collect_ignore = [] if find_spec("entangled") else ["book"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; `make gpu` runs these")
    # A shell starts a job in the background with Ctrl-C ignored, and children inherit that; tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m gpu`, import only the files that have such tests: the machine may lack what others need."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py":
        return None
    return "pytest.mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failed test where in the book the frames of its traceback were written."""
    report = yield
    if report.failed and call.excinfo:
        from nanochat.provenance import explain

        try:
            lines = explain(call.excinfo.value)
        except Exception as error:  # a broken chapter must not hide the failure it explains
            lines = [f"(not available: {error!r})"]
        if lines:
            report.sections.append(("in the book", "\n".join(lines)))
    return report

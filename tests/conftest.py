"""For all tests: failures name the chapter; what needs a GPU or the other environment steps aside."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import nanochat  # noqa: F401  # before PyTorch, which is how a machine plays a lesser one
from tests import slowest

# The tests of the book's tools run in .venv-book, where Entangled is.
collect_ignore = [] if find_spec("entangled") else ["book"]

MARKERS = (
    "gpu: needs a CUDA device; `make gpu` runs these",
    "numerics: what the machine's kernels, formats and threads decide; `make test` runs these twice, once as "
    "the machine is and once with NANOCHAT_MACHINE=least",
)

# A process of a test that would import PyTorch is forked from a server that has done so, and nothing more.
SERVER_HAS = ["torch", "nanochat.checkpoint_manager", "nanochat.loss_eval"]


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    # A shell starts a job in the background with Ctrl-C ignored, and children inherit that; tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or it is ignored under nohup
    if find_spec("torch"):
        multiprocessing.set_forkserver_preload(SERVER_HAS)
    # Tests of several workers share the cores: each has a thread, and so has what it starts.
    if os.environ.get("PYTEST_XDIST_WORKER"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    slowest.register(config)


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: the cores that are ours, which in a container are fewer than the machine has."""
    from nanochat.machine import own_cores

    return own_cores()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m gpu` and `-m numerics`, import only files with such tests: not all need be here."""
    marker = config.option.markexpr
    if marker not in ("gpu", "numerics") or collection_path.suffix != ".py":
        return None
    return f"pytest.mark.{marker}" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _own_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the machine's threads decide runs on all of them, also in one of several workers."""
    if not request.node.get_closest_marker("numerics"):
        yield
        return
    import torch

    from nanochat.machine import own_cores

    before = torch.get_num_threads()
    torch.set_num_threads(own_cores())
    yield
    torch.set_num_threads(before)


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

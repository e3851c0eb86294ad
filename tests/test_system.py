"""The one door to what not every operating system has: with all of it there, and with all of it gone."""

from __future__ import annotations

import ast
import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import machine, system
from nanochat.learning.court import Judge
from tests.tiny_run import flags, own_base, tiny_config

ROOT = Path(__file__).parent.parent
# What Windows or macOS lack. (`mypy --platform win32 nanochat scripts` complains of system.py alone.)
FOREIGN = {
    *("killpg", "SIGKILL", "fork", "setsid", "getpgid", "sched_getaffinity", "getloadavg", "sysconf"),
    *("mallopt", "malloc_trim", "setrlimit", "getrusage", "getuid", "geteuid", "chown", "mkfifo", "sync"),
    *("SIGALRM", "SIGHUP", "SIGUSR1", "setitimer", "alarm", "pthread_kill", "openpty", "wait3", "wait4"),
}
FOREIGN_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}


def foreign(path: Path) -> list[str]:
    """What a file uses that not every system has, each with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr] if node.attr in FOREIGN else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in FOREIGN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            wanted = [node.module, *(alias.name for alias in node.names)]
            names = [name for name in wanted if name in FOREIGN | FOREIGN_MODULES]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if node.value.startswith(("/proc", "/sys/", "/dev/")) else []
        found += [f"{path.name}:{getattr(node, 'lineno', 0)}: {name}" for name in names]
    return found


def test_no_other_module_asks() -> None:
    files = [path for folder in ("nanochat", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 40
    assert foreign(ROOT / "nanochat" / "system.py")
    assert [line for path in files if path.name != "system.py" for line in foreign(path)] == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        "import os, resource\nfrom os import fork\nos.killpg(1, 9)\nopen('/proc/self/status')\n"
        "os.replace('a', 'b')\n"
    )
    assert foreign(file) == [
        "one.py:1: resource",
        "one.py:2: fork",
        "one.py:3: killpg",
        "one.py:4: /proc/self/status",
    ]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has none of it."""
    for name in ("sched_getaffinity", "getloadavg", "sysconf", "killpg"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setitem(sys.modules, "resource", None)

    def absent(path: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    def no_library(name: str | None) -> None:
        raise TypeError("bad argument type")

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(Path, "write_text", absent)
    monkeypatch.setattr(ctypes, "CDLL", no_library)


def test_every_answer_where_there_is_none(bare: None) -> None:
    assert system.told("/proc/cpuinfo") == ""
    assert system.processor_name()
    assert system.allowed_cores() == os.cpu_count()
    assert system.granted_cores() == math.inf
    assert system.load_average() == []
    assert system.memory_limits() == []
    assert system.process_bytes() == system.peak_process_bytes() == 0
    for nothing in (system.forget_peak, system.keep_freed_memory, system.return_freed_memory):
        nothing()
    system.limit_memory(1)  # would end this process if it had an effect
    assert machine.own_cores() >= 1
    assert machine.own_memory() >= 0


def test_every_answer_of_this_system() -> None:
    assert 1 <= system.allowed_cores() <= (os.cpu_count() or 1)
    assert len(system.load_average()) == 3
    assert system.memory_limits()
    if sys.platform == "linux":
        assert 0 < system.process_bytes() <= system.peak_process_bytes()


def test_a_peak_without_linux_is_getrusages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "told", lambda path: "")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak <= system.peak_process_bytes() < 2 * peak
    monkeypatch.setattr(sys, "platform", "freebsd")
    assert 1024 * peak <= system.peak_process_bytes() < 2048 * peak


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("groups", [True, False])
def test_a_process_is_ended_with_its_children(groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        killpg = os.killpg
        if not groups:
            monkeypatch.delattr(os, "killpg")
        system.end_with_children(parent)
        assert parent.returncode == -signal.SIGKILL
        if not groups:
            assert is_running(child), "only the process itself can be ended here"
            killpg(parent.pid, signal.SIGKILL)
        while is_running(child):  # an orphan's end is known when whoever has adopted it has asked
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_limit_of_memory_is_a_memory_error() -> None:
    program = (
        "from nanochat import system\nsystem.limit_memory(2**28)\n"
        "try: bytearray(2**29)\nexcept MemoryError: print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "refused\n"


def test_the_judge_needs_no_groups_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg")
    with Judge() as court:
        (verdict,) = court.judge(ROOT / "nanochat" / "normans_gpt.py", ["norm"])
    assert verdict.status == "passed"


# Everything is taken away before anything of ours is imported.
BARE = """
import builtins, io, os, sys

for name in ("sched_getaffinity", "getloadavg", "sysconf", "killpg", "fork"):
    delattr(os, name)
sys.modules["resource"] = sys.modules["fcntl"] = None
real = io.open

def without_linux(file, *arguments, **named):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", file)
    return real(file, *arguments, **named)

builtins.open = io.open = without_linux

from nanochat.common import run_program
from scripts import base_train

sys.argv = ["base_train", *sys.argv[1:]]
run_program(base_train.main)
"""


def test_a_model_trains_where_all_of_it_is_missing(tmp_path: Path) -> None:
    with own_base(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", BARE, *flags(tiny_config(num_iterations=2))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Peak memory usage: 0.00MiB" in done.stdout
    assert "no bfloat16 products, 0.0 GB" in done.stdout or "bfloat16 products, 0.0 GB" in done.stdout

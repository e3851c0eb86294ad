"""What not every operating system has, each with what is done without it. No other module asks for these."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import math
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn


def told(path: str) -> str:
    """What a file below /proc or /sys says; empty where there is none, or it may not be read."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def processor_name() -> str:
    """What the processor is called; outside of Linux perhaps only its kind, such as arm."""
    lines = [line.partition(": ")[2] for line in told("/proc/cpuinfo").splitlines() if "model name" in line]
    return lines[0] if lines else platform.processor() or platform.machine()


def allowed_cores() -> int:
    """The cores that this process may run on; all there are, where the system does not say which."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def granted_cores() -> float:
    """The cores' worth of time that a container's quota grants; infinite where there is none."""
    with suppress(ValueError):  # control groups, version 2
        quota, period = told("/sys/fs/cgroup/cpu.max").split()
        return int(quota) / int(period)  # quota is "max" where there is none: a ValueError
    with suppress(ValueError):  # version 1
        quota, period = (told(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf


def load_average() -> list[float]:
    """Processes that wanted to run, on average over 1, 5 and 15 minutes; empty on Windows."""
    with suppress(AttributeError, OSError):
        return list(os.getloadavg())
    return []


def memory_limits() -> list[int]:
    """Bytes that the machine has, and that a container may use, as far as the system tells."""
    limits = []
    with suppress(AttributeError, OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(ValueError):  # "max" is no number
            limits.append(int(told(f"/sys/fs/cgroup/{name}")))
    return limits


def process_bytes(entry: str = "VmRSS") -> int:
    """Memory of this process: VmRSS held now, VmHWM at its peak; 0 outside of Linux."""
    for line in told("/proc/self/status").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_process_bytes() -> int:
    """The most memory this process has held; 0 on Windows."""
    if peak := process_bytes("VmHWM"):
        return peak
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let the peak begin at what is held now; outside of Linux it stays that since the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def keep_freed_memory() -> None:
    """Let glibc keep what is freed and use it again; other C libraries stay as they are."""
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the top of the heap stays


def return_freed_memory() -> None:
    """Let glibc give back what is free; other C libraries decide alone."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


CLOCK = 12.0  # seconds by the clock that a busy machine may need for one on the processor


def limit_time(seconds: float, notes: IO[str]) -> None:
    """End this process after so many seconds on the processor, or CLOCK times as many by the clock.

    The Python stack is written to notes before, and the clock alone is watched on Windows.
    """
    faulthandler.dump_traceback_later(CLOCK * seconds, exit=True, file=notes)
    if hasattr(signal, "setitimer"):
        faulthandler.register(signal.SIGPROF, file=notes, all_threads=False, chain=True)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def end_time_limit() -> None:
    """Take back what limit_time has set."""
    faulthandler.cancel_dump_traceback_later()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, 0)


def was_out_of_time(code: int | None, notes: str) -> bool:
    """Whether limit_time has ended a process, by its exit status (None: not ended) and what it noted."""
    stopped = -signal.SIGPROF if hasattr(signal, "SIGPROF") else None
    return code is None or code == stopped or "Timeout (" in notes


def lines_noted(notes: str, path: Path) -> list[int]:
    """The lines of a file that stand in a Python stack, the innermost first."""
    frames = re.findall(r'File "(.*)", line (\d+) in ', notes)
    return [int(line) for file, line in frames if file == str(path)]


def limit_file_size(most: int) -> None:
    """Let this process write files of at most so many bytes each; without effect on Windows."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def limit_memory(most: int) -> None:
    """Let this process have at most so many bytes of data; without effect on Windows and macOS.

    So an endless list ends in a MemoryError of its own and not in a machine that swaps.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def run_in_a_fork(work: Callable[[], NoReturn]) -> int | None:
    """Do something that ends by itself in a copy of this process, and end all that it has started with it.

    Returns its exit code; None where nothing was done, which is anywhere but on Linux: there a copy is not
    safe. A process with threads must not be copied either.
    """
    if sys.platform != "linux":
        return None
    child = os.fork()
    if not child:
        os.setsid()
        work()
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def end_with_children(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process that leads its session, and all it has started; on Windows the process alone."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def flush_file(descriptor: int) -> None:
    """Have an open file's contents on the disk before this returns."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system there has it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on the disk before this returns; on Windows, whenever it likes."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


GONE = -1


def claim(path: Path) -> int | None:
    """Lock a file or folder until `give_up`, or until this process ends, however it does.

    GONE if the name leads there no longer; None where there are no such locks. Raises BlockingIOError if
    another has locked it.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except ImportError:
        return None
    except FileNotFoundError:
        return GONE
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise
    except FileNotFoundError:
        pass
    except OSError:
        os.close(descriptor)
        return None
    os.close(descriptor)
    return GONE


def give_up(claim: int | None) -> None:
    """End a lock; nothing locked is fine."""
    if claim is not None and claim != GONE:
        os.close(claim)

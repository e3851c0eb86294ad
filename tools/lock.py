"""One tangle at a time: `make tangle` beside `make watch`, or in two terminals.

The lock is on the project's folder itself. So there is no file that could be left behind, and none to write
where nothing may be written; and the system ends the lock with the process that holds it, however that ends.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WAITING = "another command of this project reads or writes the tangled files; waiting for it"


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the project's lock; wait for it, and say so, while another process has it.

    Where the system or the file system has no locks, the work is done without. What two tangles at once can
    do then is to leave the older text, or a record that lacks a line: the next tangle writes, or refuses.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl  # which Windows lacks

    folder = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(WAITING, file=sys.stderr, flush=True)
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)

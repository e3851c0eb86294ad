"""Ask git what it knows.

The tools only read from it, so that whatever it keeps stays where a person can find it.
"""

import subprocess
from pathlib import Path


class Git:
    """The repository around the project, if there is one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def ask(self, *arguments: str) -> str | None:
        """What git answers, or None if it fails or is not installed."""
        try:
            done = subprocess.run(
                ["git", "-C", str(self.root), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def has(self, path: str) -> bool:
        """Whether the file, exactly as it now lies on the disk, can be had back from git under this path.

        That is: HEAD, the index, a stash or any commit of any branch has it.
        """
        blob = self.ask("hash-object", "--", path)
        if not blob:
            return False
        if self.ask("rev-parse", "--verify", "-q", f"HEAD:./{path}") == blob:
            return True
        if self.ask("rev-parse", "--verify", "-q", f":./{path}") == blob:
            return True
        return bool(self.ask("log", "--all", "-m", "--format=%H", "-1", f"--find-object={blob}", "--", path))

    def has_committed(self, path: str) -> bool:
        """Whether the file is as the last commit has it."""
        blob = self.ask("hash-object", "--", path)
        return blob is not None and self.ask("rev-parse", "--verify", "-q", f"HEAD:./{path}") == blob

    def ignores(self, path: str) -> bool:
        """Whether git has been told to look away from this path."""
        return self.ask("check-ignore", "-q", "--", path) is not None

    def private(self, name: str) -> Path | None:
        """A file inside git's own folder (the worktree's own, if it is one of several)."""
        answer = self.ask("rev-parse", "--git-path", name)
        return self.root / answer if answer else None

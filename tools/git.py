"""Ask git what it knows.

The tools only read from it, so that whatever it keeps stays where a person can find it.
"""

import os
import subprocess
from pathlib import Path


class Git:
    """The repository around the project, if there is one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        """What git does and says, in English; None if there is no git."""
        try:
            return subprocess.run(
                ["git", "-C", str(self.root), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError:
            return None

    def ask(self, *arguments: str) -> str | None:
        """What git answers, or None if it fails or is not installed."""
        done = self.run(*arguments)
        return done.stdout.strip() if done is not None and done.returncode == 0 else None

    def answers(self) -> bool:
        """Whether the project lies in a repository that git is willing to read."""
        return self.ask("rev-parse", "--git-dir") is not None

    def why_not(self) -> str:
        """Why git is no help with a file that it does not have: the end of a sentence."""
        done = self.run("rev-parse", "--git-dir")
        if done is None:
            return "there is no git to ask for a copy"
        if done.returncode:
            reason = done.stderr.strip().split("\n")[0].removeprefix("fatal: ")
            return f"git cannot be asked for a copy ({reason})"
        return "git has no copy of it"

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

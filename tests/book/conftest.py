"""A small book in a repository of its own, to break."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.book.machine import program
from tools import check as checks
from tools.__main__ import main

PROJECT = Path(__file__).resolve().parents[2]

FIRST = '''# First

```python #alpha file=nanochat/alpha.py
"""Alpha."""


<<beta>>
```

Some prose.

```python #beta
def beta(x: int) -> int:
    """Beta.

    Over several lines.
    """
    <<gamma>>
    return x
```

```python #gamma
if x:

    x += 1
```
'''

SECOND = """# Second

```bash #run-it file=scripts/run.sh
#!/usr/bin/env bash
set -eu
<<say-it>>
```

```bash #say-it
echo "it"
```

```python
shown = "only"
```
"""

ALPHA = '''"""Alpha."""


def beta(x: int) -> int:
    """Beta.

    Over several lines.
    """
    if x:

        x += 1
    return x
'''


@dataclass
class Answer:
    """What a command did."""

    status: int
    out: str
    err: str


@dataclass
class Project:
    """The small project, and commands run on it."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    def path(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> str:
        return self.path(name).read_bytes().decode()

    def write(self, name: str, text: str | bytes) -> None:
        place = self.path(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)

    def change(self, name: str, old: str, new: str) -> None:
        text = self.read(name)
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
        self.write(name, text.replace(old, new))

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", self.root, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", "state", "--allow-empty")

    def run(self, command: str) -> Answer:
        """A command of the tools, in this process. `check` leaves out ruff and mypy."""
        self.capsys.readouterr()
        status = main([command], self.root)
        out, err = self.capsys.readouterr()
        return Answer(status, out, err)

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """Every byte and mode outside of .git."""
        return {
            str(path.relative_to(self.root)): (
                path.lstat().st_mode,
                b"" if path.is_dir() else path.read_bytes(),
            )
            for path in sorted(self.root.rglob("*"))
            if ".git" not in path.relative_to(self.root).parts
        }


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small project, tangled and committed. Without git its tests are skipped."""
    program("git")
    root = tmp_path_factory.mktemp("template")
    shutil.copy(PROJECT / "entangled.toml", root)
    (root / ".gitignore").write_text("__pycache__/\n/.venv\n/.tangle/\n*.ignored\n")
    shutil.copy(PROJECT / ".gitattributes", root)
    (root / "lit").mkdir()
    (root / "lit/10-first.md").write_text(FIRST)
    (root / "lit/20-second.md").write_text(SECOND)
    subprocess.run(["git", "init", "-q", "--template=", root], check=True)
    for key, value in (("user.name", "A"), ("user.email", "a@example.org"), ("commit.gpgsign", "false")):
        subprocess.run(["git", "-C", root, "config", key, value], check=True)
    assert main(["tangle"], root) == 0
    subprocess.run(["git", "-C", root, "add", "-A"], check=True)
    subprocess.run(["git", "-C", root, "commit", "-qm", "first"], check=True)
    return root


@pytest.fixture
def project(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A fresh copy of the small project. `check` runs without ruff and mypy; other tests have them."""
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.setattr(checks, "quality", lambda root, outputs: [])
    return Project(root, capsys)


@pytest.fixture
def standalone(project: Project) -> Project:
    """The small project with the tools, the Makefile and the provenance module, as a user has them."""
    shutil.copytree(PROJECT / "tools", project.root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "requirements.txt", "requirements-book.txt"):
        shutil.copy(PROJECT / name, project.root)
    chapter = next((PROJECT / "lit").glob("69-*.md"))
    shutil.copy(chapter, project.root / "lit")
    assert project.run("tangle").status == 0
    project.commit()
    return project


def run(root: Path, *command: str, **environment: str) -> Answer:
    """A command in a process of its own, with nothing of ours in its environment but what is named."""
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(root), **environment},
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


PYTHON = sys.executable

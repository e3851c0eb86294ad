"""Finding a Python and making the environments, whatever the machine looks like."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.book.conftest import PROJECT, PYTHON, Answer, Project, run
from tools import environment

SCRIPT = str(PROJECT / "tools/environment.py")


def fake_python(place: Path, version: str, works: bool = True) -> Path:
    """A program that answers like a Python of this version, or fails like a shim that is not selected."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(
        f"#!/bin/sh\necho {version}\n" if works else "#!/bin/sh\necho 'not found' >&2\nexit 127\n"
    )
    place.chmod(0o755)
    return place


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Python in the usual places."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.delenv(name, raising=False)
    places = [p for p in environment.HIDING_PLACES if p.startswith(("~", "$"))]
    monkeypatch.setattr(environment, "HIDING_PLACES", places)
    return tmp_path


def test_none(bare: Path) -> None:
    assert environment.find_python((3, 13)) is None
    fake_python(bare / "bin/python3", "3.11")
    assert environment.find_python((3, 13)) is None


@pytest.mark.parametrize(
    "place",
    [
        "bin/python3.13",
        "bin/python3.14",
        ".pyenv/versions/3.13.1/bin/python3",
        ".local/share/uv/python/cpython-3.14.0-linux/bin/python3",
        ".local/bin/python3.13",
    ],
)
def test_hidden_ones_are_found(bare: Path, place: str) -> None:
    fake_python(bare / "bin/python3", "3.11")
    fake_python(bare / "bin/python3.15", "3.15", works=False)
    expected = fake_python(bare / place, "3.14" if "14" in place else "3.13")
    assert environment.find_python((3, 13)) == str(expected)


def test_a_shim_is_not_believed(bare: Path) -> None:
    fake_python(bare / "bin/python3.13", "3.13", works=False)
    assert environment.find_python((3, 13)) is None
    real = fake_python(bare / ".pyenv/versions/3.13.1/bin/python3", "3.13")
    assert environment.find_python((3, 13)) == str(real)


def test_the_oldest_that_is_new_enough(bare: Path) -> None:
    fake_python(bare / "bin/python3.15", "3.15")
    oldest = fake_python(bare / ".pyenv/versions/3.14.0/bin/python3", "3.14")
    assert environment.find_python((3, 13)) == str(oldest)
    usual = fake_python(bare / "bin/python3", "3.16")
    assert environment.find_python((3, 13)) == str(usual)


def test_folders_named_by_the_environment(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fake_python(bare / "pythons/versions/3.13.1/bin/python3", "3.13")
    monkeypatch.setenv("PYENV_ROOT", str(bare / "pythons"))
    assert environment.find_python((3, 13)) == str(expected)


def test_a_wanted_one_is_taken_or_refused(bare: Path) -> None:
    fake_python(bare / "bin/python3.13", "3.13")
    assert environment.find_python((3, 13), str(fake_python(bare / "old", "3.12"))) is None
    wanted = str(fake_python(bare / "new", "3.14"))
    assert environment.find_python((3, 13), wanted) == wanted


# A Python and its pip, as far as environment.py asks anything of them, in a hundredth of the time.
PRETENDER = """#!/bin/sh
case "$*" in
*"-m venv"*)
    for folder; do :; done
    case "$*" in *--clear*) rm -rf "$folder" ;; esac
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
*"-m pip"*)
    for requirements; do :; done
    echo "  Downloading torch-2.13.0-cp313-linux.whl (190.1 MB)"
    echo "  Downloading small-1.0-py3.whl (3.1 kB)"
    if grep -q not-here "$requirements"; then echo "no such package: not-here" >&2; exit 1; fi ;;
*) echo 3.13 ;;
esac
"""


def make(folder: Path, requirements: Path, **variables: str) -> Answer:
    return run(folder.parent, PYTHON, SCRIPT, str(folder), str(requirements), "3.13", **variables)


def test_no_python_is_said_clearly(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("")
    answer = make(tmp_path / ".venv-book", requirements, PYTHON_BOOK="/nowhere/python")
    assert answer.status == environment.NO_PYTHON
    assert "needs Python 3.13 or newer" in answer.err
    assert "PYTHON_BOOK=/nowhere/python is none" in answer.err
    assert "uv python install 3.13" in answer.err
    assert not (tmp_path / ".venv-book").exists()


def test_made_once_and_after_an_interruption(tmp_path: Path) -> None:
    """What an interrupted attempt leaves is replaced, what is ready left alone, what changed installed."""
    folder, requirements = tmp_path / ".venv", tmp_path / "requirements.txt"
    pretender = fake_python(tmp_path / "pretender", "")
    pretender.write_text(PRETENDER)
    requirements.write_text("# nothing\n")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text("half")
    (folder / "leftover").write_text("x")
    first = make(folder, requirements, PYTHON=str(pretender))
    assert first.status == 0, first.err
    assert "making an environment" in first.out
    assert "  torch 2.13.0 (190.1 MB)\n" in first.out
    assert "small" not in first.out
    assert not (folder / "leftover").exists()

    (folder / "kept").write_text("x")
    assert make(folder, requirements, PYTHON="/nowhere") == Answer(0, "", "")
    requirements.write_text("# nothing else\n")
    third = make(folder, requirements, PYTHON="/nowhere")
    assert third.status == 0, third.err
    assert "making an environment" not in third.out
    assert (folder / "kept").exists()

    requirements.write_text("not-here\n")
    for _ in range(2):
        fourth = make(folder, requirements)
        assert fourth.status == 1
        assert fourth.err.startswith("  Downloading torch")
        assert "no such package: not-here\nerror: pip could not install" in fourth.err
        assert not environment.is_ready(str(folder), str(requirements))


def test_a_wrong_call(tmp_path: Path) -> None:
    assert run(tmp_path, PYTHON, SCRIPT, ".venv").status == 2


def test_an_unknown_target_is_told_where_the_list_is(standalone: Project) -> None:
    answer = run(standalone.root, "make", "trian")
    assert answer.status != 0
    assert "error: there is no target trian; make alone lists what there is" in answer.err


def test_make_lists_its_targets(standalone: Project) -> None:
    answer = run(standalone.root, "make")
    assert answer.status == 0
    listed = {line.split()[1] for line in answer.out.splitlines()}
    assert {
        "train",
        "test",
        "tangle",
        "check",
        "watch",
        "where",
        "bench",
        "gpu",
        "serve",
        "site",
        "clean",
    } <= listed


@pytest.mark.parametrize("target", ["tangle-if-possible", "check-if-possible"])
def test_without_a_python_for_the_book(standalone: Project, target: str) -> None:
    """Training and testing go on and say what was skipped; but not in CI, and `make tangle` never does."""
    for name in ("bin/python", "python"):
        fake_python(standalone.path(".venv") / name, "3.11")  # ruff and mypy, all content
    nowhere = {"PYTHON_BOOK": "/nowhere/python"}
    answer = run(standalone.root, "make", target, **nowhere)
    assert answer.status == 0, answer.err
    assert "needs Python 3.13 or newer" in answer.err
    assert "skipped: " in answer.err
    answer = run(standalone.root, "make", target, CI="true", **nowhere)
    assert answer.status != 0
    assert "skipped: " not in answer.err
    assert run(standalone.root, "make", "tangle", **nowhere).status != 0


def test_clean_keeps_what_matters(standalone: Project) -> None:
    for name in (
        ".venv/bin/python",
        "site/index.html",
        "runs/model.safetensors",
        "notes.txt",
        ".mypy_cache/x",
    ):
        standalone.write(name, "x")
    assert run(standalone.root, "make", "clean").status == 0
    left = set(standalone.snapshot())
    assert {
        ".venv/bin/python",
        "runs/model.safetensors",
        "notes.txt",
        "nanochat/alpha.py",
        "lit/10-first.md",
    } <= left
    assert not {"site/index.html", ".mypy_cache/x"} & left


def test_it_runs_on_an_old_python() -> None:
    """The file must be read by whatever python3 is there. `ast` can tell for 3.8."""
    ast.parse(Path(SCRIPT).read_text(), feature_version=(3, 8))

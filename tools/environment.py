"""Make a Python environment, or see that it is there already.

    python3 tools/environment.py .venv requirements.txt 3.11
    python3 tools/environment.py .venv-book requirements-book.txt 3.13

The system's Python runs this before anything is installed: so it needs nothing but the standard library and
an old Python, finds one that is new enough, and says what to do if there is none (exit status 3).
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys

NO_PYTHON = 3  # exit status: the caller may go on without
STAMP = "installed-requirements.txt"  # a copy inside the environment of what it was made from
NEWEST = 20  # 3.20: the highest minor version that is looked for

# Where Pythons hide that are not on the PATH: pyenv, uv, mise, asdf, Homebrew, python.org, conda, and others.
HIDING_PLACES = [
    "${PYENV_ROOT:-~/.pyenv}/versions/*/bin/python3",
    "${UV_PYTHON_INSTALL_DIR:-~/.local/share/uv/python}/*/bin/python3",
    "~/Library/Application Support/uv/python/*/bin/python3",
    "~/.local/share/mise/installs/python/*/bin/python3",
    "~/.asdf/installs/python/*/bin/python3",
    "~/.local/bin/python3*",
    "/usr/local/bin/python3*",
    "/opt/homebrew/bin/python3*",
    "/opt/python*/bin/python3",
    "/Library/Frameworks/Python.framework/Versions/3.*/bin/python3",
    "~/miniconda3/envs/*/bin/python3",
    "~/miniforge3/envs/*/bin/python3",
    "/usr/bin/python3*",
]

# A candidate is believed only after it has run: pyenv's shims fail for a version that is not selected,
# Debian's Python may come without venv, and for a build without the global lock, or of a coming version,
# there are few packages to install.
QUESTION = (
    "import sys, ssl, venv, ensurepip; "
    "assert sys.version_info.releaselevel == 'final' and getattr(sys, '_is_gil_enabled', lambda: True)(); "
    "print('%d.%d' % sys.version_info[:2])"
)


def version_of(python: str) -> tuple[int, int] | None:
    """The version of a Python that runs and can make environments, or None."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", QUESTION],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"(\d+)\.(\d+)\s*$", done.stdout.decode("ascii", "replace"))
    return (int(match[1]), int(match[2])) if done.returncode == 0 and match else None


def expand(pattern: str) -> list[str]:
    """The files that one of the hiding places stands for."""

    def chosen(match: re.Match[str]) -> str:
        return os.environ.get(match[1]) or match[2]

    return sorted(glob.glob(os.path.expanduser(re.sub(r"\$\{(\w+):-([^}]*)\}", chosen, pattern))))


def candidates(minimum: tuple[int, int]) -> list[str]:
    """Pythons worth trying, the likeliest first."""
    named = [f"python{minimum[0]}.{minor}" for minor in range(minimum[1], NEWEST + 1)]
    found = [shutil.which(name) for name in ["python3", *named, "python"]]
    for pattern in HIDING_PLACES:
        found += [path for path in expand(pattern) if re.search(r"/python3(\.\d+)?$", path)]
    return [path for path in found if path]


def find_python(minimum: tuple[int, int], wanted: str | None = None) -> str | None:
    """A Python of at least the given version, the oldest such: packages are made for it longest.

    The Python called `python3` is taken if it is new enough, whatever else there is.
    """
    if wanted:
        version = version_of(wanted)
        return wanted if version and version >= minimum else None
    fitting: dict[tuple[int, int], str] = {}
    for python in dict.fromkeys(candidates(minimum)):
        version = version_of(python)
        if version and version >= minimum:
            if version == minimum or python == shutil.which("python3"):
                return python
            fitting.setdefault(version, python)
    return fitting[min(fitting)] if fitting else None


def is_ready(folder: str, requirements: str) -> bool:
    """Whether the environment holds what is required. Its own copy of the list, written last, tells."""
    try:
        with open(os.path.join(folder, STAMP), "rb") as stamp, open(requirements, "rb") as wanted:
            return stamp.read() == wanted.read() and os.path.exists(python_in(folder))
    except OSError:
        return False


def python_in(folder: str) -> str:
    """The Python of an environment. It must not be resolved: the link is what makes it that environment's."""
    return os.path.join(folder, "bin", "python")


def install(folder: str, requirements: str) -> int:
    """Let pip install the requirements: a line for each package it fetches, all of its output if it fails."""
    command = [python_in(folder), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["install", "--progress-bar", "off", "-r", requirements]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    ) as pip:
        assert pip.stdout
        for raw in pip.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            said.append(line)
            match = re.match(
                r"\s*(?:Downloading|Using cached) (\S+?)-(\d[^-]*)-\S* \(([\d.]+ [kMG]B)\)", line
            )
            if match and not match[3].endswith("kB"):
                print(f"  {match[1]} {match[2]} ({match[3]})", flush=True)
            elif line.startswith("Installing collected"):
                print("  unpacking", flush=True)
    if pip.returncode:
        print("\n".join(said[-30:]), file=sys.stderr)
        print(
            f"error: pip could not install {requirements}; above are its last words. With a network and room "
            "on the disk, try the same command again: it goes on where it stopped.",
            file=sys.stderr,
        )
    return pip.returncode


def make(folder: str, requirements: str, minimum: tuple[int, int]) -> int:
    """Make the environment if needed. Exit status."""
    if is_ready(folder, requirements):
        return 0
    version = version_of(python_in(folder)) if os.path.exists(folder) else None
    if version is None or version < minimum:
        variable = "PYTHON_BOOK" if "book" in folder else "PYTHON"
        python = find_python(minimum, os.environ.get(variable))
        if python is None:
            return complain(minimum, variable)
        print(f"{folder}: making an environment with {python}", flush=True)
        # --clear, so that what an interrupted attempt has left does not stay
        if subprocess.run([python, "-m", "venv", "--clear", folder], check=False).returncode:
            print(f"error: {python} could not make the environment {folder} (see above)", file=sys.stderr)
            return 1
    print(f"{folder}: installing {requirements}", flush=True)
    status = install(folder, requirements)
    if status == 0:
        shutil.copyfile(requirements, os.path.join(folder, STAMP))
        print(f"{folder}: ready", flush=True)
    return status


def complain(minimum: tuple[int, int], variable: str) -> int:
    """Say that there is no Python that is new enough, and what to do."""
    version = f"{minimum[0]}.{minimum[1]}"
    looked = "none was found on the PATH, in the folders of pyenv and uv, or in the usual places"
    if os.environ.get(variable):
        looked = f"{variable}={os.environ[variable]} is none"
    print(
        f"error: this needs Python {version} or newer with its module venv, and {looked}.\n"
        f"Install one (uv python install {version}, or pyenv install {version}, or your system's packages "
        f"python{version} and python{version}-venv), or name it: make … {variable}=/path/to/python",
        file=sys.stderr,
    )
    return NO_PYTHON


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or not re.match(r"3\.\d+$", arguments[2]):
        print("usage: environment.py FOLDER REQUIREMENTS 3.NN", file=sys.stderr)
        return 2
    folder, requirements, minimum = arguments
    try:
        return make(folder, requirements, (3, int(minimum[2:])))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

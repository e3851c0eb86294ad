"""Records of what was measured: where, when, by which command; written whole and read with care."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.common import UserError, pick_device, write_atomically
from nanochat.machine import peak_flops, this_machine


def describe_machine(device_type: str) -> dict[str, Any]:
    """What numbers are measured on and with: this machine, versions, the code's commit if git tells it."""
    import torch

    device = pick_device(device_type)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("tiktoken", "pyarrow"):
        versions[package] = importlib.metadata.version(package)
    datasheet = peak_flops(device, torch.bfloat16) if device.type == "cuda" else (0.0, "")
    code = ""
    with suppress(OSError):  # a downloaded archive may meet a machine without git
        git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
        code = git.stdout.strip()
    return {
        **asdict(this_machine(device)),
        "versions": versions,
        "code": code,
        "datasheet_flops": datasheet[0] if datasheet[1] == "datasheet" else 0.0,
    }


def moment(seconds: float) -> str:
    """A time as `time.time` tells it, in words: 2025-11-27T18:03:00+00:00."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def command_of(module: str, config: Any) -> str:
    """The command that makes this configuration, a dataclass of flags; defaults left out."""
    words = ["python", "-m", module]
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            words.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return shlex.join(words)


FORMAT = 1


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whole or not at all. Raises UserError if the system refuses."""
    write_atomically(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path, needed: Sequence[str], advice: str) -> dict[str, Any]:
    """A record that has these keys. Raises UserError, with the advice, if there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: {advice}") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is no record ({reason}): {advice}") from None
    missing = [key for key in ("format", *needed) if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"{path} is no record of this program (it has no {missing[0]!r}): {advice}")
    if record["format"] != FORMAT:
        raise UserError(f"{path} has format {record['format']!r}, and only {FORMAT} is read: {advice}")
    return dict(record)


@contextmanager
def another_base(prefix: str) -> Iterator[Path]:
    """Let base_dir(), here and in child processes, be a new folder that is gone after the block."""
    before = os.environ.get("NANOCHAT_BASE_DIR")
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["NANOCHAT_BASE_DIR"]
            else:
                os.environ["NANOCHAT_BASE_DIR"] = before

"""A machine that loses its power: what reaches the system is noted, and each folder that may be left built.

POSIX promises that contents are on the disk after an fsync of the file, and names after an fsync of their
folder. Of what was done since, any part may be there: each name leads to any of the files it has led to since
the folder was synchronised, and contents that were not synchronised are missing, cut, zeros, or whole.
"""

from __future__ import annotations

import builtins
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nanochat import common, system

Disk = dict[str, bytes]  # name: contents, of one folder


@dataclass
class Operation:
    """One request to the system; `data` is that of a write, `target` the new name of a rename."""

    kind: str
    name: str = ""
    target: str = ""
    data: bytes = b""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name, self.target)))


@dataclass
class Recorder:
    """The operations on one folder, in order; each is carried out as well."""

    folder: Path
    operations: list[Operation] = field(default_factory=list)

    def note(self, kind: str, path: Any = "", target: Any = "", data: bytes = b"") -> None:
        name = Path(path).name if path else ""
        self.operations.append(Operation(kind, name, Path(target).name if target else "", data))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the block does through nanochat.common, nanochat.system and os."""
        real = {name: getattr(os, name) for name in ("replace", "unlink")}
        opened: dict[int, Path] = {}

        def open_file(path: Path, mode: str = "r", **options: Any) -> Any:
            file = builtins.open(path, mode, **options)  # noqa: SIM115 - closed by the caller
            if Path(path).parent != self.folder or "w" not in mode:
                return file
            opened[file.fileno()] = Path(path)
            self.note("write", path)
            operation, write = self.operations[-1], file.write

            class Writer:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *about: object) -> None:
                    file.close()

                def write(self, data: bytes) -> int:
                    operation.data += bytes(data)
                    return int(write(data))

                def __getattr__(self, name: str) -> Any:
                    return getattr(file, name)

            return Writer()

        def flush_file(descriptor: int) -> None:
            self.note("sync", opened[descriptor])

        def flush_folder(folder: Path) -> None:
            if folder == self.folder:
                self.note("sync folder")

        def replace(source: Path, target: Path) -> None:
            self.note("rename", source, target)
            real["replace"](source, target)

        def unlink(path: Path, **options: Any) -> None:
            there = os.path.lexists(path)
            real["unlink"](path, **options)
            if there and Path(path).parent == self.folder:
                self.note("remove", path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common, "open", open_file, raising=False)
            patch.setattr(system, "flush_file", flush_file)
            patch.setattr(system, "flush_folder", flush_folder)
            patch.setattr(os, "replace", replace)
            patch.setattr(os, "unlink", unlink)
            yield


def states(before: Disk, operations: list[Operation]) -> Iterator[Disk]:
    """Every folder that a power cut behind these operations may leave of a disk that held `before`."""
    contents: list[bytes] = list(before.values())
    synced = [True] * len(contents)
    live: dict[str, int] = {name: number for number, name in enumerate(before)}
    possible: dict[str, list[int | None]] = {name: [number] for name, number in live.items()}

    def lead(name: str, number: int | None) -> None:
        possible.setdefault(name, [None]).append(number)
        if number is None:
            del live[name]
        else:
            live[name] = number

    for done in operations:
        if done.kind == "write":
            contents.append(done.data)
            synced.append(False)
            lead(done.name, len(contents) - 1)
        elif done.kind == "sync":
            synced[live[done.name]] = True
        elif done.kind == "rename":
            lead(done.target, live[done.name])
            lead(done.name, None)
        elif done.kind == "remove":
            lead(done.name, None)
        else:
            possible = {name: [number] for name, number in live.items()}
    names = list(possible)
    for choice in itertools.product(*(dict.fromkeys(possible[name]) for name in names)):
        there = {name: number for name, number in zip(names, choice, strict=True) if number is not None}
        variants = [
            [contents[number]] if synced[number] else torn(contents[number]) for number in there.values()
        ]
        for texts in itertools.product(*variants):
            yield dict(zip(there, texts, strict=True))


def torn(data: bytes) -> list[bytes]:
    """What may be found of contents that were not synchronised."""
    return [data, b"", data[: len(data) // 2], bytes(len(data))]


def every_state(before: Disk, operations: list[Operation]) -> Iterator[tuple[int, Disk]]:
    """The states behind each operation, the last one first; each distinct one of a moment once."""
    for count in range(len(operations), -1, -1):
        seen = set()
        for state in states(before, operations[:count]):
            key = tuple(sorted(state.items()))
            if key not in seen:
                seen.add(key)
                yield count, state


def contents_of(folder: Path) -> Disk:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def build(folder: Path, disk: Disk) -> Path:
    """Make a folder hold exactly this."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in disk.items():
        (folder / name).write_bytes(data)
    return folder

"""What can be wrong with the book, said in one form: `file:line: what is wrong. What to do.`"""

import errno
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake and its place. Line 0 stands for the file as a whole."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class Refused(Exception):
    """The command does not go on, and it has written nothing. The problems say why."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def said_by_system(error: OSError) -> str:
    """One line for what the operating system refused, and what to do where that is known."""
    advice = ""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = " Change the permissions, or work in a copy of the project that you may write to."
    place = f": {error.filename}" if error.filename else ""
    return f"error: {error.strerror or error}{place}. Nothing more was written.{advice}"

"""Command-line flags from a frozen dataclass. Imports nothing heavy: a wrong flag is refused at once."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, TypeVar

from nanochat.common import UserError

Config = TypeVar("Config")
Value = TypeVar("Value")


REQUIRED: Any = MISSING  # in place of a default: the flag has to be given


def flag(default: Value, about: str, **metadata: Any) -> Value:
    """A dataclass field that knows its own help text; `metadata` as parse_flags reads it."""
    return dataclasses.field(default=default, metadata={"help": about, **metadata})


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _yes_or_no(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


# For each type: how a text is read, how the help shows it, how an error asks for it.
READERS: dict[type, tuple[Callable[[str], Any], str, str]] = {
    int: (int, "INT", "a whole number"),
    float: (_number, "NUMBER", "a number"),
    str: (str, "TEXT", "a text"),
    bool: (_yes_or_no, "true|false", "true or false"),
}


def _reader(name: str, kind: Any) -> tuple[Callable[[str], Any], str, tuple[str, ...]]:
    """For a field's type: a function from text to value, a word for the help, a Literal's choices."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        rest = [part for part in typing.get_args(kind) if part is not types.NoneType]
        kind = rest[0] if len(rest) == 1 else kind
    choices: tuple[str, ...] = ()
    if typing.get_origin(kind) is typing.Literal:
        choices, kind = typing.get_args(kind), str
    if kind not in READERS:
        raise TypeError(f"field {name}: a flag cannot be of type {kind}")
    read, word, wanted = READERS[kind]

    def read_or_explain(text: str) -> Any:
        try:
            return read(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"wants {wanted}, not {text!r}") from None

    return read_or_explain, word, choices


def _add_flag(parser: argparse._ActionsContainer, field: Field[Any], kind: Any) -> str:
    """Add one field to the parser, or to a group of it; return the flag's name."""
    read, word, choices = _reader(field.name, kind)
    choices = choices or tuple(field.metadata.get("choices", ()))
    flag = f"--{field.metadata.get('name', field.name)}"
    spellings = [field.metadata["short"], flag] if "short" in field.metadata else [flag]
    required = field.default is MISSING and field.default_factory is MISSING
    about = str(field.metadata.get("help", ""))
    if not required and field.default not in (None, ""):
        about += f" (default: {field.default})"
    parser.add_argument(
        *spellings,
        dest=field.name,
        type=read,
        default=argparse.SUPPRESS,
        required=required,
        choices=choices or None,
        nargs="?" if kind is bool else None,
        const=True if kind is bool else None,
        metavar="|".join(filter(None, choices)) or word,
        help=about.strip().replace("%", "%%") or None,
    )
    return flag


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Called by argparse for every mistake it finds."""
        message = message.removeprefix("argument ").replace("expected one argument", "needs a value")
        raise UserError(f"{message} (--help lists all flags)")


def _with_underscores(argument: str) -> str:
    """`--a-b=c-d` → `--a_b=c-d`; anything that is not a long flag is returned as it is."""
    if not argument.startswith("--") or argument == "--":
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _refuse(unknown: str, known: Sequence[str]) -> NoReturn:
    """Raise the UserError for an argument that argparse did not recognise."""
    name = unknown.partition("=")[0]
    if not name.startswith("-"):
        raise UserError(f"{unknown!r} is no flag; flags look like --name=value (--help lists all flags)")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"there is no flag {name}{hint} (--help lists all flags)")


def parse_flags(config: type[Config], argv: Sequence[str], prog: str, description: str) -> Config:
    """Build the frozen dataclass `config` from command-line arguments, one flag for each field.

    Field metadata: help, short (`-n`), name (when it differs from the field's), choices, group (a title in
    the help, from this field on). A wrong name, type or value, or a UserError from the dataclass's
    `__post_init__`, prints one line to stderr and exits with status 2; `--help` prints all flags and exits
    with 0. Raises TypeError for a type that cannot be a flag.
    """
    usage = f"{prog} [--flag=value …]"
    parser = _Parser(prog=prog, usage=usage, description=description, allow_abbrev=False)
    group: argparse._ActionsContainer = parser
    kinds, known = typing.get_type_hints(config), []
    for field in fields(config):  # type: ignore[arg-type]
        if "group" in field.metadata:
            group = parser.add_argument_group(field.metadata["group"])
        known.append(_add_flag(group, field, kinds[field.name]))
    try:
        given, unknown = parser.parse_known_args([_with_underscores(argument) for argument in argv])
        if unknown:
            _refuse(unknown[0], known)
        return config(**vars(given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

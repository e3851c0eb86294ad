"""Command lines from frozen dataclasses, read by cyclopts; a mistake is one line. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import inspect
import math
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NoReturn, TypeVar

from nanochat.common import UserError, nearest

if typing.TYPE_CHECKING:
    from cyclopts import CycloptsError, Token

Config = TypeVar("Config")
Value = TypeVar("Value")


REQUIRED: Any = dataclasses.MISSING  # in place of a default: the flag has to be given


def flag(default: Value, about: str, **metadata: Any) -> Value:
    """A dataclass field that knows its own help text; `metadata` as parse_flags reads it."""
    return dataclasses.field(default=default, metadata={"help": about, **metadata})


def _number(kind: Any, tokens: Sequence[Token]) -> float:
    """A whole number, or a finite one."""
    text, whole = tokens[-1].value, int in (kind, *typing.get_args(kind))
    with suppress(ValueError):
        value = int(text) if whole else float(text)
        if math.isfinite(value):
            return value
    raise ValueError(f"wants a {'whole ' if whole else ''}number, not {text!r}")


def _maker(config: type[Config]) -> Callable[..., Config]:
    """A function that makes a `config`, with a parameter for each field as cyclopts reads it."""
    from cyclopts import Group, Parameter

    def make(*given: Any, **named: Any) -> Config:
        return config(*given, **named)

    kinds, group, parameters = typing.get_type_hints(config), Group.create_ordered("flags"), []
    usual: dict[str, Any] = {"negative": (), "allow_repeating": True}  # no --no-trace; the last value counts
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        told, kind = usual | field.metadata, kinds[field.name]
        group = Group.create_ordered(told["group"]) if "group" in told else group
        kind = Literal[tuple(told.pop("choices"))] if "choices" in told else kind
        named = not told.pop("positional", False)
        told |= {"group": group} | ({"name": f"--{field.name}"} if named and "name" not in told else {})
        told |= {"converter": _number} if {int, float} & {kind, *typing.get_args(kind)} else {}
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY if named else inspect.Parameter.POSITIONAL_ONLY,
                default=inspect.Parameter.empty if field.default is REQUIRED else field.default,
                annotation=Annotated[kind, Parameter(**told)],
            )
        )
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return make


def _explain(error: CycloptsError) -> str:
    """What is wrong, in one line."""
    from cyclopts import UnknownCommandError, UnknownOptionError, UnusedCliTokensError

    match error:
        case UnknownOptionError():
            name = (error.token.keyword or error.token.value).partition("=")[0]
            known = [name for argument in error.argument_collection for name in argument.names]
            text = f"there is no flag {name}{nearest(name[:2] + name[2:].replace('-', '_'), known)}"
        case UnusedCliTokensError(unused_tokens=[first, *_]):
            text = f"{first!r} is no flag; flags look like --name=value"
        case UnknownCommandError(unused_tokens=[first, *_], app=app) if app:
            names = [name for name in app if not name.startswith("-")]
            return f"there is no command {first!r}{nearest(first, names)} (there are {', '.join(names)})"
        case _:
            error.verbose = False
            text = " ".join(str(error).split()).removeprefix("Invalid value for ").removesuffix(".")
    return f"{text} (--help lists all flags)"


def _page(config: type, prog: str, about: str) -> Iterator[str]:
    """The lines that --help prints of a dataclass of flags."""
    kinds, title, width = typing.get_type_hints(config), "flags", shutil.get_terminal_size().columns
    flags = dataclasses.fields(config)
    given = [field.name.upper() for field in flags if field.metadata.get("positional")]
    yield from (" ".join(("Usage:", prog, *given, "[OPTIONS]")), "", about)
    for field in flags:
        told, kind = field.metadata, kinds[field.name]
        if group := told.get("group", title):
            yield from ("", f"{group}:")
            title = ""
        outer, inner = typing.get_origin(kind), typing.get_args(kind)  # str | None is called STR
        choices = told.get("choices", inner if outer is Literal else ())
        name = field.name.upper() if told.get("positional") else told.get("name", f"--{field.name}")
        value = "CHOICE" if choices else (kind if outer is None else inner[0]).__name__.upper()
        empty = field.default in (None, "", ()) or field.default is REQUIRED
        parts = (
            ", ".join(filter(None, (name, told.get("alias"))))
            + ("" if told.get("positional") or kind is bool else f" {value}")
            + ":",
            told.get("help", ""),
            f"[choices: {', '.join(filter(None, choices))}]" if choices else "",
            "[required]" if field.default is REQUIRED else "" if empty else f"[default: {field.default}]",
        )
        text = " ".join(filter(None, parts))
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="      ")


def parse_flags(config: type[Config], argv: Sequence[str], prog: str, about: str) -> Config:
    """Build the frozen dataclass `config` from command-line arguments, one flag for each field.

    Field metadata: those of cyclopts.Parameter, group (a title in the help, from this field on), choices,
    positional. A wrong name, type or value, or a UserError from the dataclass's `__post_init__`, prints one
    line to stderr and exits with status 2; `--help` prints all flags and exits with 0.
    """
    made: Config = parse_command({"": config}, argv, prog, about)
    return made


def parse_command(commands: Mapping[str, type], argv: Sequence[str], prog: str, about: str) -> Any:
    """Like `parse_flags`, for a program whose first argument is the name of one of these classes."""
    if {"--help", "-h"} & set(argv):
        _help(commands, argv[0], prog, about)
    from cyclopts import App, CycloptsError

    unused: Any = sys.stderr  # cyclopts would import rich for a console to print mistakes on, which we do
    app = App(name=prog, help_flags=(), version_flags=(), error_console=unused)
    for name, config in commands.items():
        if name:
            app.command(_maker(config), name=name)
        else:
            app.default(_maker(config))
    try:
        make, bound, _ = app.parse_args(list(argv), exit_on_error=False, print_error=False)
        return make(*bound.args, **bound.kwargs)
    except (CycloptsError, UserError) as error:
        print(f"error: {error if isinstance(error, UserError) else _explain(error)}", file=sys.stderr)
        sys.exit(2)


def _help(commands: Mapping[str, type], first: str, prog: str, about: str) -> NoReturn:
    """Print the page of a program, or of the command that its first argument names, and end."""
    name = first if first in commands else ""
    if name in commands:
        config = commands[name]
        print("\n".join(_page(config, f"{prog} {name}".strip(), (config.__doc__ or "") if name else about)))
    else:
        print(f"Usage: {prog} COMMAND [OPTIONS]\n\n{about}\n\nCommands:")
        print("\n".join(f"  {known}: {config.__doc__}" for known, config in commands.items()))
    sys.exit(0)


LARGEST_SEED = 2**63 - 1
LARGEST_TEMPERATURE = 1000  # all tokens are alike long before


def keep_in_range(config: Any, names: Sequence[str], least: float, most: float = math.inf) -> None:
    """Raise UserError for the first of these fields of a config that is below `least` or above `most`."""
    for name in names:
        value = getattr(config, name)
        if value < least:
            raise UserError(f"--{name}={value}: must be at least {least}")
        if value > most:
            raise UserError(f"--{name}={value}: must be at most {most}")

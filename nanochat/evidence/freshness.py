"""A checksum of every definition that a function can reach in the package. Parses, and imports nothing."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from nanochat.provenance import ROOT

Origin: TypeAlias = tuple[str, str]  # a module of the package, and a name in it; "" for the module itself
PACKAGE = "nanochat"


@dataclass
class Module:
    """What stands at the top of one module."""

    defined: dict[str, list[ast.stmt]] = field(
        default_factory=dict
    )  # a name, and the statements that give it
    loose: list[ast.stmt] = field(default_factory=list)  # what runs on import and gives no name
    imported: dict[str, Origin] = field(default_factory=dict)
    needs: set[str] = field(default_factory=set)  # the package's modules that are imported with it


@functools.cache
def file_of(name: str, root: Path) -> Path | None:
    """The file of a module of the package, or None if the name is not one."""
    path = root.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return path if name.split(".")[0] == PACKAGE and path.is_file() else None


@functools.cache
def read_module(name: str, root: Path = ROOT) -> Module | None:
    """What stands at the top of a module of the package, or None if the name is not one."""
    path = file_of(name, root)
    if path is None:
        return None
    found = Module()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        place(statement, found, root)
    return found


def place(statement: ast.stmt, found: Module, root: Path) -> None:
    """Put one statement of a module's top where it belongs."""
    match statement:
        case ast.Import() | ast.ImportFrom():
            brought = origins(statement, root)
            found.imported |= brought
            found.needs |= {module for module, _ in brought.values()}
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            found.defined.setdefault(name, []).append(statement)
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in (node.id for one in targets for node in ast.walk(one) if isinstance(node, ast.Name)):
                found.defined.setdefault(name, []).append(statement)
        case ast.If(test=test) if "TYPE_CHECKING" in ast.dump(test) or "__name__" in ast.dump(test):
            pass
        case ast.Expr(value=ast.Constant()):
            pass
        case _:
            found.loose.append(statement)


def origins(statement: ast.Import | ast.ImportFrom, root: Path) -> dict[str, Origin]:
    """For each name that an import brings from the package, where it comes from."""
    found: dict[str, Origin] = {}
    if isinstance(statement, ast.Import):
        for one in statement.names:
            if file_of(one.name, root):
                found[one.asname or one.name.split(".")[0]] = (one.name if one.asname else PACKAGE, "")
        return found
    for one in statement.names:
        inner = f"{statement.module}.{one.name}"
        if file_of(inner, root):
            found[one.asname or one.name] = (inner, "")
        elif file_of(statement.module or "", root):
            found[one.asname or one.name] = (statement.module or "", one.name)
    return found


def checksum(statements: list[ast.stmt]) -> str:
    """A checksum of statements as syntax: without comments, layout and docstrings."""
    text = "\n".join(written(statement) for statement in statements)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def written(node: object) -> str:
    """A tree as text, without empty fields: the same in every version of Python, which ast.dump is not."""
    if isinstance(node, list):
        return f"[{' '.join(map(written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    parts = [
        f"{name}={written(value)}"
        for name, value in fields.items()
        if value is not None and value != [] and name not in ("ctx", "kind", "type_comment")
    ]
    return f"{type(node).__name__}({' '.join(parts)})"


def used(statements: list[ast.stmt], module: Module, root: Path) -> Iterator[Origin]:
    """What statements of a module refer to, inside the package; imports within a function count."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    imported = dict(module.imported)
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            brought = origins(node, root)
            imported |= brought
            yield from ((name, "<imported>") for name, _ in brought.values())
    prefixed = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if not isinstance(node, ast.Name):
            continue
        if node.id in module.defined:
            yield "", node.id
        elif node.id in imported:
            origin, name = imported[node.id]
            yield origin, name or prefixed.get(id(node), "")


def reach(start: Origin, root: Path = ROOT) -> dict[str, str]:
    """A checksum for every definition that can be reached from a function, by its dotted name.

    A module that is imported counts with what it runs on import; one that is handed on as a whole, with
    everything in it. What is not of the package is known by its version instead.
    """
    found: dict[str, str] = {}
    waiting, seen = [start], set[Origin]()
    while waiting:
        origin = waiting.pop()
        name, wanted = origin
        module = read_module(name, root)
        if module is None or origin in seen:
            continue
        seen.add(origin)
        waiting += [(name, "<imported>"), *((other, "<imported>") for other in module.needs)]
        if wanted == "":
            waiting += [(name, every) for every in module.defined]
        if wanted in module.imported:
            waiting.append(module.imported[wanted])
        statements = module.loose if wanted == "<imported>" else module.defined.get(wanted, [])
        if statements:
            found[f"{name}.{wanted}"] = checksum(statements)
        if wanted and file_of(f"{name}.{wanted}", root):
            waiting.append((f"{name}.{wanted}", ""))
        waiting += [(other or name, what) for other, what in used(statements, module, root)]
    return dict(sorted(found.items()))


def differences(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """The definitions that are not what they were, or that only one of two moments has."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))

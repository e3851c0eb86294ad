"""Put functions of a learner's file into the book's model, at the level of source."""

import ast
import copy
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, ModuleType

from nanochat.common import UserError
from nanochat.learning.steps import FIRST_ROUND, ROUNDS, Round, Step
from nanochat.models import decode

PACKAGE = Path(__file__).resolve().parents[1]
BOOK_PATH = PACKAGE / "normans_gpt.py"
LAZY_ANNOTATIONS = "from __future__ import annotations"  # so that no name is needed for an annotation alone

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Unjudgeable(Exception):
    """A step that cannot be run at all; the text says why and what to do."""


PARSING = threading.Lock()  # Python 3.11 counts the depth of all threads' trees in one number, and fails


@dataclass(frozen=True)
class Source:
    """A model file, parsed and never imported. Raises Unjudgeable if it is not Python."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file; shared, so not to be changed."""
        return self.parse()

    def parse(self) -> ast.Module:
        """A fresh tree of the file."""
        try:
            with PARSING:
                return ast.parse(self.text, filename=self.path)
        except SyntaxError as error:
            where = f"{self.path}:{error.lineno}" if error.lineno else self.path
            shown = f" ({error.text.strip()})" if error.text else ""
            raise Unjudgeable(
                f"{where}: Python cannot read this line{shown}: {error.msg}. "
                "No step can be judged before the file can be read; the cause may stand on the line above"
            ) from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise Unjudgeable(f"{self.path} is not a Python file: {error}") from None

    def find(self, step_id: str) -> Function | None:
        """The definition that Python would end up with: the last one of this name, not nested in an if."""
        return find(self.tree, step_id)

    def segment(self, step_id: str) -> tuple[int, int]:
        """First and last line (from 1) of a definition with its decorators. Raises KeyError if missing."""
        node = self.find(step_id)
        if node is None or node.end_lineno is None:
            raise KeyError(step_id)
        return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno


def home_of(step: Step) -> Path:
    """The file of the book that has the book's version of a step."""
    return PACKAGE / f"{step.home}.py"


def round_of_file(path: Path) -> Round:
    """The round of which a file has more functions; of an unreadable one what its name says, or the first."""
    try:
        source = read_source(path)
        return max(ROUNDS, key=lambda part: sum(source.find(step.id) is not None for step in part.steps))
    except Unjudgeable:
        return next((part for part in ROUNDS if part.file == path.name), FIRST_ROUND)


def find(tree: ast.Module, step_id: str) -> Function | None:
    """The last definition named "function" or "Class.method"."""
    body: list[ast.stmt] = tree.body
    found: Function | None = None
    for name in step_id.split("."):
        fitting = [n for n in body if isinstance(n, Function) and n.name == name]
        if not fitting:
            return None
        found = fitting[-1]
        body = found.body
    return found


def read_source(path: Path) -> Source:
    """Read a file. Raises Unjudgeable if it is missing or not text."""
    try:
        return Source(str(path), decode(path.read_bytes(), str(path)))
    except FileNotFoundError:
        raise Unjudgeable(f"{path} does not exist; `make learn` puts a skeleton there") from None
    except UserError as error:
        raise Unjudgeable(str(error)) from None
    except OSError as error:
        raise Unjudgeable(f"{path} cannot be read: {error.strerror}") from None


def is_unwritten(node: Function) -> bool:
    """Whether nothing but a docstring and a placeholder stands in a function."""
    body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if not body or all(isinstance(statement, ast.Pass) for statement in body):
        return True
    first = body[0]
    if not isinstance(first, ast.Raise) or first.exc is None:
        return False
    raised = first.exc.func if isinstance(first.exc, ast.Call) else first.exc
    return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"


def check_signature(learner: Source, book: Source, step_id: str) -> None:
    """Raise Unjudgeable unless the function can be called as the book's callers call it."""
    mine, wanted = learner.find(step_id), book.find(step_id)
    if wanted is None or mine is None:
        raise Unjudgeable(describe_missing(learner, step_id))
    if isinstance(wanted, ast.ClassDef) != isinstance(mine, ast.ClassDef):
        kind = "a class" if isinstance(wanted, ast.ClassDef) else "a function"
        raise Unjudgeable(f"{learner.path}:{mine.lineno}: {step_id} must be {kind}")
    if isinstance(wanted, ast.ClassDef) or isinstance(mine, ast.ClassDef):
        return
    if isinstance(mine, ast.AsyncFunctionDef):
        raise Unjudgeable(
            f"{learner.path}:{mine.lineno}: {step_id} is async; nobody awaits it, use plain def"
        )
    here, there = list(_parameters(mine)), list(_parameters(wanted))
    surplus = [name for name, has_default in here[len(there) :] if not has_default]
    renamed = [name for name, _ in here[: len(there)]] != [name for name, _ in there]
    undefaulted = [n for (n, has), (_, needs) in zip(here, there, strict=False) if needs and not has]
    if mine.args.vararg is not None and mine.args.kwarg is not None:
        return
    wrapped = {ast.unparse(d) for d in mine.decorator_list} & {"property", "staticmethod", "classmethod"}
    if wrapped:
        raise Unjudgeable(
            f"{learner.path}:{mine.lineno}: {step_id} is a {wrapped.pop()} by its decorator, and called as a "
            "plain method; remove the decorator"
        )
    by_name = {a.arg for a in mine.args.kwonlyargs} & {name for name, _ in there}
    by_name -= {a.arg for a in wanted.args.kwonlyargs}
    if by_name:
        raise Unjudgeable(
            f"{learner.path}:{mine.lineno}: {step_id} takes {', '.join(sorted(by_name))} by name alone, "
            "after a *, and is called with it by position; remove the *"
        )
    if surplus or renamed or undefaulted:
        advice = "keep the skeleton's names and order"
        if undefaulted and not renamed:
            advice = f"give {', '.join(undefaulted)} a default as the skeleton does"
        elif surplus and not renamed:
            advice = f"nobody will pass {', '.join(surplus)}; remove it or give it a default"
        raise Unjudgeable(
            f"{learner.path}:{mine.lineno}: {step_id} has the signature {_show_signature(mine)}, "
            f"and {_show_signature(wanted)} is wanted; {advice}"
        )


def _show_signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names and defaults without annotations."""
    bare = copy.deepcopy(node.args)
    for argument in ast.walk(bare):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(bare)})"


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, bool]]:
    """Name of each parameter, and whether it has a default."""
    positional = [*node.args.posonlyargs, *node.args.args]
    without = len(positional) - len(node.args.defaults)
    for index, argument in enumerate(positional):
        yield argument.arg, index >= without
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        yield argument.arg, default is not None


def describe_missing(learner: Source, step_id: str) -> str:
    """Say what is missing, and what the file has instead."""
    owner, _, method = step_id.rpartition(".")
    body: list[ast.stmt] = learner.tree.body
    if owner:
        home = find(learner.tree, owner)
        if home is None:
            classes = [n.name for n in body if isinstance(n, ast.ClassDef)]
            has = f"its classes are {', '.join(classes)}" if classes else "it has no class at all"
            return (
                f"{learner.path}: there is no class {owner} ({has}). Keep the skeleton's names; a file that "
                f"names its parts differently cannot be judged"
            )
        body = home.body
    there = [n.name for n in body if isinstance(n, Function)]
    inside = f"class {owner}" if owner else "the file"
    return (
        f"{learner.path}: {inside} has no {method or step_id}; it defines {', '.join(there) or 'none'}. "
        f"Put the skeleton's `def {method or step_id}` back"
    )


def _names_used(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _bound_by(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement gives a value to."""
    if isinstance(statement, Function):
        return [statement.name]
    if isinstance(statement, ast.Import):
        return [(alias.asname or alias.name).split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        targets = [statement.target]
    elif isinstance(statement, ast.If | ast.Try):
        inner = [n for n in ast.walk(statement) if isinstance(n, ast.stmt) and n is not statement]
        return [name for child in inner for name in _bound_by(child)]
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def collect_helpers(learner: ast.Module, book: Source, wanted: Iterable[ast.AST]) -> list[ast.stmt]:
    """The learner's own imports, constants, helper functions and classes that `wanted` uses, directly or not.

    What the book defines itself (its functions and classes) stays the book's; a constant of the same name is
    taken from the learner.
    """
    kept = {n.name for n in book.tree.body if isinstance(n, Function)}
    providers: dict[str, list[ast.stmt]] = {}
    chosen: dict[int, ast.stmt] = {}
    for statement in learner.body:
        for name in _bound_by(statement):
            if name == "*":
                chosen[id(statement)] = statement
            elif name not in kept:
                providers.setdefault(name, []).append(statement)
    todo = [name for node in wanted for name in _names_used(node)]
    while todo:
        for statement in providers.pop(todo.pop(), []):
            if id(statement) not in chosen:
                chosen[id(statement)] = statement
                todo.extend(_names_used(statement))
    return sorted(chosen.values(), key=lambda statement: statement.lineno)


def graft(book: Source, learner: Source, step_ids: Iterable[str]) -> ModuleType:
    """The book's model with these functions replaced by the learner's, as a fresh module.

    Tracebacks from the learner's functions name the learner's file and lines. Raises whatever the learner's
    own imports and constants raise.
    """
    tree, learners = without_registrations(book.parse()), learner.parse()
    grafted: list[ast.stmt] = []
    names: set[str] = set()
    for step_id in step_ids:
        mine, theirs = find(learners, step_id), find(tree, step_id)
        if mine is None or theirs is None:
            raise Unjudgeable(describe_missing(learner, step_id))
        owner = step_id.rpartition(".")[0]
        home = find(tree, owner) if owner else tree
        assert home is not None
        home.body[home.body.index(theirs)] = mine
        grafted.append(mine)
        names.add(step_id)
        if isinstance(home, ast.ClassDef):
            added = _add_members(learners, home, owner)
            grafted += added
            names.update(f"{owner}.{extra.name}" for extra in added if isinstance(extra, Function))
    configuration = find(tree, "GPTConfig")
    if isinstance(configuration, ast.ClassDef):
        grafted += _add_members(learners, configuration, "GPTConfig")
    helpers = [s for s in collect_helpers(learners, book, grafted) if not _is_future(s)]
    names.update(s.name for s in helpers if isinstance(s, Function))
    first = next(i for i, s in enumerate(tree.body) if isinstance(s, Function))
    tree.body[first:first] = helpers
    tree.body[1:1] = ast.parse(LAZY_ANNOTATIONS).body
    return _run(_relabel(compile(tree, book.path, "exec", dont_inherit=True), names, learner.path))


def load(source: Source) -> ModuleType:
    """A module of the book's as it is, as a fresh module."""
    return _run(compile(without_registrations(source.parse()), source.path, "exec", dont_inherit=True))


def without_registrations(tree: ast.Module) -> ast.Module:
    """The tree less what makes operators known to PyTorch, which takes each name once in a process."""

    def registers(node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func).startswith("torch.library.")

    tree.body = [s for s in tree.body if not (isinstance(s, ast.Expr) and registers(s.value))]
    for statement in tree.body:
        if isinstance(statement, Function):
            statement.decorator_list = [d for d in statement.decorator_list if not registers(d)]
    return tree


def _run(code: CodeType) -> ModuleType:
    module = ModuleType("nanochat_learning_hybrid")
    sys.modules[module.__name__] = module  # dataclasses look their module up while they are made
    try:
        exec(code, module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


def _add_members(learner: ast.Module, home: ast.ClassDef, owner: str) -> list[ast.stmt]:
    """Give a class of the book what the learner's class of this name has and it lacks: methods, fields …"""
    mine = find(learner, owner)
    if not isinstance(mine, ast.ClassDef):
        return []
    taken = {name for statement in home.body for name in _bound_by(statement)}
    taken |= {
        s.target.id for s in home.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    }
    added = [s for s in mine.body if _bound_by(s) and not taken & set(_bound_by(s))]
    constants = [s for s in added if not isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)]
    first = next((i for i, s in enumerate(home.body) if isinstance(s, Function)), len(home.body))
    home.body[first:first] = constants
    home.body += [s for s in added if s not in constants]
    return added


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _relabel(code: CodeType, names: set[str], path: str) -> CodeType:
    """Name the learner's file in the code of the learner's functions, and in all that is nested in them."""
    mine = any(code.co_qualname == name or code.co_qualname.startswith(f"{name}.") for name in names)
    constants = tuple(_relabel(c, names, path) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=constants, co_filename=path if mine else code.co_filename)

"""Reference pages made from the code: every program with its flags, every module with its functions.

They are read from the source and never written down a second time, so nothing in them can be out of date.
The source is parsed, not imported: the book's environment has no PyTorch, and none of the libraries that the
programs read their flags with.
"""

import ast
import html
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nanochat import provenance
from tools.pages import files_in
from tools.weave.model import anchor_of

WIDTH = 88  # of a signature; beyond, each argument has a line of its own
FIRST = (
    "scripts.quickstart",
    "nanochat.dataset",
    "scripts.tok_train",
    "scripts.base_train",
    "scripts.sample",
)
REQUIRED = "*required*"
KINDS = {"int": "INT", "float": "NUMBER", "str": "TEXT", "bool": "true or false", "tuple[str, ...]": "TEXT …"}
KINDS["tuple[tuple[str, ...], ...]"] = KINDS["tuple[str, ...]"]
SHOWN = ("name", "alias", "group", "choices", "positional")  # of a flag's metadata
MADE = "This page is made from the code whenever the book is built."


def pages(root: Path) -> dict[str, str]:
    """The pages as Markdown, by their path in the site."""
    sources = Sources(root)
    names = sorted(sources.trees)
    learning = [name for name in names if name.startswith("nanochat.learning")]
    scripts = [name for name in names if name.startswith("scripts.")]
    rest = [name for name in names if name not in learning and name not in scripts]
    return {
        "reference/programs.md": programs_page(sources),
        "reference/modules.md": modules_page(sources, "The modules of nanochat", rest),
        "reference/modules-learning.md": modules_page(sources, "The modules of nanochat.learning", learning),
        "reference/modules-scripts.md": modules_page(sources, "The modules of the programs", scripts),
    }


class Sources:
    """All product code, parsed; and the book, to say where a line was written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trees: dict[str, ast.Module] = {}
        self.texts: dict[str, list[str]] = {}
        for folder in ("nanochat", "scripts", "tasks"):
            for path in files_in(root / folder, "*.py"):
                name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
                text = path.read_text(encoding="utf-8")
                try:
                    self.trees[name.removesuffix(".__init__")] = ast.parse(text)
                except SyntaxError:  # said by whoever tangles; a page less is enough here
                    continue
                self.texts[name.removesuffix(".__init__")] = text.split("\n")
        self.book = provenance.read_book(root)
        self.places: dict[str, dict[int, provenance.Place]] = {}

    def link(self, module: str, line: int) -> str:
        """A link to the fragment that a line of a module was written in; nothing for what is not tangled."""
        if module not in self.places:
            path = self.root / f"{module.replace('.', '/')}.py"
            self.places[module] = provenance.places(self.book, path, self.root)
        place = self.places[module].get(line)
        if place is None:
            return ""
        heading = re.search(r"^# (.+)$", (self.root / place.chapter).read_text(encoding="utf-8"), re.M)
        name = Path(place.chapter).name
        return f"[{escaped(heading[1] if heading else name)}](../{name}#{anchor_of(place.fragment)})"


class Constants(Mapping[str, Any]):
    """The constants of a module by name, computed when they are asked for. Raises KeyError for the others."""

    def __init__(self, sources: Sources, module: str) -> None:
        self.sources, self.module = sources, module

    def __getitem__(self, name: str) -> Any:
        """The value of `name`, defined in this module or imported from another one of the book."""
        for node in self.sources.trees[self.module].body:
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == name for t in node.targets
            ):
                return self.value(node.value)
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and node.target.id == name
            ):
                return self.value(node.value)
            if isinstance(node, ast.ClassDef) and node.name == name and node.decorator_list:
                return self.maker(node)
            if isinstance(node, ast.ImportFrom) and node.module in self.sources.trees:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return Constants(self.sources, node.module)[alias.name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def maker(self, record: ast.ClassDef) -> Callable[..., SimpleNamespace]:
        """What stands for a dataclass: called with its fields, it gives something that has them."""
        fields = [
            (node.target.id, node.value)
            for node in record.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ]

        def make(*given: Any, **named: Any) -> SimpleNamespace:
            defaults = {name: self.value(value) for name, value in fields if value is not None}
            names = [name for name, _ in fields]
            return SimpleNamespace(**defaults | dict(zip(names, given, strict=False)) | named)

        return make

    def value(self, node: ast.expr | None) -> Any:
        """What an expression of constants is worth. Raises ValueError if it is more than that."""
        if node is None:
            raise ValueError("no value")
        try:
            code = compile(ast.Expression(node), "<constant>", "eval")
            return eval(code, {"__builtins__": {"range": range, "len": len, "tuple": tuple}}, self)
        except Exception as error:
            raise ValueError(f"{ast.unparse(node)}: {error}") from None


# ---- programs


@dataclass(frozen=True)
class Flag:
    """One flag of a program, as its page shows it."""

    names: tuple[str, ...]
    kind: str
    default: str
    help: str
    group: str  # the comment that it stands under


def programs_page(sources: Sources) -> str:
    """Every command of the project and its flags."""
    out = [
        "# Programs and their flags",
        "A flag is written `--name=value`; in a flag's name `-` and `_` mean the same. "
        f"Each program knows `--help`. {MADE}",
        "## make",
        "| command | what it does |\n|---|---|\n"
        + "\n".join(f"| `make {name}` | {escaped(about)} |" for name, about in make_targets(sources.root)),
    ]
    calls = dict(programs(sources))
    for module in sorted(calls, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        out.append(f"## python -m {module}")
        about = re.sub(
            r":\s+python -m.*", "", (ast.get_docstring(sources.trees[module]) or "").split("\n\n")[0]
        )
        out.append(escaped(about.rstrip(".") + "."))
        for command, config in calls[module].items():
            if command:
                about = ast.get_docstring(find_class(sources, module, config)[1]) or ""
                out += [f"### {command}", escaped(about)]
            place, flags = flags_of(sources, module, config)
            out += [table_of(flags), f"Written in {place}." if place else ""]
    return "\n\n".join(part for part in out if part) + "\n"


def table_of(flags: list[Flag]) -> str:
    """Flags as a table; a group is a line of its own."""
    rows, group = ["| flag | value | default | meaning |", "|---|---|---|---|"], ""
    for flag in flags:
        if flag.group != group:
            group = flag.group
            rows.append(f"| | | | **{escaped(group)}** |")
        names = ", ".join(f"`{name}`" for name in flag.names)
        default = REQUIRED if flag.default == REQUIRED else code(flag.default)
        rows.append(f"| {names} | {escaped(flag.kind)} | {default} | {escaped(flag.help)} |")
    return "\n".join(rows)


def make_targets(root: Path) -> list[tuple[str, str]]:
    """The targets of the Makefile that say what they are for."""
    text = (root / "Makefile").read_text(encoding="utf-8") if (root / "Makefile").exists() else ""
    return re.findall(r"^([a-z-]+):.*?## (.+)$", text, re.MULTILINE)


def programs(sources: Sources) -> Iterator[tuple[str, dict[str, str]]]:
    """Each module that reads flags, with the names of their classes by command; "" for a program of one."""
    for module, tree in sources.trees.items():
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Name("parse_flags"), [ast.Name(config), *_]):
                    yield module, {"": config}
                case ast.AnnAssign(ast.Name("COMMANDS"), _, ast.Dict(keys, values)):
                    yield (
                        module,
                        dict(command_of(key, value) for key, value in zip(keys, values, strict=True)),
                    )


def command_of(key: ast.expr | None, value: ast.expr) -> tuple[str, str]:
    """The name and the class of an entry of COMMANDS, which is `name: (class, function)`."""
    match key, value:
        case ast.Constant(str(name)), ast.Tuple([ast.Name(config), *_]):
            return name, config
    raise LookupError(f"{ast.unparse(value)} is no command, which is a class and a function")


def find_class(sources: Sources, module: str, name: str) -> tuple[str, ast.ClassDef]:
    """A class of the module, or imported by it from another, and the module that defines it."""
    for node in ast.walk(sources.trees[module]):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module in sources.trees:
            for alias in node.names:
                if alias.name == name:
                    return find_class(sources, node.module, name)
    raise LookupError(f"{module} reads its flags from {name}, which is not in the project")


def flags_of(sources: Sources, module: str, name: str) -> tuple[str, list[Flag]]:
    """Where the flags of a program are written, and what they are."""
    home, found = find_class(sources, module, name)
    return sources.link(home, found.lineno), list(flags_by_field(sources, home, found).values())


def flags_by_field(sources: Sources, home: str, found: ast.ClassDef) -> dict[str, Flag]:
    """The flags of a class by field, inherited ones first; one declared again keeps its place."""
    flags: dict[str, Flag] = {}
    for base in found.bases:
        flags |= flags_by_field(sources, *find_class(sources, home, ast.unparse(base)))
    constants = Constants(sources, home)
    text, group = sources.texts[home], ""
    above = found.lineno
    for node in found.body:
        comments = [line.strip() for line in text[above : node.lineno - 1] if line.strip().startswith("# ")]
        group = " ".join(comment.removeprefix("# ") for comment in comments) or group
        above = node.end_lineno or node.lineno
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        given, metadata = field_of(node.value, constants)
        group = metadata.get("group", group)
        kind, choices = kind_of(node.annotation, constants)
        choices = metadata.get("choices", choices)
        positional = metadata.get("positional", False)
        names = [node.target.id.upper() if positional else metadata.get("name", f"--{node.target.id}")]
        names = [metadata["alias"], *names] if "alias" in metadata else names
        flags[node.target.id] = Flag(
            tuple(names),
            ", ".join(str(choice) for choice in choices if choice != "") if choices else kind,
            REQUIRED if given is None else shown(given, constants),
            str(metadata.get("help", "")),
            group,
        )
    return flags


def field_of(value: ast.expr | None, constants: Constants) -> tuple[ast.expr | None, dict[str, Any]]:
    """A field's default and metadata, from `field(default=…, metadata=…)` or `flag(default, help, …)`."""
    if not isinstance(value, ast.Call):
        return value, {}
    keywords = {word.arg: word.value for word in value.keywords if word.arg}
    if isinstance(value.func, ast.Name) and value.func.id == "field":
        metadata = constants.value(keywords["metadata"]) if "metadata" in keywords else {}
        return keywords.get("default"), dict(metadata)
    about = {name: constants.value(given) for name, given in keywords.items() if name in SHOWN}
    return short(value), about | {"help": constants.value(value.args[1])}


def kind_of(annotation: ast.expr, constants: Constants) -> tuple[str, tuple[Any, ...]]:
    """What a flag of this type takes: a word, and the choices of a Literal."""
    text = ast.unparse(annotation).replace(" | None", "")
    if text.startswith("Literal[") and isinstance(annotation, ast.Subscript):
        return "", tuple(ast.literal_eval(f"({text[8:-1]},)"))
    return KINDS.get(text, text), ()


def shown(node: ast.expr, constants: Constants) -> str:
    """A default as the command line would spell it; nothing for an empty one."""
    try:
        value = constants.value(node)
    except ValueError:
        return ast.unparse(node)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in (None, "", ()) else str(value)


# ---- modules


def modules_page(sources: Sources, title: str, names: list[str]) -> str:
    """Signatures and docstrings of all public classes and functions."""
    out = [f"# {title}", MADE]
    for name in names:
        tree = sources.trees[name]
        if not tree.body:
            continue
        out += [f"## {name}", *paragraphs(ast.get_docstring(tree))]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                out += [f"### {node.name}", *described(sources, name, node)]
    return "\n\n".join(out) + "\n"


def described(sources: Sources, module: str, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """A function or class: its signature, its docstring, its public methods."""
    yield f"```python\n{signature(node)}\n```"
    yield from paragraphs(ast.get_docstring(node))
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and is_public(method) and ast.get_docstring(method):
                yield f"```python\n{signature(method)}\n```"
                yield from paragraphs(ast.get_docstring(method))
    if link := sources.link(module, node.lineno):
        yield f"Written in {link}."


def is_public(method: ast.FunctionDef) -> bool:
    """Whether it is meant to be called by others, if only through an operator."""
    return not method.name.startswith("_") or method.name.endswith("__")


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A `def` line without its body; of a class its `class` line and its annotated fields."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        head = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        fields = [
            f"    {ast.unparse(ast.AnnAssign(f.target, f.annotation, short(f.value), f.simple))}"
            for f in node.body
            if isinstance(f, ast.AnnAssign)
        ]
        return "\n".join([head, *fields]) if fields else head.removesuffix(":")
    before = "".join(f"@{ast.unparse(decorator)}\n" for decorator in node.decorator_list)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) > WIDTH:
        line = f"def {node.name}(\n{textwrap.indent(one_a_line(node.args), '    ')}\n){returns}"
    return before + line


def short(value: ast.expr | None) -> ast.expr | None:
    """A field's default without its metadata."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        if value.func.id == "flag":
            return None if ast.unparse(value.args[0]) == "REQUIRED" else value.args[0]
        if value.func.id == "field":
            return next((word.value for word in value.keywords if word.arg == "default"), None)
    return value


def one_a_line(arguments: ast.arguments) -> str:
    """The arguments of a function, each on a line."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    lines = [with_default(one, value) for one, value in zip(positional, defaults, strict=True)]
    if arguments.vararg:
        lines.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        lines.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    lines += [with_default(one, value) for one, value in pairs]
    if arguments.kwarg:
        lines.append(f"**{ast.unparse(arguments.kwarg)}")
    return "\n".join(f"{line}," for line in lines)


def with_default(argument: ast.arg, default: ast.expr | None) -> str:
    """`name: type = default`."""
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


# ---- Markdown


def paragraphs(docstring: str | None) -> Iterator[str]:
    """A docstring as Markdown: its words as they are, its blocks of code as blocks."""
    for block in re.split(r"\n\s*\n", docstring or ""):
        if all(line.startswith("    ") for line in block.split("\n") if line):
            if block.strip():
                yield f"```text\n{textwrap.dedent(block)}\n```"
        else:
            yield escaped(" ".join(block.split()))


def escaped(text: str) -> str:
    """Words that Markdown and HTML leave as they are; what stands between backticks is code already."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(code(part[1:-1]) if i % 2 else plain(part) for i, part in enumerate(parts))


def plain(text: str) -> str:
    """Text without meaning for Markdown."""
    return re.sub(r"([\\*_\[\]$|#~])", r"\\\1", html.escape(text, quote=False))


def code(text: str) -> str:
    """Text as code, also inside of a table."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if text else ""

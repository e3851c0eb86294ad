"""The house that the program is: its layers, who imports whom, and how large its functions are.

    python -m tools.house BEFORE    compares that commit with the working tree, writes results/house.json

Everything is read from the source. An import counts wherever it stands, in a function too; one that is there
for the type checker alone counts as well, because a reader has to follow it.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "house.json"
LONGEST = 60  # lines of a function
MOST_PLACES = 6  # positional parameters

# From the ground up. A name is a module of nanochat, or a folder with all that is in it.
LAYERS: dict[str, tuple[str, ...]] = {
    "ground": ("common", "flags", "machine", "played", "provenance", "records", "system"),
    "model": ("decoding", "engine", "gpt", "loss", "muon", "normans_gpt", "rows", "sampling", "trace"),
    "text": ("answers", "chat_api", "conversation", "dataloader", "dataset", "tokenizer", "tool"),
    "training": (
        *(
            "agreement",
            "base_training",
            "bigram",
            "chat_server",
            "chat_worker",
            "checkpoint_manager",
            "cluster",
            "core_eval",
            "core_tasks",
            "exam",
            "hf_format",
            "looks",
        ),
        *(
            "loss_eval",
            "models",
            "opened",
            "parallel",
            "plans",
            "report",
            "run",
            "run_log",
            "run_state",
            "step",
            "talk_training",
            "talks",
        ),
        *("train_config", "trained", "workplace"),
    ),
    "machinery": ("evidence", "learning", "measured_text", "turns"),
    "programs": ("scripts",),
}
ABOUT = {
    "ground": "errors, files, processes, devices, flags, records",
    "model": "tensors in, tensors out; no files, flags or programs",
    "text": "corpora, tokens, batches",
    "training": "steps, checkpoints, evaluation, formats of others",
    "machinery": "what the book measures and teaches with",
    "programs": "what a person starts; none knows another",
}

Modules = Mapping[str, ast.Module]


def read_modules(root: Path) -> dict[str, ast.Module]:
    """All modules of nanochat and scripts below a folder, parsed, by their dotted names."""
    found = {}
    for folder in ("nanochat", "scripts"):
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def layer_of(module: str) -> int | None:
    """The number of a module's layer, from 0; None where the table has none."""
    parts = module.split(".")
    name = parts[0] if parts[0] == "scripts" else parts[1]
    return next((i for i, names in enumerate(LAYERS.values()) if name in names), None)


def arrows(modules: Modules) -> set[tuple[str, str]]:
    """Each pair of modules of which the first imports the second; packages themselves are left out."""
    found = set()
    for name, tree in modules.items():
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [full if full in modules else node.module for full in inside]
            found |= {(name, target) for target in targets if target in modules and "." in target}
    return {(name, target) for name, target in found if name != target and "." in name}


def upward(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that no layer allows: to a higher one, or from a program to a program."""
    wrong = []
    for name, target in sorted(found):
        here, there = layer_of(name), layer_of(target)
        programs = name.startswith("scripts.") and target.startswith("scripts.")
        if programs or (here is not None and there is not None and there > here):
            wrong.append((name, target))
    return wrong


def circles(found: set[tuple[str, str]]) -> list[tuple[str, ...]]:
    """The groups of modules that lead to each other."""
    known = {name: {target for other, target in found if other == name} for name, _ in found}
    grown = True
    while grown:
        sizes = [len(targets) for targets in known.values()]
        for targets in known.values():
            targets |= {further for target in list(targets) for further in known.get(target, ())}
        grown = sizes != [len(targets) for targets in known.values()]
    groups = {tuple(sorted(t for t in known[name] if name in known.get(t, ()))) for name in known}
    return sorted(group for group in groups if group)


def functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Of each function its name, its lines, and how many arguments it takes by position, self left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            places = [*node.args.posonlyargs, *node.args.args]
            count = sum(argument.arg not in ("self", "cls") for argument in places)
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, count


def long_calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each making of an object of a class, by its place in the arguments, with too many of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > MOST_PLACES:
            name = ast.unparse(node.func).rpartition(".")[2]
            if name[0].isupper():
                yield name, len(node.args)


def measure(root: Path) -> dict[str, Any]:
    """The house below a folder, in numbers."""
    modules = read_modules(root)
    found = arrows(modules)
    programs = [name.startswith("scripts.") for name, _ in upward(found)]
    sizes = [entry for tree in modules.values() for entry in functions(tree)]
    return {
        "arrows from a program to a program": sum(programs),
        "arrows from a lower layer to a higher": len(programs) - sum(programs),
        "lines of the longest function": max(lines for _, lines, _ in sizes),
        f"functions over {LONGEST} lines": sum(lines > LONGEST for _, lines, _ in sizes),
        "most arguments by position": max(places for *_, places in sizes),
    }


def tables(record: dict[str, Any]) -> dict[str, str]:
    """The layers, and the house before and after."""
    rows = [
        f"| {i} {name} | {', '.join(names)} | {ABOUT[name]} |"
        for i, (name, names) in enumerate(record["layers"].items())
    ]
    both = [f"| {name} | {was} | {record['after'][name]} |" for name, was in record["before"].items()]
    return {
        "layers": "\n".join(["| layer | modules | what it knows |", "|---|---|---|", *reversed(rows)]),
        "change": "\n".join(["| | before | after |", "|---|---:|---:|", *both]),
    }


def main() -> None:
    """Measure a commit and the working tree."""
    parser = argparse.ArgumentParser(prog="python -m tools.house", allow_abbrev=False)
    parser.add_argument("before", help="a commit")
    before = parser.parse_args().before
    done = subprocess.run(["git", "archive", before, "nanochat", "scripts"], cwd=ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"error: {done.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        old = measure(Path(folder))
    layers = {name: list(names) for name, names in LAYERS.items()}
    record = {
        "command": f"python -m tools.house {before}",
        "layers": layers,
        "before": old,
        "after": measure(ROOT),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

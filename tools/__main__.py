"""python -m tools COMMAND: see `make` for what each is for."""

import argparse
import sys
from pathlib import Path

from tools.book import outputs_of
from tools.diff import describe
from tools.disk import apply, make_plan
from tools.problems import Refused

ROOT = Path(__file__).resolve().parents[1]


def tangle(root: Path) -> int:
    """Write what the chapters say."""
    outputs = outputs_of(root)
    plan = make_plan(root, outputs)
    apply(root, plan)
    for output in plan.write:
        print(f"wrote {output.path}")
    for path in plan.remove:
        print(f"removed {path}, which no block of the book writes any more")
    if plan.is_empty():
        print(f"{len(outputs)} files are up to date")
    return 0


def check(root: Path) -> int:
    """Write nothing; compare."""
    outputs = outputs_of(root)
    plan = make_plan(root, outputs)
    for problem in plan.problems:
        print(problem, file=sys.stderr)
    for output in plan.write:
        if (root / output.path).exists():
            place, text = describe(root, output)
            print(f"{place}: {output.path} is not what the book says\n{text}", file=sys.stderr)
        else:
            print(f"{output.path} is missing", file=sys.stderr)
    for path in plan.remove:
        print(f"{path} is written by no block", file=sys.stderr)
    return 0 if plan.is_empty() else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools", allow_abbrev=False)
    parser.add_argument("command", choices=["tangle", "check"])
    arguments = parser.parse_args()
    try:
        return {"tangle": tangle, "check": check}[arguments.command](ROOT)
    except Refused as refused:
        for problem in refused.problems:
            print(problem, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

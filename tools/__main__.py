"""python -m tools COMMAND: what `make` calls.

Exit status 0 if all is well, 1 if something was refused or differs, 130 after Ctrl-C.
"""

import argparse
import sys
from pathlib import Path

from tools import check as checks
from tools.answers import misfolded_in
from tools.book import outputs_of
from tools.disk import apply, make_plan
from tools.lock import alone
from tools.problems import Refused, said_by_system
from tools.prose import wide_lines
from tools.record import MANIFEST
from tools.watch import follow

ROOT = Path(__file__).resolve().parents[1]


def tangle(root: Path) -> int:
    """Write what the chapters say, all of it or nothing."""
    with alone(root):  # the chapters are read behind the lock, so that the last one to get it has the newest
        outputs = outputs_of(root)
        plan = make_plan(root, outputs)
        kept = apply(root, plan)
    for output in plan.write:
        print(f"wrote {output.path}")
        if output.path in plan.edited:
            print(f"  over an edit by hand that git has a copy of, {plan.edited[output.path]}")
    for path in plan.remove:
        print(f"removed {path}: no block of the book writes it any more")
    for path, copy in kept.items():
        print(f"{path} was not as an earlier tangle left it; as it was, it is kept in {copy}")
    if plan.is_empty():
        print(f"{len(outputs)} files are up to date with the book")
    elif not (plan.write or plan.remove):
        print(f"wrote {MANIFEST}: it was not what the files are")
    return 0


def check(root: Path) -> int:
    """Write nothing: compare, lint, type. Everything that differs is shown, not only the first."""
    with alone(root):
        outputs = outputs_of(root)
        differences = checks.compare(root, outputs)
    for message in differences:
        print(message, file=sys.stderr)
    wide = wide_lines(root)
    folded = misfolded_in(root)
    for problem in wide + folded:
        print(problem, file=sys.stderr)
    failed = ["comparison with the book"] if differences else []
    failed += ["width of the prose"] if wide else []
    failed += ["form of the answers"] if folded else []
    failed += checks.quality(root, outputs)
    refused = checks.refused_evidence(root)
    for line in refused:
        print(line, file=sys.stderr)
    failed += ["order of declaration and record"] if refused else []
    for line in checks.stale_evidence(root):
        print(line, file=sys.stderr)
    if failed:
        print(f"check failed: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"check passed: {len(outputs)} files are what the book says, clean and typed")
    return 0


def watch(root: Path) -> int:
    """Tangle on every save."""
    return follow(root, tangle)


def book(root: Path) -> int:
    """Write the book as EPUB and as PDF."""
    from tools.print.make import make_book  # loads pandoc and typst, which nothing else needs

    return make_book(root)


COMMANDS = {"book": book, "tangle": tangle, "check": check, "watch": watch}


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run one command on the project in `root`."""
    parser = argparse.ArgumentParser(prog="python -m tools", allow_abbrev=False)
    parser.add_argument("command", choices=COMMANDS)
    command = COMMANDS[parser.parse_args(arguments).command]
    try:
        return command(root)
    except Refused as refused:
        print(refused, file=sys.stderr)
    except OSError as error:
        print(said_by_system(error), file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command completes it", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())

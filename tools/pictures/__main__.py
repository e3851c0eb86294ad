"""python -m tools.pictures [--check] [NAME …]: draw the pictures, or see whether they are still true.

Exit status 0 if all is well, 1 if --check finds a picture that the model would draw otherwise.
"""

from __future__ import annotations

import argparse
import sys

from tools.pictures.gallery import check, draw


def main() -> int:
    """Draw or check."""
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description="Draw the book's pictures.")
    parser.add_argument("--check", action="store_true", help="write nothing; name what differs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these pictures")
    options = parser.parse_args()
    if not options.check:
        for line in draw(options.names):
            print(line)
        return 0
    problems = check(options.names)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

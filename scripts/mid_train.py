"""Show a base model what conversations look like: python -m scripts.mid_train."""

from __future__ import annotations

import sys

from nanochat.common import run_program
from nanochat.flags import parse_flags
from nanochat.talk_training import MidConfig, train_on_talks


def main() -> None:
    """Read the command line, train, and end with the status a shell expects."""
    config = parse_flags(MidConfig, sys.argv[1:], "python -m scripts.mid_train", "Teach a model the form.")
    train_on_talks(config, "mid").leave()


if __name__ == "__main__":
    run_program(main)

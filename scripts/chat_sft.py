"""Teach a model to answer: python -m scripts.chat_sft."""

from __future__ import annotations

import sys

from nanochat.common import run_program
from nanochat.flags import parse_flags
from nanochat.talk_training import SftConfig, train_on_talks


def main() -> None:
    """Read the command line, train, and end with the status a shell expects."""
    config = parse_flags(SftConfig, sys.argv[1:], "python -m scripts.chat_sft", "Teach a model to answer.")
    train_on_talks(config, "chat").leave()


if __name__ == "__main__":
    run_program(main)

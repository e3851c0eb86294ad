"""Train a GPT: `python -m scripts.base_train --help` lists the flags."""

from __future__ import annotations

import sys

from nanochat.base_training import train
from nanochat.common import run_program
from nanochat.flags import parse_flags
from nanochat.train_config import TrainConfig

__all__ = ["TrainConfig", "main", "train"]


def main() -> None:
    """Read the command line, train, and end with the status a shell expects."""
    config = parse_flags(TrainConfig, sys.argv[1:], "python -m scripts.base_train", "Train a GPT.")
    train(config).leave()


if __name__ == "__main__":
    run_program(main)

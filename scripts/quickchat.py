"""What `make chat` calls: base model, mid-training, fine-tuning, an examination, as far as missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass

from nanochat.common import UserError, run_program
from nanochat.flags import flag, parse_flags
from nanochat.talk_training import newest

TERMINAL = "scripts.chat_cli"
MID_SHARE = 0.12  # of the time
EXAMINATION = 45.0  # seconds that are left for asking
MOST_STEPS = 4000  # of fine-tuning; before that the clock ends it, but on a fast machine


@dataclass(frozen=True)
class QuickChatConfig:
    """The flags of scripts.quickchat."""

    seconds: float = flag(590.0, "how long all of it may take once there is a base model")
    questions: int = flag(100, "questions of each task to be asked afterwards; 0: none")
    talk: bool = flag(True, "begin a conversation at the end")

    def __post_init__(self) -> None:
        if self.seconds < 60:
            raise UserError(f"--seconds={self.seconds:g}: below 60 there is no time to train")


def do(program: str, *flags: str) -> None:
    """Run one of the programs; if it fails, end with its status."""
    status = subprocess.call([sys.executable, "-m", program, *flags])
    if status:
        sys.exit(status if status > 0 else 128 - status)


def main() -> None:
    """Do what is missing, then talk."""
    config = parse_flags(QuickChatConfig, sys.argv[1:], "python -m scripts.quickchat", "Train and talk.")
    if not newest("base"):
        do("scripts.quickstart")
    base = newest("base")
    if not newest("chat").startswith(f"{base}-chat"):
        began = time.perf_counter()
        do("scripts.mid_train", f"--base={base}", f"--time_limit={config.seconds * MID_SHARE:.0f}")
        left = config.seconds - (time.perf_counter() - began) - EXAMINATION
        limits = f"--time_limit={max(left, 20):.0f}", f"--num_iterations={MOST_STEPS}"
        do("scripts.chat_sft", f"--base={newest('mid')}", *limits)
        if config.questions:
            do("scripts.chat_eval", f"--run={newest('chat')}", f"--questions={config.questions}")
    if config.talk and importlib.util.find_spec(TERMINAL):
        do(TERMINAL, f"--run={newest('chat')}")


if __name__ == "__main__":
    run_program(main)

"""Let this machine play a lesser one: $NANOCHAT_MACHINE. Imports nothing that PyTorch could come before."""

import os
import sys

VARIABLE = "NANOCHAT_MACHINE"
LEAST = "avx2,no-bfloat16,threads=1,memory=8"
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "threads": {"OMP_NUM_THREADS": "{}", "MKL_NUM_THREADS": "{}"},
}


def given_up() -> dict[str, str]:
    """What $NANOCHAT_MACHINE gives up, each with its number or "". Raises ValueError for others."""
    text = os.environ.get(VARIABLE, "")
    parts = {}
    for part in filter(None, (LEAST if text == "least" else text).split(",")):
        name, _, amount = part.partition("=")
        counted = name in ("threads", "memory")
        if not counted and (name not in ("avx2", "no-bfloat16") or amount):
            raise ValueError(
                f"{VARIABLE}={text}: {part!r} is nothing that a machine can give up; "
                "give avx2, no-bfloat16, threads=N, memory=G, joined by commas, or least"
            )
        if counted and not (amount.isdecimal() and int(amount) > 0):
            raise ValueError(f"{VARIABLE}={text}: {part!r} needs a whole number above 0, as in {name}=1")
        parts[name] = amount
    return parts


def play() -> None:
    """Make this process, and those it starts, the machine that $NANOCHAT_MACHINE describes.

    Raises ValueError for a value that means nothing, or when PyTorch has been imported already.
    """
    parts = given_up()
    wanted = {
        key: value.format(amount)
        for name, amount in parts.items()
        for key, value in LIMITS.get(name, {}).items()
    }
    changes = {key: value for key, value in wanted.items() if os.environ.get(key) != value}
    if changes and "torch" in sys.modules:
        raise ValueError(
            f"{VARIABLE}={os.environ[VARIABLE]} comes too late, PyTorch is already imported; import nanochat "
            f"first, or set {' '.join(f'{key}={value}' for key, value in changes.items())} yourself"
        )
    os.environ.update(changes)

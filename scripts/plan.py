"""Memory, traffic and time of a training on many GPUs, on paper: `python -m scripts.plan --gpus=8`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from nanochat.cluster import (
    MACHINES,
    MIXED,
    Division,
    communication,
    matrices,
    memory,
    refuse_uneven_groups,
    step_seconds,
)
from nanochat.common import run_program
from nanochat.flags import flag, keep_in_range, parse_flags
from nanochat.train_config import TrainConfig, model_shape, refuse_a_remainder


@dataclass(frozen=True)
class PlanConfig:
    """Every flag of scripts.plan, with its default. Raises UserError for values that can not work."""

    depth: int = flag(20, "number of blocks; the width follows from it")
    gpus: int = flag(8, "processes, one on each GPU")
    shard: int = flag(0, "processes that share one copy of the weights (0: all of a node)")
    gpu: str = flag("H100", "kind of GPU", choices=tuple(MACHINES))
    vocab_size: int = flag(65536, "V")
    max_seq_len: int = flag(2048, "T, tokens in a sequence")
    device_batch_size: int = flag(8, "B, sequences in one pass on one device")
    total_batch_size: int = flag(524288, "tokens in one optimizer step")
    efficiency: float = flag(0.5, "the share of a GPU's peak that its products reach")

    def __post_init__(self) -> None:
        keep_in_range(self, ("depth", "gpus", "max_seq_len", "device_batch_size"), 1, 2**20)
        keep_in_range(self, ("vocab_size", "total_batch_size"), 1)
        keep_in_range(self, ("shard",), 0, 2**20)
        keep_in_range(self, ("efficiency",), 0.001, 1)
        refuse_uneven_groups(self.shards(), self.gpus)
        refuse_a_remainder("total_batch_size", self.total_batch_size, self.unit(), self, self.gpus)

    def shards(self) -> int:
        """S."""
        return self.shard or min(self.gpus, MACHINES[self.gpu].node)

    def unit(self) -> int:
        """The tokens of one pass of all GPUs."""
        return self.device_batch_size * self.max_seq_len * self.gpus


def lines(config: PlanConfig) -> list[str]:
    """What is printed."""
    division, machine = Division(config.gpus, config.shards()), MACHINES[config.gpu]
    shape = model_shape(TrainConfig(depth=config.depth, max_seq_len=config.max_seq_len), config.vocab_size)
    passes = config.total_batch_size // config.unit()
    parameters = sum(one.numbers() for one in matrices(shape, MIXED))
    lying = memory(shape, division, config.device_batch_size, MIXED)
    sent = communication(shape, division, passes, MIXED)
    step = step_seconds(shape, division, machine, config.device_batch_size, passes, config.efficiency)
    fits = "fits" if sum(lying.values()) < 0.9 * machine.memory else "does not fit: lower --device_batch_size"
    size = f"{config.gpus} x {config.gpu}, one copy of the weights on {division.shards}"
    waiting = "wires" if step.wires > step.arithmetic else "arithmetic"
    return [
        f"model: {config.depth} blocks, width {shape['n_embd']}, {parameters:,} parameters; {size}",
        f"memory of a GPU, in GB: {in_giga(lying)}; of {machine.memory / 1e9:.0f}, it {fits}",
        f"sent by a GPU in a step, in GB: {in_giga(sent)}",
        f"a step of {passes} x {config.device_batch_size} x {config.max_seq_len} tokens: {step.total:.3f} s"
        f" = the longer of {step.arithmetic:.3f} (arithmetic) and {step.wires:.3f} (wires), here {waiting},"
        f" + {step.exposed:.3f} (other exchanges) + {step.update:.3f} (update)",
        f"{config.total_batch_size / step.total:,.0f} tokens a second;"
        f" {step.arithmetic / step.total:.0%} of the time is arithmetic",
    ]


def in_giga(bytes_of: dict[str, int] | dict[str, float]) -> str:
    """Each part, and the sum, in 10^9 bytes."""
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in bytes_of.items())
    return f"{parts}: {sum(bytes_of.values()) / 1e9:.2f} in all"


def main() -> None:
    """Read the command line and print."""
    config = parse_flags(PlanConfig, sys.argv[1:], "python -m scripts.plan", "Plan a training on many GPUs.")
    print("\n".join(lines(config)))


if __name__ == "__main__":
    run_program(main)

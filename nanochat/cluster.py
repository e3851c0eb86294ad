"""What a division of a model over GPUs costs: bytes that lie, bytes that travel, seconds. No PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.common import UserError


@dataclass(frozen=True)
class Division:
    """How many processes there are, and over how many of them one copy of the weights is spread."""

    gpus: int
    shards: int

    def owned(self, count: int) -> int:
        """Of so many matrices of one shape, those that each process orthogonalizes."""
        return -(-count // self.gpus)


def refuse_uneven_groups(shards: int, processes: int) -> None:
    """Raise UserError, with the sizes that fit, unless the processes divide into groups of so many."""
    if processes % shards:
        fitting = ", ".join(str(n) for n in range(1, processes + 1) if processes % n == 0)
        raise UserError(
            f"--shard={shards}: {processes} processes do not divide into such groups: take {fitting}"
        )


@dataclass(frozen=True)
class Matrix:
    """One weight of the model."""

    rows: int
    columns: int
    unit: str  # "block", "embedding" or "head": what travels together
    stored: int  # bytes of a number as it is kept and as it travels

    def numbers(self, pieces: int = 1) -> int:
        """The numbers of the largest of so many pieces."""
        return -(-self.rows // pieces) * self.columns


@dataclass(frozen=True)
class Formats:
    """Bytes of a number, by what it is."""

    products: int = 2  # in matrix products, and so of activations
    embedding: int = 2  # as kept
    other: int = 4  # weights, gradients and averages otherwise


FLOAT32 = Formats(4, 4, 4)  # as on a CPU
MIXED = Formats()  # bfloat16 products on CUDA


def matrices(shape: Mapping[str, int], formats: Formats) -> list[Matrix]:
    """All weights of a model; shape: the arguments of GPTConfig."""
    C, V = shape["n_embd"], shape["vocab_size"]
    kv = C // shape["n_head"] * shape["n_kv_head"]
    block = [(C, C), (kv, C), (kv, C), (C, C), (4 * C, C), (C, 4 * C)]
    kept = formats.other
    return [
        Matrix(V, C, "embedding", formats.embedding),
        Matrix(V, C, "head", kept),
        *(Matrix(*sizes, "block", kept) for _ in range(shape["n_layer"]) for sizes in block),
    ]


def memory(shape: Mapping[str, int], division: Division, sequences: int, formats: Formats) -> dict[str, int]:
    """The bytes that the fullest process needs, by what they are for; sequences: B, of one pass."""
    S, all_of_them = division.shards, matrices(shape, formats)
    kept = {"block": 1, "embedding": 2, "head": 2}  # averages of the optimizer for each weight
    block = [one for one in all_of_them if one.unit == "block"][:6]
    head = next(one for one in all_of_them if one.unit == "head")
    in_block, gathered = sum(one.numbers() for one in block), 0
    if formats.products < formats.other:  # what autocast converts it keeps until the backward pass
        gathered = shape["n_layer"] * in_block * formats.products
    if division.gpus > 1:
        gathered += head.numbers() * head.stored + 4 * in_block * formats.other
    return {
        "weights": sum(one.numbers(S) * one.stored for one in all_of_them),
        "gradients": sum(one.numbers(S) * one.stored for one in all_of_them),
        "optimizers": sum(one.numbers(S) * one.stored * kept[one.unit] for one in all_of_them),
        "gathered": gathered + head.numbers() * head.stored,
        "activations": activations(shape, sequences, formats),
    }


def activations(shape: Mapping[str, int], sequences: int, formats: Formats) -> int:
    """The bytes that a forward pass over so many sequences keeps for the backward pass, the head's aside."""
    C, H, H_kv = shape["n_embd"], shape["n_head"], shape["n_kv_head"]
    kv = C // H * H_kv
    wide = shape["n_layer"] * (15 * C + 3 * kv) + 3 * C
    single = shape["n_layer"] * (2 + 2 * H + H_kv) + 2  # float32: of each norm, and of each head's softmax
    return sequences * shape["sequence_len"] * (wide * formats.products + 4 * single)


def communication(
    shape: Mapping[str, int], division: Division, passes: int, formats: Formats
) -> dict[str, float]:
    """The bytes that each process sends in one step, by what they are for."""
    S, R = division.shards, division.gpus // division.shards
    all_of_them = matrices(shape, formats)
    away, copies = (S - 1) / S, (R - 1) / R
    times = {"block": 2, "embedding": 2, "head": 1}
    gather = sum(S * one.numbers(S) * one.stored * times[one.unit] for one in all_of_them)
    scatter = sum(S * one.numbers(S) * one.stored for one in all_of_them)
    blocks = Counter((one.rows, one.columns) for one in all_of_them if one.unit == "block")
    exchanged = (
        0  # the numbers that lie here of the matrices that this copy of the weights is to orthogonalize
    )
    for (rows, columns), count in blocks.items():
        exchanged += S * division.owned(count) * -(-rows // S) * columns
    return {
        "gather": passes * away * gather,
        "scatter": passes * away * scatter,
        "sum": 2 * copies * scatter / S,
        "Muon": exchanged * (away * (formats.other + formats.products) + (R - 1) * formats.products),
    }


@dataclass(frozen=True)
class Machine:
    """One GPU among others, as datasheets have it."""

    flops: float  # a second, bfloat16 products
    memory: float  # bytes
    memory_bandwidth: float  # bytes a second
    inside: float  # bytes a second that a GPU sends to others of its node
    between: float  # and to other nodes
    node: int = 8  # GPUs


MACHINES = {
    "H100": Machine(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "A100": Machine(312e12, 80e9, 2.04e12, 300e9, 25e9),
}


@dataclass(frozen=True)
class Step:
    """The seconds of one step, and what they are made of."""

    arithmetic: float
    wires: float  # beside the arithmetic
    exposed: float  # of exchanges beside which there is none
    update: float

    @property
    def total(self) -> float:
        """The whole step: of two things that go on side by side the longer one counts."""
        return max(self.arithmetic, self.wires) + self.exposed + self.update


def step_seconds(
    shape: Mapping[str, int],
    division: Division,
    machine: Machine,
    sequences: int,
    passes: int,
    efficiency: float,
) -> Step:
    """How long one step takes, with mixed formats; sequences: B, of one pass on one GPU."""
    all_of_them, S = matrices(shape, MIXED), division.shards
    blocks = [one for one in all_of_them if one.unit == "block"]
    tables = [one for one in all_of_them if one.unit != "block"]
    products = sum(one.numbers() for one in blocks) + tables[1].numbers()
    a_token = 6 * products + 12 * shape["n_layer"] * shape["n_embd"] * shape["sequence_len"]
    muon = sum(
        division.owned(count) * newton_schulz_flops(*size)
        for size, count in Counter((one.rows, one.columns) for one in blocks).items()
    )
    tokens = sequences * shape["sequence_len"] * passes
    sent = communication(shape, division, passes, MIXED)
    near = machine.inside if machine.node >= S else machine.between
    far = machine.inside if division.gpus <= machine.node else machine.between
    unit = sum(S * one.numbers(S) for one in blocks[:6]) * (S - 1) / S
    return Step(
        arithmetic=a_token * tokens / (efficiency * machine.flops),
        wires=(sent["gather"] + sent["scatter"]) / near + sent["sum"] / far,
        exposed=passes * unit * 2 * MIXED.other / near + sent["Muon"] / far,
        update=muon / (efficiency * machine.flops)
        + (28 * sum(one.numbers(S) for one in tables) + 12 * sum(one.numbers(S) for one in blocks))
        / machine.memory_bandwidth,
    )


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> int:
    """The operations of orthogonalizing one matrix."""
    m, n = min(rows, columns), max(rows, columns)
    return steps * (4 * m * m * n + 2 * m**3)

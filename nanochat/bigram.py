"""A language model that is one table: which byte follows which, learned by gradient descent."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch
from torch import Tensor

from nanochat.common import UserError

START = 0  # comes before the first byte of a document, and stands for bytes that the alphabet lacks


def alphabet_of(documents: Iterable[str]) -> bytes:
    """The bytes that occur in the documents, in order: number n stands for byte n - 1 of it."""
    return bytes(sorted(set("".join(documents).encode())))


def pairs(documents: Iterable[str], alphabet: bytes) -> tuple[Tensor, Tensor]:
    """Inputs and targets: for each byte of the documents the number of the one before it, and its own.

    Both are int64 of shape (N,), N being the bytes of all documents. The first byte of each follows START.
    Raises UserError if there is no byte at all.
    """
    numbers = bytes(alphabet.find(byte) + 1 for byte in range(256))
    inputs, targets = bytearray(), bytearray()
    for document in documents:
        text = document.encode().translate(numbers)
        targets += text
        inputs += (bytes([START]) + text)[:-1]
    if not targets:
        raise UserError("these documents hold no text: give the corpus others")
    first, second = (torch.frombuffer(raw, dtype=torch.uint8).long() for raw in (inputs, targets))
    return first, second


def new_table(alphabet: bytes) -> Tensor:
    """Scores of all pairs, float64 of shape (V, V): row a, column b for b after a. All 0, and trainable."""
    V = len(alphabet) + 1
    return torch.zeros(V, V, dtype=torch.float64, requires_grad=True)


def mean_loss(table: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, a float64 without dimensions: the mean of -ln p over the pairs, (N,) each."""
    log_p = table.log_softmax(dim=-1)
    return -log_p[inputs, targets].mean()


@torch.no_grad()
def bits_per_byte(table: Tensor, inputs: Tensor, targets: Tensor) -> float:
    """How many bits a byte of this text costs with the probabilities of the table."""
    return mean_loss(table, inputs, targets).item() / math.log(2)


def step(table: Tensor, inputs: Tensor, targets: Tensor, learning_rate: float) -> float:
    """Move all scores once against the gradient of the mean loss of these pairs; returns the loss before."""
    loss = mean_loss(table, inputs, targets)
    loss.backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    with torch.no_grad():
        table -= learning_rate * table.grad
    table.grad = None
    return loss.item()


def draw_batch(inputs: Tensor, targets: Tensor, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """`size` of the pairs, (size,) each, drawn at random with replacement."""
    chosen = torch.randint(len(targets), (size,), generator=rng)
    return inputs[chosen], targets[chosen]


def counted(inputs: Tensor, targets: Tensor, alphabet: bytes, extra: float = 0.1) -> Tensor:
    """The table that counting gives, as scores: ln of (pairs + extra), scaled so that each row sums to one.

    float64 of shape (V, V). `extra` > 0 keeps a pair that never came from having probability 0.
    """
    V = len(alphabet) + 1
    times = torch.bincount(inputs * V + targets, minlength=V * V).view(V, V).double() + extra
    return (times / times.sum(dim=-1, keepdim=True)).log()


def write(table: Tensor, alphabet: bytes, length: int, rng: random.Random) -> str:
    """A text of `length` bytes, each drawn by the probabilities of the row of the one before.

    Bytes that form no character of UTF-8 are shown as U+FFFD.
    """
    p = table.detach().softmax(dim=-1).tolist()
    last, text = START, bytearray()
    for _ in range(length):
        (byte,) = rng.choices(alphabet, weights=p[last][1:])
        text.append(byte)
        last = alphabet.index(byte) + 1
    return text.decode(errors="replace")

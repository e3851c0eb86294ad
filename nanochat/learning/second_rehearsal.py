"""Train the book's model with what a learner has written around it, up to the first thing that is missing."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import tiktoken
import torch
from torch import Tensor

from nanochat import bigram
from nanochat import normans_gpt as book
from nanochat.engine import Engine
from nanochat.learning.report import ANSWER, PROMPT, SEED, SHAPE, TEXT, Report, Wrong
from nanochat.loss import softcapped_cross_entropy
from nanochat.loss_eval import evaluate_bpb
from nanochat.step import Batch, Schedule, accumulate_gradients, build_model

MERGES, B, T = 128, 4, SHAPE["sequence_len"]
BOS = 256 + MERGES
CHUNK = r" ?[^ ]+| +"  # what is encoded by itself: a word with the space before it
STEPS, PASSES = 12, 2
CLOSE = 0.00025  # nats: what rounding can do to the losses in so many steps, as in the first round


def learn_a_table(m: ModuleType) -> str:
    """Train the table of page one on a page of text."""
    alphabet = bigram.alphabet_of([TEXT])
    table, pairs = bigram.new_table(alphabet), bigram.pairs([TEXT], alphabet)
    losses = [m.step(table, *pairs, 20.0) for _ in range(60)]
    if not all(isinstance(loss, float) for loss in losses):
        raise Wrong(f"step returned a {type(losses[0]).__name__}; the loss is wanted as a float")
    if not losses[-1] < losses[0] - 1:
        went = f"from {losses[0]:.3f} to {losses[-1]:.3f}"
        raise Wrong(f"60 steps took the table's loss {went}; it should fall by a nat")
    return f"the table's loss went from {losses[0]:.3f} to {losses[-1]:.3f} nats a byte"


def learn_tokens(m: ModuleType) -> list[tuple[int, int]]:
    """Merges learned from the page."""
    merges = list(m.learn_merges([chunk.encode() for chunk in re.findall(CHUNK, TEXT)], MERGES))
    if len(merges) != MERGES:
        raise Wrong(f"learn_merges was asked for {MERGES} merges and gave {len(merges)}")
    return merges


def encode_text(m: ModuleType, text: str, merges: list[tuple[int, int]]) -> list[int]:
    """The ids of a text, chunk by chunk."""
    return [token for chunk in re.findall(CHUNK, text) for token in m.encode(chunk.encode(), merges)]


def tokens_of(merges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of all tokens: 256 of one byte, and what each merge joins."""
    tokens = [bytes([byte]) for byte in range(256)]
    for first, second in merges:
        tokens.append(tokens[first] + tokens[second])
    return tokens


def compare_the_ids(m: ModuleType, merges: list[tuple[int, int]], ids: list[int]) -> str:
    """Raise Wrong unless tiktoken gives the same ids for the page."""
    tokens = tokens_of(merges)
    if len(set(tokens)) < len(tokens):
        raise Wrong("two merges make the same token, so one of them joins what was joined before")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    library = tiktoken.Encoding("learner", pat_str=CHUNK, mergeable_ranks=ranks, special_tokens={})
    theirs = library.encode_ordinary(TEXT)
    if ids != theirs:
        at = next((n for n, pair in enumerate(zip(ids, theirs, strict=False)) if pair[0] != pair[1]), 0)
        raise Wrong(
            f"with your merges tiktoken makes {len(theirs)} tokens of the page and you {len(ids)}, from "
            f"number {at} on others"
        )
    if m.decode(ids, merges) != TEXT:
        raise Wrong("what decode gives back is not the text")
    return f"{len(TEXT)} bytes became {len(ids)} tokens, the same ids as tiktoken's"


def take_batches(m: ModuleType, merges: list[tuple[int, int]]) -> list[Batch]:
    """As many batches as the training needs, from the page's sentences again and again."""
    documents = [encode_text(m, sentence, merges) for sentence in TEXT.split(". ")]
    made = list(itertools.islice(m.batches(itertools.cycle(documents), B, T, BOS), STEPS * PASSES))
    if len(made) != STEPS * PASSES or any(x.shape != (B, T) or y.shape != (B, T) for x, y in made):
        raise Wrong(f"batches should give {STEPS * PASSES} pairs of shape {(B, T)}")
    return made


def compare_the_losses(m: ModuleType, name: str) -> str:
    """The learner's loss beside the program's, for random numbers."""
    generator = torch.Generator().manual_seed(SEED)
    x, weight = torch.randn(40, 16, generator=generator), torch.randn(BOS, 16, generator=generator)
    targets = torch.randint(BOS, (40,), generator=generator)
    if name == "cross_entropy":
        mine = m.cross_entropy(15 * torch.tanh(x @ weight.t() / 15), targets)
    else:
        mine = m.loss_and_gradients(x, weight, targets, 15.0, 16)[0]
    theirs = softcapped_cross_entropy(x, weight, targets, 15.0)
    if not abs(float(mine) - float(theirs)) < CLOSE:
        raise Wrong(f"{name} gives {float(mine):.4f} where the program's loss is {float(theirs):.4f}")
    return f"{name} gives {float(mine):.4f} nats, as the program does"


def descend_by_adamw(m: ModuleType) -> str:
    """Two numbers with slopes of very different size."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = m.AdamW([p], lr=0.1, betas=(0.8, 0.95))
    for _ in range(100):
        p.grad = torch.tensor([1000.0, 0.001]) * (p.detach() - 1)
        optimizer.step()
    if not (p - 1).abs().max() < 0.1:
        raise Wrong(f"100 steps of AdamW went to {p.tolist()}; both numbers should be near 1")
    return f"AdamW walked a steep valley and a flat one, and came to {p[0].item():.3f} and {p[1].item():.3f}"


def look_at_singular_values(m: ModuleType) -> str:
    """What orthogonalize makes of a matrix of noise."""
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(SEED))
    values = torch.linalg.svdvals(m.orthogonalize(noise, 5, torch.float32)[0])
    if not 0.5 < values.min() < values.max() < 1.3:
        raise Wrong(f"the singular values are between {values.min():.3f} and {values.max():.3f}, not near 1")
    return f"the singular values of noise now lie between {values.min():.2f} and {values.max():.2f}"


def move_a_matrix(m: ModuleType) -> str:
    """One step of Muon."""
    p = torch.nn.Parameter(torch.zeros(32, 16))
    p.grad = torch.randn(32, 16, generator=torch.Generator().manual_seed(SEED))
    m.Muon([p], lr=0.1, ns_dtype=torch.float32).step()
    if not p.abs().max() > 0:
        raise Wrong("Muon.step has moved nothing")
    return f"Muon moved a matrix by a root mean square of {p.square().mean().sqrt().item():.4f} a weight"


def show_the_schedule(m: ModuleType) -> str:
    """The factors of the run that comes next."""
    factors = [float(m.Schedule(0.2, 0.4, 0.1).multiplier(n / STEPS, 1 / STEPS)) for n in range(STEPS)]
    return f"the schedule of {STEPS} steps: {' '.join(f'{factor:.2f}' for factor in factors)}"


@contextmanager
def in_the_book(m: ModuleType) -> Iterator[None]:
    """While active, the book's model takes the learner's loss, optimizers and sampler."""

    def loss(x: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str = "mean") -> Tensor:
        if reduction != "mean" or not torch.is_grad_enabled():
            return softcapped_cross_entropy(x, weight, targets, softcap, reduction)
        mine: Tensor = m.LossInChunks.apply(x, weight, targets, softcap, 48)
        return mine

    with ExitStack() as stack:
        stack.enter_context(patch.object(book, "softcapped_cross_entropy", loss))
        stack.enter_context(patch.object(book, "Muon", m.Muon))
        stack.enter_context(patch.object(torch.optim, "AdamW", m.AdamW))
        yield


def new_model() -> book.GPT:
    """The book's model, small, with room for the page's tokens."""
    return build_model(book, {**SHAPE, "vocab_size": BOS + 1}, torch.device("cpu"), SEED, None)


def train(model: Any, optimizers: Any, made: list[Batch], schedule: Any, accumulate: Any) -> list[float]:
    """The losses of steps on all batches."""
    source, losses, count = iter(made), [], len(made) // PASSES
    for step in range(count):
        losses.append(float(accumulate(model, source, PASSES)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule.multiplier(step / count, 1 / count)
            optimizer.step()
        model.zero_grad(set_to_none=True)
    return losses


def train_both(m: ModuleType, report: Report, made: list[Batch]) -> book.GPT:
    """Train with the learner's parts and with the program's; the learner's model. Fills in the report."""
    with in_the_book(m):
        model = new_model()
        optimizers = model.setup_optimizers()
        report.losses = train(model, optimizers, made, m.Schedule(0.2, 0.4, 0.1), m.accumulate_gradients)
    other = new_model()
    theirs = other.setup_optimizers()
    report.book_losses = train(other, theirs, made, Schedule(0.2, 0.4, 0.1), accumulate_gradients)
    apart = max(abs(a - b) for a, b in zip(report.losses, report.book_losses, strict=True))
    if not report.losses[-1] < report.losses[0]:
        raise Wrong(f"{STEPS} steps took the loss from {report.losses[0]:.3f} to {report.losses[-1]:.3f}")
    if not apart < CLOSE:
        raise Wrong(
            f"your losses are up to {apart:.2g} nats from those that the program's step has "
            f"({report.losses[-1]:.4f} and {report.book_losses[-1]:.4f} in the end)"
        )
    report.agreement = f"{STEPS} losses within {apart:.1g} nats of the program's"
    return model


def score(m: ModuleType, model: book.GPT, merges: list[tuple[int, int]], made: list[Batch]) -> str:
    """Bits per byte of the first batches, the learner's and the program's."""
    sizes = torch.tensor([*map(len, tokens_of(merges)), 0])
    nats, size, seen, asked = m.losses_and_bytes(model, iter(made), 3, sizes)
    mine, theirs = nats / (math.log(2) * size), evaluate_bpb(model, iter(made), 3, sizes)
    if (seen, asked) != (3 * B * T, 3 * B * T) or not abs(mine - theirs) < CLOSE:
        raise Wrong(f"losses_and_bytes gives {mine:.4f} bits per byte where the program gives {theirs:.4f}")
    return f"{mine:.3f} bits per byte, as the program says"


def write_text(m: ModuleType, model: book.GPT, merges: list[tuple[int, int]]) -> str:
    """What the model writes, its tokens chosen by the learner."""
    prompt = [BOS, *encode_text(m, PROMPT.strip(), merges)]
    with patch.object(book, "sample_next", m.sample_next):
        made = list(model.generate(prompt, ANSWER, temperature=0.5, top_k=20, seed=1))
    return f"it wrote {m.decode([token for token in made if token < BOS], merges)!r}"


def write_with_a_cache(m: ModuleType, model: book.GPT, merges: list[tuple[int, int]]) -> str:
    """Raise Wrong unless the text with the learner's cache is the text without."""
    prompt = [BOS, *encode_text(m, PROMPT.strip(), merges)]
    plain = list(model.generate(prompt, ANSWER, temperature=0.0))
    with patch("nanochat.engine.KVCache", m.KVCache):
        cached = Engine(model).complete([prompt], ANSWER, temperature=0.0)[0]
    if cached != plain:
        at = next((n for n, pair in enumerate(zip(cached, plain, strict=False)) if pair[0] != pair[1]), 0)
        raise Wrong(f"with your cache the text differs from token {at} on from the text without a cache")
    tokens = torch.tensor([prompt + plain])[:, : SHAPE["sequence_len"]]
    heads, width = SHAPE["n_kv_head"], SHAPE["n_embd"] // SHAPE["n_head"]
    cache = m.KVCache(1, heads, tokens.size(1), width, SHAPE["n_layer"])
    with torch.no_grad():
        pieces = [model(token, kv_cache=cache) for token in torch.split(tokens, 1, 1)]
        apart = (torch.cat(pieces, dim=1) - model(tokens)).abs().max().item()
    if not apart < CLOSE:
        raise Wrong(f"with your cache the scores differ by up to {apart:.2g} from those without a cache")
    return f"{ANSWER} tokens with your cache, the same as without"


def stop_and_go_on(m: ModuleType, made: list[Batch]) -> str:
    """Raise Wrong unless a run that was saved goes on as one that was not stopped."""

    def run(model: Any, optimizers: Any, part: slice) -> list[float]:
        return train(model, optimizers, made[part], m.Schedule(), m.accumulate_gradients)

    half = len(made) // 2
    with in_the_book(m), tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "run.pt", new_model()
        optimizers = model.setup_optimizers()
        run(model, optimizers, slice(half))
        m.save(path, model, optimizers, half // PASSES)
        through = run(model, optimizers, slice(half, None))
        other = new_model()
        others = other.setup_optimizers()
        step = m.resume(path, other, others)
        again = run(other, others, slice(half, None))
    if step != half // PASSES or through != again:
        raise Wrong(f"a run that goes on from step {step} has other losses than one that was not stopped")
    return f"stopped after {step} steps and gone on, to the same losses"


def rehearse_second(m: ModuleType, report: Report, stage: Callable[[str], None]) -> None:
    """Play all stations with a learner's module. Raises whatever it raises, and Wrong."""

    def reached(name: str, says: str) -> None:
        report.notes.append(says)
        stage(name)

    reached("table", learn_a_table(m))
    merges = learn_tokens(m)
    reached(
        "merges", f"{len(merges)} merges were learned from the page, the first {m.decode([256], merges)!r}"
    )
    ids = encode_text(m, TEXT, merges)
    reached("tokenizer", compare_the_ids(m, merges, ids))
    made = take_batches(m, merges)
    reached("batches", f"{len(made)} batches of {B} times {T} tokens")
    for name in ("cross_entropy", "loss_and_gradients"):
        reached(name, compare_the_losses(m, name))
    for play in (descend_by_adamw, look_at_singular_values, move_a_matrix, show_the_schedule):
        reached(play.__name__, play(m))
    model = train_both(m, report, made)
    reached(
        "match",
        f"the model's loss went from {report.losses[0]:.3f} to {report.losses[-1]:.3f}; {report.agreement}",
    )
    reached("score", score(m, model, merges, made))
    reached("write", write_text(m, model, merges))
    reached("cache", write_with_a_cache(m, model, merges))
    reached("resume", stop_and_go_on(m, made))

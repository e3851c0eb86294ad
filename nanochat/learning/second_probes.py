"""Run a function of the second round under many conditions and write down what is seen."""

import contextlib
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn as nn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanochat.learning.arrival import folder_to_write_in
from nanochat.learning.probes import NO_GRADIENT, SCORES, Case, Near, Probe, noise


def probe_step(m: ModuleType) -> Iterator[Case]:
    given = (0, 1, 2, 1, 3, 1, 1), (1, 2, 1, 3, 1, 4, 2)  # of which "2 after 1" comes twice
    inputs, targets = torch.tensor(given[0]), torch.tensor(given[1])

    def moved(rates: Sequence[float]) -> dict[str, Any]:
        table = noise(5, 5, name="table").double().requires_grad_()
        losses = [m.step(table, inputs, targets, rate) for rate in rates]
        return {
            "the table": table,
            "the loss returned": torch.tensor(losses),
            "whether the table can still learn": table.requires_grad,
        }

    def left() -> dict[str, Any]:
        table = noise(5, 5, name="table").double().requires_grad_()
        loss = m.step(table, inputs, targets, 0.5)
        gone = table.grad is None or not table.grad.any()
        return {
            "whether the gradient is taken away": gone,
            "the kind of thing returned": type(loss).__name__,
            "whether inputs and targets are unchanged": (inputs.tolist(), targets.tolist())
            == tuple(map(list, given)),
        }

    yield Case("one step at rate 1", partial(moved, [1.0]))
    yield Case("one step at rate 0.25", partial(moved, [0.25]))
    yield Case("three steps at rate 2", partial(moved, [2.0, 2.0, 2.0]))
    yield Case("one step, and what it leaves", left)


WORDS = b"low lower lowest new newer newest wide wider widest".split()
MERGES = [
    *((98, 99), (97, 98), (97, 256), (100, 100), (258, 259), (195, 164)),
    *((259, 259), (32, 97), (121, 122), (120, 121), (99, 100)),
]


def probe_merges(m: ModuleType) -> Iterator[Case]:
    def learn(chunks: Sequence[bytes], count: int) -> dict[str, Any]:
        merges = m.learn_merges(iter(chunks), count)
        return {"the merges": str([tuple(int(token) for token in pair) for pair in merges])}

    yield Case("one word, abracadabra, and 3 merges", partial(learn, [b"abracadabra"], 3))
    yield Case("nine words and 6 merges", partial(learn, WORDS, 6))
    yield Case("a rare word before a frequent one", partial(learn, [b"xy", b"ab", b"ab", b"ab", b"xy"], 1))
    yield Case("pairs that occur equally often", partial(learn, [b"zy", b"ba", b"yx", b"ab"], 4))
    yield Case("chunks that end as others begin", partial(learn, [b"ab", b"ba"] * 4 + [b"cd"] * 5, 2))
    yield Case("one byte again and again", partial(learn, [b"aaaaaaa", b"aaa"], 3))
    yield Case("zzzz, which holds the pair zz three times", partial(learn, [b"zzzz", b"ab", b"ab"], 1))
    often = [b"abc"] * 5 + [b"xyz"] * 3 + [b"mno"] * 4
    yield Case("words that come three to five times", partial(learn, often, 5))
    yield Case("bytes above 127", partial(learn, ["größer größte".encode()], 5))
    yield Case("more merges than there are pairs", partial(learn, [b"abc"], 9))
    yield Case("no merge asked for", partial(learn, WORDS, 0))
    yield Case("no text", partial(learn, [], 5))


def probe_encode(m: ModuleType) -> Iterator[Case]:
    def run(chunk: bytes, merges: Sequence[tuple[int, int]] = MERGES) -> dict[str, Any]:
        given = list(merges)
        ids = m.encode(chunk, given)
        kind = type(ids).__name__
        numbers = str([int(token) for token in ids])
        return {
            "the tokens": numbers,
            "the kind of thing": kind,
            "the merges unchanged": given == list(merges),
        }

    yield Case("abc, of which bc was learned before ab", partial(run, b"abc"))
    yield Case("ab alone", partial(run, b"ab"))
    yield Case("xyz, of which yz was learned before xy", partial(run, b"xyz"))
    yield Case("bcd, of which bc was learned before cd", partial(run, b"bcd"))
    yield Case("a merge that others make possible", partial(run, b"abcdd"))
    longest = [(97, 98), (99, 100), (256, 99)]
    yield Case("abcd, of which cd was learned before abc", partial(run, b"abcd", longest))
    yield Case("one merge at several places", partial(run, b"bcxbcbc"))
    yield Case("a pair that overlaps itself", partial(run, b"ddddd"))
    yield Case("bytes above 127", partial(run, "näher".encode()))
    yield Case("a space", partial(run, b" abc a"))
    yield Case("no merges", partial(run, b"abc", []))
    yield Case("one byte", partial(run, b"a"))
    yield Case("an empty chunk", partial(run, b""))


DOCUMENTS: tuple[list[int], ...] = (
    [11, 12, 13, 14, 15],
    [21],
    [],
    [31, 32, 33, 34, 35, 36, 37, 38],
    [41, 42],
    [51, 52, 53, 54],
)


def probe_batches(m: ModuleType) -> Iterator[Case]:
    def cut(documents: Sequence[list[int]], B: int, T: int) -> dict[str, Any]:
        given = [list(document) for document in documents]
        made = list(m.batches(iter(given), B, T, 7))
        seen: dict[str, Any] = {"the number of batches": str(len(made))}
        for n, (inputs, targets) in enumerate(made):
            seen[f"the inputs of batch {n}"] = inputs.double()
            seen[f"the targets of batch {n}"] = targets.double()
            seen[f"the dtypes of batch {n}"] = f"{inputs.dtype} and {targets.dtype}"
        return {**seen, "whether the documents are unchanged": given == list(documents)}

    def lazily() -> dict[str, Any]:
        taken: list[int] = []

        def endless() -> Iterator[list[int]]:
            for n in range(1000):
                taken.append(n)
                yield [n, n, n, n]

        source = iter(m.batches(endless(), 2, 3, 7))
        next(source)
        return {"whether only the documents that are needed were read": len(taken) <= 3}

    yield Case("6 documents, B = 2, T = 3", partial(cut, DOCUMENTS, 2, 3))
    yield Case("6 documents, B = 1, T = 4", partial(cut, DOCUMENTS, 1, 4))
    yield Case("6 documents, B = 3, T = 1", partial(cut, DOCUMENTS, 3, 1))
    yield Case("just enough for one batch", partial(cut, [[1, 2, 3, 4, 5, 6]], 2, 3))
    yield Case("one token too few", partial(cut, [[1, 2, 3, 4, 5]], 2, 3))
    yield Case("one long document", partial(cut, [list(range(40, 70))], 2, 5))
    yield Case("documents without an end", lazily)


READY_MADE = {"cross_entropy", "cross_entropy_loss", "nll_loss", "nll_loss_nd"}


class Watch(TorchFunctionMode):
    """Notes the most rows that any tensor with V columns had, and whether PyTorch's losses were used."""

    def __init__(self, V: int) -> None:
        super().__init__()
        self.V, self.rows, self.ready_made = V, 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ready_made |= getattr(func, "__name__", "") in READY_MADE
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim == 2 and out.size(1) == self.V:
            self.rows = max(self.rows, out.size(0))
        return out


def wanted(R: int, V: int, ignored: bool) -> Tensor:
    """Targets (R,), some of them -1."""
    targets = (noise(R, name="targets").abs() * 1000).long() % V
    targets[2], targets[5] = 0, V - 1  # a target like any other
    if ignored:
        targets[1::3] = -1
    return targets


def probe_cross_entropy(m: ModuleType) -> Iterator[Case]:
    def run(size: float, ignored: bool, shift: float | Tensor = 0.0) -> dict[str, Any]:
        logits = (noise(10, 23, name="logits") * size + shift).requires_grad_()
        targets = wanted(10, 23, ignored)
        loss = m.cross_entropy(logits, targets)
        seen: dict[str, Any] = {"the loss": loss}
        if isinstance(loss, Tensor) and loss.requires_grad:
            seen["the gradient by the logits"] = torch.autograd.grad(loss, logits)[0]
        else:
            seen["the gradient by the logits"] = NO_GRADIENT
        same = torch.equal(targets, wanted(10, 23, ignored))
        return {**seen, "whether the targets are unchanged": same}

    def by_hand() -> dict[str, Any]:
        with Watch(23) as watch:
            m.cross_entropy(noise(10, 23, name="logits"), wanted(10, 23, True))
        return {"whether it does without PyTorch's own losses": not watch.ready_made}

    yield Case("a target in every row", partial(run, 2.0, False))
    yield Case("3 of 10 targets -1", partial(run, 2.0, True))
    yield Case("scores around 300", partial(run, 2.0, False, 300.0))
    yield Case("scores around -300", partial(run, 2.0, False, -300.0))
    heights = -130.0 * (torch.arange(10) % 2)[:, None]
    yield Case("rows by turns around 0 and -130", partial(run, 2.0, False, heights))
    yield Case("scores from -500 to 500", partial(run, 200.0, True))
    yield Case("all scores equal", partial(run, 0.0, False))
    yield Case("a watch on what is used", by_hand)


def probe_loss_and_gradients(m: ModuleType) -> Iterator[Case]:
    def run(rows: int, ignored: bool, softcap: float = 5.0) -> dict[str, Any]:
        x, weight = noise(10, 6, name="x") * 2, noise(23, 6, name="weight") * 2
        targets = wanted(10, 23, ignored)
        before = x.clone(), weight.clone(), targets.clone()
        loss, dx, dweight = m.loss_and_gradients(x, weight, targets, softcap, rows)
        same = all(torch.equal(*pair) for pair in zip(before, (x, weight, targets), strict=True))
        return {
            "the loss": loss,
            "the gradient by x": dx,
            "the gradient by weight": dweight,
            "whether the arguments are unchanged": same,
        }

    def held(rows: int) -> dict[str, Any]:
        saved: list[Tensor] = []
        x, weight = noise(10, 2, name="x"), noise(23, 2, name="weight")

        def keep(t: Tensor) -> Tensor:
            saved.append(t)
            return t

        with Watch(23) as watch, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            m.loss_and_gradients(x, weight, wanted(10, 23, False), 5.0, rows)
        return {
            f"whether at most {rows} rows of logits are held at a time": watch.rows <= rows,
            "whether autograd takes no part": not saved,
        }

    yield Case("all rows in one chunk", partial(run, 10, False))
    yield Case("all rows in one chunk, some targets -1", partial(run, 10, True))
    yield Case("chunks of 4 rows", partial(run, 4, False))
    yield Case("chunks of 4 rows, some targets -1", partial(run, 4, True))
    yield Case("a wide softcap", partial(run, 4, True, 50.0))
    yield Case("chunks larger than there are rows", partial(run, 64, True))
    yield Case("a watch on the chunks", partial(held, 3))


def probe_adamw(m: ModuleType) -> Iterator[Case]:
    def run(steps: int, **settings: Any) -> dict[str, Any]:
        chosen = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.0, **settings}
        p, state = noise(4, 6, name="p"), dict[str, Any]()
        with torch.no_grad():
            for turn in range(steps):
                grad = noise(4, 6, name=f"gradient {turn}") * 0.3
                before = grad.clone()
                m.update_adamw(p, grad, state, **chosen)
        names = ("exp_avg", "exp_avg_sq")
        kept = {f"state[{name!r}]": state.get(name, "missing") for name in names}
        return {
            "p": p,
            **kept,
            "state['step']": float(state["step"]) if "step" in state else "missing",
            "whether the gradient is unchanged": torch.equal(grad, before),
        }

    def two() -> dict[str, Any]:
        p, q = noise(3, 2, name="p"), noise(3, 2, name="q")
        first, second = dict[str, Any](), dict[str, Any]()
        settings = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.0}
        with torch.no_grad():
            for _ in range(2):
                m.update_adamw(p, noise(3, 2, name="a"), first, **settings)
                m.update_adamw(q, noise(3, 2, name="b"), second, **settings)
        return {"the first parameter": p, "the second parameter": q}

    yield Case("one step", partial(run, 1))
    yield Case("four steps", partial(run, 4))
    yield Case("four steps with other betas", partial(run, 4, betas=(0.9, 0.99)))
    yield Case("a weight decay of 0.3", partial(run, 3, weight_decay=0.3))
    yield Case("an eps of 0.5", partial(run, 3, eps=0.5))
    yield Case("a rate of 0.01", partial(run, 2, lr=0.01, weight_decay=0.2))
    yield Case("two parameters by turns", two)


def probe_orthogonalize(m: ModuleType) -> Iterator[Case]:
    def run(*shape: int, size: float = 1.0, steps: int = 5) -> dict[str, Any]:
        g = noise(*shape, name="g") * size
        before = g.clone()
        x = m.orthogonalize(g, steps, torch.float32)
        return {"the result": x, "whether g is unchanged": torch.equal(g, before)}

    def narrow() -> dict[str, Any]:
        x = m.orthogonalize(noise(1, 4, 4, name="g"), 5, torch.bfloat16)
        return {"the dtype": str(x.dtype), "the result": Near(x.float(), 0.1)}

    def fastest() -> dict[str, Any]:
        return {"the dtype": str(m.orthogonalize(noise(1, 3, 4, name="g").double(), 1).dtype)}

    def mixed() -> dict[str, Any]:
        g = noise(3, 4, 6, name="g")
        g[1] *= 100
        return {"the result": m.orthogonalize(g, 5, torch.float32)}

    yield Case("one square matrix", partial(run, 1, 5, 5))
    yield Case("two wide matrices", partial(run, 2, 3, 7))
    yield Case("two tall matrices", partial(run, 2, 7, 3))
    yield Case("one iteration", partial(run, 1, 3, 4, steps=1))
    yield Case("no iteration", partial(run, 1, 3, 4, steps=0))
    yield Case("numbers around 1000", partial(run, 1, 4, 6, size=1000.0))
    yield Case("numbers around 0.001", partial(run, 1, 4, 6, size=0.001))
    yield Case("three matrices, one of them large", mixed)
    yield Case("zeros", lambda: {"the result": m.orthogonalize(torch.zeros(1, 3, 4), 5, torch.float32)})
    yield Case("bfloat16 asked for", narrow)
    yield Case("float64, and no format asked for", fastest)


SHAPES = ((4, 4), (8, 4), (4, 8), (4, 4), (6, 2))


def muon_parameters() -> list[nn.Parameter]:
    return [nn.Parameter(noise(*shape, name=f"p{n}")) for n, shape in enumerate(SHAPES)]


def give_gradients(ps: Sequence[nn.Parameter], turn: int) -> None:
    for n, p in enumerate(ps):
        p.grad = noise(*p.shape, name=f"gradient {turn} of {n}")


def step_with_a_closure(m: ModuleType) -> dict[str, Any]:
    ps = muon_parameters()
    optimizer = m.Muon(ps, lr=0.1, ns_dtype=torch.float32)

    def closure() -> float:
        loss = (ps[0] * noise(4, 4, name="direction")).sum()
        torch.autograd.backward(loss)
        return 2.5

    got = optimizer.step(closure)
    return {"what comes back": str(got), "the parameter": ps[0]}


def probe_muon(m: ModuleType) -> Iterator[Case]:
    def run(turns: int, **settings: Any) -> dict[str, Any]:
        ps = muon_parameters()
        optimizer = m.Muon(ps, **{"lr": 0.1, "ns_dtype": torch.float32, **settings})
        for turn in range(turns):
            give_gradients(ps, turn)
            optimizer.step()
        return {f"parameter {n}, {tuple(p.shape)}": p for n, p in enumerate(ps)}

    def groups() -> dict[str, Any]:
        ps = muon_parameters()
        both = [{"params": ps[:2], "lr": 0.05}, {"params": ps[2:], "lr": 0.02, "momentum": 0.5}]
        optimizer = m.Muon(both, lr=0.1, ns_dtype=torch.float32)
        for turn in range(2):
            give_gradients(ps, turn)
            optimizer.step()
        return {f"parameter {n}, {tuple(p.shape)}": p for n, p in enumerate(ps)}

    def without() -> dict[str, Any]:
        ps = muon_parameters()
        optimizer = m.Muon(ps, lr=0.1, ns_dtype=torch.float32)
        give_gradients(ps, 0)
        ps[1].grad = None
        optimizer.step()
        same = all(
            torch.equal(p.grad, noise(*p.shape, name=f"gradient 0 of {n}"))
            for n, p in enumerate(ps)
            if p.grad is not None
        )
        return {
            "the one without a gradient": ps[1],
            "another": ps[0],
            "the last one": ps[-1],
            "whether gradients are unchanged": same,
        }

    yield Case("one step", partial(run, 1))
    yield Case("three steps", partial(run, 3))
    yield Case("a rate of 0.01", partial(run, 1, lr=0.01))
    yield Case("no Nesterov", partial(run, 2, nesterov=False))
    yield Case("two iterations", partial(run, 1, ns_steps=2))
    yield Case("two groups with other settings", groups)
    yield Case("one parameter without a gradient", without)
    yield Case("a closure", partial(step_with_a_closure, m))


def probe_schedule(m: ModuleType) -> Iterator[Case]:
    def run(steps: int, *shape: float) -> dict[str, Any]:
        schedule = m.Schedule(*shape)
        return {
            "the factors over the run": torch.tensor(
                [float(schedule.multiplier(n / steps, 1 / steps)) for n in range(steps + 1)]
            )
        }

    yield Case("no warmup, no warmdown", partial(run, 10, 0.0, 0.0, 0.0))
    yield Case("a warmup of 0.3", partial(run, 10, 0.3, 0.0, 0.0))
    yield Case("a warmdown of 0.4", partial(run, 10, 0.0, 0.4, 0.0))
    yield Case("a warmdown of 0.4 to 0.2", partial(run, 10, 0.0, 0.4, 0.2))
    yield Case("a warmup of 0.25, a warmdown of 0.5 to 0.1, 16 steps", partial(run, 16, 0.25, 0.5, 0.1))
    yield Case("a warmup of 0.05, shorter than a step", partial(run, 10, 0.05, 0.0, 0.0))
    yield Case(
        "a run that is longer than it should be",
        lambda: {"the factor past the end": float(m.Schedule(0.0, 0.5, 0.1).multiplier(1.2, 0.1))},
    )


class Squares(nn.Module):
    """A model whose loss is easy to differentiate by hand: the mean of (w·x - y)²."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(noise(5, name="w"))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar."""
        return (x @ self.w - y).square().mean()


def pairs_of_numbers(taken: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for n in range(12):
        taken.append(n)
        yield noise(4, 5, name=f"x{n}"), noise(4, name=f"y{n}")


def parts_of_a_step(m: ModuleType) -> dict[str, Any]:
    """Where a step is, whenever the model is asked and whenever a gradient has come."""
    inside, seen = [""], list[str]()

    @contextlib.contextmanager
    def part(name: str) -> Iterator[None]:
        inside.append(name)
        yield
        inside.pop()

    class Watched(Squares):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(f"forward in {inside[-1] or 'no part'}")
            return super().forward(x, y)

    model = Watched()

    def note(_: Tensor) -> None:
        seen.append(f"backward in {inside[-1] or 'no part'}")

    model.w.register_hook(note)  # type: ignore[no-untyped-call]
    m.accumulate_gradients(model, pairs_of_numbers([]), 2, part=part)
    return {"the parts": ", ".join(seen)}


def probe_accumulation(m: ModuleType) -> Iterator[Case]:
    def run(count: int, before: bool = False) -> dict[str, Any]:
        model, taken = Squares(), list[int]()
        if before:
            model.w.grad = noise(5, name="earlier")
        loss = m.accumulate_gradients(model, pairs_of_numbers(taken), count)
        return {
            "the gradient": NO_GRADIENT if model.w.grad is None else model.w.grad,
            "the loss": loss,
            "whether the loss is detached": not loss.requires_grad,
            "the number of batches taken": str(len(taken)),
            "whether the weights are unchanged": torch.equal(model.w.detach(), noise(5, name="w")),
        }

    def entered() -> dict[str, Any]:
        class Guard:
            depth = passes = 0

            def __enter__(self) -> None:
                Guard.depth += 1

            def __exit__(self, *_: object) -> None:
                Guard.depth -= 1

        class Watched(Squares):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                Guard.passes += Guard.depth
                return super().forward(x, y)

        m.accumulate_gradients(Watched(), pairs_of_numbers([]), 3, Guard)
        return {"forward passes under autocast": str(Guard.passes)}

    yield Case("one batch", partial(run, 1))
    yield Case("three batches", partial(run, 3))
    yield Case("eight batches", partial(run, 8))
    yield Case("a gradient that is there already", partial(run, 2, before=True))
    yield Case("autocast", entered)
    yield Case("a watch on the parts", partial(parts_of_a_step, m))


LENGTHS = torch.tensor([1, 1, 3, 2, 5, 0])  # bytes of six tokens; the last stands for no text


def probe_losses_and_bytes(m: ModuleType) -> Iterator[Case]:
    def model(inputs: Tensor, targets: Tensor, loss_reduction: str = "mean") -> Tensor:
        losses = noise(inputs.numel(), name=f"losses {int(inputs[0, 0])}").abs() + 0.1
        if loss_reduction != "none":
            return losses.mean()
        losses = torch.where(targets.flatten() == 5, math.inf, losses)
        losses = torch.where(targets.flatten() < 0, 0.0, losses)
        return losses.requires_grad_()

    def batch(n: int) -> tuple[Tensor, Tensor]:
        targets = (noise(2, 4, name=f"t{n}").abs() * 100).long() % 6
        if n == 1:
            targets[1, 2:] = -1
        return torch.full((2, 4), n), targets

    def run(steps: int, there: int = 4) -> dict[str, Any]:
        taken: list[int] = []

        def given() -> Iterator[tuple[Tensor, Tensor]]:
            for n in range(there):
                taken.append(n)
                yield batch(n)

        nats, size, seen, asked = m.losses_and_bytes(model, given(), steps, LENGTHS.clone())
        return {
            "nats": float(nats),
            "bytes": float(size),
            "targets seen": float(seen),
            "targets wanted": float(asked),
            "the number of batches taken": str(len(taken)),
        }

    yield Case("one batch", partial(run, 1))
    yield Case("three batches of four", partial(run, 3))
    yield Case("all batches", partial(run, 0))
    yield Case("more batches than there are", partial(run, 6))
    yield Case("no batch", partial(run, 2, 0))


def generators_of(n: int, seed: int = 1) -> list[random.Random]:
    return [random.Random(seed + i) for i in range(n)]


def draws_of_six_rows(m: ModuleType) -> dict[str, Any]:
    logits = noise(6, 8, name="rows")
    generators = generators_of(6)
    torch.manual_seed(3)
    random.seed(3)
    states, torchs, pythons = [r.getstate() for r in generators], torch.get_rng_state(), random.getstate()
    first = m.sample_next(logits, generators)
    moved = [state != rng.getstate() for state, rng in zip(states, generators, strict=True)]
    quiet = torch.equal(torchs, torch.get_rng_state()), pythons == random.getstate()
    alone = [m.sample_next(logits[i : i + 1], [random.Random(1 + i)]).item() for i in range(6)]
    return {
        "whether each row draws from its own generator": all(moved),
        "whether a row alone gets the same token": first.flatten().tolist() == alone,
        "whether torch's own random state is left alone": quiet[0],
        "whether Python's own random state is left alone": quiet[1],
        "whether the logits are unchanged": torch.equal(logits, noise(6, 8, name="rows")),
    }


def probe_sample_next(m: ModuleType) -> Iterator[Case]:
    def shares(n: int, **named: Any) -> dict[str, Any]:
        chosen = m.sample_next(SCORES.repeat(n, 1), generators_of(n), **named)
        counts = torch.bincount(chosen.flatten(), minlength=8)
        within = 4.5 / (2 * n) ** 0.5
        return {
            "the shape and dtype": f"{tuple(chosen.shape)}, {chosen.dtype}",
            "the share of each of 8 tokens": Near(counts / n, within),
        }

    def kept(k: int, scores: Tensor = SCORES) -> dict[str, Any]:
        logits = scores.repeat(400, 1)
        chosen = m.sample_next(logits, generators_of(400), temperature=2.0, top_k=k)
        return {
            "the tokens that ever come": str(sorted(set(chosen.flatten().tolist()))),
            "whether the logits are unchanged": torch.equal(logits, scores.repeat(400, 1)),
        }

    def apart() -> dict[str, Any]:
        """Two kinds of rows, of which one has a likeliest that is below all of the other."""
        logits = torch.stack([SCORES, SCORES.flip(0) - 20]).repeat(200, 1)
        chosen = m.sample_next(logits, generators_of(400), temperature=2.0, top_k=2).flatten()
        return {f"the tokens of row {i}": str(sorted(set(chosen[i::2].tolist()))) for i in (0, 1)}

    def greedy() -> dict[str, Any]:
        logits = torch.stack([SCORES, SCORES.flip(0), torch.zeros(8)])
        generators = generators_of(3)
        states = [rng.getstate() for rng in generators]
        chosen = m.sample_next(logits, generators, temperature=0.0)
        return {
            "the tokens": str(chosen.flatten().tolist()),
            "whether nothing was drawn": states == [rng.getstate() for rng in generators],
        }

    def refused(scores: Tensor = SCORES, **named: Any) -> dict[str, Any]:
        m.sample_next(scores[None], generators_of(1), **named)
        return {"what happens": "nothing is refused"}

    yield Case("temperature 1", partial(shares, 800))
    yield Case("temperature 0.5", partial(shares, 800, temperature=0.5))
    yield Case("temperature 2", partial(shares, 800, temperature=2.0))
    yield Case("temperature 0", greedy)
    yield Case("top_k 3", partial(kept, 3))
    yield Case("top_k 1", partial(kept, 1))
    yield Case("top_k 2 in two kinds of rows", apart)
    yield Case("top_k 2 where three tie", partial(kept, 2, torch.tensor([1.0, 3.0, 3.0, 0.0, 3.0])))
    yield Case("top_k 100 of 8 tokens", partial(shares, 800, top_k=100))
    yield Case("six rows with six generators", partial(draws_of_six_rows, m))
    for temperature in (-1.0, math.inf):
        yield Case(f"temperature {temperature}", partial(refused, temperature=temperature))
    yield Case("top_k 0", partial(refused, top_k=0))
    yield Case("scores that are NaN", partial(refused, torch.full((8,), math.nan)))


def cache_of(m: ModuleType, filled: bool = True) -> Any:
    made = m.KVCache(batch_size=2, num_heads=3, seq_len=9, head_dim=4, num_layers=2)
    if filled:
        made.store = torch.full((2, 2, 2, 3, 9, 4), 7.0)  # what a fresh memory holds: anything
    return made


def keys_and_values(T: int, name: str) -> tuple[Tensor, Tensor]:
    return noise(2, 3, T, 4, name=f"k {name}"), noise(2, 3, T, 4, name=f"v {name}")


def probe_insert(m: ModuleType) -> Iterator[Case]:
    def insert(pieces: Sequence[int]) -> dict[str, Any]:
        made, seen = cache_of(m), dict[str, Any]()
        for n, T in enumerate(pieces):
            for layer in range(2):
                k, v = made.insert_kv(layer, *keys_and_values(T, f"{n} {layer}"))
                seen[f"the keys of layer {layer} after insertion {n}"] = k
                seen[f"the values of layer {layer} after insertion {n}"] = v
                seen[f"the position after layer {layer} of insertion {n}"] = str(made.get_pos())
        return seen

    def again() -> dict[str, Any]:
        made = cache_of(m)
        for layer in range(2):
            made.insert_kv(layer, *keys_and_values(4, f"old {layer}"))
        made.reset()
        k, v = made.insert_kv(0, *keys_and_values(2, "new"))
        return {"the keys": k, "the values": v}

    def viewed() -> dict[str, Any]:
        made = cache_of(m, filled=False)
        k, _ = made.insert_kv(0, *keys_and_values(3, "a"))
        where = made.store.untyped_storage().data_ptr() if made.store is not None else 0
        return {"whether the memory itself is returned, not a copy": k.untyped_storage().data_ptr() == where}

    def formats() -> dict[str, Any]:
        k, v = keys_and_values(2, "f")
        got = cache_of(m, filled=False).insert_kv(0, k, v.bfloat16())
        return {"the dtypes": f"{got[0].dtype} and {got[1].dtype}"}

    def refused(*shape: int, of_values: tuple[int, ...] = ()) -> dict[str, Any]:
        made = cache_of(m)
        made.insert_kv(0, *keys_and_values(2, "a"))
        made.insert_kv(1, *keys_and_values(2, "b"))
        made.insert_kv(0, noise(*shape, name="k"), noise(*(of_values or shape), name="v"))
        return {"what happens": "nothing is refused"}

    def left() -> dict[str, Any]:
        made = cache_of(m)
        for layer in range(2):
            made.insert_kv(layer, *keys_and_values(4, f"old {layer}"))
        before = made.store.clone()
        with contextlib.suppress(ValueError, AssertionError):
            made.insert_kv(0, *keys_and_values(8, "too many"))
        return {"whether the memory is unchanged": torch.equal(made.store, before)}

    yield Case("a prompt of 3 positions", partial(insert, (3,)))
    yield Case("3 positions, 2 more, and 1", partial(insert, (3, 2, 1)))
    yield Case("one position at a time", partial(insert, (1, 1, 1)))
    yield Case("exactly as many as there is room for", partial(insert, (5, 4)))
    yield Case("a second text after reset", again)
    yield Case("a look at the memory", viewed)
    yield Case("keys in float32 and values in bfloat16", formats)
    yield Case("8 positions where 7 have room", partial(refused, 2, 3, 8, 4))
    yield Case("8 positions where 5 have room, and what that leaves", left)
    yield Case("another number of heads", partial(refused, 2, 1, 1, 4))
    yield Case("another number of rows", partial(refused, 1, 3, 1, 4))
    yield Case("values of one head", partial(refused, 2, 3, 1, 4, of_values=(2, 1, 1, 4)))


def two_optimizers(m: ModuleType) -> tuple[nn.Linear, list[torch.optim.Optimizer]]:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(noise(3, 4, name="weight"))
        model.bias.zero_()
    model.register_buffer("scale", torch.ones(()))
    # The first step of PyTorch's own optimizers imports its compiler, which takes longer than all the rest.
    return model, [m.AdamW([model.weight], lr=0.1), m.AdamW([model.bias], lr=0.05)]


def train_a_little(model: nn.Linear, optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        loss = (model(torch.randn(5, 4)) - 1).square().mean()
        torch.autograd.backward(loss)
        _move(model, optimizers)


def write_half(what: Any, where: Any, *rest: Any, **named: Any) -> None:
    if hasattr(where, "write"):
        where.write(b"half of a file")
    else:
        Path(where).write_bytes(b"half of a file")
    raise OSError("the plug is pulled")


def probe_save(m: ModuleType) -> Iterator[Case]:
    def goes_on() -> dict[str, Any]:
        with folder_to_write_in() as folder:
            path = folder / "run.pt"
            model, optimizers = two_optimizers(m)
            train_a_little(model, optimizers, 3)
            optimizers[0].param_groups[0]["lr"] = 0.03  # as a schedule does
            model.get_buffer("scale").fill_(2.0)
            m.save(path, model, optimizers, 3)
            train_a_little(model, optimizers, 4)
            other, others = two_optimizers(m)
            torch.manual_seed(99)
            step = m.resume(path, other, others)
            train_a_little(other, others, 4)
            left = ", ".join(sorted(p.name for p in folder.iterdir()))
        return {
            "the step that comes back": str(step),
            "how far the weights are from those of a run that was not stopped": (other.weight - model.weight),
            "how far the biases are": (other.bias - model.bias),
            "the buffer": other.get_buffer("scale"),
            "the files in the folder": left,
        }

    def twice() -> dict[str, Any]:
        with folder_to_write_in() as folder:
            path = folder / "run.pt"
            model, optimizers = two_optimizers(m)
            m.save(path, model, optimizers, 1)
            with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
                (Path(aside) / "older").hardlink_to(path)
                older = path.read_bytes()
                train_a_little(model, optimizers, 2)
                m.save(path, model, optimizers, 3)
                replaced = (Path(aside) / "older").read_bytes() == older
            other, others = two_optimizers(m)
            step = m.resume(path, other, others)
            left = ", ".join(sorted(p.name for p in folder.iterdir()))
        return {
            "the step": str(step),
            "the weights": other.weight - model.weight,
            "the files": left,
            "whether the older file was replaced, not written over": replaced,
        }

    def cut_short() -> dict[str, Any]:
        with folder_to_write_in() as folder:
            path = folder / "run.pt"
            model, optimizers = two_optimizers(m)
            m.save(path, model, optimizers, 1)
            before = path.read_bytes()
            with patch("torch.save", write_half), contextlib.suppress(OSError):
                m.save(path, model, optimizers, 2)
            kept = path.read_bytes() if path.exists() else None
        return {"the older file": "whole" if kept == before else "gone" if kept is None else "damaged"}

    yield Case("a run that is stopped after 3 steps and goes on", goes_on)
    yield Case("two checkpoints under one name", twice)
    yield Case("a plug that is pulled while it is written", cut_short)


def _move(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()


SECOND_PROBES: dict[str, Probe] = {
    "step": probe_step,
    "learn_merges": probe_merges,
    "encode": probe_encode,
    "batches": probe_batches,
    "cross_entropy": probe_cross_entropy,
    "loss_and_gradients": probe_loss_and_gradients,
    "update_adamw": probe_adamw,
    "orthogonalize": probe_orthogonalize,
    "Muon.step": probe_muon,
    "Schedule.multiplier": probe_schedule,
    "accumulate_gradients": probe_accumulation,
    "losses_and_bytes": probe_losses_and_bytes,
    "sample_next": probe_sample_next,
    "KVCache.insert_kv": probe_insert,
    "save": probe_save,
}

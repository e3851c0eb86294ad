"""Measure this machine: training steps, the loss, compilation, tokenizer, loader and decoding, in turns."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, pick_device, run_program
from nanochat.flags import flag, parse_flags
from nanochat.machine import Machine, measure_rates, multiplies_bfloat16, own_cores, this_machine
from nanochat.measured_text import VOCAB_SIZE, open_text, prepare_text
from nanochat.models import choose_gpt, gaps_named, load_gpt
from nanochat.records import (
    FORMAT,
    another_base,
    command_of,
    describe_machine,
    moment,
    read_record,
    write_record,
)
from nanochat.system import load_average
from nanochat.turns import (
    NO_MEMORY,
    Child,
    Work,
    load_line,
    number,
    say,
    set_up_as_training_does,
    spread,
    table,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nanochat.engine import Engine
    from nanochat.normans_gpt import GPT

FORMATS = ("float32", "bfloat16")
TWINS = ("float32", "bfloat16", "int8")
PROMPTS = ((1, ""), (8, ", 8 prompts"))
WARM_UP = 3  # repetitions that do not count
DEVICES = ("", "cuda", "mps", "cpu")
NEEDED = ("machine", "groups", "text")  # in a record
PARTS = ("blocks, forward", "loss", "blocks, backward", "clipping", "AdamW", "Muon")
TITLES = {
    "steps": "A training step",
    "loss": "The loss: all logits at once, or in chunks",
    "small": "A step of the small model",
    "compile": "Compile the model, or its blocks",
    "d12": "A step at depth 12",
    "d20": "A step at depth 20",
    "tokenizer": "Encoding",
    "loader": "Loading batches",
    "products": "A few rows times the head's matrix",
    "decoding": "Decoding",
}


@dataclass(frozen=True)
class Size:
    """The size of a model, and of a batch: B sequences of T tokens."""

    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int
    T: int
    B: int


@dataclass(frozen=True)
class Case:
    """One thing to measure. Cases of one group take turns; the first is what the others are compared with."""

    group: str
    name: str
    work: str  # a key of WORK
    size: Size
    dtype: str = "bfloat16"
    compiled: str = ""  # or "blocks", as training does it, or "whole"
    fresh: bool = False  # compile with an empty cache
    loss: str = "in chunks"  # or "all at once"
    cached: bool = True  # decoding: with a key-value cache
    weights: str = ""  # decoding: the format of the twin's weights; without, the model itself
    count: int = 1  # threads of the tokenizer, rows of a product, prompts of decoding
    gpt: str = "book"  # whose model


SEED = Size(n_layer=4, n_embd=256, n_head=2, vocab_size=65536, T=512, B=1)
D12 = Size(n_layer=12, n_embd=768, n_head=6, vocab_size=65536, T=2048, B=32)
D20 = Size(n_layer=20, n_embd=1280, n_head=10, vocab_size=65536, T=2048, B=32)
TINY = Size(n_layer=1, n_embd=32, n_head=1, vocab_size=512, T=32, B=1)


def small(bfloat16: bool) -> Size:
    """What `make train` trains on a machine that multiplies bfloat16 in hardware, or that does not."""
    # Imported here, because the site is built where neither PyTorch nor a tokenizer is installed.
    from nanochat.plans import SMALL, WIDE

    plan = WIDE if bfloat16 else SMALL
    return Size(
        plan.depth, plan.n_embd, plan.n_head, plan.vocab_size, plan.max_seq_len, plan.device_batch_size
    )


GROUPS = ("steps", "loss", "small", "compile", "d12", "d20", "tokenizer", "loader", "products", "decoding")


def cases_for(machine: Machine, quick: bool) -> list[Case]:
    """Everything there is to measure on this machine; quick: what needs no compiler, at tiny sizes."""
    formats = FORMATS if machine.bfloat16 else FORMATS[:1]
    if quick:
        every = all_cases(TINY, TINY, TINY, FORMATS) + decoding_cases(TINY, FORMATS, machine.type)
        return [case for case in every if not case.compiled]
    if machine.type == "cuda":
        large = [
            Case(f"d{size.n_layer}", "bfloat16, compiled", "step", size, compiled="blocks")
            for size in (D12, D20)
        ]
        middle = replace(D12, B=8)
        one = replace(D12, B=1)
        return all_cases(SEED, middle, middle, formats) + decoding_cases(one, formats, machine.type) + large
    ours = both_ways("small", small(machine.bfloat16), formats[-1])
    every = all_cases(SEED, replace(SEED, B=4), SEED, formats)
    return every + decoding_cases(SEED, formats, machine.type) + ours


def all_cases(steps: Size, loss: Size, compiling: Size, formats: Sequence[str]) -> list[Case]:
    """The groups that exist on every device, at the given sizes; the last of the formats is the fast one."""
    fast = formats[-1]
    ways = [(loss_way, compiled) for compiled in ("", "blocks") for loss_way in ("all at once", "in chunks")]
    threads = sorted({1, 2, min(8, own_cores())})
    text = replace(small(bfloat16=True), vocab_size=VOCAB_SIZE)
    return [
        *(case for dtype in formats for case in both_ways("steps", steps, dtype)),
        *(Case("loss", f"{way}, {how(c)}", "step", loss, fast, compiled=c, loss=way) for way, c in ways),
        Case("compile", "eager", "step", compiling, fast),
        Case("compile", "whole model", "step", compiling, fast, compiled="whole", fresh=True),
        Case("compile", "block by block", "step", compiling, fast, compiled="blocks", fresh=True),
        *(Case("tokenizer", f"{n} thread{'s' * (n > 1)}", "encode", text, count=n) for n in threads),
        Case("loader", f"T={text.T}, B={text.B}", "load", text),
    ]


def decoding_cases(size: Size, formats: Sequence[str], device_type: str) -> list[Case]:
    """One prompt and eight, with the model as it is and, on a CPU, with twins in every format."""
    model = Case("decoding", "", "decode", size, "float32")
    cases = [replace(model, name="float32, no cache", cached=False)]
    for dtype in formats:
        cases += [replace(model, name=f"{dtype}, cache{few}", dtype=dtype, count=n) for n, few in PROMPTS]
    if device_type != "cpu":
        return cases
    for weights in TWINS:
        for n, few in PROMPTS:
            twin = replace(model, name=f"{weights} twin{few}", weights=weights, count=n)
            cases += [twin, replace(twin, name=f"{weights} twin, compiled{few}", compiled="whole")]
    products = [Case("products", f"{n} row{'s' * (n > 1)}", "multiply", size, count=n) for n, _ in PROMPTS]
    return products + cases


def both_ways(group: str, size: Size, dtype: str) -> list[Case]:
    """Training steps, eager and with compiled blocks."""
    return [Case(group, f"{dtype}, {how(c)}", "step", size, dtype, compiled=c) for c in ("", "blocks")]


def how(compiled: str) -> str:
    """The word for it in a case's name."""
    return "compiled" if compiled else "eager"


class Clock:
    """Adds up the seconds that named parts of one repetition take on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        """A moment: a CUDA event, or the seconds of a clock."""
        import torch

        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event
        if self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to part `name`."""
        start = self.now()
        yield
        self.parts.append((name, start, self.now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = {}
        for name, start, end in self.parts:
            passed = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + passed
        self.parts.clear()
        return seconds


def measure_machine(case: Case, device: torch.device) -> Work:
    """Seconds for one matrix product in float32, one in bfloat16, and a copy."""
    import torch

    n, fast = case.size.n_embd, multiplies_bfloat16(device)
    sides = {name: n if fast or name == "float32" else n // 8 for name in FORMATS}
    formats = {
        name: torch.randn(side, side, device=device, dtype=getattr(torch, name))
        for name, side in sides.items()
    }
    source = torch.ones(64 * 2**20, device=device) if n > TINY.n_embd else torch.ones(2**10, device=device)
    target = torch.empty_like(source)
    clock = Clock(device)

    def turn() -> dict[str, float]:
        for name, matrix in formats.items():
            with clock.part(name):
                matrix @ matrix
        with clock.part("copy"):
            target.copy_(source)
        seconds = clock.read()
        return {name: took * (n // sides.get(name, n)) ** 3 for name, took in seconds.items()}

    for _ in range(WARM_UP):
        turn()
    return {"flops": 2 * n**3, "bytes": 2 * source.nbytes}, turn


def train(case: Case, device: torch.device) -> Work:
    """Seconds of one complete training step."""
    import torch

    from nanochat.step import Rates, Stepper, build_optimizers

    began = time.perf_counter()
    model, clock = build_model(case, device), Clock(device)
    time_the_loss(model, clock)
    stepper = Stepper(
        compile_as_asked(case, model),
        build_optimizers(model, Rates()),
        autocast=lambda: torch.autocast(device.type, torch.bfloat16, case.dtype == "bfloat16"),
        part=lambda name: clock.part("blocks, backward" if name == "backward" else name),
    )
    shape = (case.size.B, case.size.T + 1)

    def turn() -> dict[str, float]:
        tokens = torch.randint(case.size.vocab_size, shape, device=device)
        with clock.part("total"):
            stepper.step(iter([(tokens[:, :-1], tokens[:, 1:])]))
        return clock.read()

    turn()
    first = time.perf_counter() - began
    for _ in range(WARM_UP - 1):
        turn()
    tokens = case.size.B * case.size.T
    parameters = sum(p.numel() for p in model.parameters())
    flops = tokens * model.estimate_flops()
    facts = {"tokens": tokens, "flops": flops, "parameters": parameters, "first step": first}
    return {**facts, "bounds": bounds_of_parts(case)}, turn


def build_model(case: Case, device: torch.device) -> GPT:
    """The model of a case, on its device, with its starting weights."""
    import torch

    from nanochat import step

    size = case.size
    shape = {
        "sequence_len": size.T,
        "vocab_size": size.vocab_size,
        "n_layer": size.n_layer,
        "n_head": size.n_head,
        "n_kv_head": size.n_head,
        "n_embd": size.n_embd,
    }
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else None
    return step.build_model(load_gpt(case.gpt), shape, device, 0, dtype)


def time_the_loss(model: GPT, clock: Clock) -> None:
    """Add the time of the model's loss, which computes its gradients as well, to a part of its own."""
    names = vars(sys.modules[type(model).__module__])
    if function := names.get("softcapped_cross_entropy"):

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with clock.part("loss"):
                return function(*args, **kwargs)

        names["softcapped_cross_entropy"] = wrapper


def bounds_of_parts(case: Case) -> dict[str, dict[str, float]]:
    """For each part of a step the arithmetic it cannot avoid, and the bytes: every operand once.

    The operands of products are in the case's format, weights and averages in float32.
    """
    size, item = case.size, 2 if case.dtype == "bfloat16" else 4
    L, C, V, N = size.n_layer, size.n_embd, size.vocab_size, size.B * size.T
    matrices, tables = 12 * L * C * C, 2 * V * C
    forward = 2 * matrices * N + 4 * L * C * size.T * N
    square, wide = 6 * C**2, 18 * C**2  # 4m²n + 2m³, over C: a step of Newton–Schulz for n = m, n = 4m
    return {
        "blocks, forward": {"flops": forward, "bytes": item * L * (18 * N * C + 12 * C * C)},
        "loss": {"flops": 6 * V * C * N, "bytes": item * (2 * N * C + 2 * V * C) + 4 * V * C},
        "blocks, backward": {
            "flops": 2 * forward,
            "bytes": item * L * (36 * N * C + 12 * C * C) + 4 * matrices,
        },
        "clipping": {"flops": 0, "bytes": 3 * 4 * (matrices + tables)},  # read for the norm, read, written
        "AdamW": {"flops": 0, "bytes": 7 * 4 * tables},  # weight, gradient, two averages read; three written
        "Muon": {"flops": 5 * L * C * (4 * square + 2 * wide), "bytes": 5 * 4 * matrices},
    }


def compile_as_asked(case: Case, model: GPT) -> Any:
    """The module to call for the loss: the model, compiled in the way the case asks for."""
    import torch

    from nanochat.workplace import compile_blocks

    if case.loss == "all at once":
        rival = torch.compile(all_at_once, dynamic=False) if case.compiled == "blocks" else all_at_once
        names = vars(sys.modules[type(model).__module__])
        if "softcapped_cross_entropy" not in names:
            raise UserError(f"--gpt={case.gpt} has a loss of its own, which cannot be exchanged")
        names["softcapped_cross_entropy"] = rival
    if case.compiled == "whole":
        return torch.compile(model, dynamic=False)
    if case.compiled == "blocks":
        compile_blocks(model)  # and the kernel of the loss
    return model


def all_at_once(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str = "mean"
) -> Tensor:
    """What softcapped_cross_entropy computes, from logits (N, V) that all exist at the same time."""
    import torch
    import torch.nn.functional as F

    logits = softcap * torch.tanh(F.linear(x, weight).float() / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def encode(case: Case, device: torch.device) -> Work:
    """Seconds to encode some megabytes of documents with `count` threads."""
    from nanochat.dataset import documents

    name, tokenizer = open_text()
    texts: list[str] = []
    for text in documents(name, "train"):
        texts.append(text)
        if sum(map(len, texts)) > 4e6:
            break
    clock = Clock(device)

    def turn() -> dict[str, float]:
        with clock.part("total"):
            tokenizer.encode(texts, num_threads=case.count)
        return clock.read()

    turn()
    tokens = sum(map(len, tokenizer.encode(texts)))
    return {"tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}, turn


def load(case: Case, device: torch.device) -> Work:
    """Seconds for the loader to bring some batches to the device."""
    from nanochat.common import Ranks
    from nanochat.dataloader import TokenLoader

    name, tokenizer = open_text()
    size = case.size
    loader = TokenLoader(name, "train", tokenizer, size.B, size.T, Ranks(), device=device, seed=0)
    batches = iter(loader)
    clock, count = Clock(device), max(1, 2**19 // (size.B * size.T))

    def turn() -> dict[str, float]:
        with clock.part("total"):
            for _ in range(count):
                next(batches)
        return clock.read()

    turn()
    return {"tokens": count * size.B * size.T}, turn


def multiply(case: Case, device: torch.device) -> Work:
    """Seconds of the product of `count` rows with the head's matrix, by every way that this PyTorch has."""
    import torch
    import torch.nn.functional as F

    from nanochat.decoding import PARTS, PackedLinear, round_to

    V, C, rows = case.size.vocab_size, case.size.n_embd, case.count
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(C, V, bias=False), torch.randn(rows, C)
    weight, x16 = layer.weight.detach(), x.bfloat16()
    narrow, (int8, scale) = weight.bfloat16(), round_to(weight, "int8")
    assert scale is not None
    pieces, scale16 = weight.view(8, -1, C), scale.bfloat16()
    ways: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "F.linear, float32": (4, lambda: F.linear(x, weight)),
        "torch.bmm of eight pieces, float32": (4, lambda: torch.bmm(pieces, x.T.expand(8, C, rows))),
        "F.linear, bfloat16": (2, lambda: F.linear(x16, narrow)),
    }
    with contextlib.suppress(AttributeError, RuntimeError):  # not every build of PyTorch has these
        packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
        ways["FBGEMM, float16"] = 2, lambda: torch.ops.quantized.linear_dynamic_fp16(x, packed)
    with contextlib.suppress(AttributeError, RuntimeError):
        torch._weight_int8pack_mm(x16, int8, scale16)
        ways["torch._weight_int8pack_mm, int8"] = 1, lambda: torch._weight_int8pack_mm(x16, int8, scale16)
    for weights in PARTS:
        ours = PackedLinear(layer, weights)
        ways[f"our kernel, {weights}"] = 4 // PARTS[weights], functools.partial(ours, x)
    clock = Clock(device)

    def turn() -> dict[str, float]:
        with torch.inference_mode(), clock.part("total"):
            for name, (_, way) in ways.items():
                with clock.part(name):
                    way()
        return clock.read()

    turn()
    read = {name: size * V * C for name, (size, _) in ways.items()}
    return {"tokens": rows, "ways": read, "bytes": sum(read.values())}, turn


def decode(case: Case, device: torch.device) -> Work:
    """Seconds to generate a few tokens, with the engine's cache or without."""
    import torch

    from nanochat.decoding import for_decoding
    from nanochat.engine import Engine

    torch.manual_seed(0)
    model = build_model(case, device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)  # no zeros: see the yardstick
    model.to(getattr(torch, case.dtype)).eval()
    model = for_decoding(model, case.weights) if case.weights else model
    prompts = [torch.randint(case.size.vocab_size, (min(64, case.size.T),)).tolist()] * case.count
    engine, clock, length = Engine(model, bool(case.compiled)), Clock(device), min(32, case.size.T)
    time_the_parts(engine, clock)

    def turn() -> dict[str, float]:
        slowly = model.generate(prompts[0], length + 1, temperature=0.0)
        steps = engine.generate(prompts, length + 1, temperature=0.0) if case.cached else slowly
        next(steps)
        clock.read()
        with clock.part("total"):
            for _ in steps:
                pass
        seconds = clock.read()
        if "the model" in seconds:
            seconds["the engine"] = seconds["total"] - seconds["the model"] - seconds["choosing"]
        return seconds

    turn()
    bounds = bounds_of_a_token(case, model, len(prompts[0]) + length // 2)
    read = bounds["product of the head"]["bytes"] + bounds["products of the blocks"]["bytes"]
    for needed in bounds.values():
        needed.update({unit: amount * length for unit, amount in needed.items()})
    facts = {"tokens": case.count * length, "bytes": read * length}
    return {**facts, "bounds": bounds if case.cached else {}}, turn


def time_the_parts(engine: Engine, clock: Clock) -> None:
    """Add the times of a token's parts to parts of their own; for the only engine of this process."""
    import torch

    from nanochat import decoding

    V = engine.model.config.vocab_size

    def timed(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with clock.part(name(*args)):
                return function(*args, **kwargs)

        return wrapper

    def product(rows: int) -> str:
        return "product of the head" if rows == V else "products of the blocks"

    linear = timed(torch.nn.functional.linear, lambda x, weight, *_: product(weight.size(0)))
    torch.nn.functional.linear = linear
    if any(isinstance(layer, decoding.PackedLinear) for layer in engine.model.modules()):
        kernel = timed(decoding.load_kernel(), lambda *arguments: product(arguments[4]))
        vars(decoding)["load_kernel"] = lambda: kernel
    engine.step = timed(engine.step, lambda *_: "the model")
    names = vars(sys.modules["nanochat.engine"])
    names["sample_next"] = timed(names["sample_next"], lambda *_: "choosing")


def bounds_of_a_token(case: Case, model: GPT, position: int) -> dict[str, dict[str, float]]:
    """For each part of a step of one token in each row: its arithmetic, and the bytes of all its operands."""
    from nanochat.decoding import PackedLinear

    size, item = case.size, 2 if case.dtype == "bfloat16" else 4
    L, C, V, B = size.n_layer, size.n_embd, size.vocab_size, case.count
    twins = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    stored: dict[torch.nn.Module, int] = {layer: layer.stored_bytes() for layer in twins}
    head = stored.get(model.lm_head, V * C * item)
    blocks = sum(stored.values()) - head if stored else 12 * L * C * C * item
    scores, cache = 4 * V * B, 2 * L * C * position * item * B
    return {
        "product of the head": {"flops": 2 * V * C * B, "bytes": head},
        "products of the blocks": {"flops": 24 * L * C * C * B, "bytes": blocks},
        "rest of the model": {"flops": 4 * L * C * position * B, "bytes": cache + 2 * scores},
        "choosing": {"flops": 0, "bytes": scores},
        "the engine": {"flops": 0, "bytes": 0},
    }


WORK: dict[str, Callable[[Case, torch.device], Work]] = {
    "machine": measure_machine,
    "step": train,
    "encode": encode,
    "load": load,
    "multiply": multiply,
    "decode": decode,
}


def prepare_case(case: Case, device: torch.device) -> Work:
    """What the process of a case does before its turns."""
    if case.fresh:
        folder = tempfile.TemporaryDirectory(prefix="compiled-")
        atexit.register(folder.cleanup)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    set_up_as_training_does(device)
    return WORK[case.work](case, device)


def measure_group(cases: Sequence[Case], device_type: str, repeats: int) -> list[Child]:
    """Measure cases in turns, all of them alive at once."""
    children: list[Child] = []
    try:
        for case in cases:
            say(f"{case.group}: preparing {case.name}")
            children.append(Child(functools.partial(prepare_case, case), device_type))
        for round_ in range(repeats):
            say(f"{cases[0].group}: round {round_ + 1} of {repeats}")
            for child in children:
                child.take_turn()
    finally:
        for child in children:
            child.stop()
    return children


def describe(case: Case, child: Child, first: Child, yardstick: Child | None) -> dict[str, Any]:
    """The record of one case: what it was, every repetition, and what follows from them."""
    facts, turns = child.facts, child.turns
    record = {
        **asdict(case),
        "failed": child.failed,
        "facts": facts,
        "peak_memory_bytes": child.peak,
        "turns": turns,
    }
    if child.failed or not turns:
        return record
    seconds = [turn["total"] for turn in turns]
    derived = {
        "seconds": spread(seconds),
        "tokens_per_second": spread([facts["tokens"] / s for s in seconds]),
    }
    if "bytes" in facts:
        derived["bytes_per_second"] = spread([facts["bytes"] / s for s in seconds])
    if first.turns and not first.failed:
        pace = first.facts["tokens"] / facts["tokens"]
        derived["speed_to_first"] = spread(
            [a["total"] / pace / b for a, b in zip(first.turns, seconds, strict=True)]
        )
    if yardstick and not yardstick.failed:
        unit, limit = ("flops", case.dtype) if "flops" in facts else ("bytes", "copy")
        speed = facts[unit] / yardstick.facts[unit]
        derived["share_of_machine"] = spread(
            [speed * one[limit] / s for one, s in zip(yardstick.turns, seconds, strict=True)]
        )
    return record | derived


@dataclass(frozen=True)
class BenchConfig:
    """The flags. Raises UserError for values that cannot work."""

    device_type: str = flag("", "where to measure (without: the first of these there is)", choices=DEVICES)
    cases: str = flag("", f"groups to measure, joined by commas (without: all): {', '.join(GROUPS)}")
    repeats: int = flag(0, "repetitions of each case (0: 9, with --quick 2)")
    quick: bool = flag(False, "tiny sizes and no compiler, only to see that it works")
    gpt: str = flag("book", "whose model: book, mine, reference, or the path of a .py file")
    out: str = flag("", "file for the record (without: results/bench-KIND.json for a full run, else none)")
    show: str = flag("", "print the tables of an earlier record; measure nothing")
    machine: bool = flag(False, "print what this machine can do and how fast it is; measure nothing else")

    def __post_init__(self) -> None:
        """Refuse unknown groups and negative counts."""
        if self.repeats < 0:
            raise UserError(f"--repeats={self.repeats}: must be positive, or 0 for the usual number")
        for name in filter(None, self.cases.split(",")):
            if name not in GROUPS:
                raise UserError(f"--cases: there is no group {name!r}; there are {', '.join(GROUPS)}")

    @property
    def rounds(self) -> int:
        """Repetitions of each case."""
        return self.repeats or (2 if self.quick else 9)

    def groups(self, machine: Machine) -> dict[str, list[Case]]:
        """The cases to measure, by group. Raises UserError if there are none on this kind of device."""
        every: dict[str, list[Case]] = {}
        for case in cases_for(machine, self.quick):
            every.setdefault(case.group, []).append(case)
        wanted = [name for name in self.cases.split(",") if name] or list(every)
        if missing := [name for name in wanted if name not in every]:
            size = "--quick" if self.quick else f"a device of type {machine.type}"
            raise UserError(f"--cases: {missing[0]} is not measured on {size}; there are {', '.join(every)}")
        return {
            name: [replace(case, gpt=self.gpt) for case in every[name] if self.can(case)] for name in wanted
        }

    def can(self, case: Case) -> bool:
        """Whether the model can be measured so: the reference's weights have no other format."""
        return not (self.gpt == "reference" and case.weights and case.work == "decode")

    def target(self, machine: Machine) -> Path | None:
        """Where the record goes, if anywhere: one file for each kind of machine, a played one apart."""
        if self.out:
            return Path(self.out)
        whole = self.gpt == "book" and not (self.cases or self.quick)
        return Path("results") / f"bench-{machine.kind}.json" if whole else None


def measure(config: BenchConfig) -> dict[str, Any]:
    """The whole record of a run: every group of cases, measured in turns."""
    device_type = pick_device(config.device_type).type
    groups = config.groups(this_machine(pick_device(config.device_type)))
    try_model(config.gpt)
    began, load_before = time.time(), load_average()
    with another_base("bench-"):
        needs_text = {"encode", "load"} & {case.work for cases in groups.values() for case in cases}
        text = prepare_text(config.quick)[1] if needs_text else "none"
        records = {name: measure_and_describe(cases, device_type, config) for name, cases in groups.items()}
    return {
        "format": FORMAT,
        "date": moment(began),
        "command": command_of("scripts.bench", config),
        "config": asdict(config),
        "machine": describe_machine(device_type),
        "load_average": {"before": load_before, "after": load_average()},
        "seconds": round(time.time() - began, 1),
        "text": text,
        "groups": records,
    }


def try_model(gpt: str) -> None:
    """Build --gpt's model at a tiny size and use all of it once. Raises UserError at a gap in the file."""
    import torch

    case = Case("steps", "trial", "step", TINY, gpt=gpt)
    with gaps_named(gpt):
        model = build_model(case, torch.device("cpu"))
        model.setup_optimizers()
        model.estimate_flops()
        model(torch.zeros(1, TINY.T, dtype=torch.long), torch.zeros(1, TINY.T, dtype=torch.long))
        next(model.generate([0], 1))


def measure_and_describe(cases: list[Case], device_type: str, config: BenchConfig) -> list[dict[str, Any]]:
    """The records of one group, the yardstick's first where the group has a use for it."""
    side = TINY.n_embd if config.quick else {"cuda": 8192}.get(device_type, 2048)
    yardstick = Case(cases[0].group, "yardstick", "machine", replace(TINY, n_embd=side))
    measured = {"step", "multiply", "decode"} & {case.work for case in cases}
    children = measure_group([yardstick, *cases] if measured else cases, device_type, config.rounds)
    reference = children.pop(0) if measured else None
    records = [describe(*pair, children[0], reference) for pair in zip(cases, children, strict=True)]
    return [describe_yardstick(yardstick, reference), *records] if reference else records


def describe_yardstick(case: Case, child: Child) -> dict[str, Any]:
    """The record of the machine's own rates, in FLOP/s and bytes/s."""
    record = {**asdict(case), "failed": child.failed, "facts": child.facts, "turns": child.turns}
    if child.failed:
        return record
    amounts = {name: child.facts["bytes" if name == "copy" else "flops"] for name in (*FORMATS, "copy")}
    rates = {name: spread([n / turn[name] for turn in child.turns]) for name, n in amounts.items()}
    return {**record, "peak_memory_bytes": child.peak, "rates": rates}


def tables(record: dict[str, Any]) -> str:
    """All tables of a record, as Markdown."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['system']}; {versions}.",
        f"Measured {record['date']} in {record['seconds']:.0f} s by `{record['command']}`.",
        f"{load_line(record['load_average']['before'])}; text: {record['text']}.",
    ]
    parts = ["\n".join(lines), machine_table(record)]
    for name, cases in record["groups"].items():
        of_group = ways_table(cases) if name == "products" else group_table(cases, record)
        parts.append(f"### {TITLES[name]}\n\n{size_line(cases[-1])}\n\n{of_group}")
        if name in ("steps", "small", "d12", "d20", "decoding"):
            shown = [case for case in cases if case["compiled"] or case["work"] == "decode"]
            parts += [parts_table(case, cases[0]) for case in shown]
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_table(record: dict[str, Any]) -> str:
    """The machine's own rates, over all groups."""
    every = [case for cases in record["groups"].values() for case in cases]
    yardsticks = [case for case in every if case["work"] == "machine" and not case["failed"]]
    if not yardsticks:
        return ""
    rows = []
    for name, amount, unit, scale in (
        ("float32", "flops", "TFLOP/s", 1e12),
        ("bfloat16", "flops", "TFLOP/s", 1e12),
        ("copy", "bytes", "GB/s", 1e9),
    ):
        rate = spread([c["facts"][amount] / turn[name] / scale for c in yardsticks for turn in c["turns"]])
        title = name if name == "copy" else f"matrix product, {name}"
        rows.append([title, f"{rate['median']:.3g} {unit}", f"{rate['low']:.3g} – {rate['high']:.3g}"])
    peak = yardsticks[0]["peak_memory_bytes"]
    rows.append(["peak memory of the process that measured this", f"{peak / 1e6:,.0f} MB", ""])
    return table(["this machine", "median", "quartiles"], rows)


def group_table(cases: list[dict[str, Any]], record: dict[str, Any]) -> str:
    """One row for each case of a group."""
    cases = [case for case in cases if case["work"] != "machine"]
    work = cases[0]["work"]
    one, unit = ("a token", "tokens") if work == "decode" else ("a step", "tokens")
    header = ["case", f"ms {one}" if work in ("step", "decode") else "ms", "quartiles", f"{unit}/s"]
    header += {"encode": ["MB/s"], "step": ["share of products"], "decode": ["share of copying"]}.get(
        work, []
    )
    datasheet = record["machine"]["datasheet_flops"] if work == "step" else 0.0
    header += ["of datasheet"] if datasheet else []
    header += ["first step, s"] if cases[0]["group"] == "compile" else []
    header += ["speed"] if len(cases) > 1 else []
    header += ["peak, MB"]
    rows = []
    for case in cases:
        if case["failed"] or not case["turns"]:
            rows.append([case["name"], case["failed"] or "not measured", *[""] * (len(header) - 2)])
            continue
        each = repeated(case)
        time_ = {key: value * 1000 / each for key, value in case["seconds"].items()}
        row = [case["name"], number(time_["median"]), f"{number(time_['low'])} – {number(time_['high'])}"]
        row.append(f"{case['tokens_per_second']['median']:,.0f}")
        if work == "encode":
            row.append(f"{case['bytes_per_second']['median'] / 1e6:.1f}")
        if work in ("step", "decode"):
            share = case.get("share_of_machine")
            row.append(f"{share['median']:.0%}" if share else "")
        if datasheet:
            rate = case["facts"]["flops"] / case["seconds"]["median"]
            row.append(f"{rate / datasheet:.0%}" if case["dtype"] == "bfloat16" else "")
        if case["group"] == "compile":
            row.append(f"{case['facts']['first step']:.1f}")
        if len(cases) > 1:
            ratio = case.get("speed_to_first")
            row.append(f"{ratio['median']:.2f} ({ratio['low']:.2f} – {ratio['high']:.2f})" if ratio else "")
        rows.append([*row, f"{case['peak_memory_bytes'] / 1e6:,.0f}"])
    return table(header, rows)


def parts_table(case: dict[str, Any], yardstick: dict[str, Any]) -> str:
    """Where the time of a training step goes, and how near each part is to what the machine allows."""
    bounds, rows, one_is = case["facts"].get("bounds"), [], "token" if case["work"] == "decode" else "step"
    if not bounds or case["failed"] or not case["turns"]:
        return ""
    for part, needed in bounds.items():
        if part == "loss" and part not in case["turns"][0]:  # another model's is a part of its forward pass
            continue
        turns = zip(case["turns"], yardstick["turns"], strict=True)
        pairs = [(seconds_of(part, turn), one) for turn, one in turns]
        arithmetic = [needed["flops"] / yardstick["facts"]["flops"] * one[case["dtype"]] for _, one in pairs]
        memory = [needed["bytes"] / yardstick["facts"]["bytes"] * one["copy"] for _, one in pairs]
        reached = [max(a, m) / s for (s, _), a, m in zip(pairs, arithmetic, memory, strict=True)]
        share = [s / turn["total"] for (s, _), turn in zip(pairs, case["turns"], strict=True)]
        took = statistics.median(s for s, _ in pairs)
        in_seconds = (took, *map(statistics.median, (arithmetic, memory)))
        times = [number(1000 * value / repeated(case)) for value in in_seconds]
        rows.append([part, *times, *(f"{statistics.median(ratio):.0%}" for ratio in (share, reached))])
    bound = ["bound of arithmetic, ms", "bound of memory, ms"]
    return table([case["name"], "ms", *bound, f"of the {one_is}", "bound / time"], rows)


def repeated(case: dict[str, Any]) -> float:
    """How many steps or tokens of each row one repetition took."""
    return float(case["facts"]["tokens"] / case["count"]) if case["work"] == "decode" else 1.0


def seconds_of(part: str, turn: dict[str, float]) -> float:
    """The seconds of one part of a step; two of them are what its other parts leave of a whole."""
    if part == "blocks, forward":
        return turn["forward"] - turn.get("loss", 0.0)
    if part == "rest of the model":
        return turn["the model"] - sum(turn[name] for name in turn if name.startswith("product"))
    return turn.get(part, 0.0)


def ways_table(cases: list[dict[str, Any]]) -> str:
    """The time of each way to multiply, and the rate at which it reads, beside the rate of copying."""
    yardstick, *counts = [case for case in cases if not case["failed"] and case["turns"]]
    header = ["way", "MB read"]
    rows = {way: [f"{size / 1e6:.1f}"] for way, size in counts[0]["facts"]["ways"].items()}
    for case in counts:
        header += [f"{case['name']}, ms", "share of copying"]
        for way, size in case["facts"]["ways"].items():
            pairs = list(zip(case["turns"], yardstick["turns"], strict=True))
            took = statistics.median(turn[way] for turn, _ in pairs)
            copied = [size / yardstick["facts"]["bytes"] * one["copy"] / turn[way] for turn, one in pairs]
            rows[way] += [number(1000 * took), f"{statistics.median(copied):.0%}"]
    return table(header, [[way, *cells] for way, cells in rows.items()])


def size_line(case: dict[str, Any]) -> str:
    """What the cases of a group have in common."""
    size = case["size"]
    model = f"L={size['n_layer']}, C={size['n_embd']}, V={size['vocab_size']:,}"
    if case["work"] == "encode":
        return f"V={size['vocab_size']:,}, {case['facts'].get('bytes', 0) / 1e6:.1f} MB of text."
    if case["work"] == "load":
        return f"V={size['vocab_size']:,}, {case['facts'].get('tokens', 0):,} tokens a repetition."
    if case["work"] == "multiply":
        return f"C={size['n_embd']}, V={size['vocab_size']:,}."
    if case["work"] == "decode":
        first = (
            " and a first one" if case["facts"].get("bounds") else ""
        )  # records of before timed the prompt, too
        return f"{model}; greedy, {min(32, size['T'])} tokens after {min(64, size['T'])}{first}."
    parameters = f", {case['facts']['parameters'] / 1e6:.1f}M parameters" if case["facts"] else ""
    return f"{model}, T={size['T']}, B={size['B']}{parameters}."


def main() -> None:
    """Measure, print the tables, keep the record."""
    config = parse_flags(BenchConfig, sys.argv[1:], "python -m scripts.bench", __doc__ or "")
    if config.show:
        print(tables(read_record(Path(config.show), NEEDED, "records are in results/")), end="")
        return
    device = pick_device(config.device_type)
    if config.machine:
        print(machine_page(device), end="")
        return
    choose_gpt(config.gpt)
    record = measure(config)
    print(tables(record), end="")
    if target := config.target(this_machine(device)):
        write_record(target, record)
        say(f"recorded in {target}")
    failed = [case for cases in record["groups"].values() for case in cases if case["failed"]]
    for case in failed:
        say(f"failed: {case['group']}, {case['name']}: {case['failed']}")
    if any(case["failed"] != NO_MEMORY for case in failed):
        sys.exit(1)


def machine_page(device: torch.device) -> str:
    """What this machine can do, and its measured rates, a line each."""
    machine, rates = this_machine(device), measure_rates(device)
    emulated = "" if machine.bfloat16 else " (emulated)"
    facts = {
        "kind": machine.kind,
        **{name.replace("bfloat16", "bfloat16 products"): value for name, value in asdict(machine).items()},
        "product, float32": f"{rates.float32 / 1e9:,.1f} GFLOP/s",
        "product, bfloat16": f"{rates.bfloat16 / 1e9:,.1f} GFLOP/s{emulated}",
        "copy": f"{rates.copy / 1e9:,.1f} GB/s, read and written",
    }
    return machine.line() + "\n\n" + "".join(f"{name:<18} {value}\n" for name, value in facts.items())


if __name__ == "__main__":
    run_program(main)

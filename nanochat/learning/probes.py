"""Run one function of a model under many conditions and write down what is seen: evidence for a judge."""

import dataclasses
import functools
import random
import signal
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor


@dataclass(frozen=True)
class Raised:
    """An exception instead of a value. `line` is the last line of the learner's file that took part."""

    type: str
    message: str
    line: int | None = None
    unwritten: bool = False
    mistake: str = ""  # what the exception itself is called, if it has a name
    asker: str = ""  # the book's function in which it was raised, if it was in one


NO_GRADIENT = "cut off"


@dataclass(frozen=True)
class Near:
    """A number or tensor that chance may move; `within` is how far, in the same unit."""

    value: float | Tensor
    within: float


@dataclass(frozen=True)
class Case:
    """One condition. `run` returns what is seen under it, by name."""

    name: str
    run: Callable[[], dict[str, Any]]


Probe = Callable[[ModuleType], Iterator[Case]]
Seen = dict[str, Any] | Raised  # by name: a tensor, number, text, dict or Near


IN_OTHER_WORDS = {
    "BdbQuit": "a debugger was entered, and nobody is at the keyboard; remove breakpoint() or set_trace()",
    "EOFError": "input() was asked, and nobody is at the keyboard",
    "KeyboardInterrupt": "the function raises it itself",
    "SystemExit": "the function ends the program; it must return",
}


def describe(value: Any) -> str:
    """A value in words: type and shape, never its numbers."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, Tensor):
        kind = "" if value.dtype == torch.float32 else f" of {str(value.dtype).removeprefix('torch.')}"
        return f"a tensor of shape {tuple(value.shape)}{kind}"
    if isinstance(value, tuple | list):
        parts = ", ".join(describe(part) for part in value[:3])
        more = ", …" if len(value) > 3 else ""
        return f"a {type(value).__name__} of {len(value)}{f' ({parts}{more})' if value else ''}"
    if isinstance(value, bool | int | float):
        return f"the number {value:.6g}" if not isinstance(value, bool) else str(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:60]}…")
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a NumPy array of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dictionary of {len(value)} entries"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__} itself"
    return f"an object of type {type(value).__name__}"


class WrongReturn(Exception):
    """A function returned another kind of thing than its callers need."""

    def __init__(self, text: str, mistake: str) -> None:
        super().__init__(text)
        self.mistake = mistake


RETURN_MISTAKES = {
    "nothing-returned": "The function ends without a return: what it has computed is lost.",
    "several-things-returned": "Several things are returned together where callers expect one tensor.",
    "a-python-number-returned": "A plain number is returned: it has left PyTorch and carries no gradient.",
    "a-numpy-array-returned": "A NumPy array is returned: it has left PyTorch and carries no gradient.",
    "a-list-returned": "All are made before the first is handed over; callers read as they are made.",
    "a-tensor-returned": "A tensor is returned where a plain number was wanted; it keeps its graph alive.",
    "bytes-returned": "Bytes are returned where a list of numbers was wanted.",
    "a-function-returned": "A function is returned, not what it gives: it was not called.",
}


def _is_many(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _are_tensors(count: int, value: Any) -> bool:
    return _is_many(value) and len(value) == count and all(isinstance(v, Tensor) for v in value)


_is_pair = partial(_are_tensors, 2)


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_is_many(pair) and len(pair) == 2 for pair in value)


WITH_FORWARD = ("CausalSelfAttention", "MLP", "Block", "GPT")
RETURNS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        name: ("one tensor", lambda value: isinstance(value, Tensor))
        for name in ("norm", "apply_rotary_emb", *(f"{owner}.forward" for owner in WITH_FORWARD))
    },
    "GPT._precompute_rotary_embeddings": ("two tensors, the cosines and the sines,", _is_pair),
    "GPT.generate": ("a generator", lambda value: isinstance(value, Iterator)),
    "GPT.setup_optimizers": (
        "a list of optimizers",
        lambda value: (
            isinstance(value, tuple | list) and all(isinstance(one, torch.optim.Optimizer) for one in value)
        ),
    ),
    "GPT.estimate_flops": ("a number", lambda value: isinstance(value, int | float | Tensor)),
    **{
        name: ("one tensor", lambda value: isinstance(value, Tensor))
        for name in ("cross_entropy", "orthogonalize", "accumulate_gradients", "sample_next")
    },
    "learn_merges": ("a list of pairs of numbers", _are_pairs),
    "encode": ("a list of numbers", lambda value: isinstance(value, list) and not any(map(_is_many, value))),
    "batches": ("a generator", lambda value: isinstance(value, Iterator)),
    "loss_and_gradients": ("the loss and two gradients, three tensors,", partial(_are_tensors, 3)),
    "Schedule.multiplier": ("a number", lambda value: isinstance(value, int | float | Tensor)),
    "losses_and_bytes": ("a list of four numbers", lambda value: _is_many(value) and len(value) == 4),
    "KVCache.insert_kv": ("two tensors, the keys and the values,", _is_pair),
    "step": ("the loss as a plain number", lambda value: isinstance(value, float)),
}
NO_TENSORS = ("learn_merges", "encode", "batches", "Schedule.multiplier", "losses_and_bytes", "step")


def watch_returns(m: ModuleType, step_id: str) -> None:
    """Let a step's function in this module raise WrongReturn where it returns another kind of thing."""
    if step_id not in RETURNS:
        return
    words, fits = RETURNS[step_id]
    owner_name, _, name = step_id.rpartition(".")
    owner = getattr(m, owner_name) if owner_name else m
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def watched(*arguments: Any, **named: Any) -> Any:
        value = plain(*arguments, **named)
        if not fits(value):
            text = f"{step_id} returned {describe(value)}; {words} was wanted"
            raise WrongReturn(text, _name_of_return(step_id, value))
        return value

    setattr(owner, name, watched)


def _name_of_return(step_id: str, value: Any) -> str:
    if value is None:
        return "nothing-returned"
    if isinstance(value, tuple | list):
        if step_id in ("GPT.generate", "batches"):
            return "a-list-returned"
        return "several-things-returned" if any(isinstance(one, Tensor) for one in value) else ""
    if isinstance(value, Tensor) and step_id == "step":
        return "a-tensor-returned"
    if isinstance(value, bytes | bytearray):
        return "bytes-returned"
    if step_id in NO_TENSORS:
        return ""
    if isinstance(value, bool | int | float):
        return "a-python-number-returned"
    if hasattr(value, "shape") and not isinstance(value, Tensor):
        return "a-numpy-array-returned"
    return "a-function-returned" if callable(value) and hasattr(value, "__name__") else ""


def observe(probe: Probe, step_id: str, module: ModuleType, path: str = "") -> Iterator[tuple[str, Seen]]:
    """Run case after case, as they are asked for: name, and what was seen. An exception is seen too."""
    watch_returns(module, step_id)
    for case in probe(module):
        torch.default_generator.manual_seed(0)  # torch.manual_seed writes a stack down for each absent device
        try:
            seen = case.run()
        except BaseException as error:  # SystemExit too: a learner's function may do anything
            if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                raise  # somebody is at the keyboard; the worker ignores it, so there a function has raised it
            yield case.name, _describe(error, path, module)
            continue
        kept = {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in seen.items()}
        yield case.name, kept


def _describe(error: BaseException, path: str, module: ModuleType) -> Raised:
    frames = [(frame.f_code, line, frame.f_globals) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [line for code, line, _ in frames if code.co_filename == path]
    unwritten = isinstance(error, NotImplementedError) and frames[-1][0].co_filename == path
    inside = [code for code, _, names in frames if names is module.__dict__]
    asker = inside[-1].co_qualname if inside and inside[-1].co_filename != path else ""
    text = IN_OTHER_WORDS.get(type(error).__name__) or str(error).strip().split("\n")[0][:300]
    name = error.mistake if isinstance(error, WrongReturn) else ""
    return Raised(type(error).__name__, text, lines[-1] if lines else None, unwritten, name, asker)


HEADS = {
    "4 heads, each with its own keys": (4, 4),
    "4 heads sharing 2 key heads": (4, 2),
    "4 heads sharing 1 key head": (4, 1),
}


def configure(m: ModuleType, **changes: int) -> Any:
    """A tiny model in which no two sizes are equal, so that a mix-up changes a shape."""
    sizes = {"sequence_len": 12, "vocab_size": 53, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    return m.GPTConfig(**{**sizes, **changes})


def noise(*shape: int, name: str) -> Tensor:
    """Unit normal numbers that depend on the name alone."""
    return _noise(shape, name).clone()


@cache
def _noise(shape: tuple[int, ...], name: str) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=generator)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Give every parameter non-zero noise that depends on its name, of a size that keeps signals alive."""
    for name, p in module.named_parameters():
        scale = 1.0 if "wte" in name else (8.0 if "lm_head" in name else 1.5) / p.shape[-1] ** 0.5
        p.copy_(noise(*p.shape, name=name) * scale)


def rotary_tables(T: int, D: int = 8, start: int = 0) -> tuple[Tensor, Tensor]:
    """Rotary tables in fp32 for T positions from start on, written independently of the model."""
    speed = torch.tensor([10000.0 ** (-2 * i / D) for i in range(D // 2)])
    angle = torch.arange(start, start + T).float()[:, None] * speed
    return angle.cos()[None, :, None], angle.sin()[None, :, None]


class ListCache:
    """The smallest key-value cache: it appends, and refuses the shapes that the engine's cache refuses.

    As there, the position moves on when layer `last` has stored its keys.
    """

    def __init__(self, heads: int = 2, rows: int = 2, last: int = 1) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.position = 0
        self.heads, self.rows, self.last = heads, rows, last

    def get_pos(self) -> int:
        return self.position

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        T = k.size(-2)
        if k.shape != v.shape or k.shape != (self.rows, self.heads, T, 8):
            raise ValueError(
                f"the cache takes keys and values of shape ({self.rows}, {self.heads}, T, 8), and was given "
                f"{tuple(k.shape)} and {tuple(v.shape)}"
            )
        if layer_idx in self.kept:
            old_k, old_v = self.kept[layer_idx]
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        self.kept[layer_idx] = (k, v)
        self.position += T if layer_idx == self.last else 0
        return k, v


def output_and_gradients(y: Tensor, by: dict[str, Tensor]) -> dict[str, Any]:
    """The output, and the gradient by each tensor of a fixed random combination of its numbers."""
    seen: dict[str, Any] = {"the output": y}
    if not y.requires_grad:
        return {**seen, "a gradient": NO_GRADIENT}
    grads = torch.autograd.grad((y * noise(*y.shape, name="y")).sum(), list(by.values()), allow_unused=True)
    for name, grad in zip(by, grads, strict=True):
        seen[f"the gradient by {name}"] = NO_GRADIENT if grad is None else grad
    return seen


TWICE = "whether a second run gives the same"


def run_layer(layer: nn.Module, T: int, *rest: Any) -> dict[str, Any]:
    """One pass through an attention layer, an MLP or a block, and another: does chance take part?"""
    fill(layer)
    x = noise(2, T, 32, name="x").requires_grad_()
    torch.manual_seed(1)
    y = layer(x, *rest)
    with torch.no_grad():
        again = layer(x.detach().clone(), *rest)
    same = torch.equal(y, again) or torch.allclose(y, again, equal_nan=True)
    return {TWICE: same, **output_and_gradients(y, {"x": x, **dict(layer.named_parameters())})}


def run_cached_layer(layer: nn.Module, pieces: tuple[int, ...], heads: int = 2) -> dict[str, Any]:
    """The same sequence, piece by piece against a cache for so many key heads."""
    fill(layer)
    cache, seen = ListCache(heads), {}
    for T in pieces:
        x = noise(2, T, 32, name=f"x{cache.position}")
        start = cache.position
        y = layer(x, rotary_tables(T, start=start), cache)
        seen[f"the output of positions {start} to {start + T - 1}"] = y
        cache.position = start + T
    return {**seen, "the layer number given to the cache": str(sorted(cache.kept))}


def build_attention(m: ModuleType, heads: tuple[int, int]) -> Any:
    """Layer 1 with so many query and key heads."""
    return m.CausalSelfAttention(configure(m, n_head=heads[0], n_kv_head=heads[1]), 1)


def run_attention(m: ModuleType, heads: tuple[int, int], T: int) -> dict[str, Any]:
    """One pass without a cache."""
    return run_layer(build_attention(m, heads), T, rotary_tables(T))


def weights(module: nn.Module) -> dict[str, Any]:
    """Name and shape of every parameter."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(remove_duplicate=False)}
    return {"the weights": shapes, "the number of weights": sum(p.numel() for p in module.parameters())}


SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
IMPOSSIBLE = {
    "a width that 4 heads do not divide": {"n_embd": 34, "n_head": 4, "n_kv_head": 4},
    "4 query heads for 3 key heads": {"n_embd": 32, "n_head": 4, "n_kv_head": 3},
    "an odd head size": {"n_embd": 12, "n_head": 4, "n_kv_head": 4},
    **{f"{name}=0": {name: 0} for name in SIZES},
}


def probe_config(m: ModuleType) -> Iterator[Case]:
    def defaults() -> dict[str, Any]:
        made = m.GPTConfig()
        fields = [f.name for f in dataclasses.fields(made)]
        return {
            "the order of the fields": ", ".join(fields[: len(SIZES)]),
            "the defaults": {name: getattr(made, name) for name in SIZES},
        }

    def head_size(**sizes: int) -> dict[str, Any]:
        return {"the head size": m.GPTConfig(**sizes).head_dim}

    def refused(sizes: dict[str, int]) -> dict[str, Any]:
        m.GPTConfig(**sizes)
        return {"what happens": "nothing is refused"}

    yield Case("no arguments", defaults)
    yield Case("width 32, 4 heads, 2 key heads", partial(head_size, n_embd=32, n_head=4, n_kv_head=2))
    yield Case("width 32, 4 heads, 1 key head", partial(head_size, n_embd=32, n_head=4, n_kv_head=1))
    for name, sizes in IMPOSSIBLE.items():
        yield Case(name, partial(refused, sizes))


def probe_attention_init(m: ModuleType) -> Iterator[Case]:
    def count(heads: tuple[int, int]) -> dict[str, Any]:
        return weights(build_attention(m, heads))

    for name, heads in HEADS.items():
        yield Case(name, partial(count, heads))
    for name, heads in HEADS.items():
        yield Case(f"{name} and T = 5", partial(run_attention, m, heads, 5))
    yield Case("a cache", lambda: run_cached_layer(build_attention(m, (4, 2)), (3, 1)))


def probe_mlp_init(m: ModuleType) -> Iterator[Case]:
    yield Case("width 32", lambda: weights(m.MLP(configure(m))))
    yield Case("width 24", lambda: weights(m.MLP(configure(m, n_embd=24))))
    yield Case("T = 5", lambda: run_layer(m.MLP(configure(m)), 5))


def probe_block_init(m: ModuleType) -> Iterator[Case]:
    yield Case("width 32", lambda: weights(m.Block(configure(m), 1)))
    yield Case("T = 5", lambda: run_layer(m.Block(configure(m), 1), 5, rotary_tables(5)))
    yield Case("a cache, in layer 1", lambda: run_cached_layer(m.Block(configure(m), 1), (3, 1)))
    yield Case("a cache, in layer 3", lambda: run_cached_layer(m.Block(configure(m), 3), (3, 1)))


def describe_buffers(model: Any) -> dict[str, Any]:
    """The tables as the module holds them, and what a checkpoint would store."""
    kept = {name: f"{tuple(b.shape)}, {b.dtype}" for name, b in model.named_buffers()}
    stored = dict.fromkeys(model.state_dict(), "stored")
    return {"the buffers": kept, "what a checkpoint stores": stored}


def probe_gpt_init(m: ModuleType) -> Iterator[Case]:
    def on_meta() -> dict[str, Any]:
        with torch.device("meta"):
            model = m.GPT(configure(m))
        return {"where the weights are": ", ".join(sorted({p.device.type for p in model.parameters()}))}

    def table_values() -> dict[str, Any]:
        model = m.GPT(configure(m))
        return {"cos": model.cos.float(), "sin": model.sin.float()}

    def logits(**sizes: int) -> dict[str, Any]:
        model = m.GPT(configure(m, **sizes))
        fill(model)
        return {"the logits": model(ids(2, 7))}

    yield Case("2 layers", lambda: weights(m.GPT(configure(m))))
    yield Case("2 layers of width 32", lambda: describe_buffers(m.GPT(configure(m))))
    yield Case("3 layers of width 48", lambda: weights(m.GPT(configure(m, n_layer=3, n_embd=48))))
    yield Case("the tables read", table_values)
    yield Case("2 layers and the book's forward", logits)
    yield Case("3 layers and the book's forward", partial(logits, n_layer=3))

    def asked(name: str, *arguments: Any) -> dict[str, Any]:
        """What the book's other methods find in the model."""
        model = m.GPT(configure(m))
        fill(model)
        result = getattr(model, name)(*arguments)
        result = list(result) if isinstance(result, Iterator | list) else result
        return {"what comes": f"{len(result)} things" if isinstance(result, list) else str(result)}

    yield Case("a cache", lambda: run_cached_gpt(m, (3, 1)))
    yield Case("the meta device", on_meta)
    for name, arguments in (
        ("init_weights", ()),
        ("setup_optimizers", ()),
        ("estimate_flops", ()),
        ("get_device", ()),
        ("generate", ([1], 2)),
    ):
        yield Case(f"the book's {name}", partial(asked, name, *arguments))


def probe_tables(m: ModuleType) -> Iterator[Case]:
    def build(*arguments: Any, **named: Any) -> dict[str, Any]:
        made = m.GPT(configure(m))._precompute_rotary_embeddings(*arguments, **named)
        if not (isinstance(made, tuple | list) and len(made) == 2):
            return {"what is returned": f"{type(made).__name__}, not a cosine table and a sine table"}
        cos, sin = made
        shapes = {"the shapes": f"{tuple(cos.shape)} and {tuple(sin.shape)}"}
        types = {"the dtypes": f"{cos.dtype} and {sin.dtype}"}
        if named.get("device") is not None:
            return {**shapes, "the devices": f"{cos.device.type} and {sin.device.type}"}
        return {**shapes, **types, "the cosines": cos.float(), "the sines": sin.float()}

    yield Case("40 positions of 8 channels", partial(build, 40, 8))
    yield Case("7 positions of 16 channels", partial(build, 7, 16))
    yield Case("600 positions", partial(build, 600, 8))
    yield Case("base 100", partial(build, 40, 8, base=100.0))
    yield Case("the meta device asked for", partial(build, 40, 8, device=torch.device("meta")))


def distribution(weight: Tensor, std: float) -> dict[str, Any]:
    """Centre, spread and tails of n numbers; the accepted error is five standard errors of two draws.

    The standard error of a mean is σ/√n, of a standard deviation σ/√(2n), of a kurtosis √(24/n).
    """
    n, w = weight.numel(), weight.double()
    five = 5 * 2**0.5 / n**0.5
    deviation = w.std().item()
    tails = ((w - w.mean()) ** 4).mean().item() / deviation**4 if deviation > 0 else 0.0
    return {
        "spread": Near(deviation, five * std / 2**0.5),
        "centre": Near(w.mean().item(), five * std),
        "tails (the kurtosis; 3 for a normal distribution)": Near(tails, five * 24**0.5 if std else 0.0),
    }


def probe_one_init(m: ModuleType) -> Iterator[Case]:
    def draw(module: nn.Module, std: float) -> dict[str, Any]:
        model = m.GPT(configure(m))
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(7.0)
        model._init_weights(module)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return {f"the weights' {what}": value for what, value in distribution(weight, std).items()}

    def leave(module: nn.Module) -> dict[str, Any]:
        m.GPT(configure(m))._init_weights(module)
        return {"what happens": "nothing"}

    linear = partial(nn.Linear, bias=False)
    yield Case("a Linear from 64 to 256", lambda: draw(linear(64, 256), 64**-0.5))
    yield Case("a Linear from 256 to 64", lambda: draw(linear(256, 64), 256**-0.5 / 2))
    yield Case("a Linear from 128 to 128", lambda: draw(linear(128, 128), 128**-0.5))
    yield Case("a Linear from 32 to 512", lambda: draw(linear(32, 512), 32**-0.5))
    yield Case("an Embedding of 256 rows and 64 channels", lambda: draw(nn.Embedding(256, 64), 1.0))
    yield Case("a module without weights", lambda: leave(nn.Identity()))


def probe_init_weights(m: ModuleType) -> Iterator[Case]:
    def initialize() -> Any:
        model = m.GPT(configure(m, n_embd=128, vocab_size=144))
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.fill_(7.0)  # what a fresh memory holds: anything
        model.init_weights()
        return model

    def spreads() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, p in initialize().named_parameters():
            zero = name.endswith(("c_proj.weight", "lm_head.weight"))
            rows, columns = p.shape
            std = 1.0 if "wte" in name else columns**-0.5 * min(1.0, (rows / columns) ** 0.5)
            for what, value in distribution(p, 0.0 if zero else std).items():
                seen[f"{name}'s {what}"] = value
        return seen

    def tables_again() -> dict[str, Any]:
        model = initialize()
        dtypes = ", ".join(sorted({str(p.dtype) for p in model.parameters()}))
        values = {"cos": model.cos.float(), "sin": model.sin.float()}
        return {**describe_buffers(model), **values, "the weights' dtypes on the CPU": dtypes}

    def layers_differ() -> dict[str, Any]:
        drawn = [p for name, p in initialize().named_parameters() if name.endswith("c_fc.weight")]
        return {
            "whether two layers got different weights": not torch.equal(drawn[0], drawn[1]),
            "whether all weights can learn": all(p.requires_grad for p in drawn),
        }

    def chance() -> dict[str, Any]:
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            model = m.GPT(configure(m))
            torch.manual_seed(seed)
            model.init_weights()
            drawn.append(model.transformer.wte.weight.detach().float().clone())
        return {
            "whether torch's seed decides the weights": torch.equal(drawn[0], drawn[1]),
            "whether another seed of torch gives other weights": not torch.equal(drawn[0], drawn[2]),
        }

    yield Case("memory full of sevens", spreads)
    yield Case("tables full of sevens", tables_again)
    yield Case("two layers of one shape", layers_differ)
    yield Case("torch seeded before", chance)


def probe_norm(m: ModuleType) -> Iterator[Case]:
    def run(*shape: int, size: float = 3.0) -> dict[str, Any]:
        x = (noise(*shape, name="x") * size + size / 3).requires_grad_()
        before = x.detach().clone()
        return {**output_and_gradients(m.norm(x), {"x": x}), "x afterwards unchanged": torch.equal(x, before)}

    def narrow() -> dict[str, Any]:
        y = m.norm(noise(3, 8, name="x").bfloat16())
        return {"the dtype": str(y.dtype), "the output": Near(y.float(), 0.03)}

    yield Case("shape (2, 5, 8)", partial(run, 2, 5, 8))
    yield Case("shape (2, 3, 4, 6)", partial(run, 2, 3, 4, 6))
    yield Case("shape (3, 16)", partial(run, 3, 16))
    yield Case("numbers around 0.3", lambda: {"the output": m.norm(noise(2, 5, 8, name="x") * 0.3 + 0.1)})
    yield Case("numbers around 5000", partial(run, 2, 5, 8, size=5e3))
    yield Case("zeros", lambda: {"the output": m.norm(torch.zeros(2, 8))})
    yield Case("bfloat16", narrow)


def probe_rotary(m: ModuleType) -> Iterator[Case]:
    def run(T: int, H: int, D: int, start: int = 0) -> dict[str, Any]:
        x = noise(2, T, H, D, name="x").requires_grad_()
        cos, sin = rotary_tables(T, D, start)
        seen = output_and_gradients(m.apply_rotary_emb(x, cos, sin), {"x": x})
        same = all(torch.equal(*pair) for pair in zip((cos, sin), rotary_tables(T, D, start), strict=True))
        return {**seen, "the tables afterwards unchanged": same}

    def narrow() -> dict[str, Any]:
        cos, sin = rotary_tables(5)
        x = noise(2, 5, 3, 8, name="x").bfloat16()
        y = m.apply_rotary_emb(x, cos, sin)
        return {"the dtype": str(y.dtype), "the output": Near(y.float(), 0.06)}

    yield Case("5 positions, 3 heads of 8 channels", partial(run, 5, 3, 8))
    yield Case("positions 40 to 46, 2 heads of 4 channels", partial(run, 7, 2, 4, 40))
    yield Case("position 0 alone", partial(run, 1, 2, 8))
    yield Case("x in bfloat16 and tables in float32", narrow)


def probe_mlp(m: ModuleType) -> Iterator[Case]:
    yield Case("T = 5", lambda: run_layer(m.MLP(configure(m)), 5))
    yield Case("T = 1", lambda: run_layer(m.MLP(configure(m)), 1))


def probe_attention(m: ModuleType) -> Iterator[Case]:
    def cached(heads: tuple[int, int]) -> dict[str, Any]:
        return run_cached_layer(build_attention(m, heads), (3, 4, 1, 2), heads[1])

    for name, heads in HEADS.items():
        yield Case(f"{name}, T = 7", partial(run_attention, m, heads, 7))
    yield Case("T = 1", partial(run_attention, m, (4, 2), 1))
    yield Case("T = 20, longer than in training", partial(run_attention, m, (4, 2), 20))
    for name, heads in HEADS.items():
        yield Case(f"a cache, {name}", partial(cached, heads))


def probe_block(m: ModuleType) -> Iterator[Case]:
    yield Case("T = 7", lambda: run_layer(m.Block(configure(m), 1), 7, rotary_tables(7)))
    yield Case("T = 1", lambda: run_layer(m.Block(configure(m), 1), 1, rotary_tables(1)))
    yield Case("a cache", lambda: run_cached_layer(m.Block(configure(m), 1), (3, 4, 1)))


def ids(B: int, T: int, name: str = "ids") -> Tensor:
    """Token ids below 53."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randint(53, (B, T), generator=generator)


def build_gpt(m: ModuleType, **sizes: int) -> Any:
    """A GPT with weights and tables that do not depend on init_weights."""
    model = m.GPT(configure(m, **sizes))
    fill(model)
    return model


def run_cached_gpt(m: ModuleType, pieces: tuple[int, ...]) -> dict[str, Any]:
    """Logits of a sequence given piece by piece to a cache, and which layers have used it."""
    model, cache, seen = build_gpt(m), ListCache(), {}
    for T in pieces:
        start = cache.position
        logits = model(ids(2, T, f"ids{start}"), kv_cache=cache)
        seen[f"the logits of positions {start} to {start + T - 1}"] = logits
        cache.position = start + T
    return {**seen, "the layers that used the cache": str(sorted(cache.kept))}


def probe_gpt(m: ModuleType) -> Iterator[Case]:
    def targets(ignored: bool) -> Tensor:
        wanted = ids(2, 7, "targets")
        if ignored:
            wanted[0, :4] = -1
            wanted[1, 6] = -1
        return wanted

    made: list[Any] = []

    def model() -> Any:
        if not made:
            made.append(build_gpt(m))
        return made[0]

    def logits(B: int, T: int) -> dict[str, Any]:
        idx = ids(B, T)
        return {"the logits": model()(idx), "idx afterwards unchanged": torch.equal(idx, ids(B, T))}

    def loss(ignored: bool, *reduction: str) -> dict[str, Any]:
        named = {"loss_reduction": reduction[0]} if reduction else {}
        given = targets(ignored)
        loss = model()(ids(2, 7), given, **named)
        return {"the loss": loss, "targets afterwards unchanged": torch.equal(given, targets(ignored))}

    def gradients() -> dict[str, Any]:
        fresh = build_gpt(m)
        fresh(ids(2, 7), targets(True)).backward()
        return {
            f"the gradient by {name}": NO_GRADIENT if p.grad is None else p.grad
            for name, p in fresh.named_parameters()
        }

    def narrow() -> dict[str, Any]:
        return {"the dtype of the logits": str(build_gpt(m).to(torch.bfloat16)(ids(2, 7)).dtype)}

    yield Case("T = 7", partial(logits, 2, 7))
    yield Case("T = 1", partial(logits, 2, 1))
    yield Case("last_only", lambda: {"the logits": model()(ids(2, 7), last_only=True)})
    yield Case("a target everywhere", lambda: loss(False))
    yield Case("5 of 14 targets -1", lambda: loss(True))
    for reduction in ("sum", "none"):
        yield Case(f'reduction "{reduction}"', partial(loss, False, reduction))
        yield Case(f'reduction "{reduction}", 5 of 14 targets -1', partial(loss, True, reduction))
    yield Case("5 of 14 targets -1 in a backward pass", gradients)
    yield Case("a cache", lambda: run_cached_gpt(m, (3, 4, 1)))
    yield Case("weights in bfloat16", narrow)
    yield Case("120 positions, all the tables have", partial(logits, 1, 120))
    yield Case("121 positions, one past the tables", partial(logits, 1, 121))


COMMON = {
    "the optimizer": "kind",
    "the learning rate": "lr",
    "initial_lr": "initial_lr",
    "weight_decay": "weight_decay",
}
SETTINGS = {  # of AdamW, and of Muon; what else a library's Muon has does not concern the learner
    "the head": {**COMMON, "the betas": "betas", "eps": "eps"},
    "the embedding": {**COMMON, "the betas": "betas", "eps": "eps"},
    "the blocks' matrices": {**COMMON, "the momentum": "momentum", "nesterov": "nesterov"},
}


def probe_optimizers(m: ModuleType) -> Iterator[Case]:
    def settings(width: int, **arguments: float) -> dict[str, Any]:
        model = build_gpt(m, n_embd=width)
        optimizers = list(model.setup_optimizers(**arguments))
        given: dict[int, list[dict[str, Any]]] = {}
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    given.setdefault(id(p), []).append({"kind": type(optimizer).__name__, **group})
        names = {name: given.get(id(p), []) for name, p in model.named_parameters()}
        kinds = {
            "the head": ["lm_head.weight"],
            "the embedding": ["transformer.wte.weight"],
            "the blocks' matrices": [name for name in names if name.startswith("transformer.h.")],
        }
        seen: dict[str, Any] = {
            "the weights that no optimizer has": ", ".join(n for n in names if not names[n]) or "none",
            "the weights given twice": ", ".join(n for n in names if len(names[n]) > 1) or "none",
        }
        for label in dict.fromkeys(label for labels in SETTINGS.values() for label in labels):
            for kind, members in kinds.items():
                if label in SETTINGS[kind]:
                    key = SETTINGS[kind][label]
                    values = {_plain(group, key) for name in members for group in names[name]}
                    one = values.pop() if len(values) == 1 else str(sorted(values, key=str))
                    seen[f"{label} of {kind}"] = one
        return {**seen, "the order": ", ".join(type(optimizer).__name__ for optimizer in optimizers)}

    def moves() -> dict[str, Any]:
        """How far the blocks' matrices go in two steps. Muon computes in bfloat16 on some machines."""
        model = build_gpt(m)
        matrices = {n: p for n, p in model.named_parameters() if n.startswith("transformer.h.0.")}
        before = {name: p.detach().clone() for name, p in matrices.items()}
        theirs = {id(p) for p in matrices.values()}
        optimizers = [
            optimizer
            for optimizer in model.setup_optimizers(matrix_lr=0.1)
            if theirs & {id(p) for group in optimizer.param_groups for p in group["params"]}
        ]
        if len(optimizers) != 1 or "momentum" not in optimizers[0].param_groups[0]:
            return {"whether one optimizer with momentum has the blocks' matrices": False}
        for turn in range(2):
            for name, p in matrices.items():
                p.grad = noise(*p.shape, name=f"gradient {turn} of {name}")
            optimizers[0].step()
        return {f"the way of {name}": Near(p.detach() - before[name], 0.006) for name, p in matrices.items()}

    yield Case("width 32", partial(settings, 32))
    yield Case("width 64", partial(settings, 64))
    other = {"unembedding_lr": 0.01, "embedding_lr": 0.3, "matrix_lr": 0.05, "weight_decay": 0.1}
    yield Case("other rates and a weight decay of 0.1", partial(settings, 32, **other))
    yield Case("two steps of the blocks' optimizer", moves)


def _plain(group: dict[str, Any], key: str) -> Any:
    value = group.get(key, 0.0 if key == "weight_decay" else "missing")
    if key == "betas":
        return str(tuple(value))
    return float(value) if isinstance(value, int | float | Tensor) and not isinstance(value, bool) else value


def probe_device(m: ModuleType) -> Iterator[Case]:
    def ask(device: str) -> dict[str, Any]:
        model = m.GPT(configure(m)).to(device)
        answer = model.get_device()
        kind = "text" if isinstance(answer, str) else type(answer).__name__
        place = str(answer) if isinstance(answer, str | torch.device) else "no device"
        return {"the kind of answer": kind, "the device": place}

    def moved() -> dict[str, Any]:
        model = m.GPT(configure(m))
        model.get_device()
        return {"the device after the move": str(model.to("meta").get_device())}

    for device in ("cpu", "meta"):
        yield Case(f"a model on {device}", partial(ask, device))
    yield Case("a model that is asked, and moved to meta", moved)


def probe_flops(m: ModuleType) -> Iterator[Case]:
    def count(**sizes: int) -> dict[str, Any]:
        return {"FLOPs per token": float(m.GPT(configure(m, **sizes)).estimate_flops())}

    yield Case("2 layers of width 32, V = 53, T = 12", count)
    yield Case("T = 30", partial(count, sequence_len=30))
    yield Case("V = 1000", partial(count, vocab_size=1000))
    yield Case(
        "3 layers of width 48, 6 heads, 1 key head",
        partial(count, n_layer=3, n_embd=48, n_head=6, n_kv_head=1),
    )


SCORES = torch.tensor([0.0, 3.0, 1.0, 4.0, -1.0, 2.0, -2.0, -3.0])


def scripted_gpt(m: ModuleType) -> Any:
    """A model of 8 tokens that gives SCORES at the last position, others before."""

    def forward(idx: Tensor, *rest: Any, last_only: bool = False, **named: Any) -> Tensor:
        logits = SCORES.flip(0).repeat(idx.size(0), idx.size(1), 1)
        logits[:, -1] = SCORES
        return logits[:, -1:] if last_only else logits

    model = m.GPT(configure(m, vocab_size=8))
    model.forward = forward
    return model


def made_lazily(m: ModuleType) -> dict[str, Any]:
    model = scripted_gpt(m)
    script, passes = model.forward, []

    def forward(*arguments: Any, **named: Any) -> Any:
        passes.append(1)
        return script(*arguments, **named)

    model.forward = forward
    next(iter(model.generate([1, 6], 6)))
    return {"whether the first token comes before the others are made": len(passes) < 6}


def made_by_seeds(m: ModuleType) -> dict[str, Any]:
    def draw(seed: int, world: int) -> list[int]:
        torch.manual_seed(world)
        return [int(t) for t in scripted_gpt(m).generate([1, 6], 30, temperature=2.0, seed=seed)]

    first, other = draw(5, 1), draw(6, 1)
    random.seed(1)
    again = draw(5, 2)
    model = scripted_gpt(m)  # building one draws, so that comes first
    torch.manual_seed(11)
    random.seed(11)
    torchs, pythons = torch.get_rng_state(), random.getstate()
    list(model.generate([1, 6], 3, seed=5))
    return {
        "whether one seed repeats one text": first == again,
        "whether another seed gives another text": first != other,
        "whether torch's own random state is left alone": torch.equal(torchs, torch.get_rng_state()),
        "whether Python's own random state is left alone": pythons == random.getstate(),
    }


def probe_generate(m: ModuleType) -> Iterator[Case]:
    scripted = partial(scripted_gpt, m)

    def greedy(prompt: list[int], n: int) -> dict[str, Any]:
        given = list(prompt)
        made = list(build_gpt(m).generate(given, n, temperature=0.0))
        kinds = ", ".join(sorted({type(token).__name__ for token in made})) or "nothing"
        return {
            "the tokens": str([int(token) for token in made]),
            "the kind of thing yielded": kinds,
            "the prompt afterwards unchanged": given == prompt,
        }

    def frequencies(n: int, **named: Any) -> dict[str, Any]:
        made = torch.tensor([int(t) for t in scripted().generate([1, 6], n, seed=1, **named)])
        counts = torch.bincount(made, minlength=8)
        return {
            "how many tokens come": made.numel(),
            "the share of each of 8 tokens": Near(counts / max(1, made.numel()), 4.5 / (2 * n) ** 0.5),
        }

    def kept(n: int, k: int) -> dict[str, Any]:
        made = {int(t) for t in scripted().generate([1, 6], n, top_k=k, seed=3)}
        return {"the tokens that ever come": str(sorted(made))}

    def refused(prompt: list[int], **named: Any) -> dict[str, Any]:
        list(scripted().generate(prompt, 2, **named))
        return {"what happens": "nothing is refused"}

    yield Case("temperature 0, 3 tokens and then 6 more", partial(greedy, [3, 1, 4], 6))
    yield Case("temperature 0, 1 token and then 4 more", partial(greedy, [5], 4))
    yield Case("temperature 0, nothing asked", partial(greedy, [3, 1], 0))
    yield Case("temperature 0, past the training length", partial(greedy, list(range(11)), 6))
    yield Case("6 tokens of which one is taken", partial(made_lazily, m))
    yield Case("temperature 1", partial(frequencies, 300))
    yield Case("temperature 0.5", partial(frequencies, 300, temperature=0.5))
    yield Case("top_k 3", partial(kept, 250, 3))
    yield Case("top_k 1", partial(kept, 20, 1))
    yield Case("top_k 100 of 8 tokens", partial(frequencies, 300, top_k=100))
    yield Case("seeds", partial(made_by_seeds, m))
    yield Case("an empty prompt", partial(refused, []))
    yield Case("temperature -1", partial(refused, [1], temperature=-1.0))
    yield Case("top_k 0", partial(refused, [1], top_k=0))


PROBES: dict[str, Probe] = {
    "GPTConfig": probe_config,
    "GPT.__init__": probe_gpt_init,
    "GPT._precompute_rotary_embeddings": probe_tables,
    "Block.__init__": probe_block_init,
    "CausalSelfAttention.__init__": probe_attention_init,
    "MLP.__init__": probe_mlp_init,
    "GPT.init_weights": probe_init_weights,
    "GPT._init_weights": probe_one_init,
    "norm": probe_norm,
    "apply_rotary_emb": probe_rotary,
    "CausalSelfAttention.forward": probe_attention,
    "MLP.forward": probe_mlp,
    "Block.forward": probe_block,
    "GPT.forward": probe_gpt,
    "GPT.setup_optimizers": probe_optimizers,
    "GPT.get_device": probe_device,
    "GPT.estimate_flops": probe_flops,
    "GPT.generate": probe_generate,
}

"""A model's twin for decoding: its matrices in float32, bfloat16 or int8, read by a kernel of our own."""

from __future__ import annotations

import copy
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.common import UserError, base_dir, write_atomically
from nanochat.machine import this_machine
from nanochat.normans_gpt import GPT

PARTS = {"float32": 1, "bfloat16": 2, "int8": 4}  # weights in a 32-bit word
ALIGNED = 16  # words: the widest vector register there is


def round_to(weight: Tensor, weights: str) -> tuple[Tensor, Tensor | None]:
    """A matrix (V, C) in another format, and for int8 what each row is multiplied with, (V,), float32."""
    if weights != "int8":
        return weight.to(getattr(torch, weights)), None
    scale = weight.float().abs().amax(dim=1) / 127
    steps = weight.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return steps.round().to(torch.int8), scale


@torch.no_grad()
def round_weights(model: nn.Module, weights: str) -> None:
    """Replace the weight of every linear layer by what a format keeps of it, in its own dtype."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            numbers, scale = round_to(layer.weight, weights)
            layer.weight.copy_(numbers if scale is None else numbers * scale[:, None])


def pack(numbers: Tensor, parts: int) -> Tensor:
    """A matrix (V, C) as rows of words (V, n): part k of word j is column k n + j; columns past C are 0.

    n is a multiple of ALIGNED. With one part and nothing to fill up the result is the matrix itself.
    """
    words = -(-numbers.size(1) // (parts * ALIGNED)) * ALIGNED
    if missing := parts * words - numbers.size(1):
        numbers = F.pad(numbers, (0, missing))
    if parts == 1:
        return numbers.contiguous()
    return numbers.view(-1, parts, words).transpose(1, 2).contiguous().view(torch.int32).squeeze(-1)


VECTORS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mavx2", "-mfma")}


@functools.cache
def load_kernel() -> Callable[..., int]:
    """The function row_product of row_product.c for this machine; UserError if it cannot be compiled."""
    return open_kernel(this_machine(torch.device("cpu")).vector)


def open_kernel(vector: str) -> Callable[..., int]:
    """The same for PyTorch's word for vector registers, such as AVX2; another word means those all have."""
    source = Path(__file__).with_name("row_product.c")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), "")
    if not compiler:
        raise UserError("--weights needs a C compiler, and there is no cc, gcc or clang; install one")
    registers = next((flags for name, flags in VECTORS.items() if vector.startswith(name)), ())
    flags = ("-O3", "-funroll-loops", "-shared", "-fPIC", *registers)
    reason = ""
    for threads in (("-fopenmp",), ()):
        command = [*compiler.split(), *flags, *threads, str(source), "-o"]
        key = hashlib.sha256(source.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
        library = base_dir() / "kernels" / f"row_product-{key}.so"
        try:
            if not library.exists():
                compile_to(library, command)
            function = ctypes.CDLL(str(library)).row_product
        except (OSError, subprocess.CalledProcessError) as error:
            reason = " ".join(str(getattr(error, "stderr", "") or error).split())
            continue
        pointer, long = ctypes.c_void_p, ctypes.c_long
        function.argtypes = [*[pointer] * 4, *[long] * 4, ctypes.c_int]
        return function
    raise UserError(f"--weights needs {source.name} compiled, but {compiler} says: {reason[:200]}")


def compile_to(library: Path, command: list[str]) -> None:
    """Run a compiler's command, which lacks the name of its output, and put what it makes in its place."""
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        made = Path(folder) / library.name
        subprocess.run([*command, str(made)], check=True, capture_output=True, text=True)
        write_atomically(library, made.read_bytes())


torch.library.define("nanochat::row_product", "(Tensor x, Tensor words, Tensor? scale, int parts) -> Tensor")


@torch.library.impl("nanochat::row_product", "CPU")
def row_product(x: Tensor, words: Tensor, scale: Tensor | None, parts: int) -> Tensor:
    """x (…, C) times the transpose of a matrix (V, C) that is packed into words (V, n): (…, V), float32."""
    x = x.float().contiguous()
    (V, n), C = words.shape, x.size(-1)
    y = x.new_empty((*x.shape[:-1], V))
    scales = None if scale is None else scale.data_ptr()
    if load_kernel()(words.data_ptr(), scales, x.data_ptr(), y.data_ptr(), V, n, C, x.numel() // C, parts):
        raise MemoryError(f"row_product: no memory for {x.numel()} numbers in order")
    return y


@torch.library.register_fake("nanochat::row_product")  # type: ignore[untyped-decorator]
def shape_of_row_product(x: Tensor, words: Tensor, scale: Tensor | None, parts: int) -> Tensor:
    """An empty result, for who asks for shapes."""
    return x.new_empty((*x.shape[:-1], words.size(0)), dtype=torch.float32)


class PackedLinear(nn.Module):
    """What a linear layer computes, from its weight in another format."""

    def __init__(self, layer: nn.Linear, weights: str) -> None:
        """weights: float32, which shares the layer's memory, bfloat16 or int8."""
        super().__init__()
        self.parts = PARTS[weights]
        numbers, self.scale = round_to(layer.weight.detach(), weights)
        self.words = pack(numbers, self.parts)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (…, C) to (…, V), float32."""
        y: Tensor = torch.ops.nanochat.row_product(x, self.words, self.scale, self.parts)
        return y if self.bias is None else y + self.bias

    def stored_bytes(self) -> int:
        """What is read for one product."""
        return self.words.nbytes + (0 if self.scale is None else self.scale.nbytes)


def twin(module: nn.Module, weights: str) -> nn.Module:
    """A copy of a tree of modules that shares its tensors, with every linear layer packed."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module, weights)
    other = copy.copy(module)
    other._modules = {name: child and twin(child, weights) for name, child in module._modules.items()}
    return other


def runs_through(made: nn.Module) -> bool:
    """Whether a twin computes with the layers that were put in, all of them."""
    layers = [layer for layer in made.modules() if isinstance(layer, PackedLinear)]
    called = set[nn.Module]()
    hooks = [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers]
    try:
        with torch.inference_mode():
            made(torch.zeros(1, 1, dtype=torch.long))
    except AttributeError:  # asks a layer for what only a linear layer has
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return len(called) == len(layers)


def for_decoding(model: GPT, weights: str = "") -> GPT:
    """The model to decode with: `model`'s twin with weights in float32, bfloat16 or int8.

    "" asks for what is fastest among those that compute the same: float32, or the model itself on another
    device than a CPU, without a compiler, and where a twin cannot be. Raises UserError where a format asked
    for by name cannot be had.
    """
    if model.get_device().type != "cpu":
        kept = str(model.lm_head.weight.dtype).removeprefix("torch.")
        if weights not in ("", kept):
            raise UserError(f"--weights={weights}: on a GPU they are {kept}; leave it out, or use the CPU")
        return model
    try:
        load_kernel()
    except UserError:
        if weights:
            raise
        return model
    made = twin(model, weights or "float32")
    assert isinstance(made, type(model))
    if runs_through(made):
        return made
    if weights:
        raise UserError(f"--weights={weights}: this model does not call its linear layers; leave it out")
    return model

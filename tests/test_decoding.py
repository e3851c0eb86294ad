"""The twin with packed weights: its kernel against exact sums, and its texts against those of the model."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

from nanochat import decoding
from nanochat.common import UserError
from nanochat.decoding import PARTS, PackedLinear, for_decoding, pack, round_to, round_weights
from nanochat.engine import Engine
from nanochat.normans_gpt import GPT
from tests.test_engine import HEADS, RAGGED, lively

pytestmark = pytest.mark.numerics

FORMATS = list(PARTS)
UNIT = 2.0**-24  # half of the distance from 1 to the next float32: what rounding one result costs, relatively


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kept(weight: Tensor, weights: str) -> Tensor:
    """What a format keeps of a matrix, in float64."""
    numbers, scale = round_to(weight, weights)
    return numbers.double() if scale is None else numbers.double() * scale.double()[:, None]


def layer(V: int, C: int, bias: bool = False) -> nn.Linear:
    made = nn.Linear(C, V, bias=bias)
    made.weight.data = randn(V, C)
    return made


def check_product(weights: str, V: int, C: int, rows: int) -> None:
    """Every number of the kernel's result, against the exact sum.

    A sum of C products in any order, each product and addition rounded or fused, is off by at most
    C · UNIT / (1 - C · UNIT) of the sum of the absolute values (Higham 2002, section 4.2); the scale, and
    zeros added at the end, round once more each.
    """
    made, x = layer(V, C), randn(rows, C)
    y = PackedLinear(made, weights)(x)
    exact = kept(made.weight.detach(), weights)
    bound = (x.double().abs() @ exact.abs().T) * (C + 10) * UNIT
    assert y.dtype == torch.float32
    assert y.shape == (rows, V)
    assert ((y.double() - x.double() @ exact.T).abs() <= bound).all()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("V", "C"), [(1, 2), (7, 6), (64, 64), (33, 100), (300, 256), (5, 1030)])
def test_the_kernel_multiplies(weights: str, V: int, C: int) -> None:
    for rows in (1, 2, 3, 7, 8, 15, 21):
        check_product(weights, V, C, rows)


@pytest.mark.parametrize("vector", ["none", "AVX2", "AVX512"])
def test_the_kernel_for_each_kind_of_registers(vector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = decoding.open_kernel(vector)  # compiles everywhere; runs where the processor can
    if vector not in ("none", torch.backends.cpu.get_cpu_capability()):
        pytest.skip(f"compiled, but this processor has no {vector}, or does not show it")
    monkeypatch.setattr(decoding, "load_kernel", lambda: kernel)
    for weights in FORMATS:
        check_product(weights, 33, 100, 15)


def test_the_kernel_compiles_without_a_warning(tmp_path: Path) -> None:
    source = Path(decoding.__file__).with_name("row_product.c")
    command = ["cc", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-O3", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("weights", FORMATS)
def test_a_row_depends_on_no_other_row_and_on_no_number_of_threads(weights: str) -> None:
    """To the last bit: each number is added up in one order, by one thread."""
    packed, x = PackedLinear(layer(500, 192), weights), randn(23, 192)
    together = packed(x)
    for rows in (1, 2, 4, 5, 8, 9):
        assert torch.equal(packed(x[:rows]), together[:rows])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(packed(x), together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("C", [6, 64, 100])
def test_every_weight_is_in_its_place(weights: str, C: int) -> None:
    """Rows that are 1 in one place each bring out the weights, exactly."""
    made = layer(9, C)
    out = PackedLinear(made, weights)(torch.eye(C))
    numbers, scale = round_to(made.weight.detach(), weights)
    assert torch.equal(out.T, numbers.float() if scale is None else numbers.float() * scale[:, None])


def test_packing_shares_what_need_not_be_moved_and_takes_the_room_of_its_format() -> None:
    made = layer(10, 256)
    assert PackedLinear(made, "float32").words.data_ptr() == made.weight.data_ptr()
    sizes = [PackedLinear(made, weights).stored_bytes() for weights in FORMATS]
    assert sizes == [10 * 256 * 4, 10 * 256 * 2, 10 * 256 + 10 * 4]
    assert pack(torch.ones(2, 6), 1).shape == (2, 16)


def test_rounding_moves_a_weight_by_at_most_half_a_step() -> None:
    weight = randn(40, 64)
    weight[3] = 0
    weight[4] *= 1e-30
    numbers, scale = round_to(weight, "int8")
    assert scale is not None
    assert numbers.dtype == torch.int8
    assert numbers.abs().amax(dim=1).tolist() == [127 if row != 3 else 0 for row in range(40)]
    moved = (kept(weight, "int8") - weight.double()).abs()
    assert (moved <= scale.double()[:, None] * (0.5 + 256 * UNIT)).all()
    assert ((kept(weight, "bfloat16") - weight.double()).abs() <= weight.double().abs() * 2**-8).all()
    assert torch.equal(kept(weight, "float32"), weight.double())


def test_a_bias_is_added() -> None:
    made = layer(12, 32, bias=True)
    torch.testing.assert_close(PackedLinear(made, "float32")(randn(3, 32)), made(randn(3, 32)))


@pytest.mark.parametrize("n_kv_head", HEADS)
@torch.inference_mode()
def test_a_twin_in_float32_computes_what_the_model_computes(n_kv_head: int) -> None:
    model = lively(n_kv_head)
    made, x = for_decoding(model, "float32"), torch.arange(24).view(2, 12)
    assert made is not model
    assert sum(isinstance(module, PackedLinear) for module in made.modules()) == 13
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    torch.testing.assert_close(made(x), model(x), atol=2e-5, rtol=0)
    assert made.transformer.wte.weight is model.transformer.wte.weight


def rounded(model: GPT, weights: str) -> GPT:
    other = copy.deepcopy(model)
    round_weights(other, weights)
    return other


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.7, 5)])
def test_texts_are_those_of_the_model_with_rounded_weights(
    weights: str, temperature: float, top_k: int | None
) -> None:
    model = lively()
    engine, other = Engine(for_decoding(model, weights)), rounded(model, weights)
    together = engine.complete(RAGGED, 12, temperature, top_k, seed=3)
    for i, prompt in enumerate(RAGGED):
        assert together[i] == list(other.generate(prompt, 12, temperature, top_k, seed=3 + i))


def test_rounding_changes_the_model_and_float32_does_not() -> None:
    model, x = lively(), torch.arange(12).view(1, 12)
    with torch.inference_mode():
        logits = [rounded(model, weights)(x) for weights in FORMATS]
        assert torch.equal(logits[0], model(x))
        errors = [(other - logits[0]).abs().max().item() for other in logits]
    assert 0 == errors[0] < errors[1] < errors[2] < 1


def test_without_a_compiler_the_model_itself_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    decoding.load_kernel.cache_clear()
    try:
        assert for_decoding(model) is model
        with pytest.raises(UserError, match="--weights needs a C compiler, and there is no cc, gcc or clang"):
            for_decoding(model, "int8")
    finally:
        decoding.load_kernel.cache_clear()


def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no room\nto think' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(UserError, match=f"row_product.c compiled, but {broken} says: no room to think$"):
        decoding.open_kernel("AVX2")


def test_the_kernel_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    decoding.open_kernel("none")
    made = list((tmp_path / "kernels").iterdir())
    assert [path.suffix for path in made] == [".so"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    decoding.open_kernel("none")


def test_a_compiler_without_openmp_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picky = tmp_path / "picky"
    picky.write_text('#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec cc "$@"\n')
    picky.chmod(0o755)
    monkeypatch.setenv("CC", str(picky))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    kernel = decoding.open_kernel("none")
    monkeypatch.setattr(decoding, "load_kernel", lambda: kernel)
    check_product("int8", 33, 100, 9)


def test_on_another_device_the_weights_stay_as_they_are() -> None:
    with torch.device("meta"):
        model = GPT(lively().config)
    assert for_decoding(model) is model
    assert for_decoding(model, "float32") is model
    with pytest.raises(UserError, match="--weights=int8: on a GPU they are float32; leave it out"):
        for_decoding(model, "int8")


class Asks(GPT):
    """A model that multiplies with the weight of a layer, without calling it."""

    def forward(self, idx: Tensor, *_: object, **__: object) -> Tensor:  # type: ignore[override]
        return self.transformer.wte(idx) @ self.lm_head.weight.T


class Forgets(GPT):
    """A model that calls only the last of its layers."""

    def forward(self, idx: Tensor, *_: object, **__: object) -> Tensor:  # type: ignore[override]
        logits: Tensor = self.lm_head(self.transformer.wte(idx))
        return logits


@pytest.mark.parametrize("kind", [Asks, Forgets])
def test_a_model_that_passes_its_layers_by_has_no_twin(kind: type[GPT]) -> None:
    model = kind(lively().config)
    model.init_weights()
    assert for_decoding(model) is model
    with pytest.raises(UserError, match="--weights=int8: this model does not call its linear layers"):
        for_decoding(model, "int8")


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [lambda model: model, lambda model: for_decoding(model, "int8")])
def test_a_compiled_step_gives_the_same_texts(prepare: Callable[[GPT], GPT]) -> None:
    model = prepare(lively())
    texts = [Engine(model, compiled).complete(RAGGED[:3], 10, seed=1) for compiled in (False, True)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_compiled_step_does_not_copy_the_cache() -> None:
    """No buffer of the compiled step has the six dimensions of the cache; each layer writes in place."""
    torch._dynamo.reset()
    engine = Engine(lively(), compiled=True)
    cache = engine._cache(1, 16)
    with torch.inference_mode():
        engine._feed([[1, 2, 3]], cache)
        _, codes = run_and_get_code(engine._feed, [[4]], cache)
    code = "\n".join(codes)
    assert code.count("write_kv.default(") == engine.model.config.n_layer
    assert not re.search(r"empty_strided_cpu\(\((?:[^,()]+, ){5}[^,()]+\)", code)

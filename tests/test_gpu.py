"""What only a CUDA device can show: run by `make gpu`, which needs torch, tiktoken, pyarrow, pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import loss as loss_module
from nanochat import normans_gpt
from nanochat.engine import Engine
from nanochat.loss import softcapped_cross_entropy
from nanochat.muon import Muon
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.step import Rates, Stepper, accumulate_gradients, build_model, build_optimizers, fit_format
from scripts import bench

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
ROOT = Path(__file__).parents[1]


def make_model(n_kv_head: int = 2, **changes: int) -> GPT:
    """A small model on the device, no weight of which is zero."""
    sizes = {"sequence_len": 64, "vocab_size": 512, "n_layer": 2, "n_head": 2, "n_embd": 64, **changes}
    torch.manual_seed(0)
    with torch.device("meta"):
        model = GPT(GPTConfig(n_kv_head=n_kv_head, **sizes))
    model.to_empty(device=DEVICE)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(("c_proj.weight", "lm_head.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def batch(B: int = 4, T: int = 64, V: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return tokens[:, :-1], tokens[:, 1:]


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖, in float64 on the CPU; a nan stays one."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    return float((got - wanted).norm() / wanted.norm())


def test_the_embedding_is_bfloat16_and_the_tables_are_on_the_device():
    model = make_model()
    assert model.transformer.wte.weight.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    assert model.get_device().type == DEVICE
    assert model.cos.device.type == DEVICE


@pytest.mark.parametrize("n_kv_head", [2, 1])
def test_logits_are_those_of_the_cpu(n_kv_head):
    model = make_model(n_kv_head)
    inputs, _ = batch()
    with torch.inference_mode():
        with torch.autocast(DEVICE, torch.bfloat16):
            mixed = model(inputs)
        fit_format(model, None)
        logits = model(inputs)
        reference = make_model(n_kv_head)
        fit_format(reference, None)
        reference.load_state_dict(model.state_dict())
        wanted = reference.cpu()(inputs.cpu())
    assert relative(logits, wanted) < 1e-4  # float32 on both, with sums in other orders
    assert relative(mixed, wanted) < 0.03


def test_without_autocast_there_is_one_format():
    """What --dtype=float32 trains: the embedding, which init_weights leaves in bfloat16, is float32."""
    shape = {"sequence_len": 64, "vocab_size": 512, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}
    model = build_model(normans_gpt, shape, torch.device(DEVICE), 0, None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    before = model.lm_head.weight.detach().clone()
    outcome = Stepper(model, build_optimizers(model, Rates())).step(iter([batch()]))
    assert outcome.finite
    assert not torch.equal(before, model.lm_head.weight)


def test_gradients_are_those_of_the_cpu():
    model = make_model()
    reference = make_model()
    reference.load_state_dict(model.state_dict())
    reference = reference.cpu().float()
    inputs, targets = batch()
    with torch.autocast(DEVICE, torch.bfloat16):
        model(inputs, targets).backward()
    reference(inputs.cpu(), targets.cpu()).backward()
    for (name, got), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert got.grad is not None
        assert wanted.grad is not None
        assert relative(got.grad, wanted.grad) < 0.05, name


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_in_chunks_equals_the_loss_at_once(compiled, monkeypatch):
    monkeypatch.setattr(loss_module, "_kernel", loss_module._kernel)
    if compiled:
        loss_module.compile_kernel()
    torch.manual_seed(0)
    x = torch.randn(3000, 64, device=DEVICE).requires_grad_()
    weight = torch.randn(9000, 64, device=DEVICE).mul_(0.3).requires_grad_()
    targets = torch.randint(9000, (3000,), device=DEVICE)
    targets[::7] = -1
    wanted = bench.all_at_once(x.double(), weight.double(), targets, 15.0)
    wanted_gradients = torch.autograd.grad(wanted, (x, weight))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.01)):
        with torch.autocast(DEVICE, dtype, enabled=dtype is torch.bfloat16):
            got = softcapped_cross_entropy(x, weight, targets, 15.0)
        assert relative(got, wanted) < tolerance
        for a, b in zip(torch.autograd.grad(got, (x, weight)), wanted_gradients, strict=True):
            assert relative(a, b) < tolerance


def test_the_loss_in_chunks_needs_a_fraction_of_the_memory():
    x = torch.randn(8192, 64, device=DEVICE).requires_grad_()
    weight = torch.randn(65536, 64, device=DEVICE).requires_grad_()
    targets = torch.randint(65536, (8192,), device=DEVICE)
    peaks = []
    for function in (softcapped_cross_entropy, bench.all_at_once):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast(DEVICE, torch.bfloat16):
            total = function(x, weight, targets, 15.0)
        torch.autograd.grad(total, (x, weight))
        del total
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1] / 3


def test_muon_is_torchs_muon():
    torch.manual_seed(0)
    start = [torch.randn(shape, device=DEVICE) for shape in ((64, 64), (256, 64), (64, 256))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers: list[Any] = [
        Muon(ours, lr=0.02, momentum=0.9),
        torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.0, eps=1e-7),
    ]
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert relative(a - first, b - first) < 0.02


@pytest.mark.parametrize("compiled", [False, True])
def test_training_learns_a_batch_by_heart(compiled, monkeypatch):
    monkeypatch.setattr(loss_module, "_kernel", loss_module._kernel)
    torch.manual_seed(0)
    model = make_model()
    model.init_weights()  # zeros where training has them
    if compiled:
        from nanochat.workplace import compile_blocks

        compile_blocks(model)  # and the kernel of the loss

    def autocast() -> torch.autocast:
        return torch.autocast(DEVICE, torch.bfloat16)

    stepper = Stepper(model, model.setup_optimizers(), autocast=autocast)
    losses = [stepper.step(iter([batch()])).loss for _ in range(2)]
    accumulate_gradients(model, iter([batch()]), 1, autocast)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name
    model.zero_grad()
    losses += [stepper.step(iter([batch()])).loss for _ in range(58)]
    assert losses[0] == pytest.approx(torch.tensor(512.0).log().item(), abs=1e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_cached_generation_equals_plain_generation():
    model = make_model().float()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 20, "seed": 7}):
        settings: dict[str, Any] = dict(options)
        cached = Engine(model).complete(prompts, 16, **settings)
        for i, (prompt, got) in enumerate(zip(prompts, cached, strict=True)):
            if "seed" in settings:
                settings["seed"] = 7 + i
            assert list(model.generate(prompt, 16, **settings)) == got


def test_the_loader_puts_batches_on_the_device(tmp_path, monkeypatch):
    from nanochat.dataloader import TokenLoader

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    name, _ = bench.prepare_text(quick=True)
    _, tokenizer = bench.open_text()
    rows = [next(iter(TokenLoader(name, "train", tokenizer, 4, 32, device=d))) for d in (DEVICE, "cpu")]
    (inputs, targets), (wanted, _) = rows
    assert inputs.device.type == targets.device.type == DEVICE
    assert torch.equal(inputs.cpu(), wanted)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_benchmark_runs(tmp_path):
    path = tmp_path / "record.json"
    command = [sys.executable, "-m", "scripts.bench", "--quick", f"--device_type={DEVICE}", f"--out={path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert record["machine"]["device"] == torch.cuda.get_device_name()
    cases = [case for group in record["groups"].values() for case in group]
    assert not [case["name"] for case in cases if case["failed"]]
    assert all(case["peak_memory_bytes"] > 0 for case in cases if case["work"] in ("step", "decode"))

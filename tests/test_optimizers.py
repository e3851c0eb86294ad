"""GPT.setup_optimizers and GPT.get_device."""

from __future__ import annotations

import pytest
import torch

from nanochat.muon import Muon
from nanochat.normans_gpt import GPT, GPTConfig

pytestmark = pytest.mark.numerics


def tiny(n_embd: int = 16, **sizes: int) -> GPT:
    shape = {"sequence_len": 8, "vocab_size": 32, "n_layer": 2, "n_head": 2, "n_kv_head": 2} | sizes
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=n_embd, **shape))
    model.init_weights()
    return model


def test_every_parameter_is_in_one_group_and_the_right_one() -> None:
    model = tiny(n_kv_head=1)
    adamw, muon = model.setup_optimizers()
    assert type(adamw) is torch.optim.AdamW
    assert type(muon) is Muon
    names = {p: name for name, p in model.named_parameters()}
    groups = [[names[p] for p in group["params"]] for o in (adamw, muon) for group in o.param_groups]
    assert groups[0] == ["lm_head.weight"]
    assert groups[1] == ["transformer.wte.weight"]
    assert sorted(groups[2]) == sorted(name for name in names.values() if name.startswith("transformer.h."))
    assert sorted(name for group in groups for name in group) == sorted(names.values())


@pytest.mark.parametrize(("width", "scale"), [(192, 2.0), (768, 1.0), (3072, 0.5)])
def test_adamw_rates_scale_with_the_width_and_muons_does_not(width: int, scale: float) -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig(sequence_len=8, vocab_size=32, n_layer=1, n_head=2, n_kv_head=2, n_embd=width))
    adamw, muon = model.setup_optimizers(unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02)
    rates = [group["lr"] for optimizer in (adamw, muon) for group in optimizer.param_groups]
    assert rates == pytest.approx([0.004 * scale, 0.2 * scale, 0.02], rel=1e-12)


def test_arguments_and_constants_reach_the_groups() -> None:
    adamw, muon = tiny(768, n_layer=1).setup_optimizers(0.1, 0.3, 0.7, weight_decay=0.05)
    head, wte = adamw.param_groups
    assert (head["lr"], wte["lr"], muon.param_groups[0]["lr"]) == (0.1, 0.3, 0.7)
    for group in (head, wte):
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-10, 0.05)
        assert group["fused"] is True
    assert muon.param_groups[0]["momentum"] == 0.95
    assert muon.param_groups[0]["nesterov"] is True
    assert muon.param_groups[0]["ns_steps"] == 5


def test_every_group_remembers_its_first_rate() -> None:
    for optimizer in tiny().setup_optimizers():
        for group in optimizer.param_groups:
            assert group["initial_lr"] == group["lr"] > 0
            group["lr"] *= 0.5
            assert group["initial_lr"] == 2 * group["lr"]


def test_the_first_adamw_step_has_the_size_of_its_rate() -> None:
    """Bias-corrected m / sqrt(v) is the gradient's sign at step one; eps 1e-10 lets small gradients count."""
    model = tiny(192, n_layer=1)  # a width that doubles the rates
    adamw, _ = model.setup_optimizers(unembedding_lr=0.002)
    before = model.lm_head.weight.detach().clone()
    model.lm_head.weight.grad = torch.full_like(before, -1e-7)
    adamw.step()
    moved = model.lm_head.weight.detach() - before
    torch.testing.assert_close(moved, torch.full_like(before, 0.004), rtol=2e-3, atol=0)


def test_weight_decay_is_decoupled_and_never_touches_the_blocks() -> None:
    model = tiny(192, n_layer=1)  # a width that doubles the rates
    adamw, muon = model.setup_optimizers(unembedding_lr=0.25, embedding_lr=0.1, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw.step()
    muon.step()
    for name, p in model.named_parameters():
        factor = {"lm_head.weight": 1 - 0.5 * 0.1, "transformer.wte.weight": 1 - 0.2 * 0.1}.get(name, 1.0)
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_steps_without_gradients_change_nothing() -> None:
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for optimizer in model.setup_optimizers():
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_training_reaches_every_parameter_by_step_three() -> None:
    model = tiny()
    optimizers = model.setup_optimizers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    idx = torch.randint(0, 32, (4, 9), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(3):
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    assert losses[2] < losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_embedding_row_that_was_not_read_gets_no_gradient() -> None:
    """The chapter's reason for another optimizer: rows of zeros in the embedding's gradient."""
    model = tiny()
    torch.nn.init.normal_(model.lm_head.weight)
    model(torch.tensor([[3, 5, 3]]), torch.tensor([[5, 3, 7]])).backward()
    wte, head = model.transformer.wte.weight.grad, model.lm_head.weight.grad
    assert wte is not None
    assert head is not None
    assert wte.abs().sum(dim=1).nonzero().flatten().tolist() == [3, 5]
    assert (head.abs().sum(dim=1) > 0).all()


def test_get_device_follows_the_embedding() -> None:
    assert tiny().get_device() == torch.device("cpu")
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=32, n_layer=1))
    assert model.get_device() == torch.device("meta")
    model.transformer.wte.to_empty(device="cpu")
    assert model.get_device() == torch.device("cpu")

"""In which format Muon works: the machine's fastest, or what a flag says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nanochat import machine, muon
from scripts.base_train import train
from tests.tiny_run import own_base, tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    with own_base(folder):
        yield folder


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_without_a_choice_it_is_the_fastest(fast: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "fastest_format", lambda device: fast)
    g = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert muon.orthogonalize(g).dtype == fast
    assert muon.orthogonalize(g, dtype=torch.float64).dtype == torch.float64
    p = nn.Parameter(torch.zeros(4, 8))
    p.grad = g[0].clone()
    muon.Muon([p], momentum=0.0, lr=1.0).step()
    assert torch.equal(p.detach(), -muon.orthogonalize(g[:1], dtype=fast)[0].float())


def test_a_machine_that_emulates_bfloat16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated products are seventy times slower: by default nobody may compute them."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device: False)
    assert muon.orthogonalize(torch.randn(1, 4, 4)).dtype == torch.float32


@pytest.mark.usefixtures("base")
@pytest.mark.parametrize(
    ("flag", "expected"), [("auto", None), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_a_flag_is_obeyed(flag: str, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype | None] = set()
    real = muon.orthogonalize

    def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
        seen.add(dtype)
        return real(g, steps, dtype)

    monkeypatch.setattr(muon, "orthogonalize", orthogonalize)
    train(tiny_config(muon_dtype=flag, num_iterations=1, eval_every=-1, save_every=-1))
    assert seen == {expected}

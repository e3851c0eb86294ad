"""The book's GPT with one thing exchanged. Nothing of it is copied, so the rest stays the book's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat import normans_gpt
from nanochat.evidence.settings import Setting
from nanochat.normans_gpt import GPT, MLP, Block, Cache, GPTConfig
from nanochat.step import fit_format

UNBOUNDED = 1e6  # a cap so far away that in float32 it changes the sixth digit at most


@contextmanager
def patched(place: Any, **names: Any) -> Iterator[None]:
    """While active, the names of a module or class mean something else."""
    before = {name: getattr(place, name) for name in names}
    for name, value in names.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


class BentMLP(MLP):
    """The book's MLP with another bend, or with a gate and a third matrix, 8C/3 wide instead of 4C."""

    def __init__(self, config: GPTConfig, activation: str) -> None:
        """Create the book's matrices, or the gated MLP's three."""
        super().__init__(config)
        self.activation = activation
        if activation == "swiglu":
            hidden = 8 * config.n_embd // 3
            self.c_gate = nn.Linear(config.n_embd, hidden, bias=False)
            self.c_fc = nn.Linear(config.n_embd, hidden, bias=False)
            self.c_proj = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position of x (B, T, C); returns (B, T, C)."""
        h = self.c_fc(x)
        if self.activation == "swiglu":
            bent = F.silu(self.c_gate(x)) * h
        else:
            bent = F.gelu(h) if self.activation == "gelu" else F.relu(h)
        y: Tensor = self.c_proj(bent)
        return y


class VariedGPT(GPT):
    """The book's GPT as a Setting describes it."""

    def __init__(self, setting: Setting) -> None:
        """Build the book's model, then exchange parts."""
        self.setting = setting
        super().__init__(
            GPTConfig(
                sequence_len=setting.sequence_len,
                vocab_size=setting.vocab_size,
                n_layer=setting.n_layer,
                n_head=setting.n_head,
                n_kv_head=setting.n_kv_head or setting.n_head,
                n_embd=setting.n_embd,
            )
        )
        if setting.activation != "relu2":
            for block in self.blocks():
                block.mlp = BentMLP(self.config, setting.activation)
        if setting.bias:
            for module in self.transformer.h.modules():
                if isinstance(module, nn.Linear):
                    module.bias = nn.Parameter(torch.zeros(module.out_features))
        if setting.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def _precompute_rotary_embeddings(
        self, seq_len: int, head_dim: int, base: float = 10000.0, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """The book's tables: rounded at the end as there, not at all, or before the cosine is taken."""
        compute, outer = super()._precompute_rotary_embeddings, torch.outer
        if self.setting.table_dtype == "float32":
            with patched(Tensor, bfloat16=Tensor.float):
                return compute(seq_len, head_dim, base, device)
        if self.setting.table_dtype == "bfloat16 angles":
            with patched(torch, outer=lambda a, b: outer(a, b).bfloat16()):
                return compute(seq_len, head_dim, base, device)
        return compute(seq_len, head_dim, base, device)

    @torch.no_grad()
    def init_weights(self) -> None:
        """As the book does; then what a tied matrix or another format needs."""
        super().init_weights()
        if self.setting.tied:
            nn.init.normal_(self.transformer.wte.weight, std=self.setting.tied_std)
        if self.setting.embedding_dtype != "as the book":
            self.transformer.wte.to(dtype=getattr(torch, self.setting.embedding_dtype))
        elif self.setting.dtype == "float32":
            fit_format(self, None)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Cache | None = None,
        loss_reduction: str = "mean",
        last_only: bool = False,
    ) -> Tensor:
        """The book's forward pass, during which norm and the cap may mean something else."""
        exact, setting, calls = normans_gpt.norm, self.setting, 0

        def norm(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 1 and not setting.norm_after_embedding:
                return x  # the first norm of a forward pass is the embedding's
            if x.ndim == 4 and not setting.qk_norm:
                return x  # only queries and keys have an axis of heads
            return exact(x)

        with patched(normans_gpt, norm=norm, SOFTCAP=setting.softcap or UNBOUNDED):
            return super().forward(idx, targets, kv_cache, loss_reduction, last_only)

    def setup_optimizers(
        self,
        unembedding_lr: float = 0.004,
        embedding_lr: float = 0.2,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
    ) -> list[torch.optim.Optimizer]:
        """The book's two optimizers, emptied and filled again, the weights sorted as the setting says."""
        setting = self.setting
        adamw, muon = GPT(self.config).setup_optimizers(unembedding_lr, embedding_lr, matrix_lr, weight_decay)
        head_lr, table_lr = (group["lr"] for group in adamw.param_groups)
        if not setting.width_scaling:
            head_lr, table_lr = unembedding_lr, embedding_lr
        for optimizer in (adamw, muon):
            optimizer.param_groups.clear()
        blocks = list(self.transformer.h.parameters())
        vectors = [p for p in blocks if p.ndim < 2]
        of_rows = muon if setting.optimizer == "muon" else adamw
        if not setting.tied:
            of_rows.add_param_group({"params": [self.lm_head.weight], "lr": head_lr})
        of_rows.add_param_group({"params": [self.transformer.wte.weight], "lr": table_lr})
        of_matrices = adamw if setting.optimizer == "adamw" else muon
        of_matrices.add_param_group({"params": [p for p in blocks if p.ndim == 2], "lr": matrix_lr})
        if vectors:
            adamw.add_param_group({"params": vectors, "lr": head_lr})
        optimizers = [optimizer for optimizer in (adamw, muon) if optimizer.param_groups]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return optimizers

    def blocks(self) -> list[Block]:
        """The blocks, with their type."""
        return [block for block in self.transformer.h if isinstance(block, Block)]


def build(setting: Setting, seed: int, device: torch.device | str = "cpu") -> VariedGPT:
    """A model ready to train. What it has in common with the book's model of this seed starts the same."""
    usual = VariedGPT(usual_start(setting)).to(device)
    torch.manual_seed(seed)
    usual.init_weights()
    model = VariedGPT(setting).to(device)
    torch.manual_seed(seed)
    model.init_weights()
    if not setting.tied:
        known = dict(usual.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in known and known[name].shape == parameter.shape:
                    parameter.copy_(known[name])
    return model


def usual_start(setting: Setting) -> Setting:
    """The book's model of the same sizes."""
    sizes = ("n_layer", "n_embd", "n_head", "sequence_len", "vocab_size")
    return Setting(**{name: getattr(setting, name) for name in sizes})

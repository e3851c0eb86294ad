"""A GPT: configuration, layers, initialization, forward pass, optimizers and plain generation.

The book's chapters 10 to 50 explain every line. Shapes are written with B (batch), T (positions),
C (channels, n_embd), H (heads), D (head size, C / H) and V (vocabulary).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.loss import softcapped_cross_entropy
from nanochat.muon import Muon
from nanochat.sampling import sample_next

SOFTCAP = 15.0  # logits are bounded to (-15, 15)


@dataclass
class GPTConfig:
    """The six integers that fix every shape. Raises ValueError for a combination no model can have."""

    sequence_len: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"GPTConfig: {name} is {value}; it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"GPTConfig: n_embd {self.n_embd} does not divide into n_head {self.n_head} heads; "
                f"choose a width that is a multiple of {self.n_head}"
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"GPTConfig: n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}; "
                "each key-value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"GPTConfig: head size {self.head_dim} (n_embd / n_head) is odd; "
                "rotary embeddings turn pairs of channels, so it must be even"
            )

    @property
    def head_dim(self) -> int:
        """D, the channels of one head."""
        return self.n_embd // self.n_head


class Cache(Protocol):
    """What attention asks of a key-value cache; `nanochat.engine.KVCache` is one."""

    def get_pos(self) -> int:
        """The number of positions already stored, the same for all layers until the last layer inserts."""
        ...

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, H_kv, T, D) of one layer; return its keys and values of all positions."""
        ...


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without learned parameters: x / sqrt(mean(x²) + eps).

    Any shape and float dtype, kept; eps is 2^-23, the epsilon of float32 (float64: 2^-52).
    Source: arXiv 1910.07467.
    """
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each channel pair (i, i + D/2) of x by minus its position's angle.

    x is (B, T, H, D); cos and sin are (1, T, 1, D/2). Returns x's shape and dtype. Source: arXiv 2104.09864.
    """
    x1, x2 = x.chunk(2, dim=-1)
    y1 = x1 * cos + x2 * sin
    y2 = x2 * cos - x1 * sin
    return torch.cat((y1, y2), dim=-1).to(x.dtype)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and its past; key-value heads may be shared."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        """Create c_q (C, C), c_k and c_v (H_kv · D, C) and c_proj (C, C)."""
        super().__init__()
        self.layer_idx = layer_idx
        self.n_head = config.n_head
        self.n_kv_head = config.n_kv_head
        self.head_dim = config.head_dim
        kv_dim = self.n_kv_head * self.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], kv_cache: Cache | None = None) -> Tensor:
        """Attend from each position of x (B, T, C) to itself and everything before it; returns (B, T, C).

        cos_sin are the rotary tables of exactly these T positions. With a cache, x holds the newest T.
        """
        B, T, C = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        cos, sin = cos_sin
        q, k = apply_rotary_emb(q, cos, sin), apply_rotary_emb(k, cos, sin)
        q, k = norm(q), norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, D)
        if kv_cache is not None:
            k, v = kv_cache.insert_kv(self.layer_idx, k, v)
        T_k = k.size(2)  # T, or more where a cache brought the past along
        shared = self.n_head != self.n_kv_head
        if T_k == T:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        elif T == 1:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)
        else:
            mask = torch.ones(T, T_k, dtype=torch.bool, device=q.device).tril(diagonal=T_k - T)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        mixed: Tensor = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return mixed


class MLP(nn.Module):
    """Two matrices with a squared relu between them, applied to each position on its own."""

    def __init__(self, config: GPTConfig) -> None:
        """Create c_fc (4C, C) and c_proj (C, 4C)."""
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each position of x (B, T, C) through c_proj(relu(c_fc(x))²); returns (B, T, C)."""
        y: Tensor = self.c_proj(F.relu(self.c_fc(x)).square())
        return y


class Block(nn.Module):
    """One layer: attention over positions, then an MLP over channels, each added to its input."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        """Create the parts of layer layer_idx, counted from 0."""
        super().__init__()
        self.attn = CausalSelfAttention(config, layer_idx)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], kv_cache: Cache | None = None) -> Tensor:
        """x + attention(norm(x)), then that + mlp(norm(that)); (B, T, C) in and out."""
        x = x + self.attn(norm(x), cos_sin, kv_cache)
        x = x + self.mlp(norm(x))
        return x


class Transformer(nn.ModuleDict):
    """The trunk: token embedding and blocks. The annotations are for type checkers alone."""

    wte: nn.Embedding  # (V, C)
    h: nn.ModuleList  # L times Block


class GPT(nn.Module):
    """A decoder-only transformer: rotary positions, QK norm, relu² MLP, untied head, softcapped logits."""

    transformer: Transformer
    cos: Tensor  # (1, 10 * sequence_len, 1, D / 2), bfloat16, not saved
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        """Create the parts. Works on the meta device; weights mean nothing until init_weights()."""
        super().__init__()
        self.config = config
        self.transformer = Transformer(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "h": nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.n_layer)),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.rotary_seq_len = 10 * config.sequence_len
        cos, sin = self._precompute_rotary_embeddings(self.rotary_seq_len, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _precompute_rotary_embeddings(
        self, seq_len: int, head_dim: int, base: float = 10000.0, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angle for every channel pair.

        Returns two bfloat16 tensors of shape (1, seq_len, 1, head_dim / 2), so that they broadcast over batch
        and heads. Angles are computed in float32 and rounded once. Source: arXiv 2104.09864.
        """
        pair = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        speed = base ** (-pair / head_dim)  # radians per position
        position = torch.arange(seq_len, dtype=torch.float32, device=device)
        angle = torch.outer(position, speed)
        cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        return cos[None, :, None, :], sin[None, :, None, :]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Give every weight its starting value and fill the rotary tables, wherever the model lives.

        Uses torch's global random state. Afterwards all logits are exactly 0 and the loss is ln V.
        """
        self.apply(self._init_weights)
        nn.init.zeros_(self.lm_head.weight)
        for block in self.transformer.h.children():
            assert isinstance(block, Block)
            nn.init.zeros_(block.attn.c_proj.weight)
            nn.init.zeros_(block.mlp.c_proj.weight)
        device = self.get_device()
        self.cos, self.sin = self._precompute_rotary_embeddings(
            self.rotary_seq_len, self.config.head_dim, device=device
        )
        if device.type == "cuda":
            self.transformer.wte.to(dtype=torch.bfloat16)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw one module's weights; a module that is neither Linear nor Embedding has none of its own.

        Linear: N(0, σ²) with σ = fan_in^-½ · min(1, √(fan_out / fan_in)), as in arXiv 2310.17813.
        Embedding: N(0, 1).
        """
        if isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            nn.init.normal_(module.weight, mean=0.0, std=fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5))
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=1.0)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Cache | None = None,
        loss_reduction: str = "mean",
        last_only: bool = False,
    ) -> Tensor:
        """Predict the token after each of idx (B, T), int64.

        Without targets: softcapped logits (B, T, V), float32, or the last position's alone (B, 1, V) with
        last_only. With targets (B, T), int64, -1 where nothing is asked: the cross-entropy in nats, a scalar
        for loss_reduction "mean" or "sum", (B·T,) for "none".
        With a cache, idx continues what the cache holds. Raises ValueError past the rotary tables' end.
        """
        start = 0 if kv_cache is None else kv_cache.get_pos()
        end = start + idx.size(1)
        if end > self.cos.size(1):
            raise ValueError(
                f"GPT.forward: position {end - 1} is past the rotary tables' {self.cos.size(1)} positions "
                f"(10 x sequence_len {self.config.sequence_len}); use a shorter input"
            )
        cos_sin = self.cos[:, start:end], self.sin[:, start:end]
        x = norm(self.transformer.wte(idx))
        for block in self.transformer.h:
            x = block(x, cos_sin, kv_cache)
        x = norm(x)
        if targets is not None:
            weight, flat_targets = self.lm_head.weight, targets.flatten()
            return softcapped_cross_entropy(x.flatten(0, 1), weight, flat_targets, SOFTCAP, loss_reduction)
        logits: Tensor = self.lm_head(x[:, -1:] if last_only else x).float()
        return SOFTCAP * torch.tanh(logits / SOFTCAP)

    def setup_optimizers(
        self,
        unembedding_lr: float = 0.004,
        embedding_lr: float = 0.2,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
    ) -> list[torch.optim.Optimizer]:
        """AdamW for the head and the embedding, Muon for every matrix of the blocks, in this order.

        The AdamW rates are given for a width of 768 and scaled by (C / 768)^-½; Muon's is not. Every group
        has an "initial_lr" for schedules to scale.
        """
        width_scale = (self.config.n_embd / 768) ** -0.5
        adamw = torch.optim.AdamW(
            [
                {"params": [self.lm_head.weight], "lr": unembedding_lr * width_scale},
                {"params": [self.transformer.wte.weight], "lr": embedding_lr * width_scale},
            ],
            betas=(0.8, 0.95),
            eps=1e-10,
            weight_decay=weight_decay,
            fused=True,
        )
        muon = Muon(list(self.transformer.h.parameters()), lr=matrix_lr, momentum=0.95)
        optimizers: list[torch.optim.Optimizer] = [adamw, muon]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return optimizers

    def get_device(self) -> torch.device:
        """The device of the token embedding, and so of the model."""
        return self.transformer.wte.weight.device

    def estimate_flops(self) -> int:
        """Floating-point operations to train on one token, forward and backward: 6 (N - V·C) + 12 L C T.

        An embedding lookup multiplies nothing, so its V·C weights do not count.
        Source: arXiv 2204.02311, appendix B.
        """
        config = self.config
        weights = sum(p.numel() for p in self.parameters()) - self.transformer.wte.weight.numel()
        return 6 * weights + 12 * config.n_layer * config.n_embd * config.sequence_len

    @torch.inference_mode()
    def generate(
        self,
        tokens: list[int],
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[int]:
        """Yield max_tokens sampled tokens that continue tokens, one sequence, without a cache.

        Temperature 0 takes the likeliest token. Raises ValueError for an empty prompt, for settings that
        sample_next refuses, and past the rotary tables' end.
        """
        if not tokens:
            raise ValueError("GPT.generate: the prompt is empty; begin with the tokenizer's <|bos|> token")
        rng = random.Random(seed)
        ids = torch.tensor([tokens], dtype=torch.long, device=self.get_device())
        for _ in range(max_tokens):
            logits = self.forward(ids, last_only=True)[:, -1]
            next_id = sample_next(logits, [rng], temperature, top_k)
            ids = torch.cat((ids, next_id), dim=1)
            yield int(next_id.item())

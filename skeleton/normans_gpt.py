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
    raise NotImplementedError(
        "TODO: Implement norm - root mean square over the last dimension, nothing learned"
    )


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each channel pair (i, i + D/2) of x by minus its position's angle.

    x is (B, T, H, D); cos and sin are (1, T, 1, D/2). Returns x's shape and dtype. Source: arXiv 2104.09864.
    """
    raise NotImplementedError(
        "TODO: Implement apply_rotary_emb - pair each channel of the first half with one of the second, turn "
        "each pair by minus its angle, keep the dtype"
    )


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and its past; key-value heads may be shared."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        """Create c_q (C, C), c_k and c_v (H_kv · D, C) and c_proj (C, C)."""
        raise NotImplementedError(
            "TODO: Implement CausalSelfAttention.__init__ - remember the head counts and the head size, "
            "create c_q, c_k, c_v and c_proj without biases"
        )

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], kv_cache: Cache | None = None) -> Tensor:
        """Attend from each position of x (B, T, C) to itself and everything before it; returns (B, T, C).

        cos_sin are the rotary tables of exactly these T positions. With a cache, x holds the newest T.
        """
        raise NotImplementedError(
            "TODO: Implement CausalSelfAttention.forward - project, rotate then norm queries and keys, store "
            "with the cache, attend causally with shared heads, mix the heads"
        )


class MLP(nn.Module):
    """Two matrices with a squared relu between them, applied to each position on its own."""

    def __init__(self, config: GPTConfig) -> None:
        """Create c_fc (4C, C) and c_proj (C, 4C)."""
        raise NotImplementedError(
            "TODO: Implement MLP.__init__ - one matrix up to four times the width, one back down, no biases"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map each position of x (B, T, C) through c_proj(relu(c_fc(x))²); returns (B, T, C)."""
        raise NotImplementedError("TODO: Implement MLP.forward - up, squared relu, down")


class Block(nn.Module):
    """One layer: attention over positions, then an MLP over channels, each added to its input."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        """Create the parts of layer layer_idx, counted from 0."""
        raise NotImplementedError(
            "TODO: Implement Block.__init__ - one attention that knows its layer number, one MLP"
        )

    def forward(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], kv_cache: Cache | None = None) -> Tensor:
        """x + attention(norm(x)), then that + mlp(norm(that)); (B, T, C) in and out."""
        raise NotImplementedError(
            "TODO: Implement Block.forward - add attention of the normed stream, then add the MLP of the "
            "normed stream"
        )


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
        raise NotImplementedError(
            "TODO: Implement GPT.__init__ - create transformer dict with wte and h, create lm_head, setup "
            "rotary embeddings"
        )

    def _precompute_rotary_embeddings(
        self, seq_len: int, head_dim: int, base: float = 10000.0, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every position's angle for every channel pair.

        Returns two bfloat16 tensors of shape (1, seq_len, 1, head_dim / 2), so that they broadcast over batch
        and heads. Angles are computed in float32 and rounded once. Source: arXiv 2104.09864.
        """
        raise NotImplementedError(
            "TODO: Implement GPT._precompute_rotary_embeddings - one angle for each position and channel "
            "pair, then two tables that broadcast over batch and heads"
        )

    @torch.no_grad()
    def init_weights(self) -> None:
        """Give every weight its starting value and fill the rotary tables, wherever the model lives.

        Uses torch's global random state. Afterwards all logits are exactly 0 and the loss is ln V.
        """
        raise NotImplementedError(
            "TODO: Implement GPT.init_weights - draw every module's weights, then zero what must start "
            "silent, then fill the rotary tables"
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Draw one module's weights; a module that is neither Linear nor Embedding has none of its own.

        Linear: N(0, σ²) with σ = fan_in^-½ · min(1, √(fan_out / fan_in)), as in arXiv 2310.17813.
        Embedding: N(0, 1).
        """
        raise NotImplementedError(
            "TODO: Implement GPT._init_weights - the spread of a Linear follows from its fan-in and fan-out, "
            "an Embedding is unit normal"
        )

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
        raise NotImplementedError(
            "TODO: Implement GPT.forward - embed and norm, run the blocks with the right rows of the tables, "
            "norm, then softcapped logits, or the loss when targets are given"
        )

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
        raise NotImplementedError(
            "TODO: Implement GPT.setup_optimizers - AdamW for head and embedding with rates scaled to the "
            "width, Muon for the blocks' matrices, every group remembers its initial_lr"
        )

    def get_device(self) -> torch.device:
        """The device of the token embedding, and so of the model."""
        raise NotImplementedError("TODO: Implement GPT.get_device - the device the token embedding lives on")

    def estimate_flops(self) -> int:
        """Floating-point operations to train on one token, forward and backward: 6 (N - V·C) + 12 L C T.

        An embedding lookup multiplies nothing, so its V·C weights do not count.
        Source: arXiv 2204.02311, appendix B.
        """
        raise NotImplementedError(
            "TODO: Implement GPT.estimate_flops - six for every weight that multiplies, plus attention's two "
            "products, for one token"
        )

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
        raise NotImplementedError(
            "TODO: Implement GPT.generate - run the whole sequence, sample from its last position, append, "
            "yield, repeat"
        )

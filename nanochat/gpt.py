"""The same architecture by other hands: transformers' NanoChat behind the interface of the book's model."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError
from nanochat.normans_gpt import GPT as BookGPT
from nanochat.normans_gpt import Cache, GPTConfig, Transformer

if TYPE_CHECKING:
    from nanochat.trace import Call

__all__ = ["GPT", "GPTConfig"]


def build_library_model(config: GPTConfig) -> Any:
    """transformers' NanoChatForCausalLM of this shape. Raises UserError if the library is missing."""
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError as error:
        raise UserError(
            "--gpt=reference needs the transformers library: "
            f".venv/bin/python -m pip install 'transformers>=5' ({str(error).splitlines()[0]})"
        ) from None
    shape = NanoChatConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=4 * config.n_embd,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        max_position_embeddings=10 * config.sequence_len,
        rms_norm_eps=2.0**-23,
        final_logit_softcapping=15.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    return NanoChatForCausalLM(shape)


class BorrowedCache:
    """What transformers asks of a cache, answered by one of the book's."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (B, H_kv, T, D); return all of them."""
        return self.cache.insert_kv(layer_idx, k, v)

    def get_seq_length(self, *_: Any) -> int:
        """The number of positions already stored."""
        return self.cache.get_pos()

    def get_query_offset(self, *_: Any) -> int:
        """The position of the first query."""
        return self.cache.get_pos()

    def get_mask_sizes(self, query_length: int, *_: Any) -> tuple[int, int]:
        """How many keys there will be, and the position of the first."""
        return self.cache.get_pos() + query_length, 0


class Block(nn.Module):
    """The matrices of one of the library's layers, under the book's names."""

    def __init__(self, layer: Any) -> None:
        """Name what exists; create nothing."""
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.attn = nn.ModuleDict(
            {
                "c_q": attention.q_proj,
                "c_k": attention.k_proj,
                "c_v": attention.v_proj,
                "c_proj": attention.o_proj,
            }
        )
        self.mlp = nn.ModuleDict({"c_fc": mlp.fc1, "c_proj": mlp.fc2})
        self._layer = [layer]  # in a list, so that its names are not in checkpoints

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layer that computes, as training asks it of every block."""
        self._layer[0].compile(*args, **kwargs)


class GPT(nn.Module):
    """transformers' NanoChatForCausalLM behind the interface of the book's model."""

    def __init__(self, config: GPTConfig) -> None:
        """Create the library's model. Works on the meta device; weights mean nothing until init_weights()."""
        super().__init__()
        self.config = config
        library = build_library_model(config)
        self._library = [library]  # in a list, so that its names are not in checkpoints
        blocks = nn.ModuleList(Block(layer) for layer in library.model.layers)
        self.transformer = Transformer({"wte": library.model.embed_tokens, "h": blocks})
        self.lm_head = library.lm_head
        self.rotary_seq_len = 10 * config.sequence_len

    @property
    def library(self) -> Any:
        """The model as the library knows it, with all its methods and the same parameters."""
        return self._library[0]

    def _apply(self, fn: Any, recurse: bool = True) -> GPT:
        """Move or convert everything; the speeds of rotation stay exact."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        rotary = self.library.model.rotary_emb
        speeds, _ = rotary.compute_default_rope_parameters(self.library.config)
        rotary.inv_freq = speeds.to(self.get_device())
        rotary.original_inv_freq = rotary.inv_freq.clone()
        return self

    @property
    def cos(self) -> Tensor:
        """Cosines as the library computes them, (1, 10 * sequence_len, 1, D / 2), float32."""
        return self._rotary_tables()[0]

    @property
    def sin(self) -> Tensor:
        """Sines, likewise."""
        return self._rotary_tables()[1]

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        """Both tables, in the book's form. The library computes what it needs in each forward pass."""
        positions = torch.arange(self.rotary_seq_len, device=self.get_device())[None]
        cos, sin = self.library.model.rotary_emb(torch.zeros((), device=self.get_device()), positions)
        half = self.config.head_dim // 2
        return cos[:, :, None, :half], sin[:, :, None, :half]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every weight as the book does, in its order: the same seed gives the same weights."""
        for name, weight in self.named_parameters():
            fan_out, fan_in = weight.shape
            std = fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)
            if name == "transformer.wte.weight":
                std = 1.0
            nn.init.normal_(weight, std=std)
            if name == "lm_head.weight" or name.endswith(".c_proj.weight"):
                nn.init.zeros_(weight)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Cache | None = None,
        loss_reduction: str = "mean",
        last_only: bool = False,
    ) -> Tensor:
        """As the book's: logits (B, T, V) in float32, or with targets the loss in nats."""
        end = (kv_cache.get_pos() if kv_cache is not None else 0) + idx.size(1)
        if end > self.rotary_seq_len:
            raise ValueError(
                f"GPT.forward: position {end - 1} is past the {self.rotary_seq_len} positions of this model "
                f"(10 x sequence_len {self.config.sequence_len}); use a shorter input"
            )
        past = BorrowedCache(kv_cache) if kv_cache is not None else None
        if targets is not None and loss_reduction == "mean":
            shifted = {"labels": targets, "shift_labels": targets, "ignore_index": -1}
            loss: Tensor = self.library(idx, past_key_values=past, use_cache=False, **shifted).loss
            return loss
        keep = 1 if last_only and targets is None else 0
        output = self.library(idx, past_key_values=past, use_cache=False, logits_to_keep=keep)
        logits: Tensor = output.logits.float()
        if targets is None:
            return logits
        flat_logits, flat_targets = logits.flatten(0, 1), targets.flatten()
        return F.cross_entropy(flat_logits, flat_targets, ignore_index=-1, reduction=loss_reduction)

    def setup_optimizers(
        self,
        unembedding_lr: float = 0.004,
        embedding_lr: float = 0.2,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
    ) -> list[torch.optim.Optimizer]:
        """PyTorch's AdamW for head and embedding, PyTorch's Muon for the blocks, with the book's rates."""
        width_scale = (self.config.n_embd / 768) ** -0.5
        head = {"params": [self.lm_head.weight], "lr": unembedding_lr * width_scale}
        embedding = {"params": [self.transformer.wte.weight], "lr": embedding_lr * width_scale}
        adamw = torch.optim.AdamW(
            [head, embedding], betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay, fused=True
        )
        matrices = self.transformer.h.parameters()
        muon = torch.optim.Muon(matrices, lr=matrix_lr, momentum=0.95, weight_decay=0.0)
        optimizers: list[torch.optim.Optimizer] = [adamw, muon]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return optimizers

    def get_device(self) -> torch.device:
        """The device of the token embedding, and so of the model."""
        device: torch.device = self.lm_head.weight.device
        return device

    # These ask forward and the parameters for all they need.
    estimate_flops = BookGPT.estimate_flops
    generate = BookGPT.generate


WORDS = {
    "NanoChatDecoderLayer.forward": "Block.forward",
    "NanoChatAttention.forward": "CausalSelfAttention.forward",
    "NanoChatMLP.forward": "MLP.forward",
    "NanoChatRMSNorm.forward": "norm",
}


def watched_module() -> ModuleType:
    """The module whose functions compute: the library's."""
    return importlib.import_module("transformers.models.nanochat.modeling_nanochat")


def retell(calls: list[Call]) -> list[Call]:
    """A recording of the library's calls in the words of the book, without those that the book has not."""
    told = []
    for call in calls:
        if call.name not in WORDS:
            continue
        given = {{"hidden_states": "x"}.get(name, name): value for name, value in call.given.items()}
        result = call.result[0] if isinstance(call.result, list) else call.result  # without the scores
        if result.ndim == 4:
            result = result.transpose(1, 2)
        told.append(replace(call, name=WORDS[call.name], given=given, result=result))
    return told

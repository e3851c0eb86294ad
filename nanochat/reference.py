"""The same architecture by other hands: the book's weights, the forward pass of transformers' NanoChat."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError
from nanochat.normans_gpt import GPT as BookGPT
from nanochat.normans_gpt import Cache, GPTConfig

__all__ = ["GPT", "GPTConfig"]

NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    "attn.c_q.": "self_attn.q_proj.",
    "attn.c_k.": "self_attn.k_proj.",
    "attn.c_v.": "self_attn.v_proj.",
    "attn.c_proj.": "self_attn.o_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def build_reference(config: GPTConfig) -> nn.Module:
    """transformers' model of this shape, on the meta device. Raises UserError if the library is missing."""
    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM  # type: ignore[import-not-found, unused-ignore]
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
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return NanoChatForCausalLM(shape)  # type: ignore[no-any-return, unused-ignore]


class BorrowedCache:
    """What transformers' attention asks of a cache, answered by ours."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def update(self, k: Tensor, v: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store one layer's keys and values (B, H_kv, T, D); return all of them."""
        return self.cache.insert_kv(layer_idx, k, v)

    def get_seq_length(self, *_: Any) -> int:
        """The number of positions already stored."""
        return self.cache.get_pos()


class GPT(BookGPT):
    """The book's weights and optimizers, another library's arithmetic."""

    def __init__(self, config: GPTConfig) -> None:
        """Create the book's parts, and the layers that will compute with them."""
        super().__init__(config)
        self._computing = [build_reference(config)]  # in a list, so that its parameters are not ours

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: Cache | None = None,
        loss_reduction: str = "mean",
        last_only: bool = False,
    ) -> Tensor:
        """As the book's: logits (B, T, V) in float32, or with targets the loss in nats."""
        start, T = (kv_cache.get_pos() if kv_cache is not None else 0), idx.size(1)
        if start + T > self.rotary_seq_len:
            raise ValueError(f"position {start + T} is past the end of the tables, {self.rotary_seq_len}")
        positions = torch.arange(start, start + T, device=idx.device)
        seen = torch.arange(start + T, device=idx.device) <= positions[:, None]
        given: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            for ours, theirs in NAMES.items():
                name = name.replace(ours, theirs)
            given[name] = parameter
        D = self.config.head_dim
        pair = torch.arange(0, D, 2, dtype=torch.float32, device=idx.device)
        for name in ("inv_freq", "original_inv_freq"):  # the library's own tables are on the meta device
            given[f"model.rotary_emb.{name}"] = 10000.0 ** (-pair / D)
        output = torch.func.functional_call(
            self._computing[0],
            given,
            kwargs={
                "input_ids": idx,
                "attention_mask": torch.where(seen, 0.0, float("-inf"))[None, None],
                "position_ids": positions[None],
                "cache_position": positions,
                "past_key_values": BorrowedCache(kv_cache) if kv_cache is not None else None,
                "use_cache": False,
                "logits_to_keep": 1 if last_only and targets is None else 0,
            },
        )
        logits: Tensor = output.logits.float()
        if targets is None:
            return logits
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=loss_reduction
        )

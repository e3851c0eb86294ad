"""Generation with a key-value cache: several prompts at once, each token computed once."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from nanochat.normans_gpt import GPT
from nanochat.sampling import sample_next

Insert = Callable[
    [Sequence[int]], Sequence[int]
]  # from a sequence to tokens that follow without being chosen


def write_kv(store: Tensor, k: Tensor, v: Tensor, layer_idx: int, start: int) -> None:
    """Put k and v (B, H_kv, T, D) into a memory (L, 2, B, H_kv, seq_len, D), from position start on."""
    end = start + k.size(-2)
    store[layer_idx, 0, :, :, start:end] = k
    store[layer_idx, 1, :, :, start:end] = v


class KVCache:
    """Keys and values of all layers for the positions read so far. All rows are at the same position."""

    def __init__(self, batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int) -> None:
        """Room for seq_len positions of batch_size sequences; num_heads counts key-value heads, H_kv.

        Takes no memory yet. Raises ValueError for a size below 1.
        """
        if min(batch_size, num_heads, seq_len, head_dim, num_layers) < 1:
            raise ValueError(
                f"KVCache: batch_size {batch_size}, num_heads {num_heads}, seq_len {seq_len}, "
                f"head_dim {head_dim}, num_layers {num_layers}: each must be at least 1"
            )
        self.batch_size = batch_size
        self.num_heads = num_heads
        self.seq_len = seq_len
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.store: Tensor | None = None  # (L, 2, B, H_kv, seq_len, D); 0 is keys, 1 is values
        self.pos = 0

    def get_pos(self) -> int:
        """The number of positions stored, which is the position the next token takes."""
        return self.pos

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's newest k and v (B, H_kv, T, D); return views of all its keys and values so far.

        The position moves on when the last layer has inserted. Numbers are kept in v's dtype. Raises
        ValueError, before anything is stored, for another shape or more positions than there is room for.
        """
        T = k.size(-2)
        end = self.pos + T
        if k.shape != v.shape or k.shape != (self.batch_size, self.num_heads, T, self.head_dim):
            raise ValueError(
                f"KVCache.insert_kv: keys are {tuple(k.shape)}, values {tuple(v.shape)}, this cache takes "
                f"({self.batch_size}, {self.num_heads}, T, {self.head_dim}); create it for this batch"
            )
        if end > self.seq_len:
            raise ValueError(
                f"KVCache.insert_kv: {T} positions after {self.pos} make {end}, but the cache has room for "
                f"{self.seq_len}; create it with seq_len={end} or more, or reset() it"
            )
        store = self._store_like(v)
        self._write(store, layer_idx, k, v)
        if layer_idx == self.num_layers - 1:
            self.pos = end
        return store[layer_idx, 0, :, :, :end], store[layer_idx, 1, :, :, :end]

    def _write(self, store: Tensor, layer_idx: int, k: Tensor, v: Tensor) -> None:
        """Put k and v into the memory, at the positions that follow."""
        write_kv(store, k, v, layer_idx, self.pos)

    def prefill(self, other: "KVCache") -> None:
        """Copy what other holds into this empty cache; a single row of other goes to every row here.

        Raises ValueError when this cache is not empty, other is, or what other holds does not fit.
        """
        if self.pos or other.store is None or not other.pos:
            raise ValueError(
                f"KVCache.prefill: other holds {other.pos} positions and this one {self.pos}; copy from a "
                "cache that has read the prompt into one that is new, or reset()"
            )
        sizes = ("num_layers", "num_heads", "head_dim")
        same = all(getattr(other, size) == getattr(self, size) for size in sizes)
        if not same or other.batch_size not in (1, self.batch_size):
            raise ValueError(
                f"KVCache.prefill: other is {other}, this one {self}; all but seq_len must be equal, "
                "and batch_size may be 1 in other"
            )
        if other.pos > self.seq_len:
            raise ValueError(
                f"KVCache.prefill: {other.pos} positions do not fit into {self.seq_len}; "
                f"create this cache with seq_len={other.pos} or more"
            )
        self._store_like(other.store)[..., : other.pos, :] = other.store[..., : other.pos, :]
        self.pos = other.pos

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and free the others' memory."""
        self.batch_size = len(rows)
        if self.store is not None:
            wide = self.store
            self.store = None
            self._store_like(wide)[..., : self.pos, :] = wide[:, :, list(rows), :, : self.pos]

    def reset(self) -> None:
        """Forget all positions; the memory stays for the next prompt."""
        self.pos = 0

    def _store_like(self, example: Tensor) -> Tensor:
        """The memory, taken at the first call with the example's dtype and device."""
        if self.store is None:
            shape = (self.num_layers, 2, self.batch_size, self.num_heads, self.seq_len, self.head_dim)
            self.store = torch.empty(shape, dtype=example.dtype, device=example.device)
        return self.store

    def __repr__(self) -> str:
        """The sizes, for messages."""
        return (
            f"KVCache(batch_size={self.batch_size}, num_heads={self.num_heads}, seq_len={self.seq_len}, "
            f"head_dim={self.head_dim}, num_layers={self.num_layers})"
        )


SIGNATURE = "(Tensor(a!) store, Tensor k, Tensor v, SymInt layer_idx, SymInt start) -> ()"
torch.library.define("nanochat::write_kv", SIGNATURE)
torch.library.impl("nanochat::write_kv", "CompositeExplicitAutograd")(write_kv)


class CompiledCache(KVCache):
    """A cache whose memory a compiled step writes in place."""

    def _write(self, store: Tensor, layer_idx: int, k: Tensor, v: Tensor) -> None:
        """Put k and v into the memory, at the positions that follow."""
        torch.ops.nanochat.write_kv(store, k, v, layer_idx, self.pos)


class Engine:
    """Generates with a key-value cache, for one prompt or many."""

    def __init__(self, model: GPT, compiled: bool = False) -> None:
        """The model is used where it is and as it is; compiled compiles its step when there is a first."""
        self.model = model
        self.step: Callable[..., Tensor] = model
        self.cache_type: type[KVCache] = KVCache
        if compiled:
            self.cache_type = CompiledCache
            fused: dict[str, Any] = {"cpp.use_decompose_tanh": True}
            self.step = torch.compile(model, dynamic=True, fullgraph=True, options=fused)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
        stop: AbstractSet[int] = frozenset(),
        *,
        insert: Insert | None = None,
    ) -> Iterator[list[int | None]]:
        """Continue each prompt by max_tokens tokens, or until it would emit one of stop.

        Yields lists as long as prompts: each prompt's next token, or None where it has none this time (it is
        still being read, or has ended). Prompt i draws from a generator of its own, seeded with seed + i, so
        its text is that of GPT.generate with this seed, whatever the other prompts are. After each token that
        is chosen, `insert` is given the sequence so far and returns what follows without being chosen; these
        tokens are yielded too, and count. Raises ValueError at once for prompts or lengths that cannot work,
        and when sampling for what sample_next refuses.
        """
        self._refuse(prompts, max_tokens)
        sequences = [list(prompt) for prompt in prompts]
        return self._generate(sequences, max_tokens, temperature, top_k, seed, stop, insert=insert)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
        stop: AbstractSet[int] = frozenset(),
        *,
        insert: Insert | None = None,
    ) -> list[list[int]]:
        """All that generate yields, gathered: for each prompt the list of its new tokens."""
        completions: list[list[int]] = [[] for _ in prompts]
        for tokens in self.generate(prompts, max_tokens, temperature, top_k, seed, stop, insert=insert):
            for completion, token in zip(completions, tokens, strict=True):
                if token is not None:
                    completion.append(token)
        return completions

    def _refuse(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """Raise ValueError for what would fail later, or not fail and mean nothing."""
        vocab_size, table = self.model.config.vocab_size, self.model.cos.size(1)
        if not prompts or max_tokens < 1:
            raise ValueError(
                f"Engine: {len(prompts)} prompts and max_tokens {max_tokens}; give at least one of each"
            )
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"Engine: prompt {i} is empty; begin with the tokenizer's <|bos|> token")
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise ValueError(
                    f"Engine: prompt {i} has tokens from {min(prompt)} to {max(prompt)}, the vocabulary 0 to "
                    f"{vocab_size - 1}; use the tokenizer this model was trained with"
                )
            needed = len(prompt) + max_tokens - 1
            if needed > table:
                raise ValueError(
                    f"Engine: prompt {i} of {len(prompt)} tokens and max_tokens {max_tokens} need {needed} "
                    f"positions, but the rotary tables have {table}; shorten one of them"
                )

    @torch.inference_mode()
    def _generate(
        self,
        sequences: list[list[int]],
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        seed: int,
        stop: AbstractSet[int],
        *,
        insert: Insert | None,
    ) -> Iterator[list[int | None]]:
        """The loop behind generate; sequences are the prompts, and grow."""
        full = [len(sequence) + max_tokens for sequence in sequences]
        rngs = [random.Random(seed + i) for i in range(len(sequences))]
        cache = self._cache(len(sequences), max(full) - 1)  # the last token of all is never fed
        rows = list(range(len(sequences)))  # row i of the cache belongs to sequence rows[i]
        live = set(rows)
        while live:
            start = cache.get_pos()
            end = min(len(sequences[s]) for s in live)
            chunk = [sequences[s][start:end] for s in rows]
            logits = self._feed([tokens + [0] * (end - start - len(tokens)) for tokens in chunk], cache)
            emitted: list[int | None] = [None] * len(sequences)
            put_in: dict[int, list[int]] = {}
            ready = [i for i, s in enumerate(rows) if s in live and len(sequences[s]) == end]
            if len(ready) < len(rows):
                logits = logits[ready]
            chosen = sample_next(logits, [rngs[rows[i]] for i in ready], temperature, top_k)
            for i, token in zip(ready, chosen.flatten().tolist(), strict=True):
                s = rows[i]
                if token in stop:
                    live.remove(s)
                    continue
                emitted[s] = token
                sequences[s].append(token)
                if insert is not None:
                    put_in[s] = list(insert(sequences[s]))[: full[s] - len(sequences[s])]
                    sequences[s] += put_in[s]
                if len(sequences[s]) == full[s]:
                    live.remove(s)
            if any(token is not None for token in emitted):
                yield emitted
            for tokens in itertools.zip_longest(*put_in.values()):
                given_out: list[int | None] = [None] * len(sequences)
                for s, given_token in zip(put_in, tokens, strict=True):
                    given_out[s] = given_token
                yield given_out
            if 0 < 2 * len(live) <= len(rows):
                kept = [i for i, s in enumerate(rows) if s in live]
                cache.keep(kept)
                rows = [rows[i] for i in kept]

    def _feed(self, chunk: list[list[int]], cache: KVCache) -> Tensor:
        """Run the next tokens of all rows, equally many each, through the model; returns logits (B, V)."""
        if cache.get_pos() == 0 and len(chunk) > 1 and all(tokens == chunk[0] for tokens in chunk):
            one = self._cache(1, len(chunk[0]))
            logits = self._feed(chunk[:1], one)
            cache.prefill(one)
            return logits.expand(len(chunk), -1)
        ids = torch.tensor(chunk, device=self.model.get_device())
        forward = self.step if ids.size(1) == 1 and cache.get_pos() else self.model
        newest: Tensor = forward(ids, kv_cache=cache, last_only=True)
        return newest[:, -1]

    def _cache(self, batch_size: int, seq_len: int) -> KVCache:
        """An empty cache of the model's shape."""
        config = self.model.config
        return self.cache_type(batch_size, config.n_kv_head, seq_len, config.head_dim, config.n_layer)

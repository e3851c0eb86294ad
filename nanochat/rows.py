"""Continuous batching: rows of different lengths share a model's steps, and join and leave between them."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.engine import Insert, KVCache
from nanochat.normans_gpt import GPT
from nanochat.sampling import sample_next


def row_cache(model: GPT, room: int) -> KVCache:
    """An empty cache for one row of `room` positions."""
    config = model.config
    return KVCache(1, config.n_kv_head, room, config.head_dim, config.n_layer)


def feed(model: GPT, tokens: Sequence[int], cache: KVCache) -> Tensor:
    """Let a single row read these tokens; returns the logits behind them, (1, V)."""
    ids = torch.tensor([list(tokens)], device=model.get_device())
    logits: Tensor = model(ids, kv_cache=cache, last_only=True)
    return logits[:, -1]


LOOKS = frozenset(
    (Tensor.size, Tensor.dim, Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__)  # type: ignore[attr-defined]
)


class RowKeys(Tensor):
    """Keys (B, H_kv, T, D) of rows that do not all reach to T. Only attention can use them."""

    visible: Tensor  # (B, 1, 1, T), bool

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Add the mask to attention; raise NotImplementedError for another computation."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention and isinstance(args[1], RowKeys):
                return func(*args, **{**(kwargs or {}), "attn_mask": args[1].visible})
            if func in LOOKS:
                return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", func)
        raise NotImplementedError(f"rows of different lengths can be given to attention, not to {name}")


class RowsCache:
    """Keys and values of all layers for rows that have read different numbers of positions."""

    def __init__(self, capacity: int, seq_len: int) -> None:
        """Room for `capacity` rows of seq_len positions; memory is taken when the first row joins."""
        self.capacity, self.seq_len = capacity, seq_len
        self.lengths: list[int] = []  # positions stored, for each row in use
        self.store: Tensor | None = None  # (L, 2, capacity, H_kv, seq_len, D); 0 is keys, 1 is values

    def join(self, read: KVCache) -> None:
        """Append the one row that `read` holds."""
        assert read.store is not None
        if self.store is None:
            L, two, _, H, _, D = read.store.shape
            self.store = read.store.new_zeros(L, two, self.capacity, H, self.seq_len, D)
        self.store[:, :, len(self.lengths), :, : read.pos] = read.store[:, :, 0, :, : read.pos]
        self.lengths.append(read.pos)

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        assert self.store is not None
        end = self.lengths[-1]
        if row != len(self.lengths) - 1:
            self.store[:, :, row, :, :end] = self.store[:, :, len(self.lengths) - 1, :, :end]
        self.lengths[row] = end
        self.lengths.pop()

    def open_step(self) -> Tensor:
        """Prepare for one more position in each row; returns these positions (B,), int64."""
        assert self.store is not None
        device = self.store.device
        self.at = torch.tensor(self.lengths, device=device)
        self.rows = torch.arange(len(self.lengths), device=device)
        places = torch.arange(max(self.lengths) + 1, device=device)
        self.visible = (places <= self.at[:, None])[:, None, None]
        self.lengths = [length + 1 for length in self.lengths]
        return self.at

    def get_pos(self) -> int:
        """Where the model shall slice its tables, which hold nothing but this step."""
        return 0

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, H_kv, 1, D) of one layer; return all its keys and values of these rows."""
        assert self.store is not None
        keys, values = self.store[layer_idx]
        keys[self.rows, :, self.at] = k[:, :, 0].to(keys.dtype)
        values[self.rows, :, self.at] = v[:, :, 0].to(keys.dtype)
        end = self.visible.size(-1)
        seen = keys[: k.size(0), :, :end].as_subclass(RowKeys)
        seen.visible = self.visible
        return seen, values[: k.size(0), :, :end]


class Stepping(Protocol):
    """Rows that have read their prompts, and how they are stepped."""

    def join(self, read: KVCache) -> None:
        """Append the one row that `read` holds, with room for all that it will become."""

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its next token; returns logits (B, V)."""


class TogetherRows:
    """All rows in one pass."""

    def __init__(self, model: GPT, capacity: int, seq_len: int) -> None:
        """At most `capacity` rows of at most seq_len positions."""
        self.model, self.cache = model, RowsCache(capacity, seq_len)
        self.twin = copy.copy(model)
        self.twin._buffers = dict(model._buffers)
        self.join, self.leave = self.cache.join, self.cache.leave

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its next token; returns logits (B, V)."""
        at = self.cache.open_step()
        self.twin.cos, self.twin.sin = (
            table[:, at].transpose(0, 1) for table in (self.model.cos, self.model.sin)
        )
        ids = torch.tensor(tokens, device=at.device)[:, None]
        logits: Tensor = self.twin(ids, kv_cache=self.cache, last_only=True)
        return logits[:, -1]


class SeparateRows:
    """Each row in a pass of its own, for models that know nothing of other rows."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.caches: list[KVCache] = []
        self.join = self.caches.append

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        self.caches[row] = self.caches[-1]
        self.caches.pop()

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its next token; returns logits (B, V)."""
        rows = zip(tokens, self.caches, strict=True)
        return torch.cat([feed(self.model, [token], cache) for token, cache in rows])


@torch.inference_mode()
def can_share(model: GPT) -> bool:
    """Whether rows that share a step get the scores that each gets by itself."""
    prompts, scores = ([3, 1, 4, 1], [5, 9]), []
    try:
        for rows in (SeparateRows(model), TogetherRows(model, capacity=2, seq_len=8)):
            for prompt in prompts:
                cache = row_cache(model, room=8)
                feed(model, prompt, cache)
                rows.join(cache)
            rows.step([2, 6])
            scores.append(rows.step([5, 3]))
    except (NotImplementedError, AttributeError, RuntimeError):
        return False
    tolerance = 1e-3 if model.transformer.wte.weight.dtype == torch.float32 else 0.1
    return torch.allclose(scores[0], scores[1], rtol=0, atol=tolerance)


@dataclass(eq=False)
class Row:
    """A text in the making. `sequence` begins as the prompt and grows."""

    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    seed: int = 42
    stop: AbstractSet[int] = frozenset()
    insert: Insert | None = None  # what follows a token without being chosen, as in Engine.generate

    def __post_init__(self) -> None:
        self.sequence = list(self.prompt)
        self.full = len(self.prompt) + self.max_tokens
        self.rng = random.Random(self.seed)
        self.read = 0  # how many of the sequence the model has been given
        self.cache: KVCache | None = None  # while the prompt is read

    def go_on(self, logits: Tensor) -> tuple[list[int], str]:
        """Choose from logits (1, V): the new tokens, and why the row ends: "stop", "length", or "" if not."""
        token = int(sample_next(logits, [self.rng], self.temperature, self.top_k).item())
        if token in self.stop:
            return [], "stop"
        start = len(self.sequence)
        self.sequence.append(token)
        if self.insert is not None:
            self.sequence += list(self.insert(self.sequence))[: self.full - len(self.sequence)]
        return self.sequence[start:], "length" if len(self.sequence) == self.full else ""


CHUNK = 128  # tokens of a prompt that are read in one pass


class Batch:
    """Rows that are computed together. Not safe to be used by two threads."""

    def __init__(self, model: GPT, capacity: int, seq_len: int) -> None:
        """At most `capacity` rows at a time, others wait; a row has at most seq_len tokens."""
        self.model, self.capacity, self.seq_len = model, capacity, seq_len
        self.together = capacity > 1 and can_share(model)
        self.stepping: Stepping = (
            TogetherRows(model, capacity, seq_len) if self.together else SeparateRows(model)
        )
        self.waiting: deque[Row] = deque()
        self.reading: deque[Row] = deque()
        self.live: list[Row] = []

    def __len__(self) -> int:
        """The rows that are not finished."""
        return len(self.waiting) + len(self.reading) + len(self.live)

    def add(self, row: Row) -> None:
        """Take a row in. Raises ValueError for one that cannot be computed."""
        vocab_size = self.model.config.vocab_size
        if not row.prompt or row.max_tokens < 1 or row.full > self.seq_len:
            raise ValueError(
                f"a row of {len(row.prompt)} tokens and {row.max_tokens} more: at least one of each, and at "
                f"most {self.seq_len} in all"
            )
        if min(row.prompt) < 0 or max(row.prompt) >= vocab_size:
            raise ValueError(f"token ids are 0 to {vocab_size - 1}")
        self.waiting.append(row)

    @torch.inference_mode()
    def drop(self, row: Row) -> None:
        """Forget a row, wherever it is; one that is not here is none to forget."""
        if row in self.live:
            self._leave(self.live.index(row))
        for queue in (self.waiting, self.reading):
            if row in queue:
                queue.remove(row)

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, list[int], str]]:
        """Give the rows that can go on their next token: each with its new tokens, and why it ends or ""."""
        while self.waiting and len(self.reading) + len(self.live) < self.capacity:
            self.reading.append(self.waiting.popleft())
        news = self._step_live()
        budget = CHUNK
        while self.reading and budget > 0:
            row = self.reading[0]
            budget -= min(CHUNK, len(row.prompt) - row.read)
            logits = self._read_chunk(row)
            if row.read == len(row.prompt):
                self.reading.popleft()
                tokens, end = row.go_on(logits)
                news.append((row, tokens, end))
                if not end:
                    assert row.cache is not None
                    self.stepping.join(row.cache)
                    self.live.append(row)
                row.cache = None
        return news

    def _step_live(self) -> list[tuple[Row, list[int], str]]:
        """One step of all rows that have read their prompts."""
        if not self.live:
            return []
        logits = self.stepping.step([row.sequence[row.read] for row in self.live])
        news = []
        for i, row in enumerate(self.live):
            row.read += 1
            if row.read == len(row.sequence):
                news.append((row, *row.go_on(logits[i : i + 1])))
        for row, _, end in news:
            if end:
                self._leave(self.live.index(row))
        return news

    def _read_chunk(self, row: Row) -> Tensor:
        """Read the next part of a prompt; returns the logits behind it, (1, V)."""
        row.cache = row.cache or row_cache(self.model, row.full)
        chunk = row.prompt[row.read : row.read + CHUNK]
        row.read += len(chunk)
        return feed(self.model, chunk, row.cache)

    def _leave(self, row: int) -> None:
        """Remove a row as the cache does: the last one takes its place."""
        self.stepping.leave(row)
        self.live[row] = self.live[-1]
        self.live.pop()

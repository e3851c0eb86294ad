"""From a corpus to batches: tokens in a stream, cut into sequences, mixed in windows, shared among ranks."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nanochat.common import Ranks, UserError
from nanochat.dataset import parquet_files, read_row_group, row_groups
from nanochat.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Bookmark:
    """A place in the stream: pass over the corpus, row group in it, tokens of that group before the place."""

    epoch: int = 0
    group: int = 0
    token: int = 0


def _stream(
    groups: Sequence[tuple[Path, int]], tokenizer: Tokenizer, mark: Bookmark, endless: bool
) -> Iterator[tuple[Bookmark, Tokens]]:
    """The tokens of one row group after another from `mark` on, each array with its first token's place."""
    last: tuple[int, Tokens] | None = None
    epoch, first, skip = mark.epoch, mark.group, mark.token
    while True:
        for group in range(first, len(groups)):
            if last is None or last[0] != group:
                rows = tokenizer.encode(read_row_group(*groups[group]), prepend=tokenizer.bos)
                arrays = [np.array(row, dtype=np.int32) for row in rows]
                last = group, np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32)
            if skip < len(last[1]):
                yield Bookmark(epoch, group, skip), last[1][skip:]
            skip = 0
        if not endless:
            return
        epoch, first = epoch + 1, 0


def _cut_blocks(
    stream: Iterator[tuple[Bookmark, Tokens]], sequences: int, length: int
) -> Iterator[tuple[Bookmark, Tokens]]:
    """Blocks of sequences · length + 1 tokens that overlap by one, with the place of each first token."""
    need = sequences * length + 1
    pieces: list[tuple[Bookmark, Tokens]] = []
    held = 0
    for piece in stream:
        pieces.append(piece)
        held += len(piece[1])
        if held < need:
            continue
        flat = np.concatenate([tokens for _, tokens in pieces])
        ends = np.cumsum([len(tokens) for _, tokens in pieces])
        start = 0
        while held - start >= need:
            yield _mark_at(pieces, ends, start), flat[start : start + need]
            start += sequences * length
        pieces, held = [(_mark_at(pieces, ends, start), flat[start:])], held - start
    if held > 1:
        yield pieces[0][0], np.concatenate([tokens for _, tokens in pieces])


def _mark_at(pieces: list[tuple[Bookmark, Tokens]], ends: npt.NDArray[Any], token: int) -> Bookmark:
    """The place of a token of the joined pieces."""
    number = int(np.searchsorted(ends, token, side="right"))
    mark, tokens = pieces[number]
    into = token - (int(ends[number]) - len(tokens))
    return Bookmark(mark.epoch, mark.group, mark.token + into)


def _mixed_order(sequences: int, first_window: int, window: int, seed: int) -> npt.NDArray[np.int64]:
    """The order of `sequences` sequences, window by window; the last window may be short."""
    orders = []
    for start in range(0, sequences, window):
        size = min(window, sequences - start)
        rng = np.random.default_rng((seed, first_window + start // window))
        orders.append(start + rng.permutation(size))
    return np.concatenate(orders)


@dataclass(frozen=True)
class Block:
    """Consecutive sequences, mixed: rows is (sequences, T + 1) int32, with -1 where the stream has ended."""

    mark: Bookmark
    first: int  # number of its first sequence, counted from the start of the stream
    rows: Tokens


def _make_blocks(
    stream: Iterator[tuple[Bookmark, Tokens]], length: int, window: int, seed: int, first: int
) -> Iterator[Block]:
    """Cut and mix the stream; `first` is the number of its first sequence, a multiple of `window`."""
    sequences = window * -(-256 // window)
    for mark, tokens in _cut_blocks(stream, sequences, length):
        if lacking := -(len(tokens) - 1) % length:
            tokens = np.concatenate([tokens, np.full(lacking, -1, dtype=np.int32)])
        rows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]
        order = _mixed_order(len(rows), first // window, window, seed) if window > 1 else np.arange(len(rows))
        yield Block(mark, first, rows[order])
        first += len(rows)


@dataclass(frozen=True)
class _Failure:
    error: BaseException


Prepared: TypeAlias = "queue.Queue[Block | _Failure | None]"


def _pump(blocks: Iterator[Block], out: Prepared, stop: threading.Event) -> None:
    """Put all blocks into the queue, then None; for an exception, a _Failure. Ends soon after `stop`."""

    def put(item: Block | _Failure | None) -> None:
        while not stop.is_set():
            try:
                out.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    try:
        for block in blocks:
            put(block)
            if stop.is_set():
                return
        put(None)
    except BaseException as error:
        put(_Failure(error))


def _start_pump(blocks: Iterator[Block], owner: object) -> tuple[Prepared, weakref.finalize[..., object]]:
    """Pump blocks in a thread that ends with `owner`; return the queue, and what to call to end it now."""
    out: Prepared = queue.Queue(maxsize=1)
    stop = threading.Event()
    thread = threading.Thread(target=_pump, args=(blocks, out, stop), name="loader", daemon=True)

    def end() -> None:
        stop.set()
        if threading.current_thread() is not thread:
            thread.join(timeout=5)

    thread.start()
    return out, weakref.finalize(owner, end)


def tokens_up_to(enough: int, data: str, split: str, tokenizer: Tokenizer) -> int:
    """How many tokens one pass over the split has to predict; counting ends when there are `enough`."""
    have = -1  # the first token of the stream is nobody's target
    for _, tokens in _stream(row_groups(parquet_files(data, split)), tokenizer, Bookmark(), endless=False):
        have += len(tokens)
        if have >= enough:
            break
    return have


class TokenLoader:
    """Batches of a corpus's split for this rank: endless for "train", one exact pass for "val"."""

    def __init__(
        self,
        data: str,
        split: str,
        tokenizer: Tokenizer,
        batch_size: int,
        sequence_len: int,
        ranks: Ranks | None = None,
        *,
        device: torch.device | str = "cpu",
        shuffle_window: int = 1024,
        seed: int = 42,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Start reading at the beginning, or where `state`, made by `state_dict`, says.

        Sequences are mixed in windows of `shuffle_window` for "train", not at all for "val". Raises UserError
        if the corpus is absent or `state` belongs to another stream.
        """
        import torch

        if batch_size < 1 or sequence_len < 1 or shuffle_window < 1:
            raise UserError(
                "batch size, sequence length and shuffle window have to be at least 1, "
                f"not {batch_size}, {sequence_len} and {shuffle_window}"
            )
        self.batch_size, self.ranks = batch_size, ranks or Ranks()
        self.device = torch.device(device)
        window = shuffle_window if split == "train" else 1
        self._stream = {
            "data": data,
            "split": split,
            "tokenizer": tokenizer.fingerprint(),
            "sequence_len": sequence_len,
            "shuffle_window": window,
            "seed": seed,
        }
        groups = row_groups(parquet_files(data, split))
        mark, first, self._taken = Bookmark(), 0, 0
        if state is not None:
            for key, now in self._stream.items():
                if state.get(key) != now:
                    raise UserError(f"cannot resume reading: {key} was {state.get(key)!r} and is now {now!r}")
            numbers: list[Any] = [state.get(key) for key in ("epoch", "group", "token", "first", "taken")]
            whole = all(type(number) is int and number >= 0 for number in numbers)
            if not whole or numbers[-1] > window * -(-256 // window):
                raise UserError(f"cannot resume reading: {numbers} in the state is no place in a text")
            mark = Bookmark(*numbers[:3])
            first, self._taken = numbers[3:]
            if mark.group >= len(groups):
                raise UserError(
                    f"cannot resume reading: the state is in row group {mark.group} of {data}, "
                    f"which now has {len(groups)}"
                )
        tokens = _stream(groups, tokenizer, mark, endless=split == "train")
        blocks = _make_blocks(tokens, sequence_len, window, seed, first)
        self._block = Block(mark, first, np.empty((0, sequence_len + 1), dtype=np.int32))
        self._ended = False
        self._queue, self._end = _start_pump(blocks, self)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The loader itself: a second loop goes on where the first one stopped."""
        return self

    def _take(self, wanted: int) -> Tokens:
        """The next `wanted` sequences of the stream, fewer at its end: (≤ wanted, T + 1) int32."""
        parts = [self._block.rows[self._taken : self._taken + wanted]]
        self._taken += wanted
        while not self._ended and self._taken > len(self._block.rows):
            if not self._end.alive:
                raise RuntimeError("this loader has been closed")
            block = self._queue.get()
            if isinstance(block, _Failure):
                self._end()
                raise block.error
            if block is None:
                self._ended = True
                break
            # The stand-in has no rows, but `taken` of a resumed state counts from the block that now arrives.
            self._taken -= len(self._block.rows)
            self._block = block
            parts.append(block.rows[max(0, self._taken - wanted) : self._taken])
        return np.concatenate(parts)

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next inputs and targets of this rank, each (B, T) int64 on the device; a target of -1 is none.

        Raises StopIteration at the end of "val", and whatever went wrong in the thread.
        """
        import torch

        size = self.batch_size
        turn = self._take(size * self.ranks.world_size)
        if not len(turn):
            self.close()
            raise StopIteration
        own = turn[self.ranks.rank * size : (self.ranks.rank + 1) * size]
        if lacking := size - len(own):
            own = np.concatenate([own, np.full((lacking, own.shape[1]), -1, dtype=np.int32)])
        rows = torch.from_numpy(own)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.device, non_blocking=True).long()
        # Where there is no token the model still needs an id, and any will do: nothing is counted there.
        return rows[:, :-1].clamp(min=0).contiguous(), rows[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batches handed out so far, the same on every rank; fits into JSON."""
        block = self._block
        return {
            **self._stream,
            "epoch": block.mark.epoch,
            "group": block.mark.group,
            "token": block.mark.token,
            "first": block.first,
            "taken": self._taken,
        }

    def close(self) -> None:
        """End the thread; harmless when it has ended."""
        self._end()

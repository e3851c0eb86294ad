"""The thread that computes: rows come in from any thread, tokens go out by callbacks."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nanochat.normans_gpt import GPT
from nanochat.rows import Batch, Row

Listener = Callable[[list[int], str], None]  # new tokens, and why the row has ended, or ""


class Full(Exception):
    """As many rows wait as may."""


class Worker:
    """Computes up to `capacity` rows at a time; `queue` more may wait."""

    def __init__(self, model: GPT, capacity: int, queue: int, seq_len: int) -> None:
        """Start the thread."""
        self.model, self.capacity, self.most, self.seq_len = model, capacity, capacity + queue, seq_len
        self.batch = Batch(model, capacity, seq_len)
        self.listeners: dict[Row, Listener] = {}
        self.arrived: list[Row] = []
        self.dropped: list[Row] = []
        self.closing = False
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    def submit(self, row: Row, listener: Listener) -> None:
        """Have a row computed; the listener is called in the thread and must return at once. Raises Full."""
        with self.news:
            if self.closing or len(self.listeners) >= self.most:
                raise Full
            self.listeners[row] = listener
            self.arrived.append(row)
            self.news.notify()

    def cancel(self, row: Row) -> None:
        """Forget a row; its listener is not called again, except for a step that is being made."""
        with self.news:
            if self.listeners.pop(row, None):
                self.dropped.append(row)
                self.news.notify()

    def close(self) -> None:
        """Take no more rows, and end the thread when those that are here have ended."""
        with self.news:
            self.closing = True
            self.news.notify()

    def load(self) -> tuple[int, int]:
        """How many rows are computed, and how many wait."""
        rows = len(self.listeners)
        return min(rows, self.capacity), max(0, rows - self.capacity)

    def _run(self) -> None:
        while self._take_in():
            try:
                told = self.batch.step()
            except Exception as error:
                print(f"error: a step failed, and with it {len(self.batch)} answers: {error!r}", flush=True)
                told = [(row, [], "error") for row in self.listeners]
                self.batch = Batch(self.model, self.capacity, self.seq_len)
            for row, tokens, end in told:
                self._tell(row, tokens, end)

    def _take_in(self) -> bool:
        """Wait until there is something to do, and note who came and went; false when all is done."""
        with self.news:
            while not (self.arrived or self.dropped or len(self.batch) or self.closing):
                self.news.wait()
            for row in self.arrived:
                self.batch.add(row)
            for row in self.dropped:
                self.batch.drop(row)
            self.arrived, self.dropped = [], []
            return bool(len(self.batch)) or not self.closing

    def _tell(self, row: Row, tokens: list[int], end: str) -> None:
        """Call a row's listener, if it still has one."""
        with self.news:
            listener = self.listeners.pop(row, None) if end else self.listeners.get(row)
        if listener is not None:
            listener(tokens, end)

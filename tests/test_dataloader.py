"""nanochat.dataloader: every token once, the same again after a stop, the same on two ranks."""

import gc
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat import dataloader, dataset
from nanochat.common import Ranks, UserError
from nanochat.dataloader import TokenLoader, tokens_up_to
from nanochat.dataset import documents, parquet_files, prepare_folder, row_groups
from nanochat.tokenizer import Tokenizer

BYTES = Tokenizer([bytes([byte]) for byte in range(256)])  # a token for each byte: what is read can be read
BOS = BYTES.bos


@pytest.fixture(scope="module", autouse=True)
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """60 documents of 0 to 199 letters, in several shards of several row groups."""
    rng = random.Random(3)
    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        text = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(rng.randrange(1, 200)))
        (folder / f"{number:02d}.txt").write_text(f"{number}:{text}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("base")))
        patch.setattr(dataset, "SHARD_BYTES", 2000)
        patch.setattr(dataset, "ROW_GROUP_BYTES", 500)
        prepare_folder(folder, "texts")
        assert len(parquet_files("texts", "train")) > 2
        assert len(row_groups(parquet_files("texts", "train"))) > 5
        yield folder


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    gc.collect()
    wait_for(lambda: not loader_threads())


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stream(split: str, epochs: int = 1) -> list[int]:
    """What the loader should read, by the definition: all documents, each behind a BOS."""
    once = [token for text in documents("texts", split) for token in [BOS, *text.encode()]]
    return once * epochs


def loader(
    split: str = "train", batch: int = 2, length: int = 8, window: int = 1, **more: Any
) -> TokenLoader:
    return TokenLoader("texts", split, BYTES, batch, length, shuffle_window=window, **more)


def take(source: TokenLoader, count: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in itertools.islice(source, count)]


class TestOneStream:
    @pytest.mark.parametrize(("batch", "length"), [(1, 8), (3, 7), (2, 500), (4, 1)])
    def test_plain_order_is_the_stream_cut_every_t_tokens(self, batch: int, length: int) -> None:
        flat = stream("train", 3)
        count = (2 * len(stream("train")) + 40) // (batch * length)  # into the third epoch
        batches = take(loader(batch=batch, length=length), count)
        for number, (inputs, targets) in enumerate(batches):
            for row in range(batch):
                start = (number * batch + row) * length
                assert inputs[row] == flat[start : start + length]
                assert targets[row] == flat[start + 1 : start + length + 1]

    def test_shapes_types_and_device(self) -> None:
        for inputs, targets in itertools.islice(loader(batch=3, length=5, window=4, device="cpu"), 3):
            for tensor in (inputs, targets):
                assert tensor.shape == (3, 5)
                assert tensor.dtype == torch.int64
                assert tensor.device.type == "cpu"
                assert tensor.is_contiguous()

    def test_every_token_is_a_target_once_per_epoch_but_the_first_of_all(self) -> None:
        once = stream("train")
        flat = stream("train", 8)
        window, batch, length = 4, 2, 8
        block = 256 * length  # 64 windows; the order differs within a window, its tokens do not
        assert len(once) > block
        targets = [
            row for _, rows in take(loader(batch=batch, length=length, window=window), 256) for row in rows
        ]
        for start in range(0, len(targets), window):
            mixed = sorted(targets[start : start + window])
            plain = [flat[s * length + 1 : (s + 1) * length + 1] for s in range(start, start + window)]
            assert mixed == sorted(plain)
        counted = Counter(token for row in targets for token in row)
        assert counted == Counter(flat[1 : 512 * length + 1])

    def test_nothing_is_lost_between_documents(self) -> None:
        """Put end to end, the plain order contains every document whole, behind its BOS."""
        once = stream("train")
        rows = [row for inputs, _ in take(loader(length=16), len(once) // 32) for row in inputs]
        text = "".join("\n" if token == BOS else chr(token) for row in rows for token in row)
        whole = text.split("\n")[1:-1]
        assert whole == list(documents("texts", "train"))[: len(whole)]
        assert len(whole) >= 55

    def test_a_corpus_shorter_than_a_sequence(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("ab")
        (tmp_path / "b.txt").write_text("cd")
        prepare_folder(tmp_path, "tiny")
        inputs, targets = next(TokenLoader("tiny", "train", BYTES, 1, 7, shuffle_window=1))
        ((one, two),) = (text.encode() for text in documents("tiny", "train"))
        assert inputs.tolist() == [[BOS, one, two, BOS, one, two, BOS]]
        assert targets.tolist() == [[one, two, BOS, one, two, BOS, one]]


class TestMixing:
    def order(self, window: int, seed: int = 1, count: int = 600) -> list[int]:
        """The numbers of the first sequences in the order in which they come."""
        flat = stream("train", 12)
        numbers = {tuple(flat[s * 13 : s * 13 + 14]): s for s in range(count)}
        assert len(numbers) == count
        got = take(loader(batch=1, length=13, window=window, seed=seed), count)
        return [numbers[(*inputs[0], targets[0][-1])] for inputs, targets in got]

    @pytest.mark.parametrize("window", [2, 30, 200, 300])
    def test_windows_are_permuted_each_in_itself(self, window: int) -> None:
        order = self.order(window)
        shapes = set()
        for start in range(0, 600 // window * window, window):
            part = order[start : start + window]
            assert sorted(part) == list(range(start, start + window))
            shapes.add(tuple(number - start for number in part))
        assert order != sorted(order)
        assert len(shapes) > 1  # not the same permutation for every window

    def test_a_window_of_one_is_the_plain_order(self) -> None:
        assert self.order(1) == list(range(600))

    def test_the_seed_decides(self) -> None:
        assert self.order(30, seed=1) == self.order(30, seed=1)
        assert self.order(30, seed=1) != self.order(30, seed=2)

    def test_validation_is_never_mixed(self) -> None:
        assert take(loader("val", window=50), 99) == take(loader("val", window=1, seed=9), 99)


class TestValidation:
    @pytest.mark.parametrize("world", [1, 2, 3])
    @pytest.mark.parametrize(("batch", "length"), [(1, 8), (2, 7), (3, 1000), (50, 10)])
    def test_one_exact_pass_for_all_ranks_together(self, world: int, batch: int, length: int) -> None:
        flat = stream("val")
        ranks = [take(loader("val", batch, length, ranks=Ranks(r, r, world)), 10**6) for r in range(world)]
        assert len({len(batches) for batches in ranks}) == 1  # as many steps on every rank
        inputs, targets = [], []
        for turn in zip(*ranks, strict=True):
            for some_inputs, some_targets in turn:
                assert (len(some_inputs), len(some_inputs[0])) == (batch, length)
                inputs += [token for row in some_inputs for token in row]
                targets += [token for row in some_targets for token in row]
        count = len(flat) - 1
        assert targets[:count] == flat[1:]
        assert inputs[:count] == flat[:-1]
        assert set(targets[count:]) <= {-1}
        assert len(targets) - count < world * batch * length
        assert min(inputs) >= 0

    def test_the_end_stays_the_end(self) -> None:
        source = loader("val")
        assert take(source, 10**6)
        assert take(source, 1) == []
        assert not loader_threads()

    def test_a_length_that_divides_exactly_leaves_no_empty_row(self) -> None:
        count = len(stream("val")) - 1
        ((inputs, targets),) = take(loader("val", 1, count), 9)
        assert -1 not in targets[0]
        assert len(inputs[0]) == count

    def test_tokens_are_counted_up_to_enough(self) -> None:
        count = len(stream("val")) - 1
        assert tokens_up_to(10 * count, "texts", "val", BYTES) == count
        assert tokens_up_to(count, "texts", "val", BYTES) == count
        assert 1 <= tokens_up_to(1, "texts", "val", BYTES) <= count


class TestRanks:
    @pytest.mark.parametrize("world", [2, 3])
    @pytest.mark.parametrize("window", [1, 7])
    def test_ranks_interleaved_are_one_rank(self, world: int, window: int) -> None:
        alone = take(loader(window=window), 300)
        together = [take(loader(window=window, ranks=Ranks(r, r, world)), 300 // world) for r in range(world)]
        assert [batch for turn in zip(*together, strict=True) for batch in turn] == alone

    def test_the_state_is_the_same_on_every_rank(self) -> None:
        states = []
        for rank in range(2):
            source = loader(window=7, ranks=Ranks(rank, rank, 2))
            take(source, 150)
            states.append(source.state_dict())
        assert states[0] == states[1]

    def test_a_run_on_two_ranks_goes_on_with_one(self) -> None:
        alone = take(loader(window=7), 400)
        source = loader(window=7, ranks=Ranks(1, 1, 2))
        take(source, 140)
        assert take(loader(window=7, state=source.state_dict()), 120) == alone[280:]


class TestResuming:
    @pytest.mark.parametrize("window", [1, 5, 300])
    def test_a_stop_changes_nothing(self, window: int) -> None:
        flat = len(stream("train"))
        plain = take(loader(window=window), 800)
        assert 2 * flat < 800 * 16  # over the borders of blocks and epochs
        source = loader(window=window)
        states = [source.state_dict()]
        for _ in range(799):
            next(source)
            states.append(json.loads(json.dumps(source.state_dict())))
        assert {state["epoch"] for state in states} >= {0, 1}
        for stop in [0, 1, 2, 127, 128, 129, 255, 256, 300, 384, 511, 640, 699]:
            assert take(loader(window=window, state=states[stop]), 1) == [plain[stop]]
        for stop in [3, 130, 300]:
            resumed = loader(window=window, state=states[stop])
            assert resumed.state_dict() == states[stop]  # before anything was read
            assert take(resumed, 200) == plain[stop : stop + 200]
            assert resumed.state_dict() == states[stop + 200]

    def test_twice_stopped(self) -> None:
        plain = take(loader(window=9), 330)
        got, state = [], None
        for count in (50, 1, 129, 150):
            source = loader(window=9, state=state)
            got += take(source, count)
            state = source.state_dict()
        assert got == plain

    def test_another_batch_size_goes_on_at_the_same_sequence(self) -> None:
        plain = take(loader(batch=1, window=9), 400)
        source = loader(batch=4, window=9)
        take(source, 31)
        rows = [
            (inputs[i], targets[i])
            for inputs, targets in take(loader(batch=3, window=9, state=source.state_dict()), 40)
            for i in range(3)
        ]
        assert rows == [(inputs[0], targets[0]) for inputs, targets in plain[124:244]]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"length": 9}, "sequence_len was 8 and is now 9"),
            ({"window": 6}, "shuffle_window was 5 and is now 6"),
            ({"seed": 2}, "seed was 42 and is now 2"),
            ({"split": "val"}, "split was 'train' and is now 'val'"),
        ],
    )
    def test_another_stream_is_refused(self, change: dict[str, Any], words: str) -> None:
        state = loader(window=5).state_dict()
        with pytest.raises(UserError, match=words):
            loader(**{"window": 5, "state": state, **change})

    def test_another_tokenizer_and_a_state_of_something_else_are_refused(self) -> None:
        state = loader().state_dict()
        other = Tokenizer([*BYTES.tokens, b"th"])
        with pytest.raises(UserError, match="tokenizer was"):
            TokenLoader("texts", "train", other, 2, 8, shuffle_window=1, state=state)
        with pytest.raises(UserError, match="data was None"):
            loader(state={"step": 3})

    def test_a_corpus_that_shrank_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"row group 999 of texts, which now has \d+"):
            loader(state={**loader().state_dict(), "group": 999})


class TestThread:
    def test_an_error_in_the_thread_is_raised_where_the_batch_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, calls = dataloader.read_row_group, itertools.count()

        def fail(path: Path, number: int) -> list[str]:
            if next(calls) == 6:
                raise UserError("the disk is gone")
            return read(path, number)

        monkeypatch.setattr(dataloader, "read_row_group", fail)
        source = loader()
        with pytest.raises(UserError, match="the disk is gone"):
            take(source, 10**6)
        wait_for(lambda: not loader_threads())
        with pytest.raises(RuntimeError, match="closed"):
            next(source)

    def test_no_corpus_is_said_at_once(self) -> None:
        with pytest.raises(UserError, match="no corpus 'nothing'"):
            TokenLoader("nothing", "train", BYTES, 1, 8)
        assert not loader_threads()

    @pytest.mark.parametrize("sizes", [(0, 8, 1), (1, 0, 1), (1, 8, 0)])
    def test_sizes_below_one(self, sizes: tuple[int, int, int]) -> None:
        with pytest.raises(UserError, match="at least 1"):
            loader(batch=sizes[0], length=sizes[1], window=sizes[2])

    def test_close_ends_it(self) -> None:
        source = loader()
        take(source, 3)
        assert len(loader_threads()) == 1
        source.close()
        assert not loader_threads()
        source.close()

    def test_a_forgotten_loader_ends_it(self) -> None:
        source = loader()
        take(source, 3)
        del source
        gc.collect()
        wait_for(lambda: not loader_threads())

    def test_it_works_ahead_but_not_without_bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        make = dataloader._make_blocks

        def count(*args: Any) -> Iterator[Any]:
            for block in make(*args):
                made.append(block)
                yield block

        monkeypatch.setattr(dataloader, "_make_blocks", count)
        source = loader(batch=1)
        wait_for(lambda: len(made) == 2)  # one waits in the queue, one in the thread's hand
        time.sleep(0.3)
        assert len(made) == 2
        take(source, 1)
        wait_for(lambda: len(made) == 3)


def test_blocks_are_whole_windows_of_at_least_256_sequences() -> None:
    flat = np.arange(5000, dtype=np.int32)
    for window in (1, 3, 100, 256, 300):
        blocks = list(dataloader._make_blocks(iter([(dataloader.Bookmark(), flat)]), 4, window, 0, 0))
        for block in blocks[:-1]:
            assert len(block.rows) % window == 0
            assert len(block.rows) >= 256
        assert [block.first for block in blocks] == [
            sum(len(before.rows) for before in blocks[:place]) for place in range(len(blocks))
        ]


@pytest.mark.parametrize(
    ("tokens", "sequences"), [(2, [1]), (5, [1]), (6, [2]), (1024, [256]), (1025, [256]), (1026, [256, 1])]
)
def test_a_stream_may_end_with_a_block(tokens: int, sequences: list[int]) -> None:
    flat = np.arange(tokens, dtype=np.int32)
    blocks = list(dataloader._make_blocks(iter([(dataloader.Bookmark(), flat)]), 4, 1, 0, 0))
    assert [len(block.rows) for block in blocks] == sequences
    targets = np.concatenate([block.rows[:, 1:].ravel() for block in blocks])
    assert targets[targets >= 0].tolist() == list(range(1, tokens))


@pytest.mark.parametrize(
    "wrong",
    [{"epoch": "1"}, {"group": -1}, {"token": None}, {"first": 1.5}, {"taken": 10**15}, {"taken": True}],
)
def test_a_state_that_no_loader_wrote(wrong: dict[str, object]) -> None:
    state = {**loader().state_dict(), **wrong}
    with pytest.raises(UserError, match="is no place in a text"):
        loader(state=state)

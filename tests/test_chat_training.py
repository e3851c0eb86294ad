"""Training on conversations: what is read, in which order, by whom; what a run begins and goes on with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import dataset, talks
from nanochat.agreement import Signals
from nanochat.checkpoint_manager import find_run, load_checkpoint, save_checkpoint
from nanochat.common import Ranks, UserError
from nanochat.conversation import NOT_LEARNED
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.step import Batch
from nanochat.talk_training import MidConfig, SftConfig, begin_with, newest, train_on_talks
from nanochat.talks import CHAT, MID, Talks
from nanochat.tokenizer import Tokenizer
from nanochat.workplace import Workplace
from scripts import quickchat
from tasks import Mixture
from tasks.identity import Identity
from tests.test_tasks import TEXT

FLAGS: dict[str, Any] = {
    "depth": 1,
    "n_embd": 32,
    "n_head": 1,
    "max_seq_len": 64,
    "device_batch_size": 4,
    "total_batch_size": 256,
    "data": "words",
    "device_type": "cpu",
    "compile": "false",
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 20, 300)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus, few conversations at a time, and one task that needs no corpus."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    source = tmp_path / "text"
    source.mkdir()
    (source / "a.txt").write_text((TEXT + "\n") * 30)
    (source / "b.txt").write_text(TEXT * 10)
    dataset.prepare_folder(source, "words")
    monkeypatch.setattr(talks, "BLOCK", 40)
    monkeypatch.setattr(talks, "VALIDATION", 12)
    monkeypatch.setattr(talks, "usual_mixture", lambda *_: Mixture([Identity()], [1.0]))
    return tmp_path


def workplace(rank: int = 0, world: int = 1) -> Workplace:
    ranks = Ranks(rank, rank, world)
    return Workplace(ranks, torch.device("cpu"), None, Signals(ranks))


def source(tokenizer: Tokenizer, stage: talks.Stage = CHAT, rank: int = 0, world: int = 1) -> Talks:
    config = SftConfig(**{**FLAGS, "total_batch_size": 256 * world})
    return Talks(config, tokenizer, workplace(rank, world), stage=stage, origin="d1")


def lists(batches: Iterator[Batch], count: int) -> list[Any]:
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in itertools.islice(batches, count)]


@pytest.mark.parametrize("stage", [CHAT, MID])
@pytest.mark.parametrize("before", [0, 1, 7, 20, 41])
def test_a_saved_position_goes_on_with_the_next_batch(
    tokenizer: Tokenizer, stage: talks.Stage, before: int
) -> None:
    whole = lists(iter(source(tokenizer, stage).train(None)), before + 9)
    stream = source(tokenizer, stage).train(None)
    assert lists(iter(stream), before) == whole[:before]
    state = stream.state_dict()
    stream.close()
    assert lists(iter(source(tokenizer, stage).train(state)), 9) == whole[before:]


def test_a_position_of_another_seed_is_refused(tokenizer: Tokenizer) -> None:
    state = source(tokenizer).train(None).state_dict()
    with pytest.raises(UserError, match="seed was 43"):
        source(tokenizer).train({**state, "seed": 43})


def test_processes_share_a_block_and_have_one_position(tokenizer: Tokenizer) -> None:
    alone = lists(iter(source(tokenizer).train(None)), 8)
    streams = [source(tokenizer, rank=rank, world=2).train(None) for rank in range(2)]
    shared = [lists(iter(stream), 4) for stream in streams]
    assert [batch for pair in zip(*shared, strict=True) for batch in pair] == alone
    assert streams[0].state_dict() == streams[1].state_dict()


def test_fine_tuning_learns_answers_and_mid_training_everything(tokenizer: Tokenizer) -> None:
    ends = {tokenizer.special("<|user_end|>"), tokenizer.special("<|user_start|>")}
    learned = {
        stage.name: {
            target
            for _, targets in itertools.islice(iter(source(tokenizer, stage).train(None)), 3)
            for target in targets.flatten().tolist()
        }
        for stage in (CHAT, MID)
    }
    assert not learned["chat"] & ends
    assert ends <= learned["mid"]
    assert NOT_LEARNED in learned["chat"]


def test_every_fourth_batch_of_mid_training_is_text(tokenizer: Tokenizer) -> None:
    start = tokenizer.special("<|user_start|>")
    batches = itertools.islice(iter(source(tokenizer, MID).train(None)), 12)
    talking = [bool((inputs == start).any()) for inputs, _ in batches]
    assert talking == [True, True, True, False] * 3


def test_validation_is_the_same_each_time_and_ends(tokenizer: Tokenizer) -> None:
    one, again = (lists(iter(source(tokenizer).validation()[0]), 100) for _ in range(2))
    assert one == again
    assert sum(len(inputs) for inputs, _ in one) == 12
    shares = [lists(iter(source(tokenizer, rank=rank, world=2).validation()[0]), 100) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(one)


def test_the_fingerprint_changes_with_what_is_read(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = {source(tokenizer).fingerprint(), source(tokenizer, MID).fingerprint()}
    assert source(tokenizer).fingerprint() in prints
    monkeypatch.setattr("tasks.identity.BEFORE", ("Well: ",))
    prints.add(source(tokenizer).fingerprint())
    assert len(prints) == 3


def base_run(tokenizer: Tokenizer, home: Path, tag: str = "d1") -> Path:
    torch.manual_seed(1)
    model = GPT(GPTConfig(64, tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=32))
    model.init_weights()
    folder = home / "base_checkpoints" / tag
    tokenizer.save(folder / "tokenizer")
    meta = {
        "model": vars(model.config),
        "tokenizer": tokenizer.fingerprint(),
        "config": {"data": "words"},
        "gpt": {"name": "book"},
    }
    save_checkpoint(folder, 9, model, [], meta)
    return folder


def test_a_run_begins_with_the_weights_of_the_stage_before(tokenizer: Tokenizer, home: Path) -> None:
    folder = base_run(tokenizer, home)
    config = MidConfig(**{**FLAGS, "depth": 3, "n_embd": 48}, num_iterations=1, matrix_lr=0, eval_every=-1)
    config = replace(config, embedding_lr=0, unembedding_lr=0)
    result = train_on_talks(config, "mid")
    assert result.folder.name == "d1-mid"
    before, after = (load_checkpoint(path, weights_only=True).model for path in (folder, result.folder))
    assert all(torch.equal(before[name], after[name]) for name in before), "no rate, no change"


def test_three_stages_follow_each_other_and_a_stopped_one_goes_on(tokenizer: Tokenizer, home: Path) -> None:
    with pytest.raises(UserError, match="make train"):
        train_on_talks(SftConfig(**FLAGS), "chat")
    base_run(tokenizer, home)
    mid = train_on_talks(MidConfig(**FLAGS, num_iterations=4, eval_every=-1), "mid")
    config = SftConfig(**FLAGS, num_iterations=6, save_every=3, eval_every=3)
    chat = train_on_talks(config, "chat")
    assert (mid.folder.name, chat.folder.name) == ("d1-mid", "d1-chat")
    assert chat.val_bpb is not None
    assert (newest("base"), newest("mid"), newest("chat")) == ("d1", "d1-mid", "d1-chat")
    again = train_on_talks(replace(config, model_tag="d1-chat-2"), "chat")
    (again.folder / "model_000006.safetensors").unlink()
    resumed = train_on_talks(replace(config, resume="d1-chat-2"), "chat")
    assert resumed.steps == 6
    one, other = (load_checkpoint(find_run(tag)).model for tag in ("d1-chat", "d1-chat-2"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("tag", "stage"),
    [("d2", "base"), ("d2-mid", "mid"), ("d2-mid-3", "mid"), ("d2-chat-2", "chat"), ("chat", "base")],
)
def test_a_name_tells_the_stage(tokenizer: Tokenizer, home: Path, tag: str, stage: str) -> None:
    base_run(tokenizer, home, tag)
    assert {name: newest(name) for name in ("base", "mid", "chat") if newest(name)} == {stage: tag}
    if stage != "chat":
        assert begin_with(SftConfig(**FLAGS), "chat") == tag


def test_the_better_part_of_a_step_is_learned_from_answers(tokenizer: Tokenizer, home: Path) -> None:
    """Some steps lower the loss of the answers far below that of a guess."""
    base_run(tokenizer, home)
    result = train_on_talks(SftConfig(**FLAGS, num_iterations=40, eval_every=0), "chat")
    assert result.loss < 2.5


def test_make_chat_does_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing, from a newer base model, and with everything there; the time is shared out."""
    runs: dict[str, str] = {}
    done: list[tuple[str, ...]] = []
    makes = {"quickstart": ("base", "d2"), "mid_train": ("mid", "d2-mid"), "chat_sft": ("chat", "d2-chat")}

    def do(program: str, *flags: str) -> None:
        done.append((program, *flags))
        runs.update([makes[name]] if (name := program.removeprefix("scripts.")) in makes else [])

    monkeypatch.setattr(quickchat, "do", do)
    monkeypatch.setattr(quickchat, "newest", lambda stage: runs.get(stage, ""))
    monkeypatch.setattr("sys.argv", ["quickchat", "--seconds=100"])
    quickchat.main()
    assert [program for program, *_ in done] == [
        f"scripts.{name}" for name in ("quickstart", "mid_train", "chat_sft", "chat_eval", "chat_cli")
    ]
    assert done[1][1:] == ("--base=d2", "--time_limit=12")
    base, limit, steps = done[2][1:]
    assert (base, steps) == ("--base=d2-mid", f"--num_iterations={quickchat.MOST_STEPS}")
    assert 20 <= int(limit.removeprefix("--time_limit=")) <= 55
    done.clear()
    quickchat.main()
    assert [program for program, *_ in done] == ["scripts.chat_cli"], "it is there already"
    runs["base"] = "d3"
    done.clear()
    quickchat.main()
    assert done[0] == ("scripts.mid_train", "--base=d3", "--time_limit=12"), "another base model is newer"

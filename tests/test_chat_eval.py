"""The evaluation of answers: what is asked, judged and counted, with a model that knows three by heart."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.conversation import NOT_LEARNED, Part, assistant, fill_batches, read_answer, render, user
from nanochat.exam import SCORE, Mark, answers, choose, examine, interval, table, talk_score
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.plans import SMALL
from nanochat.step import Stepper
from nanochat.tokenizer import Tokenizer
from scripts import chat_eval
from tasks import WEIGHTS, Example, Mixture, Task
from tasks.arithmetic import Arithmetic
from tasks.identity import Identity

pytestmark = pytest.mark.numerics

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)])
KNOWN = [
    Example((user("a"), assistant("Well, ", Part("call", "2*3"), Part("output", "6"), "six"))),
    Example((user("b"), assistant("two"))),
    Example((user("c"), assistant("I call nobody."))),
]


class Stub(Task):
    """Asks what the model knows, and one thing that it does not."""

    name = "stub"

    def draw(self, rng: random.Random, split: str) -> Example:
        return rng.choice([*KNOWN[:2], Example((user("b!"), assistant("three")))])

    def guess(self, example: Example) -> str:
        return "two"


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(128, TOKENIZER.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=48))
    model.init_weights()
    rows = [render(example.turns, TOKENIZER, 65) for example in KNOWN]
    (batch,) = fill_batches(rows, 4096, 64, random.Random(0))
    batches = itertools.repeat((torch.from_numpy(batch[0]), torch.from_numpy(batch[1])))
    stepper = Stepper(model, model.setup_optimizers())
    losses = [stepper.step(batches).loss for _ in range(60)]
    assert losses[-1] < 0.05
    return model


def test_answers_are_texts_without_the_calls_in_the_order_of_the_questions(model: GPT) -> None:
    questions = [example.turns[:-1] for example in [*KNOWN, *reversed(KNOWN)]]
    assert answers(model, TOKENIZER, questions) == [
        "Well, six",
        "two",
        "I call nobody.",
        "I call nobody.",
        "two",
        "Well, six",
    ]


def test_an_examination_counts_and_keeps_what_was_wrong(model: GPT) -> None:
    mark = examine(model, TOKENIZER, Stub(), 3)
    assert (mark.asked, mark.right, mark.baseline) == (3, 2, 1)
    ((question, right, said),) = mark.failures
    assert (question, right) == ("b!", "three")
    assert said != "three"
    assert mark.above_baseline == pytest.approx(0.5)


class Choices(Stub):
    """The same, as a choice of four."""

    def draw(self, rng: random.Random, split: str) -> Example:
        return Example(KNOWN[rng.randrange(3)].turns, ("I call nobody.", "two", "x", "Well, six"))


def test_the_baseline_of_a_choice_is_chance_and_not_luck(model: GPT) -> None:
    assert examine(model, TOKENIZER, Choices(), 3).baseline == pytest.approx(3 / 4)


def test_a_choice_is_made_byte_for_byte(model: GPT) -> None:
    turns = (user("c"), assistant("I call nobody."))
    for choices in itertools.permutations(("I call nobody.", "two", "x")):
        assert choose(model, TOKENIZER, Example(turns, choices)) == "I call nobody."


@pytest.mark.parametrize(("right", "asked"), [(0, 5), (5, 5), (3, 10), (291, 300), (1, 2)])
def test_the_interval_holds_where_the_share_is_no_surprise(right: int, asked: int) -> None:
    low, high = interval(right, asked)
    share = right / asked
    assert 0 <= low <= share <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        deviation = math.sqrt(bound * (1 - bound) / asked)
        assert abs(share - bound) == pytest.approx(1.96 * deviation, rel=1e-6, abs=1e-12)


def test_nothing_asked_is_nothing_known() -> None:
    assert interval(0, 0) == (0, 1)
    assert interval(300, 300)[0] == pytest.approx(0.987, abs=0.0005)


def mark(name: str, right: int, baseline: int) -> Mark:
    return Mark(name, 10, right, baseline, ())


def test_the_score_needs_all_six_tasks_and_counts_from_the_baseline() -> None:
    marks = [mark(name, 10, 5) for name in WEIGHTS]
    assert talk_score(marks) == 1
    assert talk_score(marks[:-1]) is None
    marks[0] = mark(marks[0].task, 5, 5)
    assert talk_score(marks) == pytest.approx(5 / 6)
    marks[0] = mark(marks[0].task, 0, 5)
    assert talk_score(marks) == pytest.approx(4 / 6)
    assert table(marks)[-1] == f"{SCORE}: 0.667"
    assert not any(SCORE in line for line in table(marks[:-1]))


def test_an_answer_that_is_badly_formed_is_read_all_the_same() -> None:
    names = TOKENIZER.specials
    ids = [
        names["<|python_end|>"],
        *TOKENIZER.encode("a"),
        names["<|python_start|>"],
        *TOKENIZER.encode("1+"),
        names["<|output_start|>"],
        *TOKENIZER.encode("2"),
        names["<|assistant_start|>"],
        *TOKENIZER.encode("b"),
    ]
    assert read_answer(ids, TOKENIZER) == (
        Part("text", "a"),
        Part("call", "1+"),
        Part("output", "2"),
        Part("text", "b"),
    )
    assert read_answer([], TOKENIZER) == ()


def test_reading_an_answer_undoes_rendering_it() -> None:
    parts = KNOWN[0].turns[-1].parts
    row = render(KNOWN[0].turns, TOKENIZER, 65)
    start = row.ids.index(TOKENIZER.special("<|assistant_start|>")) + 1
    assert read_answer(row.ids[start:-1], TOKENIZER) == parts


def test_the_program_prints_a_table_and_keeps_everything(
    model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder = tmp_path / "base_checkpoints" / "d1-chat"
    TOKENIZER.save(folder / "tokenizer")
    meta = {"model": vars(model.config), "tokenizer": TOKENIZER.fingerprint(), "config": {"data": "sotu"}}
    save_checkpoint(folder, 60, model, [], meta)
    monkeypatch.setattr(chat_eval, "all_tasks", lambda *_: [named("identity")])
    out = tmp_path / "out.json"
    flags = ["chat_eval", "--tasks=identity", "--questions=3", f"--out={out}", "--device_type=cpu"]
    monkeypatch.setattr("sys.argv", [*flags, f"--record={tmp_path / 'record.json'}"])
    chat_eval.main()
    printed = capsys.readouterr().out
    assert "| identity | 0.0% |" in printed
    assert "right: " in printed
    report = json.loads(out.read_text())
    assert report["run"] == "d1-chat"
    assert len(report["tasks"][0]["failures"]) == 3
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["tasks"]["identity"]["asked"] == 3
    assert record["tasks"]["identity"]["right"] == record["tasks"]["identity"]["low"] == 0
    assert record["tasks"]["identity"]["high"] == interval(0, 3)[1]
    assert record["score"] is None, "it needs all tasks"
    assert record["machine"]["type"] == "cpu"


def test_a_record_tells_how_each_stage_was_made(model: GPT, tmp_path: Path) -> None:
    for tag, base, steps in (("d1", "", 7), ("d1-mid", "d1", 8), ("d1-chat-2", "d1-mid", 9)):
        meta = {"model": vars(model.config), "tokenizer": "", "config": {"base": base}}
        meta |= {"progress": {"seconds": 10.0 * steps, "train_seconds": 5.0, "val_bpb": 1.5}}
        save_checkpoint(tmp_path / tag, steps, model, [], meta)
    told = chat_eval.stages(tmp_path / "d1-chat-2")
    assert {stage: (one["steps"], one["seconds"]) for stage, one in told.items()} == {
        "chat": (9, 90.0),
        "mid": (8, 80.0),
        "base": (7, 70.0),
    }


def test_a_record_has_shares_of_one() -> None:
    told = chat_eval.shares([Mark("small talk", 8, 6, 2.0, ())])["tasks"]["small-talk"]
    assert (told["asked"], told["right"], told["baseline"]) == (8, 0.75, 0.25)
    assert told["low"] < 0.75 < told["high"]


def named(name: str) -> Task:
    assert name == "identity"
    return Identity()


def test_a_task_that_there_is_not_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["chat_eval", "--tasks=identity,poetry"])
    with pytest.raises(SystemExit):
        chat_eval.main()
    assert "no task 'poetry'" in capsys.readouterr().err


def letters_apart(one: Sequence[str], other: Sequence[str]) -> int:
    """How many letters have to be left out, added or changed (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, its in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != its))
    return row[-1]


def test_how_words_are_spelled_wrongly() -> None:
    """The sentence of the chapter, counted from what the recorded model said."""
    assert letters_apart("slacken", "slaken") == 1
    assert letters_apart("proceed", "proeced") == 2
    record = json.loads(Path("results/chat-cpu.json").read_text())
    wrong = [(right.split(), said.split()) for right, said in record["spelled-wrongly"]]
    asked, share = (record["tasks"]["spelling"][name] for name in ("asked", "right"))
    assert len(wrong) == round(asked * (1 - share))
    far = [letters_apart(right, said) for right, said in wrong]
    told = " ".join(Path("lit/77c-does-it-answer.md").read_text().split())
    assert f"Of the {len(wrong)} words that are spelled wrongly, {far.count(1)} are one letter away" in told
    assert f"Another {far.count(2)} are two letters away" in told
    assert {("dollar", "dolar"), ("dramatically", "dramatly")} <= {("".join(a), "".join(b)) for a, b in wrong}


def test_what_fine_tuning_leaves_out() -> None:
    """Most rows are questions and filling, and the head has half of the operations: chapter 77b."""
    rng = random.Random(1)
    mixture = Mixture([Arithmetic(), Identity()], [1.0, 1.0])
    rows = [render(mixture.conversation(rng), TOKENIZER, 257) for _ in range(512)]
    targets = [target for _, target in fill_batches(rows, 4096, 256, rng)]
    asked = sum(int((target != NOT_LEARNED).sum()) for target in targets) / sum(t.size for t in targets)
    head = SMALL.vocab_size * SMALL.n_embd
    told = " ".join(Path("lit/77b-training-to-answer.md").read_text().split())
    assert "Most rows are questions and filling, the head has half of a small model's operations" in told
    assert asked < 0.5
    assert 0.45 < head / (head + 12 * SMALL.depth * SMALL.n_embd**2) < 0.55

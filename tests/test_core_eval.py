"""The CORE score: worked by hand on a model of four words, and by a second, slow implementation."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nanochat.common import Ranks, UserError
from nanochat.core_eval import (
    NothingFits,
    RowScore,
    Subject,
    Verdict,
    ask,
    batches,
    common_start,
    credit,
    evaluate_core,
    first_scored,
    lay_out,
    score_rows,
    summarize,
)
from nanochat.core_tasks import CORE_TASKS, Item, Task, TaskSet, read_bundle, read_package
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import Tokenizer
from tests.bounds import results_error
from tests.core_questions import WORDS, make_bundle, make_package, words

pytestmark = pytest.mark.numerics

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]

# A model of four words, whose next word depends on the last one only: after `a` comes b half of the time.
VOCABULARY = ["<", "a", "b", "c"]
AFTER = {
    "<": (0, 0.5, 0.25, 0.25),
    "a": (0, 0.25, 0.5, 0.25),
    "b": (0, 0.125, 0.125, 0.75),
    "c": (0, 0.5, 0.5, 0),
}


def by_hand(context: int = 99) -> Subject:
    """The model of four words. Blanks are no tokens; each letter is one."""
    table = torch.tensor([AFTER[word] for word in VOCABULARY]).clamp(min=1e-30).log()

    def encode(texts: list[str]) -> list[list[int]]:
        return [[0, *(VOCABULARY.index(letter) for letter in text if letter in "abc")] for text in texts]

    return Subject(lambda ids: table[ids], encode, context, 4, CPU)


def task(kind: str, *items: tuple[list[tuple[str, str]], int], shots: int = 0, chance: float = 0.5) -> Task:
    made = tuple(Item(tuple(texts), gold, number) for number, (texts, gold) in enumerate(items))
    return Task("made up", kind, shots, " ", chance, made)


def one(kind: str, texts: list[tuple[str, str]], gold: int, context: int = 99) -> Verdict:
    return ask(by_hand(context), task(kind, (texts, gold)))[0]


class TestByHand:
    def test_multiple_choice_takes_the_lowest_mean(self) -> None:
        # After `< a`: b, then c: (ln 2 + ln 4/3) / 2. Against it c: ln 4. `b c` has the larger sum of the two
        # only if means were sums of more terms; here 0.490 < 1.386.
        verdict = one("multiple_choice", [("a", "b c"), ("a", "c")], 0)
        assert verdict.losses == pytest.approx([(math.log(2) + math.log(4 / 3)) / 2, math.log(4)])
        assert (verdict.credit, verdict.chosen, verdict.scored) == (1.0, [0], [2, 1])

    def test_the_mean_decides_and_not_the_sum(self) -> None:
        # Sums: b c b c = 2 ln 2 + 2 ln 4/3 = 1.962, against a = ln 4 = 1.386. Means: 0.490 and 1.386.
        verdict = one("multiple_choice", [("a", "b c b c"), ("a", "a")], 1)
        assert (verdict.credit, verdict.chosen) == (0.0, [0])
        assert sum(verdict.losses) == pytest.approx((2 * math.log(2) + 2 * math.log(4 / 3)) / 4 + math.log(4))

    def test_the_common_beginning_does_not_count(self) -> None:
        # Both continuations begin with b: only the last token of each is scored.
        verdict = one("multiple_choice", [("a", "b a"), ("a", "b c")], 1)
        assert verdict.losses == pytest.approx([math.log(8), math.log(4 / 3)])
        assert (verdict.credit, verdict.scored) == (1.0, [1, 1])

    def test_a_choice_that_begins_another_keeps_its_last_token(self) -> None:
        verdict = one("multiple_choice", [("a", "b"), ("a", "b c")], 0)
        assert verdict.scored == [1, 2]
        assert verdict.losses == pytest.approx([math.log(2), (math.log(2) + math.log(4 / 3)) / 2])
        assert verdict.chosen == [1]

    def test_ties_share_the_point(self) -> None:
        # After `a`, a and c are equally likely: half a point for either, none for the dear third.
        for gold, points in ((0, 0.5), (1, 0.5), (2, 0.0)):
            verdict = one("multiple_choice", [("c", "a"), ("c", "b"), ("c", "c")], gold)
            assert (verdict.credit, verdict.chosen) == (points, [0, 1])

    def test_schema_scores_the_common_end(self) -> None:
        # "a" or "b", then "c a": after a, c costs ln 4; after b, ln 4/3; then a costs ln 2 in both.
        verdict = one("schema", [("a", "c a"), ("b", "c a")], 1)
        assert verdict.losses == pytest.approx(
            [(math.log(4) + math.log(2)) / 2, (math.log(4 / 3) + math.log(2)) / 2]
        )
        assert (verdict.credit, verdict.chosen, verdict.scored) == (1.0, [1], [2, 2])

    def test_schema_with_contexts_of_other_lengths_and_a_common_last_word(self) -> None:
        verdict = one("schema", [("a b", "c"), ("a a b", "c")], 0)
        assert verdict.scored == [3, 3]  # "a b c" is common, more than the continuation
        assert verdict.credit == 1.0  # a costs ln 2 after `<` and ln 4 after `a`; the rest is the same
        rest = math.log(2) + math.log(4 / 3)
        assert verdict.losses == pytest.approx([(math.log(2) + rest) / 3, (math.log(4) + rest) / 3])

    def test_language_modeling_wants_every_token(self) -> None:
        assert one("language_modeling", [("a", "b c")], 0).credit == 1.0  # the likeliest after a, after b
        assert one("language_modeling", [("a", "b a")], 0).credit == 0.0  # the second is not
        assert one("language_modeling", [("a", "c b")], 0).credit == 0.0  # the first is not
        verdict = one("language_modeling", [("b", "c")], 0)
        assert (verdict.exact, verdict.scored, verdict.chosen) == (True, [1], [0])

    def test_a_long_text_loses_its_beginning(self) -> None:
        texts = [("a a a b", "c"), ("a a a b", "a")]
        for context, cut in ((6, 0), (5, 1), (2, 4)):
            verdict = one("multiple_choice", texts, 0, context)
            assert verdict.cut == cut
            assert verdict.losses == pytest.approx([math.log(4 / 3), math.log(8)])

    def test_an_answer_that_does_not_fit_is_left_out(self) -> None:
        fits, fits_not = ([("a", "b"), ("a", "c")], 0), ([("a", "b c b"), ("a", "c")], 0)
        made = task("multiple_choice", fits, fits_not)
        verdicts = ask(by_hand(3), made)
        assert [verdict.credit for verdict in verdicts] == [1.0, None]
        assert verdicts[1].scored == [3, 1]
        result = summarize(made, verdicts)
        assert (result.items, result.of, result.left_out, result.accuracy) == (1, 2, 1, 1.0)
        with pytest.raises(
            NothingFits, match=r"no item of made up fits .* up to 3 tokens; train with a longer"
        ):
            summarize(made, verdicts[1:])

    def test_a_task_of_which_nothing_fits_leaves_the_others_their_score(self) -> None:
        fits, fits_not = ([("a", "b"), ("a", "c")], 0), ([("a", "b c b"), ("a", "c")], 0)
        good = replace(task("multiple_choice", fits, fits), name="copa")
        bad = replace(task("multiple_choice", fits_not), name="squad")
        report = evaluate_core(by_hand(3), TaskSet("here", "", True, (good, bad)))
        assert [each.name for each in report.tasks] == ["copa"]
        assert (report.title, report.whole) == (f"CORE subset (1 of {len(CORE_TASKS)} tasks)", False)
        assert report.score == report.tasks[0].centered
        assert "squad" in report.record()["missing"]
        assert [reason.split(" fits")[0] for reason in report.left_out] == ["no item of squad"]
        with pytest.raises(NothingFits, match="no item of squad fits"):
            evaluate_core(by_hand(3), TaskSet("here", "", True, (bad,)))

    def test_centering(self) -> None:
        items = [([("a", "b"), ("a", "c")], gold) for gold in (0, 0, 0, 1)]
        made = task("multiple_choice", *items, chance=0.5)
        result = summarize(made, ask(by_hand(), made))
        assert (result.accuracy, result.centered) == (0.75, 0.5)
        assert result.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4) / 0.5)
        other = task("multiple_choice", items[3], chance=0.2)
        report = evaluate_core(by_hand(), TaskSet("", "", True, (made, other)))
        assert report.score == pytest.approx((0.5 + (0 - 0.2) / 0.8) / 2)
        assert report.stderr == pytest.approx(result.stderr / 2)
        assert report.title == "CORE subset (2 of 22 tasks)"

    def test_a_loss_that_is_no_number(self) -> None:
        broken = Subject(lambda ids: torch.full((*ids.shape, 4), math.nan), by_hand().encode, 99, 4, CPU)
        with pytest.raises(UserError, match="loss on item 0 of made up is no finite number"):
            ask(broken, task("schema", ([("a", "b"), ("b", "b")], 0)))

    def test_a_tokenizer_of_another_model(self) -> None:
        other = Subject(by_hand().logits, lambda texts: [[0, 4] for _ in texts], 99, 4, CPU)
        with pytest.raises(UserError, match="the tokenizer gives token 4, the model knows 4"):
            ask(other, task("schema", ([("a", "b"), ("b", "b")], 0)))


class TestBoundary:
    """Tokens that are made of the end of the context and the beginning of the continuation."""

    def test_what_differs_is_scored_merged_or_not(self) -> None:
        # 7 is "x y" merged. Between [1 2 3] and [1 7 3] the difference begins at the merged token.
        assert first_scored("multiple_choice", [[1, 2, 3], [1, 7, 3]]) == [1, 1]
        assert first_scored("schema", [[1, 2, 3, 4], [1, 5, 7, 4]]) == [3, 3]
        assert first_scored("schema", [[1, 2, 3], [1, 2, 4]]) == [2, 2]  # nothing common: the last token

    def test_a_stem_that_is_no_beginning_of_the_text(self) -> None:
        assert first_scored("language_modeling", [[1, 2, 3, 4]], [1, 2]) == [2]
        assert first_scored("language_modeling", [[1, 2, 7, 4]], [1, 2, 3]) == [2]
        assert first_scored("language_modeling", [[1, 2]], [1, 2]) == [1]
        assert first_scored("language_modeling", [[1, 7]], [2, 7]) == [1]

    def test_with_a_tokenizer_that_merges(self) -> None:
        """`ab` is a token: "xa" + "b" ends in it, and the stem "xa" ends in the token `a`."""
        tokenizer = Tokenizer([*(bytes([byte]) for byte in range(256)), b"ab"])
        rows = tokenizer.encode(["xab", "xa"], prepend=tokenizer.bos)
        assert rows == [[tokenizer.bos, ord("x"), 256], [tokenizer.bos, ord("x"), ord("a")]]
        assert first_scored("language_modeling", rows[:1], rows[1]) == [2]
        rows = tokenizer.encode(["xab", "xac"], prepend=tokenizer.bos)
        assert first_scored("multiple_choice", rows) == [2, 2]

    def test_common_start(self) -> None:
        assert common_start([[1, 2, 3], [1, 2]]) == 2
        assert common_start([[1], [2]]) == 0

    def test_lay_out(self) -> None:
        question = lay_out(3, "multiple_choice", [[0, 1, 2, 3], [0, 1, 2, 4, 5]], [], 4)
        assert question.rows == ((0, 1, 2, 3), (1, 2, 4, 5))
        assert (question.starts, question.cut, question.fits) == ((3, 2), 1, True)


def test_credit_of_language_modeling_is_all_or_nothing() -> None:
    assert credit("language_modeling", [RowScore(9.0, True)], 0) == (1.0, [0])
    assert credit("language_modeling", [RowScore(0.1, False)], 0) == (0.0, [])


def test_batches_hold_what_they_may() -> None:
    rows = [[0] * length for length in (3, 9, 1, 4, 4, 8)]
    groups = list(batches(rows, 12))
    assert groups == [[1], [5], [3, 4, 0], [2]]
    assert sorted(number for group in batches(rows, 1) for number in group) == list(range(6))


def tiny(vocab_size: int, context: int = 64, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(
        GPTConfig(sequence_len=context, vocab_size=vocab_size, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    )
    model.init_weights()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = random.Random(0)
    return Tokenizer.train(
        [" ".join(rng.choices(WORDS, k=300)) + ". Question Answer: ?" for _ in range(9)], 320
    )


def subject_of(model: GPT, tokenizer: Tokenizer, context: int = 10**6) -> Subject:
    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend=tokenizer.bos)

    return Subject(model, encode, context, model.config.vocab_size, CPU)


@torch.no_grad()
def losses_error(model: GPT) -> float:
    """How far the loss of a token, and so of a choice, may be from another program's."""
    idx = torch.arange(64)[None] * 7 % model.config.vocab_size
    return results_error(model.parameters(), lambda: [model(idx, idx.roll(-1), loss_reduction="none")])[0]


def slowly(
    model: GPT, tokenizer: Tokenizer, made: Task, index: int, context: int
) -> tuple[float, list[float]]:
    """The second implementation: one item, one choice at a time; no batch, no padding."""
    others = [item for number, item in enumerate(made.items) if number != index]
    shown = random.Random(1234 + index).sample(others, made.shots)
    before = ""
    for item in shown:
        first, second = item.texts[item.gold]
        before = before + first + made.delimiter + second + "\n" + "\n"
    item = made.items[index]
    tokens = [
        [tokenizer.bos, *tokenizer.encode(before + first + made.delimiter + second)]
        for first, second in item.texts
    ]
    if made.kind == "language_modeling":
        stem = [tokenizer.bos, *tokenizer.encode((before + item.texts[0][0] + made.delimiter).rstrip())]
        scored = len(tokens[0]) - same(tokens[0], stem)
        answer_lengths = [max(1, scored)]
    elif made.kind == "schema":
        ends = min(same(tokens[0][::-1], row[::-1]) for row in tokens[1:])
        answer_lengths = [max(1, ends) for _ in tokens]
    else:
        begins = min(same(a, b) for a, b in pairwise(tokens))
        begins = min(begins, min(len(row) for row in tokens) - 1)
        answer_lengths = [len(row) - begins for row in tokens]
    losses, greedy = [], True
    for row, length in zip(tokens, answer_lengths, strict=True):
        kept = row[-context:]
        costs = []
        predictions = model(torch.tensor([kept]))[0].double()
        for place in range(len(kept) - length, len(kept)):
            logits = predictions[place - 1]
            costs.append(-F.log_softmax(logits, dim=-1)[kept[place]].item())
            greedy = greedy and int(logits.argmax()) == kept[place]
        losses.append(sum(costs) / len(costs))
    if made.kind == "language_modeling":
        return float(greedy), losses
    return float(losses.index(min(losses)) == item.gold), losses


def same(a: Sequence[int], b: Sequence[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    folder = tmp_path_factory.mktemp("questions")
    make_package(folder / "w.whl")
    return [*read_bundle(make_bundle(folder / "b")).tasks, *read_package(folder / "w.whl").tasks]


@pytest.mark.parametrize("context", [10**6, 40])
@torch.no_grad()
def test_a_second_implementation_agrees(questions: list[Task], tokenizer: Tokenizer, context: int) -> None:
    """Batches, padding, sorting, cutting: the same losses up to rounding, the same verdict on every item."""
    model = tiny(tokenizer.vocab_size)
    bound = losses_error(model)
    cut = 0
    for made in questions:
        verdicts = ask(subject_of(model, tokenizer, context), made, most=3, most_tokens=700)
        for index, verdict in enumerate(verdicts):
            assert verdict.number == made.items[index].number
            points, losses = slowly(model, tokenizer, made, index, context)
            assert verdict.losses == pytest.approx(losses, abs=bound), (made.name, index)
            least = sorted(losses)[:2]
            assert least[-1] - least[0] > 2 * bound or len(losses) == 1, "rounding must not decide"
            assert verdict.credit == points, (made.name, index)
            cut += verdict.cut > 0
    assert (cut > 15) == (context == 40)


def test_a_model_that_learnt_the_answer_by_heart_gets_them_right(tokenizer: Tokenizer) -> None:
    """Language modelling can be won, not only lost: train on one sentence until greedy decoding gives it."""
    text = f"{words(1, 5)} {words(2, 3)}"
    tokens = torch.tensor([tokenizer.encode(text, prepend=tokenizer.bos)])
    model = tiny(tokenizer.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(25):
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = task("language_modeling", ([(words(1, 5), words(2, 3))], 0), ([(words(1, 5), words(4, 3))], 0))
    assert [verdict.credit for verdict in ask(subject_of(model, tokenizer), made)] == [1.0, 0.0]


def test_an_untrained_model_ties_everywhere(questions: list[Task], tokenizer: Tokenizer) -> None:
    """lm_head is zero: every token has the loss ln V, so each choice gets its share, to the last bit."""
    model = GPT(
        GPTConfig(
            sequence_len=64, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_kv_head=2, n_embd=32
        )
    )
    model.init_weights()
    subject = subject_of(model, tokenizer, 64)
    for made in questions:
        for verdict in ask(subject, made, most=5):
            if made.kind != "language_modeling":
                assert verdict.credit == 1 / len(verdict.losses)
                assert verdict.losses == pytest.approx([math.log(tokenizer.vocab_size)] * len(verdict.losses))


@torch.no_grad()
def test_the_batch_does_not_matter(questions: list[Task], tokenizer: Tokenizer) -> None:
    model = tiny(tokenizer.vocab_size)
    subject, bound = subject_of(model, tokenizer), losses_error(model)
    rows = tokenizer.encode([words(i, 2 + i) for i in range(9)], prepend=tokenizer.bos)
    starts = [1 + i % 2 for i in range(9)]
    alone = [score_rows(subject, [row], [start])[0] for row, start in zip(rows, starts, strict=True)]
    for most in (1, 40, 10**6):
        together = score_rows(subject, rows, starts, most)
        assert [score.loss for score in together] == pytest.approx([score.loss for score in alone], abs=bound)
        assert [score.exact for score in together] == [score.exact for score in alone]
    assert score_rows(subject, [], []) == []


def test_a_limit_asks_the_first_items_with_the_same_prompts(
    questions: list[Task], tokenizer: Tokenizer
) -> None:
    model = tiny(tokenizer.vocab_size)
    subject = subject_of(model, tokenizer)
    every = ask(subject, questions[0])
    assert len(every) == 12
    few = ask(subject, questions[0], most=3)
    assert [v.number for v in few] == [v.number for v in every[:3]]
    for a, b in zip(few, every, strict=False):
        assert a.losses == pytest.approx(b.losses, abs=losses_error(model))


def test_progress_counts_every_item(questions: list[Task], tokenizer: Tokenizer) -> None:
    told: list[int] = []
    ask(subject_of(tiny(tokenizer.vocab_size), tokenizer), questions[0], done=told.append)
    assert sum(told) == 12


def test_the_report_is_json_and_names_what_is_missing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tasks = read_bundle(make_bundle(tmp_path / "b"))
    report = evaluate_core(subject_of(tiny(tokenizer.vocab_size), tokenizer), tasks, 4)
    record = json.loads(json.dumps(report.record()))
    assert [line["name"] for line in record["tasks"]] == ["copa", "winogrande", "squad"]
    assert len(record["missing"]) == 19
    assert record["title"] == "CORE subset (3 of 22 tasks)"
    assert len(report.verdicts) == 12


def test_two_ranks_ask_each_item_once(
    questions: list[Task], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks every second item, and both end with all verdicts in the same order."""
    asked: list[dict[int, Verdict]] = []

    def gather(into: list[Any], own: dict[int, Verdict]) -> None:
        asked.append(own)
        into[:] = asked * (2 // len(asked))  # the first does not know the second yet

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    subject = subject_of(tiny(tokenizer.vocab_size), tokenizer)
    made = replace(questions[0], items=questions[0].items[:5])
    with pytest.raises(KeyError):
        ask(subject, made, ranks=Ranks(0, 0, 2))
    both = ask(subject, made, ranks=Ranks(1, 1, 2))
    assert [sorted(part) for part in asked] == [[0, 2, 4], [1, 3]]
    assert [verdict.number for verdict in both] == [item.number for item in made.items]


def test_numbers_of_the_chapter() -> None:
    """What knowing nothing gives on the fourteen tasks, and how sure a score of it is."""
    record = json.loads((ROOT / "results/core-subset-cpu.json").read_text())
    tasks = record["tasks"]
    assert len(tasks) == 14
    guesses = {line["name"]: 0.5 if line["name"] == "boolq" else line["chance"] for line in tasks}
    centered = {
        line["name"]: (guesses[line["name"]] - line["chance"]) / (1 - line["chance"]) for line in tasks
    }
    assert round(centered["boolq"], 3) == -0.316
    assert round(sum(centered.values()) / 14, 3) == -0.023

    def stderr(most: int) -> float:
        squares = 0.0
        for line in tasks:
            guess = guesses[line["name"]]
            squares += guess * (1 - guess) / min(most, line["of"]) / (1 - line["chance"]) ** 2
        return math.sqrt(squares) / 14

    assert round(stderr(100), 3) == 0.018
    assert round(stderr(10**6), 3) == 0.008
    (copa,) = (line for line in tasks if line["name"] == "copa")
    assert 0.25 / copa["of"] / 0.25 > 0.5 * (14 * stderr(10**6)) ** 2  # most of it from COPA


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_scores_as_the_cpu_does() -> None:
    """In float32 to 1e-3; what is likeliest can differ only where two tokens are nearly equally likely."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3 + 5 * i for i in range(12)]
    rows = [torch.randint(0, 300, (length,), generator=generator).tolist() for length in lengths]
    starts = [max(1, length // 2) for length in lengths]
    model = tiny(300, context=64)

    def encode(texts: list[str]) -> list[list[int]]:
        return []

    on_cpu = score_rows(Subject(model, encode, 64, 300, CPU), rows, starts, 200)
    device = torch.device("cuda")
    on_gpu = score_rows(Subject(model.to(device), encode, 64, 300, device), rows, starts, 200)
    assert [score.loss for score in on_gpu] == pytest.approx([score.loss for score in on_cpu], abs=1e-3)

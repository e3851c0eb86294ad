"""Tasks: right answers are right, validation asks what training did not, and all is drawn alike each time."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from nanochat import dataset
from nanochat.conversation import exchanges, render
from nanochat.tokenizer import Tokenizer
from nanochat.tool import run_call
from tasks import WEIGHTS, Example, Mixture, Task, all_tasks
from tasks.identity import ANSWERS, Identity
from tasks.small_talk import SmallTalk
from tasks.speeches import Speeches
from tasks.task import held_back

TEXT = " ".join(
    f"{a}{b}{c}"
    for a in ("gover", "presi", "con", "un", "re")
    for b in ("n", "den", "gress")
    for c in ("s", "ing", "ed")
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 20, 300)


@pytest.fixture(scope="module")
def tasks(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    folder: Path = tmp_path_factory.mktemp("base")
    source = tmp_path_factory.mktemp("text")
    (source / "a.txt").write_text(TEXT + "\n" + TEXT)
    (source / "b.txt").write_text(TEXT + "\n" + TEXT + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        dataset.prepare_folder(source, "words")
        return all_tasks(tokenizer, "words")


NAMES = list(WEIGHTS)


def named(tasks: list[Task], name: str) -> Task:
    return next(task for task in tasks if task.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_is_right_and_a_wrong_one_is_not(tasks: list[Task], name: str) -> None:
    task = named(tasks, name)
    for split in ("train", "val"):
        example = task.draw(random.Random(1), split)
        assert task.judge(example, example.answer)
        assert task.judge(example, f" {example.answer}\n")
        assert not task.judge(example, example.answer + "x")
        assert not task.judge(example, "")


@pytest.mark.parametrize("name", NAMES)
def test_examples_depend_on_the_seed_alone(tasks: list[Task], name: str) -> None:
    task = named(tasks, name)
    for split in ("train", "val"):
        one, again = ([task.draw(random.Random(5), split) for _ in range(3)] for _ in range(2))
        assert one == again
    assert task.validation(20) == task.validation(20)
    assert task.validation(20, seed=1) != task.validation(20)
    questions = [example.question for example in task.validation(20)]
    assert len(set(questions)) == len(questions) > 5


def asked_for(name: str, example: Example) -> str:
    """What belongs to one split: the sum, the word, the year, the wording."""
    if name in ("arithmetic", "letters"):
        return example.turns[-1].parts[0].text.split()[-1]
    if name == "spelling":
        return example.answer.replace(" ", "")
    return re.findall(r"\d{4}", example.question)[0] if name == "speeches" else example.question.casefold()


@pytest.mark.parametrize("name", NAMES)
def test_validation_asks_what_training_did_not(tasks: list[Task], name: str) -> None:
    task, rng = named(tasks, name), random.Random(2)
    seen, asked = (
        {asked_for(name, task.draw(rng, split)) for _ in range(1500)} for split in ("train", "val")
    )
    assert seen
    assert asked
    assert not seen & asked


@pytest.mark.parametrize("name", ["arithmetic", "letters"])
def test_calls_and_outputs_are_what_the_tool_says(tasks: list[Task], name: str) -> None:
    rng = random.Random(3)
    for _ in range(200):
        example = named(tasks, name).draw(rng, "train")
        call, output, text = example.turns[-1].parts
        assert (call.kind, output.kind, text.kind) == ("call", "output", "text")
        assert run_call(call.text) == output.text != "error"
        assert output.text in text.text.split() or f"{output.text}." in text.text.split()


def test_what_is_copied_into_a_call_has_the_tokens_of_the_question(
    tasks: list[Task], tokenizer: Tokenizer
) -> None:
    rng = random.Random(4)
    for _ in range(200):
        example = named(tasks, "letters").draw(rng, "train")
        word = example.turns[-1].parts[0].text.split()[-1]
        tokens = tokenizer.encode(f" {word}")
        for text in (example.question, example.turns[-1].parts[0].text):
            ids = tokenizer.encode(text)
            assert any(ids[i : i + len(tokens)] == tokens for i in range(len(ids))), text


def test_a_word_that_is_spelled_is_the_word(tasks: list[Task]) -> None:
    rng = random.Random(5)
    for _ in range(200):
        example = named(tasks, "spelling").draw(rng, "train")
        assert example.answer.replace(" ", "") in example.question
        assert re.fullmatch(r"[a-z]( [a-z])*", example.answer)


def test_made_up_words_reach_pieces_that_words_do_not(tasks: list[Task]) -> None:
    words = named(tasks, "spelling").words  # type: ignore[attr-defined]
    rng = random.Random(6)
    made = {words.draw(rng, "train", made_up=1) for _ in range(500)}
    assert len(made - set(words.split["train"])) > 300
    assert not any(map(held_back, made))
    assert {words.draw(rng, "val", made_up=1) for _ in range(100)} <= set(words.split["val"])


def test_a_year_has_its_president_and_the_nearest_year_is_the_baseline() -> None:
    task = Speeches()
    assert task.speaker[1863] == "Abraham Lincoln"
    assert not {1953, 1961} & set(task.speaker)
    assert task.next_year[1863] == 1864
    rng = random.Random(7)
    for _ in range(300):
        example = task.draw(rng, "val")
        year = int(re.findall(r"\d{4}", example.question)[0])
        if "after" in example.question:
            assert example.answer == f"{task.speaker[task.next_year[year]]}."
        else:
            assert example.answer == f"{task.speaker[year]}."
    right = [task.judge(example, task.guess(example)) for example in task.validation(100)]
    assert 0.5 < sum(right) / len(right) < 1, "a strong baseline, but not a perfect one"


def test_a_choice_has_the_right_reply_once_and_no_other_reply_to_the_question() -> None:
    task = SmallTalk()
    replies: dict[str, set[str]] = {}
    for question, answer in task.split["val"]:
        replies.setdefault(question.casefold(), set()).add(answer)
    places: Counter[int] = Counter()
    for seed in range(300):
        example = task.draw(random.Random(seed), "val")
        assert len(example.choices) == len(set(example.choices)) == 4
        assert set(example.choices) & replies[example.question.casefold()] == {example.answer}
        places[example.choices.index(example.answer)] += 1
    assert min(places.values()) > 40


def test_identity_says_one_thing_to_one_question() -> None:
    questions = [question for asked in ANSWERS.values() for question in asked]
    assert len(set(questions)) == len(questions)
    rng = random.Random(8)
    said = {Identity().draw(rng, "val").answer for _ in range(500)}
    assert said == set(ANSWERS)


def test_a_mixture_has_one_to_three_exchanges_by_weight(tasks: list[Task]) -> None:
    mixture = Mixture(tasks[:2], (0.25, 0.75))
    rng = random.Random(9)
    talks = [mixture.conversation(rng) for _ in range(600)]
    counts = Counter(len(exchanges(talk)) for talk in talks)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 150
    calls = [turn.parts[0].text for talk in talks for turn in talk[1::2]]
    share = sum(call.startswith("count") for call in calls) / len(calls)
    assert 0.7 < share < 0.8


def test_the_usual_mixture_fits_into_rows(tasks: list[Task], tokenizer: Tokenizer) -> None:
    mixture = Mixture(tasks, [WEIGHTS[task.name] for task in tasks])
    assert set(WEIGHTS) == {task.name for task in tasks}
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    rng = random.Random(10)
    for _ in range(100):
        assert any(render(mixture.conversation(rng), tokenizer, 257).learned)

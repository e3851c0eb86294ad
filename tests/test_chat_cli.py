"""The terminal's chat: what is said, what Ctrl-C stops, commands, characters that a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat.conversation import Part, assistant, render_answer, user
from nanochat.tokenizer import Tokenizer
from scripts.chat_cli import HELP, Talk, converse, visible

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])


class ScriptedEngine:
    """Says one answer after another; an answer that contains ^C is interrupted there."""

    def __init__(self, *answers: Part | str) -> None:
        self.model = SimpleNamespace(config=SimpleNamespace(sequence_len=200))
        self.answers = list(answers)
        self.prompts: list[str] = []

    def generate(
        self, prompts: Sequence[list[int]], *settings: Any, **more: Any
    ) -> Iterator[list[int | None]]:
        self.prompts.append(TOKENIZER.decode(prompts[0]))
        self.settings = settings
        text = self.answers.pop(0)
        ids = render_answer([Part("text", text) if isinstance(text, str) else text], TOKENIZER).ids[:-1]
        for token in ids:
            if token == 3:
                raise KeyboardInterrupt
            yield [token]


def talk(
    capsys: pytest.CaptureFixture[str], engine: ScriptedEngine, *lines: str | type[BaseException]
) -> tuple[Talk, str]:
    """Type these lines, an exception for what a key raises; returns the talk and what was printed."""
    made = Talk(engine, TOKENIZER, "", 0.8, 50, 42)  # type: ignore[arg-type]
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read() -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    converse(made, read)
    return made, capsys.readouterr().out


def test_each_question_is_asked_with_what_was_said_before(capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine("Good day.", "391")
    made, out = talk(capsys, engine, "hello", "", "17 * 23?")
    assert out == "Good day.\n391\n"
    assert "hello" in engine.prompts[1]
    assert "Good day." in engine.prompts[1]
    assert made.turns == [
        user("hello"),
        assistant("Good day."),
        user("17 * 23?"),
        assistant("391"),
    ]


def test_ctrl_c_stops_an_answer_and_not_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine("I was say\x03ing", "more")
    _, out = talk(capsys, engine, "speak", KeyboardInterrupt, "go on")
    assert out == "I was say\n(stopped)\n(Ctrl-D or /quit ends)\nmore\n"
    assert "I was say" in engine.prompts[1]


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine("one", "two", "three")
    commands = (
        "/temperature 0.1",
        "/top_k 0",
        "/top_k x",
        "/nonsense",
        "/help",
        "/again",
        "/new",
        "new",
        "/quit",
        "no",
    )
    made, out = talk(capsys, engine, "count", *commands)
    no_number = "'x' is no number that fits; give 0 or more"
    no_command = "there is no command /nonsense; /help lists them"
    assert out == f"one\n{no_number}\n{no_command}\n{HELP}\ntwo\nthree\n"
    assert "one" not in engine.prompts[1]
    assert "count" not in engine.prompts[2]
    assert engine.settings[1:3] == (0.1, None)
    assert len(made.turns) == 2


def test_a_call_and_its_output_stand_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    made, out = talk(capsys, ScriptedEngine(Part("call", "17*23")), "17 * 23?")
    assert out == "\n  [asks the tool: 17*23]\n"
    assert made.turns[-1].parts == (Part("call", "17*23"),)


def test_a_long_conversation_leaves_room_for_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    engine = ScriptedEngine(*["x" * 30] * 20)
    made, _ = talk(capsys, engine, *["y" * 30] * 20)
    assert len(made.turns) == 40
    assert all(len(TOKENIZER.encode(prompt)) < 400 for prompt in engine.prompts)
    assert engine.settings[0] >= 50


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert visible("a\n\tb\x1b[2J\x07\r\x9bé") == "a\n\tb\ufffd[2J\ufffd\ufffd\ufffdé"

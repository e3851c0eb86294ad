"""Talk to a trained model in the terminal: python -m scripts.chat_cli."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanochat.common import UserError, base_dir, pick_device, run_program
from nanochat.flags import flag, parse_flags

if TYPE_CHECKING:
    from nanochat.conversation import Part, Turn
    from nanochat.engine import Engine
    from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class CliConfig:
    """The flags of scripts.chat_cli."""

    run: str = flag("", "the run's tag (without: the newest that answers)")
    gpt: str = flag("", "whose model computes (without: the one that trained)")
    prompt: str = flag("", "one question; print the answer and end")
    system: str = flag("", "instructions in front of the first question")
    temperature: float = flag(0.8, "0 takes the likeliest token, 1 samples as is")
    top_k: int = flag(50, "sample among the k likeliest; 0: among all")
    seed: int = flag(42, "answer i uses seed + i")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.top_k < 0:
            raise UserError(f"--temperature={self.temperature} and --top_k={self.top_k}: at least 0")


def visible(text: str) -> str:
    """The text without characters that a terminal would obey."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in text)


def write(text: str) -> None:
    """Print at once, without ending the line."""
    sys.stdout.write(visible(text))
    sys.stdout.flush()


@dataclass
class Talk:
    """A conversation, and how it is to go on."""

    engine: Engine
    tokenizer: Tokenizer
    system: str
    temperature: float
    top_k: int
    seed: int
    turns: list[Turn] = field(default_factory=list)

    def answer(self, question: str) -> Generator[Part, None, None]:
        """Ask; yields the answer's parts as they come. Closed early, it keeps what has come."""
        from nanochat.answers import AnswerReader, keep
        from nanochat.conversation import Turn, render_prompt, system, user
        from nanochat.tool import ToolUse

        reader = AnswerReader(self.tokenizer)
        parts: list[Part] = []
        self.turns.append(user(question))
        try:
            context = self.engine.model.config.sequence_len
            opening = [system(self.system)] if self.system else []
            prompt = render_prompt([*opening, *self.turns], self.tokenizer, context - context // 4)
            tokens = self.engine.generate(
                [prompt],
                context - len(prompt),
                self.temperature,
                self.top_k or None,
                self.seed + len(self.turns),
                {self.tokenizer.special("<|assistant_end|>"), self.tokenizer.bos},
                insert=ToolUse(self.tokenizer),
            )
            for (token,) in tokens:
                for part in reader.take([token] if token is not None else []):
                    keep(parts, part)
                    yield part
            for part in reader.end():
                keep(parts, part)
                yield part
        finally:
            self.turns.append(Turn("assistant", tuple(parts)))

    def forget_last(self) -> str:
        """Take the last question and its answer back; returns the question, or "" if there is none."""
        last = self.turns[-2].text if self.turns else ""
        del self.turns[-2:]
        self.seed += 1
        return last


HELP = """\
/new               begin a new conversation
/again             another answer to the last question
/temperature 0.8   0 takes the likeliest token, 1 samples as is
/top_k 50          sample among the k likeliest; 0: among all
/quit              end, as Ctrl-D does; Ctrl-C stops an answer"""


def number(text: str, kind: Callable[[str], float]) -> float:
    """A number of at least 0. Raises UserError."""
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise UserError(f"{text!r} is no number that fits; give 0 or more")
    return value


def obey(talk: Talk, command: str) -> str:
    """Do what a line that begins with / says; returns a question to be asked. Raises UserError, EOFError."""
    name, _, value = command.partition(" ")
    if name == "/new":
        talk.turns.clear()
    elif name == "/again":
        return talk.forget_last()
    elif name == "/temperature":
        talk.temperature = number(value, float)
    elif name == "/top_k":
        talk.top_k = int(number(value, int))
    elif name in ("/quit", "/exit"):
        raise EOFError
    elif name == "/help":
        write(HELP + "\n")
    else:
        raise UserError(f"there is no command {name}; /help lists them")
    return ""


def line_reader() -> Callable[[], str]:
    """A function that reads a question; it raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""
    if not sys.stdin.isatty():
        return input
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    past: History = InMemoryHistory()
    if os.access(base_dir(), os.W_OK):
        past = FileHistory(str(base_dir() / "chat-history"))
    session: PromptSession[str] = PromptSession(history=past)
    return lambda: session.prompt("> ")


WORDS = {"call": "\n  [asks the tool: ", "output": "\n  [the tool says: "}


def show_answer(talk: Talk, question: str) -> None:
    """Ask, and print the answer as it comes; Ctrl-C stops it."""
    answer, after_tool = talk.answer(question), False
    try:
        for part in answer:
            if part.kind in WORDS:
                write(f"{WORDS[part.kind]}{part.text}]")
            else:
                write(("\n" if after_tool else "") + part.text)
            after_tool = part.kind in WORDS
        write("\n")
    except KeyboardInterrupt:
        write("\n(stopped)\n")
    finally:
        answer.close()


def converse(talk: Talk, read: Callable[[], str]) -> None:
    """Questions and answers until the end of the input."""
    while True:
        try:
            line = read().strip()
            question = obey(talk, line) if line.startswith("/") else line
            if question:
                show_answer(talk, question)
        except KeyboardInterrupt:
            write("(Ctrl-D or /quit ends)\n")
        except UserError as error:
            write(f"{error}\n")
        except EOFError:
            return


def main() -> None:
    """Load the run that the flags name, and talk."""
    about = "Talk to a trained model."
    config = parse_flags(CliConfig, sys.argv[1:], "python -m scripts.chat_cli", about)
    from nanochat.decoding import for_decoding
    from nanochat.engine import Engine
    from nanochat.talk_training import newest
    from nanochat.trained import load_model

    run = config.run or newest("chat") or "latest"
    model, tokenizer = load_model(run, pick_device(config.device_type), config.gpt)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show é shows ?
    engine = Engine(for_decoding(model))
    talk = Talk(engine, tokenizer, config.system, config.temperature, config.top_k, config.seed)
    if config.prompt:
        show_answer(talk, config.prompt)
        return
    write("Ask something; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.\n")
    converse(talk, line_reader())


if __name__ == "__main__":
    run_program(main)

"""What a model is taught to answer, and asked: small tasks with one interface."""

from __future__ import annotations

from nanochat.tokenizer import Tokenizer
from tasks.arithmetic import Arithmetic
from tasks.identity import Identity
from tasks.letters import Letters, Spelling, Words
from tasks.small_talk import SmallTalk
from tasks.speeches import Speeches
from tasks.task import Example, Mixture, Task, held_back

__all__ = ["WEIGHTS", "Example", "Mixture", "Task", "all_tasks", "held_back", "usual_mixture"]

WEIGHTS = {
    "arithmetic": 0.12,
    "letters": 0.30,
    "spelling": 0.45,
    "identity": 0.05,
    "speeches": 0.05,
    "small talk": 0.03,
}


def all_tasks(tokenizer: Tokenizer, data: str = "sotu") -> list[Task]:
    """Every task, with words of the corpus `data` and pieces of this vocabulary."""
    words = Words(tokenizer, data)
    return [Arithmetic(), Letters(words), Spelling(words), Identity(), Speeches(), SmallTalk()]


def usual_mixture(tokenizer: Tokenizer, data: str = "sotu") -> Mixture:
    """All tasks, with the weights of the chapter."""
    tasks = all_tasks(tokenizer, data)
    return Mixture(tasks, [WEIGHTS[task.name] for task in tasks])

